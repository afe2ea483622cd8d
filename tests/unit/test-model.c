/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/model.h"

#include "test-pack.h"

#define assert_near(a_, b_, tol_) assert_true(fabs((double)(a_) - (double)(b_)) <= (tol_))

/* Models come from tests/mk-model.py; MK_MODEL is the command. What they compute is compared with
 * a reference in tests/golden; here: that results do not depend on how work is cut, that a bad file
 * is refused with a sentence, that a step can be stopped. */

enum { N_TOK = 40, N_CTX = 128, N_BATCH = 40, N_SEQ = 3 };

static char dir[] = "/tmp/test-model-XXXXXX";
static struct kern kern;                 /* of this CPU, with its packings */
static struct kern native;               /* without any */
static struct kern rows;                 /* with those of test-pack.h */
static const struct kern *bound = &kern; /* what models are made with */
static struct topo *topo;

/* @args: SHAPE MIX, and @more: options */
static void make(const char *name, const char *args, const char *more) {
    char cmd[8192];

    snprintf(cmd, sizeof cmd, MK_MODEL " %s %s/%s.gguf %s", args, dir, name, more);
    assert_int_equal(system(cmd), 0);
}

struct setup {
    struct pool *pool;
    struct gguf *gguf;
    struct model *model;
    struct kvcache *kv;
};

static struct model_options options(void) {
    return (struct model_options){ .n_ctx = N_CTX, .n_batch = N_BATCH, .n_out = N_BATCH };
}

static int try_model(struct setup *s, const char *name, uint32_t n_worker,
                     const struct model_options *opt, struct why *why) {
    static const struct weights_load whole;
    char path[256];
    int r;

    *s = (struct setup){ 0 };
    snprintf(path, sizeof path, "%s/%s.gguf", dir, name);
    assert_int_equal(pool_new(&s->pool, topo, n_worker), 0);
    r = gguf_open(&s->gguf, path, why);
    assert_int_equal(r, 0);

    r = model_new(&s->model, s->gguf, bound, s->pool, opt, why);
    return r == 0 ? model_load(s->model, &whole, why) : r;
}

static void tear_down(struct setup *s) {
    kvcache_free(s->kv);
    model_free(s->model);
    gguf_free(s->gguf);
    pool_free(s->pool);
}

static void set_up_kv(struct setup *s, const char *name, uint32_t n_worker, bool exact,
                      enum quant_fmt kv) {
    struct model_options opt = options();
    struct kv_shape shape;
    struct why why;

    opt.exact = exact;
    if (try_model(s, name, n_worker, &opt, &why) != 0)
        fail_msg("%s: %s", name, why.text);
    model_kv_shape(s->model, N_SEQ, kv, &shape);
    assert_int_equal(kvcache_new(&s->kv, &shape), 0);
    for (uint32_t i = 0, seq; i < N_SEQ; i++)
        assert_int_equal(kvcache_seq_new(s->kv, &seq), 0);
}

static void set_up(struct setup *s, const char *name, uint32_t n_worker, bool exact) {
    set_up_kv(s, name, n_worker, exact, QUANT_F16);
}

static int32_t token(uint32_t seq, pos_t pos) {
    return (int32_t)((pos * 37 + seq * 101 + pos * pos * 5) % 900);
}

/* Evaluate @n rows of sequences and positions as given; logits of all to @ret [n][n_vocab]. */
static void step(struct setup *s, const uint32_t *seq, const pos_t *pos, uint32_t n, float *ret) {
    uint32_t n_vocab = model_info(s->model)->n_vocab;
    struct model_row row[N_BATCH];
    const float *logits;

    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(kvcache_n(s->kv, seq[i]), pos[i]);
        assert_int_equal(kvcache_reserve(s->kv, seq[i], 1), 0);
        row[i] = (struct model_row){
            .tok = token(seq[i], pos[i]), .seq = seq[i], .pos = pos[i], .out = true
        };
    }
    assert_int_equal(model_step(s->model, s->kv, row, n, NULL, &logits), 0);
    memcpy(ret, logits, sizeof *ret * n * n_vocab);
}

