/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * quant-k - the formats in blocks of 256: Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS
 *
 * Called only through the table of quant.c. @b: one block, unaligned    @y, @x: f32 [256]
 */

#include <stdint.h>

enum { QUANT_K = 256 };

void quant_k_decode_q2(const uint8_t *b, float *y);
void quant_k_decode_q3(const uint8_t *b, float *y);
void quant_k_decode_q4(const uint8_t *b, float *y);
void quant_k_decode_q5(const uint8_t *b, float *y);
void quant_k_decode_q6(const uint8_t *b, float *y);
void quant_k_decode_iq4_xs(const uint8_t *b, float *y);

void quant_k_encode_q2(const float *x, uint8_t *b);
void quant_k_encode_q3(const float *x, uint8_t *b);
void quant_k_encode_q4(const float *x, uint8_t *b);
void quant_k_encode_q5(const float *x, uint8_t *b);
void quant_k_encode_q6(const float *x, uint8_t *b);
void quant_k_encode_iq4_xs(const float *x, uint8_t *b);

/* What the 16 codes of IQ4_NL and IQ4_XS stand for. */
extern const int8_t quant_k_iq4[16];
