/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * engine-rig - the engine from its API alone, on a small random model
 *
 * model_step() is wrapped: a test may make steps slow, and may script which tokens come out.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "engine/text/vocab.h"

enum { N_CTX = 1024, PATIENCE_MS = 60000, N_SCRIPT = 1024 };

extern const char *model_path;
extern struct engine *shared; /* ready, n_queue 2, n_batch 16, one generation at a time */

/* ---- the wrapped step ---- */

extern atomic_uint n_step;           /* steps so far */
extern atomic_uint slow_ms;          /* every step lasts this longer, and still looks at @stop */
extern tok_t script[N_SCRIPT];       /* the k-th token drawn, in steps of one sequence */
extern uint32_t n_script, script_at; /* 0: none */
extern float *scripted;              /* logits */

/* ---- what was seen of a job ---- */

struct seen {
    bool loaded, failed, done;
    uint32_t n_progress, n_event, n_token, n_total;
    uint64_t done_at, bytes_total;
    char text[8192], thought[1024]; /* terminated */
    size_t n_text, n_thought;
    struct sample_result token[N_SCRIPT];
    struct engine_result result; /* without text and tok */
    char out[8192];
    tok_t tok[2048];
    char why[256];
};

uint64_t now_usec(void);
void sleep_ms(unsigned ms);

void script_clear(void);
void script_add(const char *tok);
void script_text(const char *text); /* one token a character */

/* Note one event. */
void see(struct seen *s, const struct engine_event *ev);
/* The next event within @ms. */
bool next(struct engine *e, struct engine_event *ev, int ms);
/* Ends of jobs that nobody collected yet are kept; their other events are dropped. */
void end_clear(void);
void end_keep(struct engine *e, const struct engine_event *ev);
void end_find(struct engine *e, uint64_t job, struct seen *s);
/* Until @job is done (0: until loading is over); its events into @s. */
void collect(struct engine *e, uint64_t job, struct seen *s);
/* Until @job's first event of @kind. */
void await(struct engine *e, uint64_t job, enum engine_event_kind kind);

/* A greedy request that goes on past end tokens. */
struct engine_request raw(const char *text, uint32_t max_tokens);
uint64_t submit(struct engine *e, const struct engine_request *q);
void run(struct engine *e, const struct engine_request *q, struct seen *s);
/* A prompt of @n tokens: <bos> and letters of @shared's vocabulary. */
struct engine_request long_prompt(size_t n, uint32_t max_tokens);
struct engine *start(const char *path, uint32_t n_queue);
/* One with @opt, loaded. */
struct engine *start_loaded(const struct engine_options *opt);
/* Of a group whose tests end their own engines: free @scripted. */
int rig_teardown(void **state);
/* Of a group that shares one engine: end @shared, free @scripted. */
int rig_teardown_shared(void **state);
