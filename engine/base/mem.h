/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * mem - big memory, straight from the kernel
 *
 * A mapping costs address space only; a page costs memory from its first write on. Fresh pages
 * read as 0.
 */

#include <stdbool.h>
#include <stddef.h>

#include "engine/base/err.h"

/* Bytes of a huge page, or a multiple of it, on every machine we know. */
enum { MEM_HUGE = 2 << 20 };

/**
 * mem_map() - map anonymous memory, readable and writable, without reserving it
 * @size:       bytes, >= 1
 * @huge:       ask for huge pages: for memory that is used whole and often. A hint; small mappings
 *              ignore it.
 * @ret_p:      the mapping, MEM_HUGE-aligned when @huge took effect, else page-aligned:
 *              mem_unmap()
 *
 * Return: 0 or -errno (-ENOMEM: more address space than there is).
 */
int mem_map(size_t size, bool huge, void **ret_p);
/* @size: as mapped. @p may be NULL. */
void mem_unmap(void *p, size_t size);
