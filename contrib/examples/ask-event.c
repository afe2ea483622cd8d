/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Two questions at once on one connection, in a loop of libevent.
 *
 *   cc -o ask-event ask-event.c $(pkg-config --cflags --libs libmoe libevent_core)
 *   ./ask-event "What does grep do?" "What does tar do?"
 */
#include <event2/event.h>
#include <moe.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

static struct event_base *base;
static struct event *event;
static int n_left, n_failed;

/* Wait for what the connection wants now; to be called after each use of it. */
static void watch(struct moe *m, event_callback_fn fn) {
    int events = moe_events(m);
    uint64_t usec = moe_timeout(m);
    struct timeval tv = { (time_t)(usec / 1000000), (suseconds_t)(usec % 1000000) };

    event_del(event);
    event_assign(event, base, moe_fd(m),
                 (short)((events & POLLIN ? EV_READ : 0) | (events & POLLOUT ? EV_WRITE : 0)), fn,
                 m);
    event_add(event, usec == MOE_FOREVER ? NULL : &tv);
}

static void on_event(evutil_socket_t fd, short what, void *userdata) {
    struct moe *m = userdata;
    int r = moe_process(m, (what & EV_READ ? POLLIN : 0) | (what & EV_WRITE ? POLLOUT : 0));

    (void)fd;
    if (r >= 0 && n_left)
        watch(m, on_event);
    else
        event_base_loopbreak(base); /* each question has had its reply */
}

static void on_done(struct moe *m, uint32_t id, const struct moe_result *result,
                    const struct moe_error *error, void *userdata) {
    (void)m, (void)id;
    n_left--;
    n_failed += !result;
    printf("%s\n    %s\n", (const char *)userdata, result ? result->text : error->message);
}

int main(int argc, char **argv) {
    struct moe_generate g = MOE_GENERATE_INIT;
    struct moe *m;
    int r;

    r = moe_open(&m, NULL);
    if (r < 0) {
        fprintf(stderr, "moed cannot be reached: %s\n", strerror(-r));
        return 1;
    }
    base = event_base_new();
    event = event_new(base, -1, 0, on_event, m);

    for (int i = 1; i < argc && r >= 0; i++) {
        struct moe_message question = { "user", argv[i] };

        g.messages = &question;
        g.n_messages = 1;
        g.max_tokens = 256;
        g.userdata = argv[i];
        r = moe_generate(m, &g, on_done, NULL);
        n_left += r >= 0;
    }
    if (n_left) {
        watch(m, on_event);
        event_base_dispatch(base);
    }
    if (r < 0)
        fprintf(stderr, "%s\n", strerror(-r));

    event_free(event);
    event_base_free(base);
    moe_close(m);

    return r < 0 || n_failed;
}
