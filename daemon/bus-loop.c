/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <poll.h>
#include <string.h>

#include "daemon/bus-loop.h"
#include "daemon/clock.h"
#include "engine/base/err.h"
#include "engine/base/log.h"

enum {
    BUS_BURST = 64,            /* messages before sockets have their turn */
    BUS_RETRY_USEC = 10000000, /* until the bus is tried again */
};

static void on_ready(evutil_socket_t fd, short what, void *arg);

void bus_loop_kick(struct bus_loop *l) {
    event_active(l->timer, EV_TIMEOUT, 1);
}

/* sd-bus decides what it waits for: mirror that after everything it did. */
static void rearm(struct bus_loop *l) {
    int events = sd_bus_get_events(l->sd);
    usec_t at = UINT64_MAX, now = clock_usec();
    struct timeval tv;
    short what = EV_PERSIST;

    what |= events > 0 && (events & POLLIN) ? EV_READ : 0;
    what |= events > 0 && (events & POLLOUT) ? EV_WRITE : 0;
    (void)event_del(l->io);
    (void)event_assign(l->io, l->base, sd_bus_get_fd(l->sd), what, on_ready, l);
    (void)event_add(l->io, NULL);

    (void)event_del(l->timer);
    if (sd_bus_get_timeout(l->sd, &at) < 0 || at == UINT64_MAX)
        return;
    tv = clock_timeval(at > now ? at - now : 0);
    (void)event_add(l->timer, &tv);
}

static void retry_later(struct bus_loop *l) {
    struct timeval tv = clock_timeval(BUS_RETRY_USEC);

    (void)event_add(l->retry, &tv);
}

static void disconnect(struct bus_loop *l) {
    (void)event_del(l->io);
    (void)event_del(l->timer);
    l->ops->lost(l->arg);
    l->sd = sd_bus_close_unref(l->sd);
}

static void on_ready(evutil_socket_t fd, short what, void *arg) {
    struct bus_loop *l = arg;
    int r = 1;

    for (int i = 0; i < BUS_BURST && r > 0; i++)
        r = sd_bus_process(l->sd, NULL);
    if (r < 0 || sd_bus_is_open(l->sd) <= 0) {
        log_warning(l->ops->topic, "the bus is gone: %s", strerror(r < 0 ? -r : ECONNRESET));
        disconnect(l);
        retry_later(l);
        return;
    }

    rearm(l);
    if (r > 0)
        bus_loop_kick(l);
}

static void on_retry(evutil_socket_t fd, short what, void *arg) {
    struct bus_loop *l = arg;
    int r;

    r = l->ops->open(l->arg, &l->sd);
    if (!r) {
        l->told = false;
        bus_loop_kick(l);
        return;
    }
    log_at(l->told ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARNING, l->ops->topic, "no bus: %s",
           strerror(-r));
    l->told = true;
    disconnect(l);
    retry_later(l);
}

void bus_loop_deinit(struct bus_loop *l) {
    if (sd_bus_is_ready(l->sd) > 0) /* else it would wait for the bus */
        (void)sd_bus_flush(l->sd);
    if (l->sd)
        disconnect(l);
    if (l->io)
        event_free(l->io);
    if (l->timer)
        event_free(l->timer);
    if (l->retry)
        event_free(l->retry);
}

int bus_loop_init(struct bus_loop *l, struct event_base *base, const struct bus_loop_ops *ops,
                  void *arg) {
    *l = (struct bus_loop){ .base = base, .ops = ops, .arg = arg };
    l->io = event_new(base, -1, 0, on_ready, l);
    l->timer = evtimer_new(base, on_ready, l);
    l->retry = evtimer_new(base, on_retry, l);
    if (!l->io || !l->timer || !l->retry)
        return err_new(-ENOMEM);

    on_retry(-1, 0, l);
    return 0;
}
