/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * errands - what waits for a disk, one after the other, in a thread of its own
 *
 * An errand is the thread's from errands_add() until its done() is called; two rings hand it over.
 *
 * Owner:   the daemon thread; only run() is called in the other one.
 * Memory:  fixed at errands_new(); errands are the caller's.
 */

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct event_base;
struct errands;

enum {
    ERRANDS__OK,

    ERRANDS_FULL, /* ERRANDS_MAX are not done yet */
};

enum { ERRANDS_MAX = 64 };

struct errand {
    void (*run)(struct errand *t);
    void (*done)(struct errand *t); /* @t is the caller's again, who may free it */
};

/* Return: 0 or -errno. */
int errands_new(struct errands **ret_errands, struct event_base *base);
/* All are run, and done, first. */
struct errands *errands_free(struct errands *t);
AUTO_DEFINE(struct errands *, errands_free)

/* Return: 0 or ERRANDS_FULL. */
int errands_add(struct errands *t, struct errand *errand);
