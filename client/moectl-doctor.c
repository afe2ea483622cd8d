/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-doctor - what is wrong, and the line that mends it
 *
 * Each check tells one of: ok; a warning, things work but less well than they could; wrong, they do
 * not work; or that it could not look. The service is asked what it knows, its process and the
 * machine are read from /proc and /sys. Nothing is changed.
 */

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/moectl.h"

enum {
    SOON_USEC = 10000000,
    LATER_USEC = 60000000, /* for a file that is read */
    PATH_SIZE = 4096,
    MODELS_MAX = 32, /* looked into */
};

#define TEXT_FMT(n) __attribute__((format(printf, n, n + 1)))

enum verdict { OK, WARNING, WRONG, UNKNOWN };

struct doctor {
    struct ctl *c;
    char socket[MOE_PATH_MAX];
    enum { SYSTEM, USER, OTHER } kind; /* whose service, by the socket's path */
    const char *sudo;                  /* "sudo " or "" */
    uint64_t pid;                      /* 0: it does not say */
    uid_t uid;                         /* of the process */
    bool managed;                      /* the unit moed.service runs it */
    uint64_t need;            /* bytes of the model: of its weights or its file; 0: unknown */
    char mend[2 * PATH_SIZE]; /* for the next report; "": nothing to be said */
    json_object *checks;
    int n_wrong, n_warning;
};

/* What mends what is reported next. */
static void mend(struct doctor *d, const char *fmt, ...) TEXT_FMT(2);
static void mend(struct doctor *d, const char *fmt, ...) {
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(d->mend, sizeof d->mend, fmt, ap);
    va_end(ap);
}

static void report(struct doctor *d, const char *check, enum verdict v, const char *fmt, ...)
    TEXT_FMT(4);
static void report(struct doctor *d, const char *check, enum verdict v, const char *fmt, ...) {
    static const char *const word[] = { "ok", "warning", "wrong", "unknown" };
    static const char *const colour[] = { "\033[32m", "\033[33m", "\033[31m", "\033[2m" };
    bool painted = d->c->colour && d->c->out_tty;
    json_object *o = json_object_new_object();
    char text[PATH_SIZE];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    d->n_wrong += v == WRONG;
    d->n_warning += v == WARNING;
    (void)json_object_object_add(o, "check", json_object_new_string(check));
    (void)json_object_object_add(o, "verdict", json_object_new_string(word[v]));
    (void)json_object_object_add(o, "text", json_object_new_string(text));
    if (*d->mend)
        (void)json_object_object_add(o, "mend", json_object_new_string(d->mend));
    (void)json_object_array_add(d->checks, o);
    if (!d->c->json && !(d->c->quiet && (v == OK || v == UNKNOWN))) {
        (void)printf("%s%-8s%s %-10s ", painted ? colour[v] : "", word[v], painted ? "\033[0m" : "",
                     check);
        ctl_puts(d->c, text);
        (void)fputs("\n", stdout);
        if (*d->mend)
            (void)printf("%20smend: ", "");
        ctl_puts(d->c, d->mend);
        (void)fputs(*d->mend ? "\n" : "", stdout);
        (void)ctl_flush();
    }
    *d->mend = 0;
}

/* ---- files of the kernel ---- */

/* The first @size - 1 bytes of a file, without a newline at their end. Return: could it be read? */
static bool read_file(const char *path, char *ret, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, ret, size - 1);

    if (fd >= 0)
        (void)close(fd);
    ret[n > 0 ? n - (ret[n - 1] == '\n') : 0] = 0;
    return n >= 0;
}

/* What follows @key on its line of a file. Return: is there such a line? */
static bool read_key(const char *path, const char *key, char *ret, size_t size) {
    FILE *f = fopen(path, "re");
    char *line = NULL;
    size_t n_line = 0;
    bool found = false;

    while (f && !found && getline(&line, &n_line, f) > 0) {
        const char *at = line + strlen(key);

        if (strncmp(line, key, strlen(key)) != 0)
            continue;
        at += strspn(at, " \t");
        (void)snprintf(ret, size, "%.*s", (int)strcspn(at, "\n"), at);
        found = true;
    }
    free(line);
    if (f)
        (void)fclose(f);

    return found;
}

