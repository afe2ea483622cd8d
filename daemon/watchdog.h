/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * watchdog - tell the service manager that we are alive, as long as the engine advances or is idle
 *
 * A timer looks; what it sees decides. An engine thread that has something to do and does not get
 * on with it leaves us silent, and so does a daemon thread that hangs: then the service manager
 * ends us and starts anew.
 *
 * Owner:  the daemon thread.
 * Source: sd_watchdog_enabled(3), systemd.service(5) on WatchdogSec=.
 */

#include "daemon/models.h"

struct watchdog;

/* Of the engine that @models has; borrowed. *ret_w is NULL when the service manager ($WATCHDOG_USEC
 * and $WATCHDOG_PID) wants to hear nothing. Return: 0 or -ENOMEM. */
int watchdog_new(struct watchdog **ret_w, struct event_base *base, const struct models *models);
struct watchdog *watchdog_free(struct watchdog *w);
AUTO_DEFINE(struct watchdog *, watchdog_free)
