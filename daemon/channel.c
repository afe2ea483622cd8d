/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>
#include <unistd.h>

#include "daemon/channel.h"
#include "daemon/server.h"
#include "daemon/session.h"
#include "engine/base/log.h"

static void on_frame(void *arg, const msgpack_object *o);
static void on_bad(void *arg, int outcome);
static void on_sent(void *arg);
static void on_closed(void *arg);

static const struct conn_ops channel_conn_ops = { on_frame, on_bad, on_sent, on_closed };

bool channel_is_admin(const struct channel *s) {
    return s->peer.admin || s->peer.uid == 0 || s->peer.uid == geteuid();
}

void channel_send(struct channel *s, const msgpack_sbuffer *frames) {
    if (conn_write(s->conn, frames->data, frames->size) == 0)
        return;

    /* A response that cannot be sent leaves the client waiting for ever: hang up instead. */
    log_warning("channel", "channel %ju: out of memory", (uintmax_t)s->id);
    conn_finish(s->conn);
}

void channel_refuse(struct channel *s, int code, const char *message) {
    msgpack_sbuffer buf;
    msgpack_packer p;

    account_refuse(s->server->account, s->peer.uid, s->peer.unit);
    log_info("channel", "channel %ju: user %u: closed: %s", (uintmax_t)s->id, (unsigned)s->peer.uid,
             message);
    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    wire_pack_notify(&p, "rpc.error");
    rpc_pack_error(&p, code, message, NULL);
    channel_send(s, &buf);
    conn_finish(s->conn);
    msgpack_sbuffer_destroy(&buf);
}

/* ---- open requests ---- */

void channel_owe(struct channel *s, struct channel_call *call, uint32_t msgid,
                 const struct channel_call_ops *ops) {
    call->ops = ops;
    call->channel = s;
    call->msgid = msgid;
    LIST_INSERT_HEAD(&s->calls, call, link);
    s->n_call++;
}

struct channel_call *channel_find(struct channel *s, uint32_t msgid) {
    struct channel_call *call = LIST_FIRST(&s->calls);

    while (call && call->msgid != msgid)
        call = LIST_NEXT(call, link);

    return call;
}

static void unlink_call(struct channel_call *call) {
    call->channel->n_call--;
    LIST_REMOVE(call, link);
    call->channel = NULL;
}

static void send_reply(struct channel *s, uint32_t msgid, struct rpc_reply *reply, int code) {
    msgpack_sbuffer out;

    msgpack_sbuffer_init(&out);
    if (rpc_reply_pack(reply, msgid, code, &out) == 0)
        channel_send(s, &out);
    else
        conn_finish(s->conn);
    msgpack_sbuffer_destroy(&out);
}

void channel_answer(struct channel_call *call, struct rpc_reply *reply, int code) {
    struct channel *s = call->channel;

    if (!s)
        return;

    send_reply(s, call->msgid, reply, code);
    unlink_call(call);
    if (s->server->stopping && !s->n_call)
        conn_finish(s->conn);
}

/* ---- frames ---- */

static void on_request(struct channel *s, const struct wire_frame *frame) {
    struct rpc_reply reply;
    struct rpc_call call = { .server = s->server,
                             .channel = s,
                             .msgid = frame->msgid,
                             .params = frame->params,
                             .reply = &reply };
    int r;

    rpc_reply_init(&reply);
    r = rpc_call(&call, frame);
    if (frame->type == WIRE_REQUEST && r != RPC_LATER)
        send_reply(s, frame->msgid, &reply, r);
    rpc_reply_deinit(&reply);
}

static void on_frame(void *arg, const msgpack_object *o) {
    struct channel *s = arg;
    struct wire_frame frame;

    if (wire_parse(o, &frame) || frame.type == WIRE_RESPONSE)
        channel_refuse(s, RPC_INVALID_ARGS, wire_strerror(WIRE_MALFORMED));
    else if (frame.type == WIRE_REQUEST && channel_find(s, frame.msgid))
        channel_refuse(s, RPC_INVALID_ARGS, "the msgid of a request that is still open");
    else if (frame.type == WIRE_REQUEST && s->n_call >= WIRE_OUTSTANDING_MAX)
        channel_refuse(s, RPC_QUOTA_EXCEEDED, "64 open requests a connection is the limit");
    else
        on_request(s, &frame);
}

static void on_bad(void *arg, int outcome) {
    if (!outcome)
        channel_refuse(arg, RPC_TIMEOUT, "a frame that took longer than 5 s");
    else
        channel_refuse(arg,
                       outcome == WIRE_MALFORMED || outcome == WIRE_TOO_GIVEN ? RPC_INVALID_ARGS
                                                                              : RPC_TOO_LARGE,
                       wire_strerror(outcome));
}

static void on_sent(void *arg) {
    struct channel *s = arg;
    struct channel_call *call, *next;

    for (call = LIST_FIRST(&s->calls); call; call = next) {
        next = LIST_NEXT(call, link);
        if (call->ops->sent)
            call->ops->sent(call);
    }
}

static void on_closed(void *arg) {
    (void)channel_free(arg);
}

/* ---- life ---- */

void channel_stop(struct channel *s, int code) {
    struct channel_call *call, *next;

    for (call = LIST_FIRST(&s->calls); call; call = next) {
        next = LIST_NEXT(call, link);
        call->ops->stop(call, code);
    }
    if (!s->n_call)
        conn_finish(s->conn);
}

struct channel *channel_free(struct channel *s) {
    if (!s)
        return NULL;

    while (!LIST_EMPTY(&s->calls)) {
        struct channel_call *call = LIST_FIRST(&s->calls);

        unlink_call(call);
        call->ops->gone(call);
    }
    session_close_all(s->server, s);
    (void)conn_free(s->conn);
    if (s->id)
        server_forget(s->server, s);
    free(s);

    return NULL;
}

int channel_new(struct channel **ret_channel, struct server *server, int fd,
                const struct peer *peer) {
    AUTO(channel_free) struct channel *s = calloc(1, sizeof *s);
    int r;

    if (!s)
        return err_new(-ENOMEM);

    s->server = server;
    s->peer = *peer;
    LIST_INIT(&s->calls);
    r = conn_new(&s->conn, server->base, fd, &channel_conn_ops, s);
    if (r)
        return err_up(r);

    *ret_channel = take(s);
    return 0;
}
