/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * store - experts that are read from a file when they are needed, and the slots of memory for them
 *
 * An expert is one record of the file: all its matrices, one behind the other. A layer says which
 * it needs; those that are here come first, and the others as they arrive, while reads go on. Which
 * one makes room is policy.h's choice.
 *
 *   store_step()
 *   each layer:  store_want(), then store_next() until it gives none
 *
 * Owner:   the engine thread; what store_next() gives is read by workers until the next call. Any
 *          thread may ask for store_stats().
 * Memory:  fixed at store_new(); a slot takes memory from its first use on.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/hw/pool.h"
#include "engine/moe/group.h"

enum {
    STORE__OK,

    STORE_STOPPED, /* *stop was seen */
};

enum {
    STORE_ALIGN = 4096, /* of records, in file and memory */
    STORE_DEPTH = 8,    /* reads at a time: as many as a token needs experts of a layer */
    STORE_SLOT_MIN = 2, /* one to compute with, one to read into */
};

struct store;

/* The records of a layer's experts, one behind the other. */
struct store_layer {
    uint64_t at; /* in the file, a multiple of STORE_ALIGN */
    size_t size; /* of a record, too */
};

struct store_options {
    const char *name;                /* of the file, for sentences; borrowed for the call */
    int fd;                          /* borrowed */
    const struct store_layer *layer; /* [n_layer]; borrowed for the call */
    uint32_t n_layer, n_expert;
    uint64_t bytes;          /* of memory for slots; at least STORE_SLOT_MIN there are */
    const struct pool *pool; /* NULL: threads run anywhere */
    bool no_uring;           /* read by threads in any case */
};

/* Return: 0 or -errno with @why. */
int store_new(struct store **ret_store, const struct store_options *opt, struct why *why);
struct store *store_free(struct store *s);
AUTO_DEFINE(struct store *, store_free)

/* A step of @n_row rows begins. Return: 0, or -errno: the file is not what it was, see
 * store_why(). */
int store_step(struct store *s, uint32_t n_row);

/* The experts in use of @g, of layer @layer, are needed; those of the layer before no longer. */
void store_want(struct store *s, uint32_t layer, const struct group *g);

struct store_here {
    uint32_t i; /* of the group's experts */
    const uint8_t *data;
};
/**
 * store_next() - the wanted experts that are here now and were not given before
 * @wait:       until there is one, unless all were given
 * @stop:       looked at while waiting; NULL: never
 * @ret_here:   [n wanted]; theirs until the next call
 * @ret_n:      0, after waiting: all were given
 *
 * Return: 0, STORE_STOPPED, or -errno: a read failed, see store_why(). On anything but 0 nothing is
 * wanted any more.
 */
int store_next(struct store *s, bool wait, const atomic_bool *stop, struct store_here *ret_here,
               uint32_t *ret_n);
/* Nothing is wanted any more. */
void store_leave(struct store *s);
/* What failed last. */
const char *store_why(const struct store *s);

struct store_stats {
    uint32_t n_slot;
    uint64_t slot_bytes;   /* of all slots */
    uint64_t hits, misses; /* experts that layers needed, here already or not */
    uint64_t read_bytes;
    uint64_t read_nsec; /* while reads were under way */
    uint64_t wait_nsec; /* with nothing to compute but what had not arrived */
    uint64_t rows;      /* of steps */
    const char *how;    /* reads are done: "io_uring" or "threads" */
    bool direct;        /* around the page cache */
};
void store_stats(const struct store *s, struct store_stats *ret);
