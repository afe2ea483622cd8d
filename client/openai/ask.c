/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "client/openai/bridge.h"

/* From the request's acceptance until both sides are done with it. */
struct ask {
    LIST_ENTRY(ask) link;
    struct bridge *b;
    struct evhttp_request *req; /* NULL: the client is gone, or has its answer */
    struct event *gone;         /* the client hung up */
    uint32_t id;                /* of the call */
    bool stream, usage, started;
    struct reply reply;
    char *arg, *model; /* model: the one that was asked for, until the answer says which */
    ask_make_fn make;
};

static void end_if_idle(struct bridge *b) {
    if (b->stopping && LIST_EMPTY(&b->asks) && !b->n_unsent)
        (void)event_base_loopbreak(b->base);
}

static void ask_free(struct ask *a) {
    struct bridge *b = a->b;

    LIST_REMOVE(a, link);
    if (a->gone)
        event_free(a->gone);
    free(a->arg);
    free(a->model);
    free(a);
    end_if_idle(b);
}

/* An answer is with its client, or never will be. */
static void on_lost(struct evhttp_connection *conn, void *userdata) {
    struct bridge *b = userdata;

    b->n_unsent--;
    end_if_idle(b);
}

static void on_sent(struct evhttp_request *req, void *userdata) {
    struct evhttp_connection *conn = evhttp_request_get_connection(req);

    evhttp_connection_set_closecb(conn, NULL, NULL);
    on_lost(conn, userdata);
}

/* The client has all it gets: its connection may take the next request. */
static struct evhttp_request *release(struct ask *a) {
    struct evhttp_request *req = a->req;

    a->req = NULL;
    event_free(a->gone);
    a->gone = NULL;
    a->b->n_unsent++;
    evhttp_connection_set_closecb(evhttp_request_get_connection(req), on_lost, a->b);
    evhttp_request_set_on_complete_cb(req, on_sent, a->b);
    http_set_limits(req, a->b->idle_sec, a->b->idle_sec);
    return req;
}

/* The connection closes, and with it goes the request: unless libevent saw it first, and took the
 * request out, which is ours then. */
static void on_closed(struct evhttp_connection *conn, void *userdata) {
    struct ask *a = userdata;

    if (!evhttp_request_get_connection(a->req))
        evhttp_request_free(a->req);
    a->req = NULL;
    event_free(a->gone);
    a->gone = NULL;
    if (a->b->m) {
        (void)moe_cancel(a->b->m, a->id);
        link_kick(a->b);
    }
}

static void on_gone(evutil_socket_t fd, short what, void *userdata) {
    struct ask *a = userdata;

    evhttp_connection_free(evhttp_request_get_connection(a->req)); /* calls on_closed() */
}

/* ---- a stream of events ---- */

static void send_event(struct ask *a, const char *data) {
    struct evbuffer *buf = evbuffer_new();

    if (buf && evbuffer_add_printf(buf, "data: %s\n\n", data) >= 0)
        evhttp_send_reply_chunk(a->req, buf);
    if (buf)
        evbuffer_free(buf);
}

static void send_json(struct ask *a, json_object *o) {
    send_event(a, json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN |
                                                        JSON_C_TO_STRING_NOSLASHESCAPE));
    (void)json_object_put(o);
}

/* Nothing can be refused any more: the status is sent. */
static void start(struct ask *a) {
    struct evkeyvalq *head = evhttp_request_get_output_headers(a->req);

    if (a->started)
        return;
    a->started = true;
    (void)evhttp_add_header(head, "Content-Type", "text/event-stream");
    (void)evhttp_add_header(head, "Cache-Control", "no-cache");
    evhttp_send_reply_start(a->req, 200, "OK");
    if (a->reply.chat)
        send_json(a, reply_begin(&a->reply, a->model));
}

static void on_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    struct ask *a = userdata;

    if (!a->req || (d->thought && !a->reply.chat))
        return;
    start(a);
    send_json(a, reply_delta(&a->reply, a->model, d));
}

/* While a long prompt is read the client learns that it was accepted. */
static void on_progress(struct moe *m, uint32_t id, const char *stage, uint64_t done,
                        uint64_t total, void *userdata) {
    struct ask *a = userdata;

    if (a->req && a->stream && strcmp(stage, "prefill") == 0)
        start(a);
}

static void end_stream(struct ask *a, const struct moe_result *result, const struct fault *f) {
    struct evhttp_request *req;

    if (result) {
        start(a);
        send_json(a, reply_end(&a->reply, result));
        if (a->usage)
            send_json(a, reply_usage(&a->reply, result));
        send_event(a, "[DONE]");
    } else {
        send_json(a, reply_error(f));
    }
    req = release(a);
    evhttp_send_reply_end(req);
}

