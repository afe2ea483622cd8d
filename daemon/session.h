/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * session - a conversation that the service remembers for a user: what the protocol calls a session
 *
 * (A struct channel is one connection.) A session is text and settings. It has no keys and values:
 * what the engine evaluated is found again by its cache, so cloning copies text, and an exchange
 * that was cancelled is never added. It belongs to the user: any connection of that user
 * may go on with it. It is closed with the connection that opened it, or when nobody touched it for
 * "session-idle" seconds.
 *
 * Owner:   the daemon thread.
 * Memory:  the texts; those of all sessions of a user are at most "user-bytes", but for the answer
 *          that comes last.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "daemon/clock.h"
#include "daemon/residency.h"
#include "engine/base/auto.h"
#include "engine/engine.h"

enum { SESSION_MESSAGES_MAX = 16384 /* so that a saved one keeps the limits of a frame */ };

struct event;
struct server;
struct channel;
struct work;

/* What is saved of a session. */
struct session_state {
    char *model;              /* id */
    struct chat_message *msg; /* [n_msg] roles are static, texts owned */
    size_t n_msg, n_alloc, n_byte;
    struct sample_params sample; /* without a bias */
    uint32_t max_tokens;         /* 0: what the context holds */
    enum fair_class class;
    bool thinking;
};
void session_state_deinit(struct session_state *s);

struct session {
    LIST_ENTRY(session) link;
    struct server *server;
    uint64_t id;
    uid_t uid;
    const struct channel *owner; /* the connection that opened it */
    struct session_state state;
    struct residency_lease lease; /* its model stays while it is open, unless memory is short */
    struct work *work; /* the exchange that runs, which adds to it at its end; NULL: none */
    uint32_t n_ref;
    bool closed;       /* nobody finds it any more */
    uint32_t n_used;   /* tokens it had when it was last evaluated */
    uint64_t n_change; /* grows with every change of its messages */
    usec_t used_usec;
    usec_t idle_usec; /* it is closed when nobody touched it for that long; 0: as all are */
};

LIST_HEAD(session_list, session);

/* All there are; part of the server. */
struct sessions {
    struct session_list list;
    uint64_t next_id;
    struct event *idle; /* NULL: none was ever opened */
};
void session_deinit_all(struct sessions *t);

/* ---- what is said: session-state.c ---- */

/* Add copies of @msg [n]. Return: 0; RPC_INVALID_ARGS: a role, @why names it; RPC_TOO_LARGE: more
 * than SESSION_MESSAGES_MAX messages, or more text than ENGINE_TEXT_MAX; -ENOMEM. On anything but 0
 * the state is as before. */
int session_state_add(struct session_state *s, const struct chat_message *msg, size_t n,
                      struct why *why);
/* Bytes that @msg [n] count for, in session_state.n_byte too. */
size_t session_state_size(const struct chat_message *msg, size_t n);
/* Its messages and after them @msg [n], in @ret_msg [ret_n]: the caller's to free, texts borrowed.
 * Return: 0 or -ENOMEM. */
int session_state_join(const struct session_state *s, const struct chat_message *msg, size_t n,
                       struct chat_message **ret_msg, size_t *ret_n);
/* Back to the first @n messages. */
void session_state_cut(struct session_state *s, size_t n);
/* Without the @n first messages that are no instructions. */
void session_state_drop(struct session_state *s, size_t n);
/* Copy @from. Return: 0 or -ENOMEM. @ret is to be deinitialised in any case. */
int session_state_copy(struct session_state *ret, const struct session_state *from);

/* ---- sessions ---- */

/**
 * session_open() - a new one, for the user of @owner
 * @state:      moved from on 0
 * @ret_limit:  on RPC_QUOTA_EXCEEDED
 *
 * Return: 0; RPC_QUOTA_EXCEEDED: the user has too many, or too much text in them; -ENOMEM.
 */
int session_open(struct server *server, const struct channel *owner, struct session_state *state,
                 struct session **ret_session, uint64_t *ret_limit, struct why *why);
/* As session_open(), for @msg [n] more in @t. */
int session_check_room(const struct session *t, const struct chat_message *msg, size_t n,
                       uint64_t *ret_limit, struct why *why);
/**
 * session_answer() - an exchange is over: add question and answer
 * @asked:      [n_asked]
 * @text:       [n_text] of the answer, any bytes
 * @n_drop:     messages it went without, see session_state_drop()
 *
 * Return: as session_state_add(), with the session as before on anything but 0.
 */
int session_answer(struct session *t, const struct chat_message *asked, size_t n_asked,
                   const char *text, size_t n_text, size_t n_drop, struct why *why);
/* The one with this number, if it is of this user; NULL: there is none. It counts as touched. */
struct session *session_find(struct server *server, uid_t uid, uint64_t id);
/* Close it when nobody touched it for @usec, if that is shorter than for all; 0: as all are. */
void session_set_idle(struct session *t, usec_t usec);
/* End its exchange and forget it. */
void session_close(struct session *t);
/* Close all that @owner opened. */
void session_close_all(struct server *server, const struct channel *owner);

/* Whoever works on a session while it may be closed keeps a reference. */
struct session *session_ref(struct session *t);
struct session *session_unref(struct session *t);

/* ---- saved sessions: session-save.c ---- */

struct session_blob { /* bytes of a file */
    char *p;
    size_t n;
};

/* Return: 0 or -ENOMEM. @ret->p is the caller's to free. */
int session_pack(const struct session_state *s, struct session_blob *ret);
/* Return: 0; RPC_CORRUPT: no session, @why says what is wrong; -ENOMEM. Reads what anybody may have
 * written. @ret is to be deinitialised on 0. */
int session_unpack(const void *p, size_t n, struct session_state *ret, struct why *why);
