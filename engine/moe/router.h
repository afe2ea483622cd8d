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

#include <stdint.h>

/**
 * router_top() - choose @k of @n experts
 * @logit:      f32 [n]; a NaN counts as smaller than everything
 * @scale:      f32 [n], multiplied into the weights; NULL: 1
 * @ret_id:     [k], best first
 * @ret_weight: f32 [k]
 */
void router_top(const float *logit, uint32_t n, uint32_t k, const float *scale, uint32_t *ret_id,
                float *ret_weight);
