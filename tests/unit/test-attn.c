/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attention over the cache against a double-precision statement of it, in every format, and bit
 * against bit over numbers of workers, chunks of a prompt and company in a step.
 */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/attn.h"
#include "engine/model/model.h"

enum { N_BATCH = 80, N_CTX = 2600, N_SEQ = 3, DIM_MAX = 80 };

/* One layer's geometry; its rows are made from position and sequence alone. */
struct shape {
    uint32_t n_head, n_kv_head, dim, window;
    bool own_v, turn; /* a value matrix of its own; keys kept in part */
};
static const struct shape shapes[] = {
    { 4, 2, 64, 0, true, false },    { 4, 2, 64, 100, true, false }, { 8, 1, 80, 0, false, true },
    { 8, 1, 80, 0, false, false },   { 3, 3, 40, 65, true, false },  { 6, 2, 72, 0, false, true },
    { 16, 1, 64, 700, true, false },
};
enum { N_SHAPE = sizeof shapes / sizeof *shapes };

static struct kern kern;
static struct topo *topo;
static double freq[DIM_MAX / 2];
static float q_norm[DIM_MAX], k_norm[DIM_MAX];

/* Something like a normal draw, fixed by its arguments. */
static float noise(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t x = a * 2654435761u ^ b * 2246822519u ^ c * 3266489917u;
    float sum = 0;

    for (int i = 0; i < 4; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        sum += (float)(x >> 8) / (1 << 23) - 1;
    }
    return sum;
}

/* Element i of row @pos of @seq; what: 0 q, 1 k, 2 v. */
static float element(uint32_t what, uint32_t seq, pos_t pos, uint32_t i) {
    return noise(what * 131 + seq * 17 + 1, pos + 1, i + 1) * (what == 0 && pos % 3 == 0 ? 4 : 1);
}

struct setup {
    const struct shape *s;
    struct pool *pool;
    struct plan *plan;
    struct arena arena;
    struct ops ops;
    struct attn at;
    struct attn_turn turn;
    struct ops_act to;
    struct kvcache *kv;
    float *q, *k, *v, *angle;
};

static void set_up(struct setup *t, const struct shape *s, enum quant_fmt fmt, uint32_t n_worker) {
    struct attn_limits max = { N_BATCH, N_CTX, s->n_head / s->n_kv_head, s->dim };
    struct kv_layer_shape l = { s->n_kv_head, s->dim, s->dim, s->window };
    struct kv_shape shape = {
        .n_layer = 1, .layer = &l, .n_ctx = N_CTX, .n_batch = N_BATCH, .n_seq = N_SEQ, .fmt = fmt
    };
    uint32_t seq;

    *t = (struct setup){ .s = s };
    for (uint32_t i = 0; i < s->dim / 2; i++) /* a third of the pairs turn */
        freq[i] = s->turn && i >= s->dim / 6 ? 1e-30 : pow(1000, -2.0 * i / s->dim);
    assert_int_equal(pool_new(&t->pool, topo, n_worker), 0);
    assert_int_equal(plan_new(&t->plan, pool_cpus(t->pool), n_worker, 0), 0);
    assert_int_equal(arena_init(&t->arena, 256 << 20, NULL), 0);
    assert_int_equal(ops_init(&t->ops, &kern, t->pool, t->plan, &t->arena), 0);
    attn_turn_init(&t->turn, freq, s->dim, &t->arena);
    attn_init(&t->at, &t->ops, &max, &t->arena);
    ops_act_init(&t->to, N_BATCH, s->n_head * s->dim, OPS_F32 | OPS_Q8, &t->arena);
    t->q = arena_alloc(&t->arena, N_BATCH, s->n_head * s->dim * sizeof(float));
    t->k = arena_alloc(&t->arena, N_BATCH, s->n_kv_head * s->dim * sizeof(float));
    t->v = arena_alloc(&t->arena, N_BATCH, s->n_kv_head * s->dim * sizeof(float));
    t->angle = arena_alloc(&t->arena, N_BATCH, s->dim * sizeof(float));
    assert_false(t->arena.failed);
    if (s->turn) {
        assert_int_equal(t->turn.n_plain, s->dim - s->dim / 6 * 2);
        l.n_key = s->dim - t->turn.n_plain;
    } else {
        assert_int_equal(t->turn.n_plain, 0);
    }
    assert_int_equal(kvcache_new(&t->kv, &shape), 0);
    for (uint32_t i = 0; i < N_SEQ; i++)
        assert_int_equal(kvcache_seq_new(t->kv, &seq), 0);
}

