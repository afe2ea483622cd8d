/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AVX-512 with VNNI: what gains from it; the rest stays with the AVX2 tier.
 *
 * As in the AVX2 tier weights are unpacked 256 elements at a time. vpdpbusd takes u8 codes, so
 * every format is brought to value = d * (code - offset); the offset enters the integer sums as
 * -offset * sum(q), exactly. Codes that lie high in their byte stay there: the code and its offset
 * are 2^n times as large and d is 2^n times smaller, which changes no bit of the result.
 */

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "engine/kern/kern.h"
#include "engine/kern/pack.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    N_R = 8,  /* weight rows that share one look at the activations */
    N_R1 = 4, /* the same when there is one row of them: what fits the registers */
    N_M = 8,  /* activation rows that share one unpacked unit */

    UNIT = 256,
    UNIT_BYTES = 272, /* of eight blocks of 32, at most: Q8_0 */

    /* of float weights */
    F_R = 4,       /* weight rows of a tile */
    F_M = 3,       /* activation rows of a tile */
    F_CHUNK = 24,  /* activation rows that share a look at the weights */
    F_SPAN = 1024, /* columns */
};

/* element e = d[e / 16] * (q[e / 64][e % 64] - offset) + m[e / 16] */
struct unit {
    __m512i q[4];
    __m512 d;
    __m512 m;
};

/* One activation row, the part that meets a unit. */
struct act {
    const int8_t *q;
    __m512 d;       /* for each 16 */
    __m512 s;       /* d * sum of 16 */
    __m512i off[4]; /* -offset * q, four products summed */
};

typedef void unpack_fn(const uint8_t *w, struct unit *u);

/* What the compiler must know about a format to make one loop of it. */
struct form {
    unpack_fn *unpack;
    int offset;
    bool high16;    /* every other 16 codes are 16 times as large, with their offset */
    bool has_m;     /* else m is 0 */
    uint32_t block; /* bytes of 32 elements when those are a block, else 0 */
    uint32_t unit;  /* bytes of 256 elements */
};

INLINE __m512i load512(const void *p) {
    return _mm512_loadu_si512(p);
}

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

INLINE float f16(const uint8_t *p) {
    uint16_t v;

    memcpy(&v, p, sizeof v);

    return _cvtsh_ss(v);
}

INLINE __m512i bytes(int v) {
    return _mm512_set1_epi8((char)v);
}

/* One value for the lower 32 bytes, one for the upper. */
INLINE __m512i halves(long long low, long long high) {
    return _mm512_setr_epi64(low, low, low, low, high, high, high, high);
}

INLINE float hsum(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));

    return _mm_cvtss_f32(s);
}

/* ---- unpacking: one function a format ---- */

/* Eight values, one for each 32 elements, to one for each 16. */
INLINE __m512 each_16(__m256 v) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                                 _mm512_castps256_ps512(v));
}

/* The f16 at byte @at of each of eight blocks of @step bytes: 16-bit words picked from the first
 * 128 bytes and, where blocks lie beyond, from 128 bytes further on, never past the unit. */
INLINE __m512 f16_of_8(const uint8_t *w, int step, int at) {
    int second = 8 * step - 128 < 128 ? 8 * step - 128 : 128;
    __m128i i =
        _mm_setr_epi16((short)at, (short)(at + step), (short)(at + 2 * step),
                       (short)(at + 3 * step), (short)(at + 4 * step), (short)(at + 5 * step),
                       (short)(at + 6 * step), (short)(at + 7 * step));
    __mmask8 far = _mm_cmpgt_epi16_mask(i, _mm_set1_epi16(127));
    __m512i low = _mm512_castsi128_si512(_mm_srli_epi16(i, 1)), high;
    __m128i v = _mm512_castsi512_si128(_mm512_permutex2var_epi16(load512(w), low, load512(w + 64)));

    if (at + 7 * step > 127) {
        high = _mm512_castsi128_si512(
            _mm_srli_epi16(_mm_sub_epi16(i, _mm_set1_epi16((short)second)), 1));
        high = _mm512_permutex2var_epi16(load512(w + second), high, load512(w + second + 64));
        v = _mm_mask_mov_epi16(v, far, _mm512_castsi512_si128(high));
    }

    return each_16(_mm256_cvtph_ps(v));
}

