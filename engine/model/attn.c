/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/attn.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "engine/model/model.h"

enum {
    QUERIES = 64, /* taken together: their outputs and a block fit the L2 cache */
    CONVERT = 16, /* queries from which on values may be made F32 once */
    SPAN = 16,    /* blocks of a span at least */
    ITEMS = 4,    /* items a worker wanted */

    NO_PART = UINT32_MAX,
};

/* Rows of one sequence that follow each other. */
struct attn_rows {
    uint32_t row, n;
};

/* @n rows of one run, and the spans they see that begin in blocks [begin, end). */
struct attn_item {
    uint32_t row, n, begin, end;
    uint32_t part; /* where the first span's outputs go; NO_PART: to the result */
};

struct attn_worker {
    float *head;    /* [2][head_dim] a key and a value */
    float *key_q;   /* [queries][dim] what meets the keys that are kept */
    float *value_q; /* [queries][dim] what meets the values */
    int8_t *code;   /* [queries][dim rounded up], .d and .s: .key_q, quantised */
    float *d;
    int16_t *s;
    float *score;                   /* [queries][KV_BLOCK] */
    float *keep;                    /* [queries] */
    float *out, *total;             /* [queries][dim] of a span, of all */
    struct kern_mass *mass, *whole; /* [queries] of a span, of all */
    float *key;                     /* [dim] a key as it is kept */
    float *value;                   /* [KV_BLOCK][dim] a block as F32 */
};

static uint32_t round_up(uint32_t n, uint32_t to) {
    return (n + to - 1) / to * to;
}

/* Blocks a span has around block @b: longer ones far out, so that their number stays small. Each
 * begins at a multiple of its length. */
static uint32_t span_length(uint32_t b) {
    return b < 2 * SPAN * SPAN ? SPAN : (1u << (31 - __builtin_clz(b))) / SPAN;
}

static uint32_t span_begin(uint32_t b) {
    return b - b % span_length(b);
}

static uint32_t span_end(uint32_t b) {
    return span_begin(b) + span_length(b);
}

/* Spans that blocks [begin, end) are in. */
static uint32_t span_count(uint32_t begin, uint32_t end) {
    uint32_t n = 0;

    for (uint32_t b = begin; b < end; b = span_end(b))
        n++;
    return n;
}

/* ---- memory ---- */

void attn_turn_init(struct attn_turn *t, const double *freq, uint32_t dim, struct arena *a) {
    const double slow = 1e-9 / (1u << 24); /* rad a position: below a float's last bit anywhere */
    uint32_t n = 0, half = dim / 2;

    *t = (struct attn_turn){ .dim = dim, .order = arena_alloc(a, dim, sizeof *t->order) };
    if (!a->base || !t->order)
        return;
    for (int turned = 0; turned < 2; turned++) {
        for (uint32_t i = 0; i < dim; i++)
            if ((freq[i % half] > slow) == turned)
                t->order[n++] = i;
        if (!turned)
            t->n_plain = n;
    }
}

static void worker_init(struct attn_worker *w, uint32_t n, uint32_t dim, struct arena *a) {
    uint32_t wide = round_up(dim, KERN_BLOCK);

    w->head = arena_alloc(a, 2, dim * sizeof(float));
    w->key_q = arena_alloc(a, n, dim * sizeof(float));
    w->value_q = arena_alloc(a, n, dim * sizeof(float));
    w->code = arena_alloc(a, n, wide);
    w->d = arena_alloc(a, n, wide / KERN_Q8_BLOCK * sizeof(float));
    w->s = arena_alloc(a, n, wide / KERN_Q8_SUM * sizeof(int16_t));
    w->score = arena_alloc(a, n, KV_BLOCK * sizeof(float));
    w->keep = arena_alloc(a, n, sizeof(float));
    w->out = arena_alloc(a, n, dim * sizeof(float));
    w->total = arena_alloc(a, n, dim * sizeof(float));
    w->mass = arena_alloc(a, n, sizeof *w->mass);
    w->whole = arena_alloc(a, n, sizeof *w->whole);
    w->key = arena_alloc(a, dim, sizeof(float));
    w->value = arena_alloc(a, KV_BLOCK, dim * sizeof(float));
}

