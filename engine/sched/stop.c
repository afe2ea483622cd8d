/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/sched/stop.h"

struct stop_str {
    char *text;     /* [n] */
    uint16_t *fall; /* [n] length of the longest proper border of the first i + 1 bytes */
    uint16_t n;
    uint16_t state; /* bytes of @text that the stream ends in */
};

struct stop {
    uint32_t n_str;
    struct stop_str str[STOP_N_MAX];
    size_t n_held, n_given;                 /* buf: given at the last call, then held */
    char buf[STOP_STR_MAX + STOP_FEED_MAX]; /* holds less than a string, then one piece */
};

static uint16_t stop_next(const struct stop_str *t, uint16_t state, char c) {
    while (state > 0 && (state == t->n || t->text[state] != c))
        state = t->fall[state - 1];
    return (uint16_t)(state + (t->text[state] == c));
}

static int stop_str_init(struct stop_str *t, const char *text) {
    size_t n = strlen(text);

    t->text = strdup(text);
    t->fall = calloc(n, sizeof *t->fall);
    if (!t->text || !t->fall)
        return err_new(-ENOMEM);
    t->n = (uint16_t)n;

    for (size_t i = 1; i < n; i++)
        t->fall[i] = stop_next(t, t->fall[i - 1], text[i]);
    return 0;
}

int stop_new(struct stop **ret_stop, const char *const *str, size_t n) {
    AUTO(stop_free) struct stop *s = calloc(1, sizeof *s);

    if (!s)
        return err_new(-ENOMEM);

    for (size_t i = 0; i < n; i++) {
        s->n_str++;
        if (stop_str_init(&s->str[i], str[i]) < 0)
            return err_up(-ENOMEM);
    }

    *ret_stop = take(s);
    return 0;
}

struct stop *stop_free(struct stop *s) {
    if (!s)
        return NULL;
    for (uint32_t i = 0; i < s->n_str; i++) {
        free(s->str[i].text);
        free(s->str[i].fall);
    }
    free(s);
    return NULL;
}

size_t stop_n_held(const struct stop *s) {
    return s->n_held;
}

/* Move every automaton over @c. Return: the complete string that wins, or -1. */
static int32_t stop_step(struct stop *s, char c) {
    int32_t hit = -1;

    for (uint32_t i = 0; i < s->n_str; i++) {
        struct stop_str *t = &s->str[i];

        t->state = stop_next(t, t->state, c);
        if (t->state == t->n && (hit < 0 || t->n > s->str[hit].n))
            hit = (int32_t)i;
    }
    return hit;
}

static size_t stop_longest(const struct stop *s) {
    size_t n = 0;

    for (uint32_t i = 0; i < s->n_str; i++)
        if (s->str[i].state > n)
            n = s->str[i].state;
    return n;
}

int32_t stop_feed(struct stop *s, const char *text, size_t n, const char **ret_text,
                  size_t *ret_n) {
    size_t n_buf = s->n_held, n_hold = 0;
    int32_t hit = -1;

    memmove(s->buf, s->buf + s->n_given, s->n_held);
    for (size_t i = 0; i < n && hit < 0; i++) {
        s->buf[n_buf++] = text[i];
        hit = stop_step(s, text[i]);
    }

    n_hold = hit < 0 ? stop_longest(s) : s->str[hit].n;
    *ret_text = s->buf;
    *ret_n = n_buf - n_hold;
    s->n_given = n_buf - n_hold;
    s->n_held = hit < 0 ? n_hold : 0;
    return hit;
}

void stop_flush(struct stop *s, const char **ret_text, size_t *ret_n) {
    *ret_text = s->buf + s->n_given;
    *ret_n = s->n_held;
    s->n_given += s->n_held;
    s->n_held = 0;
    for (uint32_t i = 0; i < s->n_str; i++)
        s->str[i].state = 0;
}
