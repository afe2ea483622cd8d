/* SPDX-License-Identifier: Apache-2.0 */

/* moe_session_*(): what they ask, and what they make of the answer, which waits already. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/moe-session.h"
#include "client/wire.h"

/* Both ends in one thread: @m is under test, @fd is the service that the test plays. */
struct fixture {
    struct moe *m;
    int fd;
    uint32_t id; /* of the last call */
    char text[4096];
};

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(moe_open_fd(&f->m, fds[0]), 0);
    f->fd = fds[1];
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;

    moe_close(f->m);
    (void)close(f->fd);
    free(f);
    return 0;
}

/* The answer to the next call: {key: n} or {key: s}, or an error without @key. */
static void answer(struct fixture *f, const char *key, uint64_t n, const char *s) {
    msgpack_sbuffer buf;
    msgpack_packer p;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    if (key) {
        wire_pack_result(&p, ++f->id);
        msgpack_pack_map(&p, 2);
        wire_pack_str(&p, key);
        (void)(s ? (wire_pack_str(&p, s), 0) : msgpack_pack_uint64(&p, n));
        wire_pack_str(&p, "available");
        msgpack_pack_int(&p, 500);
    } else {
        wire_pack_error(&p, ++f->id);
        msgpack_pack_map(&p, 3);
        wire_pack_str(&p, "code");
        msgpack_pack_int(&p, MOE_NO_SUCH_SESSION);
        wire_pack_str(&p, "name");
        wire_pack_str(&p, "NoSuchSession");
        wire_pack_str(&p, "message");
        wire_pack_str(&p, "no session 9");
        msgpack_pack_nil(&p);
    }
    assert_int_equal(send(f->fd, buf.data, buf.size, MSG_NOSIGNAL), (ssize_t)buf.size);
    msgpack_sbuffer_destroy(&buf);
}

/* What was asked, as msgpack-c prints it. */
static void asked(struct fixture *f, const char *want) {
    msgpack_unpacked got;
    char bytes[4096];
    size_t off = 0;
    ssize_t n = recv(f->fd, bytes, sizeof bytes, MSG_DONTWAIT);

    assert_true(n > 0);
    msgpack_unpacked_init(&got);
    assert_int_equal(msgpack_unpack_next(&got, bytes, (size_t)n, &off), MSGPACK_UNPACK_SUCCESS);
    assert_int_equal(off, n);
    (void)msgpack_object_print_buffer(f->text, sizeof f->text, got.data);
    msgpack_unpacked_destroy(&got);
    if (!strstr(f->text, want))
        fail_msg("'%s' has no '%s'", f->text, want);
}

static void test_open(void **state) {
    const struct moe_message said[] = { { "user", "hi" } };
    struct fixture *f = *state;
    struct moe_session s = MOE_SESSION_INIT;
    struct moe_map *more = moe_map_new();
    uint64_t session = 0, seed = 7;

    answer(f, "session", 1ull << 40, NULL);
    assert_int_equal(moe_session_open_wait(f->m, &s, &session), 0);
    assert_true(session == 1ull << 40);
    asked(f, "\"session.open\", [{}]]");

    moe_map_float(more, "repeat_penalty", 1.5);
    s = (struct moe_session){ .size = sizeof s,
                              .model = "m",
                              .instructions = "be",
                              .messages = said,
                              .n_messages = 1,
                              .priority = "background",
                              .thinking = true,
                              .max_tokens = 9,
                              .temperature = 0,
                              .top_p = 0.5,
                              .min_p = 0.25,
                              .top_k = 3,
                              .seed = &seed,
                              .more = more };
    answer(f, "session", 2, NULL);
    assert_int_equal(moe_session_open_wait(f->m, &s, &session), 0);
    asked(f, "{\"model\"=>\"m\", \"instructions\"=>\"be\", "
             "\"messages\"=>[{\"role\"=>\"user\", \"content\"=>\"hi\"}], "
             "\"priority\"=>\"background\", \"thinking\"=>true, \"max_tokens\"=>9, "
             "\"temperature\"=>0.000000, \"top_p\"=>0.500000, \"min_p\"=>0.250000, \"top_k\"=>3, "
             "\"seed\"=>7, \"repeat_penalty\"=>1.500000}");
    s.size--;
    assert_int_equal(moe_session_open_wait(f->m, &s, &session), -EINVAL);
    moe_map_free(more);
}

