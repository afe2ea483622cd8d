/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/base/utf8.h"
#include "engine/text/tok.h"
#include "tests/unit/tiny-vocab.h"

static struct tiny tiny;
static struct vocab *vocab;
static uint32_t seed = 1;

static uint32_t below(uint32_t n) { /* the draws need not be good, only repeatable */
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static int setup(void **state) {
    (void)state;
    memset(&tiny, 0, sizeof tiny);
    tiny_all(&tiny);
    return tiny_new(&tiny, &vocab, NULL);
}

static int teardown(void **state) {
    (void)state;
    vocab = vocab_free(vocab);
    return 0;
}

/* Encode @n bytes and check the tokens' texts, joined by '.', against @want. */
static void encodes(const char *s, size_t n, unsigned flags, const char *want) {
    struct tok_list l = { 0 };
    char got[1024];
    size_t n_got = 0;

    assert_int_equal(tok_encode(vocab, s, n, flags, &l), 0);
    for (size_t i = 0; i < l.n; i++) {
        size_t k;
        const char *t = vocab_text(vocab, l.id[i], &k);

        assert_true(n_got + k + 2 < sizeof got);
        if (i)
            got[n_got++] = '.';
        memcpy(got + n_got, t, k);
        n_got += k;
    }
    got[n_got] = 0;
    assert_string_equal(got, want);
    tok_list_deinit(&l);
}

static void plain(const char *s, const char *want) {
    encodes(s, strlen(s), 0, want);
}

#define SP "\xe2\x96\x81"

static void test_merging(void **state) {
    (void)state;
    plain("", "");
    plain("d", "d");
    plain("abc", "abc"); /* b c has the lower rank, then a bc */
    plain("ab", "ab");
    plain("abab", "ab.ab");
    plain("aaa", "aa.a"); /* leftmost first */
    plain("aaaaa", "aa.aa.a");
    plain("aabc", "aa.bc");              /* a a has a lower rank than a bc */
    plain("xyz", "xyz");                 /* through a text that is no token, */
    plain("xyxyz", "<0x78>.<0x79>.xyz"); /* which is bytes where it stays */
    plain("thought", "th.ou.ght");
    plain("you", "y.ou");
}

static void test_spaces(void **state) {
    (void)state;
    plain(" ", SP);
    plain("  ", SP SP);
    plain("   ", SP SP "." SP);
    plain("th th", "th." SP "th");
    plain(" th  th ", SP "th." SP SP ".th." SP);
    plain("\t\t\t", "\t\t.\t");
    plain("a\tb", "a.\t.b");
    plain("a a", "a." SP "a");
}

static void test_newlines(void **state) {
    (void)state;
    plain("\n", "\n");
    plain("\n\n", "\n\n"); /* a token, though no merge makes it */
    plain("\n\n\n", "\n.\n.\n");
    plain("a\nb\n\nc", "a.\n.b.\n\n.c");
    plain("\na ", "\n.a." SP);
    plain("\r\n", "<0x0D>.\n");
}

static void test_bytes(void **state) {
    (void)state;
    plain("\xc3\xa9", "\xc3\xa9");
    plain("\xf0\x90\x8c\x80", "<0xF0>.<0x90>.<0x8C>.<0x80>");
    plain("a\xe6\x97\xa5"
          "b",
          "a.<0xE6>.<0x97>.<0xA5>.b");
    encodes("a\0b", 3, 0, "a.<0x00>.b");
    plain("\xff\xfe", "<0xFF>.<0xFE>");
    plain("\xc3", "<0xC3>");
    plain("a\xe2\x96", "a.<0xE2>.<0x96>"); /* an unfinished ▁ */
    plain("\xed\xa0\x80", "<0xED>.<0xA0>.<0x80>");
    plain("\x80\xc3\xa9", "<0x80>.\xc3\xa9");
}

/* A client that types a special text gets text, by every way to it. */
static void test_typed_markers(void **state) {
    (void)state;
    plain("<|turn>", "<.|.t.u.r.n.>");
    plain("<eos>", "<0x3C>.<0x65>.<0x6F>.<0x73>.<0x3E>"); /* merges make the whole text */
    plain("<0x41>", "<0x3C>.<0x30>.<0x78>.<0x34>.<0x31>.<0x3E>");
    plain("qr", "<0x71>.<0x72>");
    plain("<unk>", "<.u.n.<0x6B>.>");
    encodes("<bos>", 5, TOK_BOS, "<bos>.<.b.o.s.>");
}

static void test_special(void **state) {
    static const struct {
        const char *text, *want;
        unsigned flags;
    } row[] = {
        { "", "<bos>", TOK_BOS },
        { "<bos>", "<bos>", TOK_BOS | TOK_SPECIAL },
        { "<bos><bos>", "<bos>.<bos>", TOK_BOS | TOK_SPECIAL },
        { "<bos>", "<bos>", TOK_SPECIAL },
        { "a<bos>", "<bos>.a.<bos>", TOK_BOS | TOK_SPECIAL },
        { "<|turn>th\n<turn|>\n", "<|turn>.th.\n.<turn|>.\n", TOK_SPECIAL },
        { "<|turn>xyz", "<|turn>x.y.z", TOK_SPECIAL },
        { "a<unk> b<|channel>", "a.<unk>." SP ".b.<|channel>", TOK_SPECIAL },
        { " <turn|> ", SP ".<turn|>." SP, TOK_SPECIAL },
        { "<|turn<|turn>", "<.|.t.u.r.n.<|turn>", TOK_SPECIAL },
        { "aqra", "a.qr.a", TOK_SPECIAL },
        { "<0x41>", "<0x3C>.<0x30>.<0x78>.<0x34>.<0x31>.<0x3E>", TOK_SPECIAL },
    };

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        encodes(row[i].text, strlen(row[i].text), row[i].flags, row[i].want);
}

static void test_appends(void **state) {
    struct tok_list l = { 0 };

    (void)state;
    assert_int_equal(tok_list_push(&l, 77), 0);
    assert_int_equal(tok_encode(vocab, "abc", 3, TOK_BOS, &l), 0);
    assert_int_equal(l.n, 3);
    assert_int_equal(l.id[0], 77);
    assert_int_equal(l.id[1], TINY_BOS);
    tok_list_deinit(&l);
    assert_int_equal(l.n, 0);
}

/* ---- against a direct reading of the rules ---- */

enum { N_SLICE = 64 };

struct slice {
    const char *s;
    size_t n;
};

static bool same(struct slice a, const char *s, size_t n) {
    return a.n == n && memcmp(a.s, s, n) == 0;
}

/* The merge of two neighbours in the table's order, first entry first. */
static size_t plain_rank(const struct tiny *t, struct slice a, struct slice b) {
    for (size_t i = 0; i < t->n_merge; i++) {
        const char *gap = strchr(t->merge[i] + 1, ' ');

        if (same(a, t->merge[i], (size_t)(gap - t->merge[i])) && same(b, gap + 1, strlen(gap + 1)))
            return i;
    }

    return SIZE_MAX;
}

/* Merge the run in the simplest way and push its tokens. */
static void plain_run(const struct tiny *t, const char *s, size_t n, struct tok_list *out) {
    struct slice a[N_SLICE];
    size_t n_a = 0;

    for (size_t i = 0; i < n; i += a[n_a++].n)
        a[n_a] = (struct slice){ s + i, utf8_len(s + i, n - i) ? utf8_len(s + i, n - i) : 1 };
    for (;;) {
        size_t best = SIZE_MAX, at = 0;

        for (size_t i = 0; i + 1 < n_a; i++) {
            size_t rank = plain_rank(t, a[i], a[i + 1]);

            if (rank < best) {
                best = rank;
                at = i;
            }
        }
        if (best == SIZE_MAX)
            break;
        a[at].n += a[at + 1].n;
        memmove(&a[at + 1], &a[at + 2], (--n_a - at - 1) * sizeof *a);
    }
    for (size_t i = 0; i < n_a; i++) {
        size_t id = 0;

        while (id < t->n && !same(a[i], t->text[id], strlen(t->text[id])))
            id++;
        if (id < t->n && t->type[id] != VOCAB_NORMAL)
            id = t->n;
        for (size_t j = 0; j < (id < t->n ? 1 : a[i].n); j++)
            assert_int_equal(
                tok_list_push(out, id < t->n ? (tok_t)id : TINY_BYTE + (uint8_t)a[i].s[j]), 0);
    }
}

/* A vocabulary of random merges; the texts they make are tokens four times in five. */
static void random_vocab(struct tiny *t, char *pool) {
    static const char *const letter[] = { "a", "b", "c", "\xc3\xa9", SP, "\xe6\x97\xa5" };
    enum { N_LETTER = sizeof letter / sizeof *letter };
    const char *known[N_LETTER + 60];
    size_t n_known = 0;

    memset(t, 0, sizeof *t);
    tiny_begin(t);
    for (size_t i = 0; i < N_LETTER; i++) {
        known[n_known++] = letter[i];
        if (below(8))
            (void)tiny_token(t, letter[i], VOCAB_NORMAL);
    }
    for (int i = 0; i < 60; i++) {
        const char *l = known[below((uint32_t)n_known)], *r = known[below((uint32_t)n_known)];
        int n = sprintf(pool, "%s %s", l, r);

        if (n > 20)
            continue;
        tiny_merge(t, pool);
        pool += n + 1;
        n = sprintf(pool, "%s%s", l, r);
        known[n_known++] = pool;
        if (below(5))
            (void)tiny_token(t, pool, below(20) ? VOCAB_NORMAL : VOCAB_CONTROL);
        pool += n + 1;
    }
}

static void test_random_vocabularies(void **state) {
    AUTO(free) struct tiny *t = calloc(1, sizeof *t);
    static const char *const part[] = {
        "a", "b", "c", "\xc3\xa9", SP, "\xe6\x97\xa5", "d", "\x96"
    };
    static char pool[60 * 64];

    (void)state;
    for (int round = 0; round < 100; round++) {
        AUTO(vocab_free) struct vocab *v = NULL;

        random_vocab(t, pool);
        assert_int_equal(tiny_new(t, &v, NULL), 0);
        for (int i = 0; i < 50; i++) {
            struct tok_list got = { 0 }, want = { 0 };
            char s[N_SLICE * 4];
            size_t n = 0;

            for (uint32_t k = below(N_SLICE / 2); k > 0; k--) {
                const char *p = part[below(sizeof part / sizeof *part)];

                memcpy(s + n, p, strlen(p));
                n += strlen(p);
            }
            plain_run(t, s, n, &want);
            assert_int_equal(tok_encode(v, s, n, 0, &got), 0);
            assert_int_equal(got.n, want.n);
            if (n)
                assert_memory_equal(got.id, want.id, want.n * sizeof *want.id);
            tok_list_deinit(&got);
            tok_list_deinit(&want);
        }
    }
}

/* ---- properties ---- */

static size_t put_char(char *s, uint32_t c) {
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };

    for (size_t i = n; i-- > 1; c >>= 6)
        s[i] = (char)(0x80 | (c & 63));
    s[0] = (char)(lead[n] | c);

    return n;
}

