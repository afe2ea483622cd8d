/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * heat - how often each expert was used lately: which may leave memory when it is short
 *
 * A row that goes to an expert counts once. When a layer's counts have added up to HEAT_AGE rows a
 * used expert, all are halved: what was used long ago counts for little, and time without work for
 * nothing.
 *
 * Owner:   the engine thread.
 * Memory:  the caller's arena, sized at heat_init().
 */

#include <stdint.h>

#include "engine/base/arena.h"
#include "engine/moe/group.h"

enum {
    HEAT_AGE = 4096,     /* rows after which a layer's counts are halved */
    HEAT_COLD_SHARE = 20 /* cold experts together had at most one of so many uses of a layer */
};

struct heat {
    uint32_t n_layer, n_expert, k;
    uint32_t *n;   /* [n_layer][n_expert] uses, aged */
    uint32_t *sum; /* [n_layer] of them */
    uint32_t *by;  /* [n_expert] scratch */
};

/* Lays out @h, @n_expert >= 1 of which a row uses @k; @a.failed tells whether it fit. */
void heat_init(struct heat *h, uint32_t n_layer, uint32_t n_expert, uint32_t k, struct arena *a);

/* The rows of a step were grouped for layer @layer. */
void heat_add(struct heat *h, uint32_t layer, const struct group *g);

/**
 * heat_cold() - the experts of a layer that are used least
 * @ret_id:     [n_expert], the coldest first; borrowed until the next call
 *
 * As many as together had no more than a HEAT_COLD_SHARE-th of the layer's uses: where all are used
 * alike these are few, and where nothing was used yet, all.
 * Return: their number.
 */
uint32_t heat_cold(struct heat *h, uint32_t layer, const uint32_t **ret_id);
