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
typedef __m512i vi;

/* Of 32 registers 24 hold sums. */
enum { LANES = 16, WIDE_Q = 4, TALL_Q = 12, DOT_Q = 6, MIX_Q = 6, Q8_Q = 4, Q8_V = 2 };

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
#define vf_of            _mm512_cvtepi32_ps

INLINE vf vf_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}

INLINE vf vf_f16_set1(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)*p));
}

INLINE void vf_to_f16(uint16_t *p, vf x) {
    __m256i v = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);

    _mm256_storeu_si256((void *)p, v);
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

/* Keys become unsigned by 128. */
INLINE vi vi_key(const int8_t *p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x80));
}

INLINE vi vi_start(int32_t s) {
    return _mm512_set1_epi32(-128 * s);
}

INLINE vi vi_dot(vi sum, vi key, int32_t code) {
    return _mm512_dpbusd_epi32(sum, key, _mm512_set1_epi32(code));
}

#include "engine/kern/attn-vec.inc"

void kern_attn_avx512vnni(struct kern *k) {
    attn_use(k);
}
