/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * vocab - the token table of a model file
 *
 * Merging works on texts, and the text a merge makes need not be a token. So texts are interned as
 * symbols: a symbol below vocab_n() is the token of that number; those above are known to merges
 * only and never leave the tokenizer.
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

enum { VOCAB_TEXT_MAX = 337 }; /* bytes of a token's text; real ones have at most 93 */

struct vocab;

/**
 * vocab_new() - read the vocabulary of @g
 * @g:      may be closed afterwards
 *
 * What a file must have: tokenizer.ggml.model "gemma4", .tokens, .token_type and .merges; lengths,
 * element types and ids are checked. A text that stands twice is the token of its first place.
 *
 * Return: 0, VOCAB_BAD, or -ENOMEM.
 */
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
 * control, unknown or unused token nothing (its text with @special). Points into the vocabulary. */
const char *vocab_piece(const struct vocab *v, tok_t id, bool special, size_t *ret_n);

/* Well-known tokens, -1 where the vocabulary has none. */
tok_t vocab_bos(const struct vocab *v);
tok_t vocab_eos(const struct vocab *v);
tok_t vocab_unknown(const struct vocab *v);

enum vocab_mark {
    VOCAB_TURN,          /* "<|turn>" */
    VOCAB_TURN_END,      /* "<turn|>" */
    VOCAB_CHANNEL,       /* "<|channel>" */
    VOCAB_CHANNEL_END,   /* "<channel|>" */
    VOCAB_THINK,         /* "<|think|>" */
    VOCAB_TOOL_RESPONSE, /* "<|tool_response>" */
    VOCAB_N_MARK,
};
/* A marker of the chat format; never a token that plain text can become. -1: none. */
tok_t vocab_mark(const struct vocab *v, enum vocab_mark mark);
const char *vocab_mark_text(enum vocab_mark mark);

/* Does @id end a generation? <eos>, <turn|>, <|tool_response> and the file's eos/eot ids, but never
 * the plain token "</s>". */
bool vocab_is_end(const struct vocab *v, tok_t id);
/* Must @id never be sampled? tokenizer.ggml.suppress_tokens, [ret_n], each < vocab_n(). */
const int32_t *vocab_suppressed(const struct vocab *v, size_t *ret_n);

/* ---- for the tokenizer ---- */

/* The symbol with this text; -1: no token and no merge knows it. */
tok_t vocab_symbol(const struct vocab *v, const char *text, size_t n);
/* The same for the character at the beginning of running text, where a space is "▁". @n: its
 * bytes, >= 1 */
tok_t vocab_char(const struct vocab *v, const char *text, size_t n);
/* The token a symbol of plain text becomes: itself if it is a normal token, else -1: its bytes. */
tok_t vocab_plain(const struct vocab *v, tok_t symbol);
/* The token of a byte; -1: none. */
tok_t vocab_byte(const struct vocab *v, uint8_t byte);

/* Of the merge (left, right), both symbols >= 0: its rank, lower merges first, and the symbol it
 * makes; -1: not in the table. The tokenizer's inner loop. */
int32_t vocab_merge(const struct vocab *v, tok_t left, tok_t right, tok_t *ret_joined);
/* May some merge join what ends in byte @last with what begins with the @n bytes of character
 * @first? False is certain: both sides can be merged apart. A space counts as "▁" in @first, as
 * its last byte, 0x81, in @last. */
bool vocab_joins(const struct vocab *v, uint8_t last, const char *first, size_t n);

/* The longest control, unknown or user-defined token whose text @text begins with, and its bytes;
 * -1: none. */
tok_t vocab_special(const struct vocab *v, const char *text, size_t n, size_t *ret_n);
