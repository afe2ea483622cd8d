/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bus-priv - what the files bus-*.c share
 *
 *   bus.c          the connection, the name
 *   bus-peer.c     callers: who they are, and that they left
 *   bus-call.c     one call: from message to RPC request to reply
 *   bus-polkit.c   may this caller do that?
 *   bus-options.c  a{sv} to parameters, results to a{sv}
 *   bus-manager.c, bus-admin.c, bus-session.c, bus-job.c, bus-model.c  the interfaces
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include <msgpack.h>
#include <systemd/sd-bus.h>

#include "daemon/bus-loop.h"
#include "daemon/bus.h"
#include "daemon/server.h"

#define BUS_MANAGER BUS_NAME ".Manager"

enum {
    BUS_API_LEVEL = 1,
    BUS_PEER_MAX = 256, /* callers at a time: each takes a match rule at the bus */
    BUS_CALL_MAX = 64,  /* open calls of one caller, and of one user */
};

static inline void auto_bus_message_unref(sd_bus_message **m) {
    (void)sd_bus_message_unref(*m);
}

struct bus {
    struct server *server;
    struct bus_loop loop;
    sd_bus *sd; /* of loop */
    LIST_HEAD(, bus_peer) peers;
    LIST_HEAD(, bus_model) models;
    uint32_t n_peer;
};

/* Something was sent outside of a handler, so what the bus waits for may have changed. */
void bus_kick(struct bus *bus);

/* ---- callers ---- */

struct bus_peer {
    LIST_ENTRY(bus_peer) link;
    struct bus *bus;
    char *name; /* unique */
    bool known; /* @who is filled */
    struct peer who;
    sd_bus_slot *match, *creds;
    LIST_HEAD(, bus_call) calls;
    uint32_t n_call;
    LIST_HEAD(, bus_session) sessions; /* that it opened */
};

/* The caller @name, found or made; then bus_call_known() comes for each of its calls once it is
 * known who it is. Return: 0, RPC_QUOTA_EXCEEDED, or -errno. */
int bus_peer_get(struct bus *bus, const char *name, struct bus_peer **ret_peer);
/* Let go of a caller that has nothing open. */
void bus_peer_put(struct bus_peer *peer);
/* It left the bus: end all it has. */
void bus_peer_free(struct bus_peer *peer);

/* ---- calls ---- */

/* A request's parameters while they are put together. */
struct bus_params {
    msgpack_sbuffer buf;
    msgpack_packer pk;
    uint32_t n; /* keys packed */
};

struct bus_call;

/* What polkit is asked. Those from BUS_MANAGE on make an administrator of whom they allow. */
enum bus_action { BUS_ANYBODY, BUS_USE, BUS_BACKGROUND, BUS_MANAGE, BUS_INSPECT, BUS_TRIM };

/* How a method is answered. */
struct bus_gate {
    const char *member;
    const char *method;     /* of the RPC; NULL: run() answers */
    enum bus_action action; /* who may */
    /* Read the message, pack the parameters. Return: 0 or an RPC_* error in @c->why. Or NULL. */
    int (*pack)(struct bus_call *c, struct bus_params *p);
    /* Fill @reply. Return: as sd_bus_message_append(). */
    int (*reply)(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply);
    /* Do it and reply. Return: 0, an RPC_* error in @c->why, or RPC_LATER: .method answers. */
    int (*run)(struct bus_call *c);
    /* It may not: reply. NULL: with AccessDenied. */
    int (*denied)(struct bus_call *c);
};

struct bus_call {
    LIST_ENTRY(bus_call) link; /* of its caller */
    struct bus_peer *peer;
    const struct bus_gate *gate;
    sd_bus_message *m;
    struct bus_params params;
    sd_bus_slot *polkit;
    enum bus_action action; /* that polkit was asked last */
    const struct peer *as;  /* in whose name requests are made; NULL: the caller's */
    struct conn *conn;      /* our end of the connection that the request goes over */
    bool admin;             /* it may do what its gate says */
    uint32_t context;       /* tokens it must hold; 0: any */
    char *use_case;         /* OpenSession: that was named; NULL: none */
    bool background;        /* it asks for background work */
    bool unknown;           /* GetAvailability: of a use case that there is not */
    bool answered;          /* only its connection is still to be closed */
    struct why why;
};

struct bus_options;

/* Serve @m as that of @gate says which is its member's; what a method's handler returns. */
int bus_call_new(struct bus *bus, sd_bus_message *m, const struct bus_gate *gate,
                 sd_bus_error *error);
