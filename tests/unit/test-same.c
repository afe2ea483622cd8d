/* SPDX-License-Identifier: Apache-2.0 */

/* The same answer: logits of a generation are the same bits alone and beside others, with its
 * prompt in one piece and in many, found in the cache, read from a file and neither, on one thread
 * and on all, for every weight format; and with floats throughout, for a mix of all formats. Models
 * come from tests/mk-model.py; MK_MODEL is the command. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/base/sum.h"
#include "engine/sched/sched.h"

enum { N_CTX = 256, N_SEQ = 16, N_KEEP = 8, N_TOKEN = 5, N_PROMPT = 90, N_SAME = 70 };

static char dir[] = "/tmp/test-same-XXXXXX";

/* ---- what came out ---- */

/* Sums over the logits of each token of an answer. */
struct answered {
    struct job *job;
    uint64_t sum[N_TOKEN];
    uint32_t n;
};

struct world {
    struct resident *res;
    struct ring *ring;
    struct sched *s;
    struct sched_stats stats;
    struct answered of[N_SEQ];
    uint32_t n_job, n_done, n_step;
};
static struct world *now;

int __real_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits);
int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits);

int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits) {
    int r = __real_model_step(m, kv, row, n_row, stop, ret_logits);
    uint32_t n_vocab = model_info(m)->n_vocab, n_out = 0;

    assert_int_equal(r, 0);
    now->n_step++;
    for (uint32_t i = 0; i < n_row; i++)
        for (uint32_t k = 0; row[i].out && k < now->n_job; k++) {
            struct answered *a = &now->of[k];

            if (!a->job->fair.running || a->job->seq != row[i].seq)
                continue;
            assert_true(a->n < N_TOKEN);
            a->sum[a->n++] =
                sum_bytes(0, *ret_logits + (size_t)n_out++ * n_vocab, n_vocab * sizeof(float));
        }
    return r;
}

static struct resident *resident_of(const char *path, enum quant_fmt kv_fmt, bool exact,
                                    uint32_t n_batch, uint32_t n_worker) {
    struct resident_options opt = { .path = path,
                                    .n_ctx = N_CTX,
                                    .n_batch = n_batch,
                                    .n_seq = N_SEQ,
                                    .n_keep = N_KEEP,
                                    .kv_fmt = kv_fmt,
                                    .exact = exact,
                                    .n_worker = n_worker };
    struct why why = { "" };
    struct resident *r = NULL;
    atomic_bool stop = false;

    if (resident_new(&r, &opt, NULL, NULL, &stop, &why) != 0)
        fail_msg("%s", why.text);
    return r;
}

static void open_world(struct world *w, struct resident *res, uint64_t prefix_bytes) {
    static atomic_bool stop;
    struct sched_options opt = {
        .n_job = N_SEQ, .bound = 250000, .prefix_bytes = prefix_bytes, .stop = &stop
    };

    memset(w, 0, sizeof *w);
    w->res = res;
    now = w;
    assert_int_equal(ring_new(&w->ring, 256, sizeof(struct job_event)), 0);
    assert_int_equal(sched_new(&w->s, res, &opt, w->ring, &w->stats), 0);
}

static void close_world(struct world *w) {
    assert_true(kvcache_sound(w->res->kv));
    for (uint32_t i = 0; i < w->n_job; i++)
        job_free(w->of[i].job);
    sched_free(w->s);
    assert_int_equal(kvcache_n_used(w->res->kv), 0);
    ring_free(w->ring);
}

static tok_t token(uint32_t i, uint32_t own) {
    return (tok_t)((i < N_SAME ? 7 * i : 11 * i + own) % 900 + 20);
}

static struct answered *add_job(struct world *w, struct job *j) {
    struct answered *a = &w->of[w->n_job++];

    assert_true(w->n_job <= N_SEQ);
    assert_true(job_prepare(j, w->res));
    *a = (struct answered){ .job = j };
    sched_add(w->s, j);
    return a;
}

/* Write a prompt to @fd, or read it. */
static void add_file(struct world *w, enum job_kind kind, uint32_t n, int fd) {
    struct job *j = job_new(kind);

    assert_non_null(j);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(tok_list_push(&j->tok, token(i, 0)), 0);
    j->fd = dup(fd);
    (void)add_job(w, j);
}

/* A prompt of @n tokens: the first N_SAME are those of all, the rest follow from @own. */
static struct answered *add(struct world *w, uint32_t n, uint32_t own) {
    struct job *j = job_new(JOB_GENERATE);

    assert_non_null(j);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(tok_list_push(&j->tok, token(i, own)), 0);
    assert_int_equal(stop_new(&j->stop, NULL, 0), 0);
    j->max_tokens = N_TOKEN;
    j->sample.has = SAMPLE_TEMPERATURE; /* greedy */
    j->ignore_end = true;
    return add_job(w, j);
}

static void run(struct world *w) {
    struct job_event ev;

    for (int r = 0; r != SCHED_NO_JOB;) {
        r = sched_step(w->s);
        while (ring_pop(w->ring, &ev) == 0)
            w->n_done += ev.kind == JOB_EVENT_DONE;
    }
    assert_int_equal(w->n_done, w->n_job);
}

