/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AVX2 on packed weights: 8 rows side by side, see pack.h.
 *
 * One lane is one output row. 32 columns are a step: eight vectors of codes, four columns each,
 * meet eight broadcast words of activations. maddubs gives i16 sums of two products; as many of
 * them are added as can not overflow before they are widened. The offset of the codes enters as
 * -offset * sum(q).
 *
 * A value is the same in every tile shape: integer sums are exact, and the float operations of one
 * output are those of one lane, steps in order.
 */

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "engine/kern/kern.h"
#include "engine/kern/pack.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    R = 8,        /* rows of a group */
    N_M = 4,      /* activation rows that share unpacked codes */
    STEP = 32,    /* columns */
    AHEAD = 1152, /* bytes to prefetch ahead */
};

/* 32 columns of 8 rows. Lane r, byte i of q[v]: row r, column 4 v + i.
 * element = d[column / 16] * (q - offset) + m */
struct step {
    __m256i q[8];
    __m256 d[2]; /* the second one only where scales are for 16 */
    __m256 m;
};

/* @w: packed block   @i: step in the block */
typedef void unpack_fn(const uint8_t *w, uint32_t i, struct step *u);

/* What the compiler must know about a format to make one loop of it. */
struct form {
    unpack_fn *unpack;
    int offset;     /* 0 where codes are signed, too */
    int n_16;       /* sums of two products that an i16 holds: 8 of u8 codes to 15, 1 of i8 ones */
    bool d_16;      /* a scale for 16 columns, else for 32 */
    bool has_m;     /* else m is 0 */
    uint32_t block; /* columns of a block */
    uint32_t size;  /* its bytes, of one row */
};

INLINE __m256i spread(const void *p) {
    int v;

    memcpy(&v, p, sizeof v);

    return _mm256_set1_epi32(v);
}

INLINE __m256i bytes(int v) {
    return _mm256_set1_epi8((char)v);
}

/* A field of 8 rows, @at bytes into their packed blocks. */
INLINE __m256 get_f16(const uint8_t *w, int at) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)(w + R * at)));
}

INLINE __m256i get_u32(const uint8_t *w, int at) {
    return _mm256_loadu_si256((const void *)(w + R * at));
}

INLINE __m256i get_i8(const uint8_t *w, int at) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(w + R * at)));
}

/* v >> n for a count that is no constant */
INLINE __m256i down(__m256i v, uint32_t n) {
    return _mm256_srl_epi32(v, _mm_cvtsi32_si128((int)n));
}

/* a | (b & c) */
INLINE __m256i or_and(__m256i a, __m256i b, __m256i c) {
    return _mm256_or_si256(a, _mm256_and_si256(b, c));
}

/* ---- unpacking: one function a format ---- */

/* 16 bytes of a row: low nibbles are columns 0 to 15, high ones 16 to 31. */
INLINE void nibbles(const uint8_t *w, int at, struct step *u) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        __m256i q = get_u32(w, at + 4 * v);

        u->q[v] = _mm256_and_si256(q, bytes(15));
        u->q[v + 4] = _mm256_and_si256(_mm256_srli_epi16(q, 4), bytes(15));
    }
}

INLINE void unpack_q4_0(const uint8_t *w, uint32_t i, struct step *u) {
    (void)i;
    nibbles(w, 2, u);
    u->d[0] = get_f16(w, 0);
}

/* Bit c of a row's word is bit 4 of column c. */
INLINE void unpack_q5_0(const uint8_t *w, uint32_t i, struct step *u) {
    const __m256i word = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                           0x08080808, 0x0c0c0c0c);
    __m256i h = get_u32(w, 2);

    (void)i;
    nibbles(w, 6, u);
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
        __m256i four = _mm256_set1_epi32(v % 2 ? (int)0x80402010 : 0x08040201);
        __m256i own = _mm256_shuffle_epi8(h, _mm256_add_epi8(word, bytes(v / 2)));

        own = _mm256_cmpeq_epi8(_mm256_and_si256(own, four), four);
        u->q[v] = or_and(u->q[v], own, bytes(16));
    }
    u->d[0] = get_f16(w, 0);
}

INLINE void unpack_q8_0(const uint8_t *w, uint32_t i, struct step *u) {
    (void)i;
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++)
        u->q[v] = get_u32(w, 2 + 4 * v);
    u->d[0] = get_f16(w, 0);
}

