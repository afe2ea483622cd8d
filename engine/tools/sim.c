/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/tools/sim.h"

#include <stdlib.h>
#include <string.h>

#include "engine/moe/policy.h"

const char *const sim_name[SIM_N] = {
    [SIM_OURS] = "ours", [SIM_LRU] = "lru", [SIM_LFU] = "lfu", [SIM_BEST] = "optimum"
};

/* One distinct expert of one layer of one step. */
struct use {
    uint32_t item; /* layer * n_expert + expert */
    uint32_t n_row;
    uint32_t step_row; /* of a step's first use: its rows; else 0 */
};

static void add_layer(const struct routes *r, const struct routes_step *s, uint32_t layer,
                      uint32_t *count, struct use *use, size_t *n) {
    const uint16_t *id = s->id + (size_t)layer * s->n_row * r->k;

    memset(count, 0, r->n_expert * sizeof *count);
    for (size_t i = 0; i < (size_t)s->n_row * r->k; i++)
        count[id[i]]++;
    for (uint32_t e = 0; e < r->n_expert; e++)
        if (count[e] > 0)
            use[(*n)++] = (struct use){ layer * r->n_expert + e, count[e], 0 };
}

/* All uses of a recording, in order. */
static int list_uses(const struct routes *r, struct use **ret_use, size_t *ret_n) {
    AUTO(free) struct use *use = calloc(r->n_row * r->n_layer * r->k + 1, sizeof *use);
    AUTO(free) uint32_t *count = calloc(r->n_expert, sizeof *count);
    struct routes_step step;
    size_t n = 0;

    if (!use || !count)
        return err_new(-ENOMEM);
    for (size_t at = 0; routes_next(r, &at, &step);) {
        size_t first = n;

        for (uint32_t i = 0; i < r->n_layer; i++)
            add_layer(r, &step, i, count, use, &n);
        use[first].step_row = step.n_row;
    }
    *ret_use = take(use);
    *ret_n = n;
    return 0;
}

static int run_ours(const struct routes *r, uint32_t n_slot, const struct use *use, size_t n,
                    uint64_t *ret_reads) {
    AUTO(policy_free) struct policy *p = NULL;
    int res = policy_new(&p, r->n_layer, r->n_expert, n_slot);

    if (res != 0)
        return err_up(res);
    for (size_t i = 0; i < n; i++) {
        uint32_t layer = use[i].item / r->n_expert, expert = use[i].item % r->n_expert;

        if (use[i].step_row > 0)
            policy_step(p, use[i].step_row);
        policy_use(p, layer, expert, use[i].n_row);
        if (policy_find(p, layer, expert) != POLICY_NONE)
            continue;
        policy_release(p, policy_take(p, layer, expert));
        ++*ret_reads;
    }
    return 0;
}

/* The others: whoever has the smallest key leaves. */
struct plain {
    uint64_t *key;  /* [n_item] */
    uint32_t *slot; /* [n_slot] items */
    bool *in;       /* [n_item] */
    uint64_t *next; /* [n] (for the optimum) the use of the same item that follows */
};

static uint32_t coldest(const struct plain *s, uint32_t n_slot) {
    uint32_t at = 0;

    for (uint32_t i = 1; i < n_slot; i++)
        if (s->key[s->slot[i]] < s->key[s->slot[at]])
            at = i;

    return at;
}

static void run_plain(const struct plain *s, enum sim_policy policy, uint32_t n_slot,
                      const struct use *use, size_t n, uint64_t *ret_reads) {
    uint32_t n_full = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t item = use[i].item;

        if (policy == SIM_LFU)
            s->key[item] += use[i].n_row;
        else
            s->key[item] = policy == SIM_LRU ? i : UINT64_MAX - s->next[i];
        if (s->in[item])
            continue;
        uint32_t at = n_full < n_slot ? n_full++ : coldest(s, n_slot);

        if (++*ret_reads > n_slot)
            s->in[s->slot[at]] = false;
        s->slot[at] = item;
        s->in[item] = true;
    }
}

int sim_run(const struct routes *r, enum sim_policy policy, uint32_t n_slot,
            struct sim_count *ret) {
    size_t n_item = (size_t)r->n_layer * r->n_expert, n = 0;
    AUTO(free) struct use *use = NULL;
    int res = list_uses(r, &use, &n);

    if (res != 0)
        return err_up(res);

    AUTO(free) uint64_t *key = calloc(n_item, sizeof *key);
    AUTO(free) uint64_t *soon = malloc(n_item * sizeof *soon);
    AUTO(free) uint64_t *next = calloc(n + 1, sizeof *next);
    AUTO(free) uint32_t *slot = calloc(n_slot, sizeof *slot);
    AUTO(free) bool *in = calloc(n_item, sizeof *in);

    if (!key || !soon || !next || !slot || !in)
        return err_new(-ENOMEM);
    memset(soon, 0xff, n_item * sizeof *soon); /* never */
    for (size_t i = n; i-- > 0;) {
        next[i] = soon[use[i].item];
        soon[use[i].item] = i;
    }
    *ret = (struct sim_count){ .uses = n };
    for (size_t i = 0; i < n_item; i++)
        ret->first += soon[i] != UINT64_MAX;
    if (policy == SIM_OURS)
        return err_up(run_ours(r, n_slot, use, n, &ret->reads));

    struct plain s = { .key = key, .slot = slot, .in = in, .next = next };

    run_plain(&s, policy, n_slot, use, n, &ret->reads);
    return 0;
}

double sim_hit(const struct sim_count *c) {
    uint64_t n = c->uses - c->first;

    return n > 0 ? (double)(c->uses - c->reads) / (double)n : 1;
}
