/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "daemon/registry.h"

static char dir[64];

static int setup(void **state) {
    (void)strcpy(dir, "/tmp/moed-registry-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state) {
    char cmd[128];

    (void)snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

static void put(const char *name, const char *text) {
    char path[256];
    FILE *f;

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    (void)fclose(f);
}

static void test_scan(void **state) {
    struct registry r = { 0 };
    const struct registry_file *f;

    put("b.gguf", "12");
    put("a-00001-of-00003.gguf", "1");
    put("a-00002-of-00003.gguf", "22");
    put("a-00003-of-00003.gguf", "333");
    put("c-00002-of-00002.gguf", "x"); /* its first part is missing */
    put("d-0001-of-0002.gguf", "x");   /* no part number: four digits */
    put("mmproj-b.gguf", "x");
    put("mtp-b.gguf", "x");
    put(".hidden.gguf", "x");
    put(".gguf", "x");
    put("bad\xff.gguf", "x");
    put("b.gguf.part", "x");
    put("notes.txt", "x");
    assert_int_equal(registry_scan(&r, dir), 0);
    assert_int_equal(r.n, 3);
    assert_string_equal(r.file[0].id, "a");
    assert_int_equal(r.file[0].size, 6);
    assert_string_equal(strrchr(r.file[0].path, '/'), "/a-00001-of-00003.gguf");
    assert_string_equal(r.file[1].id, "b");
    assert_int_equal(r.file[1].size, 2);
    assert_string_equal(r.file[2].id, "d-0001-of-0002");
    f = registry_find(&r, "b");
    assert_ptr_equal(f, &r.file[1]);
    assert_null(registry_find(&r, "c"));
    registry_deinit(&r);
}

static void test_equal_ids(void **state) {
    struct registry r = { 0 };

    put("a.gguf", "1");
    put("a-00001-of-00001.gguf", "1");
    assert_int_equal(registry_scan(&r, dir), 0);
    assert_int_equal(r.n, 1);
    registry_deinit(&r);
}

static void test_absent_and_unreadable(void **state) {
    struct registry r = { 0 };
    char path[128];

    put("a.gguf", "1");
    assert_int_equal(registry_scan(&r, dir), 0);
    (void)snprintf(path, sizeof path, "%s/a.gguf", dir);
    assert_int_equal(registry_scan(&r, path), -ENOTDIR);
    assert_int_equal(r.n, 1); /* as before */
    (void)snprintf(path, sizeof path, "%s/none", dir);
    assert_int_equal(registry_scan(&r, path), 0);
    assert_int_equal(r.n, 0);
    registry_deinit(&r);
}

static void test_single(void **state) {
    struct registry r = { 0 };
    char path[128];

    (void)snprintf(path, sizeof path, "%s/x-00002-of-00003.gguf", dir);
    assert_int_equal(registry_single(&r, path), 0); /* it was named: the engine will complain */
    assert_int_equal(r.n, 1);
    assert_string_equal(r.file[0].path, path);
    assert_int_equal(registry_single(&r, "/nowhere/model.bin"), 0);
    assert_string_equal(r.file[0].id, "model.bin");
    assert_int_equal(r.file[0].size, 0);
    registry_deinit(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_scan, setup, teardown),
        cmocka_unit_test_setup_teardown(test_equal_ids, setup, teardown),
        cmocka_unit_test_setup_teardown(test_absent_and_unreadable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_single, setup, teardown),
    };

    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
