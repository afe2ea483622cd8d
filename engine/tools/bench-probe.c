/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>
#include <time.h>

#include "engine/base/mem.h"
#include "engine/tools/bench-probe.h"

/* One load of the widest vector there is; the compiler splits it for narrower machines. */
typedef uint64_t wide __attribute__((vector_size(64)));

/* Windows are far larger than the caches that hold a part of the buffer, and take less time than a
 * slice of the scheduler: so on a busy machine too some are read undisturbed. */
enum {
    N_PASS = 4,
    WINDOW_SIZE = 64 << 20,
    UNROLL = 4, /* sums at a time, so that no operation waits for another */
};

struct probe {
    const wide *buf;
    uint32_t n;       /* elements of @buf, or of the window */
    uint64_t *ret_or; /* [n_worker][8] so that nothing can be left out */
};

static double now_sec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill(void *arg, uint32_t worker, uint32_t n_worker) {
    struct probe *p = arg;
    uint32_t begin, end;

    pool_slice(p->n, UNROLL, worker, n_worker, &begin, &end);
    memset((void *)(uintptr_t)&p->buf[begin], 1, (end - begin) * sizeof *p->buf);
}

static void read_all(void *arg, uint32_t worker, uint32_t n_worker) {
    struct probe *p = arg;
    wide sum[UNROLL] = { { 0 } };
    uint32_t begin, end;

    pool_slice(p->n, UNROLL, worker, n_worker, &begin, &end);
    for (uint32_t i = begin; i < end; i += UNROLL)
        for (uint32_t k = 0; k < UNROLL; k++)
            sum[k] |= p->buf[i + k];
    for (uint32_t k = 0; k < UNROLL; k++)
        p->ret_or[worker * 8] |= sum[k][0] | sum[k][7];
}

int bench_probe(struct pool *p, const struct topo *t, double *ret_rate, uint64_t *ret_size) {
    uint64_t size = t->memory / 8 < 1 << 30 ? t->memory / 8 : 1 << 30;
    AUTO(free) uint64_t * or = calloc(pool_n_worker(p) * (size_t)8, sizeof * or);
    struct probe probe = { .ret_or = or };
    double best = 0;
    void *buf;
    int r;

    if (! or)
        return err_new(-ENOMEM);
    size = (size / WINDOW_SIZE + 1) * WINDOW_SIZE;
    r = mem_map(size, true, &buf);
    if (r < 0)
        return err_up(r);

    probe.buf = buf;
    probe.n = (uint32_t)(size / sizeof(wide));
    pool_run(p, fill, &probe);
    probe.n = WINDOW_SIZE / sizeof(wide);
    for (uint64_t at = 0; at < N_PASS * size; at += WINDOW_SIZE) {
        double sec;

        probe.buf = (const wide *)buf + at % size / sizeof(wide);
        sec = now_sec();
        pool_run(p, read_all, &probe);
        sec = now_sec() - sec;
        best = WINDOW_SIZE / sec > best ? WINDOW_SIZE / sec : best;
    }
    mem_unmap(buf, size);

    *ret_rate = best;
    *ret_size = size;
    return 0;
}
