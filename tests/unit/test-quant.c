/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "engine/fmt/quant.h"

/*
 * The closed forms once more, in another way: a block is a string of bits, bit i is bit i % 8 of
 * byte i / 8, and an element's code is cut out of it. Values are computed in double, where each of
 * them is exact, and rounded once.
 */

static unsigned bits(const uint8_t *b, int at, int n) {
    unsigned v = 0;

    for (int i = 0; i < n; i++)
        v |= (unsigned)(b[(at + i) / 8] >> (at + i) % 8 & 1) << i;
    return v;
}

static double half(const uint8_t *b, int at) {
    unsigned m = bits(b, 8 * at, 10), e = bits(b, 8 * at + 10, 5);
    double v = e == 0 ? ldexp(m, -24) : ldexp(1024 + m, (int)e - 25);

    if (e == 31)
        v = m ? NAN : INFINITY;
    return bits(b, 8 * at + 15, 1) ? -v : v;
}

static double f32_at(const uint8_t *b, int e) {
    unsigned m = bits(b, 0, 23), x = bits(b, 23, 8);
    double v = x == 0 ? ldexp(m, -149) : ldexp(0x800000 + m, (int)x - 150);

    (void)e;
    if (x == 255)
        v = m ? NAN : INFINITY;
    return bits(b, 31, 1) ? -v : v;
}

static double f16_at(const uint8_t *b, int e) {
    (void)e;
    return half(b, 0);
}

static double bf16_at(const uint8_t *b, int e) {
    uint8_t wide[4] = { 0, 0, b[0], b[1] };

    return f32_at(wide, e);
}

/* Of 16 bytes from bit @at: low nibbles are elements 0 to 15, high ones 16 to 31. */
static int nibble(const uint8_t *b, int at, int e) {
    return (int)bits(b, at + e % 16 * 8 + e / 16 * 4, 4);
}

static double q4_0_at(const uint8_t *b, int e) {
    return half(b, 0) * (nibble(b, 16, e) - 8);
}

static double q4_1_at(const uint8_t *b, int e) {
    return half(b, 0) * nibble(b, 32, e) + half(b, 2);
}

static double q5_0_at(const uint8_t *b, int e) {
    return half(b, 0) * (nibble(b, 48, e) + 16 * (int)bits(b, 16 + e, 1) - 16);
}

static double q5_1_at(const uint8_t *b, int e) {
    return half(b, 0) * (nibble(b, 64, e) + 16 * (int)bits(b, 32 + e, 1)) + half(b, 2);
}

static int int8(const uint8_t *b, int at) {
    return (int)bits(b, 8 * at, 7) - 128 * (int)bits(b, 8 * at + 7, 1);
}

static double q8_0_at(const uint8_t *b, int e) {
    return half(b, 0) * int8(b, 2 + e);
}

static const int iq4[] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
};

static double iq4_nl_at(const uint8_t *b, int e) {
    return half(b, 0) * iq4[nibble(b, 16, e)];
}

static double mxfp4_at(const uint8_t *b, int e) {
    int q = nibble(b, 8, e), x = q >> 1 & 3, m = q & 1;
    double v = x == 0 ? 0.5 * m : ldexp(1 + 0.5 * m, x - 1); /* E2M1 */

    return ldexp(q & 8 ? -v : v, b[0] - 127);
}

/* Four runs of 2 bits in each 32 bytes, the first in the lowest bits; two such halves. */
static int two_bits(const uint8_t *b, int at, int e) {
    return (int)bits(b, at + e / 128 * 256 + e % 32 * 8 + e / 32 % 4 * 2, 2);
}

static double q2_k_at(const uint8_t *b, int e) {
    unsigned s = bits(b, e / 16 * 8, 4), m = bits(b, e / 16 * 8 + 4, 4);

    return half(b, 80) * s * two_bits(b, 128, e) - half(b, 82) * m;
}

