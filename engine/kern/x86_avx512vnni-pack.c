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
#endif
#endif
#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

enum {
    R = 16,       /* rows of a group */
    N_G = 2,      /* groups that share a broadcast of activations */
    N_M = 4,      /* activation rows that share unpacked codes */
    N_CHUNK = 64, /* activation rows that go through all weights together; they stay in the L2 */
    SPAN = 256,   /* columns unpacked at once */
    STEP = 32,    /* columns */
    NEVER = 1 << 30,
    AHEAD = 1152, /* bytes to prefetch ahead, from two activation rows on */
};

/* 32 columns of 16 rows. Lane r, byte i of q[v]: row r, column 4 v + i.
 * element = d[column / 16] * (q - offset) + m */
struct step {
    __m512i q[8];
    __m512 d[2]; /* the second one only where scales are for 16 */
    __m512 m;
};

/* @w: packed block   @i: step in the block */
typedef void unpack_fn(const uint8_t *w, uint32_t i, struct step *u);

/* What the compiler must know about a format to make one loop of it. */
struct form {
    unpack_fn *unpack;
    int offset;
    bool d_16;      /* a scale for 16 columns, else for 32 */
    bool has_m;     /* else m is 0 */
    uint32_t block; /* columns of a block */
    uint32_t size;  /* its bytes, of one row */
    uint32_t wide;  /* activation rows from which unpacking once pays for going through memory */
};

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
INLINE void nibbles(const uint8_t *w, int at, struct step *u) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        __m512i q = get_u32(w, at + 4 * v);

        u->q[v] = _mm512_and_si512(q, bytes(15));
        u->q[v + 4] = _mm512_and_si512(_mm512_srli_epi16(q, 4), bytes(15));
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

INLINE void unpack_q4_0(const uint8_t *w, uint32_t i, struct step *u) {
    (void)i;
    nibbles(w, 2, u);
    u->d[0] = get_f16(w, 0);
}

INLINE void unpack_q4_1(const uint8_t *w, uint32_t i, struct step *u) {
    (void)i;
    nibbles(w, 4, u);
    u->d[0] = get_f16(w, 0);
    u->m = get_f16(w, 2);
}

INLINE void unpack_q5_0(const uint8_t *w, uint32_t i, struct step *u) {
    (void)i;
    nibbles(w, 6, u);
    fifth_bits(w, 2, u);
    u->d[0] = get_f16(w, 0);
}

INLINE void unpack_q5_1(const uint8_t *w, uint32_t i, struct step *u) {
    (void)i;
    nibbles(w, 8, u);
    fifth_bits(w, 4, u);
    u->d[0] = get_f16(w, 0);
    u->m = get_f16(w, 2);
}

INLINE void unpack_q8_0(const uint8_t *w, uint32_t i, struct step *u) {
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

INLINE void unpack_iq4_nl(const uint8_t *w, uint32_t i, struct step *u) {
    (void)i;
    nibbles(w, 2, u);
    look_up_iq4(u);
    u->d[0] = get_f16(w, 0);
}

INLINE void unpack_iq4_xs(const uint8_t *w, uint32_t i, struct step *u) {
    __m512i low = down(get_u32(w, 4), 4 * i), high;

    high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(w + R * 2)));
    high = _mm512_slli_epi32(_mm512_and_si512(down(high, 2 * i), _mm512_set1_epi32(3)), 4);
    low = or_and(high, low, _mm512_set1_epi32(15));
    low = _mm512_sub_epi32(low, _mm512_set1_epi32(32));
    u->d[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(low), get_f16(w, 0));
    nibbles(w, 8 + 16 * (int)i, u);
    look_up_iq4(u);
}

/* The codes plus 12. The scale is 2^(e - 128), made of its bits. */
INLINE void unpack_mxfp4(const uint8_t *w, uint32_t i, struct step *u) {
    __m512i e = get_u8(w, 0);
    __m512i small = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);

    (void)i;
    e = _mm512_mask_mov_epi32(normal, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), small);
    u->d[0] = _mm512_castsi512_ps(e);
    nibbles(w, 1, u);
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

INLINE void unpack_q4_k(const uint8_t *w, uint32_t i, struct step *u) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++)
        u->q[v] = _mm512_and_si512(down(get_u32(w, 16 + 32 * (int)(i / 2) + 4 * v), i % 2 * 4),
                                   bytes(15));
    scale_k4(w, i, u);
}

INLINE void unpack_q5_k(const uint8_t *w, uint32_t i, struct step *u) {
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
INLINE void unpack_q6_k(const uint8_t *w, uint32_t i, struct step *u) {
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

INLINE __m512i dot4(__m512i sum, const __m512i *q, const int8_t *x) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++)
        sum = _mm512_dpbusd_epi32(sum, q[v], spread(x + 4 * v));

    return sum;
}

