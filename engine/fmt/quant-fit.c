/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>

#include "engine/fmt/quant-fit.h"
#include "engine/fmt/quant.h"

static const float f16_max = 65504;

static float grid_value(const struct quant_grid *g, int q) {
    return g->value ? g->value[q] : (float)q;
}

int quant_fit_code(const struct quant_grid *g, float x, float scale) {
    float t = scale != 0 ? x / scale : 0;
    int q = g->lo;

    if (!g->value) /* clamped before it is converted: x / scale may be far out of int */
        return (int)lrintf(fminf(fmaxf(t, (float)g->lo), (float)g->hi));

    while (q < g->hi && t - grid_value(g, q) > grid_value(g, q + 1) - t)
        q++;
    return q;
}

/* As stored in a block. Scales out of range saturate: better a clipped block than one of NaN. */
static float half_of(float d) {
    return quant_f16(quant_to_f16(fminf(fmaxf(d, -f16_max), f16_max)));
}

static double scale_error(const struct quant_grid *g, const float *x, size_t n, float scale,
                          double limit) {
    double sum = 0;

    for (size_t i = 0; i < n && sum < limit; i++) {
        double e = x[i] - scale * grid_value(g, quant_fit_code(g, x[i], scale));

        sum += e * e;
    }
    return sum;
}

float quant_fit_scale(const struct quant_grid *g, const float *x, size_t n, bool half) {
    float top = 0, best = 0;
    double best_err = 0;

    for (size_t i = 0; i < n; i++) {
        best_err += (double)x[i] * x[i];
        if (fabsf(x[i]) > fabsf(top))
            top = x[i];
    }

    for (int q = g->lo; q <= g->hi; q++) {
        float v = grid_value(g, q), scale;
        double err;

        if (v == 0)
            continue;
        scale = half ? half_of(top / v) : top / v;
        err = scale_error(g, x, n, scale, best_err);
        if (err < best_err) {
            best = scale;
            best_err = err;
        }
    }
    return best;
}

static double affine_error(int hi, const float *x, size_t n, float scale, float min, double limit) {
    const struct quant_grid g = { 0, hi, NULL };
    double sum = 0;

    for (size_t i = 0; i < n && sum < limit; i++) {
        double e = x[i] - (scale * (float)quant_fit_code(&g, x[i] - min, scale) + min);

        sum += e * e;
    }
    return sum;
}

static void range(const float *x, size_t n, float *ret_min, float *ret_max) {
    *ret_min = *ret_max = x[0];
    for (size_t i = 1; i < n; i++) {
        *ret_min = fminf(*ret_min, x[i]);
        *ret_max = fmaxf(*ret_max, x[i]);
    }
}

void quant_fit_affine(int hi, const float *x, size_t n, float *ret_scale, float *ret_min) {
    double best_err = INFINITY;
    float min, max;

    range(x, n, &min, &max);
    /* code a for the smallest, b for the largest element; the usual 0 and hi first */
    for (int a = 0; a < hi; a++)
        for (int b = hi; b > a; b--) {
            float s = half_of(max / (float)(b - a) - min / (float)(b - a));
            float m = half_of(min - s * (float)a);
            double err = affine_error(hi, x, n, s, m, best_err);

            if (err < best_err) {
                *ret_scale = s;
                *ret_min = m;
                best_err = err;
            }
        }
}

void quant_fit_below(int hi, const float *x, size_t n, float *ret_scale, float *ret_neg) {
    double best_err = INFINITY;
    float min, max;

    range(x, n, &min, &max);
    min = fminf(min, 0);
    max = fmaxf(max, min);
    *ret_neg = -min;
    for (int b = hi; b > 0; b--) {
        float s = max / (float)b - min / (float)b;
        double err = affine_error(hi, x, n, s, min, best_err);

        if (err < best_err) {
            *ret_scale = s;
            best_err = err;
        }
    }
}
