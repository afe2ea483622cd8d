/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * listen - where the listening sockets come from: the service manager, by name, or our own bind
 *
 * Owner: the daemon thread, at start.
 */

#include <stddef.h>

#include "daemon/fdstore.h"

#include "engine/base/auto.h"
#include "engine/base/err.h"

enum {
    LISTEN__OK,

    LISTEN_BAD, /* @why says what is wrong with the socket or its path */
};

enum { LISTEN_MAX = 16 };

/* A socket and, when we bound it, the file to remove at the end. */
struct listen {
    int fd[LISTEN_MAX];
    size_t n;
    char *path;
};

/* Closes what nobody took (fd >= 0) and removes the file if it is still ours. */
void listen_deinit(struct listen *l);

/* The stream sockets that the service manager passed under the name "rpc". Other sockets are
 * closed, with a warning; what is no socket is @store's.
 * Return: 0 (perhaps with none), LISTEN_BAD, or -errno. */
int listen_systemd(struct listen *l, struct fdstore *store, struct why *why);

/* Tell all who wait at the sockets in @l that they are not served, and close them: a service that
 * ends with clients waiting at its socket is started again for them, at once. */
void listen_refuse(const struct listen *l, const char *message);

/* Bind @path, for this user alone (mode 0600). A file that is there already is replaced only if it
 * is a socket on which nobody listens. Return: 0, LISTEN_BAD, or -errno. */
int listen_bind(struct listen *l, const char *path, struct why *why);
