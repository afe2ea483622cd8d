/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attention for AVX-512 with VNNI: attn-vec.inc on 16 lanes, and integer scores.
 */

#include <immintrin.h>
#include <string.h>

#include "engine/kern/attn.h"
#include "engine/kern/kern.h"

#define INLINE static inline __attribute__((always_inline))

typedef __m512 vf;

/* Of 32 registers 24 hold sums. */
enum { LANES = 16, WIDE_Q = 4, TALL_Q = 12, DOT_Q = 6, MIX_Q = 6 };

#define vf_zero()        _mm512_setzero_ps()
#define vf_set1(x_)      _mm512_set1_ps(x_)
#define vf_load(p_)      _mm512_loadu_ps(p_)
#define vf_store(p_, x_) _mm512_storeu_ps(p_, x_)
#define vf_mul           _mm512_mul_ps
#define vf_add           _mm512_add_ps
#define vf_sub           _mm512_sub_ps
#define vf_max           _mm512_max_ps
#define vf_fma           _mm512_fmadd_ps
#define vf_sum           _mm512_reduce_add_ps
#define vf_top           _mm512_reduce_max_ps
#define vf_exp2          _mm512_scalef_ps
#define vf_round(x_)     _mm512_roundscale_ps(x_, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

INLINE vf vf_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}

INLINE vf vf_f16_set1(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)*p));
}

INLINE vf vf_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}

INLINE vf vf_pick(vf x, vf other, uint32_t base, uint32_t lo, uint32_t hi) {
    uint64_t seen = ~UINT64_C(0) >> (KERN_KV_BLOCK - hi) & ~UINT64_C(0) << lo; /* lo < hi */

    return _mm512_mask_blend_ps((__mmask16)(seen >> base), other, x);
}

/* Pairs, fours, then the quarters of the register. */
INLINE void vf_sum4(vf a, vf b, vf c, vf d, float *to) {
    vf ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vf cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    vf s = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));

    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), r));
}

/* @n_t tiles from tile @t on, @n queries. Keys become unsigned by 128; the sums begin at -128
 * times the sum of the query's codes. */
INLINE void score_q8_part(const int8_t *key, const uint16_t *scale, uint32_t dim, uint32_t t,
                          const struct kern_rows *q, uint32_t m0, float *score, uint32_t n_t,
                          uint32_t n) {
    const __m512i high = _mm512_set1_epi8((char)0x80);
    __m512 sum[4][4];

#pragma GCC unroll 4
    for (uint32_t p = 0; p < n_t; p++)
#pragma GCC unroll 4
        for (uint32_t m = 0; m < n; m++)
            sum[p][m] = _mm512_setzero_ps();
    for (uint32_t b = 0; b < dim / 32; b++) {
        __m512i acc[4][4];

#pragma GCC unroll 4
        for (uint32_t m = 0; m < n; m++) {
            const int16_t *s = q->s + (m0 + m) * (q->q_stride / 16) + b * 2;

            acc[0][m] = _mm512_set1_epi32(-128 * (s[0] + s[1]));
#pragma GCC unroll 4
            for (uint32_t p = 1; p < n_t; p++)
                acc[p][m] = acc[0][m];
        }
#pragma GCC unroll 8
        for (uint32_t i = b * 8; i < b * 8 + 8; i++) {
            __m512i k[4];

#pragma GCC unroll 4
            for (uint32_t p = 0; p < n_t; p++)
                k[p] = _mm512_xor_si512(
                    _mm512_loadu_si512(key + ((size_t)(t + p) * (dim / 4) + i) * 64), high);
#pragma GCC unroll 4
            for (uint32_t m = 0; m < n; m++) {
                int32_t code;

                memcpy(&code, q->q + (m0 + m) * q->q_stride + i * 4, sizeof code);
#pragma GCC unroll 4
                for (uint32_t p = 0; p < n_t; p++)
                    acc[p][m] = _mm512_dpbusd_epi32(acc[p][m], k[p], _mm512_set1_epi32(code));
            }
        }
#pragma GCC unroll 4
        for (uint32_t p = 0; p < n_t; p++) {
            vf d = vf_f16(scale + ((size_t)(t + p) * (dim / 32) + b) * 16);

#pragma GCC unroll 4
            for (uint32_t m = 0; m < n; m++)
                sum[p][m] = _mm512_fmadd_ps(
                    _mm512_mul_ps(_mm512_set1_ps(q->d[(m0 + m) * (q->q_stride / 32) + b]), d),
                    _mm512_cvtepi32_ps(acc[p][m]), sum[p][m]);
        }
    }
#pragma GCC unroll 4
    for (uint32_t p = 0; p < n_t; p++)
#pragma GCC unroll 4
        for (uint32_t m = 0; m < n; m++)
            _mm512_storeu_ps(score + (size_t)(m0 + m) * KERN_KV_BLOCK + (t + p) * 16, sum[p][m]);
}

static void score_q8(const void *key, uint32_t dim, const struct kern_rows *q, float *score,
                     const void *next, size_t n_next) {
    const uint16_t *scale =
        (const uint16_t *)(const void *)((const uint8_t *)key + (size_t)KERN_KV_BLOCK * dim);
    uint32_t m = 0;

    for (size_t i = 0; next && i < n_next; i += 64)
        _mm_prefetch((const char *)next + i, _MM_HINT_T0);
    for (; m + 4 <= q->n_row; m += 4)
        for (uint32_t t = 0; t < 4; t += 2)
            score_q8_part(key, scale, dim, t, q, m, score, 2, 4);
    for (; m + 2 <= q->n_row; m += 2)
        score_q8_part(key, scale, dim, 0, q, m, score, 4, 2);
    for (; m < q->n_row; m++)
        score_q8_part(key, scale, dim, 0, q, m, score, 4, 1);
}

#include "engine/kern/attn-vec.inc"

void kern_attn_avx512vnni(struct kern *k) {
    attn_use(k);
}
