/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/moe/group.h"

#include <assert.h>
#include <string.h>

void group_init(struct group *g, uint32_t n_expert, uint32_t n_row, uint32_t k, struct arena *a) {
    size_t n_slot = (size_t)n_row * k;

    *g = (struct group){ .n_expert_max = n_expert, .n_row_max = n_row, .k = k };
    g->expert = arena_alloc(a, n_expert < n_slot ? n_expert : n_slot, sizeof *g->expert);
    g->row = arena_alloc(a, n_slot, sizeof *g->row);
    g->weight = arena_alloc(a, n_slot, sizeof *g->weight);
    g->next = arena_alloc(a, n_expert, sizeof *g->next);
}

void group_rows(struct group *g, const uint32_t *id, const float *weight, uint32_t n_row) {
    uint32_t at = 0;

    assert(n_row <= g->n_row_max);
    memset(g->next, 0, g->n_expert_max * sizeof *g->next);
    for (size_t i = 0; i < (size_t)n_row * g->k; i++)
        g->next[id[i]]++;

    g->n_expert = 0;
    for (uint32_t e = 0; e < g->n_expert_max; e++) { /* counts become first slots */
        uint32_t n = g->next[e];

        g->next[e] = at;
        if (n > 0)
            g->expert[g->n_expert++] = (struct group_expert){ .id = e, .first = at, .n = n };
        at += n;
    }
    for (uint32_t r = 0; r < n_row; r++)
        for (uint32_t i = 0; i < g->k; i++) {
            uint32_t slot = g->next[id[(size_t)r * g->k + i]]++;

            g->row[slot] = r;
            g->weight[slot] = weight[(size_t)r * g->k + i];
        }
}
