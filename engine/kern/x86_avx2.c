/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AVX2 with FMA and F16C.
 *
 * Weights are unpacked 256 elements at a time into struct unit, then meet up to N_M activation
 * rows. One block of 32 codes gives eight i32 sums of four products each: the first four lanes
 * belong to the first 16 elements, so a scale for each 16 elements fits every format.
 */

#include <immintrin.h>
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

enum { SIGNED = -1 }; /* codes are i8; else u8 below 64 and the value is code - offset */

/* element e = d[e / 128][e % 128 / 16] * (q[e / 32][e % 32] - offset) + m[..][..] */
struct unit {
    __m256i q[8];
    __m256 d[2];
    __m256 m[2];
};

/* One activation row, the part that meets a unit. */
struct act {
    const int8_t *q;
    __m256 d[2];    /* for each 16 */
    __m256 s[2];    /* d * sum of 16 */
    __m256i off[8]; /* offset * q, pairs summed: i16 */
};

typedef void unpack_fn(const uint8_t *w, struct unit *u);

/* What the compiler must know about a format to make one loop of it. */
struct form {
    unpack_fn *unpack;
    int offset;     /* or SIGNED */
    bool has_m;     /* else m is 0 */
    uint32_t block; /* bytes of 32 elements when those are a block, else 0 */
    uint32_t unit;  /* bytes of 256 elements */
};

INLINE __m256i load256(const void *p) {
    return _mm256_loadu_si256(p);
}

INLINE __m128i load128(const void *p) {
    return _mm_loadu_si128(p);
}

INLINE uint32_t load32(const void *p) {
    uint32_t v;

    memcpy(&v, p, sizeof v);

    return v;
}

INLINE short load16(const void *p) {
    short v;

    memcpy(&v, p, sizeof v);

    return v;
}

INLINE float f16(const uint8_t *p) {
    return _cvtsh_ss((unsigned short)load16(p));
}

INLINE __m256i bytes(int v) {
    return _mm256_set1_epi8((char)v);
}

INLINE float hsum(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));

    return _mm_cvtss_f32(s);
}

INLINE double hsum_pd(__m256d v) {
    __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));

    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

/* ---- unpacking: one function a format ---- */

/* Eight values, one for each 32 elements, to one for each 16. */
INLINE void each_16(__m256 v, __m256 ret[2]) {
    ret[0] = _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    ret[1] = _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7));
}

/* An f16 of each of eight blocks. */
INLINE __m256 f16_of_8(const uint8_t *w, size_t step) {
    return _mm256_cvtph_ps(_mm_setr_epi16(
        load16(w), load16(w + step), load16(w + 2 * step), load16(w + 3 * step),
        load16(w + 4 * step), load16(w + 5 * step), load16(w + 6 * step), load16(w + 7 * step)));
}

/* 16 bytes: low nibbles, then high ones. */
INLINE __m256i nibbles(const uint8_t *w) {
    __m128i x = load128(w);

    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), bytes(15));
}

/* Bit j of the 32 -> 16 in byte j. */
INLINE __m256i fifth_bits(const uint8_t *w) {
    const __m256i from =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i h = _mm256_shuffle_epi8(_mm256_set1_epi32((int)load32(w)), from);

    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(h, bit), bit), bytes(16));
}

/* Bit @from of every byte, moved to bit @to and alone there. */
INLINE __m256i bit_to(__m256i v, int from, int to) {
    v = from > to ? _mm256_srli_epi16(v, from - to) : _mm256_slli_epi16(v, to - from);

    return _mm256_and_si256(v, bytes(1 << to));
}

INLINE __m256i iq4_table(void) {
    return _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113));
}

INLINE void unpack_q4_0(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++)
        u->q[j] = nibbles(w + 18 * j + 2);
    each_16(f16_of_8(w, 18), u->d);
}

INLINE void unpack_q4_1(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++)
        u->q[j] = nibbles(w + 20 * j + 4);
    each_16(f16_of_8(w, 20), u->d);
    each_16(f16_of_8(w + 2, 20), u->m);
}

INLINE void unpack_q5_0(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++)
        u->q[j] = _mm256_or_si256(nibbles(w + 22 * j + 6), fifth_bits(w + 22 * j + 2));
    each_16(f16_of_8(w, 22), u->d);
}

INLINE void unpack_q5_1(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++)
        u->q[j] = _mm256_or_si256(nibbles(w + 24 * j + 8), fifth_bits(w + 24 * j + 4));
    each_16(f16_of_8(w, 24), u->d);
    each_16(f16_of_8(w + 2, 24), u->m);
}

