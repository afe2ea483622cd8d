/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * gguf - read-only view of a GGUF v2 or v3 model, one file or split over several
 *
 * Files are mapped privately and read-only; nothing is copied but the directory. Every pointer
 * handed out lives exactly as long as the struct gguf. A file that opens is consistent: counts,
 * lengths, offsets and sizes were checked against the file's size and against each other, keys and
 * tensor names are unique, tensors are contiguous and inside their file. What a key or tensor must
 * be for a given model is checked by the typed getters and by the model.
 *
 * Owner:   whoever opened it; immutable afterwards, so any thread may read.
 *          The files must not shrink meanwhile: a page that is gone raises SIGBUS.
 * Memory:  directory only; never more than a small multiple of the header's bytes.
 * Source:  GGUF specification v3 (ggml docs/gguf.md), little-endian files only.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/tensor.h"

struct gguf;

enum {
    GGUF__OK,

    GGUF_BAD,    /* readable, but not as it must be; @why names the key, tensor or byte */
    GGUF_ABSENT, /* getters: no such key; @why is untouched */
};

enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STR,
    GGUF_ARR,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
};

/**
 * gguf_open() - map a model and check its directory
 * @ret_gguf:   the view, owned by the caller: gguf_free()
 * @path:       the file; of a split model its first part ("…-00001-of-00003.gguf"), the others are
 *              found beside it
 * @why:        sentence for the operator on failure, or NULL
 *
 * Return: 0, GGUF_BAD, or -errno from open(2), fstat(2), mmap(2), memory.
 */
int gguf_open(struct gguf **ret_gguf, const char *path, struct why *why);
struct gguf *gguf_free(struct gguf *g);
AUTO_DEFINE(struct gguf *, gguf_free)

/* Files of the model, the bytes of each, and an open descriptor of each (borrowed). */
uint32_t gguf_n_part(const struct gguf *g);
const char *gguf_label(const struct gguf *g, uint32_t part); /* its path, or the end of it */
uint64_t gguf_part_size(const struct gguf *g, uint32_t part);
int gguf_part_fd(const struct gguf *g, uint32_t part);

/* Tensors of all parts, in file order; by name, NULL when there is none. */
uint32_t gguf_n_tensor(const struct gguf *g);
const struct tensor *gguf_tensor_at(const struct gguf *g, uint32_t i);
const struct tensor *gguf_tensor(const struct gguf *g, const char *name);

/* One metadata entry as stored. @data points at the value's bytes (unaligned): the string's text,
 * the array's elements, or the scalar. @n: elements of an array, bytes of a string, else 1. */
struct gguf_meta {
    const char *key; /* NUL-terminated */
    enum gguf_type type;
    enum gguf_type elem; /* of an array */
    const uint8_t *data;
    uint64_t n;
};
uint32_t gguf_n_meta(const struct gguf *g);
const struct gguf_meta *gguf_meta_at(const struct gguf *g, uint32_t i);
const struct gguf_meta *gguf_meta(const struct gguf *g, const char *key);
/* Integer or bool of any width: element @i < n of an array, or the scalar (i = 0). False when it is
 * neither, or above INT64_MAX. */
bool gguf_meta_int(const struct gguf_meta *m, uint64_t i, int64_t *ret);

/* Typed getters. Any integer width is read for an integer, f32 or f64 for a float; the value is
 * range-checked (ends included; floats must be finite).
 * Return: 0, GGUF_ABSENT, or GGUF_BAD with the key in @why. */
int gguf_get_int(const struct gguf *g, const char *key, int64_t min, int64_t max, int64_t *ret,
                 struct why *why);
int gguf_get_u32(const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *ret,
                 struct why *why);
int gguf_get_f32(const struct gguf *g, const char *key, float min, float max, float *ret,
                 struct why *why);
int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct why *why);
/* @ret_s: not terminated, in the mapping */
int gguf_get_str(const struct gguf *g, const char *key, const char **ret_s, size_t *ret_n,
                 struct why *why);

/* A value per layer: a scalar fills all @n of @ret, an array must have exactly @n elements.
 * Booleans count as 0 and 1. */
int gguf_get_u32_each(const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t n,
                      uint32_t *ret, struct why *why);

/* An array of strings: @ret_n its length; then element by element, in order, in O(1) each. */
struct gguf_strs {
    const uint8_t *pos;
    uint64_t n_left;
};
int gguf_get_strs(const struct gguf *g, const char *key, struct gguf_strs *ret, uint64_t *ret_n,
                  struct why *why);
bool gguf_strs_next(struct gguf_strs *it, const char **ret_s, size_t *ret_n);

/* An array of integers (any width) into freshly allocated memory, each in [min, max].
 * @ret: free() */
int gguf_get_ints(const struct gguf *g, const char *key, int32_t min, int32_t max, int32_t **ret,
                  uint64_t *ret_n, struct why *why);
