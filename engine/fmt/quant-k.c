/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Layouts are given as field @offset, in bytes. e is an element's index in its block of 256, an
 * index with / rounds down. Every product below has at most 23 significant bits, so it is exact in
 * f32 whatever the order; only a subtraction rounds.
 */

#include <string.h>

#include "engine/fmt/quant-fit.h"
#include "engine/fmt/quant-k.h"
#include "engine/fmt/quant.h"

const int8_t quant_k_iq4[16] = { -127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113 };

static uint16_t get16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static void put16(uint8_t *p, unsigned v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static float get_half(const uint8_t *p) {
    return quant_f16(get16(p));
}

static void put_half(uint8_t *p, float v) {
    put16(p, quant_to_f16(v));
}

static void or_bits(uint8_t *p, int v, int shift) {
    *p = (uint8_t)(*p | v << shift);
}

/*
 * Q2_K, 84 bytes: scales u8[16] @0, qs u8[64] @16, d f16 @80, dmin f16 @82
 *   q     2 bits at 2 * (e % 128 / 32) of qs[32 * (e / 128) + e % 32]
 *   s, m  low and high nibble of scales[e / 16]
 *   y     d * s * q - dmin * m
 */
void quant_k_decode_q2(const uint8_t *b, float *y) {
    float d = get_half(b + 80), dmin = get_half(b + 82);

    for (int e = 0; e < QUANT_K; e++) {
        int q = b[16 + 32 * (e / 128) + e % 32] >> 2 * (e % 128 / 32) & 3;
        int sm = b[e / 16];

        y[e] = d * (float)((sm & 15) * q) - dmin * (float)(sm >> 4);
    }
}

void quant_k_encode_q2(const float *x, uint8_t *b) {
    static const struct quant_grid nibble = { 0, 15, NULL }, code = { 0, 3, NULL };
    float s[16], m[16], d, dmin;

    for (int j = 0; j < 16; j++)
        quant_fit_below(3, x + 16 * j, 16, &s[j], &m[j]);
    d = quant_fit_scale(&nibble, s, 16, true);
    dmin = quant_fit_scale(&nibble, m, 16, true);

    memset(b, 0, 84);
    put_half(b + 80, d);
    put_half(b + 82, dmin);
    for (int j = 0; j < 16; j++)
        b[j] =
            (uint8_t)(quant_fit_code(&nibble, s[j], d) | quant_fit_code(&nibble, m[j], dmin) << 4);
    for (int e = 0; e < QUANT_K; e++) {
        int sm = b[e / 16];
        float neg = dmin * (float)(sm >> 4), scale = d * (float)(sm & 15);

        or_bits(&b[16 + 32 * (e / 128) + e % 32], quant_fit_code(&code, x[e] + neg, scale),
                2 * (e % 128 / 32));
    }
}

/*
 * Q3_K, 110 bytes: hmask u8[32] @0, qs u8[64] @32, scales u8[12] @96, d f16 @108
 *   q     2 bits placed as in Q2_K; minus 4 when bit e / 32 of hmask[e % 32] is clear
 *   s     k = e / 16: low nibble of scales[k] for k < 8, high nibble of scales[k - 8] after;
 *         2 more bits at 2 * (k / 4) of scales[8 + k % 4]; minus 32
 *   y     d * s * q
 */
static int q3_scale(const uint8_t *t, int k) {
    int lo = k < 8 ? t[k] & 15 : t[k - 8] >> 4, hi = t[8 + k % 4] >> 2 * (k / 4) & 3;

    return (lo | hi << 4) - 32;
}

void quant_k_decode_q3(const uint8_t *b, float *y) {
    float d = get_half(b + 108);

    for (int e = 0; e < QUANT_K; e++) {
        int q = b[32 + 32 * (e / 128) + e % 32] >> 2 * (e % 128 / 32) & 3;

        if (!(b[e % 32] >> e / 32 & 1))
            q -= 4;
        y[e] = d * (float)(q3_scale(b + 96, e / 16) * q);
    }
}

void quant_k_encode_q3(const float *x, uint8_t *b) {
    static const struct quant_grid scale = { -32, 31, NULL }, code = { -4, 3, NULL };
    float s[16], d;
    uint8_t *t = b + 96;

    for (int j = 0; j < 16; j++)
        s[j] = quant_fit_scale(&code, x + 16 * j, 16, false);
    d = quant_fit_scale(&scale, s, 16, true);

    memset(b, 0, 110);
    put_half(b + 108, d);
    for (int k = 0; k < 16; k++) {
        int v = quant_fit_code(&scale, s[k], d) + 32;

        or_bits(&t[k % 8], v & 15, k < 8 ? 0 : 4);
        or_bits(&t[8 + k % 4], v >> 4, 2 * (k / 4));
    }
    for (int e = 0; e < QUANT_K; e++) {
        int q = quant_fit_code(&code, x[e], d * (float)q3_scale(t, e / 16)) + 4;

        or_bits(&b[32 + 32 * (e / 128) + e % 32], q & 3, 2 * (e % 128 / 32));
        or_bits(&b[e % 32], q >> 2, e / 32);
    }
}

/*
 * Scales and mins of Q4_K and Q5_K: eight pairs of 6 bits in t u8[12]
 *   k < 4    s = low 6 bits of t[k], m = low 6 bits of t[k + 4]
 *   k >= 4   s = low nibble, m = high nibble of t[k + 4]; their bits 4 and 5 are the top bits of
 *            t[k - 4] for s, of t[k] for m
 */
static void q45_get(const uint8_t *t, int k, int *ret_s, int *ret_m) {
    if (k < 4) {
        *ret_s = t[k] & 63;
        *ret_m = t[k + 4] & 63;
    } else {
        *ret_s = (t[k + 4] & 15) | t[k - 4] >> 6 << 4;
        *ret_m = t[k + 4] >> 4 | t[k] >> 6 << 4;
    }
}

static void q45_put(uint8_t *t, int k, int s, int m) {
    if (k < 4) {
        or_bits(&t[k], s, 0);
        or_bits(&t[k + 4], m, 0);
    } else {
        or_bits(&t[k + 4], s & 15, 0);
        or_bits(&t[k + 4], m & 15, 4);
        or_bits(&t[k - 4], s >> 4, 6);
        or_bits(&t[k], m >> 4, 6);
    }
}

/* The head both share, d f16 @0, dmin f16 @2, t u8[12] @4, and the codes that go with it. */
static void q45_encode(const float *x, int hi, uint8_t *head, uint8_t *ret_q) {
    static const struct quant_grid six = { 0, 63, NULL };
    const struct quant_grid code = { 0, hi, NULL };
    float s[8], m[8], d, dmin;

    for (int j = 0; j < 8; j++)
        quant_fit_below(hi, x + 32 * j, 32, &s[j], &m[j]);
    d = quant_fit_scale(&six, s, 8, true);
    dmin = quant_fit_scale(&six, m, 8, true);

    memset(head, 0, 16);
    put_half(head, d);
    put_half(head + 2, dmin);
    for (int j = 0; j < 8; j++) {
        int is = quant_fit_code(&six, s[j], d), im = quant_fit_code(&six, m[j], dmin);

        q45_put(head + 4, j, is, im);
        for (int e = 32 * j; e < 32 * j + 32; e++)
            ret_q[e] = (uint8_t)quant_fit_code(&code, x[e] + dmin * (float)im, d * (float)is);
    }
}

/*
 * Q4_K, 144 bytes: d f16 @0, dmin f16 @2, t u8[12] @4, qs u8[128] @16
 *   q     nibble of qs[32 * (e / 64) + e % 32], low for e % 64 < 32
 *   s, m  pair e / 32 of t
 *   y     d * s * q - dmin * m
 */
void quant_k_decode_q4(const uint8_t *b, float *y) {
    float d = get_half(b), dmin = get_half(b + 2);

    for (int e = 0; e < QUANT_K; e++) {
        int q = b[16 + 32 * (e / 64) + e % 32] >> 4 * (e % 64 / 32) & 15, s, m;

        q45_get(b + 4, e / 32, &s, &m);
        y[e] = d * (float)(s * q) - dmin * (float)m;
    }
}

void quant_k_encode_q4(const float *x, uint8_t *b) {
    uint8_t q[QUANT_K];

    memset(b, 0, 144);
    q45_encode(x, 15, b, q);
    for (int e = 0; e < QUANT_K; e++)
        or_bits(&b[16 + 32 * (e / 64) + e % 32], q[e], 4 * (e % 64 / 32));
}

/*
 * Q5_K, 176 bytes: d f16 @0, dmin f16 @2, t u8[12] @4, qh u8[32] @16, qs u8[128] @48
 *   q     nibble as in Q4_K; bit 4 is bit e / 32 of qh[e % 32]
 *   y     as Q4_K
 */
void quant_k_decode_q5(const uint8_t *b, float *y) {
    float d = get_half(b), dmin = get_half(b + 2);

    for (int e = 0; e < QUANT_K; e++) {
        int q = b[48 + 32 * (e / 64) + e % 32] >> 4 * (e % 64 / 32) & 15, s, m;

        q |= (b[16 + e % 32] >> e / 32 & 1) << 4;
        q45_get(b + 4, e / 32, &s, &m);
        y[e] = d * (float)(s * q) - dmin * (float)m;
    }
}

void quant_k_encode_q5(const float *x, uint8_t *b) {
    uint8_t q[QUANT_K];

    memset(b, 0, 176);
    q45_encode(x, 31, b, q);
    for (int e = 0; e < QUANT_K; e++) {
        or_bits(&b[48 + 32 * (e / 64) + e % 32], q[e] & 15, 4 * (e % 64 / 32));
        or_bits(&b[16 + e % 32], q[e] >> 4, e / 32);
    }
}

/*
 * Q6_K, 210 bytes: ql u8[128] @0, qh u8[64] @128, sc i8[16] @192, d f16 @208
 *   h = e / 128, r = e % 128
 *   q     nibble of ql[64 * h + r % 64], low for r < 64; 2 more bits at 2 * (r / 32) of
 *         qh[32 * h + r % 32]; minus 32
 *   y     d * sc[e / 16] * q
 */
void quant_k_decode_q6(const uint8_t *b, float *y) {
    float d = get_half(b + 208);

    for (int e = 0; e < QUANT_K; e++) {
        int h = e / 128, r = e % 128;
        int lo = b[64 * h + r % 64] >> 4 * (r / 64) & 15;
        int hi = b[128 + 32 * h + r % 32] >> 2 * (r / 32) & 3;

        y[e] = d * (float)((int8_t)b[192 + e / 16] * ((lo | hi << 4) - 32));
    }
}

void quant_k_encode_q6(const float *x, uint8_t *b) {
    static const struct quant_grid scale = { -128, 127, NULL }, code = { -32, 31, NULL };
    float s[16], d;

    for (int j = 0; j < 16; j++)
        s[j] = quant_fit_scale(&code, x + 16 * j, 16, false);
    d = quant_fit_scale(&scale, s, 16, true);

    memset(b, 0, 210);
    put_half(b + 208, d);
    for (int j = 0; j < 16; j++)
        b[192 + j] = (uint8_t)quant_fit_code(&scale, s[j], d);
    for (int e = 0; e < QUANT_K; e++) {
        int h = e / 128, r = e % 128;
        int q = quant_fit_code(&code, x[e], d * (float)(int8_t)b[192 + e / 16]) + 32;

        or_bits(&b[64 * h + r % 64], q & 15, 4 * (r / 64));
        or_bits(&b[128 + 32 * h + r % 32], q >> 4, 2 * (r / 32));
    }
}

/*
 * IQ4_XS, 136 bytes: d f16 @0, sh u16 @2, sl u8[4] @4, qs u8[128] @8
 *   k = e / 32
 *   s     nibble of sl[k / 2], low for even k; bits 4 and 5 are 2 bits at 2 * k of sh; minus 32
 *   q     nibble of qs[16 * k + e % 16], low for e % 32 < 16
 *   y     d * s * quant_k_iq4[q]
 */
void quant_k_decode_iq4_xs(const uint8_t *b, float *y) {
    float d = get_half(b);

    for (int e = 0; e < QUANT_K; e++) {
        int k = e / 32, q = b[8 + 16 * k + e % 16] >> 4 * (e % 32 / 16) & 15;
        int lo = b[4 + k / 2] >> 4 * (k % 2) & 15, hi = get16(b + 2) >> 2 * k & 3;

        y[e] = d * (float)(((lo | hi << 4) - 32) * quant_k_iq4[q]);
    }
}

void quant_k_encode_iq4_xs(const float *x, uint8_t *b) {
    static const struct quant_grid scale = { -32, 31, NULL }, code = { 0, 15, quant_k_iq4 };
    unsigned sh = 0;
    float s[8], d;

    for (int k = 0; k < 8; k++)
        s[k] = quant_fit_scale(&code, x + 32 * k, 32, false);
    d = quant_fit_scale(&scale, s, 8, true);

    memset(b, 0, 136);
    put_half(b, d);
    for (int k = 0; k < 8; k++) {
        int v = quant_fit_code(&scale, s[k], d);

        for (int e = 32 * k; e < 32 * k + 32; e++)
            or_bits(&b[8 + 16 * k + e % 16], quant_fit_code(&code, x[e], d * (float)v),
                    4 * (e % 32 / 16));
        or_bits(&b[4 + k / 2], (v + 32) & 15, 4 * (k % 2));
        sh |= (unsigned)(v + 32) >> 4 << 2 * k;
    }
    put16(b + 2, sh);
}
