/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every tier this host can run, against double precision and against the generic tier.
 *
 * Weights end where a page that can not be read begins, so a kernel that reads past its last row
 * dies here. test-kern --bench [FORMAT] prints the speed of the matrix kernels instead.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "engine/kern/kern.h"

enum {
    COL_MAX = 2816,
    OUT_MAX = 11,
    ROW_MAX = 9,

    PACK_OUT = 48, /* groups of 16, 8 and 4 rows: 3, 6, 12 */
    PACK_ROW = 13,
};

/* Where a block keeps its f16 scales; -1: no such field. */
static const int scale_at[QUANT_FMT_N][2] = {
    [QUANT_F32] = { -1, -1 },   [QUANT_F16] = { -1, -1 },   [QUANT_BF16] = { -1, -1 },
    [QUANT_Q4_0] = { 0, -1 },   [QUANT_Q4_1] = { 0, 2 },    [QUANT_Q5_0] = { 0, -1 },
    [QUANT_Q5_1] = { 0, 2 },    [QUANT_Q8_0] = { 0, -1 },   [QUANT_Q2_K] = { 80, 82 },
    [QUANT_Q3_K] = { 108, -1 }, [QUANT_Q4_K] = { 0, 2 },    [QUANT_Q5_K] = { 0, 2 },
    [QUANT_Q6_K] = { 208, -1 }, [QUANT_IQ4_NL] = { 0, -1 }, [QUANT_IQ4_XS] = { 0, -1 },
    [QUANT_MXFP4] = { -1, -1 },
};

/* What the bytes of a block are, besides its scales, and what the scales are. */
enum kind {
    RANDOM,
    ALL_00,
    ALL_80, /* -128 in Q8_0 */
    ALL_FF,
    SCALE_0,
    SCALE_NEGATIVE,
    SCALE_SUBNORMAL,
    KIND_N,
};

static const struct kern_tier *tiers[8];
static struct kern tables[8];
static int n_tier;

static uint64_t seed = 1;

static uint32_t rnd(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;

    return (uint32_t)(seed >> 32);
}

static float rnd_float(void) {
    return (float)(int32_t)rnd() * 0x1p-31f;
}

