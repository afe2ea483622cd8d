/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/ops.h"

#define assert_near(a_, b_, tol_) assert_true(fabs((double)(a_) - (double)(b_)) <= (tol_))

enum { N_SCRATCH = 128 * 512 };

static struct kern kern;
static struct topo *topo;
static uint32_t seed = 7;

static float draw(void) {
    seed = seed * 1664525 + 1013904223;
    return (float)(seed >> 8) / (1 << 23) - 1;
}

static float *floats(size_t n) {
    float *x = malloc(n * sizeof *x);

    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = draw();

    return x;
}

/* Pool, arena and ops of @n workers. */
struct setup {
    struct pool *pool;
    struct arena arena;
    struct ops ops;
};

static void set_up(struct setup *s, uint32_t n_worker) {
    assert_int_equal(pool_new(&s->pool, topo, n_worker), 0);
    assert_int_equal(arena_init(&s->arena, 64 << 20, NULL), 0);
    assert_int_equal(ops_init(&s->ops, &kern, s->pool, N_SCRATCH, &s->arena), 0);
}

static void tear_down(struct setup *s) {
    arena_deinit(&s->arena);
    pool_free(s->pool);
}

/* ---- items ---- */

struct counts {
    atomic_uint n[1000];
    atomic_bool stop;
    uint32_t stop_at;
};

static void count_item(void *arg, uint32_t item, uint32_t worker) {
    struct counts *c = arg;

    atomic_fetch_add(&c->n[item], 1);
    if (item == c->stop_at)
        atomic_store(&c->stop, true);
}

static void test_each_item_once(void **state) {
    static const uint32_t sizes[] = { 1, 2, 3, 4, 7, 100, 1000 };

    for (uint32_t n_worker = 1; n_worker <= 4; n_worker++) {
        struct setup s;

        set_up(&s, n_worker);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (size_t cost = 1; cost <= 1 << 20; cost <<= 20) {
                struct counts c = { .stop_at = UINT32_MAX };

                ops_each(&s.ops, sizes[i], cost, count_item, &c);
                for (uint32_t j = 0; j < 1000; j++)
                    assert_int_equal(c.n[j], j < sizes[i]);
            }
        tear_down(&s);
    }
}

static void test_stop_drops_items(void **state) {
    for (uint32_t n_worker = 1; n_worker <= 2; n_worker++) {
        struct counts c = { .stop_at = 0 };
        struct setup s;
        uint32_t n = 0;

        set_up(&s, n_worker);
        s.ops.stop = &c.stop;
        ops_each(&s.ops, 1000, 1 << 20, count_item, &c);
        for (uint32_t j = 0; j < 1000; j++)
            n += c.n[j];
        assert_true(n_worker > 1 ? n < 1000 : n == 1);
        assert_true(ops_stopped(&s.ops));
        tear_down(&s);
    }
}

/* ---- products ---- */

