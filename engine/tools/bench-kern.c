/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "engine/base/arena.h"
#include "engine/kern/kern.h"
#include "engine/tools/arg.h"
#include "engine/tools/bench-kern.h"

enum {
    N_COL = 2816,
    N_ROW_MAX = 128,         /* activation rows */
    N_OUT = 704,             /* weight rows of one call, as an expert has them */
    N_OUT_L2 = 192,          /* of quantised formats these stay in an L2 of 1 MB */
    BUF_SIZE = 192 << 20,    /* more than the last-level cache */
    N_TIME = 30,             /* samples of which the fastest tenth counts */
    SAMPLE_OPS = 200000000u, /* operations of a sample, at least */
};

static const uint32_t n_rows[] = { 1, 2, 4, 6, 8, 16, 32, 64, N_ROW_MAX };

enum { N_ROWS = sizeof n_rows / sizeof *n_rows };

struct kern_bench {
    struct kern kern;
    enum quant_fmt fmt;
    uint8_t *w;
    size_t w_size; /* of which a run goes round */
    size_t at;
    uint32_t n_out;
    float *f; /* activations: rows of N_COL, see struct kern_rows */
    int8_t *q;
    float *d;
    int16_t *s;
    struct kern_rows x;
    float *y;
    uint64_t bits; /* of what was read, so that it must be */
};

static double now(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* ---- what is timed: each does its work once and says how many bytes it read ---- */

typedef size_t work_fn(struct kern_bench *b);

static const uint8_t *next(struct kern_bench *b, size_t size) {
    const uint8_t *w;

    if (b->at + size > b->w_size)
        b->at = 0;
    w = b->w + b->at;
    b->at += size;
    return w;
}

static size_t multiply(struct kern_bench *b) {
    const struct kern_pack *pack = &b->kern.pack[b->fmt];
    size_t stride = quant_row_size(b->fmt, N_COL), size = stride * b->n_out;
    kern_mul_fn *mul = pack->n_row ? pack->mul : b->kern.mul[b->fmt];

    mul(next(b, size), stride, b->n_out, N_COL, &b->x, b->y, b->n_out);
    return size;
}

static size_t only_read(struct kern_bench *b) {
    size_t size = quant_row_size(b->fmt, N_COL) * b->n_out / 256 * 256;

    b->bits |= b->kern.read(next(b, size), size);
    return size;
}

/* Bytes per second of CPU time: of samples of @n calls the fastest tenth. */
static double rate(struct kern_bench *b, work_fn *work, uint32_t n) {
    double sample[N_TIME];

    for (int i = 0; i < N_TIME; i++) {
        double t = now();
        size_t size = 0;

        for (uint32_t k = 0; k < n; k++)
            size += work(b);
        sample[i] = (now() - t) / (double)size;
    }
    qsort(sample, N_TIME, sizeof *sample, compare);
    return 1 / sample[N_TIME / 10];
}

static double peak(const struct kern *k) {
    double sample[N_TIME];

    for (int i = 0; i < N_TIME; i++) {
        double t = now(), n = (double)k->peak(200);

        sample[i] = (now() - t) / n;
    }
    qsort(sample, N_TIME, sizeof *sample, compare);
    return 1 / sample[N_TIME / 10];
}

/* ---- the table ---- */

static void print_line(struct kern_bench *b, bool warm) {
    size_t stride = quant_row_size(b->fmt, N_COL);
    double gop = peak(&b->kern);

    b->n_out = warm ? N_OUT_L2 : N_OUT;
    b->w_size = warm ? stride * b->n_out : BUF_SIZE;
    b->at = 0;
    printf("%-7s %-6s %-4s %6.1f", quant_info(b->fmt)->name,
           b->kern.pack[b->fmt].n_row ? "packed" : "plain", warm ? "L2" : "DRAM",
           rate(b, only_read, warm ? 16 : 2) / 1e9);
    for (size_t i = 0; i < N_ROWS; i++) {
        double op = 2.0 * N_COL * n_rows[i] * b->n_out, bytes;

        b->x.n_row = n_rows[i];
        bytes = rate(b, multiply, (uint32_t)(SAMPLE_OPS / 16 / op) + 1);
        printf(" %6.1f %3.0f%%", bytes / 1e9,
               100 * bytes / (double)stride * 2 * N_COL * n_rows[i] / gop);
        fflush(stdout);
    }
    putchar('\n');
}

/* Any value will do that is neither subnormal nor infinite; all bytes are weights and scales. */
static void fill(uint8_t *p, size_t n) {
    uint32_t v = 1;

    for (size_t i = 0; i < n; i++) {
        v = v * 1664525 + 1013904223;
        p[i] = (uint8_t)(0x20 | (v >> 24 & 0x1f));
    }
}

static void lay_out(struct kern_bench *b, struct arena *a) {
    const size_t n = (size_t)N_ROW_MAX * N_COL;

    b->w = arena_alloc(a, BUF_SIZE, 1);
    b->f = arena_alloc(a, n, sizeof *b->f);
    b->q = arena_alloc(a, n, 1);
    b->d = arena_alloc(a, n / KERN_Q8_BLOCK, sizeof *b->d);
    b->s = arena_alloc(a, n / KERN_Q8_SUM, sizeof *b->s);
    b->y = arena_alloc(a, (size_t)N_ROW_MAX * N_OUT, sizeof *b->y);
}

static void prepare(struct kern_bench *b) {
    fill(b->w, BUF_SIZE);
    for (int i = 0; i < N_ROW_MAX * N_COL; i++)
        b->f[i] = (float)(i * 37 % 255) / 127 - 1;
    b->kern.quantize(b->f, (size_t)N_ROW_MAX * N_COL, b->q, b->d, b->s);
    b->x = (struct kern_rows){
        .f = b->f,
        .f_stride = N_COL,
        .q = b->q,
        .d = b->d,
        .s = b->s,
        .q_stride = N_COL,
    };
}

static enum quant_fmt fmt_of(const char *name) {
    for (enum quant_fmt f = 0; f < QUANT_FMT_N; f++)
        if (strcasecmp(name, quant_info(f)->name) == 0)
            return f;
    arg_error("--kernels takes the name of a format, not \"%s\"", name);
}

int bench_kern(const char *only) {
    enum quant_fmt fmt = only ? fmt_of(only) : 0, end = only ? fmt + 1 : QUANT_FMT_N;
    struct kern_bench b = { 0 };
    struct arena size = { 0 }, a;
    struct why why;
    int r;

    kern_bind(&b.kern, kern_cpu());
    arena_measure(&size);
    lay_out(&b, &size);
    r = arena_init(&a, size.used, &why);
    if (r < 0) {
        fprintf(stderr, "%s: %s\n", program_invocation_short_name, why.text);
        return err_up(r);
    }
    lay_out(&b, &a);
    prepare(&b);

    printf("kernels %s, peak %.0f Gop/s; GB/s of weights and share of the peak, by rows\n",
           b.kern.tier, peak(&b.kern) / 1e9);
    printf("%-19s %6s", "", "read");
    for (size_t i = 0; i < N_ROWS; i++)
        printf(" %11u", n_rows[i]);
    putchar('\n');
    for (b.fmt = fmt; b.fmt < end; b.fmt++) {
        print_line(&b, true);
        print_line(&b, false);
    }
    arena_deinit(&a);
    return 0;
}