/* CPUs in a list such as "0-3,8". */
static int count_cpus(const char *list) {
    int n = 0, k;
    unsigned a, b;

    for (; *list; list += k + (list[k] == ',')) {
        k = 0;
        if (sscanf(list, "%u%n-%u%n", &a, &k, &b, &k) == 2)
            n += (int)(b - a);
        if (!k)
            break;
        n++;
    }
    return n;
}

/* ---- lines that mend ---- */

/* A setting of the unit that systemctl set-property does not know. */
static void mend_unit(struct doctor *d, const char *setting, const char *name) {
    const char *home = d->kind == USER ? "~/.config/systemd/user" : "/etc/systemd/system";
    const char *user = d->kind == USER ? "--user " : "", *sudo = d->kind == USER ? "" : d->sudo;

    mend(d,
         "printf '[Service]\\n%s\\n' | %sinstall -D -m 644 /dev/stdin %s/moed.service.d/%s.conf &&"
         " %ssystemctl %sdaemon-reload && %ssystemctl %srestart moed.service",
         setting, sudo, home, name, sudo, user, sudo, user);
}

/* A property of a unit, at once and for good. */
static void mend_property(struct doctor *d, const char *unit, const char *setting) {
    mend(d, "%ssystemctl %sset-property %s %s", d->kind == USER ? "" : d->sudo,
         d->kind == USER ? "--user " : "", unit, setting);
}

/* A key of moed.conf; the service then looks again. */
static void mend_config(struct doctor *d, const char *key, const char *value) {
    if (d->kind == USER)
        mend(d,
             "mkdir -p ~/.config/moed && echo '%s = %s' >>~/.config/moed/moed.conf && systemctl"
             " --user restart moed.service",
             key, value);
    else
        mend(d, "echo '%s = %s' | %stee -a /etc/moed/moed.conf && %s%s", key, value, d->sudo,
             d->sudo, d->managed ? "systemctl restart moed.service" : "kill -HUP $(pidof moed)");
}

/* ---- socket, group, service ---- */

/* The socket is there and lets nobody, or only some, in. */
static void check_access(struct doctor *d, int r) {
    const struct passwd *pw = getpwuid(geteuid());
    const struct group *gr;
    struct stat st;

    if (stat(d->socket, &st) < 0) {
        mend(d, "ls -ld %s", d->socket);
        report(d, "group", WRONG, "%s: %s", d->socket, strerror(errno));
        return;
    }
    gr = getgrgid(st.st_gid);
    if ((st.st_mode & S_IWGRP) && gr && pw) {
        mend(d, "%susermod --append --groups %s %s && newgrp %s", d->sudo, gr->gr_name, pw->pw_name,
             gr->gr_name);
        report(d, "group", WRONG, "%s: only members of the group %s may connect, %s is none",
               d->socket, gr->gr_name, pw->pw_name);
        return;
    }
    mend(d, "%schmod 666 %s", d->sudo, d->socket);
    report(d, "group", WRONG, "%s: %s; its mode is %03o", d->socket, strerror(-r),
           (unsigned)st.st_mode & 0777);
}

static void mend_socket(struct doctor *d, bool there) {
    const char *verb = there ? "restart" : "enable --now";

    if (d->kind == OTHER)
        mend(d, "moed --socket %s --model FILE", d->socket);
    else
        mend(d, "%ssystemctl %s%s moed.socket", d->kind == USER ? "" : d->sudo,
             d->kind == USER ? "--user " : "", verb);
}

/* Return: is there a connection? */
static bool check_socket(struct doctor *d) {
    int r = moe_open(&d->c->m, d->c->socket);

    if (r >= 0) {
        report(d, "socket", OK, "%s", d->socket);
        return true;
    }
    if (r == -EACCES || r == -EPERM) {
        check_access(d, r);
    } else {
        mend_socket(d, r == -ECONNREFUSED);
        report(d, "socket", WRONG, "%s: %s", d->socket,
               r == -ENOENT         ? "there is no such socket"
               : r == -ECONNREFUSED ? "nobody listens there any more"
                                    : strerror(-r));
    }
    return false;
}

