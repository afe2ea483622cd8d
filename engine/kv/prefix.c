/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv/prefix.h"

enum { NODES_EACH = 3 /* of one prefix at most: a root, a node that was split, its own */ };

/* The tokens that lead to a node are the first .to of its .any; its own are those from .from on.
 * Of nodes with a parent, those that keep nothing have two children or more. */
struct prefix_node {
    struct prefix_node *parent, *child, *next; /* next: of siblings, of roots, of unused ones */
    uint64_t salt, weight;                     /* of a root; weight: while one is chosen to go */
    pos_t from, to;
    struct prefix_kept *any, *kept; /* one here or below; the one that ends here, NULL: none */
    uint64_t seen;                  /* the last search that came by */
};

struct prefix_kept {
    struct prefix_node *node; /* NULL: not in use */
    uint64_t salt;
    uint32_t seq;
    pos_t n;
    uint64_t used; /* the last search that it was of use to */
    int32_t *tok;  /* [n] of n_ctx */
};

struct prefix {
    struct kvcache *kv;
    uint32_t n_keep, n_kept;
    uint64_t n_byte, clock;
    struct prefix_node *root, *unused;
    struct prefix_node *node; /* [NODES_EACH * (n_keep + 1)] */
    struct prefix_kept *kept; /* [n_keep] */
    int32_t *tok;             /* [n_keep][n_ctx] */
};

int prefix_new(struct prefix **ret_prefix, struct kvcache *kv, uint32_t n_keep, uint32_t n_ctx,
               uint64_t n_byte) {
    AUTO(prefix_free) struct prefix *p = calloc(1, sizeof *p);
    uint32_t n_node = NODES_EACH * (n_keep + 1); /* one is put in before another goes */

    if (!p)
        return err_new(-ENOMEM);
    p->kv = kv;
    p->n_byte = n_byte;
    p->node = calloc(n_node, sizeof *p->node);
    p->kept = calloc(n_keep + 1, sizeof *p->kept);
    p->tok = calloc((size_t)n_keep + 1, n_ctx * sizeof *p->tok);
    if (!p->node || !p->kept || !p->tok)
        return err_new(-ENOMEM);
    for (uint32_t i = n_node; i-- > 0;) {
        p->node[i].next = p->unused;
        p->unused = &p->node[i];
    }
    for (uint32_t i = 0; i < n_keep; i++)
        p->kept[i].tok = p->tok + (size_t)i * n_ctx;
    p->n_keep = n_byte ? n_keep : 0;

    *ret_prefix = take(p);
    return 0;
}

struct prefix *prefix_free(struct prefix *p) {
    if (!p)
        return NULL;
    prefix_clear(p);
    free(p->node);
    free(p->kept);
    free(p->tok);
    free(p);
    return NULL;
}

/* ---- nodes ---- */

static struct prefix_node *node_new(struct prefix *p, struct prefix_node *parent,
                                    struct prefix_kept *any, pos_t from, pos_t to) {
    struct prefix_node *x = p->unused;

    assert(x);
    p->unused = x->next;
    *x = (struct prefix_node){ .parent = parent, .any = any, .from = from, .to = to };
    x->next = parent ? parent->child : p->root;
    *(parent ? &parent->child : &p->root) = x;
    return x;
}

/* Where the pointer to @x is: at its parent, its sibling or the roots. */
static struct prefix_node **node_link(struct prefix *p, const struct prefix_node *x) {
    struct prefix_node **at = x->parent ? &x->parent->child : &p->root;

    while (*at != x)
        at = &(*at)->next;
    return at;
}

static void node_drop(struct prefix *p, struct prefix_node *x) {
    *node_link(p, x) = x->next;
    x->next = p->unused;
    p->unused = x;
}

/* A new node between @x and its parent, which ends at @to. */
static struct prefix_node *node_split(struct prefix *p, struct prefix_node *x, pos_t to) {
    struct prefix_node *m;

    *node_link(p, x) = x->next;
    m = node_new(p, x->parent, x->any, x->from, to);
    x->parent = m;
    x->next = NULL;
    x->from = to;
    m->child = x;
    return m;
}

static struct prefix_node *root_of(const struct prefix *p, uint64_t salt) {
    struct prefix_node *x = p->root;

    while (x && x->salt != salt)
        x = x->next;
    return x;
}

/* The child of @x that goes on with @tok; NULL: none. */
static struct prefix_node *node_child(const struct prefix_node *x, int32_t tok) {
    struct prefix_node *c = x->child;

    while (c && c->any->tok[c->from] != tok)
        c = c->next;
    return c;
}

/* Follow @tok [@n] from @root down; what is passed is seen now. Return: the last node that agrees
 * in anything, and in @ret_at how many tokens did. */
