/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * plan - which workers there are, and which rows of every matrix are whose
 *
 * A shard is what one memory node serves; or one last-level cache, when all weights fit in those
 * together, so that none is read from memory at all. Workers belong to the shard of their CPU, and
 * are numbered so that those of a shard follow each other.
 *
 * Every matrix is cut by its output rows, in units of whole groups of packed rows: each shard has
 * as large a share as it has of the workers. Its rows lie in its node's memory and its workers
 * multiply them, so weights never cross nodes; activations do, which are some kilobytes, and
 * there are no partial sums, so results do not depend on the number of shards. Units that are left
 * over go to another shard from turn to turn: from matrix to matrix, and from expert to expert.
 *
 * So experts are cut too, and none belongs to a shard as a whole: of eight that a token needs,
 * every shard has an equal part, where with whole ones the unluckiest shard would have two or three
 * times its share. Whole experts would be the plan only where capacity demands it: where not all
 * of them are in memory, and one is read from disk as a whole, for whoever runs it.
 *
 * Owner:   whoever made it; immutable. On one node it has one shard, which has all.
 */

#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/hw/topo.h"

struct plan_shard {
    uint32_t node, node_os;   /* as in struct topo_cpu */
    uint32_t first, n_worker; /* its workers: first to first + n_worker - 1 */
};

struct plan {
    uint32_t n_worker, n_shard;
    struct plan_shard *shard; /* [n_shard] */
    uint32_t turns;           /* after so many turns every shard had exactly its share */
    uint32_t step;            /* from turn to turn: neighbours are far apart */
};

/* Rows of a matrix that lie together: of each shard, one after the other. */
struct plan_part {
    const uint8_t *data; /* of the first of them */
    uint32_t end;        /* rows up to this one, from the end of the part before */
};

/**
 * plan_place() - choose the CPUs of workers
 * @n_worker:   >= 1. Fewer than there are cores are spread over them evenly, and so over nodes and
 *              caches; more than there are CPUs begin again.
 * @ret_cpu:    [n_worker], by node, cache and core
 */
void plan_place(const struct topo *topo, uint32_t n_worker, struct topo_cpu *ret_cpu);

/**
 * plan_new() - make shards of workers
 * @cpu:        [n_worker], from plan_place(), borrowed for the call
 * @bytes:      of all weights; 0: more than caches hold
 *
 * Return: 0 or -ENOMEM.
 */
int plan_new(struct plan **ret_plan, const struct topo_cpu *cpu, uint32_t n_worker, uint64_t bytes);
struct plan *plan_free(struct plan *p);
AUTO_DEFINE(struct plan *, plan_free)

/**
 * plan_cut() - the first row of a shard
 * @n_row:      output rows of the matrix
 * @unit:       rows that stay together; the last unit may be shorter
 * @turn:       any number; matrices of the same n_row, unit and turn are cut alike
 * @shard:      0 to n_shard; of n_shard: n_row. Its rows end where those of the next begin.
 */
uint32_t plan_cut(const struct plan *p, uint32_t n_row, uint32_t unit, uint32_t turn,
                  uint32_t shard);

/* The shard of a worker. */
uint32_t plan_shard_of(const struct plan *p, uint32_t worker);
