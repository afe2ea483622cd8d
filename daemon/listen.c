/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "daemon/listen.h"
#include "daemon/rpc.h"
#include "engine/base/log.h"

enum { LISTEN_BACKLOG = 128 };

void listen_deinit(struct listen *l) {
    for (size_t i = 0; i < l->n; i++)
        auto_close(&l->fd[i]);
    if (l->path)
        (void)unlink(l->path);
    free(l->path);
    *l = (struct listen){ 0 };
}

int listen_systemd(struct listen *l, struct fdstore *store, struct why *why) {
    char **names = NULL;
    int n = sd_listen_fds_with_names(1, &names);

    if (n < 0)
        return why_set(why, err_new(n), "cannot take the sockets of the service manager: %s",
                       strerror(-n));

    for (int i = 0; i < n; i++) {
        int fd = SD_LISTEN_FDS_START + i;

        if (strcmp(names[i], "rpc") == 0 && l->n < LISTEN_MAX &&
            sd_is_socket_unix(fd, SOCK_STREAM, 1, NULL, 0) > 0) {
            (void)fcntl(fd, F_SETFL, O_NONBLOCK | fcntl(fd, F_GETFL));
            l->fd[l->n++] = fd;
        } else if (sd_is_socket(fd, AF_UNSPEC, 0, -1) == 0) {
            fdstore_take(store, names[i], fd);
        } else {
            log_warning("listen",
                        "descriptor %d (%s) is no listening stream socket named rpc: "
                        "closed",
                        fd, names[i]);
            (void)close(fd);
        }
        free(names[i]);
    }

    free(names);
    return 0;
}

static void refuse(int fd, const msgpack_sbuffer *frame) {
    int client;

    while ((client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
        (void)send(client, frame->data, frame->size, MSG_NOSIGNAL);
        (void)close(client);
    }
}

void listen_refuse(const struct listen *l, const char *message) {
    msgpack_sbuffer frame;
    msgpack_packer p;

    msgpack_sbuffer_init(&frame);
    msgpack_packer_init(&p, &frame, msgpack_sbuffer_write);
    wire_pack_notify(&p, "rpc.error");
    rpc_pack_error(&p, RPC_INTERNAL, message, NULL);
    for (size_t i = 0; i < l->n; i++)
        refuse(l->fd[i], &frame);
    msgpack_sbuffer_destroy(&frame);
}

/* Is @addr a socket file that a dead process left behind? */
static bool is_stale(const struct sockaddr_un *addr) {
    AUTO(close) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat st;

    return fd >= 0 && lstat(addr->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
           connect(fd, (const struct sockaddr *)addr, sizeof *addr) < 0 && errno == ECONNREFUSED;
}

int listen_bind(struct listen *l, const char *path, struct why *why) {
    AUTO(close) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    mode_t mask;
    int r;

    if (fd < 0)
        return err_new(-errno);
    if (strlen(path) >= sizeof addr.sun_path)
        return why_set(why, LISTEN_BAD,
                       "%.100s…: longer than the %zu bytes a socket's path may have", path,
                       sizeof addr.sun_path - 1);
    if (l->n == LISTEN_MAX)
        return why_set(why, LISTEN_BAD, "more than %d sockets", LISTEN_MAX);
    (void)memcpy(addr.sun_path, path, strlen(path));

    if (is_stale(&addr))
        (void)unlink(path);

    /* The mask makes the file 0600 from its first moment; a chmod() would come after it. */
    mask = umask(0177);
    r = bind(fd, (const struct sockaddr *)&addr, sizeof addr) < 0 ? errno : 0;
    (void)umask(mask);
    if (r == EADDRINUSE)
        return why_set(why, LISTEN_BAD, "%s: exists, and is no socket that nobody listens on",
                       path);
    if (r)
        return why_set(why, LISTEN_BAD, "%s: cannot bind: %s", path, strerror(r));
    l->path = strdup(path);
    if (!l->path || listen(fd, LISTEN_BACKLOG) < 0)
        return err_new(-errno);

    l->fd[l->n++] = take_fd(&fd);
    return 0;
}
