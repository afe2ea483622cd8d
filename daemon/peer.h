/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * peer - who is at the other end of a connection: user and process, and the unit it runs in
 *
 * The kernel tells user and process of whoever connected; the process's cgroup tells the unit, its
 * weight, and whether it is background work. A user may arrange what is below its own slice; so
 * the user's weight is that of the outermost "user-UID.slice", or of the system's unit it runs in.
 * Who can not be told apart has no unit and no weights, and is served all the same.
 *
 * Source: cgroups(7), systemd's CGROUP_DELEGATION; cpu.shares of cgroup v1 are 1024 where
 *         cpu.weight is 100.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct peer {
    uid_t uid;
    pid_t pid;
    char unit[256];                   /* innermost service or scope, or "" */
    uint64_t app;                     /* a number for its path; 0: unknown */
    uint32_t uid_weight, unit_weight; /* cpu.weight; 0: unknown */
    bool background;                  /* below a background.slice */
    bool admin;                       /* was allowed to manage models, whoever it is */
};

/* Of the socket @fd. Return: 0 or -errno. */
int peer_get(struct peer *ret, int fd);
/* Of a process that somebody who knows speaks for, such as a bus. */
void peer_of(struct peer *ret, uid_t uid, pid_t pid);

/* What @cgroup, the text of /proc/PID/cgroup, says of @p, whose .uid is filled.
 * @root: put before /sys/fs/cgroup */
void peer_read_cgroup(struct peer *p, const char *cgroup, const char *root);
