/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/base/mem.h"
#include "engine/kv/kvcache.h"

enum {
    FULL,
    SLIDING,
    N_KIND,

    PAGE = 4096,
};

#define NO_BLOCK UINT32_MAX

struct kv_layer {
    int kind;
    uint32_t n_kv_head, key_dim, value_dim;
    uint64_t at;        /* bytes from the block's begin */
    uint64_t key_size;  /* bytes of one head's keys */
    uint64_t head_size; /* and with its values */
};

struct kv_block {
    uint32_t n_ref, n_keep; /* sequences that hold it, and those of them that are kept */
    uint32_t fill; /* rows written by whoever wrote last; only at its end may one go on in place */
};

/* All blocks of one kind. A free block is hot when it may cost memory. */
struct kv_pool {
    uint64_t size; /* bytes a block, 0: no layer of this kind */
    uint32_t n_block, n_hot, n_cold;
    uint8_t *base;          /* [n_block][size] */
    struct kv_block *block; /* [n_block] */
    uint32_t *hot, *cold;   /* [n_block], stacks */
};

struct kv_seq {
    bool open, keep;
    pos_t n;                 /* positions held: 0 to n - 1 */
    uint32_t first;          /* sliding blocks before this one were let go */
    uint32_t *table[N_KIND]; /* [n_table]; entries of blocks that are not held mean nothing */
};

struct kvcache {
    enum quant_fmt fmt;
    uint32_t n_layer, n_ctx, n_batch, n_back, n_seq;
    uint32_t n_table; /* blocks of a full sequence */
    uint32_t window;  /* widest of the sliding layers; 0: there is none */
    uint64_t n_byte, n_used, n_kept, n_touched;
    struct kv_pool pool[N_KIND];
    struct kv_seq *seq; /* [n_seq] */
    uint32_t *table;    /* [n_seq][N_KIND][n_table] */
    struct kv_layer layer[];
};

static uint32_t blocks(uint64_t n) {
    return (uint32_t)((n + KV_BLOCK - 1) / KV_BLOCK);
}

static uint32_t padded(uint32_t dim) {
    return (dim + KERN_KV_DIM - 1) / KERN_KV_DIM * KERN_KV_DIM;
}

/* ---- sizes ---- */

/* What a shape comes to. */
struct kv_sizes {
    uint64_t block[N_KIND];
    uint32_t window, n_back;
};

/* Lay out layer @l from byte @at of a block on. Return: the end, UINT64_MAX: too big. */
static uint64_t layer_place(enum quant_fmt fmt, const struct kv_layer_shape *l, uint64_t at,
                            struct kv_layer *ret) {
    uint64_t key, head, size, end;

    if (l->head_dim > UINT32_MAX / 1024 || l->n_key > l->head_dim)
        return UINT64_MAX;
    key = kern_kv_size(fmt, padded(l->n_key));
    head = key + kern_kv_size(fmt, padded(l->head_dim));
    if (__builtin_mul_overflow(head, l->n_kv_head, &size) ||
        __builtin_add_overflow(at, size, &end) || end > PTRDIFF_MAX)
        return UINT64_MAX;
    if (ret)
        *ret = (struct kv_layer){
            .kind = l->window ? SLIDING : FULL,
            .n_kv_head = l->n_kv_head,
            .key_dim = padded(l->n_key),
            .value_dim = padded(l->head_dim),
            .at = at,
            .key_size = key,
            .head_size = head,
        };
    return end;
}

/* @layer: [n_layer] or NULL. Return: does it fit? */
static bool shape_sizes(const struct kv_shape *shape, struct kv_layer *layer,
                        struct kv_sizes *ret) {
    *ret = (struct kv_sizes){ .n_back = shape->n_back ? shape->n_back : KV_BLOCK };
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        const struct kv_layer_shape *l = &shape->layer[i];
        uint64_t *size = &ret->block[l->window ? SLIDING : FULL];

        *size = layer_place(shape->fmt, l, *size, layer ? &layer[i] : NULL);
        if (*size == UINT64_MAX)
            return false;
        ret->window = l->window > ret->window ? l->window : ret->window;
    }
    for (int k = 0; k < N_KIND; k++) /* whole pages, so that each can be given back */
        ret->block[k] = (ret->block[k] + PAGE - 1) / PAGE * PAGE;
    return true;
}

