/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>

#include "engine/model/gemma4-priv.h"

/* ---- memory of a step ---- */

/* Forms of activations that any layer's matrices read. */
struct forms {
    unsigned in, o, down, moe, exp_down;
};

/* What attention alone has, and what feed-forward alone has, is in the same place: it is written
 * and read inside the one or the other. */
static void lay_out_branches(struct gemma4 *g, const struct gemma4_conf *c, uint32_t n,
                             const struct forms *f, struct arena *a) {
    size_t begin = a->used, end;

    g->q = arena_alloc(a, n, c->n_q_max * sizeof *g->q);
    g->k = arena_alloc(a, n, c->n_kv_max * sizeof *g->k);
    g->v = arena_alloc(a, n, c->n_kv_max * sizeof *g->v);
    ops_act_init(&g->attn, n, c->n_q_max, OPS_F32 | f->o, a);
    end = arena_seek(a, begin);
    ops_act_init(&g->dense, n, c->n_ff_max, OPS_F32 | f->down, a);
    if (c->n_expert > 0) {
        uint32_t n_slot = n * c->n_expert_used;

        ops_act_init(&g->route_in, n, c->n_embd, OPS_F32, a);
        ops_act_init(&g->moe_in, n, c->n_embd, OPS_F32 | f->moe, a);
        ops_act_init(&g->slot_in, n_slot, c->n_embd, f->moe, a);
        ops_act_init(&g->slot, n_slot, c->n_ff_exp, OPS_F32 | f->exp_down, a);
    }
    if (a->used < end)
        (void)arena_seek(a, end);
}

static void lay_out(struct gemma4 *g, const struct model_options *opt, struct arena *a) {
    const struct gemma4_conf *c = &g->conf;
    uint32_t n = opt->n_batch, d = c->n_embd, k = c->n_expert_used;
    struct attn_limits limits = {
        .n_batch = n,
        .n_ctx = opt->n_ctx ? opt->n_ctx : c->n_ctx,
        .n_group = c->n_group_max,
        .head_dim = c->head_dim > c->head_dim_sliding ? c->head_dim : c->head_dim_sliding,
    };
    struct forms f = { .in = OPS_F32 | ops_form(opt->exact, &g->head) };

    for (uint32_t i = 0; i < c->n_layer; i++) {
        f.in |= g->layer[i].form_in | g->layer[i].form_ffn;
        f.o |= g->layer[i].form_o;
        f.down |= g->layer[i].form_down;
        f.moe |= g->layer[i].form_moe;
        f.exp_down |= g->layer[i].form_exp_down;
    }
    g->x = arena_alloc(a, n, d * sizeof *g->x);
    g->angle = arena_alloc(a, n, c->head_dim * sizeof *g->angle);
    g->angle_sliding = arena_alloc(a, n, c->head_dim_sliding * sizeof *g->angle);
    g->y = arena_alloc(a, n, d * sizeof *g->y);
    ops_act_init(&g->in, n, d, f.in, a);
    lay_out_branches(g, c, n, &f, a);
    attn_turn_init(&g->turn, g->freq, c->head_dim, a);
    attn_init(&g->at, &g->ops, &limits, a);
    if (c->n_expert > 0) {
        g->moe = arena_alloc(a, n, d * sizeof *g->moe);
        g->route = arena_alloc(a, n, c->n_expert * sizeof *g->route);
        g->prob = arena_alloc(a, n, c->n_expert * sizeof *g->prob);
        g->exp_id = arena_alloc(a, n, k * sizeof *g->exp_id);
        g->exp_weight = arena_alloc(a, n, k * sizeof *g->exp_weight);
        group_init(&g->group, c->n_expert, n, k, a);
        heat_init(&g->heat, c->n_layer, c->n_expert, k, a);
    }
    if (g->model.weights.store) {
        g->here = arena_alloc(a, c->n_expert, sizeof *g->here);
        g->slot_out = arena_alloc(a, (size_t)n * k, d * sizeof *g->slot_out);
        g->row_slot = arena_alloc(a, n, k * sizeof *g->row_slot);
        g->n_listed = arena_alloc(a, n, sizeof *g->n_listed);
    }
    g->out_row = arena_alloc(a, opt->n_out, sizeof *g->out_row);
    g->logits = arena_alloc(a, opt->n_out, c->n_vocab * sizeof *g->logits);
    g->task = arena_alloc(a, 2 * c->n_expert + 5, sizeof *g->task);
}

static int init_ops(struct gemma4 *g, const struct kern *kern, struct pool *pool,
                    const struct model_options *opt, struct arena *a) {
    int r = ops_init(&g->ops, kern, pool, g->model.plan, a);

    g->ops.exact = opt->exact;
    return err_up(r);
}

