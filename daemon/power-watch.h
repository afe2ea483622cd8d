/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * power-watch - what logind, UPower and power-profiles-daemon say, for power.h
 *
 * logind is asked to delay sleep until nothing computes and what is being saved is. Whichever of
 * them is not there says nothing, and none is started; they may come and go. Only what comes from
 * the owner of the service's name counts: a signal may be sent by anybody.
 *
 * Owner:  the daemon thread, in its event loop; on the system's bus, whichever is served.
 * Source: org.freedesktop.login1(5), "Inhibitor Locks" of systemd; the D-Bus references of UPower
 *         and power-profiles-daemon, which had another name before it was UPower's.
 */

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct power_watch;
struct server;

/* Return: 0, also without a bus, or when the configuration wants none; or -ENOMEM. */
int power_watch_new(struct power_watch **ret_watch, struct server *server);
struct power_watch *power_watch_free(struct power_watch *w);
AUTO_DEFINE(struct power_watch *, power_watch_free)
