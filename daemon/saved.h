/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * saved - the files of saved sessions
 *
 *   CACHE/sessions/UID/TOKEN.session    what was said
 *   CACHE/sessions/UID/TOKEN.kv      keys and values; may be missing
 *
 * A token is 32 random hexadecimal digits; no name comes from a client. Folders are 0700. Files are
 * written beside and renamed, so there is all of one or none. All of them together have a bound in
 * bytes: what is beyond goes, the oldest of the user who has the most first.
 *
 * Owner: the daemon thread.
 */

#include <limits.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/session.h"

enum { SAVED_TOKEN = 32 /* characters */ };

struct saved {
    char token[SAVED_TOKEN + 1];
    char session[PATH_MAX], kv[PATH_MAX]; /* paths */
};

/* Think of a name for a session of @uid, and make its folder. @dir: NULL: there is none.
 * Return: 0; RPC_NOT_SUPPORTED without @dir; -errno with @why. */
int saved_new(const char *dir, uid_t uid, struct saved *ret, struct why *why);
/* The session of @uid with @token [n]. Return: 0, or RPC_NO_SUCH_SESSION. */
int saved_find(const char *dir, uid_t uid, const char *token, size_t n, struct saved *ret,
               struct why *why);

/* Write or read the .session. Return: 0; RPC_CORRUPT: read, and not ours; -errno. With @why. */
int saved_write(const struct saved *s, const struct session_blob *blob, struct why *why);
int saved_read(const struct saved *s, struct session_blob *ret, struct why *why);
/* Remove both files. */
void saved_remove(const struct saved *s);

/* Make all of them together fit into @max bytes. */
void saved_trim(const char *dir, uint64_t max);
