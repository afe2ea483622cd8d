/* SPDX-License-Identifier: Apache-2.0 */

#include <stdbool.h>
#include <string.h>

#include "engine/sched/shorten.h"

/* Walks over messages: which exchange, from 0, the last one seen belongs to. */
struct walk {
    size_t exchange;
    bool asked, answered; /* what the exchange has so far */
};

/* Return: is @m part of an exchange? */
static bool walk_on(struct walk *w, const struct chat_message *m) {
    if (chat_is_instruction(m))
        return false;
    if (strcmp(m->role, "user") == 0) {
        if (w->answered)
            w->exchange += w->asked;
        w->answered = false;
        w->asked = true;
    } else {
        w->answered = true;
    }
    return true;
}

size_t shorten_most(const struct chat_message *msg, size_t n) {
    struct walk w = { 0 };

    for (size_t i = 0; i < n; i++)
        (void)walk_on(&w, &msg[i]);
    return w.exchange;
}

size_t shorten_by(const struct chat_message *msg, size_t n, size_t n_exchange,
                  struct chat_message *ret) {
    struct walk w = { 0 };
    size_t n_kept = 0;

    for (size_t i = 0; i < n; i++)
        if (!walk_on(&w, &msg[i]) || w.exchange >= n_exchange)
            ret[n_kept++] = msg[i];
    return n_kept;
}
