/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * group - the rows of a step, sorted by the expert they go to
 *
 * Every row uses k experts, so there are n_row * k slots. Slots of one expert are consecutive and
 * in the order of their rows; each distinct expert is then read once for all its rows.
 *
 * Owner:   the engine thread fills it, workers read.
 * Memory:  the caller's arena, sized at group_init().
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/arena.h"

struct group_expert {
    uint32_t id;    /* which expert */
    uint32_t first; /* its first slot */
    uint32_t n;     /* its slots, >= 1 */
};

struct group {
    uint32_t n_expert_max, n_row_max, k;
    uint32_t n_expert;           /* distinct experts in use */
    struct group_expert *expert; /* [n_expert], ascending ids */
    uint32_t *row;               /* [n_slot] row a slot belongs to */
    float *weight;               /* [n_slot] of the slot's expert in its row */
    uint32_t *next;              /* [n_expert_max] scratch */
};

/* Lays out @g for up to @n_row rows; @a.failed tells whether it fit. */
void group_init(struct group *g, uint32_t n_expert, uint32_t n_row, uint32_t k, struct arena *a);

/* @id: [n_row][k] experts of each row, distinct within a row, < n_expert   @weight: [n_row][k] */
void group_rows(struct group *g, const uint32_t *id, const float *weight, uint32_t n_row);

/* Do the rows of @e follow each other? */
static inline bool group_together(const struct group *g, const struct group_expert *e) {
    return g->row[e->first + e->n - 1] - g->row[e->first] == e->n - 1;
}