static void same(const struct answered *a, const struct answered *want, const char *model,
                 const char *how) {
    assert_int_equal(want->n, N_TOKEN);
    for (uint32_t i = 0; i < N_TOKEN; i++)
        if (a->n != N_TOKEN || a->sum[i] != want->sum[i])
            fail_msg("%s: %s: the logits of token %u differ", model, how, i);
}

/* ---- one model, in every way ---- */

/* Alone on @res. Its job is gone. */
static struct answered alone(struct resident *res, uint32_t n, uint32_t own) {
    static struct world w;
    struct answered a;

    open_world(&w, res, 0);
    (void)add(&w, n, own);
    run(&w);
    a = w.of[0];
    close_world(&w);
    return a;
}

/* @want beside @n_other. */
static void beside(struct resident *res, uint32_t n_other, const struct answered *want,
                   const char *model) {
    static struct world w;

    open_world(&w, res, 0);
    for (uint32_t i = 0; i < n_other; i++)
        (void)add(&w, 3 + 2 * i, i);
    (void)add(&w, N_PROMPT, 0);
    run(&w);
    same(&w.of[n_other], want, model, n_other > 1 ? "beside many" : "beside one");
    close_world(&w);
}

/* The prompt, the prompt again, and one that parts from it, which is found in the middle. */
static void kept(struct resident *res, const struct answered want[2], const char *model) {
    static struct world w;

    open_world(&w, res, UINT64_MAX);
    for (uint32_t i = 0; i < 4; i++) {
        (void)add(&w, N_PROMPT, i / 2);
        run(&w);
        same(&w.of[i], &want[i / 2], model, "with what is kept");
    }
    assert_int_equal(w.of[0].job->result.n_cached, 0);
    assert_int_equal(w.of[1].job->result.n_cached, N_PROMPT - 1);
    assert_int_equal(w.of[2].job->result.n_cached, N_SAME);
    assert_int_equal(w.of[3].job->result.n_cached, N_PROMPT - 1);
    for (uint32_t i = 4; i + 1 < N_SEQ; i++) /* and beside many, some of which begin with it */
        (void)add(&w, 3 + 9 * i, i);
    (void)add(&w, N_PROMPT, 0);
    run(&w);
    same(&w.of[N_SEQ - 1], &want[0], model, "with what is kept, beside many");
    assert_int_equal(w.of[N_SEQ - 1].job->result.n_cached, N_PROMPT - 1);
    close_world(&w);
}

/* What @from evaluated of the prompt goes to a file, and @to goes on from there. */
static void from_file(struct resident *from, struct resident *to, const struct answered *want,
                      const char *model) {
    AUTO(close) int fd = memfd_create("same", MFD_CLOEXEC);
    static struct world w;

    open_world(&w, from, UINT64_MAX);
    add_file(&w, JOB_SAVE, N_PROMPT - 5, fd);
    run(&w);
    assert_int_equal(w.of[0].job->result.end, JOB_END_STOP);
    close_world(&w);

    open_world(&w, to, UINT64_MAX);
    add_file(&w, JOB_RESTORE, 0, fd);
    run(&w);
    assert_int_equal(w.of[0].job->result.end, JOB_END_STOP);
    (void)add(&w, N_PROMPT, 0);
    run(&w);
    same(&w.of[1], want, model, "read from a file");
    assert_int_equal(w.of[1].job->result.n_cached, N_PROMPT - 5);
    close_world(&w);
}

static void all_ways(const char *shape, const char *mix, enum quant_fmt kv_fmt, bool exact) {
    struct resident *one, *many;
    struct answered want[2], a;
    char cmd[1024], path[256], model[64];

    snprintf(model, sizeof model, "%s %s", shape, mix);
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    snprintf(cmd, sizeof cmd, MK_MODEL " %s %s", model, path);
    assert_int_equal(system(cmd), 0);
    one = resident_of(path, kv_fmt, exact, N_PROMPT + N_SEQ, 1);
    many = resident_of(path, kv_fmt, exact, N_SEQ + 5, 0);

    for (uint32_t i = 0; i < 2; i++)
        want[i] = alone(one, N_PROMPT, i);
    assert_true(want[0].sum[0] != want[1].sum[0]);
    a = alone(many, N_PROMPT, 0);
    same(&a, &want[0], model, "in pieces, on all threads");
    beside(many, 1, &want[0], model);
    beside(many, N_SEQ - 1, &want[0], model);
    beside(one, N_SEQ - 1, &want[0], model);
    kept(one, want, model);
    kept(many, want, model);
    from_file(one, many, &want[0], model);
    resident_free(one);
    resident_free(many);
    unlink(path);
}

static const char *const formats[] = { "f32",  "f16",    "bf16",   "q4_0",  "q4_1", "q5_0",
                                       "q5_1", "q8_0",   "q2_k",   "q3_k",  "q4_k", "q5_k",
                                       "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "mixed" };

static void each(const char *shape) {
    static const enum quant_fmt kv[] = { QUANT_F16, QUANT_F32, QUANT_Q8_0 };

    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        all_ways(shape, formats[i], kv[i % 3], false);
    all_ways(shape, "mixed", QUANT_F16, true);
}

static void test_tiny(void **state) {
    each("tiny");
}

static void test_odd(void **state) {
    each("odd");
}

static int setup(void **state) {
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state) {
    return rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_tiny), cmocka_unit_test(test_odd) };

    return cmocka_run_group_tests_name("same", tests, setup, teardown);
}