void attn_init(struct attn *at, struct ops *ops, const struct attn_limits *max, struct arena *a) {
    uint32_t dim = round_up(max->head_dim, KERN_KV_DIM);
    uint32_t n_span = span_count(0, max->n_ctx / KV_BLOCK + 1);

    *at = (struct attn){ .ops = ops, .n_batch = max->n_batch, .part_dim = dim };
    at->n_query_max = max->n_group > QUERIES ? max->n_group : QUERIES;
    at->worker = arena_alloc(a, ops->n_worker, sizeof *at->worker);
    for (uint32_t i = 0; i < ops->n_worker; i++) {
        struct attn_worker measured, *w = a->base ? &at->worker[i] : &measured;

        worker_init(w, at->n_query_max, dim, a);
    }
    at->run = arena_alloc(a, max->n_batch, sizeof *at->run);
    /* rows, each alone, and the spans of those that are split: see plan() */
    at->item = arena_alloc(a, max->n_batch + (size_t)2 * ops->n_worker * n_span, sizeof *at->item);
    at->n_part_max = 2 * ops->n_worker * n_span * max->n_group;
    at->part = arena_alloc(a, at->n_part_max, dim * sizeof(float));
    at->part_mass = arena_alloc(a, at->n_part_max, sizeof *at->part_mass);
    at->part_of = arena_alloc(a, max->n_batch, sizeof *at->part_of);
}

/* ---- rows ---- */

/* The key and the value of row @r, head @h. */
static void make_key_value(const struct attn *at, uint32_t r, uint32_t h, float *key,
                           float *value) {
    const struct attn_layer *l = at->l;
    const struct kern *k = at->ops->kern;
    uint32_t dim = l->head_dim;
    size_t row = ((size_t)r * l->n_kv_head + h) * dim;

    k->rmsnorm(l->v + row, NULL, l->eps, value, dim);
    k->rmsnorm(l->k + row, l->k_norm, l->eps, key, dim);
    k->rope(key, l->angle + (size_t)r * dim, dim);
}

/* x = x[order[0]], x[order[1]], ..., 0, 0 */
static void gather(const float *x, const uint32_t *order, uint32_t n, uint32_t padded, float *ret) {
    for (uint32_t i = 0; i < n; i++)
        ret[i] = x[order ? order[i] : i];
    memset(ret + n, 0, (padded - n) * sizeof *ret);
}

static void store(const struct attn *at, uint32_t r, uint32_t h, uint32_t worker) {
    const struct attn_layer *l = at->l;
    const struct attn_worker *w = &at->worker[worker];
    const struct kern_attn *ka = &at->ops->kern->attn[kvcache_fmt(at->kv)];
    const struct attn_turn *t = l->turn;
    uint32_t n_plain = t ? t->n_plain : 0, pos = at->row[r].pos;
    uint32_t key_dim = kvcache_key_dim(at->kv, l->layer);
    uint32_t value_dim = kvcache_value_dim(at->kv, l->layer);
    struct kv_view view = kvcache_view(at->kv, l->layer, at->row[r].seq, h, pos / KV_BLOCK);
    float *key = w->head, *value = w->head + l->head_dim;

    make_key_value(at, r, h, key, value);
    gather(key, t ? t->order + n_plain : NULL, l->head_dim - n_plain, key_dim, w->key);
    gather(value, t ? t->order : NULL, l->head_dim, value_dim, w->value);
    ka->put_key(w->key, key_dim, pos % KV_BLOCK, view.key);
    ka->put_value(w->value, value_dim, pos % KV_BLOCK, view.value);
}