static double gelu(double x) {
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

/* One product, in the numbers the kernels are to reach. */
static double want_one(const float *w, const float *w2, const float *x, uint32_t n, double cap) {
    double a = 0, b = 0;

    for (uint32_t i = 0; i < n; i++) {
        a += (double)w[i] * x[i];
        b += w2 ? (double)w2[i] * x[i] : 0;
    }
    if (w2)
        a = gelu(a) * b;

    return cap > 0 ? cap * tanh(a / cap) : a;
}

struct product {
    uint32_t n_out, n_col;
    enum quant_fmt fmt;
    bool glu;
    float cap;
    void *w, *w2;
    float *f, *f2; /* what w, w2 decode to */
};

static void *encode(enum quant_fmt fmt, float *f, size_t n) {
    void *w = malloc(quant_row_size(fmt, n) + 64);

    assert_non_null(w);
    quant_encode(fmt, f, w, n);
    quant_decode(fmt, w, f, n);

    return w;
}

static void product_make(struct product *p) {
    size_t n = (size_t)p->n_out * p->n_col;

    p->f = floats(n);
    p->w = encode(p->fmt, p->f, n);
    if (p->glu) {
        p->f2 = floats(n);
        p->w2 = encode(p->fmt, p->f2, n);
    }
}

static struct ops_mat product_mat(const struct product *p, const void *w) {
    return (struct ops_mat){ .data = w,
                             .stride = quant_row_size(p->fmt, p->n_col),
                             .n_out = p->n_out,
                             .n_col = p->n_col,
                             .fmt = p->fmt };
}

static void products_run(struct setup *s, struct product *p, uint32_t n, const float *x,
                         uint32_t n_row, float **y) {
    struct ops_task task[8];
    struct ops_act act;

    ops_act_init(&act, n_row, p->n_col, OPS_F32 | OPS_Q8, &s->arena);
    for (uint32_t r = 0; r < n_row; r++) {
        memcpy(ops_act_row(&act, r), x + (size_t)r * p->n_col, p->n_col * sizeof *x);
        ops_act_done(&s->ops, &act, r);
    }
    for (uint32_t i = 0; i < n; i++) {
        y[i] = arena_alloc(&s->arena, (size_t)n_row * p[i].n_out, sizeof(float));
        task[i] = (struct ops_task){ .w = product_mat(&p[i], p[i].w),
                                     .x = ops_act_rows(&act, 0, n_row),
                                     .y = y[i],
                                     .y_stride = p[i].n_out,
                                     .softcap = p[i].cap };
        if (p[i].glu) {
            task[i].w2 = product_mat(&p[i], p[i].w2);
            task[i].y2 = arena_alloc(&s->arena, (size_t)n_row * p[i].n_out, sizeof(float));
        }
    }
    assert_false(s->arena.failed);
    ops_mul(&s->ops, task, n);
}

/* Several products of different shape at once: right, and the same bits for any number of workers
 * and when rows are computed one by one. */
static void test_products(void **state) {
    enum { N = 4, COL = 160, ROW = 5 };
    struct product p[N] = {
        { .n_out = 333, .n_col = COL, .fmt = QUANT_F32 },
        { .n_out = 48, .n_col = COL, .fmt = QUANT_Q8_0, .glu = true },
        { .n_out = 1003, .n_col = COL, .fmt = QUANT_Q4_0, .cap = 2 },
        { .n_out = 1, .n_col = COL, .fmt = QUANT_BF16 },
    };
    float *x = floats(ROW * COL), *first[N] = { NULL };

    for (uint32_t i = 0; i < N; i++)
        product_make(&p[i]);
    for (uint32_t n_worker = 1; n_worker <= 3; n_worker++) {
        float *y[N], *one[N];
        struct setup s;

        set_up(&s, n_worker);
        products_run(&s, p, N, x, ROW, y);
        for (uint32_t i = 0; i < N; i++) {
            size_t size = (size_t)ROW * p[i].n_out * sizeof(float);

            if (!first[i]) {
                first[i] = malloc(size);
                memcpy(first[i], y[i], size);
            }
            assert_memory_equal(first[i], y[i], size);
        }
        for (uint32_t r = 0; r < ROW; r++) {
            products_run(&s, p, N, x + (size_t)r * COL, 1, one);
            for (uint32_t i = 0; i < N; i++)
                assert_memory_equal(one[i], y[i] + (size_t)r * p[i].n_out,
                                    p[i].n_out * sizeof(float));
        }
        tear_down(&s);
    }
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t r = 0; r < ROW; r++)
            for (uint32_t o = 0; o < p[i].n_out; o++) {
                size_t at = (size_t)o * COL;
                double want = want_one(p[i].f + at, p[i].glu ? p[i].f2 + at : NULL, x + r * COL,
                                       COL, p[i].cap);

                assert_near(first[i][(size_t)r * p[i].n_out + o], want,
                            p[i].fmt > QUANT_BF16 ? 0.4 : 1e-4);
            }
        free(first[i]);
        free(p[i].w);
        free(p[i].w2);
        free(p[i].f);
        free(p[i].f2);
    }
    free(x);
}