static void find_process(struct doctor *d, const struct moe_value *status) {
    char path[64], line[PATH_SIZE];
    struct stat st;

    (void)snprintf(path, sizeof path, "/proc/%ju", (uintmax_t)ctl_uint(status, "pid"));
    if (stat(path, &st) < 0)
        return;
    d->pid = ctl_uint(status, "pid");
    d->uid = st.st_uid;
    (void)snprintf(path, sizeof path, "/proc/%ju/cgroup", (uintmax_t)d->pid);
    d->managed = read_file(path, line, sizeof line) && strstr(line, "/moed.service");
}

/* Return: what it says of itself, or NULL. */
static const struct moe_value *check_service(struct doctor *d) {
    const char *log =
        d->kind == USER ? "journalctl --user -e -u moed.service" : "journalctl -e -u moed.service";
    const struct moe_value *v;
    const struct moe_error *e;
    int r;

    r = ctl_try(d->c, "server.status", NULL, SOON_USEC, &v);
    if (r < 0) {
        e = moe_last_error(d->c->m);
        if (d->kind != OTHER)
            mend(d, "%s%s", d->kind == USER ? "" : d->sudo, log);
        report(d, "service", WRONG, "it does not answer: %s", e ? e->message : strerror(-r));
        return NULL;
    }
    find_process(d, v);
    if (!strcmp(ctl_str(v, "state"), "failed")) {
        if (d->kind != OTHER)
            mend(d, "%s%s", d->kind == USER ? "" : d->sudo, log);
        report(d, "service", WRONG, "the model %s could not be loaded: %s", ctl_str(v, "model"),
               ctl_str(v, "reason"));
    } else {
        report(d, "service", OK, "moed %s, process %ju, %s", ctl_str(v, "version"),
               (uintmax_t)ctl_uint(v, "pid"), ctl_str(v, "state"));
    }

    return v;
}

/* ---- models and memory ---- */

/* May the service's user look into, or (the last part) read @path? Return: true, or false with what
 * mends it. */
static bool readable(struct doctor *d, const char *path) {
    char part[PATH_SIZE];
    struct stat st;

    for (const char *end = path; end && *end;) {
        bool last;
        mode_t bit;

        end = strchr(end + 1, '/');
        last = !end;
        (void)snprintf(part, sizeof part, "%.*s", last ? PATH_SIZE - 1 : (int)(end - path), path);
        if (stat(part, &st) < 0)
            return true; /* it is something else */
        bit = last ? S_IROTH : S_IXOTH;
        if ((st.st_mode & bit) || (st.st_uid == d->uid && (st.st_mode & (bit << 6))) || !d->uid)
            continue;
        mend(d, "%schmod a+%c %s", d->sudo, last ? 'r' : 'x', part);
        return false;
    }
    return true;
}

static void check_model(struct doctor *d, const struct moe_value *model, int *n_bad) {
    const struct moe_error *e;
    struct moe_map *p;
    /* Of this answer nothing is left after the next call. */
    char *id = strdup(ctl_str(model, "id")), *path = strdup(ctl_str(model, "path"));
    int r = 0;

    p = moe_map_new();
    if (id && path) {
        moe_map_str(p, "id", id);
        r = ctl_try(d->c, "model.show", p, LATER_USEC, NULL);
    }
    moe_map_free(p);
    e = r < 0 ? moe_last_error(d->c->m) : NULL;
    if (e && e->code != MOE_BUSY && e->code != MOE_TOO_LARGE) {
        if (readable(d, path))
            mend(d, "%smv %s %s.broken", d->sudo, path, path);
        report(d, "models", WRONG, "%s: %s", id, e->message);
        (*n_bad)++;
    }
    free(id);
    free(path);
}

static void mend_no_models(struct doctor *d) {
    if (d->kind == SYSTEM)
        mend(d, "%smoectl import FILE.gguf", d->sudo);
    else
        mend(d, "moectl --socket %s import FILE.gguf", d->socket);
}

