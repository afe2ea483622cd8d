/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/tools/bench-probe.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "engine/base/mem.h"
#include "engine/hw/pool.h"
#include "engine/hw/topo.h"
#include "engine/kern/kern.h"
#include "engine/tools/bench-stat.h"

enum {
    LINE = 128,
    N_PEAK = 400,                          /* windows of integer products a worker */
    READ_SIZE = 1 << 20,                   /* bytes of a window of reads */
    READ_MAX = 1 << 30,                    /* bytes of all at most */
    N_READ_MAX = READ_MAX / READ_SIZE + 1, /* windows of reads a worker */
    N_BALL = 100,                          /* windows of ping-pong */
    N_TRIP = 16,                           /* round trips of one */
};

static const double peak_sec = 200e-6; /* of a window of integer products */

struct span {
    double begin, end, work;
};

/* ---- the child ---- */

/* Where one worker writes what it saw. */
struct seat {
    alignas(LINE) struct span span[N_READ_MAX];
    uint32_t n;
    double cpu, wall; /* seconds */
    uint64_t sink;
};

struct child {
    struct topo *topo;
    struct pool *pool;
    struct kern kern;
    uint32_t n_worker;
    uint8_t *buf;
    size_t size;       /* bytes */
    struct seat *seat; /* [n_worker] */
    uint32_t n_round;  /* of kern.peak in a window */
    uint32_t n_active; /* workers that measure now */
    double ball[N_BALL];
    double share_cpu, share_wall; /* seconds, all workers */
    uint64_t steal, total;        /* clock ticks of /proc/stat when last looked at */
    alignas(LINE) atomic_uint ready;
    alignas(LINE) atomic_uint flag;
    alignas(LINE) atomic_bool spinning;
    pthread_t *hog; /* [topo->n_cpu] */
    uint32_t n_hog;
};