/* Query @m of the tile: head @head of row @r, in the forms that meet keys and values. */
static void make_query(const struct attn *at, uint32_t r, uint32_t head, uint32_t m,
                       const struct attn_worker *w) {
    const struct attn_layer *l = at->l;
    const struct kern *k = at->ops->kern;
    const struct attn_turn *t = l->turn;
    uint32_t dim = l->head_dim, n_plain = t ? t->n_plain : 0;
    uint32_t key_dim = kvcache_key_dim(at->kv, l->layer), wide = round_up(key_dim, KERN_BLOCK);
    float *q = w->head, *ret = w->value_q + (size_t)m * at->part_dim;

    k->rmsnorm(l->q + ((size_t)r * l->n_head + head) * dim, l->q_norm, l->eps, q, dim);
    k->rope(q, l->angle + (size_t)r * dim, dim);
    gather(q, t ? t->order + n_plain : NULL, dim - n_plain, key_dim,
           w->key_q + (size_t)m * key_dim);
    if (kvcache_fmt(at->kv) == QUANT_Q8_0)
        k->quantize(w->key_q + (size_t)m * key_dim, key_dim, w->code + (size_t)m * wide,
                    w->d + m * (wide / KERN_Q8_BLOCK), w->s + m * (wide / KERN_Q8_SUM));
    for (uint32_t i = 0; i < n_plain; i++)
        ret[i] = q[t->order[i]] * l->k_norm[t->order[i]];
    for (uint32_t i = n_plain; i < round_up(n_plain, 16); i++)
        ret[i] = 0;
}

/* ---- blocks and spans ---- */

/* What one item works on. */
struct tile {
    const struct attn *at;
    const struct attn_worker *w;
    const struct attn_item *item;
    uint32_t head, n_group, n; /* n: queries */
    uint32_t key_dim, value_dim;
    struct kern_rows key_q, value_q;
};

/* First position that a row at @pos sees. */
static pos_t first_seen(const struct attn_layer *l, pos_t pos) {
    return l->window && pos >= l->window ? pos - l->window + 1 : 0;
}

/* Positions of block @b that row @r of the step sees: [*lo, *hi), counted in the block. */
static void seen(const struct attn *at, uint32_t r, uint32_t b, uint32_t *lo, uint32_t *hi) {
    uint64_t begin = (uint64_t)b * KV_BLOCK, pos = at->row[r].pos;
    uint64_t first = first_seen(at->l, at->row[r].pos);

    first = first > begin ? first - begin : 0;
    pos = pos + 1 > begin ? pos + 1 - begin : 0;
    *hi = pos < KV_BLOCK ? (uint32_t)pos : KV_BLOCK;
    *lo = first < *hi ? (uint32_t)first : *hi;
}

/* Scores of the tile's queries with block @b become weights. */
static void weigh(const struct tile *t, uint32_t b) {
    const struct kern *k = t->at->ops->kern;

    for (uint32_t i = 0; i < t->item->n; i++) {
        uint32_t lo, hi;

        seen(t->at, t->item->row + i, b, &lo, &hi);
        for (uint32_t m = i * t->n_group; m < (i + 1) * t->n_group; m++)
            k->weigh(t->w->score + (size_t)m * KV_BLOCK, lo, hi, &t->w->mass[m], &t->w->keep[m]);
    }
}

