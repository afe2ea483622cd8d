/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fetch-how - what fetch.c and the ways to read share
 */

#include "engine/moe/fetch.h"

struct fetch_read {
    uint8_t *to;
    size_t size;
    uint64_t at;
    uint32_t tag;
    uint32_t next_free; /* of those not under way */
};

struct fetch_way {
    const char *name;
    /* Return: 0 or -errno: it can not be done this way. */
    int (*init)(struct fetch *f);
    void (*deinit)(struct fetch *f); /* nothing is under way */
    /* Begin to read what is left of the read. */
    void (*begin)(struct fetch *f, uint32_t read);
    /* Return: is one over? @ret_n: bytes, or -errno */
    bool (*next)(struct fetch *f, uint32_t wait_msec, uint32_t *ret_read, int64_t *ret_n);
};

extern const struct fetch_way fetch_uring, fetch_thread;

struct fetch {
    const struct fetch_way *way;
    void *state; /* of the way */
    const struct pool *pool;
    int fd;
    uint32_t depth, n, first_free;
    struct fetch_read *read; /* [depth] */
};
