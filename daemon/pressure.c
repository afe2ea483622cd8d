/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/pressure.h"
#include "engine/base/log.h"
#include "engine/engine.h"

#define PSI_PATH "/proc/pressure/memory"
#define PSI_SIGN "some 200000 2000000" /* usec stalled, of so many */
#define PSI_LAST "full 1000000 2000000"

enum { PRESSURE_SOURCE_MAX = 2, PRESSURE_WRITE_MAX = 4096 /* bytes */ };

struct source {
    struct pressure *p;
    int fd;   /* what is watched */
    int poll; /* an epoll that has it, for POLLPRI, which libevent does not know; -1: none */
    bool last;
    char kind[8];          /* of stall that is watched, "some" or "full"; "": unknown */
    uint64_t least, total; /* usec of stall that make a sign; that there were at the last one */
    struct event *event;
};

struct pressure {
    struct event_base *base;
    struct source source[PRESSURE_SOURCE_MAX];
    struct event *timer;
    struct timeval calm;
    unsigned level;
    pressure_fn *fn;
    void *arg;
};

static void set_level(struct pressure *p, unsigned level) {
    if (level)
        (void)event_add(p->timer, &p->calm); /* from now on again */
    if (level == p->level)
        return;
    log_info("pressure", "memory: level %u of %d", level, PRESSURE_MAX);
    p->level = level;
    p->fn(p->arg, level);
}

static void on_calm(evutil_socket_t fd, short what, void *arg) {
    struct pressure *p = arg;

    if (p->level)
        set_level(p, p->level - 1);
}

/* Bytes to spare that are enough, whatever stalls. */
static uint64_t ample(void) {
    uint64_t eighth = (uint64_t)sysconf(_SC_PHYS_PAGES) / 8 * (uint64_t)sysconf(_SC_PAGESIZE);

    return eighth < PRESSURE_AMPLE ? eighth : PRESSURE_AMPLE;
}

/* Usec that the kernel says tasks were stalled so far, in the line that @s->kind begins.
 * Return: does it say so? */
static bool read_total(const struct source *s, uint64_t *ret_total) {
    char buf[512], *line, *at;
    ssize_t n = s->kind[0] ? pread(s->fd, buf, sizeof buf - 1, 0) : -1;

    if (n < 0)
        return false;
    buf[n] = '\0';
    line = strstr(buf, s->kind);
    at = line ? strstr(line, "total=") : NULL;
    return at && sscanf(at, "total=%" SCNu64, ret_total) == 1;
}

/* Was there as much stall as was asked for since the last sign, and is it for want of memory? Of a
 * trigger that is new, kernels may take for its first window all the stall there ever was. And they
 * count as stall that pages are read again which went long ago, as weights are after a start. */
static bool is_true(struct source *s) {
    uint64_t total;

    if (!read_total(s, &total))
        return true;
    if (total - s->total < s->least)
        return false;
    s->total = total;
    return engine_memory_spare() < ample();
}

/* Of a file the sign is that the epoll became readable; looking there again only clears that. */
static void on_sign(evutil_socket_t fd, short what, void *arg) {
    struct source *s = arg;
    struct epoll_event ev;
    char buf[512];
    ssize_t n;

    if (s->poll >= 0) {
        (void)epoll_wait(s->poll, &ev, 1, 0);
        if (!is_true(s))
            return;
    } else {
        n = read(s->fd, buf, sizeof buf);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            log_warning("pressure", "the source of signs is gone: %s", n ? strerror(errno) : "end");
            event_free(s->event);
            s->event = NULL;
            return;
        }
    }
    set_level(s->p, s->last || s->p->level == PRESSURE_MAX ? PRESSURE_MAX : s->p->level + 1);
}

/* ---- sources ---- */

static int connect_unix(const char *path) {
    AUTO(close) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    if (fd < 0)
        return err_new(-errno);
    if (strlen(path) >= sizeof addr.sun_path)
        return err_new(-ENAMETOOLONG);
    memcpy(addr.sun_path, path, strlen(path));
    if (connect(fd, (const struct sockaddr *)&addr, sizeof addr) < 0)
        return err_new(-errno);
    return take_fd(&fd);
}

/* A FIFO is opened for both ends, so that it has no end when a writer leaves. */
static int open_source(const char *path, mode_t *ret_mode) {
    struct stat st;
    int fd;

    if (stat(path, &st) < 0)
        return err_new(-errno);
    *ret_mode = st.st_mode;
    if (S_ISSOCK(st.st_mode))
        return err_up(connect_unix(path));
    fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    return fd < 0 ? err_new(-errno) : fd;
}

