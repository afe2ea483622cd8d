/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "engine/hw/pool.h"

enum { N_MAX = 9 };

static double now_sec(int clock) {
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Plain memory on purpose: what a phase wrote must be visible to the caller, and what the caller
 * wrote to the phase, without more. */
struct count {
    uint64_t run[N_MAX][16]; /* a cache line a worker */
    uint64_t round;          /* written by the caller between phases */
    uint64_t seen[N_MAX][16];
    uint32_t n_worker;
};

static void count_up(void *arg, uint32_t worker, uint32_t n_worker) {
    struct count *c = arg;

    c->run[worker][0]++;
    c->seen[worker][0] = c->round;
    if (worker == 0)
        c->n_worker = n_worker;
}

static struct pool *pool_of(uint32_t n_worker) {
    AUTO(topo_free) struct topo *t = NULL;
    struct pool *p = NULL;

    assert_int_equal(topo_new(&t), 0);
    assert_int_equal(pool_new(&p, t, n_worker), 0);
    return p;
}

/* Every phase runs once on every worker, whatever their number, and ends before pool_run() does. */
static void test_every_worker_once(void **state) {
    (void)state;
    for (uint32_t n = 1; n <= N_MAX; n++) {
        AUTO(pool_free) struct pool *p = pool_of(n);
        struct count c = { 0 };

        assert_int_equal(pool_n_worker(p), n);
        for (c.round = 1; c.round <= 2000; c.round++) {
            pool_run(p, count_up, &c);
            assert_int_equal(c.n_worker, n);
            for (uint32_t w = 0; w < N_MAX; w++) {
                assert_int_equal(c.run[w][0], w < n ? c.round : 0);
                assert_int_equal(c.seen[w][0], w < n ? c.round : 0);
            }
        }
    }
}

static void nap(void) {
    nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
}

/* Items taken one by one; each must be run once, by whoever comes. */
enum { N_ITEM = 20 };
struct share {
    atomic_uint next;
    uint32_t run[N_ITEM];
};

static void take_items(void *arg, uint32_t worker, uint32_t n_worker) {
    struct share *s = arg;
    uint32_t i;

    (void)worker, (void)n_worker;
    while ((i = atomic_fetch_add(&s->next, 1)) < N_ITEM)
        s->run[i]++;
}

/* What a phase works on is freed right after it: nobody comes late. Phases that all must run come
 * between, after any history of the workers. */
static void test_share(void **state) {
    (void)state;
    for (uint32_t n = 1; n <= N_MAX; n++) {
        AUTO(pool_free) struct pool *p = pool_of(n);
        struct count c = { 0 };

        for (uint32_t k = 0; k < 2000; k++) {
            struct share *s = calloc(1, sizeof *s);

            pool_share(p, take_items, s);
            for (uint32_t i = 0; i < N_ITEM; i++)
                assert_int_equal(s->run[i], 1);
            memset(s, 0xff, sizeof *s);
            free(s);
            if (k % 7 == 0) {
                c.round++;
                pool_run(p, count_up, &c);
                for (uint32_t w = 0; w < n; w++)
                    assert_int_equal(c.run[w][0], c.round);
            }
        }
    }
}

struct limited {
    atomic_uint n_entered, beyond; /* calls; those of workers beyond the limit */
    uint32_t limit;
};

static void enter_limited(void *arg, uint32_t worker, uint32_t n_worker) {
    struct limited *l = arg;

    assert_int_equal(n_worker, 4);
    atomic_fetch_add(&l->n_entered, 1);
    if (worker >= l->limit)
        atomic_fetch_add(&l->beyond, 1);
    if (worker == 0)
        nap();
}

/* Workers beyond the limit stay out of what is shared, not of what all must run; raised again, they
 * come back. */
static void test_limit(void **state) {
    AUTO(pool_free) struct pool *p = pool_of(4);
    struct count c = { 0 };
    int n_helped = 0;

    (void)state;
    for (uint32_t k = 0; k < 40; k++) {
        struct limited l = { .limit = (uint32_t[]){ 1, 3, 2, 4 }[k % 4] };

        pool_limit(p, l.limit == 4 ? 9 : l.limit);
        pool_share(p, enter_limited, &l);
        assert_int_equal(atomic_load(&l.beyond), 0);
        assert_in_range(atomic_load(&l.n_entered), 1, l.limit);
        n_helped += atomic_load(&l.n_entered) > 1;
        c.round++;
        pool_run(p, count_up, &c);
        for (uint32_t w = 0; w < 4; w++)
            assert_int_equal(c.run[w][0], c.round);
    }
    assert_true(n_helped > 0); /* a nap is long: somebody comes, now and then */
}

static atomic_uint n_entered;

static void enter_and_nap(void *arg, uint32_t worker, uint32_t n_worker) {
    (void)arg, (void)n_worker;
    atomic_fetch_add(&n_entered, 1);
    if (worker)
        nap();
}

/* Who began is waited for; who came too late never begins. */
static void test_share_waits_for_those_in_it(void **state) {
    AUTO(pool_free) struct pool *p = pool_of(4);

    (void)state;
    for (int i = 0; i < 50; i++) {
        struct share s = { 0 };

        atomic_store(&n_entered, 0);
        pool_share(p, enter_and_nap, &s);
        assert_in_range(atomic_load(&n_entered), 1, 4);
        if (i % 10 == 0) {
            unsigned n = atomic_load(&n_entered);

            nap();
            assert_int_equal(atomic_load(&n_entered), n);
        }
    }
}

static void test_default_is_one_a_core(void **state) {
    AUTO(topo_free) struct topo *t = NULL;
    AUTO(pool_free) struct pool *p = NULL;

    (void)state;
    assert_int_equal(topo_new(&t), 0);
    assert_int_equal(pool_new(&p, t, 0), 0);
    assert_int_equal(pool_n_worker(p), topo_n_worker(t));
    assert_null(pool_free(NULL));
}

static void nap_if_odd(void *arg, uint32_t worker, uint32_t n_worker) {
    count_up(arg, worker, n_worker);
    if (worker % 2)
        nap();
}

static void nap_if_even(void *arg, uint32_t worker, uint32_t n_worker) {
    count_up(arg, worker, n_worker);
    if (worker % 2 == 0)
        nap();
}

/* Waits long enough to end up on the futex, on either side, and the wake comes. */
static void test_sleepers_wake(void **state) {
    AUTO(pool_free) struct pool *p = pool_of(4);
    struct count c = { 0 };

    (void)state;
    for (uint32_t i = 0; i < 30; i++) {
        pool_run(p, nap_if_odd, &c);
        pool_run(p, nap_if_even, &c);
        nap();
    }
    for (uint32_t w = 0; w < 4; w++)
        assert_int_equal(c.run[w][0], 60);
}

/* Who waits, for work or for the others' end, gives its CPU away after microseconds. */
static void test_waiting_costs_nothing(void **state) {
    AUTO(pool_free) struct pool *p = pool_of(2);
    struct count c = { 0 };
    double cpu = now_sec(CLOCK_PROCESS_CPUTIME_ID);

    (void)state;
    for (int i = 0; i < 50; i++) {
        pool_run(p, nap_if_odd, &c);
        pool_run(p, nap_if_even, &c);
        nap();
    }
    assert_true(now_sec(CLOCK_PROCESS_CPUTIME_ID) - cpu < 0.05); /* 2 threads waited 0.2 s each */
}

/* Signals of the process are for its other threads. */
static void test_workers_take_no_signal(void **state) {
    AUTO(pool_free) struct pool *p = NULL;
    sigset_t usr1, old, pending;
    int sig;

    (void)state;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    p = pool_of(3);
    pthread_sigmask(SIG_BLOCK, &usr1, &old);
    kill(getpid(), SIGUSR1); /* a worker that took it would end the test */
    nap();
    sigpending(&pending);
    assert_int_equal(sigismember(&pending, SIGUSR1), 1);
    assert_int_equal(sigwait(&usr1, &sig), 0);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void test_allocates_nothing(void **state) {
    AUTO(pool_free) struct pool *p = pool_of(3);
    struct count c = { 0 };
    size_t before;

    (void)state;
    pool_run(p, count_up, &c);
    before = mallinfo2().uordblks;
    for (int i = 0; i < 1000; i++)
        pool_run(p, count_up, &c);
    assert_int_equal(mallinfo2().uordblks, before);
}

struct where {
    int n_cpu[N_MAX], cpu[N_MAX];
};

static void note_affinity(void *arg, uint32_t worker, uint32_t n_worker) {
    struct where *w = arg;
    cpu_set_t set;

    (void)n_worker;
    (void)sched_getaffinity(0, sizeof set, &set);
    w->n_cpu[worker] = CPU_COUNT(&set);
    w->cpu[worker] = sched_getcpu();
}

/* As many workers as CPUs have one each; more float, and so does a single one. */
static void test_pinning(void **state) {
    AUTO(topo_free) struct topo *t = NULL;
    cpu_set_t all;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    assert_int_equal(topo_new(&t), 0);
    for (uint32_t n = 1; n <= N_MAX; n++) {
        AUTO(pool_free) struct pool *p = NULL;
        struct where w = { 0 };
        cpu_set_t afloat;

        assert_int_equal(pool_new(&p, t, n), 0);
        pool_adopt(p);
        pool_run(p, note_affinity, &w);
        pool_float(p);
        assert_int_equal(sched_getaffinity(0, sizeof afloat, &afloat), 0);
        assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
        for (uint32_t i = 0; i < n; i++) {
            bool pinned = n > 1 && n <= t->n_cpu;

            assert_int_equal(w.n_cpu[i], pinned ? 1 : CPU_COUNT(&all));
            if (pinned)
                assert_int_equal(w.cpu[i], t->cpu[i].os);
            if (pinned)
                assert_true(CPU_ISSET(t->cpu[i].os, &afloat));
        }
        assert_int_equal(CPU_COUNT(&afloat), n > 1 && n <= t->n_cpu ? (int)n : CPU_COUNT(&all));
    }
}

struct hog {
    pthread_t thread;
    clockid_t clock;
    uint32_t os;
};
static atomic_bool hog_stop;

static void *hog_main(void *arg) {
    struct hog *h = arg;
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(h->os, &set);
    (void)sched_setaffinity(0, sizeof set, &set);
    while (!atomic_load_explicit(&hog_stop, memory_order_relaxed))
        ;
    return NULL;
}

/* CPU time of this process without its hogs'. */
static double pool_cpu_sec(const struct hog *hog) {
    return now_sec(CLOCK_PROCESS_CPUTIME_ID) - now_sec(hog[0].clock) - now_sec(hog[1].clock);
}

static void work(void *arg, uint32_t worker, uint32_t n_worker) {
    volatile uint32_t x = 1;

    count_up(arg, worker, n_worker);
    for (int i = 0; i < 20000; i++)
        x = x * 3 + 1;
}

/* Each worker shares its CPU with a hog: the phases end all the same, and for about the CPU time of
 * the work itself. How long the hogs keep us waiting is the kernel's business. */
static void test_hogs(void **state) {
    AUTO(topo_free) struct topo *t = NULL;
    AUTO(pool_free) struct pool *p = NULL;
    enum { N_PHASE = 400 };
    struct count c = { 0 };
    struct hog hog[2];
    cpu_set_t all;
    double alone, cpu;

    (void)state;
    alone = now_sec(CLOCK_THREAD_CPUTIME_ID);
    for (int i = 0; i < 2 * N_PHASE; i++)
        work(&c, 0, 1);
    alone = now_sec(CLOCK_THREAD_CPUTIME_ID) - alone;

    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    assert_int_equal(topo_new(&t), 0);
    assert_int_equal(pool_new(&p, t, 2), 0);
    atomic_store(&hog_stop, false);
    for (uint32_t i = 0; i < 2; i++) {
        hog[i].os = t->cpu[i % t->n_cpu].os;
        assert_int_equal(pthread_create(&hog[i].thread, NULL, hog_main, &hog[i]), 0);
        assert_int_equal(pthread_getcpuclockid(hog[i].thread, &hog[i].clock), 0);
    }
    pool_adopt(p);
    nap();

    memset(&c, 0, sizeof c);
    cpu = pool_cpu_sec(hog);
    for (int i = 0; i < N_PHASE; i++)
        pool_run(p, work, &c);
    cpu = pool_cpu_sec(hog) - cpu;

    atomic_store(&hog_stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(hog[i].thread, NULL);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
    assert_int_equal(c.run[0][0], N_PHASE);
    assert_int_equal(c.run[1][0], N_PHASE);
    if (cpu > 5 * alone)
        fail_msg("%.3f s of CPU time for %.3f s of work", cpu, alone);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_worker_once),
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_share_waits_for_those_in_it),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_default_is_one_a_core),
        cmocka_unit_test(test_sleepers_wake),
        cmocka_unit_test(test_waiting_costs_nothing),
        cmocka_unit_test(test_workers_take_no_signal),
        cmocka_unit_test(test_allocates_nothing),
        cmocka_unit_test(test_pinning),
        cmocka_unit_test(test_hogs),
    };

    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
