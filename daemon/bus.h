/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bus - the daemon on D-Bus: discovery, policy, and answers that come in one piece
 *
 * What a caller asks for becomes a request of the RPC, sent over a connection that carries the
 * caller's identity, and the response becomes the reply; so limits, shares, errors and cancelling
 * are the RPC's. Text as it is generated never goes over the bus: OpenSession hands out a
 * connection for that.
 *
 * Nothing here waits for the bus, and nothing needs one: without, the sockets are served, and the
 * bus is tried again.
 *
 * Owner: the daemon thread, in its event loop.
 */

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct bus;
struct server;

/* Serve @server on the bus that its configuration names.
 * Return: 0, also without a bus; or -ENOMEM. */
int bus_new(struct bus **ret_bus, struct server *server);
/* Calls that are open end with ShuttingDown. */
struct bus *bus_free(struct bus *bus);
AUTO_DEFINE(struct bus *, bus_free)
