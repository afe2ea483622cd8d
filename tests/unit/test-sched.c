/* SPDX-License-Identifier: Apache-2.0 */

/* The scheduler and the resident model without threads, on small random models given as arguments,
 * the second one split over three files. model_step() is replaced: it records its rows, and every
 * row draws the same token. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "engine/sched/sched.h"

enum { N_BATCH = 16, N_CTX = 128, N_STEP = 256 };

static const char *model_path, *split_path;
static struct resident *res;

/* ---- the step ---- */

static struct {
    uint32_t n_row;
    struct model_row first, last;
} step[N_STEP];
static uint32_t n_step;
static tok_t draws; /* the token every row draws */
static int step_returns;
static struct job *step_halts; /* halted during the step */
static float *logits;

int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits);

int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits) {
    assert_true(n_row >= 1 && n_row <= N_BATCH && n_step < N_STEP);
    step[n_step].n_row = n_row;
    step[n_step].first = row[0];
    step[n_step++].last = row[n_row - 1];
    for (uint32_t i = 0; i < n_row; i++) {
        assert_int_equal(row[i].pos, row[0].pos + i);
        assert_int_equal(row[i].seq, 0);
        assert_true(i + 1 == n_row || !row[i].out);
    }
    assert_int_equal(kvcache_n(kv, 0), row[n_row - 1].pos + 1); /* reserved */
    if (step_halts)
        job_halt(step_halts, JOB_END_CANCELLED);
    if (atomic_load(stop))
        return MODEL_STOPPED;
    memset(logits, 0, vocab_n(res->vocab) * sizeof *logits);
    logits[draws] = 50.0f;
    *ret_logits = logits;
    return step_returns;
}

static void step_clear(void) {
    n_step = 0;
    step_returns = 0;
    step_halts = NULL;
    draws = vocab_find(res->vocab, "a", 1);
}

/* ---- jobs ---- */

static struct job *prepared(size_t n_prompt, uint32_t max_tokens) {
    AUTO(job_free) struct job *j = job_new(JOB_GENERATE);

    for (size_t i = 0; i < n_prompt; i++)
        assert_int_equal(tok_list_push(&j->tok, (tok_t)(i % 50)), 0);
    assert_int_equal(stop_new(&j->stop, NULL, 0), 0);
    j->max_tokens = max_tokens;
    j->sample.has = SAMPLE_TEMPERATURE; /* greedy */
    assert_true(job_prepare(j, res));
    return take(j);
}

struct world {
    struct ring *ring;
    struct sched *s;
    struct sched_stats stats;
};

static void open_world(struct world *w, uint32_t n_ring) {
    *w = (struct world){ 0 };
    step_clear();
    assert_int_equal(ring_new(&w->ring, n_ring, sizeof(struct job_event)), 0);
    assert_int_equal(sched_new(&w->s, res, w->ring, &w->stats), 0);
    assert_int_equal(sched_step(w->s), SCHED_NO_JOB);
}

static void close_world(struct world *w) {
    sched_free(w->s);
    ring_free(w->ring);
}

static void run(struct world *w, struct job *j) {
    int r;

    sched_admit(w->s, j);
    do
        r = sched_step(w->s);
    while (r == 0);
    assert_int_equal(r, SCHED_NO_JOB);
}

/* Pop up to @j's end. Return: bytes of text it had. */
static size_t drain(struct world *w, struct job *j) {
    struct job_event ev;
    size_t n = 0;

    while (ring_pop(w->ring, &ev) == 0) {
        assert_ptr_equal(ev.job, j);
        if (ev.kind == JOB_EVENT_DONE)
            return n;
        if (ev.kind == JOB_EVENT_TEXT)
            n += ev.n_text;
    }
    fail_msg("the job did not end");
    return 0;
}

