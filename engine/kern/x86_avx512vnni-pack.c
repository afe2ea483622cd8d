/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AVX-512 with VNNI on packed weights: 16 rows side by side, see pack.h.
 *
 * One lane is one output row, so nothing is summed across lanes. 32 columns are a step: eight
 * vectors of u8 codes, four columns each, meet eight broadcast words of activations. The offset of
 * the codes enters as -offset * sum(q), an integer that depends on the activations alone.
 *
 * A value is the same in every tile shape: integer sums are exact, and the float operations of one
 * output are those of one lane, steps in order.
 */

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "engine/kern/kern.h"
#include "engine/kern/pack.h"

/* The formats' loops are one function each, with everything in it. Sanitizers' checks make that so
 * large that clang 14 works on it for 12 minutes, so under them the pieces stay functions. */
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define INLINE static inline
#pragma clang diagnostic ignored "-Wpass-failed" /* unrolling: bounds are no constants then */
#endif
#endif
#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

enum {
    R = 16,         /* rows of a group */
    N_G = 2,        /* groups that share a broadcast of activations */
    N_M = 6,        /* activation rows of a tile */
    N_TALL = 8,     /* the same of one group */
    N_CHUNK = 64,   /* activation rows that go through all weights together; they stay in the L2 */
    N_TERM = 16384, /* numbers prepared at once: 2048 columns or more */
    SPAN = 256,     /* columns unpacked at once */
    STEP = 32,      /* columns */
    AHEAD = 4608,   /* bytes to prefetch ahead */
};

/* 32 columns of 16 rows. Lane r, byte i of q[v]: row r, column 4 v + i.
 * element = d[column / 16] * (q - offset) + m */
struct step {
    __m512i q[8];
    __m512 d[2]; /* the second one only where scales are for 16 */
    __m512 m;
};

/* @w: packed block   @i: step in the block   @raw: codes may stay in the upper half of their byte,
 * where f.upper says so */
typedef void unpack_fn(const uint8_t *w, uint32_t i, bool raw, struct step *u);

/* Which codes are raw in the upper half of their byte, 16 times as large. */
enum upper {
    UPPER_NONE,
    UPPER_HALF, /* the second 16 of a step */
    UPPER_ODD,  /* every other step */
};

/* What the compiler must know about a format to make one loop of it. */
struct form {
    unpack_fn *unpack;
    int offset;
    enum upper upper;
    bool d_16;      /* a scale for 16 columns, else for 32 */
    bool has_m;     /* else m is 0 */
    uint32_t block; /* columns of a block */
    uint32_t size;  /* its bytes, of one row */
    uint32_t first; /* activation rows that codes meet on their way to memory, where many do */
};

/* A step of activation rows, as the tiles read them: for each row its scale and
 *   offset      int32   -offset * sum of its 32 q; where scales are for 16, two of 16 q
 *   has_m       f32     scale * sum of its 32 q */
struct acts {
    const int8_t *q;
    const int32_t *term;
    size_t q_stride, term_stride; /* elements from row to row */
};

/* Numbers of a step in acts.term. */
INLINE uint32_t n_term(struct form f) {
    return f.d_16 ? 4 : 2;
}

INLINE __m512i load512(const void *p) {
    return _mm512_loadu_si512(p);
}

INLINE __m512i spread(const void *p) {
    int v;

    memcpy(&v, p, sizeof v);

    return _mm512_set1_epi32(v);
}

INLINE __m512i bytes(int v) {
    return _mm512_set1_epi8((char)v);
}

/* A field of 16 rows, @at bytes into their plain blocks. */
INLINE __m512 get_f16(const uint8_t *w, int at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(w + R * at)));
}

INLINE __m512i get_u32(const uint8_t *w, int at) {
    return load512(w + R * at);
}

INLINE __m512i get_u8(const uint8_t *w, int at) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(w + R * at)));
}

INLINE __m512i get_i8(const uint8_t *w, int at) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(w + R * at)));
}

/* v >> n for a count that is no constant */
INLINE __m512i down(__m512i v, uint32_t n) {
    return _mm512_srl_epi32(v, _mm_cvtsi32_si128((int)n));
}

/* a | (b & c) */
INLINE __m512i or_and(__m512i a, __m512i b, __m512i c) {
    return _mm512_ternarylogic_epi32(a, b, c, 0xf8);
}

/* ---- unpacking: one function a format ---- */

