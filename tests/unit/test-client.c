/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/moe.h"
#include "client/wire.h"

/* Both ends in one thread: @m is under test, @fd is the service that the test plays. */
struct fixture {
    struct moe *m;
    int fd;
    msgpack_sbuffer out;
    msgpack_packer p;
    char in[1 << 20];
    size_t n_in;
    msgpack_unpacked got;
    struct wire_frame frame; /* of the last request or notification */
};

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(moe_open_fd(&f->m, fds[0]), 0);
    f->fd = fds[1];
    msgpack_sbuffer_init(&f->out);
    msgpack_packer_init(&f->p, &f->out, msgpack_sbuffer_write);
    msgpack_unpacked_init(&f->got);
    *state = f;

    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;

    moe_close(f->m);
    if (f->fd >= 0)
        (void)close(f->fd);
    msgpack_sbuffer_destroy(&f->out);
    msgpack_unpacked_destroy(&f->got);
    free(f);

    return 0;
}

/* The next frame the client sent; fails when there is none. */
static const struct wire_frame *receive(struct fixture *f) {
    struct wire_scan s;
    size_t len = 0, off = 0;
    ssize_t n;

    n = recv(f->fd, f->in + f->n_in, sizeof f->in - f->n_in, MSG_DONTWAIT);
    f->n_in += n > 0 ? (size_t)n : 0;
    wire_scan_init(&s);
    assert_int_equal(wire_scan(&s, f->in, f->n_in, &len), 0);
    /* Decoded from a copy that stays while the frame is looked at. */
    msgpack_sbuffer_clear(&f->out);
    msgpack_sbuffer_write(&f->out, f->in, len);
    memmove(f->in, f->in + len, f->n_in - len);
    f->n_in -= len;
    assert_int_equal(msgpack_unpack_next(&f->got, f->out.data, len, &off), MSGPACK_UNPACK_SUCCESS);
    assert_int_equal(wire_parse(&f->got.data, &f->frame), 0);

    return &f->frame;
}