INLINE void unpack_q8_0(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++)
        u->q[j] = load256(w + 34 * j + 2);
    each_16(f16_of_8(w, 34), u->d);
}

INLINE void unpack_iq4_nl(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++)
        u->q[j] = _mm256_shuffle_epi8(iq4_table(), nibbles(w + 18 * j + 2));
    each_16(f16_of_8(w, 18), u->d);
}

/* The scale is 2^(e - 128), made of its bits. */
INLINE void unpack_mxfp4(const uint8_t *w, struct unit *u) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    __m256i e = _mm256_setr_epi32(w[0], w[17], w[34], w[51], w[68], w[85], w[102], w[119]);
    __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);

    e = _mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e));
    each_16(_mm256_castsi256_ps(e), u->d);
    for (int j = 0; j < 8; j++)
        u->q[j] = _mm256_shuffle_epi8(table, nibbles(w + 17 * j + 1));
}

/* 16 bytes to 16 floats, times @d. */
INLINE void scale_u8(__m128i v, float d, __m256 ret[2]) {
    ret[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)), _mm256_set1_ps(d));
    ret[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))),
                           _mm256_set1_ps(d));
}

INLINE void scale_i8(__m128i v, float d, __m256 ret[2]) {
    ret[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_set1_ps(d));
    ret[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))),
                           _mm256_set1_ps(d));
}

INLINE void unpack_q2_k(const uint8_t *w, struct unit *u) {
    const __m128i low = _mm_set1_epi8(15);
    __m128i t = load128(w);

    for (int j = 0; j < 8; j++)
        u->q[j] =
            _mm256_and_si256(_mm256_srli_epi16(load256(w + 16 + j / 4 * 32), j % 4 * 2), bytes(3));
    scale_u8(_mm_and_si128(t, low), f16(w + 80), u->d);
    scale_u8(_mm_and_si128(_mm_srli_epi16(t, 4), low), -f16(w + 82), u->m);
}

INLINE void unpack_q3_k(const uint8_t *w, struct unit *u) {
    __m256i h = load256(w);
    uint32_t a = load32(w + 96), b = load32(w + 100), c = load32(w + 104);
    __m128i low = _mm_and_si128(_mm_setr_epi32((int)a, (int)b, (int)(a >> 4), (int)(b >> 4)),
                                _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(
        _mm_setr_epi32((int)c, (int)(c >> 2), (int)(c >> 4), (int)(c >> 6)), _mm_set1_epi8(3));

    for (int j = 0; j < 8; j++) {
        __m256i q = _mm256_srli_epi16(load256(w + 32 + j / 4 * 32), j % 4 * 2);

        u->q[j] = _mm256_or_si256(_mm256_and_si256(q, bytes(3)), bit_to(h, j, 2));
    }
    low = _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), _mm_set1_epi8(32));
    scale_i8(low, f16(w + 108), u->d);
}

/* Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minima in 12 bytes. */
INLINE void scale_k4(const uint8_t *w, struct unit *u) {
    uint32_t a = load32(w + 4), b = load32(w + 8), c = load32(w + 12);
    uint32_t sc = (c & 0x0f0f0f0f) | (a >> 6 & 0x03030303) << 4;
    uint32_t mn = (c >> 4 & 0x0f0f0f0f) | (b >> 6 & 0x03030303) << 4;
    __m256i s = _mm256_cvtepu8_epi32(_mm_setr_epi32((int)(a & 0x3f3f3f3f), (int)sc, 0, 0));
    __m256i m = _mm256_cvtepu8_epi32(_mm_setr_epi32((int)(b & 0x3f3f3f3f), (int)mn, 0, 0));

    each_16(_mm256_mul_ps(_mm256_cvtepi32_ps(s), _mm256_set1_ps(f16(w))), u->d);
    each_16(_mm256_mul_ps(_mm256_cvtepi32_ps(m), _mm256_set1_ps(-f16(w + 2))), u->m);
}

INLINE void unpack_q4_k(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++)
        u->q[j] =
            _mm256_and_si256(_mm256_srli_epi16(load256(w + 16 + j / 2 * 32), j % 2 * 4), bytes(15));
    scale_k4(w, u);
}

INLINE void unpack_q5_k(const uint8_t *w, struct unit *u) {
    __m256i h = load256(w + 16);

    for (int j = 0; j < 8; j++) {
        __m256i q = _mm256_srli_epi16(load256(w + 48 + j / 2 * 32), j % 2 * 4);

        u->q[j] = _mm256_or_si256(_mm256_and_si256(q, bytes(15)), bit_to(h, j, 4));
    }
    scale_k4(w, u);
}

