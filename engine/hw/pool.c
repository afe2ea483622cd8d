/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>

#include "engine/hw/pool.h"

enum {
    LINE = 128,        /* two cache lines: the prefetcher of x86 fetches pairs */
    SPIN_NSEC = 10000, /* longest wait that spins: about what a futex round trip costs */
    SPIN_BATCH = 16,   /* pauses between looks at the clock */
    CPU_MAX = 8192,
};

struct worker {
    struct pool *pool;
    uint32_t index;
    pthread_t thread;
};

/* One phase: pool_run() stores fn and arg, then counts @gen up; each worker runs and counts
 * @n_left down. Each word is also the futex its waiters sleep on, and a waiter announces itself in
 * @n_asleep before it looks at the word a last time: so the waker, who changes the word first and
 * looks at @n_asleep second, either sees the sleeper or is seen. Both orders need seq_cst. */
struct pool {
    alignas(LINE) atomic_uint gen;
    pool_fn *fn;
    void *arg;
    bool quit;
    alignas(LINE) atomic_uint gen_n_asleep;
    alignas(LINE) atomic_uint n_left;
    alignas(LINE) atomic_uint left_n_asleep;

    alignas(LINE) uint32_t n_worker;
    uint32_t n_started; /* threads there are to join */
    uint64_t spin_nsec; /* 0: sleep at once */
    bool pin;
    uint32_t *os;          /* [n_worker] CPU to pin to */
    struct worker *worker; /* [n_worker], the first unused */
};

static void futex_wait(atomic_uint *word, unsigned seen) {
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static inline void pause_cpu(void) {
#if __has_builtin(__builtin_ia32_pause)
    __builtin_ia32_pause();
#elif __has_builtin(__builtin_arm_yield)
    __builtin_arm_yield();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static uint64_t now_nsec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Spin until *word is @want, at most @nsec. Return: is it? */
static bool spin(atomic_uint *word, unsigned want, uint64_t nsec) {
    uint64_t end = 0;

    if (atomic_load_explicit(word, memory_order_acquire) == want)
        return true;
    while (nsec) {
        uint64_t now;

        for (int i = 0; i < SPIN_BATCH; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) == want)
                return true;
            pause_cpu();
        }
        now = now_nsec();
        if (!end)
            end = now + nsec;
        else if (now >= end)
            return false;
    }
    return false;
}

/* Wait until *word is @want. Its last change to that value comes with a wake. */
static void wait_for(atomic_uint *word, unsigned want, atomic_uint *n_asleep, uint64_t nsec) {
    unsigned seen;

    if (spin(word, want, nsec))
        return;

    atomic_fetch_add(n_asleep, 1);
    while ((seen = atomic_load(word)) != want)
        futex_wait(word, seen);
    atomic_fetch_sub(n_asleep, 1);
}

static void pin_self(const struct pool *p, uint32_t worker) {
    cpu_set_t *set;
    size_t size = CPU_ALLOC_SIZE(CPU_MAX);

    if (!p->pin || p->os[worker] >= CPU_MAX)
        return;
    set = CPU_ALLOC(CPU_MAX);
    if (!set)
        return;
    CPU_ZERO_S(size, set);
    CPU_SET_S(p->os[worker], size, set);
    (void)sched_setaffinity(0, size, set); /* refused: the thread floats */
    CPU_FREE(set);
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    struct pool *p = w->pool;
    unsigned seen = 0;

    pin_self(p, w->index);
    for (;;) {
        /* One up at a time: the next phase begins only when this one has ended everywhere. */
        wait_for(&p->gen, ++seen, &p->gen_n_asleep, p->spin_nsec);
        if (p->quit)
            return NULL;

        p->fn(p->arg, w->index, p->n_worker);
        if (atomic_fetch_sub(&p->n_left, 1) == 1 && atomic_load(&p->left_n_asleep))
            futex_wake(&p->n_left);
    }
}

static void start_phase(struct pool *p) {
    atomic_fetch_add(&p->gen, 1);
    if (atomic_load(&p->gen_n_asleep))
        futex_wake(&p->gen);
}

/* Signals are for the threads that expect them; workers take none. */
static int start_workers(struct pool *p) {
    sigset_t all, old;
    int r = 0;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = 1; i < p->n_worker && r == 0; i++) {
        char name[16];

        p->worker[i] = (struct worker){ .pool = p, .index = i };
        r = pthread_create(&p->worker[i].thread, NULL, worker_main, &p->worker[i]);
        if (r != 0)
            break;
        p->n_started++;
        (void)snprintf(name, sizeof name, "pool %u", i);
        (void)pthread_setname_np(p->worker[i].thread, name);
    }
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);

    return r ? err_new(-r) : 0;
}

int pool_new(struct pool **ret_pool, const struct topo *topo, uint32_t n_worker) {
    AUTO(pool_free) struct pool *p = NULL;
    int r;

    if (n_worker == 0)
        n_worker = topo_n_worker(topo);
    p = aligned_alloc(LINE, sizeof *p);
    if (!p)
        return err_new(-ENOMEM);
    *p = (struct pool){ .n_worker = n_worker };
    p->os = calloc(n_worker, sizeof *p->os);
    p->worker = calloc(n_worker, sizeof *p->worker);
    if (!p->os || !p->worker)
        return err_new(-ENOMEM);

    /* With more workers than CPUs a spinning one keeps another from running; and a single worker
     * is best left to the kernel, there is nothing to keep it apart from. */
    p->spin_nsec = n_worker <= topo->n_cpu ? SPIN_NSEC : 0;
    p->pin = n_worker > 1 && n_worker <= topo->n_cpu;
    for (uint32_t i = 0; i < n_worker; i++)
        p->os[i] = topo->cpu[i % topo->n_cpu].os;

    r = start_workers(p);
    if (r < 0)
        return err_up(r);

    *ret_pool = take(p);
    return 0;
}

struct pool *pool_free(struct pool *p) {
    if (!p)
        return NULL;

    p->quit = true;
    start_phase(p);
    for (uint32_t i = 1; i <= p->n_started; i++)
        (void)pthread_join(p->worker[i].thread, NULL);
    free(p->worker);
    free(p->os);
    free(p);
    return NULL;
}

uint32_t pool_n_worker(const struct pool *p) {
    return p->n_worker;
}

void pool_adopt(struct pool *p) {
    pin_self(p, 0);
}

void pool_run(struct pool *p, pool_fn *fn, void *arg) {
    if (p->n_worker == 1) {
        fn(arg, 0, 1);
        return;
    }

    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->n_left, p->n_worker - 1, memory_order_relaxed);
    start_phase(p);
    fn(arg, 0, p->n_worker);
    wait_for(&p->n_left, 0, &p->left_n_asleep, p->spin_nsec);
}