/* The logits of N_TOK positions of sequence @seq, @chunk positions a step. */
static float *alone(struct setup *s, uint32_t seq, uint32_t chunk) {
    uint32_t n_vocab = model_info(s->model)->n_vocab;
    float *ret = malloc(sizeof *ret * N_TOK * n_vocab);

    assert_non_null(ret);
    for (pos_t at = 0; at < N_TOK; at += chunk) {
        uint32_t n = N_TOK - at < chunk ? N_TOK - at : chunk, seqs[N_BATCH];
        pos_t pos[N_BATCH];

        for (uint32_t i = 0; i < n; i++) {
            seqs[i] = seq;
            pos[i] = at + i;
        }
        step(s, seqs, pos, n, ret + (size_t)at * n_vocab);
    }
    assert_int_equal(kvcache_truncate(s->kv, seq, 0), 0);

    return ret;
}

/* Three sequences in mixed steps: rows one by one, and runs of several; sequence @seq is @want. */
static void mixed(struct setup *s, uint32_t seq, const float *want) {
    uint32_t n_vocab = model_info(s->model)->n_vocab, turn = 0;
    float *got = malloc(sizeof *got * N_BATCH * n_vocab);
    pos_t at[N_SEQ] = { 0 };

    assert_non_null(got);
    while (at[0] < N_TOK || at[1] < N_TOK || at[2] < N_TOK) {
        uint32_t seqs[N_BATCH], n = 0;
        pos_t pos[N_BATCH];

        turn++;
        for (uint32_t q = 0; q < N_SEQ; q++)
            for (uint32_t run = (turn * 7 + q * 5) % 6; run > 0 && at[q] < N_TOK; run--) {
                seqs[n] = q;
                pos[n++] = at[q]++;
            }
        if (n == 0)
            continue;
        step(s, seqs, pos, n, got);
        for (uint32_t i = 0; i < n; i++)
            if (seqs[i] == seq)
                assert_memory_equal(got + (size_t)i * n_vocab, want + (size_t)pos[i] * n_vocab,
                                    n_vocab * sizeof *got);
    }
    for (uint32_t q = 0; q < N_SEQ; q++)
        assert_int_equal(kvcache_truncate(s->kv, q, 0), 0);
    free(got);
}

/* No bit depends on the number of workers, nor on how many rows go together. */
static void same_bits(const char *name, enum quant_fmt kv, uint32_t n_worker_max) {
    float *want = NULL;
    size_t size = 0;

    for (uint32_t n_worker = 1; n_worker <= n_worker_max; n_worker++) {
        static const uint32_t chunk[] = { N_TOK, 1, 7, 16 };
        struct setup s;

        set_up_kv(&s, name, n_worker, false, kv);
        size = sizeof *want * N_TOK * model_info(s.model)->n_vocab;
        for (size_t i = 0; i < sizeof chunk / sizeof *chunk; i++) {
            float *got = alone(&s, 1, chunk[i]);

            if (want) {
                assert_memory_equal(got, want, size);
                free(got);
            } else {
                want = got;
            }
        }
        mixed(&s, 1, want);
        tear_down(&s);
    }
    free(want);
}

/* Weights packed by test-pack.h are multiplied by the kernels for native ones: the same bits. */
static void packed_bits(const char *name, uint64_t least) {
    struct setup s;
    float *a, *b;

    bound = &native;
    set_up(&s, name, 2, false);
    size_t size = sizeof *a * N_TOK * model_info(s.model)->n_vocab;

    assert_int_equal(model_info(s.model)->pack_bytes, 0);
    a = alone(&s, 1, 16);
    tear_down(&s);
    bound = &rows;
    for (uint32_t n_worker = 1; n_worker <= 3; n_worker++) {
        set_up(&s, name, n_worker, false);
        assert_true(model_info(s.model)->pack_bytes * 100 >=
                    model_info(s.model)->weight_bytes * least);
        assert_true(model_info(s.model)->pack_bytes < model_info(s.model)->weight_bytes);
        b = alone(&s, 1, 16);
        assert_memory_equal(a, b, size);
        free(b);
        tear_down(&s);
    }
    bound = &kern;
    free(a);
}

static void test_packed_bits(void **state) {
    packed_bits("odd", 40); /* the rest is float, or rows that make no groups */
    packed_bits("tiny", 40);
    packed_bits("tiny-dense", 95);
    packed_bits("split", 40);
}

