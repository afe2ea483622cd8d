/* SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>

#include "engine/model/ops.h"

bool ops_blas_present(void) {
    return true;
}

void ops_blas_init(void) {
    openblas_set_num_threads(1);
}

void ops_blas_mul(const float *w, size_t w_stride, uint32_t n_out, uint32_t n_col, const float *x,
                  size_t x_stride, uint32_t n_row, float *y, size_t y_stride) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)n_row, (blasint)n_out,
                (blasint)n_col, 1, x, (blasint)x_stride, w, (blasint)w_stride, 0, y,
                (blasint)y_stride);
}
