/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/bus-priv.h"
#include "engine/base/log.h"

enum {
    BUS_BURST = 64,            /* messages before sockets have their turn */
    BUS_RETRY_USEC = 10000000, /* until the bus is tried again */
};

static void on_ready(evutil_socket_t fd, short what, void *arg);

/* ---- the loop ---- */

void bus_kick(struct bus *bus) {
    event_active(bus->timer, EV_TIMEOUT, 1);
}

/* sd-bus decides what it waits for: mirror that after everything it did. */
static void rearm(struct bus *bus) {
    int events = sd_bus_get_events(bus->sd);
    usec_t at = UINT64_MAX, now = clock_usec();
    struct timeval tv;
    short what = EV_PERSIST;

    what |= events > 0 && (events & POLLIN) ? EV_READ : 0;
    what |= events > 0 && (events & POLLOUT) ? EV_WRITE : 0;
    (void)event_del(bus->io);
    (void)event_assign(bus->io, bus->server->base, sd_bus_get_fd(bus->sd), what, on_ready, bus);
    (void)event_add(bus->io, NULL);

    (void)event_del(bus->timer);
    if (sd_bus_get_timeout(bus->sd, &at) < 0 || at == UINT64_MAX)
        return;
    tv = clock_timeval(at > now ? at - now : 0);
    (void)event_add(bus->timer, &tv);
}

static void retry_later(struct bus *bus) {
    struct timeval tv = clock_timeval(BUS_RETRY_USEC);

    (void)event_add(bus->retry, &tv);
}

static void disconnect(struct bus *bus) {
    (void)event_del(bus->io);
    (void)event_del(bus->timer);
    while (!LIST_EMPTY(&bus->peers))
        bus_peer_free(LIST_FIRST(&bus->peers));
    bus->sd = sd_bus_close_unref(bus->sd);
}

static void on_ready(evutil_socket_t fd, short what, void *arg) {
    struct bus *bus = arg;
    int r = 1;

    for (int i = 0; i < BUS_BURST && r > 0; i++)
        r = sd_bus_process(bus->sd, NULL);
    if (r < 0 || sd_bus_is_open(bus->sd) <= 0) {
        log_warning("bus", "the bus is gone: %s", strerror(r < 0 ? -r : ECONNRESET));
        disconnect(bus);
        retry_later(bus);
        return;
    }

    rearm(bus);
    if (r > 0)
        bus_kick(bus);
}

/* ---- connection ---- */

static int on_name(sd_bus_message *m, void *arg, sd_bus_error *error) {
    const sd_bus_error *e = sd_bus_message_get_error(m);
    uint32_t r = 0;

    if (e)
        log_warning("bus", "%s: not ours: %s", BUS_NAME, e->message ?: e->name);
    else if (sd_bus_message_read(m, "u", &r) < 0 || r != 1) /* the primary owner */
        log_warning("bus", "%s: another service has the name", BUS_NAME);
    else
        log_info("bus", "%s: served", BUS_NAME);
    return 0;
}

static int open_bus(const struct bus *bus, sd_bus **ret_sd) {
    switch ((enum config_bus)bus->server->config->bus) {
    case CONFIG_BUS_SYSTEM:
        return sd_bus_open_system_with_description(ret_sd, "moed");
    case CONFIG_BUS_SESSION:
        return sd_bus_open_user_with_description(ret_sd, "moed");
    default:
        return sd_bus_open_with_description(ret_sd, "moed"); /* ours, system's or user's */
    }
}

static int connect_bus(struct bus *bus) {
    int r;

    r = open_bus(bus, &bus->sd);
    if (r >= 0)
        r = bus_manager_add(bus);
    if (r >= 0)
        r = bus_admin_add(bus);
    if (r >= 0) /* bit 2: do not queue for it */
        r = sd_bus_request_name_async(bus->sd, NULL, BUS_NAME, 4, on_name, bus);
    return r < 0 ? r : 0;
}

static void on_retry(evutil_socket_t fd, short what, void *arg) {
    struct bus *bus = arg;
    int r;

    r = connect_bus(bus);
    if (!r) {
        bus->told = false;
        bus_kick(bus);
        return;
    }
    log_at(bus->told ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARNING, "bus", "no bus: %s", strerror(-r));
    bus->told = true;
    bus->sd = sd_bus_close_unref(bus->sd);
    retry_later(bus);
}

/* ---- life ---- */

static void on_changed(void *arg) {
    struct bus *bus = arg;

    if (bus->sd)
        bus_manager_changed(bus);
}

/* Only whom a service manager started is looked for on a bus, unless the configuration says so. */
static bool is_wanted(const struct config *c) {
    return c->bus == CONFIG_BUS_AUTO ? getenv("NOTIFY_SOCKET") != NULL : c->bus != CONFIG_BUS_NONE;
}

struct bus *bus_free(struct bus *bus) {
    struct bus_peer *peer;

    if (!bus)
        return NULL;

    models_watch(bus->server->models, NULL, NULL);
    residency_watch(bus->server->residency, NULL, NULL);
    while ((peer = LIST_FIRST(&bus->peers))) {
        if (LIST_EMPTY(&peer->calls)) {
            bus_peer_free(peer);
            continue;
        } /* the last one takes the peer along */
        bus_call_fail(LIST_FIRST(&peer->calls), RPC_SHUTTING_DOWN, "the service is stopping", NULL);
    }
    if (bus->sd)
        (void)sd_bus_flush(bus->sd);
    if (bus->io && bus->timer)
        disconnect(bus);
    if (bus->io)
        event_free(bus->io);
    if (bus->timer)
        event_free(bus->timer);
    if (bus->retry)
        event_free(bus->retry);
    free(bus);

    return NULL;
}

int bus_new(struct bus **ret_bus, struct server *server) {
    AUTO(bus_free) struct bus *bus = NULL;

    if (!is_wanted(server->config)) {
        *ret_bus = NULL;
        return 0;
    }

    bus = calloc(1, sizeof *bus);
    if (!bus)
        return err_new(-ENOMEM);
    bus->server = server;
    LIST_INIT(&bus->peers);
    bus->io = event_new(server->base, -1, 0, on_ready, bus);
    bus->timer = evtimer_new(server->base, on_ready, bus);
    bus->retry = evtimer_new(server->base, on_retry, bus);
    if (!bus->io || !bus->timer || !bus->retry)
        return err_new(-ENOMEM);

    models_watch(server->models, on_changed, bus);
    residency_watch(server->residency, on_changed, bus);
    on_retry(-1, 0, bus);
    *ret_bus = take(bus);
    return 0;
}