INLINE void unpack_q6_k(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 8; j++) {
        __m256i low = load256(w + j / 4 * 64 + j % 2 * 32);
        __m256i high = _mm256_srli_epi16(load256(w + 128 + j / 4 * 32), j % 4 * 2);

        low = _mm256_and_si256(_mm256_srli_epi16(low, j % 4 / 2 * 4), bytes(15));
        high = _mm256_slli_epi16(_mm256_and_si256(high, bytes(3)), 4);
        u->q[j] = _mm256_or_si256(low, high);
    }
    scale_i8(load128(w + 192), f16(w + 208), u->d);
}

INLINE void unpack_iq4_xs(const uint8_t *w, struct unit *u) {
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32((int)load32(w + 4)),
                                    _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(load16(w + 2)),
                                     _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));

    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    low = _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
    each_16(_mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_set1_ps(f16(w))), u->d);
    for (int j = 0; j < 8; j++)
        u->q[j] = _mm256_shuffle_epi8(iq4_table(), nibbles(w + 8 + 16 * j));
}

/* ---- quantised weights, int8 activations ---- */

INLINE void act_load(struct form f, const struct kern_rows *x, uint32_t m, size_t k,
                     struct act *ret) {
    const int16_t *s = x->s + (m * x->q_stride + k) / KERN_Q8_SUM;

    ret->q = x->q + m * x->q_stride + k;
    each_16(_mm256_loadu_ps(x->d + (m * x->q_stride + k) / KERN_Q8_BLOCK), ret->d);
    if (f.has_m)
        for (int h = 0; h < 2; h++)
            ret->s[h] = _mm256_mul_ps(
                ret->d[h], _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load128(s + 8 * h))));
    if (f.offset > 0)
        for (int j = 0; j < 8; j++)
            ret->off[j] = _mm256_maddubs_epi16(bytes(f.offset), load256(ret->q + 32 * j));
}

/* Eight partial sums of a unit times an activation row.
 * maddubs can not saturate: 2 * 63 * 127 for u8 codes, 2 * 128 * 127 for i8 ones. */
INLINE __m256 tile(struct form f, const struct unit *u, const struct act *a) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256 d[2], sum = _mm256_setzero_ps();

    for (int h = 0; h < 2; h++) {
        d[h] = _mm256_mul_ps(u->d[h], a->d[h]);
        if (f.has_m)
            sum = h ? _mm256_fmadd_ps(u->m[h], a->s[h], sum) : _mm256_mul_ps(u->m[h], a->s[h]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        __m256i to = _mm256_add_epi32(_mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1),
                                      _mm256_set1_epi32(j % 4 * 2));
        __m256i x = load256(a->q + 32 * j), p;

        if (f.offset == SIGNED)
            p = _mm256_maddubs_epi16(_mm256_abs_epi8(u->q[j]), _mm256_sign_epi8(x, u->q[j]));
        else
            p = _mm256_maddubs_epi16(u->q[j], x);
        if (f.offset > 0)
            p = _mm256_sub_epi16(p, a->off[j]);
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(p, one)),
                              _mm256_permutevar8x32_ps(d[j / 4], to), sum);
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
    __m256 sum[N_R][N_M];
    uint8_t tail[UNIT_BYTES];

    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t m = 0; m < n_m; m++)
            sum[r][m] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < n_col; k += UNIT) {
        struct act a[N_M];

        for (uint32_t m = 0; m < n_m; m++)
            act_load(f, x, m0 + m, k, &a[m]);
        for (uint32_t r = 0; r < n_r; r++) {
            struct unit u;

            f.unpack(unit_at(f, w + r * w_stride, k, n_col, tail), &u);
            for (uint32_t m = 0; m < n_m; m++)
                sum[r][m] = _mm256_add_ps(sum[r][m], tile(f, &u, &a[m]));
        }
    }
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t m = 0; m < n_m; m++)
            y[(m0 + m) * y_stride + r] = hsum(sum[r][m]);
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

/* ---- float weights, or quantised ones decoded; float activations ---- */

typedef __m256 load_fn(const uint8_t *w, size_t i);

INLINE __m256 load_f32(const uint8_t *w, size_t i) {
    return _mm256_loadu_ps((const float *)(const void *)w + i);
}

INLINE __m256 load_f16(const uint8_t *w, size_t i) {
    return _mm256_cvtph_ps(load128(w + 2 * i));
}

INLINE __m256 load_bf16(const uint8_t *w, size_t i) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(w + 2 * i)), 16));
}

