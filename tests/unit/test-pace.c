/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "engine/sched/pace.h"

enum { BOUND = 250000 };

/* A machine: a step costs @base, every row @row, and nobody tells the pace. */
static uint64_t machine(double base, double row, uint32_t n) {
    return (uint64_t)(base + row * n);
}

/* Prompt rows of the @n-th step beside @n_single streams; *ret_worst: the longest step after the
 * tenth. */
static uint32_t converge(struct pace *p, uint32_t n_single, double base, double row,
                         uint64_t *ret_worst) {
    uint32_t room = 0;

    *ret_worst = 0;
    for (int i = 0; i < 60; i++) {
        uint64_t t;

        room = pace_room(p, n_single);
        t = machine(base, row, n_single + room);
        pace_note(p, n_single, room, t);
        if (i >= 10 && t > *ret_worst)
            *ret_worst = t;
    }
    return room;
}

/* Steps fill most of the bound and keep to it, whatever the machine, known before or not. */
static void test_bound(void **state) {
    static const double row[] = { 100, 1000, 5000, 12000 };

    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++)
        for (int known = 0; known < 2; known++) {
            double base = 20 * row[i] < 60000 ? 20 * row[i] : 60000;
            uint64_t worst;
            struct pace p;

            pace_init(&p, BOUND);
            assert_int_equal(pace_room(&p, 4), PACE_FIRST);
            if (known)
                pace_note(&p, 4, 0, machine(base, row[i], 4));
            uint32_t n = converge(&p, 4, base, row[i], &worst);

            assert_true(worst <= BOUND);
            assert_true(machine(base, row[i], 4 + n) >= BOUND / 2);
        }
}

/* What was believed before was wrong, either way. */
static void test_adapts(void **state) {
    uint64_t worst;
    struct pace p;

    pace_init(&p, BOUND);
    pace_note(&p, 4, 0, 30000);
    (void)converge(&p, 4, 20000, 2000, &worst);
    (void)converge(&p, 4, 20000, 8000, &worst); /* slower */
    assert_true(worst <= BOUND);
    assert_true(machine(20000, 8000, 4 + pace_room(&p, 4)) >= BOUND / 2);
    pace_note(&p, 4, 0, 900000); /* one that was not the model's fault */
    (void)converge(&p, 4, 20000, 2000, &worst);
    assert_true(worst <= BOUND);
    assert_true(machine(20000, 2000, 4 + pace_room(&p, 4)) >= BOUND / 2);
}

/* A machine too slow for the bound still goes on. */
static void test_slow(void **state) {
    uint64_t worst;
    struct pace p;

    pace_init(&p, BOUND);
    assert_int_equal(converge(&p, 4, 400000, 50000, &worst), PACE_MIN);
}

static void test_costs(void **state) {
    struct pace p;

    pace_init(&p, BOUND);
    assert_true(pace_single_cost(&p, 3) > 0 && pace_prompt_cost(&p) > 0);
    pace_note(&p, 2, 0, 1000);
    assert_true(pace_single(&p, 2) == 1000 && pace_single(&p, 3) == 1000);
    assert_true(pace_single_cost(&p, 2) == 500);
    assert_true(pace_single(&p, 4) == 2000); /* as if rows added up, until it is known */
    assert_true(pace_single(&p, 1) == 1000);
    assert_true(pace_single(&p, 0) == 0);
    pace_note(&p, 5, 0, 1500);
    assert_true(pace_single(&p, 4) == 1500);
    pace_note(&p, 5, 0, 3000); /* slower at once, faster by and by */
    assert_true(pace_single(&p, 4) == 3000);
    pace_note(&p, 5, 0, 1000);
    assert_true(pace_single(&p, 4) == 2500);
    pace_note(&p, 2, 10, 3000);
    assert_true(pace_prompt_cost(&p) == 200);
    pace_note(&p, 100000, 0, 9000);
    assert_true(pace_single(&p, 70000) == 9000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_adapts),
        cmocka_unit_test(test_slow),
        cmocka_unit_test(test_costs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
