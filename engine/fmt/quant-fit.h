/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * quant-fit - the scale searches behind the encoders of quant.c and quant-k.c
 *
 * A format writes an element as scale * code, or scale * code + min. Encoding is the choice of the
 * scale; each search tries the few scales under which the element of largest magnitude lands
 * exactly on a code, and keeps the one of least squared error. Values that are already on such a
 * grid are found again without error.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Codes lo ... hi; code q stands for value[q], which ascends, or for q where value is NULL. */
struct quant_grid {
    int lo, hi;
    const int8_t *value;
};

/* The code nearest to x / scale; the one nearest to 0 when @scale is 0. */
int quant_fit_code(const struct quant_grid *g, float x, float scale);

/* @x: [n]    @half: the scale is stored as f16; only such are tried
 * Return: the scale; 0 when every x is 0 or nothing is better. */
float quant_fit_scale(const struct quant_grid *g, const float *x, size_t n, bool half);

/* x ~ scale * q + min, q in 0 ... hi, scale >= 0, stored as two f16 */
void quant_fit_affine(int hi, const float *x, size_t n, float *ret_scale, float *ret_min);

/* x ~ scale * q - neg, q in 0 ... hi, both >= 0; smallest x at code 0 unless it is above 0 */
void quant_fit_below(int hi, const float *x, size_t n, float *ret_scale, float *ret_neg);