static void tear_down(struct setup *t) {
    kvcache_free(t->kv);
    arena_deinit(&t->arena);
    plan_free(t->plan);
    pool_free(t->pool);
}

/* One step: @n positions of each of @n_seq sequences, from what each holds on. */
static void step(struct setup *t, const uint32_t *n, uint32_t n_seq) {
    const struct shape *s = t->s;
    struct attn_layer l = {
        .n_head = s->n_head,
        .n_kv_head = s->n_kv_head,
        .head_dim = s->dim,
        .window = s->window,
        .eps = 1e-6f,
        .q_norm = q_norm,
        .k_norm = k_norm,
        .turn = s->turn ? &t->turn : NULL,
        .angle = t->angle,
        .q = t->q,
        .k = t->k,
        .v = s->own_v ? t->v : t->k,
        .to = &t->to,
    };
    struct ops_phase phase = { 0 };
    struct model_row row[N_BATCH];
    uint32_t r = 0;

    for (uint32_t seq = 0; seq < n_seq; seq++) {
        pos_t pos = kvcache_n(t->kv, seq);

        assert_int_equal(kvcache_reserve(t->kv, seq, n[seq]), 0);
        for (uint32_t j = 0; j < n[seq]; j++, pos++, r++) {
            row[r] = (struct model_row){ .seq = seq, .pos = pos };
            ops_rope_angles(freq, s->dim / 2, pos, t->angle + r * s->dim);
            for (uint32_t i = 0; i < s->n_head * s->dim; i++)
                t->q[r * s->n_head * s->dim + i] = element(0, seq, pos, i);
            for (uint32_t i = 0; i < s->n_kv_head * s->dim; i++) {
                t->k[r * s->n_kv_head * s->dim + i] = element(1, seq, pos, i);
                t->v[r * s->n_kv_head * s->dim + i] = element(2, seq, pos, i);
            }
        }
    }
    ops_act_shape(&t->to, s->n_head * s->dim, OPS_F32 | OPS_Q8);
    ops_enter(&t->ops, &phase);
    attn_begin(&t->at, t->kv, row, r);
    attn_run(&t->at, &l);
    assert_true(phase.kv_bytes > 0);
}

/* ---- in double precision ---- */

static void norm(const double *x, const float *w, uint32_t n, double *ret) {
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (uint32_t i = 0; i < n; i++)
        ret[i] = x[i] / sqrt(sum / n + 1e-6) * (w ? w[i] : 1);
}

static void turn(double *x, pos_t pos, uint32_t n) {
    for (uint32_t i = 0; i < n / 2; i++) {
        double c = cos(pos * freq[i]), s = sin(pos * freq[i]), a = x[i], b = x[i + n / 2];

        x[i] = a * c - b * s;
        x[i + n / 2] = a * s + b * c;
    }
}

static void vector(uint32_t what, uint32_t seq, pos_t pos, uint32_t head, uint32_t dim,
                   double *ret) {
    for (uint32_t i = 0; i < dim; i++)
        ret[i] = element(what, seq, pos, head * dim + i);
}