/* sum += w * x over n elements, a multiple of 16; two accumulators a pair of rows. */
INLINE void fma_tile(load_fn *load, const uint8_t *w, size_t w_stride, uint32_t n_r, const float *x,
                     size_t x_stride, uint32_t n_m, size_t n, __m256 sum[N_R][N_M][2]) {
    for (size_t i = 0; i < n; i += 16)
        for (uint32_t h = 0; h < 2; h++)
            for (uint32_t r = 0; r < n_r; r++) {
                __m256 v = load(w + r * w_stride, i + 8 * h);

                for (uint32_t m = 0; m < n_m; m++)
                    sum[r][m][h] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + m * x_stride + i + 8 * h),
                                                   sum[r][m][h]);
            }
}

INLINE void mul_float_tile(load_fn *load, size_t size, const uint8_t *w, size_t w_stride,
                           uint32_t n_r, uint32_t n_col, const float *x, size_t x_stride,
                           uint32_t n_m, float *y, size_t y_stride) {
    __m256 sum[N_R][N_M][2];
    uint32_t n = n_col / 16 * 16;

    for (uint32_t i = 0; i < N_R * N_M * 2; i++)
        sum[i / 2 / N_M][i / 2 % N_M][i % 2] = _mm256_setzero_ps();
    fma_tile(load, w, w_stride, n_r, x, x_stride, n_m, n, sum);
    if (n < n_col) { /* the last few, with zeros behind them */
        float x_tail[N_M][16] = { 0 };
        uint8_t w_tail[N_R][64] = { 0 };

        for (uint32_t r = 0; r < n_r; r++)
            memcpy(w_tail[r], w + r * w_stride + n * size, (n_col - n) * size);
        for (uint32_t m = 0; m < n_m; m++)
            memcpy(x_tail[m], x + m * x_stride + n, (n_col - n) * sizeof *x);
        fma_tile(load, w_tail[0], sizeof w_tail[0], n_r, x_tail[0], 16, n_m, 16, sum);
    }
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t m = 0; m < n_m; m++)
            y[m * y_stride + r] = hsum(_mm256_add_ps(sum[r][m][0], sum[r][m][1]));
}

/* Tile shapes the compiler keeps in registers; the order within a sum is the same in all. */
INLINE void mul_float(load_fn *load, size_t size, const uint8_t *w, size_t w_stride, uint32_t n_out,
                      uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    uint32_t r_max = x->n_row == 1 ? 4 : 2, n_r, n_m;

    for (uint32_t o = 0; o < n_out; o += n_r) {
        const uint8_t *row = w + o * w_stride;

        n_r = n_out - o < r_max ? n_out - o : r_max;
        for (uint32_t m = 0; m < x->n_row; m += n_m) {
            const float *f = x->f + m * x->f_stride;
            float *to = y + m * y_stride + o;

            n_m = x->n_row - m < 2 ? 1 : 2;
            if (n_r == 4)
                mul_float_tile(load, size, row, w_stride, 4, n_col, f, x->f_stride, 1, to,
                               y_stride);
            else if (n_r == 2 && n_m == 2)
                mul_float_tile(load, size, row, w_stride, 2, n_col, f, x->f_stride, 2, to,
                               y_stride);
            else
                mul_float_tile(load, size, row, w_stride, n_r, n_col, f, x->f_stride, n_m, to,
                               y_stride);
        }
    }
}

INLINE void decode_unit(struct form f, const uint8_t *w, float *dst) {
    struct unit u;
    float d[16], m[16];

    f.unpack(w, &u);
    for (int h = 0; h < 2; h++) {
        _mm256_storeu_ps(d + 8 * h, u.d[h]);
        _mm256_storeu_ps(m + 8 * h, f.has_m ? u.m[h] : _mm256_setzero_ps());
    }
    for (int i = 0; i < 32; i++) {
        __m128i q = _mm_loadl_epi64((const __m128i *)((const uint8_t *)u.q + 8 * i));
        __m256i v = f.offset == SIGNED ? _mm256_cvtepi8_epi32(q) : _mm256_cvtepu8_epi32(q);
        __m256 x;

        if (f.offset > 0)
            v = _mm256_sub_epi32(v, _mm256_set1_epi32(f.offset));
        x = _mm256_mul_ps(_mm256_cvtepi32_ps(v), _mm256_set1_ps(d[i / 2]));
        if (f.has_m)
            x = _mm256_add_ps(x, _mm256_set1_ps(m[i / 2]));
        _mm256_storeu_ps(dst + 8 * i, x);
    }
}