/* ---- answers ---- */

static void on_done(struct moe *m, uint32_t id, const struct moe_result *result,
                    const struct moe_error *error, void *userdata) {
    struct ask *a = userdata;
    struct fault f = { 0 };

    if (error)
        (void)reply_fault(error, &f);
    if (a->req && a->stream && (result || a->started))
        end_stream(a, result, &f);
    else if (a->req && result)
        http_send(release(a), 200, reply_whole(&a->reply, result));
    else if (a->req)
        http_send_fault(release(a), &f);
    ask_free(a);
}

static void on_reply(struct moe *m, uint32_t id, const struct moe_value *result,
                     const struct moe_error *error, void *userdata) {
    struct ask *a = userdata;
    struct fault f = { 0 };
    json_object *o = NULL;

    if (error)
        (void)reply_fault(error, &f);
    else
        o = a->make(result, a->arg, &f);
    if (a->req && o)
        http_send(release(a), 200, o);
    else if (a->req)
        http_send_fault(release(a), &f);
    else
        (void)json_object_put(o);
    ask_free(a);
}

/* ---- start ---- */

/* Return: the new one, linked; or NULL. */
static struct ask *ask_new(struct bridge *b, struct evhttp_request *req) {
    struct evhttp_connection *conn = evhttp_request_get_connection(req);
    struct ask *a = calloc(1, sizeof *a);

    if (!a)
        return NULL;
    a->b = b;
    a->req = req;
    LIST_INSERT_HEAD(&b->asks, a, link);
    a->gone = event_new(b->base, bufferevent_getfd(evhttp_connection_get_bufferevent(conn)),
                        EV_CLOSED, on_gone, a);
    return a;
}

/* The service has it: from here a hang-up cancels it. */
static void accepted(struct ask *a) {
    evhttp_connection_set_closecb(evhttp_request_get_connection(a->req), on_closed, a);
    /* Its model may think for minutes before there is something to send. */
    http_set_limits(a->req, 0, a->b->idle_sec);
    (void)event_add(a->gone, NULL);
    link_kick(a->b);
}

static int no_memory(struct fault *f) {
    return fault_set(f, 500, "server_error", NULL, NULL, "out of memory");
}

int ask_start(struct bridge *b, struct evhttp_request *req, json_object *body, bool chat,
              struct fault *f) {
    struct params p;
    struct ask *a = NULL;
    uint64_t unique = 0;
    int r;

    r = params_read(&p, body, chat, f);
    if (!r)
        r = link_open(b, f);
    if (!r) {
        a = ask_new(b, req);
        if (a)
            a->model = strdup(p.generate.model ? p.generate.model : "default");
        if (!a || !a->gone || !a->model)
            r = no_memory(f);
    }
    if (!r) {
        (void)!getrandom(&unique, sizeof unique, 0);
        a->stream = p.stream;
        a->usage = p.usage;
        a->reply.chat = chat;
        a->reply.created = time(NULL);
        (void)snprintf(a->reply.id, sizeof a->reply.id, "%s-%016jx", chat ? "chatcmpl" : "cmpl",
                       (uintmax_t)unique);
        p.generate.on_delta = p.stream ? on_delta : NULL;
        p.generate.on_progress = on_progress;
        p.generate.userdata = a;
        r = moe_generate(b->m, &p.generate, on_done, &a->id);
        if (r < 0)
            r = link_refused(r, f);
    }
    params_deinit(&p);

    if (!r)
        accepted(a);
    else if (a)
        ask_free(a);
    return r;
}

int ask_call(struct bridge *b, struct evhttp_request *req, const char *method, const char *arg,
             ask_make_fn make, struct fault *f) {
    struct ask *a = NULL;
    int r;

    r = link_open(b, f);
    if (!r) {
        a = ask_new(b, req);
        if (a && arg)
            a->arg = strdup(arg);
        if (!a || !a->gone || (arg && !a->arg))
            r = no_memory(f);
    }
    if (!r) {
        a->make = make;
        r = moe_call(b->m, method, NULL, on_reply, NULL, a, &a->id);
        if (r < 0)
            r = link_refused(r, f);
    }
    if (!r)
        accepted(a);
    else if (a)
        ask_free(a);
    return r;
}

void ask_stop_all(struct bridge *b) {
    struct ask *a;

    LIST_FOREACH(a, &b->asks, link)
    (void)moe_cancel(b->m, a->id); /* what is no generate is answered soon */
    link_kick(b);
    end_if_idle(b);
}
