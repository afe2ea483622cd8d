/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/moe/group.h"
#include "engine/moe/router.h"

#define assert_near(a_, b_, tol_) assert_true(fabs((double)(a_) - (double)(b_)) <= (tol_))

static void test_order_and_weights(void **state) {
    const float logit[] = { 0.5f, -1, 3, 2, 3, 0 };
    uint32_t id[4];
    float w[4];
    double sum = exp(3) + exp(3) + exp(2) + exp(0.5);

    router_top(logit, 6, 4, NULL, id, w);
    assert_int_equal(id[0], 2); /* the lower index first on ties */
    assert_int_equal(id[1], 4);
    assert_int_equal(id[2], 3);
    assert_int_equal(id[3], 0);
    assert_near(w[0], exp(3) / sum, 1e-6);
    assert_near(w[1], exp(3) / sum, 1e-6);
    assert_near(w[2], exp(2) / sum, 1e-6);
    assert_near(w[3], exp(0.5) / sum, 1e-6);
}

static void test_ties_at_the_border(void **state) {
    const float logit[] = { 1, 2, 1, 1, 1 };
    uint32_t id[3];
    float w[3];

    router_top(logit, 5, 3, NULL, id, w);
    assert_int_equal(id[0], 1);
    assert_int_equal(id[1], 0);
    assert_int_equal(id[2], 2);
}

static void test_scale(void **state) {
    const float logit[] = { 7, 8, 9 }, scale[] = { 10, 20, 30 };
    uint32_t id[3];
    float plain[3], scaled[3];

    router_top(logit, 3, 3, NULL, id, plain);
    router_top(logit, 3, 3, scale, id, scaled);
    for (int i = 0; i < 3; i++)
        assert_near(scaled[i], plain[i] * scale[id[i]], 1e-5);
    assert_near(plain[0] + plain[1] + plain[2], 1, 1e-6);
}

/* A constant added to all logits changes nothing, not even by overflow. */
static void test_shift(void **state) {
    const float a[] = { 1, 4, 2, 3 }, b[] = { 1001, 1004, 1002, 1003 };
    uint32_t id_a[2], id_b[2];
    float w_a[2], w_b[2];

    router_top(a, 4, 2, NULL, id_a, w_a);
    router_top(b, 4, 2, NULL, id_b, w_b);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(id_a[i], id_b[i]);
        assert_near(w_a[i], w_b[i], 1e-6);
    }
}

/* Whatever comes in, the ids are distinct experts: they index weights. */
static void test_not_a_number(void **state) {
    const float logit[] = { NAN, -INFINITY, NAN, 1, NAN };
    uint32_t id[5], seen = 0;
    float w[5];

    router_top(logit, 5, 5, NULL, id, w);
    assert_int_equal(id[0], 3);
    assert_near(w[0], 1, 1e-6);
    for (int i = 0; i < 5; i++) {
        assert_true(id[i] < 5);
        seen |= 1u << id[i];
    }
    assert_int_equal(seen, 31);
}

static void test_group(void **state) {
    enum { N_EXPERT = 12, N_ROW = 40, K = 3 };
    struct arena measure, a;
    uint32_t id[N_ROW * K], n_slot = 0, seed = 1;
    float weight[N_ROW * K];
    struct group g;

    arena_measure(&measure);
    group_init(&g, N_EXPERT, N_ROW, K, &measure);
    assert_int_equal(arena_init(&a, measure.used, NULL), 0);
    group_init(&g, N_EXPERT, N_ROW, K, &a);
    assert_false(a.failed);

    for (uint32_t n_row = 1; n_row <= N_ROW; n_row++) {
        for (uint32_t r = 0; r < n_row; r++)
            for (uint32_t i = 0; i < K; i++) /* distinct in a row; never the last expert */
                id[r * K + i] = (uint32_t)((seed = seed * 1664525 + 1013904223) >> 16) % 3 + 3 * i +
                                (i < 2 ? 0 : 2);
        for (uint32_t i = 0; i < n_row * K; i++)
            weight[i] = (float)i;
        group_rows(&g, id, weight, n_row);
        n_slot = 0;
        for (uint32_t i = 0; i < g.n_expert; i++) {
            const struct group_expert *e = &g.expert[i];

            assert_true(e->n > 0);
            assert_int_equal(e->first, n_slot);
            assert_true(i == 0 || e->id > g.expert[i - 1].id);
            for (uint32_t s = e->first; s < e->first + e->n; s++)
                assert_true(s == e->first || g.row[s] > g.row[s - 1]);
            n_slot += e->n;
        }
        assert_int_equal(n_slot, n_row * K);
        for (uint32_t i = 0; i < g.n_expert; i++)
            for (uint32_t s = g.expert[i].first; s < g.expert[i].first + g.expert[i].n; s++) {
                uint32_t at = (uint32_t)g.weight[s]; /* where the slot comes from */

                assert_int_equal(g.row[s], at / K);
                assert_int_equal(g.expert[i].id, id[at]);
            }
        for (uint32_t i = 0; i < g.n_expert; i++) {
            const struct group_expert *e = &g.expert[i];
            bool gap = false;

            for (uint32_t s = e->first + 1; s < e->first + e->n; s++)
                gap |= g.row[s] != g.row[s - 1] + 1;
            assert_true(group_together(&g, e) == !gap);
        }
    }
    arena_deinit(&a);
}

/* As the norm, the gate and the choice one after the other in plain C. */
static void test_guess(void **state) {
    enum { D = 48, N = 11, K = 3 };
    float x[D], scale[D], w[N][D], logit[N], weight[K], *scratch;
    uint32_t id[K], want[K];
    double sq = 0;
    struct kern kern;

    kern_bind(&kern, kern_cpu());
    scratch = aligned_alloc(64, router_guess_size(D, N, K));
    assert_non_null(scratch);
    srand(3);
    for (uint32_t i = 0; i < D; i++) {
        x[i] = (float)(rand() % 2000 - 1000) / 100;
        scale[i] = (float)(rand() % 100) / 50;
        sq += (double)x[i] * x[i];
        for (uint32_t e = 0; e < N; e++)
            w[e][i] = (float)(rand() % 2000 - 1000) / 1000;
    }
    for (uint32_t e = 0; e < N; e++) {
        double sum = 0;

        for (uint32_t i = 0; i < D; i++)
            sum += x[i] / sqrt(sq / D + 1e-6) * scale[i] * w[e][i];
        logit[e] = (float)sum;
    }
    router_top(logit, N, K, NULL, want, weight);
    router_guess(&kern, x, D, 1e-6f, scale, QUANT_F32, w, N, K, scratch, id);
    assert_memory_equal(id, want, sizeof id);
    free(scratch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_weights),
        cmocka_unit_test(test_ties_at_the_border),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_shift),
        cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_group),
        cmocka_unit_test(test_guess),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
