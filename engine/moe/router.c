/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/moe/router.h"

#include <assert.h>
#include <math.h>

void router_top(const float *logit, uint32_t n, uint32_t k, const float *scale, uint32_t *ret_id,
                float *ret_weight) {
    uint32_t n_top = 0;
    float sum = 0;

    assert(k > 0 && k <= n);
    for (uint32_t e = 0; e < n; e++) {
        float x = isnan(logit[e]) ? -INFINITY : logit[e];
        uint32_t at = n_top;

        while (at > 0 && ret_weight[at - 1] < x) /* insertion: k is small, equals stay in order */
            at--;
        if (at == k)
            continue;
        n_top += n_top < k;
        for (uint32_t i = n_top - 1; i > at; i--) {
            ret_id[i] = ret_id[i - 1];
            ret_weight[i] = ret_weight[i - 1];
        }
        ret_id[at] = e;
        ret_weight[at] = x;
    }

    float max = isfinite(ret_weight[0]) ? ret_weight[0] : 0;

    for (uint32_t i = 0; i < k; i++)
        sum += ret_weight[i] = expf(ret_weight[i] - max);
    for (uint32_t i = 0; i < k; i++)
        ret_weight[i] = ret_weight[i] / sum * (scale ? scale[ret_id[i]] : 1);
}

size_t router_guess_size(uint32_t d, uint32_t n, uint32_t k) {
    return ((size_t)d + n + k + 31) / 16 * 16 * sizeof(float);
}

void router_guess(const struct kern *kern, const float *x, uint32_t d, float eps,
                  const float *scale, enum quant_fmt fmt, const void *w, uint32_t n, uint32_t k,
                  float *scratch, uint32_t *ret_id) {
    float *logit = scratch + (d + 15) / 16 * 16, *weight = logit + n;
    struct kern_rows rows = { .n_row = 1, .f = scratch, .f_stride = d };

    kern->rmsnorm(x, scale, eps, scratch, d);
    kern->mul[fmt](w, quant_row_size(fmt, d), n, d, &rows, logit, n);
    router_top(logit, n, k, NULL, ret_id, weight);
}
