/* SPDX-License-Identifier: Apache-2.0 */

#include <stdio.h>
#include <string.h>

#include "engine/base/utf8.h"
#include "engine/text/vocab.h"

enum {
    N_TOKEN_MAX = 1 << 24,
    N_MERGE_MAX = 1 << 26, /* at most three new symbols each: ids stay far below 2^31 */
    N_END_MAX = 5,
    JOIN_BITS = 20, /* log2 of the bits of the filter of joins */
};

/* Of the hash of texts, linear probing, at most half full. The tag saves most looks at a text. */
struct slot {
    uint32_t tag;
    uint32_t ref; /* symbol + 1; 0: empty */
};

/* Of the hash of merges, likewise. */
struct merge {
    uint32_t left, right; /* symbols; left UINT32_MAX: empty */
    int32_t rank;
    tok_t joined;
};

struct vocab {
    uint32_t n;     /* tokens */
    uint32_t n_sym; /* symbols: tokens, then texts only merges know */

    char *text;   /* all texts of symbols in a row */
    uint32_t *at; /* [n_sym + 1] where each begins */
    size_t n_text, text_alloc, sym_alloc;
    struct slot *slot; /* [slot_mask + 1] */
    size_t slot_mask;

    uint8_t *type;      /* [n] enum vocab_type */
    char *piece;        /* all pieces in a row */
    uint32_t *piece_at; /* [n + 1] */

    struct merge *merge; /* [2^merge_bits] */
    unsigned merge_bits;
    uint64_t *joins; /* [2^JOIN_BITS / 64] vocab_joins() */

    tok_t byte[256];
    tok_t ascii[128]; /* vocab_char() of one byte */

    tok_t *special; /* [n_special] by text, then id */
    uint32_t n_special;
    uint32_t special_at[257]; /* those beginning with byte b: special_at[b] to special_at[b + 1] */

    tok_t bos, eos, unknown;
    tok_t mark[VOCAB_N_MARK];
    tok_t end[N_END_MAX];
    uint32_t n_end;
    int32_t *suppressed;
    uint64_t n_suppressed;
};

static const char space_text[] = "\xe2\x96\x81"; /* "▁", U+2581 */
enum { SPACE_SIZE = sizeof space_text - 1 };

/* ---- symbols ---- */

static uint64_t mix(uint64_t h) {
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 32;
}

static uint64_t text_hash(const char *s, size_t n) {
    uint64_t h = n, w;

    for (; n >= sizeof w; s += sizeof w, n -= sizeof w) {
        memcpy(&w, s, sizeof w);
        h = mix(h ^ w);
    }
    w = 0;
    memcpy(&w, s, n);
    return mix(mix(h ^ w) + 1);
}

static const char *sym_text(const struct vocab *v, uint32_t sym, size_t *ret_n) {
    *ret_n = v->at[sym + 1] - v->at[sym];
    return v->text + v->at[sym];
}

/* The slot that holds the text, or the empty one where it belongs. */
static struct slot *slot_find(const struct vocab *v, const char *s, size_t n, uint64_t hash) {
    uint32_t tag = (uint32_t)(hash >> 32);

    for (size_t i = hash & v->slot_mask;; i = (i + 1) & v->slot_mask) {
        struct slot *slot = &v->slot[i];
        const char *have;
        size_t n_have;

        if (!slot->ref)
            return slot;
        if (slot->tag != tag)
            continue;
        have = sym_text(v, slot->ref - 1, &n_have);
        if (n_have == n && memcmp(have, s, n) == 0)
            return slot;
    }
}

static int slots_grow(struct vocab *v, size_t n_slot) {
    struct slot *old = v->slot;

    v->slot = calloc(n_slot, sizeof *v->slot);
    if (!v->slot) {
        v->slot = old;
        return err_new(-ENOMEM);
    }
    v->slot_mask = n_slot - 1;
    free(old);

    for (uint32_t i = 0; i < v->n_sym; i++) {
        size_t n;
        const char *s = sym_text(v, i, &n);
        uint64_t hash = text_hash(s, n);
        struct slot *slot = slot_find(v, s, n, hash);

        if (!slot->ref)
            *slot = (struct slot){ .tag = (uint32_t)(hash >> 32), .ref = i + 1 };
    }

    return 0;
}

