/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
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
    struct saved_draft none = { .fd = -1 };
    struct saved s;

    assert_int_equal(saved_new(dir, uid, &s, NULL), 0);
    assert_int_equal(saved_write(&s, &blob, &none, NULL), 0);
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
    struct saved_draft none = { .fd = -1 };
    struct saved s;

    assert_int_equal(saved_new(dir, 7, &s, NULL), 0);
    assert_int_equal(saved_write(&s, &blob, &none, NULL), 0);
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

/* Keys and values of @s, [@n] bytes. */
static struct saved_draft keys(const struct saved *s, size_t n) {
    struct saved_draft d;
    char *p = calloc(1, n);

    assert_int_equal(saved_draft(s->kv, &d, NULL), 0);
    assert_int_equal(write(d.fd, p, n), n);
    free(p);
    return d;
}

static bool has_drafts(void) {
    char cmd[128];

    (void)snprintf(cmd, sizeof cmd, "ls %s/sessions/7 | grep -q new", dir);
    return system(cmd) == 0;
}

/* A draft is nothing until it is written; what is written over is gone, whatever it was. */
static void test_drafts(void **state) {
    struct saved s = make(7, 10, 1000);
    struct session_blob blob = { (char *)"more", 4 }, back;
    struct saved_draft d = keys(&s, 1000), other = keys(&s, 2000);
    struct stat st;
    int fd;

    assert_false(saved_has_kv(&s));
    assert_int_equal(saved_open_kv(&s), -ENOENT);
    assert_int_equal(saved_write(&s, &blob, &d, NULL), 0);
    assert_int_equal(d.fd, -1);
    fd = saved_open_kv(&s);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 1000);
    assert_int_equal(st.st_mode & 0777, 0600);
    (void)close(fd);
    assert_true(has_drafts());
    saved_discard(&other);
    saved_discard(&other);
    assert_false(has_drafts());

    d = keys(&s, 10); /* one whose service was killed */
    (void)close(d.fd);
    assert_true(has_drafts());
    saved_clean(dir);
    assert_false(has_drafts());
    saved_clean(NULL);
    assert_true(there(&s) && saved_has_kv(&s));

    d.fd = -1;
    assert_int_equal(saved_write(&s, &blob, &d, NULL), 0);
    assert_false(saved_has_kv(&s));
    assert_int_equal(saved_read(&s, &back, NULL), 0);
    assert_int_equal(back.n, 4);
    free(back.p);
    saved_remove(&s);
    assert_int_equal(saved_read(&s, &back, NULL), RPC_NO_SUCH_SESSION);
}

/* The oldest of the user who has the most goes; all keys and values before any text; a .kv alone
 * counts too. */
static void test_trim(void **state) {
    struct saved a = make(1, 100000, 50), b = make(1, 100000, 20), c = make(2, 150000, 10), lone;
    struct saved_draft d[3] = { keys(&a, 200000), keys(&b, 200000), keys(&c, 300000) };
    FILE *f;

    assert_int_equal(rename(d[0].path, a.kv), 0);
    assert_int_equal(rename(d[1].path, b.kv), 0);
    assert_int_equal(rename(d[2].path, c.kv), 0);
    for (int i = 0; i < 3; i++)
        (void)close(d[i].fd);
    saved_trim(dir, 2 << 20);
    assert_true(saved_has_kv(&a) && saved_has_kv(&b) && saved_has_kv(&c));
    saved_trim(dir, 950000);
    assert_true(saved_has_kv(&a) && !saved_has_kv(&b) && saved_has_kv(&c));
    saved_trim(dir, 600000);
    assert_true(saved_has_kv(&a) && !saved_has_kv(&c));
    assert_true(there(&a) && there(&b) && there(&c));
    saved_trim(dir, 300000);
    assert_true(there(&a) && !there(&b) && there(&c));
    assert_false(saved_has_kv(&a));

    assert_int_equal(saved_new(dir, 3, &lone, NULL), 0);
    f = fopen(lone.kv, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(dir, 1, sizeof dir, f), sizeof dir);
    (void)fclose(f);
    saved_trim(dir, 102400 + 151552 + 1000);
    assert_true(there(&a) && there(&c) && !saved_has_kv(&lone));
    saved_trim(dir, 110000);
    assert_true(there(&a) && !there(&c));
    saved_trim(dir, 0);
    assert_false(there(&a));
}

static void test_list(void **state) {
    struct saved old = make(7, 5000, 1000), new = make(7, 9000, 2000), other = make(8, 100, 3000);
    struct saved_item *item = NULL;
    size_t n = 0;

    (void)other;
    assert_int_equal(saved_list(dir, 7, &item, &n), 0);
    assert_int_equal(n, 2);
    assert_string_equal(item[0].token, new.token);
    assert_string_equal(item[1].token, old.token);
    assert_in_range(item[0].n_byte, 9000, 1 << 20);
    assert_int_equal(item[0].n_kv_byte, 0);
    assert_int_equal(item[1].used.tv_sec, 1000);
    free(item);
    saved_remove(&new);
    assert_int_equal(saved_list(dir, 7, &item, &n), 0);
    assert_int_equal(n, 1);
    free(item);
    assert_int_equal(saved_list(dir, 9, &item, &n), 0);
    assert_int_equal(n, 0);
    free(item);
    assert_int_equal(saved_list(NULL, 7, &item, &n), 0);
    assert_int_equal(n, 0);
    free(item);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_name, setup, teardown),
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_content, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drafts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trim, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
