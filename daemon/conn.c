/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/buffer.h>
#include <event2/event.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/wire.h"
#include "daemon/conn.h"

enum {
    CONN_CHUNK = 64 << 10,     /* bytes a read */
    CONN_KEEP = 256 << 10,     /* room a buffer keeps after a large frame */
    CONN_FINISH_USEC = 1000000 /* to take the last bytes */
};

struct conn {
    const struct conn_ops *ops;
    void *arg;
    int fd;
    struct event *readable, *writable, *hangup, *timer;
    struct evbuffer *out;
    usec_t sent_usec;
    bool finishing;
    bool started; /* a frame is begun, its timer runs */

    struct wire_scan scan;
    uint8_t *in;
    size_t n_in, n_room;
    int given; /* a descriptor that came, or -1 */
};

static void conn_closed(struct conn *c) {
    c->ops->closed(c->arg); /* @c is gone */
}

static void conn_bad(struct conn *c, int outcome) {
    c->ops->bad(c->arg, outcome);
}

static void set_timer(struct conn *c, usec_t usec) {
    struct timeval tv = clock_timeval(usec);

    (void)event_add(c->timer, &tv);
}

/* Decode and hand on one frame of @n bytes. */
static void conn_frame(struct conn *c, const uint8_t *buf, size_t n) {
    msgpack_unpacked frame;
    size_t off = 0;

    msgpack_unpacked_init(&frame);
    if (msgpack_unpack_next(&frame, (const char *)buf, n, &off) == MSGPACK_UNPACK_SUCCESS &&
        off == n)
        c->ops->frame(c->arg, &frame.data);
    else
        conn_bad(c, WIRE_MALFORMED);
    msgpack_unpacked_destroy(&frame);
}

static void drop_given(struct conn *c) {
    if (c->given >= 0)
        (void)close(c->given);
    c->given = -1;
}

int conn_take_fd(struct conn *c) {
    int fd = c->given;

    c->given = -1;
    return fd;
}

static bool may_read(const struct conn *c) {
    return !c->finishing && evbuffer_get_length(c->out) < CONN_STOP;
}

/* Hand on every complete frame of the input, as long as the output has room. */
static void conn_frames(struct conn *c) {
    size_t at = 0, n;
    int r = WIRE_MORE;

    while (may_read(c) && at < c->n_in) {
        r = wire_scan(&c->scan, c->in + at, c->n_in - at, &n);
        if (r) {
            if (r != WIRE_MORE)
                conn_bad(c, r);
            break;
        }
        conn_frame(c, c->in + at, n);
        at += n;
        wire_scan_init(&c->scan);
        c->started = false;
    }

    c->n_in -= at;
    (void)memmove(c->in, c->in + at, c->n_in);
    if (!c->n_in)
        drop_given(c);
    if (!c->n_in && c->n_room > CONN_KEEP) {
        free(c->in);
        c->in = NULL;
        c->n_room = 0;
    }
}

/* Wait for what there is to wait for. The clock of a frame runs only while we read. */
static void conn_rearm(struct conn *c) {
    if (evbuffer_get_length(c->out))
        (void)event_add(c->writable, NULL);
    if (c->finishing) {
        (void)event_del(c->readable);
        return;
    }

    if (!may_read(c)) {
        (void)event_del(c->readable);
        (void)event_del(c->timer);
        c->started = false;
        return;
    }
    (void)event_add(c->readable, NULL);
    if (!c->n_in) {
        (void)event_del(c->timer);
    } else if (!c->started) {
        c->started = true;
        set_timer(c, WIRE_FRAME_USEC);
    }
}

static int conn_room(struct conn *c) {
    size_t n = c->n_room ? c->n_room * 2 : CONN_CHUNK;
    uint8_t *p;

    if (c->n_room - c->n_in >= CONN_CHUNK / 2)
        return 0;
    p = realloc(c->in, n);
    if (!p)
        return err_new(-ENOMEM);

    c->in = p;
    c->n_room = n;
    return 0;
}

