/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-call - one call: from message to RPC request to reply
 *
 * The request goes over a socket pair of which the RPC has the other end, with the caller's
 * identity. Closing it is hanging up, so a caller that left costs nothing any more.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "daemon/bus-priv.h"
#include "engine/base/log.h"

static const char too_many[] = "64 open calls of one user are the limit";
_Static_assert(BUS_CALL_MAX == 64, "what the sentence says");

/* ---- errors ---- */

/* Those that D-Bus has a name for; others are ours. */
static const char *const standard[RPC_ERROR_N] = {
    [RPC_INVALID_ARGS] = SD_BUS_ERROR_INVALID_ARGS,
    [RPC_ACCESS_DENIED] = SD_BUS_ERROR_ACCESS_DENIED,
    [RPC_TOO_LARGE] = SD_BUS_ERROR_LIMITS_EXCEEDED,
    [RPC_TIMEOUT] = SD_BUS_ERROR_TIMEOUT,
    [RPC_INTERNAL] = SD_BUS_ERROR_FAILED,
    [RPC_NO_SUCH_METHOD] = SD_BUS_ERROR_UNKNOWN_METHOD,
};

void bus_call_error_name(int code, char *buf, size_t n) {
    if (code <= 0 || code >= RPC_ERROR_N)
        code = RPC_INTERNAL;
    if (standard[code])
        (void)snprintf(buf, n, "%s", standard[code]);
    else
        (void)snprintf(buf, n, BUS_NAME ".Error.%s", rpc_error_name(code));
}

/* An error on the bus is one string, so its numbers stand at the end: "... (need=9 have=8)". */
static void add_numbers(const msgpack_object *data, char *buf, size_t n) {
    size_t at = strlen(buf), begin = at;

    if (!data || data->type != MSGPACK_OBJECT_MAP)
        return;
    for (uint32_t i = 0; i < data->via.map.size && at < n; i++) {
        const msgpack_object_kv *kv = &data->via.map.ptr[i];

        if (kv->val.type == MSGPACK_OBJECT_POSITIVE_INTEGER && kv->key.type == MSGPACK_OBJECT_STR)
            at += (size_t)snprintf(buf + at, n - at, "%s%.*s=%ju", at == begin ? " (" : " ",
                                   (int)kv->key.via.str.size, kv->key.via.str.ptr,
                                   (uintmax_t)kv->val.via.u64);
    }
    if (at > begin && at + 1 < n)
        (void)strcat(buf, ")");
}

static void send_error(struct bus_call *c, int code, const char *message,
                       const msgpack_object *data) {
    char name[256], text[1024];
    int r;

    bus_call_error_name(code, name, sizeof name);
    (void)snprintf(text, sizeof text, "%s", message);
    add_numbers(data, text, sizeof text);
    r = sd_bus_reply_method_errorf(c->m, name, "%s", text);
    if (r < 0)
        log_warning("bus", "an error was not sent: %s", strerror(-r));
}

void bus_call_fail(struct bus_call *c, int code, const char *message, const msgpack_object *data) {
    struct bus *bus = c->peer->bus;

    if (!c->answered)
        send_error(c, code, message, data);
    bus_call_free(c);
    bus_kick(bus);
}

/* ---- the response ---- */

static void send_reply(struct bus_call *c, const msgpack_object *result) {
    AUTO(bus_message_unref) sd_bus_message *reply = NULL;
    int r;

    r = sd_bus_message_new_method_return(c->m, &reply);
    if (r >= 0)
        r = c->gate->reply(c, result, reply);
    if (r >= 0)
        r = sd_bus_send(NULL, reply, NULL);
    if (r < 0)
        send_error(c, RPC_INTERNAL, strerror(-r), NULL);
}

static void fail_with(struct bus_call *c, const msgpack_object *error) {
    const msgpack_object *code = wire_get(error, "code"), *message = wire_get(error, "message");
    char text[512] = "";

    if (message && message->type == MSGPACK_OBJECT_STR)
        (void)snprintf(text, sizeof text, "%.*s", (int)message->via.str.size, message->via.str.ptr);
    send_error(c, code && code->via.u64 < RPC_ERROR_N ? (int)code->via.u64 : RPC_INTERNAL, text,
               wire_get(error, "data"));
}

static void on_frame(void *arg, const msgpack_object *o) {
    struct bus_call *c = arg;
    struct wire_frame frame;

    if (c->answered || wire_parse(o, &frame))
        return;
    if (frame.type == WIRE_RESPONSE && frame.result)
        send_reply(c, frame.result);
    else if (frame.type == WIRE_RESPONSE)
        fail_with(c, frame.error);
    else if (frame.type == WIRE_NOTIFY && frame.n_method == strlen("rpc.error") &&
             memcmp(frame.method, "rpc.error", frame.n_method) == 0)
        fail_with(c, frame.params);
    else
        return;

    c->answered = true;
    bus_kick(c->peer->bus);
    conn_finish(c->conn);
}

