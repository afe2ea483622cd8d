/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/client.h"

enum {
    CHUNK = 64 << 10,    /* one recv() */
    CHUNKS = 16,         /* a moe_process(): the caller's loop has other things to do */
    KEEP_MAX = 256 << 10 /* an idle buffer above this is given back */
};

_Static_assert(MOE_PATH_MAX == sizeof((struct sockaddr_un){ 0 }.sun_path), "a path fits");

static uint64_t now_usec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t after_usec(uint64_t usec) {
    uint64_t now = now_usec();

    return usec >= MOE_FOREVER - now ? MOE_FOREVER : now + usec;
}

const char *moe_version(void) {
    return MOE_VERSION;
}

/* Room for @n more bytes and a NUL behind what is there. Return: 0 or -ENOMEM. */
static int buf_reserve(struct client_buf *b, size_t n) {
    size_t need = b->to - b->from + n + 1, size = b->size ? b->size : CHUNK;
    char *p;

    if (b->from) {
        memmove(b->p, b->p + b->from, b->to - b->from);
        b->to -= b->from;
        b->from = 0;
    }
    if (need <= b->size)
        return 0;
    while (size < need)
        size *= 2;
    p = realloc(b->p, size);
    if (!p)
        return -ENOMEM;

    b->p = p;
    b->size = size;
    return 0;
}

/* A msgpack_packer_write. */
static int buf_write(void *data, const char *p, size_t n) {
    struct client_buf *b = data;

    b->failed = b->failed || buf_reserve(b, n) < 0;
    if (b->failed)
        return -1;
    memcpy(b->p + b->to, p, n);
    b->to += n;

    return 0;
}

static void buf_settle(struct client_buf *b) {
    if (b->from != b->to)
        return;
    b->from = b->to = 0;
    if (b->size > KEEP_MAX) {
        free(b->p);
        *b = (struct client_buf){ 0 };
    }
}

/* -- Opening and closing ----------------------------------------------------------------------- */

int moe_find_socket(const char *path, char *ret_path) {
    const char *run;
    int n;

    if (!path || !*path)
        path = secure_getenv("MOE_SOCKET");
    if (!path || !*path) {
        run = secure_getenv("XDG_RUNTIME_DIR");
        n = run && *run == '/' ? snprintf(ret_path, MOE_PATH_MAX, "%s/moed/rpc", run) : 0;
        if (n > 0 && n < MOE_PATH_MAX && !access(ret_path, F_OK))
            return 0;
        path = "/run/moed/rpc";
    }
    n = snprintf(ret_path, MOE_PATH_MAX, "%s", path);

    return n < MOE_PATH_MAX ? 0 : -ENAMETOOLONG;
}

int moe_open_fd(struct moe **ret_m, int fd) {
    struct moe *m;
    int flags;

    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return -errno;
    m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    m->fd = fd;
    wire_scan_init(&m->scan);
    msgpack_sbuffer_init(&m->kept.bytes);
    msgpack_unpacked_init(&m->kept.decoded);

    *ret_m = m;
    return 0;
}

int moe_open(struct moe **ret_m, const char *path) {
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd, r;

    r = moe_find_socket(path, addr.sun_path);
    if (r < 0)
        return r;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    do
        r = connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0 ? -errno : 0;
    while (r == -EINTR);
    if (!r)
        r = moe_open_fd(ret_m, fd);
    if (r < 0)
        (void)close(fd);

    return r;
}

/* Errors of our own, in the form of the service's. */
static struct moe_error local_error(int code, const char *name, const char *message) {
    return (struct moe_error){ .code = code,
                               .name = name,
                               .message = message,
                               .requested = -1,
                               .available = -1,
                               .need = -1,
                               .have = -1,
                               .retry_after_ms = -1,
                               .position = -1,
                               .limit = -1 };
}

static int64_t number(const struct moe_value *data, const char *key) {
    const struct moe_value *v = moe_get(data, key);

    return moe_type(v) == MOE_INT ? moe_int(v) : -1;
}

static struct moe_error service_error(const msgpack_object *o) {
    const struct moe_value *v = (const struct moe_value *)o, *data = moe_get(v, "data");
    const char *name = moe_str(moe_get(v, "name")), *message = moe_str(moe_get(v, "message"));
    int64_t code = moe_int(moe_get(v, "code"));

    return (struct moe_error){
        .code = code > 0 && code <= INT32_MAX ? (int)code : MOE_INTERNAL,
        .name = name ? name : "Internal",
        .message = message ? message : "the service gave no reason",
        .requested = number(data, "requested"),
        .available = number(data, "available"),
        .need = number(data, "need"),
        .have = number(data, "have"),
        .retry_after_ms = number(data, "retry_after_ms"),
        .position = number(data, "position"),
        .limit = number(data, "limit"),
        .data = data,
    };
}

