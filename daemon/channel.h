/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * channel - one client: who it is, which requests it has open, and what it is owed
 *
 * A request that is not answered at once is a channel_call. It is linked to its channel until it is
 * answered or the client hangs up; then it is told, and may live on without a channel until the
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

struct channel;
struct channel_call;

struct channel_call_ops {
    /* The client hung up; @call->channel is already NULL. Stop the work. */
    void (*gone)(struct channel_call *call);
    /* End it with @code as soon as possible, but with a response. */
    void (*stop)(struct channel_call *call, int code);
    /* The client took some bytes. May be NULL. */
    void (*sent)(struct channel_call *call);
};

struct channel_call {
    LIST_ENTRY(channel_call) link;
    const struct channel_call_ops *ops;
    struct channel *channel; /* NULL: the client is gone */
    uint32_t msgid;
};

LIST_HEAD(channel_list, channel);

struct channel {
    LIST_ENTRY(channel) link; /* of the server's list */
    struct server *server;
    struct conn *conn;
    uint64_t id; /* "channel" of server.info, and the number in the log */
    struct peer peer;
    bool one_call; /* it is one call of a bus, and no connection that anybody has */
    struct residency_lease lease;
    LIST_HEAD(, channel_call) calls;
    uint32_t n_call;
};

/* Takes @fd on success. The channel frees itself when the client goes. */
int channel_new(struct channel **ret_channel, struct server *server, int fd,
                const struct peer *peer);
struct channel *channel_free(struct channel *s);
AUTO_DEFINE(struct channel *, channel_free)

/* May this client load and unload? The daemon's own user and root may, and who was allowed to. */
bool channel_is_admin(const struct channel *s);

/* Owe an answer for @msgid: what a method does before it returns RPC_LATER. */
void channel_owe(struct channel *s, struct channel_call *call, uint32_t msgid,
                 const struct channel_call_ops *ops);
/* The open request with @msgid, or NULL. */
struct channel_call *channel_find(struct channel *s, uint32_t msgid);
/* Send the answer, if there is still somebody to send it to, and unlink @call. @code as in
 * rpc_reply_pack(). */
void channel_answer(struct channel_call *call, struct rpc_reply *reply, int code);

/* Queue packed frames. */
void channel_send(struct channel *s, const msgpack_sbuffer *frames);
/* Send one rpc.error and close. */
void channel_refuse(struct channel *s, int code, const char *message);
/* End every open request with @code; close when all is said. */
void channel_stop(struct channel *s, int code);
