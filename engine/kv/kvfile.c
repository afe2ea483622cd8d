/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/sum.h"
#include "engine/kv/kvfile.h"

_Static_assert(sizeof(struct kvfile_head) == 56, "the head has no gaps");

struct kvfile {
    int fd;
    bool load;
    struct kvfile_head head;
    struct kvfile_layer *layer; /* [n_layer] */
    int32_t *tok;               /* [n_tok] */
    uint8_t *piece;             /* one layer of one block, the largest */

    uint64_t at, sum;   /* done so far: bytes, and what they sum up to */
    uint32_t block, on; /* the piece that is next: its block and layer */
};

/* ---- sizes ---- */

static uint32_t n_block(const struct kvfile_head *h) {
    return h->n_tok / KV_BLOCK + (h->n_tok % KV_BLOCK != 0);
}

static size_t head_size(const struct kvfile *f, const struct kvfile_layer *l) {
    return kern_kv_size(f->head.fmt, l->key_dim) + kern_kv_size(f->head.fmt, l->value_dim);
}

static size_t piece_size(const struct kvfile *f, const struct kvfile_layer *l) {
    return l->n_kv_head * head_size(f, l);
}

/* Bytes of the whole file. No overflow: a block of all layers fits in the cache. */
static uint64_t file_size(const struct kvfile *f) {
    const struct kvfile_head *h = &f->head;
    uint64_t n = sizeof *h + h->n_layer * sizeof f->layer[0] + h->n_tok * sizeof *f->tok;

    for (uint32_t i = 0; i < h->n_layer; i++)
        n += (uint64_t)piece_size(f, &f->layer[i]) *
             (n_block(h) - (f->layer[i].sliding ? h->first : 0));
    return n + sizeof f->sum;
}

/* ---- birth and death ---- */

/* What a file of @n tokens must say, and room for it. */
static int file_new(struct kvfile **ret_file, int fd, const struct kvcache *kv,
                    const struct kvfile_id *id, pos_t n) {
    AUTO(kvfile_free) struct kvfile *f = calloc(1, sizeof *f);
    size_t most = 0;

    if (!f)
        return err_new(-ENOMEM);
    f->fd = fd;
    f->head = (struct kvfile_head){
        .magic = KVFILE_MAGIC,
        .version = KVFILE_VERSION,
        .n_block = KV_BLOCK,
        .model = id->model,
        .salt = id->salt,
        .fmt = kvcache_fmt(kv),
        .n_layer = kvcache_n_layer(kv),
        .window = kvcache_window(kv),
        .n_tok = n,
    };
    f->layer = calloc(f->head.n_layer, sizeof *f->layer);
    f->tok = calloc(n + 1, sizeof *f->tok);
    if (!f->layer || !f->tok)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < f->head.n_layer; i++) {
        struct kvfile_layer *l = &f->layer[i];

        *l = (struct kvfile_layer){ .n_kv_head = kvcache_n_kv_head(kv, i),
                                    .key_dim = kvcache_key_dim(kv, i),
                                    .value_dim = kvcache_value_dim(kv, i),
                                    .sliding = kvcache_slides(kv, i) };
        most = piece_size(f, l) > most ? piece_size(f, l) : most;
    }
    f->piece = malloc(most);
    if (!f->piece)
        return err_new(-ENOMEM);

    *ret_file = take(f);
    return 0;
}

struct kvfile *kvfile_free(struct kvfile *f) {
    if (!f)
        return NULL;
    free(f->layer);
    free(f->tok);
    free(f->piece);
    free(f);
    return NULL;
}

const int32_t *kvfile_tokens(const struct kvfile *f, pos_t *ret_n) {
    *ret_n = f->head.n_tok;
    return f->tok;
}

/* ---- bytes ---- */