static double q3_k_at(const uint8_t *b, int e) {
    int k = e / 16;
    unsigned lo = bits(b, 768 + k % 8 * 8 + k / 8 * 4, 4);
    unsigned hi = bits(b, 768 + 64 + k % 4 * 8 + k / 4 * 2, 2);
    int q = two_bits(b, 256, e) + 4 * (int)bits(b, e % 32 * 8 + e / 32, 1) - 4;

    return half(b, 108) * ((int)(16 * hi + lo) - 32) * q;
}

/* Scale and minimum of 32 elements: 12 bytes from byte 4 on. */
static double q45_at(const uint8_t *b, int e, int q) {
    int k = e / 32, t = 32;
    unsigned s, m;

    if (k < 4) {
        s = bits(b, t + 8 * k, 6);
        m = bits(b, t + 8 * k + 32, 6);
    } else {
        s = bits(b, t + 8 * k + 32, 4) + 16 * bits(b, t + 8 * k - 32 + 6, 2);
        m = bits(b, t + 8 * k + 36, 4) + 16 * bits(b, t + 8 * k + 6, 2);
    }
    return half(b, 0) * s * q - half(b, 2) * m;
}

/* 64 elements in 32 bytes: the low nibbles, then the high ones. */
static int nibble64(const uint8_t *b, int at, int e) {
    return (int)bits(b, at + e / 64 * 256 + e % 32 * 8 + e / 32 % 2 * 4, 4);
}

static double q4_k_at(const uint8_t *b, int e) {
    return q45_at(b, e, nibble64(b, 128, e));
}

static double q5_k_at(const uint8_t *b, int e) {
    return q45_at(b, e, nibble64(b, 384, e) + 16 * (int)bits(b, 128 + e % 32 * 8 + e / 32, 1));
}

static double q6_k_at(const uint8_t *b, int e) {
    /* 128 elements in 64 bytes: the low nibbles, then the high ones */
    int lo = (int)bits(b, e / 128 * 512 + e % 64 * 8 + e / 64 % 2 * 4, 4);

    return half(b, 208) * int8(b, 192 + e / 16) * (lo + 16 * two_bits(b, 1024, e) - 32);
}

static double iq4_xs_at(const uint8_t *b, int e) {
    int k = e / 32, s = (int)(bits(b, 32 + 4 * k, 4) + 16 * bits(b, 16 + 2 * k, 2)) - 32;

    return half(b, 0) * s * iq4[nibble(b, 64 + 128 * k, e % 32)];
}

