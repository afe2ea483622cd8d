/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/moe/heat.h"

#include <assert.h>
#include <stdlib.h>

void heat_init(struct heat *h, uint32_t n_layer, uint32_t n_expert, uint32_t k, struct arena *a) {
    *h = (struct heat){ .n_layer = n_layer, .n_expert = n_expert, .k = k };
    h->n = arena_alloc(a, (size_t)n_layer * n_expert, sizeof *h->n);
    h->sum = arena_alloc(a, n_layer, sizeof *h->sum);
    h->by = arena_alloc(a, n_expert, sizeof *h->by);
}

static void age(struct heat *h, uint32_t layer, uint32_t *n) {
    h->sum[layer] = 0;
    for (uint32_t e = 0; e < h->n_expert; e++)
        h->sum[layer] += n[e] /= 2;
}

void heat_add(struct heat *h, uint32_t layer, const struct group *g) {
    uint32_t *n = h->n + (size_t)layer * h->n_expert;

    assert(layer < h->n_layer && g->n_expert_max == h->n_expert);
    for (uint32_t i = 0; i < g->n_expert; i++) {
        n[g->expert[i].id] += g->expert[i].n;
        h->sum[layer] += g->expert[i].n;
    }
    while (h->sum[layer] / h->k >= HEAT_AGE)
        age(h, layer, n);
}

/* The colder first, then the lower number. */
static int colder(const void *a, const void *b, void *arg) {
    const uint32_t *x = a, *y = b, *n = arg;

    return n[*x] != n[*y] ? (n[*x] < n[*y] ? -1 : 1) : (*x < *y ? -1 : 1);
}

uint32_t heat_cold(struct heat *h, uint32_t layer, const uint32_t **ret_id) {
    uint32_t *n = h->n + (size_t)layer * h->n_expert, n_cold = 0, left;

    for (uint32_t e = 0; e < h->n_expert; e++)
        h->by[e] = e;
    qsort_r(h->by, h->n_expert, sizeof *h->by, colder, n);
    left = h->sum[layer] / HEAT_COLD_SHARE;
    while (n_cold < h->n_expert && n[h->by[n_cold]] <= left)
        left -= n[h->by[n_cold++]];

    *ret_id = h->by;
    return n_cold;
}
