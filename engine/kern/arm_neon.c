/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AArch64 with the dot product instructions. Formats that are not here stay with generic.c.
 *
 * Weights are unpacked 256 elements at a time to i8; one sdot of 16 codes gives four i32 sums, and
 * a scale for each 16 elements fits every format.
 */

#include <arm_neon.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "engine/kern/kern.h"
#include "engine/kern/pack.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    N_R = 4, /* weight rows that share one look at the activations */
    N_M = 4, /* activation rows that share one unpacked unit */

    UNIT = 256,
    UNIT_BYTES = 272, /* of eight blocks of 32, at most: Q8_0 */
};

/* element e = d[e / 64][e / 16 % 4] * q[e / 16][e % 16] + m[..][..] */
struct unit {
    int8x16_t q[16];
    float32x4_t d[4];
    float32x4_t m[4];
};

/* One activation row, the part that meets a unit. */
struct act {
    const int8_t *q;
    float32x4_t d[4]; /* for each 16 */
    float32x4_t s[4]; /* d * sum of 16 */
};

typedef void unpack_fn(const uint8_t *w, struct unit *u);

/* What the compiler must know about a format to make one loop of it. */
struct form {
    unpack_fn *unpack;
    bool has_m;     /* else m is 0 */
    uint32_t block; /* bytes of 32 elements when those are a block, else 0 */
    uint32_t unit;  /* bytes of 256 elements */
};

INLINE uint16_t load16(const void *p) {
    uint16_t v;

    memcpy(&v, p, sizeof v);

    return v;
}

INLINE uint32_t load32(const void *p) {
    uint32_t v;

    memcpy(&v, p, sizeof v);

    return v;
}

INLINE float f16(const uint8_t *p) {
    return quant_f16(load16(p));
}

/* ---- unpacking: one function a format ---- */

/* Eight values, one for each 32 elements, to one for each 16. */
INLINE void each_16(float32x4_t a, float32x4_t b, float32x4_t ret[4]) {
    ret[0] = vzip1q_f32(a, a);
    ret[1] = vzip2q_f32(a, a);
    ret[2] = vzip1q_f32(b, b);
    ret[3] = vzip2q_f32(b, b);
}

/* An f16 of each of eight blocks. */
INLINE void f16_of_8(const uint8_t *w, size_t step, float32x4_t ret[4]) {
    uint16_t h[8];
    float16x8_t v;

    for (size_t j = 0; j < 8; j++)
        h[j] = load16(w + j * step);
    v = vreinterpretq_f16_u16(vld1q_u16(h));
    each_16(vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v), ret);
}

/* 16 bytes: low nibbles, then high ones, of the unsigned codes. */
INLINE void nibbles(const uint8_t *w, uint8x16_t ret[2]) {
    uint8x16_t v = vld1q_u8(w);

    ret[0] = vandq_u8(v, vdupq_n_u8(15));
    ret[1] = vshrq_n_u8(v, 4);
}

INLINE int8x16_t less(uint8x16_t v, int offset) {
    return vsubq_s8(vreinterpretq_s8_u8(v), vdupq_n_s8((int8_t)offset));
}

/* Bit j of the 16 -> 16 in byte j. */
INLINE uint8x16_t fifth_bits(const uint8_t *w) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    uint8x16_t h = vcombine_u8(vdup_n_u8(w[0]), vdup_n_u8(w[1]));

    return vandq_u8(vtstq_u8(h, bit), vdupq_n_u8(16));
}

INLINE void unpack_4(const uint8_t *w, size_t step, int offset, struct unit *u) {
    for (size_t j = 0; j < 8; j++) {
        uint8x16_t v[2];

        nibbles(w + j * step, v);
        u->q[2 * j] = less(v[0], offset);
        u->q[2 * j + 1] = less(v[1], offset);
    }
}

