/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <math.h>
#include <string.h>

#include "engine/sched/fair.h"

/* @tag is where the node's next turn begins; the least of siblings is served. @now, of a parent, is
 * where the turn began that was served last among its children: who comes back begins there. */
struct fair_node {
    struct fair_node *parent; /* NULL: the root, or not in use */
    struct fair_node *child, *prev, *next;
    uint64_t key;
    double weight, tag, now;
    uint32_t n_job, n_running, n_ready; /* of jobs below */
    uint64_t spent;                     /* the step in which it had no more to give */
    struct fair_job *job;               /* of an application */
};

struct fair {
    struct fair_node root, class[2]; /* foreground, background */
    uint64_t step, arrival;
    uint32_t n_node;
    struct fair_node *unused; /* through .next */
    struct fair_node node[];  /* [n_node] users and applications */
};

static void node_link(struct fair_node *n, struct fair_node *parent, uint64_t key) {
    *n = (struct fair_node){ .parent = parent,
                             .key = key,
                             .weight = FAIR_WEIGHT,
                             .tag = parent->now,
                             .next = parent->child };
    if (n->next)
        n->next->prev = n;
    parent->child = n;
}

static void node_unlink(struct fair *f, struct fair_node *n) {
    *(n->prev ? &n->prev->next : &n->parent->child) = n->next;
    if (n->next)
        n->next->prev = n->prev;
    n->parent = NULL;
    n->next = f->unused;
    f->unused = n;
}

int fair_new(struct fair **ret_fair, uint32_t n_job) {
    /* A user and an application each, and as many again that owe something. */
    uint32_t n_node = 4 * n_job + 4;
    struct fair *f = calloc(1, sizeof *f + n_node * sizeof f->node[0]);

    if (!f)
        return err_new(-ENOMEM);
    f->n_node = n_node;
    node_link(&f->class[1], &f -> root, 1);
    node_link(&f->class[0], &f -> root, 0); /* first of equals */
    f->class[0].weight = FAIR_BACKGROUND_PARTS - 1;
    f->class[1].weight = 1;
    for (uint32_t i = n_node; i-- > 0;) {
        f->node[i].next = f->unused;
        f->unused = &f->node[i];
    }

    *ret_fair = f;
    return 0;
}

struct fair *fair_free(struct fair *f) {
    free(f);
    return NULL;
}

/* ---- nodes ---- */

/* What has no jobs stays only as long as it is ahead of the others. */
static void node_sweep(struct fair *f, bool all) {
    for (uint32_t i = 0; i < f->n_node; i++) {
        struct fair_node *n = &f->node[i];

        if (n->parent && !n->child && n->n_job == 0 && (all || n->tag <= n->parent->now))
            node_unlink(f, n);
    }
}

static struct fair_node *node_get(struct fair *f, struct fair_node *parent, uint64_t key,
                                  uint32_t weight) {
    struct fair_node *n = parent->child;

    while (n && n->key != key)
        n = n->next;
    if (!n) {
        n = f->unused;
        assert(n);
        f->unused = n->next;
        node_link(n, parent, key);
    }
    if (weight > FAIR_WEIGHT_MAX)
        weight = FAIR_WEIGHT_MAX;
    n->weight = weight ? weight : FAIR_WEIGHT;
    return n;
}

static bool node_background(const struct fair_node *app) {
    return app->parent->parent->key == 1;
}

static void node_count(struct fair_node *n, int job, int running) {
    for (; n; n = n->parent) {
        n->n_job += (uint32_t)job;
        n->n_running += (uint32_t)running;
    }
}

/* ---- jobs ---- */

void fair_add(struct fair *f, struct fair_job *j) {
    struct fair_node *n = &f->class[j->who.class == FAIR_BACKGROUND];

    /* Users before applications: an application's going makes its user free to go. */
    node_sweep(f, false);
    if (!f->unused || !f->unused->next) {
        node_sweep(f, true);
        node_sweep(f, true);
    }
    n = node_get(f, n, j->who.uid, j->who.uid_weight);
    n = node_get(f, n, j->who.app, j->who.app_weight);
    j->app = n;
    j->arrival = ++f->arrival;
    j->running = j->ready = false;
    j->tag = n->now;
    j->offered = 0;
    j->prev = NULL;
    j->next = n->job;
    if (j->next)
        j->next->prev = j;
    n->job = j;
    node_count(n, 1, 0);
}

void fair_remove(struct fair *f, struct fair_job *j) {
    if (j->running)
        fair_run(f, j, false);
    *(j->prev ? &j->prev->next : &j->app->job) = j->next;
    if (j->next)
        j->next->prev = j->prev;
    node_count(j->app, -1, 0);
    j->app = NULL;
}

void fair_run(struct fair *f, struct fair_job *j, bool running) {
    assert(j->running != running);
    fair_ready(f, j, false);
    j->running = running;
    node_count(j->app, 0, running ? 1 : -1);
}

