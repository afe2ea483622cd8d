/* SPDX-License-Identifier: Apache-2.0 */

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>

#include "daemon/clock.h"
#include "daemon/notify.h"

void notify_ready(void) {
    (void)sd_notify(0, "READY=1");
}

void notify_reloading(void) {
    (void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, clock_usec());
}

void notify_stopping(void) {
    (void)sd_notify(0, "STOPPING=1\nSTATUS=Stopping");
}

void notify_alive(void) {
    (void)sd_notify(0, "WATCHDOG=1");
}

void notify_status(const char *fmt, ...) {
    char line[256];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    (void)sd_notifyf(0, "STATUS=%s", line);
}
