/* SPDX-License-Identifier: Apache-2.0 */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/log.h"
#include "engine/hw/quota.h"
#include "engine/model/gemma4-priv.h"

enum { CUT_UNIT = 16 /* rows: the largest group of any packing, and of kernels' rows */ };

/* Binding runs twice: the first time only to learn how much memory converted vectors take. */
struct binder {
    struct gemma4 *g;
    const struct gguf *gguf;
    struct arena *arena;
    struct why *why;
    bool pack;         /* plan to pack what can be */
    uint32_t n_in_one; /* matrices one below the other in a tensor */
    bool gated;        /* gate or up: cut alike, and the next expert at the next turn */
    bool expert;       /* a matrix of each expert */
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

/* A matrix [n_col, n_out], or one of each expert. Return: bytes from one expert's to the next. */
static size_t mat(struct binder *b, const char *name, uint32_t n_col, uint32_t n_out,
                  uint32_t n_expert, bool optional, struct ops_mat *ret) {
    const struct tensor *t = find(b, name, n_col, n_out, n_expert, optional);
    const struct kern *k = b->g->ops.kern;
    struct weights *w = &b->g->model.weights;
    /* Experts whose products are summed are cut alike. A gated unit is a block of activations. */
    struct weights_cut cut = { .n_out = n_out / b->n_in_one,
                               .unit = b->gated ? KERN_Q8_BLOCK : CUT_UNIT,
                               .turn = (uint32_t)(b->layer + 1),
                               .alike = b->gated ? b->n_in_one : UINT32_MAX,
                               .n_expert = b->expert ? n_expert : 0 };

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
        b->r = weights_plan(w, t, &cut, &k->pack[t->fmt]);
    ret->data = weights_at(w, t, &ret->pack);
    ret->part = weights_parts(w, t);
    ret->n_part = ret->part ? w->plan->n_shard : 0;

    return weights_step(w, t);
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

static void bind_experts(struct binder *b, struct gemma4_layer *l) {
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
    b->expert = true;
    l->exp_down_size = mat(b, "ffn_down_exps.weight", ff, d, n, false, &l->exp_down);

    /* gate and up of an expert in one matrix, gate first, or in two */
    b->gated = true;
    b->n_in_one = 2;
    size_t size = mat(b, "ffn_gate_up_exps.weight", d, 2 * ff, n, true, &l->exp_gate);

    b->n_in_one = 1;
    if (size) {
        l->exp_gate.n_out = ff;
        l->exp_up = ops_mat_next(&l->exp_gate, 1, ff * l->exp_gate.stride, 1);
        l->exp_gated_n = 2;
        l->exp_gate_size = l->exp_up_size = size;
    } else {
        l->exp_gated_n = 1;
        l->exp_gate_size = mat(b, "ffn_gate_exps.weight", d, ff, n, false, &l->exp_gate);
        l->exp_up_size = mat(b, "ffn_up_exps.weight", d, ff, n, false, &l->exp_up);
    }
    b->gated = b->expert = false;
}

static void bind_layer(struct binder *b, struct gemma4_layer *l) {
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
    b->gated = true;
    mat(b, "ffn_gate.weight", d, l->conf->n_ff, 1, false, &l->gate);
    mat(b, "ffn_up.weight", d, l->conf->n_ff, 1, false, &l->up);
    b->gated = false;
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
        struct gemma4_layer measured, *l = b->arena->base ? &g->layer[i] : &measured;

        b->layer = (int)i;
        *l = (struct gemma4_layer){ .conf = &c->layer[i] };
        bind_layer(b, l);
    }
}

/* Room for packed weights, unless memory is too short for them. */
static int map_weights(struct gemma4 *g, const struct model_options *opt, struct why *why) {
    uint64_t size = g->model.weights.size, room = quota_memory("");
    int r;

    room = room > opt->reserve ? room - opt->reserve : 0;
    r = weights_map(&g->model.weights, room, opt->cache_dir, opt->memory);
    if (r < 0)
        return why_set(why, err_up(r), "no memory for %" PRIu64 " bytes of weights", size);
    if (r == WEIGHTS_LARGE)
        log_debug("model",
                  "weights are not packed: they take %" PRIu64 " bytes, %" PRIu64 " are free", size,
                  room);
    return 0;
}

/* Shall experts stay on disk? */
static bool wants_store(const struct gemma4 *g, const struct model_options *opt) {
    const struct weights *w = &g->model.weights;
    uint64_t room = quota_memory("");

    if (opt->exact || opt->no_pack || w->expert_size == 0 || opt->expert_bytes == MODEL_EXPERTS_ALL)
        return false;
    if (opt->expert_bytes == MODEL_EXPERTS_AUTO)
        return opt->cache_dir && (room < opt->reserve || w->size > room - opt->reserve);
    return opt->expert_bytes < w->expert_size;
}

/* Plan again, with experts on disk, where they go, and else as if they were not to.
 * Return: 0, MODEL_BAD, or -errno. */
static int map_store(struct binder *b, const struct model_options *opt, bool *ret_mapped) {
    struct weights *w = &b->g->model.weights;
    struct why why = { 0 };
    int r;

    weights_forget(w, true);
    bind(b);
    r = b->r ? b->r : weights_map_store(w, opt->cache_dir, &why);
    *ret_mapped = r == 0;
    if (r < 0)
        return why_set(b->why, err_up(r), "no memory for weights");
    if (r != WEIGHTS_NO_STORE)
        return r;
    if (opt->expert_bytes != MODEL_EXPERTS_AUTO)
        return why_set(b->why, MODEL_BAD, "experts cannot be on disk: %s", why.text);
    log_debug("model", "experts cannot be on disk: %s", why.text);
    bind(b);
    return b->r;
}

int gemma4_bind(struct gemma4 *g, const struct gguf *gguf, const struct model_options *opt,
                struct why *why) {
    struct arena measure;
    struct binder b = { .g = g, .gguf = gguf, .arena = &measure, .why = why, .n_in_one = 1 };
    bool stored = false;
    int r;

    r = weights_init(&g->model.weights, gguf, g->model.plan);
    if (r != 0)
        return err_up(r);
    b.pack = !opt->exact && !opt->no_pack;
    arena_measure(&measure);
    bind(&b);
    if (b.r != 0)
        return b.r;
    if (measure.failed)
        return why_set(why, err_new(-ENOMEM), "the weights' sizes overflow memory");
    if (wants_store(g, opt))
        r = map_store(&b, opt, &stored);
    if (r == 0 && !stored)
        r = map_weights(g, opt, why);
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
