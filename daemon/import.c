/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <nettle/sha2.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/import.h"
#include "daemon/origin.h"
#include "daemon/rpc.h"
#include "engine/base/log.h"
#include "engine/base/utf8.h"

enum {
    CHUNK = 1 << 20,    /* bytes of one read; a cancel is noticed between two */
    LOOK_USEC = 200000, /* between two looks at what runs */
    LEAVE_SEC = 2,      /* for a read that hangs, when the service stops */
    ID_MAX = 200,       /* bytes */
    PATH_SIZE = 4096,
};

/* One import, or verification. The thread owns what is not atomic until .over. */
struct import {
    LIST_ENTRY(import) link;
    struct imports *all;
    struct task *task;
    pthread_t thread;

    int fd;
    enum import_mode mode;
    bool verify;
    char path[PATH_SIZE], new[PATH_SIZE]; /* of the model, and while it is not whole */
    struct origin origin;                 /* digest: that it must have, or "" */
    uint64_t total;

    _Atomic uint64_t done;
    atomic_bool stop, over;
    int code; /* 0, an RPC_* error, or -errno */
    struct why why;
};

struct imports {
    struct tasks *tasks;
    struct models *models;
    struct event *timer; /* looks at what runs */
    LIST_HEAD(, import) list;
    uint32_t n;
};

bool import_parse_mode(const char *s, size_t n, enum import_mode *ret_mode) {
    static const char *const names[] = { "", "reference", "reflink", "copy" };

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == n && memcmp(names[i], s, n) == 0) {
            *ret_mode = (enum import_mode)i;
            return true;
        }
    return false;
}

/* ---- the thread ---- */

static int write_all(int fd, const uint8_t *p, size_t n) {
    while (n) {
        ssize_t k = write(fd, p, n);

        if (k < 0 && errno != EINTR)
            return err_new(-errno);
        p += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
    }
    return 0;
}

/* Read all of .fd, and write it to @to unless that is -1. */
static int read_file(struct import *m, int to, char digest[ORIGIN_DIGEST]) {
    AUTO(free) uint8_t *buf = malloc(CHUNK);
    uint8_t sum256[SHA256_DIGEST_SIZE];
    struct sha256_ctx sum;
    uint64_t at = 0;
    ssize_t n;
    int r = 0;

    if (!buf)
        return err_new(-ENOMEM);
    sha256_init(&sum);
    while (!r && (n = pread(m->fd, buf, CHUNK, (off_t)at)) != 0) {
        if (atomic_load(&m->stop))
            return RPC_CANCELLED;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return why_set(&m->why, RPC_INTERNAL, "the file cannot be read: %m");
        sha256_update(&sum, (size_t)n, buf);
        if (to >= 0)
            r = write_all(to, buf, (size_t)n);
        at += (uint64_t)n;
        atomic_store(&m->done, at);
    }
    if (r)
        return why_set(&m->why, RPC_INTERNAL, "it cannot be written: %s", strerror(-r));
    sha256_digest(&sum, sizeof sum256, sum256);
    for (size_t i = 0; i < sizeof sum256; i++)
        (void)snprintf(digest + 2 * i, 3, "%02x", sum256[i]);
    return 0;
}

/* A link to where the file is, if we find it there ourselves. */
static int link_file(struct import *m) {
    char from[64], path[PATH_SIZE];
    AUTO(close) int fd = -1;
    struct stat a, b;
    ssize_t n;

    (void)snprintf(from, sizeof from, "/proc/self/fd/%d", m->fd);
    n = readlink(from, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &a) < 0 || fstat(m->fd, &b) < 0 || a.st_dev != b.st_dev ||
        a.st_ino != b.st_ino)
        return why_set(&m->why, RPC_NOT_SUPPORTED,
                       "the service itself cannot open the file where it is: it must be copied");
    return symlink(path, m->new) < 0 ? err_new(-errno) : 0;
}