static struct client_call *find(struct moe *m, uint32_t id) {
    for (size_t i = 0; i < m->n_call; i++)
        if (m->calls[i].id == id)
            return &m->calls[i];

    return NULL;
}

static struct client_call *find_live(struct moe *m, uint32_t id) {
    struct client_call *c = find(m, id);

    return c && !c->given_up ? c : NULL;
}

/* Take @c out of the table, and tell its owner. */
static void answer(struct moe *m, struct client_call *c, const struct moe_value *result,
                   const struct moe_error *error) {
    struct client_call call = *c;

    *c = m->calls[--m->n_call];
    if (call.reply && !call.given_up)
        call.reply(m, call.id, result, error, call.userdata);
}

/* Those on their way go nowhere any more. */
static void drop_files(struct moe *m) {
    while (m->n_file)
        (void)close(m->files[--m->n_file].fd);
}

/* The connection is over: everybody gets an answer. What the service said last is the reason. */
static int hang_up(struct moe *m, int r) {
    const char *message = r == -EPROTO ? "the service sent what is no message of the protocol"
                                       : "the service closed the connection";
    struct moe_error error =
        m->said.code ? m->said : local_error(MOE_DISCONNECTED, "Disconnected", message);

    m->over = r;
    m->answer = NULL;
    drop_files(m);
    while (m->n_call)
        answer(m, &m->calls[m->n_call - 1], NULL, &error);

    return r;
}

struct moe *moe_close(struct moe *m) {
    if (!m)
        return NULL;
    if (!m->over) {
        m->busy = true;
        (void)hang_up(m, -ENOTCONN);
    }
    (void)close(m->fd);
    free(m->in.p);
    free(m->out.p);
    msgpack_unpacked_destroy(&m->kept.decoded);
    msgpack_sbuffer_destroy(&m->kept.bytes);
    free(m);

    return NULL;
}

/* -- The loop ---------------------------------------------------------------------------------- */

int moe_fd(const struct moe *m) {
    return m->fd;
}

int moe_events(const struct moe *m) {
    if (m->over)
        return 0;

    return POLLIN | (m->out.from < m->out.to && !m->deaf ? POLLOUT : 0);
}

uint64_t moe_timeout(const struct moe *m) {
    uint64_t first = MOE_FOREVER, now;

    for (size_t i = 0; i < m->n_call; i++)
        if (!m->calls[i].given_up && m->calls[i].deadline < first)
            first = m->calls[i].deadline;
    if (first == MOE_FOREVER || m->over)
        return MOE_FOREVER;
    now = now_usec();

    return first > now ? first - now : 0;
}

static void put_fd(struct msghdr *h, int fd) {
    struct cmsghdr *c = CMSG_FIRSTHDR(h);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    (void)memcpy(CMSG_DATA(c), &fd, sizeof fd);
}

/* Send what is to be sent up to the next descriptor, or that one and what goes with it.
 * Return: bytes, or -1 as send(). */
static ssize_t send_some(struct moe *m) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    bool with_file = m->n_file && m->files[0].at == m->n_sent;
    const struct client_file *next = m->n_file > with_file ? &m->files[with_file] : NULL;
    size_t n = next ? (size_t)(next->at - m->n_sent) : m->out.to - m->out.from;
    struct iovec from = { m->out.p + m->out.from, n };
    struct msghdr h = { .msg_iov = &from, .msg_iovlen = 1 };
    ssize_t sent;

    if (with_file) {
        h.msg_control = &control;
        h.msg_controllen = sizeof control;
        put_fd(&h, m->files[0].fd);
    }
    sent = sendmsg(m->fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0)
        return sent;

    if (with_file) {
        (void)close(m->files[0].fd);
        memmove(m->files, m->files + 1, --m->n_file * sizeof *m->files);
    }
    m->out.from += (size_t)sent;
    m->n_sent += (size_t)sent;
    return sent;
}

void client_flush(struct moe *m) {
    while (m->out.from < m->out.to && !m->deaf && !m->over) {
        if (send_some(m) >= 0)
            continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            break;
        else if (errno != EINTR)
            m->deaf = true; /* why stands in what we have not read yet */
    }
    if (m->deaf) {
        m->out.from = m->out.to;
        drop_files(m);
    }
    buf_settle(&m->out);
}

