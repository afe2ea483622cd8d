/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * gemma4 - shapes and numbers of a Gemma 4 text model, read from its metadata
 *
 * Nothing is fixed but the structure: sliding and full attention layers in any order that ends in
 * a full one, a dense feed-forward branch, and beside it, when there are experts, a mixture.
 *
 * Owner:   gemma4.c; immutable once read.
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/fmt/gguf.h"
#include "engine/kv/kvcache.h"

enum { GEMMA4_LAYER_MAX = 512, GEMMA4_EXPERT_MAX = 512 };

struct gemma4_layer_conf {
    bool sliding;
    uint32_t n_head, n_kv_head, head_dim;
    uint32_t n_ff; /* width of the dense branch */
};

struct gemma4_conf {
    uint32_t n_layer, n_embd, n_vocab, n_ctx;
    uint32_t window; /* positions a sliding layer sees */
    uint32_t head_dim, head_dim_sliding;
    uint32_t n_expert, n_expert_used, n_ff_exp; /* n_expert 0: none of them */
    float eps;
    float softcap;                      /* 0: none */
    float rope_base, rope_base_sliding; /* full and sliding layers */
    uint32_t n_head_max, n_ff_max;      /* largest of the layers */
    uint32_t n_q_max, n_kv_max;         /* largest n_head * head_dim, n_kv_head * head_dim */
    uint32_t n_group_max;               /* most query heads that share a K/V head */
    struct gemma4_layer_conf layer[GEMMA4_LAYER_MAX];
    struct kv_layer_shape kv[GEMMA4_LAYER_MAX];
};

/* Return: 0 or MODEL_BAD. */
int gemma4_conf_read(struct gemma4_conf *c, const struct gguf *g, struct why *why);
