/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/kern/kern.h"

void kern_use_avx512vnni(struct kern *k) {
    (void)k;
}