/* Every worker has a shard; where there are several, all matrices lie in their memory. */
static void check_shards(const struct model *m, uint32_t n_worker, uint32_t n_shard) {
    uint64_t least = n_shard > 1 ? model_info(m)->weight_bytes / n_worker / 2 : 0;
    uint32_t n = 0, n_cpu = 0;
    struct model_shard s;

    for (; model_shard(m, n, &s); n++) {
        assert_true(s.bytes >= least * s.n_cpu);
        n_cpu += s.n_cpu;
    }
    assert_int_equal(n, n_shard);
    assert_int_equal(n_cpu, n_worker);
}

/* Weights on several nodes, made up: whoever has them and multiplies them, the same bits. */
static void shard_bits(const char *name, const struct kern *with) {
    static const struct {
        const char *machine;
        uint32_t n_worker, n_shard;
    } row[] = { { "numa:1 core:2 pu:1", 1, 1 },
                { "numa:2 core:1 pu:1", 2, 2 },
                { "numa:2 core:2 pu:1", 3, 2 },
                { "numa:3 core:1 pu:1", 3, 3 },
                { "pack:2 l3:2(size=67108864) core:2 pu:1", 4, 4 },
                { "numa:8 core:1 pu:1", 8, 8 } };
    struct topo *here = topo;
    float *want = NULL;

    bound = with;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct setup s;
        float *got;

        if (topo_new_from(&topo, row[i].machine, 0) == TOPO_UNSUPPORTED) {
            topo = here;
            skip();
        }
        set_up(&s, name, row[i].n_worker, false);
        check_shards(s.model, row[i].n_worker, row[i].n_shard);
        got = alone(&s, 1, 16);
        if (want) {
            assert_memory_equal(got, want, sizeof *want * N_TOK * model_info(s.model)->n_vocab);
            mixed(&s, 1, want);
            free(got);
        } else {
            want = got;
        }
        tear_down(&s);
        topo_free(topo);
    }
    topo = here;
    bound = &kern;
    free(want);
}

static void test_shard_bits(void **state) {
    static const char *const names[] = { "odd", "f16", "dense", "split", "tiny", "tiny-dense" };

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        shard_bits(names[i], &kern);
        shard_bits(names[i], &rows);
    }
}

static double distance(const float *a, const float *b, size_t n) {
    double diff = 0, sq = 0;

    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];

        diff += d * d;
        sq += (double)b[i] * (double)b[i];
    }
    return sqrt(diff / sq);
}

/* The packings of this CPU sum in another order than its other kernels; what differs by a last bit
 * may be quantised otherwise. So packed weights are as far from the float path as native ones are.
 * A mixture may route otherwise too: the models are dense. */
static void packed_near(const char *name) {
    struct setup s;
    float *exact, *plain, *packed;

    set_up(&s, name, 2, true);
    size_t n = (size_t)N_TOK * model_info(s.model)->n_vocab;

    exact = alone(&s, 1, 16);
    tear_down(&s);
    bound = &native;
    set_up(&s, name, 2, false);
    plain = alone(&s, 1, 16);
    tear_down(&s);
    bound = &kern;
    set_up(&s, name, 2, false);
    packed = alone(&s, 1, 16);
    tear_down(&s);

    double want = distance(plain, exact, n), got = distance(packed, exact, n);

    if (!(want > 0 && want < 0.1 && got < 1.25 * want))
        fail_msg("%s: packed weights %g off, native ones %g", name, got, want);
    free(exact);
    free(plain);
    free(packed);
}

static void test_packed_near(void **state) {
    packed_near("tiny-dense");
    packed_near("dense");
}

static void test_pack_options(void **state) {
    struct model_options opt = options();
    struct why why;
    struct setup s;

    bound = &rows;
    for (int i = 0; i < 3; i++) {
        opt = options();
        opt.no_pack = i == 0;
        opt.exact = i == 1;
        opt.reserve = i == 2 ? UINT64_MAX : 0; /* more than there is */
        assert_int_equal(try_model(&s, "tiny", 1, &opt, &why), 0);
        assert_int_equal(model_info(s.model)->pack_bytes, 0);
        assert_string_equal(model_info(s.model)->layout, "");
        tear_down(&s);
    }
    opt = options();
    assert_int_equal(try_model(&s, "tiny", 1, &opt, &why), 0);
    assert_string_equal(model_info(s.model)->layout, TEST_PACK_LAYOUT);
    tear_down(&s);
    bound = &kern;
}

