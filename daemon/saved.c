/* SPDX-License-Identifier: Apache-2.0 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/wire.h"
#include "daemon/rpc.h"
#include "daemon/saved.h"
#include "engine/base/log.h"

enum { SAVED_SESSION_MAX = WIRE_FRAME_MAX + 1024 /* bytes of a .session */ };

/* ---- names ---- */

static bool is_token(const char *s, size_t n) {
    if (n != SAVED_TOKEN)
        return false;
    for (size_t i = 0; i < n; i++)
        if (!strchr("0123456789abcdef", s[i]) || !s[i])
            return false;
    return true;
}

/* Paths of @ret->token. Return: 0 or -ENAMETOOLONG. */
static int set_paths(struct saved *ret, const char *dir, uid_t uid) {
    static const char form[] = "%s/sessions/%u/%s.%s";
    int n = snprintf(ret->session, sizeof ret->session, form, dir, (unsigned)uid, ret->token,
                     "session");
    int m = snprintf(ret->kv, sizeof ret->kv, form, dir, (unsigned)uid, ret->token, "kv");

    return n < (int)sizeof ret->session && m < (int)sizeof ret->kv ? 0 : err_new(-ENAMETOOLONG);
}

static int make_folder(const char *dir, const char *more) {
    char path[PATH_MAX];

    if (snprintf(path, sizeof path, "%s/%s", dir, more) >= (int)sizeof path)
        return err_new(-ENAMETOOLONG);
    return mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : err_new(-errno);
}

int saved_new(const char *dir, uid_t uid, struct saved *ret, struct why *why) {
    uint8_t random[SAVED_TOKEN / 2];
    char folder[32];
    int r;

    if (!dir)
        return why_set(why, RPC_NOT_SUPPORTED, "there is no cache directory to save to");
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return why_set(why, err_new(-errno), "no random numbers: %m");

    for (size_t i = 0; i < sizeof random; i++)
        (void)snprintf(ret->token + 2 * i, 3, "%02x", random[i]);
    (void)snprintf(folder, sizeof folder, "sessions/%u", (unsigned)uid);
    r = set_paths(ret, dir, uid);
    if (!r)
        r = make_folder(dir, "sessions");
    if (!r)
        r = make_folder(dir, folder);
    return r ? why_set(why, r, "%s/%s: %s", dir, folder, strerror(-r)) : 0;
}

int saved_find(const char *dir, uid_t uid, const char *token, size_t n, struct saved *ret,
               struct why *why) {
    struct stat st;

    if (dir && is_token(token, n)) {
        memcpy(ret->token, token, n);
        ret->token[n] = '\0';
        if (set_paths(ret, dir, uid) == 0 && lstat(ret->session, &st) == 0 && S_ISREG(st.st_mode))
            return 0;
    }
    return why_set(why, RPC_NO_SUCH_SESSION, "no saved session has this token");
}

/* ---- contents ---- */

int saved_draft(const char *path, struct saved_draft *ret, struct why *why) {
    static const char tail[] = ".XXXXXX.new";

    ret->fd = -1;
    if (snprintf(ret->path, sizeof ret->path, "%s%s", path, tail) >= (int)sizeof ret->path)
        return err_new(-ENAMETOOLONG);
    ret->fd = mkostemps(ret->path, 4, O_CLOEXEC);
    return ret->fd < 0 ? why_set(why, err_new(-errno), "%s: cannot write: %m", path) : 0;
}

void saved_discard(struct saved_draft *d) {
    if (d->fd < 0)
        return;
    (void)unlink(d->path);
    (void)close(d->fd);
    d->fd = -1;
}

/* The names in the folder of @path are on the disk. */
static int sync_folder(const char *path) {
    char folder[PATH_MAX];
    AUTO(close) int fd = -1;

    (void)snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? err_new(-errno) : 0;
}

/* @d becomes @path. */
static int publish(struct saved_draft *d, const char *path, struct why *why) {
    int r;

    if (fsync(d->fd) < 0 || rename(d->path, path) < 0)
        return why_set(why, err_new(-errno), "%s: cannot write: %m", path);
    (void)close(d->fd);
    d->fd = -1;
    r = sync_folder(path);
    return r < 0 ? why_set(why, err_up(r), "%s: cannot write: %s", path, strerror(-r)) : 0;
}

static int write_text(const struct saved *s, const struct session_blob *blob, struct why *why) {
    struct saved_draft d;
    size_t at = 0;
    int r;

    r = saved_draft(s->session, &d, why);
    if (r < 0)
        return err_up(r);
    while (r == 0 && at < blob->n) {
        ssize_t n = write(d.fd, blob->p + at, blob->n - at);

        if (n < 0 && errno != EINTR)
            r = why_set(why, err_new(-errno), "%s: cannot write: %m", s->session);
        at += n > 0 ? (size_t)n : 0;
    }
    if (r == 0)
        r = publish(&d, s->session, why);
    saved_discard(&d);
    return err_up(r);
}

