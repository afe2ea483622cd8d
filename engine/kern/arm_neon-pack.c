/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Packed weights in 128-bit registers, 4 rows side by side: one sdot is four columns of four rows.
 */

#include <arm_neon.h>
#include <stdbool.h>
#include <string.h>

#include "engine/kern/kern.h"
#include "engine/kern/pack.h"

#define INLINE PACK_INLINE
#define LAYOUT ".r4"

enum { R = 4, N_G = 4, SIGNED = 0, F_G = 4, F_M = 6, F_FEW = 1 };

typedef uint32x4_t vec;
typedef int32x4_t veci;
typedef float32x4_t vecf;

struct acc {
    vec sum;
};

INLINE vecf get_f16(const uint8_t *w, uint32_t at) {
    uint16x4_t h;

    memcpy(&h, w + R * at, sizeof h);

    return vcvt_f32_f16(vreinterpret_f16_u16(h));
}

INLINE vec get_u16(const uint8_t *w, uint32_t at) {
    uint16x4_t v;

    memcpy(&v, w + R * at, sizeof v);

    return vmovl_u16(v);
}

INLINE vec get_u8(const uint8_t *w, uint32_t at) {
    uint32_t v;

    memcpy(&v, w + R * at, sizeof v);

    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(v))));
}

INLINE vec get_i8(const uint8_t *w, uint32_t at) {
    uint32_t v;

    memcpy(&v, w + R * at, sizeof v);

    return vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(v)))));
}

INLINE vecf set_f(float v) {
    return vdupq_n_f32(v);
}

INLINE vecf fma_f(vecf a, vecf b, vecf c) {
    return vfmaq_f32(c, a, b);
}

INLINE vec weighted(const int16_t *s, int a, int b) {
    return vdupq_n_u32((uint32_t)(s[0] * a + s[1] * b));
}

INLINE vec look_up(const uint8_t *table, vec q) {
    return vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_u32(q)));
}

INLINE vec fifth(vec h, uint32_t v) {
    static const uint8_t word[16] = { 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12 };
    uint8x16_t at = vaddq_u8(vld1q_u8(word), vdupq_n_u8((uint8_t)(v / 2)));
    uint8x16_t bit = vreinterpretq_u8_u32(vdupq_n_u32(v % 2 ? 0x80402010 : 0x08040201));

    bit = vtstq_u8(vqtbl1q_u8(vreinterpretq_u8_u32(h), at), bit);

    return vreinterpretq_u32_u8(vandq_u8(bit, vdupq_n_u8(16)));
}

/* Codes of columns 4 @v to 4 @v + 3 times those of the step's activations @x, which are one lane
 * of 16: its number must be a constant. */
INLINE void dot(int n_16, uint32_t v, bool last, vec q, const int8_t *x, struct acc *p) {
    int8x16_t a = vld1q_s8(x + v / 4 * 16), w = vreinterpretq_s8_u32(q);
    int32x4_t s = vreinterpretq_s32_u32(p->sum);

    switch (v % 4) {
    case 0:
        s = vdotq_laneq_s32(s, w, a, 0);
        break;
    case 1:
        s = vdotq_laneq_s32(s, w, a, 1);
        break;
    case 2:
        s = vdotq_laneq_s32(s, w, a, 2);
        break;
    default:
        s = vdotq_laneq_s32(s, w, a, 3);
    }
    p->sum = vreinterpretq_u32_s32(s);
}

/* BF16 are the upper halves of floats. */
INLINE vecf get_bf16(const uint8_t *w) {
    return (vecf)(get_u16(w, 0) << 16);
}

#include "engine/kern/pack-float.inc"
#include "engine/kern/pack-vec.inc"

void kern_pack_neon(struct kern *k) {
    bind_packs(k);
}