/* The list is asked again for each: an answer is gone with the next one. */
static void check_models(struct doctor *d) {
    const struct moe_value *v, *models;
    char *def = NULL;
    size_t n = 1;
    int n_bad = 0;

    for (size_t i = 0; i < n && i < MODELS_MAX; i++) {
        if (ctl_try(d->c, "model.list", NULL, LATER_USEC, &v) < 0)
            break;
        models = moe_get(v, "models");
        n = moe_size(models);
        if (i < n && moe_bool(moe_get(moe_at(models, i), "default"))) {
            free(def);
            def = strdup(ctl_str(moe_at(models, i), "id"));
            d->need = d->need ? d->need : ctl_uint(moe_at(models, i), "size");
        }
        if (i < n)
            check_model(d, moe_at(models, i), &n_bad);
    }
    if (!n) {
        mend_no_models(d);
        report(d, "models", WRONG, "there is none");
    } else if (!n_bad) {
        report(d, "models", OK, "%zu, by default %s", n, def ? def : "none");
    }
    free(def);
}

/* "MemTotal:" or the like of /proc/meminfo, in bytes. */
static uint64_t meminfo(const char *key) {
    char line[64];

    return read_key("/proc/meminfo", key, line, sizeof line) ? strtoull(line, NULL, 10) << 10 : 0;
}

/* The largest model that fits into @bytes becomes the default one. */
static void mend_default(struct doctor *d, uint64_t bytes) {
    const struct moe_value *v, *models, *best = NULL;

    if (ctl_try(d->c, "model.list", NULL, LATER_USEC, &v) < 0)
        return;
    models = moe_get(v, "models");
    for (size_t i = 0; i < moe_size(models); i++) {
        const struct moe_value *m = moe_at(models, i);

        if (ctl_uint(m, "size") <= bytes && (!best || ctl_uint(m, "size") > ctl_uint(best, "size")))
            best = m;
    }
    if (best)
        mend_config(d, "default-model", ctl_str(best, "id"));
}

static void check_memory(struct doctor *d, uint64_t resident, uint64_t pressure) {
    uint64_t total = meminfo("MemTotal:"), free_now = meminfo("MemAvailable:") + resident;

    if (!d->need || !total) {
        report(d, "memory", UNKNOWN, "there is no model to compare with");
    } else if (d->need > total) {
        mend_default(d, total / 10 * 9);
        report(d, "memory", WARNING,
               "the model takes %s and this machine has %s: weights come from the disk as they are"
               " used, which is slow",
               ctl_bytes(d->need), ctl_bytes(total));
    } else if (d->need > free_now || pressure) {
        mend(d, "ps -eo rss,pid,user,comm --sort=-rss | head");
        report(d, "memory", WARNING, "the model takes %s, others leave %s", ctl_bytes(d->need),
               ctl_bytes(free_now));
    } else {
        report(d, "memory", OK, "the model takes %s, there are %s", ctl_bytes(d->need),
               ctl_bytes(free_now));
    }
}

/* ---- limits of the process ---- */

static void check_memlock(struct doctor *d, bool locked) {
    char path[64], line[128] = "";
    uint64_t limit;

    (void)snprintf(path, sizeof path, "/proc/%ju/limits", (uintmax_t)d->pid);
    if (!read_key(path, "Max locked memory", line, sizeof line)) {
        report(d, "memlock", UNKNOWN, "%s cannot be read", path);
        return;
    }
    limit = strncmp(line, "unlimited", 9) ? strtoull(line, NULL, 10) : UINT64_MAX;
    if (limit == UINT64_MAX || (d->need && limit >= d->need)) {
        report(d, "memlock", OK, "weights %s", locked ? "are locked into memory" : "may be locked");
        return;
    }
    if (d->managed)
        mend_unit(d, "LimitMEMLOCK=infinity", "memlock");
    else
        mend(d, "%sprlimit --memlock=unlimited --pid %ju", d->sudo, (uintmax_t)d->pid);
    report(d, "memlock", WARNING, "%s may be locked into memory, and the model takes %s",
           ctl_bytes(limit), d->need ? ctl_bytes(d->need) : "more");
}

