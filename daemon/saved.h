/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * saved - the files of saved sessions
 *
 *   CACHE/sessions/UID/TOKEN.session    what was said
 *   CACHE/sessions/UID/TOKEN.kv      keys and values; may be missing
 *
 * A token is 32 random hexadecimal digits; no name comes from a client. Folders are 0700. Files are
 * drafts first, TOKEN.*.new, which are synced and renamed, so there is all of one or none. All of
 * them together have a bound in bytes: what is beyond goes, keys and values before any text, and of
 * those the oldest of the user who has the most first.
 *
 * Owner: the daemon thread; saved_write() may be called in any.
 */

#include <limits.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

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

/* A file that is being written; fd < 0: none. */
struct saved_draft {
    int fd;
    char path[PATH_MAX];
};

/* A draft for what will be @path. Return: 0 or -errno, with @why. */
int saved_draft(const char *path, struct saved_draft *ret, struct why *why);
/* Remove it, if there is one. */
void saved_discard(struct saved_draft *d);

/**
 * saved_write() - write the text, and make @kv, which has the keys and values, that of the session
 * @kv:         without a file: there are none, also if there were before. Discarded in any case.
 *
 * Waits for the disk. Return: 0, also when the keys and values could not be kept, which the log
 * says; or -errno with @why, the text then being what it was.
 */
int saved_write(const struct saved *s, const struct session_blob *blob, struct saved_draft *kv,
                struct why *why);
/* Read the text. Return: 0, RPC_NO_SUCH_SESSION, RPC_CORRUPT: no file of ours, or -errno, with
 * @why. */
int saved_read(const struct saved *s, struct session_blob *ret, struct why *why);
/* Keys and values, open for reading, the caller's to close. Return: a descriptor or -errno, -ENOENT
 * when there are none. */
int saved_open_kv(const struct saved *s);
bool saved_has_kv(const struct saved *s);
/* Remove both files. */
void saved_remove(const struct saved *s);

/* One of them, as it is listed. */
struct saved_item {
    char token[SAVED_TOKEN + 1];
    uint64_t n_byte, n_kv_byte; /* on the disk */
    struct timespec used;       /* when it was saved or restored last */
};
/* Those of @uid, the last used first, in @ret_item [ret_n]: the caller's to free. @dir: NULL: there
 * are none. Return: 0 or -ENOMEM. */
int saved_list(const char *dir, uid_t uid, struct saved_item **ret_item, size_t *ret_n);

/* Remove drafts that a service left which ended while it wrote them. */
void saved_clean(const char *dir);

/* Make all of them together fit into @max bytes. */
void saved_trim(const char *dir, uint64_t max);