/* Sliding blocks of a sequence at most: what the rows of a step and those that were taken back
 * before it see lies anywhere relative to the blocks' bounds. */
static uint64_t sliding_max(uint32_t window, uint32_t n_back, uint32_t n_batch) {
    uint64_t n = (uint64_t)window + n_back + n_batch - 1;

    return (n + KV_BLOCK - 2) / KV_BLOCK + 1;
}

/* Return: bytes, UINT64_MAX: too big. */
static uint64_t need(const struct kv_sizes *s, uint32_t n_batch, pos_t n) {
    uint64_t full = blocks(n), sliding = s->window ? sliding_max(s->window, s->n_back, n_batch) : 0;
    uint64_t a, b;

    sliding = sliding < full ? sliding : full;
    if (__builtin_mul_overflow(full, s->block[FULL], &a) ||
        __builtin_mul_overflow(sliding, s->block[SLIDING], &b) || __builtin_add_overflow(a, b, &a))
        return UINT64_MAX;
    return a;
}

uint64_t kvcache_size(const struct kv_shape *shape) {
    struct kv_sizes s;
    uint64_t size;

    if (!shape_sizes(shape, NULL, &s))
        return UINT64_MAX;
    if (__builtin_mul_overflow(need(&s, shape->n_batch, shape->n_ctx), shape->n_seq, &size) ||
        size > PTRDIFF_MAX)
        size = UINT64_MAX;
    if (shape->n_byte && shape->n_byte < size)
        size = shape->n_byte;
    return size <= PTRDIFF_MAX ? size : UINT64_MAX;
}

uint64_t kvcache_need(const struct kvcache *kv, pos_t n) {
    struct kv_sizes s = { .block = { kv->pool[FULL].size, kv->pool[SLIDING].size },
                          .window = kv->window,
                          .n_back = kv->n_back };

    return need(&s, kv->n_batch, n);
}

/* ---- birth and death ---- */

/* Address space for the whole capacity in blocks of one kind. */
static int pool_init(struct kv_pool *p, uint64_t size, uint64_t n_byte) {
    void *base = NULL;
    int r;

    if (size == 0)
        return 0;
    p->size = size;
    if (n_byte / size > NO_BLOCK - 1)
        return err_new(-ENOMEM);
    p->n_block = p->n_cold = (uint32_t)(n_byte / size);
    if (p->n_block == 0)
        return err_new(-EINVAL);

    p->block = calloc(p->n_block, sizeof *p->block);
    p->hot = calloc(p->n_block, sizeof *p->hot);
    p->cold = calloc(p->n_block, sizeof *p->cold);
    if (!p->block || !p->hot || !p->cold)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < p->n_block; i++)
        p->cold[i] = p->n_block - 1 - i;

    r = mem_map(p->n_block * size, size >= MEM_HUGE / 4, &base);
    if (r < 0)
        return err_up(r);
    p->base = base;
    return 0;
}

int kvcache_new(struct kvcache **ret_kv, const struct kv_shape *shape) {
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    uint64_t size = kvcache_size(shape);
    struct kv_sizes s;

    assert(kern_kv_fmt(shape->fmt) && shape->n_batch >= 1);
    if (size == UINT64_MAX)
        return err_new(-ENOMEM);
    if (size == 0)
        return err_new(-EINVAL);

    kv = calloc(1, sizeof *kv + shape->n_layer * sizeof kv->layer[0]);
    if (!kv)
        return err_new(-ENOMEM);
    (void)shape_sizes(shape, kv->layer, &s); /* kvcache_size() found that it fits */
    kv->fmt = shape->fmt;
    kv->n_layer = shape->n_layer;
    kv->n_ctx = shape->n_ctx;
    kv->n_batch = shape->n_batch;
    kv->n_back = s.n_back;
    kv->n_seq = shape->n_seq + shape->n_keep;
    kv->window = s.window;
    kv->n_byte = size;
    kv->n_table = blocks(shape->n_ctx);
    kv->seq = calloc(kv->n_seq, sizeof *kv->seq);
    kv->table = calloc((size_t)kv->n_seq * N_KIND, kv->n_table * sizeof *kv->table);
    if (!kv->seq || !kv->table)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < kv->n_seq; i++)
        for (size_t k = 0; k < N_KIND; k++)
            kv->seq[i].table[k] = kv->table + ((size_t)i * N_KIND + k) * kv->n_table;
    if (s.block[FULL] + s.block[SLIDING] > size)
        return err_new(-EINVAL);
    for (int k = 0; k < N_KIND; k++) {
        int r = pool_init(&kv->pool[k], s.block[k], size);

        if (r < 0)
            return err_up(r);
    }

    *ret_kv = take(kv);
    return 0;
}

