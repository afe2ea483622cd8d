/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-score - classify and score: which of some given answers fits
 */

#include <stdlib.h>
#include <string.h>

#include "client/moectl.h"

/* Ask for the scores of --choice after the text. @use_case: or NULL. Return: an exit code. */
static int score(struct ctl *c, const char *use_case, const struct moe_value **ret_result) {
    struct ctl_text prompt = { 0 };
    struct moe_map *p;
    int r;

    if (c->n_choices < 2)
        return ctl_complain(EXIT_USAGE, "say with --choice, at least twice, what there is to choose"
                                        " from");
    r = ctl_read_prompt(c, 0, &prompt);
    if (!r)
        r = ctl_connect(c);
    if (r) {
        free(prompt.p);
        return r;
    }

    p = moe_map_new();
    moe_map_open_array(p, "choices");
    for (size_t i = 0; i < c->n_choices; i++)
        moe_map_str(p, NULL, c->choices[i]);
    moe_map_end(p);
    if (c->raw) {
        moe_map_str(p, "prompt", prompt.p);
    } else {
        moe_map_open_array(p, "messages");
        for (int i = c->system ? 0 : 1; i < 2; i++) {
            moe_map_open_map(p, NULL);
            moe_map_str(p, "role", i ? "user" : "system");
            moe_map_str(p, "content", i ? prompt.p : c->system);
            moe_map_end(p);
        }
        moe_map_end(p);
    }
    if (c->generate.model)
        moe_map_str(p, "model", c->generate.model);
    if (use_case)
        moe_map_str(p, "use_case", use_case);
    r = ctl_call_with(c, "score.choices", p, MOE_FOREVER, ret_result);
    free(prompt.p);
    if (!r && c->json)
        ctl_put_json(c, *ret_result);

    return r;
}

int verb_classify(struct ctl *c) {
    const struct moe_value *v, *choices, *best = NULL;
    int r;

    r = score(c, "language.classify", &v);
    if (r || c->json)
        return r;

    choices = moe_get(v, "choices");
    for (size_t i = 0; i < moe_size(choices); i++) {
        const struct moe_value *choice = moe_at(choices, i);

        if (!best || moe_float(moe_get(choice, "p")) > moe_float(moe_get(best, "p")))
            best = choice;
    }
    ctl_puts(c, ctl_str(best, "text"));
    (void)putchar('\n');
    return EXIT_OK;
}

int verb_score(struct ctl *c) {
    const struct moe_value *v, *choices;
    int r;

    if (c->raw && c->system)
        return ctl_complain(EXIT_USAGE,
                            "--raw is a prompt as it is: there is no place for --system");
    r = score(c, NULL, &v);
    if (r || c->json)
        return r;

    choices = moe_get(v, "choices");
    for (size_t i = 0; i < moe_size(choices); i++) {
        const struct moe_value *choice = moe_at(choices, i);

        (void)printf("%6.2f %%  %9.3f  ", 100 * moe_float(moe_get(choice, "p")),
                     moe_float(moe_get(choice, "logprob")));
        ctl_puts(c, ctl_str(choice, "text"));
        (void)putchar('\n');
    }
    return EXIT_OK;
}