/* The next @n bytes of the file, from or to @p. */
static int next(struct kvfile *f, void *p, size_t n, struct why *why) {
    for (size_t done = 0; done < n;) {
        off_t at = (off_t)(f->at + done);
        ssize_t k = f->load ? pread(f->fd, (uint8_t *)p + done, n - done, at)
                            : pwrite(f->fd, (uint8_t *)p + done, n - done, at);

        if (k < 0 && errno != EINTR)
            return why_set(why, err_new(-errno), "kept keys and values: cannot %s: %m",
                           f->load ? "read" : "write");
        if (k == 0)
            return why_set(why, KVFILE_BAD, "kept keys and values: cut short at byte %jd",
                           (intmax_t)at);
        done += k > 0 ? (size_t)k : 0;
    }
    f->sum = sum_bytes(f->sum, p, n);
    f->at += n;
    return 0;
}

/* In tiles of keys, [4][n][16] of @size bytes each: positions from @from on become 0. */
static void wipe_tiles(uint8_t *p, size_t n, size_t size, uint32_t from) {
    for (uint32_t t = 0; t < KV_BLOCK / KERN_KV_TILE; t++) {
        uint32_t begin = t * KERN_KV_TILE, lane = from > begin ? from - begin : 0;

        for (size_t i = 0; i < n && lane < KERN_KV_TILE; i++)
            memset(p + ((t * n + i) * KERN_KV_TILE + lane) * size, 0, (KERN_KV_TILE - lane) * size);
    }
}

static void wipe_rows(uint8_t *p, size_t size, uint32_t from) {
    memset(p + from * size, 0, (KV_BLOCK - from) * size);
}

/* Positions of one head from @from on become 0: somebody else's may have been there. */
static void wipe(enum quant_fmt fmt, const struct kvfile_layer *l, uint8_t *key, uint32_t from) {
    uint8_t *value = key + kern_kv_size(fmt, l->key_dim);
    size_t size = fmt == QUANT_F32 ? 4 : 2;

    if (fmt != QUANT_Q8_0) {
        wipe_tiles(key, l->key_dim, size, from);
        wipe_rows(value, l->value_dim * size, from);
        return;
    }
    wipe_tiles(key, l->key_dim / 4, 4, from);
    wipe_tiles(key + (size_t)KV_BLOCK * l->key_dim, l->key_dim / 32, 2, from);
    wipe_rows(value, l->value_dim, from);
    wipe_rows(value + (size_t)KV_BLOCK * l->value_dim, l->value_dim / 32 * 2, from);
}

/* One layer of one block. */
static int piece(struct kvfile *f, struct kvcache *kv, uint32_t seq, struct why *why) {
    const struct kvfile_layer *l = &f->layer[f->on];
    uint8_t *at = kvcache_view(kv, f->on, seq, 0, f->block).key; /* heads lie side by side */
    size_t n = piece_size(f, l);
    uint32_t from = f->head.n_tok - f->block * KV_BLOCK;

    if (f->load || from >= KV_BLOCK)
        return next(f, at, n, why);
    memcpy(f->piece, at, n);
    for (uint32_t h = 0; h < l->n_kv_head; h++)
        wipe(f->head.fmt, l, f->piece + h * head_size(f, l), from);
    return next(f, f->piece, n, why);
}

/* ---- head ---- */

static int all_heads(struct kvfile *f, struct why *why) {
    int r = next(f, &f->head, sizeof f->head, why);

    if (r == 0)
        r = next(f, f->layer, f->head.n_layer * sizeof *f->layer, why);
    return r == 0 ? next(f, f->tok, f->head.n_tok * sizeof *f->tok, why) : r;
}

/* Is @h what a file of @kv, @want, would say? Its number of tokens and first block are its own. */
static int check(const struct kvfile_head *h, const struct kvfile_head *want,
                 const struct kvcache *kv, struct why *why) {
    const char *what = memcmp(h->magic, want->magic, sizeof h->magic) != 0 ? "magic"
                       : h->version != want->version                       ? "version"
                       : h->model != want->model                           ? "model"
                       : h->salt != want->salt                             ? "owner"
                       : h->n_block != want->n_block || h->fmt != want->fmt ||
                               h->n_layer != want->n_layer || h->window != want->window
                           ? "layout"
                           : NULL;
    pos_t seen;

    if (what)
        return why_set(why, KVFILE_BAD, "kept keys and values: of another %s", what);
    if (h->n_tok == 0 || h->n_tok > kvcache_n_ctx(kv))
        return why_set(why, KVFILE_BAD,
                       "kept keys and values: %" PRIu32 " tokens; 1 to %" PRIu32 " fit the context",
                       h->n_tok, kvcache_n_ctx(kv));
    seen = h->window && h->n_tok >= h->window ? h->n_tok - h->window + 1 : 0;
    if (h->first > seen / KV_BLOCK)
        return why_set(why, KVFILE_BAD,
                       "kept keys and values: they begin at block %" PRIu32 ", and block %" PRIu32
                       " is seen",
                       h->first, seen / KV_BLOCK);
    return 0;
}

