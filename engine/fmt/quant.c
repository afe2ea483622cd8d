/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The table of formats, and the formats in blocks of 32. Layouts are given as field @offset, in
 * bytes; e is an element's index in its block. Nibbles: byte j of qs holds element j in its low
 * half and element j + 16 in its high half. Every product below has at most 18 significant bits,
 * so it is exact in f32; only adding a minimum rounds.
 */

#include <math.h>
#include <string.h>

#include "engine/fmt/quant-fit.h"
#include "engine/fmt/quant-k.h"
#include "engine/fmt/quant.h"

static uint32_t bits_of(float f) {
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u) {
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t quant_to_f16(float f) {
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;

    if (a > 0x7f800000) /* nan: quiet, top of the payload kept */
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x1ff));
    if (a >= 0x477ff000) /* 65520 is the tie between the largest f16 and infinity */
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) /* below 2^-14: in [0.5, 1) an f32 has the step of a subnormal f16 */
        return (uint16_t)(sign | (bits_of(float_of(a) + 0.5f) - 0x3f000000));

    a += 0xfff + (a >> 13 & 1); /* ties to even; a carry moves into the exponent, as it should */
    return (uint16_t)(sign | (a - (112u << 23)) >> 13);
}

uint16_t quant_to_bf16(float f) {
    uint32_t u = bits_of(f);

    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static uint16_t get16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p) {
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static void put16(uint8_t *p, unsigned v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint32_t v) {
    put16(p, v & 0xffff);
    put16(p + 2, v >> 16);
}

static int get_nibble(const uint8_t *qs, int e) {
    return qs[e % 16] >> 4 * (e / 16) & 15;
}

static void or_nibble(uint8_t *qs, int e, int q) {
    qs[e % 16] = (uint8_t)(qs[e % 16] | q << 4 * (e / 16));
}

/* F32, F16, BF16: an element is a block; little-endian. */
static void decode_f32(const uint8_t *b, float *y) {
    *y = float_of(get32(b));
}

static void encode_f32(const float *x, uint8_t *b) {
    put32(b, bits_of(*x));
}

static void decode_f16(const uint8_t *b, float *y) {
    *y = quant_f16(get16(b));
}

static void encode_f16(const float *x, uint8_t *b) {
    put16(b, quant_to_f16(*x));
}

static void decode_bf16(const uint8_t *b, float *y) {
    *y = quant_bf16(get16(b));
}

static void encode_bf16(const float *x, uint8_t *b) {
    put16(b, quant_to_bf16(*x));
}

/* Q4_0, 18 bytes: d f16 @0, qs u8[16] @2
 *   y = d * (nibble - 8) */
static void decode_q4_0(const uint8_t *b, float *y) {
    float d = quant_f16(get16(b));

    for (int e = 0; e < 32; e++)
        y[e] = d * (float)(get_nibble(b + 2, e) - 8);
}

static void encode_q4_0(const float *x, uint8_t *b) {
    static const struct quant_grid g = { -8, 7, NULL };
    float d = quant_fit_scale(&g, x, 32, true);

    memset(b, 0, 18);
    put16(b, quant_to_f16(d));
    for (int e = 0; e < 32; e++)
        or_nibble(b + 2, e, quant_fit_code(&g, x[e], d) + 8);
}

/* Q4_1, 20 bytes: d f16 @0, m f16 @2, qs u8[16] @4
 *   y = d * nibble + m */
static void decode_q4_1(const uint8_t *b, float *y) {
    float d = quant_f16(get16(b)), m = quant_f16(get16(b + 2));

    for (int e = 0; e < 32; e++)
        y[e] = d * (float)get_nibble(b + 4, e) + m;
}

static void encode_q4_1(const float *x, uint8_t *b) {
    static const struct quant_grid g = { 0, 15, NULL };
    float d, m;

    quant_fit_affine(15, x, 32, &d, &m);
    memset(b, 0, 20);
    put16(b, quant_to_f16(d));
    put16(b + 2, quant_to_f16(m));
    for (int e = 0; e < 32; e++)
        or_nibble(b + 4, e, quant_fit_code(&g, x[e] - m, d));
}

/* Q5_0, 22 bytes: d f16 @0, qh u32 @2, qs u8[16] @6
 *   y = d * ((nibble | bit e of qh << 4) - 16) */
static int get_five(const uint8_t *qh_qs, int e) {
    return get_nibble(qh_qs + 4, e) | (int)(get32(qh_qs) >> e & 1) << 4;
}

static void or_five(uint8_t *qh_qs, int e, int q) {
    put32(qh_qs, get32(qh_qs) | (uint32_t)(q >> 4) << e);
    or_nibble(qh_qs + 4, e, q & 15);
}

static void decode_q5_0(const uint8_t *b, float *y) {
    float d = quant_f16(get16(b));

    for (int e = 0; e < 32; e++)
        y[e] = d * (float)(get_five(b + 2, e) - 16);
}

static void encode_q5_0(const float *x, uint8_t *b) {
    static const struct quant_grid g = { -16, 15, NULL };
    float d = quant_fit_scale(&g, x, 32, true);

    memset(b, 0, 22);
    put16(b, quant_to_f16(d));
    for (int e = 0; e < 32; e++)
        or_five(b + 2, e, quant_fit_code(&g, x[e], d) + 16);
}

/* Q5_1, 24 bytes: d f16 @0, m f16 @2, qh u32 @4, qs u8[16] @8
 *   y = d * (nibble | bit e of qh << 4) + m */
static void decode_q5_1(const uint8_t *b, float *y) {
    float d = quant_f16(get16(b)), m = quant_f16(get16(b + 2));

    for (int e = 0; e < 32; e++)
        y[e] = d * (float)get_five(b + 4, e) + m;
}

static void encode_q5_1(const float *x, uint8_t *b) {
    static const struct quant_grid g = { 0, 31, NULL };
    float d, m;

    quant_fit_affine(31, x, 32, &d, &m);
    memset(b, 0, 24);
    put16(b, quant_to_f16(d));
    put16(b + 2, quant_to_f16(m));
    for (int e = 0; e < 32; e++)
        or_five(b + 4, e, quant_fit_code(&g, x[e] - m, d));
}

/* Q8_0, 34 bytes: d f16 @0, qs i8[32] @2
 *   y = d * qs[e] */
static void decode_q8_0(const uint8_t *b, float *y) {
    float d = quant_f16(get16(b));

    for (int e = 0; e < 32; e++)
        y[e] = d * (float)(int8_t)b[2 + e];
}

static void encode_q8_0(const float *x, uint8_t *b) {
    static const struct quant_grid g = { -128, 127, NULL };
    float d = quant_fit_scale(&g, x, 32, true);

    put16(b, quant_to_f16(d));
    for (int e = 0; e < 32; e++)
        b[2 + e] = (uint8_t)quant_fit_code(&g, x[e], d);
}

/* IQ4_NL, 18 bytes: d f16 @0, qs u8[16] @2
 *   y = d * quant_k_iq4[nibble] */
static void decode_iq4_nl(const uint8_t *b, float *y) {
    float d = quant_f16(get16(b));

    for (int e = 0; e < 32; e++)
        y[e] = d * (float)quant_k_iq4[get_nibble(b + 2, e)];
}

static void encode_iq4_nl(const float *x, uint8_t *b) {
    static const struct quant_grid g = { 0, 15, quant_k_iq4 };
    float d = quant_fit_scale(&g, x, 32, true);

    memset(b, 0, 18);
    put16(b, quant_to_f16(d));
    for (int e = 0; e < 32; e++)
        or_nibble(b + 2, e, quant_fit_code(&g, x[e], d));
}

/* MXFP4, 17 bytes: x u8 @0, qs u8[16] @1
 *   y = 2^(x - 128) * value of nibble: bit 3 is the sign, the rest 0 1 2 3 4 6 8 12, which is twice
 *   the E2M1 number; x = 255, NaN in the MX standard, is a power of two like the others */
static const int8_t e2m1[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
static const int8_t e2m1_sorted[15] = { -12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12 };

static void decode_mxfp4(const uint8_t *b, float *y) {
    float s = ldexpf(1, b[0] - 128);

    for (int e = 0; e < 32; e++)
        y[e] = s * (float)e2m1[get_nibble(b + 1, e)];
}

static void encode_mxfp4(const float *x, uint8_t *b) {
    static const struct quant_grid g = { 0, 14, e2m1_sorted };
    int best = 0, top = 0;
    double best_err = INFINITY;
    float amax = 0;

    for (int e = 0; e < 32; e++)
        amax = fmaxf(amax, fabsf(x[e]));
    (void)frexpf(amax, &top);

    /* the largest element gets a code from 1 to 12, or is clipped by less than a half */
    for (int k = top + 127; k >= top + 124; k--) {
        double err = 0;

        if (k < 0 || k > 254)
            continue;
        for (int e = 0; e < 32; e++) {
            float s = ldexpf(1, k - 128);
            double diff = x[e] - s * (float)e2m1_sorted[quant_fit_code(&g, x[e], s)];

            err += diff * diff;
        }
        if (err < best_err) {
            best = k;
            best_err = err;
        }
    }

    memset(b, 0, 17);
    b[0] = (uint8_t)best;
    for (int e = 0; e < 32; e++) {
        int q = quant_fit_code(&g, x[e], ldexpf(1, best - 128)) - 7;

        or_nibble(b + 1, e, q < 0 ? 8 - q : q);
    }
}

static const struct quant_codec {
    struct quant_info info;
    void (*decode)(const uint8_t *b, float *y); /* one block */
    void (*encode)(const float *x, uint8_t *b);
} codecs[QUANT_FMT_N] = {
    /* clang-format off */
    [QUANT_F32]    = { { "F32",     0,   1,   4 }, decode_f32,            encode_f32            },
    [QUANT_F16]    = { { "F16",     1,   1,   2 }, decode_f16,            encode_f16            },
    [QUANT_BF16]   = { { "BF16",   30,   1,   2 }, decode_bf16,           encode_bf16           },
    [QUANT_Q4_0]   = { { "Q4_0",    2,  32,  18 }, decode_q4_0,           encode_q4_0           },
    [QUANT_Q4_1]   = { { "Q4_1",    3,  32,  20 }, decode_q4_1,           encode_q4_1           },
    [QUANT_Q5_0]   = { { "Q5_0",    6,  32,  22 }, decode_q5_0,           encode_q5_0           },
    [QUANT_Q5_1]   = { { "Q5_1",    7,  32,  24 }, decode_q5_1,           encode_q5_1           },
    [QUANT_Q8_0]   = { { "Q8_0",    8,  32,  34 }, decode_q8_0,           encode_q8_0           },
    [QUANT_Q2_K]   = { { "Q2_K",   10, 256,  84 }, quant_k_decode_q2,     quant_k_encode_q2     },
    [QUANT_Q3_K]   = { { "Q3_K",   11, 256, 110 }, quant_k_decode_q3,     quant_k_encode_q3     },
    [QUANT_Q4_K]   = { { "Q4_K",   12, 256, 144 }, quant_k_decode_q4,     quant_k_encode_q4     },
    [QUANT_Q5_K]   = { { "Q5_K",   13, 256, 176 }, quant_k_decode_q5,     quant_k_encode_q5     },
    [QUANT_Q6_K]   = { { "Q6_K",   14, 256, 210 }, quant_k_decode_q6,     quant_k_encode_q6     },
    [QUANT_IQ4_NL] = { { "IQ4_NL", 20,  32,  18 }, decode_iq4_nl,         encode_iq4_nl         },
    [QUANT_IQ4_XS] = { { "IQ4_XS", 23, 256, 136 }, quant_k_decode_iq4_xs, quant_k_encode_iq4_xs },
    [QUANT_MXFP4]  = { { "MXFP4",  39,  32,  17 }, decode_mxfp4,          encode_mxfp4          },
    /* clang-format on */
};

const struct quant_info *quant_info(enum quant_fmt fmt) {
    return &codecs[fmt].info;
}

int quant_from_ggml(uint32_t ggml_id, enum quant_fmt *ret_fmt) {
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
        if (codecs[fmt].info.ggml_id == ggml_id) {
            *ret_fmt = fmt;
            return 0;
        }
    return QUANT_UNKNOWN;
}

size_t quant_row_size(enum quant_fmt fmt, size_t n) {
    return n / codecs[fmt].info.block * codecs[fmt].info.size;
}

void quant_decode(enum quant_fmt fmt, const void *src, float *dst, size_t n) {
    const struct quant_codec *c = &codecs[fmt];
    const uint8_t *b = src;

    for (size_t i = 0; i < n; i += c->info.block, b += c->info.size)
        c->decode(b, dst + i);
}

void quant_encode(enum quant_fmt fmt, const float *src, void *dst, size_t n) {
    const struct quant_codec *c = &codecs[fmt];
    uint8_t *b = dst;

    for (size_t i = 0; i < n; i += c->info.block, b += c->info.size)
        c->encode(src + i, b);
}
