/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>

#include "client/moectl-line.h"

struct line {
    struct ctl *c;
    const char *prompt;
};

int line_new(struct line **ret_line, struct ctl *c, const char *prompt) {
    struct line *l = malloc(sizeof *l);

    if (!l)
        return -ENOMEM;
    *l = (struct line){ c, prompt };
    *ret_line = l;
    return 0;
}

struct line *line_free(struct line *l) {
    free(l);
    return NULL;
}

int line_read(struct line *l, struct ctl_text *ret) {
    return ctl_read_typed(l->c, l->prompt, ret);
}