/* @w: the codes, with the fifth bits in the four bytes before them. */
INLINE void unpack_5(const uint8_t *w, size_t step, int offset, struct unit *u) {
    for (size_t j = 0; j < 8; j++, w += step) {
        uint8x16_t v[2];

        nibbles(w, v);
        u->q[2 * j] = less(vorrq_u8(v[0], fifth_bits(w - 4)), offset);
        u->q[2 * j + 1] = less(vorrq_u8(v[1], fifth_bits(w - 2)), offset);
    }
}

INLINE void unpack_q4_0(const uint8_t *w, struct unit *u) {
    unpack_4(w + 2, 18, 8, u);
    f16_of_8(w, 18, u->d);
}

INLINE void unpack_q4_1(const uint8_t *w, struct unit *u) {
    unpack_4(w + 4, 20, 0, u);
    f16_of_8(w, 20, u->d);
    f16_of_8(w + 2, 20, u->m);
}

INLINE void unpack_q5_0(const uint8_t *w, struct unit *u) {
    unpack_5(w + 6, 22, 16, u);
    f16_of_8(w, 22, u->d);
}

INLINE void unpack_q5_1(const uint8_t *w, struct unit *u) {
    unpack_5(w + 8, 24, 0, u);
    f16_of_8(w, 24, u->d);
    f16_of_8(w + 2, 24, u->m);
}

INLINE void unpack_q8_0(const uint8_t *w, struct unit *u) {
    for (size_t j = 0; j < 8; j++) {
        u->q[2 * j] = vld1q_s8((const int8_t *)w + 34 * j + 2);
        u->q[2 * j + 1] = vld1q_s8((const int8_t *)w + 34 * j + 18);
    }
    f16_of_8(w, 34, u->d);
}

INLINE void unpack_iq4(const uint8_t *w, size_t step, struct unit *u) {
    static const int8_t code[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113 };
    int8x16_t table = vld1q_s8(code);

    for (size_t j = 0; j < 8; j++) {
        uint8x16_t v[2];

        nibbles(w + j * step, v);
        u->q[2 * j] = vqtbl1q_s8(table, v[0]);
        u->q[2 * j + 1] = vqtbl1q_s8(table, v[1]);
    }
}

INLINE void unpack_iq4_nl(const uint8_t *w, struct unit *u) {
    unpack_iq4(w + 2, 18, u);
    f16_of_8(w, 18, u->d);
}

INLINE void unpack_iq4_xs(const uint8_t *w, struct unit *u) {
    float d[8];

    unpack_iq4(w + 8, 16, u);
    for (int j = 0; j < 8; j++) {
        uint32_t low = load32(w + 4) >> 4 * j & 15, high = (uint32_t)load16(w + 2) >> 2 * j & 3;

        d[j] = f16(w) * (float)((int)(low | high << 4) - 32);
    }
    each_16(vld1q_f32(d), vld1q_f32(d + 4), u->d);
}

/* Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minima in 12 bytes. */
INLINE void scale_k4(const uint8_t *w, struct unit *u) {
    const uint8_t *t = w + 4;
    float d[8], m[8];

    for (int j = 0; j < 4; j++) {
        d[j] = f16(w) * (float)(t[j] & 63);
        m[j] = -f16(w + 2) * (float)(t[j + 4] & 63);
        d[j + 4] = f16(w) * (float)((t[j + 8] & 15) | t[j] >> 6 << 4);
        m[j + 4] = -f16(w + 2) * (float)(t[j + 8] >> 4 | t[j + 4] >> 6 << 4);
    }
    each_16(vld1q_f32(d), vld1q_f32(d + 4), u->d);
    each_16(vld1q_f32(m), vld1q_f32(m + 4), u->m);
}

INLINE void unpack_q4_k(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++) { /* 32 bytes hold 64 elements: low nibbles, then high ones */
        uint8x16_t v[2];

        nibbles(w + 16 + 16 * j, v);
        u->q[j / 2 * 4 + j % 2] = vreinterpretq_s8_u8(v[0]);
        u->q[j / 2 * 4 + j % 2 + 2] = vreinterpretq_s8_u8(v[1]);
    }
    scale_k4(w, u);
}