/* 16 bytes of a row: low nibbles are columns 0 to 15, high ones 16 to 31. */
INLINE void nibbles(const uint8_t *w, int at, bool raw, struct step *u) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        __m512i q = get_u32(w, at + 4 * v);

        u->q[v] = _mm512_and_si512(q, bytes(15));
        u->q[v + 4] = raw ? _mm512_and_si512(q, bytes(0xf0))
                          : _mm512_and_si512(_mm512_srli_epi16(q, 4), bytes(15));
    }
}

INLINE void look_up(__m128i table, struct step *u) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++)
        u->q[v] = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), u->q[v]);
}

/* Bit c of a row's word at @at is bit 4 of column c. */
INLINE void fifth_bits(const uint8_t *w, int at, struct step *u) {
    __m512i h = get_u32(w, at);

#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
        __m512i byte = _mm512_set1_epi32(v / 2 * 0x01010101);
        __m512i four = _mm512_set1_epi32(v % 2 ? (int)0x80402010 : 0x08040201);
        __m512i own = _mm512_shuffle_epi8(
            h, _mm512_add_epi8(byte, _mm512_broadcast_i32x4(
                                         _mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c))));

        u->q[v] =
            _mm512_mask_add_epi8(u->q[v], _mm512_test_epi8_mask(own, four), u->q[v], bytes(16));
    }
}

INLINE void unpack_q4_0(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    (void)i;
    nibbles(w, 2, raw, u);
    u->d[0] = get_f16(w, 0);
}

INLINE void unpack_q4_1(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    (void)i;
    nibbles(w, 4, raw, u);
    u->d[0] = get_f16(w, 0);
    u->m = get_f16(w, 2);
}

INLINE void unpack_q5_0(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    (void)i;
    nibbles(w, 6, false, u);
    fifth_bits(w, 2, u);
    u->d[0] = get_f16(w, 0);
}

INLINE void unpack_q5_1(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    (void)i;
    nibbles(w, 8, false, u);
    fifth_bits(w, 4, u);
    u->d[0] = get_f16(w, 0);
    u->m = get_f16(w, 2);
}

INLINE void unpack_q8_0(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    (void)i;
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++)
        u->q[v] = _mm512_xor_si512(get_u32(w, 2 + 4 * v), bytes(0x80));
    u->d[0] = get_f16(w, 0);
}

/* The codes of IQ4_NL plus 128. */
INLINE void look_up_iq4(struct step *u) {
    look_up(_mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153,
                          (char)166, (char)181, (char)197, (char)217, (char)241),
            u);
}

INLINE void unpack_iq4_nl(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    (void)i;
    nibbles(w, 2, false, u);
    look_up_iq4(u);
    u->d[0] = get_f16(w, 0);
}

INLINE void unpack_iq4_xs(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    __m512i low = down(get_u32(w, 4), 4 * i), high;

    high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(w + R * 2)));
    high = _mm512_slli_epi32(_mm512_and_si512(down(high, 2 * i), _mm512_set1_epi32(3)), 4);
    low = or_and(high, low, _mm512_set1_epi32(15));
    low = _mm512_sub_epi32(low, _mm512_set1_epi32(32));
    u->d[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(low), get_f16(w, 0));
    nibbles(w, 8 + 16 * (int)i, false, u);
    look_up_iq4(u);
}

/* The codes plus 12. The scale is 2^(e - 128), made of its bits. */
INLINE void unpack_mxfp4(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    __m512i e = get_u8(w, 0);
    __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);

    (void)i;
    e = _mm512_mask_mov_epi32(normal, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), small);
    u->d[0] = _mm512_castsi512_ps(e);
    nibbles(w, 1, false, u);
    look_up(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0), u);
}

/* Q4_K and Q5_K: 8 six-bit scales and 8 six-bit minima in 12 bytes. */
INLINE void scale_k4(const uint8_t *w, uint32_t i, struct step *u) {
    const __m512i four = _mm512_set1_epi32(15), top = _mm512_set1_epi32(0x30);
    __m512i a = get_u32(w, 4), b = get_u32(w, 8), c = get_u32(w, 12), s, m;

    if (i < 4) {
        s = _mm512_and_si512(down(a, 8 * i), _mm512_set1_epi32(63));
        m = _mm512_and_si512(down(b, 8 * i), _mm512_set1_epi32(63));
    } else {
        uint32_t n = 8 * (i - 4);

        c = down(c, n);
        s = or_and(_mm512_and_si512(c, four), down(a, n + 2), top);
        m = or_and(_mm512_and_si512(_mm512_srli_epi32(c, 4), four), down(b, n + 2), top);
    }
    u->d[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(s), get_f16(w, 0));
    u->m = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_setzero_si512(), m)),
                         get_f16(w, 2));
}

