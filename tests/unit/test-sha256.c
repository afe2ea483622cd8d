/* SPDX-License-Identifier: Apache-2.0 */

/* Digests as FIPS 180-4 and its examples have them, in whatever pieces the bytes come. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "daemon/sha256.h"

static void check(const void *p, size_t n, size_t piece, const char *want) {
    char text[SHA256_TEXT];
    struct sha256 s;

    sha256_init(&s);
    for (size_t at = 0; at < n; at += piece)
        sha256_add(&s, (const char *)p + at, n - at < piece ? n - at : piece);
    sha256_text(&s, text);
    assert_string_equal(text, want);
}

static void test_known(void **state) {
    static const char two[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";

    check("", 0, 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for (size_t piece = 1; piece <= 64; piece++) {
        check("abc", 3, piece, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        check(two, strlen(two), piece,
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    }
}

static void test_million(void **state) {
    static char a[1000000];
    static const size_t pieces[] = { 1, 63, 64, 65, 1000, sizeof a };

    (void)memset(a, 'a', sizeof a);
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++)
        check(a, sizeof a, pieces[i],
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_million),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
