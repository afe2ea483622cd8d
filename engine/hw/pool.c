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
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "engine/hw/plan.h"
#include "engine/hw/pool.h"

enum {
    LINE = 128,        /* two cache lines: the prefetcher of x86 fetches pairs */
    SPIN_NSEC = 10000, /* longest wait that spins: about what a futex round trip costs */
    SPIN_BATCH = 16,   /* pauses between looks at the clock */
    CPU_MAX = 8192,
};

/* Where one worker stands: the phase it has last run or was shut out of, and whether it is in the
 * next one right now. The worker moves it from IDLE to RUNNING and back; the caller, who need not
 * wait for a worker that has not begun, moves it from IDLE to IDLE of the present phase. Each by
 * compare-and-swap, so one of the two gets there first. */
struct worker {
    alignas(LINE) atomic_uint state; /* phase << 1 | running; a futex the caller sleeps on */
    uint32_t index;
    struct pool *pool;
    pthread_t thread;
};

#define IDLE(phase_)    ((phase_) << 1)
#define RUNNING(phase_) ((phase_) << 1 | 1)

/* A sleeper sets its flag before it looks at the word a last time; the waker changes the word
 * before it looks at the flag: so the sleeper is seen, or sees. Both orders need seq_cst. */
struct pool {
    alignas(LINE) atomic_uint phase; /* counts up; a futex the workers sleep on */
    pool_fn *fn;
    void *arg;
    uint32_t n_active; /* workers that run @fn */
    atomic_bool quit;
    alignas(LINE) atomic_bool workers_sleep; /* some may; cleared by the wake */
    alignas(LINE) atomic_bool caller_sleeps;

    alignas(LINE) uint32_t n_worker;
    uint32_t limit;     /* workers that share */
    uint32_t n_started; /* threads there are to join */
    uint64_t spin_nsec; /* 0: sleep at once */
    bool pin;
    struct worker *worker; /* [n_worker], the first without a thread */
    struct topo_cpu *cpu;  /* [n_worker] to pin to */
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

/* Spin while *word is (@same) or is not @value, at most @nsec. Return: has that ended? */
static bool spin(atomic_uint *word, unsigned value, bool same, uint64_t nsec) {
    uint64_t end = 0;

    if ((atomic_load_explicit(word, memory_order_acquire) == value) != same)
        return true;
    while (nsec) {
        uint64_t now;

        for (int i = 0; i < SPIN_BATCH; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) == value) != same)
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

/* A worker waits for a phase other than @last. */
static void wait_phase(struct pool *p, unsigned last) {
    if (spin(&p->phase, last, true, p->spin_nsec))
        return;
    do {
        atomic_store(&p->workers_sleep, true);
        if (atomic_load(&p->phase) != last)
            return;
        futex_wait(&p->phase, last);
    } while (atomic_load(&p->phase) == last);
}

/* The caller waits for a worker to have ended @phase. */
static void wait_worker(struct pool *p, struct worker *w, unsigned phase) {
    unsigned state;

    if (spin(&w->state, IDLE(phase), false, p->spin_nsec))
        return;
    atomic_store(&p->caller_sleeps, true);
    while ((state = atomic_load(&w->state)) != IDLE(phase))
        futex_wait(&w->state, state);
    atomic_store(&p->caller_sleeps, false);
}

/* Pin the calling thread to the CPUs of workers @first to @end - 1. */
static void pin_self(const struct pool *p, uint32_t first, uint32_t end) {
    cpu_set_t *set;
    size_t size = CPU_ALLOC_SIZE(CPU_MAX);

    if (!p->pin)
        return;
    set = CPU_ALLOC(CPU_MAX);
    if (!set)
        return;
    CPU_ZERO_S(size, set);
    for (uint32_t i = first; i < end; i++)
        if (p->cpu[i].os < CPU_MAX)
            CPU_SET_S(p->cpu[i].os, size, set);
    (void)sched_setaffinity(0, size, set); /* refused, or none known: the thread floats */
    CPU_FREE(set);
}

/* Begin the present phase, unless it is closed to @w. The state is read first: as long as it stays
 * what it was, the phase read after it can not have ended; when it did not, another may have begun
 * meanwhile. */
static bool enter(struct pool *p, struct worker *w, unsigned *ret_phase) {
    for (;;) {
        unsigned state = atomic_load(&w->state);

        *ret_phase = atomic_load(&p->phase);
        if (state == IDLE(*ret_phase))
            return false;
        if (atomic_compare_exchange_strong(&w->state, &state, RUNNING(*ret_phase)))
            return true;
    }
}

static void *worker_main(void *arg) {
    struct worker *w = arg;
    struct pool *p = w->pool;
    unsigned phase = 0;

    pin_self(p, w->index, w->index + 1);
    for (;;) {
        wait_phase(p, phase);
        if (atomic_load(&p->quit))
            return NULL;
        if (!enter(p, w, &phase))
            continue;

        if (w->index < p->n_active)
            p->fn(p->arg, w->index, p->n_worker);
        atomic_store(&w->state, IDLE(phase));
        if (atomic_load(&p->caller_sleeps))
            futex_wake(&w->state);
    }
}

static unsigned start_phase(struct pool *p) {
    unsigned phase = (atomic_load_explicit(&p->phase, memory_order_relaxed) + 1) & INT_MAX;

    atomic_store(&p->phase, phase);
    if (atomic_load(&p->workers_sleep) && atomic_exchange(&p->workers_sleep, false))
        futex_wake(&p->phase);
    return phase;
}

/* Signals are for the threads that expect them; workers take none. */
static int start_workers(struct pool *p) {
    sigset_t all, old;
    int r = 0;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = 1; i < p->n_worker && r == 0; i++) {
        char name[16];

        p->worker[i].pool = p;
        p->worker[i].index = i;
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
    size_t size;
    int r;

    if (n_worker == 0)
        n_worker = topo_n_worker(topo);
    p = aligned_alloc(LINE, sizeof *p);
    if (!p)
        return err_new(-ENOMEM);
    *p = (struct pool){ .n_worker = n_worker, .limit = n_worker };
    if (__builtin_mul_overflow(n_worker, sizeof *p->worker, &size))
        return err_new(-ENOMEM);
    p->worker = aligned_alloc(LINE, size);
    if (!p->worker)
        return err_new(-ENOMEM);
    memset(p->worker, 0, size);

    /* With more workers than CPUs a spinning one keeps another from running; and a single worker
     * is best left to the kernel, there is nothing to keep it apart from. */
    p->spin_nsec = n_worker <= topo->n_cpu ? SPIN_NSEC : 0;
    p->pin = n_worker > 1 && n_worker <= topo->n_cpu;
    p->cpu = calloc(n_worker, sizeof *p->cpu);
    if (!p->cpu)
        return err_new(-ENOMEM);
    plan_place(topo, n_worker, p->cpu);

    r = start_workers(p);
    if (r < 0)
        return err_up(r);

    *ret_pool = take(p);
    return 0;
}

struct pool *pool_free(struct pool *p) {
    if (!p)
        return NULL;

