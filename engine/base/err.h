/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * err - how every function in this tree fails
 *
 *   r == 0   success
 *   r <  0   -errno: fatal for this operation. Return it unchanged; never match on it.
 *   r >  0   an outcome named in the callee's header (KVCACHE_FULL, GGUF_BAD, ...).
 *            The caller handles it. It means nothing one frame further up.
 *
 * Return through exactly one of:
 *
 *   err_new(-ENOMEM)   a failure starts here (also: err_new(-errno))
 *   err_up(r)          pass a negative on; positives pass unchanged (same outcome set)
 *   err_fold(r)        an outcome we have no answer to becomes fatal (-ENOTRECOVERABLE)
 *
 * All three cost one branch on success; on failure they leave a line of the back-trace in the log
 * topic "err" at level debug ($MOE_LOG=err:7 shows it).
 */

#include <errno.h>

int err_slow_new(int r, const char *func, const char *file, int line);
int err_slow_up(int r, const char *func, const char *file, int line);
int err_slow_fold(int r, const char *func, const char *file, int line);

#define err_new(r_)  err_slow_new((r_), __func__, __FILE__, __LINE__)
#define err_up(r_)   err_inline_up((r_), __func__, __FILE__, __LINE__)
#define err_fold(r_) err_inline_fold((r_), __func__, __FILE__, __LINE__)

static inline int err_inline_up(int r, const char *func, const char *file, int line) {
    return r >= 0 ? r : err_slow_up(r, func, file, line);
}

static inline int err_inline_fold(int r, const char *func, const char *file, int line) {
    return r == 0 ? 0 : err_slow_fold(r, func, file, line);
}

/* why - the sentence an operator needs, filled only by functions that take one.
 * NULL is fine everywhere. why_set() returns its first argument, so: return why_set(...). */
struct why {
    char text[240];
};

int why_set(struct why *why, int r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
