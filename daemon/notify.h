/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * notify - what the service manager is told; nothing when there is none
 *
 * Owner: the daemon thread.
 */

/* Requests are accepted from now on; a model may still be loading. */
void notify_ready(void);
/* SIGHUP came; notify_ready() ends it. */
void notify_reloading(void);
void notify_stopping(void);
/* The watchdog's sign of life. */
void notify_alive(void);
/* One line for `systemctl status`. */
void notify_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
