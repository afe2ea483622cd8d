/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/unit/tiny-vocab.h"

static struct tiny tiny;
static struct vocab *vocab;

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

static tok_t find(const char *text) {
    return vocab_find(vocab, text, strlen(text));
}

static tok_t symbol(const char *text) {
    return vocab_symbol(vocab, text, strlen(text));
}

static void test_texts(void **state) {
    (void)state;
    assert_int_equal(vocab_n(vocab), tiny.n);
    for (size_t i = 0; i < tiny.n; i++) {
        size_t n;
        const char *s = vocab_text(vocab, (tok_t)i, &n);

        assert_int_equal(n, strlen(tiny.text[i]));
        assert_memory_equal(s, tiny.text[i], n);
        assert_int_equal(vocab_type(vocab, (tok_t)i), tiny.type[i]);
        for (size_t first = 0; first <= i; first++) { /* of equal texts the first is found */
            if (strcmp(tiny.text[first], tiny.text[i]) != 0)
                continue;
            assert_int_equal(find(tiny.text[i]), first);
            break;
        }
    }
    assert_int_equal(find("no such token"), -1);
    assert_int_equal(find("xy"), -1); /* a symbol, but no token */
    assert_true(symbol("xy") >= (tok_t)tiny.n);
    assert_int_equal(symbol("no such token"), -1);
}

static void test_pieces(void **state) {
    static const struct {
        const char *text, *plain, *special;
    } row[] = {
        { "\xe2\x96\x81th", " th", " th" },
        { "\xe2\x96\x81\xe2\x96\x81", "  ", "  " },
        { "\xc3\xa9", "\xc3\xa9", "\xc3\xa9" },
        { "\n\n", "\n\n", "\n\n" },
        { "<0x0A>", "\n", "\n" },
        { "<|channel>", "<|channel>", "<|channel>" }, /* user-defined */
        { "<|turn>", "", "<|turn>" },
        { "<unk>", "", "<unk>" },
        { "<unused0>", "", "<unused0>" },
    };
    size_t n;

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        const char *s = vocab_piece(vocab, find(row[i].text), false, &n);

        assert_int_equal(n, strlen(row[i].plain));
        assert_memory_equal(s, row[i].plain, n);
        s = vocab_piece(vocab, find(row[i].text), true, &n);
        assert_int_equal(n, strlen(row[i].special));
        assert_memory_equal(s, row[i].special, n);
    }
    for (int b = 0; b < 256; b++) {
        const char *s = vocab_piece(vocab, vocab_byte(vocab, (uint8_t)b), false, &n);

        assert_int_equal(n, 1);
        assert_int_equal((uint8_t)*s, b);
    }
}

static void test_merges(void **state) {
    tok_t joined = -1;

    (void)state;
    assert_int_equal(vocab_merge(vocab, find("b"), find("c"), &joined), 0);
    assert_int_equal(joined, find("bc"));
    assert_int_equal(vocab_merge(vocab, find("a"), find("a"), &joined), 2); /* the first of two */
    assert_int_equal(joined, find("aa"));
    assert_int_equal(vocab_merge(vocab, find("\t"), find("\t"), &joined), 4);
    assert_int_equal(joined, find("\t\t"));
    assert_int_equal(vocab_merge(vocab, find("x"), find("y"), &joined), 7);
    assert_int_equal(joined, symbol("xy"));
    assert_int_equal(vocab_merge(vocab, symbol("xy"), find("z"), &joined), 8);
    assert_int_equal(joined, find("xyz"));
    assert_int_equal(vocab_merge(vocab, find("c"), find("b"), &joined), -1);
    assert_int_equal(vocab_plain(vocab, symbol("xy")), -1);
    assert_int_equal(vocab_plain(vocab, find("<|turn>")), -1);
    assert_int_equal(vocab_plain(vocab, find("<|channel>")), -1);
    assert_int_equal(vocab_plain(vocab, find("<0x0A>")), -1);
    assert_int_equal(vocab_plain(vocab, find("<unused0>")), -1);
    assert_int_equal(vocab_plain(vocab, -1), -1);
    assert_int_equal(vocab_plain(vocab, find("bc")), find("bc"));
}

/* What the filter calls unjoinable must be: every merge of the table is checked. */
static void test_joins(void **state) {
    int n_not = 0;

    (void)state;
    for (size_t i = 0; i < tiny.n_merge; i++) {
        const char *gap = strchr(tiny.merge[i] + 1, ' '), *right = gap + 1;
        size_t n = (uint8_t)*right >= 0xe0 ? 3 : (uint8_t)*right >= 0xc0 ? 2 : 1;

        assert_true(vocab_joins(vocab, (uint8_t)gap[-1], right, n));
    }
    assert_true(vocab_joins(vocab, 0x81, " ", 1)); /* a space counts as its symbol */
    for (int last = 'a'; last <= 'z'; last++)
        for (char first = 'a'; first <= 'z'; first++)
            n_not += !vocab_joins(vocab, (uint8_t)last, &first, 1);
    assert_true(n_not > 600); /* it does part things */
}