static void attend_block(const struct tile *t, uint32_t b, const void *next) {
    const struct attn *at = t->at;
    const struct attn_worker *w = t->w;
    enum quant_fmt fmt = kvcache_fmt(at->kv);
    const struct kern_attn *ka = &at->ops->kern->attn[fmt], *kv = ka;
    struct kv_view view = kvcache_view(at->kv, at->l->layer, at->row[t->item->row].seq, t->head, b);
    uint32_t first, last, unused;
    size_t n_key = kern_kv_size(fmt, t->key_dim), n_value = kern_kv_size(fmt, t->value_dim);
    const void *value = view.value;

    if (t->n >= CONVERT && ka->value_f32) {
        kv->value_f32(value, t->value_dim, w->value);
        value = w->value;
        kv = &at->ops->kern->attn[QUANT_F32];
        next = NULL;
    }
    ka->score(view.key, t->key_dim, &t->key_q, w->score, next ? value : NULL, n_value);
    if (t->at->l->turn)
        kv->score_value(value, t->value_dim, round_up(at->l->turn->n_plain, 16), &t->value_q,
                        w->score);
    weigh(t, b);
    seen(at, t->item->row, b, &first, &unused); /* the first row sees furthest back */
    seen(at, t->item->row + t->item->n - 1, b, &unused, &last);
    kv->mix(value, t->value_dim, first, last, w->score, w->keep, t->n, w->out, next, n_key);
}

/* Add a span to what earlier ones gave; the outputs of both are relative to their largest score. */
static void add_span(struct kern_mass *whole, float *total, const struct kern_mass *mass,
                     const float *out, uint32_t dim) {
    float max = whole->max > mass->max ? whole->max : mass->max, a, b;

    if (!(mass->sum > 0))
        return;
    if (!(whole->sum > 0)) {
        *whole = *mass;
        memcpy(total, out, dim * sizeof *total);
        return;
    }
    a = expf(whole->max - max);
    b = expf(mass->max - max);
    for (uint32_t i = 0; i < dim; i++)
        total[i] = total[i] * a + out[i] * b;
    *whole = (struct kern_mass){ .max = max, .sum = whole->sum * a + mass->sum * b };
}

/* total / sum, in the order the layer's output has, to head @head of row @r. */
static void finish(const struct attn *at, uint32_t r, uint32_t head, const struct kern_mass *whole,
                   const float *total) {
    const struct attn_layer *l = at->l;
    float *ret = ops_act_row(l->to, r) + (size_t)head * l->head_dim, scale = 1 / whole->sum;

    for (uint32_t i = 0; i < l->head_dim; i++)
        ret[l->turn ? l->turn->order[i] : i] = total[i] * scale;
}

static void masses_clear(struct kern_mass *mass, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        mass[i] = (struct kern_mass){ .max = -INFINITY };
}

/* Blocks [begin, end) of one span, to w->out and w->mass. */
static void attend_span(const struct tile *t, uint32_t begin, uint32_t end, uint32_t end_of_all) {
    const struct attn *at = t->at;

    masses_clear(t->w->mass, t->n);
    memset(t->w->out, 0, (size_t)t->n * t->value_dim * sizeof(float));
    for (uint32_t b = begin; b < end; b++) {
        uint32_t after = b + 1 < end_of_all ? b + 1 : b;
        struct kv_view next =
            kvcache_view(at->kv, at->l->layer, at->row[t->item->row].seq, t->head, after);

        attend_block(t, b, next.key);
    }
}

static void tile_init(struct tile *t, const struct attn *at, const struct attn_item *it,
                      uint32_t head, uint32_t worker) {
    const struct attn_layer *l = at->l;
    const struct attn_worker *w = &at->worker[worker];
    uint32_t n_group = l->n_head / l->n_kv_head, key_dim = kvcache_key_dim(at->kv, l->layer);

    *t = (struct tile){
        .at = at,
        .w = w,
        .item = it,
        .head = head,
        .n_group = n_group,
        .n = n_group * it->n,
        .key_dim = key_dim,
        .value_dim = kvcache_value_dim(at->kv, l->layer),
        .key_q = { .f = w->key_q,
                   .f_stride = key_dim,
                   .q = w->code,
                   .d = w->d,
                   .s = w->s,
                   .q_stride = round_up(key_dim, KERN_BLOCK) },
        .value_q = { .f = w->value_q, .f_stride = at->part_dim },
    };
    t->key_q.n_row = t->value_q.n_row = t->n;
    for (uint32_t m = 0; m < t->n; m++)
        make_query(at, it->row + m / n_group, head * n_group + m % n_group, m, w);
}

