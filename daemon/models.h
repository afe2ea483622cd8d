/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * models - the model files there are, the one that is resident, and the work it has
 *
 * The files are one (config key "model") or those of a folder ("model-dir"); the folder is read
 * anew whenever somebody asks, so a file dropped in is served without a reload. An id is the file
 * name without ".gguf" and without the part number of a split model.
 *
 * One engine at a time: another model is loaded when the resident one has no work, and when there
 * is memory for it. A model that
 * failed to load is not tried again by a request until its file changes; models_load() tries.
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "daemon/clock.h"
#include "daemon/config.h"
#include "daemon/fdstore.h"
#include "daemon/registry.h"
#include "daemon/tasks.h"
#include "engine/engine.h"

struct models;
struct event_base;

enum {
    MODELS__OK,

    MODELS_NONE,        /* no such model */
    MODELS_BUSY,        /* another model has work; try again */
    MODELS_UNAVAILABLE, /* it cannot be loaded; @why says what is wrong */
    MODELS_QUEUE_FULL,  /* the engine's queue; see @ret_queue */
    MODELS_TOO_LARGE,   /* the request's text */
    MODELS_BAD,         /* a parameter; @why names it */
    MODELS_MEMORY,      /* too little for that model; see models_shortage() */
};

/* @tasks, @config: borrowed. */
int models_new(struct models **ret_models, struct event_base *base, struct tasks *tasks,
               const struct config *config);
/* Jobs still there end with ENGINE_END_MODEL. */
struct models *models_free(struct models *m);
AUTO_DEFINE(struct models *, models_free)

/* Call @changed whenever a model's state did. */
void models_watch(struct models *m, void (*changed)(void *arg), void *arg);
/* From now on; what is resident stays, and computes with as many threads as @config and the machine
 * now say, as far as it has them since its load. */
void models_reconfigure(struct models *m, const struct config *config);

/* ---- files ---- */

enum models_state { MODELS_AVAILABLE, MODELS_LOADING, MODELS_LOADED, MODELS_FAILED };
const char *models_state_name(enum models_state state); /* "available", … */

/* What there is now; borrowed until the next call of anything here. */
const struct registry *models_files(struct models *m);
/* The folder they are in; NULL: one file is served by itself. */
const char *models_folder(const struct models *m);
/* Somebody put a file there: look, and tell who watches. */
void models_look(struct models *m);
/* @id NULL: the resident one, else the default one. NULL: there is none. */
const struct registry_file *models_find(struct models *m, const char *id);
enum models_state models_state(const struct models *m, const char *id);
/* The id that is meant when nobody says; NULL: none. As of the last look at the folder. */
const char *models_default(const struct models *m);

/* ---- the resident model ---- */

/* The id that is loading, loaded or failed; NULL: none. */
const char *models_resident(const struct models *m);
/* Why the resident one failed. */
const char *models_reason(const struct models *m);
/* All zero when there is no engine. */
void models_engine(const struct models *m, struct engine_status *ret);
/* As engine_shard(). */
bool models_shard(const struct models *m, uint32_t i, struct model_shard *ret);
/* NULL unless the resident model is MODELS_LOADED. */
const struct model_info *models_info(const struct models *m);
const struct vocab *models_vocab(const struct models *m);

/* ---- loading ---- */

/* Load the default model, if the configuration wants that at start. */
void models_preload(struct models *m);

/* Start to load @id (NULL: see models_find()), or find it loading or loaded. Requests that wait for
 * a load that is cancelled end with ENGINE_END_MODEL.
 * Return: 0, MODELS_NONE, MODELS_BUSY, MODELS_UNAVAILABLE, MODELS_MEMORY, or -errno. */
int models_load(struct models *m, const char *id, uid_t uid, struct task **ret_load,
                struct why *why);
/* Remove the files of @id. Return: 0, MODELS_NONE, MODELS_BUSY when it is resident,
 * MODELS_UNAVAILABLE when it is not ours to remove, or -errno. */
int models_remove(struct models *m, const char *id, struct why *why);
/* Return: 0 (also when it is not loaded), MODELS_NONE, or MODELS_BUSY with @ret_n_job. */
int models_unload(struct models *m, const char *id, uint32_t *ret_n_job);

/* ---- memory ---- */

/* Time since when the resident model, if any, has no work and is not being loaded; 0: it has. */
usec_t models_idle_usec(const struct models *m);
/* As engine_tidy(), for the resident model; of those that are loaded later weights are locked, or
 * not, as well. */
void models_tidy(struct models *m, unsigned what);
/* The same once: of models that are loaded later nothing is meant. */
void models_trim(struct models *m, unsigned what);
/* Load nothing, or load again what is asked for. */
void models_close(struct models *m, bool closed);
/* What the service manager keeps for us. */
struct fdstore *models_store(struct models *m);
/* What the last MODELS_MEMORY was about: bytes needed, bytes there were. */
void models_shortage(const struct models *m, uint64_t *ret_need, uint64_t *ret_have);

/* ---- power ---- */

/* Compute with fewer threads, and hold jobs back, now and in models that are loaded later. */
void models_power(struct models *m, bool saving, enum engine_hold hold);
/* As engine_forget(). */
void models_forget(struct models *m, uid_t uid);

/* ---- work ---- */

/* A job of the engine. Whoever asks embeds one; it is linked here until ENGINE_DONE, which always
 * comes and is the last event. Progress of loading comes as ENGINE_PROGRESS with job 0. */
struct models_job {
    LIST_ENTRY(models_job) link;
    uint64_t id;         /* a number of tasks_number() */
    uint64_t engine_job; /* the engine's own number */
    bool idle;           /* nobody waits for it: it is no work, and goes with the model */
    void (*event)(struct models_job *job, const struct engine_event *ev);
};

/* Submit to @id (see models_find()), loading it if need be. Fills @job->id and sets
 * @req->userdata. Return: 0, an outcome above, or -errno; only on 0 will there be events. */
int models_submit(struct models *m, const char *id, uid_t uid, struct engine_request *req,
                  struct models_job *job, struct engine_queue *ret_queue, struct why *why);
void models_cancel(struct models *m, struct models_job *job);
void models_pause(struct models *m, struct models_job *job, bool pause);
/* How far it is. */
void models_at(const struct models *m, const struct models_job *job, struct engine_job *ret);
/* Jobs that have not ended, but for idle ones. */
uint32_t models_n_job(const struct models *m);
/* Call @fn when a model is @loaded, and when the loaded one has no more work, unless memory is
 * short. */
void models_on_idle(struct models *m, void (*fn)(void *arg, bool loaded), void *arg);
