/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * job - one request on its way through the engine: what was asked, how far it is, what came out
 *
 * A job is made by the daemon's thread, prepared by the text thread, run by the engine thread and
 * freed by the daemon's thread. One of them owns it at a time; a queue or the event ring hands it
 * over. Only the fields under "control" may be touched by others.
 *
 * Memory:  everything a generation needs is allocated by job_prepare(); running it allocates
 *          nothing.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/sched/fair.h"
#include "engine/sched/resident.h"
#include "engine/sched/score.h"
#include "engine/sched/stop.h"
#include "engine/text/chat.h"
#include "engine/text/sample.h"
#include "engine/text/tok.h"

typedef uint64_t usec_t;

enum {
    JOB_OUT_MAX = 16 << 20,   /* bytes of text one job may produce outside of a generation */
    JOB_TEXT_MAX = 1024 + 16, /* bytes of text in one event */
    JOB_DROP_PARTS = 8,       /* of the context, as far as the user may have the cache for it: what
                                 an answer has, where messages are dropped for it and it does not
                                 say, and what is dropped beyond that */
    JOB_MARK_MAX = 3,         /* where a prompt is kept besides at its end */
};

enum job_kind {
    JOB_GENERATE,
    JOB_SAVE,    /* evaluate a prompt, keep it and write it to a file */
    JOB_RESTORE, /* keep what a file holds */
    JOB_TOKENIZE,
    JOB_DETOKENIZE,
    JOB_RENDER,
};

enum job_end {
    JOB_END_STOP,      /* an end token or a stop string */
    JOB_END_LENGTH,    /* max_tokens, or the context is full */
    JOB_END_DEADLINE,  /* its own */
    JOB_END_CANCELLED, /* by its owner */
    JOB_END_CONTEXT,   /* the prompt does not fit */
    JOB_END_MEMORY,    /* it would need more of the cache than it may ever have */
    JOB_END_INVALID,   /* why: what in the request */
    JOB_END_CORRUPT,   /* why: what is wrong with the file */
    JOB_END_MODEL,     /* why: there is none */
    JOB_END_INTERNAL,  /* why */
    JOB_END_N,         /* it goes on */
};

struct job_result {
    enum job_end end;
    int32_t stop_index;                   /* -1: none */
    uint32_t n_prompt, n_cached, n_token; /* of the prompt, of it not evaluated, generated */
    uint32_t n_available;                 /* tokens a prompt may have */
    uint32_t n_dropped, n_dropped_msg;    /* tokens and messages it was shortened by */
    uint64_t need, have;                  /* MEMORY: bytes of the cache */
    uint64_t kv_bytes;                    /* of the cache it had room in at most */
    usec_t queue_usec;                    /* without a place */
    usec_t prefill_usec, decode_usec;     /* of steps it had rows in */
    uint64_t seed;
    struct why why;
    char *text; /* [n_text], NUL-terminated; NULL: none */
    size_t n_text;
    struct tok_list tok;
};

struct job {
    uint64_t id;
    enum job_kind kind;
    void *userdata;

    /* What was asked, copied. */
    struct chat_message *msg; /* [n_msg], one allocation with its texts */
    size_t n_msg;
    size_t n_byte; /* of all it was given */
    char *text;    /* [n_text]; NULL: none */
    size_t n_text;
    struct tok_list tok;
    bool special, no_bos, thinking, no_generation, ignore_end, logprobs;
    bool drop_oldest; /* shorten the messages rather than refuse them */
    bool prefill;     /* evaluate and keep the prompt, and answer nothing */
    uint64_t salt;    /* see engine/kv/prefix.h */
    uint32_t max_tokens, n_top;
    struct sample_params sample; /* with its own bias list */
    int fd;                      /* SAVE, RESTORE: its own; else -1 */
    usec_t deadline;             /* CLOCK_MONOTONIC; 0: none */
    struct fair_job fair;        /* .who it is for */

