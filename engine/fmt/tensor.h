/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * tensor - name, format, shape and place of one tensor of a model file; owns nothing
 *
 * Shapes are in GGUF's order: ne[0] is contiguous, so a matrix [in, out] holds ne[1] rows of
 * ne[0] elements and y[o] = sum_i w[o][i] * x[i].
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/fmt/quant.h"

enum { TENSOR_DIM_MAX = 4 };

struct tensor {
    const char *name; /* NUL-terminated */
    enum quant_fmt fmt;
    uint32_t n_dim;
    uint64_t ne[TENSOR_DIM_MAX]; /* elements; dimensions past n_dim are 1 */
    const void *data;            /* in the mapping of its file */
    uint64_t size;               /* bytes */
    uint32_t part;               /* which file of a split model, from 0 */
    uint64_t offset;             /* of data, in bytes from the start of that file */
};