static bool nothing_sent(struct fixture *f) {
    char c;

    return recv(f->fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
}

static void send_bytes(struct fixture *f, const void *p, size_t n) {
    assert_int_equal(send(f->fd, p, n, MSG_NOSIGNAL), (ssize_t)n);
}

static void flush(struct fixture *f) {
    send_bytes(f, f->out.data, f->out.size);
    msgpack_sbuffer_clear(&f->out);
}

static void put_uint(struct fixture *f, const char *key, uint64_t v) {
    wire_pack_str(&f->p, key);
    msgpack_pack_uint64(&f->p, v);
}

static void put_str(struct fixture *f, const char *key, const char *v) {
    wire_pack_str(&f->p, key);
    wire_pack_str(&f->p, v);
}

static void put_result(struct fixture *f, uint32_t id, const char *key, const char *v) {
    wire_pack_result(&f->p, id);
    msgpack_pack_map(&f->p, 1);
    put_str(f, key, v);
}

static void put_delta(struct fixture *f, uint32_t id, uint64_t seq, const char *kind,
                      const char *text) {
    wire_pack_notify(&f->p, "generate.delta");
    msgpack_pack_map(&f->p, 4);
    put_uint(f, "id", id);
    put_uint(f, "seq", seq);
    put_str(f, "kind", kind);
    put_str(f, "text", text);
}

static void put_error(struct fixture *f, uint32_t id, int code, const char *name) {
    wire_pack_error(&f->p, id);
    msgpack_pack_map(&f->p, 4);
    put_uint(f, "code", (uint64_t)code);
    put_str(f, "name", name);
    put_str(f, "message", "try later");
    wire_pack_str(&f->p, "data");
    msgpack_pack_map(&f->p, 2);
    put_uint(f, "retry_after_ms", 1500);
    put_uint(f, "position", 3);
    msgpack_pack_nil(&f->p);
}

/* What callbacks saw, as one line. */
struct seen {
    char text[4096];
    int n_reply, code;
    uint32_t cancel_at; /* cancel the call when its first delta comes */
    bool ask_again;
};

static void add(struct seen *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct seen *s, const char *fmt, ...) {
    size_t n = strlen(s->text);
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(s->text + n, sizeof s->text - n, fmt, ap);
    va_end(ap);
}

static void on_reply(struct moe *m, uint32_t id, const struct moe_value *result,
                     const struct moe_error *error, void *userdata) {
    struct seen *s = userdata;

    assert_true(!result != !error);
    s->n_reply++;
    s->code = error ? error->code : 0;
    add(s, "%u:%s ", id, error ? error->name : moe_str(moe_get(result, "v")));
    assert_int_equal(moe_process(m, 0), -EBUSY);
    assert_int_equal(moe_wait(m, 0), -EBUSY);
    assert_int_equal(moe_call_wait(m, "x", NULL, 0, NULL), -EBUSY);
    if (s->ask_again) {
        s->ask_again = false;
        assert_int_equal(moe_call(m, "again", NULL, on_reply, NULL, s, NULL),
                         error ? -ENOTCONN : 0);
    }
}

static void on_notify(struct moe *m, const char *method, const struct moe_value *params,
                      void *userdata) {
    (void)m;
    add(userdata, "%s(%s) ", method, moe_str(moe_get(params, "text")));
}

static void test_request_on_the_wire(void **state) {
    struct fixture *f = *state;
    struct moe_map *map = moe_map_new();
    const struct wire_frame *w;
    const msgpack_object *v;
    uint32_t id;

    moe_map_str(map, "text", "h\xc3\xa4");
    moe_map_bool(map, "yes", true);
    moe_map_int(map, "minus", -7);
    moe_map_uint(map, "most", UINT64_MAX);
    moe_map_float(map, "half", 0.5);
    moe_map_open_array(map, "list");
    moe_map_str(map, NULL, "a");
    moe_map_open_map(map, NULL);
    moe_map_int_key(map, 5);
    moe_map_float(map, NULL, -1.5);
    moe_map_end(map);
    moe_map_end(map);
    moe_map_str_n(map, "bytes", "a\0b", 3);
    assert_int_equal(moe_events(f->m), POLLIN);
    assert_int_equal(moe_call(f->m, "m", map, NULL, NULL, NULL, &id), 0);
    moe_map_free(map);
    assert_true(nothing_sent(f));
    assert_int_equal(moe_events(f->m), POLLIN | POLLOUT);
    assert_int_equal(moe_process(f->m, POLLOUT), 0);
    assert_int_equal(moe_events(f->m), POLLIN);

    w = receive(f);
    assert_int_equal(w->type, WIRE_REQUEST);
    assert_int_equal(w->msgid, id);
    assert_int_equal(w->params->via.map.size, 7);
    assert_memory_equal(wire_get(w->params, "text")->via.str.ptr, "h\xc3\xa4", 3);
    assert_true(wire_get(w->params, "yes")->via.boolean);
    assert_int_equal(wire_get(w->params, "minus")->via.i64, -7);
    assert_true(wire_get(w->params, "most")->via.u64 == UINT64_MAX);
    assert_true(wire_get(w->params, "half")->via.f64 == 0.5);
    v = wire_get(w->params, "list");
    assert_int_equal(v->via.array.size, 2);
    v = &v->via.array.ptr[1];
    assert_int_equal(v->via.map.ptr[0].key.via.u64, 5);
    assert_true(v->via.map.ptr[0].val.via.f64 == -1.5);
    assert_int_equal(wire_get(w->params, "bytes")->via.str.size, 3);
}

static void test_maps_written_wrong(void **state) {
    struct fixture *f = *state;

    for (int i = 0; i < 9; i++) {
        struct moe_map *map = moe_map_new();
        int want = -EINVAL;

        if (i == 0)
            moe_map_int(map, NULL, 1); /* no key in a map */
        if (i == 1)
            moe_map_open_array(map, "a"); /* not ended */
        if (i == 2)
            moe_map_end(map); /* not opened */
        if (i == 3) {
            moe_map_open_array(map, "a");
            moe_map_int(map, "k", 1); /* a key in an array */
            moe_map_end(map);
        }
        if (i == 4)
            moe_map_int_key(map, 1); /* and no value */
        if (i == 5) {
            moe_map_int_key(map, 1);
            moe_map_int(map, "two keys", 1);
        }
        if (i == 6)
            moe_map_str(map, "k", NULL);
        if (i == 7) {
            want = -EMSGSIZE;
            for (int k = 0; k < 20; k++)
                moe_map_open_map(map, "deep");
            for (int k = 0; k < 20; k++)
                moe_map_end(map);
        }
        if (i == 8) {
            want = -EMSGSIZE;
            moe_map_open_array(map, "many");
            for (int k = 0; k < WIRE_ELEMENT_MAX; k++)
                moe_map_int(map, NULL, k);
            moe_map_end(map);
        }
        assert_int_equal(moe_call(f->m, "m", map, NULL, NULL, NULL, NULL), want);
        moe_map_free(map);
    }
    /* Nothing of them is left to be sent. */
    assert_int_equal(moe_events(f->m), POLLIN);
    moe_map_int(NULL, "k", 1);
    moe_map_end(NULL);
    assert_null(moe_map_free(NULL));
}

static void test_depth_edge(void **state) {
    struct fixture *f = *state;

    /* frame, params and the map itself are three levels */
    for (int n = WIRE_DEPTH_MAX - 3; n <= WIRE_DEPTH_MAX - 2; n++) {
        struct moe_map *map = moe_map_new();

        for (int k = 0; k < n; k++)
            moe_map_open_array(map, k ? NULL : "a");
        for (int k = 0; k < n; k++)
            moe_map_end(map);
        assert_int_equal(moe_call(f->m, "m", map, NULL, NULL, NULL, NULL),
                         n == WIRE_DEPTH_MAX - 3 ? 0 : -EMSGSIZE);
        moe_map_free(map);
    }
}

static void test_answers_in_any_order(void **state) {
    struct fixture *f = *state;
    struct seen s = { .ask_again = true };
    uint32_t a, b, c;

    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, &a), 0);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, &b), 0);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, &c), 0);
    assert_true(a == 1 && b == 2 && c == 3);
    assert_int_equal(moe_process(f->m, POLLOUT), 0);
    for (int i = 0; i < 3; i++)
        receive(f);
    msgpack_sbuffer_clear(&f->out);
    put_result(f, c, "v", "third");
    put_error(f, a, MOE_BUSY, "Busy");
    put_result(f, b, "v", "second");
    s.ask_again = true;
    flush(f);
    assert_int_equal(moe_process(f->m, POLLIN), 0);
    assert_string_equal(s.text, "3:third 1:Busy 2:second ");
    /* The call that a callback started has been sent, too. */
    assert_int_equal(receive(f)->n_method, 5);
    f->m = moe_close(f->m);
    assert_string_equal(s.text, "3:third 1:Busy 2:second 4:Disconnected ");
}