INLINE void unpack_q4_k(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
        __m512i q = get_u32(w, 16 + 32 * (int)(i / 2) + 4 * v);

        if (i % 2 && !raw)
            q = _mm512_srli_epi16(q, 4);
        u->q[v] = _mm512_and_si512(q, bytes(i % 2 && raw ? 0xf0 : 15));
    }
    scale_k4(w, i, u);
}

INLINE void unpack_q5_k(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    __m128i left = _mm_cvtsi32_si128(i < 4 ? 4 - (int)i : 0);
    __m128i right = _mm_cvtsi32_si128(i < 4 ? 0 : (int)i - 4);

#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
        __m512i q = down(get_u32(w, 48 + 32 * (int)(i / 2) + 4 * v), i % 2 * 4);
        __m512i h = _mm512_srl_epi32(_mm512_sll_epi32(get_u32(w, 16 + 4 * v), left), right);

        u->q[v] = or_and(_mm512_and_si512(q, bytes(15)), h, bytes(16));
    }
    scale_k4(w, i, u);
}

/* Packed as d, 16 scales, and for each half 16 words of low nibbles, 8 words of high bits. The step
 * is a constant wherever this is unrolled. */
INLINE void unpack_q6_k(const uint8_t *w, uint32_t i, bool raw, struct step *u) {
    uint32_t k = i % 4;
    int low = 18 + (int)(i / 4 * 96 + k % 2 * 32), high = 18 + 64 + (int)(i / 4 * 96);
    __m512 d = get_f16(w, 0);

#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
        __m512i q = get_u32(w, low + 4 * v), h = get_u32(w, high + 4 * v);

        q = k < 2 ? q : _mm512_srli_epi32(q, 4);
        h = k == 0 ? _mm512_slli_epi32(h, 4) : k == 1 ? _mm512_slli_epi32(h, 2) : h;
        h = k == 3 ? _mm512_srli_epi32(h, 2) : h;
        u->q[v] = or_and(_mm512_and_si512(q, bytes(15)), h, bytes(0x30));
    }
    u->d[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(get_i8(w, 2 + 2 * (int)i)), d);
    u->d[1] = _mm512_mul_ps(_mm512_cvtepi32_ps(get_i8(w, 3 + 2 * (int)i)), d);
}

/* ---- weights times activations ---- */

/* The terms of @n_m rows from column @k on, @n_step of them, to @term. Eight steps at a time: rows
 * of activations are padded to that. */
INLINE void prepare(struct form f, const struct kern_rows *x, uint32_t m0, uint32_t n_m, uint32_t k,
                    uint32_t n_step, int32_t *term) {
    const __m512i off = _mm512_set1_epi32(-f.offset);

    for (uint32_t m = 0; m < n_m; m++) {
        size_t at = (m0 + m) * x->q_stride + k;
        const float *d = x->d + at / KERN_Q8_BLOCK;
        const int16_t *s = x->s + at / KERN_Q8_SUM;

        for (uint32_t i = 0; i < n_step; i += 8, d += 8, s += 16, term += 8 * n_term(f)) {
            __m512i v = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)s));
            __m512i scale = _mm512_castps_si512(_mm512_castps256_ps512(_mm256_loadu_ps(d)));
            __m512i high = _mm512_alignr_epi64(scale, scale, 2);

            if (f.d_16) {
                __m512i a = _mm512_mullo_epi32(v, off), b = _mm512_alignr_epi64(a, a, 4);

                a = _mm512_maskz_expand_epi32(0x6666, a);
                b = _mm512_maskz_expand_epi32(0x6666, b);
                _mm512_storeu_si512(term, _mm512_mask_expand_epi32(a, 0x1111, scale));
                _mm512_storeu_si512(term + 16, _mm512_mask_expand_epi32(b, 0x1111, high));
                continue;
            }
            v = _mm512_add_epi32(v, _mm512_srli_epi64(v, 32)); /* in the lower half of each 64 */
            if (f.has_m)
                v = _mm512_castps_si512(
                    _mm512_mul_ps(_mm512_cvtepi32_ps(v),
                                  _mm512_castsi512_ps(_mm512_maskz_expand_epi32(0x5555, scale))));
            else
                v = _mm512_mullo_epi32(v, off);
            v = _mm512_slli_epi64(v, 32);
            _mm512_storeu_si512(term, _mm512_mask_expand_epi32(v, 0x5555, scale));
        }
    }
}