static void test_generate(void **state) {
    const struct moe_message question = { "user", "why?" };
    struct fixture *f = *state;
    struct moe_generate g = MOE_GENERATE_INIT;
    const struct moe_result *result;

    answer(f, "text", 0, "because");
    assert_int_equal(moe_session_generate_wait(f->m, 5, &g, &result), 0); /* nothing new */
    assert_string_equal(result->text, "because");
    asked(f, "\"session.generate\", [{\"session\"=>5}]]");
    g.messages = &question;
    g.n_messages = 1;
    answer(f, "text", 0, "so");
    assert_int_equal(moe_session_generate_wait(f->m, 5, &g, &result), 0);
    asked(f, "{\"session\"=>5, \"messages\"=>[{\"role\"=>\"user\", \"content\"=>\"why?\"}]}");
    answer(f, NULL, 0, NULL);
    assert_int_equal(moe_session_generate_wait(f->m, 9, &g, &result), -EREMOTEIO);
    assert_int_equal(moe_last_error(f->m)->code, MOE_NO_SUCH_SESSION);
    g.model = "other";
    assert_int_equal(moe_session_generate(f->m, 5, &g, NULL, NULL), -EINVAL);
    g.model = NULL;
    g.prompt = "raw";
    assert_int_equal(moe_session_generate(f->m, 5, &g, NULL, NULL), -EINVAL);
}

static void test_others(void **state) {
    const struct moe_message more = { "user", "so" };
    struct fixture *f = *state;
    uint64_t n = 0, available = 0;
    const char *token = NULL;

    answer(f, "context_used", 44, NULL);
    assert_int_equal(moe_session_append_wait(f->m, 3, &more, 1, &n), 0);
    assert_int_equal(n, 44);
    asked(f, "\"session.append\", [{\"session\"=>3, \"messages\"=>[{\"role\"=>\"user\"");
    answer(f, "tokens", 45, NULL);
    assert_int_equal(moe_session_measure_wait(f->m, 3, NULL, 0, &n, &available), 0);
    assert_true(n == 45 && available == 500);
    asked(f, "\"session.measure\", [{\"session\"=>3}]]");
    answer(f, "session", 4, NULL);
    assert_int_equal(moe_session_clone_wait(f->m, 3, &n), 0);
    assert_int_equal(n, 4);
    asked(f, "\"session.clone\", [{\"session\"=>3}]]");
    answer(f, "token", 0, "abc");
    assert_int_equal(moe_session_save_wait(f->m, 3, NULL, &token), 0);
    assert_string_equal(token, "abc");
    asked(f, "\"session.save\", [{\"session\"=>3}]]");
    answer(f, "nothing", 0, NULL);
    assert_int_equal(moe_session_save_wait(f->m, 3, "old", &token), -EPROTO);
    asked(f, "\"session.save\", [{\"session\"=>3, \"token\"=>\"old\"}]]");
    answer(f, "x", 0, NULL);
    assert_int_equal(moe_session_forget_wait(f->m, "old"), 0);
    asked(f, "\"session.forget\", [{\"token\"=>\"old\"}]]");
    answer(f, "session", 6, NULL);
    assert_int_equal(moe_session_restore_wait(f->m, "abc", &n), 0);
    assert_int_equal(n, 6);
    asked(f, "\"session.restore\", [{\"token\"=>\"abc\"}]]");
    answer(f, "x", 0, NULL);
    assert_int_equal(moe_session_close_wait(f->m, 3), 0);
    asked(f, "\"session.close\", [{\"session\"=>3}]]");
    answer(f, NULL, 0, NULL);
    assert_int_equal(moe_session_close_wait(f->m, 9), -EREMOTEIO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_open, setup, teardown),
        cmocka_unit_test_setup_teardown(test_generate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_others, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