/* @say: what was written there, [@n_say] */
static int watch_file(struct source *s, const char *say, size_t n_say) {
    struct epoll_event ev = { .events = EPOLLPRI };
    char line[64];

    (void)snprintf(line, sizeof line, "%.*s", (int)(n_say < sizeof line ? n_say : 0), say ?: "");
    if (sscanf(line, "%7[a-z] %" SCNu64, s->kind, &s->least) != 2 || !read_total(s, &s->total))
        s->kind[0] = '\0';

    s->poll = epoll_create1(EPOLL_CLOEXEC);
    if (s->poll < 0 || epoll_ctl(s->poll, EPOLL_CTL_ADD, s->fd, &ev) < 0)
        return err_new(-errno);
    return 0;
}

/* Return: 0 or -errno; what was opened is @s's in any case. */
static int watch(struct source *s, const char *path, const void *say, size_t n_say) {
    mode_t mode;
    int r;

    s->fd = open_source(path, &mode);
    if (s->fd < 0)
        return err_up(s->fd);
    if (n_say && !S_ISFIFO(mode) && write(s->fd, say, n_say) < 0)
        return err_new(-errno);
    r = S_ISFIFO(mode) || S_ISSOCK(mode) ? 0 : watch_file(s, say, n_say);
    if (r < 0)
        return err_up(r);
    s->event =
        event_new(s->p->base, s->poll >= 0 ? s->poll : s->fd, EV_READ | EV_PERSIST, on_sign, s);
    return s->event && event_add(s->event, NULL) == 0 ? 0 : err_new(-ENOMEM);
}

/* Bytes that base64 text @s stands for, into @to [PRESSURE_WRITE_MAX]. Return: how many, or
 * -EINVAL. */
static int decode(const char *s, uint8_t *to) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0, n_bit = 0;
    int n = 0;

    for (; *s && *s != '='; s++) {
        const char *d = strchr(digits, *s);

        if (!d || n == PRESSURE_WRITE_MAX)
            return err_new(-EINVAL);
        bits = bits << 6 | (uint32_t)(d - digits);
        n_bit += 6;
        if (n_bit >= 8) {
            n_bit -= 8;
            to[n++] = (uint8_t)(bits >> n_bit);
        }
    }
    return s[strspn(s, "=")] ? err_new(-EINVAL) : n;
}

static int watch_env(struct source *s, const char *path) {
    const char *say = getenv("MEMORY_PRESSURE_WRITE");
    uint8_t bytes[PRESSURE_WRITE_MAX];
    int n = say ? decode(say, bytes) : 0;

    return n < 0 ? err_up(n) : err_up(watch(s, path, bytes, (size_t)n));
}

static int watch_all(struct pressure *p, const char *path) {
    const char *env = getenv("MEMORY_PRESSURE_WATCH");
    int r;

    if (path)
        return strcmp(path, "/dev/null") == 0 ? 0 : err_up(watch(&p->source[0], path, NULL, 0));
    if (env)
        return strcmp(env, "/dev/null") == 0 ? 0 : err_up(watch_env(&p->source[0], env));

    r = watch(&p->source[0], PSI_PATH, PSI_SIGN, sizeof PSI_SIGN);
    if (r < 0)
        return err_up(r);
    p->source[1].last = true;
    return err_up(watch(&p->source[1], PSI_PATH, PSI_LAST, sizeof PSI_LAST));
}

/* ---- life ---- */

unsigned pressure_level(const struct pressure *p) {
    return p->level;
}

struct pressure *pressure_free(struct pressure *p) {
    if (!p)
        return NULL;
    for (int i = 0; i < PRESSURE_SOURCE_MAX; i++) {
        struct source *s = &p->source[i];

        if (s->event)
            event_free(s->event);
        auto_close(&s->poll);
        auto_close(&s->fd);
    }
    if (p->timer)
        event_free(p->timer);
    free(p);
    return NULL;
}

int pressure_new(struct pressure **ret_p, struct event_base *base, const char *path, usec_t calm,
                 pressure_fn *level, void *arg) {
    AUTO(pressure_free) struct pressure *p = calloc(1, sizeof *p);
    int r;

    if (!p)
        return err_new(-ENOMEM);
    p->base = base;
    p->calm = clock_timeval(calm);
    p->fn = level;
    p->arg = arg;
    for (int i = 0; i < PRESSURE_SOURCE_MAX; i++)
        p->source[i] = (struct source){ .p = p, .fd = -1, .poll = -1 };
    p->timer = evtimer_new(base, on_calm, p);
    if (!p->timer)
        return err_new(-ENOMEM);

    r = watch_all(p, path);
    if (r < 0)
        log_warning("pressure", "memory pressure is not watched: %s", strerror(-r));
    *ret_p = take(p);
    return 0;
}
