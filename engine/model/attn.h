/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * attn - attention of a step's rows over the cache, one layer at a time
 *
 * Rows of a sequence that follow each other are taken together, with the query heads that share a
 * key head, so that a block of the cache is read once for many queries. A query goes through blocks
 * in order, keeping the largest score and scaling what it has when that grows. It begins afresh
 * with each span; spans are then added in order. Where spans begin depends on positions alone, so
 * a row's result is the same bits whatever else is in the step, and whether one worker went
 * through all spans or several shared them.
 *
 * Values without a matrix of their own are the norm of the very vector keys are made of:
 * key = k_norm * value on the elements that rotation leaves as they are. Of such a layer the cache
 * keeps the value and only the turned elements of the key; the value then lies with the others
 * first, and queries carry k_norm.
 *
 * Owner:   the engine thread; items run on the pool's workers.
 * Memory:  the caller's arena.
 * Source:  blocks with a running maximum after Milakov and Gimelshein, "Online normalizer
 *          calculation for softmax" (2018); spans after Dao et al., "Flash-Decoding" (2023).
 */

#include "engine/kv/kvcache.h"
#include "engine/model/ops.h"

/* Which elements of a head rotation turns, pairs (i, i + dim / 2), in the order they are kept. */
struct attn_turn {
    uint32_t dim;
    uint32_t n_plain; /* elements that stay as they are; 0: keys are kept whole */
    uint32_t *order;  /* [dim]: plain ones, then turned ones */
};

/* @freq: f64 [dim / 2], rad a position. A pair too slow to change any float is not turned. */
void attn_turn_init(struct attn_turn *t, const double *freq, uint32_t dim, struct arena *a);

struct attn_layer {
    uint32_t layer; /* of the cache */
    uint32_t n_head, n_kv_head, head_dim;
    uint32_t window; /* 0: none */
    float eps;
    const float *q_norm, *k_norm; /* [head_dim] */
    const struct attn_turn *turn; /* NULL: keys are kept whole */

    const float *angle;       /* [n_row][head_dim / 2][2] */
    const float *q, *k;       /* [n_row][n_head * head_dim], [n_row][n_kv_head * head_dim] */
    const float *v;           /* as k; may be k */
    const struct ops_act *to; /* rows of n_head * head_dim, made complete in all forms */
};

struct model_row;
struct attn_rows;
struct attn_item;
struct attn_worker;

struct attn {
    struct ops *ops;
    uint32_t n_batch, n_query_max; /* queries taken together at most */
    struct attn_worker *worker;    /* [n_worker] */
    struct attn_rows *run;         /* [n_batch] rows of one sequence that follow each other */
    struct attn_item *item;        /* [n_item_max] */
    float *part;                   /* [n_part_max][part_dim] outputs of spans, added up later */
    struct kern_mass *part_mass;   /* [n_part_max] */
    uint32_t *part_of;             /* [n_batch] where a row's parts begin; NO_PART: it has none */
    uint32_t n_part_max, n_part;   /* queries */
    uint32_t part_dim;

    /* One step. */
    struct kvcache *kv;
    const struct model_row *row;
    uint32_t n_row, n_run;
    bool alone; /* no row attends to another row of this step */

    /* One layer. */
    const struct attn_layer *l;
    uint32_t n_item;
};

/* Sizes the largest layer has. */
struct attn_limits {
    uint32_t n_batch, n_ctx, n_group, head_dim;
};
void attn_init(struct attn *at, struct ops *ops, const struct attn_limits *max, struct arena *a);

/* The rows of a step are known. */
void attn_begin(struct attn *at, struct kvcache *kv, const struct model_row *row, uint32_t n_row);
/* Norm and turn q and k, store keys and values, attend. @l: borrowed for the call */
void attn_run(struct attn *at, const struct attn_layer *l);
