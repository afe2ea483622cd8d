/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <event2/listener.h>
#include <event2/util.h>
#include <string.h>
#include <sys/socket.h>

#include "daemon/notify.h"
#include "daemon/saved.h"
#include "daemon/server.h"
#include "engine/base/log.h"

enum { SERVER_RETRY_USEC = 1000000 };

/* Connections; @uid: of that user, or NULL. */
static uint32_t count(const struct server *s, const uid_t *uid) {
    const struct channel *at;
    uint32_t n = 0;

    for (at = LIST_FIRST(&s->channels); at; at = LIST_NEXT(at, link))
        n += !at->one_call && (!uid || at->peer.uid == *uid);

    return n;
}

uint32_t server_n_connection(const struct server *s) {
    return count(s, NULL);
}

int server_refuses(const struct server *s, uid_t uid, struct why *why) {
    if (s->stopping)
        return why_set(why, RPC_SHUTTING_DOWN, "the service is stopping");
    if (count(s, &uid) >= s->config->user_connections)
        return why_set(why, RPC_QUOTA_EXCEEDED, "the user has too many connections");
    if (count(s, NULL) >= s->config->max_connections)
        return why_set(why, RPC_QUOTA_EXCEEDED, "the service has too many connections");
    return 0;
}

int server_adopt_as(struct server *s, int fd, const struct peer *peer, bool one_call,
                    struct channel **ret_channel) {
    AUTO(close) int own = fd;
    struct channel *channel;
    struct why why = { 0 };
    int refused = one_call ? 0 : server_refuses(s, peer->uid, &why), r;

    if (evutil_make_socket_nonblocking(fd) < 0)
        return err_new(-errno);
    r = channel_new(&channel, s, fd, peer);
    if (r)
        return err_up(r);

    (void)take_fd(&own);
    LIST_INSERT_HEAD(&s->channels, channel, link);
    channel->id = ++s->next_channel;
    channel->one_call = one_call;
    s->n_channel++;
    log_debug("server", "channel %ju: user %u, process %d, %s%s", (uintmax_t)channel->id,
              (unsigned)peer->uid, (int)peer->pid, peer->unit[0] ? peer->unit : "no unit",
              peer->background ? ", background" : "");
    if (refused)
        channel_refuse(channel, refused, why.text);

    *ret_channel = channel;
    return 0;
}

int server_adopt(struct server *s, int fd) {
    struct channel *channel;
    struct peer peer;
    int r;

    r = peer_get(&peer, fd);
    if (r) {
        (void)close(fd);
        return err_up(r);
    }

    return err_up(server_adopt_as(s, fd, &peer, false, &channel));
}

void server_forget(struct server *s, struct channel *channel) {
    log_debug("server", "channel %ju: closed", (uintmax_t)channel->id);
    residency_drop(s->residency, &channel->lease);
    LIST_REMOVE(channel, link);
    s->n_channel--;
    if (s->stopping && !s->n_channel)
        (void)event_base_loopbreak(s->base);
}

/* ---- listening ---- */

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *addr, int n,
                      void *arg) {
    int r = server_adopt(arg, fd);

    if (r)
        log_warning("server", "a connection is lost: %s", strerror(-r));
}

/* Out of descriptors: a listener that stays readable would spin. */
static void on_accept_error(struct evconnlistener *l, void *arg) {
    struct timeval tv = clock_timeval(SERVER_RETRY_USEC);
    struct server *s = arg;

    log_warning("server", "cannot accept: %s", strerror(errno));
    for (uint32_t i = 0; i < s->n_listener; i++)
        (void)evconnlistener_disable(s->listener[i]);
    (void)event_add(s->accept_timer, &tv);
}

static void on_accept_again(evutil_socket_t fd, short what, void *arg) {
    struct server *s = arg;

    for (uint32_t i = 0; i < s->n_listener; i++)
        (void)evconnlistener_enable(s->listener[i]);
}