static void special(const char *text, const char *want) {
    size_t n = 99;
    tok_t id = vocab_special(vocab, text, strlen(text), &n);

    if (!want) {
        assert_int_equal(id, -1);
        return;
    }
    assert_int_equal(id, find(want));
    assert_int_equal(n, strlen(want));
}

static void test_special(void **state) {
    (void)state;
    special("<|turn>user", "<|turn>");
    special("<|turn>x", "<|turn>x"); /* the longest */
    special("<turn|>", "<turn|>");
    special("<|tool_response>", "<|tool_response>");
    special("<unk>", "<unk>");
    special("qrs", "qr");
    special("<|turn", NULL);
    special("x<|turn>", NULL); /* only at the beginning */
    special("<0x0A>", NULL);
    special("<unused0>", NULL);
    special("", NULL);
}

static void test_known(void **state) {
    (void)state;
    assert_int_equal(vocab_bos(vocab), TINY_BOS); /* by text: this file has no keys */
    assert_int_equal(vocab_eos(vocab), TINY_EOS);
    assert_int_equal(vocab_unknown(vocab), TINY_UNK);
    for (int i = 0; i < VOCAB_N_MARK; i++)
        assert_int_equal(vocab_mark(vocab, (enum vocab_mark)i),
                         find(vocab_mark_text((enum vocab_mark)i)));
    for (size_t i = 0; i < tiny.n; i++)
        assert_int_equal(vocab_is_end(vocab, (tok_t)i), (tok_t)i == TINY_EOS ||
                                                            (tok_t)i == find("<turn|>") ||
                                                            (tok_t)i == find("<|tool_response>"));
    assert_false(vocab_is_end(vocab, -1));
}

/* Keys beat texts; "</s>" does not end a text even when a key says so. */
static void test_keys(void **state) {
    static const int32_t suppressed[] = { 5, 9 };
    AUTO(free) struct making *m = calloc(1, sizeof *m);
    AUTO(vocab_free) struct vocab *v = NULL;
    const int32_t *list;
    struct gguf *g;
    size_t n;

    (void)state;
    tiny_put(&tiny, m);
    making_u32(m, "tokenizer.ggml.bos_token_id", 0);
    making_u32(m, "tokenizer.ggml.eos_token_id", (uint32_t)find("</s>"));
    making_u32(m, "tokenizer.ggml.eot_token_id", (uint32_t)find("abc"));
    making_i32s(m, "tokenizer.ggml.suppress_tokens", suppressed, 2);
    g = making_open(m);
    assert_int_equal(vocab_new(&v, g, NULL), 0);
    gguf_free(g);
    assert_int_equal(vocab_bos(v), 0);
    assert_int_equal(vocab_eos(v), find("</s>"));
    assert_false(vocab_is_end(v, find("</s>")));
    assert_true(vocab_is_end(v, find("abc")));
    assert_true(vocab_is_end(v, TINY_EOS));
    list = vocab_suppressed(v, &n);
    assert_int_equal(n, 2);
    assert_memory_equal(list, suppressed, sizeof suppressed);
}

/* A file that calls its markers normal tokens gets control tokens all the same. */
static void test_reserved(void **state) {
    AUTO(free) struct tiny *t = calloc(1, sizeof *t);
    AUTO(vocab_free) struct vocab *v = NULL;
    tok_t turn, end, channel;

    (void)state;
    tiny_begin(t);
    t->type[TINY_EOS] = VOCAB_NORMAL;
    turn = tiny_token(t, "<|turn>", VOCAB_NORMAL);
    end = tiny_token(t, "<turn|>", VOCAB_UNUSED);
    channel = tiny_token(t, "<|channel>", VOCAB_USER);
    assert_int_equal(tiny_new(t, &v, NULL), 0);
    assert_int_equal(vocab_type(v, TINY_EOS), VOCAB_CONTROL);
    assert_int_equal(vocab_type(v, turn), VOCAB_CONTROL);
    assert_int_equal(vocab_type(v, end), VOCAB_CONTROL);
    assert_int_equal(vocab_type(v, channel), VOCAB_USER);
    assert_int_equal(vocab_mark(v, VOCAB_THINK), -1);
}

/* Files that must be refused, with a sentence that names the key. */
enum wrong {
    OK,
    NO_MODEL,
    OTHER_MODEL,
    NO_TOKENS,
    TOKENS_OF_INTS,
    ZERO_TOKENS,
    LONG_TOKEN,
    NO_TYPES,
    FEW_TYPES,
    TYPE_RANGE,
    TYPES_OF_FLOATS,
    FEW_SCORES,
    SCORES_OF_INTS,
    BAD_BYTE,
    NO_MERGES,
    MERGE_ONE_HALF,
    MERGE_NO_RIGHT,
    MERGE_EMPTY,
    BOS_RANGE,
    MASK_RANGE,
    EOS_OF_TEXT,
    SUPPRESS_RANGE,
    N_WRONG,
};

