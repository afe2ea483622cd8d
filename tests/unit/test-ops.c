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
    struct plan *plan;
    struct arena arena;
    struct ops ops;
};

static void set_up(struct setup *s, uint32_t n_worker) {
    assert_int_equal(pool_new(&s->pool, topo, n_worker), 0);
    assert_int_equal(plan_new(&s->plan, pool_cpus(s->pool), n_worker, 0), 0);
    assert_int_equal(arena_init(&s->arena, 64 << 20, NULL), 0);
    assert_int_equal(ops_init(&s->ops, &kern, s->pool, s->plan, &s->arena), 0);
}

static void tear_down(struct setup *s) {
    arena_deinit(&s->arena);
    plan_free(s->plan);
    pool_free(s->pool);
}

/* ---- items ---- */

struct counts {
    atomic_uint n[1000];
    atomic_bool stop;
    bool stops; /* an item sets it */
};

static void count_item(void *arg, uint32_t item, uint32_t worker) {
    struct counts *c = arg;

    atomic_fetch_add(&c->n[item], 1);
    if (c->stops)
        atomic_store(&c->stop, true);
}

static void test_each_item_once(void **state) {
    static const uint32_t sizes[] = { 1, 2, 3, 4, 7, 100, 1000 };

    for (uint32_t n_worker = 1; n_worker <= 4; n_worker++) {
        struct setup s;

        set_up(&s, n_worker);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (size_t cost = 1; cost <= 1 << 20; cost <<= 20) {
                struct counts c = { .stops = false };

                ops_each(&s.ops, sizes[i], cost, count_item, &c);
                for (uint32_t j = 0; j < 1000; j++)
                    assert_int_equal(c.n[j], j < sizes[i]);
            }
        tear_down(&s);
    }
}

static void test_stop_drops_items(void **state) {
    for (uint32_t n_worker = 1; n_worker <= 2; n_worker++) {
        struct counts c = { .stops = true };
        struct setup s;
        uint32_t n = 0;

        set_up(&s, n_worker);
        s.ops.stop = &c.stop;
        ops_each(&s.ops, 1000, 1 << 20, count_item, &c);
        for (uint32_t j = 0; j < 1000; j++)
            n += c.n[j];
        assert_in_range(n, 1, n_worker); /* each is in one item at most */
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
        }
    }
    assert_false(s->arena.failed);
    ops_run(&s->ops, task, n);
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

/* Two gated products, each finished by a callback that the task behind it needs, and a sum of
 * products over the rows they made: no item runs before what it needs, and the sum has the same
 * bits for every number of workers. */
struct chain {
    struct ops *ops;
    struct ops_act *act;
    uint32_t first[3];
    atomic_uint n_done[2];
    atomic_uint n_before;
};

static void chain_before(void *arg, uint32_t item, uint32_t worker) {
    struct chain *c = arg;

    atomic_fetch_add(&c->n_before, 1);
}

static void chain_done(void *arg, uint32_t i, uint32_t worker) {
    struct chain *c = arg;

    assert_int_equal(c->n_before, 7);
    for (uint32_t r = c->first[i]; r < c->first[i + 1]; r++)
        ops_act_done(c->ops, c->act, r);
    atomic_fetch_add(&c->n_done[i], 1);
}

static void test_stages(void **state) {
    enum { COL = 160, MID = 96, OUT = 1003, ROW = 4, SLOT = 6 };
    static const uint32_t row[SLOT] = { 0, 2, 3, 0, 1, 2 };
    static const float weight[SLOT] = { 0.5f, 1, -2, 0.25f, 3, 1 };
    struct product up[2], down[2];
    float *x = floats(SLOT * COL), *first = NULL;

    for (uint32_t i = 0; i < 2; i++) {
        up[i] = (struct product){ .n_out = MID, .n_col = COL, .fmt = QUANT_Q8_0, .glu = true };
        down[i] = (struct product){ .n_out = OUT, .n_col = MID, .fmt = QUANT_Q8_0 };
        product_make(&up[i]);
        product_make(&down[i]);
    }
    for (uint32_t n_worker = 1; n_worker <= 4; n_worker++) {
        struct ops_act in, mid;
        struct chain c = { .act = &mid, .first = { 0, 3, SLOT } };
        struct setup s;
        float *y;

        set_up(&s, n_worker);
        c.ops = &s.ops;
        ops_act_init(&in, SLOT, COL, OPS_F32 | OPS_Q8, &s.arena);
        ops_act_init(&mid, SLOT, MID, OPS_F32 | OPS_Q8, &s.arena);
        y = arena_alloc(&s.arena, ROW * OUT, sizeof *y);
        for (uint32_t r = 0; r < SLOT; r++) {
            memcpy(ops_act_row(&in, r), x + (size_t)r * COL, COL * sizeof *x);
            ops_act_done(&s.ops, &in, r);
        }
        for (uint32_t turn = 0; turn < 50; turn++) {
            struct ops_task task[5] = {
                { .fn = chain_before, .arg = &c, .n_item = 7, .cost = 1 << 16 }
            };

            for (uint32_t i = 0; i < 2; i++) {
                task[1 + i] = (struct ops_task){
                    .w = product_mat(&up[i], up[i].w),
                    .w2 = product_mat(&up[i], up[i].w2),
                    .x = ops_act_rows(&in, c.first[i], c.first[i + 1] - c.first[i]),
                    .y = ops_act_row(&mid, c.first[i]),
                    .y_stride = mid.f_stride,
                    .need = &task[0],
                    .done = chain_done,
                    .done_arg = &c,
                    .done_item = i,
                };
                task[3 + i] = (struct ops_task){
                    .w = product_mat(&down[i], down[i].w),
                    .x = ops_act_rows(&mid, c.first[i], c.first[i + 1] - c.first[i]),
                    .y = y,
                    .y_stride = OUT,
                    .n_y = ROW,
                    .row = row + c.first[i],
                    .weight = weight + c.first[i],
                    .need = &task[1 + i],
                };
            }
            c.n_before = c.n_done[0] = c.n_done[1] = 0;
            memset(y, 0xff, ROW * OUT * sizeof *y);
            ops_run(&s.ops, task, 5);
            assert_int_equal(c.n_done[0], 1);
            assert_int_equal(c.n_done[1], 1);
            if (!first) {
                first = malloc(ROW * OUT * sizeof *y);
                memcpy(first, y, ROW * OUT * sizeof *y);
            }
            assert_memory_equal(first, y, ROW * OUT * sizeof *y);
        }
        tear_down(&s);
    }
    for (uint32_t r = 0; r < ROW; r++)
        for (uint32_t o = 0; o < OUT; o += 97) {
            double want = 0;

            for (uint32_t slot = 0; slot < SLOT; slot++) {
                const struct product *u = &up[slot >= 3], *d = &down[slot >= 3];

                for (uint32_t j = 0; row[slot] == r && j < MID; j++)
                    want += (double)weight[slot] * d->f[(size_t)o * MID + j] *
                            want_one(u->f + (size_t)j * COL, u->f2 + (size_t)j * COL,
                                     x + (size_t)slot * COL, COL, 0);
            }
            assert_near(first[r * OUT + o], want, 2 + 0.05 * fabs(want));
        }
    for (uint32_t i = 0; i < 2; i++) {
        free(up[i].w);
        free(up[i].w2);
        free(up[i].f);
        free(up[i].f2);
        free(down[i].w);
        free(down[i].f);
    }
    free(first);
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
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_copies_keep_all_forms),
        cmocka_unit_test(test_angles_of_far_positions),
    };

    return cmocka_run_group_tests(tests, begin, end);
}