/* Two blocks' 16 bytes, each twice. */
INLINE __m512i twice(const uint8_t *a, const uint8_t *b) {
    return _mm512_mask_broadcast_i64x2(_mm512_broadcast_i64x2(load128(a)), 0xf0, load128(b));
}

/* Low nibbles of 16 bytes, then high ones; for two blocks. */
INLINE __m512i nibbles(__m512i v) {
    return _mm512_and_si512(_mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)),
                            bytes(15));
}

/* The same, high ones left where they are. */
INLINE __m512i nibbles_in_place(__m512i v) {
    const long long low = 0x0f0f0f0f0f0f0f0f;

    return _mm512_and_si512(v, _mm512_setr_epi64(low, low, ~low, ~low, low, low, ~low, ~low));
}

/* d for them: every other one 16 times smaller. */
INLINE __m512 high_16(__m512 d) {
    return _mm512_mask_mul_ps(d, 0xaaaa, d, _mm512_set1_ps(1.0f / 16));
}

INLINE __m512i fifth_bits(__m512i q, const uint8_t *a, const uint8_t *b) {
    __mmask64 h = load32(a) | (uint64_t)load32(b) << 32;

    return _mm512_mask_add_epi8(q, h, q, bytes(16));
}

INLINE void unpack_q4_0(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 4; j++, w += 36)
        u->q[j] = nibbles_in_place(twice(w + 2, w + 20));
    u->d = high_16(f16_of_8(w - 144, 18, 0));
}

INLINE void unpack_q4_1(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 4; j++)
        u->q[j] = nibbles_in_place(twice(w + 40 * j + 4, w + 40 * j + 24));
    u->d = high_16(f16_of_8(w, 20, 0));
    u->m = f16_of_8(w, 20, 2);
}

INLINE void unpack_q5_0(const uint8_t *w, struct unit *u) {
    u->d = f16_of_8(w, 22, 0);
    for (int j = 0; j < 4; j++, w += 44)
        u->q[j] = fifth_bits(nibbles(twice(w + 6, w + 28)), w + 2, w + 24);
}

INLINE void unpack_q5_1(const uint8_t *w, struct unit *u) {
    u->d = f16_of_8(w, 24, 0);
    u->m = f16_of_8(w, 24, 2);
    for (int j = 0; j < 4; j++, w += 48)
        u->q[j] = fifth_bits(nibbles(twice(w + 8, w + 32)), w + 4, w + 28);
}

INLINE void unpack_q8_0(const uint8_t *w, struct unit *u) {
    u->d = f16_of_8(w, 34, 0);
    for (int j = 0; j < 4; j++, w += 68) {
        __m512i q = _mm512_castsi256_si512(load256(w + 2));

        u->q[j] = _mm512_xor_si512(_mm512_inserti64x4(q, load256(w + 36), 1), bytes(0x80));
    }
}

/* The codes of IQ4_NL plus 128. */
INLINE __m512i iq4(__m512i nibble) {
    const __m128i table =
        _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153, (char)166,
                      (char)181, (char)197, (char)217, (char)241);

    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibble);
}

INLINE void unpack_iq4_nl(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 4; j++)
        u->q[j] = iq4(nibbles(twice(w + 36 * j + 2, w + 36 * j + 20)));
    u->d = f16_of_8(w, 18, 0);
}

/* The codes plus 12. The scale is 2^(e - 128), made of its bits. */
INLINE void unpack_mxfp4(const uint8_t *w, struct unit *u) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    __m256i e = _mm256_setr_epi32(w[0], w[17], w[34], w[51], w[68], w[85], w[102], w[119]);
    __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);

    e = _mm256_mask_mov_epi32(normal, _mm256_cmplt_epi32_mask(e, _mm256_set1_epi32(2)), small);
    u->d = each_16(_mm256_castsi256_ps(e));
    for (int j = 0; j < 4; j++)
        u->q[j] = _mm512_shuffle_epi8(table, nibbles(twice(w + 34 * j + 1, w + 34 * j + 18)));
}

