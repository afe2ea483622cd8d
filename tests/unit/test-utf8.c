/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "engine/base/utf8.h"

static size_t encode(uint32_t c, char *s) {
    if (c < 0x80) {
        s[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        s[0] = (char)(0xc0 | c >> 6);
        s[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        s[0] = (char)(0xe0 | c >> 12);
        s[1] = (char)(0x80 | (c >> 6 & 63));
        s[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    s[0] = (char)(0xf0 | c >> 18);
    s[1] = (char)(0x80 | (c >> 12 & 63));
    s[2] = (char)(0x80 | (c >> 6 & 63));
    s[3] = (char)(0x80 | (c & 63));
    return 4;
}

static void test_every_code_point(void **state) {
    char s[5];

    (void)state;
    for (uint32_t c = 0; c < 0x110000 + 16; c++) {
        size_t n = encode(c, s), want = c >= 0xd800 && c < 0xe000 ? 0 : c > 0x10ffff ? 0 : n;

        assert_int_equal(utf8_len(s, n), want);
        for (size_t k = 1; k < n && want; k++) {
            assert_int_equal(utf8_len(s, k), 0);
            assert_int_equal(utf8_partial(s, k), k);
        }
        assert_int_equal(utf8_partial(s, n), 0);
    }
}

static void test_overlong_and_stray(void **state) {
    (void)state;
    assert_false(utf8_valid("\xc0\x80", 2));
    assert_false(utf8_valid("\xe0\x80\x80", 3));
    assert_false(utf8_valid("\xf0\x80\x80\x80", 4));
    assert_false(utf8_valid("a\x80", 2));
    assert_false(utf8_valid("\xff", 1));
    assert_true(utf8_valid("", 0));
    assert_true(utf8_valid("a\0b", 3));
    assert_int_equal(utf8_partial("\xe0\x80", 2), 0); /* can not become a character */
    assert_int_equal(utf8_partial("ab\xf0\x9f\x98", 5), 3);
    assert_int_equal(utf8_partial("\x80\x80\x80\x80", 4), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_point),
        cmocka_unit_test(test_overlong_and_stray),
    };

    return cmocka_run_group_tests_name("utf8", tests, NULL, NULL);
}
