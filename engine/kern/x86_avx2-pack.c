/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Packed weights in 256-bit registers, 8 rows side by side. x86_avxvnni.c includes this file and
 * has vpdpbusd; AVX2 alone makes i16 sums of two products, adds as many of them as can not
 * overflow, and widens.
 */

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "engine/kern/kern.h"
#include "engine/kern/pack.h"

#define INLINE PACK_INLINE

enum {
    R = 8,
    N_G = 2,
    F_G = 2, /* of 16 registers 12 hold sums of floats */
    F_M = 6,
    F_FEW = 2,
#ifdef __AVXVNNI__
    SIGNED = 128,
#else
    SIGNED = 0,
#endif
};

#define LAYOUT ".r8"

typedef uint32_t vec __attribute__((vector_size(4 * R)));
typedef int32_t veci __attribute__((vector_size(4 * R)));
typedef float vecf __attribute__((vector_size(4 * R)));

/* The sums; @pair holds the i16 ones that are not in @sum yet. */
struct acc {
    vec sum, pair;
};

INLINE vec spread(const void *p) {
    int v;

    memcpy(&v, p, sizeof v);

    return (vec)_mm256_set1_epi32(v);
}

INLINE vecf get_f16(const uint8_t *w, uint32_t at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)(w + R * at)));
}

INLINE vec get_u16(const uint8_t *w, uint32_t at) {
    return (vec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(w + R * at)));
}

INLINE vec get_u8(const uint8_t *w, uint32_t at) {
    return (vec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(w + R * at)));
}

INLINE vec get_i8(const uint8_t *w, uint32_t at) {
    return (vec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(w + R * at)));
}

INLINE vecf set_f(float v) {
    return _mm256_set1_ps(v);
}

INLINE vecf fma_f(vecf a, vecf b, vecf c) {
    return _mm256_fmadd_ps(a, b, c);
}

INLINE vec weighted(const int16_t *s, int a, int b) {
    return (vec)_mm256_madd_epi16((__m256i)spread(s),
                                  _mm256_set1_epi32(b * 0x10000 + (a & 0xffff)));
}

INLINE vec look_up(const uint8_t *table, vec q) {
    __m128i t = _mm_loadu_si128((const void *)table);

    return (vec)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), (__m256i)q);
}

INLINE vec fifth(vec h, uint32_t v) {
    const __m256i word = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                           0x08080808, 0x0c0c0c0c);
    __m256i bit = _mm256_set1_epi32(v % 2 ? (int)0x80402010 : 0x08040201);
    __m256i own = _mm256_add_epi8(word, _mm256_set1_epi8((char)(v / 2)));

    own = _mm256_and_si256(_mm256_shuffle_epi8((__m256i)h, own), bit);
    own = _mm256_and_si256(_mm256_cmpeq_epi8(own, bit), _mm256_set1_epi8(16));

    return (vec)own;
}

/* Codes of columns 4 @v to 4 @v + 3 times those of the step's activations @x. */
INLINE void dot(int n_16, uint32_t v, bool last, vec q, const int8_t *x, struct acc *p) {
    __m256i a = (__m256i)spread(x + 4 * v);

#ifdef __AVXVNNI__
    p->sum = (vec)_mm256_dpbusd_avx_epi32((__m256i)p->sum, (__m256i)q, a);
#else
    uint32_t at = v % (uint32_t)n_16;
    __m256i t = n_16 > 1 ? _mm256_maddubs_epi16((__m256i)q, a)
                         : _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)q),
                                                _mm256_sign_epi8(a, (__m256i)q));

    p->pair = at ? (vec)_mm256_add_epi16((__m256i)p->pair, t) : (vec)t;
    if (last || at == (uint32_t)n_16 - 1)
        p->sum += (vec)_mm256_madd_epi16((__m256i)p->pair, _mm256_set1_epi16(1));
#endif
}

/* BF16 are the upper halves of floats. */
INLINE vecf get_bf16(const uint8_t *w) {
    return (vecf)(get_u16(w, 0) << 16);
}

#include "engine/kern/pack-float.inc"
#include "engine/kern/pack-vec.inc"

#ifndef __AVXVNNI__
void kern_pack_avx2(struct kern *k) {
    bind_packs(k);
}
#endif