/* @size bytes that end at an unreadable page; never freed. */
static uint8_t *guarded(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (size + page - 1) / page * page;
    uint8_t *p = mmap(NULL, n + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    assert_int_equal(mprotect(p + n, page, PROT_NONE), 0);

    return p + n - size;
}

static void put16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static uint32_t rnd_scale(enum kind kind) {
    uint32_t h = 0x2000 + rnd() % 0x1000; /* [2^-7, 2^-3) */

    if (kind == SCALE_0)
        return rnd() & 0x8000;
    if (kind == SCALE_SUBNORMAL)
        return rnd() & 0x83ff;

    return h | (kind == SCALE_NEGATIVE ? 0x8000 : rnd() & 0x8000);
}

static void fill_row(enum quant_fmt fmt, uint8_t *w, size_t n, enum kind kind) {
    const struct quant_info *info = quant_info(fmt);

    for (size_t b = 0; b < n / info->block; b++, w += info->size) {
        for (uint32_t i = 0; i < info->size; i++)
            w[i] = kind == ALL_00   ? 0
                   : kind == ALL_80 ? 0x80
                   : kind == ALL_FF ? 0xff
                                    : (uint8_t)rnd();
        for (int i = 0; i < 2; i++)
            if (scale_at[fmt][i] >= 0)
                put16(w + scale_at[fmt][i], rnd_scale(kind));
        if (fmt == QUANT_MXFP4)
            w[0] = kind == SCALE_0 ? (uint8_t)(rnd() % 3) : (uint8_t)(118 + rnd() % 12);
        if (fmt == QUANT_F16)
            put16(w, rnd_scale(kind));
        if (fmt == QUANT_BF16 || fmt == QUANT_F32) {
            uint32_t v = 0x3e00 + rnd() % 0x100 + (rnd() & 0x8000);

            put16(w, fmt == QUANT_F32 ? rnd() : v);
            if (fmt == QUANT_F32)
                put16(w + 2, v);
        }
    }
}

/* Rows of activations with everything filled in; @kind 0: random, 1: all at the extremes, 2: 0. */
struct acts {
    struct kern_rows rows;
    float *f;
    int8_t *q;
    float *d;
    int16_t *s;
};

static struct acts acts_new(uint32_t n_row, uint32_t n_col, int kind) {
    size_t stride = (n_col + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;
    struct acts a = {
        .f = aligned_alloc(64, n_row * stride * sizeof(float)),
        .q = aligned_alloc(64, n_row * stride),
        .d = aligned_alloc(64, n_row * stride / 4),
        .s = aligned_alloc(64, n_row * stride / 4),
    };

    for (uint32_t m = 0; m < n_row; m++) {
        float *x = a.f + m * stride;

        memset(x, 0, stride * sizeof *x);
        for (uint32_t i = 0; i < n_col; i++)
            x[i] = kind == 0   ? rnd_float() * (i % 97 ? 1 : 20)
                   : kind == 1 ? (m % 3 == 0 || (m % 3 == 1 && i & 1) ? 3.0f : -3.0f)
                               : 0;
        tables[0].quantize(x, n_col, a.q + m * stride, a.d + m * stride / 32,
                           a.s + m * stride / 16);
    }
    a.rows = (struct kern_rows){
        .n_row = n_row,
        .f = a.f,
        .f_stride = stride,
        .q = a.q,
        .d = a.d,
        .s = a.s,
        .q_stride = stride,
    };

    return a;
}

static void acts_free(struct acts *a) {
    free(a->f);
    free(a->q);
    free(a->d);
    free(a->s);
}

static float act(const struct acts *a, uint32_t m, size_t i, bool exact) {
    size_t k = m * a->rows.q_stride + i;

    return exact ? a->f[k] : a->d[k / 32] * (float)a->q[k];
}

static const uint32_t cols_32[] = { 32, 64, 96, 128, 160, 224, 256, 288, 480, 704, 2112, 2816 };
static const uint32_t cols_256[] = { 256, 512, 768, 2816 };
static const uint32_t cols_1[] = { 1, 3, 8, 31, 100, 255, 257, 300, 2816 };

static const uint32_t *cols_of(enum quant_fmt fmt, size_t *n) {
    uint32_t block = quant_info(fmt)->block;

    *n = block == 1 ? sizeof cols_1 / 4 : block == 32 ? sizeof cols_32 / 4 : sizeof cols_256 / 4;

    return block == 1 ? cols_1 : block == 32 ? cols_32 : cols_256;
}

/* y of every tier against the same sum in double, from decoded weights. */
static void check_mul(enum quant_fmt fmt, bool exact, uint32_t n_col, uint32_t n_row,
                      uint32_t n_out, enum kind kind, int x_kind) {
    size_t stride = quant_row_size(fmt, n_col) + (rnd() % 3) * 2, y_stride = n_out + 3;
    size_t size = stride * (n_out - 1) + quant_row_size(fmt, n_col);
    static uint8_t *mem; /* the end of it is used */
    uint8_t *w;
    struct acts a = acts_new(n_row, n_col, x_kind);
    float row[COL_MAX], y[ROW_MAX * (OUT_MAX + 3)];
    double want[ROW_MAX][OUT_MAX], scale[ROW_MAX][OUT_MAX];
    const size_t max = (COL_MAX * 4 + 8) * OUT_MAX;

    if (!mem)
        mem = guarded(max);
    assert_true(size <= max);
    w = mem + max - size;
    for (uint32_t o = 0; o < n_out; o++) {
        fill_row(fmt, w + o * stride, n_col, kind);
        quant_decode(fmt, w + o * stride, row, n_col);
        for (uint32_t m = 0; m < n_row; m++) {
            want[m][o] = scale[m][o] = 0;
            for (uint32_t i = 0; i < n_col; i++) {
                double p = (double)row[i] * (double)act(&a, m, i, exact || fmt <= QUANT_BF16);

                want[m][o] += p;
                scale[m][o] += fabs(p);
            }
        }
    }

    for (int t = 0; t < n_tier; t++) {
        kern_mul_fn *mul = exact ? tables[t].mul_exact[fmt] : tables[t].mul[fmt];

        for (size_t i = 0; i < n_row * y_stride; i++)
            y[i] = 12345;
        mul(w, stride, n_out, n_col, &a.rows, y, y_stride);
        for (uint32_t m = 0; m < n_row; m++)
            for (uint32_t o = 0; o < y_stride; o++) {
                float got = y[m * y_stride + o];

                if (o >= n_out)
                    assert_true(got == 12345);
                else if (!(fabs((double)got - want[m][o]) <=
                           (double)KERN_RTOL * scale[m][o] + FLT_MIN))
                    fail_msg(
                        "%s: %s%s n_col %u n_row %u kind %d/%d: y[%u][%u] want %g got %g of %g",
                        tiers[t]->name, quant_info(fmt)->name, exact ? " exact" : "", n_col, n_row,
                        kind, x_kind, m, o, want[m][o], (double)got, scale[m][o]);
            }
    }
    acts_free(&a);
}

static void test_mul(void **state) {
    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++) {
        size_t n;
        const uint32_t *cols = cols_of(fmt, &n);

        for (size_t c = 0; c < n; c++)
            for (uint32_t m = 1; m <= ROW_MAX; m++) {
                check_mul(fmt, false, cols[c], m, 1 + rnd() % OUT_MAX, RANDOM, 0);
                check_mul(fmt, true, cols[c], m, 1 + rnd() % OUT_MAX, RANDOM, 0);
            }
        for (enum kind kind = 0; kind < KIND_N; kind++)
            for (int x_kind = 0; x_kind < 3; x_kind++)
                for (size_t c = 0; c < n; c += 2) {
                    check_mul(fmt, false, cols[c], 1 + rnd() % ROW_MAX, 3, kind, x_kind);
                    check_mul(fmt, true, cols[c], 1 + rnd() % ROW_MAX, 2, kind, x_kind);
                }
    }
}

/* The bits of y[m][o] are the same alone, among other rows, and at another address. */
static void test_mul_value_is_its_own(void **state) {
    enum { N_OUT = 10, N_ROW = 9 };
    uint8_t *w = malloc(N_OUT * COL_MAX * 4 + 1);
    float y[N_ROW * N_OUT], one;

    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (int i = 0; i < 2 * QUANT_FMT_N; i++) {
            enum quant_fmt fmt = (enum quant_fmt)(i / 2);
            kern_mul_fn *mul = i & 1 ? tables[t].mul_exact[fmt] : tables[t].mul[fmt];
            uint32_t block = quant_info(fmt)->block;
            uint32_t n_col = block == 256 ? 768 : block == 32 ? 736 : 739;
            size_t stride = quant_row_size(fmt, n_col);
            struct acts a = acts_new(N_ROW, n_col, 0);
            struct kern_rows x = a.rows;

            for (uint32_t o = 0; o < N_OUT; o++)
                fill_row(fmt, w + o * stride, n_col, RANDOM);
            mul(w, stride, N_OUT, n_col, &a.rows, y, N_OUT);
            x.n_row = 1;
            for (uint32_t m = 0; m < N_ROW; m++)
                for (uint32_t o = 0; o < N_OUT; o++) {
                    x.f = a.f + m * x.f_stride;
                    x.q = a.q + m * x.q_stride;
                    x.d = a.d + m * x.q_stride / 32;
                    x.s = a.s + m * x.q_stride / 16;
                    mul(w + o * stride, 0, 1, n_col, &x, &one, 1);
                    if (memcmp(&one, &y[m * N_OUT + o], sizeof one))
                        fail_msg("%s: %s: y[%u][%u] is %a alone, %a in a batch", tiers[t]->name,
                                 quant_info(fmt)->name, m, o, (double)one,
                                 (double)y[m * N_OUT + o]);
                }
            x.n_row = 5;
            x.f = a.f + x.f_stride;
            x.q = a.q + x.q_stride;
            x.d = a.d + x.q_stride / 32;
            x.s = a.s + x.q_stride / 16;
            one = y[3 * N_OUT + 4];
            memmove(w + 1 + 2 * stride, w + 2 * stride, 5 * stride);
            if (block > 1) { /* blocks have no alignment */
                mul(w + 1 + 2 * stride, stride, 5, n_col, &x, y, N_OUT);
                assert_memory_equal(&one, &y[2 * N_OUT + 2], sizeof one);
            }
            acts_free(&a);
        }
    free(w);
}

/* Bytes no quantiser writes: any value may come out, but the kernel must survive. */
static void test_mul_hostile(void **state) {
    float y[2 * OUT_MAX];

    (void)state;
    for (enum quant_fmt fmt = QUANT_F32; fmt < QUANT_FMT_N; fmt++) {
        struct acts a = acts_new(2, 512, 0);
        size_t stride = quant_row_size(fmt, 512);
        uint8_t *w = malloc(stride * OUT_MAX);

        for (int t = 0; t < n_tier; t++)
            for (int round = 0; round < 50; round++) {
                for (size_t i = 0; i < stride * OUT_MAX; i++)
                    w[i] = (uint8_t)rnd();
                tables[t].mul[fmt](w, stride, OUT_MAX, 512, &a.rows, y, OUT_MAX);
                tables[t].mul_exact[fmt](w, stride, OUT_MAX, 512, &a.rows, y, OUT_MAX);
            }
        free(w);
        acts_free(&a);
    }
}

static void test_decode(void **state) {
    static float want[COL_MAX], got[COL_MAX + 1];

    (void)state;
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++) {
        size_t n;
        const uint32_t *cols = cols_of(fmt, &n);

        for (size_t c = 0; c < n; c++)
            for (enum kind kind = 0; kind < KIND_N; kind++) {
                uint8_t *end = guarded(quant_row_size(fmt, cols[c]));

                fill_row(fmt, end, cols[c], kind);
                quant_decode(fmt, end, want, cols[c]);
                for (int t = 0; t < n_tier; t++) {
                    got[cols[c]] = 12345;
                    tables[t].decode[fmt](end, got, cols[c]);
                    for (uint32_t i = 0; i < cols[c]; i++)
                        if (!(fabsf(want[i] - got[i]) <= 4e-7f * fabsf(want[i]) + 1e-9f))
                            fail_msg("%s: %s: n %u: [%u] want %a got %a", tiers[t]->name,
                                     quant_info(fmt)->name, cols[c], i, (double)want[i],
                                     (double)got[i]);
                    assert_true(got[cols[c]] == 12345);
                }
            }
    }
}

