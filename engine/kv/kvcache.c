/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

#include "engine/base/mem.h"
#include "engine/kv/kvcache.h"

/* Rings hold a multiple of this many rows, so that each begins at a multiple of 64 bytes. */
enum { ROW_STEP = 32 };

struct kv_layer {
    uint32_t n_kv_head, n_row, window;
    uint32_t stride;    /* bytes a row */
    uint64_t head_size; /* bytes of one head's ring */
    uint64_t k, v;      /* offsets in a sequence's share */
};

struct kv_seq {
    pos_t n;    /* positions held: 0 to n - 1 */
    pos_t high; /* positions that were ever reserved since the sequence was empty */
};

struct kvcache {
    enum quant_fmt fmt;
    uint32_t n_layer, n_ctx, n_batch, n_seq;
    uint64_t seq_size; /* bytes of one sequence */
    uint64_t n_byte;
    uint8_t *base;
    struct kv_seq *seq; /* [n_seq] */
    struct kv_layer layer[];
};

/* A sliding layer keeps what the oldest of n_batch new rows sees, while all of them are there. */
static uint64_t layer_rows(const struct kv_shape *shape, const struct kv_layer_shape *l) {
    uint64_t n = shape->n_ctx;

    if (l->window && (uint64_t)l->window + shape->n_batch - 1 < n)
        n = (uint64_t)l->window + shape->n_batch - 1;
    return (n + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
}

/* Lay out layer @i from byte @offset on; @ret may be NULL. Return: the end, UINT64_MAX: too big. */
static uint64_t layer_place(const struct kv_shape *shape, uint32_t i, uint64_t offset,
                            struct kv_layer *ret) {
    const struct kv_layer_shape *l = &shape->layer[i];
    uint64_t n_row = layer_rows(shape, l), stride, head_size, size, end;

    if (n_row > UINT32_MAX ||
        __builtin_mul_overflow((uint64_t)l->head_dim, shape->fmt == QUANT_F32 ? 4 : 2, &stride) ||
        stride > UINT32_MAX || __builtin_mul_overflow(n_row, stride, &head_size) ||
        __builtin_mul_overflow(head_size, l->n_kv_head, &size) ||
        __builtin_add_overflow(offset, size, &end) || __builtin_add_overflow(end, size, &end))
        return UINT64_MAX;

    if (ret)
        *ret = (struct kv_layer){
            .n_kv_head = l->n_kv_head,
            .n_row = (uint32_t)n_row,
            .window = l->window,
            .stride = (uint32_t)stride,
            .head_size = head_size,
            .k = offset,
            .v = offset + size,
        };
    return end;
}

/* Bytes of one sequence; UINT64_MAX: too big. @ret: [n_layer] or NULL */
static uint64_t seq_place(const struct kv_shape *shape, struct kv_layer *ret) {
    uint64_t end = 0;

    for (uint32_t i = 0; i < shape->n_layer && end != UINT64_MAX; i++)
        end = layer_place(shape, i, end, ret ? &ret[i] : NULL);
    return end;
}

uint64_t kvcache_size(const struct kv_shape *shape) {
    uint64_t size;

    if (__builtin_mul_overflow(seq_place(shape, NULL), shape->n_seq, &size) || size > PTRDIFF_MAX)
        return UINT64_MAX;
    return size;
}

int kvcache_new(struct kvcache **ret_kv, const struct kv_shape *shape) {
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    uint64_t size = kvcache_size(shape);
    void *p = NULL;
    int r;

    assert(shape->fmt == QUANT_F16 || shape->fmt == QUANT_F32);
    assert(shape->n_batch >= 1);
    if (size == UINT64_MAX)
        return err_new(-ENOMEM);
    if (size == 0)
        return err_new(-EINVAL);

    kv = calloc(1, sizeof *kv + shape->n_layer * sizeof kv->layer[0]);
    if (!kv)
        return err_new(-ENOMEM);
    kv->seq = calloc(shape->n_seq, sizeof *kv->seq);
    if (!kv->seq)
        return err_new(-ENOMEM);
    kv->fmt = shape->fmt;
    kv->n_layer = shape->n_layer;
    kv->n_ctx = shape->n_ctx;
    kv->n_batch = shape->n_batch;
    kv->n_seq = shape->n_seq;
    kv->seq_size = seq_place(shape, kv->layer);

    /* Small pages: every head's ring begins with its first row, and a huge page each would make a
     * short conversation pay for a long one. */
    r = mem_map(size, false, &p);
    if (r < 0)
        return err_up(r);
    kv->base = p;
    kv->n_byte = size;

    *ret_kv = take(kv);
    return 0;
}

struct kvcache *kvcache_free(struct kvcache *kv) {
    if (!kv)
        return NULL;
    mem_unmap(kv->base, kv->n_byte);
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

pos_t kvcache_n(const struct kvcache *kv, uint32_t seq) {
    assert(seq < kv->n_seq);
    return kv->seq[seq].n;
}

/* Does @l still hold what a query at position @n sees, after positions up to @high were written? */
static bool layer_holds(const struct kv_layer *l, pos_t n, pos_t high) {
    pos_t first = l->window && n >= l->window ? n - l->window + 1 : 0;

    return high <= l->n_row || first >= high - l->n_row;
}

int kvcache_truncate(struct kvcache *kv, uint32_t seq, pos_t n) {
    struct kv_seq *s = &kv->seq[seq];

    assert(seq < kv->n_seq);
    if (n >= s->n)
        return 0;
    if (n == 0) {
        *s = (struct kv_seq){ 0 };
        return 0;
    }
    for (uint32_t i = 0; i < kv->n_layer; i++)
        if (!layer_holds(&kv->layer[i], n, s->high))
            return KVCACHE_FULL;

    s->n = n;
    return 0;
}

int kvcache_reserve(struct kvcache *kv, uint32_t seq, uint32_t n) {
    struct kv_seq *s = &kv->seq[seq];

    assert(seq < kv->n_seq && n <= kv->n_batch);
    if (n > kv->n_ctx - s->n)
        return KVCACHE_FULL;

    s->n += n;
    if (s->high < s->n)
        s->high = s->n;
    return 0;
}

void kvcache_view(const struct kvcache *kv, uint32_t layer, uint32_t seq, uint32_t head,
                  struct kv_view *ret) {
    const struct kv_layer *l = &kv->layer[layer];
    uint8_t *base = kv->base + seq * kv->seq_size + head * l->head_size;

    assert(layer < kv->n_layer && seq < kv->n_seq && head < l->n_kv_head);
    *ret = (struct kv_view){
        .k = base + l->k,
        .v = base + l->v,
        .n_row = l->n_row,
        .stride = l->stride,
    };
}
