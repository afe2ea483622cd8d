/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/pressure.h"
#include "daemon/residency.h"
#include "engine/base/log.h"

enum {
    STEP_KV = 1,
    STEP_COLD,
    STEP_UNLOCK,
    STEP_UNLOAD,
    RETRY_USEC = 1000000, /* to look again whether the model has work, while it had better go */
};
_Static_assert((int)STEP_UNLOAD == (int)PRESSURE_MAX, "a step a level");

struct kept {
    LIST_ENTRY(kept) link;
    struct residency_lease lease;
};

struct residency {
    struct event_base *base;
    struct models *models;
    const struct config *config;
    struct pressure *pressure;
    unsigned level; /* the last one that was told */
    bool unlocked;  /* since it was STEP_UNLOCK, until it is 0 */
    LIST_HEAD(, residency_lease) leases;
    LIST_HEAD(, kept) kept;
    struct event *timer;        /* when the model may have to go */
    void (*changed)(void *arg); /* NULL: nobody wants to know */
    void *changed_arg;
};

static const char *const names[] = { "idle", "pressure", "pinned" };
enum { N_NAME = sizeof names / sizeof names[0] };

const char *residency_name(enum residency_wish wish) {
    return names[wish];
}

bool residency_parse(const char *name, size_t n, enum residency_wish *ret_wish) {
    for (size_t i = 0; i < N_NAME; i++)
        if (strlen(names[i]) == n && memcmp(names[i], name, n) == 0) {
            *ret_wish = (enum residency_wish)i;
            return true;
        }
    return false;
}

enum residency_wish residency_of(const struct residency *r, const char *model) {
    enum residency_wish most = (enum residency_wish)r->config->residency;
    const struct residency_lease *l;

    for (l = LIST_FIRST(&r->leases); l; l = LIST_NEXT(l, link))
        if (l->wish > most && (!l->model || (model && strcmp(l->model, model) == 0)))
            most = l->wish;
    return most;
}

enum residency_wish residency_now(const struct residency *r) {
    return residency_of(r, models_resident(r->models));
}

unsigned residency_level(const struct residency *r) {
    return r->pressure ? pressure_level(r->pressure) : 0;
}

/* ---- when it goes ---- */

/* Time until the model goes if nothing happens; 0: now, UINT64_MAX: it stays. Called anew whenever
 * that time is over. */
static usec_t left(const struct residency *r) {
    enum residency_wish wish = residency_now(r);
    usec_t timeout = r->config->idle_timeout * CLOCK_SECOND, idle;

    if (!models_resident(r->models) || wish == RESIDENCY_PINNED)
        return UINT64_MAX;
    idle = models_idle_usec(r->models);
    if (residency_level(r) == STEP_UNLOAD)
        return idle ? 0 : RETRY_USEC;
    if (wish == RESIDENCY_PRESSURE)
        return UINT64_MAX;
    return idle >= timeout ? 0 : timeout - idle;
}

/* Let it go if it is time, else look again when it may be. Another model may be resident by then,
 * which nobody has a stronger wish about: then it has at least a whole timeout ahead of it. */
static void settle(struct residency *r) {
    usec_t in = left(r);
    struct timeval tv;
    uint32_t n;

    if (in == 0) {
        log_info("residency", "%s: %s", models_resident(r->models),
                 residency_level(r) == STEP_UNLOAD ? "memory is short" : "it had no work");
        (void)models_unload(r->models, NULL, &n); /* it has no work */
        in = left(r);
    }
    if (in == UINT64_MAX && residency_of(r, NULL) == RESIDENCY_IDLE)
        in = r->config->idle_timeout * CLOCK_SECOND;
    if (in == UINT64_MAX) {
        (void)event_del(r->timer);
        return;
    }
    tv = clock_timeval(in);
    (void)event_add(r->timer, &tv);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    settle(arg);
}

/* ---- pressure ---- */

static void on_level(void *arg, unsigned level) {
    struct residency *r = arg;
    bool higher = level > r->level;

    r->level = level;
    r->unlocked = level >= STEP_UNLOCK || (level && r->unlocked);
    models_tidy(r->models, (higher ? ENGINE_TIDY_KV : 0u) |
                               (higher && level >= STEP_COLD ? ENGINE_TIDY_COLD : 0u) |
                               (r->config->lock_weights && !r->unlocked ? ENGINE_TIDY_LOCK
                                                                        : ENGINE_TIDY_UNLOCK));
    models_close(r->models, level == STEP_UNLOAD);
    if (r->changed)
        r->changed(r->changed_arg);
    settle(r);
}

