/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/base/utf8.h"

/* Bytes the lead byte @c promises; 0 for a byte that can not lead. */
static size_t promised(uint8_t c) {
    return c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
}

/* May @b follow @lead as second byte? The narrowed ranges shut out overlong forms (e0, f0),
 * surrogates (ed) and what lies above U+10FFFF (f4). */
static bool second_ok(uint8_t lead, uint8_t b) {
    uint8_t lo = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t hi = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;

    return b >= lo && b <= hi;
}

/* Bytes at @s, up to @len, that are well formed as far as they go. */
static size_t prefix(const uint8_t *s, size_t n, size_t len) {
    size_t i = 1;

    if (n > 1 && len > 1 && !second_ok(s[0], s[1]))
        return 1;
    while (i < len && i < n && (s[i] & 0xc0) == 0x80)
        i++;

    return i;
}

size_t utf8_len(const char *s, size_t n) {
    const uint8_t *u = (const uint8_t *)s;
    size_t len = n ? promised(u[0]) : 0;

    return len && prefix(u, n, len) == len ? len : 0;
}

bool utf8_valid(const char *s, size_t n) {
    for (size_t i = 0, len; i < n; i += len) {
        len = utf8_len(s + i, n - i);
        if (!len)
            return false;
    }

    return true;
}

size_t utf8_partial(const char *s, size_t n) {
    const uint8_t *u = (const uint8_t *)s;

    for (size_t k = 1; k <= 3 && k <= n; k++) {
        const uint8_t *lead = u + n - k;
        size_t len = promised(*lead);

        if (len)
            return len > k && prefix(lead, k, len) == k ? k : 0;
        if ((*lead & 0xc0) != 0x80)
            return 0;
    }

    return 0;
}