void fair_ready(struct fair *f, struct fair_job *j, bool ready) {
    if (j->ready == ready)
        return;
    assert(j->running);
    j->ready = ready;
    if (ready && j->tag < j->app->now)
        j->tag = j->app->now;
    for (struct fair_node *n = j->app; n; n = n->parent) {
        n->n_ready += ready ? 1 : (uint32_t)-1;
        if (ready && n->n_ready == 1 && n->parent && n->tag < n->parent->now)
            n->tag = n->parent->now;
    }
}

/* ---- places ---- */

/* Fewest places for its weight first, then what was served least. Return: < 0 when @a is first. */
static int node_cmp(const struct fair_node *a, const struct fair_node *b) {
    double pa = a->n_running / a->weight, pb = b->n_running / b->weight;

    if (pa != pb)
        return pa < pb ? -1 : 1;
    return (a->tag > b->tag) - (a->tag < b->tag);
}

static bool job_before(const struct fair_job *a, const struct fair_job *b) {
    bool ia = a->who.class == FAIR_INTERACTIVE, ib = b->who.class == FAIR_INTERACTIVE;

    return ia != ib ? ia : a->arrival < b->arrival;
}

static bool wait_before(const struct fair_job *a, const struct fair_job *b) {
    const struct fair_node *ua = a->app->parent, *ub = b->app->parent;
    int r = ua->parent == ub->parent ? 0 : node_background(a->app) ? 1 : -1;

    if (r == 0 && ua != ub)
        r = node_cmp(ua, ub);
    if (r == 0 && a->app != b->app)
        r = node_cmp(a->app, b->app);
    return r != 0 ? r < 0 : job_before(a, b);
}

struct fair_job *fair_wait_next(const struct fair *f, fair_may_fn *may, void *arg) {
    struct fair_job *best = NULL;

    for (int i = 0; i < 2; i++)
        for (struct fair_node *u = f->class[i].child; u; u = u->next)
            for (struct fair_node *n = u->child; n; n = n->next)
                for (struct fair_job *j = n->job; j; j = j->next)
                    if (!j->running && (!best || wait_before(j, best)) && may(arg, j))
                        best = j;
    return best;
}

bool fair_yields(const struct fair *f, const struct fair_job *victim,
                 const struct fair_job *waiter) {
    const struct fair_node *v = victim->app->parent, *w = waiter->app->parent;

    if (node_background(victim->app) != node_background(waiter->app))
        return node_background(victim->app);
    return v != w && v->n_running >= 2 && w->n_running == 0;
}

/* ---- turns ---- */

void fair_begin(struct fair *f) {
    f->step++;
}

/* Streams first: the shortest turns, and somebody reads them. */
static bool turn_before(const struct fair_job *a, const struct fair_job *b) {
    if (a->stream != b->stream)
        return a->stream;
    return a->tag < b->tag || (a->tag == b->tag && job_before(a, b));
}

static struct fair_job *app_next(const struct fair *f, const struct fair_node *app) {
    struct fair_job *best = NULL;

    for (struct fair_job *j = app->job; j; j = j->next)
        if (j->ready && j->offered != f->step && (!best || turn_before(j, best)))
            best = j;
    return best;
}

/* The child that has something to give and whose turn it is; NULL: there is none. */
static struct fair_node *node_turn(const struct fair *f, const struct fair_node *parent) {
    struct fair_node *best = NULL;
    double least = INFINITY;

    for (struct fair_node *n = parent->child; n; n = n->next) {
        if (n->n_ready == 0)
            continue;
        if (n->tag < least)
            least = n->tag;
        if (n->spent != f->step && (!best || n->tag < best->tag))
            best = n;
    }
    return best && best->tag <= least ? best : NULL;
}

struct fair_job *fair_next(struct fair *f) {
    struct fair_node *n = &f->root;

    while (n) {
        bool app = n->parent && n->parent->parent && n->parent->parent->parent;
        struct fair_node *turn = app ? NULL : node_turn(f, n);
        struct fair_job *j = app ? app_next(f, n) : NULL;

        if (j) {
            j->offered = f->step;
            return j;
        }
        if (!turn)
            n->spent = f->step;
        n = turn ? turn : n->parent; /* down; or up again, past what is spent */
    }
    return NULL;
}

void fair_charge(struct fair *f, struct fair_job *j, double cost) {
    double weight = j->who.class == FAIR_INTERACTIVE ? FAIR_INTERACTIVE_WEIGHT : 1;

    if (j->app->now < j->tag)
        j->app->now = j->tag;
    j->tag += cost / weight;
    for (struct fair_node *n = j->app; n->parent; n = n->parent) {
        if (n->parent->now < n->tag)
            n->parent->now = n->tag;
        n->tag += cost / n->weight;
    }
}