INLINE __m512 spread_ps(const int32_t *p) {
    return _mm512_castsi512_ps(spread(p));
}

INLINE __m512i dot4(__m512i sum, const __m512i *q, const int8_t *x) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
        sum = _mm512_dpbusd_epi32(sum, q[v], spread(x + 4 * v));

    return sum;
}

/* What one activation row adds to @sum of @n_g groups. @q, @term: its step; @i: that of a block */
INLINE void add_row(struct form f, bool raw, uint32_t i, const struct step *u, uint32_t n_g,
                    const int8_t *q, const int32_t *term, __m512 (*sum)[N_TALL], uint32_t at) {
    const bool odd = raw && f.upper == UPPER_ODD && i % 2, half = raw && f.upper == UPPER_HALF;
    const __m512i zero = _mm512_setzero_si512();
    __m512i start = f.offset ? spread(term + 1) : zero;
    __m512 d = spread_ps(term);

#pragma GCC unroll 2
    for (uint32_t g = 0; g < n_g; g++) {
        __m512i p = dot4(start, u[g].q, q), p1;
        __m512 t;

        if (f.d_16) {
            p1 = dot4(spread(term + 2), u[g].q + 4, q + 16);
            t = _mm512_mul_ps(_mm512_cvtepi32_ps(p), u[g].d[0]);
            t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p1), u[g].d[1], t);
            sum[g][at] = _mm512_fmadd_ps(t, d, sum[g][at]);
            continue;
        }
        p1 = dot4(half ? zero : p, u[g].q + 4, q + 16);
        if (half)
            p1 = _mm512_add_epi32(p, _mm512_srai_epi32(p1, 4));
        if (odd)
            p1 = _mm512_srai_epi32(p1, 4);
        t = _mm512_mul_ps(u[g].d[0], d);
        sum[g][at] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p1), t, sum[g][at]);
        if (f.has_m)
            sum[g][at] = _mm512_fmadd_ps(u[g].m, spread_ps(term + 1), sum[g][at]);
    }
}

/* Sums of @n_m activation rows, to and from memory. */
INLINE void load_sums(__m512 (*s)[N_TALL], uint32_t n_g, uint32_t n_m, bool zero, const float *y,
                      size_t y_stride) {
#pragma GCC unroll 8
    for (uint32_t m = 0; m < n_m; m++)
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n_g; g++)
            s[g][m] = zero ? _mm512_setzero_ps() : _mm512_loadu_ps(y + m * y_stride + g * R);
}

INLINE void store_sums(__m512 (*s)[N_TALL], uint32_t n_g, uint32_t n_m, float *y, size_t y_stride) {
#pragma GCC unroll 8
    for (uint32_t m = 0; m < n_m; m++)
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n_g; g++)
            _mm512_storeu_ps(y + m * y_stride + g * R, s[g][m]);
}

/* Prefetch bytes @from to @to of both groups. No load or store moves across: gcc else gathers the
 * prefetches of unrolled steps, and the CPU drops what is too much at once. */
INLINE void fetch(const uint8_t *p, size_t group, uint32_t n_g, uint32_t from, uint32_t to) {
    __asm__ volatile("" ::: "memory");
    for (; from < to; from += 64)
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n_g; g++)
            _mm_prefetch((const char *)p + g * group + from, _MM_HINT_T0);
    __asm__ volatile("" ::: "memory");
}

/* @n steps of @n_g groups, @group bytes apart, times @n_m activation rows: unpacked in registers.
 * @follow: what is read after them, of the first group
 * @keep:   NULL, or where the unpacked steps are left for kept_tile()
 * @zero:   @y is set, not added to */