int saved_write(const struct saved *s, const struct session_blob *blob, struct saved_draft *kv,
                struct why *why) {
    struct why kv_why;
    int r;

    (void)unlink(s->kv); /* of what was said before */
    r = write_text(s, blob, why);
    if (r == 0 && kv->fd >= 0 && publish(kv, s->kv, &kv_why) < 0)
        log_warning("saved", "%s", kv_why.text);
    saved_discard(kv);
    return err_up(r);
}

int saved_read(const struct saved *s, struct session_blob *ret, struct why *why) {
    AUTO(close) int fd = open(s->session, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    AUTO(free) char *p = NULL;
    struct stat st;
    size_t at = 0;

    if (fd < 0 && errno == ENOENT)
        return why_set(why, RPC_NO_SUCH_SESSION, "the saved session is gone");
    if (fd < 0 || fstat(fd, &st) < 0)
        return why_set(why, err_new(-errno), "%s: cannot read: %m", s->session);
    if (!S_ISREG(st.st_mode) || st.st_size > SAVED_SESSION_MAX)
        return why_set(why, RPC_CORRUPT, "the saved session is damaged: too large");
    p = malloc((size_t)st.st_size + 1);
    if (!p)
        return err_new(-ENOMEM);
    while (at < (size_t)st.st_size) {
        ssize_t n = read(fd, p + at, (size_t)st.st_size - at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return why_set(why, err_new(-errno), "%s: cannot read: %m", s->session);
        if (n == 0)
            break;
        at += (size_t)n;
    }

    (void)futimens(fd, NULL); /* what is used is not what goes first */
    *ret = (struct session_blob){ take(p), at };
    return 0;
}

int saved_open_kv(const struct saved *s) {
    int fd = open(s->kv, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd < 0)
        return err_new(-errno);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
    return fd;
}

bool saved_has_kv(const struct saved *s) {
    return access(s->kv, F_OK) == 0;
}

void saved_remove(const struct saved *s) {
    (void)unlink(s->session);
    (void)unlink(s->kv);
}

/* ---- the bound ---- */

enum { KV, TEXT, N_KIND };

struct entry {
    struct saved saved;
    uid_t uid;
    uint64_t size[N_KIND];
    struct timespec used;
};

struct entries {
    const char *dir;
    struct entry **at; /* [n] */
    size_t n;
};

static void entries_deinit(struct entries *e) {
    for (size_t i = 0; i < e->n; i++)
        free(e->at[i]);
    free(e->at);
}

static int entries_add(struct entries *e, uid_t uid, const char *token) {
    AUTO(free) struct entry *new = calloc(1, sizeof *new);
    struct entry **at = realloc(e->at, (e->n + 1) * sizeof *at);
    struct stat st;

    if (at)
        e->at = at;
    if (!new || !at)
        return err_new(-ENOMEM);
    new->uid = uid;
    memcpy(new->saved.token, token, SAVED_TOKEN);
    if (set_paths(&new->saved, e->dir, uid))
        return 0;
    for (int kind = 0; kind < N_KIND; kind++) /* the text's time counts, if there is one */
        if (lstat(kind == TEXT ? new->saved.session : new->saved.kv, &st) == 0) {
            new->used = st.st_mtim;
            new->size[kind] = (uint64_t)st.st_blocks * 512;
        }
    e->at[e->n++] = take(new);
    return 0;
}

/* Is @name what one session goes by: its .session, or the .kv of one that was never written? */
static bool stands_for_one(int folder, const char *name) {
    char session[SAVED_TOKEN + sizeof ".session"];

    if (strlen(name) <= SAVED_TOKEN || !is_token(name, SAVED_TOKEN))
        return false;
    if (strcmp(name + SAVED_TOKEN, ".session") == 0)
        return true;
    (void)snprintf(session, sizeof session, "%.*s.session", SAVED_TOKEN, name);
    return strcmp(name + SAVED_TOKEN, ".kv") == 0 && faccessat(folder, session, F_OK, 0) < 0;
}

/* Call @each with the names in CACHE/sessions/@user and their folder, until it says no. */
typedef int each_fn(void *arg, int folder, const char *user, const char *name);

static int walk_user(const char *dir, const char *user, each_fn *each, void *arg) {
    char path[PATH_MAX];
    struct dirent *d;
    int r = 0;
    DIR *at;

    (void)snprintf(path, sizeof path, "%s/sessions/%.20s", dir, user);
    at = opendir(path);
    while (at && r == 0 && (d = readdir(at)))
        r = each(arg, dirfd(at), user, d->d_name);
    if (at)
        (void)closedir(at);
    return err_up(r);
}

static int walk(const char *dir, each_fn *each, void *arg) {
    char path[PATH_MAX];
    struct dirent *d;
    int r = 0;
    DIR *at;

    (void)snprintf(path, sizeof path, "%s/sessions", dir);
    at = opendir(path);
    while (at && r == 0 && (d = readdir(at)))
        if (d->d_name[0] != '.')
            r = walk_user(dir, d->d_name, each, arg);
    if (at)
        (void)closedir(at);
    return err_up(r);
}

static int clean(void *arg, int folder, const char *user, const char *name) {
    size_t n = strlen(name);

    if (n > SAVED_TOKEN && is_token(name, SAVED_TOKEN) && strcmp(name + n - 4, ".new") == 0)
        (void)unlinkat(folder, name, 0);
    return 0;
}

void saved_clean(const char *dir) {
    if (dir)
        (void)walk(dir, clean, NULL);
}

static int collect(void *arg, int folder, const char *user, const char *name) {
    struct entries *e = arg;

    return stands_for_one(folder, name)
               ? err_up(entries_add(e, (uid_t)strtoul(user, NULL, 10), name))
               : 0;
}

static uint64_t size_of(const struct entries *e, uid_t uid, int kind) {
    uint64_t n = 0;

    for (size_t i = 0; i < e->n; i++)
        n += e->at[i]->uid == uid ? e->at[i]->size[kind] : 0;
    return n;
}

static bool older(const struct entry *a, const struct entry *b) {
    return a->used.tv_sec != b->used.tv_sec ? a->used.tv_sec < b->used.tv_sec
                                            : a->used.tv_nsec < b->used.tv_nsec;
}

/* The oldest of the user who has the most of @kind. NULL: there is none. */
static struct entry *pick(const struct entries *e, int kind) {
    struct entry *best = NULL;
    uint64_t most = 0;

    for (size_t i = 0; i < e->n; i++) {
        struct entry *at = e->at[i];
        uint64_t n = at->size[kind] ? size_of(e, at->uid, kind) : 0;

        if (n > most || (best && n && at->uid == best->uid && older(at, best))) {
            best = at;
            most = n;
        }
    }
    return best;
}

void saved_trim(const char *dir, uint64_t max) {
    struct entries e = { .dir = dir };
    struct entry *old;
    uint64_t n = 0;
    int r;

    r = walk(dir, collect, &e);
    if (r)
        log_warning("saved", "%s/sessions: %s", dir, strerror(-r));
    for (size_t i = 0; i < e.n; i++)
        n += e.at[i]->size[KV] + e.at[i]->size[TEXT];
    for (int kind = 0; kind < N_KIND; kind++)
        while (n > max && (old = pick(&e, kind))) {
            log_info("saved", "user %u: %s a saved session goes, for want of room",
                     (unsigned)old->uid, kind == KV ? "what was evaluated of" : "the text of");
            (void)unlink(kind == KV ? old->saved.kv : old->saved.session);
            n -= old->size[kind];
            old->size[kind] = 0;
        }
    entries_deinit(&e);
}

/* ---- the list ---- */

static int later_first(const void *a, const void *b) {
    const struct saved_item *x = a, *y = b;

    if (x->used.tv_sec != y->used.tv_sec)
        return x->used.tv_sec < y->used.tv_sec ? 1 : -1;
    return (x->used.tv_nsec < y->used.tv_nsec) - (x->used.tv_nsec > y->used.tv_nsec);
}

int saved_list(const char *dir, uid_t uid, struct saved_item **ret_item, size_t *ret_n) {
    struct entries e = { .dir = dir };
    struct saved_item *item = NULL;
    char user[16];
    size_t n = 0;
    int r = 0;

    (void)snprintf(user, sizeof user, "%u", (unsigned)uid);
    if (dir)
        r = walk_user(dir, user, collect, &e);
    if (!r && !(item = calloc(e.n + 1, sizeof *item)))
        r = err_new(-ENOMEM);
    for (size_t i = 0; !r && i < e.n; i++) {
        const struct entry *at = e.at[i];

        if (!at->size[TEXT])
            continue; /* keys and values alone cannot be restored */
        item[n] = (struct saved_item){ .n_byte = at->size[TEXT],
                                       .n_kv_byte = at->size[KV],
                                       .used = at->used };
        (void)strcpy(item[n++].token, at->saved.token);
    }
    entries_deinit(&e);
    if (r)
        return err_up(r);

    qsort(item, n, sizeof *item, later_first);
    *ret_item = item;
    *ret_n = n;
    return 0;
}