static struct prefix_node *node_find(struct prefix *p, struct prefix_node *root, const int32_t *tok,
                                     pos_t n, pos_t *ret_at) {
    struct prefix_node *x = root, *c;
    pos_t at = 0;

    p->clock++;
    x->seen = p->clock;
    while (at == x->to && at < n && (c = node_child(x, tok[at]))) {
        while (at < n && at < c->to && c->any->tok[at] == tok[at])
            at++;
        c->seen = p->clock;
        x = c;
    }
    *ret_at = at;
    return x;
}

/* What @k shares with the tokens of the last node_find(), which ended in @end after @at. */
static pos_t kept_shares(const struct prefix *p, const struct prefix_kept *k,
                         const struct prefix_node *end, pos_t at) {
    const struct prefix_node *x = k->node;

    while (x && x->seen != p->clock)
        x = x->parent;
    return !x ? 0 : x == end ? at : x->to;
}

/* The one of @salt that holds the most of the tokens last looked for, and of those what was used
 * last. NULL: nothing is held. */
static struct prefix_kept *kept_best(const struct prefix *p, uint64_t salt,
                                     const struct prefix_node *end, pos_t at, pos_t *ret_n) {
    struct prefix_kept *best = NULL;

    *ret_n = 0;
    for (struct prefix_kept *k = p->kept; k < p->kept + p->n_keep; k++) {
        pos_t n = k->node && k->salt == salt ? kept_shares(p, k, end, at) : 0;

        if (n == 0 || n < *ret_n || (n == *ret_n && k->used < best->used) ||
            !kvcache_holds(p->kv, k->seq, n))
            continue;
        best = k;
        *ret_n = n;
    }
    return best;
}

/* ---- prefixes ---- */

/* @k is gone: of its nodes those stay that others need. */
static void kept_drop(struct prefix *p, struct prefix_kept *k) {
    struct prefix_node *x = k->node, *parent;

    kvcache_seq_free(p->kv, k->seq);
    k->node = NULL;
    p->n_kept--;
    x->kept = NULL;
    for (; x && !x->kept && !x->child; x = parent) {
        parent = x->parent;
        node_drop(p, x);
    }
    if (x && x->parent && !x->kept && !x->child->next) { /* its one child takes its place */
        struct prefix_node *c = x->child;

        parent = x->parent;
        node_drop(p, x);
        c->from = x->from;
        c->parent = parent;
        c->next = parent->child;
        parent->child = c;
        x = parent;
    }
    for (; x; x = x->parent)
        if (x->any == k)
            x->any = x->kept ? x->kept : x->child->any;
}

/* What is kept under the salt of @root: prefixes, or bytes. */
static uint64_t root_weight(const struct prefix *p, const struct prefix_node *root, bool bytes) {
    uint64_t sum = 0;

    for (const struct prefix_kept *k = p->kept; k < p->kept + p->n_keep; k++)
        if (k->node && k->salt == root->salt)
            sum += bytes ? kvcache_share(p->kv, k->seq) : 1;
    return sum;
}

static bool kept_before(const struct prefix *p, const struct prefix_kept *a,
                        const struct prefix_kept *b) {
    uint64_t of_a = root_of(p, a->salt)->weight, of_b = root_of(p, b->salt)->weight;

    if ((a->salt == PREFIX_PUBLIC) != (b->salt == PREFIX_PUBLIC))
        return b->salt == PREFIX_PUBLIC;
    return of_a != of_b ? of_a > of_b : a->used < b->used;
}

/* Let one go. @more: under this salt there is about to be one more; NULL: it is bytes that count */
static bool kept_yield(struct prefix *p, const uint64_t *more) {
    struct prefix_kept *first = NULL;

    for (struct prefix_node *x = p->root; x; x = x->next)
        x->weight = root_weight(p, x, !more) + (more && *more == x->salt);
    for (struct prefix_kept *k = p->kept; k < p->kept + p->n_keep; k++)
        if (k->node && (!first || kept_before(p, k, first)))
            first = k;
    if (first)
        kept_drop(p, first);
    return first != NULL;
}

bool prefix_yield(struct prefix *p) {
    return kept_yield(p, NULL);
}

void prefix_clear(struct prefix *p) {
    for (struct prefix_kept *k = p->kept; k < p->kept + p->n_keep; k++)
        if (k->node)
            kept_drop(p, k);
}

void prefix_forget(struct prefix *p, uint64_t salt) {
    for (struct prefix_kept *k = p->kept; k < p->kept + p->n_keep; k++)
        if (k->node && k->salt == salt)
            kept_drop(p, k);
}

/* Look for @tok under @salt; *@ret as prefix_take() if that is more. Return: who has it. */
static struct prefix_kept *prefix_look(struct prefix *p, uint64_t salt, const int32_t *tok, pos_t n,
                                       struct prefix_hit *ret) {
    struct prefix_node *root = root_of(p, salt), *end;
    struct prefix_kept *k;
    pos_t at, n_held;

    if (!root)
        return NULL;
    end = node_find(p, root, tok, n, &at);
    k = kept_best(p, salt, end, at, &n_held);
    ret->parted = at > ret->parted ? at : ret->parted;
    if (!k || n_held <= ret->n)
        return NULL;
    ret->n = n_held;
    return k;
}

