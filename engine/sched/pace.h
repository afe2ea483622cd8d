/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * pace - what rows cost on this machine at this moment, and how many prompt rows a step may take
 *
 * Nothing is assumed: every step says how long it took. A step of single rows (the next token of
 * sequences) is remembered by their number, in powers of two, since the first rows cost the most;
 * what a step with prompt rows took longer is theirs. Slower counts at once, faster by and by.
 *
 * Owner:   the engine thread.
 */

#include <stdint.h>

enum {
    PACE_N = 10,       /* 1, 2 to 3, ... 512 and more single rows */
    PACE_FIRST = 16,   /* prompt rows beside streams while nothing is known */
    PACE_MIN = 8,      /* however slow: a prompt goes on */
    PACE_PERCENT = 80, /* of the bound are filled: steps vary */
};

struct pace {
    uint64_t bound;        /* of a step while somebody reads along */
    double single[PACE_N]; /* usec of a step; 0: not known */
    double prompt;         /* usec of one prompt row; 0: not known */
};

void pace_init(struct pace *p, uint64_t bound);
/* A step of @n_single and @n_prompt rows took @usec. */
void pace_note(struct pace *p, uint32_t n_single, uint32_t n_prompt, uint64_t usec);
/* Usec of a step of @n single rows, as far as is known; 0: nothing is. */
double pace_single(const struct pace *p, uint32_t n);
/* What one of @n single rows, or a prompt row, costs; > 0. */
double pace_single_cost(const struct pace *p, uint32_t n);
double pace_prompt_cost(const struct pace *p);
/* Prompt rows a step with @n_single others may have. */
uint32_t pace_room(const struct pace *p, uint32_t n_single);