static bool is_method(const struct wire_frame *f, const char *method) {
    return f->n_method == strlen(method) && !memcmp(f->method, method, f->n_method);
}

static void remember_said(struct moe *m, const msgpack_object *params) {
    struct moe_error e = service_error(params);

    (void)snprintf(m->said_name, sizeof m->said_name, "%s", e.name);
    (void)snprintf(m->said_message, sizeof m->said_message, "%s", e.message);
    m->said = local_error(e.code, m->said_name, m->said_message);
}

static void notified(struct moe *m, const struct wire_frame *f) {
    static const char family[] = "generate.";
    const struct moe_value *params = (const struct moe_value *)f->params;
    const struct moe_value *id = moe_get(params, "id");
    const struct client_call *c;
    char method[64];

    if (is_method(f, "rpc.error"))
        remember_said(m, f->params);
    if (f->n_method >= sizeof method)
        return;
    memcpy(method, f->method, f->n_method);
    method[f->n_method] = 0;

    if (!strncmp(method, family, sizeof family - 1)) {
        c = moe_uint(id) <= UINT32_MAX ? find_live(m, (uint32_t)moe_uint(id)) : NULL;
        if (c && c->notify)
            c->notify(m, method, params, c->userdata);
    } else if (m->notify) {
        m->notify(m, method, params, m->notify_userdata);
    }
}

static int answered(struct moe *m, const struct wire_frame *f) {
    struct client_call *c = find(m, f->msgid);
    struct moe_error error;

    if (!c)
        return -EPROTO;
    m->answer = f->error ? f->error : f->result;
    if (f->error)
        error = service_error(f->error);
    answer(m, c, (const struct moe_value *)f->result, f->error ? &error : NULL);
    m->answer = NULL;

    return 0;
}

/* One frame of @n bytes at @p; p[n] is writable, and as before afterwards. */
static int dispatch(struct moe *m, char *p, size_t n) {
    struct wire_frame f;
    msgpack_unpacked u;
    size_t off = 0;
    char next = p[n];
    int r = -EPROTO;

    msgpack_unpacked_init(&u);
    switch (msgpack_unpack_next(&u, p, n, &off)) {
    case MSGPACK_UNPACK_SUCCESS:
        if (wire_parse(&u.data, &f) || f.type == WIRE_REQUEST || !wire_utf8(&u.data))
            break;
        client_terminate(&u.data);
        r = 0;
        if (f.type == WIRE_RESPONSE)
            r = answered(m, &f);
        else
            notified(m, &f);
        break;
    case MSGPACK_UNPACK_NOMEM_ERROR:
        r = -ENOMEM;
        break;
    default:
        break;
    }
    msgpack_unpacked_destroy(&u);
    p[n] = next;

    return r;
}

static int dispatch_all(struct moe *m) {
    size_t len;
    int r;

    for (;;) {
        r = wire_scan(&m->scan, m->in.p + m->in.from, m->in.to - m->in.from, &len);
        if (r == WIRE_MORE)
            return 0;
        if (r)
            return -EPROTO;
        r = dispatch(m, m->in.p + m->in.from, len);
        if (r < 0)
            return r;
        m->in.from += len;
        wire_scan_init(&m->scan);
    }
}

static int receive(struct moe *m) {
    ssize_t n;
    int r;

    for (int i = 0; i < CHUNKS; i++) {
        r = buf_reserve(&m->in, CHUNK);
        if (r < 0)
            return r;
        n = recv(m->fd, m->in.p + m->in.to, CHUNK, MSG_DONTWAIT);
        if (n == 0)
            return -ECONNRESET;
        if (n < 0 && errno != EINTR)
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
        m->in.to += n > 0 ? (size_t)n : 0;
        r = dispatch_all(m);
        if (r < 0)
            return r;
        buf_settle(&m->in);
    }

    return 0;
}

/* The reply now; the answer, when it comes, is for nobody. */
static void give_up(struct moe *m, struct client_call *c) {
    struct moe_error error =
        local_error(MOE_NO_ANSWER, "NoAnswer", "the service did not answer in time");
    struct client_call call = *c;

    c->given_up = true;
    m->answer = NULL;
    if (call.reply)
        call.reply(m, call.id, NULL, &error, call.userdata);
}

static void expire(struct moe *m) {
    uint64_t now = now_usec();

    for (size_t i = 0; i < m->n_call; i++) {
        struct client_call *c = &m->calls[i];

        if (!c->given_up && c->deadline <= now)
            give_up(m, c);
    }
}

