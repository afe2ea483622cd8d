/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as a recording of routes, and as the steps of a good head. What is taken can be walked
 * to its end, and all in it is in range. */

#include <string.h>

#include "engine/moe/routes.h"
#include "tests/fuzz/fuzz.h"

static void check(const void *buf, size_t n) {
    struct why why = { "" };
    struct routes_step step;
    struct routes r;
    uint64_t n_step = 0, n_row = 0;

    if (routes_open(&r, buf, n, &why) != 0) {
        FUZZ_CHECK(why.text[0]);
        return;
    }
    for (size_t at = 0; routes_next(&r, &at, &step); n_step++, n_row += step.n_row)
        for (size_t i = 0; i < (size_t)r.n_layer * step.n_row * r.k; i++)
            FUZZ_CHECK(step.id[i] < r.n_expert);
    FUZZ_CHECK(n_step == r.n_step && n_row == r.n_row);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct routes_head head = routes_begin(2, 4, 2);
    uint8_t *buf = malloc(n + sizeof head);

    FUZZ_CHECK(buf);
    memcpy(buf, data, n);
    check(buf, n);
    memcpy(buf, &head, sizeof head);
    memcpy(buf + sizeof head, data, n);
    check(buf, n + sizeof head);
    free(buf);
    return 0;
}
