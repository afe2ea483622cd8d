/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * sched - what the engine thread does: admit a job, evaluate its prompt, generate, end
 *
 * One job at a time. sched_step() is one step of the model: a part of the prompt or one token. It
 * never waits: when it can not go on it says so, and its caller does the waiting.
 *
 * Owner:   the engine thread; the counters may be read by any.
 * Memory:  fixed at sched_new().
 */

#include <stdatomic.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/base/ring.h"
#include "engine/sched/job.h"
#include "engine/sched/resident.h"

struct sched;

enum {
    SCHED__OK,

    SCHED_NO_JOB,  /* no job */
    SCHED_ON_HOLD, /* the job is on hold: call again when job.hold or job.halt changed */
    SCHED_NO_ROOM, /* events wait for room in the ring: call again when some were popped */
};

enum { SCHED_PROGRESS_USEC = 200000 }; /* between two progress events */

struct sched_stats {
    atomic_uint n_running;
    _Atomic uint64_t n_prompt_token, n_token; /* evaluated, generated */
    _Atomic uint64_t step_usec;               /* moving mean of one decode step; 0: none yet */
    _Atomic uint64_t job_usec;                /* moving mean of one generation; 0: none yet */
    _Atomic uint64_t began;                   /* of the running job, CLOCK_MONOTONIC */
};

/**
 * sched_new() - nothing to do yet
 * @r:          borrowed
 * @out:        struct job_event; the engine thread is its producer. Borrowed.
 * @stats:      borrowed, zeroed
 *
 * Return: 0 or -ENOMEM.
 */
int sched_new(struct sched **ret_s, struct resident *r, struct ring *out,
              struct sched_stats *stats);
struct sched *sched_free(struct sched *s);
AUTO_DEFINE(struct sched *, sched_free)

/* Take @j, prepared; only when sched_step() said SCHED_NO_JOB. JOB_EVENT_DONE hands it on. */
void sched_admit(struct sched *s, struct job *j);

/* Return: 0: call again; or one of the above. */
int sched_step(struct sched *s);
