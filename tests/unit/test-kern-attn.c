/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attention kernels of every tier this host can run, against double precision, and bit against bit
 * where the same value is to come out: any number of queries a call, a block converted or not.
 *
 * Blocks end where a page that can not be read begins. test-kern-attn --bench prints speeds.
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

enum { BLOCK = KERN_KV_BLOCK, N_Q = 14, DIM_MAX = 512, N_FMT = 3 };

static const enum quant_fmt formats[N_FMT] = { QUANT_F32, QUANT_F16, QUANT_Q8_0 };
static const uint32_t dims[] = { 32, 64, 96, 128, 256, 512 };
enum { N_DIM = sizeof dims / sizeof *dims };

static struct kern tables[8];
static int n_tier;
static uint32_t seed = 7;

static float draw(void) {
    seed = seed * 1664525 + 1013904223;
    return (float)(seed >> 8) / (1 << 23) - 1;
}

/* @size bytes that end at an unreadable page; never freed. */
static void *guarded(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (size + page - 1) / page * page;
    uint8_t *p = mmap(NULL, n + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    assert_int_equal(mprotect(p + n, page, PROT_NONE), 0);
    return p + n - size;
}

/* One block of keys and values, as kept and as what was kept means. */
struct block {
    enum quant_fmt fmt;
    uint32_t dim;
    void *key, *value;
    float *k, *v; /* [BLOCK][dim] */
};

/* What the cache's format makes of 32 elements. */
static void rounded(enum quant_fmt fmt, const float *x, float *ret) {
    float max = 0;

    for (int i = 0; i < 32; i++)
        max = fmaxf(max, fabsf(x[i]));
    for (int i = 0; i < 32; i++) {
        float d = quant_f16(quant_to_f16(max / 127));

        ret[i] = fmt == QUANT_F32   ? x[i]
                 : fmt == QUANT_F16 ? quant_f16(quant_to_f16(x[i]))
                 : d > 0            ? d * fmaxf(-127, fminf(127, rintf(x[i] * (1 / d))))
                                    : 0;
    }
}

static struct block block_new(const struct kern *k, enum quant_fmt fmt, uint32_t dim) {
    const struct kern_attn *a = &k->attn[fmt];
    struct block b = { .fmt = fmt, .dim = dim };
    float x[DIM_MAX];

    b.key = guarded(kern_kv_size(fmt, dim));
    b.value = guarded(kern_kv_size(fmt, dim));
    b.k = malloc(sizeof(float) * BLOCK * dim);
    b.v = malloc(sizeof(float) * BLOCK * dim);
    assert_true(b.k && b.v);
    for (uint32_t j = 0; j < BLOCK; j++)
        for (int value = 0; value < 2; value++) {
            for (uint32_t i = 0; i < dim; i++)
                x[i] = j % 9 == 4 && i < 32 ? 0 : draw() * (1 + (float)(j % 5));
            for (uint32_t i = 0; i < dim; i += 32)
                rounded(fmt, x + i, (value ? b.v : b.k) + j * dim + i);
            if (value)
                a->put_value(x, dim, j, b.value);
            else
                a->put_key(x, dim, j, b.key);
        }
    return b;
}

static void block_free(struct block *b) {
    free(b->k);
    free(b->v);
}

/* Queries, in floats and codes. */
struct queries {
    struct kern_rows rows;
    float f[N_Q * DIM_MAX];
    int8_t q[N_Q * DIM_MAX];
    float d[N_Q * DIM_MAX / KERN_Q8_BLOCK];
    int16_t s[N_Q * DIM_MAX / KERN_Q8_SUM];
};

static void queries_make(const struct kern *k, struct queries *q, uint32_t dim) {
    uint32_t wide = (dim + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;

    q->rows = (struct kern_rows){
        .n_row = N_Q, .f = q->f, .f_stride = dim, .q = q->q, .d = q->d, .s = q->s, .q_stride = wide
    };
    for (uint32_t i = 0; i < N_Q * dim; i++)
        q->f[i] = draw();
    for (uint32_t m = 0; m < N_Q; m++)
        k->quantize(q->f + m * dim, dim, q->q + m * wide, q->d + m * (wide / KERN_Q8_BLOCK),
                    q->s + m * (wide / KERN_Q8_SUM));
}

/* Element i of query m as the score of @fmt sees it. */
static double query_at(const struct queries *q, enum quant_fmt fmt, uint32_t m, uint32_t i) {
    const struct kern_rows *r = &q->rows;

    if (fmt != QUANT_Q8_0)
        return q->f[m * r->f_stride + i];
    return (double)q->d[m * (r->q_stride / 32) + i / 32] * q->q[m * r->q_stride + i];
}

static struct kern_rows some(const struct queries *q, uint32_t first, uint32_t n) {
    struct kern_rows r = q->rows;

    r.n_row = n;
    r.f += first * r.f_stride;
    r.q += first * r.q_stride;
    r.d += first * (r.q_stride / KERN_Q8_BLOCK);
    r.s += first * (r.q_stride / KERN_Q8_SUM);
    return r;
}

static void check_score(const struct kern *k, const struct block *b, const struct queries *q) {
    static float all[N_Q * BLOCK], part[N_Q * BLOCK];
    const struct kern_attn *a = &k->attn[b->fmt];

    a->score(b->key, b->dim, &q->rows, all, b->value, kern_kv_size(b->fmt, b->dim));
    for (uint32_t m = 0; m < N_Q; m++)
        for (uint32_t j = 0; j < BLOCK; j++) {
            double want = 0, scale = 0;

            for (uint32_t i = 0; i < b->dim; i++) {
                double x = query_at(q, b->fmt, m, i) * b->k[j * b->dim + i];

                want += x;
                scale += fabs(x);
            }
            if (!(fabs(all[m * BLOCK + j] - want) <= KERN_RTOL * scale))
                fail_msg("%s %s dim %u: score of query %u, position %u: %g, want %g", k->tier,
                         quant_info(b->fmt)->name, b->dim, m, j, (double)all[m * BLOCK + j], want);
        }
    for (uint32_t n = 1; n <= N_Q; n++)
        for (uint32_t first = 0; first + n <= N_Q; first += 5) {
            struct kern_rows r = some(q, first, n);

            a->score(b->key, b->dim, &r, part, NULL, 0);
            assert_memory_equal(part, all + first * BLOCK, n * BLOCK * sizeof *part);
        }
}

static void check_score_value(const struct kern *k, const struct block *b,
                              const struct queries *q) {
    static float all[N_Q * BLOCK], part[N_Q * BLOCK], f32[BLOCK * DIM_MAX];
    const struct kern_attn *a = &k->attn[b->fmt];

    for (uint32_t n_el = 16; n_el <= b->dim; n_el += b->dim > 100 ? 48 : 16) {
        for (uint32_t i = 0; i < N_Q * BLOCK; i++)
            all[i] = (float)(i % 7);
        a->score_value(b->value, b->dim, n_el, &q->rows, all);
        for (uint32_t m = 0; m < N_Q; m++)
            for (uint32_t j = 0; j < BLOCK; j++) {
                double want = (m * BLOCK + j) % 7, scale = want;

                for (uint32_t i = 0; i < n_el; i++) {
                    double x = (double)q->f[m * b->dim + i] * b->v[j * b->dim + i];

                    want += x;
                    scale += fabs(x);
                }
                assert_true(fabs(all[m * BLOCK + j] - want) <= KERN_RTOL * scale);
            }
        for (uint32_t n = 1; n <= N_Q; n++) {
            struct kern_rows r = some(q, N_Q - n, n);

            for (uint32_t i = 0; i < n * BLOCK; i++)
                part[i] = (float)(((N_Q - n) * BLOCK + i) % 7);
            a->score_value(b->value, b->dim, n_el, &r, part);
            assert_memory_equal(part, all + (N_Q - n) * BLOCK, n * BLOCK * sizeof *part);
        }
        if (!a->value_f32)
            continue;
        a->value_f32(b->value, b->dim, f32);
        for (uint32_t i = 0; i < N_Q * BLOCK; i++)
            part[i] = (float)(i % 7);
        k->attn[QUANT_F32].score_value(f32, b->dim, n_el, &q->rows, part);
        assert_memory_equal(part, all, sizeof all);
    }
}

/* Positions outside of [lo, hi) are not even looked at: they may never have been written. */
static void check_mix(const struct kern *k, const struct block *b, uint32_t lo, uint32_t hi) {
    static float p[N_Q * BLOCK], keep[N_Q], was[N_Q * DIM_MAX], all[N_Q * DIM_MAX];
    static float part[N_Q * DIM_MAX], f32[BLOCK * DIM_MAX];
    const struct kern_attn *a = &k->attn[b->fmt];
    uint32_t dim = b->dim;

    for (uint32_t i = 0; i < N_Q * BLOCK; i++)
        p[i] = i % BLOCK >= lo && i % BLOCK < hi ? fabsf(draw()) : NAN;
    for (uint32_t m = 0; m < N_Q; m++)
        keep[m] = m % 3 == 0 ? 1 : fabsf(draw());
    for (uint32_t i = 0; i < N_Q * dim; i++)
        all[i] = was[i] = draw();
    a->mix(b->value, dim, lo, hi, p, keep, N_Q, all, b->key, kern_kv_size(b->fmt, dim));
    for (uint32_t m = 0; m < N_Q; m++)
        for (uint32_t i = 0; i < dim; i++) {
            double want = (double)keep[m] * was[m * dim + i], scale = fabs(want);

            for (uint32_t j = lo; j < hi; j++) {
                double x = (double)p[m * BLOCK + j] * b->v[j * dim + i];

                want += x;
                scale += fabs(x);
            }
            if (!(fabs(all[m * dim + i] - want) <= KERN_RTOL * scale))
                fail_msg("%s %s dim %u, %u to %u: element %u of query %u: %g, want %g", k->tier,
                         quant_info(b->fmt)->name, dim, lo, hi, i, m, (double)all[m * dim + i],
                         want);
        }
    for (uint32_t n = 1; n <= N_Q; n++) {
        memcpy(part, was + (N_Q - n) * dim, n * dim * sizeof *part);
        a->mix(b->value, dim, lo, hi, p + (N_Q - n) * BLOCK, keep + (N_Q - n), n, part, NULL, 0);
        assert_memory_equal(part, all + (N_Q - n) * dim, n * dim * sizeof *part);
    }
    if (!a->value_f32)
        return;
    a->value_f32(b->value, dim, f32);
    memcpy(part, was, N_Q * dim * sizeof *part);
    k->attn[QUANT_F32].mix(f32, dim, lo, hi, p, keep, N_Q, part, NULL, 0);
    assert_memory_equal(part, all, N_Q * dim * sizeof *part);
}

static void test_blocks(void **state) {
    static struct queries q;

    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (int f = 0; f < N_FMT; f++)
            for (int d = 0; d < N_DIM; d++) {
                struct block b = block_new(&tables[t], formats[f], dims[d]);

                queries_make(&tables[t], &q, dims[d]);
                check_score(&tables[t], &b, &q);
                check_score_value(&tables[t], &b, &q);
                check_mix(&tables[t], &b, 0, BLOCK);
                check_mix(&tables[t], &b, 0, 1);
                check_mix(&tables[t], &b, 13, 50);
                check_mix(&tables[t], &b, BLOCK - 1, BLOCK);
                block_free(&b);
            }
}

/* The bytes of a block are the same for all tiers: what one wrote another one reads. */
static void test_bytes_are_the_same(void **state) {
    (void)state;
    for (int f = 0; f < N_FMT; f++)
        for (int t = 1; t < n_tier; t++) {
            uint32_t was = seed;
            struct block a = block_new(&tables[0], formats[f], 96), b;

            seed = was;
            b = block_new(&tables[t], formats[f], 96);
            assert_memory_equal(a.key, b.key, kern_kv_size(formats[f], 96));
            assert_memory_equal(a.value, b.value, kern_kv_size(formats[f], 96));
            block_free(&a);
            block_free(&b);
        }
}

/* Where f16 ends on either side, ties, and what is no number. */
static void test_f16_edges(void **state) {
    static const float edge[] = { 0.0f,       -0.0f,     1.0f,         1.00048828f,    1.00146484f,
                                  65504.0f,   65519.99f, 65520.0f,     -65520.0f,      1e9f,
                                  INFINITY,   -INFINITY, NAN,          6.10351562e-5f, 6.1005e-5f,
                                  5.9605e-8f, 2.98e-8f,  2.980232e-8f, -1e-9f,         1e-40f };
    enum { DIM = 32, N_EDGE = sizeof edge / sizeof *edge };
    static uint16_t key[BLOCK * DIM], value[BLOCK * DIM];
    float x[DIM] = { 0 };

    (void)state;
    memcpy(x, edge, sizeof edge);
    for (int t = 0; t < n_tier; t++) {
        tables[t].attn[QUANT_F16].put_key(x, DIM, 21, key);
        tables[t].attn[QUANT_F16].put_value(x, DIM, 21, value);
        for (uint32_t i = 0; i < N_EDGE; i++) {
            assert_int_equal(value[21 * DIM + i], quant_to_f16(x[i]));
            assert_int_equal(key[(DIM + i) * 16 + 5], quant_to_f16(x[i]));
        }
    }
}

static void check_weigh(const struct kern *k, uint32_t lo, uint32_t hi, struct kern_mass before,
                        float spread) {
    float s[BLOCK], p[BLOCK], keep;
    struct kern_mass mass = before;
    double max = before.max, sum, want_keep;

    for (uint32_t j = 0; j < BLOCK; j++)
        p[j] = s[j] = j >= lo && j < hi ? spread * draw() : NAN; /* never looked at */
    for (uint32_t j = lo; j < hi; j++)
        max = s[j] > max ? s[j] : max;
    k->weigh(p, lo, hi, &mass, &keep);
    want_keep = lo < hi ? exp(before.max - (float)max) : 1;
    sum = before.sum * want_keep;
    for (uint32_t j = 0; j < BLOCK; j++) {
        double want = j >= lo && j < hi ? exp(s[j] - (float)max) : 0; /* as floats */

        if (want == 0 && (j < lo || j >= hi))
            assert_true(p[j] == 0);
        assert_true(fabs(p[j] - want) <= 1e-6 * want + 1e-37);
        sum += want;
    }
    assert_true(fabs(keep - want_keep) <= 1e-6 * want_keep + 1e-37);
    assert_true((float)max == mass.max);
    assert_true(fabs(mass.sum - sum) <= 1e-5 * sum);
}

static void test_weigh(void **state) {
    (void)state;
    for (int t = 0; t < n_tier; t++)
        for (uint32_t lo = 0; lo <= BLOCK; lo += 7)
            for (uint32_t hi = lo; hi <= BLOCK; hi++) {
                check_weigh(&tables[t], lo, hi, (struct kern_mass){ .max = -INFINITY }, 10);
                check_weigh(&tables[t], lo, hi, (struct kern_mass){ .max = 3, .sum = 20 }, 10);
                check_weigh(&tables[t], lo, hi, (struct kern_mass){ .max = 300, .sum = 2 }, 90);
                check_weigh(&tables[t], lo, hi, (struct kern_mass){ .max = -90, .sum = 2 }, 90);
            }
}

/* ---- speed ---- */

static double cpu(void) {
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One look of @n queries at a block of 64 positions: best of several, in ns and in products. */
static void bench_one(const struct kern *k, enum quant_fmt fmt, uint32_t dim, uint32_t n) {
    static struct queries q;
    static float score[64 * BLOCK], keep[64], out[64 * DIM_MAX], many[64 * DIM_MAX];
    const struct kern_attn *a = &k->attn[fmt];
    struct block b = block_new(k, fmt, dim);
    double best[4] = { 1, 1, 1, 1 };
    struct kern_rows rows;

    queries_make(k, &q, dim);
    rows = q.rows;
    for (uint32_t i = 0; n > N_Q && i < n * dim; i++)
        many[i] = q.f[i % (N_Q * dim)];
    rows.f = n > N_Q ? many : rows.f;
    rows.n_row = n > N_Q && fmt == QUANT_Q8_0 ? N_Q : n;
    for (int r = 0; r < 300; r++) {
        double t[5];

        t[0] = cpu();
        a->score(b.key, dim, &rows, score, NULL, 0);
        t[1] = cpu();
        rows.n_row = n;
        for (uint32_t m = 0; m < n; m++) {
            struct kern_mass mass = { .max = 1 };

            k->weigh(score + m * BLOCK, 0, BLOCK, &mass, &keep[m]);
        }
        t[2] = cpu();
        a->mix(b.value, dim, 0, BLOCK, score, keep, n, out, NULL, 0);
        t[3] = cpu();
        a->score_value(b.value, dim, dim, &rows, score);
        t[4] = cpu();
        for (int i = 0; i < 4; i++)
            best[i] = t[i + 1] - t[i] < best[i] ? t[i + 1] - t[i] : best[i];
    }
    double fma = (double)n * BLOCK * dim;

    printf("%-10s %-5s %3u %2u  score %6.0f ns %6.1f G/s  weigh %5.0f ns  mix %6.0f ns %6.1f G/s"
           "  score_value %6.0f ns %6.1f G/s\n",
           k->tier, quant_info(fmt)->name, dim, n, best[0] * 1e9, fma / best[0] / 1e9,
           best[1] * 1e9, best[2] * 1e9, fma / best[2] / 1e9, best[3] * 1e9, fma / best[3] / 1e9);
    block_free(&b);
}

static void bench(void) {
    static const uint32_t n[] = { 1, 2, 8, 64 };

    for (int t = 0; t < n_tier; t++)
        for (int f = 0; f < N_FMT; f++)
            for (int d = 4; d < N_DIM; d++)
                for (size_t i = 0; i < sizeof n / sizeof *n; i++)
                    bench_one(&tables[t], formats[f], dims[d], n[i]);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_bytes_are_the_same),
        cmocka_unit_test(test_f16_edges),
        cmocka_unit_test(test_weigh),
    };
    uint32_t cpu_bits = kern_cpu();

    for (const struct kern_tier *t = kern_tiers; t->name; t++) {
        if ((t->need & cpu_bits) != t->need)
            continue;
        if (n_tier > 0)
            tables[n_tier] = tables[n_tier - 1];
        t->use(&tables[n_tier]);
        tables[n_tier++].tier = t->name;
    }
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench();
        return 0;
    }
    return cmocka_run_group_tests_name("kern-attn", tests, NULL, NULL);
}