static double now_sec(clockid_t clock) {
    struct timespec t;

    (void)clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* All active workers begin at about the same time. One that waits for a CPU is waited for. */
static void meet(struct child *c) {
    (void)atomic_fetch_add(&c->ready, 1);
    while (atomic_load(&c->ready) < c->n_active)
        (void)sched_yield();
}

static void peak_windows(struct child *c, struct seat *s, uint32_t worker) {
    for (s->n = 0; s->n < N_PEAK; s->n++) {
        struct span *w = &s->span[s->n];

        w->begin = now_sec(CLOCK_MONOTONIC);
        w->work = (double)c->kern.peak(c->n_round);
        w->end = now_sec(CLOCK_MONOTONIC);
    }
}

static void read_windows(struct child *c, struct seat *s, uint32_t worker) {
    uint32_t begin, end;

    pool_slice((uint32_t)(c->size / READ_SIZE), 1, worker, c->n_active, &begin, &end);
    for (s->n = 0; begin < end && s->n < N_READ_MAX; begin++, s->n++) {
        struct span *w = &s->span[s->n];

        w->begin = now_sec(CLOCK_MONOTONIC);
        s->sink |= c->kern.read(c->buf + (size_t)begin * READ_SIZE, READ_SIZE);
        w->end = now_sec(CLOCK_MONOTONIC);
        w->work = READ_SIZE;
    }
}

typedef void windows_fn(struct child *c, struct seat *s, uint32_t worker);

struct turn {
    struct child *child;
    windows_fn *fn;
};

static void take_turn(void *arg, uint32_t worker, uint32_t n_worker) {
    const struct turn *t = arg;
    struct child *c = t->child;
    struct seat *s = &c->seat[worker];

    if (worker >= c->n_active)
        return;
    meet(c);
    s->wall = now_sec(CLOCK_MONOTONIC);
    s->cpu = now_sec(CLOCK_THREAD_CPUTIME_ID);
    t->fn(c, s, worker);
    s->wall = now_sec(CLOCK_MONOTONIC) - s->wall;
    s->cpu = now_sec(CLOCK_THREAD_CPUTIME_ID) - s->cpu;
}

static double rate(const struct span *s) {
    return s->work / (s->end - s->begin);
}

/* The rate of all workers together in the middle of the first one's window @i; 0: not all were at
 * it then. */
static double rate_all(const struct child *c, uint32_t i) {
    const struct span *mine = &c->seat[0].span[i];
    double at = (mine->begin + mine->end) / 2, sum = rate(mine);

    for (uint32_t w = 1; w < c->n_active; w++) {
        const struct seat *s = &c->seat[w];
        uint32_t low = 0, high = s->n;

        while (low < high) { /* the first window that ends after that */
            uint32_t mid = (low + high) / 2;

            if (s->span[mid].end < at)
                low = mid + 1;
            else
                high = mid;
        }
        if (low == s->n || s->span[low].begin > at)
            return 0;
        sum += rate(&s->span[low]);
    }
    return sum;
}

/* @ret: median and 99th percentile of what @n_active workers did together. */
static void windows(struct child *c, windows_fn *fn, uint32_t n_active, double ret[2]) {
    static double seen[N_READ_MAX];
    struct turn t = { c, fn };
    uint32_t n = 0;

    c->n_active = n_active;
    atomic_store(&c->ready, 0);
    pool_run(c->pool, take_turn, &t);
    for (uint32_t i = 0; i < c->seat[0].n; i++) {
        seen[n] = rate_all(c, i);
        n += seen[n] > 0;
    }
    ret[0] = bench_quantile(seen, n, 0.5);
    ret[1] = bench_quantile(seen, n, 0.99);
    for (uint32_t w = 0; w < n_active; w++) {
        c->share_cpu += c->seat[w].cpu;
        c->share_wall += c->seat[w].wall;
    }
}

static void wait_flag(struct child *c, uint32_t value) {
    for (uint32_t i = 1; atomic_load_explicit(&c->flag, memory_order_acquire) != value; i++)
        if (i % 4096 == 0)
            (void)sched_yield();
}

static void play(void *arg, uint32_t worker, uint32_t n_worker) {
    struct child *c = arg;

    if (worker > 1)
        return;
    meet(c);
    for (uint32_t i = 0; i < N_BALL * N_TRIP; i++) {
        if (worker == 1) {
            wait_flag(c, 2 * i + 1);
            atomic_store_explicit(&c->flag, 2 * i + 2, memory_order_release);
            continue;
        }
        if (i % N_TRIP == 0)
            c->ball[i / N_TRIP] = now_sec(CLOCK_MONOTONIC);
        atomic_store_explicit(&c->flag, 2 * i + 1, memory_order_release);
        wait_flag(c, 2 * i + 2);
        if (i % N_TRIP == N_TRIP - 1)
            c->ball[i / N_TRIP] = (now_sec(CLOCK_MONOTONIC) - c->ball[i / N_TRIP]) / N_TRIP;
    }
}

static double ping_pong(struct child *c) {
    if (c->n_worker < 2)
        return 0;
    c->n_active = 2;
    atomic_store(&c->ready, 0);
    atomic_store(&c->flag, 0);
    pool_run(c->pool, play, c);
    return bench_quantile(c->ball, N_BALL, 0.5);
}

/* ---- what the kernel says ---- */

static double read_pressure(const char *what) {
    char path[64];
    double avg = -1;
    FILE *f;

    snprintf(path, sizeof path, "/proc/pressure/%s", what);
    f = fopen(path, "re");
    if (!f)
        return -1;
    if (fscanf(f, "some avg10=%lf", &avg) != 1)
        avg = -1;
    fclose(f);
    return avg;
}

static double read_mhz(void) {
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];
    double mhz = 0;

    if (!f)
        return 0;
    while (mhz == 0 && fgets(line, sizeof line, f))
        (void)!sscanf(line, "cpu MHz : %lf", &mhz);
    fclose(f);
    return mhz;
}