static void test_byte_by_byte(void **state) {
    struct fixture *f = *state;
    struct seen s = { 0 };
    uint32_t id;

    assert_int_equal(moe_call(f->m, "generate", NULL, on_reply, on_notify, &s, &id), 0);
    put_delta(f, id, 0, "text", "abc");
    put_delta(f, id + 1, 0, "text", "another's");
    put_result(f, id, "v", "end");
    for (size_t i = 0; i < f->out.size; i++) {
        send_bytes(f, f->out.data + i, 1);
        assert_int_equal(moe_process(f->m, POLLIN), 0);
    }
    assert_string_equal(s.text, "generate.delta(abc) 1:end ");
}

static void test_notifications_of_nobody(void **state) {
    struct fixture *f = *state;
    struct seen s = { 0 };

    moe_set_notify(f->m, on_notify, &s);
    for (int i = 0; i < 2; i++) {
        wire_pack_notify(&f->p, i ? "a.method.with.a.name.longer.than.any.method.that.there.is.ever"
                                  : "job.progress");
        msgpack_pack_map(&f->p, 1);
        put_str(f, "text", "x");
    }
    flush(f);
    assert_int_equal(moe_process(f->m, POLLIN), 0);
    assert_non_null(strstr(s.text, "job.progress(x) "));
}

static void test_errors_have_numbers(void **state) {
    struct fixture *f = *state;
    const struct moe_error *e;
    const struct moe_value *v = NULL;

    assert_null(moe_last_error(f->m));
    put_error(f, 1, MOE_BUSY, "Busy");
    flush(f);
    assert_int_equal(moe_call_wait(f->m, "m", NULL, MOE_FOREVER, &v), -EREMOTEIO);
    assert_null(v);
    e = moe_last_error(f->m);
    assert_non_null(e);
    assert_int_equal(e->code, MOE_BUSY);
    assert_string_equal(e->name, "Busy");
    assert_string_equal(e->message, "try later");
    assert_int_equal(e->retry_after_ms, 1500);
    assert_int_equal(e->position, 3);
    assert_int_equal(e->requested, -1);
    assert_int_equal(e->limit, -1);
    assert_int_equal(moe_uint(moe_get(e->data, "position")), 3);

    put_result(f, 2, "v", "fine");
    flush(f);
    assert_int_equal(moe_call_wait(f->m, "m", NULL, MOE_FOREVER, &v), 0);
    assert_null(moe_last_error(f->m));
    assert_string_equal(moe_str(moe_get(v, "v")), "fine");
}

static void test_errors_without_form(void **state) {
    struct fixture *f = *state;
    const struct moe_error *e;

    wire_pack_error(&f->p, 1);
    msgpack_pack_map(&f->p, 1);
    put_str(f, "code", "no number");
    msgpack_pack_nil(&f->p);
    flush(f);
    assert_int_equal(moe_call_wait(f->m, "m", NULL, MOE_FOREVER, NULL), -EREMOTEIO);
    e = moe_last_error(f->m);
    assert_int_equal(e->code, MOE_INTERNAL);
    assert_non_null(e->name);
    assert_non_null(e->message);
    assert_null(e->data);
}