/* Rows of plain weights, and what they are worth: y in double and sum |w * x|. */
struct plain {
    uint8_t *w;
    size_t size; /* bytes of a row */
    double want[PACK_OUT][PACK_ROW];
    double scale[PACK_OUT][PACK_ROW];
};

static void plain_fill(struct plain *p, enum quant_fmt fmt, uint32_t n_col, const struct acts *a,
                       uint32_t n_out, enum kind kind) {
    float row[COL_MAX];

    p->size = quant_row_size(fmt, n_col);
    for (uint32_t o = 0; o < n_out; o++) {
        fill_row(fmt, p->w + o * p->size, n_col, kind);
        quant_decode(fmt, p->w + o * p->size, row, n_col);
        for (uint32_t m = 0; m < a->rows.n_row; m++) {
            p->want[o][m] = p->scale[o][m] = 0;
            for (uint32_t i = 0; i < n_col; i++) {
                double v = (double)row[i] * (double)act(a, m, i, fmt <= QUANT_BF16);

                p->want[o][m] += v;
                p->scale[o][m] += fabs(v);
            }
        }
    }
}

/* Pack, decode every row back, multiply; groups end at a page that can not be read. */
static void check_pack(int t, enum quant_fmt fmt, uint32_t n_col, uint32_t n_row, uint32_t n_group,
                       enum kind kind, int x_kind) {
    const struct kern_pack *p = &tables[t].pack[fmt];
    uint32_t n_out = n_group * p->n_row, y_stride = n_out + 3;
    size_t stride, size;
    static struct plain plain;
    static uint8_t *mem;
    static float y[PACK_ROW * (PACK_OUT + 3)], want[COL_MAX], got[COL_MAX + 1];
    struct acts a = acts_new(n_row, n_col, x_kind);
    uint8_t *w;

    if (!mem) {
        mem = guarded(PACK_OUT * (COL_MAX * 4 + 4));
        plain.w = malloc(PACK_OUT * COL_MAX * 4);
    }
    plain_fill(&plain, fmt, n_col, &a, n_out, kind);
    stride = plain.size + rnd() % 3;
    size = (n_group - 1) * p->n_row * stride + p->n_row * plain.size;
    w = mem + PACK_OUT * (COL_MAX * 4 + 4) - size;
    for (uint32_t g = 0; g < n_group; g++)
        p->pack(plain.w + g * p->n_row * plain.size, plain.size, n_col, w + g * p->n_row * stride);

    got[n_col] = 12345;
    for (uint32_t o = 0; o < n_out; o++) {
        quant_decode(fmt, plain.w + o * plain.size, want, n_col);
        p->decode_row(w + o / p->n_row * p->n_row * stride, o % p->n_row, n_col, got);
        assert_memory_equal(got, want, n_col * sizeof *got);
    }
    assert_true(got[n_col] == 12345);

    for (size_t i = 0; i < n_row * y_stride; i++)
        y[i] = 12345;
    p->mul(w, stride, n_out, n_col, &a.rows, y, y_stride);
    for (uint32_t m = 0; m < n_row; m++)
        for (uint32_t o = 0; o < y_stride; o++) {
            double v = (double)y[m * y_stride + o];

            if (o >= n_out)
                assert_true(v == 12345);
            else if (!(fabs(v - plain.want[o][m]) <=
                       (double)KERN_RTOL * plain.scale[o][m] + (double)FLT_MIN))
                fail_msg("%s: %s n_col %u n_row %u kind %d/%d: y[%u][%u] want %g got %g of %g",
                         tiers[t]->name, p->layout, n_col, n_row, kind, x_kind, m, o,
                         plain.want[o][m], v, plain.scale[o][m]);
        }
    acts_free(&a);
}

