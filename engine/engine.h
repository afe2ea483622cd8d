/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * engine - one resident model, its thread and queue; the only engine header the daemon includes
 *
 * engine_new() returns at once and loads in its own thread. Jobs may be submitted while it loads;
 * they wait. Everything the engine has to say comes as events through one ring: engine_fd() turns
 * readable, engine_next() hands them out one by one. Every job submitted ends with exactly one
 * ENGINE_DONE, whatever happens, and nothing of it comes later.
 *
 * Generations run side by side, in shares that engine/sched/fair.h gives; what comes out of one
 * does not depend on what runs beside it.
 *
 * Owner:   the calls below belong to one thread (the daemon's). Inside: the engine thread runs the
 *          model, a text thread tokenises; a job has one owner at a time.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/engine-describe.h"
#include "engine/engine-options.h"
#include "engine/model/model.h"
#include "engine/sched/fair.h"
#include "engine/text/chat.h"
#include "engine/text/sample.h"

struct engine;

enum {
    ENGINE__OK,

    ENGINE_BUSY, /* the queue, or a user's or the background's part of it, is full: @ret_queue */
    ENGINE_TOO_LARGE, /* text beyond ENGINE_TEXT_MAX; @why says so */
    ENGINE_BAD,       /* a parameter out of range; @why names it */
};

enum {
    ENGINE_TEXT_MAX = 4 << 20, /* bytes of all texts of one job; a token counts 4 */
    ENGINE_CHOICE_MAX = 256,   /* answers to score of one job */
    ENGINE_STOP_MAX = 16,      /* stop strings of one job */
    ENGINE_STOP_BYTES = 1024,  /* of one stop string, at least 1, well-formed UTF-8 */
};

/* Return: 0 or -errno; a bad file is reported by ENGINE_FAILED. */
int engine_new(struct engine **ret_engine, const struct engine_options *opt, struct why *why);
/* Stops within one layer of one step, or after the text that is being tokenised; jobs that still
 * run end unannounced. */
struct engine *engine_free(struct engine *e);
AUTO_DEFINE(struct engine *, engine_free)

enum engine_state { ENGINE_LOADING, ENGINE_READY, ENGINE_FAILED };

struct engine_status {
    enum engine_state state;
    uint64_t bytes_done, bytes_total;          /* of loading */
    uint32_t n_running, n_queued, n_queue_max; /* generations */
    uint32_t n_worker;                         /* that compute; 0: not known yet */
    const char *tier;                          /* kernel tier bound */
    uint64_t kv_bytes;                         /* K and V at most */
    uint64_t kv_room;                          /* of that, bytes that running jobs may fill */
    uint64_t n_prompt_token, n_token;          /* evaluated and generated since load */
    uint64_t step_usec; /* moving mean of a step without prompts; 0: none yet */
    uint64_t n_evicted; /* generations that lost their place to others and began again */
    bool refused;       /* memory_fd was: it is of other weights, or in another layout */
    bool locked;        /* packed weights are in memory that is not paged out */
    bool tidying;       /* what engine_tidy() was told last is not done yet */
    bool busy;          /* the engine thread has something to do ... */
    uint64_t n_beat;    /* ... and does it as long as this grows: slabs read, layers computed */
    uint64_t kv_kept;   /* bytes of K and V that only kept prompts hold: any job may have them */
    uint32_t n_kept, n_public; /* kept prompts; of them public ones */
    uint64_t n_hit, n_saved;   /* generations that began with one; tokens they did not evaluate */
};
void engine_status(struct engine *e, struct engine_status *ret);
/* Compute with at most @n workers from the next step on; 0: all. */
void engine_limit(struct engine *e, uint32_t n);
/* What to do with memory, between two steps: give up what is kept of earlier prompts, and memory of
 * the K/V cache that no job uses; let the kernel take weights of the experts that are used least;
 * keep packed weights from being paged out, if that is allowed, or no longer. Of the last two the
 * later one counts. */
enum { ENGINE_TIDY_KV = 1, ENGINE_TIDY_COLD = 2, ENGINE_TIDY_LOCK = 4, ENGINE_TIDY_UNLOCK = 8 };
void engine_tidy(struct engine *e, unsigned what);
/* What has no more steps until it is let go on: nothing, jobs of background, or all. Jobs may still
 * be submitted, and what is being saved is. With all, memory of the cache that holds nothing is
 * given up. */
enum engine_hold { ENGINE_HOLD_NONE, ENGINE_HOLD_BACKGROUND, ENGINE_HOLD_ALL };
void engine_hold(struct engine *e, enum engine_hold hold);
/* Give up what is kept for @uid, and what jobs of it that are there now would leave.
 * Return: 0 or -ENOMEM. */
int engine_forget(struct engine *e, uint32_t uid);
/* Bytes of memory to be had now, within what control groups allow. UINT64_MAX: not known. */
uint64_t engine_memory(void);
/* The same, before a page of ours that a file has, too, would have to go. */
uint64_t engine_memory_spare(void);
/* Workers that a load would take now: one a usable core, as cpuset and quota are at this moment.
 * Return: their number, or -errno. */
int engine_usable(void);
/* Of a model that is ENGINE_READY; NULL or false before. */
const struct model_info *engine_info(const struct engine *e);
bool engine_shard(const struct engine *e, uint32_t i, struct model_shard *ret);
/* The memory file that has the packed weights, open for reading, borrowed; -1: there is none. */
int engine_weights(const struct engine *e);
const struct vocab *engine_vocab(const struct engine *e);
/* Raw chat template text of the file, for showing; NULL: none. */
const char *engine_template(const struct engine *e, size_t *ret_n);
const struct sample_params *engine_defaults(const struct engine *e);

/* ---- jobs ---- */

enum engine_kind {
    ENGINE_GENERATE,
    ENGINE_SCORE,   /* as GENERATE, but given answers are scored and none is made */
    ENGINE_SAVE,    /* evaluate a prompt as far as it is not kept, keep it and write it to @fd */
    ENGINE_RESTORE, /* keep what @fd holds, without evaluating it */
    /* These wait for none of the above, and have a queue of their own: */
    ENGINE_TOKENIZE,   /* text -> tokens */
    ENGINE_DETOKENIZE, /* tokens -> text */
    ENGINE_RENDER,     /* messages -> text of the prompt, and its tokens */
};

/* One job. engine_submit() copies what it keeps; everything here is borrowed for the call. */
struct engine_request {
    enum engine_kind kind;
    struct fair_who who;
    const struct chat_message *msg; /* GENERATE, SAVE, RENDER: [n_msg]; or none and @text */
    size_t n_msg;
    const char *text; /* GENERATE, SAVE: a raw prompt; TOKENIZE */
    size_t n_text;
    const tok_t *tok; /* DETOKENIZE; GENERATE, SAVE: a raw prompt in tokens, instead of @text */
    size_t n_tok;
    int fd; /* SAVE, RESTORE: a regular file, used from its begin whatever its position; SAVE leaves
               what is behind its end. A copy is taken. See kv/kvfile.h: a file is of one model, as
               it is computed here, and of one who.uid. */
    bool special; /* @text: texts of special tokens become those tokens; DETOKENIZE: show them */
    bool no_bos;  /* @text: do not begin with <bos> */
    bool thinking;
    bool no_generation;  /* do not open the model's turn */
    bool prefill_only;   /* GENERATE: evaluate the prompt and keep it; no answer, ENGINE_END_STOP */
    bool public;         /* with @prefill_only: all users find it; else only who.uid does */
    bool ignore_end;     /* GENERATE: go on past end tokens, for benchmarks */
    bool drop_oldest;    /* GENERATE: where @msg leaves no room for max_tokens (of 0: an eighth of
                            the context) in the context or the user's part of the cache, leave out
                            the oldest exchanges, see sched/shorten.h */
    uint32_t max_tokens; /* GENERATE: 0: what the context holds */
    struct sample_params sample;
    const char *const *stop; /* [n_stop] strings that end the answer, not part of it; thoughts may
                                contain them */
    size_t n_stop;
    const char *const *choice; /* SCORE: [n_choice] answers, up to ENGINE_CHOICE_MAX, none empty */
    size_t n_choice;
    uint32_t n_top; /* logprobs: alternatives a token, up to SAMPLE_TOP_MAX */
    bool logprobs;
    uint64_t deadline_usec; /* CLOCK_MONOTONIC; 0: none. Kept as engine_cancel() is, or after the
                               text that is being tokenised, whichever is later. */
    void *userdata;         /* comes back in every event */
};

struct engine_queue {
    uint32_t position;   /* jobs before this one would be, of the user when it has too many */
    uint64_t retry_usec; /* guess of when it is worth trying again */
};

/**
 * engine_submit() - queue a job
 * @ret_job:    its number, never 0
 * @ret_queue:  filled on 0 and ENGINE_BUSY; may be NULL
 *
 * Return: 0, ENGINE_BUSY, ENGINE_TOO_LARGE, ENGINE_BAD, or -ENOMEM. Only on 0 will there be events.
 */
int engine_submit(struct engine *e, const struct engine_request *req, uint64_t *ret_job,
                  struct engine_queue *ret_queue, struct why *why);
/* Ends the job after the step that runs, or within one layer of it when the step is this job's
 * alone; its ENGINE_DONE still comes. Ignores unknown ids. */
void engine_cancel(struct engine *e, uint64_t job);
/* Hold a sequence at its next token, or let it go on. Others go on, and may take its place. */
void engine_pause(struct engine *e, uint64_t job, bool pause);

struct engine_job {
    uint32_t n_prompt, n_done, n_token; /* tokens: of the prompt, evaluated, generated */
    uint64_t kv_bytes;                  /* of the K/V cache it has room in; 0: it has no place */
};
/* How far a job is. Return: is there such a job? */
bool engine_job(const struct engine *e, uint64_t job, struct engine_job *ret);

enum engine_event_kind {
    ENGINE_PROGRESS,    /* loading: job 0; prefill: done and total tokens */
    ENGINE_LOADED,      /* job 0: engine_info() and the others answer now */
    ENGINE_LOAD_FAILED, /* job 0: @why; every job then ends with ENGINE_END_MODEL */
    ENGINE_TEXT, /* @text of the answer, whole characters; of a raw prompt all is CHAT_TEXT */
    ENGINE_DONE, /* the job's @result */
};

enum engine_end {
    ENGINE_END_STOP,   /* an end token or a stop string; of what has no answer: done */
    ENGINE_END_LENGTH, /* max_tokens, or the context is full */
    ENGINE_END_DEADLINE,
    ENGINE_END_CANCELLED,
    ENGINE_END_CONTEXT,  /* the prompt has n_prompt tokens, and n_available there may be */
    ENGINE_END_MEMORY,   /* prompt and max_tokens need more of the cache than a user may have */
    ENGINE_END_INVALID,  /* @why: a role, a token id, no chat format */
    ENGINE_END_CORRUPT,  /* RESTORE: the file is damaged, or of something else: @why */
    ENGINE_END_MODEL,    /* the model could not be loaded: @why */
    ENGINE_END_INTERNAL, /* @why */
};

struct engine_result {
    enum engine_end end;
    int32_t stop_index;          /* which stop string, -1: none */
    uint32_t n_prompt, n_cached; /* tokens of the prompt or file, of them not evaluated */
    uint32_t n_token;            /* generated, with an end token */
    uint32_t n_available;        /* tokens a prompt may have here */
    uint32_t n_dropped;          /* tokens left out for drop_oldest, which n_prompt has not */
    uint32_t n_dropped_msg;      /* messages: the first ones that are no instructions */
    uint64_t need, have;         /* MEMORY: bytes */
    uint64_t kv_bytes;           /* of the K/V cache it had room in at most */
    uint64_t queue_usec, prefill_usec, decode_usec; /* without a place; of steps it had rows in */
    uint64_t seed;
    struct why why;
    char *text; /* DETOKENIZE, RENDER: [n_text], NUL-terminated, owned by the event */
    size_t n_text;
    tok_t *tok; /* TOKENIZE, RENDER: [n_tok], owned by the event */
    size_t n_tok;
    const double *logprob; /* SCORE: [n_logprob] of the choices, owned by the event */
    size_t n_logprob;
};

struct engine_event {
    enum engine_event_kind kind;
    uint64_t job;
    void *userdata;
    uint64_t done, total;     /* PROGRESS */
    enum chat_kind text_kind; /* TEXT */
    const char *text;         /* TEXT, [n_text], valid until the next engine_next() */
    size_t n_text;
    bool has_token; /* TEXT with logprobs asked: @token is set, @text is its piece alone
                                 or "" while a character is unfinished or a stop string possible;
                                 what was so withheld comes in the next event, or with the piece
                                 that completes the character. Markers and end tokens have none. */
    struct sample_result token;
    const struct engine_result *result; /* DONE, valid until the next engine_next() */
    const struct why *why;              /* LOAD_FAILED */
};

int engine_fd(const struct engine *e); /* readable while events wait */
/* Return: true with the next event, false when there is none. */
bool engine_next(struct engine *e, struct engine_event *ret);
