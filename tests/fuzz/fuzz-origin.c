/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as the file that is kept beside a model. What is read of it is a digest or nothing, and
 * a licence that is UTF-8; written again it reads the same. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/origin.h"
#include "engine/base/utf8.h"
#include "tests/fuzz/fuzz.h"

static char root[] = "/tmp/moed-fuzz-XXXXXX";
static char model[64];
static int file = -1;

static void clean_up(void) {
    char command[64];

    (void)snprintf(command, sizeof command, "rm -r %s", root);
    FUZZ_CHECK(system(command) == 0);
}

/* A link to memory, so that nothing is written to a disk. */
static void set_up(void) {
    char path[128], to[64];

    FUZZ_CHECK(mkdtemp(root) && atexit(clean_up) == 0);
    file = memfd_create("origin", MFD_CLOEXEC);
    (void)snprintf(model, sizeof model, "%s/m", root);
    (void)snprintf(path, sizeof path, "%s.origin", model);
    (void)snprintf(to, sizeof to, "/proc/self/fd/%d", file);
    FUZZ_CHECK(file >= 0 && symlink(to, path) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct origin o, back;

    if (file < 0)
        set_up();
    FUZZ_CHECK(ftruncate(file, 0) == 0 && pwrite(file, data, n, 0) == (ssize_t)n);
    origin_read(model, &o);
    FUZZ_CHECK(!o.digest[0] || origin_is_digest(o.digest));
    FUZZ_CHECK(utf8_valid(o.license, strlen(o.license)));
    FUZZ_CHECK(origin_write(model, &o) == 0);
    origin_read(model, &back);
    FUZZ_CHECK(strcmp(o.digest, back.digest) == 0 && strcmp(o.license, back.license) == 0);
    return 0;
}
