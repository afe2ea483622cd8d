/* SPDX-License-Identifier: Apache-2.0 */

/* Who a peer is, from texts of /proc/PID/cgroup and a tree of cgroup files made here. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "daemon/peer.h"

static char root[] = "/tmp/test-peer-XXXXXX";

static void put(const char *path, const char *text) {
    char cmd[1024];

    snprintf(cmd, sizeof cmd, "mkdir -p \"$(dirname '%s%s')\" && echo %s >'%s%s'", root, path, text,
             root, path);
    assert_int_equal(system(cmd), 0);
}

static struct peer read_as(uid_t uid, const char *cgroup) {
    struct peer p = { .uid = uid };

    peer_read_cgroup(&p, cgroup, root);
    return p;
}

#define FS      "/sys/fs/cgroup"
#define USER    "/user.slice/user-1000.slice"
#define MANAGER USER "/user@1000.service"

static void test_user(void **state) {
    struct peer p, q;

    put(FS USER "/cpu.weight", "300");
    put(FS USER "/session-2.scope/cpu.weight", "50");
    put(FS MANAGER "/app.slice/app-web.scope/cpu.weight", "70");
    p = read_as(1000, "0::" USER "/session-2.scope\n");
    assert_string_equal(p.unit, "session-2.scope");
    assert_int_equal(p.uid_weight, 300);
    assert_int_equal(p.unit_weight, 50);
    assert_false(p.background);
    q = read_as(1000, "0::" MANAGER "/app.slice/app-web.scope\n");
    assert_string_equal(q.unit, "app-web.scope");
    assert_int_equal(q.uid_weight, 300);
    assert_int_equal(q.unit_weight, 70);
    assert_true(p.app != q.app && p.app && q.app);

    /* What it makes below its unit is the unit's. */
    p = read_as(1000, "0::" MANAGER "/app.slice/app-web.scope/tab/1\n");
    assert_int_equal(p.app, q.app);
    assert_int_equal(p.unit_weight, 70);
}

/* A user can not give itself weight by names of its own. */
static void test_forged(void **state) {
    struct peer p;

    put(FS USER "/cpu.weight", "100");
    put(FS MANAGER "/user-1000.slice/cpu.weight", "10000");
    put(FS MANAGER "/user-1000.slice/a.scope/cpu.weight", "99999");
    p = read_as(1000, "0::" MANAGER "/user-1000.slice/a.scope\n");
    assert_int_equal(p.uid_weight, 100);
    assert_int_equal(p.unit_weight, 10000);
    p = read_as(1001, "0::" USER "/../user-1001.slice/x.scope\n");
    assert_string_equal(p.unit, "");
    assert_int_equal(p.uid_weight, 0);
}

static void test_system(void **state) {
    struct peer p;

    put(FS "/system.slice/index.service/cpu.weight", "20");
    p = read_as(33, "0::/system.slice/index.service\n");
    assert_string_equal(p.unit, "index.service");
    assert_int_equal(p.uid_weight, 20);
    assert_int_equal(p.unit_weight, 20);
}

static void test_background(void **state) {
    assert_true(read_as(1000, "0::" MANAGER "/background.slice/x.service\n").background);
    assert_true(read_as(0, "0::/background.slice/x.service\n").background);
    assert_false(read_as(1000, "0::" MANAGER "/mybackground.slice/x.service\n").background);
    assert_false(read_as(1000, "0::" MANAGER "/app.slice/background.slice.service\n").background);
}

static void test_v1(void **state) {
    static const char hybrid[] = "12:memory:" USER "\n4:cpu,cpuacct:" USER "/session-7.scope\n"
                                 "1:name=systemd:" USER "/session-7.scope\n0::/\n";
    struct peer p;

    put(FS "/cpu" USER "/cpu.shares", "2048");
    put(FS "/cpu" USER "/session-7.scope/cpu.shares", "1024");
    p = read_as(1000, hybrid);
    assert_string_equal(p.unit, "session-7.scope");
    assert_int_equal(p.uid_weight, 200);
    assert_int_equal(p.unit_weight, 100);
}

static void test_unknown(void **state) {
    static const char *const texts[] = { "",          "\n",           ":",        "0::",
                                         "0::/\n",    "0::x\n",       "0:/a\n",   "0::/a\n",
                                         "::\n::\n",  "0::/.service", "0::/..\n", "1:cpu:/\n",
                                         "1:a,:/b\n", "0::/a//b\n" };

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct peer p = read_as(1, texts[i]);

        assert_string_equal(p.unit, "");
        assert_int_equal(p.app, 0);
        assert_int_equal(p.uid_weight, 0);
    }
}

static void test_socket(void **state) {
    struct peer p;
    int fd[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    assert_int_equal(peer_get(&p, fd[0]), 0);
    assert_int_equal(p.uid, geteuid());
    assert_int_equal(p.pid, getpid());
    close(fd[0]);
    close(fd[1]);
    assert_true(peer_get(&p, -1) < 0);
}

static int setup(void **state) {
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
    char cmd[64];

    snprintf(cmd, sizeof cmd, "rm -r %s", root);
    return system(cmd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_user),   cmocka_unit_test(test_forged),
        cmocka_unit_test(test_system), cmocka_unit_test(test_background),
        cmocka_unit_test(test_v1),     cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_socket),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
