/* SPDX-License-Identifier: Apache-2.0 */

#include <ctype.h>
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/origin.h"
#include "daemon/registry.h"
#include "engine/base/log.h"
#include "engine/base/utf8.h"

enum {
    REGISTRY_FILE_MAX = 4096,
    REGISTRY_PART_SIZE = 15, /* strlen("-00001-of-00003") */
};

/* The part number in "…-00001-of-00003", the name being without its ".gguf".
 * Return: 0 when it is none. */
static unsigned part_of(const char *name, size_t n, unsigned *ret_n_part) {
    const char *s = name + n - REGISTRY_PART_SIZE;

    if (n <= REGISTRY_PART_SIZE || s[0] != '-' || strncmp(s + 6, "-of-", 4) != 0)
        return 0;
    for (int i = 1; i < REGISTRY_PART_SIZE; i++)
        if ((i < 6 || i > 9) && !isdigit((unsigned char)s[i]))
            return 0;

    *ret_n_part = (unsigned)strtoul(s + 10, NULL, 10);
    return (unsigned)strtoul(s + 1, NULL, 10);
}

/* Bytes of @path and of the parts beside it. */
static uint64_t size_of(const char *path, size_t n_stem, unsigned n_part) {
    char part[4096];
    struct stat st;
    uint64_t size = 0;

    if (!n_part)
        return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
    for (unsigned i = 1; i <= n_part; i++) {
        (void)snprintf(part, sizeof part, "%.*s-%05u-of-%05u.gguf", (int)n_stem, path, i, n_part);
        if (stat(part, &st) == 0)
            size += (uint64_t)st.st_size;
    }

    return size;
}

/* Add @path; with @first, only if it is no later part of a split model. */
static int add(struct registry *r, const char *path, bool first) {
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    size_t n = strlen(name), n_id;
    unsigned n_part = 0, part;
    struct registry_file *p, f = { 0 };

    if (n > 5 && strcmp(name + n - 5, ".gguf") == 0)
        n -= 5;
    part = part_of(name, n, &n_part);
    if (part > 1 && first)
        return 0;
    n_id = part ? n - REGISTRY_PART_SIZE : n;

    p = realloc(r->file, (r->n + 1) * sizeof *p);
    if (!p)
        return err_new(-ENOMEM);
    r->file = p;
    f.id = strndup(name, n_id);
    f.path = strdup(path);
    f.size = size_of(path, (size_t)(name - path) + n_id, part ? n_part : 0);
    r->file[r->n++] = f;
    return f.id && f.path ? 0 : err_new(-ENOMEM);
}

static int file_cmp(const void *a, const void *b) {
    return strcmp(((const struct registry_file *)a)->id, ((const struct registry_file *)b)->id);
}

/* Sort; of equal ids ("x.gguf" beside "x-00001-of-00002.gguf") keep the first. */
static void settle(struct registry *r) {
    size_t n = 0;

    if (r->n)
        qsort(r->file, r->n, sizeof r->file[0], file_cmp);
    for (size_t i = 0; i < r->n; i++) {
        if (n && strcmp(r->file[n - 1].id, r->file[i].id) == 0) {
            log_debug("registry", "%s: a second file with id %s: passed over", r->file[i].path,
                      r->file[i].id);
            free(r->file[i].id);
            free(r->file[i].path);
        } else {
            r->file[n++] = r->file[i];
        }
    }
    r->n = n;
}

static bool is_model(const char *name) {
    size_t n = strlen(name);

    return n > 5 && strcmp(name + n - 5, ".gguf") == 0 && name[0] != '.' &&
           strncmp(name, "mmproj-", 7) != 0 && strncmp(name, "mtp-", 4) != 0 && utf8_valid(name, n);
}

int registry_scan(struct registry *r, const char *dir) {
    struct registry new = { 0 };
    char path[4096];
    struct dirent *e;
    DIR *at = opendir(dir);
    int k = 0;

    if (!at && errno != ENOENT)
        return err_new(-errno);

    while (at && k == 0 && new.n < REGISTRY_FILE_MAX && (e = readdir(at))) {
        if (!is_model(e->d_name))
            continue;
        if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < sizeof path)
            k = add(&new, path, true);
    }
    if (at)
        (void)closedir(at);
    if (k) {
        registry_deinit(&new);
        return err_up(k);
    }

    settle(&new);
    registry_deinit(r);
    *r = new;
    return 0;
}

int registry_single(struct registry *r, const char *path) {
    struct registry new = { 0 };
    int k = add(&new, path, false);

    if (k) {
        registry_deinit(&new);
        return err_up(k);
    }

    registry_deinit(r);
    *r = new;
    return 0;
}

int registry_remove(const struct registry_file *f) {
    size_t n = strlen(f->path), n_stem = n - strlen(".gguf");
    unsigned n_part = 0;
    char part[4096];

    origin_remove(f->path);
    if (!part_of(f->path, n_stem, &n_part))
        return unlink(f->path) < 0 ? err_new(-errno) : 0;
    for (unsigned i = n_part; i > 0; i--) { /* the one that makes it a model last */
        (void)snprintf(part, sizeof part, "%.*s-%05u-of-%05u.gguf",
                       (int)(n_stem - REGISTRY_PART_SIZE), f->path, i, n_part);
        if (unlink(part) < 0 && errno != ENOENT)
            return err_new(-errno);
    }
    return 0;
}

void registry_deinit(struct registry *r) {
    for (size_t i = 0; i < r->n; i++) {
        free(r->file[i].id);
        free(r->file[i].path);
    }
    free(r->file);
    *r = (struct registry){ 0 };
}

const struct registry_file *registry_find(const struct registry *r, const char *id) {
    for (size_t i = 0; i < r->n; i++)
        if (strcmp(r->file[i].id, id) == 0)
            return &r->file[i];

    return NULL;
}
