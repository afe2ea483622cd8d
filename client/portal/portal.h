/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOED_PORTAL_H
#define MOED_PORTAL_H

/*
 * portal - what the sources of moed-portal share
 *
 *   application -> xdg-desktop-portal -> moed-portal -> moed
 *
 * A session is a use case and instructions; it remembers nothing that was said, since each request
 * brings the conversation along. A request is one call of a method: its reply comes when moed has
 * answered, and meanwhile there is an object to close it by. Both are their caller's alone, whom
 * signals are addressed to, and end when the caller leaves the bus.
 *
 * Rules: one thread, one sd-event loop. One connection to moed, made when it is needed; when it
 * breaks, what was asked fails and the next request makes another. Nothing but moe.h talks to moed.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "client/moe.h"

#define PORTAL_NAME  "org.freedesktop.impl.portal.desktop.moed"
#define PORTAL_PATH  "/org/freedesktop/portal/desktop"
#define PORTAL_IMPL  "org.freedesktop.impl.portal."
#define PORTAL_ERROR "org.freedesktop.portal.Error."

enum { PORTAL_SESSIONS_MAX = 256, PORTAL_TEXT_MAX = 1 << 20 /* bytes of instructions */ };

enum request_kind {
    REQUEST_AVAILABILITY, /* has no object */
    REQUEST_CREATE,
    REQUEST_PREWARM,
    REQUEST_RESPOND,
    REQUEST_PREDICT,
};

struct session {
    LIST_ENTRY(session) link;
    struct portal *portal;
    char *path, *owner, *use_case, *instructions; /* owner: a unique name */
    sd_bus_track *track;                          /* of the owner */
    sd_bus_slot *slot;                            /* NULL: it is being made */
};

struct request {
    LIST_ENTRY(request) link;
    struct portal *portal;
    enum request_kind kind;
    struct session *session; /* NULL: it is none's, or no more */
    char *path, *owner;      /* path: NULL for what has no object */
    sd_bus_message *call;    /* NULL: answered; only moed's reply is still to come */
    sd_bus_slot *slot;
    uint32_t id; /* of the call to moed */
};

struct portal {
    sd_event *event;
    sd_bus *bus;
    const char *socket; /* or NULL */
    struct moe *moe;    /* or NULL */
    sd_event_source *io, *timer;
    unsigned n_session;
    LIST_HEAD(, session) sessions;
    LIST_HEAD(, request) requests;
};

/* link.c: the connection to moed. Return: 0, or -errno and @error set. */
int link_open(struct portal *p, sd_bus_error *error);
void link_close(struct portal *p);

/* session.c */
/** session_new() - one that has no object yet
 * Return: 0, or a negative errno and @error set. */
int session_new(struct portal *p, sd_bus_message *m, const char *path, const char *use_case,
                const char *instructions, struct session **ret, sd_bus_error *error);
/* Give it its object. Return: 0 or -errno. */
int session_export(struct session *s);
/* End its requests, and it. */
struct session *session_free(struct session *s);
/* Return: 0, or -errno and @error set: it is none of @m's sender. */
int session_find(struct portal *p, sd_bus_message *m, const char *path, struct session **ret,
                 sd_bus_error *error);
/* Say that it is over, to who has it. */
void session_tell_closed(struct session *s);

/* request.c */
/** request_new() - begin to answer @m
 * @path:    of its object, or NULL
 * @session: or NULL
 * Return: 0, or a negative errno and @error set. */
int request_new(struct portal *p, sd_bus_message *m, enum request_kind kind, const char *path,
                struct session *session, struct request **ret, sd_bus_error *error);
/* moed's reply came, or none will: it ends. What was not answered is, with an error. */
void request_free(struct request *r);
/* Answer that it was cancelled, tell moed, and wait for moed's reply. */
void request_cancel(struct request *r, const char *why);
/* Answer with what moed said. */
void request_fail(struct request *r, const struct moe_error *e);
/* Send the signal @member with the handles of request and session before @text and, if there is
 * one, @done. */
void request_signal(struct request *r, const char *member, const char *text, size_t n,
                    const bool *done);

/* language.c: the interface. Return: 0 or -errno. */
int language_add(struct portal *p);

/* The names of bus errors for moed's. */
const char *request_error_name(int code);

#endif
