/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * router - gate logits of a row to the experts it uses and their weights
 *
 * The experts are those with the largest logits, best first, the lower index on ties. Their
 * weights are the softmax over them alone, which is the softmax over all, renormalised.
 *
 * Source:  the gate of Gemma 4's mixture layers; Shazeer et al. (2017), section 2.1, for top-k.
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/kern/kern.h"

/**
 * router_top() - choose @k of @n experts
 * @logit:      f32 [n]; a NaN counts as smaller than everything
 * @scale:      f32 [n], multiplied into the weights; NULL: 1
 * @ret_id:     [k], best first
 * @ret_weight: f32 [k]
 */
void router_top(const float *logit, uint32_t n, uint32_t k, const float *scale, uint32_t *ret_id,
                float *ret_weight);

/**
 * router_guess() - the experts a layer would choose for the stream as it is before the layer
 * @x:          f32 [d], the residual stream behind the attention of the layer before, or its end
 * @scale:      f32 [d], @eps: of the norm in front of the gate
 * @w:          [n][d] the gate, in @fmt: F32, F16 or BF16
 * @scratch:    router_guess_size() bytes, 64-byte aligned
 * @ret_id:     [k], best first
 */
void router_guess(const struct kern *kern, const float *x, uint32_t d, float eps,
                  const float *scale, enum quant_fmt fmt, const void *w, uint32_t n, uint32_t k,
                  float *scratch, uint32_t *ret_id);
size_t router_guess_size(uint32_t d, uint32_t n, uint32_t k);
