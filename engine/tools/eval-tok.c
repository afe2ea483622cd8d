/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "engine/tools/eval.h"

/* The ids of one text as a JSON array on a line of its own. No <bos> is put before it. */
static int print_ids(struct eval *e, const char *text, size_t n) {
    struct tok_list ids = { 0 };
    int r = tok_encode(e->vocab, text, n, e->args->special ? TOK_SPECIAL : 0, &ids);

    if (r != 0)
        return eval_fail(e, "no memory");
    putchar('[');
    for (size_t i = 0; i < ids.n; i++)
        printf("%s%d", i ? "," : "", ids.id[i]);
    puts("]");
    tok_list_deinit(&ids);

    return 0;
}

int eval_tokenize(struct eval *e) {
    const struct eval_args *a = e->args;
    AUTO(free) char *text = NULL;
    size_t n = 0;
    int r;

    if (a->tokenize && strcmp(a->tokenize, "-") != 0)
        return print_ids(e, a->tokenize, strlen(a->tokenize));
    r = eval_read(e, a->tokenize ? a->tokenize : a->tokenize_lines, &text, &n);
    if (r != 0)
        return r;
    if (a->tokenize)
        return print_ids(e, text, n);

    for (size_t at = 0; at < n && r == 0;) {
        const char *end = memchr(text + at, '\n', n - at);
        size_t len = end ? (size_t)(end - text) - at : n - at;

        r = print_ids(e, text + at, len);
        at += len + 1;
    }

    return r;
}