int moe_process(struct moe *m, int revents) {
    int r = 0;

    if (m->busy)
        return -EBUSY;
    if (m->over)
        return m->over;

    m->busy = true;
    client_flush(m);
    if (!revents || (revents & ~POLLOUT))
        r = receive(m);
    if (r < 0)
        (void)hang_up(m, r);
    expire(m);
    client_flush(m); /* what callbacks asked */
    m->busy = false;

    return r;
}

/* As moe_wait(); @mask as ppoll() takes it. */
static int wait_masked(struct moe *m, uint64_t usec, const sigset_t *mask) {
    static const struct timespec now;
    uint64_t own = m->over ? 0 : moe_timeout(m), wait = own < usec ? own : usec;
    struct pollfd p = { .fd = m->fd, .events = (short)moe_events(m) };
    struct timespec t = { .tv_sec = (time_t)(wait / 1000000),
                          .tv_nsec = (long)(wait % 1000000) * 1000 };
    int n;

    if (m->busy)
        return -EBUSY;
    if (m->over)
        return m->over;
    /* A signal first: a ppoll() that finds something to read leaves it pending. */
    n = mask ? ppoll(NULL, 0, &now, mask) : 0;
    if (n == 0)
        n = ppoll(&p, 1, wait == MOE_FOREVER ? NULL : &t, mask);
    if (n < 0)
        return -errno;
    if (!n && usec < own)
        return -ETIMEDOUT;

    return moe_process(m, p.revents);
}

int moe_wait(struct moe *m, uint64_t usec) {
    return wait_masked(m, usec, NULL);
}

/* -- Calls ------------------------------------------------------------------------------------- */

/* The frame behind the first @queued bytes to be sent is written: drop it when it is not whole or
 * breaks a limit. Return: 0, -ENOMEM, -EMSGSIZE. */
static int seal(struct moe *m, size_t queued) {
    size_t from = m->out.from + queued, len;
    struct wire_scan s;
    int r = m->out.failed ? -ENOMEM : 0;

    wire_scan_init(&s);
    if (!r && wire_scan(&s, m->out.p + from, m->out.to - from, &len))
        r = -EMSGSIZE;
    if (r < 0)
        m->out.to = from;
    m->out.failed = false;

    return r;
}

static int map_state(const struct moe_map *map) {
    if (!map)
        return 0;
    if (map->error)
        return map->error;

    return map->depth || map->int_key ? -EINVAL : 0;
}

static void pack_params(msgpack_packer *p, struct client_buf *out, const struct moe_map *a,
                        const struct moe_map *b) {
    const struct moe_map *maps[] = { a, b };
    size_t n = (a ? a->level[0].n : 0) + (size_t)(b ? b->level[0].n : 0);

    msgpack_pack_map(p, n);
    for (size_t i = 0; i < 2; i++)
        if (maps[i] && maps[i]->bytes.size)
            (void)buf_write(out, maps[i]->bytes.data, maps[i]->bytes.size);
}

static uint32_t new_id(struct moe *m) {
    do
        m->last_id++;
    while (find(m, m->last_id));

    return m->last_id;
}

int client_call2(struct moe *m, const char *method, const struct moe_map *a,
                 const struct moe_map *b, moe_reply_fn reply, moe_notify_fn notify, void *userdata,
                 uint32_t *ret_id) {
    msgpack_packer p;
    size_t queued = m->out.to - m->out.from;
    uint32_t id;
    int r;

    if (m->over || m->deaf)
        return -ENOTCONN;
    r = map_state(a) ? map_state(a) : map_state(b);
    if (r < 0)
        return r;
    if (m->n_call == WIRE_OUTSTANDING_MAX || queued > WIRE_FRAME_MAX)
        return -EAGAIN;

    id = new_id(m);
    msgpack_packer_init(&p, &m->out, buf_write);
    wire_pack_request(&p, id, method);
    pack_params(&p, &m->out, a, b);
    r = seal(m, queued);
    if (r < 0)
        return r;
    m->calls[m->n_call++] = (struct client_call){
        .id = id, .reply = reply, .notify = notify, .userdata = userdata, .deadline = MOE_FOREVER
    };

    if (ret_id)
        *ret_id = id;
    return 0;
}

int moe_call(struct moe *m, const char *method, const struct moe_map *params, moe_reply_fn reply,
             moe_notify_fn notify, void *userdata, uint32_t *ret_id) {
    return client_call2(m, method, params, NULL, reply, notify, userdata, ret_id);
}

