/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/moe/policy.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/arena.h"
#include "engine/base/sum.h"

_Static_assert(sizeof(struct policy_head) == 40, "the head has no gaps");

enum {
    UNIT = 256, /* a use, in the bytes of a score */
    SCALE = 512 /* scores are divided by 2^SCALE when a use weighs that much */
};

struct policy_slot {
    uint32_t item;   /* layer * n_expert + expert; POLICY_NONE: empty */
    uint32_t n_hold; /* 0: it is in the heap, unless it is out of use */
    uint32_t at;     /* where in the heap; POLICY_NONE: not there */
    bool out;        /* of use */
};

struct policy {
    uint32_t n_layer, n_expert, n_item, n_slot;
    uint32_t n_in_use;
    double one;               /* what a use weighs now; >= 1 */
    double *used;             /* [n_item] uses, each by what it weighed */
    double *last;             /* [n_item] what the last one weighs besides */
    uint32_t *slot_of;        /* [n_item] or POLICY_NONE */
    struct policy_slot *slot; /* [n_slot] */
    uint32_t *heap;           /* [n_heap] slots not held, the lowest score on top */
    uint32_t n_heap;
    struct arena memory;
};

/* ---- the heap ---- */

static double score(const struct policy *p, uint32_t item) {
    return p->used[item] + p->last[item];
}

/* Empty slots come before all others. */
static double key(const struct policy *p, uint32_t slot) {
    uint32_t item = p->slot[slot].item;

    return item == POLICY_NONE ? -1 : score(p, item);
}

static void put(struct policy *p, uint32_t at, uint32_t slot) {
    p->heap[at] = slot;
    p->slot[slot].at = at;
}

/* @slot, which is at @at, moves to where its score belongs. */
static void sift(struct policy *p, uint32_t at, uint32_t slot) {
    double k = key(p, slot);
    uint32_t child;

    for (; at > 0 && k < key(p, p->heap[(at - 1) / 2]); at = (at - 1) / 2)
        put(p, at, p->heap[(at - 1) / 2]);
    for (; (child = 2 * at + 1) < p->n_heap; at = child) {
        if (child + 1 < p->n_heap && key(p, p->heap[child + 1]) < key(p, p->heap[child]))
            child++;
        if (k <= key(p, p->heap[child]))
            break;
        put(p, at, p->heap[child]);
    }
    put(p, at, slot);
}

static void heap_add(struct policy *p, uint32_t slot) {
    sift(p, p->n_heap++, slot);
}

static void heap_remove(struct policy *p, uint32_t slot) {
    uint32_t at = p->slot[slot].at, last = p->heap[--p->n_heap];

    p->slot[slot].at = POLICY_NONE;
    if (last != slot)
        sift(p, at, last);
}

/* ---- life ---- */

static void lay_out(struct policy *p, struct arena *a) {
    p->used = arena_alloc(a, p->n_item, sizeof *p->used);
    p->last = arena_alloc(a, p->n_item, sizeof *p->last);
    p->slot_of = arena_alloc(a, p->n_item, sizeof *p->slot_of);
    p->slot = arena_alloc(a, p->n_slot, sizeof *p->slot);
    p->heap = arena_alloc(a, p->n_slot, sizeof *p->heap);
}

int policy_new(struct policy **ret_policy, uint32_t n_layer, uint32_t n_expert, uint32_t n_slot) {
    AUTO(policy_free) struct policy *p = calloc(1, sizeof *p);
    struct arena measure;
    int r;

    assert(n_layer > 0 && n_expert > 0 && n_slot > 0 && n_slot < POLICY_NONE);
    assert(n_layer < POLICY_NONE / n_expert);
    if (!p)
        return err_new(-ENOMEM);
    p->n_layer = n_layer;
    p->n_expert = n_expert;
    p->n_item = n_layer * n_expert;
    p->n_slot = n_slot;
    p->one = 1;
    arena_measure(&measure);
    lay_out(p, &measure);
    r = arena_init(&p->memory, measure.used, NULL);
    if (r != 0)
        return err_up(r);
    lay_out(p, &p->memory);
    for (uint32_t i = 0; i < p->n_item; i++)
        p->slot_of[i] = POLICY_NONE;
    for (uint32_t i = 0; i < n_slot; i++) {
        p->slot[i].item = POLICY_NONE;
        heap_add(p, i);
    }
    p->n_in_use = n_slot;
    *ret_policy = take(p);
    return 0;
}

struct policy *policy_free(struct policy *p) {
    if (p)
        arena_deinit(&p->memory);
    free(p);
    return NULL;
}

/* ---- scores ---- */

static uint32_t item(const struct policy *p, uint32_t layer, uint32_t expert) {
    assert(layer < p->n_layer && expert < p->n_expert);
    return layer * p->n_expert + expert;
}

void policy_step(struct policy *p, uint32_t n_row) {
    p->one *= exp2(fmin((double)n_row / POLICY_HALF, SCALE));
    while (p->one >= 0x1p512) { /* exact, but for scores that are next to nothing by now */
        p->one = ldexp(p->one, -SCALE);
        for (uint32_t i = 0; i < p->n_item; i++) {
            p->used[i] = ldexp(p->used[i], -SCALE);
            p->last[i] = ldexp(p->last[i], -SCALE);
        }
    }
}

void policy_use(struct policy *p, uint32_t layer, uint32_t expert, uint32_t n_row) {
    uint32_t i = item(p, layer, expert), slot = p->slot_of[i];

    p->used[i] += n_row * p->one;
    p->last[i] = POLICY_LAST * p->one;
    if (slot != POLICY_NONE && p->slot[slot].at != POLICY_NONE)
        sift(p, p->slot[slot].at, slot);
}