static void check_huge_pages(struct doctor *d) {
    static const char path[] = "/sys/kernel/mm/transparent_hugepage/enabled";
    char line[64];

    if (!read_file(path, line, sizeof line)) {
        report(d, "hugepages", UNKNOWN, "this kernel has none");
    } else if (strstr(line, "[never]")) {
        mend(d, "echo madvise | %stee %s", d->sudo, path);
        report(d, "hugepages", WARNING, "transparent huge pages are off, which costs speed");
    } else {
        report(d, "hugepages", OK, "%s", line);
    }
}

static void check_cpus(struct doctor *d) {
    char path[64], allowed[512] = "", online[512] = "";
    char setting[512 + 16];

    (void)snprintf(path, sizeof path, "/proc/%ju/status", (uintmax_t)d->pid);
    if (!read_key(path, "Cpus_allowed_list:", allowed, sizeof allowed) ||
        !read_file("/sys/devices/system/cpu/online", online, sizeof online)) {
        report(d, "cpuset", UNKNOWN, "%s cannot be read", path);
        return;
    }
    if (count_cpus(allowed) >= count_cpus(online)) {
        report(d, "cpuset", OK, "all CPUs may be used: %s", online);
        return;
    }
    (void)snprintf(setting, sizeof setting, "AllowedCPUs=%s", online);
    if (d->managed)
        mend_property(d, "moed.service", setting);
    else
        mend(d, "%staskset -acp %s %ju && %skill -HUP %ju", d->sudo, online, (uintmax_t)d->pid,
             d->sudo, (uintmax_t)d->pid);
    report(d, "cpuset", WARNING, "of the CPUs %s only %s may be used", online, allowed);
}

/* ---- limits of the control group ---- */

