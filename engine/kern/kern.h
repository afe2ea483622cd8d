/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * kern - the numeric kernels, one table of function pointers
 *
 * kern_bind() fills the table once at start: portable C first, then each instruction-set tier this
 * CPU has, each overwriting what it does better. Nothing else in the tree knows about ISAs.
 *
 * Every entry is pure: no allocation, no globals, no threads. The caller splits the output rows
 * over workers. The value of one output never depends on how many rows of activations or of
 * weights a call carries, so results are the same for every batch and thread count.
 * All tiers of an entry agree with the generic one within KERN_RTOL; tests/unit/test-kern.c checks
 * every tier on every host.
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/fmt/quant.h"
#include "engine/kern/attn.h"

/* CPU features, as kern_cpu() reports them. */
enum {
    CPU_AVX2 = 1u << 0,
    CPU_FMA = 1u << 1,    /* FMA and F16C */
    CPU_AVX512 = 1u << 2, /* F, BW, DQ, VL */
    CPU_VNNI = 1u << 3,   /* AVX512_VNNI */
    CPU_NEON = 1u << 4,
    CPU_DOTPROD = 1u << 5,
    CPU_AVXVNNI = 1u << 6, /* vpdpbusd on ymm registers without AVX-512 */
    CPU_BF16 = 1u << 7,    /* AVX512_BF16 */
};

#define KERN_RTOL 1e-5f /* of sum |w*x|; summation order differs between tiers */

enum {
    KERN_Q8_BLOCK = 32, /* activations share one scale */
    KERN_Q8_SUM = 16,   /* activations share one sum */
    KERN_BLOCK = 256,   /* rows of quantised activations are padded to this */
};

#define KERN_Q8_TINY 1e-30f /* 127 / max stays finite above */

/* Activation rows, in both forms the matrix kernels read.
 *   f   f32 [n_row][f_stride]                 for F32, F16, BF16 weights and for *_exact
 *   q   i8  [n_row][q_stride]                 x ~ d[k / 32] * q[k]
 *   d   f32 [n_row][q_stride / 32]
 *   s   i16 [n_row][q_stride / 16]            s[k / 16] = sum of 16 q
 * q_stride is a multiple of KERN_BLOCK; elements past the row's end are 0. Rows are 64-byte
 * aligned. A form that a call does not read may be NULL.
 *   next   weights that are read after this call's, so that they are on their way; NULL: unknown */
struct kern_rows {
    uint32_t n_row;
    const float *f;
    size_t f_stride;
    const int8_t *q;
    const float *d;
    const int16_t *s;
    size_t q_stride;
    const void *next;
};

/* y[m][o] = sum_k w[o][k] * x[m][k]     o < n_out, k < n_col, m < x->n_row
 * @w:         n_out rows of n_col elements in the entry's format, w_stride bytes apart
 * @y:         f32 [n_row][y_stride] */
typedef void kern_mul_fn(const void *w, size_t w_stride, uint32_t n_out, uint32_t n_col,
                         const struct kern_rows *x, float *y, size_t y_stride);

/* f32 [n] -> one row of q, d, s; pads to a multiple of KERN_BLOCK. d = max|x| / 127 a block, and
 * q = x * (127 / max|x|) to nearest even, so -127 <= q <= 127. A block below KERN_Q8_TINY is all 0,
 * d too. A NaN or infinity makes d one. All tiers give the same bits for finite @x. */
typedef void kern_quantize_fn(const float *x, size_t n, int8_t *q, float *d, int16_t *s);

typedef void kern_decode_fn(const void *src, float *dst, size_t n);
typedef uint64_t kern_peak_fn(uint32_t n);
typedef uint64_t kern_read_fn(const void *p, size_t n);

/* Packed weights: groups of n_row rows, interleaved the way this tier's kernel reads them. A group
 * takes exactly the bytes its rows took, so a packed matrix lies where the plain one lay. */
struct kern_pack {
    uint32_t n_row;     /* rows of a group; 0: this tier leaves the format as it is */
    const char *layout; /* name of the byte order, "Q4_0.r16", for files that keep packed weights */

    /* n_row rows, @src_stride bytes apart -> one group; @src and @dst do not overlap */
    void (*pack)(const void *src, size_t src_stride, uint32_t n_col, void *dst);

    /* row @row of a group to f32 [n_col]: the very values quant_decode() gives */
    void (*decode_row)(const void *group, uint32_t row, uint32_t n_col, float *dst);

    /* As kern.mul: @w is the first group, @w_stride the bytes of ONE row, so groups are n_row *
     * w_stride apart; n_out is a multiple of n_row. */
    kern_mul_fn *mul;
};

struct kern {
    const char *tier; /* best tier bound, for the log */

    kern_mul_fn *mul[QUANT_FMT_N];       /* int8 activations; float ones for F32, F16, BF16 */
    kern_mul_fn *mul_exact[QUANT_FMT_N]; /* float activations, weights decoded */
    kern_decode_fn *decode[QUANT_FMT_N]; /* weights or cache rows to f32 */
    kern_quantize_fn *quantize;
    struct kern_pack pack[QUANT_FMT_N];

    /* Attention on blocks of the cache, see attn.h. F32, F16 and Q8_0 are filled in. */
    struct kern_attn attn[QUANT_Q8_0 + 1];
    kern_weigh_fn *weigh;

    /* y += s * x */
    void (*axpy)(float s, const float *x, float *y, size_t n);
    /* y = x / sqrt(mean(x^2) + eps) * w; w NULL means 1; y may be x. Mean in double. */
    void (*rmsnorm)(const float *x, const float *w, float eps, float *y, size_t n);
    /* y = gelu_tanh(g) * u; y may be g */
    void (*geglu)(const float *g, const float *u, float *y, size_t n);
    /* x = exp(x - max) / sum, in place; -INFINITY becomes 0 */
    void (*softmax)(float *x, size_t n);
    /* pairs (i, i + n/2): x = (a cos - b sin, a sin + b cos); cs: f32 [n/2][2] = cos, sin */
    void (*rope)(float *x, const float *cs, size_t n);
    /* x = cap * tanh(x / cap) */
    void (*softcap)(float *x, float cap, size_t n);

    /* The integer products of this tier on registers and nothing else, @n rounds of some 100,000:
     * no kernel of it can do more. Return: operations done, products and sums counted apart. */
    kern_peak_fn *peak;
    /* Loads all of @p[@n] as wide as this tier can and nothing else; n is a multiple of 256, @p
     * 64-byte aligned. Return: the bits set in any of its 64-bit words. */
    kern_read_fn *read;
};

void kern_bind(struct kern *k, uint32_t cpu);

/* CPU_* this process may use: what hardware and kernel allow, and-ed with $MOE_CPU_MASK (hex) so
 * tests and bug reports can force a weaker tier. */
uint32_t kern_cpu(void);

/* gelu_tanh(g) = 0.5 g (1 + tanh(A (g + B g^3))), A = sqrt(2 / pi) */
#define KERN_GELU_A  0.797884561f
#define KERN_GELU_B  0.044715f
#define KERN_EXP_MAX 88.0f /* exp of it is finite */

struct kern_tier {
    const char *name;
    uint32_t need;
    void (*use)(struct kern *k);
};

extern const struct kern_tier kern_tiers[]; /* weakest first; ends with .name == NULL */

void kern_use_generic(struct kern *k);
void kern_use_avx2(struct kern *k);
void kern_use_avxvnni(struct kern *k);
void kern_use_avx512vnni(struct kern *k);
void kern_use_avx512bf16(struct kern *k);
void kern_use_neon(struct kern *k);