/* clang-format off */
static const struct form {
    double (*at)(const uint8_t *b, int e);
    uint32_t ggml_id, block, size;
    const char *name;
    int d, m;        /* bytes where f16 scale and minimum lie; -1: none */
    int lo, hi;      /* codes */
    int sub;         /* elements that share a scale */
    double gauss;    /* rms error over rms of normal deviates: measured, and 4 to 8 % */
    double shape;    /* rms error over largest magnitude of the shapes below: measured, and 10 % */
} forms[QUANT_FMT_N] = {
    [QUANT_F32]    = { f32_at,    0,    1,   4, "F32",    -1, -1,    0,   0,   1, 0,      0      },
    [QUANT_F16]    = { f16_at,    1,    1,   2, "F16",    -1, -1,    0,   0,   1, 0.0003, 0.0005 },
    [QUANT_BF16]   = { bf16_at,   30,   1,   2, "BF16",   -1, -1,    0,   0,   1, 0.0020, 0.0040 },
    [QUANT_Q4_0]   = { q4_0_at,   2,   32,  18, "Q4_0",    0, -1,   -8,   7,  32, 0.087,  0.040  },
    [QUANT_Q4_1]   = { q4_1_at,   3,   32,  20, "Q4_1",    0,  2,    0,  15,  32, 0.078,  0.039  },
    [QUANT_Q5_0]   = { q5_0_at,   6,   32,  22, "Q5_0",    0, -1,  -16,  15,  32, 0.043,  0.021  },
    [QUANT_Q5_1]   = { q5_1_at,   7,   32,  24, "Q5_1",    0,  2,    0,  31,  32, 0.037,  0.018  },
    [QUANT_Q8_0]   = { q8_0_at,   8,   32,  34, "Q8_0",    0, -1, -128, 127,  32, 0.0050, 0.0023 },
    [QUANT_Q2_K]   = { q2_k_at,   10, 256,  84, "Q2_K",   80, 82,    0,   3,  16, 0.34,   0.185  },
    [QUANT_Q3_K]   = { q3_k_at,   11, 256, 110, "Q3_K",  108, -1,   -4,   3,  16, 0.16,   0.089  },
    [QUANT_Q4_K]   = { q4_k_at,   12, 256, 144, "Q4_K",    0,  2,    0,  15,  32, 0.079,  0.038  },
    [QUANT_Q5_K]   = { q5_k_at,   13, 256, 176, "Q5_K",    0,  2,    0,  31,  32, 0.038,  0.019  },
    [QUANT_Q6_K]   = { q6_k_at,   14, 256, 210, "Q6_K",  208, -1,  -32,  31,  16, 0.018,  0.0095 },
    [QUANT_IQ4_NL] = { iq4_nl_at, 20,  32,  18, "IQ4_NL",  0, -1,    0,  15,  32, 0.081,  0.060  },
    [QUANT_IQ4_XS] = { iq4_xs_at, 23, 256, 136, "IQ4_XS",  0, -1,    0,  15,  32, 0.081,  0.060  },
    [QUANT_MXFP4]  = { mxfp4_at,  39,  32,  17, "MXFP4",  -1, -1,    0,   0,  32, 0.115,  0.18   },
};
/* clang-format on */

enum { N_BLOCK = 3000, ROW = 256, SIZE_MAX_BLOCK = 1024 /* F32: 256 blocks of 4 */ };

static uint64_t seed;

static uint32_t draw(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}

static void draw_bytes(uint8_t *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        b[i] = (uint8_t)draw();
}

static float draw_uniform(void) { /* -1 to 1 */
    return (float)draw() / 0x80000000 - 1;
}

static float draw_normal(void) {
    float v = 0;

    for (int i = 0; i < 12; i++)
        v += draw_uniform();
    return v / 2;
}

static void put16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static bool same(float a, float b) {
    return a == b || (isnan(a) && isnan(b));
}

static void check_block(enum quant_fmt fmt, const uint8_t *b) {
    float y[ROW];

    quant_decode(fmt, b, y, forms[fmt].block);
    for (int e = 0; e < (int)forms[fmt].block; e++) {
        float want = (float)forms[fmt].at(b, e);

        if (!same(want, y[e]))
            fail_msg("%s: element %d is %a, want %a", forms[fmt].name, e, (double)y[e],
                     (double)want);
    }
}

/* ---- decoders ---- */

static void test_decode_random(void **state) {
    uint8_t b[SIZE_MAX_BLOCK];

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
        for (int i = 0; i < N_BLOCK; i++) {
            draw_bytes(b, forms[fmt].size);
            check_block(fmt, b);
        }
}

/* Scales of every kind: zeros, subnormals, both signs, the largest, inf and nan. */
static void test_decode_scales(void **state) {
    static const uint16_t scales[] = { 0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff,
                                       0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00,
                                       0xfc00, 0x7e00, 0x1234, 0xb00b };
    enum { N = sizeof scales / sizeof *scales };
    uint8_t b[SIZE_MAX_BLOCK];

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
        for (int i = 0; forms[fmt].d >= 0 && i < N * N; i++) {
            draw_bytes(b, forms[fmt].size);
            put16(b + forms[fmt].d, scales[i % N]);
            if (forms[fmt].m >= 0)
                put16(b + forms[fmt].m, scales[i / N]);
            check_block(fmt, b);
        }

    for (unsigned x = 0; x < 256; x++) { /* MXFP4: 2^-127 and 2^-128 are subnormal in f32 */
        draw_bytes(b, 17);
        b[0] = (uint8_t)x;
        check_block(QUANT_MXFP4, b);
    }
}

