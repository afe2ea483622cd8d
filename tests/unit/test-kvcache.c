/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/kv/kvcache.h"

static const struct kv_layer_shape layers[] = {
    { .n_kv_head = 2, .head_dim = 16, .window = 0 },
    { .n_kv_head = 3, .head_dim = 8, .window = 20 },
    { .n_kv_head = 1, .head_dim = 32, .window = 50 },
    { .n_kv_head = 2, .head_dim = 8, .window = 1 },
};
enum { N_LAYER = sizeof layers / sizeof *layers, N_CTX = 150, N_BATCH = 13, N_SEQ = 3 };

static struct kv_shape shape(enum quant_fmt fmt) {
    return (struct kv_shape){
        .n_layer = N_LAYER,
        .layer = layers,
        .n_ctx = N_CTX,
        .n_batch = N_BATCH,
        .n_seq = N_SEQ,
        .fmt = fmt,
    };
}

static uint32_t rng = 1;

static uint32_t below(uint32_t n) {
    rng = rng * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)rng * n >> 32);
}

/* Views tile the mapping: as many bytes as kvcache_size() says, none shared, each aligned. */
static void test_layout(void **state) {
    (void)state;
    for (int f32 = 0; f32 < 2; f32++) {
        AUTO(kvcache_free) struct kvcache *kv = NULL;
        struct kv_shape s = shape(f32 ? QUANT_F32 : QUANT_F16);
        uint64_t total = 0;
        struct kv_view v;

        assert_int_equal(kvcache_new(&kv, &s), 0);
        assert_int_equal(kvcache_fmt(kv), s.fmt);
        assert_int_equal(kvcache_n_byte(kv), kvcache_size(&s));
        for (uint32_t l = 0, id = 1; l < N_LAYER; l++)
            for (uint32_t q = 0; q < N_SEQ; q++)
                for (uint32_t h = 0; h < layers[l].n_kv_head; h++, id++) {
                    kvcache_view(kv, l, q, h, &v);
                    assert_int_equal(v.stride, layers[l].head_dim * (f32 ? 4 : 2));
                    assert_int_equal((uintptr_t)v.k % 64, 0);
                    assert_int_equal((uintptr_t)v.v % 64, 0);
                    assert_true(v.n_row >= (layers[l].window ? layers[l].window + N_BATCH - 1
                                                             : (uint32_t)N_CTX));
                    memset(v.k, (int)id, (size_t)v.n_row * v.stride);
                    memset(v.v, (int)(id + 100), (size_t)v.n_row * v.stride);
                    total += UINT64_C(2) * v.n_row * v.stride;
                }
        assert_int_equal(total, kvcache_size(&s));
        for (uint32_t l = 0, id = 1; l < N_LAYER; l++)
            for (uint32_t q = 0; q < N_SEQ; q++)
                for (uint32_t h = 0; h < layers[l].n_kv_head; h++, id++) {
                    kvcache_view(kv, l, q, h, &v);
                    for (size_t i = 0; i < (size_t)v.n_row * v.stride; i++)
                        assert_true(v.k[i] == id && v.v[i] == id + 100);
                }
    }
}

static void test_window_wider_than_context(void **state) {
    struct kv_layer_shape l = { .n_kv_head = 1, .head_dim = 8, .window = 1024 };
    struct kv_shape s = { .n_layer = 1, .layer = &l, .n_ctx = 40, .n_batch = 8, .n_seq = 1 };
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct kv_view v;

    (void)state;
    s.fmt = QUANT_F16;
    assert_int_equal(kvcache_new(&kv, &s), 0);
    kvcache_view(kv, 0, 0, 0, &v);
    assert_in_range(v.n_row, 40, 64);
}

static void test_sizes_that_do_not_fit(void **state) {
    static const struct kv_layer_shape big = { UINT32_MAX, UINT32_MAX, 0 };
    static const struct kv_layer_shape wide = { 1, UINT32_MAX / 2, UINT32_MAX };
    static const struct kv_layer_shape fair = { 8, 256, 0 };
    const struct kv_shape bad[] = {
        { 1, &big, UINT32_MAX, 1, 1, QUANT_F16 },
        { 1, &big, 1, 1, 1, QUANT_F16 },
        { 1, &wide, UINT32_MAX, UINT32_MAX, 1, QUANT_F32 },
        { 1, &fair, UINT32_MAX, 1, 1, QUANT_F16 }, /* rows rounded up do not fit 32 bits */
        { 1, &fair, UINT32_MAX - 64, 1, UINT32_MAX, QUANT_F16 },
    };
    struct kv_shape none = shape(QUANT_F16);
    struct kvcache *kv = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(kvcache_size(&bad[i]) == UINT64_MAX);
        assert_int_equal(kvcache_new(&kv, &bad[i]), -ENOMEM);
    }
    none.n_seq = 0;
    assert_int_equal(kvcache_size(&none), 0);
    assert_int_equal(kvcache_new(&kv, &none), -EINVAL);
    assert_null(kv);
    assert_null(kvcache_free(NULL));
}