/* Append a symbol, whether or not its text is there already. Return: 0, VOCAB_BAD, -ENOMEM. */
static int sym_push(struct vocab *v, const char *s, size_t n, struct why *why) {
    if (n > UINT32_MAX - v->n_text)
        return why_set(why, VOCAB_BAD, "tokenizer.ggml: texts of tokens and merges exceed 4 GiB");
    if (v->n_text + n > v->text_alloc) {
        size_t n_alloc = 2 * (v->n_text + n);
        char *text = realloc(v->text, n_alloc);

        if (!text)
            return err_new(-ENOMEM);
        v->text = text;
        v->text_alloc = n_alloc;
    }
    if (v->n_sym + (size_t)2 > v->sym_alloc) {
        size_t n_alloc = 2 * (v->n_sym + (size_t)2);
        uint32_t *at = realloc(v->at, n_alloc * sizeof *at);

        if (!at)
            return err_new(-ENOMEM);
        v->at = at;
        v->sym_alloc = n_alloc;
    }
    memcpy(v->text + v->n_text, s, n);
    v->at[v->n_sym] = (uint32_t)v->n_text;
    v->n_text += n;
    v->at[++v->n_sym] = (uint32_t)v->n_text;

    return 0;
}

/* The symbol of a text, made if there is none. */
static int sym_intern(struct vocab *v, const char *s, size_t n, uint32_t *ret, struct why *why) {
    uint64_t hash = text_hash(s, n);
    struct slot *slot = slot_find(v, s, n, hash);
    int r;

    if (slot->ref) {
        *ret = slot->ref - 1;
        return 0;
    }
    r = sym_push(v, s, n, why);
    if (r)
        return err_up(r);
    *slot = (struct slot){ .tag = (uint32_t)(hash >> 32), .ref = v->n_sym };
    *ret = v->n_sym - 1;
    if (2 * (size_t)v->n_sym > v->slot_mask + 1)
        return err_up(slots_grow(v, 2 * (v->slot_mask + 1)));

    return 0;
}

tok_t vocab_symbol(const struct vocab *v, const char *text, size_t n) {
    return (tok_t)slot_find(v, text, n, text_hash(text, n))->ref - 1;
}

tok_t vocab_find(const struct vocab *v, const char *text, size_t n) {
    tok_t sym = vocab_symbol(v, text, n);

    return sym < (tok_t)v->n ? sym : -1;
}

tok_t vocab_char(const struct vocab *v, const char *text, size_t n) {
    uint8_t c = (uint8_t)text[0];

    return n == 1 && c < 128 ? v->ascii[c] : vocab_symbol(v, text, n);
}

tok_t vocab_plain(const struct vocab *v, tok_t symbol) {
    return symbol >= 0 && symbol < (tok_t)v->n && v->type[symbol] == VOCAB_NORMAL ? symbol : -1;
}

/* ---- merges ---- */

static struct merge *merge_find(const struct vocab *v, uint32_t left, uint32_t right) {
    size_t mask = ((size_t)1 << v->merge_bits) - 1;
    uint64_t hash = mix((uint64_t)left << 32 | right);

    for (size_t i = hash & mask;; i = (i + 1) & mask) {
        struct merge *m = &v->merge[i];

        if (m->left == UINT32_MAX || (m->left == left && m->right == right))
            return m;
    }
}

int32_t vocab_merge(const struct vocab *v, tok_t left, tok_t right, tok_t *ret_joined) {
    const struct merge *m = merge_find(v, (uint32_t)left, (uint32_t)right);

    if (m->left == UINT32_MAX)
        return -1;
    *ret_joined = m->joined;
    return m->rank;
}

/* Bytes of the character at @s as the tokenizer cuts text; @n >= 1. */
static size_t char_size(const char *s, size_t n) {
    size_t k = utf8_len(s, n);

    return k ? k : 1;
}

/* A filter, not a set: two pairs may share a bit, which only costs a cut that could be made. */
static size_t join_bit(uint8_t last, const char *first, size_t n) {
    uint32_t c = 0;

    memcpy(&c, first, n);
    return mix((uint64_t)last << 32 | c) >> (64 - JOIN_BITS);
}

bool vocab_joins(const struct vocab *v, uint8_t last, const char *first, size_t n) {
    size_t bit = *first == ' ' ? join_bit(last, space_text, SPACE_SIZE) : join_bit(last, first, n);

    return v->joins[bit / 64] >> (bit % 64) & 1;
}

