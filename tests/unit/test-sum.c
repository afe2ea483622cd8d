/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/sum.h"

/* Values that other implementations of XXH64 print. */
static void test_known(void **state) {
    static const struct {
        const char *text;
        uint64_t sum;
    } known[] = {
        { "", 0xEF46DB3751D8E999 },
        { "a", 0xD24EC4F1A98C6E5B },
        { "abc", 0x44BC2CF5AD770999 },
        { "Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_true(sum_bytes(0, known[i].text, strlen(known[i].text)) == known[i].sum);
}

/* Each byte, the length and the seed count, at every length. */
static void test_every_byte(void **state) {
    uint8_t data[100] = { 0 };

    (void)state;
    for (size_t n = 1; n < sizeof data; n++) {
        uint64_t sum = sum_bytes(1, data, n);

        assert_true(sum != sum_bytes(2, data, n));
        assert_true(sum != sum_bytes(1, data, n - 1));
        for (size_t i = 0; i < n; i++) {
            data[i] ^= 0x10;
            assert_true(sum != sum_bytes(1, data, n));
            data[i] ^= 0x10;
        }
        data[n - 1] = (uint8_t)n;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known),
        cmocka_unit_test(test_every_byte),
    };

    return cmocka_run_group_tests_name("sum", tests, NULL, NULL);
}
