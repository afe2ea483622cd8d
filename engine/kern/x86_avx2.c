/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/kern/kern.h"

void kern_use_avx2(struct kern *k) {
    (void)k;
}