static void test_reading(void **state) {
    struct fixture *f = *state;
    const struct moe_value *v, *list;

    wire_pack_result(&f->p, 1);
    msgpack_pack_map(&f->p, 6);
    put_str(f, "text", ""); /* after which nothing may be written through where it points */
    wire_pack_str(&f->p, "list");
    msgpack_pack_array(&f->p, 6);
    msgpack_pack_uint64(&f->p, UINT64_MAX);
    msgpack_pack_int64(&f->p, INT64_MIN);
    msgpack_pack_float(&f->p, 0.25f);
    wire_pack_str(&f->p, "");
    wire_pack_str(&f->p, "next to it");
    msgpack_pack_true(&f->p);
    wire_pack_str(&f->p, "bin");
    msgpack_pack_bin(&f->p, 2);
    msgpack_pack_bin_body(&f->p, "\xff\0", 2);
    put_str(f, "s", "end");
    wire_pack_str(&f->p, "nil");
    msgpack_pack_nil(&f->p);
    wire_pack_str(&f->p, "map");
    msgpack_pack_map(&f->p, 1);
    msgpack_pack_int(&f->p, 9);
    wire_pack_str(&f->p, "nine");
    flush(f);
    assert_int_equal(moe_call_wait(f->m, "m", NULL, MOE_FOREVER, &v), 0);

    assert_string_equal(moe_str(moe_get(v, "text")), "");
    list = moe_get(v, "list");
    assert_int_equal(moe_type(list), MOE_ARRAY);
    assert_int_equal(moe_size(list), 6);
    assert_true(moe_uint(moe_at(list, 0)) == UINT64_MAX);
    assert_true(moe_int(moe_at(list, 0)) == INT64_MAX);
    assert_true(moe_int(moe_at(list, 1)) == INT64_MIN);
    assert_true(moe_uint(moe_at(list, 1)) == 0);
    assert_true(moe_float(moe_at(list, 1)) == (double)INT64_MIN);
    assert_true(moe_float(moe_at(list, 2)) == 0.25);
    assert_int_equal(moe_int(moe_at(list, 2)), 0);
    assert_string_equal(moe_str(moe_at(list, 3)), "");
    assert_string_equal(moe_str(moe_at(list, 4)), "next to it");
    assert_true(moe_bool(moe_at(list, 5)));
    assert_null(moe_at(list, 6));
    assert_null(moe_get(list, "x"));
    assert_null(moe_key_at(list, 0));
    assert_int_equal(moe_type(moe_get(v, "bin")), MOE_BIN);
    assert_int_equal(moe_size(moe_get(v, "bin")), 2);
    assert_memory_equal(moe_bin(moe_get(v, "bin")), "\xff\0", 2);
    assert_null(moe_str(moe_get(v, "bin")));
    assert_int_equal(moe_type(moe_get(v, "nil")), MOE_NIL);
    assert_int_equal(moe_size(v), 6);
    assert_string_equal(moe_str(moe_key_at(v, 3)), "s");
    assert_string_equal(moe_str(moe_at(v, 3)), "end");
    assert_int_equal(moe_int(moe_key_at(moe_get(v, "map"), 0)), 9);
    /* Absent things read as nothing, at any depth. */
    assert_int_equal(moe_type(NULL), MOE_NIL);
    assert_int_equal(moe_uint(moe_get(moe_get(v, "no"), "such")), 0);
    assert_null(moe_str(NULL));
    assert_int_equal(moe_size(NULL), 0);
}

static void test_empty_text(void **state) {
    struct fixture *f = *state;
    const struct moe_value *v;

    /* Behind a str and before any: msgpack-c has a stale pointer for it, or none. */
    wire_pack_result(&f->p, 1);
    msgpack_pack_map(&f->p, 3);
    put_str(f, "", "first");
    put_str(f, "before", "");
    wire_pack_str(&f->p, "bin");
    msgpack_pack_bin(&f->p, 0);
    flush(f);
    assert_int_equal(moe_call_wait(f->m, "m", NULL, MOE_FOREVER, &v), 0);
    assert_string_equal(moe_str(moe_key_at(v, 0)), "");
    assert_string_equal(moe_str(moe_get(v, "")), "first");
    assert_string_equal(moe_str(moe_key_at(v, 1)), "before");
    assert_string_equal(moe_str(moe_get(v, "before")), "");
    assert_int_equal(moe_size(moe_get(v, "bin")), 0);
    assert_non_null(moe_bin(moe_get(v, "bin")));
}

static void on_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    struct seen *s = userdata;

    assert_int_equal(strlen(d->text), d->n_text);
    add(s, "%s%d:%s ", d->thought ? "thought" : "text", (int)d->seq, d->text);
    if (s->cancel_at) {
        assert_int_equal(moe_cancel(m, id), 0);
        assert_int_equal(moe_cancel(m, id), 0);
        s->cancel_at = 0;
    }
}

static void on_progress(struct moe *m, uint32_t id, const char *stage, uint64_t done,
                        uint64_t total, void *userdata) {
    (void)m;
    (void)id;
    add(userdata, "%s %d/%d ", stage, (int)done, (int)total);
}

static void on_done(struct moe *m, uint32_t id, const struct moe_result *result,
                    const struct moe_error *error, void *userdata) {
    struct seen *s = userdata;

    (void)m;
    assert_true(!result != !error);
    s->n_reply++;
    s->code = error ? error->code : 0;
    add(s, "done%u:%s ", id, error ? error->name : result->stop_reason);
}

static void put_answer(struct fixture *f, uint32_t id) {
    wire_pack_result(&f->p, id);
    msgpack_pack_map(&f->p, 7);
    put_str(f, "text", "all of it");
    put_str(f, "stop_reason", "length");
    put_str(f, "stop", "END");
    put_str(f, "model", "tiny");
    put_uint(f, "seed", 42);
    wire_pack_str(&f->p, "usage");
    msgpack_pack_map(&f->p, 4);
    put_uint(f, "prompt", 10);
    put_uint(f, "cached", 4);
    put_uint(f, "generated", 3);
    put_uint(f, "dropped", 1);
    wire_pack_str(&f->p, "timings");
    msgpack_pack_map(&f->p, 3);
    put_uint(f, "queue_us", 5);
    put_uint(f, "prefill_us", 6);
    put_uint(f, "decode_us", 7);
}

