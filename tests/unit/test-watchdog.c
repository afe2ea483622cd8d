/* SPDX-License-Identifier: Apache-2.0 */

/* Signs of life to a service manager, over a notify socket and a fake engine. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/watchdog.h"
#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

enum { WATCHDOG_MS = 40 }; /* a look every 10 ms */

static struct rig rig;
static struct watchdog *watchdog;
static int notify_fd = -1;

static int setup(void **state) {
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    char pid[16];

    rig_init(&rig, NULL, 0);
    (void)snprintf(addr.sun_path, sizeof addr.sun_path, "%s/notify", rig.dir);
    notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(notify_fd, (struct sockaddr *)&addr, sizeof addr), 0);
    (void)setenv("NOTIFY_SOCKET", addr.sun_path, 1);
    (void)setenv("WATCHDOG_USEC", "40000", 1);
    (void)snprintf(pid, sizeof pid, "%d", (int)getpid());
    (void)setenv("WATCHDOG_PID", pid, 1);
    return 0;
}

static int teardown(void **state) {
    watchdog = watchdog_free(watchdog);
    rig_deinit(&rig);
    (void)close(notify_fd);
    (void)unsetenv("NOTIFY_SOCKET");
    return 0;
}

/* Turn the loop for @ms. Return: how many signs of life came meanwhile. */
static unsigned signs(unsigned ms) {
    usec_t end = clock_usec() + ms * 1000;
    char buf[512];
    unsigned n = 0;
    ssize_t k;

    while (clock_usec() < end) {
        rig_turn(&rig);
        (void)usleep(1000);
        while ((k = recv(notify_fd, buf, sizeof buf - 1, 0)) > 0) {
            buf[k] = '\0';
            n += strcmp(buf, "WATCHDOG=1") == 0;
        }
    }
    return n;
}

static void load(void) {
    struct task *l;

    assert_int_equal(models_load(rig.server->models, "a", 0, &l, NULL), 0);
}

static void test_no_model(void **state) {
    assert_int_equal(watchdog_new(&watchdog, rig.base, rig.server->models), 0);
    assert_true(signs(5 * WATCHDOG_MS) >= 5);
}

static void test_idle_engine(void **state) {
    assert_int_equal(watchdog_new(&watchdog, rig.base, rig.server->models), 0);
    load();
    fake.status.busy = false;
    assert_true(signs(5 * WATCHDOG_MS) >= 5);
}

/* Busy is fine while it advances, and silent from when it does not. */
static void test_stuck_engine(void **state) {
    assert_int_equal(watchdog_new(&watchdog, rig.base, rig.server->models), 0);
    load();
    fake.status.busy = true;
    for (int i = 0; i < 5; i++) {
        fake.status.n_beat++;
        assert_true(signs(WATCHDOG_MS) >= 1);
    }
    (void)signs(WATCHDOG_MS); /* the last beat may have come after a look */
    assert_int_equal(signs(5 * WATCHDOG_MS), 0);
    fake.status.n_beat++;
    assert_int_equal(signs(5 * WATCHDOG_MS), 1);
    fake.status.busy = false;
    assert_true(signs(5 * WATCHDOG_MS) >= 5);
}

/* Not for us: nobody asked, or another process was. */
static void test_not_wanted(void **state) {
    (void)setenv("WATCHDOG_PID", "1", 1);
    assert_int_equal(watchdog_new(&watchdog, rig.base, rig.server->models), 0);
    assert_null(watchdog);
    (void)unsetenv("WATCHDOG_PID");
    (void)unsetenv("WATCHDOG_USEC");
    assert_int_equal(watchdog_new(&watchdog, rig.base, rig.server->models), 0);
    assert_null(watchdog);
    assert_int_equal(signs(3 * WATCHDOG_MS), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_no_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idle_engine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stuck_engine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_wanted, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
