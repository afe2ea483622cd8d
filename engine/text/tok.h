/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * tok - text to tokens and back
 *
 * Encoding is byte-pair merging over the whole run between newlines, by rank, leftmost first, in
 * O(n log n). Unless it is asked to, it never produces a control or user-defined token: what a
 * client typed can not open a turn. A typed "▁" is taken for a space; all other well-formed text
 * decodes to itself.
 *
 * Memory:  40 bytes a character of the longest stretch of text between places no merge can join,
 *          while tok_encode() runs; of most texts such a stretch is a word.
 * Source: gemma4 tokenizer as in Hugging Face transformers and llama.cpp (equal ids).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/text/vocab.h"

/* A growing list of ids. Zero-initialised is empty; tok_list_deinit() frees. */
struct tok_list {
    tok_t *id;
    size_t n, n_alloc;
};
void tok_list_deinit(struct tok_list *l);
/* Return: 0 or -ENOMEM, with the list as before. */
int tok_list_push(struct tok_list *l, tok_t id);

enum tok_flags {
    TOK_BOS = 1 << 0, /* begin with <bos>, once */
    TOK_SPECIAL =
        1 << 1, /* texts of control, unknown and user-defined tokens become those tokens */
};

/**
 * tok_encode() - append the tokens of @text to @out
 * @text:       @n bytes, fewer than 2^32; malformed UTF-8 becomes byte tokens, a byte that has no
 *              token is left out
 * @flags:      enum tok_flags
 * @out:        appended to; on failure as before
 *
 * Return: 0 or -ENOMEM.
 */
int tok_encode(const struct vocab *v, const char *text, size_t n, unsigned flags,
               struct tok_list *out);

/* Streaming decoder: bytes of an unfinished character wait for the next token, so that what comes
 * out is always well-formed UTF-8. Bytes that can not become a character come out as U+FFFD. */
struct tok_decoder {
    uint8_t held[4]; /* [n_held <= 3] */
    uint32_t n_held;
};

enum { TOK_PIECE_MAX = 1024 }; /* bytes of the longest piece vocab_new() admits, times 3, and 12 */

/* Decode one token into @buf (TOK_PIECE_MAX bytes). Return: bytes written, may be 0. */
size_t tok_decode(struct tok_decoder *d, const struct vocab *v, tok_t id, bool special, char *buf);
/* At the end of the stream: what was held back, as U+FFFD. Return: bytes written. */
size_t tok_decode_end(struct tok_decoder *d, char *buf);
