/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/event.h>
#include <json.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

static void touch(const char *dir, const char *name) {
    char path[128];
    FILE *f;

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs("four", f);
    (void)fclose(f);
}

void rig_init(struct rig *rig, const struct config_set *set, size_t n_set) {
    struct config_set all[16] = { { "model-dir", rig->dir, "test" }, { "preload", "no", "test" } };
    struct config *config = NULL;
    struct why why = { 0 };

    (void)signal(SIGPIPE, SIG_IGN);
    (void)setenv("MEMORY_PRESSURE_WATCH", "/dev/null", 0); /* the machine's is none of a test's */
    fake_reset();
    (void)strcpy(rig->dir, "/tmp/moed-rig-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    touch(rig->dir, "a.gguf");
    touch(rig->dir, "b.gguf");
    for (size_t i = 0; i < n_set; i++)
        all[i + 2] = set[i];
    assert_int_equal(config_new(&config, rig->dir, NULL, all, n_set + 2, &why), 0);
    rig->base = event_base_new();
    assert_int_equal(server_new(&rig->server, rig->base, config), 0);
}

void rig_deinit(struct rig *rig) {
    char cmd[128];

    rig->server = server_free(rig->server);
    event_base_free(rig->base);
    (void)snprintf(cmd, sizeof cmd, "rm -r %s", rig->dir);
    assert_int_equal(system(cmd), 0);
    fake_reset();
}

void rig_turn(struct rig *rig) {
    for (int i = 0; i < 8; i++)
        (void)event_base_loop(rig->base, EVLOOP_NONBLOCK);
}

struct rig_client *rig_connect(struct rig *rig) {
    struct rig_client *c = calloc(1, sizeof *c);
    int fd[2], small = 4096;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
    (void)setsockopt(fd[1], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    assert_int_equal(server_adopt(rig->server, fd[1]), 0);
    c->rig = rig;
    c->fd = fd[0];
    c->buf = malloc(WIRE_FRAME_MAX * 2);
    assert_non_null(c->buf);
    return c;
}

void rig_hangup(struct rig_client *c) {
    (void)close(c->fd);
    rig_turn(c->rig);
    free(c->buf);
    free(c);
}

void rig_send(struct rig_client *c, const void *buf, size_t n) {
    const char *p = buf;

    while (n) {
        ssize_t k = send(c->fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (k < 0 && errno == EPIPE)
            return; /* refused: what it said can still be read */
        if (k < 0)
            assert_int_equal(errno, EAGAIN);
        p += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
        rig_turn(c->rig);
    }
}

static void pack_json(msgpack_packer *p, struct json_object *o);

static void pack_pairs(msgpack_packer *p, struct json_object *o) {
    json_object_object_foreach(o, key, val) {
        wire_pack_str(p, key);
        pack_json(p, val);
    }
}

static void pack_json(msgpack_packer *p, struct json_object *o) {
    switch (json_object_get_type(o)) {
    case json_type_null:
        msgpack_pack_nil(p);
        break;
    case json_type_boolean:
        (void)(json_object_get_boolean(o) ? msgpack_pack_true(p) : msgpack_pack_false(p));
        break;
    case json_type_double:
        msgpack_pack_double(p, json_object_get_double(o));
        break;
    case json_type_int:
        msgpack_pack_int64(p, json_object_get_int64(o));
        break;
    case json_type_string:
        msgpack_pack_str(p, (size_t)json_object_get_string_len(o));
        msgpack_pack_str_body(p, json_object_get_string(o), (size_t)json_object_get_string_len(o));
        break;
    case json_type_array:
        msgpack_pack_array(p, json_object_array_length(o));
        for (size_t i = 0; i < json_object_array_length(o); i++)
            pack_json(p, json_object_array_get_idx(o, i));
        break;
    case json_type_object:
        msgpack_pack_map(p, (size_t)json_object_object_length(o));
        pack_pairs(p, o);
        break;
    }
}

static void send_call(struct rig_client *c, bool request, uint32_t msgid, const char *method,
                      const char *params) {
    struct json_object *o = json_tokener_parse(params);
    msgpack_sbuffer buf;
    msgpack_packer p;

    assert_non_null(o);
    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    if (request)
        wire_pack_request(&p, msgid, method);
    else
        wire_pack_notify(&p, method);
    pack_json(&p, o);
    rig_send(c, buf.data, buf.size);
    msgpack_sbuffer_destroy(&buf);
    json_object_put(o);
}

void rig_request(struct rig_client *c, uint32_t msgid, const char *method, const char *params) {
    send_call(c, true, msgid, method, params);
}

void rig_notify(struct rig_client *c, const char *method, const char *params) {
    send_call(c, false, 0, method, params);
}

const char *rig_recv(struct rig_client *c) {
    usec_t until = clock_usec() + 30 * CLOCK_SECOND;
    msgpack_unpacked frame;
    size_t off = 0, len = 0;
    struct wire_scan scan;

    wire_scan_init(&scan);
    for (;;) {
        int r = wire_scan(&scan, c->buf, c->n, &len);
        ssize_t k;

        if (r == 0)
            break;
        assert_int_equal(r, WIRE_MORE);
        if (clock_usec() > until)
            fail_msg("no frame came");
        rig_turn(c->rig);
        k = recv(c->fd, c->buf + c->n, 2 * (size_t)WIRE_FRAME_MAX - c->n, MSG_DONTWAIT);
        if (k == 0)
            return NULL;
        c->n += k > 0 ? (size_t)k : 0;
    }

    msgpack_unpacked_init(&frame);
    assert_int_equal(msgpack_unpack_next(&frame, (char *)c->buf, len, &off),
                     MSGPACK_UNPACK_SUCCESS);
    (void)msgpack_object_print_buffer(c->text, sizeof c->text, frame.data);
    msgpack_unpacked_destroy(&frame);
    memmove(c->buf, c->buf + len, c->n - len);
    c->n -= len;
    return c->text;
}

const char *rig_call(struct rig_client *c, uint32_t msgid, const char *method, const char *params) {
    rig_request(c, msgid, method, params);
    return rig_recv(c);
}
