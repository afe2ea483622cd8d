/* SPDX-License-Identifier: Apache-2.0 */

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/auto.h"
#include "engine/hw/quota.h"

static inline void auto_fclose(FILE **f) {
    if (*f)
        (void)fclose(*f);
}

/* First line of @dir/@name. Return: false when there is none. */
static bool read_line(const char *dir, const char *name, char *ret, int size) {
    char path[PATH_MAX];
    AUTO(fclose) FILE *f = NULL;

    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return false;
    f = fopen(path, "re");
    return f && fgets(ret, size, f);
}

/* @quota of every @period microseconds, in CPUs; UINT64_MAX: no limit. */
static uint64_t cpus(int64_t quota, int64_t period) {
    if (quota <= 0 || period <= 0)
        return UINT64_MAX;
    return (uint64_t)(quota / period + (quota % period != 0));
}

static uint64_t cpu_v2(const char *dir) {
    char line[64];
    int64_t quota, period;

    if (!read_line(dir, "cpu.max", line, sizeof line) ||
        sscanf(line, "%" SCNd64 " %" SCNd64, &quota, &period) != 2) /* "max 100000" is none */
        return UINT64_MAX;
    return cpus(quota, period);
}

static uint64_t cpu_v1(const char *dir) {
    char line[64];
    int64_t quota, period;

    if (!read_line(dir, "cpu.cfs_quota_us", line, sizeof line) ||
        sscanf(line, "%" SCNd64, &quota) != 1 ||
        !read_line(dir, "cpu.cfs_period_us", line, sizeof line) ||
        sscanf(line, "%" SCNd64, &period) != 1)
        return UINT64_MAX; /* quota -1 is none */
    return cpus(quota, period);
}

/* Bytes in a file; "max", and the number v1 means by it, are no limit worth the name. */
static uint64_t bytes_in(const char *dir, const char *name) {
    char line[64];
    uint64_t n;

    if (!read_line(dir, name, line, sizeof line) || sscanf(line, "%" SCNu64, &n) != 1)
        return UINT64_MAX;
    return n;
}

/* Sum of the lines "@key N" of @dir/memory.stat whose key is one of two. */
static uint64_t stat_sum(const char *dir, const char *a, const char *b) {
    char path[PATH_MAX], line[128], key[64];
    AUTO(fclose) FILE *f = NULL;
    uint64_t sum = 0, n;

    if (snprintf(path, sizeof path, "%s/memory.stat", dir) >= (int)sizeof path)
        return 0;
    f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%63s %" SCNu64, key, &n) == 2 &&
            (strcmp(key, a) == 0 || strcmp(key, b) == 0))
            sum += n;
    return sum;
}

/* What is left of @limit when @used bytes are in use, of which those of @file, the page cache, are
 * given back on demand. */
static uint64_t left(uint64_t limit, uint64_t used, uint64_t file) {
    if (limit == UINT64_MAX || used == UINT64_MAX)
        return limit;
    used -= file < used ? file : used;
    return limit > used ? limit - used : 0;
}

static uint64_t memory_v2(const char *dir) {
    return left(bytes_in(dir, "memory.max"), bytes_in(dir, "memory.current"),
                stat_sum(dir, "active_file", "inactive_file"));
}

static uint64_t memory_v1(const char *dir) {
    return left(bytes_in(dir, "memory.limit_in_bytes"), bytes_in(dir, "memory.usage_in_bytes"),
                stat_sum(dir, "total_active_file", "total_inactive_file"));
}

/* What a controller limits, and how to read it of one directory. */
struct kind {
    const char *controller;
    uint64_t (*v2)(const char *dir), (*v1)(const char *dir);
};

/* The tightest limit of @group and its parents, up to the mount point @mount itself. */
static uint64_t limit_up(const char *mount, const char *group, uint64_t (*limit)(const char *)) {
    char dir[PATH_MAX];
    size_t n_mount = strlen(mount);
    uint64_t least = UINT64_MAX;

    if (snprintf(dir, sizeof dir, "%s%s", mount, group) >= (int)sizeof dir)
        return least;
    for (;;) {
        uint64_t l = limit(dir);
        char *slash = strrchr(dir + n_mount, '/');

        least = l < least ? l : least;
        if (!slash)
            return least;
        *slash = '\0';
    }
}

/* Is @name one of the comma-separated controllers? */
static bool has_controller(const char *list, const char *name) {
    size_t n = strlen(name);

    for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (strncmp(p, name, n) == 0 && (p[n] == '\0' || p[n] == ','))
            return true;
    return false;
}

/* One line of /proc/self/cgroup, "id:controllers:path"; v2 is id 0 without controllers. */
static uint64_t limit_line(const char *root, const struct kind *kind, char *line) {
    char mount[PATH_MAX];
    char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;

    if (!group)
        return UINT64_MAX;
    *list++ = '\0';
    *group++ = '\0';
    group[strcspn(group, "\n")] = '\0';

    if (strcmp(line, "0") == 0 && !*list) {
        uint64_t a, b;

        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
        a = limit_up(mount, group, kind->v2);
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/unified", root); /* hybrid */
        b = limit_up(mount, group, kind->v2);
        return a < b ? a : b;
    }
    if (!has_controller(list, kind->controller))
        return UINT64_MAX;
    snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%s", root, list);
    return limit_up(mount, group, kind->v1);
}

/* The tightest limit of this process's groups; UINT64_MAX: none. */
static uint64_t tightest(const char *root, const struct kind *kind) {
    char path[PATH_MAX], line[PATH_MAX];
    AUTO(fclose) FILE *f = NULL;
    uint64_t least = UINT64_MAX;

    if (snprintf(path, sizeof path, "%s/proc/self/cgroup", root) >= (int)sizeof path)
        return least;
    f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        uint64_t l = limit_line(root, kind, line);

        least = l < least ? l : least;
    }
    return least;
}

uint32_t quota_cpu(const char *root) {
    static const struct kind kind = { "cpu", cpu_v2, cpu_v1 };
    uint64_t n = tightest(root, &kind);

    return n < UINT32_MAX ? (uint32_t)n : 0;
}

/* KiB in the line "@key: N kB" of @root/@path; UINT64_MAX: there is none. */
static uint64_t kib_in(const char *root, const char *path, const char *key) {
    char full[PATH_MAX], line[256], found[64];
    AUTO(fclose) FILE *f = NULL;
    uint64_t kib;

    if (snprintf(full, sizeof full, "%s%s", root, path) >= (int)sizeof full)
        return UINT64_MAX;
    f = fopen(full, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%63[^:]: %" SCNu64, found, &kib) == 2 && strcmp(found, key) == 0)
            return kib;
    return UINT64_MAX;
}

uint64_t quota_memory(const char *root) {
    static const struct kind kind = { "memory", memory_v2, memory_v1 };
    uint64_t least = tightest(root, &kind);
    uint64_t kib = kib_in(root, "/proc/meminfo", "MemAvailable");

    return kib < least / 1024 ? kib * 1024 : least;
}

uint64_t quota_spare(const char *root) {
    uint64_t n = quota_memory(root);
    uint64_t mapped = kib_in(root, "/proc/self/status", "RssFile");
    uint64_t locked = kib_in(root, "/proc/self/status", "VmLck"); /* is not counted as free */

    if (n == UINT64_MAX || mapped == UINT64_MAX || mapped <= locked)
        return n;
    mapped = (mapped - locked) * 1024;
    return mapped < n ? n - mapped : 0;
}
