/* SPDX-License-Identifier: Apache-2.0 */

/* Shares of users with a real model by the clock: test-share MODEL [SECONDS of each case]. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "engine/engine.h"

enum { N_SEQ = 16, MAX_TOKENS = 500, WARM_USEC = 500000 };

static const char *model_path;
static double seconds = 4;

struct user {
    uint32_t uid, weight, n_stream;
    uint64_t n_done; /* tokens of answers that are over */
    uint64_t job[N_SEQ];
};

static uint64_t now_usec(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void submit(struct engine *e, struct user *u, uint32_t i) {
    const struct engine_request q = {
        .who = { .uid = u->uid, .uid_weight = u->weight, .app = u->uid },
        .text = "once",
        .n_text = 4,
        .ignore_end = true,
        .max_tokens = MAX_TOKENS,
        .userdata = u
    };

    assert_int_equal(engine_submit(e, &q, &u->job[i], NULL, NULL), 0);
}

/* Until @until; an answer that ends is followed by another. */
static void run(struct engine *e, uint64_t until) {
    struct engine_event ev;

    for (uint64_t now; (now = now_usec()) < until;) {
        struct pollfd p = { .fd = engine_fd(e), .events = POLLIN };

        (void)poll(&p, 1, (int)((until - now) / 1000 + 1));
        while (engine_next(e, &ev)) {
            struct user *u = ev.userdata;

            if (ev.kind != ENGINE_DONE)
                continue;
            assert_int_equal(ev.result->end, ENGINE_END_LENGTH);
            u->n_done += ev.result->n_token;
            for (uint32_t i = 0; i < u->n_stream; i++)
                if (u->job[i] == ev.job)
                    submit(e, u, i);
        }
    }
}

static uint64_t tokens(struct engine *e, const struct user *u) {
    uint64_t n = u->n_done;
    struct engine_job at;

    for (uint32_t i = 0; i < u->n_stream; i++)
        n += engine_job(e, u->job[i], &at) ? at.n_token : 0;
    return n;
}

/* Both users' streams side by side. @percent: of the tokens, to be the first one's. */
static void share(struct user a, struct user b, double percent) {
    const struct engine_options opt = { .path = model_path,
                                        .n_ctx = 1024,
                                        .n_seq = N_SEQ,
                                        .n_worker = 1,
                                        .kv_bytes = 1 << 28,
                                        .kv_fmt = QUANT_F16 };
    AUTO(engine_free) struct engine *e = NULL;
    uint64_t began_a, began_b;
    double na, nb;

    assert_int_equal(engine_new(&e, &opt, NULL), 0);
    for (uint32_t i = 0; i < a.n_stream; i++)
        submit(e, &a, i);
    for (uint32_t i = 0; i < b.n_stream; i++)
        submit(e, &b, i);
    do
        run(e, now_usec() + WARM_USEC); /* and load */
    while (!tokens(e, &a) || !tokens(e, &b));
    began_a = tokens(e, &a);
    began_b = tokens(e, &b);
    run(e, now_usec() + (uint64_t)(seconds * 1e6));
    na = (double)(tokens(e, &a) - began_a);
    nb = (double)(tokens(e, &b) - began_b);
    print_message("%u streams of weight %u and %u of weight %u, %g s: %.0f and %.0f tokens, "
                  "%.1f %%, want %.0f\n",
                  a.n_stream, a.weight, b.n_stream, b.weight, seconds, na, nb, 100 * na / (na + nb),
                  percent);
    assert_true(na + nb > 100);
    assert_true(100 * na / (na + nb) > percent - 5 && 100 * na / (na + nb) < percent + 5);
}

static void test_one_and_fifteen(void **state) {
    share((struct user){ 1, 100, 1, 0, { 0 } }, (struct user){ 2, 100, 15, 0, { 0 } }, 50);
}

static void test_weights(void **state) {
    share((struct user){ 1, 300, 8, 0, { 0 } }, (struct user){ 2, 100, 8, 0, { 0 } }, 75);
}

static void test_weights_one_and_fifteen(void **state) {
    share((struct user){ 1, 300, 1, 0, { 0 } }, (struct user){ 2, 100, 15, 0, { 0 } }, 75);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_and_fifteen),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_weights_one_and_fifteen),
    };

    model_path = argc > 1 ? argv[1] : "";
    seconds = argc > 2 ? strtod(argv[2], NULL) : seconds;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
