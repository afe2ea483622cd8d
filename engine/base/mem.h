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
#include <stdint.h>

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

/* Take memory for [@p, @p + @size), page-aligned, from node @node, or another when it has none;
 * only for pages not written yet. Return: 0, or -errno when there is no such node, or the kernel
 * refuses: then pages come from the node of whoever writes first. */
int mem_on_node(void *p, size_t size, uint32_t node);

/* Until the next call, pages that the calling thread is the first to need, a file's as well, come
 * from node @node, or another when it has none; MEM_ANY_NODE: from the one it runs on.
 * Return: 0, or -errno as above. */
enum { MEM_ANY_NODE = INT32_MAX };
int mem_prefer_node(uint32_t node);
/* Let the kernel take the whole pages in [@p, @p + @size): at once where it can read them again,
 * from a file that is ours or from swap, else before others when it needs some. Not those that are
 * locked. Nothing is lost. */
void mem_cool(const void *p, size_t size);
/* Keep all pages of [@p, @p + @size) in memory, read in first, or no longer.
 * Return: 0 or -errno (-ENOMEM, -EPERM: RLIMIT_MEMLOCK). */
int mem_lock(void *p, size_t size, bool lock);

/* Put bytes [@at, @at + @size) of a file, read-only and shared, in the place of a part of a
 * mapping, or fresh pages again. Whoever reads there meanwhile sees what was there or what is.
 * @p, @at: page-aligned; with both at the same place in a huge page the kernel may use those
 * Return: 0 or -errno. */
int mem_put_file(void *p, size_t size, int fd, uint64_t at);
/* The same, to be written to: the file changes with it. */
int mem_put_shared(void *p, size_t size, int fd, uint64_t at);
int mem_put_fresh(void *p, size_t size);

/* Bytes of [@p, @p + @size) that huge pages hold now, at most: what the kernel joined to it counts
 * as well, as far as it is no larger. 0 also when the kernel does not tell. */
uint64_t mem_huge(const void *p, size_t size);
