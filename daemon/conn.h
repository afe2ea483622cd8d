/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * conn - a socket as frames in and bytes out
 *
 * Raw bytes are walked by wire_scan() and only a complete frame within the limits is decoded. What
 * cannot be sent yet waits in memory; above CONN_STOP bytes no further request is read, so that a
 * peer that asks but does not listen costs no more than that. A hang-up is noticed also then.
 * Half-closing counts as hanging up: nobody is left to say stop.
 *
 * A frame may come with a descriptor (SCM_RIGHTS), which is kept until a frame() takes it, or none
 * of the bytes that came with it or before is left. There is never more than one.
 *
 * Owner:   the daemon thread, in its event loop.
 * Memory:  the frame being read (WIRE_FRAME_MAX) and what waits to be sent.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <msgpack.h>

#include "daemon/clock.h"
#include "engine/base/auto.h"
#include "engine/base/err.h"

struct conn;
struct event_base;

enum {
    CONN_HIGH = 64 << 10, /* bytes waiting from which on streams hold their text back */
    CONN_STOP = 1 << 20,  /* bytes waiting from which on requests are not read */
};

/* None of them may free the conn, but for closed(), which must. */
struct conn_ops {
    /* A decoded frame, borrowed for the call. */
    void (*frame)(void *arg, const msgpack_object *o);
    /* The peer broke a limit: a WIRE_* outcome, or 0 when a frame took too long. To be answered
     * and followed by conn_finish(). */
    void (*bad)(void *arg, int outcome);
    /* Something was sent. */
    void (*sent)(void *arg);
    /* The peer is gone, or everything was sent after conn_finish(). */
    void (*closed)(void *arg);
};

/* Takes @fd on success. */
int conn_new(struct conn **ret_conn, struct event_base *base, int fd, const struct conn_ops *ops,
             void *arg);
struct conn *conn_free(struct conn *c);
AUTO_DEFINE(struct conn *, conn_free)

/* Queue bytes to be sent. Return: 0 or -ENOMEM, with nothing queued. */
int conn_write(struct conn *c, const void *buf, size_t n);
/* Read no more; closed() when all is sent, or after a second. */
void conn_finish(struct conn *c);

/* The descriptor that came with the frame, the caller's from then on; or -1. Within frame(). */
int conn_take_fd(struct conn *c);

/* Bytes queued, and when the last ones left. */
size_t conn_pending(const struct conn *c);
usec_t conn_sent_usec(const struct conn *c);