INLINE void decode_quant(struct form f, const uint8_t *w, float *dst, size_t n) {
    uint8_t tail[UNIT_BYTES];
    float last[UNIT];
    size_t k = 0;

    for (; k + UNIT <= n; k += UNIT)
        decode_unit(f, w + k / UNIT * f.unit, dst + k);
    if (k < n) {
        decode_unit(f, unit_at(f, w, (uint32_t)k, (uint32_t)n, tail), last);
        memcpy(dst + k, last, (n - k) * sizeof *dst);
    }
}

INLINE void mul_decoded(struct form f, const uint8_t *w, size_t w_stride, uint32_t n_out,
                        uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    uint8_t tail[UNIT_BYTES];
    float piece[UNIT];

    for (uint32_t o = 0; o < n_out; o++)
        for (uint32_t m0 = 0; m0 < x->n_row; m0 += N_M) {
            uint32_t n_m = x->n_row - m0 < N_M ? x->n_row - m0 : N_M;
            __m256 sum[N_M][2];

            for (uint32_t m = 0; m < n_m; m++)
                sum[m][0] = sum[m][1] = _mm256_setzero_ps();
            for (uint32_t k = 0; k < n_col; k += UNIT) {
                uint32_t n = n_col - k < UNIT ? n_col - k : UNIT;

                decode_unit(f, unit_at(f, w + o * w_stride, k, n_col, tail), piece);
                for (uint32_t m = 0; m < n_m; m++) {
                    const float *v = x->f + (m0 + m) * x->f_stride + k;

                    for (uint32_t i = 0; i < n; i += 16)
                        for (uint32_t h = 0; h < 2; h++)
                            sum[m][h] = _mm256_fmadd_ps(_mm256_loadu_ps(piece + i + 8 * h),
                                                        _mm256_loadu_ps(v + i + 8 * h), sum[m][h]);
                }
            }
            for (uint32_t m = 0; m < n_m; m++)
                y[(m0 + m) * y_stride + o] = hsum(_mm256_add_ps(sum[m][0], sum[m][1]));
        }
}

#define QUANT_ENTRIES(fmt, OFFSET, HAS_M, BLOCK, BYTES)                                            \
    static const struct form form_##fmt = { unpack_##fmt, OFFSET, HAS_M, BLOCK, BYTES };           \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        mul_quant(form_##fmt, w, w_stride, n_out, n_col, x, y, y_stride);                          \
    }                                                                                              \
    static void exact_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,        \
                            const struct kern_rows *x, float *y, size_t y_stride) {                \
        mul_decoded(form_##fmt, w, w_stride, n_out, n_col, x, y, y_stride);                        \
    }                                                                                              \
    static void decode_##fmt(const void *src, float *dst, size_t n) {                              \
        decode_quant(form_##fmt, src, dst, n);                                                     \
    }

/* clang-format off */
QUANT_ENTRIES(q4_0,   8,      false, 18, 144)
QUANT_ENTRIES(q4_1,   0,      true,  20, 160)
QUANT_ENTRIES(q5_0,   16,     false, 22, 176)
QUANT_ENTRIES(q5_1,   0,      true,  24, 192)
QUANT_ENTRIES(q8_0,   SIGNED, false, 34, 272)
QUANT_ENTRIES(q2_k,   0,      true,  0,  84)
QUANT_ENTRIES(q3_k,   4,      false, 0,  110)
QUANT_ENTRIES(q4_k,   0,      true,  0,  144)
QUANT_ENTRIES(q5_k,   0,      true,  0,  176)
QUANT_ENTRIES(q6_k,   32,     false, 0,  210)
QUANT_ENTRIES(iq4_nl, SIGNED, false, 18, 144)
QUANT_ENTRIES(iq4_xs, SIGNED, false, 0,  136)
QUANT_ENTRIES(mxfp4,  SIGNED, false, 17, 136)
/* clang-format on */

/* ---- float rows ---- */

#define ROW_ENTRIES(fmt, type)                                                                     \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        mul_float(load_##fmt, sizeof(type), w, w_stride, n_out, n_col, x, y, y_stride);            \
    }                                                                                              \
    static void decode_##fmt(const void *src, float *dst, size_t n) {                              \
        decode_row(load_##fmt, sizeof(type), src, dst, n);                                         \
    }

/* All ones in the first @n of eight lanes. */
INLINE __m256i first(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* Fewer than eight elements, zeros behind them. */
INLINE __m256 load_part(load_fn *load, size_t size, const uint8_t *w, size_t n) {
    uint8_t part[32] = { 0 };

    memcpy(part, w, n * size);

    return load(part, 0);
}

INLINE void decode_row(load_fn *load, size_t size, const uint8_t *src, float *dst, size_t n) {
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, load(src, i));
    if (i < n)
        _mm256_maskstore_ps(dst + i, first(n - i), load_part(load, size, src + i * size, n - i));
}

