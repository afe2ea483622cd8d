/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/rpc.h"
#include "daemon/saved.h"

static char dir[64];

static int setup(void **state) {
    (void)strcpy(dir, "/tmp/moed-saved-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state) {
    char cmd[128];

    (void)snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

/* One of @uid, with @n bytes, last used at @when. */
static struct saved make(uid_t uid, size_t n, time_t when) {
    const struct timespec times[2] = { { .tv_sec = when }, { .tv_sec = when } };
    struct session_blob blob = { calloc(1, n), n };
    struct saved s;

    assert_int_equal(saved_new(dir, uid, &s, NULL), 0);
    assert_int_equal(saved_write(&s, &blob, NULL), 0);
    assert_int_equal(utimensat(-1, s.session, times, 0), 0);
    free(blob.p);
    return s;
}

static bool there(const struct saved *s) {
    return access(s->session, F_OK) == 0;
}

static unsigned mode_of(const char *path) {
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return st.st_mode & 0777;
}

static void test_name(void **state) {
    struct saved s = make(7, 100, 1000), found;
    char path[128];

    assert_int_equal(strlen(s.token), SAVED_TOKEN);
    assert_int_equal(saved_find(dir, 7, s.token, SAVED_TOKEN, &found, NULL), 0);
    assert_string_equal(found.session, s.session);
    assert_string_equal(found.kv, s.kv);
    assert_int_equal(saved_find(dir, 8, s.token, SAVED_TOKEN, &found, NULL), RPC_NO_SUCH_SESSION);
    assert_int_equal(saved_find(dir, 7, s.token, SAVED_TOKEN - 1, &found, NULL),
                     RPC_NO_SUCH_SESSION);
    assert_int_equal(
        saved_find(dir, 7, "../7/0123456789abcdef0123456789a", SAVED_TOKEN, &found, NULL),
        RPC_NO_SUCH_SESSION);
    assert_int_equal(saved_find(NULL, 7, s.token, SAVED_TOKEN, &found, NULL), RPC_NO_SUCH_SESSION);
    assert_int_equal(saved_new(NULL, 7, &found, NULL), RPC_NOT_SUPPORTED);
    assert_int_equal(mode_of(s.session), 0600);
    (void)snprintf(path, sizeof path, "%s/sessions/7", dir);
    assert_int_equal(mode_of(path), 0700);
}

static void test_content(void **state) {
    struct session_blob blob = { (char *)"what was said", 13 }, back;
    struct saved s;

    assert_int_equal(saved_new(dir, 7, &s, NULL), 0);
    assert_int_equal(saved_write(&s, &blob, NULL), 0);
    assert_int_equal(saved_read(&s, &back, NULL), 0);
    assert_int_equal(back.n, 13);
    assert_memory_equal(back.p, blob.p, 13);
    free(back.p);
    assert_int_equal(unlink(s.session), 0);
    assert_int_equal(symlink("/etc/passwd", s.session), 0);
    assert_true(saved_read(&s, &back, NULL) < 0);
    assert_int_equal(unlink(s.session), 0);
    assert_int_equal(mkfifo(s.session, 0600), 0);
    assert_int_equal(saved_read(&s, &back, NULL), RPC_CORRUPT);
}

/* The oldest of the user who has the most goes, with its .kv; a .kv alone counts too. */
static void test_trim(void **state) {
    struct saved a = make(1, 100000, 50), b = make(1, 100000, 20), c = make(2, 150000, 10), lone;
    FILE *f = fopen(b.kv, "w");

    assert_non_null(f);
    (void)fclose(f);
    saved_trim(dir, 1 << 20);
    assert_true(there(&a) && there(&b) && there(&c));
    saved_trim(dir, 300000);
    assert_true(there(&a) && !there(&b) && there(&c));
    assert_int_equal(access(b.kv, F_OK), -1);

    assert_int_equal(saved_new(dir, 3, &lone, NULL), 0);
    f = fopen(lone.kv, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(dir, 1, sizeof dir, f), sizeof dir);
    (void)fclose(f);
    saved_trim(dir, 110000);
    assert_true(there(&a) && !there(&c));
    assert_int_equal(access(lone.kv, F_OK), 0);
    saved_trim(dir, 0);
    assert_false(there(&a));
    assert_int_equal(access(lone.kv, F_OK), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_content, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trim, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
