/* SPDX-License-Identifier: Apache-2.0 */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/err.h"
#include "engine/base/log.h"

int err_slow_new(int r, const char *func, const char *file, int line) {
    int saved = errno;

    log_debug("err", "new  %s @ %s:%d: %s", func, file, line, strerror(-r));
    errno = saved; /* the caller may still want %m */
    return r;
}

int err_slow_up(int r, const char *func, const char *file, int line) {
    log_debug("err", "up   %s @ %s:%d", func, file, line);
    return r;
}

int err_slow_fold(int r, const char *func, const char *file, int line) {
    if (r < 0)
        return err_slow_up(r, func, file, line);

    log_debug("err", "fold %s @ %s:%d: unhandled outcome %d", func, file, line, r);
    return -ENOTRECOVERABLE;
}

int why_set(struct why *why, int r, const char *fmt, ...) {
    int saved = errno;

    if (why) {
        va_list ap;

        va_start(ap, fmt);
        vsnprintf(why->text, sizeof why->text, fmt, ap);
        va_end(ap);
    }

    errno = saved;
    return r;
}
