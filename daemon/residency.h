/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * residency - how long the model stays in memory: what is wished for, and what memory allows
 *
 * There are three wishes, the weakest first: "idle", it goes when it had no work for some time;
 * "pressure", it goes when memory is short; "pinned", it stays. The configuration has one, a
 * connection and a session may have one as long as they live, and one may be kept until the service
 * ends; the strongest of those that are about the resident model counts. A model with work never
 * goes.
 *
 * When memory is short, a step is taken for each level that pressure.h tells:
 *
 *   1  memory of the K/V cache that no job uses is given up
 *   2  weights of experts that are used least are left to the kernel
 *   3  weights that were locked into memory are unlocked, and 2 holds for them, too
 *   4  the model goes, unless it is pinned or has work, and none is loaded
 *
 * A level that falls takes nothing: what was given up comes back as it is used. Below 4 a model may
 * be loaded again; weights are locked again when the level is 0.
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>
#include <sys/queue.h>

#include "daemon/config.h"
#include "daemon/models.h"

struct event_base;
struct residency;

enum residency_wish { RESIDENCY_IDLE, RESIDENCY_PRESSURE, RESIDENCY_PINNED };
const char *residency_name(enum residency_wish wish); /* "idle", … */
/* Return: is there one of this name? */
bool residency_parse(const char *name, size_t n, enum residency_wish *ret_wish);

/* A wish of somebody who may go away. Zero-initialised there is none. */
struct residency_lease {
    LIST_ENTRY(residency_lease) link;
    enum residency_wish wish;
    char *model; /* id that it is about; NULL: whichever is resident */
    bool live;
};

/* @models, @config: borrowed. Return: 0 or -ENOMEM. */
int residency_new(struct residency **ret_r, struct event_base *base, struct models *models,
                  const struct config *config);
struct residency *residency_free(struct residency *r);
AUTO_DEFINE(struct residency *, residency_free)
/* Call @changed whenever the level did. */
void residency_watch(struct residency *r, void (*changed)(void *arg), void *arg);
/* From now on; the level of pressure begins at 0 again if its source is another one. */
int residency_reconfigure(struct residency *r, const struct config *config);

/* Have, or change, a wish about @model (NULL: whichever is resident). Return: 0, or -ENOMEM with
 * @lease as before. */
int residency_take(struct residency *r, struct residency_lease *lease, const char *model,
                   enum residency_wish wish);
/* Have none any more; nothing happens when there was none. */
void residency_drop(struct residency *r, struct residency_lease *lease);
/* The same for a wish of nobody who may go away: there is one a model, and one about whichever is
 * resident. */
int residency_keep(struct residency *r, const char *model, enum residency_wish wish);
void residency_forget(struct residency *r, const char *model);

/* The wish that is kept about @model. Return: is there one? */
bool residency_kept(const struct residency *r, const char *model, enum residency_wish *ret_wish);

/* Take the steps 1 to @level once, without a sign of pressure. What is unlocked is locked again
 * when pressure passes, or the configuration is read. */
void residency_trim(struct residency *r, unsigned level);

/* The wish that counts when @model is resident; NULL: as long as none is. */
enum residency_wish residency_of(const struct residency *r, const char *model);
/* And with what is resident now. */
enum residency_wish residency_now(const struct residency *r);
/* Steps that are taken, 0 to PRESSURE_MAX. */
unsigned residency_level(const struct residency *r);
