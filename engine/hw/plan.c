/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/hw/plan.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

/* ---- workers ---- */

static int order(uint32_t a, uint32_t b) {
    return a < b ? -1 : a > b;
}

static int compare(const void *a, const void *b) {
    const struct topo_cpu *x = a, *y = b;
    int r = order(x->node, y->node);

    r = r ? r : order(x->cache, y->cache);
    r = r ? r : order(x->core, y->core);
    return r ? r : order(x->sibling, y->sibling);
}

void plan_place(const struct topo *topo, uint32_t n_worker, struct topo_cpu *ret_cpu) {
    for (uint32_t i = 0; i < n_worker; i++)
        ret_cpu[i] = n_worker < topo->n_core ? topo->cpu[(uint64_t)i * topo->n_core / n_worker]
                                             : topo->cpu[i % topo->n_cpu];
    qsort(ret_cpu, n_worker, sizeof *ret_cpu, compare);
}

/* ---- shards ---- */

/* Do the caches of these CPUs hold @bytes, and a quarter more for all else? */
static bool caches_hold(const struct topo_cpu *cpu, uint32_t n, uint64_t bytes) {
    uint64_t room = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (cpu[i].cache_size == 0)
            return false;
        if (i == 0 || cpu[i].cache != cpu[i - 1].cache)
            room += cpu[i].cache_size;
    }
    return bytes > 0 && bytes <= room / 5 * 4;
}

static uint32_t common_divisor(uint32_t a, uint32_t b) {
    while (b) {
        uint32_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

/* The number nearest above 0.618 * n that has no divisor in common with it: its multiples, mod n,
 * visit all of n, and any run of them lies evenly. */
static uint32_t golden_step(uint32_t n) {
    uint32_t step = (uint32_t)((uint64_t)n * 618 / 1000);

    step = step ? step : 1;
    while (common_divisor(step, n) != 1)
        step++;
    return step;
}

int plan_new(struct plan **ret_plan, const struct topo_cpu *cpu, uint32_t n_worker,
             uint64_t bytes) {
    AUTO(plan_free) struct plan *p = calloc(1, sizeof *p);
    bool by_cache = caches_hold(cpu, n_worker, bytes);
    uint32_t divisor = 0;

    assert(n_worker > 0);
    if (!p)
        return err_new(-ENOMEM);
    p->shard = calloc(n_worker, sizeof *p->shard);
    if (!p->shard)
        return err_new(-ENOMEM);
    p->n_worker = n_worker;
    for (uint32_t i = 0; i < n_worker; i++) {
        const struct topo_cpu *c = &cpu[i];

        if (i == 0 || c->node != c[-1].node || (by_cache && c->cache != c[-1].cache))
            p->shard[p->n_shard++] =
                (struct plan_shard){ .node = c->node, .node_os = c->node_os, .first = i };
        p->shard[p->n_shard - 1].n_worker++;
    }
    for (uint32_t s = 0; s < p->n_shard; s++)
        divisor = common_divisor(p->shard[s].n_worker, divisor);
    p->turns = n_worker / divisor;
    p->step = golden_step(p->turns);

    *ret_plan = take(p);
    return 0;
}

struct plan *plan_free(struct plan *p) {
    if (!p)
        return NULL;
    free(p->shard);
    free(p);
    return NULL;
}

/* floor((x + k) / n), summed over k = 0 to n - 1, is x: over that many turns nothing is rounded. */
uint32_t plan_cut(const struct plan *p, uint32_t n_row, uint32_t unit, uint32_t turn,
                  uint32_t shard) {
    uint64_t n_unit = (n_row + (uint64_t)unit - 1) / unit;
    uint64_t before = shard < p->n_shard ? p->shard[shard].first : p->n_worker;
    uint64_t share = before * p->turns / p->n_worker; /* exact: both are in units of the divisor */
    uint64_t k = (uint64_t)turn % p->turns * p->step % p->turns;
    uint64_t row = (n_unit * share + k) / p->turns * unit;

    return row < n_row ? (uint32_t)row : n_row;
}

uint32_t plan_shard_of(const struct plan *p, uint32_t worker) {
    uint32_t s = 0;

    while (worker >= p->shard[s].first + p->shard[s].n_worker)
        s++;
    return s;
}
