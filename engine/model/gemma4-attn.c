/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/model/gemma4-priv.h"

void gemma4_attn(struct gemma4 *g) {
    const struct gemma4_layer_conf *c = g->l->conf;
    struct attn_layer l = {
        .layer = g->i_layer,
        .n_head = c->n_head,
        .n_kv_head = c->n_kv_head,
        .head_dim = c->head_dim,
        .window = c->sliding ? g->conf.window : 0,
        .eps = g->conf.eps,
        .q_norm = g->l->q_norm,
        .k_norm = g->l->k_norm,
        .turn = gemma4_keys_follow(g, g->l) ? &g->turn : NULL,
        .angle = c->sliding ? g->angle_sliding : g->angle,
        .q = g->q,
        .k = g->k,
        .v = g->l->v.data ? g->v : g->k,
        .to = &g->attn,
    };

    attn_run(&g->at, &l);
}
