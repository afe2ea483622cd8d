/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>
#include <unistd.h>

#include "daemon/server.h"
#include "daemon/session.h"
#include "daemon/talk.h"
#include "engine/base/log.h"

static void on_frame(void *arg, const msgpack_object *o);
static void on_bad(void *arg, int outcome);
static void on_sent(void *arg);
static void on_closed(void *arg);

static const struct conn_ops session_conn_ops = { on_frame, on_bad, on_sent, on_closed };

bool session_is_admin(const struct session *s) {
    return s->peer.admin || s->peer.uid == 0 || s->peer.uid == geteuid();
}

void session_send(struct session *s, const msgpack_sbuffer *frames) {
    if (conn_write(s->conn, frames->data, frames->size) == 0)
        return;

    /* A response that cannot be sent leaves the client waiting for ever: hang up instead. */
    log_warning("session", "session %ju: out of memory", (uintmax_t)s->id);
    conn_finish(s->conn);
}

void session_refuse(struct session *s, int code, const char *message) {
    msgpack_sbuffer buf;
    msgpack_packer p;

    account_refuse(s->server->account, s->peer.uid, s->peer.unit);
    log_info("session", "session %ju: user %u: closed: %s", (uintmax_t)s->id, (unsigned)s->peer.uid,
             message);
    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    wire_pack_notify(&p, "rpc.error");
    rpc_pack_error(&p, code, message, NULL);
    session_send(s, &buf);
    conn_finish(s->conn);
    msgpack_sbuffer_destroy(&buf);
}

/* ---- open requests ---- */

void session_owe(struct session *s, struct session_call *call, uint32_t msgid,
                 const struct session_call_ops *ops) {
    call->ops = ops;
    call->session = s;
    call->msgid = msgid;
    LIST_INSERT_HEAD(&s->calls, call, link);
    s->n_call++;
}

struct session_call *session_find(struct session *s, uint32_t msgid) {
    struct session_call *call = LIST_FIRST(&s->calls);

    while (call && call->msgid != msgid)
        call = LIST_NEXT(call, link);

    return call;
}

static void unlink_call(struct session_call *call) {
    call->session->n_call--;
    LIST_REMOVE(call, link);
    call->session = NULL;
}

static void send_reply(struct session *s, uint32_t msgid, struct rpc_reply *reply, int code) {
    msgpack_sbuffer out;

    msgpack_sbuffer_init(&out);
    if (rpc_reply_pack(reply, msgid, code, &out) == 0)
        session_send(s, &out);
    else
        conn_finish(s->conn);
    msgpack_sbuffer_destroy(&out);
}

void session_answer(struct session_call *call, struct rpc_reply *reply, int code) {
    struct session *s = call->session;

    if (!s)
        return;

    send_reply(s, call->msgid, reply, code);
    unlink_call(call);
    if (s->server->stopping && !s->n_call)
        conn_finish(s->conn);
}

/* ---- frames ---- */

static void on_request(struct session *s, const struct wire_frame *frame) {
    struct rpc_reply reply;
    struct rpc_call call = { .server = s->server,
                             .session = s,
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
    struct session *s = arg;
    struct wire_frame frame;

    if (wire_parse(o, &frame) || frame.type == WIRE_RESPONSE)
        session_refuse(s, RPC_INVALID_ARGS, wire_strerror(WIRE_MALFORMED));
    else if (frame.type == WIRE_REQUEST && session_find(s, frame.msgid))
        session_refuse(s, RPC_INVALID_ARGS, "the msgid of a request that is still open");
    else if (frame.type == WIRE_REQUEST && s->n_call >= WIRE_OUTSTANDING_MAX)
        session_refuse(s, RPC_QUOTA_EXCEEDED, "64 open requests a connection is the limit");
    else
        on_request(s, &frame);
}

static void on_bad(void *arg, int outcome) {
    if (!outcome)
        session_refuse(arg, RPC_TIMEOUT, "a frame that took longer than 5 s");
    else
        session_refuse(arg, outcome == WIRE_MALFORMED ? RPC_INVALID_ARGS : RPC_TOO_LARGE,
                       wire_strerror(outcome));
}

static void on_sent(void *arg) {
    struct session *s = arg;
    struct session_call *call, *next;

    for (call = LIST_FIRST(&s->calls); call; call = next) {
        next = LIST_NEXT(call, link);
        if (call->ops->sent)
            call->ops->sent(call);
    }
}

static void on_closed(void *arg) {
    (void)session_free(arg);
}

/* ---- life ---- */

void session_stop(struct session *s, int code) {
    struct session_call *call, *next;

    for (call = LIST_FIRST(&s->calls); call; call = next) {
        next = LIST_NEXT(call, link);
        call->ops->stop(call, code);
    }
    if (!s->n_call)
        conn_finish(s->conn);
}

struct session *session_free(struct session *s) {
    if (!s)
        return NULL;

    while (!LIST_EMPTY(&s->calls)) {
        struct session_call *call = LIST_FIRST(&s->calls);

        unlink_call(call);
        call->ops->gone(call);
    }
    talk_close_all(s->server, s);
    (void)conn_free(s->conn);
    if (s->id)
        server_forget(s->server, s);
    free(s);

    return NULL;
}

int session_new(struct session **ret_session, struct server *server, int fd,
                const struct peer *peer) {
    AUTO(session_free) struct session *s = calloc(1, sizeof *s);
    int r;

    if (!s)
        return err_new(-ENOMEM);

    s->server = server;
    s->peer = *peer;
    LIST_INIT(&s->calls);
    r = conn_new(&s->conn, server->base, fd, &session_conn_ops, s);
    if (r)
        return err_up(r);

    *ret_session = take(s);
    return 0;
}
