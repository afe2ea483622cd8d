/* SPDX-License-Identifier: Apache-2.0 */

/* Any text as what an application asks a portal: it is refused with a sentence, or messages come of
 * it that have a role and whole texts. */

#include <errno.h>
#include <string.h>

#include "client/portal/input.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    const char *why = NULL;
    struct input in = { 0 };
    size_t n_text = 0;
    char *json;
    int r;

    json = malloc(n + 1);
    FUZZ_CHECK(json != NULL);
    if (n)
        (void)memcpy(json, data, n);
    json[n] = '\0';
    r = input_parse(json, &in, &why);
    FUZZ_CHECK(r == 0 || ((r == INPUT_BAD || r == INPUT_UNSUPPORTED) && why && *why && !in.msg));
    FUZZ_CHECK(r != 0 || in.n > 0);
    for (size_t i = 0; i < in.n; i++) {
        FUZZ_CHECK(in.msg[i].role && in.msg[i].content);
        n_text += strlen(in.msg[i].content);
    }
    FUZZ_CHECK(n_text <= n); /* an escape is no shorter than what it stands for */
    input_deinit(&in);
    free(json);
    return 0;
}
