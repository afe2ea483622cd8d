/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fair - whose turn it is: weighted shares over users, then over the applications of a user
 *
 *   foreground and background -> users -> applications -> jobs
 *
 * Deficit round robin with a quantum of one turn: every node counts what it was served, cost over
 * weight, and the one that was served least is next. A node with nothing to do saves nothing up: it
 * comes back level with whoever is served then. What a node got too much it pays back, also when it
 * went away in between.
 *
 * A step takes many turns, but of a sequence that generates only one. So a step ends as soon as the
 * next turn belongs to a node that has no more to give to it: users with one stream and with
 * fifteen get the same, and whoever is alone gets all. Within an application there is no such
 * limit; there streams go first, and prompts take turns.
 *
 * Background has one part in FAIR_BACKGROUND_PARTS while there is other work, and all when there is
 * none.
 *
 * Owner:   the engine thread. Knows nothing of models.
 * Memory:  fixed at fair_new().
 * Source:  Shreedhar and Varghese, "Efficient fair queuing using deficit round robin" (1996); the
 *          tags are those of Goyal, Vin and Cheng, "Start-time fair queuing" (1996).
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

enum fair_class { FAIR_DEFAULT, FAIR_INTERACTIVE, FAIR_BACKGROUND };

enum {
    FAIR_BACKGROUND_PARTS = 64,
    FAIR_INTERACTIVE_WEIGHT = 4, /* prompts of one application: parts to one of a default job */
    FAIR_WEIGHT = 100,           /* of who says nothing; as in cgroups, 1 to FAIR_WEIGHT_MAX */
    FAIR_WEIGHT_MAX = 10000,
};

/* Who a job is for. Weights of 0 are FAIR_WEIGHT; the latest job's count. */
struct fair_who {
    enum fair_class class;
    uint32_t uid, uid_weight;
    uint64_t app; /* any number that tells a user's applications apart */
    uint32_t app_weight;
};

struct fair;
struct fair_node;

/* A job's place in here; embedded in the job. */
struct fair_job {
    struct fair_who who;
    bool stream; /* it generates: set by the owner before fair_begin() */

    struct fair_node *app; /* NULL: not added */
    struct fair_job *prev, *next;
    uint64_t arrival;
    bool running, ready;
    double tag;
    uint64_t offered; /* the last step it was offered in */
};

/* @n_job: jobs at a time at most. Return: 0 or -ENOMEM. */
int fair_new(struct fair **ret_fair, uint32_t n_job);
struct fair *fair_free(struct fair *f);
AUTO_DEFINE(struct fair *, fair_free)

/* @j, with .who filled, comes and waits; and goes, whatever it did. */
void fair_add(struct fair *f, struct fair_job *j);
void fair_remove(struct fair *f, struct fair_job *j);

/* ---- places ---- */

/* The waiting job that is next to run, of those that @may; NULL: none. Foreground before
 * background, whose user and application have the fewest places for their weight before others,
 * then whose were served least; of an application interactive ones, then in order of arrival. */
typedef bool fair_may_fn(void *arg, const struct fair_job *j);
struct fair_job *fair_wait_next(const struct fair *f, fair_may_fn *may, void *arg);
/* Does @victim give way to @waiter: background to all others, and of a user with several
 * places one to a user who has none? */
bool fair_yields(const struct fair *f, const struct fair_job *victim,
                 const struct fair_job *waiter);
/* It runs, or waits again. What runs is not ready at first. */
void fair_run(struct fair *f, struct fair_job *j, bool running);

/* ---- turns ---- */

/* Has it anything to do in the next steps? Only while it runs. */
void fair_ready(struct fair *f, struct fair_job *j, bool ready);
void fair_begin(struct fair *f);
/* The next turn of this step, once a job; NULL: the step is full as it is. The first is NULL only
 * when nobody is ready. */
struct fair_job *fair_next(struct fair *f);
/* @j took its turn, for @cost > 0. */
void fair_charge(struct fair *f, struct fair_job *j, double cost);
