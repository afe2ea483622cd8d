/* SPDX-License-Identifier: Apache-2.0 */

/* Generations side by side, on a small random model given as argument. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/engine-rig.h"

enum { N_SIDE = 16 };

/* Half of them greedy, the others seeded; prompts of a few tokens up to several batches. */
static struct engine_request side(uint32_t i) {
    struct engine_request q = long_prompt(1 + i * 7 % 90, 12 + i % 5);

    q.who.uid = i % 3;
    q.logprobs = true;
    q.n_top = 3;
    if (i % 2 == 0)
        return q;
    q.sample = (struct sample_params){ .has = SAMPLE_TEMPERATURE | SAMPLE_SEED,
                                       .temperature = 1.0f,
                                       .seed = 100 + i };
    return q;
}

static struct engine *start_side(void) {
    struct engine_options opt = {
        .path = model_path, .n_ctx = N_CTX, .n_batch = 32, .kv_fmt = QUANT_F16
    };

    script_clear();
    shared = start_loaded(&opt);
    return shared;
}

/* A job's answer and logprobs are the same bits alone and beside fifteen others. */
static void test_side_by_side(void **state) {
    static struct seen alone[N_SIDE], s[N_SIDE];
    AUTO(engine_free) struct engine *e = start_side();
    uint64_t job[N_SIDE];
    uint32_t n_done = 0;
    struct engine_event ev;
    struct engine_status st;

    for (uint32_t i = 0; i < N_SIDE; i++) {
        struct engine_request q = side(i);

        run(e, &q, &alone[i]);
    }
    atomic_store(&slow_ms, 3); /* so that all of them are there before one ends */
    for (uint32_t i = 0; i < N_SIDE; i++) {
        struct engine_request q = side(i);

        memset(&s[i], 0, sizeof s[i]);
        job[i] = submit(e, &q);
    }
    while (n_done < N_SIDE) {
        if (!next(e, &ev, PATIENCE_MS))
            fail_msg("no event came");
        for (uint32_t i = 0; i < N_SIDE; i++)
            if (ev.job == job[i])
                see(&s[i], &ev);
        n_done += ev.kind == ENGINE_DONE;
    }
    for (uint32_t i = 0; i < N_SIDE; i++) {
        assert_int_equal(s[i].result.end, alone[i].result.end);
        assert_int_equal(s[i].n_token, alone[i].n_token);
        assert_true(s[i].n_token >= 12);
        assert_string_equal(s[i].text, alone[i].text);
        assert_memory_equal(s[i].token, alone[i].token, s[i].n_token * sizeof s[i].token[0]);
    }
    engine_status(e, &st);
    assert_int_equal(st.n_running, 0);
    assert_int_equal(st.n_queued, 0);
    script_clear();
}

/* One that is paused, or cancelled, is nothing to the others. */
static void test_side_pause(void **state) {
    AUTO(engine_free) struct engine *e = start_side();
    struct engine_request q = raw("hello", 400), t = raw("hello", 40);
    struct engine_status st;
    uint64_t held, gone, job;
    static struct seen s;

    atomic_store(&slow_ms, 2);
    held = submit(e, &q);
    gone = submit(e, &q);
    await(e, held, ENGINE_TEXT);
    engine_pause(e, held, true);
    engine_cancel(e, gone);
    for (int i = 0; i < 3; i++) {
        job = submit(e, &t);
        collect(e, job, &s);
        assert_int_equal(s.result.n_token, 40);
    }
    memset(&s, 0, sizeof s);
    end_find(e, gone, &s);
    assert_true(s.done);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
    engine_status(e, &st);
    assert_int_equal(st.n_running, 1);
    engine_pause(e, held, false);
    collect(e, held, &s);
    assert_int_equal(s.result.n_token, 400);
    script_clear();
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_side_by_side),
        cmocka_unit_test(test_side_pause),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, rig_teardown);
}
