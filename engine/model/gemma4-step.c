/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>
#include <string.h>

#include "engine/model/gemma4-priv.h"
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

static struct ops_task product(const struct ops_mat *w, struct kern_rows x, float *y,
                               size_t y_stride) {
    return (struct ops_task){ .w = *w, .x = x, .y = y, .y_stride = y_stride };
}

/* y = gelu(gate x) * (up x), into the rows of @act */
static struct ops_task product_glu(const struct ops_mat *gate, const struct ops_mat *up,
                                   struct kern_rows x, struct ops_act *act, uint32_t first) {
    return (struct ops_task){
        .w = *gate, .w2 = *up, .x = x, .y = ops_act_row(act, first), .y_stride = act->f_stride
    };
}

static void enter(struct gemma4 *g, enum gemma4_phase phase) {
    ops_enter(&g->ops, &g->phase[phase]);
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

static void add(float *x, const float *y, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        x[i] += y[i];
}

/* The branches of layer g->open, if any, join the stream. */
static void join(const struct gemma4 *g, uint32_t r) {
    const struct kern *k = g->ops.kern;
    const struct gemma4_layer *l = g->open;
    uint32_t d = g->conf.n_embd;
    float *x = g->x + (size_t)r * d, *y = g->y + (size_t)r * d;
    float eps = g->conf.eps;

    if (!l)
        return;
    if (g->conf.n_expert > 0) {
        float *moe = g->moe + (size_t)r * d;

        if (g->store)
            gemma4_experts_sum(g, r);
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

static void layer_out(void *arg, uint32_t r, uint32_t worker) {
    join(arg, r);
}

static void attn_in(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;

    join(g, r);
    norm_into(g, g->l->attn_norm, &g->in, r, g->x + (size_t)r * g->conf.n_embd);
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

    ops_act_done(&g->ops, &g->dense, r);
}

static void route(void *arg, uint32_t r, uint32_t worker) {
    const struct gemma4 *g = arg;
    uint32_t n = g->conf.n_expert, k = g->conf.n_expert_used;

    router_top(g->route + (size_t)r * n, n, k, g->l->exp_scale, g->exp_id + (size_t)r * k,
               g->exp_weight + (size_t)r * k);
}

/* Every phase begins with what its rows still need: an item waits only for the part it reads. */
static struct ops_task rows(struct gemma4 *g, ops_item_fn *fn, size_t cost) {
    return (struct ops_task){ .fn = fn, .arg = g, .n_item = g->n_row, .cost = cost };
}

static void attention(struct gemma4 *g) {
    const struct gemma4_layer *l = g->l;
    const struct gemma4_layer_conf *c = l->conf;
    uint32_t n = g->n_row, d = g->conf.n_embd, n_kv = c->n_kv_head * c->head_dim;
    uint32_t n_q = c->n_head * c->head_dim, n_task = 0;
    struct ops_task *t = g->task;

    enter(g, GEMMA4_QKV);
    ops_act_shape(&g->in, d, OPS_F32 | l->form_in);
    ops_act_shape(&g->attn, n_q, OPS_F32 | l->form_o);

    struct kern_rows in = ops_act_rows(&g->in, 0, n);

    t[n_task++] = rows(g, attn_in, d * sizeof(float) * 12);
    t[n_task++] = product(&l->q, in, g->q, n_q);
    t[n_task++] = product(&l->k, in, g->k, n_kv);
    if (l->v.data)
        t[n_task++] = product(&l->v, in, g->v, n_kv);
    for (uint32_t i = 1; i < n_task; i++)
        t[i].need = &t[0];
    ops_run(&g->ops, t, n_task);
    g->open = NULL;

    enter(g, GEMMA4_ATTN);
    gemma4_attn(g);
    enter(g, GEMMA4_ATTN_OUT);
    t[0] = product(&l->o, ops_act_rows(&g->attn, 0, n), g->y, d);
    ops_run(&g->ops, t, 1);
}

/* Gate and up of the dense branch, and the router, which reads the stream in a form of its own. */
static void feed_forward_up(struct gemma4 *g) {
    const struct gemma4_layer *l = g->l;
    uint32_t n = g->n_row, d = g->conf.n_embd, n_task = 0;
    struct ops_task *t = g->task;

    enter(g, GEMMA4_DENSE_UP);
    ops_act_shape(&g->in, d, OPS_F32 | l->form_ffn);
    ops_act_shape(&g->dense, l->conf->n_ff, OPS_F32 | l->form_down);
    if (g->conf.n_expert > 0)
        ops_act_shape(&g->moe_in, d, OPS_F32 | l->form_moe);
    t[n_task++] = rows(g, attn_out, d * sizeof(float) * 12);
    t[n_task++] = product_glu(&l->gate, &l->up, ops_act_rows(&g->in, 0, n), &g->dense, 0);
    if (g->conf.n_expert > 0)
        t[n_task++] =
            product(&l->router, ops_act_rows(&g->route_in, 0, n), g->route, g->conf.n_expert);
    for (uint32_t i = 1; i < n_task; i++)
        t[i].need = &t[0];
    ops_run(&g->ops, t, n_task);
    trace(g, "attn", g->x, d);
}

/* The experts each row goes to, and the rows of each expert. */
static void route_rows(struct gemma4 *g) {
    const struct gemma4_conf *c = &g->conf;

    ops_each(&g->ops, g->n_row, c->n_expert * sizeof(float) * 4, route, g);
    trace_route(g);
    group_rows(&g->group, g->exp_id, g->exp_weight, g->n_row);
    heat_add(&g->heat, g->i_layer, &g->group);
    g->model.n_expert_read += g->group.n_expert;
    gemma4_experts_begin(g);
}

/* Return: 0, MODEL_STOPPED, or -errno. */
static int feed_forward(struct gemma4 *g) {
    const struct gemma4_layer *l = g->l;
    const struct gemma4_conf *c = &g->conf;
    uint32_t n = g->n_row, n_task = 0;
    struct ops_task *t = g->task, *mid = t, *gathered = NULL;
    int r = 0;

    feed_forward_up(g);
    enter(g, GEMMA4_DENSE_DOWN);
    t[n_task++] = rows(g, dense_mid, l->conf->n_ff * sizeof(float));
    if (c->n_expert > 0) {
        route_rows(g);
        gathered = &t[n_task++];
        *gathered = gemma4_experts_gather(g);
    }
    t[n_task] = product(&l->down, ops_act_rows(&g->dense, 0, n), g->y, c->n_embd);
    t[n_task++].need = mid;
    if (c->n_expert > 0)
        r = gemma4_experts(g, gathered, n_task);
    else
        ops_run(&g->ops, t, n_task);
    g->open = l;
    return r;
}

static void head_in(void *arg, uint32_t i, uint32_t worker) {
    const struct gemma4 *g = arg;
    uint32_t r = g->out_row[i];

    join(g, r);
    norm_into(g, g->out_norm, &g->in, i, g->x + (size_t)r * g->conf.n_embd);
}

static void head(struct gemma4 *g) {
    struct ops_task *t = g->task;
    uint32_t n_out = 0;

    for (uint32_t r = 0; r < g->n_row; r++)
        if (g->row[r].out)
            g->out_row[n_out++] = r;
    if (n_out == 0)
        return;
    enter(g, GEMMA4_HEAD);
    ops_act_shape(&g->in, g->conf.n_embd, OPS_F32 | ops_form(g->ops.exact, &g->head));
    t[0] = rows(g, head_in, g->conf.n_embd * sizeof(float) * 12);
    t[0].n_item = n_out;
    t[1] = product(&g->head, ops_act_rows(&g->in, 0, n_out), g->logits, g->conf.n_vocab);
    t[1].softcap = g->conf.softcap;
    t[1].need = &t[0];
    ops_run(&g->ops, t, 2);
}

static void begin(struct gemma4 *g, struct kvcache *kv, const struct model_row *row, uint32_t n_row,
                  const atomic_bool *stop) {
    g->kv = kv;
    g->row = row;
    g->n_row = n_row;
    g->open = NULL;
    g->ops.stop = stop;
    enter(g, GEMMA4_EMBED);
    attn_begin(&g->at, kv, row, n_row);
    ops_each(&g->ops, n_row, (g->conf.head_dim + g->conf.head_dim_sliding) * 100, angles, g);
}

/* Layer @i, attention and feed-forward, on the residual stream. Its branches join the stream when
 * the next layer begins, or, when somebody looks at the stream, at once. */
static int run_layer(struct gemma4 *g, uint32_t i, bool whole) {
    int r;

    g->i_layer = i;
    g->l = &g->layer[i];
    atomic_fetch_add_explicit(&g->model.n_beat, 1, memory_order_relaxed);
    if (ops_stopped(&g->ops))
        return MODEL_STOPPED;
    attention(g);
    if (ops_stopped(&g->ops))
        return MODEL_STOPPED;
    r = feed_forward(g);
    if (r != 0)
        return err_up(r);
    if (whole) {
        ops_each(&g->ops, g->n_row, g->conf.n_embd * sizeof(float) * 12, layer_out, g);
        g->open = NULL;
        trace(g, "out", g->x, g->conf.n_embd);
    }

    return ops_stopped(&g->ops) ? MODEL_STOPPED : 0;
}

static int run(struct gemma4 *g, const float **ret_logits) {
    int r;

    ops_each(&g->ops, g->n_row, g->conf.n_embd * sizeof(float), embed, g);
    g->i_layer = 0;
    trace(g, "embd", g->x, g->conf.n_embd);
    for (uint32_t i = 0; i < g->conf.n_layer; i++) {
        r = run_layer(g, i, g->model.trace);
        if (r != 0)
            return err_up(r);
    }
    head(g);
    if (ops_stopped(&g->ops))
        return MODEL_STOPPED;
    *ret_logits = g->logits;
    return 0;
}

int gemma4_step(struct model *m, struct kvcache *kv, const struct model_row *row, uint32_t n_row,
                const atomic_bool *stop, const float **ret_logits) {
    struct gemma4 *g = (struct gemma4 *)m;
    int r;

    r = g->store ? store_step(g->store, n_row) : 0;
    if (r < 0)
        return err_up(r);
    begin(g, kv, row, n_row, stop);
    r = run(g, ret_logits);
    ops_enter(&g->ops, &g->ops.outside);

    return r;
}

int gemma4_run_layer(struct model *m, struct kvcache *kv, uint32_t layer,
                     const struct model_row *row, uint32_t n_row, float *x) {
    struct gemma4 *g = (struct gemma4 *)m;
    size_t size = (size_t)n_row * g->conf.n_embd * sizeof *x;
    int r = g->store ? store_step(g->store, n_row) : 0;

    if (r < 0)
        return err_up(r);
    begin(g, kv, row, n_row, NULL);
    memcpy(g->x, x, size);
    r = run_layer(g, layer, true);
    ops_enter(&g->ops, &g->ops.outside);
    memcpy(x, g->x, size);

    return r;
}
