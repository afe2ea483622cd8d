/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * prefix - what the cache still holds of earlier prompts and answers, found by their tokens
 *
 * A radix tree over token ids. What it keeps are sequences of the cache that are never stepped,
 * each at the node where its tokens end; a prompt goes on from a fork of one, anywhere in it
 * where its sliding layers still hold what is seen. So whoever evaluates tokens keeps them where
 * others are likely to part from them, and once more when they are all there.
 *
 *   root of a salt -> node: tokens [from, to) of every prefix below -> ...
 *
 * There is a tree for each salt, and a prompt is looked up under its own and under PREFIX_PUBLIC
 * alone: what is kept under another salt changes neither what is found nor how long that takes.
 *
 * Kept prefixes have no claim to the cache: prefix_yield() lets one go, public ones last. It is the
 * one that was of no use for longest among those of the user who has the most, in prefixes when
 * there are too many, else in bytes. So whoever keeps a lot pushes out their own, and is bounded by
 * what the others have only as far as that is less. One that is part of another, which holds its
 * end too, goes at once.
 *
 * Owner:   the engine thread.
 * Memory:  address space for n_keep contexts of tokens, mapped at prefix_new() and touched as used;
 *          nothing is allocated afterwards.
 * Source:  the tree after Zheng et al., "SGLang" (2024), section 3; here with places where sliding
 *          layers can be joined.
 */

#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/kv/kvcache.h"

#define PREFIX_PUBLIC UINT64_MAX

enum { PREFIX_MIN = 16 /* tokens; fewer are evaluated sooner than kept */ };

struct prefix;

/**
 * prefix_new() - nothing is kept yet
 * @kv:         borrowed
 * @n_keep:     prefixes at most, as in its shape; 0: none
 * @n_ctx:      tokens of one at most
 * @n_byte:     of the cache that only kept prefixes hold, at most; 0: none are kept
 *
 * Return: 0 or -ENOMEM.
 */
int prefix_new(struct prefix **ret_prefix, struct kvcache *kv, uint32_t n_keep, uint32_t n_ctx,
               uint64_t n_byte);
/* Its sequences are gone. */
struct prefix *prefix_free(struct prefix *p);
AUTO_DEFINE(struct prefix *, prefix_free)

/* What was found of a prompt. */
struct prefix_hit {
    uint32_t seq; /* a new sequence that holds it */
    pos_t n;      /* tokens of it, maybe 0 */
    pos_t
        parted; /* >= n: tokens that kept prefixes agree with. A later prompt that agrees no further
                     goes on from here, if somebody keeps it. */
};

/**
 * prefix_take() - a new sequence with as many of @tok [@n] as can be had
 * @salt:       whose
 *
 * Return: 0 or KVCACHE_NO_SEQ.
 */
int prefix_take(struct prefix *p, uint64_t salt, const int32_t *tok, pos_t n,
                struct prefix_hit *ret);
/* Keep the first @n tokens of @seq, which are @tok, if it holds them and they are worth it. @seq is
 * as before. */
void prefix_keep(struct prefix *p, uint64_t salt, const int32_t *tok, pos_t n, uint32_t seq);
/* Let one prefix go. Return: was there one? */
bool prefix_yield(struct prefix *p);
/* Let all of @salt go. */
void prefix_forget(struct prefix *p, uint64_t salt);
/* Let go what is beyond n_byte: call when a sequence is freed, which others may have shared. */
void prefix_bound(struct prefix *p);

/* Let all go. */
void prefix_clear(struct prefix *p);

/* Prefixes kept; those under @salt. */
uint32_t prefix_n(const struct prefix *p);
uint32_t prefix_n_of(const struct prefix *p, uint64_t salt);

/* Is the tree what it should be, and every prefix found in it? For tests. */
bool prefix_sound(const struct prefix *p);
