/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/base/utf8.h"
#include "engine/text/tok.h"

#define NONE UINT32_MAX

/* One piece of the stretch being merged. */
struct piece {
    tok_t id;            /* symbol; -1: no merge knows it */
    uint32_t at;         /* offset of its first byte in the stretch */
    uint32_t prev, next; /* neighbours, or NONE */
    int32_t rank;        /* of the merge with next; -1: none, or this piece is gone */
    tok_t joined;        /* what that merge makes */
};

struct bpe {
    const struct vocab *v;
    struct tok_list *out;
    struct piece *piece; /* [n <= n_alloc] */
    size_t n, n_alloc;
    uint64_t *heap; /* [n_heap <= 2 * n_alloc] smallest first: rank << 32 | index of left piece */
    size_t n_heap;
};

void tok_list_deinit(struct tok_list *l) {
    free(l->id);
    *l = (struct tok_list){ 0 };
}

int tok_list_push(struct tok_list *l, tok_t id) {
    if (l->n == l->n_alloc) {
        size_t n_alloc = l->n_alloc ? 2 * l->n_alloc : 64;
        tok_t *more = reallocarray(l->id, n_alloc, sizeof *more);

        if (!more)
            return err_new(-ENOMEM);
        l->id = more;
        l->n_alloc = n_alloc;
    }
    l->id[l->n++] = id;

    return 0;
}

/* ---- merging ---- */

static void heap_push(struct bpe *b, uint64_t key) {
    size_t i = b->n_heap++;

    for (size_t up; i && b->heap[up = (i - 1) / 2] > key; i = up)
        b->heap[i] = b->heap[up];
    b->heap[i] = key;
}

static uint64_t heap_pop(struct bpe *b) {
    uint64_t top = b->heap[0], key = b->heap[--b->n_heap];
    size_t i = 0;

    for (size_t down; (down = 2 * i + 1) < b->n_heap; i = down) {
        if (down + 1 < b->n_heap && b->heap[down + 1] < b->heap[down])
            down++;
        if (b->heap[down] >= key)
            break;
        b->heap[i] = b->heap[down];
    }
    b->heap[i] = key;

    return top;
}

/* Look up how piece @i merges with its neighbour, and queue that. */
static void pair(struct bpe *b, uint32_t i) {
    struct piece *p = &b->piece[i];

    p->rank = -1;
    if (p->next == NONE || p->id < 0 || b->piece[p->next].id < 0)
        return;
    p->rank = vocab_merge(b->v, p->id, b->piece[p->next].id, &p->joined);
    if (p->rank >= 0)
        heap_push(b, (uint64_t)p->rank << 32 | i);
}

/* The heap never holds more than 2n keys: n - 1 at first, and each of at most n - 1 merges takes
 * one out and puts at most two in. Keys that no longer hold are found by their rank: had the same
 * pair come up again at the same place, it would be merged just the same. */
static void merge(struct bpe *b) {
    b->n_heap = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        b->piece[i].prev = i ? i - 1 : NONE;
        b->piece[i].next = i + 1 < b->n ? i + 1 : NONE;
    }
    for (uint32_t i = 0; i < b->n; i++)
        pair(b, i);

    while (b->n_heap) {
        uint64_t key = heap_pop(b);
        uint32_t i = (uint32_t)key;
        struct piece *left = &b->piece[i], *right;

        if (left->rank != (int32_t)(key >> 32))
            continue;
        right = &b->piece[left->next];
        left->id = left->joined;
        left->next = right->next;
        right->rank = -1;
        if (left->next != NONE)
            b->piece[left->next].prev = i;
        pair(b, i);
        if (left->prev != NONE)
            pair(b, left->prev);
    }
}

/* The token of a symbol, or those of its @n bytes at @s where plain text has no such token. */
static int emit(struct bpe *b, tok_t symbol, const char *s, size_t n) {
    tok_t id = vocab_plain(b->v, symbol);
    int r;

    if (id >= 0)
        return tok_list_push(b->out, id);
    for (size_t i = 0; i < n; i++) {
        id = vocab_byte(b->v, (uint8_t)s[i]);
        if (id >= 0 && (r = tok_list_push(b->out, id)))
            return r;
    }

    return 0;
}

/* Merge and emit the stretch gathered, the @n bytes at @s. */
static int flush(struct bpe *b, const char *s, size_t n) {
    int r;

    if (b->n > 1)
        merge(b);
    for (uint32_t i = 0, next; b->n && i != NONE; i = next) {
        struct piece *p = &b->piece[i];
        size_t end;

        next = b->n > 1 ? p->next : NONE;
        end = next == NONE ? n : b->piece[next].at;
        r = emit(b, p->id, s + p->at, end - p->at);
        if (r)
            return r;
    }
    b->n = 0;

    return 0;
}

static int bpe_grow(struct bpe *b) {
    size_t n_alloc = b->n_alloc ? 2 * b->n_alloc : 256;
    struct piece *piece = reallocarray(b->piece, n_alloc, sizeof *piece);
    uint64_t *heap;

    if (!piece)
        return err_new(-ENOMEM);
    b->piece = piece;
    /* Empty between stretches: nothing to keep. */
    heap = reallocarray(NULL, n_alloc, 2 * sizeof *heap);
    if (!heap)
        return err_new(-ENOMEM);
    free(b->heap);
    b->heap = heap;
    b->n_alloc = n_alloc;

    return 0;
}