static void test_pack(void **state) {
    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++) {
            size_t n;
            const uint32_t *cols = cols_of(fmt, &n);

            if (!tables[t].pack[fmt].n_row)
                continue;
            assert_true(PACK_OUT >= 3 * tables[t].pack[fmt].n_row);
            uint32_t n_group = PACK_OUT / tables[t].pack[fmt].n_row;

            for (size_t c = 0; c < n; c++)
                for (uint32_t m = 1; m <= PACK_ROW; m++)
                    check_pack(t, fmt, cols[c], m, 1 + (m + (uint32_t)c) % n_group, RANDOM, 0);
            for (enum kind kind = 0; kind < KIND_N; kind++)
                for (int x_kind = 0; x_kind < 3; x_kind++)
                    check_pack(t, fmt, cols[n / 2], 1 + rnd() % PACK_ROW, n_group - 1, kind,
                               x_kind);
        }
}

enum { OWN_ROW = 70, OWN_GROUP = 5, OWN_OUT = OWN_GROUP * 16, OWN_COL = 4864 };

/* y of all @n_row rows against y of a few of them, from some of the groups. */
static void check_pack_parts(int t, enum quant_fmt fmt, uint32_t n_col, uint32_t n_row,
                             uint32_t step) {
    static float all[OWN_ROW * OWN_OUT], part[OWN_ROW * OWN_OUT];
    static uint8_t plain[OWN_OUT * OWN_COL * 4], w[OWN_OUT * OWN_COL * 4];
    const struct kern_pack *p = &tables[t].pack[fmt];
    uint32_t n_out = OWN_GROUP * p->n_row;
    size_t size = quant_row_size(fmt, n_col), group = p->n_row * size;
    struct acts a = acts_new(n_row, n_col, 0);
    struct kern_rows x = a.rows;

    for (uint32_t o = 0; o < n_out; o++)
        fill_row(fmt, plain + o * size, n_col, RANDOM);
    for (uint32_t g = 0; g < OWN_GROUP; g++)
        p->pack(plain + g * group, size, n_col, w + g * group);
    p->mul(w, size, n_out, n_col, &x, all, n_out);
    for (x.n_row = 1; x.n_row <= n_row; x.n_row += step) {
        uint32_t m0 = rnd() % (n_row + 1 - x.n_row), g0 = rnd() % OWN_GROUP;
        uint32_t n = (1 + rnd() % (OWN_GROUP - g0)) * p->n_row;

        x.f = a.rows.f + m0 * x.f_stride;
        x.q = a.q + m0 * x.q_stride;
        x.d = a.d + m0 * x.q_stride / 32;
        x.s = a.s + m0 * x.q_stride / 16;
        x.next = rnd() % 2 ? w : NULL;
        p->mul(w + g0 * group, size, n, n_col, &x, part, n);
        for (uint32_t m = 0; m < x.n_row; m++)
            if (memcmp(part + m * n, all + (m0 + m) * n_out + g0 * p->n_row, n * 4))
                fail_msg("%s: %s: row %u differs among %u of %u columns", tiers[t]->name, p->layout,
                         m, x.n_row, n_col);
    }
    acts_free(&a);
}

