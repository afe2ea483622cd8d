/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-memory - memory.trim: memory is given back because somebody asks for it
 *
 * The engine does it between two steps; what is said to be freed is by how much the process shrank
 * until then.
 */

#include <event2/event.h>
#include <stddef.h>
#include <stdlib.h>

#include "daemon/metrics.h"
#include "daemon/pressure.h"
#include "daemon/rpc-methods.h"
#include "daemon/server.h"

enum { LOOK_USEC = 10000 /* between two looks whether it is done */ };

struct trim {
    struct channel_call call;
    struct server *server;
    struct event *timer;
    uint64_t before; /* bytes of the process in memory */
};

#define TRIM_OF(call_) ((struct trim *)((char *)(call_)-offsetof(struct trim, call)))

static struct trim *trim_free(struct trim *t) {
    if (!t)
        return NULL;
    if (t->timer)
        event_free(t->timer);
    free(t);
    return NULL;
}
AUTO_DEFINE(struct trim *, trim_free)

static void on_gone(struct channel_call *call) {
    (void)trim_free(TRIM_OF(call));
}

static void on_stop(struct channel_call *call, int code) {
    struct rpc_reply reply;

    rpc_reply_init(&reply);
    channel_answer(call, &reply, code);
    rpc_reply_deinit(&reply);
    (void)trim_free(TRIM_OF(call));
}

static const struct channel_call_ops trim_ops = { on_gone, on_stop, NULL };

static int look_again(struct trim *t) {
    struct timeval tv = clock_timeval(LOOK_USEC);

    return event_add(t->timer, &tv) < 0 ? err_new(-ENOMEM) : 0;
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    struct trim *t = arg;
    struct engine_status st;
    struct rpc_reply reply;
    uint64_t now;

    models_engine(t->server->models, &st);
    if (st.tidying && look_again(t) == 0)
        return;

    now = metrics_resident();
    rpc_reply_init(&reply);
    msgpack_pack_map(&reply.result_pk, 1);
    rpc_pack_uint(&reply.result_pk, "freed", now < t->before ? t->before - now : 0);
    channel_answer(&t->call, &reply, 0);
    rpc_reply_deinit(&reply);
    (void)trim_free(t);
}

int rpc_memory_trim(struct rpc_call *c) {
    uint64_t level = rpc_get_uint(c->params, "level", 0);
    AUTO(trim_free) struct trim *t = NULL;
    int r;

    r = rpc_want_admin(c);
    if (r)
        return err_up(r);
    if (!level || level > PRESSURE_MAX)
        return why_set(&c->reply->why, RPC_INVALID_ARGS, "level: not 1 to %d", PRESSURE_MAX);
    t = calloc(1, sizeof *t);
    if (!t)
        return err_new(-ENOMEM);
    t->server = c->server;
    t->before = metrics_resident();
    t->timer = evtimer_new(c->server->base, on_timer, t);
    if (!t->timer)
        return err_new(-ENOMEM);
    r = look_again(t);
    if (r)
        return err_up(r);

    residency_trim(c->server->residency, (unsigned)level);
    channel_owe(c->channel, &take(t)->call, c->msgid, &trim_ops);
    return RPC_LATER;
}
