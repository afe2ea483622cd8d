/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Portable kernels: the definition of what every tier must compute. Clarity over speed, but each
 * weight is unpacked once for up to N_ROW activation rows.
 */

#include <math.h>
#include <string.h>

#include "engine/kern/kern.h"

enum {
    N_ROW = 8,  /* activation rows that share one unpacked piece of weights */
    N_LANE = 8, /* partial sums of a float dot product */
};

/* 32 weights: w[j] = d[j / 16] * q[j] + m[j / 16] */
struct piece {
    int8_t q[32];
    float d[2];
    float m[2];
};

/* Fill @p with elements [32 k, 32 k + 32) of the row at @w. */
typedef void unpack_fn(const uint8_t *w, size_t k, struct piece *p);

static uint16_t le16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t le32(const uint8_t *p) {
    return le16(p) | (uint32_t)le16(p + 2) << 16;
}

static float f16(const uint8_t *p) {
    return quant_f16(le16(p));
}

static void scale(struct piece *p, float d, float m) {
    p->d[0] = p->d[1] = d;
    p->m[0] = p->m[1] = m;
}

/* 16 bytes: low nibbles are elements 0..15, high ones 16..31. */
static void nibbles(const uint8_t *w, int offset, struct piece *p) {
    for (int j = 0; j < 16; j++) {
        p->q[j] = (int8_t)((w[j] & 15) - offset);
        p->q[j + 16] = (int8_t)((w[j] >> 4) - offset);
    }
}

static void fifth_bits(uint32_t h, struct piece *p) {
    for (int j = 0; j < 32; j++)
        p->q[j] = (int8_t)(p->q[j] + (int8_t)((h >> j & 1) << 4));
}

static void lookup(const uint8_t *w, const int8_t *table, struct piece *p) {
    for (int j = 0; j < 16; j++) {
        p->q[j] = table[w[j] & 15];
        p->q[j + 16] = table[w[j] >> 4];
    }
}