/* Well-formed text without "▁", mostly of what the vocabulary knows. */
static size_t random_text(char *s, size_t n_char) {
    static const char known[] = "abcdeghilmnorstuyz<>|0419x\t\n  abcabc";
    static const char *const word[] = { "<|turn>", "<eos>",    "<0x41>", "qr",
                                        "xyz",     "\xc3\xa9", "<bos>" };
    size_t n = 0;

    while (n_char-- > 0) {
        uint32_t c = below(0x110000);

        if (below(4)) {
            s[n++] = known[below(sizeof known - 1)];
        } else if (below(2)) {
            const char *w = word[below(sizeof word / sizeof *word)];

            memcpy(s + n, w, strlen(w));
            n += strlen(w);
        } else if ((c < 0xd800 || c > 0xdfff) && c != 0x2581) {
            n += put_char(s + n, below(2) ? c : c % 0x800);
        }
    }

    return n;
}

/* Decode into @buf, checking that what comes out is whole characters each time. */
static size_t decode(const struct tok_list *l, bool special, char *buf) {
    struct tok_decoder d = { 0 };
    char piece[TOK_PIECE_MAX];
    size_t n_buf = 0;

    for (size_t i = 0; i <= l->n; i++) {
        size_t n =
            i < l->n ? tok_decode(&d, vocab, l->id[i], special, piece) : tok_decode_end(&d, piece);

        assert_true(utf8_valid(piece, n));
        memcpy(buf + n_buf, piece, n);
        n_buf += n;
    }
    assert_int_equal(d.n_held, 0);

    return n_buf;
}

