/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * tiny-vocab - GGUF files made in memory, and a small vocabulary in one, for the tests of text/
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/text/vocab.h"

struct making {
    uint8_t b[1 << 18];
    size_t n;
    uint64_t n_meta;
};

static inline void making_put(struct making *m, const void *p, size_t n) {
    if (n > sizeof m->b - m->n)
        abort();
    memcpy(m->b + m->n, p, n);
    m->n += n;
}

static inline void making_str(struct making *m, const char *s) {
    uint64_t n = strlen(s);

    making_put(m, &n, sizeof n);
    making_put(m, s, n);
}

enum { MAKING_U8 = 0, MAKING_U32 = 4, MAKING_I32 = 5, MAKING_F32 = 6, MAKING_STR = 8, MAKING_ARR };

static inline void making_key(struct making *m, const char *key, uint32_t type) {
    m->n_meta++;
    making_str(m, key);
    making_put(m, &type, sizeof type);
}

static inline void making_text(struct making *m, const char *key, const char *s) {
    making_key(m, key, MAKING_STR);
    making_str(m, s);
}

static inline void making_u32(struct making *m, const char *key, uint32_t x) {
    making_key(m, key, MAKING_U32);
    making_put(m, &x, sizeof x);
}

static inline void making_f32(struct making *m, const char *key, float x) {
    making_key(m, key, MAKING_F32);
    making_put(m, &x, sizeof x);
}

static inline void making_array(struct making *m, const char *key, uint32_t elem, uint64_t n) {
    making_key(m, key, MAKING_ARR);
    making_put(m, &elem, sizeof elem);
    making_put(m, &n, sizeof n);
}

static inline void making_texts(struct making *m, const char *key, const char *const *s, size_t n) {
    making_array(m, key, MAKING_STR, n);
    for (size_t i = 0; i < n; i++)
        making_str(m, s[i]);
}

static inline void making_i32s(struct making *m, const char *key, const int32_t *x, size_t n) {
    making_array(m, key, MAKING_I32, n);
    making_put(m, x, n * sizeof *x);
}

/* Write the file and open it; there are no tensors in it. Aborts when that fails. */
static inline struct gguf *making_open(const struct making *m) {
    struct {
        char magic[4];
        uint32_t version;
        uint64_t n_tensor, n_meta;
    } head = { { 'G', 'G', 'U', 'F' }, 3, 0, m->n_meta };
    static const uint8_t pad[32];
    size_t n_pad = -(sizeof head + m->n) & 31;
    int fd = memfd_create("gguf", MFD_CLOEXEC);
    struct gguf *g = NULL;
    struct why why = { "" };
    char path[64];

    if (fd < 0 || write(fd, &head, sizeof head) != (ssize_t)sizeof head ||
        write(fd, m->b, m->n) != (ssize_t)m->n || write(fd, pad, n_pad) != (ssize_t)n_pad)
        abort();
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (gguf_open(&g, path, &why) != 0) {
        (void)fprintf(stderr, "%s\n", why.text);
        abort();
    }
    (void)close(fd);

    return g;
}

/* A vocabulary to be put in a file; entries borrowed. */
struct tiny {
    const char *text[4096];
    int32_t type[4096];
    size_t n;
    const char *merge[512];
    size_t n_merge;
};

static inline tok_t tiny_token(struct tiny *t, const char *text, enum vocab_type type) {
    if (t->n == sizeof t->text / sizeof *t->text)
        abort();
    t->text[t->n] = text;
    t->type[t->n] = (int32_t)type;
    return (tok_t)t->n++;
}

static inline void tiny_merge(struct tiny *t, const char *merge) {
    if (t->n_merge == sizeof t->merge / sizeof *t->merge)
        abort();
    t->merge[t->n_merge++] = merge;
}

/* Ids 0 to 3 and the 256 bytes from id 4 on. */
enum { TINY_PAD, TINY_EOS, TINY_BOS, TINY_UNK, TINY_BYTE };