/* ---- memory that is short ---- */

static void cool_mat(const struct weights *w, const struct ops_mat *m) {
    uint32_t begin = 0;

    if (!m->part)
        weights_cool(w, m->data, m->n_out * m->stride);
    for (uint32_t p = 0; m->part && p < m->n_part; p++) {
        weights_cool(w, m->part[p].data, (m->part[p].end - begin) * m->stride);
        begin = m->part[p].end;
    }
}

static void gemma4_cool(struct model *m) {
    struct gemma4 *g = (struct gemma4 *)m;

    for (uint32_t i = 0; i < g->heat.n_layer; i++) {
        const struct gemma4_layer *l = &g->layer[i];
        const uint32_t *id;
        uint32_t n = heat_cold(&g->heat, i, &id);

        for (uint32_t e = 0; e < n; e++) {
            struct ops_mat gate =
                ops_mat_next(&l->exp_gate, id[e], l->exp_gate_size, l->exp_gated_n);
            struct ops_mat up = ops_mat_next(&l->exp_up, id[e], l->exp_up_size, l->exp_gated_n);
            struct ops_mat down = ops_mat_next(&l->exp_down, id[e], l->exp_down_size, 1);

            cool_mat(&m->weights, &gate);
            cool_mat(&m->weights, &up);
            cool_mat(&m->weights, &down);
        }
    }
}

/* ---- life ---- */

/* Weight bytes one decoded token reads: all matrices, of experts those a row uses. */
static uint64_t token_bytes(const struct gemma4 *g) {
    const struct gemma4_conf *c = &g->conf;
    uint64_t n = g->head.stride * g->head.n_out + g->embd.stride;

    for (uint32_t i = 0; i < c->n_layer; i++) {
        const struct gemma4_layer *l = &g->layer[i];
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

static int gemma4_loaded(struct model *m, struct why *why) {
    return err_up(gemma4_open_store((struct gemma4 *)m, why));
}

static const struct store *gemma4_store(const struct model *m) {
    return ((const struct gemma4 *)m)->store;
}

static struct model *gemma4_free(struct model *m) {
    struct gemma4 *g = (struct gemma4 *)m;

    if (g) {
        store_free(g->store);
        arena_deinit(&g->memory);
        arena_deinit(&g->weights);
        weights_deinit(&g->model.weights);
        plan_free(g->model.plan);
        free(g);
    }
    return NULL;
}

static inline void auto_gemma4_free(struct gemma4 **g) {
    if (*g)
        (void)gemma4_free(&(*g)->model);
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

static const char *const phase_name[GEMMA4_PHASE_N] = {
    [GEMMA4_EMBED] = "embed",
    [GEMMA4_QKV] = "q, k, v",
    [GEMMA4_ATTN] = "attention",
    [GEMMA4_ATTN_OUT] = "attention out",
    [GEMMA4_DENSE_UP] = "router, dense up",
    [GEMMA4_DENSE_DOWN] = "experts, dense down",
    [GEMMA4_HEAD] = "head",
};

static int make_plan(struct gemma4 *g, const struct gguf *gguf, const struct pool *pool) {
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < gguf_n_tensor(gguf); i++)
        bytes += gguf_tensor_at(gguf, i)->size;
    return err_up(plan_new(&g->model.plan, pool_cpus(pool), pool_n_worker(pool), bytes));
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
        kern; /* which formats have kernels, and what form they read, is all gemma4_bind() asks */
    g->ops.exact = opt->exact;
    r = make_plan(g, gguf, pool);
    if (r == 0)
        r = gemma4_bind(g, gguf, opt, why);
    if (r != 0)
        return err_up(r);
    r = init_step(g, kern, pool, opt, why);
    if (r != 0)
        return err_up(r);

    for (uint32_t i = 0; i < GEMMA4_PHASE_N; i++)
        g->phase[i].name = phase_name[i];
    g->model.phase = g->phase;
    g->model.n_phase = GEMMA4_PHASE_N;
    g->model.ops = &g->ops;
    for (uint32_t i = 0; i < c->n_layer; i++)
        g->conf.kv[i].n_key =
            g->conf.kv[i].head_dim - (gemma4_keys_follow(g, &g->layer[i]) ? g->turn.n_plain : 0);
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

const struct model_arch gemma4_arch = {
    .name = "gemma4",
    .new = gemma4_new,
    .free = gemma4_free,
    .step = gemma4_step,
    .layer = gemma4_run_layer,
    .cool = gemma4_cool,
    .loaded = gemma4_loaded,
    .store = gemma4_store,
};