INLINE __m512 scale_u8(__m128i v, float d) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)), _mm512_set1_ps(d));
}

INLINE __m512 scale_i8(__m128i v, float d) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)), _mm512_set1_ps(d));
}

/* Two bits stay at 0, 2, 4 or 6 of their byte. */
INLINE void unpack_q2_k(const uint8_t *w, struct unit *u) {
    const __m512i low = halves(0x0303030303030303, 0x0c0c0c0c0c0c0c0c);
    const __m512i high = halves(0x3030303030303030, (long long)0xc0c0c0c0c0c0c0c0);
    const __m512 down = _mm512_setr_ps(1, 1, 0x1p-2f, 0x1p-2f, 0x1p-4f, 0x1p-4f, 0x1p-6f, 0x1p-6f,
                                       1, 1, 0x1p-2f, 0x1p-2f, 0x1p-4f, 0x1p-4f, 0x1p-6f, 0x1p-6f);
    const __m128i nibble = _mm_set1_epi8(15);
    __m128i t = load128(w);

    for (int j = 0; j < 4; j++) {
        __m512i q = _mm512_broadcast_i64x4(load256(w + 16 + j / 2 * 32));

        u->q[j] = _mm512_and_si512(q, j % 2 ? high : low);
    }
    u->d = _mm512_mul_ps(scale_u8(_mm_and_si128(t, nibble), f16(w + 80)), down);
    u->m = scale_u8(_mm_and_si128(_mm_srli_epi16(t, 4), nibble), -f16(w + 82));
}

/* Add @v to the codes of 64 whose bit 2 j (lower 32) or 2 j + 1 (upper 32) is set in @h. */
INLINE __m512i add_bit(__m512i q, __m512i h, int j, int v) {
    long long bit = 0x0101010101010101;
    __mmask64 set =
        _mm512_test_epi8_mask(h, halves(bit << 2 * j, (long long)(0x0202020202020202u << 2 * j)));

    return _mm512_mask_add_epi8(q, set, q, bytes(v));
}

INLINE void unpack_q3_k(const uint8_t *w, struct unit *u) {
    __m512i h = _mm512_broadcast_i64x4(load256(w));
    uint32_t a = load32(w + 96), b = load32(w + 100), c = load32(w + 104);
    __m128i low = _mm_and_si128(_mm_setr_epi32((int)a, (int)b, (int)(a >> 4), (int)(b >> 4)),
                                _mm_set1_epi8(15));
    __m128i high = _mm_and_si128(
        _mm_setr_epi32((int)c, (int)(c >> 2), (int)(c >> 4), (int)(c >> 6)), _mm_set1_epi8(3));

    for (int j = 0; j < 4; j++) {
        __m512i q = _mm512_broadcast_i64x4(load256(w + 32 + j / 2 * 32));

        q = _mm512_srlv_epi64(q, halves(j % 2 * 4, j % 2 * 4 + 2));
        u->q[j] = add_bit(_mm512_and_si512(q, bytes(3)), h, j, 4);
    }
    low = _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), _mm_set1_epi8(32));
    u->d = scale_i8(low, f16(w + 108));
}

/* Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minima in 12 bytes. */
INLINE void scale_k4(const uint8_t *w, struct unit *u) {
    uint32_t a = load32(w + 4), b = load32(w + 8), c = load32(w + 12);
    uint32_t sc = (c & 0x0f0f0f0f) | (a >> 6 & 0x03030303) << 4;
    uint32_t mn = (c >> 4 & 0x0f0f0f0f) | (b >> 6 & 0x03030303) << 4;
    __m128i v = _mm_setr_epi32((int)(a & 0x3f3f3f3f), (int)sc, (int)(b & 0x3f3f3f3f), (int)mn);

    u->d = scale_u8(_mm_unpacklo_epi8(v, v), f16(w));
    u->m = scale_u8(_mm_unpackhi_epi8(v, v), -f16(w + 2));
}

