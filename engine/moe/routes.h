/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * routes - which experts every row went to, as bytes that can be kept and replayed
 *
 *   0              struct routes_head
 *   behind it      steps, one after the other, to the end:
 *                      uint32_t             n_row, >= 1
 *                      uint16_t [n_layer][n_row][k]    experts, distinct within a row
 *
 * Integers are in the machine's order; the version read in the other order is another version.
 * There is no padding. A token that is decoded is a step of one row for each sequence in it; a
 * prompt's tokens are steps of many.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

enum {
    ROUTES__OK,

    ROUTES_BAD, /* damaged, cut short, or of another version; @why says where */
};

enum {
    ROUTES_VERSION = 1,
    ROUTES_LAYER_MAX = 1024,
    ROUTES_EXPERT_MAX = 4096, /* a layer */
    ROUTES_ROW_MAX = 65536    /* a step */
};

#define ROUTES_MAGIC "MOEDROUT"

struct routes_head {
    char magic[8];
    uint32_t version;
    uint32_t n_layer, n_expert, k;
};

struct routes {
    uint32_t n_layer, n_expert, k;
    uint64_t n_step, n_row;
    const uint8_t *step; /* the first, borrowed */
    size_t size;         /* of all steps */
};

struct routes_step {
    uint32_t n_row;
    const uint16_t *id; /* [n_layer][n_row][k] */
};

/**
 * routes_open() - check all of a recording
 * @buf:        borrowed by @ret, aligned like a uint16_t
 *
 * Return: 0 or ROUTES_BAD.
 */
int routes_open(struct routes *ret, const void *buf, size_t size, struct why *why);
/* The step at @at, which is 0 at first and then moves on. Return: is there one? */
bool routes_next(const struct routes *r, size_t *at, struct routes_step *ret);

/* The head of a recording whose steps follow. */
struct routes_head routes_begin(uint32_t n_layer, uint32_t n_expert, uint32_t k);
