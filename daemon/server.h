/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * server - the clients of the daemon and the models they share
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>
#include <stdint.h>

#include "daemon/account.h"
#include "daemon/channel.h"
#include "daemon/clock.h"
#include "daemon/config.h"
#include "daemon/errands.h"
#include "daemon/import.h"
#include "daemon/models.h"
#include "daemon/power.h"
#include "daemon/prefixes.h"
#include "daemon/residency.h"
#include "daemon/session.h"
#include "daemon/tasks.h"

struct event_base;
struct event;

enum {
    SERVER_LISTENER_MAX = 16,
    SERVER_STOP_USEC = 4000000, /* what clients get to take their last answers */
};

LIST_HEAD(work_list, work);

struct server {
    struct event_base *base;
    struct config *config;
    struct tasks *tasks;
    struct errands *errands;
    struct models *models;
    struct prefixes *prefixes;
    struct imports *imports;
    struct account *account;
    struct work_list works; /* requests the engine has */
    struct residency *residency;
    struct power *power;
    struct channel_list channels;
    uint32_t n_channel;
    uint64_t next_channel;
    struct sessions sessions;
    struct topo *topo; /* made when somebody asks; NULL: not yet */
    usec_t started_usec;
    bool stopping;

    struct evconnlistener *listener[SERVER_LISTENER_MAX];
    uint32_t n_listener;
    struct event *stop_timer, *accept_timer;
};

/* Takes @config, also on failure. */
int server_new(struct server **ret_server, struct event_base *base, struct config *config);
struct server *server_free(struct server *s);
AUTO_DEFINE(struct server *, server_free)

/* Accept clients on a listening socket; takes @fd on success. */
int server_listen(struct server *s, int fd);
/* Would a connection of @uid be refused now? Return: 0, or the RPC_* error. */
int server_refuses(const struct server *s, uid_t uid, struct why *why);
/* Connections that somebody has: channels but for those of one call. */
uint32_t server_n_connection(const struct server *s);
/* Serve a connected socket; takes @fd in any case. */
int server_adopt(struct server *s, int fd);
/* Likewise, for @peer, whoever made the socket. @one_call: it is one call of a bus, for which the
 * limits on connections are not. @ret_channel: borrowed; may be about to close. */
int server_adopt_as(struct server *s, int fd, const struct peer *peer, bool one_call,
                    struct channel **ret_channel);

/* Takes @config. */
void server_reconfigure(struct server *s, struct config *config);

/* Take no more clients, end every request with ShuttingDown, and leave the event loop when all is
 * said, or after SERVER_STOP_USEC. */
void server_stop(struct server *s);

/* A channel ended and is no longer linked. */
void server_forget(struct server *s, struct channel *channel);