INLINE void unpack_q4_k(const uint8_t *w, struct unit *u) {
    const long long low = 0x0f0f0f0f0f0f0f0f;

    for (int j = 0; j < 4; j++)
        u->q[j] =
            _mm512_and_si512(_mm512_broadcast_i64x4(load256(w + 16 + j * 32)), halves(low, ~low));
    scale_k4(w, u);
    u->d = _mm512_mask_mul_ps(u->d, 0xcccc, u->d, _mm512_set1_ps(1.0f / 16));
}

INLINE void unpack_q5_k(const uint8_t *w, struct unit *u) {
    __m512i h = _mm512_broadcast_i64x4(load256(w + 16));

    for (int j = 0; j < 4; j++) {
        __m512i q = _mm512_broadcast_i64x4(load256(w + 48 + j * 32));

        q = _mm512_and_si512(_mm512_srlv_epi64(q, halves(0, 4)), bytes(15));
        u->q[j] = add_bit(q, h, j, 16);
    }
    scale_k4(w, u);
}

INLINE void unpack_q6_k(const uint8_t *w, struct unit *u) {
    for (int j = 0; j < 4; j++) {
        __m512i low = load512(w + j / 2 * 64);
        __m512i high = _mm512_broadcast_i64x4(load256(w + 128 + j / 2 * 32));

        if (j % 2) {
            low = _mm512_srli_epi16(low, 4);
            high = _mm512_srlv_epi64(high, halves(0, 2));
        } else {
            high = _mm512_sllv_epi64(high, halves(4, 2));
        }
        u->q[j] =
            _mm512_or_si512(_mm512_and_si512(low, bytes(15)), _mm512_and_si512(high, bytes(0x30)));
    }
    u->d = scale_i8(load128(w + 192), f16(w + 208));
}

INLINE void unpack_iq4_xs(const uint8_t *w, struct unit *u) {
    __m512i low = _mm512_srlv_epi32(
        _mm512_set1_epi32((int)load32(w + 4)),
        _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28));
    __m512i high = _mm512_srlv_epi32(
        _mm512_set1_epi32((int)load32(w)),
        _mm512_setr_epi32(16, 16, 18, 18, 20, 20, 22, 22, 24, 24, 26, 26, 28, 28, 30, 30));

    low = _mm512_and_si512(low, _mm512_set1_epi32(15));
    high = _mm512_slli_epi32(_mm512_and_si512(high, _mm512_set1_epi32(3)), 4);
    low = _mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32));
    u->d = _mm512_mul_ps(_mm512_cvtepi32_ps(low), _mm512_set1_ps(f16(w)));
    for (int j = 0; j < 4; j++)
        u->q[j] = iq4(nibbles(twice(w + 8 + 32 * j, w + 24 + 32 * j)));
}

/* ---- quantised weights, int8 activations ---- */

INLINE void act_load(struct form f, const struct kern_rows *x, uint32_t m, size_t k,
                     struct act *ret) {
    const int16_t *s = x->s + (m * x->q_stride + k) / KERN_Q8_SUM;
    __m512i off = bytes(f.offset);

    ret->q = x->q + m * x->q_stride + k;
    ret->d = each_16(_mm256_loadu_ps(x->d + (m * x->q_stride + k) / KERN_Q8_BLOCK));
    if (f.has_m)
        ret->s = _mm512_mul_ps(ret->d, _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(load256(s))));
    if (f.high16)
        off = _mm512_mask_mov_epi8(off, 0xffff0000ffff0000, bytes(f.offset * 16));
    if (f.offset)
        for (int j = 0; j < 4; j++)
            ret->off[j] = _mm512_sub_epi32(
                _mm512_setzero_si512(),
                _mm512_dpbusd_epi32(_mm512_setzero_si512(), off, load512(ret->q + 64 * j)));
}