/* A load that is stopped says so; a file that was cut meanwhile is an error with a sentence. */
static void test_load_ends(void **state) {
    struct model_options opt = options();
    atomic_bool stop = true;
    const struct weights_load load = { .stop = &stop };
    struct why why = { "" };
    struct setup s;
    char path[256];

    bound = &rows;
    assert_int_equal(try_model(&s, "tiny", 2, &opt, &why), 0);
    assert_int_equal(model_load(s.model, &load, &why), MODEL_STOPPED);
    tear_down(&s);

    make("cut", "tiny q4_0", "");
    assert_int_equal(try_model(&s, "cut", 2, &opt, &why), 0);
    snprintf(path, sizeof path, "%s/cut.gguf", dir);
    assert_int_equal(truncate(path, 100000), 0);
    stop = false;
    assert_true(model_load(s.model, &load, &why) < 0);
    assert_non_null(strstr(why.text, "weight"));
    tear_down(&s);
    bound = &kern;
}

/* Shapes: odd ones, no experts, a head of its own. */
static void test_same_bits(void **state) {
    same_bits("odd", QUANT_F16, 3);
    same_bits("f16", QUANT_F16, 3);
    same_bits("dense", QUANT_F16, 3);
    same_bits("tiny", QUANT_F16, 3);
    same_bits("tiny-dense", QUANT_F16, 3);
}

/* Formats: of weights all, of the cache each in turn. */
static void test_same_bits_formats(void **state) {
    static const enum quant_fmt kv[] = { QUANT_Q8_0, QUANT_F32, QUANT_F16 };

    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++) {
        char args[64];

        snprintf(args, sizeof args, "tiny %s", quant_info(fmt)->name);
        for (char *c = args; *c; c++)
            *c = (char)tolower(*c);
        make("format", args, "");
        same_bits("format", kv[fmt % 3], 2);
    }
}

/* Experts in one matrix or in two: the same weights, so the same bits. */
static void test_split_experts(void **state) {
    struct setup s;
    float *a, *b;

    set_up(&s, "odd", 2, false);
    a = alone(&s, 0, 16);
    size_t size = sizeof *a * N_TOK * model_info(s.model)->n_vocab;

    tear_down(&s);
    set_up(&s, "split", 2, false);
    b = alone(&s, 0, 16);
    tear_down(&s);
    assert_memory_equal(a, b, size);
    free(a);
    free(b);
}

/* Truncating and going on is as if the tokens had never been. */
static void test_truncate(void **state) {
    struct setup s;
    const uint32_t zero[8] = { 0 };
    const pos_t first[4] = { 0, 1, 2, 3 }, again[2] = { 2, 3 };

    set_up(&s, "odd", 1, false);
    uint32_t n = model_info(s.model)->n_vocab;
    float *a = malloc(4 * n * sizeof *a), *b = malloc(4 * n * sizeof *b);

    step(&s, zero, first, 4, a);
    assert_int_equal(kvcache_truncate(s.kv, 0, 2), 0);
    step(&s, zero, again, 2, b);
    assert_memory_equal(a + 2 * n, b, 2 * n * sizeof *a);
    free(a);
    free(b);
    tear_down(&s);
}

/* int8 activations stay close to float ones: a layer at a time, from the same input. */
struct seen {
    float *x;
    uint32_t n_layer, n, n_probs;
};

static void see(void *arg, uint32_t layer, const char *what, const float *x, uint32_t n_row,
                uint32_t n_col) {
    struct seen *s = arg;

    if (strcmp(what, "probs") == 0) {
        double sum = 0;

        for (uint32_t i = 0; i < n_row * n_col; i++)
            sum += (double)x[i];
        assert_near(sum / (double)n_row, 1, 1e-5);
        s->n_probs++;
    } else if (strcmp(what, "attn") != 0) {
        size_t at = strcmp(what, "embd") == 0 ? 0 : layer + 1;

        s->n = n_row * n_col;
        memcpy(s->x + at * s->n, x, s->n * sizeof *x);
    }
}