struct kvcache *kvcache_free(struct kvcache *kv) {
    if (!kv)
        return NULL;
    for (int k = 0; k < N_KIND; k++) {
        struct kv_pool *p = &kv->pool[k];

        mem_unmap(p->base, p->n_block * p->size);
        free(p->block);
        free(p->hot);
        free(p->cold);
    }
    free(kv->table);
    free(kv->seq);
    free(kv);
    return NULL;
}

enum quant_fmt kvcache_fmt(const struct kvcache *kv) {
    return kv->fmt;
}

uint64_t kvcache_n_byte(const struct kvcache *kv) {
    return kv->n_byte;
}

uint64_t kvcache_n_used(const struct kvcache *kv) {
    return kv->n_used;
}

uint64_t kvcache_n_kept(const struct kvcache *kv) {
    return kv->n_kept;
}

uint64_t kvcache_n_touched(const struct kvcache *kv) {
    return kv->n_touched;
}

/* ---- blocks ---- */

/* Give the memory of one free block of @kind back. */
static void block_cool(struct kvcache *kv, int kind) {
    struct kv_pool *p = &kv->pool[kind];
    uint32_t b = p->hot[--p->n_hot];

    (void)madvise(p->base + b * p->size, p->size, MADV_DONTNEED);
    p->cold[p->n_cold++] = b;
    kv->n_touched -= p->size;
}

void kvcache_trim(struct kvcache *kv) {
    for (int k = 0; k < N_KIND; k++)
        while (kv->pool[k].n_hot > 0)
            block_cool(kv, k);
}

/* A block with one reference. The caller saw that n_used leaves room. */
static uint32_t block_take(struct kvcache *kv, int kind) {
    struct kv_pool *p = &kv->pool[kind];
    int other = kind == FULL ? SLIDING : FULL;
    uint32_t b;

    if (p->n_hot > 0) {
        b = p->hot[--p->n_hot];
    } else {
        while (kv->n_touched + p->size > kv->n_byte)
            block_cool(kv, other); /* what is touched and not used is all of the other kind */
        b = p->cold[--p->n_cold];
        kv->n_touched += p->size;
    }
    kv->n_used += p->size;
    p->block[b] = (struct kv_block){ .n_ref = 1 };
    return b;
}

/* @n_ref sequences more or fewer hold @b, which somebody holds; @n_keep of them kept ones. */
static void block_count(struct kvcache *kv, int kind, uint32_t b, int n_ref, int n_keep) {
    struct kv_pool *p = &kv->pool[kind];
    struct kv_block *k = &p->block[b];

    kv->n_kept -= k->n_ref == k->n_keep ? p->size : 0;
    k->n_ref += (uint32_t)n_ref;
    k->n_keep += (uint32_t)n_keep;
    kv->n_kept += k->n_ref == k->n_keep && k->n_ref > 0 ? p->size : 0;
}

static void block_unref(struct kvcache *kv, int kind, uint32_t b, bool keep) {
    struct kv_pool *p = &kv->pool[kind];

    block_count(kv, kind, b, -1, keep ? -1 : 0);
    if (p->block[b].n_ref > 0)
        return;
    p->hot[p->n_hot++] = b;
    kv->n_used -= p->size;
}