ROW_ENTRIES(f32, float)
ROW_ENTRIES(f16, uint16_t)
ROW_ENTRIES(bf16, uint16_t)

static void axpy(float s, const float *x, float *y, size_t n) {
    __m256 by = _mm256_set1_ps(s);
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i,
                         _mm256_fmadd_ps(by, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    if (i < n) {
        __m256i mask = first(n - i);
        __m256 v = _mm256_maskload_ps(x + i, mask);

        _mm256_maskstore_ps(y + i, mask, _mm256_fmadd_ps(by, v, _mm256_maskload_ps(y + i, mask)));
    }
}

/* Bit for bit what generic.c does; the operand order of min and max decides about a NaN. */
INLINE void quantize_32(const __m256 x[4], int8_t *q, float *d, int16_t *s) {
    const __m256i plus = _mm256_set1_epi32(0x7fffffff);
    __m256i max = _mm256_and_si256(_mm256_castps_si256(x[0]), plus), v[4];
    __m128i top;
    float most, inverse;

    for (int i = 1; i < 4; i++)
        max = _mm256_max_epi32(max, _mm256_and_si256(_mm256_castps_si256(x[i]), plus));
    top = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    top = _mm_max_epi32(top, _mm_srli_si128(top, 8));
    top = _mm_max_epi32(top, _mm_srli_si128(top, 4));
    most = _mm_cvtss_f32(_mm_castsi128_ps(top));

    *d = most < KERN_Q8_TINY ? 0 : most / 127;
    inverse = most < KERN_Q8_TINY ? 0 : 127 / most;
    for (int i = 0; i < 4; i++) {
        __m256 f = _mm256_mul_ps(x[i], _mm256_set1_ps(inverse));

        f = _mm256_min_ps(_mm256_max_ps(f, _mm256_set1_ps(-127)), _mm256_set1_ps(127));
        v[i] = _mm256_cvtps_epi32(f);
    }
    v[0] = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    v[0] = _mm256_permutevar8x32_epi32(v[0], _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)q, v[0]);
    v[1] = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes(1), v[0]), _mm256_set1_epi16(1));
    v[1] = _mm256_hadd_epi32(v[1], v[1]);
    v[1] = _mm256_hadd_epi32(v[1], v[1]);
    s[0] = (int16_t)_mm256_extract_epi32(v[1], 0);
    s[1] = (int16_t)_mm256_extract_epi32(v[1], 4);
}

static void quantize(const float *x, size_t n, int8_t *q, float *d, int16_t *s) {
    size_t n_pad = (n + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;

    for (size_t k = 0; k < n_pad; k += KERN_Q8_BLOCK) {
        __m256 v[4];

        for (size_t i = 0; i < 4; i++) {
            size_t at = k + 8 * i;

            v[i] = at + 8 <= n ? _mm256_loadu_ps(x + at)
                   : at < n    ? _mm256_maskload_ps(x + at, first(n - at))
                               : _mm256_setzero_ps();
        }
        quantize_32(v, q + k, d + k / KERN_Q8_BLOCK, s + k / KERN_Q8_SUM);
    }
}

/* ---- element operations ---- */

/* exp(x), about 1 ulp: 2^n times the Taylor series on |r| <= ln 2 / 2, where its term of degree 8
 * is below 6e-9. Below -87 the result is 0; above KERN_EXP_MAX it stays there; NaN stays NaN. */
INLINE __m256 exp_8(__m256 x) {
    const __m256 ln2_high = _mm256_set1_ps(0x1.62e43p-1f),
                 ln2_low = _mm256_set1_ps(-0x1.05c61p-29f);
    const float c[] = { 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1 };
    __m256 too_low = _mm256_cmp_ps(x, _mm256_set1_ps(-87), _CMP_LT_OQ), n, r, p;
    __m256i power;

    x = _mm256_min_ps(_mm256_set1_ps(KERN_EXP_MAX), x);
    x = _mm256_max_ps(_mm256_set1_ps(-87), x);
    n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    r = _mm256_fnmadd_ps(n, ln2_low, _mm256_fnmadd_ps(n, ln2_high, x));
    p = _mm256_set1_ps(c[0]);
    for (int i = 1; i < 8; i++)
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c[i]));
    power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);

    return _mm256_andnot_ps(too_low, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

static void rmsnorm(const float *x, const float *w, float eps, float *y, size_t n) {
    __m256d sum[2] = { _mm256_setzero_pd(), _mm256_setzero_pd() };
    __m256 by;
    size_t i;

    for (i = 0; i < n; i += 8) {
        __m256 v = n - i < 8 ? _mm256_maskload_ps(x + i, first(n - i)) : _mm256_loadu_ps(x + i);
        __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
        __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));

        sum[0] = _mm256_fmadd_pd(low, low, sum[0]);
        sum[1] = _mm256_fmadd_pd(high, high, sum[1]);
    }
    by = _mm256_set1_ps(
        (float)(1 / sqrt(hsum_pd(_mm256_add_pd(sum[0], sum[1])) / (double)n + (double)eps)));
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), by);

        _mm256_storeu_ps(y + i, w ? _mm256_mul_ps(v, _mm256_loadu_ps(w + i)) : v);
    }
    for (; i < n; i++)
        y[i] = x[i] * _mm256_cvtss_f32(by) * (w ? w[i] : 1);
}

