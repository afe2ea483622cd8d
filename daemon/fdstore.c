/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/fdstore.h"
#include "engine/base/log.h"

static void give_up(const char *name) {
    (void)sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", name);
}

void fdstore_take(struct fdstore *s, const char *name, int fd) {
    if (strcmp(name, FDSTORE_NAME) == 0 && !s->fd) {
        s->fd = fd;
        return;
    }
    (void)close(fd);
    if (strcmp(name, FDSTORE_NAME) == 0) /* a second one goes when the first does */
        return;
    log_info("fdstore", "%s: given up", name);
    give_up(name);
}

void fdstore_put(struct fdstore *s, int fd) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

    fdstore_drop(s);
    if (copy < 0)
        return;
    s->fd = copy;
    (void)sd_pid_notify_with_fds(0, 0, "FDSTORE=1\nFDNAME=" FDSTORE_NAME, &copy, 1);
}

void fdstore_drop(struct fdstore *s) {
    if (!s->fd)
        return;
    give_up(FDSTORE_NAME);
    fdstore_deinit(s);
}

void fdstore_deinit(struct fdstore *s) {
    if (s->fd)
        (void)close(s->fd);
    s->fd = 0;
}

void fdstore_after_stop(void) {
    const char *result = getenv("SERVICE_RESULT");

    if (result && strcmp(result, "oom-kill") == 0)
        give_up(FDSTORE_NAME);
}