static const int8_t iq4[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113 };
static const int8_t fp4[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

static void unpack_q4_0(const uint8_t *w, size_t k, struct piece *p) {
    w += k * 18;
    nibbles(w + 2, 8, p);
    scale(p, f16(w), 0);
}

static void unpack_q4_1(const uint8_t *w, size_t k, struct piece *p) {
    w += k * 20;
    nibbles(w + 4, 0, p);
    scale(p, f16(w), f16(w + 2));
}

static void unpack_q5_0(const uint8_t *w, size_t k, struct piece *p) {
    w += k * 22;
    nibbles(w + 6, 16, p);
    fifth_bits(le32(w + 2), p);
    scale(p, f16(w), 0);
}

static void unpack_q5_1(const uint8_t *w, size_t k, struct piece *p) {
    w += k * 24;
    nibbles(w + 8, 0, p);
    fifth_bits(le32(w + 4), p);
    scale(p, f16(w), f16(w + 2));
}

static void unpack_q8_0(const uint8_t *w, size_t k, struct piece *p) {
    w += k * 34;
    memcpy(p->q, w + 2, 32);
    scale(p, f16(w), 0);
}

static void unpack_iq4_nl(const uint8_t *w, size_t k, struct piece *p) {
    w += k * 18;
    lookup(w + 2, iq4, p);
    scale(p, f16(w), 0);
}

/* The scale is 2^(e - 128), made of its bits: half of E8M0's, as fp4[] holds doubled values. */
static void unpack_mxfp4(const uint8_t *w, size_t k, struct piece *p) {
    union {
        uint32_t u;
        float f;
    } d;

    w += k * 17;
    d.u = w[0] >= 2 ? (w[0] - 1u) << 23 : 0x00200000u << w[0];
    lookup(w + 1, fp4, p);
    scale(p, d.f, 0);
}

static void unpack_q2_k(const uint8_t *w, size_t k, struct piece *p) {
    size_t i = k % 8;

    w += k / 8 * 84;
    for (size_t j = 0; j < 32; j++)
        p->q[j] = (int8_t)(w[16 + i / 4 * 32 + j] >> i % 4 * 2 & 3);
    for (size_t h = 0; h < 2; h++) {
        p->d[h] = f16(w + 80) * (float)(w[2 * i + h] & 15);
        p->m[h] = -f16(w + 82) * (float)(w[2 * i + h] >> 4);
    }
}

static void unpack_q3_k(const uint8_t *w, size_t k, struct piece *p) {
    const uint8_t *t;
    size_t i = k % 8;

    w += k / 8 * 110;
    t = w + 96;
    for (size_t j = 0; j < 32; j++) {
        int q = w[32 + i / 4 * 32 + j] >> i % 4 * 2 & 3;

        p->q[j] = (int8_t)(q - (w[j] >> i & 1 ? 0 : 4));
    }
    scale(p, 0, 0);
    for (size_t h = 0; h < 2; h++) {
        size_t s = 2 * i + h;
        int low = s < 8 ? t[s] & 15 : t[s - 8] >> 4;
        int high = t[8 + s % 4] >> s / 4 * 2 & 3;

        p->d[h] = f16(w + 108) * (float)((low | high << 4) - 32);
    }
}

/* Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minima in 12 bytes. */
static void scale_k4(const uint8_t *w, size_t i, struct piece *p) {
    const uint8_t *t = w + 4;
    int sc = i < 4 ? t[i] & 63 : (t[i + 4] & 15) | t[i - 4] >> 6 << 4;
    int mn = i < 4 ? t[i + 4] & 63 : t[i + 4] >> 4 | t[i] >> 6 << 4;

    scale(p, f16(w) * (float)sc, -f16(w + 2) * (float)mn);
}

static void unpack_q4_k(const uint8_t *w, size_t k, struct piece *p) {
    size_t i = k % 8;

    w += k / 8 * 144;
    for (size_t j = 0; j < 32; j++)
        p->q[j] = (int8_t)(w[16 + i / 2 * 32 + j] >> i % 2 * 4 & 15);
    scale_k4(w, i, p);
}

static void unpack_q5_k(const uint8_t *w, size_t k, struct piece *p) {
    size_t i = k % 8;

    w += k / 8 * 176;
    for (size_t j = 0; j < 32; j++) {
        int low = w[48 + i / 2 * 32 + j] >> i % 2 * 4 & 15;

        p->q[j] = (int8_t)(low | (w[16 + j] >> i & 1) << 4);
    }
    scale_k4(w, i, p);
}

static void unpack_q6_k(const uint8_t *w, size_t k, struct piece *p) {
    size_t i = k % 8;

    w += k / 8 * 210;
    for (size_t j = 0; j < 32; j++) {
        int low = w[i / 4 * 64 + i % 2 * 32 + j] >> i % 4 / 2 * 4 & 15;
        int high = w[128 + i / 4 * 32 + j] >> i % 4 * 2 & 3;

        p->q[j] = (int8_t)((low | high << 4) - 32);
    }
    scale(p, 0, 0);
    for (size_t h = 0; h < 2; h++)
        p->d[h] = f16(w + 208) * (float)(int8_t)w[192 + 2 * i + h];
}

static void unpack_iq4_xs(const uint8_t *w, size_t k, struct piece *p) {
    size_t i = k % 8;
    int low, high;

    w += k / 8 * 136;
    low = w[4 + i / 2] >> i % 2 * 4 & 15;
    high = le16(w + 2) >> 2 * i & 3;
    lookup(w + 8 + i * 16, iq4, p);
    scale(p, f16(w) * (float)((low | high << 4) - 32), 0);
}

static int32_t dot_16(const int8_t *a, const int8_t *b) {
    int32_t sum = 0;

    for (int j = 0; j < 16; j++)
        sum += a[j] * b[j];

    return sum;
}

/* Pieces in order, one f32 sum an output. */
static inline __attribute__((always_inline)) void
mul_quant(unpack_fn *unpack, const uint8_t *w, size_t w_stride, uint32_t n_out, uint32_t n_col,
          const struct kern_rows *x, float *y, size_t y_stride) {
    for (uint32_t o = 0; o < n_out; o++)
        for (uint32_t m0 = 0; m0 < x->n_row; m0 += N_ROW) {
            uint32_t n_m = x->n_row - m0 < N_ROW ? x->n_row - m0 : N_ROW;
            float sum[N_ROW] = { 0 };

            for (size_t k = 0; k < n_col / 32; k++) {
                struct piece p;

                unpack(w + o * w_stride, k, &p);
                for (uint32_t m = 0; m < n_m; m++) {
                    const int8_t *q = x->q + (m0 + m) * x->q_stride + 32 * k;
                    const int16_t *s = x->s + (m0 + m) * (x->q_stride / KERN_Q8_SUM) + 2 * k;
                    float d = x->d[(m0 + m) * (x->q_stride / KERN_Q8_BLOCK) + k];
                    float dot =
                        p.d[0] * (float)dot_16(p.q, q) + p.d[1] * (float)dot_16(p.q + 16, q + 16);

                    sum[m] += d * (dot + (p.m[0] * (float)s[0] + p.m[1] * (float)s[1]));
                }
            }
            for (uint32_t m = 0; m < n_m; m++)
                y[(m0 + m) * y_stride + o] = sum[m];
        }
}

static float dot_float(const float *a, const float *b, size_t n) {
    float lane[N_LANE] = { 0 }, sum = 0;
    size_t i = 0;

    for (; i + N_LANE <= n; i += N_LANE)
        for (size_t j = 0; j < N_LANE; j++)
            lane[j] += a[i + j] * b[i + j];
    for (; i < n; i++)
        sum += a[i] * b[i];
    for (size_t j = 0; j < N_LANE; j++)
        sum += lane[j];

    return sum;
}

static void mul_float(enum quant_fmt fmt, const uint8_t *w, size_t w_stride, uint32_t n_out,
                      uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    float piece[KERN_BLOCK];

    for (uint32_t o = 0; o < n_out; o++) {
        const uint8_t *row = w + o * w_stride;

        for (uint32_t m0 = 0; m0 < x->n_row; m0 += N_ROW) {
            uint32_t n_m = x->n_row - m0 < N_ROW ? x->n_row - m0 : N_ROW;
            float sum[N_ROW] = { 0 };

            for (uint32_t k = 0; k < n_col; k += KERN_BLOCK) {
                uint32_t n = n_col - k < KERN_BLOCK ? n_col - k : KERN_BLOCK;

                quant_decode(fmt, row + quant_row_size(fmt, k), piece, n);
                for (uint32_t m = 0; m < n_m; m++)
                    sum[m] += dot_float(piece, x->f + (m0 + m) * x->f_stride + k, n);
            }
            for (uint32_t m = 0; m < n_m; m++)
                y[(m0 + m) * y_stride + o] = sum[m];
        }
    }
}

static void axpy(float s, const float *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i++)
        y[i] += s * x[i];
}

