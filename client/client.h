/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * client - what the sources of libmoe share
 *
 * Owner:  the thread that uses the connection.
 * Memory: the read side holds one frame at most and what one recv() brought after it; the write
 *         side refuses more calls once a frame's limit of bytes waits to be sent.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <msgpack.h>

#include "client/moe.h"
#include "client/wire.h"

/* Bytes in flight: [from, to) of @p. */
struct client_buf {
    char *p;
    size_t from, to, size;
    bool failed; /* a write was lost for want of memory, and so the rest of its frame */
};

struct client_call {
    uint32_t id;
    moe_reply_fn reply;
    moe_notify_fn notify;
    void *userdata;
    uint64_t deadline; /* CLOCK_MONOTONIC, microseconds; MOE_FOREVER */
    bool given_up;     /* has had its reply; the number stays taken until the answer comes */
};

/* A descriptor on its way. */
struct client_file {
    uint64_t at; /* bytes of the stream before the frame it goes with */
    int fd;
};

/* An answer that outlives its frame, for the *_wait() functions. */
struct client_kept {
    msgpack_sbuffer bytes;
    msgpack_unpacked decoded;
    struct moe_error error;
    struct moe_result result;
    bool failed; /* error is what the caller gets */
};

struct moe {
    int fd;
    int over;  /* the negative errno that ended the connection, or 0 */
    bool busy; /* in moe_process(): callbacks must not come back */
    bool deaf; /* the service takes nothing any more; it may still have something to say */
    struct client_buf in, out;
    uint64_t n_sent; /* bytes */
    struct client_file files[WIRE_OUTSTANDING_MAX];
    size_t n_file;
    struct wire_scan scan;
    struct client_call calls[WIRE_OUTSTANDING_MAX];
    size_t n_call;
    uint32_t last_id;
    moe_notify_fn notify;
    void *notify_userdata;
    const msgpack_object *answer; /* while a reply callback runs: the map it came from */
    struct moe_error said;        /* the rpc.error that came before a hang-up; code 0: none */
    char said_name[32], said_message[256];
    struct client_kept kept;
};

struct moe_map {
    msgpack_sbuffer bytes; /* the pairs, without a header: others may be put beside them */
    msgpack_packer packer;
    int error;
    size_t depth;
    struct {
        size_t at; /* of the count to be filled in; level 0 has none */
        uint32_t n;
        bool is_map;
    } level[WIRE_DEPTH_MAX];
    bool int_key; /* the next value's key is written already */
};

/* moe_call() with the pairs of two maps, either of which may be NULL. */
int client_call2(struct moe *m, const char *method, const struct moe_map *a,
                 const struct moe_map *b, moe_reply_fn reply, moe_notify_fn notify, void *userdata,
                 uint32_t *ret_id);

/* moe_call_wait() with the pairs of two maps, either of which may be NULL. */
int client_call2_wait(struct moe *m, const char *method, const struct moe_map *a,
                      const struct moe_map *b, uint64_t usec, const struct moe_value **ret_result);

/* moe_call() with the descriptor @fd, of which a copy is taken. */
int client_call_fd(struct moe *m, const char *method, const struct moe_map *params, int fd,
                   moe_reply_fn reply, void *userdata, uint32_t *ret_id);

/* What a *_wait() function waits with: client_waited() is the reply of the call that began with
 * .done false. */
struct client_waiter {
    bool done;
    int r;
};
void client_waited(struct moe *m, uint32_t id, const struct moe_value *result,
                   const struct moe_error *error, void *userdata);
/* Wait for it, @usec at most. */
int client_await(struct moe *m, struct client_waiter *w, uint32_t id, uint64_t usec,
                 const struct moe_value **ret_result);

/* The key "messages": generate.c. */
void client_put_messages(struct moe_map *p, const struct moe_message *messages, size_t n);

/* Run the loop until @done; on a signal give the call @id up. Return: 0, -EINTR, … */
int client_run(struct moe *m, const bool *done, uint32_t id);

/* From a reply callback: keep result or error for the caller of a *_wait() function. */
int client_keep(struct moe *m, const struct moe_error *error);
const struct moe_value *client_kept_value(const struct moe *m);

/* Send what can be sent now. */
void client_flush(struct moe *m);

/* End each str in @o, which is mended, in a NUL. The byte after it is overwritten: it is writable
 * and the header of the next value, if any, which is decoded already and not needed again. */
void client_terminate(const msgpack_object *o);