/* What one activation row adds to @sum of @n_g groups; @k: first column of the step. */
INLINE void add_row(struct form f, const struct step *u, uint32_t n_g, const struct kern_rows *x,
                    uint32_t m, uint32_t k, __m512 (*sum)[N_M], uint32_t at) {
    size_t e = m * x->q_stride + k;
    const int8_t *q = x->q + e;
    const __m512i zero = _mm512_setzero_si512();
    __m512 d = _mm512_set1_ps(x->d[e / KERN_Q8_BLOCK]), ds = d;
    __m512i s = spread(x->s + e / KERN_Q8_SUM), start[2] = { zero, zero };

    if (f.has_m)
        ds = _mm512_mul_ps(d,
                           _mm512_cvtepi32_ps(_mm512_dpwssd_epi32(zero, s, _mm512_set1_epi16(1))));
    if (f.offset && f.d_16) {
        start[0] = _mm512_dpwssd_epi32(zero, s, _mm512_set1_epi32(-f.offset & 0xffff));
        start[1] = _mm512_dpwssd_epi32(zero, s, _mm512_set1_epi32(-f.offset * 0x10000));
    } else if (f.offset) {
        start[0] = _mm512_dpwssd_epi32(zero, s, _mm512_set1_epi16((short)-f.offset));
    }
#pragma GCC unroll 2
    for (uint32_t g = 0; g < n_g; g++) {
        __m512i p = dot4(start[0], u[g].q, q);
        __m512 t;

        if (f.d_16) {
            __m512i p1 = dot4(start[1], u[g].q + 4, q + 16);

            t = _mm512_mul_ps(_mm512_cvtepi32_ps(p), u[g].d[0]);
            t = _mm512_fmadd_ps(_mm512_cvtepi32_ps(p1), u[g].d[1], t);
            sum[g][at] = _mm512_fmadd_ps(t, d, sum[g][at]);
        } else {
            p = dot4(p, u[g].q + 4, q + 16);
            sum[g][at] =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(p), _mm512_mul_ps(u[g].d[0], d), sum[g][at]);
        }
        if (f.has_m)
            sum[g][at] = _mm512_fmadd_ps(u[g].m, ds, sum[g][at]);
    }
}

/* Prefetch @n bytes, @ahead of @p. */
INLINE void fetch(const uint8_t *p, uint32_t n, uint32_t ahead) {
#pragma GCC unroll 16
    for (uint32_t i = 0; i < n; i += 64)
        _mm_prefetch((const char *)p + ahead + i, _MM_HINT_T0);
}

/* @n_g groups, @group bytes apart, times @n_m activation rows from @m0 on; weights are unpacked in
 * registers. */
INLINE void tile(struct form f, const uint8_t *w, size_t group, uint32_t n_g, uint32_t n_col,
                 const struct kern_rows *x, uint32_t m0, uint32_t n_m, float *y, size_t y_stride) {
    const uint32_t n_step = f.block / STEP, step_bytes = R * f.size / n_step;
    __m512 sum[N_G][N_M];

#pragma GCC unroll 8
    for (uint32_t i = 0; i < N_G * N_M; i++)
        sum[i / N_M][i % N_M] = _mm512_setzero_ps();
    for (uint32_t k = 0; k < n_col; k += f.block, w += R * f.size)
#pragma GCC unroll 8
        for (uint32_t i = 0; i < n_step; i++) {
            struct step u[N_G];

#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_g; g++) {
                if (n_m > 1 || n_step > 1)
                    fetch(w + g * group + i * step_bytes, step_bytes, AHEAD);
                f.unpack(w + g * group, i, &u[g]);
            }
#pragma GCC unroll 4
            for (uint32_t m = 0; m < n_m; m++)
                add_row(f, u, n_g, x, m0 + m, k + i * STEP, sum, m);
        }
#pragma GCC unroll 4
    for (uint32_t m = 0; m < n_m; m++)
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n_g; g++)
            _mm512_storeu_ps(y + (m0 + m) * y_stride + g * R, sum[g][m]);
}

/* @n steps, unpacked in memory, times @n_m activation rows; adds to @sum. @k: first column */
INLINE void tile_unpacked(struct form f, const struct step (*u)[N_G], uint32_t n, uint32_t n_g,
                          const struct kern_rows *x, uint32_t m0, uint32_t n_m, uint32_t k,
                          float (*sum)[N_G * R]) {
    __m512 s[N_G][N_M];

#pragma GCC unroll 4
    for (uint32_t m = 0; m < n_m; m++)
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n_g; g++)
            s[g][m] = _mm512_loadu_ps(sum[m] + g * R);
    for (uint32_t i = 0; i < n; i++, k += STEP)
#pragma GCC unroll 4
        for (uint32_t m = 0; m < n_m; m++)
            add_row(f, u[i], n_g, x, m0 + m, k, s, m);
#pragma GCC unroll 4
    for (uint32_t m = 0; m < n_m; m++)
#pragma GCC unroll 2
        for (uint32_t g = 0; g < n_g; g++)
            _mm512_storeu_ps(sum[m] + g * R, s[g][m]);
}