INLINE void tile(struct form f, const uint8_t *w, const uint8_t *follow, size_t group, uint32_t n_g,
                 uint32_t n, struct acts a, uint32_t n_m, struct step (*keep)[N_G], bool zero,
                 float *y, size_t y_stride) {
    const uint32_t per_block = f.block / STEP, size = R * f.size / per_block;
    const bool run = n_m == 1 && n_g == 1; /* of memory: see tall() */
    const uint32_t part = n_m ? ((size + 63) / 64 + n_m - 1) / n_m * 64 : 0;
    const uint32_t share = run ? 64 : part; /* to fetch with each row */
    const bool raw = !keep && (n_m <= 2 || f.upper == UPPER_ODD);
    __m512 sum[N_G][N_TALL];

    load_sums(sum, n_g, n_m, zero, y, y_stride);
    for (uint32_t k = 0; k < n; k += per_block, w += per_block * size) {
        uint32_t left = (n - k) * size;
        const uint8_t *ahead = left > AHEAD ? w + AHEAD : follow + (AHEAD - left);

#pragma GCC unroll 8
        for (uint32_t i = 0; i < per_block; i++, a.q += STEP, a.term += n_term(f)) {
            struct step u[N_G];

            __asm__ volatile("" ::: "memory");
#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_g; g++) {
                f.unpack(w + g * group, i, raw, &u[g]);
                if (keep)
                    keep[k + i][g] = u[g];
            }
#pragma GCC unroll 8
            for (uint32_t m = 0; m < n_m; m++) {
                if (!keep && (!run || (k + i) % 2 == 0))
                    fetch(ahead + i * size, group, n_g, m * share,
                          (m + 1) * share < size ? (m + 1) * share : size);
                add_row(f, raw, i, u, n_g, a.q + m * a.q_stride, a.term + m * a.term_stride, sum,
                        m);
            }
        }
    }
    store_sums(sum, n_g, n_m, y, y_stride);
}

/* The same group by group. For many rows, since what two groups need does not fit the registers;
 * for one row of a format of small blocks, since the CPU's own prefetchers follow one run of memory
 * best. They stop where a page ends: a line now and then, more than a page ahead, has them begin
 * the next in time, while all lines would only take their place. Formats of large blocks compute
 * more, and read slower so: Q6_K 20 GB/s, and 32 with two groups at once. */
INLINE void tall(struct form f, const uint8_t *w, const uint8_t *follow, size_t group, uint32_t n_g,
                 uint32_t n, struct acts a, uint32_t n_m, bool zero, float *y, size_t y_stride) {
    for (uint32_t g = 0; g < n_g; g++, w += group, y += R)
        tile(f, w, g + 1 < n_g ? w + group : follow, group, 1, n, a, n_m, NULL, zero, y, y_stride);
}

/* What one activation row adds to @sum. Each word of it is spread once for both groups. */
INLINE void meet(const struct step *u, uint32_t n_g, const int8_t *q, const int32_t *term,
                 float *sum) {
    const __m512 d = spread_ps(term);
    __m512i p[2][N_G];

#pragma GCC unroll 2
    for (uint32_t h = 0; h < 2; h++) {
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n_g; g++)
            p[h][g] = spread(term + 1 + h);
#pragma GCC unroll 4
        for (uint32_t v = 4 * h; v < 4 * h + 4; v++) {
            __m512i x = spread(q + 4 * v);

#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_g; g++)
                p[h][g] = _mm512_dpbusd_epi32(p[h][g], u[g].q[v], x);
        }
    }
#pragma GCC unroll 2
    for (uint32_t g = 0; g < n_g; g++) {
        __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(p[0][g]), u[g].d[0]);

        t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p[1][g]), u[g].d[1], t);
        _mm512_store_ps(sum + g * R, _mm512_fmadd_ps(t, d, _mm512_load_ps(sum + g * R)));
    }
}

/* As tile(), for many rows where scales are for 16: unpacked in registers once for all rows. Codes
 * of two groups leave no room for sums, which go through the L1 instead. The loop over rows is
 * small: unrolled it is more than the CPU keeps decoded. */
INLINE void rows_16(struct form f, const uint8_t *w, const uint8_t *follow, size_t group,
                    uint32_t n_g, uint32_t n, struct acts a, uint32_t n_m, bool zero, float *y,
                    size_t y_stride) {
    const uint32_t per_block = f.block / STEP, size = R * f.size / per_block;
    float sum[N_CHUNK][N_G * R] __attribute__((aligned(64)));

    for (uint32_t m = 0; m < n_m; m++)
        for (uint32_t i = 0; i < n_g * R; i++)
            sum[m][i] = zero ? 0 : y[m * y_stride + i];
    for (uint32_t k = 0; k < n; k += per_block, w += per_block * size) {
        uint32_t left = (n - k) * size;
        const uint8_t *ahead = left > AHEAD ? w + AHEAD : follow + (AHEAD - left);

#pragma GCC unroll 8
        for (uint32_t i = 0; i < per_block; i++, a.q += STEP, a.term += n_term(f)) {
            struct step u[N_G];

            __asm__ volatile("" ::: "memory");
#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_g; g++)
                f.unpack(w + g * group, i, false, &u[g]);
            for (uint32_t m = 0; m < n_m; m++) {
                if (m * 64 < size)
                    fetch(ahead + i * size + m * 64, group, n_g, 0, 64);
                meet(u, n_g, a.q + m * a.q_stride, a.term + m * a.term_stride, sum[m]);
            }
        }
    }
    for (uint32_t m = 0; m < n_m; m++)
        memcpy(y + m * y_stride, sum[m], n_g * R * sizeof(float));
}