/* A cache far larger than memory costs only what is touched. */
static void test_touched_as_used(void **state) {
    struct kv_layer_shape l = { .n_kv_head = 8, .head_dim = 256, .window = 0 };
    struct kv_shape s = { .n_layer = 1, .layer = &l, .n_ctx = 1 << 24, .n_batch = 8, .n_seq = 4 };
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct rusage before, after;

    (void)state;
    s.fmt = QUANT_F16;
    getrusage(RUSAGE_SELF, &before);
    assert_int_equal(kvcache_new(&kv, &s), 0);
    assert_true(kvcache_n_byte(kv) == UINT64_C(4) * 2 * 8 * 256 * 2 << 24);
    for (uint32_t q = 0; q < 4; q++)
        for (uint32_t h = 0; h < 8; h++) {
            struct kv_view v;

            kvcache_view(kv, 0, q, h, &v);
            v.k[0] = v.v[0] = 1;
        }
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 64 * 1024);
}

/* The naive model: what was written at each position, and what each row now holds. */
struct naive {
    pos_t n;
    uint32_t stamp[N_CTX];
};
static struct naive naive[N_SEQ];
static uint32_t next_stamp = 1;

static uint32_t *row(uint8_t *base, const struct kv_view *v, pos_t p) {
    return (uint32_t *)(void *)(base + (size_t)(p % v->n_row) * v->stride);
}

/* Do all rows that a query at @p of @layer sees hold what was written there? */
static bool sees(const struct kvcache *kv, uint32_t layer, uint32_t seq, pos_t p) {
    uint32_t w = layers[layer].window;

    for (pos_t i = w && p + 1 > w ? p + 1 - w : 0; i <= p && i < naive[seq].n; i++)
        for (uint32_t h = 0; h < layers[layer].n_kv_head; h++) {
            struct kv_view v;

            kvcache_view(kv, layer, seq, h, &v);
            if (*row(v.k, &v, i) != naive[seq].stamp[i] + h ||
                *row(v.v, &v, i) != naive[seq].stamp[i] + h + 100)
                return false;
        }
    return true;
}

/* One step: reserve, write all rows of all layers, then look from each of them. */
static void add(struct kvcache *kv, uint32_t seq, uint32_t n) {
    struct naive *m = &naive[seq];
    pos_t begin = m->n;
    int r = kvcache_reserve(kv, seq, n);

    if (begin + n > N_CTX) {
        assert_int_equal(r, KVCACHE_FULL);
        assert_int_equal(kvcache_n(kv, seq), begin);
        return;
    }
    assert_int_equal(r, 0);
    for (; m->n < begin + n; m->n++, next_stamp += 1000) {
        m->stamp[m->n] = next_stamp;
        for (uint32_t l = 0; l < N_LAYER; l++)
            for (uint32_t h = 0; h < layers[l].n_kv_head; h++) {
                struct kv_view v;

                kvcache_view(kv, l, seq, h, &v);
                *row(v.k, &v, m->n) = next_stamp + h;
                *row(v.v, &v, m->n) = next_stamp + h + 100;
            }
    }
    for (uint32_t l = 0; l < N_LAYER; l++)
        for (pos_t p = begin; p < m->n; p++)
            assert_true(sees(kv, l, seq, p));
}

/* Allowed exactly when the next query, at @n, would see its rows in every layer. */
static void cut(struct kvcache *kv, uint32_t seq, pos_t n) {
    struct naive *m = &naive[seq];
    pos_t was = m->n;
    bool fine = true;
    int r;

    m->n = n < was ? n : was;
    for (uint32_t l = 0; l < N_LAYER; l++)
        fine = fine && sees(kv, l, seq, n);
    r = kvcache_truncate(kv, seq, n);
    if (n >= was || n == 0)
        assert_int_equal(r, 0);
    else
        assert_int_equal(r, fine ? 0 : KVCACHE_FULL);
    if (r != 0)
        m->n = was;
    assert_int_equal(kvcache_n(kv, seq), m->n);
}

static void test_against_naive_model(void **state) {
    (void)state;
    for (int f32 = 0; f32 < 2; f32++) {
        AUTO(kvcache_free) struct kvcache *kv = NULL;
        struct kv_shape s = shape(f32 ? QUANT_F32 : QUANT_F16);

        memset(naive, 0, sizeof naive);
        assert_int_equal(kvcache_new(&kv, &s), 0);
        for (int i = 0; i < 20000; i++) {
            uint32_t seq = below(N_SEQ), n = naive[seq].n;

            switch (below(8)) {
            case 0:
                cut(kv, seq, below(n + 2));
                break;
            case 1: /* what was just added, as after a step that was stopped */
                cut(kv, seq, n - below(n < N_BATCH ? n + 1 : N_BATCH + 1));
                break;
            case 2:
                if (below(10) == 0)
                    cut(kv, seq, 0);
                break;
            default:
                add(kv, seq, below(N_BATCH + 1));
            }
        }
    }
}

/* Any step can be taken back, at any place: the scheduler counts on it. */
static void test_last_step_can_be_undone(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct kv_shape s = shape(QUANT_F16);

    (void)state;
    memset(naive, 0, sizeof naive);
    assert_int_equal(kvcache_new(&kv, &s), 0);
    for (pos_t n = 0; n + N_BATCH <= N_CTX; n++) {
        for (uint32_t k = 0; k <= N_BATCH; k++) {
            add(kv, 0, k);
            assert_int_equal(kvcache_truncate(kv, 0, n), 0);
            naive[0].n = n;
        }
        add(kv, 0, 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_window_wider_than_context),
        cmocka_unit_test(test_sizes_that_do_not_fit),
        cmocka_unit_test(test_touched_as_used),
        cmocka_unit_test(test_against_naive_model),
        cmocka_unit_test(test_last_step_can_be_undone),
    };

    return cmocka_run_group_tests_name("kvcache", tests, NULL, NULL);
}