static void test_roundtrip(void **state) {
    char s[2048], back[8192];

    (void)state;
    for (int i = 0; i < 3000; i++) {
        size_t n = random_text(s, below(120)), n_back;
        struct tok_list l = { 0 };

        assert_int_equal(tok_encode(vocab, s, n, 0, &l), 0);
        for (size_t k = 0; k < l.n; k++) {
            enum vocab_type type = vocab_type(vocab, l.id[k]);

            assert_true(type == VOCAB_NORMAL || type == VOCAB_BYTE);
        }
        n_back = decode(&l, false, back);
        assert_int_equal(n_back, n);
        assert_memory_equal(back, s, n);

        l.n = 0; /* with markers as tokens, shown again, the text is the same */
        assert_int_equal(tok_encode(vocab, s, n, TOK_SPECIAL, &l), 0);
        n_back = decode(&l, true, back);
        assert_int_equal(n_back, n);
        assert_memory_equal(back, s, n);
        tok_list_deinit(&l);
    }
}

/* Of any bytes the tokens' pieces are those bytes, and what is decoded is well-formed. */
static void test_any_bytes(void **state) {
    char s[256], back[4096];

    (void)state;
    for (int i = 0; i < 3000; i++) {
        size_t n = below(64), at = 0;
        struct tok_list l = { 0 };

        for (size_t k = 0; k < n; k++)
            s[k] = below(3) ? (char)below(256) : "\xe2\x96\x81\xf0\x90\xc3\xa9 a"[below(9)];
        assert_int_equal(tok_encode(vocab, s, n, 0, &l), 0);
        for (size_t k = 0; k < l.n; k++) {
            size_t n_piece;
            const char *piece = vocab_piece(vocab, l.id[k], false, &n_piece);

            for (size_t p = 0; p < n_piece; p++) {
                bool typed = piece[p] == ' ' && s[at] != ' '; /* "▁" for a space */

                assert_memory_equal(s + at, typed ? SP : &piece[p], typed ? 3 : 1);
                at += typed ? 3 : 1;
            }
        }
        assert_int_equal(at, n);
        (void)decode(&l, false, back);
        tok_list_deinit(&l);
    }
}

