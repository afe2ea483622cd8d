/* SPDX-License-Identifier: Apache-2.0 */

/* Levels of memory pressure, from FIFOs, sockets and the kernel. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/event.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/pressure.h"

enum { CALM_MS = 60, N_TOLD = 64 };

static struct event_base *base;
static struct pressure *p;
static char dir[64], path[80];
static unsigned told[N_TOLD], n_told;

static void on_level(void *arg, unsigned level) {
    assert_true(n_told < N_TOLD);
    told[n_told++] = level;
}

static int setup(void **state) {
    (void)strcpy(dir, "/tmp/moed-pressure-XXXXXX");
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/signs", dir);
    (void)unsetenv("MEMORY_PRESSURE_WATCH");
    (void)unsetenv("MEMORY_PRESSURE_WRITE");
    base = event_base_new();
    n_told = 0;
    return 0;
}

static int teardown(void **state) {
    p = pressure_free(p);
    event_base_free(base);
    (void)unlink(path);
    assert_int_equal(rmdir(dir), 0);
    return 0;
}

static void turn(unsigned ms) {
    usec_t end = clock_usec() + ms * 1000;

    do
        (void)event_base_loop(base, EVLOOP_NONBLOCK);
    while (clock_usec() < end && usleep(500) == 0);
}

static void begin(const char *configured, usec_t calm_ms) {
    assert_int_equal(pressure_new(&p, base, configured, calm_ms * 1000, on_level, NULL), 0);
    assert_int_equal(pressure_level(p), 0);
}

static int fifo(void) {
    int fd;

    assert_int_equal(mkfifo(path, 0600), 0);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void sign(int fd) {
    assert_int_equal(write(fd, "!", 1), 1);
    turn(1);
}

/* Each sign is one step, up to the last; each is told once, in order. */
static void test_rises(void **state) {
    int fd = fifo();

    begin(path, 60000);
    for (unsigned i = 1; i <= PRESSURE_MAX + 2; i++) {
        sign(fd);
        assert_int_equal(pressure_level(p), i < PRESSURE_MAX ? i : PRESSURE_MAX);
    }
    assert_int_equal(n_told, PRESSURE_MAX);
    for (unsigned i = 0; i < n_told; i++)
        assert_int_equal(told[i], i + 1);
    (void)close(fd);
}

/* Down again one step at a time, each after as long without a sign; a sign on the way starts that
 * time anew. */
static void test_falls_slowly(void **state) {
    int fd = fifo();
    usec_t began, step;

    begin(path, CALM_MS);
    sign(fd);
    sign(fd);
    sign(fd);
    began = clock_usec();
    turn(CALM_MS / 2);
    sign(fd);
    assert_int_equal(pressure_level(p), 4);
    for (unsigned level = 4; level > 0; level--) {
        step = clock_usec();
        while (pressure_level(p) == level && clock_usec() - step < 5 * CLOCK_SECOND)
            turn(1);
        assert_int_equal(pressure_level(p), level - 1);
    }
    /* Each wait may be short by what the loop's clock is coarse. */
    assert_true(clock_usec() - began >= (CALM_MS / 2 + 4 * (CALM_MS - 10)) * 1000);
    turn(2 * CALM_MS);
    assert_int_equal(n_told, 8);
    (void)close(fd);
}

/* A writer that leaves takes nothing with it. */
static void test_fifo_without_writer(void **state) {
    int fd = fifo();

    begin(path, 60000);
    (void)close(fd);
    turn(5);
    assert_int_equal(pressure_level(p), 0);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    sign(fd);
    assert_int_equal(pressure_level(p), 1);
    (void)close(fd);
}

static void test_socket_of_environment(void **state) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), peer;
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    char said[16] = "";

    (void)strcpy(addr.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(listen(fd, 1), 0);
    (void)setenv("MEMORY_PRESSURE_WATCH", path, 1);
    (void)setenv("MEMORY_PRESSURE_WRITE", "d2F0Y2g=", 1); /* "watch" */
    begin(NULL, 60000);
    peer = accept(fd, NULL, NULL);
    assert_true(peer >= 0);
    assert_int_equal(read(peer, said, sizeof said), 5);
    assert_string_equal(said, "watch");
    sign(peer);
    assert_int_equal(pressure_level(p), 1);
    (void)close(peer); /* the end is no sign, and does not spin */
    turn(5);
    assert_int_equal(pressure_level(p), 1);
    (void)close(fd);
}

/* What cannot be watched is no reason not to serve. */
static void test_no_source(void **state) {
    static const char *const writes[] = { "!", "d2F0Y2g=x", "d2 0" };

    begin("/nowhere/at/all", 60000);
    p = pressure_free(p);
    begin("/dev/null", 60000);
    turn(5);
    p = pressure_free(p);
    (void)close(fifo());
    (void)setenv("MEMORY_PRESSURE_WATCH", path, 1);
    for (size_t i = 0; i < sizeof writes / sizeof writes[0]; i++) {
        (void)setenv("MEMORY_PRESSURE_WRITE", writes[i], 1);
        begin(NULL, 60000);
        p = pressure_free(p);
    }
    assert_int_equal(n_told, 0);
}

/* The configuration wins over the environment, and that over the kernel. */
static void test_order(void **state) {
    int fd = fifo();

    (void)setenv("MEMORY_PRESSURE_WATCH", "/nowhere", 1);
    begin(path, 60000);
    sign(fd);
    assert_int_equal(pressure_level(p), 1);
    (void)close(fd);
}

/* The kernel takes the triggers, if it has any, and is quiet on a machine that is. */
static void test_kernel(void **state) {
    if (access("/proc/pressure/memory", R_OK | W_OK) < 0)
        skip();
    begin(NULL, 60000);
    turn(20);
    assert_in_range(pressure_level(p), 0, PRESSURE_MAX);
}

/* Usec that some task was stalled so far, or 0. */
static unsigned long long stalled(void) {
    FILE *f = fopen("/proc/pressure/memory", "re");
    unsigned long long total = 0;

    if (f && fscanf(f, "some avg10=%*s avg60=%*s avg300=%*s total=%llu", &total) != 1)
        total = 0;
    if (f)
        (void)fclose(f);
    return total;
}

/* What was before it is watched is no sign, whatever the kernel says of its first windows. */
static void test_kernel_begins_calm(void **state) {
    unsigned long long before = stalled();

    if (!before)
        skip();
    assert_int_equal(pressure_new(&p, base, NULL, CLOCK_SECOND, on_level, NULL), 0);
    turn(4500);
    if (stalled() - before >= 200000) /* it is short of memory, indeed */
        skip();
    assert_int_equal(n_told, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rises, setup, teardown),
        cmocka_unit_test_setup_teardown(test_falls_slowly, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fifo_without_writer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket_of_environment, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_source, setup, teardown),
        cmocka_unit_test_setup_teardown(test_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kernel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kernel_begins_calm, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