/* 8 six-bit scales and 8 six-bit minima in 12 bytes. */
INLINE void unpack_q4_k(const uint8_t *w, uint32_t i, struct step *u) {
    const __m256i four = _mm256_set1_epi32(15), top = _mm256_set1_epi32(0x30);
    __m256i a = get_u32(w, 4), b = get_u32(w, 8), c = get_u32(w, 12), s, m;

#pragma GCC unroll 8
    for (int v = 0; v < 8; v++)
        u->q[v] = _mm256_and_si256(down(get_u32(w, 16 + 32 * (int)(i / 2) + 4 * v), i % 2 * 4),
                                   bytes(15));
    if (i < 4) {
        s = _mm256_and_si256(down(a, 8 * i), _mm256_set1_epi32(63));
        m = _mm256_and_si256(down(b, 8 * i), _mm256_set1_epi32(63));
    } else {
        uint32_t n = 8 * (i - 4);

        c = down(c, n);
        s = or_and(_mm256_and_si256(c, four), down(a, n + 2), top);
        m = or_and(_mm256_and_si256(_mm256_srli_epi32(c, 4), four), down(b, n + 2), top);
    }
    u->d[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(s), get_f16(w, 0));
    u->m = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_setzero_si256(), m)),
                         get_f16(w, 2));
}

/* Packed as d, 16 scales, and for each half 16 words of low nibbles, 8 words of high bits. */
INLINE void unpack_q6_k(const uint8_t *w, uint32_t i, struct step *u) {
    uint32_t k = i % 4;
    int low = 18 + (int)(i / 4 * 96 + k % 2 * 32), high = 18 + 64 + (int)(i / 4 * 96);
    __m256 d = get_f16(w, 0);

#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
        __m256i q = down(get_u32(w, low + 4 * v), k / 2 * 4);
        __m256i h = _mm256_slli_epi32(down(get_u32(w, high + 4 * v), 2 * k), 4);

        u->q[v] = or_and(_mm256_and_si256(q, bytes(15)), h, bytes(0x30));
    }
    u->d[0] = _mm256_mul_ps(_mm256_cvtepi32_ps(get_i8(w, 2 + 2 * (int)i)), d);
    u->d[1] = _mm256_mul_ps(_mm256_cvtepi32_ps(get_i8(w, 3 + 2 * (int)i)), d);
}

/* ---- weights times activations ---- */

/* @start plus @n vectors of codes times their activations. */
INLINE __m256i dot(struct form f, __m256i start, const __m256i *q, const int8_t *x, int n) {
    __m256i sum = start, pair = _mm256_setzero_si256();

#pragma GCC unroll 8
    for (int v = 0; v < n; v++) {
        __m256i a = spread(x + 4 * v), p;

        if (f.n_16 == 1)
            p = _mm256_maddubs_epi16(_mm256_abs_epi8(q[v]), _mm256_sign_epi8(a, q[v]));
        else
            p = _mm256_maddubs_epi16(q[v], a);
        pair = v % f.n_16 ? _mm256_add_epi16(pair, p) : p;
        if (v % f.n_16 == f.n_16 - 1 || v == n - 1)
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair, _mm256_set1_epi16(1)));
    }

    return sum;
}

/* @sum plus what one activation row adds; @k: first column of the step. */
INLINE __m256 add_row(struct form f, const struct step *u, const struct kern_rows *x, uint32_t m,
                      uint32_t k, __m256 sum) {
    size_t e = m * x->q_stride + k;
    const int8_t *q = x->q + e;
    __m256 d = _mm256_set1_ps(x->d[e / KERN_Q8_BLOCK]), t;
    __m256i s = spread(x->s + e / KERN_Q8_SUM), p;

    if (f.d_16) {
        p = dot(f, _mm256_madd_epi16(s, _mm256_set1_epi32(-f.offset & 0xffff)), u->q, q, 4);
        t = _mm256_mul_ps(_mm256_cvtepi32_ps(p), u->d[0]);
        p = dot(f, _mm256_madd_epi16(s, _mm256_set1_epi32(-f.offset * 0x10000)), u->q + 4, q + 16,
                4);
        t = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), u->d[1], t);

        return _mm256_fmadd_ps(t, d, sum);
    }
    p = f.offset ? _mm256_madd_epi16(s, _mm256_set1_epi16((short)-f.offset))
                 : _mm256_setzero_si256();
    p = dot(f, p, u->q, q, 8);
    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), _mm256_mul_ps(u->d[0], d), sum);
    if (f.has_m) {
        t = _mm256_cvtepi32_ps(_mm256_madd_epi16(s, _mm256_set1_epi16(1)));
        sum = _mm256_fmadd_ps(u->m, _mm256_mul_ps(d, t), sum);
    }

    return sum;
}