INLINE void unpack_q5_k(const uint8_t *w, struct unit *u) {
    const uint8x16_t bit = vdupq_n_u8(16);

    for (int j = 0; j < 8; j++) {
        uint8x16_t h = vld1q_u8(w + 16 + j % 2 * 16), v[2];
        uint8x16_t low = vtstq_u8(h, vdupq_n_u8((uint8_t)(1 << j / 2 * 2)));
        uint8x16_t high = vtstq_u8(h, vdupq_n_u8((uint8_t)(2 << j / 2 * 2)));

        nibbles(w + 48 + 16 * j, v);
        u->q[j / 2 * 4 + j % 2] = vreinterpretq_s8_u8(vorrq_u8(v[0], vandq_u8(low, bit)));
        u->q[j / 2 * 4 + j % 2 + 2] = vreinterpretq_s8_u8(vorrq_u8(v[1], vandq_u8(high, bit)));
    }
    scale_k4(w, u);
}

INLINE void unpack_q6_k(const uint8_t *w, struct unit *u) {
    int8x16_t t = vld1q_s8((const int8_t *)w + 192);
    int16x8_t a = vmovl_s8(vget_low_s8(t)), b = vmovl_high_s8(t);
    float d = f16(w + 208);

    for (int j = 0; j < 8; j++) { /* of each half: 64 bytes of nibbles, 32 bytes of four pairs */
        uint8x16_t h = vld1q_u8(w + 128 + j / 4 * 32 + j % 2 * 16), v[2], mask = vdupq_n_u8(0x30);
        int at = j / 4 * 8 + j % 4;

        nibbles(w + 16 * j, v);
        h = j % 4 < 2 ? h : vshrq_n_u8(h, 2);
        u->q[at] = less(vorrq_u8(v[0], vandq_u8(vshlq_n_u8(h, 4), mask)), 32);
        u->q[at + 4] = less(vorrq_u8(v[1], vandq_u8(h, mask)), 32);
    }
    u->d[0] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))), d);
    u->d[1] = vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(a)), d);
    u->d[2] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))), d);
    u->d[3] = vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(b)), d);
}

/* ---- quantised weights, int8 activations ---- */

INLINE void act_load(struct form f, const struct kern_rows *x, uint32_t m, size_t k,
                     struct act *ret) {
    const int16_t *s = x->s + (m * x->q_stride + k) / KERN_Q8_SUM;
    const float *d = x->d + (m * x->q_stride + k) / KERN_Q8_BLOCK;

    ret->q = x->q + m * x->q_stride + k;
    each_16(vld1q_f32(d), vld1q_f32(d + 4), ret->d);
    if (f.has_m)
        for (int i = 0; i < 4; i++)
            ret->s[i] = vmulq_f32(ret->d[i], vcvtq_f32_s32(vmovl_s16(vld1_s16(s + 4 * i))));
}

INLINE float32x4_t dot_16(const struct unit *u, const struct act *a, int i) {
    return vcvtq_f32_s32(vdotq_s32(vdupq_n_s32(0), u->q[i], vld1q_s8(a->q + 16 * i)));
}

/* Four partial sums of a unit times an activation row. */
INLINE float32x4_t tile(struct form f, const struct unit *u, const struct act *a) {
    float32x4_t sum = vdupq_n_f32(0);

    for (int i = 0; i < 4; i++) {
        float32x4_t d = vmulq_f32(u->d[i], a->d[i]);

        if (f.has_m)
            sum = vfmaq_f32(sum, u->m[i], a->s[i]);
        sum = vfmaq_laneq_f32(sum, dot_16(u, a, 4 * i), d, 0);
        sum = vfmaq_laneq_f32(sum, dot_16(u, a, 4 * i + 1), d, 1);
        sum = vfmaq_laneq_f32(sum, dot_16(u, a, 4 * i + 2), d, 2);
        sum = vfmaq_laneq_f32(sum, dot_16(u, a, 4 * i + 3), d, 3);
    }

    return sum;
}

