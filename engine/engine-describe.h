/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * engine-describe - what a model file says of itself, for people; a part of engine.h
 *
 * Owner: any thread; nothing is kept.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

enum { ENGINE_ARRAY_MAX = 64 /* elements of an array that is told */ };

enum engine_value_kind {
    ENGINE_VALUE_UINT,
    ENGINE_VALUE_INT,
    ENGINE_VALUE_FLOAT,
    ENGINE_VALUE_BOOL,
    ENGINE_VALUE_STR,
};

struct engine_value {
    enum engine_value_kind kind;
    union {
        uint64_t u;
        int64_t i;
        double f;
        bool b;
    };
    const char *s; /* STR: [n], as in the file, perhaps no UTF-8 */
    size_t n;
};

struct engine_tensor {
    const char *name, *type;
    const uint64_t *shape; /* [n_dim], the contiguous one first */
    uint32_t n_dim;
    uint64_t bytes;
};

struct engine_describe_ops {
    /* A metadata key in the file's order. @v: one value, or the [n] of an array; longer arrays, and
     * arrays of arrays, are left out. */
    void (*meta)(void *arg, const char *key, bool array, const struct engine_value *v, size_t n);
    void (*tensor)(void *arg, const struct engine_tensor *t);
};

/* Read the directory of the model file @path, without loading it; everything told is borrowed for
 * the call. Return: 0, ENGINE_BAD when it is no readable model file, or -errno. */
int engine_describe(const char *path, const struct engine_describe_ops *ops, void *arg,
                    struct why *why);
