/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/kern/pack.h"

enum {
    N_CUT = 3,         /* runs of equal pieces in a block, at most */
    BLOCK_BYTES = 210, /* Q6_K, the largest */
};

struct cut {
    uint8_t n;
    uint8_t size; /* bytes of each of n pieces */
};

/* clang-format off */
static const struct cut cuts[QUANT_FMT_N][N_CUT] = {
    [QUANT_Q4_0]   = { { 1, 2 }, { 4, 4 } },
    [QUANT_Q4_1]   = { { 2, 2 }, { 4, 4 } },
    [QUANT_Q5_0]   = { { 1, 2 }, { 5, 4 } },
    [QUANT_Q5_1]   = { { 2, 2 }, { 5, 4 } },
    [QUANT_Q8_0]   = { { 1, 2 }, { 8, 4 } },
    [QUANT_Q4_K]   = { { 2, 2 }, { 35, 4 } },
    [QUANT_Q5_K]   = { { 2, 2 }, { 43, 4 } },
    [QUANT_Q6_K]   = { { 48, 4 }, { 16, 1 }, { 1, 2 } },
    [QUANT_IQ4_NL] = { { 1, 2 }, { 4, 4 } },
    [QUANT_IQ4_XS] = { { 2, 2 }, { 33, 4 } },
    [QUANT_MXFP4]  = { { 1, 1 }, { 4, 4 } },
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
    uint32_t n_block = n_col / quant_info(fmt)->block;
    const uint8_t *from = src;
    uint8_t *to = dst;

    for (uint32_t b = 0; b < n_block; b++)
        for (const struct cut *c = cuts[fmt]; c < cuts[fmt] + N_CUT; c++)
            for (uint32_t i = 0; i < c->n; i++) {
                put_pieces(to, from, src_stride, n_row, c->size);
                from += c->size;
                to += n_row * c->size;
            }
}

void kern_pack_decode(enum quant_fmt fmt, uint32_t n_row, const void *group, uint32_t row,
                      uint32_t n_col, float *dst) {
    const struct quant_info *info = quant_info(fmt);
    const uint8_t *from = group;
    uint8_t block[BLOCK_BYTES];

    for (uint32_t k = 0; k < n_col; k += info->block) {
        uint8_t *to = block;

        for (const struct cut *c = cuts[fmt]; c < cuts[fmt] + N_CUT; c++)
            for (uint32_t i = 0; i < c->n; i++) {
                memcpy(to, from + row * c->size, c->size);
                to += c->size;
                from += n_row * c->size;
            }
        quant_decode(fmt, block, dst + k, info->block);
    }
}