/* A group times @n_m activation rows from @m0 on. */
INLINE void tile(struct form f, const uint8_t *w, uint32_t n_col, const struct kern_rows *x,
                 uint32_t m0, uint32_t n_m, float *y, size_t y_stride) {
    const uint32_t n_step = f.block / STEP, step_bytes = R * f.size / n_step;
    __m256 sum[N_M];

#pragma GCC unroll 4
    for (uint32_t m = 0; m < n_m; m++)
        sum[m] = _mm256_setzero_ps();
    for (uint32_t k = 0; k < n_col; k += f.block, w += R * f.size)
        for (uint32_t i = 0; i < n_step; i++) {
            struct step u;

#pragma GCC unroll 8
            for (uint32_t b = 0; b < step_bytes; b += 64)
                _mm_prefetch((const char *)w + i * step_bytes + AHEAD + b, _MM_HINT_T0);
            f.unpack(w, i, &u);
#pragma GCC unroll 4
            for (uint32_t m = 0; m < n_m; m++)
                sum[m] = add_row(f, &u, x, m0 + m, k + i * STEP, sum[m]);
        }
#pragma GCC unroll 4
    for (uint32_t m = 0; m < n_m; m++)
        _mm256_storeu_ps(y + (m0 + m) * y_stride, sum[m]);
}

INLINE void mul_packed(struct form f, const uint8_t *w, size_t w_stride, uint32_t n_out,
                       uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    for (uint32_t o = 0; o < n_out; o += R)
        for (uint32_t m = 0; m < x->n_row; m += N_M)
            switch (x->n_row - m) {
            case 1:
                tile(f, w + o * w_stride, n_col, x, m, 1, y + o, y_stride);
                break;
            case 2:
                tile(f, w + o * w_stride, n_col, x, m, 2, y + o, y_stride);
                break;
            case 3:
                tile(f, w + o * w_stride, n_col, x, m, 3, y + o, y_stride);
                break;
            default:
                tile(f, w + o * w_stride, n_col, x, m, N_M, y + o, y_stride);
            }
}

#define ENTRIES(FMT, fmt, OFFSET, N_16, D_16, HAS_M, BLOCK, SIZE)                                  \
    static const struct form form_##fmt = {                                                        \
        unpack_##fmt, OFFSET, N_16, D_16, HAS_M, BLOCK, SIZE                                       \
    };                                                                                             \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        mul_packed(form_##fmt, w, w_stride, n_out, n_col, x, y, y_stride);                         \
    }                                                                                              \
    static void pack_##fmt(const void *src, size_t src_stride, uint32_t n_col, void *dst) {        \
        kern_pack_rows(FMT, R, src, src_stride, n_col, dst);                                       \
    }                                                                                              \
    static void decode_##fmt(const void *group, uint32_t row, uint32_t n_col, float *dst) {        \
        kern_pack_decode(FMT, R, group, row, n_col, dst);                                          \
    }

/* clang-format off */
ENTRIES(QUANT_Q4_0, q4_0, 8,  8, false, false, 32,  18)
ENTRIES(QUANT_Q5_0, q5_0, 16, 4, false, false, 32,  22)
ENTRIES(QUANT_Q8_0, q8_0, 0,  1, false, false, 32,  34)
ENTRIES(QUANT_Q4_K, q4_k, 0,  8, false, true,  256, 144)
ENTRIES(QUANT_Q6_K, q6_k, 32, 2, true,  false, 256, 210)
/* clang-format on */

#define BIND(FMT, NAME, fmt)                                                                       \
    k->pack[FMT] = (struct kern_pack) {                                                            \
        R, NAME ".r8", pack_##fmt, decode_##fmt, mul_##fmt                                         \
    }

void kern_pack_avx2(struct kern *k) {
    BIND(QUANT_Q4_0, "Q4_0", q4_0);
    BIND(QUANT_Q5_0, "Q5_0", q5_0);
    BIND(QUANT_Q8_0, "Q8_0", q8_0);
    BIND(QUANT_Q4_K, "Q4_K", q4_k);
    BIND(QUANT_Q6_K, "Q6_K", q6_k);
}
