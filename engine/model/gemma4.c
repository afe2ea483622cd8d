/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/gemma4.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/log.h"
#include "engine/hw/quota.h"
#include "engine/model/model-arch.h"
#include "engine/model/ops.h"
#include "engine/moe/group.h"
#include "engine/moe/router.h"

/*
 * gemma4 - the text model of Gemma 4, mixture and dense
 *
 *   x = embedding * sqrt(d)
 *   layer:  x += rms(attention(rms(x)))
 *           x += rms(dense(rms(x)))                               dense models
 *           x += rms(rms(dense(rms(x))) + rms(experts(rms(x))))   mixture models
 *           x *= output scale
 *   logits = softcap(head * rms(x))
 *
 * A step is a row of phases; rows of different sequences and positions go through them together,
 * and every phase computes a row from that row alone, so a row's result does not depend on others.
 *
 * Source: Gemma 4 as published by Google in Hugging Face transformers; tensor names after GGUF.
 */

struct layer {
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
    const float *exp_scale;                                  /* [n_expert], NULL: 1 */

    /* forms in which the layer's matrices read their inputs */
    unsigned form_in, form_o, form_ffn, form_down, form_moe, form_exp_down;
};

struct gemma4 {
    struct model model;
    struct gemma4_conf conf;
    struct ops ops;
    struct arena weights, memory;

    struct ops_mat embd, head;
    const float *out_norm;             /* [d] */
    const double *freq, *freq_sliding; /* rad a position, [head_dim / 2] */
    struct layer *layer;               /* [n_layer] */

    /* One step. */
    struct kvcache *kv;
    const struct model_row *row;
    uint32_t n_row;
    const struct layer *l; /* the layer being computed */
    uint32_t i_layer;
    bool fused;                   /* no row attends to another row of this step */
    uint32_t *out_row;            /* [n_out] rows with .out */
    float *x;                     /* [n_batch][d] residual stream */
    float *angle, *angle_sliding; /* [n_batch][head_dim / 2][2] */
    float *q, *k, *v;             /* [n_batch][n_head * head_dim], k and v [n_kv_head * head_dim] */
    float *y, *moe;               /* [n_batch][d] what a branch adds */
    float *up;                    /* [n_batch][n_ff rounded up] */
    float *route, *prob;          /* [n_batch][n_expert] logits, and for the trace probabilities */
    float *exp_up, *exp_y;        /* [n_slot][n_ff_exp rounded up], [n_slot][d] */
    uint32_t *exp_id;             /* [n_batch][n_expert_used] */
    float *exp_weight;            /* [n_batch][n_expert_used] */
    struct ops_act in;            /* rows of d: norms of x */
    struct ops_act route_in, moe_in;
    struct ops_act attn;          /* rows of n_head * head_dim */
    struct ops_act dense;         /* rows of n_ff */
    struct ops_act slot_in, slot; /* rows of d and of n_ff_exp, by slot */
    struct group group;
    struct ops_task *task;
    float *logits; /* [n_out][n_vocab] */
};

/* ---- weights by name ---- */

/* Binding runs twice: the first time only to learn how much memory converted vectors take. */
struct binder {
    struct gemma4 *g;
    const struct gguf *gguf;
    struct arena *arena;
    struct why *why;
    bool pack;         /* plan to pack what can be */
    uint32_t n_in_one; /* matrices one below the other in a tensor */
    int layer;         /* -1: names are whole */
    int r;             /* first failure; everything after it is skipped */
};