INLINE __m256 geglu_8(__m256 g, __m256 u) {
    __m256 cube = _mm256_mul_ps(_mm256_mul_ps(g, g), g), t, e;

    t = _mm256_mul_ps(_mm256_set1_ps(-2 * KERN_GELU_A),
                      _mm256_fmadd_ps(_mm256_set1_ps(KERN_GELU_B), cube, g));
    e = _mm256_add_ps(_mm256_set1_ps(1), exp_8(t));

    return _mm256_mul_ps(_mm256_div_ps(g, e), u);
}

static void geglu(const float *g, const float *u, float *y, size_t n) {
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, geglu_8(_mm256_loadu_ps(g + i), _mm256_loadu_ps(u + i)));
    if (i < n) {
        __m256i mask = first(n - i);

        _mm256_maskstore_ps(
            y + i, mask, geglu_8(_mm256_maskload_ps(g + i, mask), _mm256_maskload_ps(u + i, mask)));
    }
}

static void softmax(float *x, size_t n) {
    const __m256 low = _mm256_set1_ps(-INFINITY);
    __m256d sum = _mm256_setzero_pd();
    __m256 top = low, by;
    float max[8];
    double total;
    size_t i;

    for (i = 0; i < n; i += 8) {
        __m256i mask = first(n - i < 8 ? n - i : 8);
        __m256 v =
            _mm256_blendv_ps(low, _mm256_maskload_ps(x + i, mask), _mm256_castsi256_ps(mask));

        top = _mm256_max_ps(v, top); /* the second wins over a NaN */
    }
    _mm256_storeu_ps(max, top);
    for (int j = 1; j < 8; j++)
        max[0] = max[j] > max[0] ? max[j] : max[0];
    if (max[0] == -INFINITY) {
        memset(x, 0, n * sizeof *x);
        return;
    }

    for (i = 0; i < n; i += 8) {
        __m256i mask = first(n - i < 8 ? n - i : 8);
        __m256 v = _mm256_sub_ps(_mm256_maskload_ps(x + i, mask), _mm256_set1_ps(max[0]));

        v = _mm256_and_ps(exp_8(v), _mm256_castsi256_ps(mask));
        _mm256_maskstore_ps(x + i, mask, v);
        sum = _mm256_add_pd(sum, _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
                                               _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))));
    }
    total = hsum_pd(sum);
    by = _mm256_set1_ps((float)(1 / total));
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), by));
    for (; i < n; i++)
        x[i] *= _mm256_cvtss_f32(by);
}

static void rope(float *x, const float *cs, size_t n) {
    size_t half = n / 2, i = 0;

    for (; i + 8 <= half; i += 8) {
        __m256 p = _mm256_loadu_ps(cs + 2 * i), q = _mm256_loadu_ps(cs + 2 * i + 8);
        __m256 even = _mm256_shuffle_ps(p, q, 0x88), odd = _mm256_shuffle_ps(p, q, 0xdd);
        __m256 c = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
        __m256 s = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odd), 0xd8));
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);

        _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + i + half, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
    }
    for (; i < half; i++) {
        float a = x[i], b = x[i + half];

        x[i] = a * cs[2 * i] - b * cs[2 * i + 1];
        x[i + half] = a * cs[2 * i + 1] + b * cs[2 * i];
    }
}

/* Near 0 Lambert's continued fraction z / (1 + z^2 / (3 + z^2 / (5 + z^2 / (7 + z^2 / 9)))), which
 * is right to 1e-9 below 0.6; else 1 - 2 / (exp(2 |z|) + 1) with the sign of z. */
