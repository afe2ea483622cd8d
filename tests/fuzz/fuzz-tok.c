/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as text, on a vocabulary with an entry of every kind. The first byte: bit 0 <bos>, bit
 * 1 special tokens. Tokens stand for the text they were made of, and plain text makes no special
 * one, whether it is encoded alone or rendered as a message. */

#include <string.h>

#include "engine/base/utf8.h"
#include "engine/text/chat.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/tiny-vocab.h"

static struct vocab *vocab;

static bool is_plain(tok_t id) {
    return vocab_type(vocab, id) == VOCAB_NORMAL || vocab_type(vocab, id) == VOCAB_BYTE;
}

/* The pieces of all tokens in a row are the text; only a typed "▁" comes back as a space. */
static void check_pieces(const struct tok_list *l, const char *s, size_t n) {
    size_t at = 0;

    for (size_t i = 0; i < l->n; i++) {
        size_t n_piece;
        const char *piece = vocab_piece(vocab, l->id[i], true, &n_piece);

        for (size_t p = 0; p < n_piece; p++) {
            bool typed = piece[p] == ' ' && at < n && s[at] != ' ';

            FUZZ_CHECK(at + (typed ? 3 : 1) <= n);
            FUZZ_CHECK(typed ? memcmp(s + at, "\xe2\x96\x81", 3) == 0 : s[at] == piece[p]);
            at += typed ? 3 : 1;
        }
    }
    FUZZ_CHECK(at == n);
}

/* Decoded one by one, what comes out is whole characters, and the text itself if that was so. */
static void check_decoded(const struct tok_list *l, const char *s, size_t n) {
    bool exact = utf8_valid(s, n) && !memmem(s, n, "\xe2\x96\x81", 3);
    struct tok_decoder d = { 0 };
    struct chat_parser parser;
    char buf[TOK_PIECE_MAX];
    size_t at = 0;

    chat_parser_init(&parser, vocab);
    for (size_t i = 0; i <= l->n; i++) {
        size_t k = i < l->n ? tok_decode(&d, vocab, l->id[i], true, buf) : tok_decode_end(&d, buf);

        FUZZ_CHECK(k <= sizeof buf && utf8_valid(buf, k) && d.n_held <= 3);
        FUZZ_CHECK(!exact || (at + k <= n && memcmp(s + at, buf, k) == 0));
        at += k;
        if (i < l->n)
            FUZZ_CHECK(chat_parse(&parser, l->id[i]) <= CHAT_MARKER);
    }
    FUZZ_CHECK(!exact || at == n);
}

/* As a message of each role: its markers are ours, four of them. */
static void check_message(const char *s, size_t n) {
    static const char *const role[] = { "system", "user", "assistant" };
    AUTO(free) char *text = strndup(s, n);

    for (int i = 0; i < 3; i++) {
        struct chat_message msg = { role[i], text };
        struct chat_options opt = { .thinking = false };
        struct tok_list l = { 0 };
        size_t n_marker = 0;

        FUZZ_CHECK(chat_render(vocab, &msg, 1, &opt, &l, NULL) == 0);
        for (size_t k = 0; k < l.n; k++)
            n_marker += !is_plain(l.id[k]);
        FUZZ_CHECK(n_marker == 4); /* <bos> <|turn> <turn|> <|turn> */
        tok_list_deinit(&l);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct tok_list l = { 0 };
    const char *s;
    unsigned flags;
    size_t n;

    if (!vocab) {
        AUTO(free) struct tiny *t = calloc(1, sizeof *t);

        tiny_all(t);
        FUZZ_CHECK(tiny_new(t, &vocab, NULL) == 0);
    }
    if (size == 0)
        return 0;
    flags = data[0] & (TOK_BOS | TOK_SPECIAL);
    s = (const char *)data + 1;
    n = size - 1;

    FUZZ_CHECK(tok_encode(vocab, s, n, flags, &l) == 0);
    if (flags & TOK_BOS) {
        bool own = flags & TOK_SPECIAL && n >= 5 && memcmp(s, "<bos>", 5) == 0;

        FUZZ_CHECK(l.n > 0 && l.id[0] == TINY_BOS);
        if (!own)
            memmove(l.id, l.id + 1, --l.n * sizeof *l.id);
    }
    for (size_t i = 0; i < l.n && !(flags & TOK_SPECIAL); i++)
        FUZZ_CHECK(is_plain(l.id[i]));
    check_pieces(&l, s, n);
    check_decoded(&l, s, n);
    tok_list_deinit(&l);
    check_message(s, n);

    return 0;
}