static inline void tiny_begin(struct tiny *t) {
    static char byte[256][7];

    (void)tiny_token(t, "<pad>", VOCAB_CONTROL);
    (void)tiny_token(t, "<eos>", VOCAB_CONTROL);
    (void)tiny_token(t, "<bos>", VOCAB_CONTROL);
    (void)tiny_token(t, "<unk>", VOCAB_UNKNOWN);
    for (int i = 0; i < 256; i++) {
        (void)snprintf(byte[i], sizeof byte[i], "<0x%02X>", (unsigned)i & 255);
        (void)tiny_token(t, byte[i], VOCAB_BYTE);
    }
}

static inline void tiny_markers(struct tiny *t) {
    (void)tiny_token(t, "<|turn>", VOCAB_CONTROL);
    (void)tiny_token(t, "<turn|>", VOCAB_CONTROL);
    (void)tiny_token(t, "<|channel>", VOCAB_USER);
    (void)tiny_token(t, "<channel|>", VOCAB_USER);
    (void)tiny_token(t, "<|think|>", VOCAB_CONTROL);
    (void)tiny_token(t, "<|tool_response>", VOCAB_USER);
}

static inline void tiny_put(const struct tiny *t, struct making *m) {
    making_text(m, "tokenizer.ggml.model", "gemma4");
    making_texts(m, "tokenizer.ggml.tokens", t->text, t->n);
    making_i32s(m, "tokenizer.ggml.token_type", t->type, t->n);
    making_texts(m, "tokenizer.ggml.merges", t->merge, t->n_merge);
}

static inline int tiny_new(const struct tiny *t, struct vocab **ret, struct why *why) {
    struct making *m = calloc(1, sizeof *m);
    struct gguf *g;
    int r;

    tiny_put(t, m);
    g = making_open(m);
    r = vocab_new(ret, g, why);
    gguf_free(g);
    free(m);

    return r;
}

/* Letters, their merges, markers: every kind of entry. Tests name tokens by text. */
static inline void tiny_all(struct tiny *t) {
    /* clang-format off */
    static const char *const text[] = {
        "\xe2\x96\x81", "\n", "\n\n", "\t", "\t\t", "a", "b", "c", "d", "e", "g", "h", "i", "l",
        "m", "n", "o", "r", "s", "t", "u", "y", "z", "<", ">", "|", "0", "4", "1", "x",
        "\xe2\x96\x81\xe2\x96\x81", "aa", "bc", "ab", "abc", "th", "\xe2\x96\x81th", "xyz",
        "\xc3\xa9", "ou", "</s>", "ght", "\u2581a",
    };
    static const char *const merge[] = {
        "b c", "a b", "a a", "\xe2\x96\x81 \xe2\x96\x81", "\t \t", "t h", "\xe2\x96\x81 th",
        "x y", "xy z",                                       /* "xy" is no token */
        "< e", "<e o", "<eo s", "<eos >",                    /* makes the text of <eos> */
        "< 0", "<0 x", "<0x 4", "<0x4 1", "<0x41 >",         /* and of the byte 0x41 */
        "q r", "a bc", "a a", "o u", "g ht", "h t", "\xe2\x96\x81 a",
    };
    /* clang-format on */

    tiny_begin(t);
    tiny_markers(t);
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        (void)tiny_token(t, text[i], VOCAB_NORMAL);
    (void)tiny_token(t, "qr", VOCAB_CONTROL);
    (void)tiny_token(t, "<|turn>x", VOCAB_USER); /* longer than another marker */
    (void)tiny_token(t, "", VOCAB_CONTROL);
    (void)tiny_token(t, "", VOCAB_NORMAL);
    (void)tiny_token(t, "a", VOCAB_NORMAL); /* a text again */
    (void)tiny_token(t, "<unused0>", VOCAB_UNUSED);
    for (size_t i = 0; i < sizeof merge / sizeof *merge; i++)
        tiny_merge(t, merge[i]);
}