    /* Control: any thread. */
    atomic_bool halt;    /* end soon: a step of this job alone is given up for it */
    atomic_int halt_end; /* why: enum job_end, JOB_END_N until halted; the first reason stays */
    atomic_bool hold;    /* no more steps until it is false again */
    atomic_bool forget;  /* what it evaluated is not kept */

    /* How far it is, for who asks: the engine thread writes, any thread reads. */
    struct {
        _Atomic uint32_t n_prompt, n_done, n_token; /* of the prompt, in the cache, generated */
        _Atomic uint64_t kv_bytes;                  /* room in the cache; 0: it has no place */
    } live;

    /* Of a generation that goes on: made by job_prepare(). */
    struct tok_list all;      /* the prompt, then what was generated, with room for n_max */
    uint32_t n_max;           /* tokens to generate at most; 0: none */
    pos_t mark[JOB_MARK_MAX]; /* [n_mark] tokens of .all that others are likely to begin with */
    uint32_t n_mark;
    struct kvfile *file;
    struct sampler *sampler;
    struct stop *stop;
    struct answer *answer;
    struct score *score; /* not NULL: no answer is drawn, given ones are scored; no sampler then */
    usec_t submitted;

    /* The scheduler's. */
    uint32_t seq;    /* of the cache, while it runs */
    uint32_t n_room; /* tokens it has room for in the cache, while it runs */
    uint64_t room;   /* in bytes */
    uint32_t n_done; /* tokens of .all that the cache holds */
    bool filing;     /* it writes or reads its file, and has no rows */
    usec_t began;    /* first had a place; 0: not yet */
    usec_t waits;    /* since when, while it waits */
    usec_t told;     /* when progress was last posted */

    struct job_result result;

    struct job *next;                  /* in the queue it is in */
    struct job *list_prev, *list_next; /* in the list of all jobs */
};

struct job *job_free(struct job *j);
AUTO_DEFINE(struct job *, job_free)

/* Return: a job with nothing in it, or NULL. */
struct job *job_new(enum job_kind kind);
/* Copy parts of a request into @j. Return: 0 or -ENOMEM. */
int job_copy_messages(struct job *j, const struct chat_message *msg, size_t n);
int job_copy_text(struct job *j, const char *text, size_t n);
int job_copy_tokens(struct job *j, const tok_t *tok, size_t n);
int job_copy_sample(struct job *j, const struct sample_params *p);

/* Microseconds of CLOCK_MONOTONIC. */
usec_t job_clock(void);

/* End @j for reason @end as soon as its owner looks. Any thread. */
void job_halt(struct job *j, enum job_end end);
/* Why it shall end, JOB_END_N: it shall not. Looks at the deadline too. */
enum job_end job_halted(struct job *j);

/**
 * job_prepare() - all that can be done without the model: the whole of a text job, and of a
 * generation everything up to its first step
 *
 * Return: true when it goes on to the engine thread; else its result is complete.
 */
bool job_prepare(struct job *j, const struct resident *r);

/* What the engine thread has to say of a job, or of loading (job NULL); an element of its ring. */
enum job_event_kind {
    JOB_EVENT_PROGRESS,
    JOB_EVENT_LOADED,
    JOB_EVENT_LOAD_FAILED,
    JOB_EVENT_TEXT,
    JOB_EVENT_DONE, /* hands the job over */
};
struct job_event {
    enum job_event_kind kind;
    struct job *job;
    uint64_t done, total;
    enum chat_kind text_kind;
    bool has_token;
    uint32_t n_text;
    struct sample_result token;
    char text[JOB_TEXT_MAX];
};

/* A first-in first-out queue through job.next; the lock is the caller's. */
struct job_queue {
    struct job *head, *tail;
};
void job_queue_push(struct job_queue *q, struct job *j);
struct job *job_queue_pop(struct job_queue *q); /* NULL: empty */
/* Take @j out of @q. Return: was it there? */
bool job_queue_remove(struct job_queue *q, struct job *j);
