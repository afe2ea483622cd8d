/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * answer - generated tokens to the text events of one answer
 *
 * Text comes out as whole characters, thought and text apart, markers left out, and stop strings
 * looked for in the text (not in thoughts). With logprobs every token that is shown has one event
 * of its own; text that was held back and turns out to be no stop string comes right before it, in
 * an event without a token. Joined, the events are the answer either way.
 *
 * Owner:   the engine thread.
 * Memory:  none of its own.
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/sched/job.h"
#include "engine/sched/stop.h"
#include "engine/text/chat.h"
#include "engine/text/sample.h"
#include "engine/text/tok.h"

/* Takes an event; copies it. */
typedef void answer_post_fn(void *arg, const struct job_event *ev);

enum { ANSWER_EVENT_MAX = 10 }; /* posted by one call */

struct answer {
    const struct vocab *vocab;
    struct stop *stop;
    bool raw, logprobs;
    uint32_t n_top;
    struct tok_decoder decoder;
    struct chat_parser parser;
    enum chat_kind kind; /* of the last piece */
    answer_post_fn *post;
    void *arg;
    struct job_event event; /* the one being filled */
};

/* Begin the answer of @j: borrowed, with its stop strings, until the answer is over. */
void answer_init(struct answer *a, struct job *j, const struct vocab *v, answer_post_fn *post,
                 void *arg);
/* Return: -1, or the index of the stop string that @token completed: the answer is over. */
int32_t answer_token(struct answer *a, const struct sample_result *token);
/* No more tokens: give what was held back. Return: as answer_token(). */
int32_t answer_end(struct answer *a);
