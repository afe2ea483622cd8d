/* SPDX-License-Identifier: Apache-2.0 */

/* link - the connection to moed, in the event loop */

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "client/portal/portal.h"

static void process(struct portal *p, int revents) {
    int r = moe_process(p->moe, revents);

    if (r >= 0)
        return;
    (void)fprintf(stderr, "<4>moed hung up: %s\n", strerror(-r));
    link_close(p);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    process(userdata, (int)revents); /* EPOLL* are POLL* */
    return 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
    process(userdata, 0);
    return 0;
}

/* The library decides what it waits for: ask before each sleep. */
static int on_prepare(sd_event_source *source, void *userdata) {
    struct portal *p = userdata;
    uint64_t usec = moe_timeout(p->moe);
    int r;

    r = sd_event_source_set_io_events(p->io, (uint32_t)moe_events(p->moe));
    if (r >= 0 && usec != MOE_FOREVER)
        r = sd_event_source_set_time_relative(p->timer, usec);
    if (r >= 0)
        r = sd_event_source_set_enabled(p->timer,
                                        usec == MOE_FOREVER ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
    return r;
}

int link_open(struct portal *p, sd_bus_error *error) {
    int r;

    if (p->moe)
        return 0;

    r = moe_open(&p->moe, p->socket);
    if (r < 0) {
        sd_bus_error_setf(error, PORTAL_ERROR "Failed", "moed cannot be reached: %s", strerror(-r));
        return r;
    }
    r = sd_event_add_io(p->event, &p->io, moe_fd(p->moe), 0, on_io, p);
    if (r >= 0)
        r = sd_event_add_time(p->event, &p->timer, CLOCK_MONOTONIC, 0, 0, on_timer, p);
    if (r >= 0)
        r = sd_event_source_set_prepare(p->io, on_prepare);
    if (r < 0) {
        link_close(p);
        return sd_bus_error_set_errno(error, r);
    }
    return 0;
}

void link_close(struct portal *p) {
    p->io = sd_event_source_disable_unref(p->io);
    p->timer = sd_event_source_disable_unref(p->timer);
    p->moe = moe_close(p->moe); /* what is outstanding gets its reply */
}
