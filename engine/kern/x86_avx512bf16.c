/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AVX-512 with BF16: products of BF16 weights by vdpbf16ps, which takes both factors in BF16. So an
 * activation becomes two, x = high + low to 2^-18 of it; all else is the tier below.
 */

#include <immintrin.h>
#include <string.h>

#include "engine/kern/kern.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    N_R = 4,      /* weight rows of a tile */
    N_M = 3,      /* activation rows of a tile */
    N_CHUNK = 12, /* activation rows split at once */
    SPAN = 2048,  /* columns summed at once: those of N_R weight rows stay in the L1 */
    STEP = 32,    /* columns */
};

/* 32 activations */
struct pair {
    __m512i high, low;
};

/* 16 floats, those from @n on 0 */
INLINE __m512 load_16(const float *x, uint32_t n) {
    return _mm512_maskz_loadu_ps(n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1), x);
}

INLINE __m512i to_bf16(__m512 a, __m512 b) {
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

INLINE __m512 from_bf16(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

INLINE void split(const float *x, uint32_t n, struct pair *ret) {
    for (uint32_t k = 0; k < n; k += STEP, ret++) {
        __m512 a = load_16(x + k, n - k), b = load_16(x + k + 16, n - k < 16 ? 0 : n - k - 16);

        ret->high = to_bf16(a, b);
        a = _mm512_sub_ps(a, from_bf16(_mm512_castsi512_si256(ret->high)));
        b = _mm512_sub_ps(b, from_bf16(_mm512_extracti64x4_epi64(ret->high, 1)));
        ret->low = to_bf16(a, b);
    }
}

INLINE __m512 dot(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/* @n columns of @n_r weight rows times @n_m activation rows; added to @y unless @zero. */
INLINE void tile(const uint8_t *w, size_t w_stride, uint32_t n_r, uint32_t n,
                 const struct pair (*x)[SPAN / STEP], uint32_t n_m, bool zero, float *y,
                 size_t y_stride) {
    __m512 high[N_M][N_R], low[N_M][N_R];

    for (uint32_t i = 0; i < n_m * n_r; i++)
        high[i / n_r][i % n_r] = low[i / n_r][i % n_r] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < n; k += STEP) {
        __mmask32 mask = n - k < STEP ? (__mmask32)((1u << (n - k)) - 1) : 0xffffffff;

        for (uint32_t r = 0; r < n_r; r++) {
            __m512i v = _mm512_maskz_loadu_epi16(mask, w + r * w_stride + 2 * k);

            for (uint32_t m = 0; m < n_m; m++) {
                high[m][r] = dot(high[m][r], v, x[m][k / STEP].high);
                low[m][r] = dot(low[m][r], v, x[m][k / STEP].low);
            }
        }
    }
    for (uint32_t m = 0; m < n_m; m++)
        for (uint32_t r = 0; r < n_r; r++) {
            float sum = _mm512_reduce_add_ps(_mm512_add_ps(high[m][r], low[m][r]));

            y[m * y_stride + r] = zero ? sum : y[m * y_stride + r] + sum;
        }
}

/* Shapes the compiler keeps in registers; the order within a sum is the same in all. */
INLINE void tiles(const uint8_t *w, size_t w_stride, uint32_t n_r, uint32_t n,
                  const struct pair (*x)[SPAN / STEP], uint32_t n_m, bool zero, float *y,
                  size_t y_stride) {
    uint32_t m = 0;

    for (; n_r == N_R && m + N_M <= n_m; m += N_M)
        tile(w, w_stride, N_R, n, x + m, N_M, zero, y + m * y_stride, y_stride);
    for (; n_r == N_R && m < n_m; m++)
        tile(w, w_stride, N_R, n, x + m, 1, zero, y + m * y_stride, y_stride);
    for (; m < n_m; m++)
        tile(w, w_stride, n_r, n, x + m, 1, zero, y + m * y_stride, y_stride);
}

static void mul_bf16(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,
                     const struct kern_rows *x, float *y, size_t y_stride) {
    struct pair part[N_CHUNK][SPAN / STEP];

    for (uint32_t m0 = 0, n_m; m0 < x->n_row; m0 += n_m) {
        n_m = x->n_row - m0 < N_CHUNK ? x->n_row - m0 : N_CHUNK;
        for (uint32_t k = 0, n; k < n_col; k += n) {
            const uint8_t *from = (const uint8_t *)w + 2 * k;

            n = n_col - k < SPAN ? n_col - k : SPAN;
            for (uint32_t m = 0; m < n_m; m++)
                split(x->f + (m0 + m) * x->f_stride + k, n, part[m]);
            for (uint32_t o = 0; o < n_out; o += N_R)
                tiles(from + o * w_stride, w_stride, n_out - o < N_R ? n_out - o : N_R, n, part,
                      n_m, k == 0, y + m0 * y_stride + o, y_stride);
        }
    }
}

void kern_use_avx512bf16(struct kern *k) {
    k->mul[QUANT_BF16] = k->mul_exact[QUANT_BF16] = mul_bf16;
}