/* The unit at element @k of a row; a part of one is completed with zeros. */
INLINE const uint8_t *unit_at(struct form f, const uint8_t *row, uint32_t k, uint32_t n_col,
                              uint8_t *tail) {
    const uint8_t *w = row + k / UNIT * f.unit;

    if (!f.block || n_col - k >= UNIT)
        return w;
    memset(tail, 0, f.unit);
    memcpy(tail, w, (n_col - k) / 32 * f.block);

    return tail;
}

INLINE void mul_tile(struct form f, const uint8_t *w, size_t w_stride, uint32_t n_r, uint32_t n_col,
                     const struct kern_rows *x, uint32_t m0, uint32_t n_m, float *y,
                     size_t y_stride) {
    float32x4_t sum[N_R][N_M];
    uint8_t tail[UNIT_BYTES];

    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t m = 0; m < n_m; m++)
            sum[r][m] = vdupq_n_f32(0);
    for (uint32_t k = 0; k < n_col; k += UNIT) {
        struct act a[N_M];

        for (uint32_t m = 0; m < n_m; m++)
            act_load(f, x, m0 + m, k, &a[m]);
        for (uint32_t r = 0; r < n_r; r++) {
            struct unit u;

            f.unpack(unit_at(f, w + r * w_stride, k, n_col, tail), &u);
            for (uint32_t m = 0; m < n_m; m++)
                sum[r][m] = vaddq_f32(sum[r][m], tile(f, &u, &a[m]));
        }
    }
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t m = 0; m < n_m; m++)
            y[(m0 + m) * y_stride + r] = vaddvq_f32(sum[r][m]);
}

INLINE void mul_quant(struct form f, const uint8_t *w, size_t w_stride, uint32_t n_out,
                      uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    for (uint32_t o = 0; o < n_out; o += N_R) {
        uint32_t n_r = n_out - o < N_R ? n_out - o : N_R;

        for (uint32_t m = 0; m < x->n_row; m += N_M) {
            uint32_t n_m = x->n_row - m < N_M ? x->n_row - m : N_M;

            if (n_m == 1)
                mul_tile(f, w + o * w_stride, w_stride, n_r, n_col, x, m, 1, y + o, y_stride);
            else
                mul_tile(f, w + o * w_stride, w_stride, n_r, n_col, x, m, n_m, y + o, y_stride);
        }
    }
}

#define QUANT_ENTRY(fmt, HAS_M, BLOCK, BYTES)                                                      \
    static const struct form form_##fmt = { unpack_##fmt, HAS_M, BLOCK, BYTES };                   \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        mul_quant(form_##fmt, w, w_stride, n_out, n_col, x, y, y_stride);                          \
    }

/* clang-format off */
QUANT_ENTRY(q4_0,   false, 18, 144)
QUANT_ENTRY(q4_1,   true,  20, 160)
QUANT_ENTRY(q5_0,   false, 22, 176)
QUANT_ENTRY(q5_1,   true,  24, 192)
QUANT_ENTRY(q8_0,   false, 34, 272)
QUANT_ENTRY(q4_k,   true,  0,  144)
QUANT_ENTRY(q5_k,   true,  0,  176)
QUANT_ENTRY(q6_k,   false, 0,  210)
QUANT_ENTRY(iq4_nl, false, 18, 144)
QUANT_ENTRY(iq4_xs, false, 0,  136)
/* clang-format on */

/* ---- float rows ---- */

typedef float32x4_t load_fn(const uint8_t *w, size_t i);

INLINE float32x4_t load_f32(const uint8_t *w, size_t i) {
    return vld1q_f32((const float *)(const void *)w + i);
}

INLINE float32x4_t load_f16(const uint8_t *w, size_t i) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)(const void *)w + i)));
}