static uint32_t abs_bits(float f) {
    union {
        float f;
        uint32_t u;
    } v = { .f = f };

    return v.u & 0x7fffffff;
}

/* The largest |x| is found on its bits, so a NaN or infinity ends up in d and is not lost. Rounding
 * is to nearest even, by the add that pushes the fraction out of an f32. */
static void quantize_32(const float *x, int8_t *q, float *d, int16_t *s) {
    union {
        uint32_t u;
        float f;
    } max = { .u = 0 };
    float inverse;

    for (int i = 0; i < KERN_Q8_BLOCK; i++)
        max.u = abs_bits(x[i]) > max.u ? abs_bits(x[i]) : max.u;

    *d = max.f < KERN_Q8_TINY ? 0 : max.f / 127;
    inverse = max.f < KERN_Q8_TINY ? 0 : 127 / max.f;
    s[0] = s[1] = 0;
    for (int i = 0; i < KERN_Q8_BLOCK; i++) {
        float v = x[i] * inverse;

        v = v > -127 ? v : -127; /* a NaN too */
        v = v < 127 ? v : 127;
        q[i] = (int8_t)((v + 0x1.8p23f) - 0x1.8p23f);
        s[i / KERN_Q8_SUM] = (int16_t)(s[i / KERN_Q8_SUM] + q[i]);
    }
}

static void quantize(const float *x, size_t n, int8_t *q, float *d, int16_t *s) {
    size_t n_pad = (n + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;

    for (size_t i = 0; i < n_pad; i += KERN_Q8_BLOCK) {
        float tail[KERN_Q8_BLOCK] = { 0 };
        const float *from = x + i;

        if (i + KERN_Q8_BLOCK > n) {
            if (i < n)
                memcpy(tail, x + i, (n - i) * sizeof *x);
            from = tail;
        }
        quantize_32(from, q + i, d + i / KERN_Q8_BLOCK, s + i / KERN_Q8_SUM);
    }
}

static void rmsnorm(const float *x, const float *w, float eps, float *y, size_t n) {
    double sum = 0;
    float scale_by;

    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    scale_by = (float)(1 / sqrt(sum / (double)n + eps));
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * scale_by * (w ? w[i] : 1);
}

/* 0.5 (1 + tanh(t)) = 1 / (1 + exp(-2t)), without the cancellation at large negative t. */
static void geglu(const float *g, const float *u, float *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float t = KERN_GELU_A * (g[i] + KERN_GELU_B * g[i] * g[i] * g[i]);
        float e = -2 * t;

        e = e > KERN_EXP_MAX ? KERN_EXP_MAX : e;
        y[i] = g[i] / (1 + expf(e)) * u[i];
    }
}

static void softmax(float *x, size_t n) {
    float max = -INFINITY, inverse;
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (size_t i = 0; i < n; i++) {
        x[i] = max > -INFINITY ? expf(x[i] - max) : 0;
        sum += (double)x[i];
    }
    inverse = sum == 0 ? 0 : (float)(1 / sum); /* a NaN must show */
    for (size_t i = 0; i < n; i++)
        x[i] *= inverse;
}