/* Steps of @n_g groups, unpacked in memory, and how activation rows meet them: in @n_tile tiles of
 * @n_m rows, the last @n_more of them of one more. */
struct kept {
    const struct step (*u)[N_G];
    uint32_t n, n_g;
    uint32_t n_tile, n_m, n_more;
    const uint8_t *next; /* to be fetched meanwhile: the steps after these, of the first group */
    uint32_t size;       /* bytes of one of them */
    uint32_t share;      /* those that one tile fetches */
    size_t group;
};

/* All of them times @n_m activation rows; adds to @y. Fetches bytes @from to @to of each step. */
INLINE void kept_tile(struct form f, const struct kept *w, uint32_t n_g, struct acts a,
                      uint32_t n_m, uint32_t from, uint32_t to, float *y, size_t y_stride) {
    const struct step(*u)[N_G] = w->u, (*end)[N_G] = u + w->n;
    const uint8_t *next = w->next;
    const size_t size = w->size, group = w->group;
    __m512 s[N_G][N_TALL];

    load_sums(s, n_g, n_m, false, y, y_stride);
    for (; u < end; u++, next += size, a.q += STEP, a.term += n_term(f)) {
        __m512i p[N_G][N_M];

        fetch(next, group, n_g, from, to);
#pragma GCC unroll 8
        for (uint32_t m = 0; m < n_m; m++)
#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_g; g++)
                p[g][m] =
                    f.offset ? spread(a.term + m * a.term_stride + 1) : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (uint32_t v = 0; v < 8; v++)
#pragma GCC unroll 8
            for (uint32_t m = 0; m < n_m; m++) {
                __m512i x = spread(a.q + m * a.q_stride + 4 * v);

#pragma GCC unroll 2
                for (uint32_t g = 0; g < n_g; g++)
                    p[g][m] = _mm512_dpbusd_epi32(p[g][m], (*u)[g].q[v], x);
            }
#pragma GCC unroll 8
        for (uint32_t m = 0; m < n_m; m++) {
            const int32_t *term = a.term + m * a.term_stride;
            __m512 d = spread_ps(term);

#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_g; g++) {
                s[g][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p[g][m]),
                                          _mm512_mul_ps((*u)[g].d[0], d), s[g][m]);
                if (f.has_m)
                    s[g][m] = _mm512_fmadd_ps((*u)[g].m, spread_ps(term + 1), s[g][m]);
            }
        }
    }
    store_sums(s, n_g, n_m, y, y_stride);
}

/* All tiles; adds to @sum. */
INLINE void kept_rows(struct form f, const struct kept *w, uint32_t n_g, struct acts a,
                      float (*sum)[N_G * R]) {
    for (uint32_t i = 0, from = 0, rows; i < w->n_tile; i++, sum += rows, from += w->share) {
        uint32_t to = from + w->share < w->size ? from + w->share : w->size;

        rows = w->n_m + (i + w->n_more >= w->n_tile);
        // clang-format off
        switch (rows) {
        case 1: kept_tile(f, w, n_g, a, 1, from, to, *sum, N_G * R); break;
        case 2: kept_tile(f, w, n_g, a, 2, from, to, *sum, N_G * R); break;
        case 3: kept_tile(f, w, n_g, a, 3, from, to, *sum, N_G * R); break;
        case 4: kept_tile(f, w, n_g, a, 4, from, to, *sum, N_G * R); break;
        case 5: kept_tile(f, w, n_g, a, 5, from, to, *sum, N_G * R); break;
        case 6: kept_tile(f, w, n_g, a, 6, from, to, *sum, N_G * R); break;
        default: __builtin_unreachable();
        }
        // clang-format on
        a.q += rows * a.q_stride;
        a.term += rows * a.term_stride;
    }
}