/* The bits of y[m][o] are the same for any number of activation rows and groups around it, also
 * where columns or rows are more than a kernel takes at once. */
static void test_pack_value_is_its_own(void **state) {
    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
            if (tables[t].pack[fmt].n_row) {
                bool k = quant_info(fmt)->block == 256;

                check_pack_parts(t, fmt, k ? 768 : 736, 40, 1);
                check_pack_parts(t, fmt, k ? OWN_COL : OWN_COL - 32, OWN_ROW, 23);
            }
}

static void check_quantize(const float *x, size_t n) {
    enum { N = COL_MAX + 256 };
    static int8_t q[2][N];
    static float d[2][N / 32];
    static int16_t s[2][N / 16];
    size_t n_pad = (n + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;

    for (int t = 0; t < n_tier; t++) {
        int8_t *qt = q[t > 0];
        float *dt = d[t > 0];
        int16_t *st = s[t > 0];

        memset(qt, 0x55, sizeof q[0]);
        memset(dt, 0x55, sizeof d[0]);
        memset(st, 0x55, sizeof s[0]);
        tables[t].quantize(x, n, qt, dt, st);
        if (memcmp(qt, q[0], sizeof q[0]) || memcmp(dt, d[0], sizeof d[0]) ||
            memcmp(st, s[0], sizeof s[0]))
            fail_msg("%s: quantize: n %zu differs from generic", tiers[t]->name, n);
    }
    for (size_t i = 0; i < n_pad; i++) {
        float back = d[0][i / 32] * (float)q[0][i], v = i < n ? x[i] : 0;

        assert_true(fabsf(back - v) <= d[0][i / 32] * 0.5001f + KERN_Q8_TINY);
    }
    for (size_t i = 0; i < n_pad; i += 16) {
        int sum = 0;

        for (size_t j = i; j < i + 16; j++)
            sum += q[0][j];
        assert_int_equal(sum, s[0][i / 16]);
    }
    assert_int_equal(q[0][n_pad], 0x55);
    assert_int_equal(s[0][n_pad / 16], 0x5555);
}

static void test_quantize(void **state) {
    static float x[COL_MAX];

    (void)state;
    for (int round = 0; round < 400; round++) {
        size_t n = round < 20 ? (size_t)round : 1 + rnd() % COL_MAX;
        float size = ldexpf(1, (int)(rnd() % 200) - 115);

        for (size_t i = 0; i < n; i++)
            x[i] = rnd_float() * size;
        if (round % 4 == 0) /* ties: whole and half steps of a scale of 1 */
            for (size_t i = 0; i < n; i++)
                x[i] = i % 32 ? (float)((int)(rnd() % 509) - 254) / 2 : 127;
        if (round % 7 == 0)
            memset(x, 0, n / 2 * sizeof *x);
        check_quantize(x, n);
    }
}

static void test_quantize_not_finite(void **state) {
    const float bad[] = { NAN, -NAN, INFINITY, -INFINITY };
    int8_t q[256];
    int16_t s[16];
    float x[64], d[8];

    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (int i = 0; i < 4 * 64; i++) {
            for (int j = 0; j < 64; j++)
                x[j] = rnd_float();
            x[i / 4] = bad[i % 4];
            tables[t].quantize(x, 64, q, d, s);
            assert_true(!isfinite(d[i / 4 / 32]));
            assert_true(isfinite(d[!(i / 4 / 32)]));
            for (int j = 0; j < 256; j++)
                assert_true(q[j] >= -127);
        }
}

static void test_axpy(void **state) {
    static float x[600], y[600], back[600];

    (void)state;
    for (size_t n = 0; n < 600; n = n < 70 ? n + 1 : n + 37)
        for (int t = 0; t < n_tier; t++) {
            for (size_t i = 0; i < 600; i++) {
                x[i] = rnd_float();
                y[i] = back[i] = rnd_float();
            }
            tables[t].axpy(0.75f, x, y, n);
            for (size_t i = 0; i < n; i++)
                assert_true(fabsf(y[i] - (back[i] + 0.75f * x[i])) < 3e-7f);
            assert_true(y[n] == back[n]);
        }
}

static void test_rmsnorm(void **state) {
    static float x[COL_MAX], w[COL_MAX], y[COL_MAX];

    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (size_t n = 1; n <= COL_MAX; n = n < 40 ? n + 1 : n * 2 + 5) {
            double sum = 0, r;

            for (size_t i = 0; i < n; i++) {
                x[i] = rnd_float() * (float)(1 + 1000 * (i % 50 == 0));
                w[i] = rnd_float() * 8;
                sum += (double)x[i] * (double)x[i];
            }
            r = 1 / sqrt(sum / (double)n + (double)1e-6f);
            tables[t].rmsnorm(x, w, 1e-6f, y, n);
            for (size_t i = 0; i < n; i++)
                assert_true(fabs((double)y[i] - (double)x[i] * r * (double)w[i]) <=
                            1e-6 * fabs((double)x[i] * r * (double)w[i]));
            memcpy(y, x, sizeof y);
            tables[t].rmsnorm(y, NULL, 1e-6f, y, n);
            for (size_t i = 0; i < n; i++)
                assert_true(fabs((double)y[i] - (double)x[i] * r) <= 1e-6 * fabs((double)x[i] * r));
        }
}

static double gelu(double g) {
    double t = sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);

    return g / (1 + exp(-2 * t));
}