INLINE float32x4_t load_bf16(const uint8_t *w, size_t i) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)(const void *)w + i), 16));
}

/* Fewer than four elements, zeros behind them. */
INLINE float32x4_t load_part(load_fn *load, size_t size, const void *w, size_t n) {
    uint8_t part[16] = { 0 };

    memcpy(part, w, n * size);

    return load(part, 0);
}

INLINE float dot_row(load_fn *load, size_t size, const uint8_t *a, const float *b, size_t n) {
    float32x4_t sum[4];
    size_t i = 0;

    for (int j = 0; j < 4; j++)
        sum[j] = vdupq_n_f32(0);
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 4; j++)
            sum[j] = vfmaq_f32(sum[j], load(a, i + 4 * j), vld1q_f32(b + i + 4 * j));
    for (; i + 4 <= n; i += 4)
        sum[0] = vfmaq_f32(sum[0], load(a, i), vld1q_f32(b + i));
    if (i < n)
        sum[1] = vfmaq_f32(sum[1], load_part(load, size, a + i * size, n - i),
                           load_part(load_f32, sizeof *b, b + i, n - i));

    return vaddvq_f32(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

#define ROW_ENTRIES(fmt, type)                                                                     \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        for (uint32_t o = 0; o < n_out; o++)                                                       \
            for (uint32_t m = 0; m < x->n_row; m++)                                                \
                y[m * y_stride + o] =                                                              \
                    dot_row(load_##fmt, sizeof(type), (const uint8_t *)w + o * w_stride,           \
                            x->f + m * x->f_stride, n_col);                                        \
    }

ROW_ENTRIES(f32, float)
ROW_ENTRIES(f16, uint16_t)
ROW_ENTRIES(bf16, uint16_t)

static void axpy(float s, const float *x, float *y, size_t n) {
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        vst1q_f32(y + i, vfmaq_n_f32(vld1q_f32(y + i), vld1q_f32(x + i), s));
    for (; i < n; i++)
        y[i] += s * x[i];
}

/* Bit for bit what generic.c does: maxnm turns a NaN into the bound, cvtn rounds to even. */
INLINE void quantize_32(const float32x4_t x[8], int8_t *q, float *d, int16_t *s) {
    const uint32x4_t plus = vdupq_n_u32(0x7fffffff);
    uint32x4_t max = vandq_u32(vreinterpretq_u32_f32(x[0]), plus);
    int16x4_t v[8];
    uint32_t top;
    float most, inverse;

    for (int i = 1; i < 8; i++)
        max = vmaxq_u32(max, vandq_u32(vreinterpretq_u32_f32(x[i]), plus));
    top = vmaxvq_u32(max);
    memcpy(&most, &top, sizeof most);

    *d = most < KERN_Q8_TINY ? 0 : most / 127;
    inverse = most < KERN_Q8_TINY ? 0 : 127 / most;
    for (int i = 0; i < 8; i++) {
        float32x4_t f = vmaxnmq_f32(vmulq_n_f32(x[i], inverse), vdupq_n_f32(-127));

        v[i] = vmovn_s32(vcvtnq_s32_f32(vminq_f32(f, vdupq_n_f32(127))));
    }
    for (int h = 0; h < 2; h++) {
        int8x16_t b = vcombine_s8(vmovn_s16(vcombine_s16(v[4 * h], v[4 * h + 1])),
                                  vmovn_s16(vcombine_s16(v[4 * h + 2], v[4 * h + 3])));

        vst1q_s8(q + 16 * h, b);
        s[h] = vaddlvq_s8(b);
    }
}

