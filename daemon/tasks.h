/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * tasks - long work on a model that somebody may follow, wait for and cancel
 *
 * Whoever does the work makes a task, says how far it is and how it ended; the protocol calls it a
 * job. An ended one stays findable for TASK_KEEP_USEC, unless more than TASK_MAX would be kept.
 * Numbers are taken from one sequence with those of requests, so that one number means one thing.
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "daemon/clock.h"
#include "engine/base/auto.h"
#include "engine/base/err.h"

struct event_base;
struct tasks;

enum { TASK_KEEP_USEC = 60000000, TASK_MAX = 64 };
enum task_kind { TASK_LOAD, TASK_IMPORT, TASK_VERIFY };
enum task_state { TASK_RUNNING, TASK_DONE, TASK_FAILED, TASK_CANCELLED };

struct task_waiter {
    LIST_ENTRY(task_waiter) link;
    void (*progress)(struct task_waiter *w);
    /* The last call; the waiter is no longer linked. */
    void (*ended)(struct task_waiter *w);
};

struct task {
    TAILQ_ENTRY(task) link;
    struct tasks *all;
    uint64_t id;
    enum task_kind kind;
    enum task_state state;
    struct why reason; /* FAILED, CANCELLED */
    int code;          /* FAILED: an RPC_* error, or 0: the model's; set before the end */
    char model[256];   /* its id: a file name at most */
    uid_t uid;         /* who started it */
    usec_t began_usec, ended_usec;
    uint64_t done, total; /* bytes */
    void (*cancel)(void *arg);
    void *arg;
    LIST_HEAD(, task_waiter) waiters;
};

const char *tasks_kind_name(enum task_kind kind);    /* "load", … */
const char *tasks_stage_name(enum task_kind kind);   /* "loading", … */
const char *tasks_state_name(enum task_state state); /* "running", … */

/* ---- all there are ---- */

int tasks_new(struct tasks **ret_all, struct event_base *base);
/* Those that run must have been ended. */
struct tasks *tasks_free(struct tasks *all);
AUTO_DEFINE(struct tasks *, tasks_free)

/* The next number, for a request. */
uint64_t tasks_number(struct tasks *all);
/* NULL: there is none of that number, or no longer. */
struct task *tasks_find(const struct tasks *all, uint64_t id);
struct task *tasks_first(const struct tasks *all); /* the oldest; NULL: there are none */

enum tasks_event { TASKS_BEGAN, TASKS_ADVANCED, TASKS_ENDED, TASKS_FORGOTTEN };
typedef void tasks_watch_fn(void *arg, const struct task *t, enum tasks_event what);
/* Call @fn for whatever happens to any of them; FORGOTTEN while it still is there. */
void tasks_watch(struct tasks *all, tasks_watch_fn *fn, void *arg);

/* ---- one ---- */

/**
 * tasks_begin() - some work begins
 * @cancel:     called with @arg by tasks_cancel(); ends the task, at once or soon
 *
 * The task is borrowed: it goes some time after tasks_end(). Return: 0 or -ENOMEM.
 */
int tasks_begin(struct task **ret_task, struct tasks *all, enum task_kind kind, const char *model,
                uid_t uid, void (*cancel)(void *arg), void *arg);
void tasks_progress(struct task *t, uint64_t done, uint64_t total);
/* @reason: of FAILED and CANCELLED, or NULL. Does nothing when it ended before. */
void tasks_end(struct task *t, enum task_state state, const struct why *reason);
/* Return: did it run? */
bool tasks_cancel(struct task *t);
