/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Portable attention: the definition of what every tier must compute. See attn.h for the layouts.
 */

#include <math.h>
#include <string.h>

#include "engine/kern/attn.h"
#include "engine/kern/kern.h"

enum { TILE = KERN_KV_TILE, BLOCK = KERN_KV_BLOCK, N_TILE = BLOCK / TILE };

/* Where element i of position @at is among the keys. */
static size_t key_at(uint32_t dim, uint32_t at, uint32_t i) {
    return ((size_t)(at / TILE) * dim + i) * TILE + at % TILE;
}

/* 32 elements to codes. Return: their scale, as f16. */
static uint16_t q8_block(const float *x, int8_t *q) {
    float max = 0;

    for (uint32_t i = 0; i < 32; i++)
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;

    uint16_t d = quant_to_f16(max / 127);
    float scale = quant_f16(d) > 0 ? 1 / quant_f16(d) : 0;

    for (uint32_t i = 0; i < 32; i++) {
        float v = rintf(x[i] * scale);

        q[i] = (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
    }
    return d;
}

/* ---- F32 and F16 ---- */

static void put_key_f32(const float *x, uint32_t dim, uint32_t at, void *key) {
    for (uint32_t i = 0; i < dim; i++)
        ((float *)key)[key_at(dim, at, i)] = x[i];
}

static void put_key_f16(const float *x, uint32_t dim, uint32_t at, void *key) {
    for (uint32_t i = 0; i < dim; i++)
        ((uint16_t *)key)[key_at(dim, at, i)] = quant_to_f16(x[i]);
}

static void put_value_f32(const float *x, uint32_t dim, uint32_t at, void *value) {
    memcpy((float *)value + (size_t)at * dim, x, dim * sizeof *x);
}

static void put_value_f16(const float *x, uint32_t dim, uint32_t at, void *value) {
    for (uint32_t i = 0; i < dim; i++)
        ((uint16_t *)value)[(size_t)at * dim + i] = quant_to_f16(x[i]);
}

/* 16 keys' elements, or 16 elements of one value. */
typedef void load_fn(const void *from, size_t at, float ret[16]);

static void load_f32(const void *from, size_t at, float ret[16]) {
    memcpy(ret, (const float *)from + at, 16 * sizeof *ret);
}

static void load_f16(const void *from, size_t at, float ret[16]) {
    for (uint32_t i = 0; i < 16; i++)
        ret[i] = quant_f16(((const uint16_t *)from)[at + i]);
}

static inline void score_of(load_fn *load, const void *key, uint32_t dim, const struct kern_rows *q,
                            float *score) {
    float k[TILE];

    memset(score, 0, sizeof *score * BLOCK * q->n_row);
    for (uint32_t t = 0; t < N_TILE; t++)
        for (uint32_t i = 0; i < dim; i++) {
            load(key, ((size_t)t * dim + i) * TILE, k);
            for (uint32_t m = 0; m < q->n_row; m++)
                for (uint32_t j = 0; j < TILE; j++)
                    score[m * BLOCK + t * TILE + j] += q->f[m * q->f_stride + i] * k[j];
        }
}

static void score_f32(const void *key, uint32_t dim, const struct kern_rows *q, float *score,
                      const void *next, size_t n_next) {
    score_of(load_f32, key, dim, q, score);
}

static void score_f16(const void *key, uint32_t dim, const struct kern_rows *q, float *score,
                      const void *next, size_t n_next) {
    score_of(load_f16, key, dim, q, score);
}

/* 16 partial sums, then those 8 apart, 4 apart, ... as vectors do it. */
static float sum16(float s[16]) {
    for (uint32_t n = 8; n > 0; n /= 2)
        for (uint32_t i = 0; i < n; i++)
            s[i] += s[i + n];
    return s[0];
}

static inline void score_value_of(load_fn *load, const void *value, uint32_t dim, uint32_t n,
                                  const struct kern_rows *q, float *score) {
    for (uint32_t m = 0; m < q->n_row; m++)
        for (uint32_t j = 0; j < BLOCK; j++) {
            float v[16], s[16] = { 0 };

            for (uint32_t i = 0; i < n; i += 16) {
                load(value, (size_t)j * dim + i, v);
                for (uint32_t l = 0; l < 16; l++)
                    s[l] += q->f[m * q->f_stride + i + l] * v[l];
            }
            score[m * BLOCK + j] += sum16(s);
        }
}

static void score_value_f32(const void *value, uint32_t dim, uint32_t n, const struct kern_rows *q,
                            float *score) {
    score_value_of(load_f32, value, dim, n, q, score);
}

static void score_value_f16(const void *value, uint32_t dim, uint32_t n, const struct kern_rows *q,
                            float *score) {
    score_value_of(load_f16, value, dim, n, q, score);
}

static void scale_rows(const float *keep, uint32_t dim, uint32_t n, float *out) {
    for (uint32_t m = 0; m < n; m++)
        for (uint32_t i = 0; i < dim; i++)
            out[(size_t)m * dim + i] *= keep[m];
}

static inline void mix_of(load_fn *load, const void *value, uint32_t dim, uint32_t lo, uint32_t hi,
                          const float *p, const float *keep, uint32_t n, float *out) {
    float v[16];

    scale_rows(keep, dim, n, out);
    for (uint32_t j = lo; j < hi; j++)
        for (uint32_t i = 0; i < dim; i += 16) {
            load(value, (size_t)j * dim + i, v);
            for (uint32_t m = 0; m < n; m++)
                for (uint32_t l = 0; l < 16; l++)
                    out[(size_t)m * dim + i + l] += p[m * BLOCK + j] * v[l];
        }
}

static void mix_f32(const void *value, uint32_t dim, uint32_t lo, uint32_t hi, const float *p,
                    const float *keep, uint32_t n, float *out, const void *next, size_t n_next) {
    mix_of(load_f32, value, dim, lo, hi, p, keep, n, out);
}

static void mix_f16(const void *value, uint32_t dim, uint32_t lo, uint32_t hi, const float *p,
                    const float *keep, uint32_t n, float *out, const void *next, size_t n_next) {
    mix_of(load_f16, value, dim, lo, hi, p, keep, n, out);
}

/* ---- Q8_0 ---- */

static uint16_t *scales(const void *codes, uint32_t dim) {
    return (uint16_t *)((uintptr_t)codes + (size_t)BLOCK * dim);
}

static void put_key_q8(const float *x, uint32_t dim, uint32_t at, void *key) {
    uint16_t *d = scales(key, dim) + (size_t)(at / TILE) * (dim / 32) * TILE + at % TILE;
    int8_t *q = (int8_t *)key + (size_t)(at / TILE) * dim * TILE + at % TILE * 4, code[32];

    for (uint32_t b = 0; b < dim / 32; b++) {
        d[b * TILE] = q8_block(x + b * 32, code);
        for (uint32_t i = 0; i < 8; i++)
            memcpy(q + (size_t)(b * 8 + i) * TILE * 4, code + i * 4, 4);
    }
}

static void put_value_q8(const float *x, uint32_t dim, uint32_t at, void *value) {
    for (uint32_t b = 0; b < dim / 32; b++)
        scales(value, dim)[at * (dim / 32) + b] =
            q8_block(x + b * 32, (int8_t *)value + (size_t)at * dim + b * 32);
}

static void load_q8(const void *value, size_t at, uint32_t dim, float ret[16]) {
    float d = quant_f16(scales(value, dim)[at / 32]);

    for (uint32_t i = 0; i < 16; i++)
        ret[i] = d * (float)((const int8_t *)value)[at + i];
}

static void value_f32_q8(const void *value, uint32_t dim, float *ret) {
    for (size_t i = 0; i < (size_t)BLOCK * dim; i += 16)
        load_q8(value, i, dim, ret + i);
}

static void score_q8(const void *key, uint32_t dim, const struct kern_rows *q, float *score,
                     const void *next, size_t n_next) {
    for (uint32_t m = 0; m < q->n_row; m++)
        for (uint32_t j = 0; j < BLOCK; j++) {
            const int8_t *k = (const int8_t *)key + (size_t)(j / TILE) * dim * TILE + j % TILE * 4;
            const uint16_t *d = scales(key, dim) + j / TILE * (dim / 32) * TILE + j % TILE;
            const int8_t *x = q->q + m * q->q_stride;
            float sum = 0;

            for (uint32_t b = 0; b < dim / 32; b++) {
                int32_t s = 0;

                for (uint32_t i = 0; i < 32; i++)
                    s += k[(size_t)(b * 8 + i / 4) * TILE * 4 + i % 4] * x[b * 32 + i];
                sum += q->d[m * (q->q_stride / 32) + b] * quant_f16(d[b * TILE]) * (float)s;
            }
            score[m * BLOCK + j] = sum;
        }
}

static void score_value_q8(const void *value, uint32_t dim, uint32_t n, const struct kern_rows *q,
                           float *score) {
    for (uint32_t m = 0; m < q->n_row; m++)
        for (uint32_t j = 0; j < BLOCK; j++) {
            float v[16], s[16] = { 0 };

            for (uint32_t i = 0; i < n; i += 16) {
                load_q8(value, (size_t)j * dim + i, dim, v);
                for (uint32_t l = 0; l < 16; l++)
                    s[l] += q->f[m * q->f_stride + i + l] * v[l];
            }
            score[m * BLOCK + j] += sum16(s);
        }
}

static void mix_q8(const void *value, uint32_t dim, uint32_t lo, uint32_t hi, const float *p,
                   const float *keep, uint32_t n, float *out, const void *next, size_t n_next) {
    float v[16];

    scale_rows(keep, dim, n, out);
    for (uint32_t j = lo; j < hi; j++)
        for (uint32_t i = 0; i < dim; i += 16) {
            load_q8(value, (size_t)j * dim + i, dim, v);
            for (uint32_t m = 0; m < n; m++)
                for (uint32_t l = 0; l < 16; l++)
                    out[(size_t)m * dim + i + l] += p[m * BLOCK + j] * v[l];
        }
}

/* ---- any format ---- */

static void weigh(float *score, uint32_t lo, uint32_t hi, struct kern_mass *mass, float *keep) {
    float max = mass->max, s[16] = { 0 };

    for (uint32_t j = lo; j < hi; j++)
        max = score[j] > max ? score[j] : max;
    *keep = lo < hi ? expf(mass->max - max) : 1;
    for (uint32_t j = 0; j < BLOCK; j++) {
        score[j] = j >= lo && j < hi ? expf(score[j] - max) : 0;
        s[j % 16] += score[j];
    }
    mass->max = max;
    mass->sum = mass->sum * *keep + sum16(s);
}

void kern_attn_generic(struct kern *k) {
    k->weigh = weigh;
    k->attn[QUANT_F32] = (struct kern_attn){
        .put_key = put_key_f32,
        .put_value = put_value_f32,
        .score = score_f32,
        .score_value = score_value_f32,
        .mix = mix_f32,
    };
    k->attn[QUANT_F16] = (struct kern_attn){
        .put_key = put_key_f16,
        .put_value = put_value_f16,
        .score = score_f16,
        .score_value = score_value_f16,
        .mix = mix_f16,
    };
    k->attn[QUANT_Q8_0] = (struct kern_attn){
        .put_key = put_key_q8,
        .put_value = put_value_q8,
        .value_f32 = value_f32_q8,
        .score = score_q8,
        .score_value = score_value_q8,
        .mix = mix_q8,
    };
}