/* Sixteen partial sums of a unit times an activation row. */
INLINE __m512 tile(struct form f, const struct unit *u, const struct act *a) {
    const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    __m512 d = _mm512_mul_ps(u->d, a->d), sum;

    sum = f.has_m ? _mm512_mul_ps(u->m, a->s) : _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i p = f.offset ? a->off[j] : _mm512_setzero_si512();
        __m512i from = _mm512_add_epi32(lane, _mm512_set1_epi32(4 * j));

        p = _mm512_dpbusd_epi32(p, u->q[j], load512(a->q + 64 * j));
        sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p), _mm512_permutexvar_ps(from, d), sum);
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
    __m512 sum[N_R][N_M];
    uint8_t tail[UNIT_BYTES];

    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t m = 0; m < n_m; m++)
            sum[r][m] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < n_col; k += UNIT) {
        struct act a[N_M];

        for (uint32_t m = 0; m < n_m; m++)
            act_load(f, x, m0 + m, k, &a[m]);
        for (uint32_t r = 0; r < n_r; r++) {
            struct unit u;

            f.unpack(unit_at(f, w + r * w_stride, k, n_col, tail), &u);
            for (uint32_t m = 0; m < n_m; m++)
                sum[r][m] = _mm512_add_ps(sum[r][m], tile(f, &u, &a[m]));
        }
    }
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t m = 0; m < n_m; m++)
            y[(m0 + m) * y_stride + r] = hsum(sum[r][m]);
}

INLINE void mul_quant(struct form f, const uint8_t *w, size_t w_stride, uint32_t n_out,
                      uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    uint32_t n_r, max_r = x->n_row == 1 ? N_R1 : N_R;

    for (uint32_t o = 0; o < n_out; o += n_r) {
        n_r = n_out - o < max_r ? n_out - o : max_r;
        for (uint32_t m = 0; m < x->n_row; m += N_M) {
            uint32_t n_m = x->n_row - m < N_M ? x->n_row - m : N_M;

            if (n_m == 1 && n_r == N_R1)
                mul_tile(f, w + o * w_stride, w_stride, N_R1, n_col, x, m, 1, y + o, y_stride);
            else
                mul_tile(f, w + o * w_stride, w_stride, n_r, n_col, x, m, n_m, y + o, y_stride);
        }
    }
}

/* ---- float weights, or quantised ones decoded; float activations ---- */

/* 16 elements from @i; lanes outside @mask are 0 and not touched. */
typedef __m512 load_fn(const uint8_t *w, size_t i, __mmask16 mask);

INLINE __m512 load_f32(const uint8_t *w, size_t i, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, w + 4 * i);
}

INLINE __m512 load_f16(const uint8_t *w, size_t i, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, w + 2 * i));
}