static void test_layers(void **state) {
    enum { N = 5 };
    const uint32_t seqs[N] = { 0 };
    const pos_t pos[N] = { 0, 1, 2, 3, 4 };
    struct setup exact, fast;
    struct model_row row[N];

    set_up(&exact, "dense", 2, true);
    set_up(&fast, "dense", 2, false);
    const struct model_info *info = model_info(exact.model);
    struct seen seen = { .x = malloc(sizeof(float) * (info->n_layer + 1) * N * info->n_embd) };
    float *logits = malloc(sizeof *logits * N * info->n_vocab);
    float *y = malloc(sizeof *y * N * info->n_embd);

    model_trace(exact.model, see, &seen);
    step(&exact, seqs, pos, N, logits);
    assert_int_equal(kvcache_reserve(fast.kv, 0, N), 0);
    for (uint32_t i = 0; i < N; i++)
        row[i] = (struct model_row){ .tok = token(0, i), .pos = i };
    for (uint32_t l = 0; l < info->n_layer; l++) {
        double diff = 0, sq = 0;

        memcpy(y, seen.x + (size_t)l * seen.n, seen.n * sizeof *y);
        assert_int_equal(model_layer(fast.model, fast.kv, l, row, N, y), 0);
        for (uint32_t i = 0; i < seen.n; i++) {
            double want = (double)seen.x[(size_t)(l + 1) * seen.n + i];

            diff += (y[i] - want) * (y[i] - want);
            sq += want * want;
        }
        assert_true(sqrt(diff / sq) < 1e-2);
        assert_true(diff > 0); /* it is not the exact path in disguise */
    }
    free(seen.x);
    free(logits);
    free(y);
    tear_down(&exact);
    tear_down(&fast);
}

static void test_trace_routes(void **state) {
    const uint32_t seqs[2] = { 0 };
    const pos_t pos[2] = { 0, 1 };
    struct setup s;

    set_up(&s, "odd", 1, false);
    const struct model_info *info = model_info(s.model);
    struct seen seen = { .x = malloc(sizeof(float) * (info->n_layer + 1) * 2 * info->n_embd) };
    float *logits = malloc(sizeof *logits * 2 * info->n_vocab);

    model_trace(s.model, see, &seen);
    step(&s, seqs, pos, 2, logits);
    assert_int_equal(seen.n_probs, info->n_layer);
    free(seen.x);
    free(logits);
    tear_down(&s);
}

static void test_stop(void **state) {
    struct model_row row = { .tok = 5, .out = true };
    atomic_bool stop = true;
    const float *logits;
    struct setup s;

    set_up(&s, "odd", 2, false);
    assert_int_equal(kvcache_reserve(s.kv, 0, 1), 0);
    assert_int_equal(model_step(s.model, s.kv, &row, 1, &stop, &logits), MODEL_STOPPED);
    stop = false;
    assert_int_equal(model_step(s.model, s.kv, &row, 1, &stop, &logits), 0);
    tear_down(&s);
}

/* Counters say what a step must read, whatever ran it: a decoded token's matrices, each once. */
static void test_stats(void **state) {
    const struct model_info *info;
    const struct ops_phase *phase;
    struct model_stats before, after;
    uint64_t nsec = 0, kv = 0;
    uint32_t seq = 0, n;
    pos_t pos = 0;
    struct setup s;
    float *logits;

    set_up(&s, "tiny", 2, false);
    info = model_info(s.model);
    logits = calloc(info->n_vocab, sizeof *logits);
    model_clocks(s.model, true);
    model_stats(s.model, &before);
    step(&s, &seq, &pos, 1, logits);
    model_stats(s.model, &after);
    assert_int_equal(after.steps - before.steps, 1);
    assert_int_equal(after.rows - before.rows, 1);
    assert_int_equal(after.experts - before.experts, info->n_layer * info->n_expert_used);
    /* vectors and one row of the embedding are not counted */
    assert_true(after.weight_bytes - before.weight_bytes < info->token_bytes);
    assert_true(after.weight_bytes - before.weight_bytes > info->token_bytes / 100 * 85);

    phase = model_phases(s.model, &n);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(phase[i].n == 1 || phase[i].n == info->n_layer);
        assert_true(phase[i].busy_nsec <= 2 * phase[i].nsec);
        nsec += phase[i].nsec;
        kv += phase[i].kv_bytes;
    }
    assert_true(nsec > 0 && kv > 0);

    /* five phases a layer, and the head */
    assert_true(after.barriers > before.barriers);
    assert_true(after.barriers - before.barriers <= 5 * info->n_layer + 1);
    free(logits);
    tear_down(&s);
}

