/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * sum - a 64-bit checksum, at about the speed of memory; against damage, not against malice
 *
 * Source: XXH64, as its specification (xxHash, doc/xxhash_spec.md) defines it. Little-endian words.
 */

#include <stddef.h>
#include <stdint.h>

/* @seed: 0, or the sum of what came before */
uint64_t sum_bytes(uint64_t seed, const void *p, size_t n);
