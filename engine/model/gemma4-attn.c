/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/model/gemma4-priv.h"

/* Rows that share a sequence read each other's keys: then all are stored before any is read. */
static bool rows_alone(const struct model_row *row, uint32_t n_row) {
    if (n_row > 32) /* looking at all pairs would take longer than a barrier */
        return false;
    for (uint32_t i = 0; i < n_row; i++)
        for (uint32_t j = 0; j < i; j++)
            if (row[i].seq == row[j].seq)
                return false;
    return true;
}

void gemma4_attn_begin(struct gemma4 *g) {
    g->fused = rows_alone(g->row, g->n_row);
}

/* Row r, K/V head h: norm and turn its key and the queries that share it, store key and value. */
static void attn_store(void *arg, uint32_t item, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct kern *k = g->ops.kern;
    const struct gemma4_layer_conf *c = g->l->conf;
    uint32_t r = item / c->n_kv_head, h = item % c->n_kv_head, dim = c->head_dim;
    uint32_t n_group = c->n_head / c->n_kv_head;
    const float *angle = (c->sliding ? g->angle_sliding : g->angle) + (size_t)r * dim;
    float *key = g->k + ((size_t)r * c->n_kv_head + h) * dim;
    float *q = g->q + ((size_t)r * c->n_head + h * n_group) * dim;
    const float *raw = g->l->v.data ? g->v + ((size_t)r * c->n_kv_head + h) * dim : key;
    float *val = ops_scratch(&g->ops, worker);
    struct kv_view view;

    k->rmsnorm(raw, NULL, g->conf.eps, val, dim);
    k->rmsnorm(key, g->l->k_norm, g->conf.eps, key, dim);
    k->rope(key, angle, dim);
    for (uint32_t i = 0; i < n_group; i++) {
        k->rmsnorm(q + i * dim, g->l->q_norm, g->conf.eps, q + i * dim, dim);
        k->rope(q + i * dim, angle, dim);
    }

    kvcache_view(g->kv, g->i_layer, g->row[r].seq, h, &view);
    size_t at = g->row[r].pos % view.n_row * (size_t)view.stride;

    if (kvcache_fmt(g->kv) == QUANT_F32) {
        memcpy(view.k + at, key, dim * sizeof(float));
        memcpy(view.v + at, val, dim * sizeof(float));
    } else {
        k->to_f16(key, (uint16_t *)(void *)(view.k + at), dim);
        k->to_f16(val, (uint16_t *)(void *)(view.v + at), dim);
    }
}

static void attn_attend(void *arg, uint32_t item, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct gemma4_layer_conf *c = g->l->conf;
    uint32_t r = item / c->n_kv_head, h = item % c->n_kv_head, n = c->n_head / c->n_kv_head;
    pos_t pos = g->row[r].pos, first = 0;
    struct kv_view view;

    if (c->sliding && pos >= g->conf.window)
        first = pos - g->conf.window + 1;
    kvcache_view(g->kv, g->i_layer, g->row[r].seq, h, &view);
    ops_attend(g->ops.kern, kvcache_fmt(g->kv), &view, first, pos,
               g->q + ((size_t)r * c->n_head + h * n) * c->head_dim, n, c->head_dim,
               ops_scratch(&g->ops, worker),
               ops_act_row(&g->attn, r) + (size_t)h * n * c->head_dim);
}

static void attn_store_and_attend(void *arg, uint32_t item, uint32_t worker) {
    attn_store(arg, item, worker);
    attn_attend(arg, item, worker);
}

static void attn_mixed(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;

    ops_act_done(&g->ops, &g->attn, r);
}

/* Positions row @r attends to. */
static size_t n_seen(const struct gemma4 *g, uint32_t r) {
    pos_t n = g->row[r].pos + 1;

    return g->l->conf->sliding && n > g->conf.window ? g->conf.window : n;
}

void gemma4_attn(struct gemma4 *g) {
    const struct gemma4_layer_conf *c = g->l->conf;
    struct ops *ops = &g->ops;
    uint32_t n = g->n_row;
    size_t row_size = 2 * c->n_kv_head * quant_row_size(kvcache_fmt(g->kv), c->head_dim);
    size_t seen = n_seen(g, 0);
    size_t cost = (size_t)c->head_dim * sizeof(float) * (c->n_head / c->n_kv_head + 2);

    if (g->fused) {
        ops_each(ops, n * c->n_kv_head, cost * (1 + seen), attn_store_and_attend, g);
    } else {
        ops_each(ops, n * c->n_kv_head, cost * 4, attn_store, g);
        ops_each(ops, n * c->n_kv_head, cost * (1 + seen), attn_attend, g);
    }
    ops_each(ops, n, c->n_head * c->head_dim * sizeof(float), attn_mixed, g);
    for (uint32_t r = 0; r < n; r++)
        ops->phase->kv_bytes += n_seen(g, r) * row_size;
}