void bus_call_free(struct bus_call *c);
/* @r of reading the message, as pack() and run() return it. */
int bus_call_unread(struct bus_call *c, int r);
/* Read a text and options with @allowed keys, what most methods take, as pack() returns it. */
int bus_call_read(struct bus_call *c, const char **ret_text, const char *allowed,
                  struct bus_options *ret_options, struct bus_params *p);
/* Reply that it was done, from run(). */
int bus_call_done(struct bus_call *c);
/* A connection in its caller's name, the other end of @ret_channel, to be closed: its own, or for
 * this call alone. Return: 0, an RPC_* error in @c->why, or -errno. */
int bus_call_connect(struct bus_call *c, bool one_call, struct channel **ret_channel, int *ret_fd);
/* Ask @method of the RPC at once, in @channel, with @c's parameters, for a number: @key of the
 * result. Return: 0, or an RPC_* error in @c->why. */
int bus_call_ask(struct bus_call *c, struct channel *channel, const char *method, const char *key,
                 uint64_t *ret_number);
/* Its caller is known. */
void bus_call_known(struct bus_call *c);
/* Reply with an error and end it. @data: the error's, or NULL. */
void bus_call_fail(struct bus_call *c, int code, const char *message, const msgpack_object *data);
/* What an RPC_* error is called on the bus. */
void bus_call_error_name(int code, char *buf, size_t n);

/* Ask polkit whether @c may do @c->action; then bus_call_allowed() or bus_call_denied(). */
int bus_polkit_ask(struct bus_call *c);
void bus_call_allowed(struct bus_call *c);
/* @message: why it may not. */
void bus_call_denied(struct bus_call *c, const char *message);

/* ---- options ---- */

/* What a method takes beyond what goes into parameters as it is. */
struct bus_options {
    const char *use_case, *model, *instructions, *language, *mode, *digest, *license, *sampling;
    uint32_t context; /* tokens it must hold; 0: any */
    uint32_t uid;     /* UINT32_MAX: any */
    bool background;  /* it asks for that priority */
};

/* Read the a{sv} at @m. Only keys of @allowed, words between spaces, are known.
 * Return: 0, or RPC_INVALID_ARGS with @why naming the key. */
int bus_options_read(sd_bus_message *m, const char *allowed, struct bus_options *ret,
                     struct bus_params *p, struct why *why);
/* A list of strings that ends in NULL, as sd-bus gives them. */
char **bus_strv_free(char **s);
AUTO_DEFINE(char **, bus_strv_free)

/* Add {@key: @s} to the parameters. */
void bus_params_str(struct bus_params *p, const char *key, const char *s);
/* Append text @o, a str or NULL. D-Bus knows no NUL: one in it becomes a space. */
int bus_append_text(sd_bus_message *m, const msgpack_object *o);
/* Append {key: @o as @type}, of an a{sv}: s, u, t or d; nothing when @o is NULL. */
int bus_append_entry(sd_bus_message *m, const char *key, char type, const msgpack_object *o);

/* Append {role, content} to a list of messages. */
void bus_params_message(struct bus_params *p, const char *role, const char *text);

/* ---- sessions ---- */

struct bus_session {
    LIST_ENTRY(bus_session) link;
    struct bus_peer *peer; /* its owner */
    struct peer who;       /* its user, in whose name requests are made */
    uint64_t channel;      /* the connection that its owner was given */
    uint64_t id;
    char *use_case; /* NULL: none */
};

/* Open one as @c's parameters say, and reply with it. Return: as run(). */
int bus_session_open(struct bus_call *c, const char *use_case);
void bus_session_close(struct bus_session *s);
/* Forget those whose connection was closed. */
void bus_session_prune(struct bus_peer *peer);
/* The use case of the session @id; NULL: none. */
const char *bus_session_use_case(const struct bus *bus, uint64_t id);

/* ---- jobs, models ---- */

/* Tell of what happens to tasks, or no longer. */
void bus_job_watch(struct bus *bus, bool watch);
int bus_job_add(struct bus *bus);
/* Compare the objects with the models there are, and tell the difference. */
void bus_model_look(struct bus *bus);
/* The digest of @id may be known now. */
void bus_model_digest(struct bus *bus, const char *id);
void bus_model_free_all(struct bus *bus);
int bus_model_add(struct bus *bus);

/* ---- interfaces ---- */

/* Reply with text and info of a generation. */
int bus_manager_answer(const msgpack_object *result, sd_bus_message *reply);
int bus_session_add(struct bus *bus);
int bus_admin_add(struct bus *bus);
int bus_manager_add(struct bus *bus);
/* What the service serves changed. */
void bus_manager_changed(struct bus *bus);
