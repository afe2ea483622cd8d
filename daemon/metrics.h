/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * metrics - the state of the service as OpenMetrics text
 *
 * Counters of users and units come from the account; numbers of the engine count from its load.
 *
 * Owner:   the daemon thread.
 * Source:  the OpenMetrics specification, version 1.0.0
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct server;

/* @all: rows of every user, else those of @uid alone. @ret_text: the caller's, [ret_n] and a NUL.
 * Return: 0 or -ENOMEM. */
int metrics_text(const struct server *s, bool all, uid_t uid, char **ret_text, size_t *ret_n);

/* What server.status calls the state: "empty", "loading", "ready", "failed", "stopping". */
const char *metrics_state(const struct server *s);
/* Bytes of this process in memory, the mapped file's pages included. */
uint64_t metrics_resident(void);
