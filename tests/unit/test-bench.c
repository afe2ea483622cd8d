/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "engine/tools/bench-stat.h"

static void near(double got, double want) {
    if (fabs(got - want) > 1e-12 * fmax(1, fabs(want)))
        fail_msg("%.17g, not %.17g", got, want);
}

static void test_quantile(void **state) {
    double odd[] = { 5, 1, 9, 3, 7 }, even[] = { 4, 1, 3, 2 }, one[] = { 6 };

    near(bench_quantile(odd, 5, 0.5), 5);
    near(bench_quantile(odd, 5, 0), 1);
    near(bench_quantile(odd, 5, 1), 9);
    near(bench_quantile(odd, 5, 0.1), 1.8);
    near(bench_quantile(odd, 5, 0.9), 8.2);
    near(bench_quantile(even, 4, 0.5), 2.5);
    near(bench_quantile(one, 1, 0.9), 6);
    near(bench_quantile(NULL, 0, 0.5), 0);
}

static double uniform(uint64_t *state) {
    return bench_random(state) / 4294967296.0;
}

/* All blocks alike leave nothing to doubt; few and wide ones leave the whole range. */
static void test_spread_edges(void **state) {
    double same[] = { 2, 2, 2, 2, 2, 2 }, two[] = { 3, 1 };
    struct bench_spread s;

    bench_spread(same, 6, &s);
    assert_int_equal(s.n, 6);
    near(s.median, 2);
    near(s.low, 2);
    near(s.high, 2);
    bench_spread(two, 2, &s);
    near(s.median, 2);
    near(s.p10, 1.2);
    near(s.p90, 2.8);
    near(s.low, 1);
    near(s.high, 3);
    bench_spread(NULL, 0, &s);
    assert_int_equal(s.n, 0);
    near(s.median, 0);
}

/* The interval holds the true median about 95 times in 100, and narrows as 1 / sqrt(n). */
static void test_spread_covers(void **state) {
    enum { N_TRIAL = 400, N = 25 };
    uint64_t rng = 7;
    double width[2] = { 0 };
    int hit = 0;

    for (int i = 0; i < N_TRIAL; i++) {
        double x[N];
        struct bench_spread s;

        for (int k = 0; k < N; k++)
            x[k] = uniform(&rng) + uniform(&rng);
        bench_spread(x, N, &s);
        assert_true(s.low <= s.median && s.median <= s.high);
        assert_true(s.p10 <= s.median && s.median <= s.p90);
        hit += s.low <= 1 && 1 <= s.high;
    }
    print_message("%d of %d intervals hold the median\n", hit, N_TRIAL);
    assert_in_range(hit, N_TRIAL * 88 / 100, N_TRIAL * 99 / 100);

    for (int wide = 0; wide < 2; wide++) {
        double x[400];
        struct bench_spread s;

        for (int k = 0; k < 400; k++)
            x[k] = uniform(&rng);
        bench_spread(x, wide ? 25 : 400, &s);
        width[wide] = s.high - s.low;
    }
    assert_true(width[0] < 0.7 * width[1]);
}

/* Every order of three comes up about as often, and nothing is lost. */
static void test_shuffle(void **state) {
    uint32_t seen[27] = { 0 };
    uint64_t rng = 1, again = 1;

    for (int i = 0; i < 6000; i++) {
        uint32_t x[] = { 0, 1, 2 }, y[] = { 0, 1, 2 };

        bench_shuffle(x, 3, &rng);
        bench_shuffle(y, 3, &again);
        assert_memory_equal(x, y, sizeof x);
        assert_int_equal(x[0] + x[1] + x[2], 3);
        seen[x[0] * 9 + x[1] * 3 + x[2]]++;
    }
    for (int i = 0; i < 27; i++)
        if (i / 9 != i / 3 % 3 && i / 9 != i % 3 && i / 3 % 3 != i % 3)
            assert_in_range(seen[i], 850, 1150);
        else
            assert_int_equal(seen[i], 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantile),
        cmocka_unit_test(test_spread_edges),
        cmocka_unit_test(test_spread_covers),
        cmocka_unit_test(test_shuffle),
    };

    return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
