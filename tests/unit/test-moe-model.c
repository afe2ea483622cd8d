/* SPDX-License-Identifier: Apache-2.0 */

/* moe_model_*(): what they ask, and that the descriptor goes with it. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/moe-model.h"
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

/* The answer to the next call: a job, or an error. */
static void answer(struct fixture *f, uint64_t job) {
    msgpack_sbuffer buf;
    msgpack_packer p;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    if (job) {
        wire_pack_result(&p, ++f->id);
        msgpack_pack_map(&p, 1);
        wire_pack_str(&p, "job");
        msgpack_pack_uint64(&p, job);
    } else {
        wire_pack_error(&p, ++f->id);
        msgpack_pack_map(&p, 1);
        wire_pack_str(&p, "code");
        msgpack_pack_int(&p, MOE_ACCESS_DENIED);
        msgpack_pack_nil(&p);
    }
    assert_int_equal(send(f->fd, buf.data, buf.size, MSG_NOSIGNAL), (ssize_t)buf.size);
    msgpack_sbuffer_destroy(&buf);
}

/* The next message, at most @size bytes of it. Return: the descriptor that came with it, or -1. */
static int get(struct fixture *f, size_t size, const char *want) {
    char bytes[4096], control[CMSG_SPACE(2 * sizeof(int))];
    struct iovec to = { bytes, size };
    struct msghdr m = {
        .msg_iov = &to, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
    };
    ssize_t n = recvmsg(f->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *h;
    msgpack_unpacked got;
    size_t off = 0;
    int fd = -1;

    assert_true(n > 0);
    msgpack_unpacked_init(&got);
    assert_int_equal(msgpack_unpack_next(&got, bytes, (size_t)n, &off), MSGPACK_UNPACK_SUCCESS);
    (void)msgpack_object_print_buffer(f->text, sizeof f->text, got.data);
    msgpack_unpacked_destroy(&got);
    if (!strstr(f->text, want))
        fail_msg("'%s' has no '%s'", f->text, want);
    h = CMSG_FIRSTHDR(&m);
    if (!h)
        return -1;
    assert_int_equal(h->cmsg_len, CMSG_LEN(sizeof fd));
    (void)memcpy(&fd, CMSG_DATA(h), sizeof fd);
    return fd;
}

/* A pipe's end to give, and whether that end is still open anywhere. */
static void make(int fd[2]) {
    assert_int_equal(pipe2(fd, O_NONBLOCK | O_CLOEXEC), 0);
}

static bool is_closed(int end) {
    char byte;

    return read(end, &byte, 1) == 0;
}

static void test_import(void **state) {
    struct fixture *f = *state;
    struct moe_import i = MOE_IMPORT_INIT;
    uint64_t job = 0;
    int fd[2], got;

    make(fd);
    assert_int_equal(moe_model_import_wait(f->m, fd[1], &i, &job), -EINVAL); /* no id */
    i.id = "mine";
    answer(f, 1ull << 40);
    assert_int_equal(moe_model_import_wait(f->m, fd[1], &i, &job), 0);
    assert_true(job == 1ull << 40);
    (void)close(fd[1]);
    got = get(f, 4096, "\"model.import\", [{\"id\"=>\"mine\"}]]");
    assert_true(got >= 0);
    assert_false(is_closed(fd[0])); /* ours alone: the library keeps none */
    (void)close(got);
    assert_true(is_closed(fd[0]));
    (void)close(fd[0]);

    i = (struct moe_import){ sizeof i, "b", "copy", "12", "MIT" };
    answer(f, 0);
    assert_int_equal(moe_model_import_wait(f->m, f->fd, &i, NULL), -EREMOTEIO);
    assert_int_equal(moe_last_error(f->m)->code, MOE_ACCESS_DENIED);
    got = get(f, 4096,
              "{\"id\"=>\"b\", \"mode\"=>\"copy\", \"digest\"=>\"12\", "
              "\"license\"=>\"MIT\"}");
    (void)close(got);
    assert_int_equal(moe_model_import_wait(f->m, -1, &i, NULL), -EBADF);
    i.size--;
    assert_int_equal(moe_model_import_wait(f->m, f->fd, &i, NULL), -EINVAL);
}

static void test_verify(void **state) {
    struct fixture *f = *state;
    uint64_t job = 0;

    answer(f, 7);
    assert_int_equal(moe_model_verify_wait(f->m, "a", &job), 0);
    assert_int_equal(job, 7);
    assert_int_equal(get(f, 4096, "\"model.verify\", [{\"id\"=>\"a\"}]]"), -1);
    answer(f, 0);
    assert_int_equal(moe_model_verify_wait(f->m, "a", NULL), -EREMOTEIO);
}

/* Each descriptor comes with the first byte of its own frame, between others. */
static void test_order(void **state) {
    struct fixture *f = *state;
    struct moe_import i = { sizeof i, "a", NULL, NULL, NULL };
    size_t n_import = sizeof "....model.import..?id?a" - 1;
    int one[2], two[2], got;

    make(one);
    make(two);
    assert_int_equal(moe_call(f->m, "server.status", NULL, NULL, NULL, NULL, NULL), 0);
    assert_int_equal(moe_model_import(f->m, one[1], &i, NULL, NULL, NULL), 0);
    i.id = "b";
    assert_int_equal(moe_model_import(f->m, two[1], &i, NULL, NULL, NULL), 0);
    assert_int_equal(moe_call(f->m, "server.info", NULL, NULL, NULL, NULL, NULL), 0);
    (void)close(one[1]);
    (void)close(two[1]);
    assert_int_equal(moe_process(f->m, 0), 0);
    assert_int_equal(get(f, 19, "server.status"), -1);
    got = get(f, n_import, "\"id\"=>\"a\"");
    assert_true(got >= 0);
    (void)close(got);
    assert_true(is_closed(one[0]));
    assert_false(is_closed(two[0]));
    got = get(f, n_import, "\"id\"=>\"b\"");
    (void)close(got);
    assert_true(is_closed(two[0]));
    assert_int_equal(get(f, 4096, "server.info"), -1);
    (void)close(one[0]);
    (void)close(two[0]);
}

/* What was not sent is closed with the connection. */
static void test_closed(void **state) {
    struct fixture *f = *state;
    struct moe_import i = { sizeof i, "a", NULL, NULL, NULL };
    int fd[2];

    make(fd);
    assert_int_equal(moe_model_import(f->m, fd[1], &i, NULL, NULL, NULL), 0);
    (void)close(fd[1]);
    assert_false(is_closed(fd[0]));
    f->m = moe_close(f->m);
    assert_true(is_closed(fd[0]));
    (void)close(fd[0]);
}

int main(void) {
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_import),
        TEST(test_verify),
        TEST(test_order),
        TEST(test_closed),
    };

    return cmocka_run_group_tests_name("moe-model", tests, NULL, NULL);
}
