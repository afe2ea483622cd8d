/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/kern/pack.h"

enum {
    N_CUT = 6,         /* runs of pieces a block is cut into, at most */
    BLOCK_BYTES = 210, /* Q6_K, the largest */
};

/* @n pieces of @size bytes from byte @at of the plain block on */
struct cut {
    uint8_t at, n, size;
};

/* In the order of the packed block: what the kernel reads first comes first. */
/* clang-format off */
static const struct cut cuts[QUANT_FMT_N][N_CUT] = {
    [QUANT_F32]    = { { 0, 1, 4 } },
    [QUANT_F16]    = { { 0, 1, 2 } },
    [QUANT_BF16]   = { { 0, 1, 2 } },
    [QUANT_Q4_0]   = { { 0, 1, 2 }, { 2, 4, 4 } },
    [QUANT_Q4_1]   = { { 0, 2, 2 }, { 4, 4, 4 } },
    [QUANT_Q5_0]   = { { 0, 1, 2 }, { 2, 5, 4 } },
    [QUANT_Q5_1]   = { { 0, 2, 2 }, { 4, 5, 4 } },
    [QUANT_Q8_0]   = { { 0, 1, 2 }, { 2, 8, 4 } },
    [QUANT_Q4_K]   = { { 0, 2, 2 }, { 4, 35, 4 } },
    [QUANT_Q5_K]   = { { 0, 2, 2 }, { 4, 43, 4 } },
    [QUANT_Q6_K]   = { { 208, 1, 2 }, { 192, 16, 1 }, { 0, 16, 4 }, { 128, 8, 4 },
                       { 64, 16, 4 }, { 160, 8, 4 } },
    [QUANT_IQ4_NL] = { { 0, 1, 2 }, { 2, 4, 4 } },
    [QUANT_IQ4_XS] = { { 0, 2, 2 }, { 4, 33, 4 } },
    [QUANT_MXFP4]  = { { 0, 1, 1 }, { 1, 4, 4 } },
};
/* clang-format on */

/* One piece of every row; the switch lets each size be a plain load and store. */
static void put_pieces(uint8_t *dst, const uint8_t *src, size_t stride, uint32_t n_row,
                       size_t size) {
    switch (size) {
    case 1:
        for (uint32_t r = 0; r < n_row; r++)
            dst[r] = src[r * stride];
        break;
    case 2:
        for (uint32_t r = 0; r < n_row; r++)
            memcpy(dst + 2 * r, src + r * stride, 2);
        break;
    default:
        for (uint32_t r = 0; r < n_row; r++)
            memcpy(dst + 4 * r, src + r * stride, 4);
    }
}

void kern_pack_rows(enum quant_fmt fmt, uint32_t n_row, const void *src, size_t src_stride,
                    uint32_t n_col, void *dst) {
    const struct quant_info *info = quant_info(fmt);
    const uint8_t *block = src;
    uint8_t *to = dst;

    for (uint32_t k = 0; k < n_col; k += info->block, block += info->size)
        for (const struct cut *c = cuts[fmt]; c < cuts[fmt] + N_CUT; c++)
            for (uint32_t i = 0; i < c->n; i++) {
                put_pieces(to, block + c->at + i * c->size, src_stride, n_row, c->size);
                to += n_row * c->size;
            }
}

void kern_pack_decode(enum quant_fmt fmt, uint32_t n_row, const void *group, uint32_t row,
                      uint32_t n_col, float *dst) {
    const struct quant_info *info = quant_info(fmt);
    const uint8_t *from = group;
    uint8_t block[BLOCK_BYTES];

    for (uint32_t k = 0; k < n_col; k += info->block) {
        for (const struct cut *c = cuts[fmt]; c < cuts[fmt] + N_CUT; c++)
            for (uint32_t i = 0; i < c->n; i++) {
                memcpy(block + c->at + i * c->size, from + row * c->size, c->size);
                from += n_row * c->size;
            }
        quant_decode(fmt, block, dst + k, info->block);
    }
}