/* Bring the file to .new, and read it. */
static int fetch(struct import *m, char digest[ORIGIN_DIGEST]) {
    AUTO(close) int to = -1;
    bool shared = false;
    int r = 0;

    if (m->mode == IMPORT_REFERENCE)
        r = link_file(m);
    else
        to = open(m->new, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (!r && m->mode != IMPORT_REFERENCE && to < 0)
        r = why_set(&m->why, RPC_INTERNAL, "%.150s: cannot create: %m", m->new);
    if (!r && to >= 0 && m->mode != IMPORT_COPY)
        shared = ioctl(to, FICLONE, m->fd) == 0;
    if (!r && m->mode == IMPORT_REFLINK && !shared)
        r = why_set(&m->why, RPC_NOT_SUPPORTED, "the file system does not share blocks: %m");
    if (!r)
        r = read_file(m, shared ? -1 : to, digest);
    if (!r && to >= 0 && fsync(to) < 0)
        r = err_new(-errno);
    return err_up(r);
}

static void on_meta(void *arg, const char *key, bool array, const struct engine_value *v,
                    size_t n) {
}

static void on_tensor(void *arg, const struct engine_tensor *t) {
}

static int check(struct import *m, const char *path, const char *digest) {
    static const struct engine_describe_ops ops = { on_meta, on_tensor };
    struct why why = { 0 };
    int r;

    if (m->origin.digest[0] && strcmp(m->origin.digest, digest) != 0)
        return why_set(&m->why, RPC_CORRUPT, "its digest is %s, not %s", digest, m->origin.digest);
    r = engine_describe(path, &ops, NULL, &why);
    if (r > 0)
        return why_set(&m->why, RPC_CORRUPT, "%.200s", why.text);
    return err_up(r);
}

static int import(struct import *m) {
    char digest[ORIGIN_DIGEST] = "";
    int r;

    (void)unlink(m->new); /* of one that was interrupted */
    r = fetch(m, digest);
    if (!r)
        r = check(m, m->new, digest);
    if (!r) {
        (void)strcpy(m->origin.digest, digest);
        r = origin_write(m->path, &m->origin);
    }
    if (!r && renameat2(AT_FDCWD, m->new, AT_FDCWD, m->path, RENAME_NOREPLACE) < 0) {
        r = err_new(-errno);
        if (r != -EEXIST)
            origin_remove(m->path);
    }
    if (r)
        (void)unlink(m->new);
    return err_up(r);
}

static int verify(struct import *m) {
    char digest[ORIGIN_DIGEST];
    int r;

    m->fd = open(m->path, O_RDONLY | O_CLOEXEC);
    if (m->fd < 0)
        return why_set(&m->why, RPC_MODEL_UNAVAILABLE, "%.150s: cannot read: %m", m->path);
    r = read_file(m, -1, digest);
    if (!r)
        r = check(m, m->path, digest);
    if (!r && !m->origin.digest[0]) {
        (void)strcpy(m->origin.digest, digest);
        (void)origin_write(m->path,
                           &m->origin); /* a folder that is not ours to write stays as is */
    }
    return err_up(r);
}

static void *run(void *arg) {
    struct import *m = arg;

    m->code = m->verify ? verify(m) : import(m);
    atomic_store(&m->over, true);
    return NULL;
}

/* ---- what runs ---- */

static void import_end(struct import *m) {
    static const enum task_state states[] = { TASK_DONE, TASK_FAILED, TASK_CANCELLED };
    int how = m->code == RPC_CANCELLED ? 2 : m->code != 0;

    if (m->code < 0)
        (void)why_set(&m->why, 0, "%s", strerror(-m->code));
    if (how == 2)
        (void)why_set(&m->why, 0, "it was cancelled");
    log_info("import", "%s: %s %s%s%s", m->task->model, tasks_kind_name(m->task->kind),
             tasks_state_name(states[how]), how ? ": " : "", how ? m->why.text : "");
    m->task->code = m->code < 0 ? RPC_INTERNAL : m->code;
    tasks_progress(m->task, atomic_load(&m->done), m->total);
    tasks_end(m->task, states[how], how ? &m->why : NULL);
    LIST_REMOVE(m, link);
    m->all->n--;
    if (m->fd >= 0)
        (void)close(m->fd);
    free(m);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    struct timeval tv = clock_timeval(LOOK_USEC);
    struct imports *all = arg;
    struct import *m, *next;
    bool over = false;

    for (m = LIST_FIRST(&all->list); m; m = next) {
        next = LIST_NEXT(m, link);
        if (atomic_load(&m->over)) {
            (void)pthread_join(m->thread, NULL);
            over = true;
            import_end(m);
        } else if (m->task->done != atomic_load(&m->done)) {
            tasks_progress(m->task, atomic_load(&m->done), m->total);
        }
    }
    if (over)
        models_look(all->models);
    if (!LIST_EMPTY(&all->list))
        (void)event_add(all->timer, &tv);
}

static void on_cancel(void *arg) {
    struct import *m = arg;

    atomic_store(&m->stop, true);
}

/* Takes @own on 0. */
static int start(struct imports *all, struct import *own, const char *id, uid_t uid,
                 struct task **ret_task, struct why *why) {
    struct timeval tv = clock_timeval(LOOK_USEC / 4);
    int r;

    if (all->n >= IMPORT_MAX)
        return why_set(why, RPC_BUSY, "%d imports and verifications run, no more do at a time",
                       IMPORT_MAX);
    own->all = all;
    r = tasks_begin(&own->task, all->tasks, own->verify ? TASK_VERIFY : TASK_IMPORT, id, uid,
                    on_cancel, own);
    if (r)
        return err_up(r);
    tasks_progress(own->task, 0, own->total);
    r = -pthread_create(&own->thread, NULL, run, own);
    if (r) {
        tasks_end(own->task, TASK_FAILED, NULL);
        return err_new(r);
    }

    LIST_INSERT_HEAD(&all->list, own, link);
    all->n++;
    (void)event_add(all->timer, &tv);
    *ret_task = own->task;
    return 0;
}

/* ---- requests ---- */

/* A name that is a model's file and nothing else's. */
static int check_id(const char *id, struct why *why) {
    size_t n = strlen(id);

    if (!n || n > ID_MAX || id[0] == '.' || strchr(id, '/') || !utf8_valid(id, n) ||
        strncmp(id, "mmproj-", 7) == 0 || strncmp(id, "mtp-", 4) == 0 || strstr(id, "-of-"))
        return why_set(why, RPC_INVALID_ARGS, "id: '%.100s' can not be a model's", id);
    for (const char *s = id; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 0x7f)
            return why_set(why, RPC_INVALID_ARGS, "id: a control character");
    return 0;
}

static int check_words(const struct import_file *f, struct why *why) {
    const char *s = f->license ?: "", *d = f->digest;

    if (d && !origin_is_digest(d))
        return why_set(why, RPC_INVALID_ARGS, "digest: not a SHA-256 in %d hexadecimal digits",
                       ORIGIN_DIGEST - 1);
    if (strlen(s) > 200 || !utf8_valid(s, strlen(s)) || strpbrk(s, "\r\n"))
        return why_set(why, RPC_INVALID_ARGS,
                       "license: more than 200 bytes, or more than one line");
    return 0;
}

/* Anything else but a readable file is refused before it is read: a pipe would never end. */
static int check_file(int fd, uint64_t *ret_size, struct why *why) {
    int flags = fcntl(fd, F_GETFL);
    struct stat st;

    if (flags < 0 || fstat(fd, &st) < 0)
        return err_new(-errno);
    if (!S_ISREG(st.st_mode) || flags & O_PATH || (flags & O_ACCMODE) == O_WRONLY)
        return why_set(why, RPC_INVALID_ARGS,
                       "the descriptor is of no regular file open for reading");
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

static bool is_underway(const struct imports *all, const char *path) {
    const struct import *m = LIST_FIRST(&all->list);

    while (m && (m->verify || strcmp(m->path, path) != 0))
        m = LIST_NEXT(m, link);
    return m != NULL;
}

int import_begin(struct imports *all, const struct import_file *f, struct task **ret_task,
                 struct why *why) {
    AUTO(free) struct import *m = calloc(1, sizeof *m);
    const char *dir = models_folder(all->models);
    int r;

    if (!m)
        return err_new(-ENOMEM);
    r = check_id(f->id, why);
    if (!r)
        r = check_words(f, why);
    if (!r)
        r = check_file(f->fd, &m->total, why);
    if (r)
        return err_up(r);
    if (!dir)
        return why_set(why, RPC_NOT_SUPPORTED, "one file is served, and no folder");
    if (models_find(all->models, f->id))
        return why_set(why, RPC_INVALID_ARGS, "there is a model with the id %.100s", f->id);

    m->mode = f->mode;
    if ((size_t)snprintf(m->path, sizeof m->path, "%s/%s.gguf", dir, f->id) >= sizeof m->path ||
        (size_t)snprintf(m->new, sizeof m->new, "%s/.%s.gguf.new", dir, f->id) >= sizeof m->new)
        return err_new(-ENAMETOOLONG);
    if (is_underway(all, m->path))
        return why_set(why, RPC_INVALID_ARGS, "%.100s is being imported", f->id);
    (void)snprintf(m->origin.digest, sizeof m->origin.digest, "%s", f->digest ?: "");
    (void)snprintf(m->origin.license, sizeof m->origin.license, "%s", f->license ?: "");
    m->fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 3);
    if (m->fd < 0)
        return err_new(-errno);
    r = start(all, m, f->id, f->uid, ret_task, why);
    if (r)
        (void)close(m->fd);
    else
        (void)take(m);
    return err_up(r);
}

int import_verify(struct imports *all, const char *id, uid_t uid, struct task **ret_task,
                  struct why *why) {
    AUTO(free) struct import *m = calloc(1, sizeof *m);
    const struct registry_file *f = models_find(all->models, id);
    struct stat st;
    int r;

    if (!m)
        return err_new(-ENOMEM);
    if (!f)
        return why_set(why, RPC_NO_SUCH_MODEL, "no model with the id %.100s", id);
    if (stat(f->path, &st) == 0 && (uint64_t)st.st_size != f->size)
        return why_set(why, RPC_NOT_SUPPORTED, "%.100s is in parts, which have no digest", id);

    m->verify = true;
    m->fd = -1;
    m->total = f->size;
    (void)snprintf(m->path, sizeof m->path, "%s", f->path);
    origin_read(f->path, &m->origin);
    r = start(all, m, id, uid, ret_task, why);
    if (!r)
        (void)take(m);
    return err_up(r);
}

/* ---- life ---- */

/* A read that hangs, of a file system that does, is not waited for: the process ends. */
struct imports *import_free(struct imports *all) {
    struct timespec until;
    struct import *m;

    if (!all)
        return NULL;

    for (m = LIST_FIRST(&all->list); m; m = LIST_NEXT(m, link))
        atomic_store(&m->stop, true);
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += LEAVE_SEC;
    while ((m = LIST_FIRST(&all->list))) {
        if (pthread_clockjoin_np(m->thread, NULL, CLOCK_MONOTONIC, &until) == 0) {
            import_end(m);
            continue;
        }
        log_warning("import", "%s: its file can not be read to the end", m->task->model);
        LIST_REMOVE(m, link); /* the thread's, for as long as it takes */
    }
    if (all->timer)
        event_free(all->timer);
    free(all);
    return NULL;
}

int import_new(struct imports **ret_all, struct event_base *base, struct tasks *tasks,
               struct models *models) {
    AUTO(import_free) struct imports *all = calloc(1, sizeof *all);

    if (!all)
        return err_new(-ENOMEM);
    all->tasks = tasks;
    all->models = models;
    LIST_INIT(&all->list);
    all->timer = evtimer_new(base, on_timer, all);
    if (!all->timer)
        return err_new(-ENOMEM);

    *ret_all = take(all);
    return 0;
}
