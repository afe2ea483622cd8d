/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bridge - HTTP on one side, the service on the other: what the sources of moe-openai share
 *
 *   http.c    requests come in, are checked and routed; small answers go out
 *   ask.c     a request that the model answers, whole or as a stream of events
 *   reply.c   what the service said, in OpenAI's form
 *   link.c    the one connection to the service, which all requests share
 *
 * There is one thread. libevent calls us, and libmoe does from within link.c; neither is called
 * back from the other: what a request wants from the service is sent from the loop.
 */

#include <event2/event.h>
#include <event2/http.h>
#include <json-c/json.h>
#include <sys/queue.h>

#include "client/moe.h"
#include "client/openai/params.h"

struct ask;

struct bridge {
    struct event_base *base;
    struct evhttp *http;
    const char *socket; /* of the service; NULL: moe_open()'s default */
    char *token;        /* what a client has to show; NULL: nothing */
    int idle_sec;       /* after which a client that takes or sends nothing is let go */
    bool stopping;
    uint32_t n_unsent; /* answers that are not written to the end */

    struct moe *m; /* NULL: not connected */
    struct event *io;
    struct event *kick; /* something waits to be sent */
    LIST_HEAD(, ask) asks;
};

/* ---- link.c ---- */

int link_init(struct bridge *b);
void link_deinit(struct bridge *b);
/* Connect, if that is not done. Return: 0; or a status of HTTP, with @f. */
int link_open(struct bridge *b, struct fault *f);
/* Send what was asked for since, once the loop goes on. */
void link_kick(struct bridge *b);
/* What moe_call() and moe_generate() return, as a status of HTTP with @f. @r: not 0. */
int link_refused(int r, struct fault *f);

/* ---- http.c ---- */

extern const unsigned char http_page[]; /* [http_page_size] index.html */
extern const size_t http_page_size;

/* Serve. Return: 0 or -ENOMEM. */
int http_init(struct bridge *b);
/* One JSON document, which is freed. */
void http_send(struct evhttp_request *req, int status, json_object *o);
void http_send_fault(struct evhttp_request *req, const struct fault *f);
/* How long the client may be silent, and take to read: 0: as long as it likes. */
void http_set_limits(struct evhttp_request *req, int read_sec, int write_sec);

/* ---- ask.c ---- */

/* Let the model answer @req, whose body is @body. Return: 0, it will be answered; or a status of
 * HTTP, with @f. */
int ask_start(struct bridge *b, struct evhttp_request *req, json_object *body, bool chat,
              struct fault *f);
/* Send the answer of a plain method, made by @make from the result. As ask_start(). */
/* @make: NULL with @f: it is an error. */
typedef json_object *(*ask_make_fn)(const struct moe_value *result, const char *arg,
                                    struct fault *f);
int ask_call(struct bridge *b, struct evhttp_request *req, const char *method, const char *arg,
             ask_make_fn make, struct fault *f);
/* Cancel all, tell the clients, and end the loop. */
void ask_stop_all(struct bridge *b);

/* ---- reply.c ---- */

struct reply { /* what all documents of one answer have in common */
    bool chat;
    char id[48];
    int64_t created; /* seconds since 1970 */
};

json_object *reply_error(const struct fault *f);
/* The error of the service. Return: the status. */
int reply_fault(const struct moe_error *e, struct fault *f);
/* A whole answer. NULL: no memory; so for all of these. */
json_object *reply_whole(const struct reply *r, const struct moe_result *result);
/* The first of a chat's stream, which says who speaks; then a piece each. */
json_object *reply_begin(const struct reply *r, const char *model);
json_object *reply_delta(const struct reply *r, const char *model, const struct moe_delta *d);
/* The end of a stream. */
json_object *reply_end(const struct reply *r, const struct moe_result *result);
/* What it cost, when it was asked for. */
json_object *reply_usage(const struct reply *r, const struct moe_result *result);
json_object *reply_models(const struct moe_value *result, const char *id, struct fault *f);
json_object *reply_health(const struct moe_value *result, const char *arg, struct fault *f);
