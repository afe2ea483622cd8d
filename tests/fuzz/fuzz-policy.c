/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as scores, once as they are and once with a head and a sum that are right. What is
 * refused changes nothing; what is taken is what is saved again. */

#include <string.h>

#include "engine/base/sum.h"
#include "engine/moe/policy.h"
#include "tests/fuzz/fuzz.h"

enum { N_LAYER = 2, N_EXPERT = 4, N_SLOT = 3, MODEL = 0x1234 };

static void check(const void *buf, size_t n) {
    struct policy *p = NULL;
    struct why why = { "" };
    uint64_t out[(sizeof(struct policy_head) + N_LAYER * N_EXPERT * sizeof(uint32_t)) / 8];
    uint32_t layer, expert;
    int r;

    FUZZ_CHECK(policy_new(&p, N_LAYER, N_EXPERT, N_SLOT) == 0);
    r = policy_load(p, MODEL, buf, n, &why);
    FUZZ_CHECK(r == 0 || (r == POLICY_BAD && why.text[0]));
    FUZZ_CHECK(policy_save_size(p) == sizeof out);
    policy_save(p, MODEL, out);
    if (r == 0)
        FUZZ_CHECK(n == sizeof out && memcmp(buf, out, n) == 0);
    else
        FUZZ_CHECK(!policy_want(p, &layer, &expert));
    while (policy_want(p, &layer, &expert))
        policy_release(p, policy_take(p, layer, expert));
    policy_free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct policy_head head = {
        .magic = POLICY_MAGIC,
        .version = POLICY_VERSION,
        .n_layer = N_LAYER,
        .n_expert = N_EXPERT,
        .model = MODEL,
    };
    uint64_t *buf = malloc(n + sizeof head);

    FUZZ_CHECK(buf);
    memcpy(buf, data, n);
    check(buf, n);
    head.sum = sum_bytes(sum_bytes(0, &head, offsetof(struct policy_head, sum)), data, n);
    memcpy(buf, &head, sizeof head);
    memcpy((uint8_t *)buf + sizeof head, data, n);
    check(buf, n + sizeof head);
    free(buf);
    return 0;
}
