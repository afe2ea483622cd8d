/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * registry - the model files of a folder
 *
 * Files "*.gguf", but not "mmproj-*" and "mtp-*", which are parts of other models, and of a split
 * model the first part only. A name that is no UTF-8 cannot be said and is passed over. The id is
 * the name without ".gguf" and "-00001-of-0000N".
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct registry_file {
    char *id, *path;
    uint64_t size; /* bytes of all parts */
};

struct registry {
    struct registry_file *file; /* sorted by id, ids unique */
    size_t n;
};

/* The files of @dir; a folder that is not there has none.
 * Return: 0 or -errno, with @r as before. */
int registry_scan(struct registry *r, const char *dir);
/* @path alone, whatever its name. A file that is not there has size 0. */
int registry_single(struct registry *r, const char *path);
/* Remove the file, and the parts that belong to it. Return: 0 or -errno. */
int registry_remove(const struct registry_file *f);
void registry_deinit(struct registry *r);

/* NULL: none. */
const struct registry_file *registry_find(const struct registry *r, const char *id);
