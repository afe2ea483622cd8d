/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * session - one client: who it is, which requests it has open, and what it is owed
 *
 * A request that is not answered at once is a session_call. It is linked to its session until it is
 * answered or the client hangs up; then it is told, and may live on without a session until the
 * engine is done with it.
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "daemon/conn.h"
#include "daemon/peer.h"
#include "daemon/residency.h"
#include "daemon/rpc.h"

struct session;
struct session_call;

struct session_call_ops {
    /* The client hung up; @call->session is already NULL. Stop the work. */
    void (*gone)(struct session_call *call);
    /* End it with @code as soon as possible, but with a response. */
    void (*stop)(struct session_call *call, int code);
    /* The client took some bytes. May be NULL. */
    void (*sent)(struct session_call *call);
};

struct session_call {
    LIST_ENTRY(session_call) link;
    const struct session_call_ops *ops;
    struct session *session; /* NULL: the client is gone */
    uint32_t msgid;
};

LIST_HEAD(session_list, session);

struct session {
    LIST_ENTRY(session) link; /* of the server's list */
    struct server *server;
    struct conn *conn;
    uint64_t id; /* "channel" of server.info, and the number in the log */
    struct peer peer;
    struct residency_lease lease;
    LIST_HEAD(, session_call) calls;
    uint32_t n_call;
};

/* Takes @fd on success. The session frees itself when the client goes. */
int session_new(struct session **ret_session, struct server *server, int fd,
                const struct peer *peer);
struct session *session_free(struct session *s);
AUTO_DEFINE(struct session *, session_free)

/* May this client load and unload? The daemon's own user and root may, and who was allowed to. */
bool session_is_admin(const struct session *s);

/* Owe an answer for @msgid: what a method does before it returns RPC_LATER. */
void session_owe(struct session *s, struct session_call *call, uint32_t msgid,
                 const struct session_call_ops *ops);
/* The open request with @msgid, or NULL. */
struct session_call *session_find(struct session *s, uint32_t msgid);
/* Send the answer, if there is still somebody to send it to, and unlink @call. @code as in
 * rpc_reply_pack(). */
void session_answer(struct session_call *call, struct rpc_reply *reply, int code);

/* Queue packed frames. */
void session_send(struct session *s, const msgpack_sbuffer *frames);
/* Send one rpc.error and close. */
void session_refuse(struct session *s, int code, const char *message);
/* End every open request with @code; close when all is said. */
void session_stop(struct session *s, int code);