static void test_geglu(void **state) {
    enum { N = 4001 };
    static float g[N], u[N], y[N];

    (void)state;
    for (int t = 0; t < n_tier; t++) {
        for (int i = 0; i < N; i++) {
            g[i] = (float)(i - N / 2) / 150; /* [-13.3, 13.3] */
            u[i] = 1 + rnd_float() / 2;
        }
        g[0] = -3e38f;
        g[1] = 3e38f;
        g[2] = 1e-20f;
        g[3] = -40;
        tables[t].geglu(g, u, y, N);
        for (int i = 0; i < N; i++) {
            double want = gelu((double)g[i]) * (double)u[i];
            double slack = g[i] < -3 ? 1e-5 * fabs(want) + 1e-9 : 1e-6 * fabs(want);

            if (!(fabs((double)y[i] - want) <= slack) && fabsf(g[i]) < 1e30f)
                fail_msg("%s: geglu(%g) want %g got %g", tiers[t]->name, (double)g[i], want,
                         (double)y[i]);
        }
        assert_true(fabsf(y[0]) < 1e3f);
        assert_true(y[1] == g[1] * u[1]);
        for (int n = 0; n < 40; n++) {
            float in_place[41];

            memcpy(in_place, g + 2000, sizeof in_place);
            tables[t].geglu(in_place, u + 2000, in_place, (size_t)n);
            for (int i = 0; i < n; i++)
                assert_true(fabsf(in_place[i] - y[2000 + i]) <= 1e-6f * fabsf(y[2000 + i]));
            assert_true(in_place[n] == g[2000 + n]);
        }
        g[0] = NAN;
        tables[t].geglu(g, u, y, 20);
        assert_true(isnan(y[0]));
    }
}

