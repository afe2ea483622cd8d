/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * score - how likely each of some given continuations of a prompt is
 *
 * The labels are walked as a tree of their tokens, so what several begin with is evaluated once,
 * and labels of one token cost nothing but the prompt. At each node the logits of the tokens so far
 * give the next token of all labels that pass it; then either the walk goes one token deeper, or
 * back to where the next label parts.
 *
 * Owner:   prepared by the text thread, then the engine thread's.
 * Memory:  all of it at score_new() and score_prepare().
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/text/tok.h"

enum {
    SCORE__OK,

    SCORE_BAD, /* a label that cannot be scored; @why names it */
};

enum {
    SCORE_LABEL_MAX = 256,
    SCORE_TOKEN_MAX = 64, /* of one label: so far the cache can always go back, see kvcache.h */
};

struct score;

/* @label: [n], copied. Return: 0 or -ENOMEM. */
int score_new(struct score **ret_score, const char *const *label, size_t n);
struct score *score_free(struct score *s);
AUTO_DEFINE(struct score *, score_free)

/* Encode the labels. Return: 0, SCORE_BAD, or -ENOMEM. */
int score_prepare(struct score *s, const struct vocab *v, struct why *why);
/* Tokens that the walk adds to the prompt at most. */
uint32_t score_depth(const struct score *s);

/**
 * score_step() - take the logits of the prompt and the tokens that were added
 * @logits:     f32 [n_vocab]
 * @ret_keep:   added tokens that stay
 * @ret_next:   then this one is added
 *
 * Return: true to go on, false when all is known; then score_result() says it.
 */
bool score_step(struct score *s, const float *logits, uint32_t n_vocab, uint32_t *ret_keep,
                tok_t *ret_next);

/* Natural logarithms of the labels' probabilities, in the order they were given: f64 [ret_n]. */
const double *score_result(const struct score *s, size_t *ret_n);