/* Formats differ in two ways once they are unpacked. */
#define KEPT(KIND, ...)                                                                            \
    static __attribute__((noinline)) void kept_##KIND(const struct kept *w, struct acts a,         \
                                                      float(*sum)[N_G * R]) {                      \
        const struct form f = { __VA_ARGS__ };                                                     \
                                                                                                   \
        if (w->n_g == 2)                                                                           \
            kept_rows(f, w, 2, a, sum);                                                            \
        else                                                                                       \
            kept_rows(f, w, 1, a, sum);                                                            \
    }
KEPT(offset, .offset = 1)
KEPT(m, .has_m = true)

/* As tile(), for many rows where scales are for 32: 256 columns are unpacked once, to the L1, and
 * meet all of them. */
INLINE void tiles(struct form f, const uint8_t *w, const uint8_t *follow, size_t group,
                  uint32_t n_g, uint32_t n_step, struct acts a, uint32_t n_m, bool zero, float *y,
                  size_t y_stride) {
    const uint32_t size = R * f.size / (f.block / STEP);
    const uint32_t rest = n_m - f.first, n_tile = (rest + N_M - 1) / N_M;
    struct kept kept = {
        .n_g = n_g,
        .n_tile = n_tile,
        .n_m = rest / n_tile,
        .n_more = rest % n_tile,
        .size = size,
        .share = ((size + 63) / 64 + n_tile - 1) / n_tile * 64,
        .group = group,
    };
    float sum[N_CHUNK][N_G * R];
    struct step u[SPAN / STEP][N_G];

    for (uint32_t m = 0; m < n_m; m++)
        for (uint32_t i = 0; i < n_g * R; i++)
            sum[m][i] = zero ? 0 : y[m * y_stride + i];
    for (uint32_t k = 0, n; k < n_step; k += n) {
        n = n_step - k < SPAN / STEP ? n_step - k : SPAN / STEP;

        struct acts b = a;

        kept.u = u;
        kept.n = n;
        kept.next = k + n < n_step ? w + n * size : follow;
        tile(f, w, kept.next, group, n_g, n, a, f.first, u, false, sum[0], N_G * R);
        b.q += f.first * a.q_stride;
        b.term += f.first * a.term_stride;
        if (f.has_m)
            kept_m(&kept, b, sum + f.first);
        else
            kept_offset(&kept, b, sum + f.first);
        w += n * size;
        a.q += n * STEP;
        a.term += n * n_term(f);
    }
    for (uint32_t m = 0; m < n_m; m++)
        memcpy(y + m * y_stride, sum[m], n_g * R * sizeof(float));
}

/* All activation rows of @a, N_CHUNK at most, times a constant number of groups. */
INLINE void mul_groups(struct form f, const uint8_t *w, const uint8_t *follow, size_t group,
                       uint32_t n_g, uint32_t n, struct acts a, uint32_t n_m, bool zero, float *y,
                       size_t y_stride) {
    if (f.d_16 && n_m > 6) {
        rows_16(f, w, follow, group, n_g, n, a, n_m, zero, y, y_stride);
        return;
    }
    // clang-format off
    switch (n_m) {
    case 1:
        if (f.block == 32)
            tall(f, w, follow, group, n_g, n, a, 1, zero, y, y_stride);
        else
            tile(f, w, follow, group, n_g, n, a, 1, NULL, zero, y, y_stride);
        break;
    case 2: tile(f, w, follow, group, n_g, n, a, 2, NULL, zero, y, y_stride); break;
    case 3: tile(f, w, follow, group, n_g, n, a, 3, NULL, zero, y, y_stride); break;
    case 4: tile(f, w, follow, group, n_g, n, a, 4, NULL, zero, y, y_stride); break;
    case 5: tall(f, w, follow, group, n_g, n, a, 5, zero, y, y_stride); break;
    case 6: tall(f, w, follow, group, n_g, n, a, 6, zero, y, y_stride); break;
    case 7: tall(f, w, follow, group, n_g, n, a, 7, zero, y, y_stride); break;
    case 8: tall(f, w, follow, group, n_g, n, a, 8, zero, y, y_stride); break;
    default: tiles(f, w, follow, group, n_g, n, a, n_m, zero, y, y_stride);
    }
    // clang-format on
}