int client_call_fd(struct moe *m, const char *method, const struct moe_map *params, int fd,
                   moe_reply_fn reply, void *userdata, uint32_t *ret_id) {
    struct client_file f = { m->n_sent + (m->out.to - m->out.from), -1 };
    int r;

    if (m->n_file == WIRE_OUTSTANDING_MAX)
        return -EAGAIN;
    f.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (f.fd < 0)
        return -errno;
    r = client_call2(m, method, params, NULL, reply, NULL, userdata, ret_id);
    if (r < 0) {
        (void)close(f.fd);
        return r;
    }

    m->files[m->n_file++] = f;
    return 0;
}

int moe_cancel(struct moe *m, uint32_t id) {
    size_t queued = m->out.to - m->out.from;
    msgpack_packer p;

    if (!find(m, id))
        return -ENOENT;
    if (m->deaf)
        return 0; /* the hang-up that cancels it is on its way */
    msgpack_packer_init(&p, &m->out, buf_write);
    wire_pack_notify(&p, "generate.cancel");
    msgpack_pack_map(&p, 1);
    wire_pack_str(&p, "id");
    msgpack_pack_uint32(&p, id);

    return seal(m, queued);
}

int moe_set_deadline(struct moe *m, uint32_t id, uint64_t usec) {
    struct client_call *c = find_live(m, id);

    if (!c)
        return -ENOENT;
    c->deadline = after_usec(usec);
    return 0;
}

void moe_set_notify(struct moe *m, moe_notify_fn notify, void *userdata) {
    m->notify = notify;
    m->notify_userdata = userdata;
}

/* -- Waiting ----------------------------------------------------------------------------------- */

const struct moe_error *moe_last_error(const struct moe *m) {
    return m->kept.failed ? &m->kept.error : NULL;
}

const struct moe_value *client_kept_value(const struct moe *m) {
    return (const struct moe_value *)&m->kept.decoded.data;
}

int client_keep(struct moe *m, const struct moe_error *error) {
    struct client_kept *k = &m->kept;
    msgpack_packer p;
    size_t off = 0;

    k->failed = error;
    if (!m->answer) { /* an error of our own: its strings live as long as the connection */
        k->error = *error;
        return 0;
    }

    msgpack_sbuffer_clear(&k->bytes);
    msgpack_packer_init(&p, &k->bytes, msgpack_sbuffer_write);
    if (msgpack_pack_object(&p, *m->answer) || msgpack_pack_nil(&p)) /* nil: room for a NUL */
        return -ENOMEM;
    if (msgpack_unpack_next(&k->decoded, k->bytes.data, k->bytes.size, &off) !=
        MSGPACK_UNPACK_SUCCESS)
        return -ENOMEM;
    wire_mend(&k->decoded.data);
    client_terminate(&k->decoded.data);
    if (error)
        k->error = service_error(&k->decoded.data);

    return 0;
}

int client_run(struct moe *m, const bool *done, uint32_t id) {
    struct client_call *c;
    sigset_t all, mask;
    int r = 0;

    /* A signal between two waits must end the next one: it is let in by ppoll() alone. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &mask);
    while (!*done && r >= 0)
        r = wait_masked(m, MOE_FOREVER, &mask);
    (void)pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (*done)
        return 0; /* what ended the connection has ended the call, too */

    c = find_live(m, id);
    if (c)
        give_up(m, c);
    m->kept.failed = false;
    return r;
}

void client_waited(struct moe *m, uint32_t id, const struct moe_value *result,
                   const struct moe_error *error, void *userdata) {
    struct client_waiter *w = userdata;

    (void)id;
    (void)result;
    w->r = client_keep(m, error);
    w->done = true;
}

int client_await(struct moe *m, struct client_waiter *w, uint32_t id, uint64_t usec,
                 const struct moe_value **ret_result) {
    int r;

    (void)moe_set_deadline(m, id, usec);
    r = client_run(m, &w->done, id);
    if (r < 0 || w->r < 0)
        return r < 0 ? r : w->r;
    if (m->kept.failed)
        return -EREMOTEIO;

    if (ret_result)
        *ret_result = client_kept_value(m);
    return 0;
}

int client_call2_wait(struct moe *m, const char *method, const struct moe_map *a,
                      const struct moe_map *b, uint64_t usec, const struct moe_value **ret_result) {
    struct client_waiter w = { 0 };
    uint32_t id;
    int r;

    if (m->busy)
        return -EBUSY;
    m->kept.failed = false;
    r = client_call2(m, method, a, b, client_waited, NULL, &w, &id);
    return r < 0 ? r : client_await(m, &w, id, usec, ret_result);
}

int moe_call_wait(struct moe *m, const char *method, const struct moe_map *params, uint64_t usec,
                  const struct moe_value **ret_result) {
    return client_call2_wait(m, method, params, NULL, usec, ret_result);
}
