/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>
#include <string.h>

#include "engine/hw/quota.h"
#include "engine/model/gemma4-priv.h"

/*
 * Experts of a layer, where they are in memory, or as a store reads them.
 *
 * What is summed into a row is summed in the order of the experts' numbers, whatever else is in the
 * step. With all of them in memory their products go straight into the sum. From a store they are
 * computed in the order in which they come; their products wait in rows of their own, and
 * are summed, the same way, when the layer is through.
 */

/* The rows of the i-th expert in use, one after the other; those that lie so already stay. */
static void expert_gather(void *arg, uint32_t i, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct group_expert *e = &g->group.expert[i];

    if (group_together(&g->group, e))
        return;
    for (uint32_t slot = e->first; slot < e->first + e->n; slot++)
        ops_act_copy(&g->slot_in, slot, &g->moe_in, g->group.row[slot]);
}

static void expert_mid(void *arg, uint32_t i, uint32_t worker) {
    const struct gemma4 *g = arg;
    const struct group_expert *e = &g->group.expert[i];

    for (uint32_t slot = e->first; slot < e->first + e->n; slot++)
        ops_act_done(&g->ops, &g->slot, slot);
}

struct ops_task gemma4_experts_gather(struct gemma4 *g) {
    size_t cost = g->conf.n_embd * 2 * g->n_row * g->conf.n_expert_used / g->group.n_expert;

    return (struct ops_task){
        .fn = expert_gather, .arg = g, .n_item = g->group.n_expert, .cost = cost
    };
}

/* Matrices of an expert. */
struct matrices {
    struct ops_mat gate, up, down;
};

static struct matrices in_memory(const struct gemma4_layer *l, uint32_t id) {
    return (struct matrices){
        .gate = ops_mat_next(&l->exp_gate, id, l->exp_gate_size, l->exp_gated_n),
        .up = ops_mat_next(&l->exp_up, id, l->exp_up_size, l->exp_gated_n),
        .down = ops_mat_next(&l->exp_down, id, l->exp_down_size, 1),
    };
}

/* Where the record of expert 0 would be in memory. */
static const uint8_t *record_of(const struct gemma4_layer *l) {
    const uint8_t *gate = l->exp_gate.data, *up = l->exp_up.data, *down = l->exp_down.data;
    const uint8_t *first = gate < up ? gate : up;

    return first < down ? first : down;
}

static struct ops_mat moved(const struct ops_mat *m, const uint8_t *from, const uint8_t *to) {
    struct ops_mat mat = *m;

    mat.data = to + ((const uint8_t *)m->data - from);
    mat.part = NULL;
    mat.n_part = 0;
    return mat;
}

static struct matrices in_slot(const struct gemma4_layer *l, const uint8_t *data) {
    const uint8_t *record = record_of(l);

    return (struct matrices){ .gate = moved(&l->exp_gate, record, data),
                              .up = moved(&l->exp_up, record, data),
                              .down = moved(&l->exp_down, record, data) };
}

/* Gate and up of the @i-th expert in use. @gathered: its input is there; NULL: long since */
static struct ops_task up_task(struct gemma4 *g, uint32_t i, const struct matrices *m,
                               struct ops_task *gathered) {
    const struct group_expert *e = &g->group.expert[i];

    return (struct ops_task){ .w = m->gate,
                              .w2 = m->up,
                              .x = group_together(&g->group, e)
                                       ? ops_act_rows(&g->moe_in, g->group.row[e->first], e->n)
                                       : ops_act_rows(&g->slot_in, e->first, e->n),
                              .y = ops_act_row(&g->slot, e->first),
                              .y_stride = g->slot.f_stride,
                              .need = gathered,
                              .done = expert_mid,
                              .done_arg = g,
                              .done_item = i };
}

static struct ops_task down_task(struct gemma4 *g, uint32_t i, const struct matrices *m,
                                 struct ops_task *up) {
    const struct group_expert *e = &g->group.expert[i];

    return (struct ops_task){ .w = m->down,
                              .x = ops_act_rows(&g->slot, e->first, e->n),
                              .y = g->moe,
                              .y_stride = g->conf.n_embd,
                              .need = up };
}

/* ---- in memory ---- */

static void run_all(struct gemma4 *g, struct ops_task *gathered, uint32_t n_task) {
    const struct group *group = &g->group;
    uint32_t n = group->n_expert;
    struct ops_task *t = g->task + n_task;

    for (uint32_t i = 0; i < n; i++) {
        const struct group_expert *e = &group->expert[i];
        struct matrices m = in_memory(g->l, e->id);

        t[i] = up_task(g, i, &m, gathered);
        t[n + i] = down_task(g, i, &m, &t[i]);
        t[n + i].row = group->row + e->first;
        t[n + i].weight = group->weight + e->first;
        t[n + i].n_y = g->n_row;
    }
    ops_run(&g->ops, g->task, n_task + 2 * n);
}