static void check_generate_params(const struct wire_frame *w) {
    const msgpack_object *v = wire_get(w->params, "messages");

    assert_memory_equal(w->method, "generate", 8);
    assert_int_equal(v->via.array.size, 2);
    assert_memory_equal(wire_get(&v->via.array.ptr[1], "content")->via.str.ptr, "hi", 2);
    assert_int_equal(wire_get(w->params, "stop")->via.array.size, 2);
    assert_true(wire_get(w->params, "seed")->via.u64 == UINT64_MAX);
    assert_true(wire_get(w->params, "temperature")->via.f64 == 0);
    assert_int_equal(wire_get(w->params, "top_k")->via.u64, 0);
    assert_int_equal(wire_get(w->params, "max_tokens")->via.u64, 30);
    assert_true(wire_get(w->params, "thinking")->via.boolean);
    assert_memory_equal(wire_get(w->params, "priority")->via.str.ptr, "background", 10);
    assert_true(wire_get(w->params, "stream")->via.boolean);
    assert_int_equal(wire_get(w->params, "logit_bias")->via.map.size, 1);
    assert_null(wire_get(w->params, "top_p"));
    assert_null(wire_get(w->params, "echo"));
    assert_null(wire_get(w->params, "logprobs"));
    assert_null(wire_get(w->params, "deadline_ms"));
}

static void test_generate_wait(void **state) {
    struct fixture *f = *state;
    struct moe_generate g = MOE_GENERATE_INIT;
    const struct moe_message messages[] = { { "system", "be short" }, { "user", "hi" } };
    const char *stop[] = { "END", "###" };
    const uint64_t seed = UINT64_MAX;
    const struct moe_result *result = NULL;
    struct moe_map *more = moe_map_new();
    struct seen s = { 0 };

    moe_map_open_map(more, "logit_bias");
    moe_map_int_key(more, 7);
    moe_map_float(more, NULL, -2);
    moe_map_end(more);
    g.messages = messages;
    g.n_messages = 2;
    g.stop = stop;
    g.n_stop = 2;
    g.seed = &seed;
    g.temperature = 0;
    g.top_k = 0;
    g.max_tokens = 30;
    g.thinking = true;
    g.priority = "background";
    g.more = more;
    g.on_delta = on_delta;
    g.on_progress = on_progress;
    g.userdata = &s;

    wire_pack_notify(&f->p, "generate.progress");
    msgpack_pack_map(&f->p, 4);
    put_uint(f, "id", 1);
    put_str(f, "stage", "prefill");
    put_uint(f, "done", 1);
    put_uint(f, "total", 2);
    put_delta(f, 1, 0, "thought", "hm");
    put_delta(f, 1, 1, "text", "yes");
    put_delta(f, 1, 2, "kind of a newer service", "?");
    put_answer(f, 1);
    flush(f);
    assert_int_equal(moe_generate_wait(f->m, &g, &result), 0);
    assert_string_equal(s.text, "prefill 1/2 thought0:hm text1:yes ");
    assert_string_equal(result->text, "all of it");
    assert_int_equal(result->n_text, 9);
    assert_null(result->thought);
    assert_string_equal(result->stop_reason, "length");
    assert_string_equal(result->stop, "END");
    assert_string_equal(result->model, "tiny");
    assert_int_equal(result->seed, 42);
    assert_true(result->n_prompt == 10 && result->n_cached == 4 && result->n_generated == 3 &&
                result->n_dropped == 1);
    assert_true(result->queue_usec == 5 && result->prefill_usec == 6 && result->decode_usec == 7);

    check_generate_params(receive(f));
    moe_map_free(more);
}

static void test_generate_takes_one_input(void **state) {
    struct fixture *f = *state;
    struct moe_generate g = MOE_GENERATE_INIT;
    const uint32_t tokens[] = { 1, 2, 3 };

    assert_int_equal(moe_generate(f->m, &g, NULL, NULL), -EINVAL);
    g.prompt = "p";
    g.tokens = tokens;
    g.n_tokens = 3;
    assert_int_equal(moe_generate(f->m, &g, NULL, NULL), -EINVAL);
    g.prompt = NULL;
    g.size--;
    assert_int_equal(moe_generate(f->m, &g, NULL, NULL), -EINVAL);
    assert_int_equal(moe_generate_wait(f->m, &g, NULL), -EINVAL);
    g.size++;
    assert_int_equal(moe_generate(f->m, &g, NULL, NULL), 0);
    assert_int_equal(moe_process(f->m, POLLOUT), 0);
    assert_int_equal(wire_get(receive(f)->params, "tokens")->via.array.size, 3);
    assert_null(wire_get(f->frame.params, "stream"));
}