static void rope(float *x, const float *cs, size_t n) {
    for (size_t i = 0; i < n / 2; i++) {
        float a = x[i], b = x[i + n / 2];

        x[i] = a * cs[2 * i] - b * cs[2 * i + 1];
        x[i + n / 2] = a * cs[2 * i + 1] + b * cs[2 * i];
    }
}

static void softcap(float *x, float cap, size_t n) {
    for (size_t i = 0; i < n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

#define FLOAT_ENTRIES(fmt, FMT)                                                                    \
    static void decode_##fmt(const void *src, float *dst, size_t n) {                              \
        quant_decode(FMT, src, dst, n);                                                            \
    }                                                                                              \
    static void exact_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,        \
                            const struct kern_rows *x, float *y, size_t y_stride) {                \
        mul_float(FMT, w, w_stride, n_out, n_col, x, y, y_stride);                                 \
    }
#define QUANT_ENTRIES(fmt, FMT)                                                                    \
    FLOAT_ENTRIES(fmt, FMT)                                                                        \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        mul_quant(unpack_##fmt, w, w_stride, n_out, n_col, x, y, y_stride);                        \
    }

FLOAT_ENTRIES(f32, QUANT_F32)
FLOAT_ENTRIES(f16, QUANT_F16)
FLOAT_ENTRIES(bf16, QUANT_BF16)
QUANT_ENTRIES(q4_0, QUANT_Q4_0)
QUANT_ENTRIES(q4_1, QUANT_Q4_1)
QUANT_ENTRIES(q5_0, QUANT_Q5_0)
QUANT_ENTRIES(q5_1, QUANT_Q5_1)
QUANT_ENTRIES(q8_0, QUANT_Q8_0)
QUANT_ENTRIES(q2_k, QUANT_Q2_K)
QUANT_ENTRIES(q3_k, QUANT_Q3_K)
QUANT_ENTRIES(q4_k, QUANT_Q4_K)
QUANT_ENTRIES(q5_k, QUANT_Q5_K)
QUANT_ENTRIES(q6_k, QUANT_Q6_K)
QUANT_ENTRIES(iq4_nl, QUANT_IQ4_NL)
QUANT_ENTRIES(iq4_xs, QUANT_IQ4_XS)
QUANT_ENTRIES(mxfp4, QUANT_MXFP4)

/* A row of activations in the first cache against itself: the loop of the products above, as well
 * as this compiler makes it. */
static uint64_t peak(uint32_t n) {
    enum { N = 4096 };
    static const int8_t x[N];
    volatile int32_t sum = 0;

    for (uint32_t i = 0; i < n * 16; i++) {
        const int8_t *p = x;
        int32_t s = 0;

        __asm__("" : "+r"(p));
        for (uint32_t k = 0; k < N; k++)
            s += p[k] * p[k];
        sum = sum + s;
    }
    return (uint64_t)n * 16 * N * 2;
}

static uint64_t read_all(const void *p, size_t n) {
    const uint64_t *w = p;
    uint64_t any[8] = { 0 };

    for (size_t i = 0; i < n / sizeof *w; i += 8)
        for (int k = 0; k < 8; k++)
            any[k] |= w[i + (size_t)k];
    return any[0] | any[1] | any[2] | any[3] | any[4] | any[5] | any[6] | any[7];
}

void kern_use_generic(struct kern *k) {
    *k = (struct kern){
        .tier = "generic",
        .mul = { exact_f32, exact_f16, exact_bf16, mul_q4_0, mul_q4_1, mul_q5_0, mul_q5_1, mul_q8_0,
                 mul_q2_k, mul_q3_k, mul_q4_k, mul_q5_k, mul_q6_k, mul_iq4_nl, mul_iq4_xs,
                 mul_mxfp4 },
        .mul_exact = { exact_f32, exact_f16, exact_bf16, exact_q4_0, exact_q4_1, exact_q5_0,
                       exact_q5_1, exact_q8_0, exact_q2_k, exact_q3_k, exact_q4_k, exact_q5_k,
                       exact_q6_k, exact_iq4_nl, exact_iq4_xs, exact_mxfp4 },
        .decode = { decode_f32, decode_f16, decode_bf16, decode_q4_0, decode_q4_1, decode_q5_0,
                    decode_q5_1, decode_q8_0, decode_q2_k, decode_q3_k, decode_q4_k, decode_q5_k,
                    decode_q6_k, decode_iq4_nl, decode_iq4_xs, decode_mxfp4 },
        .axpy = axpy,
        .quantize = quantize,
        .rmsnorm = rmsnorm,
        .geglu = geglu,
        .softmax = softmax,
        .rope = rope,
        .softcap = softcap,
        .peak = peak,
        .read = read_all,
    };
    kern_attn_generic(k);
}