/* Item i % n_item for key head i / n_item: a head's blocks stay in cache for its next item. */
static void attend_item(void *arg, uint32_t i, uint32_t worker) {
    const struct attn *at = arg;
    const struct attn_layer *l = at->l;
    const struct attn_item *it = &at->item[i % at->n_item];
    const struct attn_worker *w = &at->worker[worker];
    uint32_t head = i / at->n_item, last = at->row[it->row + it->n - 1].pos / KV_BLOCK;
    struct tile t;

    if (at->alone && it->end > last)
        store(at, it->row, head, worker);
    tile_init(&t, at, it, head, worker);
    masses_clear(w->whole, t.n);
    for (uint32_t b = it->begin, end, part = 0; b < it->end; b = end, part++) {
        end = span_end(b) < it->end ? span_end(b) : it->end;
        attend_span(&t, b, end, it->end);
        if (it->part == NO_PART) {
            for (uint32_t m = 0; m < t.n; m++)
                add_span(&w->whole[m], w->total + (size_t)m * t.value_dim, &w->mass[m],
                         w->out + (size_t)m * t.value_dim, t.value_dim);
        } else {
            size_t to = it->part + ((size_t)part * l->n_kv_head + head) * t.n;

            memcpy(at->part + to * at->part_dim, w->out, (size_t)t.n * t.value_dim * sizeof(float));
            memcpy(at->part_mass + to, w->mass, t.n * sizeof *w->mass);
        }
    }
    for (uint32_t m = 0; m < t.n && it->part == NO_PART; m++)
        finish(at, it->row + m / t.n_group, head * t.n_group + m % t.n_group, &w->whole[m],
               w->total + (size_t)m * t.value_dim);
}

static void store_item(void *arg, uint32_t i, uint32_t worker) {
    const struct attn *at = arg;

    store(at, i / at->l->n_kv_head, i % at->l->n_kv_head, worker);
}

/* A row's spans, attended to by several workers, are added in order. Then the row is complete. */
static void complete_row(void *arg, uint32_t r, uint32_t worker) {
    const struct attn *at = arg;
    const struct attn_layer *l = at->l;
    const struct attn_worker *w = &at->worker[worker];
    uint32_t dim = kvcache_value_dim(at->kv, l->layer);
    uint32_t begin = first_seen(l, at->row[r].pos) / KV_BLOCK;
    uint32_t n_span = span_count(begin, at->row[r].pos / KV_BLOCK + 1);

    for (uint32_t h = 0; h < l->n_head && at->part_of[r] != NO_PART; h++) {
        masses_clear(w->whole, 1);
        for (uint32_t s = 0; s < n_span; s++) {
            size_t from = at->part_of[r] + ((size_t)s * l->n_head + h);

            add_span(w->whole, w->total, &at->part_mass[from], at->part + from * at->part_dim, dim);
        }
        finish(at, r, h, w->whole, w->total);
    }
    ops_act_done(at->ops, l->to, r);
}

/* ---- a step ---- */

void attn_begin(struct attn *at, struct kvcache *kv, const struct model_row *row, uint32_t n_row) {
    at->kv = kv;
    at->row = row;
    at->n_row = n_row;
    at->n_run = 0;
    for (uint32_t r = 0; r < n_row; r++) {
        struct attn_rows *run = &at->run[at->n_run];

        if (r > 0 && row[r].seq == row[r - 1].seq && row[r].pos == row[r - 1].pos + 1) {
            run[-1].n++;
        } else {
            *run = (struct attn_rows){ .row = r, .n = 1 };
            at->n_run++;
        }
    }

    /* rows that share a sequence read each other's keys: then all are stored before any is read */
    at->alone = n_row <= 32 && at->n_run == n_row; /* more pairs would cost more than a barrier */
    for (uint32_t i = 0; i < n_row && at->alone; i++)
        for (uint32_t j = 0; j < i; j++)
            at->alone = at->alone && row[i].seq != row[j].seq;
}

