/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/model/weights.h"

enum { WEIGHTS_ALIGN = 128 /* of a tensor's first group, in each shard */ };

/* Tensors are one array. */
static struct weights_place *place_of(const struct weights *w, const struct tensor *t) {
    return &w->place[t - gguf_tensor_at(w->gguf, 0)];
}

/* ---- rows that no kernel packs ---- */

static void copy_row(const void *src, size_t stride, uint32_t n_col, void *dst) {
    memcpy(dst, src, stride);
}

static const struct kern_pack plain = { .n_row = 1, .layout = "", .pack = copy_row };

/* ---- places ---- */

int weights_plan(struct weights *w, const struct tensor *t, const struct weights_cut *cut,
                 const struct kern_pack *pack) {
    struct weights_place *p = place_of(w, t);

    if (!pack->n_row || cut->n_out % pack->n_row)
        pack = w->plan->n_shard > 1 || (w->store && cut->n_expert > 0) ? &plain : NULL;
    w->expert_size += cut->n_expert > 0 ? t->size : 0;
    if (p->pack || !pack)
        return 0;
    assert(cut->unit % pack->n_row == 0);
    if (__builtin_add_overflow(w->size, t->size, &w->size))
        return err_new(-ENOMEM);
    *p = (struct weights_place){ .pack = pack, .cut = *cut };
    return 0;
}

void weights_forget(struct weights *w, bool store) {
    memset(w->place, 0, gguf_n_tensor(w->gguf) * sizeof *w->place);
    memset(w->shard, 0, w->plan->n_shard * sizeof *w->shard);
    free(w->part);
    w->part = NULL;
    w->size = w->expert_size = 0;
    w->store = store;
}

static uint32_t n_matrix(const struct weights_place *p, const struct tensor *t) {
    return (uint32_t)(t->ne[1] * t->ne[2] * t->ne[3] / p->cut.n_out);
}

static int make_parts(struct weights *w) {
    uint32_t n_tensor = gguf_n_tensor(w->gguf);
    size_t n = 0;

    for (uint32_t i = 0; i < n_tensor; i++)
        if (w->place[i].pack)
            n += n_matrix(&w->place[i], gguf_tensor_at(w->gguf, i));
    w->part = calloc(n * w->plan->n_shard, sizeof *w->part);
    if (!w->part)
        return err_new(-ENOMEM);
    n = 0;
    for (uint32_t i = 0; i < n_tensor; i++)
        if (w->place[i].pack) {
            w->place[i].part = w->part + n * w->plan->n_shard;
            n += n_matrix(&w->place[i], gguf_tensor_at(w->gguf, i));
        }
    return 0;
}

/* What is being laid out: a shard's rows, from @at bytes behind @base on. */
struct layout {
    struct weights *w;
    uint32_t shard;
    uint8_t *base; /* NULL: nowhere yet */
    size_t at;
};

static void align(struct layout *l, size_t to) {
    l->at = (l->at + to - 1) & ~(to - 1);
}

/* The first row of a shard. On disk, experts are not cut: all rows are the first one's. */
static uint32_t row_of(const struct layout *l, const struct weights_cut *c, uint32_t turn,
                       uint32_t shard) {
    if (l->w->store && c->n_expert > 0)
        return shard > 0 ? c->n_out : 0;
    return plan_cut(l->w->plan, c->n_out, c->unit, turn, shard);
}

/* Matrices @begin to @end - 1 of a tensor. */
static void lay_out_matrices(struct layout *l, uint32_t tensor, uint32_t begin, uint32_t end) {
    const struct plan *plan = l->w->plan;
    const struct tensor *t = gguf_tensor_at(l->w->gguf, tensor);
    struct weights_place *p = &l->w->place[tensor];
    const struct weights_cut *c = &p->cut;
    size_t stride = quant_row_size(t->fmt, t->ne[0]);

    align(l, WEIGHTS_ALIGN);
    if (l->shard == 0 && begin == 0)
        p->at = l->at;
    for (uint32_t m = begin; m < end; m++) {
        struct plan_part *part = &p->part[m * plan->n_shard + l->shard];
        uint32_t turn = c->turn + m / c->alike;

        part->data = l->base ? l->base + l->at : NULL;
        part->end = row_of(l, c, turn, l->shard + 1);
        l->at += (part->end - row_of(l, c, turn, l->shard)) * stride;
    }
}

/* Are the tensors of @a and @b of one layer's experts? */
static bool same_record(const struct weights_place *a, const struct weights_place *b) {
    return a->pack && b->pack && a->cut.n_expert == b->cut.n_expert && a->cut.turn == b->cut.turn;
}