/* The share of CPU time stolen since the last call. */
static double read_steal(struct child *c) {
    enum { STEAL = 7, N_TIME };
    unsigned long long v[N_TIME] = { 0 }, total = 0, steal;
    FILE *f = fopen("/proc/stat", "re");
    double share;

    if (!f)
        return 0;
    (void)!fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", v, v + 1, v + 2, v + 3, v + 4,
                  v + 5, v + 6, v + STEAL);
    fclose(f);
    for (int i = 0; i < N_TIME; i++)
        total += v[i];
    steal = v[STEAL] - c->steal;
    share = total > c->total ? (double)steal / (double)(total - c->total) : 0;
    c->steal = v[STEAL];
    c->total = total;
    return share;
}

static void measure(struct child *c, struct bench_machine *m) {
    double peak[2];

    *m = (struct bench_machine){ .n_worker = c->n_worker };
    c->share_cpu = c->share_wall = 0;
    windows(c, peak_windows, 1, peak);
    m->peak_one = peak[0];
    windows(c, peak_windows, c->n_worker, peak);
    m->peak_all = peak[0];
    windows(c, read_windows, 1, m->read_one);
    windows(c, read_windows, c->n_worker, m->read_all);
    m->cpu_share = c->share_cpu / c->share_wall;
    m->ping_pong = ping_pong(c);

    m->steal = read_steal(c);
    m->pressure[0] = read_pressure("cpu");
    m->pressure[1] = read_pressure("memory");
    m->pressure[2] = read_pressure("io");
    m->mhz = read_mhz();
    (void)getloadavg(&m->load, 1);
}

/* ---- busy CPUs ---- */

static void *hog(void *arg) {
    struct child *c = arg;

    while (atomic_load_explicit(&c->spinning, memory_order_relaxed)) {
    }
    return NULL;
}

static void stop_hogs(struct child *c) {
    atomic_store(&c->spinning, false);
    while (c->n_hog > 0)
        (void)pthread_join(c->hog[--c->n_hog], NULL);
}

static int start_hogs(struct child *c) {
    int r = 0;

    atomic_store(&c->spinning, true);
    while (c->n_hog < c->topo->n_cpu && r == 0) {
        cpu_set_t set;

        r = pthread_create(&c->hog[c->n_hog], NULL, hog, c);
        if (r != 0)
            break;
        CPU_ZERO(&set);
        CPU_SET(c->topo->cpu[c->n_hog].os, &set);
        (void)pthread_setaffinity_np(c->hog[c->n_hog++], sizeof set, &set);
    }
    return r ? err_new(-r) : 0;
}

/* ---- between the two ---- */

enum request { REQUEST_RUN = 'r', REQUEST_SPIN = 's', REQUEST_REST = 'e' };

struct answer {
    int r;
    struct bench_machine machine;
};

struct bench_probe {
    pid_t pid;
    int fd;
};

/* Far larger than the caches that hold a part of it. */
static size_t buffer_size(const struct topo *t) {
    uint64_t size = t->l3 ? 8 * t->l3 : READ_MAX;

    size = size < READ_MAX / 4 ? READ_MAX / 4 : size;
    size = size > READ_MAX ? READ_MAX : size;
    size = size > t->memory / 8 ? t->memory / 8 : size;
    return (size_t)(size / READ_SIZE + 1) * READ_SIZE;
}

