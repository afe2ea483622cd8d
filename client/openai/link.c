/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "client/openai/bridge.h"

static void on_io(evutil_socket_t fd, short what, void *userdata);

/* Wait for what libmoe wants now. */
static void watch(struct bridge *b) {
    uint64_t usec = moe_timeout(b->m);
    struct timeval tv = { .tv_sec = (time_t)(usec / 1000000),
                          .tv_usec = (suseconds_t)(usec % 1000000) };
    int events = moe_events(b->m);

    (void)event_del(b->io);
    (void)event_assign(b->io, b->base, moe_fd(b->m),
                       (short)((events & POLLIN ? EV_READ : 0) | (events & POLLOUT ? EV_WRITE : 0)),
                       on_io, b);
    (void)event_add(b->io, usec == MOE_FOREVER ? NULL : &tv);
}

static void process(struct bridge *b, int revents) {
    if (!b->m)
        return;
    if (moe_process(b->m, revents) == 0) {
        watch(b);
        return;
    }
    /* It hung up: every call has had its reply. The next request connects again. */
    (void)event_del(b->io);
    b->m = moe_close(b->m);
}

static void on_io(evutil_socket_t fd, short what, void *userdata) {
    process(userdata, (what & EV_READ ? POLLIN : 0) | (what & EV_WRITE ? POLLOUT : 0));
}

static void on_kick(evutil_socket_t fd, short what, void *userdata) {
    process(userdata, 0);
}

int link_init(struct bridge *b) {
    b->io = event_new(b->base, -1, 0, on_io, b);
    b->kick = event_new(b->base, -1, 0, on_kick, b);
    return b->io && b->kick ? 0 : -ENOMEM;
}

void link_deinit(struct bridge *b) {
    b->m = moe_close(b->m);
    if (b->io)
        event_free(b->io);
    if (b->kick)
        event_free(b->kick);
}

int link_open(struct bridge *b, struct fault *f) {
    int r;

    if (b->m)
        return 0;
    r = moe_open(&b->m, b->socket);
    if (r < 0)
        return fault_set(f, 503, "service_unavailable_error", "unreachable", NULL,
                         "cannot reach moed: %s", strerror(-r));
    watch(b);
    return 0;
}

void link_kick(struct bridge *b) {
    event_active(b->kick, EV_TIMEOUT, 0);
}

int link_refused(int r, struct fault *f) {
    switch (r) {
    case -EAGAIN:
        (void)fault_set(f, 429, "rate_limit_error", "busy", NULL,
                        "as many requests as one connection to moed takes "
                        "are being answered");
        f->retry_after_ms = 1000;
        return f->status;
    case -EMSGSIZE:
        return fault_set(f, 413, "invalid_request_error", "too_large", NULL,
                         "the request is larger than moed's protocol allows");
    default:
        return fault_set(f, 503, "service_unavailable_error", "unreachable", NULL,
                         "cannot ask moed: %s", strerror(-r));
    }
}