INLINE __m256 tanh_8(__m256 z) {
    const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1);
    __m256 a = _mm256_andnot_ps(sign, z), z2 = _mm256_mul_ps(z, z), e, near, num, den;

    num = _mm256_add_ps(z2, _mm256_set1_ps(105));
    num = _mm256_fmadd_ps(num, z2, _mm256_set1_ps(945));
    den = _mm256_fmadd_ps(z2, _mm256_set1_ps(15), _mm256_set1_ps(420));
    den = _mm256_fmadd_ps(den, z2, _mm256_set1_ps(945));
    near = _mm256_mul_ps(z, _mm256_div_ps(num, den));
    e = _mm256_add_ps(exp_8(_mm256_add_ps(a, a)), one);
    e = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2), e));
    e = _mm256_or_ps(e, _mm256_and_ps(z, sign));

    return _mm256_blendv_ps(e, near, _mm256_cmp_ps(a, _mm256_set1_ps(0.6f), _CMP_LT_OQ));
}

static void softcap(float *x, float cap, size_t n) {
    __m256 by = _mm256_set1_ps(cap);
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(x + i,
                         _mm256_mul_ps(by, tanh_8(_mm256_div_ps(_mm256_loadu_ps(x + i), by))));
    if (i < n) {
        __m256i mask = first(n - i);
        __m256 v = _mm256_div_ps(_mm256_maskload_ps(x + i, mask), by);

        _mm256_maskstore_ps(x + i, mask, _mm256_mul_ps(by, tanh_8(v)));
    }
}

#define BIND(FMT, fmt)                                                                             \
    k->mul[FMT] = mul_##fmt;                                                                       \
    k->mul_exact[FMT] = exact_##fmt;                                                               \
    k->decode[FMT] = decode_##fmt
#define BIND_ROW(FMT, fmt)                                                                         \
    k->mul[FMT] = k->mul_exact[FMT] = mul_##fmt;                                                   \
    k->decode[FMT] = decode_##fmt

/* What the registers hold does not matter. */
static uint64_t peak(uint32_t n) {
    for (uint32_t i = 0; i < n * 128; i++)
        __asm__ volatile(".irp acc, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
                         "vpmaddubsw %%ymm0, %%ymm0, %%ymm1\n"
                         "vpmaddwd %%ymm0, %%ymm1, %%ymm1\n"
                         "vpaddd %%ymm1, %%ymm\\acc, %%ymm\\acc\n"
                         ".endr"
                         :
                         :
                         : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                           "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    _mm256_zeroupper();

    return (uint64_t)n * 128 * 14 * 32 * 2;
}

static uint64_t read_all(const void *p, size_t n) {
    const __m256i *v = p;
    __m256i any[4] = { 0 };
    __m128i x;

    for (size_t i = 0; i < n / sizeof *v; i += 4)
        for (int k = 0; k < 4; k++)
            any[k] = _mm256_or_si256(any[k], _mm256_load_si256(v + i + k));
    any[0] = _mm256_or_si256(_mm256_or_si256(any[0], any[1]), _mm256_or_si256(any[2], any[3]));
    x = _mm_or_si128(_mm256_castsi256_si128(any[0]), _mm256_extracti128_si256(any[0], 1));
    return (uint64_t)(_mm_extract_epi64(x, 0) | _mm_extract_epi64(x, 1));
}

void kern_use_avx2(struct kern *k) {
    BIND_ROW(QUANT_F32, f32);
    BIND_ROW(QUANT_F16, f16);
    BIND_ROW(QUANT_BF16, bf16);
    BIND(QUANT_Q4_0, q4_0);
    BIND(QUANT_Q4_1, q4_1);
    BIND(QUANT_Q5_0, q5_0);
    BIND(QUANT_Q5_1, q5_1);
    BIND(QUANT_Q8_0, q8_0);
    BIND(QUANT_Q2_K, q2_k);
    BIND(QUANT_Q3_K, q3_k);
    BIND(QUANT_Q4_K, q4_k);
    BIND(QUANT_Q5_K, q5_k);
    BIND(QUANT_Q6_K, q6_k);
    BIND(QUANT_IQ4_NL, iq4_nl);
    BIND(QUANT_IQ4_XS, iq4_xs);
    BIND(QUANT_MXFP4, mxfp4);
    kern_pack_avx2(k);
    kern_attn_avx2(k);
    k->quantize = quantize;
    k->axpy = axpy;
    k->rmsnorm = rmsnorm;
    k->geglu = geglu;
    k->softmax = softmax;
    k->rope = rope;
    k->softcap = softcap;
    k->peak = peak;
    k->read = read_all;
}
