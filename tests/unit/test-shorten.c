/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sched/shorten.h"

enum { N_MAX = 16 };

/* A conversation from letters: s system, d developer, u user, a assistant. Texts are its places. */
static size_t make(const char *roles, struct chat_message *msg) {
    static char texts[N_MAX][4];
    size_t n = strlen(roles);

    for (size_t i = 0; i < n; i++) {
        (void)snprintf(texts[i], sizeof texts[i], "%c", (char)('A' + i));
        msg[i].text = texts[i];
        msg[i].role = roles[i] == 's'   ? "system"
                      : roles[i] == 'd' ? "developer"
                      : roles[i] == 'u' ? "user"
                                        : "assistant";
    }
    return n;
}

/* What is left is told by the letters of its texts. */
static void test_shorten(void **state) {
    static const struct {
        const char *roles;
        size_t most;
        const char *left[3]; /* without 0, 1 and 2 exchanges */
    } table[] = {
        { "", 0, { "", "", "" } },
        { "s", 0, { "A", "A", "A" } },
        { "u", 0, { "A", "", "" } },
        { "uau", 1, { "ABC", "C", "" } },
        { "suau", 1, { "ABCD", "AD", "A" } },
        { "suauau", 2, { "ABCDEF", "ADEF", "AF" } },
        { "suauaua", 2, { "ABCDEFG", "ADEFG", "AFG" } },
        { "uuaauuau", 2, { "ABCDEFGH", "EFGH", "H" } }, /* runs are one exchange */
        { "ausuadu", 1, { "ABCDEFG", "CFG", "" } },     /* an answer first; instructions between */
        { "auausd", 1, { "ABCDEF", "DEF", "" } },
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct chat_message msg[N_MAX], left[N_MAX];
        size_t n = make(table[i].roles, msg), most = shorten_most(msg, n);

        for (size_t k = 0; k < 3 && k <= most; k++) {
            char got[N_MAX + 1] = "";
            size_t n_left = shorten_by(msg, n, k, left);

            for (size_t m = 0; m < n_left; m++)
                got[m] = left[m].text[0];
            if (strcmp(got, table[i].left[k]) != 0)
                fail_msg("%s without %zu: '%s', not '%s'", table[i].roles, k, got,
                         table[i].left[k]);
        }
        if (most != table[i].most)
            fail_msg("%s: %zu may go, not %zu", table[i].roles, most, table[i].most);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shorten),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