static void test_softmax(void **state) {
    static float x[5000], y[5000];
    static double want[5000];

    (void)state;
    for (int t = 0; t < n_tier; t++) {
        for (size_t n = 1; n < 5000; n = n < 40 ? n + 1 : n * 3 + 1) {
            double max = -INFINITY, sum = 0, total = 0;

            for (size_t i = 0; i < n; i++) {
                x[i] = rnd_float() * 20 - 100 * (float)(i % 9 == 5);
                if (i % 11 == 7)
                    x[i] = -INFINITY;
                max = fmax(max, (double)x[i]);
            }
            for (size_t i = 0; i < n; i++)
                sum += want[i] = exp((double)x[i] - max);
            memcpy(y, x, sizeof y);
            y[n] = 12345;
            tables[t].softmax(y, n);
            for (size_t i = 0; i < n; i++) {
                double slack = 5e-7 + 1e-7 * (max - (double)x[i]); /* of the subtraction */

                total += (double)y[i];
                slack = isfinite(slack) ? slack : 0;
                if (!(fabs((double)y[i] - want[i] / sum) <= slack * want[i] / sum + 1e-37))
                    fail_msg("%s: softmax: n %zu: [%zu] want %g got %g", tiers[t]->name, n, i,
                             want[i] / sum, (double)y[i]);
                if (isinf(x[i]))
                    assert_true(y[i] == 0);
            }
            assert_true(fabs(total - 1) < 1e-6);
            assert_true(y[n] == 12345);
        }
        for (int i = 0; i < 50; i++)
            x[i] = -INFINITY;
        tables[t].softmax(x, 50);
        for (int i = 0; i < 50; i++)
            assert_true(x[i] == 0);
    }
}

static void test_rope(void **state) {
    float x[515], y[515], cs[512];

    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (size_t n = 2; n <= 512; n = n < 70 ? n + 2 : n * 2 - 8) {
            for (size_t i = 0; i < n / 2; i++) {
                double angle = (double)rnd_float() * 10;

                cs[2 * i] = (float)cos(angle);
                cs[2 * i + 1] = (float)sin(angle);
            }
            for (size_t i = 0; i < 515; i++)
                x[i] = y[i] = rnd_float();
            tables[t].rope(y, cs, n);
            for (size_t i = 0; i < n / 2; i++) {
                double a = (double)x[i], b = (double)x[i + n / 2];
                double c = (double)cs[2 * i], s = (double)cs[2 * i + 1];

                assert_true(fabs((double)y[i] - (a * c - b * s)) < 3e-7);
                assert_true(fabs((double)y[i + n / 2] - (a * s + b * c)) < 3e-7);
            }
            assert_true(y[n] == x[n]);
        }
}

static void test_softcap(void **state) {
    enum { N = 3001 };
    static float x[N + 1], y[N + 1];

    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (int n = N; n > 0; n = n > 40 ? 40 : n - 1) {
            for (int i = 0; i <= n; i++)
                x[i] = y[i] = i % 2 ? (float)(i - N / 2) / 8 : ldexpf(rnd_float(), -(i % 20));
            if (n > 2)
                x[0] = y[0] = -3e38f;
            tables[t].softcap(y, 30, (size_t)n);
            for (int i = 0; i < n; i++) {
                double want = 30 * tanh((double)x[i] / 30);

                if (!(fabs((double)y[i] - want) <= 5e-7 * fabs(want)))
                    fail_msg("%s: softcap(%g) want %.9g got %.9g", tiers[t]->name, (double)x[i],
                             want, (double)y[i]);
            }
            assert_true(y[n] == x[n]);
        }
}

static void test_bind(void **state) {
    struct kern k = { 0 };

    (void)state;
    kern_bind(&k, CPU_AVX512 | CPU_VNNI); /* no AVX2: a tier needs all of its bits */
    assert_string_equal(k.tier, "generic");
    for (int t = 0; t < n_tier; t++)
        for (int i = 0; i < QUANT_FMT_N; i++) {
            assert_non_null(tables[t].mul[i]);
            assert_non_null(tables[t].mul_exact[i]);
            assert_non_null(tables[t].decode[i]);
            if (t && i != QUANT_Q2_K && i != QUANT_Q3_K)
                assert_true(tables[t].pack[i].n_row > 0);
        }
}

static void test_cpu_mask(void **state) {
    char *old = getenv("MOE_CPU_MASK");
    uint32_t all;

    (void)state;
    old = old ? strdup(old) : NULL;
    unsetenv("MOE_CPU_MASK");
    all = kern_cpu();
    setenv("MOE_CPU_MASK", "0", 1);
    assert_int_equal(kern_cpu(), 0);
    setenv("MOE_CPU_MASK", "0x3", 1);
    assert_int_equal(kern_cpu(), all & 3);
    if (old)
        setenv("MOE_CPU_MASK", old, 1);
    else
        unsetenv("MOE_CPU_MASK");
    free(old);
}

static double now(void) {
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);

    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Every bit of it is looked at. */
static void test_read(void **state) {
    uint64_t *p = aligned_alloc(64, 1024);

    assert_non_null(p);
    for (int i = 0; i < n_tier; i++) {
        memset(p, 0, 1024);
        assert_int_equal(tables[i].read(p, 1024), 0);
        for (int bit = 0; bit < 1024 * 8; bit += 63) {
            p[bit / 64] = 1ull << bit % 64;
            assert_true(tables[i].read(p, 1024) == 1ull << bit % 64);
            p[bit / 64] = 0;
        }
    }
    free(p);
}