int kvfile_save(struct kvfile **ret_file, int fd, const struct kvcache *kv,
                const struct kvfile_id *id, const int32_t *tok, pos_t n) {
    struct kvfile *f = NULL;
    int r = file_new(&f, fd, kv, id, n);

    if (r < 0)
        return err_up(r);
    memcpy(f->tok, tok, n * sizeof *tok);
    *ret_file = f;
    return 0;
}

int kvfile_load(struct kvfile **ret_file, int fd, const struct kvcache *kv,
                const struct kvfile_id *id, struct why *why) {
    AUTO(kvfile_free) struct kvfile *f = NULL;
    AUTO(free) struct kvfile_layer *want = NULL;
    struct kvfile probe = { .fd = fd, .load = true };
    struct stat st;
    int r;

    if (fstat(fd, &st) < 0)
        return why_set(why, err_new(-errno), "kept keys and values: cannot read: %m");
    if (!S_ISREG(st.st_mode))
        return why_set(why, KVFILE_BAD, "kept keys and values: no regular file");
    r = next(&probe, &probe.head, sizeof probe.head, why);
    if (r == 0)
        r = file_new(&f, fd, kv, id, 0);
    if (r == 0)
        r = check(&probe.head, &f->head, kv, why);
    if (r != 0)
        return err_up(r);

    f->load = true;
    f->head = probe.head;
    if ((uint64_t)st.st_size != file_size(f))
        return why_set(why, KVFILE_BAD, "kept keys and values: %jd bytes, %" PRIu64 " are expected",
                       (intmax_t)st.st_size, file_size(f));
    free(f->tok);
    f->tok = calloc(f->head.n_tok, sizeof *f->tok);
    want = f->layer;
    f->layer = calloc(f->head.n_layer, sizeof *f->layer);
    if (!f->tok || !f->layer)
        return why_set(why, err_new(-ENOMEM), "out of memory");
    r = all_heads(f, why);
    if (r != 0)
        return err_up(r);
    if (memcmp(f->layer, want, f->head.n_layer * sizeof *want) != 0)
        return why_set(why, KVFILE_BAD, "kept keys and values: of another layout");

    *ret_file = take(f);
    return 0;
}

/* ---- keys and values ---- */

int kvfile_place(const struct kvfile *f, struct kvcache *kv, uint32_t *ret_seq) {
    assert(f->load);
    return kvcache_seq_blank(kv, f->head.n_tok, f->head.first, ret_seq);
}

/* The sum at the end. */
static int finish(struct kvfile *f, struct why *why) {
    uint64_t sum = f->sum, said = sum;
    int r = next(f, &said, sizeof said, why);

    if (r == 0 && said != sum)
        return why_set(why, KVFILE_BAD, "kept keys and values: damaged");
    return err_up(r);
}

int kvfile_go(struct kvfile *f, struct kvcache *kv, uint32_t seq, size_t n_byte, struct why *why) {
    uint64_t begin = f->at;
    int r = 0;

    if (f->at == 0) {
        f->head.first = kvcache_first(kv, seq);
        r = all_heads(f, why);
    }
    for (; r == 0 && f->block < n_block(&f->head); f->on = 0, f->block++)
        for (; r == 0 && f->on < f->head.n_layer; f->on++) {
            if (f->layer[f->on].sliding && f->block < f->head.first)
                continue;
            if (f->at - begin >= n_byte)
                return KVFILE_MORE;
            r = piece(f, kv, seq, why);
        }
    return r == 0 ? finish(f, why) : err_up(r);
}