/* The rows of a generation: the prompt in batches, then one token a step, each at its position. */
static void test_rows(void **state) {
    struct world w;

    open_world(&w, 64);
    for (int round = 0; round < 2; round++) { /* the second begins at position 0 again */
        AUTO(job_free) struct job *j = prepared(40, 5);

        n_step = 0;
        run(&w, j);
        assert_int_equal(drain(&w, j), 5);
        assert_int_equal(n_step, 3 + 4);
        assert_int_equal(step[0].n_row, 16);
        assert_int_equal(step[1].n_row, 16);
        assert_int_equal(step[2].n_row, 8);
        assert_int_equal(step[0].first.pos, 0);
        assert_int_equal(step[1].first.tok, 16);
        assert_false(step[1].last.out);
        assert_true(step[2].last.out);
        for (uint32_t i = 0; i < 4; i++) {
            assert_int_equal(step[3 + i].n_row, 1);
            assert_int_equal(step[3 + i].first.pos, 40 + i);
            assert_int_equal(step[3 + i].first.tok, draws);
            assert_true(step[3 + i].first.out);
        }
        assert_int_equal(j->result.end, JOB_END_LENGTH);
        assert_int_equal(j->result.n_token, 5);
    }
    assert_int_equal(w.stats.n_prompt_token, 80);
    assert_int_equal(w.stats.n_token, 10);
    assert_true(w.stats.job_usec > 0 && w.stats.step_usec > 0);
    close_world(&w);
}

/* To the last position of the context, and not one further. */
static void test_context(void **state) {
    AUTO(job_free) struct job *j = NULL;
    struct world w;

    open_world(&w, 256);
    j = prepared(N_CTX - 3, 0);
    run(&w, j);
    drain(&w, j);
    assert_int_equal(j->result.n_token, 3);
    assert_int_equal(step[n_step - 1].last.pos, N_CTX - 2);
    close_world(&w);
}

/* A ring that is full stops the steps, not the events. */
static void test_no_room(void **state) {
    AUTO(job_free) struct job *j = NULL;
    uint32_t n_text = 0, n_full = 0;
    struct job_event ev;
    bool done = false;
    struct world w;

    open_world(&w, 1);
    j = prepared(4, 20);
    sched_admit(w.s, j);
    while (!done) {
        int r = sched_step(w.s);
        uint32_t n = n_step;

        if (r == 0)
            continue;
        n_full += r == SCHED_NO_ROOM;
        assert_int_equal(sched_step(w.s), r);
        assert_int_equal(n_step, n);
        while (!done && ring_pop(w.ring, &ev) == 0) {
            n_text += ev.kind == JOB_EVENT_TEXT;
            done = ev.kind == JOB_EVENT_DONE;
        }
    }
    assert_int_equal(n_text, 20);
    assert_true(n_full >= 10);
    assert_int_equal(sched_step(w.s), SCHED_NO_JOB);
    close_world(&w);
}

static void test_hold(void **state) {
    AUTO(job_free) struct job *j = NULL;
    struct world w;

    open_world(&w, 64);
    j = prepared(20, 5);
    sched_admit(w.s, j);
    assert_int_equal(sched_step(w.s), 0);
    atomic_store(&j->hold, true);
    for (int i = 0; i < 3; i++)
        assert_int_equal(sched_step(w.s), SCHED_ON_HOLD);
    assert_int_equal(n_step, 1);
    atomic_store(&j->hold, false);
    assert_int_equal(sched_step(w.s), 0);
    assert_int_equal(n_step, 2);
    atomic_store(&j->hold, true);
    job_halt(j, JOB_END_CANCELLED); /* ends it, held or not */
    assert_int_equal(sched_step(w.s), 0);
    assert_int_equal(sched_step(w.s), SCHED_NO_JOB);
    assert_int_equal(j->result.end, JOB_END_CANCELLED);
    assert_int_equal(j->result.n_token, 1);
    close_world(&w);
}

/* Halted in the middle of a step: nothing of that step counts. */
static void test_halt(void **state) {
    AUTO(job_free) struct job *j = NULL;
    struct world w;

    open_world(&w, 64);
    j = prepared(20, 5);
    sched_admit(w.s, j);
    assert_int_equal(sched_step(w.s), 0);
    step_halts = j;
    assert_int_equal(sched_step(w.s), 0);
    assert_int_equal(sched_step(w.s), SCHED_NO_JOB);
    assert_int_equal(drain(&w, j), 0);
    assert_int_equal(j->result.end, JOB_END_CANCELLED);
    assert_int_equal(j->result.n_token, 0);
    assert_int_equal(w.stats.n_prompt_token, 16);
    assert_int_equal(w.stats.n_running, 0);
    close_world(&w);
}

