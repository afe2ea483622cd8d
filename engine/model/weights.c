/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/weights.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"

enum { WEIGHTS_ALIGN = 128 /* of a tensor's first group */ };

int weights_init(struct weights *w, const struct gguf *gguf) {
    *w = (struct weights){ .gguf = gguf };
    w->place = calloc(gguf_n_tensor(gguf) + 1, sizeof *w->place);
    return w->place ? 0 : err_new(-ENOMEM);
}

void weights_deinit(struct weights *w) {
    mem_unmap(w->base, w->size);
    free(w->place);
    *w = (struct weights){ 0 };
}

/* Tensors are one array. */
static struct weights_place *place_of(const struct weights *w, const struct tensor *t) {
    return &w->place[t - gguf_tensor_at(w->gguf, 0)];
}

int weights_plan(struct weights *w, const struct tensor *t, uint32_t n_out,
                 const struct kern_pack *pack) {
    struct weights_place *p = place_of(w, t);
    size_t end;

    if (p->pack || !pack->n_row || n_out % pack->n_row)
        return 0;
    if (__builtin_add_overflow(w->size, t->size, &end) ||
        __builtin_add_overflow(end, WEIGHTS_ALIGN - 1, &end))
        return err_new(-ENOMEM);
    *p = (struct weights_place){ .pack = pack, .at = w->size };
    w->size = end & ~(size_t)(WEIGHTS_ALIGN - 1);
    return 0;
}

int weights_map(struct weights *w, uint64_t max) {
    void *p;
    int r;

    if (w->size == 0)
        return 0;
    if (w->size > max) {
        memset(w->place, 0, gguf_n_tensor(w->gguf) * sizeof *w->place);
        w->size = 0;
        return WEIGHTS_LARGE;
    }
    r = mem_map(w->size, true, &p);
    if (r < 0)
        return err_up(r);
    w->base = p;
    return 0;
}

const void *weights_at(const struct weights *w, const struct tensor *t,
                       const struct kern_pack **ret_pack) {
    const struct weights_place *p = place_of(w, t);

    *ret_pack = w->base ? p->pack : NULL;
    return *ret_pack ? w->base + p->at : t->data;
}
