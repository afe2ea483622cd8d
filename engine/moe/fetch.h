/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fetch - reads of a file, several at a time, that nobody waits for until they are needed
 *
 * By io_uring, or, where the kernel refuses that, as in many containers, or the library is not
 * there, by a thread a read. Either way a read is whole or has failed.
 *
 * Owner:   one thread.
 * Memory:  fixed at fetch_new().
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/hw/pool.h"

struct fetch;

/**
 * fetch_new() - prepare to read
 * @fd:         borrowed; with O_DIRECT, reads must be aligned as the file system wants
 * @depth:      reads at a time, >= 1
 * @pool:       its CPUs are those that threads run on; NULL: any
 * @no_uring:   by threads in any case
 *
 * Return: 0 or -errno.
 */
int fetch_new(struct fetch **ret_fetch, int fd, uint32_t depth, const struct pool *pool,
              bool no_uring);
/* Waits for what is under way. */
struct fetch *fetch_free(struct fetch *f);
AUTO_DEFINE(struct fetch *, fetch_free)

/* Reads that may begin now, and reads under way. */
uint32_t fetch_room(const struct fetch *f);
uint32_t fetch_n(const struct fetch *f);
/* Begin to read [@at, @at + @size) to @to; there is room. @tag comes back when it is over. */
void fetch_begin(struct fetch *f, void *to, size_t size, uint64_t at, uint32_t tag);
/**
 * fetch_next() - take a read that is over
 * @wait_msec:  to wait at most until there is one; 0: not at all
 * @ret_r:      0, -ENODATA: the file ends before, or -errno
 *
 * Return: is there one?
 */
bool fetch_next(struct fetch *f, uint32_t wait_msec, uint32_t *ret_tag, int *ret_r);
/* How they are done: "io_uring" or "threads". */
const char *fetch_how(const struct fetch *f);