static void test_cancel(void **state) {
    struct fixture *f = *state;
    struct moe_generate g = MOE_GENERATE_INIT;
    struct seen s = { .cancel_at = 1 };
    const struct wire_frame *w;
    uint32_t id;

    g.prompt = "p";
    g.on_delta = on_delta;
    g.userdata = &s;
    assert_int_equal(moe_cancel(f->m, 1), -ENOENT);
    assert_int_equal(moe_generate(f->m, &g, on_done, &id), 0);
    assert_int_equal(moe_process(f->m, POLLOUT), 0);
    receive(f);
    msgpack_sbuffer_clear(&f->out);
    put_delta(f, id, 0, "text", "a");
    flush(f);
    assert_int_equal(moe_process(f->m, POLLIN), 0);
    w = receive(f);
    assert_int_equal(w->type, WIRE_NOTIFY);
    assert_int_equal(w->n_method, strlen("generate.cancel"));
    assert_memory_equal(w->method, "generate.cancel", w->n_method);
    assert_int_equal(wire_get(w->params, "id")->via.u64, id);
    /* Deltas still come, and one reply does. */
    msgpack_sbuffer_clear(&f->out);
    put_delta(f, id, 1, "text", "b");
    put_error(f, id, MOE_CANCELLED, "Cancelled");
    flush(f);
    assert_int_equal(moe_process(f->m, POLLIN), 0);
    assert_string_equal(s.text, "text0:a text1:b done1:Cancelled ");
    assert_int_equal(moe_cancel(f->m, id), -ENOENT);
}

static void test_hang_up(void **state) {
    struct fixture *f = *state;
    struct seen s = { 0 };
    struct moe_generate g = MOE_GENERATE_INIT;

    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), 0);
    g.prompt = "p";
    g.userdata = &s;
    assert_int_equal(moe_generate(f->m, &g, on_done, NULL), 0);
    assert_int_equal(moe_process(f->m, POLLOUT), 0);
    /* An answer on the way is still taken; half a frame is not waited for. */
    put_result(f, 1, "v", "last");
    put_delta(f, 2, 0, "text", "cut");
    f->out.size -= 2;
    flush(f);
    (void)close(f->fd);
    f->fd = -1;
    s.ask_again = false;
    assert_int_equal(moe_process(f->m, POLLIN), -ECONNRESET);
    assert_string_equal(s.text, "1:last done2:Disconnected ");
    assert_int_equal(s.code, MOE_DISCONNECTED);
    assert_int_equal(moe_process(f->m, POLLIN), -ECONNRESET);
    assert_int_equal(moe_wait(f->m, MOE_FOREVER), -ECONNRESET);
    assert_int_equal(moe_events(f->m), 0);
    assert_true(moe_timeout(f->m) == MOE_FOREVER);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), -ENOTCONN);
    assert_int_equal(s.n_reply, 2);
}

static void test_hang_up_with_a_reason(void **state) {
    struct fixture *f = *state;
    const struct moe_error *e;

    wire_pack_notify(&f->p, "rpc.error");
    msgpack_pack_map(&f->p, 3);
    put_uint(f, "code", MOE_ACCESS_DENIED);
    put_str(f, "name", "AccessDenied");
    put_str(f, "message", "not for you");
    flush(f);
    (void)close(f->fd); /* so the request can not be written: no SIGPIPE, and the reason is read */
    f->fd = -1;
    assert_int_equal(moe_call_wait(f->m, "m", NULL, MOE_FOREVER, NULL), -EREMOTEIO);
    e = moe_last_error(f->m);
    assert_int_equal(e->code, MOE_ACCESS_DENIED);
    assert_string_equal(e->message, "not for you");
    assert_string_equal(e->name, "AccessDenied");
}

static void test_close_answers(void **state) {
    struct fixture *f = *state;
    struct seen s = { .ask_again = true };

    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), 0);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), 0);
    f->m = moe_close(f->m);
    assert_null(f->m);
    assert_int_equal(s.n_reply, 2);
    assert_int_equal(s.code, MOE_DISCONNECTED);
}

/* Each is sent to a client with one call outstanding, which must give the connection up. */
static void test_malformed_service(void **state) {
    static const struct {
        const char *bytes;
        size_t n;
    } rows[] = {
#define ROW(s_) { s_, sizeof s_ - 1 }
        ROW("HTTP/1.1 200 OK\r\n\r\n"),
        ROW("\xc1"),
        ROW("\xdd\xff\xff\xff\xff"),
        ROW("\x93\x02\xa1m\x91\xdd\xff\xff\xff\xff"),
        ROW("\x93\x02\xa1m\x91\xdb\xff\xff\xff\xff"),
        ROW("\x93\x02\xa1m\x91\xc7\x01\x01\x01"),
        ROW("\x94\x00\x01\xa1m\x91\x80"),            /* a request */
        ROW("\x94\x01\x07\xc0\x80"),                 /* an answer to nothing */
        ROW("\x94\x01\x01\xc0\x90"),                 /* result is no map */
        ROW("\x94\x01\x01\xc0\xc0"),                 /* neither */
        ROW("\x94\x01\x01\xc0\x81\xa1v\xa1\xff"),    /* no UTF-8 */
        ROW("\x94\x01\xcf\0\0\0\1\0\0\0\1\xc0\x80"), /* msgid of 33 bits */
#undef ROW
    };

    teardown(state);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct seen s = { 0 };
        struct fixture *f;

        setup(state);
        f = *state;
        assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), 0);
        assert_int_equal(moe_process(f->m, POLLOUT), 0);
        send_bytes(f, rows[i].bytes, rows[i].n);
        if (moe_process(f->m, POLLIN) != -EPROTO)
            fail_msg("row %zu", i);
        assert_string_equal(s.text, "1:Disconnected ");
        teardown(state);
    }
    setup(state);
}