static void test_step_fails(void **state) {
    AUTO(job_free) struct job *j = NULL;
    struct world w;

    open_world(&w, 64);
    j = prepared(20, 5);
    step_returns = -EIO;
    run(&w, j);
    drain(&w, j);
    assert_int_equal(j->result.end, JOB_END_INTERNAL);
    assert_true(strlen(j->result.why.text) > 0);
    assert_int_equal(n_step, 1);
    close_world(&w);
}

/* ---- the resident model ---- */

struct loading {
    uint64_t done, total;
    uint32_t n;
    atomic_bool stop;
    bool stops;
};

static void loading(void *arg, uint64_t done, uint64_t total) {
    struct loading *l = arg;

    assert_true(done >= l->done && done <= total);
    assert_true(l->n == 0 || total == l->total);
    l->done = done;
    l->total = total;
    l->n++;
    atomic_store(&l->stop, l->stops);
}

static void test_load_stops(void **state) {
    struct resident_options opt = { .path = model_path, .n_batch = 1, .kv_fmt = QUANT_F16 };
    struct loading l = { .stops = true };
    struct resident *r = NULL;

    assert_int_equal(resident_new(&r, &opt, loading, &l, &l.stop, NULL), RESIDENT_STOPPED);
    assert_int_equal(l.n, 1);
    assert_int_equal(l.done, 0);
    assert_null(r);
}

static void test_load_no_room(void **state) {
    struct resident_options opt = {
        .path = model_path, .n_batch = 1, .kv_bytes = 1, .kv_fmt = QUANT_F16
    };
    struct loading l = { 0 };
    struct resident *r = NULL;
    struct why why;

    assert_int_equal(resident_new(&r, &opt, loading, &l, &l.stop, &why), RESIDENT_BAD);
    assert_non_null(strstr(why.text, model_path));
}

/* All files of a split model are read, and all of it is one model. */
static void test_load_split(void **state) {
    struct resident_options opt = { .path = split_path, .n_batch = 4, .kv_fmt = QUANT_F16 };
    AUTO(resident_free) struct resident *r = NULL;
    struct loading l = { 0 };
    char path[4096];
    uint64_t size = 0;

    for (int part = 1; part <= 3; part++) {
        size_t n = strlen(split_path) - strlen("00001-of-00003.gguf");
        struct stat st;

        snprintf(path, sizeof path, "%.*s%05d-of-00003.gguf", (int)n, split_path, part);
        assert_int_equal(stat(path, &st), 0);
        size += (uint64_t)st.st_size;
    }
    assert_int_equal(resident_new(&r, &opt, loading, &l, &l.stop, NULL), 0);
    assert_int_equal(l.total, size);
    assert_int_equal(l.done, size);
    assert_int_equal(r->n_ctx, model_info(r->model)->n_ctx_train);
    assert_int_equal(model_info(r->model)->n_ctx, r->n_ctx);
}

static int setup(void **state) {
    struct resident_options opt = {
        .path = model_path, .n_ctx = N_CTX, .n_batch = N_BATCH, .kv_fmt = QUANT_F32, .n_worker = 1
    };
    struct loading l = { 0 };
    struct why why = { "" };

    if (resident_new(&res, &opt, loading, &l, &l.stop, &why) != 0) {
        print_error("%s\n", why.text);
        return -1;
    }
    logits = calloc(vocab_n(res->vocab), sizeof *logits);
    return logits && l.done == l.total && l.total > 0 ? 0 : -1;
}

static int teardown(void **state) {
    free(logits);
    resident_free(res);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),       cmocka_unit_test(test_context),
        cmocka_unit_test(test_no_room),    cmocka_unit_test(test_hold),
        cmocka_unit_test(test_halt),       cmocka_unit_test(test_step_fails),
        cmocka_unit_test(test_load_stops), cmocka_unit_test(test_load_no_room),
        cmocka_unit_test(test_load_split),
    };

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL SPLIT-MODEL\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    split_path = argv[2];
    return cmocka_run_group_tests(tests, setup, teardown);
}
