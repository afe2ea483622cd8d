/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/moe/fetch-how.h"

static int init(struct fetch *f) {
    return -ENOSYS;
}

const struct fetch_way fetch_uring = { .name = "none", .init = init };