/* @s: the merge of rank @rank as the file has it, "left right" */
static int merge_add(struct vocab *v, int32_t rank, const char *s, size_t n, char *joined,
                     struct why *why) {
    const char *gap = n > 2 ? memchr(s + 1, ' ', n - 2) : NULL;
    uint32_t left, right, both;
    size_t n_left, bit;
    struct merge *m;
    int r;

    if (!gap)
        return why_set(why, VOCAB_BAD, "tokenizer.ggml.merges: entry %d is not two texts", rank);
    n_left = (size_t)(gap - s);
    memcpy(joined, s, n_left);
    memcpy(joined + n_left, gap + 1, n - n_left - 1);

    if ((r = sym_intern(v, s, n_left, &left, why)) ||
        (r = sym_intern(v, gap + 1, n - n_left - 1, &right, why)) ||
        (r = sym_intern(v, joined, n - 1, &both, why)))
        return err_up(r);

    m = merge_find(v, left, right);
    if (m->left != UINT32_MAX)
        return 0; /* the first rank counts */
    *m = (struct merge){ .left = left, .right = right, .rank = rank, .joined = (tok_t)both };
    bit = join_bit((uint8_t)gap[-1], gap + 1, char_size(gap + 1, n - n_left - 1));
    v->joins[bit / 64] |= UINT64_C(1) << (bit % 64);

    return 0;
}

static int load_merges(struct vocab *v, const struct gguf *g, struct why *why) {
    static const char key[] = "tokenizer.ggml.merges";
    AUTO(free) char *joined = NULL;
    size_t n_joined = 0, n;
    struct gguf_strs it;
    uint64_t n_merge;
    const char *s;
    int r;

    r = gguf_get_strs(g, key, &it, &n_merge, why);
    if (r == GGUF_ABSENT)
        return why_set(why, VOCAB_BAD, "%s: missing", key);
    if (r)
        return r < 0 ? err_up(r) : VOCAB_BAD;
    if (n_merge > N_MERGE_MAX)
        return why_set(why, VOCAB_BAD, "%s: more than %d entries", key, N_MERGE_MAX);

    for (v->merge_bits = 4; (uint64_t)1 << v->merge_bits < 2 * n_merge;)
        v->merge_bits++;
    v->merge = malloc(sizeof *v->merge << v->merge_bits);
    v->joins = calloc(1, ((size_t)1 << JOIN_BITS) / 8);
    if (!v->merge || !v->joins)
        return err_new(-ENOMEM);
    memset(v->merge, 0xff, sizeof *v->merge << v->merge_bits);

    for (int32_t rank = 0; gguf_strs_next(&it, &s, &n); rank++) {
        if (n > n_joined) {
            char *more = realloc(joined, 2 * n);

            if (!more)
                return err_new(-ENOMEM);
            joined = more;
            n_joined = 2 * n;
        }
        r = merge_add(v, rank, s, n, joined, why);
        if (r)
            return err_up(r);
    }

    return 0;
}

/* ---- tokens ---- */

static int load_texts(struct vocab *v, const struct gguf *g, struct why *why) {
    static const char key[] = "tokenizer.ggml.tokens";
    struct gguf_strs it;
    size_t n, n_slot = 64;
    uint64_t n_token;
    const char *s;
    int r;

    r = gguf_get_strs(g, key, &it, &n_token, why);
    if (r == GGUF_ABSENT)
        return why_set(why, VOCAB_BAD, "%s: missing", key);
    if (r)
        return r < 0 ? err_up(r) : VOCAB_BAD;
    if (n_token < 1 || n_token > N_TOKEN_MAX)
        return why_set(why, VOCAB_BAD, "%s: %ju tokens, not 1 to %d", key, (uintmax_t)n_token,
                       N_TOKEN_MAX);

    while (gguf_strs_next(&it, &s, &n)) {
        if (n > VOCAB_TEXT_MAX)
            return why_set(why, VOCAB_BAD, "%s: token %u has %zu bytes, more than %d", key,
                           v->n_sym, n, VOCAB_TEXT_MAX);
        r = sym_push(v, s, n, why);
        if (r)
            return err_up(r);
    }
    v->n = v->n_sym;
    while (n_slot < 2 * (size_t)v->n)
        n_slot *= 2;

    return err_up(slots_grow(v, n_slot));
}

static const char *const mark_text[VOCAB_N_MARK] = {
    [VOCAB_TURN] = "<|turn>",       [VOCAB_TURN_END] = "<turn|>",
    [VOCAB_CHANNEL] = "<|channel>", [VOCAB_CHANNEL_END] = "<channel|>",
    [VOCAB_THINK] = "<|think|>",    [VOCAB_TOOL_RESPONSE] = "<|tool_response>",
};

