/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/rpc.h"
#include "daemon/server.h"
#include "daemon/session.h"
#include "daemon/work.h"
#include "engine/base/log.h"

enum { LOOK_USEC = 600000000 /* limits may have changed, where there was none */ };

struct session *session_ref(struct session *t) {
    t->n_ref++;
    return t;
}

struct session *session_unref(struct session *t) {
    if (t && --t->n_ref == 0) {
        session_state_deinit(&t->state);
        free(t);
    }
    return NULL;
}

void session_close(struct session *t) {
    if (t->closed)
        return;

    t->closed = true;
    LIST_REMOVE(t, link);
    residency_drop(t->server->residency, &t->lease);
    if (t->work)
        work_stop(t->work, RPC_CANCELLED);
    (void)session_unref(t);
}

void session_close_all(struct server *server, const struct channel *owner) {
    struct session *t, *next;

    for (t = LIST_FIRST(&server->sessions.list); t; t = next) {
        next = LIST_NEXT(t, link);
        if (t->owner == owner)
            session_close(t);
    }
}

struct session *session_find(struct server *server, uid_t uid, uint64_t id) {
    struct session *t = LIST_FIRST(&server->sessions.list);

    while (t && !(t->id == id && t->uid == uid))
        t = LIST_NEXT(t, link);
    if (t)
        t->used_usec = clock_usec();

    return t;
}

static int check_room(const struct server *server, uid_t uid, size_t n_byte, uint64_t *ret_limit,
                      struct why *why) {
    const struct session *t;

    for (t = LIST_FIRST(&server->sessions.list); t; t = LIST_NEXT(t, link))
        if (t->uid == uid)
            n_byte += t->state.n_byte;
    *ret_limit = server->config->user_bytes;
    return n_byte > *ret_limit
               ? why_set(why, RPC_QUOTA_EXCEEDED,
                         "sessions of this user would have %zu bytes of text", n_byte)
               : 0;
}

int session_check_room(const struct session *t, const struct chat_message *msg, size_t n,
                       uint64_t *ret_limit, struct why *why) {
    return err_up(check_room(t->server, t->uid, session_state_size(msg, n), ret_limit, why));
}

int session_answer(struct session *t, const struct chat_message *asked, size_t n_asked,
                   const char *text, size_t n_text, size_t n_drop, struct why *why) {
    AUTO(free) char *copy = malloc(n_text + 1);
    struct session_state *s = &t->state;
    size_t n_before = s->n_msg, n = 0;
    int r;

    if (!copy)
        return err_new(-ENOMEM);
    for (size_t i = 0; i < n_text; i++) /* a model may write a NUL; messages have none */
        if (text[i])
            copy[n++] = text[i];
    copy[n] = '\0';
    r = session_state_add(s, asked, n_asked, why);
    if (!r)
        r = session_state_add(s, &(struct chat_message){ "assistant", copy }, 1, why);
    if (r) {
        session_state_cut(s, n_before);
        return err_up(r);
    }

    session_state_drop(s, n_drop);
    t->n_change++;
    t->used_usec = clock_usec();
    return 0;
}

/* ---- idle ones ---- */

static void say_closed(const struct session *t, const char *reason) {
    msgpack_sbuffer buf;
    msgpack_packer p;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    wire_pack_notify(&p, "session.closed");
    msgpack_pack_map(&p, 2);
    rpc_pack_uint(&p, "session", t->id);
    rpc_pack_str(&p, "reason", reason);
    channel_send((struct channel *)t->owner, &buf);
    msgpack_sbuffer_destroy(&buf);
}

/* How long it may be idle. */
static usec_t limit_of(const struct session *t) {
    usec_t all = t->server->config->session_idle * CLOCK_SECOND, own = t->idle_usec;

    return own && (!all || own < all) ? own : all ? all : UINT64_MAX;
}

/* Close what is idle, and come back when the next one may be. */
static void on_idle(evutil_socket_t fd, short what, void *arg) {
    usec_t now = clock_usec(), wait = LOOK_USEC;
    struct server *server = arg;
    struct session *t, *next;
    struct timeval tv;

    for (t = LIST_FIRST(&server->sessions.list); t; t = next) {
        usec_t idle = t->work ? 0 : now - t->used_usec, limit = limit_of(t);

        next = LIST_NEXT(t, link);
        if (idle < limit) {
            wait = limit - idle < wait ? limit - idle : wait;
            continue;
        }
        log_info("session", "conversation %ju: closed, idle for %ju s", (uintmax_t)t->id,
                 (uintmax_t)(idle / CLOCK_SECOND));
        say_closed(t, "idle");
        session_close(t);
    }

    tv = clock_timeval(wait);
    if (!LIST_EMPTY(&server->sessions.list))
        (void)event_add(server->sessions.idle, &tv);
}

static int watch_idle(struct server *server) {
    usec_t limit = server->config->session_idle * CLOCK_SECOND;
    struct timeval tv = clock_timeval(limit && limit < LOOK_USEC ? limit : LOOK_USEC);
    struct sessions *all = &server->sessions;

    if (!all->idle)
        all->idle = evtimer_new(server->base, on_idle, server);
    if (!all->idle)
        return err_new(-ENOMEM);
    if (!evtimer_pending(all->idle, NULL))
        (void)event_add(all->idle, &tv);
    return 0;
}

void session_set_idle(struct session *t, usec_t usec) {
    t->idle_usec = usec;
    if (usec) /* look now, and then when it is time */
        event_active(t->server->sessions.idle, EV_TIMEOUT, 1);
}

int session_open(struct server *server, const struct channel *owner, struct session_state *state,
                 struct session **ret_session, uint64_t *ret_limit, struct why *why) {
    AUTO(free) struct session *t = calloc(1, sizeof *t);
    struct sessions *all = &server->sessions;
    const struct session *at;
    uint64_t n = 0;
    int r;

    if (!t)
        return err_new(-ENOMEM);
    for (at = LIST_FIRST(&all->list); at; at = LIST_NEXT(at, link))
        n += at->uid == owner->peer.uid;
    *ret_limit = server->config->user_sessions;
    if (n >= *ret_limit)
        return why_set(why, RPC_QUOTA_EXCEEDED, "the user has %ju sessions", (uintmax_t)n);
    r = check_room(server, owner->peer.uid, state->n_byte, ret_limit, why);
    if (!r)
        r = watch_idle(server);
    if (!r)
        r = residency_take(server->residency, &t->lease, state->model, RESIDENCY_PRESSURE);
    if (r)
        return err_up(r);

    t->server = server;
    t->id = ++all->next_id;
    t->uid = owner->peer.uid;
    t->owner = owner;
    t->n_ref = 1;
    t->used_usec = clock_usec();
    t->state = *state;
    *state = (struct session_state){ 0 };
    LIST_INSERT_HEAD(&all->list, t, link);
    *ret_session = take(t);
    return 0;
}

void session_deinit_all(struct sessions *t) {
    while (!LIST_EMPTY(&t->list))
        session_close(LIST_FIRST(&t->list));
    if (t->idle)
        event_free(t->idle);
    t->idle = NULL;
}