/* As tile(), for many rows: 256 columns are unpacked once, to the L1, and meet all of them. */
INLINE void tile_wide(struct form f, const uint8_t *w, size_t group, uint32_t n_g, uint32_t n_col,
                      const struct kern_rows *x, uint32_t m0, uint32_t n_m, float *y,
                      size_t y_stride) {
    const uint32_t n_step = f.block / STEP, step_bytes = R * f.size / n_step;
    float sum[N_CHUNK][N_G * R];
    struct step u[SPAN / STEP][N_G];

    memset(sum, 0, n_m * sizeof *sum);
    for (uint32_t k = 0; k < n_col; k += SPAN, w += SPAN / STEP * step_bytes) {
        uint32_t n = (n_col - k < SPAN ? n_col - k : SPAN) / STEP;

#pragma GCC unroll 8
        for (uint32_t i = 0; i < SPAN / STEP; i++)
#pragma GCC unroll 2
            for (uint32_t g = 0; g < n_g && i < n; g++) {
                const uint8_t *p = w + g * group + i / n_step * n_step * step_bytes;

                fetch(p + i % n_step * step_bytes, step_bytes, SPAN / STEP * step_bytes);
                f.unpack(p, i % n_step, &u[i][g]);
            }
        for (uint32_t m = 0; m < n_m; m += N_M)
            switch (n_m - m) {
            case 1:
                tile_unpacked(f, u, n, n_g, x, m0 + m, 1, k, sum + m);
                break;
            case 2:
                tile_unpacked(f, u, n, n_g, x, m0 + m, 2, k, sum + m);
                break;
            case 3:
                tile_unpacked(f, u, n, n_g, x, m0 + m, 3, k, sum + m);
                break;
            default:
                tile_unpacked(f, u, n, n_g, x, m0 + m, 4, k, sum + m);
            }
    }
    for (uint32_t m = 0; m < n_m; m++)
        memcpy(y + (m0 + m) * y_stride, sum[m], n_g * R * sizeof(float));
}

/* tile() or tile_wide() of a constant number of groups. */
INLINE void mul_groups(struct form f, const uint8_t *w, size_t group, uint32_t n_g, uint32_t n_col,
                       const struct kern_rows *x, uint32_t m0, uint32_t n_m, float *y,
                       size_t y_stride) {
    uint32_t end = m0 + n_m;

    if (n_m >= f.wide) {
        tile_wide(f, w, group, n_g, n_col, x, m0, n_m, y, y_stride);
        return;
    }
    for (uint32_t m = m0; m < end; m += N_M)
        switch (end - m) {
        case 1:
            tile(f, w, group, n_g, n_col, x, m, 1, y, y_stride);
            break;
        case 2:
            tile(f, w, group, n_g, n_col, x, m, 2, y, y_stride);
            break;
        case 3:
            tile(f, w, group, n_g, n_col, x, m, 3, y, y_stride);
            break;
        default:
            tile(f, w, group, n_g, n_col, x, m, N_M, y, y_stride);
        }
}

INLINE void mul_packed(struct form f, const uint8_t *w, size_t w_stride, uint32_t n_out,
                       uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    const size_t group = R * w_stride;

    for (uint32_t m = 0; m < x->n_row; m += N_CHUNK) {
        uint32_t n_m = x->n_row - m < N_CHUNK ? x->n_row - m : N_CHUNK, o = 0;

        for (; o + 2 * R <= n_out; o += 2 * R)
            mul_groups(f, w + o * w_stride, group, 2, n_col, x, m, n_m, y + o, y_stride);
        if (o < n_out)
            mul_groups(f, w + o * w_stride, group, 1, n_col, x, m, n_m, y + o, y_stride);
    }
}

#define ENTRIES(FMT, fmt, OFFSET, D_16, HAS_M, BLOCK, SIZE, WIDE)                                  \
    static const struct form form_##fmt = {                                                        \
        unpack_##fmt, OFFSET, D_16, HAS_M, BLOCK, SIZE, WIDE                                       \
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
ENTRIES(QUANT_Q4_0,   q4_0,   8,   false, false, 32,  18, NEVER)
ENTRIES(QUANT_Q4_1,   q4_1,   0,   false, true,  32,  20, NEVER)
ENTRIES(QUANT_Q5_0,   q5_0,   16,  false, false, 32,  22, 8)
ENTRIES(QUANT_Q5_1,   q5_1,   0,   false, true,  32,  24, 8)
ENTRIES(QUANT_Q8_0,   q8_0,   128, false, false, 32,  34, NEVER)
ENTRIES(QUANT_Q4_K,   q4_k,   0,   false, true,  256, 144, 8)
ENTRIES(QUANT_Q5_K,   q5_k,   0,   false, true,  256, 176, 8)
ENTRIES(QUANT_Q6_K,   q6_k,   32,  true,  false, 256, 210, 8)
ENTRIES(QUANT_IQ4_NL, iq4_nl, 128, false, false, 32,  18, 8)
ENTRIES(QUANT_IQ4_XS, iq4_xs, 128, false, false, 256, 136, 8)
ENTRIES(QUANT_MXFP4,  mxfp4,  12,  false, false, 32,  17, 8)
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
