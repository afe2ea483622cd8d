/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as the body of a request, for both interfaces. What is refused has a status and a
 * sentence; what is taken may be asked for. */

#include <string.h>

#include "client/openai/params.h"
#include "tests/fuzz/fuzz.h"

static void read_as(json_object *body, bool chat) {
    struct fault f = { 0 };
    struct params p;
    int r = params_read(&p, body, chat, &f);
    const struct moe_generate *g = &p.generate;

    FUZZ_CHECK(r == 0 ? !f.status : r == f.status && r >= 400 && *f.message && f.type);
    if (r == 0) {
        FUZZ_CHECK(!!g->n_messages + !!g->prompt + !!g->n_tokens == 1);
        FUZZ_CHECK(g->logprobs >= -1 && g->logprobs <= PARAMS_TOP_LOGPROBS_MAX);
        for (size_t i = 0; i < g->n_messages; i++)
            FUZZ_CHECK(g->messages[i].role && g->messages[i].content);
        for (size_t i = 0; i < g->n_stop; i++)
            FUZZ_CHECK(*g->stop[i]);
    }
    params_deinit(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    json_tokener *t = json_tokener_new();
    json_object *body;

    FUZZ_CHECK(t && n < INT32_MAX);
    json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    body = n ? json_tokener_parse_ex(t, (const char *)data, (int)n) : NULL;
    if (n && json_tokener_get_error(t) == json_tokener_success) {
        read_as(body, true);
        read_as(body, false);
    }
    (void)json_object_put(body);
    json_tokener_free(t);
    return 0;
}
