/* SPDX-License-Identifier: Apache-2.0 */

/* Any text as $MEMORY_PRESSURE_WRITE. What is written to the source of signs is what the text
 * stands for in base64; of text that is none, or of too many bytes, nothing is. */

#include <event2/event.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/pressure.h"
#include "tests/fuzz/fuzz.h"

enum { N_MAX = 4096 /* bytes that are written at most */ };

static void on_level(void *arg, unsigned level) {
}

/* The digit that stands for bits [6 * i, 6 * i + 6) of @p [n]; behind the end they are 0. */
static char digit(const uint8_t *p, size_t n, size_t i) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned value = 0;

    for (size_t bit = 6 * i; bit < 6 * i + 6; bit++)
        value = value << 1 | (bit / 8 < n ? p[bit / 8] >> (7 - bit % 8) & 1u : 0);
    return digits[value];
}

/* What is written when @text is what is to be written. Return: bytes in @to [N_MAX + 1]. */
static size_t written(const char *text, uint8_t *to) {
    static struct event_base *base;
    struct pressure *p = NULL;
    char path[64];
    ssize_t n;
    int fd = memfd_create("signs", MFD_CLOEXEC);

    if (!base)
        base = event_base_new();
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    (void)setenv("MOE_LOG", "pressure:0", 1); /* that it is no source of signs */
    (void)setenv("MEMORY_PRESSURE_WATCH", path, 1);
    (void)setenv("MEMORY_PRESSURE_WRITE", text, 1);
    FUZZ_CHECK(fd >= 0 && base && pressure_new(&p, base, NULL, 1, on_level, NULL) == 0);
    FUZZ_CHECK(pressure_level(p) == 0);
    (void)pressure_free(p);
    n = pread(fd, to, N_MAX + 1, 0);
    FUZZ_CHECK(n >= 0 && n <= N_MAX);
    (void)close(fd);
    return (size_t)n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static uint8_t bytes[N_MAX + 1];
    char *text = strndup((const char *)data, n);
    size_t n_digit, n_byte, whole;
    bool valid;

    FUZZ_CHECK(text != NULL);
    n_digit = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
    whole = n_digit * 6 / 8;
    valid = text[n_digit + strspn(text + n_digit, "=")] == '\0' && whole <= N_MAX;
    n_byte = written(text, bytes);
    FUZZ_CHECK(n_byte == (valid ? whole : 0) || (valid && whole == N_MAX));
    for (size_t i = 0; 6 * (i + 1) <= 8 * n_byte;
         i++) /* but the last, which may have bits to spare */
        FUZZ_CHECK(digit(bytes, n_byte, i) == text[i]);
    free(text);
    return 0;
}