/* A token with this text, and never again one that plain text can become: a file that calls a
 * marker a normal token must not let a client write it. */
static tok_t reserve(struct vocab *v, const char *text) {
    tok_t id = vocab_find(v, text, strlen(text));

    if (id >= 0 && (v->type[id] == VOCAB_NORMAL || v->type[id] == VOCAB_UNUSED))
        v->type[id] = VOCAB_CONTROL;

    return id;
}

static int load_types(struct vocab *v, const struct gguf *g, struct why *why) {
    static const char key[] = "tokenizer.ggml.token_type";
    const struct gguf_meta *scores = gguf_meta(g, "tokenizer.ggml.scores");
    AUTO(free) int32_t *type = NULL;
    uint64_t n;
    int r;

    r = gguf_get_ints(g, key, VOCAB_NORMAL, VOCAB_BYTE, &type, &n, why);
    if (r == GGUF_ABSENT)
        return why_set(why, VOCAB_BAD, "%s: missing", key);
    if (r)
        return r < 0 ? err_up(r) : VOCAB_BAD;
    if (n != v->n)
        return why_set(why, VOCAB_BAD, "%s: %ju entries for %u tokens", key, (uintmax_t)n, v->n);
    if (scores && (scores->type != GGUF_ARR || scores->elem != GGUF_F32 || scores->n != v->n))
        return why_set(why, VOCAB_BAD, "%s: not %u f32 values", scores->key, v->n);

    v->type = malloc(v->n);
    if (!v->type)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < v->n; i++)
        v->type[i] = (uint8_t)type[i];

    return 0;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 87 : -1;
}

/* The byte of "<0xHH>"; -1: another text. */
static int byte_of(const char *s, size_t n) {
    int hi, lo;

    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>')
        return -1;
    hi = hex_digit(s[3]);
    lo = hex_digit(s[4]);

    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

static int load_bytes(struct vocab *v, struct why *why) {
    memset(v->byte, 0xff, sizeof v->byte);
    for (uint32_t i = 0; i < v->n; i++) {
        size_t n;
        const char *s = sym_text(v, i, &n);
        int b;

        if (v->type[i] != VOCAB_BYTE)
            continue;
        b = byte_of(s, n);
        if (b < 0)
            return why_set(why, VOCAB_BAD, "tokenizer.ggml.tokens: %u is a byte token, not <0xHH>",
                           i);
        if (v->byte[b] < 0)
            v->byte[b] = (tok_t)i;
    }

    return 0;
}

/* Write the piece of token @id to @to; never longer than its text. Return: bytes. */
static size_t make_piece(const struct vocab *v, uint32_t id, char *to) {
    size_t n, n_to = 0;
    const char *s = sym_text(v, id, &n);

    switch ((enum vocab_type)v->type[id]) {
    case VOCAB_CONTROL:
    case VOCAB_UNKNOWN:
    case VOCAB_UNUSED:
        return 0;
    case VOCAB_USER:
        memcpy(to, s, n);
        return n;
    case VOCAB_BYTE:
        *to = (char)byte_of(s, n);
        return 1;
    case VOCAB_NORMAL:
        break;
    }
    for (size_t i = 0; i < n;) {
        bool space = n - i >= SPACE_SIZE && memcmp(s + i, space_text, SPACE_SIZE) == 0;

        to[n_to++] = space ? ' ' : s[i];
        i += space ? SPACE_SIZE : 1;
    }

    return n_to;
}

static int load_pieces(struct vocab *v) {
    size_t n = 0;

    v->piece = malloc(v->at[v->n] + (size_t)1);
    v->piece_at = malloc((v->n + (size_t)1) * sizeof *v->piece_at);
    if (!v->piece || !v->piece_at)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < v->n; i++) {
        v->piece_at[i] = (uint32_t)n;
        n += make_piece(v, i, v->piece + n);
    }
    v->piece_at[v->n] = (uint32_t)n;

    return 0;
}

static void load_ascii(struct vocab *v) {
    for (int c = 0; c < 128; c++) {
        char s = (char)c;

        v->ascii[c] = c == ' ' ? vocab_symbol(v, space_text, SPACE_SIZE) : vocab_symbol(v, &s, 1);
    }
}

/* ---- special tokens ---- */

