/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * pressure - how short of memory the machine is, as a level that rises fast and falls slowly
 *
 * Each sign of pressure is one step up; time without any is one step down, and as long again the
 * next. What a level means is the caller's business; each level is told once as it is entered.
 *
 * Signs come from
 *
 *   a file, FIFO or socket that the configuration names,
 *   else what $MEMORY_PRESSURE_WATCH names, with $MEMORY_PRESSURE_WRITE (base64) written to it
 *   unless it is a FIFO,
 *   else /proc/pressure/memory: some task stalled for a tenth of two seconds. There, all tasks
 *   stalled for half of two seconds is a sign that leads to the last level at once.
 *
 * A FIFO or socket gives a sign when something can be read, another file by POLLPRI; /dev/null
 * never does, and so turns this off. A sign of the kernel's does not count while others can have
 * PRESSURE_AMPLE bytes, or an eighth of a small machine, without a page of ours given up: reading
 * what is not in memory yet, such as weights after a start, is stall as well.
 *
 * Owner:  the daemon thread.
 * Source: Documentation/accounting/psi.rst of the Linux kernel; "Memory Pressure Handling in
 *         systemd" for the variables. Windows are of two seconds: shorter ones need privileges.
 */

#include "daemon/clock.h"
#include "engine/base/auto.h"
#include "engine/base/err.h"

struct event_base;
struct pressure;

enum { PRESSURE_MAX = 4 /* the last level; 0 is calm */ };

#define PRESSURE_AMPLE (UINT64_C(2) << 30) /* bytes */

typedef void pressure_fn(void *arg, unsigned level);

/**
 * pressure_new() - begin to watch
 * @path:       what the configuration names, or NULL
 * @calm:       time without a sign, for one step down
 * @level:      called with each new level
 *
 * A source that cannot be watched is logged, and the level stays 0. Return: 0 or -ENOMEM.
 */
int pressure_new(struct pressure **ret_p, struct event_base *base, const char *path, usec_t calm,
                 pressure_fn *level, void *arg);
struct pressure *pressure_free(struct pressure *p);
AUTO_DEFINE(struct pressure *, pressure_free)

unsigned pressure_level(const struct pressure *p);
