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
        pack = w->plan->n_shard > 1 ? &plain : NULL;
    if (p->pack || !pack)
        return 0;
    assert(cut->unit % pack->n_row == 0);
    if (__builtin_add_overflow(w->size, t->size, &w->size))
        return err_new(-ENOMEM);
    *p = (struct weights_place){ .pack = pack, .cut = *cut };
    return 0;
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

/* A shard's rows of all matrices of a tensor, from @at bytes behind @base on. Return: their end. */
static size_t lay_out_tensor(struct weights *w, uint32_t i, uint32_t shard, uint8_t *base,
                             size_t at) {
    const struct tensor *t = gguf_tensor_at(w->gguf, i);
    struct weights_place *p = &w->place[i];
    const struct weights_cut *c = &p->cut;
    size_t stride = quant_row_size(t->fmt, t->ne[0]);

    at = (at + WEIGHTS_ALIGN - 1) & ~(size_t)(WEIGHTS_ALIGN - 1);
    if (shard == 0)
        p->at = at;
    for (uint32_t m = 0; m < n_matrix(p, t); m++) {
        struct plan_part *part = &p->part[m * w->plan->n_shard + shard];
        uint32_t turn = c->turn + m / c->alike;

        part->data = base ? base + at : NULL;
        part->end = plan_cut(w->plan, c->n_out, c->unit, turn, shard + 1);
        at += (part->end - plan_cut(w->plan, c->n_out, c->unit, turn, shard)) * stride;
    }
    return at;
}

int weights_lay_out(struct weights *w, uint8_t *base) {
    size_t at = 0;
    int r = w->part ? 0 : make_parts(w);

    if (r < 0)
        return err_up(r);
    for (uint32_t s = 0; s < w->plan->n_shard; s++) {
        at = (at + IMAGE_SLAB - 1) & ~(size_t)(IMAGE_SLAB - 1); /* none is of two nodes */
        w->shard[s].at = at;
        for (uint32_t i = 0; i < gguf_n_tensor(w->gguf); i++)
            if (w->place[i].pack)
                at = lay_out_tensor(w, i, s, base, at);
        w->shard[s].size = at - w->shard[s].at;
    }
    w->size = at;
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

const struct plan_part *weights_parts(const struct weights *w, const struct tensor *t) {
    return w->base && w->plan->n_shard > 1 ? place_of(w, t)->part : NULL;
}