int prefix_take(struct prefix *p, uint64_t salt, const int32_t *tok, pos_t n,
                struct prefix_hit *ret) {
    struct prefix_hit hit = { 0 };
    struct prefix_kept *own = prefix_look(p, salt, tok, n, &hit);
    struct prefix_kept *k =
        salt == PREFIX_PUBLIC ? NULL : prefix_look(p, PREFIX_PUBLIC, tok, n, &hit);
    int r;

    k = k ? k : own;
    r = k ? kvcache_fork(p->kv, k->seq, hit.n, &hit.seq) : kvcache_seq_new(p->kv, &hit.seq);
    if (r != 0)
        return r;
    if (k)
        k->used = p->clock;
    *ret = hit;
    return 0;
}

/* Prefixes whose end @k holds too are gone. */
static void kept_cover(struct prefix *p, const struct prefix_kept *k) {
    struct prefix_node *x = k->node->parent, *parent;

    for (; x; x = parent) {
        parent = x->parent;
        if (x->kept && kvcache_holds(p->kv, k->seq, x->to))
            kept_drop(p, x->kept); /* perhaps with @x, but @k hangs on its parent */
    }
}

void prefix_keep(struct prefix *p, uint64_t salt, const int32_t *tok, pos_t n, uint32_t seq) {
    struct prefix_node *x = root_of(p, salt);
    struct prefix_kept *k = NULL;
    pos_t at, n_held;

    if (p->n_keep == 0 || n < PREFIX_MIN || !kvcache_holds(p->kv, seq, n))
        return;
    if (x) {
        x = node_find(p, x, tok, n, &at);
        k = kept_best(p, salt, x, at, &n_held);
        if (k && n_held == n) { /* it is held already */
            k->used = p->clock;
            return;
        }
    }
    if (p->n_kept == p->n_keep)
        (void)kept_yield(p, &salt);
    for (k = p->kept; k->node;)
        k++;
    if (kvcache_fork(p->kv, seq, n, &k->seq) != 0)
        return;
    kvcache_keep(p->kv, k->seq);
    k->salt = salt;
    k->n = n;
    memcpy(k->tok, tok, n * sizeof *tok);
    p->n_kept++;

    x = root_of(p, salt);
    if (!x) {
        x = node_new(p, NULL, k, 0, 0);
        x->salt = salt;
    }
    x = node_find(p, x, tok, n, &at);
    if (at < x->to)
        x = node_split(p, x, at);
    if (at < n)
        x = node_new(p, x, k, at, n);
    x->kept = k;
    k->node = x;
    k->used = p->clock;
    kept_cover(p, k);
    prefix_bound(p);
}

void prefix_bound(struct prefix *p) {
    while (kvcache_n_kept(p->kv) > p->n_byte && prefix_yield(p))
        ;
}

/* ---- what there is ---- */

uint32_t prefix_n(const struct prefix *p) {
    return p->n_kept;
}

uint32_t prefix_n_of(const struct prefix *p, uint64_t salt) {
    uint32_t n = 0;

    for (uint32_t i = 0; i < p->n_keep; i++)
        n += p->kept[i].node && p->kept[i].salt == salt;
    return n;
}

/* @x and what is below it; @ret_n counts what is kept. */
static bool node_sound(const struct prefix_node *x, uint32_t *ret_n) {
    uint32_t n_child = 0;

    for (const struct prefix_node *c = x->child; c; c = c->next, n_child++) {
        if (c->parent != x || c->from != x->to || c->to <= c->from || c->any->n < c->to ||
            memcmp(c->any->tok, x->any->tok, x->to * sizeof *c->any->tok) != 0 ||
            node_child(x, c->any->tok[c->from]) != c || !node_sound(c, ret_n))
            return false;
    }
    *ret_n += x->kept != NULL;
    if (x->kept && (x->kept->node != x || x->kept->n != x->to))
        return false;
    return x->any->node && (x->kept || n_child >= (x->parent ? 2 : 1));
}

bool prefix_sound(const struct prefix *p) {
    uint32_t n = 0, n_used = 0;

    for (const struct prefix_node *x = p->root; x; x = x->next)
        if (x->parent || x->from || x->to || root_of(p, x->salt) != x || !node_sound(x, &n))
            return false;
    for (const struct prefix_kept *k = p->kept; k < p->kept + p->n_keep; k++) {
        const struct prefix_node *x = k->node;

        n_used += x != NULL;
        while (x && x->parent)
            x = x->parent;
        if (k->node && (x->salt != k->salt || kvcache_n(p->kv, k->seq) != k->n))
            return false;
    }
    return n == p->n_kept && n_used == n;
}
