/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * sched - what the engine thread does: give jobs places, fill steps, draw tokens, end
 *
 * A job that has a place has a sequence of the cache and room in it for its prompt and all it may
 * generate; when it did not say how much that is, for some, and more as it goes on. What does not
 * fit waits, and nothing that came later passes it. Each step takes the next token of the
 * sequences that generate and parts of prompts, in the order and amount that fair.h says, and no
 * more prompt rows than pace.h says fit between two tokens of a stream. A job may lose its place
 * at a token boundary, and goes on when it has one again; what comes out is the same.
 *
 * What was evaluated is kept, under the job's salt, as long as running jobs leave room: at the
 * job's marks, and when it loses its place or ends. A job that is given a place begins behind what
 * is kept of its tokens, but for the last one, whose logits it needs.
 *
 * A job that saves its prompt evaluates what is not kept of it, then writes its file; one that
 * restores reads a file instead. Both go by slices between steps, and keep their place.
 *
 * sched_step() never waits: when it can not go on it says so, and its caller does the waiting.
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
    SCHED_ON_HOLD, /* all jobs are on hold: call again when job.hold or job.halt of one, or
                      sched_hold(), changed that */
    SCHED_NO_ROOM, /* events wait for room in the ring: call again when some were popped */
};

enum {
    SCHED_PROGRESS_USEC = 200000, /* between two progress events */
    SCHED_FILE_BYTES = 4 << 20,   /* of each file read or written between two steps */
    SCHED_AHEAD = 1024,           /* tokens that who does not say gets room for at a time */
};

/* Jobs that are on hold as if job.hold were set. What saves its prompt never is. */
enum sched_hold { SCHED_HOLD_NONE, SCHED_HOLD_BACKGROUND, SCHED_HOLD_ALL };

struct sched_options {
    uint32_t n_job;          /* jobs at a time at most */
    usec_t bound;            /* between two tokens of a stream, as far as prompts go */
    uint64_t prefix_bytes;   /* of the cache for kept prefixes; 0: none are kept */
    const atomic_bool *stop; /* gives a step of several jobs up; borrowed */
};

struct sched_stats {
    atomic_uint n_running;                    /* have a place */
    _Atomic uint64_t n_prompt_token, n_token; /* evaluated, generated */
    _Atomic uint64_t step_usec;               /* moving mean of a step without prompts; 0: none */
    _Atomic uint64_t job_usec;                /* moving mean of one generation; 0: none yet */
    _Atomic uint64_t n_evicted;               /* places lost */
    _Atomic uint64_t kv_room;                 /* bytes of the cache that jobs have room in */
    _Atomic uint64_t kv_kept;                 /* and that only kept prefixes hold */
    atomic_uint n_kept, n_public;             /* kept prefixes; of them public ones */
    _Atomic uint64_t n_hit, n_saved;          /* places that began with one; tokens it had */
};

/**
 * sched_new() - nothing to do yet
 * @r:          borrowed
 * @out:        struct job_event; the engine thread is its producer. Borrowed.
 * @stats:      borrowed, zeroed
 *
 * Return: 0 or -ENOMEM.
 */
int sched_new(struct sched **ret_s, struct resident *r, const struct sched_options *opt,
              struct ring *out, struct sched_stats *stats);
struct sched *sched_free(struct sched *s);
AUTO_DEFINE(struct sched *, sched_free)

/* Take @j, prepared; it waits for a place. JOB_EVENT_DONE hands it on. */
void sched_add(struct sched *s, struct job *j);

/* From now on. When all are held, memory of the cache that holds nothing is given back. */
void sched_hold(struct sched *s, enum sched_hold hold);
/* Let go what is kept under @salt, and give its memory back. */
void sched_forget(struct sched *s, uint64_t salt);

/* Return: 0: call again; or one of the above. */
int sched_step(struct sched *s);
/* Keep nothing of what was evaluated but for jobs that have a place, and give the memory of what no
 * longer holds anything back to the system. Between two steps. */
void sched_trim(struct sched *s);
