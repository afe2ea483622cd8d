/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * kvcache - paged keys and values of sequences that may share what they begin with
 *
 * A block holds KV_BLOCK positions of all layers of one kind: full layers, which see everything,
 * and sliding layers, which see a window. A sequence has a table of blocks for each kind; position
 * p is row p % KV_BLOCK of block p / KV_BLOCK. Sliding blocks are let go once no row that may still
 * come sees them.
 *
 *   block   [layer of the kind][n_kv_head] { keys, values }, each as engine/kern/attn.h says
 *
 * Blocks are counted: a fork shares those of the sequence it was made from. What is shared is never
 * overwritten: a sequence that goes on in a block where another one has written first gets its own
 * copy. So a sequence that is never stepped is the way to keep a prefix; kvcache_keep() marks
 * it, and what would become free with all that are marked is known at any time.
 *
 * 64 positions are four tiles of keys, enough independent sums to fill the multipliers with one
 * query; a block is one round of attention, and a prefix is shared to within one position anyway.
 *
 * Owner:   the engine thread. Pool workers read and write rows only inside model_step().
 * Memory:  address space for the whole capacity as either kind, mapped at kvcache_new() with the
 *          tables; blocks are touched as they are used, and never more than the capacity at a time.
 * Source:  block tables after Kwon et al., "PagedAttention" (SOSP 2023), section 4.
 */

#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/quant.h"
#include "engine/kern/attn.h"

typedef uint32_t pos_t; /* position in a sequence, from 0 */

enum { KV_BLOCK = KERN_KV_BLOCK };

struct kv_layer_shape {
    uint32_t n_kv_head;
    uint32_t head_dim; /* elements of a value */
    uint32_t n_key;    /* elements of a key that are kept; the others follow from the value */
    uint32_t window;   /* positions a query sees; 0: all */
};

struct kv_shape {
    uint32_t n_layer;
    const struct kv_layer_shape *layer; /* [n_layer], copied */
    uint32_t n_ctx;                     /* positions a sequence can hold */
    uint32_t n_batch;                   /* positions one kvcache_reserve() may add */
    uint32_t n_back;    /* positions that can always be taken back besides, 0: KV_BLOCK */
    uint32_t n_seq;     /* sequences at most */
    uint32_t n_keep;    /* kept ones besides; they live on what the others leave of the capacity */
    uint64_t n_byte;    /* capacity; 0: every sequence can be full */
    enum quant_fmt fmt; /* QUANT_F32, QUANT_F16 or QUANT_Q8_0 */
};

enum {
    KVCACHE__OK,

    KVCACHE_FULL,    /* the sequence is at its context; nothing changed */
    KVCACHE_NO_ROOM, /* too few free blocks; nothing changed */
    KVCACHE_NO_SEQ,  /* n_seq and n_keep sequences are there already; nothing changed */
    KVCACHE_GONE,    /* sliding layers let go what would be needed; nothing changed */
};

struct kvcache;

/* Bytes of the capacity, UINT64_MAX when it does not fit; of n_byte only whole blocks count. */
uint64_t kvcache_size(const struct kv_shape *shape);
/* Return: 0, -EINVAL for a shape that holds no position, or -errno. */
int kvcache_new(struct kvcache **ret_kv, const struct kv_shape *shape);
struct kvcache *kvcache_free(struct kvcache *kv);
AUTO_DEFINE(struct kvcache *, kvcache_free)

enum quant_fmt kvcache_fmt(const struct kvcache *kv);
/* Bytes of the capacity, of those in blocks that sequences hold, of those that only kept sequences
 * hold, and of those that cost memory. */
uint64_t kvcache_n_byte(const struct kvcache *kv);
uint64_t kvcache_n_used(const struct kvcache *kv);
uint64_t kvcache_n_kept(const struct kvcache *kv);
uint64_t kvcache_n_touched(const struct kvcache *kv);
/* The most bytes a sequence takes on its way to @n positions, when it shares none. */
uint64_t kvcache_need(const struct kvcache *kv, pos_t n);
/* Bytes of the blocks that @seq holds, each divided by how many sequences do. */
uint64_t kvcache_share(const struct kvcache *kv, uint32_t seq);
/* Give the memory of blocks nobody holds back to the system. */
void kvcache_trim(struct kvcache *kv);

/* ---- sequences ---- */

/* A new, empty sequence: the lowest number that is free. Return: 0 or KVCACHE_NO_SEQ. */
int kvcache_seq_new(struct kvcache *kv, uint32_t *ret_seq);
/* The sequence and its references are gone. */
void kvcache_seq_free(struct kvcache *kv, uint32_t seq);

/* Positions @seq holds. */
pos_t kvcache_n(const struct kvcache *kv, uint32_t seq);
/* Make room for @n more positions at the end of @seq, n <= n_batch.
 * Return: 0, KVCACHE_FULL or KVCACHE_NO_ROOM. */
int kvcache_reserve(struct kvcache *kv, uint32_t seq, uint32_t n);
/* Forget positions >= @n of @seq. To nothing always works, as does to n_back positions before where
 * the furthest kvcache_reserve() began. Return: 0 or KVCACHE_GONE. */
int kvcache_truncate(struct kvcache *kv, uint32_t seq, pos_t n);
/* A new sequence that shares the first @n positions of @from, @n at most what that holds.
 * Return: 0, KVCACHE_NO_SEQ or KVCACHE_GONE. */
int kvcache_fork(struct kvcache *kv, uint32_t from, pos_t n, uint32_t *ret_seq);
/* @seq is kept: never reserved for or truncated again. */
void kvcache_keep(struct kvcache *kv, uint32_t seq);
/* Can kvcache_fork() and kvcache_truncate() go to @n, as far as sliding layers go? */
bool kvcache_holds(const struct kvcache *kv, uint32_t seq, pos_t n);

/* ---- rows ---- */

/* Keys and values of one head in one block. */
struct kv_view {
    uint8_t *key;
    uint8_t *value;
};

/* Block @block of @seq; it was reserved and not let go. */
struct kv_view kvcache_view(const struct kvcache *kv, uint32_t layer, uint32_t seq, uint32_t head,
                            uint32_t block);
/* Elements of the keys and of the values of a layer as they are kept: padded to KERN_KV_DIM. */
uint32_t kvcache_key_dim(const struct kvcache *kv, uint32_t layer);
uint32_t kvcache_value_dim(const struct kvcache *kv, uint32_t layer);

/* ---- whole sequences, for files ---- */

uint32_t kvcache_n_layer(const struct kvcache *kv);
uint32_t kvcache_n_kv_head(const struct kvcache *kv, uint32_t layer);
bool kvcache_slides(const struct kvcache *kv, uint32_t layer);
uint32_t kvcache_window(const struct kvcache *kv); /* the widest; 0: no layer slides */
pos_t kvcache_n_ctx(const struct kvcache *kv);
/* The block that sliding layers of @seq begin with. */
uint32_t kvcache_first(const struct kvcache *kv, uint32_t seq);
/* A new sequence of @n positions, of sliding layers only blocks from @first on, with no rows in
 * them yet. Return: 0, KVCACHE_NO_SEQ or KVCACHE_NO_ROOM. */
int kvcache_seq_blank(struct kvcache *kv, pos_t n, uint32_t first, uint32_t *ret_seq);

/* Do tables, counts, free lists and sums agree? For tests. */
bool kvcache_sound(const struct kvcache *kv);