/* Every byte value at every place, so every nibble meets every neighbour. */
static void test_decode_codes(void **state) {
    uint8_t b[SIZE_MAX_BLOCK];

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
        for (unsigned v = 0; v < 256; v++) {
            for (size_t i = 0; i < forms[fmt].size; i++)
                b[i] = (uint8_t)(v + 17 * i);
            if (forms[fmt].d >= 0)
                put16(b + forms[fmt].d, 0x3c00);
            if (forms[fmt].m >= 0)
                put16(b + forms[fmt].m, 0x3800);
            check_block(fmt, b);
        }
}

/* Rows are blocks one after the other, source and destination may lie anywhere, nothing else is
 * written. */
static void test_rows(void **state) {
    uint8_t raw[3 * SIZE_MAX_BLOCK + 2];
    float row[3 * ROW + 2], block[ROW];

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++) {
        const struct form *f = &forms[fmt];
        size_t n = 3 * f->block, size = quant_row_size(fmt, n);

        assert_int_equal(size, 3 * f->size);
        for (size_t i = 0; i < n; i++)
            row[i] = draw_normal();
        memset(raw, 0x5a, sizeof raw);
        quant_encode(fmt, row, raw + 1, n);
        assert_true(raw[0] == 0x5a && raw[size + 1] == 0x5a);

        row[0] = row[n + 1] = 77;
        quant_decode(fmt, raw + 1, row + 1, n);
        assert_true(row[0] == 77 && row[n + 1] == 77);
        for (size_t i = 0; i < 3; i++) {
            quant_decode(fmt, raw + 1 + i * f->size, block, f->block);
            assert_memory_equal(block, row + 1 + i * f->block, f->block * sizeof *block);
        }
    }
}

static void test_table(void **state) {
    uint32_t known = 0;

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++) {
        const struct quant_info *info = quant_info(fmt);
        enum quant_fmt back = QUANT_FMT_N;

        assert_string_equal(info->name, forms[fmt].name);
        assert_int_equal(info->ggml_id, forms[fmt].ggml_id);
        assert_int_equal(info->block, forms[fmt].block);
        assert_int_equal(info->size, forms[fmt].size);
        assert_int_equal(quant_from_ggml(info->ggml_id, &back), 0);
        assert_int_equal(back, fmt);
    }
    for (uint32_t id = 0; id < 4096; id++) {
        enum quant_fmt fmt;

        known += quant_from_ggml(id, &fmt) == 0;
    }
    assert_int_equal(known, QUANT_FMT_N);
    assert_int_equal(quant_from_ggml(UINT32_MAX, &(enum quant_fmt){ 0 }), QUANT_UNKNOWN);
}

/* ---- f16 and bf16 ---- */

static void test_f16(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint8_t b[2] = { (uint8_t)h, (uint8_t)(h >> 8) };
        float v = quant_f16((uint16_t)h);

        assert_true(same(v, (float)half(b, 0)));
        assert_int_equal(!!signbit(v), h >> 15);
        if (isnan(v))
            assert_true(isnan(quant_f16(quant_to_f16(v))));
        else
            assert_int_equal(quant_to_f16(v), h);
    }
}

static void test_bf16(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint8_t b[2] = { (uint8_t)h, (uint8_t)(h >> 8) };
        float v = quant_bf16((uint16_t)h);

        assert_true(same(v, (float)bf16_at(b, 0)));
        assert_int_equal(!!signbit(v), h >> 15);
        if (isnan(v))
            assert_true(isnan(quant_bf16(quant_to_bf16(v))));
        else
            assert_int_equal(quant_to_bf16(v), h);
    }
}