static int prepare(struct child *c, uint32_t n_worker) {
    double sec;
    void *buf;
    int r;

    r = topo_new(&c->topo);
    if (r == 0)
        r = pool_new(&c->pool, c->topo, n_worker);
    if (r < 0)
        return err_up(r);
    pool_adopt(c->pool);
    kern_bind(&c->kern, kern_cpu());
    c->n_worker = pool_n_worker(c->pool);
    c->hog = calloc(c->topo->n_cpu, sizeof *c->hog);
    c->size = buffer_size(c->topo);
    r = mem_map(c->n_worker * sizeof *c->seat, false, (void **)&c->seat);
    if (r == 0)
        r = mem_map(c->size, true, &buf);
    if (r < 0 || !c->hog)
        return r < 0 ? err_up(r) : err_new(-ENOMEM);
    c->buf = buf;
    memset(buf, 1, c->size);

    for (c->n_round = 1;; c->n_round *= 2) { /* as many as a window takes */
        sec = now_sec(CLOCK_MONOTONIC);
        (void)c->kern.peak(c->n_round);
        sec = now_sec(CLOCK_MONOTONIC) - sec;
        if (sec >= peak_sec / 2)
            break;
    }
    (void)read_steal(c);
    return 0;
}

static void __attribute__((noreturn)) serve(int fd, uint32_t n_worker) {
    static struct child c;
    struct answer a = { .r = prepare(&c, n_worker) };
    char what;

    while (send(fd, &a, sizeof a, MSG_NOSIGNAL) == sizeof a && recv(fd, &what, 1, 0) == 1) {
        a.r = 0;
        if (what == REQUEST_RUN)
            measure(&c, &a.machine);
        else if (what == REQUEST_SPIN)
            a.r = start_hogs(&c);
        else
            stop_hogs(&c);
    }
    _exit(0);
}

static int hear(struct bench_probe *p, struct answer *ret) {
    ssize_t n = recv(p->fd, ret, sizeof *ret, MSG_WAITALL);

    if (n != sizeof *ret)
        return err_new(n < 0 ? -errno : -EPIPE);
    return err_up(ret->r);
}

static int ask(struct bench_probe *p, char what, struct answer *ret) {
    if (send(p->fd, &what, 1, MSG_NOSIGNAL) != 1)
        return err_new(-errno);
    return err_up(hear(p, ret));
}

int bench_probe_new(struct bench_probe **ret_probe, uint32_t n_worker) {
    AUTO(bench_probe_free) struct bench_probe *p = calloc(1, sizeof *p);
    struct answer a;
    int fd[2], r;

    if (!p)
        return err_new(-ENOMEM);
    p->fd = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0)
        return err_new(-errno);
    p->pid = fork();
    if (p->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)close(fd[0]);
        serve(fd[1], n_worker);
    }
    (void)close(fd[1]);
    p->fd = fd[0];
    if (p->pid < 0)
        return err_new(-errno);
    r = hear(p, &a);
    if (r < 0)
        return err_up(r);

    *ret_probe = take(p);
    return 0;
}

struct bench_probe *bench_probe_free(struct bench_probe *p) {
    if (!p)
        return NULL;

    if (p->fd >= 0)
        (void)close(p->fd);
    if (p->pid > 0) {
        (void)kill(p->pid, SIGKILL);
        (void)waitpid(p->pid, NULL, 0);
    }
    free(p);
    return NULL;
}

int bench_probe_run(struct bench_probe *p, struct bench_machine *ret) {
    struct answer a;
    int r = ask(p, REQUEST_RUN, &a);

    if (r < 0)
        return err_up(r);
    *ret = a.machine;
    return 0;
}

int bench_probe_spin(struct bench_probe *p, bool on) {
    struct answer a;

    return err_up(ask(p, on ? REQUEST_SPIN : REQUEST_REST, &a));
}

enum bench_fault bench_machine_fault(const struct bench_machine *m) {
    if (m->cpu_share < 0.9)
        return BENCH_FAULT_BUSY;
    return m->n_worker > 1 && m->peak_all < 0.95 * m->n_worker * m->peak_one ? BENCH_FAULT_SHARED
                                                                             : BENCH_FAULT__NONE;
}

const char *bench_fault_name(enum bench_fault f) {
    static const char *const name[] = { "none", "busy", "shared core" };

    return name[f];
}
