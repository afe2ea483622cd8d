/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * kvfile - keys and values of a sequence in a file, so that its tokens need not be evaluated again
 *
 *   0                  struct kvfile_head
 *   sizeof head        struct kvfile_layer [n_layer]
 *   behind them        int32_t [n_tok], the tokens
 *   behind them        for each block, from the first to the last, for each layer that has it: keys
 *                      and values of all heads, byte for byte as in the cache; of the last block,
 *                      rows that are in no use are 0
 *   at the end         uint64_t, the sum_bytes() of all before, piece by piece
 *
 * Integers are in the machine's order; the version read in the other order is another version. A
 * reader takes a file only if model, salt and layout are its own, its size follows from the number
 * of tokens, and, before anything of it counts, its sum is right. The sum is against damage: that
 * nobody else can write to the file is the caller's business.
 *
 * Files are read and written in slices, so that steps can go on in between, and at offsets of their
 * own: the position of the file is left alone.
 *
 * Owner:   any thread may call kvfile_save() and kvfile_load(), the engine thread the rest.
 * Memory:  one layer of one block, and the tokens.
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/kv/kvcache.h"

enum {
    KVFILE__OK,

    KVFILE_MORE, /* call again */
    KVFILE_BAD,  /* damaged, cut short, or of something else; @why says what */
};

enum { KVFILE_VERSION = 1 };

#define KVFILE_MAGIC "MOEDKEYS"

struct kvfile_head {
    char magic[8];
    uint32_t version;
    uint32_t n_block;      /* KV_BLOCK */
    uint64_t model, salt;  /* see struct kvfile_id */
    uint32_t fmt, n_layer; /* enum quant_fmt */
    uint32_t window;       /* the widest */
    uint32_t n_tok;
    uint32_t first; /* block that sliding layers begin with */
    uint32_t unused;
};

struct kvfile_layer {
    uint32_t n_kv_head, key_dim, value_dim, sliding;
};

/* What a file is of: numbers that are the same only where keys and values are. */
struct kvfile_id {
    uint64_t model; /* weights, and how they are computed with */
    uint64_t salt;  /* whose tokens */
};

struct kvfile;

/* Write the file of @tok [@n], copied, to @fd, borrowed. Return: 0 or -ENOMEM. */
int kvfile_save(struct kvfile **ret_file, int fd, const struct kvcache *kv,
                const struct kvfile_id *id, const int32_t *tok, pos_t n);
/* Read from @fd, borrowed, all but keys and values. Return: 0, KVFILE_BAD, or -errno. */
int kvfile_load(struct kvfile **ret_file, int fd, const struct kvcache *kv,
                const struct kvfile_id *id, struct why *why);
struct kvfile *kvfile_free(struct kvfile *f);
AUTO_DEFINE(struct kvfile *, kvfile_free)

/* The tokens, [*ret_n]; borrowed. */
const int32_t *kvfile_tokens(const struct kvfile *f, pos_t *ret_n);

/* Of a file that is read: a new sequence for it, with its positions but nothing in them yet.
 * Return: 0, KVCACHE_NO_SEQ or KVCACHE_NO_ROOM. */
int kvfile_place(const struct kvfile *f, struct kvcache *kv, uint32_t *ret_seq);

/**
 * kvfile_go() - write what @seq holds, or read it into @seq
 * @seq:        to write: it holds the tokens; to read: kvfile_place() made it, and but for 0
 *              what it holds is nothing
 * @n_byte:     about how much to do
 *
 * Return: 0: all is there; KVFILE_MORE, KVFILE_BAD, or -errno with @why.
 */
int kvfile_go(struct kvfile *f, struct kvcache *kv, uint32_t seq, size_t n_byte, struct why *why);
