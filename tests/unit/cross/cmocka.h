/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * cmocka - as much of cmocka's interface as test-kern.c takes, for a build with a cross compiler
 * that has nothing but the C library
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(f)                                                                        \
    { #f, f }
#define print_message printf
#define fail_msg(...) (printf(__VA_ARGS__), printf("\n"), exit(1))
#define assert_true(c)                                                                             \
    ((c) ? (void)0 : (void)fail_msg("%s:%d: not true: %s", __FILE__, __LINE__, #c))
#define assert_non_null(p)           assert_true((p) != NULL)
#define assert_int_equal(a, b)       assert_true((a) == (b))
#define assert_ptr_not_equal(a, b)   assert_true((a) != (b))
#define assert_string_equal(a, b)    assert_true(strcmp(a, b) == 0)
#define assert_memory_equal(a, b, n) assert_true(memcmp(a, b, n) == 0)
#define cmocka_run_group_tests_name(name, tests, setup, teardown)                                  \
    cmocka_run(tests, sizeof(tests) / sizeof *(tests))

static int cmocka_run(const struct CMUnitTest *tests, size_t n) {
    for (size_t i = 0; i < n; i++) {
        printf("%s\n", tests[i].name);
        fflush(stdout);
        tests[i].run(NULL);
    }
    return 0;
}
