/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "daemon/errands.h"
#include "engine/base/ring.h"

struct errands {
    struct ring *todo, *over; /* struct errand *; of @todo NULL is the last */
    uint32_t n;               /* not done */
    struct event *ended;
    pthread_t thread;
    bool started;
};

static void *main_of(void *arg) {
    struct errands *t = arg;
    struct pollfd in = { .fd = ring_fd(t->todo), .events = POLLIN };
    struct errand *errand;

    for (;;) {
        if (ring_pop(t->todo, &errand) != 0) {
            (void)poll(&in, 1, -1);
            continue;
        }
        if (!errand)
            return NULL;
        errand->run(errand);
        (void)ring_push(t->over, &errand); /* never full: it has room for all there are */
    }
}

static void on_ended(evutil_socket_t fd, short what, void *arg) {
    struct errands *t = arg;
    struct errand *errand;

    while (ring_pop(t->over, &errand) == 0) {
        t->n--;
        errand->done(errand);
    }
}

int errands_add(struct errands *t, struct errand *errand) {
    if (t->n == ERRANDS_MAX)
        return ERRANDS_FULL;
    t->n++;
    (void)ring_push(t->todo, &errand); /* has room, as above */
    return 0;
}

/* Signals are the daemon thread's. */
static int start(struct errands *t) {
    sigset_t all, old;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&t->thread, NULL, main_of, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r != 0)
        return err_new(-r);

    (void)pthread_setname_np(t->thread, "moed-errands");
    t->started = true;
    return 0;
}

struct errands *errands_free(struct errands *t) {
    if (!t)
        return NULL;

    if (t->started) {
        (void)ring_push(t->todo, &(struct errand *){ NULL });
        (void)pthread_join(t->thread, NULL);
        on_ended(-1, 0, t);
    }
    if (t->ended)
        event_free(t->ended);
    ring_free(t->todo);
    ring_free(t->over);
    free(t);

    return NULL;
}

int errands_new(struct errands **ret_errands, struct event_base *base) {
    AUTO(errands_free) struct errands *t = calloc(1, sizeof *t);
    int r;

    if (!t)
        return err_new(-ENOMEM);
    r = ring_new(&t->todo, ERRANDS_MAX + 1, sizeof(struct errand *));
    if (!r)
        r = ring_new(&t->over, ERRANDS_MAX, sizeof(struct errand *));
    if (r)
        return err_up(r);
    t->ended = event_new(base, ring_fd(t->over), EV_READ | EV_PERSIST, on_ended, t);
    if (!t->ended || event_add(t->ended, NULL) < 0)
        return err_new(-ENOMEM);
    r = start(t);
    if (r)
        return err_up(r);

    *ret_errands = take(t);
    return 0;
}
