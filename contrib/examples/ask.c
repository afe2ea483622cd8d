/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Ask, and print the answer as it comes; the library waits.
 *
 *   cc -o ask ask.c $(pkg-config --cflags --libs libmoe)
 *   ./ask "What does grep do?"
 */
#include <moe.h>
#include <stdio.h>
#include <string.h>

static void on_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    (void)m, (void)id, (void)userdata;
    if (d->thought)
        return;
    fwrite(d->text, 1, d->n_text, stdout);
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct moe_generate g = MOE_GENERATE_INIT;
    struct moe_message question = { "user", argc > 1 ? argv[1] : "What does grep do?" };
    const struct moe_result *result;
    struct moe *m;
    int r;

    r = moe_open(&m, NULL);
    if (r < 0) {
        fprintf(stderr, "moed cannot be reached: %s\n", strerror(-r));
        return 1;
    }

    g.messages = &question;
    g.n_messages = 1;
    g.max_tokens = 256;
    g.on_delta = on_delta;
    r = moe_generate_wait(m, &g, &result);
    if (r < 0)
        fprintf(stderr, "%s\n", moe_last_error(m) ? moe_last_error(m)->message : strerror(-r));
    else
        printf("\n[%ju tokens, %s]\n", (uintmax_t)result->n_generated, result->stop_reason);
    moe_close(m);

    return r < 0;
}