static bool is_special(const struct vocab *v, uint32_t id) {
    return (v->type[id] == VOCAB_CONTROL || v->type[id] == VOCAB_UNKNOWN ||
            v->type[id] == VOCAB_USER) &&
           v->at[id + 1] > v->at[id];
}

static int special_order(const void *a, const void *b, void *vocab) {
    uint32_t i = (uint32_t)(*(const tok_t *)a), j = (uint32_t)(*(const tok_t *)b);
    size_t n_i, n_j;
    const char *s = sym_text(vocab, i, &n_i), *t = sym_text(vocab, j, &n_j);
    int d = memcmp(s, t, n_i < n_j ? n_i : n_j);

    return d ? d : n_i != n_j ? (n_i > n_j) - (n_i < n_j) : (i > j) - (i < j);
}

static int load_specials(struct vocab *v) {
    uint32_t k = 0;

    for (uint32_t i = 0; i < v->n; i++)
        v->n_special += is_special(v, i);
    v->special = malloc((v->n_special + (size_t)1) * sizeof *v->special);
    if (!v->special)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < v->n; i++)
        if (is_special(v, i))
            v->special[k++] = (tok_t)i;
    qsort_r(v->special, v->n_special, sizeof *v->special, special_order, v);

    k = 0;
    for (unsigned b = 0; b < 256; b++) {
        v->special_at[b] = k;
        while (k < v->n_special && (uint8_t)v->text[v->at[v->special[k]]] == b)
            k++;
    }
    v->special_at[256] = k;

    return 0;
}

/* Of specials [lo, hi), which agree in @depth bytes and all have more: the first whose next byte
 * is >= @b. */
static uint32_t special_narrow(const struct vocab *v, uint32_t lo, uint32_t hi, size_t depth,
                               unsigned b) {
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;

        if ((uint8_t)v->text[v->at[v->special[mid]] + depth] < b)
            lo = mid + 1;
        else
            hi = mid;
    }

    return lo;
}

tok_t vocab_special(const struct vocab *v, const char *text, size_t n, size_t *ret_n) {
    uint8_t b = n ? (uint8_t)text[0] : 0;
    uint32_t lo = v->special_at[b], hi = n ? v->special_at[b + 1] : lo;
    tok_t best = -1;

    /* Sorted, the shortest of a range is its first, and of equal texts the lowest id. */
    for (size_t depth = 1; lo < hi; depth++) {
        if (v->at[v->special[lo] + 1] - v->at[v->special[lo]] == depth) {
            best = v->special[lo];
            *ret_n = depth;
        }
        while (lo < hi && v->at[v->special[lo] + 1] - v->at[v->special[lo]] == depth)
            lo++;
        if (depth == n)
            break;
        b = (uint8_t)text[depth];
        lo = special_narrow(v, lo, hi, depth, b);
        hi = special_narrow(v, lo, hi, depth, b + 1U);
    }

    return best;
}

/* The id under tokenizer.ggml.NAME_token_id, or else of the text; -1: neither. */
static int get_id(const struct vocab *v, const struct gguf *g, const char *name, const char *text,
                  tok_t *ret, struct why *why) {
    char key[64];
    int64_t id;
    int r;

    (void)snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", name);
    r = gguf_get_int(g, key, 0, (int64_t)v->n - 1, &id, why);
    if (r == GGUF_BAD)
        return VOCAB_BAD;
    if (r < 0)
        return err_up(r);
    *ret = r == 0 ? (tok_t)id : text ? vocab_find(v, text, strlen(text)) : -1;

    return 0;
}

static void add_end(struct vocab *v, tok_t id) {
    size_t n;
    const char *s;

    if (id < 0 || vocab_is_end(v, id))
        return;
    s = sym_text(v, (uint32_t)id, &n);
    if (v->type[id] == VOCAB_NORMAL && n == 4 && memcmp(s, "</s>", 4) == 0)
        return; /* some files name it, but here it closes the HTML element */
    v->end[v->n_end++] = id;
}

