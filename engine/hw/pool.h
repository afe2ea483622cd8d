/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * pool - pinned worker threads that run one phase at a time
 *
 * The calling thread is worker 0. Workers wait for a phase by spinning for some microseconds and
 * then sleeping on a futex, so an idle or a throttled machine costs nothing.
 *
 * Owner:   the engine thread calls pool_run(); nobody else.
 * Memory:  fixed at pool_new().
 */

#include <stdatomic.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/hw/topo.h"

struct pool;

/* Runs on every worker, @worker from 0 to @n_worker - 1. */
typedef void pool_fn(void *arg, uint32_t worker, uint32_t n_worker);

/**
 * pool_new() - start the workers
 * @ret_pool:   owned by the caller: pool_free()
 * @topo:       which CPUs to pin to, borrowed for the call
 * @n_worker:   workers including the caller, >= 1; 0 takes one per usable core
 *
 * Workers are pinned, one a CPU, unless there is only one, or more than CPUs: those float. Signals
 * are blocked in all but the caller.
 *
 * Return: 0 or -errno. Pinning that the kernel refuses is no failure.
 */
int pool_new(struct pool **ret_pool, const struct topo *topo, uint32_t n_worker);
struct pool *pool_free(struct pool *p);
AUTO_DEFINE(struct pool *, pool_free)

uint32_t pool_n_worker(const struct pool *p);
/* The CPUs of the workers, [n_worker], as plan_place() chose them; borrowed. */
const struct topo_cpu *pool_cpus(const struct pool *p);

/* Pin the calling thread as worker 0; call once from the thread that will call pool_run(). Threads
 * it makes afterwards inherit that. */
void pool_adopt(struct pool *p);

/* Let the calling thread, no worker, run on the CPU of any worker. */
void pool_float(const struct pool *p);

/* Run @fn on all workers; returns when every one has returned. */
void pool_run(struct pool *p, pool_fn *fn, void *arg);

/* Run @fn on the caller, and on each worker that gets to it while the caller is in it; returns when
 * all that began have returned. For work that is taken piece by piece, so that whoever runs @fn
 * leaves nothing to begin: on a busy machine nobody then waits for a worker without a CPU. */
void pool_share(struct pool *p, pool_fn *fn, void *arg);

/* From now on only the first @n workers take part in pool_share(), 1 <= n; the others sleep. */
void pool_limit(struct pool *p, uint32_t n);

/* Inside a phase: wait until *@word is POOL_DONE, as for a phase. Another worker that is running
 * posts it. At first it is 0; from then on only these two touch it. */
enum { POOL_DONE = 1 };
void pool_await(const struct pool *p, atomic_uint *word);
void pool_post(atomic_uint *word);

/* [begin, end) of @n items for one worker, in multiples of @step: a static, even split. */
static inline void pool_slice(uint32_t n, uint32_t step, uint32_t worker, uint32_t n_worker,
                              uint32_t *ret_begin, uint32_t *ret_end) {
    uint64_t n_step = (n + (uint64_t)step - 1) / step;
    uint64_t b = n_step * worker / n_worker * step, e = n_step * (worker + 1) / n_worker * step;

    *ret_begin = (uint32_t)(b < n ? b : n);
    *ret_end = (uint32_t)(e < n ? e : n);
}
