/* SPDX-License-Identifier: Apache-2.0 */

/* Which experts are cold, from the rows that went to them. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/moe/heat.h"

enum { N_LAYER = 2, N_EXPERT = 10, K = 2, N_ROW = 64 };

struct rig {
    struct heat heat;
    struct group group;
    struct arena arena;
};

static void lay_out(struct rig *t, struct arena *a) {
    heat_init(&t->heat, N_LAYER, N_EXPERT, K, a);
    group_init(&t->group, N_EXPERT, N_ROW, K, a);
}

static int setup(void **state) {
    static struct rig t;
    struct arena measure;

    arena_measure(&measure);
    lay_out(&t, &measure);
    assert_int_equal(arena_init(&t.arena, measure.used, NULL), 0);
    lay_out(&t, &t.arena);
    assert_false(t.arena.failed);
    *state = &t;
    return 0;
}

static int teardown(void **state) {
    arena_deinit(&((struct rig *)*state)->arena);
    return 0;
}

/* @n rows of layer @layer go to experts @a and @b, as steps of up to N_ROW rows. */
static void use(struct rig *t, uint32_t layer, uint32_t a, uint32_t b, uint32_t n) {
    uint32_t id[N_ROW * K];
    float weight[N_ROW * K] = { 0 };

    for (uint32_t i = 0; i < N_ROW; i++) {
        id[i * K] = a;
        id[i * K + 1] = b;
    }
    for (; n > 0; n -= n < N_ROW ? n : N_ROW) {
        group_rows(&t->group, id, weight, n < N_ROW ? n : N_ROW);
        heat_add(&t->heat, layer, &t->group);
    }
}

/* The cold ones of @layer are @want [@n], in that order. */
static void assert_cold(struct rig *t, uint32_t layer, const uint32_t *want, uint32_t n) {
    const uint32_t *id;

    assert_int_equal(heat_cold(&t->heat, layer, &id), n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(id[i], want[i]);
}

/* Nobody knows better: all may go, in every layer. */
static void test_nothing_used(void **state) {
    static const uint32_t all[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 };

    assert_cold(*state, 0, all, N_EXPERT);
    assert_cold(*state, 1, all, N_EXPERT);
}

/* Not where they lie, but how often they were used: here the last are hot. And a layer's counts are
 * its own. */
static void test_by_use(void **state) {
    static const uint32_t low[] = { 0, 1, 2, 3, 4, 5, 6, 7 }, high[] = { 2, 3, 4, 5, 6, 7, 8, 9 };

    use(*state, 0, 8, 9, 10);
    use(*state, 1, 0, 1, 10);
    assert_cold(*state, 0, low, 8);
    assert_cold(*state, 1, high, 8);
}

/* Those used least go as long as they had a twentieth of all uses together. */
static void test_share(void **state) {
    static const uint32_t none[] = { 0 }, cold[] = { 0, 1, 2, 3, 4, 5, 7, 6 };

    use(*state, 0, 8, 9, 1000); /* 2000 uses */
    use(*state, 0, 7, 6, 30);   /* 60 */
    use(*state, 0, 5, 6, 20);   /* 40: 2100 in all, 105 may go: 20 + 30 + 50 = 100 */
    assert_cold(*state, 0, cold, 8);
    use(*state, 0, 4, 5, 30); /* 2160, 108 may go: 30, 30, and neither 50 is left for */
    assert_cold(*state, 0, (const uint32_t[]){ 0, 1, 2, 3, 4, 7 }, 6);
    for (uint32_t e = 0; e < N_EXPERT; e += 2)
        use(*state, 1, e, e + 1, 500); /* all alike: none is cold enough */
    assert_cold(*state, 1, none, 0);
}

/* What was hot cools when others are used, however hot it was. */
static void test_ages(void **state) {
    use(*state, 0, 0, 1, 100 * HEAT_AGE);
    assert_cold(*state, 0, (const uint32_t[]){ 2, 3, 4, 5, 6, 7, 8, 9 }, 8);
    use(*state, 0, 2, 3, HEAT_AGE / 2); /* both are used */
    assert_cold(*state, 0, (const uint32_t[]){ 4, 5, 6, 7, 8, 9 }, 6);
    use(*state, 0, 2, 3, 2 * HEAT_AGE);
    assert_cold(*state, 0, (const uint32_t[]){ 4, 5, 6, 7, 8, 9, 0, 1 }, 8);
}

/* A step larger than the age is counted, and no sum overflows. */
static void test_large(void **state) {
    struct rig *t = *state;
    struct group_expert all = { .id = 3, .n = 1u << 30 };
    struct group g = { .n_expert_max = N_EXPERT, .n_expert = 1, .expert = &all };

    heat_add(&t->heat, 0, &g);
    heat_add(&t->heat, 0, &g);
    assert_true(t->heat.sum[0] < HEAT_AGE * K);
    assert_true(t->heat.n[3] >= HEAT_AGE / 2);
    assert_cold(t, 0, (const uint32_t[]){ 0, 1, 2, 4, 5, 6, 7, 8, 9 }, 9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nothing_used, setup, teardown),
        cmocka_unit_test_setup_teardown(test_by_use, setup, teardown),
        cmocka_unit_test_setup_teardown(test_share, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