/* ---- from a store ---- */

/* Of each row its slots, in the order of the experts' numbers. */
static void list_slots(struct gemma4 *g) {
    uint32_t k = g->group.k;

    memset(g->n_listed, 0, g->n_row * sizeof *g->n_listed);
    for (uint32_t slot = 0; slot < g->n_row * k; slot++) {
        uint32_t r = g->group.row[slot];

        g->row_slot[(size_t)r * k + g->n_listed[r]++] = slot;
    }
}

void gemma4_experts_sum(const struct gemma4 *g, uint32_t r) {
    uint32_t d = g->conf.n_embd, k = g->group.k;
    float *y = g->moe + (size_t)r * d;

    memset(y, 0, d * sizeof *y);
    for (uint32_t i = 0; i < k; i++) {
        uint32_t slot = g->row_slot[(size_t)r * k + i];

        g->ops.kern->axpy(g->group.weight[slot], g->slot_out + (size_t)slot * d, y, d);
    }
}

/* What is here now, with the first @n_task tasks, if any. Return: 0, MODEL_STOPPED, or -errno. */
static int run_here(struct gemma4 *g, struct ops_task *gathered, uint32_t n_task, bool *ret_more) {
    struct ops_task *t = g->task + n_task;
    uint32_t n;
    int r = store_next(g->store, n_task == 0, g->ops.stop, g->here, &n);

    if (r != 0)
        return r == STORE_STOPPED ? MODEL_STOPPED : err_up(r);
    for (uint32_t i = 0; i < n; i++) {
        const struct store_here *here = &g->here[i];
        struct matrices m = in_slot(g->l, here->data);

        t[i] = up_task(g, here->i, &m, gathered);
        t[n + i] = down_task(g, here->i, &m, &t[i]);
        t[n + i].y = g->slot_out + (size_t)g->group.expert[here->i].first * g->conf.n_embd;
    }
    if (n_task + n > 0)
        ops_run(&g->ops, g->task, n_task + 2 * n);
    *ret_more = n_task > 0 || n > 0;
    return 0;
}

/* ---- both ---- */

void gemma4_experts_begin(struct gemma4 *g) {
    ops_act_shape(&g->slot_in, g->conf.n_embd, g->l->form_moe);
    ops_act_shape(&g->slot, g->conf.n_ff_exp, OPS_F32 | g->l->form_exp_down);
    if (g->store) {
        store_want(g->store, g->i_layer, &g->group);
        list_slots(g);
    }
}

int gemma4_experts(struct gemma4 *g, struct ops_task *gathered, uint32_t n_task) {
    bool more = true;
    int r = 0;

    if (!g->store) {
        run_all(g, gathered, n_task);
        return 0;
    }
    while (more && r == 0) {
        r = run_here(g, gathered, n_task, &more);
        gathered = NULL; /* the first time saw to that */
        n_task = 0;
    }
    return r;
}

/* Slots have what weights, keys and values, and steps leave of memory, less some for all else. */
static uint64_t store_room(const struct gemma4 *g) {
    uint64_t have = quota_memory(""), need = g->model.reserve + g->model.info.step_bytes;

    need += have / GEMMA4_MARGIN_SHARE + GEMMA4_MARGIN;
    return have > need ? have - need : 0;
}

int gemma4_open_store(struct gemma4 *g, struct why *why) {
    const struct weights *w = &g->model.weights;
    AUTO(free) struct store_layer *layer = calloc(g->conf.n_layer, sizeof *layer);
    struct store_options opt = { .name = "image of packed weights",
                                 .layer = layer,
                                 .n_layer = g->conf.n_layer,
                                 .n_expert = g->conf.n_expert,
                                 .bytes = g->model.expert_bytes,
                                 .pool = g->model.pool,
                                 .no_uring = g->model.no_uring };
    uint64_t data_at;

    if (!w->store)
        return 0;
    if (!layer)
        return err_new(-ENOMEM);
    opt.fd = weights_image(w, &data_at);
    for (uint32_t i = 0; i < g->conf.n_layer; i++)
        layer[i] = (struct store_layer){
            .at = data_at + (uint64_t)(record_of(&g->layer[i]) - w->base),
            .size = g->layer[i].exp_down_size,
        };
    if (opt.bytes > store_room(g)) /* also when that is chosen: MODEL_EXPERTS_AUTO is the most */
        opt.bytes = store_room(g);
    return err_up(store_new(&g->store, &opt, why));
}