/* Between each two neighbours: the middle goes to the even one, a step off it to the nearer. */
static void check_ties(uint16_t (*to)(float), double (*at)(const uint8_t *, int), uint32_t inf) {
    for (uint32_t h = 0; h < inf; h++) {
        uint8_t a[2] = { (uint8_t)h, (uint8_t)(h >> 8) };
        uint8_t b[2] = { (uint8_t)(h + 1), (uint8_t)((h + 1) >> 8) };
        double low = at(a, 0), high = at(b, 0);
        float mid;

        if (h + 1 == inf) /* as if the largest had a neighbour */
            high = 2 * low - at((const uint8_t[]){ (uint8_t)(h - 1), (uint8_t)((h - 1) >> 8) }, 0);
        mid = (float)(low + (high - low) / 2);
        assert_int_equal(to(mid), h & 1 ? h + 1 : h);
        assert_int_equal(to(nextafterf(mid, INFINITY)), h + 1);
        assert_int_equal(to(nextafterf(mid, 0)), h);
        assert_int_equal(to(-mid), 0x8000 | (h & 1 ? h + 1 : h));
    }
    assert_int_equal(to(FLT_MAX), inf);
    assert_int_equal(to(INFINITY), inf);
    assert_int_equal(to(-INFINITY), 0x8000 | inf);
    assert_int_equal(to(-0.0f), 0x8000);
}

static void test_ties(void **state) {
    (void)state;
    check_ties(quant_to_f16, f16_at, 0x7c00);
    check_ties(quant_to_bf16, bf16_at, 0x7f80);
    assert_int_equal(quant_to_f16(FLT_MIN), 0);
    assert_int_equal(quant_to_f16(0x1p-25f), 0); /* half of the smallest: to even, to 0 */
    assert_int_equal(quant_to_f16(0x1.8p-25f), 1);
}

/* ---- encoders ---- */

/* Decoded, encoded, decoded: the same values. */
static void check_again(enum quant_fmt fmt, const uint8_t *b) {
    uint8_t again[SIZE_MAX_BLOCK];
    float x[ROW], y[ROW];

    quant_decode(fmt, b, x, forms[fmt].block);
    quant_encode(fmt, x, again, forms[fmt].block);
    quant_decode(fmt, again, y, forms[fmt].block);
    for (size_t e = 0; e < forms[fmt].block; e++)
        if (x[e] != y[e])
            fail_msg("%s: element %zu was %a, is %a", forms[fmt].name, e, (double)x[e],
                     (double)y[e]);
}

/* A finite f16 of either sign, subnormal now and then. */
static uint16_t draw_scale(void) {
    uint32_t v = draw();

    return (uint16_t)(v % 16 == 0 ? v >> 16 & 0x83ff : v >> 16 & 0xbfff);
}

static void test_again_simple(void **state) {
    static const enum quant_fmt fmts[] = { QUANT_Q4_0, QUANT_Q5_0, QUANT_Q8_0, QUANT_IQ4_NL };
    uint8_t b[SIZE_MAX_BLOCK];

    (void)state;
    for (size_t k = 0; k < sizeof fmts / sizeof *fmts; k++)
        for (int i = 0; i < N_BLOCK; i++) {
            draw_bytes(b, forms[fmts[k]].size);
            put16(b, draw_scale());
            check_again(fmts[k], b);
        }
    for (int i = 0; i < N_BLOCK; i++) {
        draw_bytes(b, 17);
        b[0] %= 252; /* twelve times more is still finite */
        check_again(QUANT_MXFP4, b);
    }
}

static void test_again_plain(void **state) {
    uint8_t b[4];

    (void)state;
    for (int i = 0; i < 100 * N_BLOCK; i++) {
        draw_bytes(b, 4);
        b[3] &= 0xbf; /* exponent below that of inf */
        check_again(QUANT_F32, b);
        b[1] &= 0xbf;
        check_again(QUANT_F16, b);
        check_again(QUANT_BF16, b);
    }
}

