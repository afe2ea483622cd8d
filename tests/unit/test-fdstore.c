/* SPDX-License-Identifier: Apache-2.0 */

/* What the service manager is told to keep and to forget, over a notify socket. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/fdstore.h"

static char path[64];
static int notify_fd = -1;
static char said[256];
static int kept = -1; /* the descriptor that came with it */

static int setup(void **state) {
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    (void)snprintf(path, sizeof path, "/tmp/moed-fdstore-%d", (int)getpid());
    (void)unlink(path);
    (void)strcpy(addr.sun_path, path);
    notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(notify_fd, (struct sockaddr *)&addr, sizeof addr), 0);
    (void)setenv("NOTIFY_SOCKET", path, 1);
    (void)unsetenv("SERVICE_RESULT");
    return 0;
}

static int teardown(void **state) {
    (void)close(notify_fd);
    (void)unlink(path);
    (void)unsetenv("NOTIFY_SOCKET");
    return 0;
}

/* The next thing said, or "". */
static const char *heard(void) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(64)];
    } control;
    struct iovec iov = { said, sizeof said - 1 };
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control
    };
    ssize_t n = recvmsg(notify_fd, &m, MSG_CMSG_CLOEXEC);

    if (kept >= 0)
        (void)close(kept);
    kept = -1;
    said[n > 0 ? n : 0] = '\0';
    for (struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL; c; c = CMSG_NXTHDR(&m, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            memcpy(&kept, CMSG_DATA(c), sizeof kept);
    return said;
}

static int memory(void) {
    int fd = memfd_create("test", MFD_CLOEXEC);

    assert_true(fd >= 0);
    return fd;
}

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

/* What was kept comes back and is ours; other names, of another version too, are given up. */
static void test_take(void **state) {
    int weights = memory(), second = memory(), old = memory();
    struct fdstore s = { 0 };

    fdstore_take(&s, "weights-0", old);
    assert_string_equal(heard(), "FDSTOREREMOVE=1\nFDNAME=weights-0");
    assert_false(is_open(old));
    assert_int_equal(s.fd, 0);
    fdstore_take(&s, FDSTORE_NAME, weights);
    assert_int_equal(s.fd, weights);
    fdstore_take(&s, FDSTORE_NAME, second);
    assert_int_equal(s.fd, weights);
    assert_false(is_open(second));
    assert_string_equal(heard(), "");

    fdstore_deinit(&s); /* an end of ours changes nothing there */
    assert_false(is_open(weights));
    assert_string_equal(heard(), "");
}

static void test_put(void **state) {
    int first = memory(), second = memory();
    struct fdstore s = { 0 };
    struct stat a, b;

    fdstore_put(&s, first);
    assert_string_equal(heard(), "FDSTORE=1\nFDNAME=" FDSTORE_NAME);
    assert_int_equal(fstat(first, &a), 0);
    assert_int_equal(fstat(kept, &b), 0);
    assert_int_equal(a.st_ino, b.st_ino);
    assert_true(s.fd != first); /* the caller's stays the caller's */

    fdstore_put(&s, second); /* instead, not besides */
    assert_string_equal(heard(), "FDSTOREREMOVE=1\nFDNAME=" FDSTORE_NAME);
    assert_string_equal(heard(), "FDSTORE=1\nFDNAME=" FDSTORE_NAME);
    assert_int_equal(fstat(second, &a), 0);
    assert_int_equal(fstat(kept, &b), 0);
    assert_int_equal(a.st_ino, b.st_ino);

    fdstore_drop(&s);
    assert_string_equal(heard(), "FDSTOREREMOVE=1\nFDNAME=" FDSTORE_NAME);
    assert_int_equal(s.fd, 0);
    fdstore_drop(&s);
    assert_string_equal(heard(), "");
    (void)close(first);
    (void)close(second);
}

/* Only an end for want of memory takes it away. */
static void test_after_stop(void **state) {
    static const char *const others[] = { "success", "exit-code", "signal", "watchdog", "" };

    fdstore_after_stop();
    assert_string_equal(heard(), "");
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        (void)setenv("SERVICE_RESULT", others[i], 1);
        fdstore_after_stop();
        assert_string_equal(heard(), "");
    }
    (void)setenv("SERVICE_RESULT", "oom-kill", 1);
    fdstore_after_stop();
    assert_string_equal(heard(), "FDSTOREREMOVE=1\nFDNAME=" FDSTORE_NAME);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_take, setup, teardown),
        cmocka_unit_test_setup_teardown(test_put, setup, teardown),
        cmocka_unit_test_setup_teardown(test_after_stop, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