INLINE __m512 load_bf16(const uint8_t *w, size_t i, __mmask16 mask) {
    __m256i v = _mm256_maskz_loadu_epi16(mask, w + 2 * i);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/* The first lanes of 16, when @n elements are left. */
INLINE __mmask16 first(size_t n) {
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/* @n columns, a multiple of 32, of F_R weight rows times @n_m activation rows, added to @sum. */
INLINE void float_tile(load_fn *load, const uint8_t *w, size_t w_stride, const float *x,
                       size_t x_stride, uint32_t n_m, uint32_t n, __m512 (*sum)[F_R][2]) {
    __m512 s[F_M][F_R][2];

#pragma GCC unroll 24
    for (uint32_t i = 0; i < n_m * F_R * 2; i++)
        s[i / F_R / 2][i / 2 % F_R][i % 2] = sum[i / F_R / 2][i / 2 % F_R][i % 2];
    for (uint32_t k = 0; k < n; k += 32)
#pragma GCC unroll 2
        for (uint32_t h = 0; h < 2; h++) {
            __m512 v[F_M];

#pragma GCC unroll 4
            for (uint32_t m = 0; m < n_m; m++)
                v[m] = _mm512_loadu_ps(x + m * x_stride + k + 16 * h);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < F_R; r++) {
                __m512 u = load(w + r * w_stride, k + 16 * h, 0xffff);

#pragma GCC unroll 4
                for (uint32_t m = 0; m < n_m; m++)
                    s[m][r][h] = _mm512_fmadd_ps(u, v[m], s[m][r][h]);
            }
        }
#pragma GCC unroll 24
    for (uint32_t i = 0; i < n_m * F_R * 2; i++)
        sum[i / F_R / 2][i / 2 % F_R][i % 2] = s[i / F_R / 2][i / 2 % F_R][i % 2];
}

/* The same for what does not fill a tile. */
INLINE void float_rest(load_fn *load, const uint8_t *w, size_t w_stride, uint32_t n_r,
                       const float *x, size_t x_stride, uint32_t n_m, uint32_t n,
                       __m512 (*sum)[F_R][2]) {
    for (uint32_t k = 0; k < n; k += 16) {
        __mmask16 mask = first(n - k);

        for (uint32_t r = 0; r < n_r; r++) {
            __m512 u = load(w + r * w_stride, k, mask);

            for (uint32_t m = 0; m < n_m; m++) {
                __m512 *to = &sum[m][r][k / 16 % 2];

                *to = _mm512_fmadd_ps(u, _mm512_maskz_loadu_ps(mask, x + m * x_stride + k), *to);
            }
        }
    }
}

/* @n columns of @n_r weight rows times @n_m activation rows, added to @sum. The order within a sum
 * is the same in all shapes. */
INLINE void float_part(load_fn *load, size_t size, const uint8_t *w, size_t w_stride, uint32_t n_r,
                       const float *x, size_t x_stride, uint32_t n_m, uint32_t n,
                       __m512 (*sum)[F_R][2]) {
    uint32_t whole = n_r == F_R ? n / 32 * 32 : 0, m = 0;

    for (; m + 3 <= n_m; m += 3)
        float_tile(load, w, w_stride, x + m * x_stride, x_stride, 3, whole, sum + m);
    if (n_m - m == 2)
        float_tile(load, w, w_stride, x + m * x_stride, x_stride, 2, whole, sum + m);
    else if (n_m - m == 1)
        float_tile(load, w, w_stride, x + m * x_stride, x_stride, 1, whole, sum + m);
    if (whole < n)
        float_rest(load, w + whole * size, w_stride, n_r, x + whole, x_stride, n_m, n - whole, sum);
}

/* F_SPAN columns of F_R weight rows stay in the L1 while all activation rows of a chunk, which stay
 * in the L2, go past. */
INLINE void mul_float(load_fn *load, size_t size, const uint8_t *w, size_t w_stride, uint32_t n_out,
                      uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    __m512 sum[F_CHUNK][F_R][2];

    for (uint32_t m0 = 0, n_m; m0 < x->n_row; m0 += n_m) {
        n_m = x->n_row - m0 < F_CHUNK ? x->n_row - m0 : F_CHUNK;
        for (uint32_t o = 0, n_r; o < n_out; o += n_r) {
            n_r = n_out - o < F_R ? n_out - o : F_R;
            memset(sum, 0, n_m * sizeof *sum);
            for (uint32_t k = 0; k < n_col; k += F_SPAN)
                float_part(load, size, w + o * w_stride + k * size, w_stride, n_r,
                           x->f + m0 * x->f_stride + k, x->f_stride, n_m,
                           n_col - k < F_SPAN ? n_col - k : F_SPAN, sum);
            for (uint32_t m = 0; m < n_m; m++)
                for (uint32_t r = 0; r < n_r; r++)
                    y[(m0 + m) * y_stride + o + r] =
                        hsum(_mm512_add_ps(sum[m][r][0], sum[m][r][1]));
        }
    }
}

INLINE void decode_unit(struct form f, const uint8_t *w, float *dst) {
    struct unit u;
    float d[16], m[16];

    f.unpack(w, &u);
    _mm512_storeu_ps(d, u.d);
    _mm512_storeu_ps(m, f.has_m ? u.m : _mm512_setzero_ps());
    for (int i = 0; i < 16; i++) {
        __m512i v = _mm512_cvtepu8_epi32(load128((const uint8_t *)u.q + 16 * i));
        __m512 x;

        v = _mm512_sub_epi32(v, _mm512_set1_epi32(f.high16 && i % 2 ? 16 * f.offset : f.offset));
        x = _mm512_mul_ps(_mm512_cvtepi32_ps(v), _mm512_set1_ps(d[i]));
        if (f.has_m)
            x = _mm512_add_ps(x, _mm512_set1_ps(m[i]));
        _mm512_storeu_ps(dst + 16 * i, x);
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

static void axpy(float s, const float *x, float *y, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 mask = first(n - i);
        __m512 v = _mm512_maskz_loadu_ps(mask, x + i);

        v = _mm512_fmadd_ps(_mm512_set1_ps(s), v, _mm512_maskz_loadu_ps(mask, y + i));
        _mm512_mask_storeu_ps(y + i, mask, v);
    }
}

#define QUANT_ENTRIES(fmt, OFFSET, HIGH16, HAS_M, BLOCK, BYTES)                                    \
    static const struct form form_##fmt = { unpack_##fmt, OFFSET, HIGH16, HAS_M, BLOCK, BYTES };   \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        mul_quant(form_##fmt, w, w_stride, n_out, n_col, x, y, y_stride);                          \
    }                                                                                              \
    static void decode_##fmt(const void *src, float *dst, size_t n) {                              \
        decode_quant(form_##fmt, src, dst, n);                                                     \
    }

/* clang-format off */
QUANT_ENTRIES(q4_0,   8,   true,  false, 18, 144)
QUANT_ENTRIES(q4_1,   0,   false, true,  20, 160)
QUANT_ENTRIES(q5_0,   16,  false, false, 22, 176)
QUANT_ENTRIES(q5_1,   0,   false, true,  24, 192)
QUANT_ENTRIES(q8_0,   128, false, false, 34, 272)
QUANT_ENTRIES(q2_k,   0,   false, true,  0,  84)
QUANT_ENTRIES(q3_k,   4,   false, false, 0,  110)
QUANT_ENTRIES(q4_k,   0,   false, true,  0,  144)
QUANT_ENTRIES(q5_k,   0,   false, true,  0,  176)
QUANT_ENTRIES(q6_k,   32,  false, false, 0,  210)
QUANT_ENTRIES(iq4_nl, 128, false, false, 18, 144)
QUANT_ENTRIES(iq4_xs, 128, false, false, 0,  136)
QUANT_ENTRIES(mxfp4,  12,  false, false, 17, 136)
/* clang-format on */

#define ROW_ENTRIES(fmt, type)                                                                     \
    static void mul_##fmt(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,          \
                          const struct kern_rows *x, float *y, size_t y_stride) {                  \
        mul_float(load_##fmt, sizeof(type), w, w_stride, n_out, n_col, x, y, y_stride);            \
    }

ROW_ENTRIES(f32, float)
ROW_ENTRIES(f16, uint16_t)
ROW_ENTRIES(bf16, uint16_t)

#define BIND(FMT, fmt)                                                                             \
    k->mul[FMT] = mul_##fmt;                                                                       \
    k->decode[FMT] = decode_##fmt
#define BIND_ROW(FMT, fmt) k->mul[FMT] = k->mul_exact[FMT] = mul_##fmt

/* What the registers hold does not matter. */
static uint64_t peak(uint32_t n) {
    for (uint32_t i = 0; i < n * 64; i++)
        __asm__ volatile(".irp acc, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16\n"
                         "vpdpbusd %%zmm0, %%zmm0, %%zmm\\acc\n"
                         ".endr"
                         :
                         :
                         : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                           "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16");
    _mm256_zeroupper();

    return (uint64_t)n * 64 * 16 * 64 * 2;
}

static uint64_t read_all(const void *p, size_t n) {
    const __m512i *v = p;
    __m512i any[4] = { 0 };

    for (size_t i = 0; i < n / sizeof *v; i += 4)
        for (int k = 0; k < 4; k++)
            any[k] = _mm512_or_si512(any[k], _mm512_load_si512(v + i + k));
    any[0] = _mm512_or_si512(_mm512_or_si512(any[0], any[1]), _mm512_or_si512(any[2], any[3]));
    return (uint64_t)_mm512_reduce_or_epi64(any[0]);
}

void kern_use_avx512vnni(struct kern *k) {
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
    kern_pack_avx512vnni(k);
    kern_float_avx512vnni(k);
    kern_attn_avx512vnni(k);
    k->axpy = axpy;
    k->peak = peak;
    k->read = read_all;
}