/* The blocks of @kind that @s holds are those from this one on, up to blocks(s->n). */
static uint32_t seq_first(const struct kv_seq *s, int kind) {
    return kind == SLIDING ? s->first : 0;
}

/* Does @s write to its last block next, and must it have a copy of its own for that? */
static bool seq_must_copy(const struct kvcache *kv, const struct kv_seq *s, int kind) {
    const struct kv_block *b;

    if (kv->pool[kind].size == 0 || s->n % KV_BLOCK == 0)
        return false;
    b = &kv->pool[kind].block[s->table[kind][s->n / KV_BLOCK]];
    return b->n_ref > 1 && b->fill != s->n % KV_BLOCK;
}

/* Sliding blocks before the one returned are not seen by any row at @n - n_back or later. */
static uint32_t window_first(const struct kvcache *kv, pos_t n) {
    uint64_t behind = (uint64_t)kv->window + kv->n_back - 1;

    return n > behind ? (uint32_t)((n - behind) / KV_BLOCK) : 0;
}

/* ---- sequences ---- */

static struct kv_seq *seq_at(const struct kvcache *kv, uint32_t seq) {
    assert(seq < kv->n_seq && kv->seq[seq].open);
    return &kv->seq[seq];
}

int kvcache_seq_new(struct kvcache *kv, uint32_t *ret_seq) {
    for (uint32_t i = 0; i < kv->n_seq; i++)
        if (!kv->seq[i].open) {
            kv->seq[i].open = true;
            kv->seq[i].keep = false;
            kv->seq[i].n = kv->seq[i].first = 0;
            *ret_seq = i;
            return 0;
        }
    return KVCACHE_NO_SEQ;
}

void kvcache_seq_free(struct kvcache *kv, uint32_t seq) {
    (void)kvcache_truncate(kv, seq, 0); /* to nothing always works */
    kv->seq[seq].open = false;
}

pos_t kvcache_n(const struct kvcache *kv, uint32_t seq) {
    return seq_at(kv, seq)->n;
}

uint64_t kvcache_share(const struct kvcache *kv, uint32_t seq) {
    const struct kv_seq *s = seq_at(kv, seq);
    uint64_t size = 0;

    for (int k = 0; k < N_KIND; k++)
        for (uint32_t b = seq_first(s, k); kv->pool[k].size && b < blocks(s->n); b++)
            size += kv->pool[k].size / kv->pool[k].block[s->table[k][b]].n_ref;
    return size;
}

bool kvcache_holds(const struct kvcache *kv, uint32_t seq, pos_t n) {
    const struct kv_seq *s = seq_at(kv, seq);
    pos_t first = n >= kv->window ? n - kv->window + 1 : 0;

    return n == 0 || (n <= s->n && s->first <= first / KV_BLOCK);
}

int kvcache_truncate(struct kvcache *kv, uint32_t seq, pos_t n) {
    struct kv_seq *s = seq_at(kv, seq);

    if (n >= s->n)
        return 0;
    if (!kvcache_holds(kv, seq, n))
        return KVCACHE_GONE;

    for (int k = 0; k < N_KIND; k++) {
        uint32_t first = seq_first(s, k) > blocks(n) ? seq_first(s, k) : blocks(n);

        for (uint32_t b = first; kv->pool[k].size && b < blocks(s->n); b++)
            block_unref(kv, k, s->table[k][b], s->keep);
    }
    s->n = n;
    s->first = n ? s->first : 0;
    return 0;
}

int kvcache_fork(struct kvcache *kv, uint32_t from, pos_t n, uint32_t *ret_seq) {
    const struct kv_seq *f = seq_at(kv, from);
    struct kv_seq *s;
    int r;

    assert(n <= f->n);
    if (!kvcache_holds(kv, from, n))
        return KVCACHE_GONE;
    r = kvcache_seq_new(kv, ret_seq);
    if (r != 0)
        return r;

    s = &kv->seq[*ret_seq];
    s->n = n;
    if (n > 0 && kv->window)
        s->first = window_first(kv, n) > f->first ? window_first(kv, n) : f->first;
    for (int k = 0; k < N_KIND; k++)
        for (uint32_t b = seq_first(s, k); kv->pool[k].size && b < blocks(n); b++) {
            s->table[k][b] = f->table[k][b];
            block_count(kv, k, s->table[k][b], 1, 0);
        }
    return 0;
}