INLINE void mul_packed(struct form f, const uint8_t *w, size_t w_stride, uint32_t n_out,
                       uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    const size_t group = R * w_stride, size = R * f.size / (f.block / STEP);
    int32_t term[N_TERM];

    for (uint32_t m = 0; m < x->n_row; m += N_CHUNK) {
        uint32_t n_m = x->n_row - m < N_CHUNK ? x->n_row - m : N_CHUNK, n;
        uint32_t most = N_TERM / n_m / n_term(f) / 8 * 8;

        for (uint32_t k = 0; k < n_col / STEP; k += n) {
            const uint8_t *from = w + k * size, *next = x->next;
            struct acts a = { x->q + m * x->q_stride + k * STEP, term, x->q_stride, 0 };
            float *to = y + m * y_stride;

            n = n_col / STEP - k < most ? n_col / STEP - k : most;
            a.term_stride = (n + 7) / 8 * 8 * n_term(f);
            prepare(f, x, m, n_m, k * STEP, n, term);
            if (k + n < n_col / STEP)
                next = from + n * size;
            else if (m + n_m < x->n_row)
                next = w;
            for (uint32_t o = 0; o < n_out; o += N_G * R, from += N_G * group) {
                const uint8_t *follow = o + N_G * R < n_out ? from + N_G * group : next;

                if (!follow)
                    follow = from; /* it is in the cache */
                if (o + R < n_out)
                    mul_groups(f, from, follow, group, 2, n, a, n_m, k == 0, to + o, y_stride);
                else
                    mul_groups(f, from, follow, group, 1, n, a, n_m, k == 0, to + o, y_stride);
            }
        }
    }
}

#define ENTRIES(FMT, fmt, OFFSET, UPPER, D_16, HAS_M, BLOCK, SIZE, FIRST)                          \
    static const struct form form_##fmt = { unpack_##fmt, OFFSET, UPPER, D_16,                     \
                                            HAS_M,        BLOCK,  SIZE,  FIRST };                  \
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
ENTRIES(QUANT_Q4_0, q4_0,   8,    UPPER_HALF, false, false, 32,  18, 4)
ENTRIES(QUANT_Q4_1, q4_1,   0,    UPPER_HALF, false, true,  32,  20, 4)
ENTRIES(QUANT_Q5_0, q5_0,   16,   UPPER_NONE, false, false, 32,  22, 0)
ENTRIES(QUANT_Q5_1, q5_1,   0,    UPPER_NONE, false, true,  32,  24, 0)
ENTRIES(QUANT_Q8_0, q8_0,   128,  UPPER_NONE, false, false, 32,  34, 4)
ENTRIES(QUANT_Q4_K, q4_k,   0,    UPPER_ODD, false, true,  256, 144, 0)
ENTRIES(QUANT_Q5_K, q5_k,   0,    UPPER_NONE, false, true,  256, 176, 0)
ENTRIES(QUANT_Q6_K, q6_k,   32,   UPPER_NONE, true,  false, 256, 210, 0)
ENTRIES(QUANT_IQ4_NL, iq4_nl, 128,  UPPER_NONE, false, false, 32,  18, 0)
ENTRIES(QUANT_IQ4_XS, iq4_xs, 128,  UPPER_NONE, false, false, 256, 136, 0)
ENTRIES(QUANT_MXFP4, mxfp4,  12,   UPPER_NONE, false, false, 32,  17, 0)
/* clang-format on */

#define BIND(FMT, NAME, fmt)                                                                       \
    k->pack[FMT] = (struct kern_pack) {                                                            \
        R, NAME ".r16", pack_##fmt, decode_##fmt, mul_##fmt                                        \
    }

void kern_pack_avx512vnni(struct kern *k) {
    BIND(QUANT_Q4_0, "Q4_0", q4_0);
    BIND(QUANT_Q4_1, "Q4_1", q4_1);
    BIND(QUANT_Q5_0, "Q5_0", q5_0);
    BIND(QUANT_Q5_1, "Q5_1", q5_1);
    BIND(QUANT_Q8_0, "Q8_0", q8_0);
    BIND(QUANT_Q4_K, "Q4_K", q4_k);
    BIND(QUANT_Q5_K, "Q5_K", q5_k);
    BIND(QUANT_Q6_K, "Q6_K", q6_k);
    BIND(QUANT_IQ4_NL, "IQ4_NL", iq4_nl);
    BIND(QUANT_IQ4_XS, "IQ4_XS", iq4_xs);
    BIND(QUANT_MXFP4, "MXFP4", mxfp4);
}
