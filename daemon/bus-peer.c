/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-peer - callers: who they are, and that they left
 *
 * Both are asked of the bus, and neither is waited for. The match for the caller's leaving is made
 * before its credentials are asked for: had it left before, they are refused.
 */

#include <stdlib.h>
#include <string.h>

#include "daemon/bus-priv.h"

#define DRIVER      "org.freedesktop.DBus"
#define DRIVER_PATH "/org/freedesktop/DBus"

/* ---- what the bus says ---- */

/* Anybody may send a signal that looks like the bus's. */
static int on_left(sd_bus_message *m, void *arg, sd_bus_error *error) {
    const char *sender = sd_bus_message_get_sender(m);

    if (sender && strcmp(sender, DRIVER) == 0)
        bus_peer_free(arg);
    return 0;
}

/* a{sv} with UnixUserID and ProcessID among others. */
static int read_creds(sd_bus_message *m, struct peer *ret) {
    uint32_t uid = UINT32_MAX, pid = 0;
    const char *key;
    int r;

    r = sd_bus_message_enter_container(m, 'a', "{sv}");
    while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
        r = sd_bus_message_read(m, "s", &key);
        if (r >= 0 && strcmp(key, "UnixUserID") == 0)
            r = sd_bus_message_read(m, "v", "u", &uid);
        else if (r >= 0 && strcmp(key, "ProcessID") == 0)
            r = sd_bus_message_read(m, "v", "u", &pid);
        else if (r >= 0)
            r = sd_bus_message_skip(m, "v");
        if (r >= 0)
            r = sd_bus_message_exit_container(m);
    }
    if (r < 0 || uid == UINT32_MAX)
        return r < 0 ? err_new(r) : err_new(-ENODATA);

    peer_of(ret, uid, (pid_t)pid);
    return 0;
}

static int on_creds(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct bus_peer *peer = arg;
    struct bus_call *c, *next;

    if (sd_bus_message_get_error(m) || read_creds(m, &peer->who) < 0) {
        bus_peer_free(peer);
        return 0;
    }

    peer->known = true;
    peer->n_call++; /* it stays as long as we are here */
    for (c = LIST_FIRST(&peer->calls); c; c = next) {
        next = LIST_NEXT(c, link);
        bus_call_known(c);
    }
    peer->n_call--;
    bus_peer_put(peer);
    return 0;
}

/* ---- life ---- */

void bus_peer_free(struct bus_peer *peer) {
    peer->n_call++; /* the last call does not free it */
    while (!LIST_EMPTY(&peer->calls))
        bus_call_free(LIST_FIRST(&peer->calls));
    while (!LIST_EMPTY(&peer->sessions))
        bus_session_close(LIST_FIRST(&peer->sessions));

    if (peer->name) {
        LIST_REMOVE(peer, link);
        peer->bus->n_peer--;
    }
    (void)sd_bus_slot_unref(peer->match);
    (void)sd_bus_slot_unref(peer->creds);
    free(peer->name);
    free(peer);
}

void bus_peer_put(struct bus_peer *peer) {
    if (!peer->n_call && LIST_EMPTY(&peer->sessions))
        bus_peer_free(peer);
}

static int ask(struct bus_peer *peer) {
    char match[256];
    sd_bus *sd = peer->bus->sd;
    int r;

    (void)snprintf(match, sizeof match,
                   "type='signal',sender='" DRIVER "',member='NameOwnerChanged',arg0='%s',arg2=''",
                   peer->name);
    r = sd_bus_add_match_async(sd, &peer->match, match, on_left, NULL, peer);
    if (r >= 0)
        r = sd_bus_call_method_async(sd, &peer->creds, DRIVER, DRIVER_PATH, DRIVER,
                                     "GetConnectionCredentials", on_creds, peer, "s", peer->name);
    return r < 0 ? err_new(r) : 0;
}

static struct bus_peer *peer_new(struct bus *bus, const char *name) {
    struct bus_peer *peer = calloc(1, sizeof *peer);

    if (!peer)
        return NULL;

    peer->bus = bus;
    LIST_INIT(&peer->calls);
    LIST_INIT(&peer->sessions);
    peer->name = strdup(name);
    if (peer->name) {
        LIST_INSERT_HEAD(&bus->peers, peer, link);
        bus->n_peer++;
    }
    if (!peer->name || ask(peer) < 0) {
        bus_peer_free(peer);
        return NULL;
    }

    return peer;
}

int bus_peer_get(struct bus *bus, const char *name, struct bus_peer **ret_peer) {
    struct bus_peer *peer;

    for (peer = LIST_FIRST(&bus->peers); peer; peer = LIST_NEXT(peer, link))
        if (strcmp(peer->name, name) == 0) {
            *ret_peer = peer;
            return 0;
        }
    if (bus->n_peer >= BUS_PEER_MAX)
        return RPC_QUOTA_EXCEEDED;

    *ret_peer = peer_new(bus, name);
    return *ret_peer ? 0 : err_new(-ENOMEM);
}