/* Registers hold 512 bits and four units may multiply them at 6 GHz: a tier that claims more has
 * lost its loop to the compiler. */
static void test_peak(void **state) {
    for (int i = 0; i < n_tier; i++) {
        double best = 0;

        assert_int_equal(tables[i].peak(2), 2 * tables[i].peak(1));
        for (int r = 0; r < 5; r++) {
            double t = now(), n = (double)tables[i].peak(500);

            t = now() - t;
            best = n / t > best ? n / t : best;
        }
        print_message("%s: %.0f Gop/s\n", tiers[i]->name, best / 1e9);
        assert_true(best > 1e6 && best < 4 * 6e9 * 128);
    }
}

/* Best of several, over weights of @size bytes: more than all caches, or what the L2 holds.
 * @packed: from the packed form. */
static void bench_one(const struct kern *k, enum quant_fmt fmt, bool packed, size_t size,
                      uint32_t n_row, double *ret_gb, double *ret_gop) {
    enum { N_COL = 2816, SLICE = 352 };
    size_t stride = quant_row_size(fmt, N_COL);
    uint32_t n_out = (uint32_t)(size / stride) / 32 * 32;
    uint32_t slice = n_out < SLICE ? n_out : SLICE;
    uint8_t *w = aligned_alloc(64, (stride * n_out + 63) / 64 * 64);
    float *y = malloc(slice * n_row * sizeof *y);
    struct acts a = acts_new(n_row, N_COL, 0);
    kern_mul_fn *mul = packed ? k->pack[fmt].mul : k->mul[fmt];
    double best = 1e9, n_op;

    for (uint32_t o = 0; o < 32; o++)
        fill_row(fmt, w + o * stride, N_COL, RANDOM);
    for (uint32_t o = 32; o < n_out; o += 32)
        memcpy(w + o * stride, w, 32 * stride);
    for (int round = 0; round < 40; round++) {
        /* as a thread meets them: another slice each time, all of it cold or all of it warm */
        uint32_t o = n_out > slice ? (uint32_t)round % (n_out / slice) * slice : 0;
        double t = now();

        mul(w + o * stride, stride, slice, N_COL, &a.rows, y, slice);
        t = now() - t;
        best = t < best ? t : best;
    }
    n_op = 2.0 * (double)slice * N_COL * n_row;
    *ret_gb = (double)(stride * slice) / best / 1e9;
    *ret_gop = n_op / best / 1e9;
    acts_free(&a);
    free(y);
    free(w);
}

static void bench_row(int t, enum quant_fmt fmt, bool packed) {
    const uint32_t n_rows[] = { 1, 2, 4, 8, 64, 512 };

    for (int warm = 0; warm < 2; warm++) {
        printf("%-7s %-10s %-5s %-4s", quant_info(fmt)->name, tiers[t]->name,
               packed ? "pack" : "plain", warm ? "L2" : "DRAM");
        for (size_t m = 0; m < sizeof n_rows / sizeof *n_rows; m++) {
            double gb, gop;

            bench_one(&tables[t], fmt, packed, warm ? 400u << 10 : 96u << 20, n_rows[m], &gb, &gop);
            printf(" %6.1f (%4.0f)", gb, gop);
            fflush(stdout);
        }
        printf("\n");
    }
}

/* @only: a format's name, or NULL for all */
static int bench(const char *only) {
    printf("GB/s of weights (Gop/s), one core, CPU time, best of 40; 1, 2, 4, 8, 64, 512 rows\n");
    for (enum quant_fmt fmt = 0; fmt < QUANT_FMT_N; fmt++)
        for (int t = 0; t < n_tier && (!only || !strcmp(only, quant_info(fmt)->name)); t++) {
            bench_row(t, fmt, false);
            if (tables[t].pack[fmt].n_row)
                bench_row(t, fmt, true);
        }

    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bind),
        cmocka_unit_test(test_cpu_mask),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_mul),
        cmocka_unit_test(test_mul_value_is_its_own),
        cmocka_unit_test(test_mul_hostile),
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_pack_value_is_its_own),
        cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_quantize_not_finite),
        cmocka_unit_test(test_axpy),
        cmocka_unit_test(test_rmsnorm),
        cmocka_unit_test(test_geglu),
        cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_softcap),
        cmocka_unit_test(test_peak),
        cmocka_unit_test(test_read),
    };
    uint32_t cpu = kern_cpu();

    for (const struct kern_tier *t = kern_tiers; t->name; t++)
        if ((t->need & cpu) == t->need) {
            tables[n_tier] = tables[n_tier ? n_tier - 1 : 0];
            t->use(&tables[n_tier]);
            tiers[n_tier++] = t;
            print_message("tier %s\n", t->name);
        }
    if (argc > 1 && !strcmp(argv[1], "--bench"))
        return bench(argv[2]);

    return cmocka_run_group_tests_name("kern", tests, NULL, NULL);
}