static void on_bad(void *arg, int outcome) {
    struct bus_call *c = arg;

    conn_finish(c->conn);
}

static void on_sent(void *arg) {
}

static void on_closed(void *arg) {
    bus_call_fail(arg, RPC_INTERNAL, "the request was not answered", NULL);
}

static const struct conn_ops call_conn_ops = { on_frame, on_bad, on_sent, on_closed };

/* ---- the request ---- */

int bus_call_connect(struct bus_call *c, bool one_call, struct channel **ret_channel, int *ret_fd) {
    struct server *server = c->peer->bus->server;
    struct peer who = c->as ? *c->as : c->peer->who;
    AUTO(close) int own = -1;
    int fd[2], r;

    r = one_call ? 0 : server_refuses(server, who.uid, &c->why);
    if (r)
        return err_up(r);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fd) < 0)
        return err_new(-errno);
    own = fd[1];
    who.admin = c->admin;
    r = server_adopt_as(server, fd[0], &who, one_call, ret_channel);
    if (r)
        return err_up(r);

    *ret_fd = take_fd(&own);
    return 0;
}

static void put_params(const struct bus_call *c, msgpack_packer *to) {
    msgpack_pack_map(to, c->params.n);
    if (c->params.n)
        (void)to->callback(to->data, c->params.buf.data, c->params.buf.size);
}

static int send_request(struct bus_call *c) {
    AUTO(close) int fd = -1;
    struct channel *channel;
    msgpack_sbuffer head;
    msgpack_packer p;
    int r;

    r = bus_call_connect(c, true, &channel, &fd);
    if (!r)
        r = conn_new(&c->conn, c->peer->bus->server->base, fd, &call_conn_ops, c);
    if (r)
        return err_up(r);
    (void)take_fd(&fd);

    msgpack_sbuffer_init(&head);
    msgpack_packer_init(&p, &head, msgpack_sbuffer_write);
    wire_pack_request(&p, 1, c->gate->method);
    put_params(c, &p);
    r = conn_write(c->conn, head.data, head.size);
    msgpack_sbuffer_destroy(&head);
    return err_up(r);
}

/* The error of @reply, with its numbers, in @c->why. */
static void take_error(struct bus_call *c, const struct rpc_reply *reply) {
    msgpack_unpacked data;
    size_t off = 0;

    c->why = reply->why;
    msgpack_unpacked_init(&data);
    if (msgpack_unpack_next(&data, reply->data.data, reply->data.size, &off) ==
        MSGPACK_UNPACK_SUCCESS)
        add_numbers(&data.data, c->why.text, sizeof c->why.text);
    msgpack_unpacked_destroy(&data);
}

int bus_call_ask(struct bus_call *c, struct channel *channel, const char *method, const char *key,
                 uint64_t *ret_number) {
    const struct wire_frame frame = { .type = WIRE_REQUEST,
                                      .method = method,
                                      .n_method = strlen(method) };
    msgpack_unpacked params, result;
    struct rpc_reply reply;
    struct rpc_call call = {
        .server = channel->server, .channel = channel, .params = &params.data, .reply = &reply
    };
    msgpack_sbuffer buf;
    msgpack_packer p;
    size_t off = 0;
    int r;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    put_params(c, &p);
    msgpack_unpacked_init(&params);
    msgpack_unpacked_init(&result);
    rpc_reply_init(&reply);
    r = msgpack_unpack_next(&params, buf.data, buf.size, &off) == MSGPACK_UNPACK_SUCCESS
            ? rpc_call(&call, &frame)
            : err_new(-ENOMEM);
    off = 0;
    if (r)
        take_error(c, &reply);
    else if (msgpack_unpack_next(&result, reply.result.data, reply.result.size, &off) ==
             MSGPACK_UNPACK_SUCCESS)
        *ret_number = wire_get(&result.data, key)->via.u64;
    else
        r = err_new(-ENOMEM);
    rpc_reply_deinit(&reply);
    msgpack_unpacked_destroy(&result);
    msgpack_unpacked_destroy(&params);
    msgpack_sbuffer_destroy(&buf);
    return err_up(r);
}

static void ask_leave(struct bus_call *c, enum bus_action action) {
    int r;

    c->action = action;
    r = bus_polkit_ask(c);
    if (r)
        bus_call_fail(c, RPC_INTERNAL, strerror(-r), NULL);
}