/* Head @h of the row at @pos, element for element. */
static void want_row(const struct shape *s, uint32_t seq, pos_t pos, uint32_t h, double *ret) {
    uint32_t dim = s->dim, kh = h / (s->n_head / s->n_kv_head);
    pos_t first = s->window && pos >= s->window ? pos - s->window + 1 : 0;
    double q[DIM_MAX], k[DIM_MAX], v[DIM_MAX], max = -INFINITY, sum = 0;
    double *score = malloc((pos + 1) * sizeof *score);

    assert_non_null(score);
    vector(0, seq, pos, h, dim, q);
    norm(q, q_norm, dim, q);
    turn(q, pos, dim);
    for (pos_t j = first; j <= pos; j++) {
        vector(1, seq, j, kh, dim, k);
        norm(k, k_norm, dim, k);
        turn(k, j, dim);
        score[j] = 0;
        for (uint32_t i = 0; i < dim; i++)
            score[j] += q[i] * k[i];
        max = fmax(max, score[j]);
    }
    memset(ret, 0, dim * sizeof *ret);
    for (pos_t j = first; j <= pos; j++) {
        double p = exp(score[j] - max);

        vector(s->own_v ? 2 : 1, seq, j, kh, dim, v);
        norm(v, NULL, dim, v);
        sum += p;
        for (uint32_t i = 0; i < dim; i++)
            ret[i] += p * v[i];
    }
    for (uint32_t i = 0; i < dim; i++)
        ret[i] /= sum;
    free(score);
}

/* Rows of a prompt of @n, some of them checked. */
static void check_prompt(const struct shape *s, enum quant_fmt fmt, double tol, uint32_t n) {
    struct setup t;

    set_up(&t, s, fmt, 2);
    for (pos_t at = 0, chunk; at < n; at += chunk) {
        chunk = n - at < 37 ? n - at : 37;
        step(&t, &chunk, 1);
        for (uint32_t r = 0; r < chunk; r++)
            for (uint32_t h = r % s->n_head; (at + r) % 41 < 2 && h < s->n_head; h += 3) {
                const float *got = ops_act_row(&t.to, r) + h * s->dim;
                double want[DIM_MAX];

                want_row(s, 0, at + r, h, want);
                for (uint32_t i = 0; i < s->dim; i++)
                    if (!(fabs(got[i] - want[i]) <= tol))
                        fail_msg("%u heads of %u, window %u, %s: position %u, head %u, %u: %g %g",
                                 s->n_head, s->dim, s->window, quant_info(fmt)->name, at + r, h, i,
                                 (double)got[i], want[i]);
            }
    }
    tear_down(&t);
}

static void test_against_double(void **state) {
    (void)state;
    for (int i = 0; i < N_SHAPE; i++) {
        check_prompt(&shapes[i], QUANT_F32, 2e-5, 400);
        check_prompt(&shapes[i], QUANT_F16, 1e-2, 400);
        check_prompt(&shapes[i], QUANT_Q8_0, 1e-1, 400);
    }
    check_prompt(&shapes[0], QUANT_F32, 2e-5, 2500); /* several spans */
    check_prompt(&shapes[2], QUANT_F32, 2e-5, 2500);
}

/* ---- the same bits ---- */

/* The output of the last position of @n, as quantised, after a prompt in chunks of @chunk. */
static void last_row(const struct shape *s, enum quant_fmt fmt, uint32_t n_worker, uint32_t chunk,
                     uint32_t n, float *ret) {
    struct setup t;
    uint32_t rows = 0, one = 1;

    set_up(&t, s, fmt, n_worker);
    for (pos_t at = 0; at < n - 1; at += rows) {
        rows = n - 1 - at < chunk ? n - 1 - at : chunk;
        step(&t, &rows, 1);
    }
    step(&t, &one, 1);
    memcpy(ret, ops_act_row(&t.to, 0), s->n_head * s->dim * sizeof *ret);
    tear_down(&t);
}

/* The same as the first row of a step beside others, and as the last of a chunk. */
static void last_row_beside(const struct shape *s, enum quant_fmt fmt, uint32_t n, float *ret) {
    struct setup t;
    uint32_t rows[N_SEQ] = { 20, 1, 7 };
    pos_t at = 0;

    set_up(&t, s, fmt, 2);
    while (at < n) {
        rows[0] = n - at < 20 ? n - at : 20;
        step(&t, rows, N_SEQ);
        at += rows[0];
    }
    memcpy(ret, ops_act_row(&t.to, rows[0] - 1), s->n_head * s->dim * sizeof *ret);
    tear_down(&t);
}

