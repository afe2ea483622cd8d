/* SPDX-License-Identifier: Apache-2.0 */

/* Experts on disk: what a model computes is the same, bit for bit, as with all of them in memory,
 * and a disk that fails or a file that changes ends a step with a sentence. */

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model/model.h"

enum { N_PROMPT = 37, N_MORE = 5, N_CTX = 64, N_OUT = 1 + N_MORE };

static char dir[] = "/tmp/test-experts-XXXXXX";
static struct topo *topo;
static struct kern kern;

struct setup {
    struct pool *pool;
    struct gguf *gguf;
    struct model *model;
    struct kvcache *kv;
    uint32_t seq;
};

static void set_up(struct setup *s, const char *name, uint32_t n_worker, uint64_t bytes,
                   bool no_uring) {
    static const struct weights_load whole;
    struct model_options opt = { .n_ctx = N_CTX,
                                 .n_batch = N_PROMPT,
                                 .n_out = 1,
                                 .cache_dir = bytes ? dir : NULL,
                                 .expert_bytes = bytes,
                                 .no_uring = no_uring };
    struct kv_shape shape;
    struct why why = { "" };
    char path[256];

    *s = (struct setup){ 0 };
    (void)snprintf(path, sizeof path, "%s/%s.gguf", dir, name);
    assert_int_equal(pool_new(&s->pool, topo, n_worker), 0);
    if (gguf_open(&s->gguf, path, &why) != 0 ||
        model_new(&s->model, s->gguf, &kern, s->pool, &opt, &why) != 0 ||
        model_load(s->model, &whole, &why) != 0)
        fail_msg("%s: %s", name, why.text);
    model_kv_shape(s->model, 1, QUANT_F16, &shape);
    assert_int_equal(kvcache_new(&s->kv, &shape), 0);
    assert_int_equal(kvcache_seq_new(s->kv, &s->seq), 0);
}

static void tear_down(struct setup *s) {
    kvcache_free(s->kv);
    model_free(s->model);
    gguf_free(s->gguf);
    pool_free(s->pool);
}

/* The next @n rows. Return: model_step()'s. */
static int step(struct setup *s, uint32_t n, const float **ret_logits) {
    struct model_row row[N_PROMPT];
    pos_t pos = kvcache_n(s->kv, s->seq);

    assert_int_equal(kvcache_reserve(s->kv, s->seq, n), 0);
    for (uint32_t i = 0; i < n; i++)
        row[i] = (struct model_row){
            .tok = (int32_t)((pos + i) * 37 % 900), .seq = s->seq, .pos = pos + i, .out = i + 1 == n
        };
    return model_step(s->model, s->kv, row, n, NULL, ret_logits);
}

/* A prompt, and some tokens one by one. Return: their logits, [N_OUT][n_vocab]. */
static float *evaluate(struct setup *s) {
    uint32_t n_vocab = model_info(s->model)->n_vocab;
    float *ret = malloc(sizeof *ret * N_OUT * n_vocab);
    const float *logits;

    assert_non_null(ret);
    for (uint32_t i = 0; i < N_OUT; i++) {
        if (step(s, i == 0 ? N_PROMPT : 1, &logits) != 0)
            fail_msg("%s", model_why(s->model));
        memcpy(ret + (size_t)i * n_vocab, logits, n_vocab * sizeof *ret);
    }
    return ret;
}

static void make(const char *shape, const char *format) {
    char cmd[1024];

    (void)snprintf(cmd, sizeof cmd, MK_MODEL " %s %s %s/model.gguf", shape, format, dir);
    assert_int_equal(system(cmd), 0);
}

/* Remove the model, and its image. */
static void remove_all(void) {
    DIR *d = opendir(dir);
    struct dirent *e;

    assert_non_null(d);
    while ((e = readdir(d)))
        if (e->d_name[0] != '.')
            assert_int_equal(unlinkat(dirfd(d), e->d_name, 0), 0);
    (void)closedir(d);
}

static void one_model(const char *shape, const char *format) {
    static const struct {
        uint32_t n_worker;
        uint64_t bytes;
        bool no_uring;
    } way[] = { { 1, 1, false }, { 3, 1, true }, { 2, 100000, false }, { 2, 300000, true } };
    struct setup s;
    struct store_stats stats;
    float *want, *is;

    make(shape, format);
    set_up(&s, "model", 1, MODEL_EXPERTS_ALL, false);
    want = evaluate(&s);
    assert_false(model_store(s.model, &stats));
    for (size_t i = 0; i < sizeof way / sizeof *way; i++) {
        size_t n = N_OUT * sizeof *want * model_info(s.model)->n_vocab;
        struct setup t;

        set_up(&t, "model", way[i].n_worker, way[i].bytes, way[i].no_uring);
        assert_true(model_store(t.model, &stats));
        assert_true(stats.n_slot >= STORE_SLOT_MIN);
        is = evaluate(&t);
        if (memcmp(want, is, n) != 0)
            fail_msg("%s %s: way %zu differs", shape, format, i);
        assert_true(model_store(t.model, &stats));
        assert_true(stats.misses > 0 && stats.read_bytes > 0);
        assert_int_equal(stats.rows, N_PROMPT + N_MORE);
        assert_true(!way[i].no_uring || strcmp(stats.how, "threads") == 0);
        free(is);
        tear_down(&t);
    }
    free(want);
    tear_down(&s);
    remove_all();
}

static void all_formats(const char *shape) {
    static const char *const format[] = { "f32", "q4_0", "q8_0", "q4_k", "mixed" };

    for (size_t i = 0; i < sizeof format / sizeof *format; i++)
        one_model(shape, format[i]);
}

static void test_same(void **state) {
    all_formats("tiny");
    all_formats("odd");
}

/* A file that shrinks under a model: the step fails, and so does the next one, and nothing else. */
static void test_shrinks(void **state) {
    struct setup s;
    const float *logits;
    DIR *d = opendir(dir);
    struct dirent *e;
    char path[512] = "";

    assert_non_null(d);
    make("tiny", "q4_0");
    set_up(&s, "model", 2, 1, false);
    assert_int_equal(step(&s, N_PROMPT, &logits), 0);
    while ((e = readdir(d)))
        if (strstr(e->d_name, ".weights"))
            (void)snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
    (void)closedir(d);
    assert_int_equal(truncate(path, 1 << 20), 0);
    for (int i = 0; i < 2; i++) {
        assert_true(step(&s, 1, &logits) < 0);
        assert_non_null(strstr(model_why(s.model), "was changed"));
        assert_int_equal(kvcache_truncate(s.kv, s.seq, N_PROMPT), 0);
    }
    tear_down(&s);
    remove_all();
}

static int setup(void **state) {
    kern_bind(&kern, kern_cpu());
    return mkdtemp(dir) && topo_new(&topo) == 0 ? 0 : -1;
}

static int teardown(void **state) {
    topo_free(topo);
    return rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_same),
                                        cmocka_unit_test(test_shrinks) };

    return cmocka_run_group_tests_name("experts", tests, setup, teardown);
}
