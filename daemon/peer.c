/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "daemon/peer.h"
#include "engine/base/utf8.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

enum { PEER_CGROUP_MAX = 16384, PEER_PATH_MAX = 2048 /* bytes */ };

/* ---- files ---- */

/* All of a small file, terminated. Return: is there anything? */
static bool read_small(const char *path, char *buf, size_t size) {
    AUTO(close) int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t n = 0;
    ssize_t k;

    if (fd < 0)
        return false;
    while (n + 1 < size && (k = read(fd, buf + n, size - 1 - n)) > 0)
        n += (size_t)k;
    buf[n] = '\0';
    return n > 0;
}

/* cpu.weight of the first @n bytes of @path; 0: unknown. */
static uint32_t read_weight(const char *root, const char *path, size_t n, bool v1) {
    char file[PEER_PATH_MAX + 256], text[32];
    unsigned long w;

    (void)snprintf(file, sizeof file, "%s/sys/fs/cgroup%s%.*s/cpu.%s", root, v1 ? "/cpu" : "",
                   (int)n, path, v1 ? "shares" : "weight");
    if (!read_small(file, text, sizeof text))
        return 0;
    w = strtoul(text, NULL, 10);
    if (v1)
        w = (w > 1 << 20 ? 1 << 20 : w) * 100 / 1024;
    return w > 10000 ? 10000 : (uint32_t)w;
}

/* ---- cgroup paths ---- */

/* The path in the line of @cgroup whose controllers are @what, or contain it. Return: its length;
 * 0: none, or the root. */
static size_t find_path(const char *cgroup, const char *what, const char **ret_path) {
    for (const char *line = cgroup; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        const char *name = memchr(line, ':', strcspn(line, "\n"));
        const char *end = name ? memchr(name + 1, ':', strcspn(name + 1, "\n")) : NULL;
        size_t n_what = strlen(what), n;

        if (!end)
            continue;
        name++;
        while (name < end && n_what > 0 &&
               !(strncmp(name, what, n_what) == 0 && strchr(",:", name[n_what])))
            name += strcspn(name, ",:") + (name[strcspn(name, ",:")] == ',');
        if (n_what > 0 ? name >= end : name != end)
            continue;
        n = strcspn(end + 1, "\n");
        if (n > 1 && n < PEER_PATH_MAX && end[1] == '/') {
            *ret_path = end + 1;
            return n;
        }
    }
    return 0;
}

static bool ends_in(const char *s, size_t n, const char *suffix) {
    size_t k = strlen(suffix);

    return n > k && memcmp(s + n - k, suffix, k) == 0;
}

static bool is(const char *s, size_t n, const char *word) {
    return strlen(word) == n && memcmp(s, word, n) == 0;
}

static uint64_t hash(const char *s, size_t n) {
    uint64_t h = 0xcbf29ce484222325; /* FNV-1a */

    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3;
    return h;
}

/* A name is said to clients: of a path's bytes that are no characters remain question marks. */
static void make_text(char *s) {
    for (size_t n = strlen(s), k; n > 0; s += k, n -= k) {
        k = utf8_len(s, n);
        if (k == 0 || (unsigned char)*s < ' ') {
            *s = '?';
            k = 1;
        }
    }
}

void peer_read_cgroup(struct peer *p, const char *cgroup, const char *root) {
    const char *path = NULL, *cpu = NULL;
    size_t n = find_path(cgroup, "", &path), n_cpu = find_path(cgroup, "cpu", &cpu);
    size_t user = 0, outer = 0, unit = 0; /* where the paths of these end */
    char slice[32];

    if (n == 0)
        n = find_path(cgroup, "name=systemd", &path);
    (void)snprintf(slice, sizeof slice, "user-%u.slice", (unsigned)p->uid);
    for (size_t at = 1, k; at < n; at += k + 1) {
        const char *s = path + at;

        k = strcspn(s, "/\n");
        if (is(s, k, "..")) /* of another namespace */
            return;
        p->background |= is(s, k, "background.slice");
        if (!user && is(s, k, slice))
            user = at + k;
        if (!ends_in(s, k, ".service") && !ends_in(s, k, ".scope"))
            continue;
        unit = at + k;
        if (!outer)
            outer = unit;
        (void)snprintf(p->unit, sizeof p->unit, "%.*s", (int)k, s);
    }
    if (unit == 0)
        return;
    make_text(p->unit);

    /* Where the controller is of cgroup v1, its tree is systemd's as far as that says anything. */
    bool v1 = n_cpu > 0;

    p->app = hash(path, unit);
    p->unit_weight = read_weight(root, path, unit, v1);
    p->uid_weight = read_weight(root, path, user ? user : outer, v1);
}

/* ---- the socket ---- */

/* Has the process that connected ended, so that its number may be another's? */
static bool is_gone(int pidfd) {
    struct pollfd p = { .fd = pidfd, .events = POLLIN };

    return poll(&p, 1, 0) != 0;
}

void peer_of(struct peer *ret, uid_t uid, pid_t pid) {
    char path[64], text[PEER_CGROUP_MAX];

    *ret = (struct peer){ .uid = uid, .pid = pid };
    (void)snprintf(path, sizeof path, "/proc/%d/cgroup", (int)pid);
    if (pid > 0 && read_small(path, text, sizeof text))
        peer_read_cgroup(ret, text, "");
}

int peer_get(struct peer *ret, int fd) {
    struct ucred cred;
    socklen_t n = sizeof cred, n_pidfd = sizeof(int);
    AUTO(close) int pidfd = -1;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
        return err_new(-errno);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &n_pidfd) < 0)
        pidfd = -1; /* a kernel before 6.5 */

    peer_of(ret, cred.uid, cred.pid);
    if (pidfd >= 0 && is_gone(pidfd)) /* what was read may be another's */
        *ret = (struct peer){ .uid = cred.uid, .pid = cred.pid };
    return 0;
}
