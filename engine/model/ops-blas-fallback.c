/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>

#include "engine/model/ops.h"

bool ops_blas_present(void) {
    return false;
}

void ops_blas_init(void) {
}

void ops_blas_mul(const float *w, size_t w_stride, uint32_t n_out, uint32_t n_col, const float *x,
                  size_t x_stride, uint32_t n_row, float *y, size_t y_stride) {
    assert(!ops_blas_present() && "without OpenBLAS nobody may ask for it" == NULL);
}