/* What the kernel has at @group, a path below the mount of cgroup v2. */
static bool read_group(const char *group, const char *name, char *ret, size_t size) {
    static const char *const mounts[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
    char path[PATH_SIZE + 64];

    for (size_t i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s%s/%s", mounts[i], group, name);
        if (read_file(path, ret, size))
            return true;
    }
    return false;
}

/* The least of @name in @group and those it lies in; @parse makes a number of a line.
 * Return: UINT64_MAX when there is none. @ret_unit: whose it is */
static uint64_t least(const char *group, const char *name, uint64_t (*parse)(const char *),
                      char *ret_unit, size_t size) {
    char at[PATH_SIZE], line[128];
    uint64_t min = UINT64_MAX, v;

    (void)snprintf(at, sizeof at, "%s", group);
    while (*at) {
        char *slash = strrchr(at, '/');

        v = read_group(at, name, line, sizeof line) ? parse(line) : UINT64_MAX;
        if (v < min) {
            min = v;
            (void)snprintf(ret_unit, size, "%s", slash ? slash + 1 : at);
        }
        *(slash ? slash : at) = 0;
    }
    return min;
}

static uint64_t parse_bytes(const char *line) {
    return strncmp(line, "max", 3) ? strtoull(line, NULL, 10) : UINT64_MAX;
}

/* Hundredths of CPUs that "QUOTA PERIOD" pays for. */
static uint64_t parse_cpus(const char *line) {
    unsigned long long quota, period;

    return sscanf(line, "%llu %llu", &quota, &period) == 2 && period ? quota * 100 / period
                                                                     : UINT64_MAX;
}

static void check_quota(struct doctor *d) {
    char path[64], group[PATH_SIZE], unit[PATH_SIZE], online[512] = "";
    uint64_t cpus, bytes, high;

    (void)snprintf(path, sizeof path, "/proc/%ju/cgroup", (uintmax_t)d->pid);
    if (!read_key(path, "0::", group, sizeof group) ||
        !read_file("/sys/devices/system/cpu/online", online, sizeof online)) {
        report(d, "quota", UNKNOWN, "%s cannot be read", path);
        return;
    }
    cpus = least(group, "cpu.max", parse_cpus, unit, sizeof unit);
    if (cpus < 100u * (unsigned)count_cpus(online)) {
        mend_property(d, unit, "CPUQuota=");
        report(d, "quota", WARNING, "%s has a quota of %.2f CPUs, the machine has %d", unit,
               (double)cpus / 100, count_cpus(online));
    }
    bytes = least(group, "memory.max", parse_bytes, unit, sizeof unit);
    if (bytes < d->need) {
        mend_property(d, unit, "MemoryMax=infinity");
        report(d, "quota", WRONG, "%s may have %s of memory, the model takes %s", unit,
               ctl_bytes(bytes), ctl_bytes(d->need));
    }
    high = least(group, "memory.high", parse_bytes, unit, sizeof unit);
    if (high < d->need && bytes >= d->need) {
        mend_property(d, unit, "MemoryHigh=infinity");
        report(d, "quota", WARNING, "%s is held to %s of memory, the model takes %s", unit,
               ctl_bytes(high), ctl_bytes(d->need));
    }
    if (cpus >= 100u * (unsigned)count_cpus(online) && bytes >= d->need && high >= d->need)
        report(d, "quota", OK, "the control group sets no limit that matters");
}

/* ---- folders, bus ---- */

static void check_cache(struct doctor *d, const struct moe_value *status) {
    const struct moe_value *folders = moe_get(status, "folders"), *cache = NULL;
    const struct passwd *pw = getpwuid(d->uid);
    const char *path;
    uint64_t room;

    for (size_t i = 0; i < moe_size(folders); i++)
        if (!strcmp(ctl_str(moe_at(folders, i), "purpose"), "cache"))
            cache = moe_at(folders, i);
    path = ctl_str(cache, "path");
    room = ctl_uint(cache, "free");
    if (!cache) {
        if (d->managed)
            mend_unit(d, "CacheDirectory=moed", "cache");
        else
            mend_config(d, "cache-dir", "/var/cache/moed");
        report(d, "cache", WARNING,
               "there is no folder for packed weights: each start packs them anew");
    } else if (!moe_bool(moe_get(cache, "writable"))) {
        mend(d, "%sinstall -d -m 700 -o %s %s", d->sudo, pw ? pw->pw_name : "moed", path);
        report(d, "cache", WRONG, "the service cannot write to %s", path);
    } else if (room < d->need && strcmp(ctl_str(status, "weights"), "image")) {
        mend_config(d, "weights-store", "none");
        report(d, "cache", WARNING, "%s has room for %s, packed weights take %s", path,
               ctl_bytes(room), ctl_bytes(d->need));
    } else {
        report(d, "cache", OK, "%s, with room for %s", path, ctl_bytes(room));
    }
}

/* What busctl prints, as far as it fits. Return: its exit status, -1: it did not run. */
static int busctl(bool user, char *ret, size_t size) {
    char *args[] = { (char *)(uintptr_t) "busctl",
                     (char *)(uintptr_t)(user ? "--user" : "--system"),
                     (char *)(uintptr_t) "call",
                     (char *)(uintptr_t) "org.freedesktop.DBus",
                     (char *)(uintptr_t) "/",
                     (char *)(uintptr_t) "org.freedesktop.DBus",
                     (char *)(uintptr_t) "ListActivatableNames",
                     NULL };
    posix_spawn_file_actions_t files;
    size_t n = 0;
    ssize_t k = 1;
    char rest[512];
    int fd[2], status = -1;
    pid_t pid;

    if (pipe2(fd, O_CLOEXEC) < 0)
        return -1;
    (void)posix_spawn_file_actions_init(&files);
    (void)posix_spawn_file_actions_adddup2(&files, fd[1], STDOUT_FILENO);
    (void)posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    if (posix_spawnp(&pid, args[0], &files, NULL, args, environ) == 0)
        status = 0;
    (void)posix_spawn_file_actions_destroy(&files);
    (void)close(fd[1]);
    while (!status && k > 0) {
        bool full = n + 1 == size;

        k = read(fd[0], full ? rest : ret + n, full ? sizeof rest : size - 1 - n);
        n += k > 0 && !full ? (size_t)k : 0;
    }
    ret[n] = 0;
    (void)close(fd[0]);

    return status || waitpid(pid, &status, 0) < 0 || !WIFEXITED(status) ? -1 : WEXITSTATUS(status);
}

static void check_bus(struct doctor *d) {
    char names[32 << 10];
    bool user = d->kind == USER;

    if (d->kind == OTHER) {
        report(d, "bus", UNKNOWN, "a service with a socket of its own need not be on a bus");
    } else if (busctl(user, names, sizeof names)) {
        report(d, "bus", UNKNOWN, "there is no %s bus, or no busctl to ask it",
               user ? "session" : "system");
    } else if (!strstr(names, "\"" BUS_NAME "\"")) {
        mend(d,
             "printf '[D-BUS Service]\\nName=%s\\nExec=/bin/false\\n%sSystemdService=moed.service"
             "\\n' | %sinstall -D -m 644 /dev/stdin %s/%s.service && busctl %scall"
             " org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig",
             BUS_NAME, user ? "" : "User=moed\\n", user ? "" : d->sudo,
             user ? "${XDG_DATA_HOME:-$HOME/.local/share}/dbus-1/services"
                  : "/usr/share/dbus-1/system-services",
             BUS_NAME, user ? "--user " : "");
        report(d, "bus", WARNING, "the bus cannot start %s: programs that use D-Bus do not find it",
               BUS_NAME);
    } else {
        report(d, "bus", OK, "%s is started when it is asked for", BUS_NAME);
    }
}

/* ---- all of it ---- */

static void check_process(struct doctor *d, bool locked) {
    if (!d->pid) {
        report(d, "process", UNKNOWN, "that of the service cannot be seen from here");
        return;
    }
    check_memlock(d, locked);
    check_cpus(d);
    check_quota(d);
}

/* @status is gone with the next answer: what counts of it is taken first. */
static void check_all(struct doctor *d, const struct moe_value *status) {
    const struct moe_value *memory = moe_get(status, "memory");
    uint64_t resident = ctl_uint(memory, "resident");
    uint64_t pressure = ctl_uint(moe_get(status, "pressure"), "level");
    bool locked = moe_bool(moe_get(memory, "locked"));

    d->need = ctl_uint(memory, "weights");
    check_models(d);
    check_memory(d, resident, pressure);
    check_process(d, locked);
    if (ctl_try(d->c, "server.status", NULL, SOON_USEC, &status) >= 0)
        check_cache(d, status);
}

static int finish(struct doctor *d) {
    json_object *o;

    if (d->c->json) {
        o = json_object_new_object();
        (void)json_object_object_add(o, "checks", d->checks);
        (void)json_object_object_add(o, "wrong", json_object_new_int(d->n_wrong));
        (void)json_object_object_add(o, "warnings", json_object_new_int(d->n_warning));
        ctl_put_object(d->c, o);
        return d->n_wrong ? EXIT_FAILED : EXIT_OK;
    }

    json_object_put(d->checks);
    if (!d->c->quiet)
        (void)printf("%s%d wrong, %d to be improved.\n",
                     d->n_wrong || d->n_warning ? "" : "Well: ", d->n_wrong, d->n_warning);
    return d->n_wrong ? EXIT_FAILED : EXIT_OK;
}

int verb_doctor(struct ctl *c) {
    struct doctor d = { .c = c, .sudo = geteuid() ? "sudo " : "" };
    const char *run = getenv("XDG_RUNTIME_DIR");
    const struct moe_value *status = NULL;
    char own[MOE_PATH_MAX + 16];

    if (moe_find_socket(c->socket, d.socket) < 0)
        return ctl_complain(EXIT_USAGE, "the path of the socket is longer than %d bytes",
                            MOE_PATH_MAX - 1);
    (void)snprintf(own, sizeof own, "%s/moed/rpc", run && *run ? run : "?");
    d.kind = !strcmp(d.socket, "/run/moed/rpc") ? SYSTEM : !strcmp(d.socket, own) ? USER : OTHER;
    d.checks = json_object_new_array();
    if (check_socket(&d))
        status = check_service(&d);
    if (status)
        check_all(&d, status);
    check_huge_pages(&d);
    check_bus(&d);
    return finish(&d);
}