/* ---- slots ---- */

uint32_t policy_find(const struct policy *p, uint32_t layer, uint32_t expert) {
    return p->slot_of[item(p, layer, expert)];
}

static void leave(struct policy *p, uint32_t slot) {
    struct policy_slot *s = &p->slot[slot];

    if (s->item != POLICY_NONE)
        p->slot_of[s->item] = POLICY_NONE;
    s->item = POLICY_NONE;
}

uint32_t policy_take(struct policy *p, uint32_t layer, uint32_t expert) {
    uint32_t i = item(p, layer, expert), slot;

    assert(p->slot_of[i] == POLICY_NONE);
    if (p->n_heap == 0)
        return POLICY_NONE;
    slot = p->heap[0];
    policy_hold(p, slot);
    leave(p, slot);
    p->slot[slot].item = i;
    p->slot_of[i] = slot;
    return slot;
}

void policy_hold(struct policy *p, uint32_t slot) {
    assert(slot < p->n_slot && !p->slot[slot].out);
    if (p->slot[slot].n_hold++ == 0)
        heap_remove(p, slot);
}

void policy_release(struct policy *p, uint32_t slot) {
    assert(slot < p->n_slot && p->slot[slot].n_hold > 0);
    if (--p->slot[slot].n_hold == 0)
        heap_add(p, slot);
}

void policy_drop(struct policy *p, uint32_t slot) {
    assert(slot < p->n_slot && p->slot[slot].n_hold > 0);
    leave(p, slot);
}

bool policy_at(const struct policy *p, uint32_t slot, uint32_t *ret_layer, uint32_t *ret_expert) {
    uint32_t i;

    assert(slot < p->n_slot);
    i = p->slot[slot].item;
    if (i == POLICY_NONE)
        return false;
    *ret_layer = i / p->n_expert;
    *ret_expert = i % p->n_expert;
    return true;
}

uint32_t policy_resize(struct policy *p, uint32_t n_slot) {
    assert(n_slot <= p->n_slot);
    for (; p->n_in_use > n_slot && p->n_heap > 0; p->n_in_use--) {
        uint32_t slot = p->heap[0];

        heap_remove(p, slot);
        leave(p, slot);
        p->slot[slot].out = true;
    }
    for (uint32_t i = 0; i < p->n_slot && p->n_in_use < n_slot; i++) {
        if (!p->slot[i].out)
            continue;
        p->slot[i].out = false;
        heap_add(p, i);
        p->n_in_use++;
    }
    return p->n_in_use;
}

bool policy_in_use(const struct policy *p, uint32_t slot) {
    assert(slot < p->n_slot);
    return !p->slot[slot].out;
}

bool policy_want(const struct policy *p, uint32_t *ret_layer, uint32_t *ret_expert) {
    uint32_t best = POLICY_NONE;

    if (p->n_heap == 0 || p->slot[p->heap[0]].item != POLICY_NONE)
        return false;
    for (uint32_t i = 0; i < p->n_item; i++)
        if (p->slot_of[i] == POLICY_NONE &&
            score(p, i) > (best == POLICY_NONE ? 0 : score(p, best)))
            best = i;
    if (best == POLICY_NONE)
        return false;
    *ret_layer = best / p->n_expert;
    *ret_expert = best % p->n_expert;
    return true;
}

/* ---- scores as bytes ---- */

static uint64_t bytes_sum(const struct policy_head *h, const uint32_t *use, uint32_t n) {
    return sum_bytes(sum_bytes(0, h, offsetof(struct policy_head, sum)), use, n * sizeof *use);
}

size_t policy_save_size(const struct policy *p) {
    return sizeof(struct policy_head) + p->n_item * sizeof(uint32_t);
}

void policy_save(const struct policy *p, uint64_t model, void *buf) {
    struct policy_head *h = buf;
    uint32_t *use = (uint32_t *)(h + 1);

    *h = (struct policy_head){
        .version = POLICY_VERSION, .n_layer = p->n_layer, .n_expert = p->n_expert, .model = model
    };
    memcpy(h->magic, POLICY_MAGIC, sizeof h->magic);
    for (uint32_t i = 0; i < p->n_item; i++)
        use[i] = (uint32_t)fmin(rint(p->used[i] / p->one * UNIT), UINT32_MAX);
    h->sum = bytes_sum(h, use, p->n_item);
}

int policy_load(struct policy *p, uint64_t model, const void *buf, size_t size, struct why *why) {
    const struct policy_head *h = buf;
    const uint32_t *use = (const uint32_t *)(h + 1);
    uint32_t n;

    if (size != policy_save_size(p))
        return why_set(why, POLICY_BAD, "%zu bytes of use counts, not %zu", size,
                       policy_save_size(p));
    if (memcmp(h->magic, POLICY_MAGIC, sizeof h->magic) != 0 || h->version != POLICY_VERSION ||
        h->n_layer != p->n_layer || h->n_expert != p->n_expert || h->model != model)
        return why_set(why, POLICY_BAD, "use counts of another version or model");
    if (h->sum != bytes_sum(h, use, p->n_item))
        return why_set(why, POLICY_BAD, "use counts are damaged: their sum is wrong");

    p->one = 1;
    for (uint32_t i = 0; i < p->n_item; i++) {
        p->used[i] = (double)use[i] / UNIT;
        p->last[i] = 0;
    }
    for (n = p->n_heap, p->n_heap = 0; p->n_heap < n;) /* what was a heap by other scores */
        heap_add(p, p->heap[p->n_heap]);
    return 0;
}