void bus_call_denied(struct bus_call *c, const char *message) {
    if (c->gate->denied && c->gate->denied(c) >= 0)
        c->answered = true;
    bus_call_fail(c, RPC_ACCESS_DENIED, message, NULL);
}

void bus_call_allowed(struct bus_call *c) {
    int r;

    if (c->background && c->action && c->action != BUS_BACKGROUND) {
        ask_leave(c, BUS_BACKGROUND);
        return;
    }
    c->admin = c->gate->action >= BUS_MANAGE;
    r = c->gate->run ? c->gate->run(c) : RPC_LATER;
    if (!r) {
        bus_call_free(c);
        return;
    }
    if (r == RPC_LATER)
        r = send_request(c);
    if (r)
        bus_call_fail(c, r, r > 0 ? c->why.text : strerror(-r), NULL);
}

/* Open calls of a user. */
static uint32_t count_calls(const struct bus *bus, uid_t uid) {
    const struct bus_peer *peer;
    const struct bus_call *c;
    uint32_t n = 0;

    for (peer = LIST_FIRST(&bus->peers); peer; peer = LIST_NEXT(peer, link))
        for (c = LIST_FIRST(&peer->calls); c; c = LIST_NEXT(c, link))
            n += peer->known && peer->who.uid == uid;
    return n;
}

/* Root and the service's own user need no leave. */
void bus_call_known(struct bus_call *c) {
    uid_t uid = c->peer->who.uid;

    if (count_calls(c->peer->bus, uid) > BUS_CALL_MAX) {
        bus_call_fail(c, RPC_QUOTA_EXCEEDED, too_many, NULL);
        return;
    }
    if (!c->gate->action || uid == 0 || uid == geteuid())
        bus_call_allowed(c);
    else
        ask_leave(c, c->gate->action);
}

/* ---- life ---- */

void bus_call_free(struct bus_call *c) {
    LIST_REMOVE(c, link);
    c->peer->n_call--;
    (void)sd_bus_slot_unref(c->polkit);
    (void)conn_free(c->conn);
    (void)sd_bus_message_unref(c->m);
    msgpack_sbuffer_destroy(&c->params.buf);
    free(c->use_case);
    bus_peer_put(c->peer);
    free(c);
}

static struct bus_call *call_new(struct bus_peer *peer, sd_bus_message *m,
                                 const struct bus_gate *gate) {
    struct bus_call *c = calloc(1, sizeof *c);

    if (!c)
        return NULL;

    c->peer = peer;
    c->gate = gate;
    c->m = sd_bus_message_ref(m);
    msgpack_sbuffer_init(&c->params.buf);
    msgpack_packer_init(&c->params.pk, &c->params.buf, msgpack_sbuffer_write);
    LIST_INSERT_HEAD(&peer->calls, c, link);
    peer->n_call++;
    return c;
}

int bus_call_unread(struct bus_call *c, int r) {
    return r < 0 ? why_set(&c->why, RPC_INVALID_ARGS, "the message cannot be read") : r;
}

int bus_call_read(struct bus_call *c, const char **ret_text, const char *allowed,
                  struct bus_options *ret_options, struct bus_params *p) {
    int r = sd_bus_message_read(c->m, "s", ret_text);

    if (r >= 0)
        r = bus_options_read(c->m, allowed, ret_options, p, &c->why);
    c->background = r == 0 && ret_options->background;
    return bus_call_unread(c, r);
}

int bus_call_done(struct bus_call *c) {
    int r = sd_bus_reply_method_return(c->m, NULL);

    return r < 0 ? err_new(r) : 0;
}

int bus_call_new(struct bus *bus, sd_bus_message *m, const struct bus_gate *gate,
                 sd_bus_error *error) {
    struct why why = { .text = "too many callers" };
    struct bus_call *c = NULL;
    struct bus_peer *peer;
    char name[256];
    int r;

    while (strcmp(gate->member, sd_bus_message_get_member(m)) != 0)
        gate++; /* the vtable has no others */
    r = bus_peer_get(bus, sd_bus_message_get_sender(m), &peer);
    if (!r && peer->n_call >= BUS_CALL_MAX)
        r = why_set(&why, RPC_QUOTA_EXCEEDED, "%s", too_many);
    if (!r && !(c = call_new(peer, m, gate))) {
        bus_peer_put(peer);
        r = err_new(-ENOMEM);
    }
    if (!r && gate->pack && (r = gate->pack(c, &c->params))) {
        why = c->why;
        bus_call_free(c);
    }
    if (r < 0)
        return r;
    if (r) {
        bus_call_error_name(r, name, sizeof name);
        return sd_bus_error_setf(error, name, "%s", why.text);
    }

    if (peer->known)
        bus_call_known(c);
    return 1;
}
