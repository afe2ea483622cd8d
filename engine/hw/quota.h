/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * quota - how many CPUs and how much memory the control group pays for
 *
 * Source: Documentation/admin-guide/cgroup-v2.rst (cpu.max, memory.max), scheduler/sched-bwc.rst
 *         (cpu.cfs_quota_us) and cgroup-v1/memory.rst (memory.limit_in_bytes, memory.stat) of the
 *         Linux kernel.
 */

#include <stdint.h>

/* The tightest CPU bandwidth of this process's control group and all above it, v2 and v1, in whole
 * CPUs, rounded up. @root: "", or a directory that stands for "/" in tests.
 * Return: CPUs, 0: no limit, or none that can be read. */
uint32_t quota_cpu(const char *root);

/* Bytes of memory to be had: free or free at once, and no more than what the control groups allow
 * besides what they use. The page cache counts as free. UINT64_MAX: not known. */
uint64_t quota_memory(const char *root);

/* The same, without what this process has mapped of files: what others can have before a page of
 * ours has to go. */
uint64_t quota_spare(const char *root);
