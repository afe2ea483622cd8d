/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * topo - the machine as plain structs: memory nodes, cores, caches, and what we may use of them
 *
 * Usable CPUs are the allowed cpuset, one per core (SMT siblings after all first threads), and no
 * more of them than the cgroup's CPU quota pays for.
 *
 * Owner:   whoever made it; immutable afterwards.
 * Source:  hwloc; topo-fallback.c without it reads sched_getaffinity(2).
 */

#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct topo_cpu {
    uint32_t os;      /* the kernel's number */
    uint32_t core;    /* logical index of its core */
    uint32_t node;    /* logical index of its memory node */
    uint32_t sibling; /* 0: first thread of its core, 1: second, … */
};

struct topo {
    uint32_t n_cpu; /* usable CPUs, first threads of cores first */
    struct topo_cpu *cpu;
    uint32_t n_core; /* distinct cores among them */
    uint32_t n_node;
    uint64_t memory;    /* bytes of memory, all nodes */
    uint64_t l2, l3;    /* bytes of one cache, 0: unknown */
    uint32_t quota_cpu; /* CPUs the cgroup quota pays for, rounded up; 0: no quota */
};

/* Return: 0 or -errno. */
int topo_new(struct topo **ret_topo);
struct topo *topo_free(struct topo *t);
AUTO_DEFINE(struct topo *, topo_free)

/* Workers that compute by default: one a usable core, within the quota, at least 1. */
uint32_t topo_n_worker(const struct topo *t);
