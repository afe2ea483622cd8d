/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attention for AArch64 with dot products: attn-vec.inc on 4 lanes, and integer scores.
 */

#include <arm_neon.h>
#include <string.h>

#include "engine/kern/attn.h"
#include "engine/kern/kern.h"

#define INLINE static inline __attribute__((always_inline))

typedef float32x4_t vf;
typedef int32x4_t vi;

/* Of 32 registers 24 hold sums. */
enum { LANES = 4, WIDE_Q = 6, TALL_Q = 12, DOT_Q = 4, MIX_Q = 6, Q8_Q = 2, Q8_V = 4 };

#define vf_zero()          vdupq_n_f32(0)
#define vf_set1(x_)        vdupq_n_f32(x_)
#define vf_load(p_)        vld1q_f32(p_)
#define vf_store(p_, x_)   vst1q_f32(p_, x_)
#define vf_mul             vmulq_f32
#define vf_add             vaddq_f32
#define vf_sub             vsubq_f32
#define vf_max             vmaxq_f32
#define vf_fma(a_, b_, c_) vfmaq_f32(c_, a_, b_)
#define vf_sum             vaddvq_f32
#define vf_top             vmaxvq_f32
#define vf_round           vrndnq_f32
#define vf_of              vcvtq_f32_s32

INLINE vf vf_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

INLINE vf vf_f16_set1(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*p)));
}

INLINE void vf_to_f16(uint16_t *p, vf x) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}

INLINE vf vf_i8(const int8_t *p) {
    int32_t v;

    memcpy(&v, p, sizeof v);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(v))))));
}

/* Adds n to the exponent: p is in [0.5, 2], n >= -126. */
INLINE vf vf_exp2(vf p, vf n) {
    return vreinterpretq_f32_s32(
        vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
}

INLINE vf vf_pick(vf x, vf other, uint32_t base, uint32_t lo, uint32_t hi) {
    static const uint32_t lanes[] = { 0, 1, 2, 3 };
    uint32x4_t lane = vaddq_u32(vld1q_u32(lanes), vdupq_n_u32(base));

    return vbslq_f32(vandq_u32(vcgeq_u32(lane, vdupq_n_u32(lo)), vcltq_u32(lane, vdupq_n_u32(hi))),
                     x, other);
}

INLINE void vf_sum4(vf a, vf b, vf c, vf d, float *to) {
    vst1q_f32(to, vaddq_f32(vld1q_f32(to), vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))));
}

INLINE vi vi_key(const int8_t *p) {
    return vreinterpretq_s32_s8(vld1q_s8(p));
}

INLINE vi vi_start(int32_t s) {
    return vdupq_n_s32(0);
}

INLINE vi vi_dot(vi sum, vi key, int32_t code) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(key), vreinterpretq_s8_s32(vdupq_n_s32(code)));
}

#include "engine/kern/attn-vec.inc"

void kern_attn_neon(struct kern *k) {
    attn_use(k);
}
