/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * kvcache - keys and values of the running sequences
 *
 * A layer keeps, per sequence, a ring of rows: a full layer as many as the context, a sliding
 * layer its window and room for one batch more. Position p is row p % n_row.
 *
 *   K, V of one layer, one sequence:  [n_kv_head][n_row][head_dim], f16 or f32
 *
 * Heads are outermost so that attention over one head reads consecutive rows.
 *
 * Owner:   the engine thread. Pool workers read and write rows only inside model_step().
 * Memory:  one mapping, fixed at kvcache_new(), touched as positions are used.
 */

#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/quant.h"

typedef uint32_t pos_t; /* position in a sequence, from 0 */

struct kv_layer_shape {
    uint32_t n_kv_head;
    uint32_t head_dim; /* elements */
    uint32_t window;   /* positions a query sees; 0: all */
};

struct kv_shape {
    uint32_t n_layer;
    const struct kv_layer_shape *layer; /* [n_layer], copied */
    uint32_t n_ctx;                     /* positions a sequence can hold */
    uint32_t n_batch;                   /* positions one step may add to a sequence */
    uint32_t n_seq;
    enum quant_fmt fmt; /* QUANT_F16 or QUANT_F32 */
};

enum {
    KVCACHE__OK,

    KVCACHE_FULL, /* the sequence is at its context; nothing changed */
};

struct kvcache;

/* Bytes kvcache_new() will map; UINT64_MAX when that does not fit. */
uint64_t kvcache_size(const struct kv_shape *shape);
int kvcache_new(struct kvcache **ret_kv, const struct kv_shape *shape);
struct kvcache *kvcache_free(struct kvcache *kv);
AUTO_DEFINE(struct kvcache *, kvcache_free)

enum quant_fmt kvcache_fmt(const struct kvcache *kv);
uint64_t kvcache_n_byte(const struct kvcache *kv);

/* Positions @seq holds. */
pos_t kvcache_n(const struct kvcache *kv, uint32_t seq);
/* Forget positions >= @n of @seq. n == 0 always works; otherwise rows of sliding layers that were
 * overwritten can not come back: Return: 0, or KVCACHE_FULL when they would be needed. */
int kvcache_truncate(struct kvcache *kv, uint32_t seq, pos_t n);
/* Make room for @n more positions at the end of @seq, n <= n_batch. Return: 0 or KVCACHE_FULL. */
int kvcache_reserve(struct kvcache *kv, uint32_t seq, uint32_t n);

/* Where K (V) of one head begins, and how many rows its ring has. */
struct kv_view {
    uint8_t *k, *v; /* [n_row][head_dim] */
    uint32_t n_row;
    uint32_t stride; /* bytes a row */
};
void kvcache_view(const struct kvcache *kv, uint32_t layer, uint32_t seq, uint32_t head,
                  struct kv_view *ret);
