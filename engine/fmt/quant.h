/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * quant - block layouts of the tensor formats, byte for byte as GGUF stores them, with the
 * reference decoder and encoder of each
 *
 * Every decoder here is the definition of its format: kernels are tested against it. Blocks are
 * little-endian and packed; rows are whole blocks.
 *
 * Source: ggml's block definitions, written out in the comments of quant.c.
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

enum quant_fmt {
    QUANT_F32,
    QUANT_F16,
    QUANT_BF16,
    QUANT_Q4_0,
    QUANT_Q4_1,
    QUANT_Q5_0,
    QUANT_Q5_1,
    QUANT_Q8_0,
    QUANT_Q2_K,
    QUANT_Q3_K,
    QUANT_Q4_K,
    QUANT_Q5_K,
    QUANT_Q6_K,
    QUANT_IQ4_NL,
    QUANT_IQ4_XS,
    QUANT_MXFP4,
    QUANT_FMT_N,
};

struct quant_info {
    const char *name; /* "Q4_0" */
    uint32_t ggml_id; /* type number in a GGUF file */
    uint32_t block;   /* elements a block */
    uint32_t size;    /* bytes a block */
};

enum {
    QUANT__OK,

    QUANT_UNKNOWN, /* no such type number, or one this engine does not compute with */
};

const struct quant_info *quant_info(enum quant_fmt fmt);

/* Return: 0 or QUANT_UNKNOWN. */
int quant_from_ggml(uint32_t ggml_id, enum quant_fmt *ret_fmt);

/* Bytes of a row of @n elements; @n is a multiple of the block. */
size_t quant_row_size(enum quant_fmt fmt, size_t n);

/* @src: n / block blocks   @dst: f32 [n] */
void quant_decode(enum quant_fmt fmt, const void *src, float *dst, size_t n);

/* @src: f32 [n], finite    @dst: n / block blocks. Round to nearest; scales are searched for the
 * least squared error, see quant-fit.h. encode(decode(b)) decodes to what b does, bit for bit, when
 * b's scales are finite and
 *   Q4_1 Q5_1             d > 0, |m| < 2^12 d, and codes are not all alike
 *   Q3_K Q6_K IQ4_XS      elements that share a scale use their lowest code
 *   Q2_K Q4_K Q5_K        the same, and their highest; d >= 0 and 0 <= dmin < 16 d
 * Otherwise other scales may say the same of a few elements and not fit beside the rest. What is
 * beyond a format's largest scale is clipped. Slow: 0.05 to 1 us an element. */
void quant_encode(enum quant_fmt fmt, const float *src, void *dst, size_t n);

/* f16 and bf16 bits to f32, exact; f32 to f16 and bf16, ties to even, subnormals kept. */
static inline float quant_f16(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = { .u = (uint32_t)(h & 0x7fff) << 13 };

    v.f *= 0x1p112f; /* exponent bias 15 -> 127; right for subnormals too */
    if ((h & 0x7c00) == 0x7c00)
        v.u |= 0x7f800000; /* inf, nan */
    v.u |= (uint32_t)(h & 0x8000) << 16;

    return v.f;
}

static inline float quant_bf16(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = { .u = (uint32_t)h << 16 };

    return v.f;
}

uint16_t quant_to_f16(float f);
uint16_t quant_to_bf16(float f);
