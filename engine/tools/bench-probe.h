/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bench-probe - how fast this machine reads memory, by our own measure
 */

#include <stdint.h>

#include "engine/hw/pool.h"
#include "engine/hw/topo.h"

/* All workers together read 1 GiB, or an eighth of memory where that is less, several times over.
 * @ret_rate: bytes a second of the fastest 64 MiB   @ret_size: bytes of the buffer
 * Return: 0 or -errno. */
int bench_probe(struct pool *p, const struct topo *t, double *ret_rate, uint64_t *ret_size);
