/* SPDX-License-Identifier: Apache-2.0 */

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/conffile.h"
#include "daemon/origin.h"
#include "engine/base/utf8.h"

static void path_of(const char *model_path, char *path, size_t n) {
    (void)snprintf(path, n, "%s.origin", model_path);
}

bool origin_is_digest(const char *s) {
    return strlen(s) == ORIGIN_DIGEST - 1 && strspn(s, "0123456789abcdef") == ORIGIN_DIGEST - 1;
}

static int on_key(void *arg, const char *key, const char *value, const char *from,
                  struct why *why) {
    struct origin *o = arg;

    size_t n = strlen(value);

    if (strcmp(key, "digest") == 0 && origin_is_digest(value))
        (void)strcpy(o->digest, value);
    else if (strcmp(key, "license") == 0 && n < sizeof o->license && utf8_valid(value, n))
        (void)strcpy(o->license, value);
    return 0;
}

void origin_read(const char *model_path, struct origin *ret) {
    char path[4096 + 16];

    *ret = (struct origin){ 0 };
    path_of(model_path, path, sizeof path);
    (void)conffile_read(path, false, on_key, ret, NULL);
}

int origin_write(const char *model_path, const struct origin *o) {
    char path[4096 + 16];
    FILE *f;
    int r;

    path_of(model_path, path, sizeof path);
    f = fopen(path, "we");
    if (!f)
        return err_new(-errno);
    r = fprintf(f, "digest = %s\nlicense = %s\n", o->digest, o->license) < 0 || fflush(f) != 0 ||
                fsync(fileno(f)) < 0
            ? err_new(-errno)
            : 0;
    (void)fclose(f);
    return r;
}

void origin_remove(const char *model_path) {
    char path[4096 + 16];

    path_of(model_path, path, sizeof path);
    (void)unlink(path);
}
