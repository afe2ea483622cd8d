/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * vocab - the token table of a model file
 *
 * Owner:   whoever made it; immutable afterwards, so any thread may read.
 * Memory:  its own copy of texts and tables; the GGUF may be closed.
 * Source:  tokenizer.ggml.* keys of GGUF, model "gemma4" (BPE with byte fallback).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/gguf.h"

typedef int32_t tok_t; /* token id; negative: none */

enum vocab_type {
    VOCAB_NORMAL = 1,
    VOCAB_UNKNOWN = 2,
    VOCAB_CONTROL = 3,
    VOCAB_USER = 4,
    VOCAB_UNUSED = 5,
    VOCAB_BYTE = 6,
};

enum {
    VOCAB__OK,

    VOCAB_BAD, /* @why names the key and what is wrong with it */
};

struct vocab;

int vocab_new(struct vocab **ret_vocab, const struct gguf *g, struct why *why);
struct vocab *vocab_free(struct vocab *v);
AUTO_DEFINE(struct vocab *, vocab_free)

uint32_t vocab_n(const struct vocab *v);

/* The token's text as the file has it ("▁the", "<0x0A>"), not terminated. id < vocab_n(). */
const char *vocab_text(const struct vocab *v, tok_t id, size_t *ret_n);
enum vocab_type vocab_type(const struct vocab *v, tok_t id);
/* Id of a token text, the first one on duplicates; -1: none. */
tok_t vocab_find(const struct vocab *v, const char *text, size_t n);

/* The bytes the token stands for in running text: "▁" becomes a space, a byte token its byte, a
 * control token nothing (its text with @special). Points into the vocabulary. */
const char *vocab_piece(const struct vocab *v, tok_t id, bool special, size_t *ret_n);

/* Well-known tokens, -1 where the vocabulary has none. */
tok_t vocab_bos(const struct vocab *v);
tok_t vocab_eos(const struct vocab *v);
tok_t vocab_unknown(const struct vocab *v);
/* Does @id end a generation? <eos>, <turn|>, <|tool_response> and the file's eos/eot ids, but never
 * the plain token "</s>". */
bool vocab_is_end(const struct vocab *v, tok_t id);
/* Must @id never be sampled? tokenizer.ggml.suppress_tokens. */
const int32_t *vocab_suppressed(const struct vocab *v, size_t *ret_n);

/* Of the merge (left, right): its rank, lower merges first, and the id of the joined token;
 * -1: not in the table. The tokenizer's inner loop. */
int32_t vocab_merge(const struct vocab *v, tok_t left, tok_t right, tok_t *ret_joined);
