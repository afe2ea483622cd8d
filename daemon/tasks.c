/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/tasks.h"

struct tasks {
    TAILQ_HEAD(, task) list; /* oldest first */
    uint32_t n;
    uint64_t last_number;
    struct event *timer;   /* when the first one that ended goes */
    tasks_watch_fn *watch; /* NULL: nobody does */
    void *watch_arg;
};

const char *tasks_kind_name(enum task_kind kind) {
    static const char *const names[] = { "load", "import", "verify" };

    return names[kind];
}

const char *tasks_stage_name(enum task_kind kind) {
    static const char *const names[] = { "loading", "importing", "verifying" };

    return names[kind];
}

const char *tasks_state_name(enum task_state state) {
    static const char *const names[] = { "running", "done", "failed", "cancelled" };

    return names[state];
}

static void tell(const struct task *t, enum tasks_event what) {
    if (t->all->watch)
        t->all->watch(t->all->watch_arg, t, what);
}

void tasks_watch(struct tasks *all, tasks_watch_fn *fn, void *arg) {
    all->watch = fn;
    all->watch_arg = arg;
}

static void forget(struct task *t) {
    tell(t, TASKS_FORGOTTEN);
    TAILQ_REMOVE(&t->all->list, t, link);
    t->all->n--;
    free(t);
}

/* Forget what ended long ago, and the oldest of too many; come back for the next one. */
static void purge(struct tasks *all, uint32_t max) {
    usec_t now = clock_usec(), first = TASK_KEEP_USEC;
    struct task *t, *next;
    struct timeval tv;
    bool any = false;

    for (t = TAILQ_FIRST(&all->list); t; t = next) {
        next = TAILQ_NEXT(t, link);
        if (t->state == TASK_RUNNING)
            continue;
        if (now - t->ended_usec >= TASK_KEEP_USEC || all->n > max) {
            forget(t);
            continue;
        }
        any = true;
        first = TASK_KEEP_USEC - (now - t->ended_usec) < first
                    ? TASK_KEEP_USEC - (now - t->ended_usec)
                    : first;
    }
    tv = clock_timeval(first);
    if (any)
        (void)event_add(all->timer, &tv);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    purge(arg, TASK_MAX);
}

uint64_t tasks_number(struct tasks *all) {
    return ++all->last_number;
}

struct task *tasks_first(const struct tasks *all) {
    return TAILQ_FIRST(&all->list);
}

struct task *tasks_find(const struct tasks *all, uint64_t id) {
    struct task *t = TAILQ_FIRST(&all->list);

    while (t && t->id != id)
        t = TAILQ_NEXT(t, link);
    return t;
}

struct tasks *tasks_free(struct tasks *all) {
    if (!all)
        return NULL;

    while (!TAILQ_EMPTY(&all->list))
        forget(TAILQ_FIRST(&all->list));
    if (all->timer)
        event_free(all->timer);
    free(all);
    return NULL;
}

int tasks_new(struct tasks **ret_all, struct event_base *base) {
    AUTO(tasks_free) struct tasks *all = calloc(1, sizeof *all);

    if (!all)
        return err_new(-ENOMEM);
    TAILQ_INIT(&all->list);
    all->timer = evtimer_new(base, on_timer, all);
    if (!all->timer)
        return err_new(-ENOMEM);

    *ret_all = take(all);
    return 0;
}

int tasks_begin(struct task **ret_task, struct tasks *all, enum task_kind kind, const char *model,
                uid_t uid, void (*cancel)(void *arg), void *arg) {
    struct task *t;

    purge(all, TASK_MAX - 1);
    t = calloc(1, sizeof *t);
    if (!t)
        return err_new(-ENOMEM);

    t->all = all;
    t->id = tasks_number(all);
    t->kind = kind;
    (void)snprintf(t->model, sizeof t->model, "%s", model);
    t->uid = uid;
    t->began_usec = clock_usec();
    t->cancel = cancel;
    t->arg = arg;
    LIST_INIT(&t->waiters);
    TAILQ_INSERT_TAIL(&all->list, t, link);
    all->n++;
    tell(t, TASKS_BEGAN);
    *ret_task = t;
    return 0;
}

void tasks_progress(struct task *t, uint64_t done, uint64_t total) {
    struct task_waiter *w;

    t->done = done;
    t->total = total;
    for (w = LIST_FIRST(&t->waiters); w; w = LIST_NEXT(w, link))
        w->progress(w);
    tell(t, TASKS_ADVANCED);
}

void tasks_end(struct task *t, enum task_state state, const struct why *reason) {
    struct task_waiter *w;

    if (t->state != TASK_RUNNING)
        return;

    t->state = state;
    t->ended_usec = clock_usec();
    if (reason)
        t->reason = *reason;
    while ((w = LIST_FIRST(&t->waiters))) {
        LIST_REMOVE(w, link);
        w->ended(w);
    }
    tell(t, TASKS_ENDED);
    purge(t->all, TASK_MAX);
}

bool tasks_cancel(struct task *t) {
    if (t->state != TASK_RUNNING)
        return false;
    t->cancel(t->arg);
    return true;
}