static void test_again_affine(void **state) {
    static const enum quant_fmt fmts[] = { QUANT_Q4_1, QUANT_Q5_1 };
    uint8_t b[SIZE_MAX_BLOCK];

    (void)state;
    for (size_t k = 0; k < 2; k++)
        for (int i = 0; i < N_BLOCK; i++) {
            float d = quant_f16((uint16_t)(0x0400 + draw() % 0x4400)); /* 2^-14 to 8 */

            draw_bytes(b, forms[fmts[k]].size);
            put16(b, quant_to_f16(d));
            put16(b + 2, quant_to_f16(4095 * d * draw_uniform()));
            check_again(fmts[k], b);
        }
}

/* Give element @e of a block of 256 the lowest or highest code of its format. */
static void force_code(enum quant_fmt fmt, uint8_t *b, int e, bool high) {
    struct field {
        int at, n;
    } f[2] = { { 0, 0 }, { 0, 0 } };

    switch (fmt) {
    case QUANT_Q2_K:
        f[0] = (struct field){ 128 + e / 128 * 256 + e % 32 * 8 + e / 32 % 4 * 2, 2 };
        break;
    case QUANT_Q3_K:
        f[0] = (struct field){ 256 + e / 128 * 256 + e % 32 * 8 + e / 32 % 4 * 2, 2 };
        f[1] = (struct field){ e % 32 * 8 + e / 32, 1 };
        break;
    case QUANT_Q4_K:
        f[0] = (struct field){ 128 + e / 64 * 256 + e % 32 * 8 + e / 32 % 2 * 4, 4 };
        break;
    case QUANT_Q5_K:
        f[0] = (struct field){ 384 + e / 64 * 256 + e % 32 * 8 + e / 32 % 2 * 4, 4 };
        f[1] = (struct field){ 128 + e % 32 * 8 + e / 32, 1 };
        break;
    case QUANT_Q6_K:
        f[0] = (struct field){ e / 128 * 512 + e % 64 * 8 + e / 64 % 2 * 4, 4 };
        f[1] = (struct field){ 1024 + e / 128 * 256 + e % 32 * 8 + e / 32 % 4 * 2, 2 };
        break;
    default:
        assert_int_equal(fmt, QUANT_IQ4_XS);
        f[0] = (struct field){ 64 + e / 32 * 128 + e % 16 * 8 + e / 16 % 2 * 4, 4 };
    }
    for (int k = 0; k < 2; k++)
        for (int i = f[k].at; i < f[k].at + f[k].n; i++)
            b[i / 8] = (uint8_t)((b[i / 8] & ~(1 << i % 8)) | high << i % 8);
}

static void test_again_k(void **state) {
    uint8_t b[SIZE_MAX_BLOCK];

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
        for (int i = 0; forms[fmt].block == 256 && i < N_BLOCK / 4; i++) {
            const struct form *f = &forms[fmt];

            draw_bytes(b, f->size);
            for (int e = 0; e < 256; e += f->sub) {
                int at = (int)(draw() % (uint32_t)f->sub);

                force_code(fmt, b, e + at, false);
                if (f->m >= 0)
                    force_code(fmt, b, e + (at + 1) % f->sub, true);
            }
            put16(b + f->d, draw_scale());
            if (f->m >= 0) {
                float d = quant_f16((uint16_t)(draw() % 0x4800)); /* 0, subnormal, up to 8 */

                put16(b + f->d, quant_to_f16(d));
                put16(b + f->m, quant_to_f16(7.9f * d * (1 + draw_uniform())));
            }
            check_again(fmt, b);
        }
}

static double rms_error(enum quant_fmt fmt, const float *x, size_t n) {
    uint8_t b[SIZE_MAX_BLOCK];
    float y[ROW];
    double sum = 0;

    quant_encode(fmt, x, b, n);
    quant_decode(fmt, b, y, n);
    for (size_t i = 0; i < n; i++)
        sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sqrt(sum / (double)n);
}

