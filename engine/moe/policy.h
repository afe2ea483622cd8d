/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * policy - which experts sit in a pool of fixed slots, and which one makes room for another
 *
 * A decision and nothing else: no bytes are moved here, and nothing waits.
 *
 * Every use of an expert adds one to its score, and the last one POLICY_LAST more, since tokens
 * repeat what the token before used. A use counts half as much as one POLICY_HALF rows later. An
 * expert keeps its score while it has no slot. Who makes room is whoever has the lowest score among
 * those not held; empty slots go first. One pool serves all layers: each sees the same rows, so
 * their scores compare, and a layer whose router is even gets more slots by itself.
 *
 * Time passes for all experts alike, so it is new uses that gain weight rather than old ones that
 * lose it: a score changes only when its expert is used, and slots wait in a heap. A decision costs
 * O(log n_slot).
 *
 * Both numbers are a balance, found with moe-cachesim: found in memory, in percent, 30 layers of
 * 128 experts, half of which have slots, 600 tokens. More in moe-cachesim(1).
 *
 *   router: skew, share of repeats      ours   without POLICY_LAST   LRU    LFU   optimum
 *   0     0                             51.1                  51.6   51.2   52.1  82.2
 *   0.6   0                             70.0                  70.7   64.4   71.1  87.2
 *   0.6   0.3                           75.5                  73.1   74.8   71.4  91.0
 *   1     0                             83.6                  84.4   79.8   84.8  92.9
 *   1     0.3, changing topics          87.2                  84.8   86.2   82.7  95.2
 *
 * With an even router nobody who does not know the future finds more than the share that fits.
 *
 * Owner:   the engine thread.
 * Memory:  fixed at policy_new(); nothing here allocates afterwards.
 * Source:  Lee et al., "LRFU: A Spectrum of Policies that Subsumes the Least Recently Used and
 *          Least Frequently Used Policies" (2001), section 3.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

enum {
    POLICY__OK,

    POLICY_BAD, /* damaged, cut short, or of another model; nothing changed */
};

enum {
    POLICY_HALF = 128, /* rows */
    POLICY_LAST = 16,  /* uses */
    POLICY_VERSION = 1
};

/* No slot. */
#define POLICY_NONE UINT32_MAX

struct policy;

/* @n_slot: the most slots there will ever be; all are there at first, and empty. All numbers >= 1.
 * Return: 0 or -ENOMEM. */
int policy_new(struct policy **ret_policy, uint32_t n_layer, uint32_t n_expert, uint32_t n_slot);
struct policy *policy_free(struct policy *p);
AUTO_DEFINE(struct policy *, policy_free)

/* A step of @n_row rows begins: uses so far count less than the ones that follow. */
void policy_step(struct policy *p, uint32_t n_row);
/* @n_row >= 1 rows of the step go to the expert, wherever it is. */
void policy_use(struct policy *p, uint32_t layer, uint32_t expert, uint32_t n_row);

/* Return: the expert's slot, filled or being filled, or POLICY_NONE. */
uint32_t policy_find(const struct policy *p, uint32_t layer, uint32_t expert);
/**
 * policy_take() - give an expert that has no slot one
 *
 * Whoever sat there has none from now on. The slot is held once, by the caller, who fills it.
 * Return: the slot, or POLICY_NONE when all are held.
 */
uint32_t policy_take(struct policy *p, uint32_t layer, uint32_t expert);
/* A held slot keeps its expert. Holds are counted. */
void policy_hold(struct policy *p, uint32_t slot);
void policy_release(struct policy *p, uint32_t slot);
/* What was to fill the slot did not come: its expert has none any more, and when the last hold is
 * released, the slot is empty. It is held. */
void policy_drop(struct policy *p, uint32_t slot);

/* What is in a slot. Return: false when it is empty or out of use. */
bool policy_at(const struct policy *p, uint32_t slot, uint32_t *ret_layer, uint32_t *ret_expert);
/**
 * policy_resize() - use @n_slot of the slots, at most as many as policy_new() was told
 *
 * A pool that shrinks gives up empty slots, then those of the lowest scores: policy_in_use() tells
 * which are left. Held ones stay.
 * Return: the slots in use; more than @n_slot only when so many are held.
 */
uint32_t policy_resize(struct policy *p, uint32_t n_slot);
bool policy_in_use(const struct policy *p, uint32_t slot);

/**
 * policy_want() - what an empty slot should be filled with, when there is time
 *
 * Return: true and the expert of the highest score among those that have no slot; false when no
 * slot is empty, or no other expert was ever used. Costs O(n_layer * n_expert).
 */
bool policy_want(const struct policy *p, uint32_t *ret_layer, uint32_t *ret_expert);

/*
 * Scores as bytes, so that a next start knows what is hot. Integers are in the machine's order.
 *
 *   0              struct policy_head
 *   sizeof head    uint32_t [n_layer][n_expert], uses, aged, in units of 1/256; which was the
 *                  last is not kept
 */
struct policy_head {
    char magic[8];
    uint32_t version;
    uint32_t n_layer, n_expert;
    uint32_t unused;
    uint64_t model; /* the caller's number of the model: counts of another one are refused */
    uint64_t sum;   /* sum_bytes() of the head up to here, then of the scores */
};
#define POLICY_MAGIC "MOEDUSES"

size_t policy_save_size(const struct policy *p);
/* @buf: [policy_save_size()], aligned like a uint64_t */
void policy_save(const struct policy *p, uint64_t model, void *buf);
/* Scores are as they were saved, whatever was used before. Return: 0, or POLICY_BAD with @why. */
int policy_load(struct policy *p, uint64_t model, const void *buf, size_t size, struct why *why);