int server_listen(struct server *s, int fd) {
    struct evconnlistener *l;

    if (s->n_listener == SERVER_LISTENER_MAX)
        return err_new(-ENOSPC);
    l = evconnlistener_new(s->base, on_accept, s, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0,
                           fd);
    if (!l)
        return err_new(-ENOMEM);

    evconnlistener_set_error_cb(l, on_accept_error);
    s->listener[s->n_listener++] = l;
    return 0;
}

static void close_listeners(struct server *s) {
    while (s->n_listener)
        evconnlistener_free(s->listener[--s->n_listener]);
}

/* ---- life ---- */

static void on_stop_timer(evutil_socket_t fd, short what, void *arg) {
    struct server *s = arg;

    log_warning("server", "%u clients did not take their last answers", s->n_channel);
    (void)event_base_loopbreak(s->base);
}

void server_stop(struct server *s) {
    struct timeval tv = clock_timeval(SERVER_STOP_USEC);
    struct channel *at, *next;

    if (s->stopping) { /* asked twice: now */
        (void)event_base_loopbreak(s->base);
        return;
    }

    s->stopping = true;
    notify_stopping();
    log_info("server", "stopping, %u clients", s->n_channel);
    (void)event_del(s->accept_timer);
    close_listeners(s);
    (void)event_add(s->stop_timer, &tv);
    for (at = LIST_FIRST(&s->channels); at; at = next) {
        next = LIST_NEXT(at, link);
        channel_stop(at, RPC_SHUTTING_DOWN);
    }
    if (!s->n_channel)
        (void)event_base_loopbreak(s->base);
}

void server_reconfigure(struct server *s, struct config *config) {
    struct config *old = s->config;

    s->config = config;
    s->topo = topo_free(s->topo); /* the CPUs that may be used can be others */
    models_reconfigure(s->models, config);
    prefixes_reconfigure(s->prefixes, config);
    if (residency_reconfigure(s->residency, config) < 0)
        log_warning("server", "memory pressure is no longer watched: out of memory");
    power_reconfigure(s->power, config);
    (void)config_free(old);
}

struct server *server_free(struct server *s) {
    if (!s)
        return NULL;

    close_listeners(s);
    while (!LIST_EMPTY(&s->channels))
        (void)channel_free(LIST_FIRST(&s->channels));
    (void)power_free(s->power);
    session_deinit_all(&s->sessions);
    (void)residency_free(s->residency);
    (void)import_free(s->imports);
    (void)models_free(s->models);
    (void)prefixes_free(s->prefixes);
    (void)errands_free(s->errands); /* jobs that ended with the models may have added some */
    (void)tasks_free(s->tasks);
    (void)account_free(s->account);
    if (s->stop_timer)
        event_free(s->stop_timer);
    if (s->accept_timer)
        event_free(s->accept_timer);
    (void)topo_free(s->topo);
    (void)config_free(s->config);
    free(s);

    return NULL;
}

int server_new(struct server **ret_server, struct event_base *base, struct config *config) {
    AUTO(server_free) struct server *s = calloc(1, sizeof *s);
    int r;

    if (!s) {
        (void)config_free(config);
        return err_new(-ENOMEM);
    }

    s->base = base;
    s->config = config;
    s->started_usec = clock_usec();
    LIST_INIT(&s->channels);
    LIST_INIT(&s->works);
    s->stop_timer = evtimer_new(base, on_stop_timer, s);
    s->accept_timer = evtimer_new(base, on_accept_again, s);
    if (!s->stop_timer || !s->accept_timer)
        return err_new(-ENOMEM);
    saved_clean(config_cache_dir(config));
    r = errands_new(&s->errands, base);
    if (!r)
        r = account_new(&s->account);
    if (!r)
        r = tasks_new(&s->tasks, base);
    if (!r)
        r = models_new(&s->models, base, s->tasks, config);
    if (!r)
        r = prefixes_new(&s->prefixes, s->models, config);
    if (!r)
        r = import_new(&s->imports, base, s->tasks, s->models);
    if (!r)
        r = residency_new(&s->residency, base, s->models, config);
    if (!r)
        r = power_new(&s->power, s->models, config);
    if (r)
        return err_up(r);

    *ret_server = take(s);
    return 0;
}