static void test_outstanding(void **state) {
    struct fixture *f = *state;
    struct seen s = { 0 };

    for (int i = 0; i < WIRE_OUTSTANDING_MAX; i++)
        assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), 0);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), -EAGAIN);
    put_result(f, 64, "v", "x");
    flush(f);
    assert_int_equal(moe_process(f->m, POLLIN), 0);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), 0);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, NULL, &s, NULL), -EAGAIN);
    assert_int_equal(s.n_reply, 1);
    f->m = moe_close(f->m);
    assert_int_equal(s.n_reply, 1 + WIRE_OUTSTANDING_MAX);
}

static void test_deadline(void **state) {
    struct fixture *f = *state;
    struct seen s = { 0 };
    uint32_t id;

    assert_int_equal(moe_set_deadline(f->m, 1, 0), -ENOENT);
    assert_int_equal(moe_call(f->m, "m", NULL, on_reply, on_notify, &s, &id), 0);
    assert_true(moe_timeout(f->m) == MOE_FOREVER);
    assert_int_equal(moe_set_deadline(f->m, id, 3600u * 1000000), 0);
    assert_true(moe_timeout(f->m) > 3590u * 1000000 && moe_timeout(f->m) <= 3600u * 1000000);
    assert_int_equal(moe_set_deadline(f->m, id, MOE_FOREVER), 0);
    assert_true(moe_timeout(f->m) == MOE_FOREVER);
    assert_int_equal(moe_process(f->m, 0), 0);
    assert_int_equal(s.n_reply, 0);
    assert_int_equal(moe_wait(f->m, 1000), -ETIMEDOUT);

    assert_int_equal(moe_set_deadline(f->m, id, 1000), 0);
    assert_int_equal(moe_wait(f->m, MOE_FOREVER), 0);
    assert_string_equal(s.text, "1:NoAnswer ");
    assert_int_equal(moe_set_deadline(f->m, id, 0), -ENOENT);
    /* What comes late is taken, and told nobody. */
    put_delta(f, id, 0, "text", "late");
    put_result(f, id, "v", "late");
    flush(f);
    assert_int_equal(moe_process(f->m, POLLIN), 0);
    assert_string_equal(s.text, "1:NoAnswer ");

    assert_int_equal(moe_call_wait(f->m, "m", NULL, 2000, NULL), -EREMOTEIO);
    assert_int_equal(moe_last_error(f->m)->code, MOE_NO_ANSWER);
}

static void on_alarm(int sig) {
    (void)sig;
}

static void raise_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    (void)raise(SIGALRM);
}

