/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * attn - kernels of attention over one block of the key/value cache
 *
 * A block holds KERN_KV_BLOCK positions of one head. Keys lie in tiles of 16 positions, so that a
 * lane is a position and a score needs no sum across lanes; values lie in rows, so that a lane is
 * an element. The order of bytes is the same for every tier.
 *
 *   keys    F32, F16   [4 tiles][dim][16]
 *           Q8_0       i8 [4 tiles][dim / 4][16][4], then the scales, f16 [4 tiles][dim / 32][16]
 *   values  F32, F16   [64][dim]
 *           Q8_0       i8 [64][dim], then the scales, f16 [64][dim / 32]
 *
 * dim is a multiple of KERN_KV_DIM. A query's score with a key, and an element of its mixed values,
 * is the same bits however many queries a call carries, and whether values were converted to F32
 * before or not. Scores of Q8_0 keys are integer products of 32 elements, scaled and summed in
 * order; all others are products of floats, summed in the order of elements.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/fmt/quant.h"

enum {
    KERN_KV_BLOCK = 64, /* positions */
    KERN_KV_TILE = 16,  /* positions of keys that lie side by side */
    KERN_KV_DIM = 32,   /* elements of keys and values come in multiples of this */
};

struct kern;
struct kern_rows;

/* Bytes of the keys, and of the values, of one head in a block. */
static inline size_t kern_kv_size(enum quant_fmt fmt, uint32_t dim) {
    size_t n = (size_t)KERN_KV_BLOCK * dim;

    return fmt == QUANT_F32 ? n * 4 : fmt == QUANT_F16 ? n * 2 : n + n / 32 * 2;
}

/* Is there a kern_attn for @fmt? */
static inline bool kern_kv_fmt(enum quant_fmt fmt) {
    return fmt == QUANT_F32 || fmt == QUANT_F16 || fmt == QUANT_Q8_0;
}

/* What attention keeps of one query while it goes through blocks. */
struct kern_mass {
    float max; /* largest score so far; -INFINITY: none */
    float sum; /* of exp(score - max) */
};

/* The part that depends on the format. @key, @value: of one head in one block. */
struct kern_attn {
    /* Position @at of the block becomes f32 @x [dim]. */
    void (*put_key)(const float *x, uint32_t dim, uint32_t at, void *key);
    void (*put_value)(const float *x, uint32_t dim, uint32_t at, void *value);

    /* The whole block as F32, same order. NULL: is not worth it for any number of queries */
    void (*value_f32)(const void *value, uint32_t dim, float *ret);

    /* score[m][j] = q[m] . key[j], j < 64. Q8_0 reads .q, .d and .s of @q, the others .f
     * @next:   bytes that are read soon, size @n_next: to be fetched; NULL: none */
    void (*score)(const void *key, uint32_t dim, const struct kern_rows *q, float *score,
                  const void *next, size_t n_next);
    /* score[m][j] += q[m] . value[j] over the first @n elements, a multiple of 16 */
    void (*score_value)(const void *value, uint32_t dim, uint32_t n, const struct kern_rows *q,
                        float *score);
    /* out[m] = keep[m] * out[m] + sum_j p[m][j] value[j], @lo <= j < @hi; out: f32 [n][dim] */
    void (*mix)(const void *value, uint32_t dim, uint32_t lo, uint32_t hi, const float *p,
                const float *keep, uint32_t n, float *out, const void *next, size_t n_next);
};

/* One query's scores of a block become weights: those in [@lo, @hi) exp(score - max), others 0.
 * @keep:   what earlier sums and outputs are to be multiplied by, exp(old max - new max) */
typedef void kern_weigh_fn(float *score, uint32_t lo, uint32_t hi, struct kern_mass *mass,
                           float *keep);

void kern_attn_generic(struct kern *k);
void kern_attn_avx2(struct kern *k);
void kern_attn_avx512vnni(struct kern *k);
void kern_attn_neon(struct kern *k);