static void test_info(void **state) {
    struct setup s;
    const struct model_info *i;

    set_up(&s, "odd", 1, false);
    i = model_info(s.model);
    assert_string_equal(i->arch, "gemma4");
    assert_string_equal(i->name, "random-odd");
    assert_int_equal(i->n_layer, 7);
    assert_int_equal(i->n_embd, 160);
    assert_int_equal(i->n_vocab, 1003);
    assert_int_equal(i->n_ctx_train, 1024);
    assert_int_equal(i->n_ctx, N_CTX);
    assert_int_equal(i->n_expert, 12);
    assert_int_equal(i->n_expert_used, 3);
    assert_int_equal(i->window, 7);
    assert_true(i->token_bytes > 0 && i->token_bytes < i->weight_bytes);
    assert_true(i->step_bytes > 0);
    tear_down(&s);

    /* dense: every weight is read for every token, of the embedding one row more; rope_freqs and
     * output scales, 4 bytes each, are not counted */
    set_up(&s, "dense", 1, false);
    i = model_info(s.model);
    assert_int_equal(i->n_expert, 0);
    assert_string_equal(i->quant, "Q8_0");
    assert_int_equal(i->token_bytes, i->weight_bytes + 160 / 32 * 34 - 32 * 4 - 7 * 4);
    tear_down(&s);
}

/* ---- files that do not describe a model ---- */

static char *bytes;
static size_t n_bytes;

/* The file's bytes after the one occurrence of @text. */
static char *after(const char *text) {
    char *p = memmem(bytes, n_bytes, text, strlen(text));

    assert_non_null(p);
    return p + strlen(text);
}

static void load_bytes(const char *name) {
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s.gguf", dir, name);
    f = fopen(path, "r");
    assert_non_null(f);
    free(bytes);
    bytes = malloc(16 << 20);
    assert_non_null(bytes);
    n_bytes = fread(bytes, 1, 16 << 20, f);
    assert_true(feof(f));
    fclose(f);
}

/* The patched file is refused, and the sentence has @word. */
static void refused(const char *word) {
    struct model_options opt = options();
    struct why why = { "" };
    struct setup s;
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s/bad.gguf", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n_bytes, f), n_bytes);
    assert_int_equal(fclose(f), 0);
    int r = try_model(&s, "bad", 1, &opt, &why);

    if (r != MODEL_BAD || !strstr(why.text, word))
        fail_msg("want a sentence with \"%s\", got %d \"%s\"", word, r, why.text);
    tear_down(&s);
}

static void refused_u32(const char *key, uint32_t v, const char *word) {
    char keep[4], *at = after(key) + 4; /* past the type */

    memcpy(keep, at, 4);
    memcpy(at, &v, 4);
    refused(word);
    memcpy(at, keep, 4);
}

static void refused_f32(const char *key, float f, const char *word) {
    uint32_t v;

    memcpy(&v, &f, 4);
    refused_u32(key, v, word);
}

static void test_bad_numbers(void **state) {
    load_bytes("odd");
    refused_u32("gemma4.block_count", 0, "block_count");
    refused_u32("gemma4.block_count", 513, "block_count");
    refused_u32("gemma4.block_count", 6, "has 7 elements"); /* arrays no longer fit */
    refused_u32("gemma4.embedding_length", 0, "embedding_length");
    refused_u32("gemma4.embedding_length", 192, "token_embd.weight");
    refused_u32("gemma4.context_length", 0, "context_length");
    refused_u32("gemma4.feed_forward_length", 1u << 31, "feed_forward_length");
    refused_u32("gemma4.attention.head_count", 7, "head_count");
    refused_u32("gemma4.attention.key_length", 63, "key_length");
    refused_u32("gemma4.attention.value_length", 32, "value_length");
    refused_u32("gemma4.rope.dimension_count", 16, "rope.dimension_count");
    refused_u32("gemma4.attention.sliding_window", 0, "sliding_window");
    refused_u32("gemma4.attention.shared_kv_layers", 2, "share keys and values");
    refused_u32("gemma4.embedding_length_per_layer_input", 256, "per-layer embeddings");
    refused_u32("gemma4.expert_count", 513, "expert_count");
    refused_u32("gemma4.expert_used_count", 13, "expert_used_count");
    refused_u32("gemma4.expert_used_count", 0, "expert_used_count");
    refused_f32("gemma4.attention.layer_norm_rms_epsilon", 0, "epsilon");
    refused_f32("gemma4.attention.layer_norm_rms_epsilon", NAN, "epsilon");
    refused_f32("gemma4.rope.freq_base", -1, "freq_base");
    refused_f32("gemma4.rope.freq_base_swa", INFINITY, "freq_base_swa");
    refused_f32("gemma4.final_logit_softcapping", -1, "softcapping");
}

