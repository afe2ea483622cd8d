/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as moed.conf. What is refused is refused with a sentence that names the line; what is
 * taken prints as a file that is taken again and prints the same. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/config.h"
#include "tests/fuzz/fuzz.h"

/* Return: the configuration in @data, or NULL with @why. */
static struct config *read_bytes(const void *data, size_t n, struct why *why) {
    AUTO(close) int fd = memfd_create("config", MFD_CLOEXEC);
    struct config *c = NULL;
    char path[64];
    int r;

    FUZZ_CHECK(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    r = config_new(&c, NULL, path, NULL, 0, why);
    FUZZ_CHECK(r == 0 ? c != NULL : r == CONFIG_BAD && !c);
    return c;
}

/* Without the comments, which say where a value came from. */
static char *print(const struct config *c) {
    char *text = NULL, *to;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    FUZZ_CHECK(f != NULL);
    config_print(c, f);
    (void)fclose(f);
    to = text;
    for (char *line = text, *next; *line; line = next) {
        size_t k = strcspn(line, "\n") + 1;

        next = line + k;
        if (*line != '#') {
            (void)memmove(to, line, k);
            to += k;
        }
    }
    *to = '\0';
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    AUTO(config_free) struct config *c = NULL;
    AUTO(config_free) struct config *again = NULL;
    AUTO(free) char *first = NULL;
    AUTO(free) char *second = NULL;
    struct why why = { 0 };

    c = read_bytes(data, n, &why);
    if (!c) {
        FUZZ_CHECK(strncmp(why.text, "/proc/self/fd/", 14) == 0 && strchr(why.text + 14, ':'));
        return 0;
    }

    first = print(c);
    again = read_bytes(first, strlen(first), &why);
    FUZZ_CHECK(again != NULL);
    second = print(again);
    FUZZ_CHECK(strcmp(first, second) == 0);
    return 0;
}
