/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fake-engine - engine.h without a model: a test says what the engine says
 *
 * Jobs are recorded; events are what fake_*() pushes. Cancelling a job ends it at once, as the
 * engine would. One engine exists at a time.
 */

#include "engine/engine.h"

enum { FAKE_JOB_MAX = 256 };

struct fake_job {
    uint64_t id;
    struct engine_request req; /* its pointers are stale, but for the copies below */
    char *text;                /* the prompt, or the first message's text */
    char role[32];
    char *said; /* "role:text role:text": all messages */
    bool over, paused;
    struct engine_job at; /* how far it is */
    uint32_t n_pause;     /* how often it was told to pause */
};

struct fake {
    bool exists;
    uint32_t n_new; /* engines made so far */
    char path[4096];
    struct engine_options opt;
    struct engine_status status;
    struct model_info info;
    struct fake_job job[FAKE_JOB_MAX];
    uint32_t n_job;
    int submit; /* what engine_submit() returns, unless 0 */
    int usable; /* what engine_usable() returns */
    uint32_t n_limit;
    int weights_fd; /* what engine_weights() returns */
    enum engine_hold hold;
    uint32_t forgot[8]; /* [n_forgot] what engine_forget() was told */
    uint32_t n_forgot;
    unsigned tidy; /* all that engine_tidy() was told since it was looked at */
    uint64_t memory;
};
extern struct fake fake;

void fake_reset(void);
void fake_progress(uint64_t job, uint64_t done, uint64_t total);
void fake_loaded(void);
void fake_load_failed(const char *why);
void fake_text(struct fake_job *j, enum chat_kind kind, const char *text);
/* @result: .text and .tok are borrowed until the event was taken. */
void fake_done(struct fake_job *j, const struct engine_result *result);
void fake_end(struct fake_job *j, enum engine_end end);