    atomic_store(&p->quit, true);
    (void)start_phase(p);
    for (uint32_t i = 1; i <= p->n_started; i++)
        (void)pthread_join(p->worker[i].thread, NULL);
    free(p->worker);
    free(p->cpu);
    free(p);
    return NULL;
}

uint32_t pool_n_worker(const struct pool *p) {
    return p->n_worker;
}

const struct topo_cpu *pool_cpus(const struct pool *p) {
    return p->cpu;
}

void pool_adopt(struct pool *p) {
    pin_self(p, 0, 1);
}

void pool_float(const struct pool *p) {
    pin_self(p, 0, p->n_worker);
}

/* @all: every worker must run @fn; else one that has not begun when the caller is through with it
 * is shut out. */
static void run(struct pool *p, pool_fn *fn, void *arg, bool all) {
    unsigned phase;

    p->n_active = all ? p->n_worker : p->limit;
    if (p->n_active == 1) {
        fn(arg, 0, p->n_worker);
        return;
    }

    p->fn = fn;
    p->arg = arg;
    phase = start_phase(p);
    fn(arg, 0, p->n_worker);
    for (uint32_t i = 1; i < p->n_worker; i++) {
        struct worker *w = &p->worker[i];
        unsigned state = atomic_load(&w->state);

        if (state == IDLE(phase))
            continue;
        if (all || state == RUNNING(phase) ||
            !atomic_compare_exchange_strong(&w->state, &state, IDLE(phase)))
            wait_worker(p, w, phase);
    }
}

void pool_run(struct pool *p, pool_fn *fn, void *arg) {
    run(p, fn, arg, true);
}

void pool_share(struct pool *p, pool_fn *fn, void *arg) {
    run(p, fn, arg, false);
}

void pool_limit(struct pool *p, uint32_t n) {
    assert(n >= 1);
    p->limit = n < p->n_worker ? n : p->n_worker;
}

enum { SLEEPS = 2 }; /* value of a word that is waited for by a sleeper */

void pool_await(const struct pool *p, atomic_uint *word) {
    unsigned seen = 0;

    if (spin(word, POOL_DONE, false, p->spin_nsec))
        return;
    (void)atomic_compare_exchange_strong(word, &seen, SLEEPS);
    while (atomic_load(word) != POOL_DONE)
        futex_wait(word, SLEEPS);
}

void pool_post(atomic_uint *word) {
    if (atomic_exchange(word, POOL_DONE) == SLEEPS)
        futex_wake(word);
}
