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

/* @quota of every @period microseconds, in CPUs; UINT32_MAX: no limit. */
static uint32_t cpus(int64_t quota, int64_t period) {
    if (quota <= 0 || period <= 0)
        return UINT32_MAX;
    quota = quota / period + (quota % period != 0);
    return quota < UINT32_MAX ? (uint32_t)quota : UINT32_MAX;
}

static uint32_t limit_v2(const char *dir) {
    char line[64];
    int64_t quota, period;

    if (!read_line(dir, "cpu.max", line, sizeof line) ||
        sscanf(line, "%" SCNd64 " %" SCNd64, &quota, &period) != 2) /* "max 100000" is none */
        return UINT32_MAX;
    return cpus(quota, period);
}

static uint32_t limit_v1(const char *dir) {
    char line[64];
    int64_t quota, period;

    if (!read_line(dir, "cpu.cfs_quota_us", line, sizeof line) ||
        sscanf(line, "%" SCNd64, &quota) != 1 ||
        !read_line(dir, "cpu.cfs_period_us", line, sizeof line) ||
        sscanf(line, "%" SCNd64, &period) != 1)
        return UINT32_MAX; /* quota -1 is none */
    return cpus(quota, period);
}

/* The tightest limit of @group and its parents, up to the mount point @mount itself. */
static uint32_t limit_up(const char *mount, const char *group, uint32_t (*limit)(const char *)) {
    char dir[PATH_MAX];
    size_t n_mount = strlen(mount);
    uint32_t least = UINT32_MAX;

    if (snprintf(dir, sizeof dir, "%s%s", mount, group) >= (int)sizeof dir)
        return least;
    for (;;) {
        uint32_t l = limit(dir);
        char *slash = strrchr(dir + n_mount, '/');

        least = l < least ? l : least;
        if (!slash)
            return least;
        *slash = '\0';
    }
}

/* Is "cpu" one of the comma-separated controllers? */
static bool has_cpu(const char *list) {
    for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (strcmp(p, "cpu") == 0 || strncmp(p, "cpu,", 4) == 0)
            return true;
    return false;
}

/* One line of /proc/self/cgroup, "id:controllers:path"; v2 is id 0 without controllers. */
static uint32_t limit_line(const char *root, char *line) {
    char mount[PATH_MAX];
    char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;

    if (!group)
        return UINT32_MAX;
    *list++ = '\0';
    *group++ = '\0';
    group[strcspn(group, "\n")] = '\0';

    if (strcmp(line, "0") == 0 && !*list) {
        uint32_t a, b;

        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
        a = limit_up(mount, group, limit_v2);
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/unified", root); /* hybrid */
        b = limit_up(mount, group, limit_v2);
        return a < b ? a : b;
    }
    if (!has_cpu(list))
        return UINT32_MAX;
    snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%s", root, list);
    return limit_up(mount, group, limit_v1);
}

uint32_t quota_cpu(const char *root) {
    char path[PATH_MAX], line[PATH_MAX];
    AUTO(fclose) FILE *f = NULL;
    uint32_t least = UINT32_MAX;

    if (snprintf(path, sizeof path, "%s/proc/self/cgroup", root) >= (int)sizeof path)
        return 0;
    f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        uint32_t l = limit_line(root, line);

        least = l < least ? l : least;
    }

    return least == UINT32_MAX ? 0 : least;
}
