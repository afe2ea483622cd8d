/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sched/stop.h"

struct outcome {
    char text[256];
    size_t n;
    int32_t hit;
};

/* Feed @text in pieces of @cut bytes. */
static void run(const char *const *str, size_t n_str, const char *text, size_t cut,
                struct outcome *o) {
    AUTO(stop_free) struct stop *s = NULL;
    const char *out;
    size_t n;

    assert_int_equal(stop_new(&s, str, n_str), 0);
    *o = (struct outcome){ .hit = -1 };
    for (size_t at = 0, left = strlen(text); left > 0 && o->hit < 0;) {
        size_t k = left < cut ? left : cut;

        o->hit = stop_feed(s, text + at, k, &out, &n);
        memcpy(o->text + o->n, out, n);
        o->n += n;
        at += k;
        left -= k;
    }
    stop_flush(s, &out, &n);
    memcpy(o->text + o->n, out, n);
    o->n += n;
}

/* Quadratic definition: the first byte at which any string is complete, the longest there. */
static void define(const char *const *str, size_t n_str, const char *text, struct outcome *o) {
    size_t n_text = strlen(text);

    *o = (struct outcome){ .hit = -1, .n = n_text };
    for (size_t end = 1; end <= n_text && o->hit < 0; end++)
        for (size_t i = 0; i < n_str; i++) {
            size_t n = strlen(str[i]);

            if (n <= end && memcmp(text + end - n, str[i], n) == 0 &&
                (o->hit < 0 || n > strlen(str[o->hit]))) {
                o->hit = (int32_t)i;
                o->n = end - n;
            }
        }
    memcpy(o->text, text, o->n);
}

static void test_definition(void **state) {
    uint32_t seed = 1;

    for (int round = 0; round < 3000; round++) {
        char text[40], word[4][8];
        const char *str[4] = { word[0], word[1], word[2], word[3] };
        size_t n_str;

        /* Two letters, so that overlaps and near misses are common. */
        seed = seed * 1664525 + 1013904223;
        n_str = (seed >> 16) % 5;
        for (size_t i = 0; i < sizeof text; i++) {
            seed = seed * 1664525 + 1013904223;
            text[i] = i + 1 < sizeof text ? (char)('a' + (seed >> 30) % 2) : 0;
        }
        for (size_t w = 0; w < 4; w++) {
            seed = seed * 1664525 + 1013904223;
            size_t n = 1 + (seed >> 16) % 7;

            for (size_t i = 0; i <= n; i++) {
                seed = seed * 1664525 + 1013904223;
                word[w][i] = i < n ? (char)('a' + (seed >> 30) % 2) : 0;
            }
        }
        for (size_t cut = 1; cut < 9; cut++) {
            struct outcome want, got;

            define(str, n_str, text, &want);
            run(str, n_str, text, cut, &got);
            if (want.hit != got.hit || want.n != got.n || memcmp(want.text, got.text, want.n) != 0)
                fail_msg("%s by %zu: want %d \"%.*s\" got %d \"%.*s\"", text, cut, want.hit,
                         (int)want.n, want.text, got.hit, (int)got.n, got.text);
        }
    }
}

/* Held back only what may still become a stop string, and given out once it can not. */
static void test_hold(void **state) {
    static const char *const str[] = { "STOP", "\n\n" };
    AUTO(stop_free) struct stop *s = NULL;
    const char *out;
    size_t n;

    assert_int_equal(stop_new(&s, str, 2), 0);
    assert_int_equal(stop_feed(s, "we ST", 5, &out, &n), -1);
    assert_int_equal(n, 3);
    assert_memory_equal(out, "we ", 3);
    assert_int_equal(stop_n_held(s), 2);
    assert_int_equal(stop_feed(s, "AY\n", 3, &out, &n), -1);
    assert_int_equal(n, 4);
    assert_memory_equal(out, "STAY", 4);
    assert_int_equal(stop_n_held(s), 1);

    stop_flush(s, &out, &n);
    assert_int_equal(n, 1);
    assert_memory_equal(out, "\n", 1);
    assert_int_equal(stop_n_held(s), 0);
    assert_int_equal(stop_feed(s, "\n", 1, &out, &n), -1); /* begun anew: one newline, not two */
    assert_int_equal(stop_feed(s, "\n.", 2, &out, &n), 1);
    assert_int_equal(n, 0);
}

/* The bounds: the longest string but for its last byte, then the longest piece. */
static void test_bounds(void **state) {
    AUTO(stop_free) struct stop *s = NULL;
    char str[STOP_STR_MAX + 1], piece[STOP_FEED_MAX];
    const char *one = str, *out;
    size_t n;

    memset(str, 'x', STOP_STR_MAX);
    str[STOP_STR_MAX - 1] = 'y';
    str[STOP_STR_MAX] = 0;
    memset(piece, 'x', sizeof piece);
    assert_int_equal(stop_new(&s, &one, 1), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(stop_feed(s, piece, sizeof piece, &out, &n), -1);
    assert_int_equal(n, STOP_FEED_MAX);
    assert_int_equal(stop_n_held(s), STOP_STR_MAX - 1);
    assert_int_equal(stop_feed(s, "y", 1, &out, &n), 0);
    assert_int_equal(n, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_hold),
        cmocka_unit_test(test_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
