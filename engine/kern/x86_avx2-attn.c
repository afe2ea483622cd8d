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
typedef __m256i vi;

/* Of 16 registers 12 hold sums. */
enum { LANES = 8, WIDE_Q = 2, TALL_Q = 6, DOT_Q = 2, MIX_Q = 2, Q8_Q = 2, Q8_V = 2 };

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
#define vf_of            _mm256_cvtepi32_ps

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

INLINE void vf_to_f16(uint16_t *p, vf x) {
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
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

INLINE vi vi_key(const int8_t *p) {
    return _mm256_loadu_si256((const void *)p);
}

INLINE vi vi_start(int32_t s) {
    return _mm256_setzero_si256();
}

/* The product of signs goes to the query's codes, |key| stays unsigned: both are at most 127, so
 * that two products fit 16 bits. */
INLINE vi vi_dot(vi sum, vi key, int32_t code) {
    __m256i by = _mm256_sign_epi8(_mm256_set1_epi32(code), key);
    __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8(key), by);

    return _mm256_add_epi32(sum, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}

#include "engine/kern/attn-vec.inc"

void kern_attn_avx2(struct kern *k) {
    attn_use(k);
}
