/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Packed float weights in 512-bit registers, 16 rows side by side: pack-float.inc.
 */

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "engine/kern/kern.h"
#include "engine/kern/pack.h"

#define INLINE PACK_INLINE

/* Of 32 registers 24 hold sums. */
enum { R = 16, F_G = 2, F_M = 12, F_FEW = 3 };

#define LAYOUT ".r16"

typedef float vecf __attribute__((vector_size(4 * R)));

INLINE vecf set_f(float v) {
    return (vecf)_mm512_set1_ps(v);
}

INLINE vecf fma_f(vecf a, vecf b, vecf c) {
    return (vecf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

INLINE vecf get_f16(const uint8_t *w, uint32_t at) {
    return (vecf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)(w + R * at)));
}

INLINE vecf get_bf16(const uint8_t *w) {
    __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)w));

    return (vecf)_mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

#include "engine/kern/pack-float.inc"

void kern_float_avx512vnni(struct kern *k) {
    bind_floats(k);
}