/* Merge a run of characters. It falls apart wherever no merge could join two neighbours: what is
 * merged at once is short, and the result is the same. */
static int encode_run(struct bpe *b, const char *s, size_t n) {
    size_t from = 0; /* of the stretch */
    uint8_t last = 0;
    int r;

    for (size_t i = 0, k; i < n; i += k) {
        k = utf8_len(s + i, n - i);
        if (!k)
            k = 1;
        if (b->n && !vocab_joins(b->v, last, s + i, k)) {
            r = flush(b, s + from, i - from);
            if (r)
                return r;
            from = i;
        }
        if (b->n == b->n_alloc && (r = bpe_grow(b)))
            return r;
        b->piece[b->n++] = (struct piece){
            .id = vocab_char(b->v, s + i, k),
            .at = (uint32_t)(i - from),
        };
        last = s[i] == ' ' ? 0x81 : (uint8_t)s[i + k - 1];
    }

    return flush(b, s + from, n - from);
}

/* Text without special tokens. Newlines are a run of their own, one token where there is one. */
static int encode_plain(struct bpe *b, const char *s, size_t n) {
    int r;

    for (size_t i = 0, k; i < n; i += k) {
        if (s[i] == '\n') {
            tok_t id;

            for (k = 1; i + k < n && s[i + k] == '\n';)
                k++;
            id = k <= VOCAB_TEXT_MAX ? vocab_plain(b->v, vocab_symbol(b->v, s + i, k)) : -1;
            r = id >= 0 ? tok_list_push(b->out, id) : encode_run(b, s + i, k);
        } else {
            const char *end = memchr(s + i, '\n', n - i);

            k = end ? (size_t)(end - s) - i : n - i;
            r = encode_run(b, s + i, k);
        }
        if (r)
            return r;
    }

    return 0;
}

static int encode(struct bpe *b, const char *s, size_t n, unsigned flags) {
    bool begun = false; /* <bos> is there */
    size_t from = 0;    /* of the plain text not yet encoded */
    int r;

    if (flags & TOK_BOS && vocab_bos(b->v) >= 0) {
        begun = true;
        r = tok_list_push(b->out, vocab_bos(b->v));
        if (r)
            return r;
    }
    for (size_t i = 0, k; flags & TOK_SPECIAL && i < n; i += k) {
        tok_t id = vocab_special(b->v, s + i, n - i, &k);

        if (id < 0) {
            k = 1;
            continue;
        }
        r = encode_plain(b, s + from, i - from);
        if (r)
            return r;
        from = i + k;
        if (begun && i == 0 && id == vocab_bos(b->v))
            continue; /* the text brings its own */
        r = tok_list_push(b->out, id);
        if (r)
            return r;
    }

    return encode_plain(b, s + from, n - from);
}

int tok_encode(const struct vocab *v, const char *text, size_t n, unsigned flags,
               struct tok_list *out) {
    struct bpe b = { .v = v, .out = out };
    size_t n_before = out->n;
    int r;

    r = n < UINT32_MAX ? encode(&b, n ? text : "", n, flags) : err_new(-ENOMEM);
    free(b.piece);
    free(b.heap);
    if (r)
        out->n = n_before;

    return err_up(r);
}

/* ---- decoding ---- */

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
enum { REPLACEMENT_SIZE = sizeof replacement - 1 };
_Static_assert((VOCAB_TEXT_MAX + 3) * REPLACEMENT_SIZE <= TOK_PIECE_MAX, "pieces fit");

/* Bytes at @s, 1 to 3, that began a character which then did not come. */
static size_t broken_size(const char *s, size_t n) {
    for (size_t k = n < 3 ? n : 3; k > 1; k--)
        if (utf8_partial(s, k) == k)
            return k;

    return 1;
}

size_t tok_decode(struct tok_decoder *d, const struct vocab *v, tok_t id, bool special, char *buf) {
    char in[VOCAB_TEXT_MAX + 3];
    size_t n, end, n_buf = 0, k;
    const char *piece = vocab_piece(v, id, special, &n);

    memcpy(in, d->held, d->n_held);
    memcpy(in + d->n_held, piece, n);
    n += d->n_held;
    end = n - utf8_partial(in, n);

    for (size_t i = 0; i < end; i += k) {
        k = utf8_len(in + i, end - i);
        if (k) {
            memcpy(buf + n_buf, in + i, k);
            n_buf += k;
        } else {
            k = broken_size(in + i, end - i);
            memcpy(buf + n_buf, replacement, REPLACEMENT_SIZE);
            n_buf += REPLACEMENT_SIZE;
        }
    }
    d->n_held = (uint32_t)(n - end);
    memcpy(d->held, in + end, n - end);

    return n_buf;
}

size_t tok_decode_end(struct tok_decoder *d, char *buf) {
    if (!d->n_held)
        return 0;
    d->n_held = 0;
    memcpy(buf, replacement, REPLACEMENT_SIZE);

    return REPLACEMENT_SIZE;
}