static void put_wrong(struct making *m, enum wrong w) {
    static const char *const text[] = { "<bos>", "a", "<0x41>" };
    static const int32_t type[] = { VOCAB_CONTROL, VOCAB_NORMAL, VOCAB_BYTE, 7 };
    static const float score[3];
    char longest[VOCAB_TEXT_MAX + 2];
    const char *texts[] = { text[0], text[1], text[2] }, *merge = "a a";
    size_t n = w == ZERO_TOKENS ? 0 : 3;

    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1 - (w != LONG_TOKEN)] = 0;
    longest[sizeof longest - 1] = 0;
    texts[1] = longest;
    if (w == BAD_BYTE)
        texts[2] = "<0x-1>";
    if (w == MERGE_ONE_HALF)
        merge = "aa";
    if (w == MERGE_NO_RIGHT)
        merge = "a ";
    if (w == MERGE_EMPTY)
        merge = "";

    if (w != NO_MODEL)
        making_text(m, "tokenizer.ggml.model", w == OTHER_MODEL ? "lla\nma" : "gemma4");
    if (w == TOKENS_OF_INTS)
        making_i32s(m, "tokenizer.ggml.tokens", type, 3);
    else if (w != NO_TOKENS)
        making_texts(m, "tokenizer.ggml.tokens", texts, n);
    if (w == TYPES_OF_FLOATS) {
        making_array(m, "tokenizer.ggml.token_type", MAKING_F32, 3);
        making_put(m, score, sizeof score);
    } else if (w != NO_TYPES) {
        making_i32s(m, "tokenizer.ggml.token_type", type + (w == TYPE_RANGE),
                    w == FEW_TYPES ? 2 : 3);
    }
    making_array(m, "tokenizer.ggml.scores", w == SCORES_OF_INTS ? MAKING_I32 : MAKING_F32,
                 w == FEW_SCORES ? 2 : 3);
    making_put(m, score, w == FEW_SCORES ? 8 : 12);
    if (w != NO_MERGES)
        making_texts(m, "tokenizer.ggml.merges", &merge, 1);
    making_u32(m, "tokenizer.ggml.bos_token_id", w == BOS_RANGE ? 3 : 0);
    making_u32(m, "tokenizer.ggml.mask_token_id", w == MASK_RANGE ? UINT32_MAX : 2);
    if (w == EOS_OF_TEXT)
        making_text(m, "tokenizer.ggml.eos_token_id", "1");
    making_i32s(m, "tokenizer.ggml.suppress_tokens", w == SUPPRESS_RANGE ? type + 3 : type + 1, 1);
}

static void test_refused(void **state) {
    static const char *const word[N_WRONG] = {
        [NO_MODEL] = "ggml.model",
        [OTHER_MODEL] = "lla?ma",
        [NO_TOKENS] = "ggml.tokens",
        [TOKENS_OF_INTS] = "ggml.tokens",
        [ZERO_TOKENS] = "ggml.tokens",
        [LONG_TOKEN] = "ggml.tokens",
        [NO_TYPES] = "token_type",
        [FEW_TYPES] = "token_type",
        [TYPE_RANGE] = "token_type",
        [TYPES_OF_FLOATS] = "token_type",
        [FEW_SCORES] = "ggml.scores",
        [SCORES_OF_INTS] = "ggml.scores",
        [BAD_BYTE] = "<0xHH>",
        [NO_MERGES] = "ggml.merges",
        [MERGE_ONE_HALF] = "merges",
        [MERGE_NO_RIGHT] = "merges",
        [MERGE_EMPTY] = "merges",
        [BOS_RANGE] = "bos_token_id",
        [MASK_RANGE] = "mask_token_id",
        [EOS_OF_TEXT] = "eos_token_id",
        [SUPPRESS_RANGE] = "suppress_tokens",
    };

    (void)state;
    for (int w = OK; w < N_WRONG; w++) {
        AUTO(free) struct making *m = calloc(1, sizeof *m);
        AUTO(vocab_free) struct vocab *v = NULL;
        struct why why = { "" };
        struct gguf *g;
        int r;

        put_wrong(m, (enum wrong)w);
        g = making_open(m);
        r = vocab_new(&v, g, &why);
        gguf_free(g);
        assert_int_equal(r, w == OK ? 0 : VOCAB_BAD);
        if (w != OK && !strstr(why.text, word[w]))
            fail_msg("%d: \"%s\" names no \"%s\"", w, why.text, word[w]);
        assert_true((v == NULL) == (w != OK));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),   cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_merges),  cmocka_unit_test(test_joins),
        cmocka_unit_test(test_special), cmocka_unit_test(test_known),
        cmocka_unit_test(test_keys),    cmocka_unit_test(test_reserved),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests_name("vocab", tests, setup, teardown);
}