static int load_ids(struct vocab *v, const struct gguf *g, struct why *why) {
    static const char suppress[] = "tokenizer.ggml.suppress_tokens";
    tok_t eot = -1, other;
    int r;

    for (int i = 0; i < VOCAB_N_MARK; i++)
        v->mark[i] = reserve(v, mark_text[i]);
    (void)reserve(v, "<bos>");
    add_end(v, reserve(v, "<eos>"));
    add_end(v, v->mark[VOCAB_TURN_END]);
    add_end(v, v->mark[VOCAB_TOOL_RESPONSE]);

    if ((r = get_id(v, g, "bos", "<bos>", &v->bos, why)) ||
        (r = get_id(v, g, "eos", "<eos>", &v->eos, why)) ||
        (r = get_id(v, g, "unknown", "<unk>", &v->unknown, why)) ||
        (r = get_id(v, g, "eot", NULL, &eot, why)) ||
        (r = get_id(v, g, "padding", NULL, &other, why)) ||
        (r = get_id(v, g, "mask", NULL, &other, why)))
        return err_up(r);
    add_end(v, v->eos);
    add_end(v, eot);

    r = gguf_get_ints(g, suppress, 0, (int32_t)v->n - 1, &v->suppressed, &v->n_suppressed, why);
    if (r == GGUF_ABSENT)
        v->n_suppressed = 0;
    return r == GGUF_BAD ? VOCAB_BAD : r < 0 ? err_up(r) : 0;
}

/* ---- the whole ---- */

static int check_model(const struct gguf *g, struct why *why) {
    static const char key[] = "tokenizer.ggml.model";
    char name[32] = "";
    const char *s;
    size_t n;
    int r;

    r = gguf_get_str(g, key, &s, &n, why);
    if (r == GGUF_ABSENT)
        return why_set(why, VOCAB_BAD, "%s: missing", key);
    if (r)
        return r < 0 ? err_up(r) : VOCAB_BAD;
    if (n == 6 && memcmp(s, "gemma4", 6) == 0)
        return 0;
    for (size_t i = 0; i < n && i + 1 < sizeof name; i++)
        name[i] = s[i] > ' ' && s[i] < 127 ? s[i] : '?'; /* the sentence stays text */

    return why_set(why, VOCAB_BAD, "%s: \"%s\" is not supported, only \"gemma4\" is", key, name);
}

int vocab_new(struct vocab **ret_vocab, const struct gguf *g, struct why *why) {
    AUTO(vocab_free) struct vocab *v = NULL;
    int r;

    v = calloc(1, sizeof *v);
    if (!v)
        return err_new(-ENOMEM);

    if ((r = check_model(g, why)) || (r = load_texts(v, g, why)) || (r = load_types(v, g, why)) ||
        (r = load_ids(v, g, why)) || (r = load_bytes(v, why)) || (r = load_pieces(v)) ||
        (r = load_specials(v)) || (r = load_merges(v, g, why)))
        return err_up(r);
    load_ascii(v);

    *ret_vocab = take(v);
    return 0;
}

struct vocab *vocab_free(struct vocab *v) {
    if (!v)
        return NULL;

    free(v->text);
    free(v->at);
    free(v->slot);
    free(v->type);
    free(v->piece);
    free(v->piece_at);
    free(v->merge);
    free(v->joins);
    free(v->special);
    free(v->suppressed);
    free(v);

    return NULL;
}

uint32_t vocab_n(const struct vocab *v) {
    return v->n;
}

const char *vocab_text(const struct vocab *v, tok_t id, size_t *ret_n) {
    return sym_text(v, (uint32_t)id, ret_n);
}

enum vocab_type vocab_type(const struct vocab *v, tok_t id) {
    return (enum vocab_type)v->type[id];
}

const char *vocab_piece(const struct vocab *v, tok_t id, bool special, size_t *ret_n) {
    if (special && v->type[id] != VOCAB_NORMAL && v->type[id] != VOCAB_BYTE)
        return sym_text(v, (uint32_t)id, ret_n);

    *ret_n = v->piece_at[id + 1] - v->piece_at[id];
    return v->piece + v->piece_at[id];
}

tok_t vocab_bos(const struct vocab *v) {
    return v->bos;
}

tok_t vocab_eos(const struct vocab *v) {
    return v->eos;
}

tok_t vocab_unknown(const struct vocab *v) {
    return v->unknown;
}

tok_t vocab_mark(const struct vocab *v, enum vocab_mark mark) {
    return v->mark[mark];
}

const char *vocab_mark_text(enum vocab_mark mark) {
    return mark_text[mark];
}

bool vocab_is_end(const struct vocab *v, tok_t id) {
    for (uint32_t i = 0; i < v->n_end; i++)
        if (v->end[i] == id)
            return true;

    return false;
}

const int32_t *vocab_suppressed(const struct vocab *v, size_t *ret_n) {
    *ret_n = v->n_suppressed;
    return v->suppressed;
}

tok_t vocab_byte(const struct vocab *v, uint8_t byte) {
    return v->byte[byte];
}