/* ---- wishes ---- */

int residency_take(struct residency *r, struct residency_lease *lease, const char *model,
                   enum residency_wish wish) {
    char *copy = model ? strdup(model) : NULL;

    if (model && !copy)
        return err_new(-ENOMEM);
    if (!lease->live)
        LIST_INSERT_HEAD(&r->leases, lease, link);
    free(lease->model);
    lease->live = true;
    lease->wish = wish;
    lease->model = copy;
    settle(r);
    return 0;
}

void residency_drop(struct residency *r, struct residency_lease *lease) {
    if (!lease->live)
        return;
    LIST_REMOVE(lease, link);
    free(lease->model);
    *lease = (struct residency_lease){ 0 };
    settle(r);
}

static struct kept *find_kept(const struct residency *r, const char *model) {
    struct kept *k = LIST_FIRST(&r->kept);

    while (k && strcmp(k->lease.model ?: "", model ?: "") != 0)
        k = LIST_NEXT(k, link);
    return k;
}

static void drop_kept(struct residency *r, struct kept *k) {
    LIST_REMOVE(k, link);
    residency_drop(r, &k->lease);
    free(k);
}

int residency_keep(struct residency *r, const char *model, enum residency_wish wish) {
    struct kept *k = find_kept(r, model);
    int rc;

    if (k)
        return err_up(residency_take(r, &k->lease, model, wish));
    k = calloc(1, sizeof *k);
    if (!k)
        return err_new(-ENOMEM);
    LIST_INSERT_HEAD(&r->kept, k, link);
    rc = residency_take(r, &k->lease, model, wish);
    if (rc < 0)
        drop_kept(r, k);
    return err_up(rc);
}

void residency_forget(struct residency *r, const char *model) {
    struct kept *k = find_kept(r, model);

    if (k)
        drop_kept(r, k);
}

bool residency_kept(const struct residency *r, const char *model, enum residency_wish *ret_wish) {
    const struct kept *k = find_kept(r, model);

    if (k)
        *ret_wish = k->lease.wish;
    return k != NULL;
}

void residency_trim(struct residency *r, unsigned level) {
    uint32_t n;

    models_trim(r->models, ENGINE_TIDY_KV | (level >= STEP_COLD ? ENGINE_TIDY_COLD : 0u) |
                               (level >= STEP_UNLOCK ? ENGINE_TIDY_UNLOCK : 0u));
    if (level >= STEP_UNLOAD && residency_now(r) != RESIDENCY_PINNED &&
        models_idle_usec(r->models)) {
        log_info("residency", "%s: it was told to go", models_resident(r->models));
        (void)models_unload(r->models, NULL, &n); /* it has no work */
    }
}

/* ---- life ---- */

void residency_watch(struct residency *r, void (*changed)(void *arg), void *arg) {
    r->changed = changed;
    r->changed_arg = arg;
}

int residency_reconfigure(struct residency *r, const struct config *config) {
    const struct config *old = r->config;
    bool same = r->pressure && config->pressure_calm == old->pressure_calm &&
                strcmp(config->pressure_watch ?: "", old->pressure_watch ?: "") == 0;
    int k;

    r->config = config;
    if (!same) {
        r->pressure = pressure_free(r->pressure);
        k = pressure_new(&r->pressure, r->base, config->pressure_watch,
                         config->pressure_calm * CLOCK_SECOND, on_level, r);
        if (k < 0)
            return err_up(k);
    }
    on_level(r, residency_level(r));
    return 0;
}

struct residency *residency_free(struct residency *r) {
    if (!r)
        return NULL;
    while (!LIST_EMPTY(&r->kept))
        drop_kept(r, LIST_FIRST(&r->kept));
    (void)pressure_free(r->pressure);
    if (r->timer)
        event_free(r->timer);
    free(r);
    return NULL;
}

int residency_new(struct residency **ret_r, struct event_base *base, struct models *models,
                  const struct config *config) {
    AUTO(residency_free) struct residency *r = calloc(1, sizeof *r);
    int k;

    if (!r)
        return err_new(-ENOMEM);
    r->base = base;
    r->models = models;
    r->config = config;
    LIST_INIT(&r->leases);
    LIST_INIT(&r->kept);
    r->timer = evtimer_new(base, on_timer, r);
    if (!r->timer)
        return err_new(-ENOMEM);
    k = residency_reconfigure(r, config);
    if (k < 0)
        return err_up(k);

    *ret_r = take(r);
    return 0;
}
