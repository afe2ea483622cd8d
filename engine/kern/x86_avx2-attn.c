/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attention for AVX2: attn-vec.inc on 8 lanes, and integer scores.
 */

#include <immintrin.h>
#include <string.h>

#include "engine/kern/attn.h"
#include "engine/kern/kern.h"

#define INLINE static inline __attribute__((always_inline))

typedef __m256 vf;

/* Of 16 registers 12 hold sums. */
enum { LANES = 8, WIDE_Q = 2, TALL_Q = 6, DOT_Q = 2, MIX_Q = 2 };

#define vf_zero()        _mm256_setzero_ps()
#define vf_set1(x_)      _mm256_set1_ps(x_)
#define vf_load(p_)      _mm256_loadu_ps(p_)
#define vf_store(p_, x_) _mm256_storeu_ps(p_, x_)
#define vf_mul           _mm256_mul_ps
#define vf_add           _mm256_add_ps
#define vf_sub           _mm256_sub_ps
#define vf_max           _mm256_max_ps
#define vf_fma           _mm256_fmadd_ps
#define vf_round(x_)     _mm256_round_ps(x_, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

INLINE float vf_sum(vf x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

INLINE float vf_top(vf x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));

    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    s = _mm_max_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

INLINE vf vf_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}

INLINE vf vf_f16_set1(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_set1_epi16((short)*p));
}

INLINE vf vf_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}

/* Adds n to the exponent: p is in [0.5, 2], n >= -126. */
INLINE vf vf_exp2(vf p, vf n) {
    __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);

    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
}

INLINE vf vf_pick(vf x, vf other, uint32_t base, uint32_t lo, uint32_t hi) {
    const __m256i lane =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int)base));
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)hi), lane);
    __m256i seen = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)lo), lane), below);

    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(seen));
}

INLINE void vf_sum4(vf a, vf b, vf c, vf d, float *to) {
    vf s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));

    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), r));
}

/* 16 positions, @n queries. The product of signs goes to the query's codes, |key| stays unsigned:
 * both are at most 127, so that two products fit 16 bits. */
INLINE void score_q8_part(const int8_t *key, const uint16_t *scale, uint32_t dim, uint32_t t,
                          const struct kern_rows *q, uint32_t m0, float *score, uint32_t n) {
    const __m256i one = _mm256_set1_epi16(1);
    vf sum[2][2];

#pragma GCC unroll 2
    for (uint32_t m = 0; m < n; m++)
        sum[0][m] = sum[1][m] = vf_zero();
    for (uint32_t b = 0; b < dim / 32; b++) {
        __m256i acc[2][2];

#pragma GCC unroll 2
        for (uint32_t m = 0; m < n; m++)
            acc[0][m] = acc[1][m] = _mm256_setzero_si256();
        for (uint32_t i = b * 8; i < b * 8 + 8; i++)
#pragma GCC unroll 2
            for (uint32_t p = 0; p < 2; p++) {
                __m256i k = _mm256_loadu_si256(
                    (const void *)(key + ((size_t)t * (dim / 4) + i) * 64 + p * 32));
                __m256i size = _mm256_abs_epi8(k);

#pragma GCC unroll 2
                for (uint32_t m = 0; m < n; m++) {
                    int32_t code;

                    memcpy(&code, q->q + (m0 + m) * q->q_stride + i * 4, sizeof code);
                    acc[p][m] = _mm256_add_epi32(
                        acc[p][m],
                        _mm256_madd_epi16(_mm256_maddubs_epi16(
                                              size, _mm256_sign_epi8(_mm256_set1_epi32(code), k)),
                                          one));
                }
            }
#pragma GCC unroll 2
        for (uint32_t p = 0; p < 2; p++) {
            vf d = vf_f16(scale + ((size_t)t * (dim / 32) + b) * 16 + p * 8);

#pragma GCC unroll 2
            for (uint32_t m = 0; m < n; m++)
                sum[p][m] = vf_fma(vf_mul(vf_set1(q->d[(m0 + m) * (q->q_stride / 32) + b]), d),
                                   _mm256_cvtepi32_ps(acc[p][m]), sum[p][m]);
        }
    }
#pragma GCC unroll 2
    for (uint32_t m = 0; m < n; m++)
#pragma GCC unroll 2
        for (uint32_t p = 0; p < 2; p++)
            vf_store(score + (size_t)(m0 + m) * KERN_KV_BLOCK + t * 16 + p * 8, sum[p][m]);
}

static void score_q8(const void *key, uint32_t dim, const struct kern_rows *q, float *score,
                     const void *next, size_t n_next) {
    const uint16_t *scale =
        (const uint16_t *)(const void *)((const uint8_t *)key + (size_t)KERN_KV_BLOCK * dim);

    for (size_t i = 0; next && i < n_next; i += 64)
        _mm_prefetch((const char *)next + i, _MM_HINT_T0);
    for (uint32_t t = 0; t < 4; t++) {
        uint32_t m = 0;

        for (; m + 2 <= q->n_row; m += 2)
            score_q8_part(key, scale, dim, t, q, m, score, 2);
        if (m < q->n_row)
            score_q8_part(key, scale, dim, t, q, m, score, 1);
    }
}

#include "engine/kern/attn-vec.inc"

void kern_attn_avx2(struct kern *k) {
    attn_use(k);
}
