/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * stop - strings that end an answer, looked for in a stream of text
 *
 * Text that could be the beginning of a stop string is held back until more text decides. What
 * comes out does not depend on how the stream was cut: the string that is complete first wins, the
 * longest of those complete at the same byte, the first given of equal ones. With strings and
 * pieces of well-formed UTF-8, what comes out is cut between characters.
 *
 * Owner:   one thread at a time.
 * Memory:  all of it at stop_new().
 * Source:  Knuth, Morris and Pratt, "Fast pattern matching in strings" (1977), one automaton each.
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

enum {
    STOP_N_MAX = 16,      /* strings */
    STOP_STR_MAX = 1024,  /* bytes of one */
    STOP_FEED_MAX = 1024, /* bytes of one piece */
};

struct stop;

/**
 * stop_new() - prepare @n strings
 * @str:        [n], 1 to STOP_STR_MAX bytes each, copied; n <= STOP_N_MAX, may be 0
 *
 * Return: 0 or -ENOMEM.
 */
int stop_new(struct stop **ret_stop, const char *const *str, size_t n);
struct stop *stop_free(struct stop *s);
AUTO_DEFINE(struct stop *, stop_free)

/* Bytes held back now. */
size_t stop_n_held(const struct stop *s);

/**
 * stop_feed() - take the next piece, give what may be shown
 * @text:       [n], n <= STOP_FEED_MAX
 * @ret_text:   [ret_n], what was held and now need not be, then new text; valid until the next call
 *
 * Return: -1, or the index of the string that is complete: then @ret_text ends before it, and the
 * stream is over.
 */
int32_t stop_feed(struct stop *s, const char *text, size_t n, const char **ret_text, size_t *ret_n);

/* No more text follows, or none that continues it: give what is held and begin anew. */
void stop_flush(struct stop *s, const char **ret_text, size_t *ret_n);
