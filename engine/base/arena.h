/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * arena - memory sized once, handed out piece by piece, given back whole
 *
 * The same layout code runs twice: over a measuring arena, which only counts, and then over one of
 * exactly that size.
 *
 *     arena_measure(&a);            lay_out(m, &a);   // pointers are not to be used
 *     arena_init(&b, a.used, why);  lay_out(m, &b);   // every piece fits
 *
 * Owner:   one thread at a time.
 * Memory:  one mapping, zeroed, touched as used; huge pages where the kernel gives them.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

enum { ARENA_ALIGN = 64 }; /* every piece begins at a multiple of this */

struct arena {
    uint8_t *base; /* NULL: measuring, or empty */
    size_t size;   /* bytes mapped; SIZE_MAX while measuring */
    size_t used;   /* bytes handed out, with their padding */
    bool failed;   /* a piece did not fit since arena_init() or arena_measure() */
};

/* Return: 0 or -ENOMEM, and then @why says how much was asked for. */
int arena_init(struct arena *a, size_t size, struct why *why);
void arena_measure(struct arena *a);
/* Unmaps. Every piece is gone; @a is empty. Zero-initialised is fine. */
void arena_deinit(struct arena *a);

/* Room for @n elements of @size bytes each; both may be 0.
 * Return: ARENA_ALIGN-aligned and zeroed, not to be freed; NULL (and .failed) when it does not fit
 * or n * size overflows. A measuring arena returns an address that faults when it is used. */
void *arena_alloc(struct arena *a, size_t n, size_t size);

/* Go on behind the first @used bytes: what follows shares memory with the pieces that lay there,
 * which nobody may need at the same time. Return: where the arena stood. */
size_t arena_seek(struct arena *a, size_t used);
