/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bench-stat - what samples say: quantiles, and how far a median can be trusted
 *
 * Source: Efron, "Bootstrap methods: another look at the jackknife" (1979); Steele, Lea and Flood,
 *         "Fast splittable pseudorandom number generators" (2014).
 */

#include <stdint.h>

/* The next 32 random bits; *@state is any number at first, the same one gives the same bits. */
uint32_t bench_random(uint64_t *state);
/* Bring @x[@n] into a random order. */
void bench_shuffle(uint32_t *x, uint32_t n, uint64_t *state);

/* The @q-quantile of @x[@n], in any order, between neighbours by their distance; 0 when @n is 0.
 * Sorts @x. */
double bench_quantile(double *x, uint32_t n, double q);

struct bench_spread {
    uint32_t n;
    double median, p10, p90;
    double low, high; /* the median lies between with 95 % confidence, by bootstrap */
};

/* Of @x[@n], which gets sorted. All 0 when @n is 0. */
void bench_spread(double *x, uint32_t n, struct bench_spread *ret);
