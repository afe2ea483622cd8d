/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * moectl-topology - the machine and the model in it, as the service tells
 *
 * Memory: @cpu is owned by whoever read it.
 */

#include "client/moectl.h"

enum { PLACE_SHARD_MAX = 256 };

struct place_cpu { /* sorted by node, cache, core and sibling */
    uint32_t cpu, core, node, cache, sibling;
    uint64_t node_bytes, cache_bytes;
    int shard; /* whose worker computes there, or -1 */
};

struct place {
    struct place_cpu *cpu; /* [n_cpu] */
    uint32_t n_cpu, n_node, n_cache, n_core, n_shard;
    uint32_t n_layer, n_expert, n_expert_used, n_worker;
    struct {
        uint32_t node, cache, n_worker;
        bool whole_node; /* no other shard is on its node */
        uint64_t bytes;
    } shard[PLACE_SHARD_MAX];
    char model[64]; /* "": none is loaded */
};

/* Which CPUs from @from on are of the same node (cache, core). Return: one past the last. */
uint32_t place_node_end(const struct place *p, uint32_t from);
uint32_t place_cache_end(const struct place *p, uint32_t from);
uint32_t place_core_end(const struct place *p, uint32_t from);

/* "shard 1: 2.0 GiB of weights, 1/2 of every expert", or "" where the CPUs from @from on begin none
 * of that kind. @node: of a shard that is alone on its node, else of one that has a cache */
void place_say_shard(const struct place *p, uint32_t from, bool node, char *ret, size_t size);
/* "2 memory nodes, …" */
void place_say_machine(const struct place *p, char *ret, size_t size);
void place_say_model(const struct place *p, char *ret, size_t size);

/* moectl-topology-svg.c: draw it. Return: 0 or -errno. */
int place_draw_svg(const struct place *p, FILE *f);
