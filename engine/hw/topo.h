/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * topo - the machine as plain structs: memory nodes, cores, caches, and what we may use of them
 *
 * Usable CPUs are the allowed cpuset, one per core (SMT siblings after all first threads), and no
 * more of them than the cgroup's CPU quota pays for; then those are spread over the cores evenly.
 *
 * Owner:   whoever made it; immutable afterwards.
 * Source:  hwloc; topo-fallback.c without it reads sched_getaffinity(2).
 */

#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct topo_cpu {
    uint32_t os;         /* the kernel's number */
    uint32_t core;       /* logical index of its core */
    uint32_t node;       /* logical index of its memory node: the nearest that has memory */
    uint32_t node_os;    /* the kernel's number of that */
    uint32_t cache;      /* logical index of its L3 cache */
    uint64_t cache_size; /* bytes of that, 0: unknown, and then cache is 0 */
    uint64_t node_size;  /* bytes of the node's memory, 0: unknown */
    uint32_t sibling;    /* 0: first thread of its core, 1: second, … */
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

enum {
    TOPO__OK,

    TOPO_UNSUPPORTED, /* topo_new_from(): made-up machines need hwloc */
};

/* This machine, or the one $HWLOC_SYNTHETIC or $HWLOC_XMLFILE describe. Return: 0 or -errno. */
int topo_new(struct topo **ret_topo);
/* For tests: the machine an hwloc synthetic string describes (NULL: this one), with a quota of
 * @quota CPUs (0: none). Return: 0, TOPO_UNSUPPORTED, or -errno. */
int topo_new_from(struct topo **ret_topo, const char *synthetic, uint32_t quota);
struct topo *topo_free(struct topo *t);
AUTO_DEFINE(struct topo *, topo_free)

/* Workers that compute by default: one a usable core, within the quota, at least 1. */
uint32_t topo_n_worker(const struct topo *t);