/* Blocks that @n rows from @r on see. */
static void item_blocks(const struct attn *at, struct attn_item *it) {
    it->begin = first_seen(at->l, at->row[it->row].pos) / KV_BLOCK;
    it->end = at->row[it->row + it->n - 1].pos / KV_BLOCK + 1;
}

/* Row @it->row becomes several items, of about @want blocks each. Return: was there room? */
static bool split(struct attn *at, struct attn_item it, uint32_t want) {
    uint32_t n_span = span_count(it.begin, it.end), end = it.end;

    if (n_span < 2 || (uint64_t)at->n_part + (uint64_t)n_span * at->l->n_head > at->n_part_max)
        return false;
    at->part_of[it.row] = at->n_part;
    for (it.end = it.begin; it.end < end; at->item[at->n_item++] = it) {
        it.begin = it.end;
        it.part = at->n_part;
        do {
            it.end = span_end(it.end) < end ? span_end(it.end) : end;
            at->n_part += at->l->n_head;
        } while (it.end < end && it.end - it.begin < want);
    }
    return true;
}

/* Cut the layer's work into items, each to be done for every key head. Return: about what one
 * costs, in bytes streamed. */
static size_t plan(struct attn *at) {
    const struct attn_layer *l = at->l;
    uint32_t n_group = l->n_head / l->n_kv_head, n_want = ITEMS * at->ops->n_worker;
    uint32_t n_row = at->n_query_max / n_group, n_tile;
    uint32_t few = at->n_row * l->n_kv_head / n_want; /* rows an item when all have their share */
    uint64_t work = 0, n_block = 0;

    n_row = n_row > few && few * n_group >= CONVERT ? few : n_row;
    at->n_item = at->n_part = 0;
    for (uint32_t r = 0; r < at->n_row; r++)
        at->part_of[r] = NO_PART;
    for (const struct attn_rows *run = at->run; run < at->run + at->n_run; run++)
        for (uint32_t i = 0; i < run->n; i += n_row) {
            struct attn_item *it = &at->item[at->n_item++];

            *it = (struct attn_item){ .row = run->row + i, .part = NO_PART };
            it->n = run->n - i < n_row ? run->n - i : n_row;
            item_blocks(at, it);
            n_block += it->end - it->begin;
            work += (uint64_t)(it->end - it->begin) * it->n;
        }

    /* A row that alone is more than twice a worker's share; there are fewer than 2 n_worker of
     * these, counted with their heads. */
    uint64_t share = work * l->n_kv_head / n_want + 1;

    n_tile = at->n_item;
    for (uint32_t i = 0; i < n_tile; i++) {
        struct attn_item it = at->item[i];

        if (it.n == 1 && it.end - it.begin > 2 * share && at->ops->n_worker > 1 &&
            split(at, it, (uint32_t)share))
            at->item[i] = at->item[--at->n_item]; /* the last of its parts takes its place */
    }

    uint64_t n_byte = kern_kv_size(kvcache_fmt(at->kv), kvcache_key_dim(at->kv, l->layer)) +
                      kern_kv_size(kvcache_fmt(at->kv), kvcache_value_dim(at->kv, l->layer));

    at->ops->phase->kv_bytes += n_block * l->n_kv_head * n_byte;
    return work * n_byte * (2 + n_group) / 2 / at->n_item;
}

void attn_run(struct attn *at, const struct attn_layer *l) {
    size_t dim = (size_t)l->head_dim * sizeof(float), cost;

    at->l = l;
    if (!at->alone)
        ops_each(at->ops, at->n_row * l->n_kv_head, dim * 8, store_item, at);
    cost = plan(at);
    ops_each(at->ops, at->n_item * l->n_kv_head, cost, attend_item, at);
    ops_each(at->ops, at->n_row, dim * l->n_head, complete_row, at);
}