static void test_blas(void **state) {
    enum { COL = 320, ROW = 20 };
    static const enum quant_fmt fmts[] = { QUANT_F32, QUANT_F16, QUANT_BF16 };
    float *x = floats(ROW * COL);

    if (!ops_blas_present())
        skip();
    ops_blas_init();
    for (int f = 0; f < 3; f++) {
        struct product p = { .n_out = 300, .n_col = COL, .fmt = fmts[f] };
        float *with[3], *without;
        struct setup s;

        product_make(&p);
        for (uint32_t n_worker = 1; n_worker <= 2; n_worker++) {
            float *y;

            set_up(&s, n_worker);
            s.ops.blas = true;
            products_run(&s, &p, 1, x, ROW, &y);
            with[n_worker] = malloc(ROW * 300 * sizeof(float));
            memcpy(with[n_worker], y, ROW * 300 * sizeof(float));
            tear_down(&s);
        }
        assert_memory_equal(with[1], with[2], ROW * 300 * sizeof(float));
        set_up(&s, 2);
        products_run(&s, &p, 1, x, ROW, &without);
        for (int i = 0; i < ROW * 300; i++)
            assert_near(with[1][i], without[i], 2e-4);
        tear_down(&s);
        free(with[1]);
        free(with[2]);
        free(p.w);
        free(p.f);
    }
    free(x);
}

/* ---- activations ---- */

static void test_copies_keep_all_forms(void **state) {
    enum { COL = 288 };
    struct setup s;
    struct ops_act a, b;
    float *x = floats(COL);

    set_up(&s, 1);
    ops_act_init(&a, 3, COL, OPS_F32 | OPS_Q8, &s.arena);
    ops_act_init(&b, 3, COL, OPS_F32 | OPS_Q8, &s.arena);
    memcpy(ops_act_row(&a, 2), x, COL * sizeof *x);
    ops_act_done(&s.ops, &a, 2);
    ops_act_copy(&b, 1, &a, 2);

    struct kern_rows from = ops_act_rows(&a, 2, 1), to = ops_act_rows(&b, 1, 1);

    assert_memory_equal(to.f, x, COL * sizeof *x);
    assert_memory_equal(to.q, from.q, from.q_stride);
    assert_memory_equal(to.d, from.d, from.q_stride / KERN_Q8_BLOCK * sizeof(float));
    assert_memory_equal(to.s, from.s, from.q_stride / KERN_Q8_SUM * sizeof(int16_t));
    assert_int_equal(from.q_stride, 512);
    for (size_t i = COL; i < from.q_stride; i++)
        assert_int_equal(from.q[i], 0);
    tear_down(&s);
    free(x);
}

static void test_angles_of_far_positions(void **state) {
    const double freq[] = { 1, 0.0333, 1e-30 };
    float cs[6];

    ops_rope_angles(freq, 3, 262143, cs);
    assert_near(cs[0], cos(262143.0), 1e-7);
    assert_near(cs[1], sin(262143.0), 1e-7);
    assert_near(cs[2], cos(262143.0 * 0.0333), 1e-7);
    assert_near(cs[4], 1, 0);
    assert_near(cs[5], 0, 1e-20);
}

static int begin(void **state) {
    kern_bind(&kern, kern_cpu());
    return topo_new(&topo);
}

static int end(void **state) {
    topo_free(topo);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_item_once),
        cmocka_unit_test(test_stop_drops_items),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_blas),
        cmocka_unit_test(test_copies_keep_all_forms),
        cmocka_unit_test(test_angles_of_far_positions),
    };

    return cmocka_run_group_tests(tests, begin, end);
}
