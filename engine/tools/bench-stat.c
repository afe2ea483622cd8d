/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/tools/bench-stat.h"

#include <stdlib.h>

enum { N_RESAMPLE = 2000 };

uint32_t bench_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (uint32_t)(z >> 32);
}

static uint32_t below(uint32_t n, uint64_t *state) {
    return (uint32_t)((uint64_t)bench_random(state) * n >> 32);
}

void bench_shuffle(uint32_t *x, uint32_t n, uint64_t *state) {
    for (uint32_t i = n; i > 1; i--) {
        uint32_t k = below(i, state), t = x[i - 1];

        x[i - 1] = x[k];
        x[k] = t;
    }
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double sorted_quantile(const double *x, uint32_t n, double q) {
    double at = q * (n - 1);
    uint32_t i = (uint32_t)at;

    return i + 1 < n ? x[i] + (at - i) * (x[i + 1] - x[i]) : x[n - 1];
}

double bench_quantile(double *x, uint32_t n, double q) {
    if (n == 0)
        return 0;
    qsort(x, n, sizeof *x, compare);
    return sorted_quantile(x, n, q);
}

/* Since @x is sorted, so is a resample once it is known how often each index was drawn. */
static double resampled_median(const double *x, uint32_t n, uint32_t *count, uint64_t *state) {
    double mid[2] = { 0 };
    uint32_t seen = 0;

    for (uint32_t i = 0; i < n; i++)
        count[i] = 0;
    for (uint32_t i = 0; i < n; i++)
        count[below(n, state)]++;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t end = seen + count[i];

        if (seen <= (n - 1) / 2 && (n - 1) / 2 < end)
            mid[0] = x[i];
        if (seen <= n / 2 && n / 2 < end)
            mid[1] = x[i];
        seen = end;
    }
    return (mid[0] + mid[1]) / 2;
}

void bench_spread(double *x, uint32_t n, struct bench_spread *ret) {
    static double median[N_RESAMPLE];
    uint32_t *count;
    uint64_t state = n;

    *ret = (struct bench_spread){ .n = n };
    if (n == 0)
        return;
    ret->median = bench_quantile(x, n, 0.5);
    ret->p10 = sorted_quantile(x, n, 0.1);
    ret->p90 = sorted_quantile(x, n, 0.9);
    ret->low = x[0];
    ret->high = x[n - 1];

    count = malloc(n * sizeof *count);
    if (!count)
        return; /* the whole range is true, if less sharp */
    for (uint32_t i = 0; i < N_RESAMPLE; i++)
        median[i] = resampled_median(x, n, count, &state);
    free(count);
    ret->low = bench_quantile(median, N_RESAMPLE, 0.025);
    ret->high = sorted_quantile(median, N_RESAMPLE, 0.975);
}