void kvcache_keep(struct kvcache *kv, uint32_t seq) {
    struct kv_seq *s = seq_at(kv, seq);

    assert(!s->keep);
    s->keep = true;
    for (int k = 0; k < N_KIND; k++)
        for (uint32_t b = seq_first(s, k); kv->pool[k].size && b < blocks(s->n); b++)
            block_count(kv, k, s->table[k][b], 0, 1);
}

/* The last block of @s, which others share, becomes one of its own. */
static void seq_copy_last(struct kvcache *kv, struct kv_seq *s, int kind) {
    struct kv_pool *p = &kv->pool[kind];
    uint32_t *entry = &s->table[kind][s->n / KV_BLOCK], old = *entry;

    *entry = block_take(kv, kind);
    memcpy(p->base + *entry * p->size, p->base + old * p->size, p->size);
    block_unref(kv, kind, old, false);
}

int kvcache_reserve(struct kvcache *kv, uint32_t seq, uint32_t n) {
    struct kv_seq *s = seq_at(kv, seq);
    uint32_t first = kv->window ? window_first(kv, s->n) : 0, end, old_end = blocks(s->n);
    uint64_t want = 0, back = 0;

    assert(n <= kv->n_batch && !s->keep);
    if (n > kv->n_ctx - s->n)
        return KVCACHE_FULL;
    if (n == 0)
        return 0;

    end = blocks((uint64_t)s->n + n);
    first = first > s->first ? first : s->first;
    for (int k = 0; k < N_KIND; k++)
        want += (end - old_end + seq_must_copy(kv, s, k)) * kv->pool[k].size;
    for (uint32_t b = s->first; b < first; b++)
        back +=
            kv->pool[SLIDING].block[s->table[SLIDING][b]].n_ref == 1 ? kv->pool[SLIDING].size : 0;
    if (kv->n_used - back + want > kv->n_byte)
        return KVCACHE_NO_ROOM;

    for (; s->first < first; s->first++)
        block_unref(kv, SLIDING, s->table[SLIDING][s->first], false);
    for (int k = 0; k < N_KIND; k++) {
        if (kv->pool[k].size == 0)
            continue;
        if (seq_must_copy(kv, s, k))
            seq_copy_last(kv, s, k);
        for (uint32_t b = old_end; b < end; b++)
            s->table[k][b] = block_take(kv, k);
        for (uint32_t b = s->n / KV_BLOCK; b < end; b++)
            kv->pool[k].block[s->table[k][b]].fill =
                b < end - 1 ? KV_BLOCK : (s->n + n - 1) % KV_BLOCK + 1;
    }
    s->n += n;
    return 0;
}

/* ---- rows ---- */

struct kv_view kvcache_view(const struct kvcache *kv, uint32_t layer, uint32_t seq, uint32_t head,
                            uint32_t block) {
    const struct kv_layer *l = &kv->layer[layer];
    const struct kv_pool *p = &kv->pool[l->kind];
    const struct kv_seq *s = &kv->seq[seq];
    uint8_t *at;

    assert(layer < kv->n_layer && seq < kv->n_seq && head < l->n_kv_head);
    assert(block < blocks(s->n) && block >= seq_first(s, l->kind));
    at = p->base + s->table[l->kind][block] * p->size + l->at + head * l->head_size;
    return (struct kv_view){ .key = at, .value = at + l->key_size };
}

uint32_t kvcache_key_dim(const struct kvcache *kv, uint32_t layer) {
    return kv->layer[layer].key_dim;
}

uint32_t kvcache_value_dim(const struct kvcache *kv, uint32_t layer) {
    return kv->layer[layer].value_dim;
}

/* ---- whole sequences ---- */

uint32_t kvcache_n_layer(const struct kvcache *kv) {
    return kv->n_layer;
}

uint32_t kvcache_n_kv_head(const struct kvcache *kv, uint32_t layer) {
    return kv->layer[layer].n_kv_head;
}