static void test_signal_ends_a_wait(void **state) {
    struct fixture *f = *state;
    struct moe_generate g = MOE_GENERATE_INIT;
    const struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    const struct itimerval soon = { .it_value = { .tv_usec = 20000 } };
    struct seen s = { 0 };

    assert_int_equal(sigaction(SIGALRM, &sa, NULL), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    assert_int_equal(moe_call_wait(f->m, "m", NULL, MOE_FOREVER, NULL), -EINTR);
    assert_null(moe_last_error(f->m));

    g.prompt = "p";
    g.on_delta = on_delta;
    g.userdata = &s;
    assert_int_equal(setitimer(ITIMER_REAL, &soon, NULL), 0);
    assert_int_equal(moe_generate_wait(f->m, &g, NULL), -EINTR);
    receive(f);
    assert_memory_equal(receive(f)->method, "generate", 8);
    assert_memory_equal(receive(f)->method, "generate.cancel", 15);
    /* Its callbacks are not called any more. */
    msgpack_sbuffer_clear(&f->out);
    put_delta(f, 2, 0, "text", "late");
    put_error(f, 2, MOE_CANCELLED, "Cancelled");
    flush(f);
    assert_int_equal(moe_process(f->m, POLLIN), 0);
    assert_string_equal(s.text, "");

    /* One that comes between two waits is not lost. */
    msgpack_sbuffer_clear(&f->out);
    put_delta(f, 3, 0, "text", "x");
    flush(f);
    g.on_delta = raise_delta;
    assert_int_equal(moe_generate_wait(f->m, &g, NULL), -EINTR);
}

static void test_large_both_ways(void **state) {
    struct fixture *f = *state;
    struct moe_map *map = moe_map_new();
    size_t n = WIRE_FRAME_MAX - 64, sent = 0, got = 0;
    char *big = malloc(n + 64), *sink = malloc(1 << 20);
    struct seen s = { 0 };
    uint32_t id;
    ssize_t k;

    memset(big, 'x', n + 64);
    big[n] = 0;
    moe_map_str_n(map, "text", big, n + 64);
    assert_int_equal(moe_call(f->m, "m", map, NULL, NULL, NULL, NULL), -EMSGSIZE);
    moe_map_free(map);
    map = moe_map_new();
    moe_map_str_n(map, "text", big, n);
    assert_int_equal(moe_call(f->m, "m", map, on_reply, NULL, &s, &id), 0);
    /* One frame's bytes wait: one more may join them, then there is enough. */
    assert_int_equal(moe_call(f->m, "m", map, NULL, NULL, NULL, NULL), 0);
    assert_int_equal(moe_call(f->m, "m", map, NULL, NULL, NULL, NULL), -EAGAIN);
    moe_map_free(map);
    while (moe_events(f->m) & POLLOUT) {
        assert_int_equal(moe_process(f->m, POLLOUT), 0);
        while ((k = recv(f->fd, sink, 1 << 20, MSG_DONTWAIT)) > 0)
            got += (size_t)k;
    }
    assert_true(got > 2 * n && got < 2 * n + 64);

    put_result(f, id, "v", big);
    while (sent < f->out.size) {
        k = send(f->fd, f->out.data + sent, f->out.size - sent, MSG_DONTWAIT);
        sent += k > 0 ? (size_t)k : 0;
        assert_int_equal(moe_process(f->m, POLLIN), 0);
    }
    for (int i = 0; i < 4 && !s.n_reply; i++)
        assert_int_equal(moe_process(f->m, POLLIN), 0);
    assert_int_equal(s.n_reply, 1);
    free(big);
    free(sink);
}

static void test_where_the_socket_is(void **state) {
    char dir[] = "/tmp/moe-test-XXXXXX", path[MOE_PATH_MAX], want[MOE_PATH_MAX], longer[200];
    FILE *file;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(moe_find_socket("some/path", path), 0);
    assert_string_equal(path, "some/path");
    (void)setenv("MOE_SOCKET", "/from/env", 1);
    (void)setenv("XDG_RUNTIME_DIR", dir, 1);
    assert_int_equal(moe_find_socket(NULL, path), 0);
    assert_string_equal(path, "/from/env");
    assert_int_equal(moe_find_socket("first", path), 0);
    assert_string_equal(path, "first");
    (void)unsetenv("MOE_SOCKET");
    assert_int_equal(moe_find_socket(NULL, path), 0);
    assert_string_equal(path, "/run/moed/rpc"); /* the user's own does not exist */
    (void)snprintf(want, sizeof want, "%s/moed", dir);
    assert_int_equal(mkdir(want, 0700), 0);
    (void)snprintf(want, sizeof want, "%s/moed/rpc", dir);
    file = fopen(want, "w");
    assert_non_null(file);
    (void)fclose(file);
    assert_int_equal(moe_find_socket(NULL, path), 0);
    assert_string_equal(path, want);
    (void)setenv("MOE_SOCKET", "", 1); /* as good as unset */
    assert_int_equal(moe_find_socket("", path), 0);
    assert_string_equal(path, want);
    (void)unlink(want);
    (void)snprintf(want, sizeof want, "%s/moed", dir);
    (void)rmdir(want);
    (void)rmdir(dir);

    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_int_equal(moe_find_socket(longer, path), -ENAMETOOLONG);
    longer[MOE_PATH_MAX - 1] = 0;
    assert_int_equal(moe_find_socket(longer, path), 0);
}

static void test_open(void **state) {
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    char dir[] = "/tmp/moe-test-XXXXXX";
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct moe *m = NULL;

    (void)state;
    assert_non_null(mkdtemp(dir));
    (void)snprintf(addr.sun_path, sizeof addr.sun_path, "%s/rpc", dir);
    assert_int_equal(moe_open(&m, addr.sun_path), -ENOENT);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(moe_open(&m, addr.sun_path), -ECONNREFUSED);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(moe_open(&m, addr.sun_path), 0);
    assert_true(fcntl(moe_fd(m), F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(moe_fd(m), F_GETFD) & FD_CLOEXEC);
    moe_close(m);
    assert_null(moe_close(NULL));
    assert_int_equal(moe_open_fd(&m, -1), -EBADF);
    (void)unlink(addr.sun_path);
    (void)rmdir(dir);
    (void)close(fd);
}

int main(void) {
#define T(f_) cmocka_unit_test_setup_teardown(f_, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_request_on_the_wire),
        T(test_maps_written_wrong),
        T(test_depth_edge),
        T(test_answers_in_any_order),
        T(test_byte_by_byte),
        T(test_notifications_of_nobody),
        T(test_errors_have_numbers),
        T(test_errors_without_form),
        T(test_reading),
        T(test_empty_text),
        T(test_generate_wait),
        T(test_generate_takes_one_input),
        T(test_cancel),
        T(test_hang_up),
        T(test_hang_up_with_a_reason),
        T(test_close_answers),
        T(test_malformed_service),
        T(test_outstanding),
        T(test_deadline),
        T(test_signal_ends_a_wait),
        T(test_large_both_ways),
        cmocka_unit_test(test_where_the_socket_is),
        cmocka_unit_test(test_open),
    };

    return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
