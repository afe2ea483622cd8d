/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * test-pack - a packing of every block format for tests of what handles packed weights: the blocks
 * of 8 rows by turns. Its product unpacks and calls the kernel for native rows, so packed and
 * native weights give the same bits.
 */

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kern/kern.h"

#define TEST_PACK_LAYOUT "test.r8"

enum { TEST_PACK_ROWS = 8 };

static struct kern test_pack_kern; /* what native rows are multiplied with */

static void test_pack_row(enum quant_fmt fmt, const uint8_t *group, uint32_t row, uint32_t n_col,
                          uint8_t *dst) {
    size_t size = quant_info(fmt)->size, n = quant_row_size(fmt, n_col) / size;

    for (size_t i = 0; i < n; i++)
        memcpy(dst + i * size, group + (i * TEST_PACK_ROWS + row) * size, size);
}

static void test_pack_pack(enum quant_fmt fmt, const uint8_t *src, size_t stride, uint32_t n_col,
                           uint8_t *dst) {
    size_t size = quant_info(fmt)->size, n = quant_row_size(fmt, n_col) / size;

    for (size_t i = 0; i < n; i++)
        for (size_t row = 0; row < TEST_PACK_ROWS; row++)
            memcpy(dst + (i * TEST_PACK_ROWS + row) * size, src + row * stride + i * size, size);
}

static void test_pack_decode(enum quant_fmt fmt, const uint8_t *group, uint32_t row, uint32_t n_col,
                             float *dst) {
    uint8_t *native = malloc(quant_row_size(fmt, n_col));

    assert(native);
    test_pack_row(fmt, group, row, n_col, native);
    test_pack_kern.decode[fmt](native, dst, n_col);
    free(native);
}

static void test_pack_mul(enum quant_fmt fmt, const uint8_t *w, size_t stride, uint32_t n_out,
                          uint32_t n_col, const struct kern_rows *x, float *y, size_t y_stride) {
    uint8_t *native = malloc(stride * n_out);

    assert(native && n_out % TEST_PACK_ROWS == 0);
    for (uint32_t o = 0; o < n_out; o++)
        test_pack_row(fmt, w + o / TEST_PACK_ROWS * TEST_PACK_ROWS * stride, o % TEST_PACK_ROWS,
                      n_col, native + o * stride);
    test_pack_kern.mul[fmt](native, stride, n_out, n_col, x, y, y_stride);
    free(native);
}

// clang-format off
#define TEST_PACK(fmt_) \
    static void pack_##fmt_(const void *src, size_t stride, uint32_t n_col, void *dst) { \
        test_pack_pack(fmt_, src, stride, n_col, dst); \
    } \
    static void decode_##fmt_(const void *group, uint32_t row, uint32_t n_col, float *dst) { \
        test_pack_decode(fmt_, group, row, n_col, dst); \
    } \
    static void mul_##fmt_(const void *w, size_t stride, uint32_t n_out, uint32_t n_col, \
                           const struct kern_rows *x, float *y, size_t y_stride) { \
        test_pack_mul(fmt_, w, stride, n_out, n_col, x, y, y_stride); \
    }
#define TEST_PACK_ALL(do_) \
    do_(QUANT_Q4_0) do_(QUANT_Q4_1) do_(QUANT_Q5_0) do_(QUANT_Q5_1) do_(QUANT_Q8_0) do_(QUANT_Q2_K) \
    do_(QUANT_Q3_K) do_(QUANT_Q4_K) do_(QUANT_Q5_K) do_(QUANT_Q6_K) do_(QUANT_IQ4_NL) \
    do_(QUANT_IQ4_XS) do_(QUANT_MXFP4)
#define TEST_PACK_ENTRY(fmt_) \
    k->pack[fmt_] = (struct kern_pack){ TEST_PACK_ROWS, TEST_PACK_LAYOUT, pack_##fmt_, \
                                        decode_##fmt_, mul_##fmt_ };
// clang-format on

TEST_PACK_ALL(TEST_PACK)

/* From now on @k packs all block formats. */
static void test_pack_use(struct kern *k) {
    test_pack_kern = *k;
    TEST_PACK_ALL(TEST_PACK_ENTRY)
}
