/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * pack - interleave rows of blocks, the same for every tier that packs
 *
 * A block is cut into the pieces its kernel loads: scales of one or two bytes, codes of four. A
 * packed block holds each piece of all rows side by side: piece 0 of row 0, of row 1, ..., piece 1
 * of row 0, ... With 16 rows a vector of 64 bytes is four bytes of codes of each row, and one lane
 * is one row. Pieces keep the order they had in the plain block, but those of Q6_K, see pack.c.
 * Floats are pieces themselves.
 * Q2_K and Q3_K are not packed: their kernels read them as they are in the file.
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/kern/kern.h"

/* A format's loop is one function with everything in it. Sanitizers' checks make that so large that
 * clang 14 works on it for minutes, so under them the pieces stay functions, and loops loops. */
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define PACK_INLINE static inline
#pragma clang diagnostic ignored "-Wpass-failed"
#endif
#endif
#ifndef PACK_INLINE
#define PACK_INLINE static inline __attribute__((always_inline))
#endif

/* Interleave @n_row rows, @src_stride bytes apart. */
void kern_pack_rows(enum quant_fmt fmt, uint32_t n_row, const void *src, size_t src_stride,
                    uint32_t n_col, void *dst);

/* Row @row of a group of @n_row, decoded by quant_decode(). */
void kern_pack_decode(enum quant_fmt fmt, uint32_t n_row, const void *group, uint32_t row,
                      uint32_t n_col, float *dst);

/* What a tier binds of struct kern.pack, from the second file of its library. */
void kern_pack_avx2(struct kern *k);
void kern_pack_avx512vnni(struct kern *k);
void kern_float_avx512vnni(struct kern *k);
void kern_pack_neon(struct kern *k);