bool kvcache_slides(const struct kvcache *kv, uint32_t layer) {
    return kv->layer[layer].kind == SLIDING;
}

uint32_t kvcache_window(const struct kvcache *kv) {
    return kv->window;
}

pos_t kvcache_n_ctx(const struct kvcache *kv) {
    return kv->n_ctx;
}

uint32_t kvcache_first(const struct kvcache *kv, uint32_t seq) {
    return seq_at(kv, seq)->first;
}

int kvcache_seq_blank(struct kvcache *kv, pos_t n, uint32_t first, uint32_t *ret_seq) {
    uint32_t end = blocks(n);
    uint64_t want = end * kv->pool[FULL].size + (end - first) * kv->pool[SLIDING].size;
    struct kv_seq *s;
    int r;

    assert(n <= kv->n_ctx && (n == 0 || first < end));
    if (kv->n_used + want > kv->n_byte)
        return KVCACHE_NO_ROOM;
    r = kvcache_seq_new(kv, ret_seq);
    if (r != 0)
        return r;

    s = &kv->seq[*ret_seq];
    s->n = n;
    s->first = first;
    for (int k = 0; k < N_KIND; k++)
        for (uint32_t b = seq_first(s, k); kv->pool[k].size && b < end; b++) {
            s->table[k][b] = block_take(kv, k);
            kv->pool[k].block[s->table[k][b]].fill =
                b < end - 1 ? KV_BLOCK : (n - 1) % KV_BLOCK + 1;
        }
    return 0;
}

/* ---- is it sound? ---- */

/* Count references of @kind afresh, of all and of kept sequences, into @count [n_block].
 * Return: do tables point to blocks? */
static bool sound_tables(const struct kvcache *kv, int kind, struct kv_block *count) {
    const struct kv_pool *p = &kv->pool[kind];

    for (uint32_t i = 0; i < kv->n_seq; i++) {
        const struct kv_seq *s = &kv->seq[i];

        if (!s->open)
            continue;
        if (s->n > kv->n_ctx || (s->n && s->first >= blocks(s->n)))
            return false;
        for (uint32_t b = seq_first(s, kind); b < blocks(s->n); b++) {
            if (s->table[kind][b] >= p->n_block)
                return false;
            count[s->table[kind][b]].n_ref++;
            count[s->table[kind][b]].n_keep += s->keep;
        }
    }
    return true;
}

/* Is every free block of @p in one of the stacks, once? @count as above; changed. */
static bool sound_free(const struct kv_pool *p, struct kv_block *count) {
    uint32_t n_free = 0;
    bool fine = true;

    for (uint32_t b = 0; b < p->n_block; b++)
        n_free += count[b].n_ref == 0;
    for (uint32_t i = 0; i < p->n_hot + p->n_cold && fine; i++)
        fine = count[i < p->n_hot ? p->hot[i] : p->cold[i - p->n_hot]].n_ref++ == 0;
    return fine && n_free == p->n_hot + p->n_cold;
}

bool kvcache_sound(const struct kvcache *kv) {
    uint64_t used = 0, kept = 0, touched = 0;
    bool fine = true;

    for (int k = 0; k < N_KIND && fine; k++) {
        const struct kv_pool *p = &kv->pool[k];
        struct kv_block *count = calloc(p->n_block + 1, sizeof *count);

        fine = count && (p->size == 0 || sound_tables(kv, k, count));
        for (uint32_t b = 0; b < p->n_block && fine; b++) {
            fine = count[b].n_ref == p->block[b].n_ref && p->block[b].fill <= KV_BLOCK &&
                   (count[b].n_ref == 0 || count[b].n_keep == p->block[b].n_keep);
            used += count[b].n_ref ? p->size : 0;
            kept += count[b].n_ref && count[b].n_ref == count[b].n_keep ? p->size : 0;
        }
        fine = fine && sound_free(p, count);
        touched += (uint64_t)(p->n_block - p->n_cold) * p->size;
        free(count);
    }
    return fine && used == kv->n_used && kept == kv->n_kept && touched == kv->n_touched &&
           touched <= kv->n_byte;
}
