/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * rig - the daemon on a fake engine and socket pairs, in one thread
 *
 * Requests are written as JSON and answers are read as msgpack-c prints them, so a test shows what
 * goes over the wire: [1, 7, nil, {"state"=>"ready"}].
 */

#include <stdbool.h>
#include <stddef.h>

#include "daemon/server.h"

enum { RIG_TEXT_MAX = 1 << 20 };

struct rig {
    struct event_base *base;
    struct server *server;
    char dir[64]; /* has a.gguf and b.gguf */
};

struct rig_client {
    struct rig *rig;
    int fd;
    uint8_t *buf;
    size_t n;
    char text[RIG_TEXT_MAX]; /* the last frame */
};

void rig_init(struct rig *rig, const struct config_set *set, size_t n_set);
void rig_deinit(struct rig *rig);
/* Turn the loop until nothing is left to do. */
void rig_turn(struct rig *rig);

struct rig_client *rig_connect(struct rig *rig);
void rig_hangup(struct rig_client *c);
void rig_send(struct rig_client *c, const void *buf, size_t n);
void rig_request(struct rig_client *c, uint32_t msgid, const char *method, const char *params);
void rig_notify(struct rig_client *c, const char *method, const char *params);
/* The next frame; fails the test after 30 s. NULL at the end of the stream. */
const char *rig_recv(struct rig_client *c);
/* rig_request() and rig_recv(). */
const char *rig_call(struct rig_client *c, uint32_t msgid, const char *method, const char *params);