static const struct tensor *find(struct binder *b, const char *name, uint64_t ne0, uint64_t ne1,
                                 uint64_t ne2, bool optional) {
    const struct tensor *t;
    char full[96];

    if (b->r)
        return NULL;
    if (b->layer >= 0)
        snprintf(full, sizeof full, "blk.%d.%s", b->layer, name);
    else
        snprintf(full, sizeof full, "%s", name);
    t = gguf_tensor(b->gguf, full);
    if (!t) {
        if (!optional)
            b->r = why_set(b->why, MODEL_BAD, "%s: missing", full);
        return NULL;
    }
    if (t->ne[0] != ne0 || t->ne[1] != ne1 || t->ne[2] != ne2 || t->ne[3] != 1) {
        b->r = why_set(b->why, MODEL_BAD,
                       "%s: shape is [%llu, %llu, %llu], the model needs [%llu, %llu, %llu]", full,
                       (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                       (unsigned long long)t->ne[2], (unsigned long long)ne0,
                       (unsigned long long)ne1, (unsigned long long)ne2);
        return NULL;
    }

    return t;
}

/* A matrix [n_col, n_out], of each expert when @n_expert > 1. Return: bytes of one expert's. */
static size_t mat(struct binder *b, const char *name, uint32_t n_col, uint32_t n_out,
                  uint32_t n_expert, bool optional, struct ops_mat *ret) {
    const struct tensor *t = find(b, name, n_col, n_out, n_expert, optional);
    const struct kern *k = b->g->ops.kern;

    *ret = (struct ops_mat){ 0 };
    if (!t)
        return 0;
    if (!k->mul[t->fmt] || !k->mul_exact[t->fmt]) {
        b->r = why_set(b->why, MODEL_BAD, "%s: no kernel for %s matrices", t->name,
                       quant_info(t->fmt)->name);
        return 0;
    }
    *ret = (struct ops_mat){
        .stride = quant_row_size(t->fmt, n_col), .n_out = n_out, .n_col = n_col, .fmt = t->fmt
    };
    if (b->pack)
        b->r = weights_plan(&b->g->model.weights, t, n_out / b->n_in_one, &k->pack[t->fmt]);
    ret->data = weights_at(&b->g->model.weights, t, &ret->pack);

    return ret->stride * n_out;
}

/* A vector, where it lies when it is f32, else converted; times @factor. */
static const float *vec(struct binder *b, const char *name, uint32_t n, float factor,
                        bool optional) {
    const struct tensor *t = find(b, name, n, 1, 1, optional);
    float *v;

    if (!t)
        return NULL;
    if (t->fmt > QUANT_BF16) {
        b->r = why_set(b->why, MODEL_BAD, "%s: %s is no format for a vector", t->name,
                       quant_info(t->fmt)->name);
        return NULL;
    }
    if (t->fmt == QUANT_F32 && factor == 1)
        return t->data;
    v = arena_alloc(b->arena, n, sizeof *v);
    if (!b->arena->base || !v)
        return v;
    quant_decode(t->fmt, t->data, v, n);
    for (uint32_t i = 0; i < n; i++)
        v[i] *= factor;

    return v;
}

static void bind_experts(struct binder *b, struct layer *l) {
    const struct gemma4_conf *c = &b->g->conf;
    uint32_t d = c->n_embd, n = c->n_expert, ff = c->n_ff_exp;

    mat(b, "ffn_gate_inp.weight", d, n, 1, false, &l->router);
    if (l->router.data && l->router.fmt > QUANT_BF16)
        b->r = why_set(b->why, MODEL_BAD,
                       "blk.%d.ffn_gate_inp.weight: a router must be F32, F16 "
                       "or BF16",
                       b->layer);
    l->router_scale = vec(b, "ffn_gate_inp.scale", d, (float)(1 / sqrt(d)), false);
    l->moe_norm = vec(b, "pre_ffw_norm_2.weight", d, 1, false);
    l->dense_post_norm = vec(b, "post_ffw_norm_1.weight", d, 1, false);
    l->moe_post_norm = vec(b, "post_ffw_norm_2.weight", d, 1, false);
    l->exp_scale = vec(b, "ffn_down_exps.scale", n, 1, true);
    l->exp_down_size = mat(b, "ffn_down_exps.weight", ff, d, n, false, &l->exp_down);

    /* gate and up of an expert in one matrix, gate first, or in two */
    b->n_in_one = 2;
    size_t size = mat(b, "ffn_gate_up_exps.weight", d, 2 * ff, n, true, &l->exp_gate);

    b->n_in_one = 1;
    if (size) {
        l->exp_gate.n_out = ff;
        l->exp_up = l->exp_gate;
        l->exp_up.data = (const uint8_t *)l->exp_gate.data + ff * l->exp_gate.stride;
        l->exp_gate_size = l->exp_up_size = size;
    } else {
        l->exp_gate_size = mat(b, "ffn_gate_exps.weight", d, ff, n, false, &l->exp_gate);
        l->exp_up_size = mat(b, "ffn_up_exps.weight", d, ff, n, false, &l->exp_up);
    }
}

static void bind_layer(struct binder *b, struct layer *l) {
    const struct gemma4_conf *c = &b->g->conf;
    uint32_t d = c->n_embd;
    uint32_t n_q = l->conf->n_head * l->conf->head_dim;
    uint32_t n_kv = l->conf->n_kv_head * l->conf->head_dim;
    bool exact = b->g->ops.exact;

    l->attn_norm = vec(b, "attn_norm.weight", d, 1, false);
    mat(b, "attn_q.weight", d, n_q, 1, false, &l->q);
    mat(b, "attn_k.weight", d, n_kv, 1, false, &l->k);
    mat(b, "attn_v.weight", d, n_kv, 1, true, &l->v);
    l->q_norm = vec(b, "attn_q_norm.weight", l->conf->head_dim, 1, false);
    l->k_norm = vec(b, "attn_k_norm.weight", l->conf->head_dim, 1, false);
    mat(b, "attn_output.weight", n_q, d, 1, false, &l->o);
    l->attn_post_norm = vec(b, "post_attention_norm.weight", d, 1, false);

    l->ffn_norm = vec(b, "ffn_norm.weight", d, 1, false);
    mat(b, "ffn_gate.weight", d, l->conf->n_ff, 1, false, &l->gate);
    mat(b, "ffn_up.weight", d, l->conf->n_ff, 1, false, &l->up);
    mat(b, "ffn_down.weight", l->conf->n_ff, d, 1, false, &l->down);
    l->ffn_post_norm = vec(b, "post_ffw_norm.weight", d, 1, false);
    l->scale = vec(b, "layer_output_scale.weight", 1, 1, true);
    if (c->n_expert > 0)
        bind_experts(b, l);

    l->form_in = ops_form(exact, &l->q) | ops_form(exact, &l->k) | ops_form(exact, &l->v);
    l->form_o = ops_form(exact, &l->o);
    l->form_ffn = ops_form(exact, &l->gate) | ops_form(exact, &l->up);
    l->form_down = ops_form(exact, &l->down);
    l->form_moe = ops_form(exact, &l->exp_gate) | ops_form(exact, &l->exp_up);
    l->form_exp_down = ops_form(exact, &l->exp_down);
}

/* Radians a position for each pair of a head of @dim elements: base^(-2i/dim), on full layers
 * divided by the file's factors. */
static const double *bind_freq(struct binder *b, uint32_t dim, float base, const float *factor) {
    double *f = arena_alloc(b->arena, dim / 2, sizeof *f);

    if (!b->arena->base || !f)
        return f;
    for (uint32_t i = 0; i < dim / 2; i++)
        f[i] = pow(base, -2.0 * i / dim) / (factor ? (double)factor[i] : 1);

    return f;
}

static void bind(struct binder *b) {
    struct gemma4 *g = b->g;
    const struct gemma4_conf *c = &g->conf;
    const float *factor;

    b->layer = -1;
    g->layer = arena_alloc(b->arena, c->n_layer, sizeof *g->layer);
    mat(b, "token_embd.weight", c->n_embd, c->n_vocab, 1, false, &g->embd);
    mat(b, "output.weight", c->n_embd, c->n_vocab, 1, true, &g->head);
    if (!g->head.data)
        g->head = g->embd;
    if (!b->r && !g->ops.kern->decode[g->embd.fmt])
        b->r = why_set(b->why, MODEL_BAD, "token_embd.weight: no decoder for %s",
                       quant_info(g->embd.fmt)->name);
    g->out_norm = vec(b, "output_norm.weight", c->n_embd, 1, false);
    factor = vec(b, "rope_freqs.weight", c->head_dim / 2, 1, false);
    for (uint32_t i = 0; i < c->head_dim / 2 && factor && b->arena->base; i++)
        if (!(factor[i] > 0 && isfinite(factor[i]))) {
            b->r = why_set(b->why, MODEL_BAD, "rope_freqs.weight: element %u is not positive", i);
            break;
        }
    g->freq = bind_freq(b, c->head_dim, c->rope_base, factor);
    g->freq_sliding = bind_freq(b, c->head_dim_sliding, c->rope_base_sliding, NULL);

    for (uint32_t i = 0; i < c->n_layer && !b->r; i++) {
        struct layer measured, *l = b->arena->base ? &g->layer[i] : &measured;

        b->layer = (int)i;
        *l = (struct layer){ .conf = &c->layer[i] };
        bind_layer(b, l);
    }
}

/* ---- memory of a step ---- */

static void lay_out(struct gemma4 *g, const struct model_options *opt, struct arena *a) {
    const struct gemma4_conf *c = &g->conf;
    uint32_t n = opt->n_batch, d = c->n_embd, k = c->n_expert_used;
    uint32_t n_slot = n * k;
    unsigned in = OPS_F32 | ops_form(opt->exact, &g->head), o = 0, down = 0, moe = 0, exp_down = 0;

    for (uint32_t i = 0; i < c->n_layer; i++) {
        in |= g->layer[i].form_in | g->layer[i].form_ffn;
        o |= g->layer[i].form_o;
        down |= g->layer[i].form_down;
        moe |= g->layer[i].form_moe;
        exp_down |= g->layer[i].form_exp_down;
    }
    g->x = arena_alloc(a, n, d * sizeof *g->x);
    g->angle = arena_alloc(a, n, c->head_dim * sizeof *g->angle);
    g->angle_sliding = arena_alloc(a, n, c->head_dim_sliding * sizeof *g->angle);
    g->q = arena_alloc(a, n, c->n_q_max * sizeof *g->q);
    g->k = arena_alloc(a, n, c->n_kv_max * sizeof *g->k);
    g->v = arena_alloc(a, n, c->n_kv_max * sizeof *g->v);
    g->y = arena_alloc(a, n, d * sizeof *g->y);
    g->up = arena_alloc(a, n, (c->n_ff_max + 15) / 16 * 16 * sizeof *g->up);
    ops_act_init(&g->in, n, d, in, a);
    ops_act_init(&g->attn, n, c->n_q_max, OPS_F32 | o, a);
    ops_act_init(&g->dense, n, c->n_ff_max, OPS_F32 | down, a);
    if (c->n_expert > 0) {
        g->moe = arena_alloc(a, n, d * sizeof *g->moe);
        g->route = arena_alloc(a, n, c->n_expert * sizeof *g->route);
        g->prob = arena_alloc(a, n, c->n_expert * sizeof *g->prob);
        g->exp_id = arena_alloc(a, n, k * sizeof *g->exp_id);
        g->exp_weight = arena_alloc(a, n, k * sizeof *g->exp_weight);
        g->exp_up = arena_alloc(a, n_slot, (c->n_ff_exp + 15) / 16 * 16 * sizeof *g->exp_up);
        g->exp_y = arena_alloc(a, n_slot, d * sizeof *g->exp_y);
        ops_act_init(&g->route_in, n, d, OPS_F32, a);
        ops_act_init(&g->moe_in, n, d, OPS_F32 | moe, a);
        ops_act_init(&g->slot_in, n_slot, d, moe, a);
        ops_act_init(&g->slot, n_slot, c->n_ff_exp, OPS_F32 | exp_down, a);
        group_init(&g->group, c->n_expert, n, k, a);
    }
    g->out_row = arena_alloc(a, opt->n_out, sizeof *g->out_row);
    g->logits = arena_alloc(a, opt->n_out, c->n_vocab * sizeof *g->logits);
    g->task = arena_alloc(a, c->n_expert + 3, sizeof *g->task);
}

/* Scratch a worker needs: attention's scores, a head, or a slab of weights for OpenBLAS. */
static size_t scratch_size(const struct gemma4 *g, bool blas) {
    const struct gemma4_conf *c = &g->conf;
    size_t n = ops_attend_scratch(c->n_group_max);
    size_t head = c->head_dim > c->head_dim_sliding ? c->head_dim : c->head_dim_sliding;
    size_t wide = c->n_embd;

    wide = wide > c->n_q_max ? wide : c->n_q_max;
    wide = wide > c->n_ff_max ? wide : c->n_ff_max;
    wide = wide > c->n_ff_exp ? wide : c->n_ff_exp;
    n = n > head ? n : head;
    if (blas && n < wide * OPS_BLAS_SLAB)
        n = wide * OPS_BLAS_SLAB;

    return n;
}

static int init_ops(struct gemma4 *g, const struct kern *kern, struct pool *pool,
                    const struct model_options *opt, struct arena *a) {
    bool blas = !opt->no_blas && ops_blas_present();
    int r = ops_init(&g->ops, kern, pool, scratch_size(g, blas), a);

    g->ops.exact = opt->exact;
    g->ops.blas = blas;
    return err_up(r);
}

/* Weight bytes one decoded token reads: all matrices, of experts those a row uses. */
static uint64_t token_bytes(const struct gemma4 *g) {
    const struct gemma4_conf *c = &g->conf;
    uint64_t n = g->head.stride * g->head.n_out + g->embd.stride;

    for (uint32_t i = 0; i < c->n_layer; i++) {
        const struct layer *l = &g->layer[i];
        const struct ops_mat *all[] = { &l->q,    &l->k,  &l->v,    &l->o,
                                        &l->gate, &l->up, &l->down, &l->router };
        const struct ops_mat *expert[] = { &l->exp_gate, &l->exp_up, &l->exp_down };

        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            n += all[j]->stride * all[j]->n_out;
        for (size_t j = 0; j < sizeof expert / sizeof *expert; j++)
            n += expert[j]->stride * expert[j]->n_out * c->n_expert_used;
        n += sizeof(float) * (4 * (uint64_t)c->n_embd + 2 * l->conf->head_dim);
        if (c->n_expert > 0)
            n += sizeof(float) * (4 * (uint64_t)c->n_embd + c->n_expert_used);
    }

    return n + sizeof(float) * c->n_embd;
}

static struct model *gemma4_free(struct model *m) {
    struct gemma4 *g = (struct gemma4 *)m;

    if (g) {
        arena_deinit(&g->memory);
        arena_deinit(&g->weights);
        weights_deinit(&g->model.weights);
        free(g);
    }
    return NULL;
}

static inline void auto_gemma4_free(struct gemma4 **g) {
    if (*g)
        (void)gemma4_free(&(*g)->model);
}

/* Room for packed weights, unless memory is too short for them. */
static int map_weights(struct gemma4 *g, uint64_t reserve, struct why *why) {
    uint64_t size = g->model.weights.size, room = quota_memory("");
    int r;

    room = room > reserve ? room - reserve : 0;
    r = weights_map(&g->model.weights, room);
    if (r < 0)
        return why_set(why, err_up(r), "no memory for %" PRIu64 " bytes of weights", size);
    if (r == WEIGHTS_LARGE)
        log_debug("model",
                  "weights are not packed: they take %" PRIu64 " bytes, %" PRIu64 " are free", size,
                  room);
    return 0;
}

/* Weights are bound, and vectors converted, in an arena of exactly their size. */
static int init_weights(struct gemma4 *g, const struct gguf *gguf, const struct model_options *opt,
                        struct why *why) {
    struct arena measure;
    struct binder b = { .g = g, .gguf = gguf, .arena = &measure, .why = why, .n_in_one = 1 };
    int r;

    r = weights_init(&g->model.weights, gguf);
    if (r != 0)
        return err_up(r);
    b.pack = !opt->exact && !opt->no_pack;
    arena_measure(&measure);
    bind(&b);
    if (b.r != 0)
        return b.r;
    if (measure.failed)
        return why_set(why, err_new(-ENOMEM), "the weights' sizes overflow memory");
    r = map_weights(g, opt->reserve, why);
    if (r != 0)
        return err_up(r);
    b.pack = false;
    r = arena_init(&g->weights, measure.used, why);
    if (r != 0)
        return err_up(r);
    b.arena = &g->weights;
    bind(&b);

    return b.r;
}

static int init_step(struct gemma4 *g, const struct kern *kern, struct pool *pool,
                     const struct model_options *opt, struct why *why) {
    struct arena measure;
    int r;

    arena_measure(&measure);
    r = init_ops(g, kern, pool, opt, &measure);
    if (r == 0)
        lay_out(g, opt, &measure);
    if (r != 0 || measure.failed)
        return why_set(why, err_new(-ENOMEM), "the memory of a step overflows");
    r = arena_init(&g->memory, measure.used, why);
    if (r != 0)
        return err_up(r);
    r = init_ops(g, kern, pool, opt, &g->memory);
    if (r != 0)
        return err_up(r);
    lay_out(g, opt, &g->memory);
    g->model.info.step_bytes = measure.used;

    return 0;
}

static int gemma4_new(struct model **ret_model, const struct gguf *gguf, const struct kern *kern,
                      struct pool *pool, const struct model_options *opt, struct why *why) {
    AUTO(gemma4_free) struct gemma4 *g = calloc(1, sizeof *g);
    const struct gemma4_conf *c;
    int r;

    if (!g)
        return err_new(-ENOMEM);
    c = &g->conf;
    r = gemma4_conf_read(&g->conf, gguf, why);
    if (r != 0)
        return err_up(r);
    if (opt->n_ctx > c->n_ctx)
        return why_set(why, MODEL_BAD, "a context of %u is more than the model's %u", opt->n_ctx,
                       c->n_ctx);
    g->ops.kern =
        kern; /* which formats have kernels, and what form they read, is all bind() asks */
    g->ops.exact = opt->exact;
    r = init_weights(g, gguf, opt, why);
    if (r != 0)
        return err_up(r);
    r = init_step(g, kern, pool, opt, why);
    if (r != 0)
        return err_up(r);
    if (g->ops.blas)
        ops_blas_init();

    g->model.kv_layer = c->kv;
    g->model.info = (struct model_info){
        .n_layer = c->n_layer,
        .n_embd = c->n_embd,
        .n_vocab = c->n_vocab,
        .n_ctx_train = c->n_ctx,
        .n_ctx = opt->n_ctx ? opt->n_ctx : c->n_ctx,
        .n_expert = c->n_expert,
        .n_expert_used = c->n_expert_used,
        .window = c->window,
        .token_bytes = token_bytes(g),
        .step_bytes = g->model.info.step_bytes,
    };
    *ret_model = &take(g)->model;
    return 0;
}

/* ---- the forward pass ---- */

static struct ops_task product(const struct ops_mat *w, struct kern_rows x, float *y,
                               size_t y_stride) {
    return (struct ops_task){ .w = *w, .x = x, .y = y, .y_stride = y_stride };
}

/* y = gelu(gate x) * (up x), into the rows of @act */
static struct ops_task product_glu(const struct ops_mat *gate, const struct ops_mat *up,
                                   struct kern_rows x, struct ops_act *act, uint32_t first,
                                   float *up_y) {
    return (struct ops_task){ .w = *gate,
                              .w2 = *up,
                              .x = x,
                              .y = ops_act_row(act, first),
                              .y2 = up_y + first * act->f_stride,
                              .y_stride = act->f_stride };
}

static void trace(const struct gemma4 *g, const char *what, const float *x, uint32_t n_col) {
    if (g->model.trace)
        g->model.trace(g->model.trace_arg, g->i_layer, what, x, g->n_row, n_col);
}

static void trace_route(const struct gemma4 *g) {
    uint32_t n = g->conf.n_expert;

    if (!g->model.trace)
        return;
    memcpy(g->prob, g->route, (size_t)g->n_row * n * sizeof *g->prob);
    for (uint32_t r = 0; r < g->n_row; r++)
        g->ops.kern->softmax(g->prob + (size_t)r * n, n);
    trace(g, "probs", g->prob, n);
}

static void embed(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct gemma4_conf *c = &g->conf;
    float *x = g->x + (size_t)r * c->n_embd, scale = (float)sqrt(c->n_embd);

    ops_mat_row(g->ops.kern, &g->embd, (uint32_t)g->row[r].tok, x);
    for (uint32_t i = 0; i < c->n_embd; i++)
        x[i] *= scale;
}

static void angles(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct gemma4_conf *c = &g->conf;

    ops_rope_angles(g->freq, c->head_dim / 2, g->row[r].pos, g->angle + (size_t)r * c->head_dim);
    ops_rope_angles(g->freq_sliding, c->head_dim_sliding / 2, g->row[r].pos,
                    g->angle_sliding + (size_t)r * c->head_dim_sliding);
}

static void norm_into(const struct gemma4 *g, const float *w, const struct ops_act *to,
                      uint32_t row, const float *x) {
    g->ops.kern->rmsnorm(x, w, g->conf.eps, ops_act_row(to, row), g->conf.n_embd);
    ops_act_done(&g->ops, to, row);
}

static void attn_in(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;

    norm_into(g, g->l->attn_norm, &g->in, r, g->x + (size_t)r * g->conf.n_embd);
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

static void add(float *x, const float *y, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        x[i] += y[i];
}

/* Attention's output joins the stream; the stream is normed for all branches that follow. */
static void attn_out(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;
    uint32_t d = g->conf.n_embd;
    float *x = g->x + (size_t)r * d, *y = g->y + (size_t)r * d;

    g->ops.kern->rmsnorm(y, g->l->attn_post_norm, g->conf.eps, y, d);
    add(x, y, d);
    norm_into(g, g->l->ffn_norm, &g->in, r, x);
    if (g->conf.n_expert > 0) {
        norm_into(g, g->l->router_scale, &g->route_in, r, x);
        norm_into(g, g->l->moe_norm, &g->moe_in, r, x);
    }
}

static void dense_mid(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct gemma4_conf *c = &g->conf;

    ops_act_done(&g->ops, &g->dense, r);
    if (c->n_expert > 0)
        router_top(g->route + (size_t)r * c->n_expert, c->n_expert, c->n_expert_used,
                   g->l->exp_scale, g->exp_id + (size_t)r * c->n_expert_used,
                   g->exp_weight + (size_t)r * c->n_expert_used);
}

static void slot_gather(void *arg, uint32_t slot, uint32_t worker) {
    const struct gemma4 *g = arg;

    ops_act_copy(&g->slot_in, slot, &g->moe_in, g->group.row[slot]);
}

static void slot_mid(void *arg, uint32_t slot, uint32_t worker) {
    const struct gemma4 *g = arg;

    ops_act_done(&g->ops, &g->slot, slot);
}

/* The branches join the stream. A row's experts are added in the order the router gave them. */
static void ffn_out(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct kern *k = g->ops.kern;
    const struct layer *l = g->l;
    uint32_t d = g->conf.n_embd, n = g->conf.n_expert_used;
    float *x = g->x + (size_t)r * d, *y = g->y + (size_t)r * d;
    float eps = g->conf.eps;

    if (g->conf.n_expert > 0) {
        float *moe = g->moe + (size_t)r * d;

        memset(moe, 0, d * sizeof *moe);
        for (uint32_t i = 0; i < n; i++)
            k->axpy[QUANT_F32](g->exp_weight[r * n + i],
                               g->exp_y + (size_t)g->group.slot[r * n + i] * d, moe, d);
        k->rmsnorm(y, l->dense_post_norm, eps, y, d);
        k->rmsnorm(moe, l->moe_post_norm, eps, moe, d);
        add(y, moe, d);
    }
    k->rmsnorm(y, l->ffn_post_norm, eps, y, d);
    add(x, y, d);
    if (l->scale)
        for (uint32_t i = 0; i < d; i++)
            x[i] *= *l->scale;
}

static void attention(struct gemma4 *g) {
    const struct layer *l = g->l;
    const struct gemma4_layer_conf *c = l->conf;
    struct ops *ops = &g->ops;
    uint32_t n = g->n_row, d = g->conf.n_embd, n_kv = c->n_kv_head * c->head_dim;
    uint32_t n_q = c->n_head * c->head_dim, n_task = 0;
    size_t seen = c->sliding && g->row[0].pos > g->conf.window ? g->conf.window : g->row[0].pos + 1;

    ops_act_shape(&g->in, d, OPS_F32 | l->form_in);
    ops_act_shape(&g->attn, n_q, OPS_F32 | l->form_o);
    ops_each(ops, n, d * sizeof(float) * 4, attn_in, g);

    struct kern_rows in = ops_act_rows(&g->in, 0, n);

    g->task[n_task++] = product(&l->q, in, g->q, n_q);
    g->task[n_task++] = product(&l->k, in, g->k, n_kv);
    if (l->v.data)
        g->task[n_task++] = product(&l->v, in, g->v, n_kv);
    ops_mul(ops, g->task, n_task);

    size_t cost = (size_t)c->head_dim * sizeof(float) * (c->n_head / c->n_kv_head + 2);

    if (g->fused) {
        ops_each(ops, n * c->n_kv_head, cost * (1 + seen), attn_store_and_attend, g);
    } else {
        ops_each(ops, n * c->n_kv_head, cost * 4, attn_store, g);
        ops_each(ops, n * c->n_kv_head, cost * (1 + seen), attn_attend, g);
    }
    ops_each(ops, n, n_q * sizeof(float), attn_mixed, g);
    g->task[0] = product(&l->o, ops_act_rows(&g->attn, 0, n), g->y, d);
    ops_mul(ops, g->task, 1);
}

/* One product a distinct expert, its rows together; rows that lie together already stay there. */
static uint32_t expert_inputs(struct gemma4 *g, struct ops_task *task) {
    const struct layer *l = g->l;
    const struct group *group = &g->group;

    for (uint32_t i = 0; i < group->n_expert; i++) {
        const struct group_expert *e = &group->expert[i];
        struct ops_mat gate = l->exp_gate, up = l->exp_up;
        uint32_t row = group->row[e->first];
        bool together = group->row[e->first + e->n - 1] - row == e->n - 1;

        gate.data = (const uint8_t *)gate.data + e->id * l->exp_gate_size;
        up.data = (const uint8_t *)up.data + e->id * l->exp_up_size;
        task[i] = product_glu(&gate, &up,
                              together ? ops_act_rows(&g->moe_in, row, e->n)
                                       : ops_act_rows(&g->slot_in, e->first, e->n),
                              &g->slot, e->first, g->exp_up);
    }

    return group->n_expert;
}

static void feed_forward(struct gemma4 *g) {
    const struct layer *l = g->l;
    const struct gemma4_conf *c = &g->conf;
    struct ops *ops = &g->ops;
    uint32_t n = g->n_row, d = c->n_embd, n_task = 0, n_slot = n * c->n_expert_used;
    bool moe = c->n_expert > 0;

    ops_act_shape(&g->in, d, OPS_F32 | l->form_ffn);
    ops_act_shape(&g->dense, l->conf->n_ff, OPS_F32 | l->form_down);
    if (moe) {
        ops_act_shape(&g->moe_in, d, OPS_F32 | l->form_moe);
        ops_act_shape(&g->slot_in, d, l->form_moe);
        ops_act_shape(&g->slot, c->n_ff_exp, OPS_F32 | l->form_exp_down);
    }
    ops_each(ops, n, d * sizeof(float) * 12, attn_out, g);
    trace(g, "attn", g->x, d);

    g->task[n_task++] =
        product_glu(&l->gate, &l->up, ops_act_rows(&g->in, 0, n), &g->dense, 0, g->up);
    if (moe) {
        g->task[n_task] =
            product(&l->router, ops_act_rows(&g->route_in, 0, n), g->route, c->n_expert);
        g->task[n_task++].no_blas =
            true; /* which experts a row takes must not depend on its batch */
    }
    ops_mul(ops, g->task, n_task);
    ops_each(ops, n, l->conf->n_ff * sizeof(float), dense_mid, g);
    if (moe)
        trace_route(g);

    g->task[0] = product(&l->down, ops_act_rows(&g->dense, 0, n), g->y, d);
    if (!moe) {
        ops_mul(ops, g->task, 1);
    } else {
        group_rows(&g->group, g->exp_id, n);
        ops_each(ops, n_slot, d * 2, slot_gather, g);
        ops_mul(ops, g->task, 1 + expert_inputs(g, g->task + 1));
        ops_each(ops, n_slot, c->n_ff_exp * sizeof(float), slot_mid, g);
        for (uint32_t i = 0; i < g->group.n_expert; i++) {
            const struct group_expert *e = &g->group.expert[i];
            struct ops_mat w = l->exp_down;

            w.data = (const uint8_t *)w.data + e->id * l->exp_down_size;
            g->task[i] = product(&w, ops_act_rows(&g->slot, e->first, e->n),
                                 g->exp_y + (size_t)e->first * d, d);
        }
        ops_mul(ops, g->task, g->group.n_expert);
    }
    ops_each(ops, n, d * sizeof(float) * 12, ffn_out, g);
    trace(g, "out", g->x, d);
}

static void head_in(void *arg, uint32_t i, uint32_t worker) {
    const struct gemma4 *g = arg;

    norm_into(g, g->out_norm, &g->in, i, g->x + (size_t)g->out_row[i] * g->conf.n_embd);
}

static void head(struct gemma4 *g) {
    uint32_t n_out = 0;

    for (uint32_t r = 0; r < g->n_row; r++)
        if (g->row[r].out)
            g->out_row[n_out++] = r;
    if (n_out == 0)
        return;
    ops_act_shape(&g->in, g->conf.n_embd, OPS_F32 | ops_form(g->ops.exact, &g->head));
    ops_each(&g->ops, n_out, g->conf.n_embd * sizeof(float) * 4, head_in, g);
    g->task[0] = product(&g->head, ops_act_rows(&g->in, 0, n_out), g->logits, g->conf.n_vocab);
    g->task[0].softcap = g->conf.softcap;
    ops_mul(&g->ops, g->task, 1);
}

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

static void begin(struct gemma4 *g, struct kvcache *kv, const struct model_row *row, uint32_t n_row,
                  const atomic_bool *stop) {
    g->kv = kv;
    g->row = row;
    g->n_row = n_row;
    g->fused = rows_alone(row, n_row);
    g->ops.stop = stop;
    ops_each(&g->ops, n_row, (g->conf.head_dim + g->conf.head_dim_sliding) * 100, angles, g);
}

/* Layer @i, attention and feed-forward, on the residual stream. */
static int run_layer(struct gemma4 *g, uint32_t i) {
    g->i_layer = i;
    g->l = &g->layer[i];
    if (ops_stopped(&g->ops))
        return MODEL_STOPPED;
    attention(g);
    if (ops_stopped(&g->ops))
        return MODEL_STOPPED;
    feed_forward(g);

    return ops_stopped(&g->ops) ? MODEL_STOPPED : 0;
}

static int gemma4_forward(struct model *m, struct kvcache *kv, const struct model_row *row,
                          uint32_t n_row, const atomic_bool *stop, const float **ret_logits) {
    struct gemma4 *g = (struct gemma4 *)m;
    int r;

    begin(g, kv, row, n_row, stop);
    ops_each(&g->ops, n_row, g->conf.n_embd * sizeof(float), embed, g);
    g->i_layer = 0;
    trace(g, "embd", g->x, g->conf.n_embd);
    for (uint32_t i = 0; i < g->conf.n_layer; i++) {
        r = run_layer(g, i);
        if (r != 0)
            return r;
    }
    head(g);
    if (ops_stopped(&g->ops))
        return MODEL_STOPPED;
    *ret_logits = g->logits;
    return 0;
}

static int gemma4_layer(struct model *m, struct kvcache *kv, uint32_t layer,
                        const struct model_row *row, uint32_t n_row, float *x) {
    struct gemma4 *g = (struct gemma4 *)m;
    size_t size = (size_t)n_row * g->conf.n_embd * sizeof *x;
    int r;

    begin(g, kv, row, n_row, NULL);
    memcpy(g->x, x, size);
    r = run_layer(g, layer);
    memcpy(x, g->x, size);

    return r;
}

const struct model_arch gemma4_arch = {
    .name = "gemma4",
    .new = gemma4_new,
    .free = gemma4_free,
    .step = gemma4_forward,
    .layer = gemma4_layer,
};