static void quantize(const float *x, size_t n, int8_t *q, float *d, int16_t *s) {
    size_t n_pad = (n + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;

    for (size_t k = 0; k < n_pad; k += KERN_Q8_BLOCK) {
        float32x4_t v[8];

        for (size_t i = 0; i < 8; i++) {
            size_t at = k + 4 * i;

            v[i] = at + 4 <= n ? vld1q_f32(x + at)
                   : at < n    ? load_part(load_f32, sizeof *x, x + at, n - at)
                               : vdupq_n_f32(0);
        }
        quantize_32(v, q + k, d + k / KERN_Q8_BLOCK, s + k / KERN_Q8_SUM);
    }
}

static void rmsnorm(const float *x, const float *w, float eps, float *y, size_t n) {
    float64x2_t pair[2] = { vdupq_n_f64(0), vdupq_n_f64(0) };
    double sum;
    float by;
    size_t i = 0;

    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vld1q_f32(x + i);
        float64x2_t a = vcvt_f64_f32(vget_low_f32(v)), b = vcvt_high_f64_f32(v);

        pair[0] = vfmaq_f64(pair[0], a, a);
        pair[1] = vfmaq_f64(pair[1], b, b);
    }
    sum = vaddvq_f64(vaddq_f64(pair[0], pair[1]));
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];

    by = (float)(1 / sqrt(sum / (double)n + (double)eps));
    for (i = 0; i + 4 <= n; i += 4) {
        float32x4_t v = vmulq_n_f32(vld1q_f32(x + i), by);

        vst1q_f32(y + i, w ? vmulq_f32(v, vld1q_f32(w + i)) : v);
    }
    for (; i < n; i++)
        y[i] = x[i] * by * (w ? w[i] : 1);
}

static void rope(float *x, const float *cs, size_t n) {
    size_t half = n / 2, i = 0;

    for (; i + 4 <= half; i += 4) {
        float32x4x2_t t = vld2q_f32(cs + 2 * i); /* cosines, sines */
        float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + i + half);

        vst1q_f32(x + i, vfmsq_f32(vmulq_f32(a, t.val[0]), b, t.val[1]));
        vst1q_f32(x + i + half, vfmaq_f32(vmulq_f32(a, t.val[1]), b, t.val[0]));
    }
    for (; i < half; i++) {
        float a = x[i], b = x[i + half];

        x[i] = a * cs[2 * i] - b * cs[2 * i + 1];
        x[i + half] = a * cs[2 * i + 1] + b * cs[2 * i];
    }
}

#define BIND_ROW(FMT, fmt) k->mul[FMT] = k->mul_exact[FMT] = mul_##fmt

/* What the registers hold does not matter. */
static uint64_t peak(uint32_t n) {
    for (uint32_t i = 0; i < n * 256; i++)
        __asm__ volatile(".irp acc, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 24\n"
                         "sdot v\\acc\\().4s, v0.16b, v0.16b\n"
                         ".endr"
                         :
                         :
                         : "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19",
                           "v20", "v21", "v22", "v23", "v24");

    return (uint64_t)n * 256 * 16 * 16 * 2;
}

void kern_use_neon(struct kern *k) {
    BIND_ROW(QUANT_F32, f32);
    BIND_ROW(QUANT_F16, f16);
    BIND_ROW(QUANT_BF16, bf16);
    k->mul[QUANT_Q4_0] = mul_q4_0;
    k->mul[QUANT_Q4_1] = mul_q4_1;
    k->mul[QUANT_Q5_0] = mul_q5_0;
    k->mul[QUANT_Q5_1] = mul_q5_1;
    k->mul[QUANT_Q8_0] = mul_q8_0;
    k->mul[QUANT_Q4_K] = mul_q4_k;
    k->mul[QUANT_Q5_K] = mul_q5_k;
    k->mul[QUANT_Q6_K] = mul_q6_k;
    k->mul[QUANT_IQ4_NL] = mul_iq4_nl;
    k->mul[QUANT_IQ4_XS] = mul_iq4_xs;
    k->quantize = quantize;
    k->axpy = axpy;
    k->rmsnorm = rmsnorm;
    k->rope = rope;
    kern_pack_neon(k);
    k->peak = peak;
    kern_attn_neon(k);
}
