/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>
#include <string.h>

#include "daemon/bus-priv.h"
#include "engine/base/log.h"

void bus_kick(struct bus *bus) {
    bus_loop_kick(&bus->loop);
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

static int on_open(void *arg, sd_bus **ret_sd) {
    struct bus *bus = arg;
    int r;

    r = open_bus(bus, ret_sd);
    bus->sd = *ret_sd;
    if (r >= 0)
        r = bus_manager_add(bus);
    if (r >= 0)
        r = bus_admin_add(bus);
    if (r >= 0)
        r = bus_session_add(bus);
    if (r >= 0)
        r = bus_job_add(bus);
    if (r >= 0)
        r = bus_model_add(bus);
    if (r >= 0)
        r = sd_bus_add_object_manager(bus->sd, NULL, BUS_PATH);
    if (r >= 0)
        bus_model_look(bus);
    if (r >= 0) /* bit 2: do not queue for it */
        r = sd_bus_request_name_async(bus->sd, NULL, BUS_NAME, 4, on_name, bus);
    return r < 0 ? r : 0;
}

static void on_lost(void *arg) {
    struct bus *bus = arg;

    while (!LIST_EMPTY(&bus->peers))
        bus_peer_free(LIST_FIRST(&bus->peers));
    bus->sd = NULL;
}

static const struct bus_loop_ops ops = { "bus", on_open, on_lost };

/* ---- life ---- */

static void on_changed(void *arg) {
    struct bus *bus = arg;

    if (bus->sd)
        bus_manager_changed(bus);
    if (bus->sd)
        bus_model_look(bus);
}

struct bus *bus_free(struct bus *bus) {
    struct bus_peer *peer;

    if (!bus)
        return NULL;

    models_watch(bus->server->models, NULL, NULL);
    bus_job_watch(bus, false);
    residency_watch(bus->server->residency, NULL, NULL);
    while ((peer = LIST_FIRST(&bus->peers))) {
        if (LIST_EMPTY(&peer->calls)) {
            bus_peer_free(peer);
            continue;
        } /* the last one takes the peer along */
        bus_call_fail(LIST_FIRST(&peer->calls), RPC_SHUTTING_DOWN, "the service is stopping", NULL);
    }
    bus_loop_deinit(&bus->loop);
    bus_model_free_all(bus);
    free(bus);

    return NULL;
}

int bus_new(struct bus **ret_bus, struct server *server) {
    AUTO(bus_free) struct bus *bus = NULL;
    int r;

    if (!config_wants_bus(server->config)) {
        *ret_bus = NULL;
        return 0;
    }

    bus = calloc(1, sizeof *bus);
    if (!bus)
        return err_new(-ENOMEM);
    bus->server = server;
    LIST_INIT(&bus->peers);
    LIST_INIT(&bus->models);
    models_watch(server->models, on_changed, bus);
    bus_job_watch(bus, true);
    residency_watch(server->residency, on_changed, bus);
    r = bus_loop_init(&bus->loop, server->base, &ops, bus);
    if (r)
        return err_up(r);

    *ret_bus = take(bus);
    return 0;
}
