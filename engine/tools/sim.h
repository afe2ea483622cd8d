/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * sim - who would have had a slot: policies on one recording of routes
 *
 * A step goes from layer to layer and uses each distinct expert of a layer once, in the order of
 * their numbers. An expert without a slot is read into one. All policies see the same order and
 * must take a slot for what they read, so that none does better than the optimum, which knows the
 * future and lets go what is used last (Belady, "A study of replacement algorithms for a
 * virtual-storage computer", 1966). All begin with empty slots: an expert's first use is a read for
 * each of them.
 */

#include "engine/moe/routes.h"

enum sim_policy { SIM_OURS, SIM_LRU, SIM_LFU, SIM_BEST, SIM_N };

extern const char *const sim_name[SIM_N];

struct sim_count {
    uint64_t uses;  /* of distinct experts, layer by layer */
    uint64_t first; /* of which no policy can have had them */
    uint64_t reads; /* experts read, those first ones too */
};

/* Return: 0 or -ENOMEM. */
int sim_run(const struct routes *r, enum sim_policy policy, uint32_t n_slot, struct sim_count *ret);

/* Of uses after an expert's first, those that found it in a slot; 1 when there were none. */
double sim_hit(const struct sim_count *c);

/* A router that is made up. */
struct sim_router {
    uint32_t n_layer, n_expert, k;
    uint32_t n_token; /* decoded one by one */
    double skew; /* the i-th most popular expert of a layer is drawn in proportion to 1 / i^skew */
    double locality; /* share of draws that repeat one of the last token's experts */
    uint32_t topic;  /* tokens until a quarter of the experts trade their popularity; 0: never */
    uint64_t seed;
};

/* @ret_buf: [*ret_size] a recording; free(). Return: 0 or -ENOMEM. */
int sim_make(const struct sim_router *m, void **ret_buf, size_t *ret_size);