/* Overwrites @old, wherever it first occurs, with @new of the same length. */
static void refused_text(const char *old, const char *new, const char *word) {
    char *at = after(old) - strlen(old);

    assert_int_equal(strlen(old), strlen(new));
    memcpy(at, new, strlen(new));
    refused(word);
    memcpy(at, old, strlen(old));
}

static void test_bad_keys(void **state) {
    load_bytes("odd");
    refused_text("gemma4.block_count", "gemma4.block_coxnt", "gemma4.block_count: missing");
    refused_text("gemma4.context_length", "gemma4.attention.fooo", "attention.fooo");
    refused_text("gemma4.context_length", "gemma4.context_lengtx", "context_length: missing");
    refused_text("gemma4.rope.freq_base_swa", "gemma4.rope.scaling.type.", "rope.scaling.type.");
    memcpy(after("general.architecture") + 12, "gemma5", 6);
    refused("\"gemma5\"");
}

static void test_bad_tensors(void **state) {
    load_bytes("odd");
    refused_text("blk.2.attn_q.weight", "blk.2.attn_x.weight", "blk.2.attn_q.weight: missing");
    refused_text("blk.0.ffn_norm.weight", "blk.0.ffn_nonn.weight", "blk.0.ffn_norm.weight");
    refused_text("rope_freqs.weight", "rope_frexs.weight", "rope_freqs.weight: missing");
    refused_text("blk.6.ffn_gate_up_exps", "blk.6.ffn_gate_xx_exps", "blk.6.ffn_gate_exps");

    /* [in, out] swapped: as many bytes, another matrix */
    char *ne = after("blk.1.attn_output.weight") + 4;
    char in[8], out[8];

    memcpy(in, ne, 8);
    memcpy(out, ne + 8, 8);
    memcpy(ne, out, 8);
    memcpy(ne + 8, in, 8);
    refused("blk.1.attn_output.weight: shape");
    memcpy(ne, in, 8);
    memcpy(ne + 8, out, 8);

    /* a factor of 0 in rope_freqs: the first of its values, 1.0, found by its neighbours */
    const float ones[8] = { 1, 1, 1, 1, 1, 1, 1, 1 };
    char *factor = memmem(bytes, n_bytes, ones, sizeof ones);

    assert_non_null(factor);
    memset(factor, 0, 4);
    refused("rope_freqs.weight: element 0");
}

static void test_last_layer_slides(void **state) {
    load_bytes("odd");
    char *pattern = after("gemma4.attention.sliding_window_pattern");

    pattern[4 + 4 + 8 + 6] = 1; /* past the types and the length */
    refused("last layer");
}

static void test_context_beyond_trained(void **state) {
    struct model_options opt = options();
    struct why why;
    struct setup s;

    opt.n_ctx = 1025;
    assert_int_equal(try_model(&s, "odd", 1, &opt, &why), MODEL_BAD);
    assert_non_null(strstr(why.text, "1024"));
    tear_down(&s);
}

static int begin(void **state) {
    if (!mkdtemp(dir))
        return -1;
    make("odd", "odd mixed", "");
    make("f16", "odd f16", "--untied");
    make("dense", "odd q8_0", "--dense");
    make("split", "odd mixed", "--split-experts");
    make("tiny", "tiny mixed", "");
    make("tiny-dense", "tiny q4_0", "--dense");
    kern_bind(&kern, kern_cpu());
    native = rows = kern;
    memset(native.pack, 0, sizeof native.pack);
    memset(rows.pack, 0, sizeof rows.pack);
    test_pack_use(&rows);
    return topo_new(&topo);
}

static int end(void **state) {
    char cmd[300];

    free(bytes);
    topo_free(topo);
    snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_same_bits_formats),
        cmocka_unit_test(test_packed_bits),
        cmocka_unit_test(test_shard_bits),
        cmocka_unit_test(test_packed_near),
        cmocka_unit_test(test_pack_options),
        cmocka_unit_test(test_load_ends),
        cmocka_unit_test(test_split_experts),
        cmocka_unit_test(test_truncate),
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_trace_routes),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stats),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_bad_numbers),
        cmocka_unit_test(test_bad_keys),
        cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_last_layer_slides),
        cmocka_unit_test(test_context_beyond_trained),
    };

    return cmocka_run_group_tests(tests, begin, end);
}