static void test_error_normal(void **state) {
    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++) {
        double sum = 0, power = 0;

        for (int i = 0; i < 100; i++) {
            float x[ROW];

            for (int e = 0; e < ROW; e++) {
                x[e] = 0.05f * draw_normal();
                power += (double)x[e] * x[e] / ROW;
            }
            sum += pow(rms_error(fmt, x, ROW), 2);
        }
        if (sqrt(sum / power) > forms[fmt].gauss)
            fail_msg("%s: relative error %g, limit %g", forms[fmt].name, sqrt(sum / power),
                     forms[fmt].gauss);
    }
}

static void shape(int kind, float scale, float *x) {
    for (int e = 0; e < ROW; e++) {
        switch (kind) {
        case 0: /* one value */
            x[e] = 0.7f;
            break;
        case 1: /* both signs alike */
            x[e] = e % 2 ? 1 : -1;
            break;
        case 2: /* a ramp over all, so groups of 16 have offsets */
            x[e] = (float)e / 255;
            break;
        case 3:
            x[e] = -(float)e / 255;
            break;
        case 4: /* one large among small */
            x[e] = e == 77 ? -1 : 0.01f * draw_uniform();
            break;
        case 5: /* all far from 0 */
            x[e] = 1 + 0.1f * draw_uniform();
            break;
        case 6:
            x[e] = -1 - 0.1f * draw_uniform();
            break;
        case 7: /* groups of very different size */
            x[e] = draw_uniform() * powf(2, (float)(-e / 16));
            break;
        default:
            x[e] = draw_uniform();
        }
        x[e] *= scale;
    }
}

static void test_error_shapes(void **state) {
    static const float scales[] = { 1, -1, 0.01f, 300, -0.002f };

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
        for (int kind = 0; kind < 9; kind++)
            for (size_t s = 0; s < 5; s++) {
                float x[ROW], top = 0;
                double err;

                shape(kind, scales[s], x);
                for (int e = 0; e < ROW; e++)
                    top = fmaxf(top, fabsf(x[e]));
                err = rms_error(fmt, x, ROW) / top;
                if (err > forms[fmt].shape)
                    fail_msg("%s: shape %d times %g: error %g, limit %g", forms[fmt].name, kind,
                             (double)scales[s], err, forms[fmt].shape);
            }
}

/* Zeros stay zeros; what is too small or too large for the scales comes out finite. */
static void test_error_extremes(void **state) {
    static const float values[] = { 0, 0x1p-149f, 1e-30f, 1e-7f, 65504, 1e6f, 1e30f, FLT_MAX };
    uint8_t b[SIZE_MAX_BLOCK];
    float x[ROW], y[ROW];

    (void)state;
    for (enum quant_fmt fmt = QUANT_Q4_0; fmt < QUANT_FMT_N; fmt++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++)
            for (int mode = 0; mode < 4; mode++) {
                for (int e = 0; e < ROW; e++)
                    x[e] = mode == 0   ? values[v]
                           : mode == 1 ? -values[v]
                           : mode == 2 ? values[v] * (e % 2 ? 1.0f : -1.0f)
                                       : values[v] * draw_uniform();
                quant_encode(fmt, x, b, ROW);
                quant_decode(fmt, b, y, ROW);
                for (int e = 0; e < ROW; e++) {
                    assert_true(isfinite(y[e]));
                    assert_true(fabsf(y[e]) <= 1.1f * values[v] + 0x1p-24f);
                }
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),          cmocka_unit_test(test_decode_random),
        cmocka_unit_test(test_decode_scales),  cmocka_unit_test(test_decode_codes),
        cmocka_unit_test(test_rows),           cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),           cmocka_unit_test(test_ties),
        cmocka_unit_test(test_again_simple),   cmocka_unit_test(test_again_plain),
        cmocka_unit_test(test_again_affine),   cmocka_unit_test(test_again_k),
        cmocka_unit_test(test_error_normal),   cmocka_unit_test(test_error_shapes),
        cmocka_unit_test(test_error_extremes),
    };

    return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