/* The records of a layer, whose first tensor is @first. */
static void lay_out_records(struct layout *l, uint32_t first) {
    struct weights *w = l->w;
    const struct weights_place *p = &w->place[first];
    uint32_t n_expert = p->cut.n_expert;
    size_t begin = 0;

    for (uint32_t e = 0; e < n_expert; e++) {
        align(l, WEIGHTS_RECORD);
        if (e == 0)
            begin = l->at;
        for (uint32_t i = first; i < gguf_n_tensor(w->gguf); i++)
            if (same_record(p, &w->place[i])) {
                uint32_t n = n_matrix(&w->place[i], gguf_tensor_at(w->gguf, i)) / n_expert;

                lay_out_matrices(l, i, e * n, (e + 1) * n);
            }
    }
    align(l, WEIGHTS_RECORD);
    for (uint32_t i = first; i < gguf_n_tensor(w->gguf); i++)
        if (same_record(p, &w->place[i]))
            w->place[i].step = (l->at - begin) / n_expert;
}

static bool is_first(const struct weights *w, uint32_t tensor) {
    const struct weights_place *p = &w->place[tensor];

    for (uint32_t i = 0; i < tensor; i++)
        if (same_record(&w->place[i], p))
            return false;
    return p->pack && p->cut.n_expert > 0;
}

static void lay_out_all_records(struct layout *l) {
    for (uint32_t i = 0; i < gguf_n_tensor(l->w->gguf); i++)
        if (is_first(l->w, i))
            lay_out_records(l, i);
}

int weights_lay_out(struct weights *w, uint8_t *base) {
    uint32_t n = gguf_n_tensor(w->gguf);
    struct layout l = { .w = w, .base = base };
    int r = w->part ? 0 : make_parts(w);

    if (r < 0)
        return err_up(r);
    for (uint32_t s = 0; s < w->plan->n_shard; s++) {
        l.shard = s;
        align(&l, IMAGE_SLAB); /* none is of two nodes */
        w->shard[s].at = l.at;
        for (uint32_t i = 0; i < n; i++)
            if (w->place[i].pack && w->place[i].cut.n_expert == 0)
                lay_out_matrices(&l, i, 0, n_matrix(&w->place[i], gguf_tensor_at(w->gguf, i)));
        if (!w->store)
            lay_out_all_records(&l);
        w->shard[s].size = l.at - w->shard[s].at;
    }
    w->store_at = l.at;
    for (l.shard = 0; l.shard < w->plan->n_shard && w->store; l.shard++)
        lay_out_all_records(&l);
    w->size = l.at;
    return 0;
}

void weights_bind(struct weights *w) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    for (uint32_t s = 0; s < w->plan->n_shard && w->plan->n_shard > 1; s++) {
        const struct weights_shard *m = &w->shard[s];

        if (m->size && mem_on_node(w->base + m->at, (m->size + page - 1) & ~(page - 1),
                                   w->plan->shard[s].node_os) < 0)
            w->unbound = true;
    }
}

void weights_prefer(const struct weights *w, uint64_t at) {
    uint32_t s = w->plan->n_shard - 1;

    if (s == 0)
        return;
    while (s > 0 && at < w->shard[s].at)
        s--;
    (void)mem_prefer_node(w->plan->shard[s].node_os);
}

void weights_prefer_any(const struct weights *w) {
    if (w->plan->n_shard > 1)
        (void)mem_prefer_node(MEM_ANY_NODE);
}

uint8_t *weights_group_at(const struct weights *w, const struct weights_place *p, uint64_t row,
                          size_t stride) {
    const struct plan_part *part = &p->part[row / p->cut.n_out * w->plan->n_shard];
    uint32_t r = (uint32_t)(row % p->cut.n_out), begin = 0;

    for (; r >= part->end; part++)
        begin = part->end;
    return w->base + (part->data - w->base) + (r - begin) * stride;
}

const void *weights_at(const struct weights *w, const struct tensor *t,
                       const struct kern_pack **ret_pack) {
    const struct weights_place *p = place_of(w, t);
    bool here = w->base && p->pack;

    *ret_pack = here && p->pack != &plain ? p->pack : NULL;
    return here ? w->base + p->at : t->data;
}

size_t weights_step(const struct weights *w, const struct tensor *t) {
    const struct weights_place *p = place_of(w, t);

    if (w->base && p->pack && p->cut.n_expert > 0 && (w->store || w->plan->n_shard == 1))
        return p->step;
    return t->size / t->ne[2];
}

const struct plan_part *weights_parts(const struct weights *w, const struct tensor *t) {
    return w->base && w->plan->n_shard > 1 ? place_of(w, t)->part : NULL;
}