static void test_same_bits(void **state) {
    static const enum quant_fmt formats[] = { QUANT_F32, QUANT_F16, QUANT_Q8_0 };
    static float want[16 * DIM_MAX], got[16 * DIM_MAX];

    (void)state;
    for (int i = 0; i < N_SHAPE; i++)
        for (int f = 0; f < 3; f++) {
            const struct shape *s = &shapes[i];
            uint32_t n = f == 1 && (i == 0 || i == 2) ? 2565 : 333;
            size_t size = s->n_head * s->dim * sizeof *want;

            last_row(s, formats[f], 1, 80, n, want);
            last_row(s, formats[f], 4, 80, n, got); /* spans go to several workers */
            assert_memory_equal(got, want, size);
            last_row(s, formats[f], 2, 33, n, got);
            assert_memory_equal(got, want, size);
            if (n < 1000) {
                last_row(s, formats[f], 2, 1, n, got);
                assert_memory_equal(got, want, size);
                last_row_beside(s, formats[f], n, got);
                assert_memory_equal(got, want, size);
            }
        }
}

/* A long row alone is split: otherwise the test above would show nothing. */
static void test_long_rows_are_split(void **state) {
    struct setup t;
    uint32_t rows = 80, one = 1;

    (void)state;
    set_up(&t, &shapes[2], QUANT_F16, 2);
    step(&t, &one, 1);
    assert_int_equal(t.at.n_item, 1);
    assert_int_equal(t.at.n_part, 0);
    for (int i = 0; i < 30; i++)
        step(&t, &rows, 1);
    assert_int_equal(t.at.n_part, 0);
    step(&t, &one, 1);
    assert_int_equal(t.at.n_item, 3);
    assert_int_equal(t.at.n_part, 3 * 8);
    tear_down(&t);
}

/* A sequence that shares what another began with continues as that one would. */
static void test_fork_continues(void **state) {
    static float want[16 * DIM_MAX];
    struct setup t;
    uint32_t rows[2] = { 70, 0 }, to;

    (void)state;
    for (int i = 0; i < N_SHAPE; i++) {
        const struct shape *s = &shapes[i];
        size_t size = s->n_head * s->dim * sizeof *want;

        rows[0] = 70;
        set_up(&t, s, QUANT_F16, 2);
        kvcache_seq_free(t.kv, 1);
        for (int j = 0; j < 5; j++)
            step(&t, rows, 1);
        rows[0] = 1;
        step(&t, rows, 1);
        memcpy(want, ops_act_row(&t.to, 0), size);
        assert_int_equal(kvcache_truncate(t.kv, 0, 350), 0);
        assert_int_equal(kvcache_fork(t.kv, 0, 350, &to), 0);
        assert_int_equal(to, 1);
        rows[0] = rows[1] = 2; /* the other writes first, and something else */
        step(&t, rows, 2);
        assert_int_equal(kvcache_truncate(t.kv, 0, 350), 0);
        rows[0] = 1;
        step(&t, rows, 1);
        assert_memory_equal(ops_act_row(&t.to, 0), want, size);
        tear_down(&t);
    }
}

static void test_turn(void **state) {
    static const double f[] = { 1, 1e-30, 1e-6, 0 };
    struct attn_turn t;
    struct arena a;

    (void)state;
    assert_int_equal(arena_init(&a, 4096, NULL), 0);
    attn_turn_init(&t, f, 8, &a);
    static const uint32_t order[] = { 1, 3, 5, 7, 0, 2, 4, 6 };
    assert_int_equal(t.n_plain, 4);
    assert_memory_equal(t.order, order, sizeof order);
    arena_deinit(&a);
}

static int begin(void **state) {
    (void)state;
    for (uint32_t i = 0; i < DIM_MAX; i++) {
        q_norm[i] = 1 + 0.3f * noise(90, i, 1);
        k_norm[i] = 0.3f + 0.1f * noise(91, i, 1);
    }
    kern_bind(&kern, kern_cpu());
    return topo_new(&topo);
}

static int end(void **state) {
    (void)state;
    topo_free(topo);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_long_rows_are_split),
        cmocka_unit_test(test_fork_continues),
        cmocka_unit_test(test_turn),
    };

    return cmocka_run_group_tests_name("attn", tests, begin, end);
}