/* As recv(). *ret_outcome: WIRE_TOO_GIVEN for a descriptor more than there may be; it is closed. */
static ssize_t receive(struct conn *c, int *ret_outcome) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec to = { c->in + c->n_in, c->n_room - c->n_in };
    /* The exact length: with the padding two would fit. */
    struct msghdr m = { .msg_iov = &to,
                        .msg_iovlen = 1,
                        .msg_control = &control,
                        .msg_controllen = CMSG_LEN(sizeof(int)) };
    ssize_t n = recvmsg(c->fd, &m, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *h = n >= 0 ? CMSG_FIRSTHDR(&m) : NULL;
    int fd = -1;

    if (h && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS &&
        h->cmsg_len == CMSG_LEN(sizeof fd))
        (void)memcpy(&fd, CMSG_DATA(h), sizeof fd);
    *ret_outcome = (n >= 0 && m.msg_flags & MSG_CTRUNC) || (fd >= 0 && c->given >= 0)
                       ? WIRE_TOO_GIVEN
                       : WIRE__OK;
    if (*ret_outcome && fd >= 0)
        (void)close(fd);
    else if (fd >= 0)
        c->given = fd;
    return n;
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
    struct conn *c = arg;
    int outcome = WIRE__OK;
    ssize_t n;

    if (conn_room(c) < 0) {
        conn_closed(c);
        return;
    }
    n = receive(c, &outcome);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        conn_closed(c);
        return;
    }
    if (n < 0)
        return;

    c->n_in += (size_t)n;
    if (outcome)
        conn_bad(c, outcome);
    else
        conn_frames(c);
    conn_rearm(c);
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
    struct conn *c = arg;
    int n = evbuffer_get_length(c->out) ? evbuffer_write(c->out, c->fd) : 0;

    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        conn_closed(c);
        return;
    }
    if (n > 0)
        c->sent_usec = clock_usec();
    if (n > 0 && !c->finishing)
        c->ops->sent(c->arg);

    if (c->finishing && !evbuffer_get_length(c->out)) {
        conn_closed(c);
        return;
    }
    if (!c->finishing && may_read(c) && c->n_in)
        conn_frames(c); /* what waited while the output was full */
    conn_rearm(c);
}

static void on_hangup(evutil_socket_t fd, short what, void *arg) {
    conn_closed(arg);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    struct conn *c = arg;

    if (c->finishing)
        conn_closed(c);
    else
        conn_bad(c, 0);
}

struct conn *conn_free(struct conn *c) {
    char sink[4096];

    if (!c)
        return NULL;

    if (c->readable)
        event_free(c->readable);
    if (c->writable)
        event_free(c->writable);
    if (c->hangup)
        event_free(c->hangup);
    if (c->timer)
        event_free(c->timer);
    if (c->out)
        evbuffer_free(c->out);
    if (c->fd >= 0) {
        /* Unread bytes would turn the peer's end of file into a reset. */
        (void)shutdown(c->fd, SHUT_RDWR);
        for (int i = 0; i < 64 && recv(c->fd, sink, sizeof sink, MSG_DONTWAIT) > 0; i++)
            ;
        (void)close(c->fd);
    }
    drop_given(c);
    free(c->in);
    free(c);

    return NULL;
}

int conn_new(struct conn **ret_conn, struct event_base *base, int fd, const struct conn_ops *ops,
             void *arg) {
    AUTO(conn_free) struct conn *c = calloc(1, sizeof *c);

    if (!c)
        return err_new(-ENOMEM);

    c->fd = c->given = -1;
    c->ops = ops;
    c->arg = arg;
    c->sent_usec = clock_usec();
    wire_scan_init(&c->scan);
    c->out = evbuffer_new();
    c->readable = event_new(base, fd, EV_READ | EV_PERSIST, on_readable, c);
    c->writable = event_new(base, fd, EV_WRITE, on_writable, c);
    c->hangup = event_new(base, fd, EV_CLOSED | EV_PERSIST, on_hangup, c);
    c->timer = evtimer_new(base, on_timer, c);
    if (!c->out || !c->readable || !c->writable || !c->hangup || !c->timer ||
        event_add(c->readable, NULL) < 0 || event_add(c->hangup, NULL) < 0)
        return err_new(-ENOMEM);

    c->fd = fd;
    *ret_conn = take(c);
    return 0;
}

int conn_write(struct conn *c, const void *buf, size_t n) {
    if (evbuffer_add(c->out, buf, n) < 0 || event_add(c->writable, NULL) < 0)
        return err_new(-ENOMEM);

    return 0;
}

void conn_finish(struct conn *c) {
    if (c->finishing)
        return;

    c->finishing = true;
    (void)event_del(c->readable);
    /* Closes from there, also with nothing to send. Not left to the poll: a socket of which more
     * than a quarter is unread does not count as writable, though it would take these bytes. */
    event_active(c->writable, EV_WRITE, 1);
    set_timer(c, CONN_FINISH_USEC);
}

size_t conn_pending(const struct conn *c) {
    return evbuffer_get_length(c->out);
}

usec_t conn_sent_usec(const struct conn *c) {
    return c->sent_usec;
}
