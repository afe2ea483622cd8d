/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * batch - the rows of one step, and the tokens drawn from what it computes
 *
 * Each job has one part: the next tokens that its cache has not, one for a sequence that generates,
 * a stretch of the prompt else. The part that reaches a job's last token asks for logits, unless
 * the job is about its prompt alone.
 *
 * Owner:   the engine thread; drawing is spread over the pool.
 * Memory:  fixed at batch_init().
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/hw/pool.h"
#include "engine/model/model.h"
#include "engine/sched/job.h"
#include "engine/text/sample.h"

struct batch_part {
    struct job *job;
    uint32_t n; /* rows */
    bool out;   /* a token is drawn */
    const float *logits;
    struct sample_result token;
};

struct batch {
    struct model_row *row;   /* [n_row] of n_row_max */
    struct batch_part *part; /* [n_part] of n_part_max */
    uint32_t n_row, n_row_max, n_part, n_part_max;
    uint32_t n_single, n_prompt; /* rows of parts of one, and of others */
};

/* Return: 0 or -ENOMEM. */
int batch_init(struct batch *b, uint32_t n_row_max, uint32_t n_part_max);
void batch_deinit(struct batch *b);

void batch_clear(struct batch *b);
/* The next @n tokens of @j, which runs; there is room for them. */
void batch_add(struct batch *b, struct job *j, uint32_t n);
/* Draw a token for each part with .out. @logits: f32 [parts with .out][n_vocab], of the step */
void batch_draw(struct batch *b, struct pool *pool, const float *logits, uint32_t n_vocab);
