/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * gemma4-priv - the model's struct, for its own files
 *
 *   gemma4.c       memory of a model and of a step
 *   gemma4-bind.c  weights by name
 *   gemma4-step.c  the forward pass
 *   gemma4-attn.c  its attention
 *   gemma4-experts.c  its experts, in memory or from a store
 *
 * Owner:   the engine thread; items of a phase run on the pool's workers.
 */

#include "engine/model/attn.h"
#include "engine/model/gemma4.h"
#include "engine/model/model-arch.h"
#include "engine/model/ops.h"
#include "engine/moe/group.h"
#include "engine/moe/heat.h"
#include "engine/moe/store.h"

struct gemma4_layer {
    const struct gemma4_layer_conf *conf;
    const float *attn_norm, *attn_post_norm; /* [d] */
    const float *q_norm, *k_norm;            /* [head_dim] */
    const float *ffn_norm, *ffn_post_norm;   /* [d] */
    struct ops_mat q, k, v, o;               /* v.data NULL: values are the raw keys */
    struct ops_mat gate, up, down;
    const float *scale; /* [1], NULL: 1 */

    /* mixture */
    struct ops_mat router;
    const float *router_scale;                               /* [d], with d^-1/2 */
    const float *moe_norm, *dense_post_norm, *moe_post_norm; /* [d] */
    struct ops_mat exp_gate, exp_up, exp_down;               /* of expert 0 */
    size_t exp_gate_size, exp_up_size, exp_down_size;        /* bytes from one expert to the next */
    uint32_t exp_gated_n;                                    /* of gate and up, matrices */
    const float *exp_scale;                                  /* [n_expert], NULL: 1 */

    /* forms in which the layer's matrices read their inputs */
    unsigned form_in, form_o, form_ffn, form_down, form_moe, form_exp_down;
};

/* What ops_enter() is told; names in gemma4.c. */
enum gemma4_phase {
    GEMMA4_EMBED,
    GEMMA4_QKV,
    GEMMA4_ATTN,
    GEMMA4_ATTN_OUT,
    GEMMA4_DENSE_UP,   /* and router */
    GEMMA4_DENSE_DOWN, /* and experts */
    GEMMA4_HEAD,
    GEMMA4_PHASE_N,
};

struct gemma4 {
    struct model model;
    struct gemma4_conf conf;
    struct ops ops;
    struct ops_phase phase[GEMMA4_PHASE_N];
    struct arena weights, memory;

    struct ops_mat embd, head;
    const float *out_norm;             /* [d] */
    const double *freq, *freq_sliding; /* rad a position, [head_dim / 2] */
    struct attn_turn turn;             /* of full layers */
    struct gemma4_layer *layer;        /* [n_layer] */

    /* One step. */
    struct kvcache *kv;
    const struct model_row *row;
    uint32_t n_row;
    const struct gemma4_layer *l; /* the layer being computed */
    uint32_t i_layer;
    const struct gemma4_layer *open; /* whose branches have not joined the stream yet, or NULL */
    uint32_t *out_row;               /* [n_out] rows with .out */
    float *x;                        /* [n_batch][d] residual stream */
    float *angle, *angle_sliding;    /* [n_batch][head_dim / 2][2] */
    float *q, *k, *v;    /* [n_batch][n_head * head_dim], k and v [n_kv_head * head_dim] */
    float *y, *moe;      /* [n_batch][d] what a branch adds; of experts the sum */
    float *route, *prob; /* [n_batch][n_expert] logits, and for the trace probabilities */
    uint32_t *exp_id;    /* [n_batch][n_expert_used] */
    float *exp_weight;   /* [n_batch][n_expert_used] */
    struct ops_act in;   /* rows of d: norms of x */
    struct ops_act route_in, moe_in;
    struct ops_act attn; /* rows of n_head * head_dim */
    struct attn at;
    struct ops_act dense;         /* rows of n_ff */
    struct ops_act slot_in, slot; /* rows of d and of n_ff_exp, by slot */
    struct group group;
    struct heat heat;
    struct store *store;     /* of experts that are on disk; NULL: all are in memory. Then: */
    struct store_here *here; /* [n_expert] */
    float *slot_out;         /* [n_batch * n_expert_used][d] what experts give */
    uint32_t *row_slot;      /* [n_batch][n_expert_used], in the order of experts */
    uint32_t *n_listed;      /* [n_batch] */
    struct ops_task *task;
    float *logits; /* [n_out][n_vocab] */
};

/* Weights are bound, and vectors converted, in an arena of exactly their size; what can be packed
 * is planned to be, when there is memory for it. Return: 0, MODEL_BAD, or -errno. */
int gemma4_bind(struct gemma4 *g, const struct gguf *gguf, const struct model_options *opt,
                struct why *why);

/* Is there no value matrix, so that keys follow from values on the elements rotation leaves? */
static inline bool gemma4_keys_follow(const struct gemma4 *g, const struct gemma4_layer *l) {
    return !l->v.data && !l->conf->sliding && g->turn.n_plain > 0 && g->turn.n_plain < g->turn.dim;
}

/* Rows of q, k and v of layer g->l are there: store keys and values, and make the rows of
 * g->attn, complete in all forms. */
void gemma4_attn(struct gemma4 *g);

enum {
    GEMMA4_MARGIN = 64 << 20, /* bytes of memory left beside a store whose size is chosen ... */
    GEMMA4_MARGIN_SHARE = 20, /* ... and this part of what there is */
};
/* Weights are loaded: open the store, if experts are on disk. Return: 0 or -errno. */
int gemma4_open_store(struct gemma4 *g, struct why *why);
/* g->group is that of layer g->l: what it needs is read from now on. */
void gemma4_experts_begin(struct gemma4 *g);
/* The task that gathers their inputs. */
struct ops_task gemma4_experts_gather(struct gemma4 *g);
/* Run the first @n_task tasks of g->task and all experts of the layer. @gathered: one of those
 * Return: 0, MODEL_STOPPED, or -errno: one could not be read. */
int gemma4_experts(struct gemma4 *g, struct ops_task *gathered, uint32_t n_task);
/* From a store: g->moe's row @r. In memory it is there already. */
void gemma4_experts_sum(const struct gemma4 *g, uint32_t r);

/* Return: 0, MODEL_STOPPED, or -errno. */
int gemma4_step(struct model *m, struct kvcache *kv, const struct model_row *row, uint32_t n_row,
                const atomic_bool *stop, const float **ret_logits);
int gemma4_run_layer(struct model *m, struct kvcache *kv, uint32_t layer,
                     const struct model_row *row, uint32_t n_row, float *x);
