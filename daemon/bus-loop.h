/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bus-loop - a connection to a message bus in the event loop, which is made again when it is lost
 *
 * Nothing here waits for the bus, and nothing needs one: without, it is tried again from time to
 * time.
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>

#include <systemd/sd-bus.h>

struct event;
struct event_base;

struct bus_loop_ops {
    const char *topic; /* of the log */
    /* Connect, and send what is to be asked at once. *@ret_sd is the loop's in any case, NULL:
     * there is none. Return: 0 or -errno. */
    int (*open)(void *arg, sd_bus **ret_sd);
    /* The connection is about to be closed, or open() failed: let go what belongs to it. */
    void (*lost)(void *arg);
};

struct bus_loop {
    struct event_base *base;
    const struct bus_loop_ops *ops;
    void *arg;  /* of ops */
    sd_bus *sd; /* NULL: not connected */
    struct event *io, *timer, *retry;
    bool told; /* that there is no bus */
};

/* Begin to try. Return: 0, also without a bus; or -ENOMEM, with @l to be deinitialised as well. */
int bus_loop_init(struct bus_loop *l, struct event_base *base, const struct bus_loop_ops *ops,
                  void *arg);
/* What was sent is flushed. Of @l that was never initialised: nothing. */
void bus_loop_deinit(struct bus_loop *l);
/* Something was sent outside of a handler, so what the bus waits for may have changed. */
void bus_loop_kick(struct bus_loop *l);
