/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>

#include "daemon/notify.h"
#include "daemon/watchdog.h"

enum { WATCHDOG_LOOKS = 4 /* in the time after which we would be ended */ };

struct watchdog {
    const struct models *models;
    struct event *timer;
    uint64_t n_beat; /* of the engine, at the last look */
};

static void look(struct watchdog *w) {
    struct engine_status st;

    models_engine(w->models, &st);
    if (!st.busy || st.n_beat != w->n_beat)
        notify_alive();
    w->n_beat = st.n_beat;
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    look(arg);
}

struct watchdog *watchdog_free(struct watchdog *w) {
    if (!w)
        return NULL;
    if (w->timer)
        event_free(w->timer);
    free(w);
    return NULL;
}

int watchdog_new(struct watchdog **ret_w, struct event_base *base, const struct models *models) {
    AUTO(watchdog_free) struct watchdog *w = NULL;
    struct timeval tv;
    uint64_t usec;

    *ret_w = NULL;
    if (sd_watchdog_enabled(0, &usec) <= 0)
        return 0;
    w = calloc(1, sizeof *w);
    if (!w)
        return err_new(-ENOMEM);

    w->models = models;
    w->timer = event_new(base, -1, EV_PERSIST, on_timer, w);
    tv = clock_timeval(usec / WATCHDOG_LOOKS);
    if (!w->timer || event_add(w->timer, &tv) < 0)
        return err_new(-ENOMEM);
    look(w);
    *ret_w = take(w);
    return 0;
}