static void test_decoder(void **state) {
    static const struct {
        const char *bytes, *want[5]; /* what each byte, and the end, brings out */
    } row[] = {
        { "\xc3\xa9", { "", "\xc3\xa9", "" } },
        { "\xf0\x9f\x98\x80", { "", "", "", "\xf0\x9f\x98\x80", "" } },
        { "\xe2\x96", { "", "", "\xef\xbf\xbd" } },
        { "\xe2\x96"
          "a",
          { "", "",
            "\xef\xbf\xbd"
            "a",
            "" } },
        { "\xe2\xc3\xa9", { "", "\xef\xbf\xbd", "\xc3\xa9", "" } },
        { "\x80\xff", { "\xef\xbf\xbd", "\xef\xbf\xbd", "" } },
        { "\xed\xa0\x80", { "", "\xef\xbf\xbd\xef\xbf\xbd", "\xef\xbf\xbd", "" } },
        { "\xf0\x9f\x98"
          "b",
          { "", "", "",
            "\xef\xbf\xbd"
            "b",
            "" } },
    };
    char buf[TOK_PIECE_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct tok_decoder d = { 0 };
        size_t n = strlen(row[i].bytes);

        for (size_t k = 0; k <= n; k++) {
            size_t got =
                k < n ? tok_decode(&d, vocab, TINY_BYTE + (uint8_t)row[i].bytes[k], false, buf)
                      : tok_decode_end(&d, buf);

            assert_int_equal(got, strlen(row[i].want[k]));
            assert_memory_equal(buf, row[i].want[k], got);
        }
    }
}

/* The longest piece of nothing but broken bytes, behind three held back, fits its buffer. */
static void test_longest_piece(void **state) {
    static char broken[VOCAB_TEXT_MAX + 1];
    AUTO(free) struct tiny *t = calloc(1, sizeof *t);
    AUTO(vocab_free) struct vocab *v = NULL;
    struct tok_decoder d = { 0 };
    char buf[TOK_PIECE_MAX];
    tok_t id;

    (void)state;
    memset(broken, 0xff, VOCAB_TEXT_MAX);
    tiny_begin(t);
    id = tiny_token(t, broken, VOCAB_NORMAL);
    assert_int_equal(tiny_new(t, &v, NULL), 0);
    assert_int_equal(tok_decode(&d, v, TINY_BYTE + 0xf0, false, buf), 0);
    assert_int_equal(tok_decode(&d, v, TINY_BYTE + 0x9f, false, buf), 0);
    assert_int_equal(tok_decode(&d, v, TINY_BYTE + 0x98, false, buf), 0);
    assert_int_equal(tok_decode(&d, v, id, false, buf), 3 + 3 * VOCAB_TEXT_MAX);
}

/* A megabyte that no filter parts merges in n log n: a quadratic one would take hours. */
static void test_long(void **state) {
    enum { N = 1 << 20 };
    AUTO(free) char *s = malloc(N);
    struct tok_list l = { 0 };

    (void)state;
    memset(s, 'a', N);
    assert_int_equal(tok_encode(vocab, s, N, 0, &l), 0);
    assert_int_equal(l.n, N / 2);
    l.n = 0;
    memset(s, '\n', N);
    assert_int_equal(tok_encode(vocab, s, N, TOK_SPECIAL, &l), 0);
    assert_int_equal(l.n, N);
    tok_list_deinit(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merging),       cmocka_unit_test(test_spaces),
        cmocka_unit_test(test_newlines),      cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_typed_markers), cmocka_unit_test(test_special),
        cmocka_unit_test(test_appends),       cmocka_unit_test(test_random_vocabularies),
        cmocka_unit_test(test_roundtrip),     cmocka_unit_test(test_any_bytes),
        cmocka_unit_test(test_decoder),       cmocka_unit_test(test_longest_piece),
        cmocka_unit_test(test_long),
    };

    return cmocka_run_group_tests_name("tok", tests, setup, teardown);
}
