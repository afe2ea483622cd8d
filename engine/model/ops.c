/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <time.h>

enum {
    OPS_STEP = 16,          /* output rows come in multiples of this, as tiers want them */
    OPS_SUM_STEP = 64,      /* in sums of this: their matrices are read piece by piece */
    OPS_SERIAL = 48 * 1024, /* bytes one core reads in about the time two barriers take */
    OPS_ITEMS = 64,         /* items a worker, about: at the end one waits for 1/64 of its share */
    OPS_ITEMS_TALL = 16,    /* of products that read more than OPS_CHUNK rows for each item */
    OPS_ITEM_MIN = 24 * 1024, /* bytes below which an item is not worth its bookkeeping */
    OPS_TAKE_MAX = 1 << 20,   /* bytes taken at once at most: some 50 us */
    OPS_MAC_PER_BYTE = 8,     /* int8 values a core multiplies in the time it reads a byte */
};

/* Items of one worker and stage that nobody has begun: first << 32 | end. */
struct ops_share {
    _Alignas(128) _Atomic uint64_t left;
};

/* The rows of a product, or items of @fn, that are one shard's. */
struct ops_cut {
    struct ops_task *task;
    uint32_t first; /* number of the first item */
    uint32_t row, end;
};

int ops_init(struct ops *ops, const struct kern *kern, struct pool *pool, const struct plan *plan,
             struct arena *a) {
    *ops =
        (struct ops){ .kern = kern, .pool = pool, .plan = plan, .n_worker = pool_n_worker(pool) };
    assert(plan->n_worker == ops->n_worker);
    ops->phase = &ops->outside;
    /* arena pieces are aligned to 64, a share wants 128 */
    uintptr_t at = (uintptr_t)arena_alloc(a, OPS_STAGES * ops->n_worker + 1, sizeof *ops->share);
    ops->share = (struct ops_share *)((at + 127) & ~(uintptr_t)127);
    ops->cut = arena_alloc(a, OPS_TASK_MAX, plan->n_shard * sizeof *ops->cut);
    ops->end = arena_alloc(a, OPS_STAGES, plan->n_shard * sizeof *ops->end);
    ops->scratch = arena_alloc(a, ops->n_worker, OPS_SCRATCH * sizeof(float));

    return a->failed ? err_new(-ENOMEM) : 0;
}

static float *scratch_of(const struct ops *ops, uint32_t worker) {
    return ops->scratch + (size_t)worker * OPS_SCRATCH;
}

/* ---- phases ---- */

static uint64_t now_nsec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void ops_enter(struct ops *ops, struct ops_phase *phase) {
    if (ops->timed) {
        uint64_t now = now_nsec();

        ops->phase->nsec += now - ops->since;
        ops->since = now;
    }
    ops->phase = phase;
    phase->n++;
}

void ops_timed(struct ops *ops, bool on) {
    ops->timed = on;
    ops->since = on ? now_nsec() : 0;
}

/* ---- activations ---- */

static size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

void ops_act_init(struct ops_act *x, uint32_t n_row, uint32_t n_col, unsigned forms,
                  struct arena *a) {
    size_t n = round_up(n_col, KERN_BLOCK);

    *x = (struct ops_act){ .n_row_max = n_row, .n_col_max = n_col };
    if (forms & OPS_F32)
        x->f = arena_alloc(a, n_row, round_up(n_col, 16) * sizeof(float));
    if (forms & OPS_Q8) {
        x->q = arena_alloc(a, n_row, n);
        x->d = arena_alloc(a, n_row, n / KERN_Q8_BLOCK * sizeof(float));
        x->s = arena_alloc(a, n_row, n / KERN_Q8_SUM * sizeof(int16_t));
    }
    ops_act_shape(x, n_col, forms);
}

void ops_act_shape(struct ops_act *x, uint32_t n_col, unsigned forms) {
    assert(n_col <= x->n_col_max);
    x->n_col = n_col;
    x->forms = forms;
    x->f_stride = round_up(n_col, 16);
    x->q_stride = round_up(n_col, KERN_BLOCK);
}

float *ops_act_row(const struct ops_act *x, uint32_t row) {
    return x->f + row * x->f_stride;
}

void ops_act_done(const struct ops *ops, const struct ops_act *x, uint32_t row) {
    float *f = ops_act_row(x, row);

    for (size_t i = x->n_col; i < x->f_stride; i++)
        f[i] = 0;
    if (x->forms & OPS_Q8)
        ops->kern->quantize(f, x->n_col, x->q + row * x->q_stride,
                            x->d + row * (x->q_stride / KERN_Q8_BLOCK),
                            x->s + row * (x->q_stride / KERN_Q8_SUM));
}

void ops_act_copy(const struct ops_act *dst, uint32_t to, const struct ops_act *src,
                  uint32_t from) {
    size_t nq = src->q_stride, nd = nq / KERN_Q8_BLOCK, ns = nq / KERN_Q8_SUM;

    assert(dst->n_col == src->n_col && !(dst->forms & ~src->forms));
    if (dst->forms & OPS_F32)
        memcpy(dst->f + to * dst->f_stride, src->f + from * src->f_stride,
               src->f_stride * sizeof(float));
    if (dst->forms & OPS_Q8) {
        memcpy(dst->q + to * nq, src->q + from * nq, nq);
        memcpy(dst->d + to * nd, src->d + from * nd, nd * sizeof(float));
        memcpy(dst->s + to * ns, src->s + from * ns, ns * sizeof(int16_t));
    }
}

struct kern_rows ops_act_rows(const struct ops_act *x, uint32_t first, uint32_t n) {
    struct kern_rows r = { .n_row = n, .f_stride = x->f_stride, .q_stride = x->q_stride };

    if (x->forms & OPS_F32)
        r.f = x->f + first * x->f_stride;
    if (x->forms & OPS_Q8) {
        r.q = x->q + first * x->q_stride;
        r.d = x->d + first * (x->q_stride / KERN_Q8_BLOCK);
        r.s = x->s + first * (x->q_stride / KERN_Q8_SUM);
    }

    return r;
}

/* ---- products ---- */

/* Rows from @row on, the first of a group, as far as they are one shard's. */
static const uint8_t *rows_at(const struct ops_mat *m, uint32_t row) {
    const struct plan_part *p = m->part;
    uint32_t first = 0;

    if (!p)
        return (const uint8_t *)m->data + row * m->stride;
    for (; row >= p->end; p++)
        first = p->end;
    return p->data + (row - first) * m->stride;
}

/* The same for the row behind some of @m's; @next when there is none. */
static const void *rows_after(const struct ops_mat *m, uint32_t row, const void *next) {
    return row < m->n_out ? rows_at(m, row) : next;
}

void ops_mat_row(const struct kern *k, const struct ops_mat *m, uint32_t row, float *ret) {
    uint32_t i = m->pack ? row % m->pack->n_row : 0;
    const uint8_t *data = rows_at(m, row - i);

    if (m->pack)
        m->pack->decode_row(data, i, m->n_col, ret);
    else
        k->decode[m->fmt](data, ret, m->n_col);
}

/* Weight bytes and arithmetic of one output row, in bytes streamed. */
static size_t row_cost(const struct ops_mat *w, uint32_t n_row) {
    return w->stride + (size_t)w->n_col * n_row / OPS_MAC_PER_BYTE;
}

/* @next: see struct kern_rows */
static void mul(const struct ops *ops, const struct ops_mat *w, uint32_t begin, uint32_t n,
                struct kern_rows x, const void *next, float *y, size_t y_stride) {
    const struct kern *k = ops->kern;
    kern_mul_fn *fn = w->pack ? w->pack->mul : ops->exact ? k->mul_exact[w->fmt] : k->mul[w->fmt];

    x.next = next;
    fn(rows_at(w, begin), w->stride, n, w->n_col, &x, y, y_stride);
}

static struct kern_rows rows_from(const struct kern_rows *x, uint32_t first, uint32_t n) {
    struct kern_rows r = *x;

    r.n_row = n;
    r.f = x->f ? x->f + first * x->f_stride : NULL;
    r.q = x->q ? x->q + first * x->q_stride : NULL;
    r.d = x->d ? x->d + first * (x->q_stride / KERN_Q8_BLOCK) : NULL;
    r.s = x->s ? x->s + first * (x->q_stride / KERN_Q8_SUM) : NULL;
    return r;
}

/* Output rows [begin, begin + n) of a gated product; up's half of a chunk of rows is in scratch. */
static void mul_glu(const struct ops *ops, const struct ops_task *t, uint32_t begin, uint32_t n,
                    const void *next, float *scratch) {
    for (uint32_t m = 0; m < t->x.n_row; m += OPS_CHUNK) {
        uint32_t n_m = t->x.n_row - m < OPS_CHUNK ? t->x.n_row - m : OPS_CHUNK;
        struct kern_rows x = rows_from(&t->x, m, n_m);
        float *y = t->y + m * t->y_stride + begin;

        mul(ops, &t->w, begin, n, x, rows_at(&t->w2, begin), y, t->y_stride);
        mul(ops, &t->w2, begin, n, x, rows_after(&t->w, begin + n, next), scratch, n);
        for (uint32_t i = 0; i < n_m; i++, y += t->y_stride)
            ops->kern->geglu(y, scratch + (size_t)i * n, y, n);
    }
}

/* Output rows [begin, begin + n) of one of a sum's tasks. @next: see struct kern_rows */
static void mul_sum(const struct ops *ops, const struct ops_task *t, uint32_t begin, uint32_t n,
                    const void *next, float *scratch) {
    for (uint32_t m = 0; m < t->x.n_row; m += OPS_CHUNK) {
        uint32_t n_m = t->x.n_row - m < OPS_CHUNK ? t->x.n_row - m : OPS_CHUNK;
        struct kern_rows x = rows_from(&t->x, m, n_m);

        mul(ops, &t->w, begin, n, x, next, scratch, n);
        for (uint32_t i = 0; i < n_m; i++)
            ops->kern->axpy(t->weight[m + i], scratch + (size_t)i * n,
                            t->y + t->row[m + i] * t->y_stride + begin, n);
    }
}

/* ---- phases: items ---- */

static const struct ops_cut *cut_of(const struct ops_cut *cut, uint32_t n, uint32_t item) {
    uint32_t lo = 0, hi = n;

    while (hi - lo > 1) { /* the last whose first item is not after this one */
        uint32_t mid = lo + (hi - lo) / 2;

        if (cut[mid].first <= item)
            lo = mid;
        else
            hi = mid;
    }
    return &cut[lo];
}

/* Others that share the product @t is in wait for what it needs as well. */
static void await(struct ops *ops, const struct ops_task *t) {
    if (t->need)
        pool_await(ops->pool, &t->need->is_done);
}

/* @next: what is read behind the matrix */
static void product_rows(struct ops *ops, const struct ops_task *t, uint32_t begin, uint32_t end,
                         const void *next, uint32_t worker) {
    uint32_t n;
    uint32_t n_row = t->x.n_row < OPS_CHUNK ? t->x.n_row : OPS_CHUNK;
    uint32_t n_max = OPS_SCRATCH / n_row / OPS_STEP * OPS_STEP;
    float *scratch = scratch_of(ops, worker);

    if (!t->w2.data) {
        await(ops, t);
        mul(ops, &t->w, begin, end - begin, t->x, rows_after(&t->w, end, next), t->y + begin,
            t->y_stride);
        for (uint32_t m = 0; m < t->x.n_row && t->softcap > 0; m++)
            ops->kern->softcap(t->y + m * t->y_stride + begin, t->softcap, end - begin);
        return;
    }
    await(ops, t);
    for (; begin < end; begin += n) {
        n = end - begin < n_max ? end - begin : n_max;
        mul_glu(ops, t, begin, n, next, scratch);
    }
}

static void sum_rows(struct ops *ops, const struct ops_task *t, uint32_t begin, uint32_t end,
                     const void *next, uint32_t worker) {
    uint32_t n_max = OPS_SCRATCH / OPS_CHUNK / OPS_STEP * OPS_STEP, n;

    for (; begin < end; begin += n) {
        n = end - begin < n_max ? end - begin : n_max;
        for (uint32_t r = 0; r < t->n_y; r++)
            memset(t->y + r * t->y_stride + begin, 0, n * sizeof *t->y);
        for (uint32_t i = 0; i < t->n_sum; i++) {
            const void *then =
                i + 1 < t->n_sum ? rows_at(&t[i + 1].w, begin) : rows_after(&t->w, begin + n, next);

            await(ops, &t[i]);
            mul_sum(ops, &t[i], begin, n, then, scratch_of(ops, worker));
        }
    }
}

static void finish_items(struct ops *ops, struct ops_task *t, uint32_t n, uint32_t worker) {
    if (!t->counted || atomic_fetch_sub(&t->left, n) != n)
        return;
    if (t->done && !ops_stopped(ops))
        t->done(t->done_arg, t->done_item, worker);
    pool_post(&t->is_done);
}

/* Items @item to @item + @n - 1 of a cut. @next: what is read behind all of it; NULL: unknown */
static void run_items(struct ops *ops, const struct ops_cut *c, uint32_t item, uint32_t n,
                      const void *next, uint32_t worker) {
    const struct ops_task *t = c->task;
    uint32_t begin = c->row + (item - c->first) * t->slab;
    uint32_t end = c->end - begin < n * t->slab ? c->end : begin + n * t->slab;

    if (t->row) {
        sum_rows(ops, t, begin, end, next, worker);
    } else if (!t->fn) {
        product_rows(ops, t, begin, end, next, worker);
    } else {
        await(ops, t);
        for (uint32_t i = begin; i < end && !ops_stopped(ops); i++)
            t->fn(t->arg, i, worker);
    }
}

/* The first rows of a cut; NULL: it is no product's, or there is none. */
static const void *first_rows(const struct ops_cut *c, const struct ops_cut *end) {
    return c < end && !c->task->fn ? rows_at(&c->task->w, c->row) : NULL;
}

static uint32_t n_items(const struct ops_cut *c) {
    return (c->end - c->row + c->task->slab - 1) / c->task->slab;
}

/* Items @item to @item + @n - 1 of the phase. When the step is stopped they count as done, so that
 * nobody waits for them. */
static void run_range(struct ops *ops, uint32_t n_cut, uint32_t item, uint32_t n, uint32_t worker) {
    for (const struct ops_cut *c = cut_of(ops->cut, n_cut, item); n > 0; c++) {
        uint32_t left = c->first + n_items(c) - item, take = n < left ? n : left;

        if (!ops_stopped(ops))
            run_items(ops, c, item, take, first_rows(c + 1, ops->cut + n_cut), worker);
        finish_items(ops, c->task, take, worker);
        item += take;
        n -= take;
    }
}

/* ---- phases: shares ---- */

struct run {
    struct ops *ops;
    uint32_t n_cut, n_item;
    uint32_t take_max[OPS_STAGES]; /* items taken at once at most */
    size_t cost[OPS_STAGES];       /* of a stage's items, all together */
    _Atomic uint64_t busy_nsec;
};

/* Take a third of what is left of a share: large pieces first, so that few are taken, and small
 * ones last, so that all end together. Owners take from the front, others from the end, so each
 * reads memory in sequence. Return: how many, 0: none left. */
static uint32_t take_items(struct ops_share *s, bool own, uint32_t max, uint32_t *ret_item) {
    uint64_t v = atomic_load_explicit(&s->left, memory_order_relaxed);

    for (;;) {
        uint32_t begin = (uint32_t)(v >> 32), end = (uint32_t)v, n;
        uint64_t rest;

        if (begin >= end)
            return 0;
        n = (end - begin + 2) / 3;
        n = n < max ? n : max;
        *ret_item = own ? begin : end - n;
        rest = own ? (uint64_t)(begin + n) << 32 | end : (uint64_t)begin << 32 | (end - n);
        if (atomic_compare_exchange_weak_explicit(&s->left, &v, rest, memory_order_relaxed,
                                                  memory_order_relaxed))
            return n;
    }
}

/* A worker goes on to a stage when all items of the one before are taken. Those that need tasks not
 * done yet then wait for items that others are in, never for one nobody has begun. */
static void run_shares(void *arg, uint32_t worker, uint32_t n_active) {
    struct run *run = arg;
    struct ops *ops = run->ops;
    const struct plan_shard *own = &ops->plan->shard[plan_shard_of(ops->plan, worker)];
    uint32_t n_worker = ops->n_worker;
    uint64_t since = ops->timed ? now_nsec() : 0;

    for (uint32_t stage = 0; stage < OPS_STAGES; stage++)
        for (uint32_t i = 0; i < n_worker; i++) {
            uint32_t whose = i < own->n_worker
                                 ? own->first + (worker - own->first + i) % own->n_worker
                                 : (own->first + i) % n_worker;
            struct ops_share *s = &ops->share[stage * n_worker + whose];
            uint32_t item, n;

            while ((n = take_items(s, i == 0, run->take_max[stage], &item)) > 0)
                run_range(ops, run->n_cut, item, n, worker);
        }
    if (ops->timed)
        atomic_fetch_add_explicit(&run->busy_nsec, now_nsec() - since, memory_order_relaxed);
}

static void share_out(struct run *run) {
    struct ops *ops = run->ops;
    uint32_t n_shard = ops->plan->n_shard, first = 0, begin, end;

    for (uint32_t stage = 0; stage < OPS_STAGES; stage++) {
        uint32_t n = ops->end[stage * n_shard + n_shard - 1] - first;

        run->take_max[stage] = 1;
        if (n > 0 && run->cost[stage] / n < OPS_TAKE_MAX)
            run->take_max[stage] = (uint32_t)(OPS_TAKE_MAX / (run->cost[stage] / n + 1));
        for (uint32_t s = 0; s < n_shard; s++) {
            const struct plan_shard *shard = &ops->plan->shard[s];
            struct ops_share *share = &ops->share[stage * ops->n_worker + shard->first];

            n = ops->end[stage * n_shard + s] - first;
            for (uint32_t w = 0; w < shard->n_worker; w++) {
                pool_slice(n, 1, w, shard->n_worker, &begin, &end);
                atomic_store_explicit(&share[w].left,
                                      (uint64_t)(first + begin) << 32 | (first + end),
                                      memory_order_relaxed);
            }
            first += n;
        }
    }
}

static void run_tasks(struct run *run) {
    struct ops *ops = run->ops;
    size_t cost = 0;

    for (uint32_t stage = 0; stage < OPS_STAGES; stage++)
        cost += run->cost[stage];
    if (cost < OPS_SERIAL) {
        uint64_t since = ops->timed ? now_nsec() : 0;

        run_range(ops, run->n_cut, 0, run->n_item, 0);
        if (ops->timed)
            ops->phase->busy_nsec += now_nsec() - since;
        return;
    }
    share_out(run);
    pool_share(ops->pool, run_shares, run);
    ops->phase->barriers += ops->n_worker > 1;
    ops->phase->busy_nsec += run->busy_nsec;
}

/* ---- phases: cutting tasks into items ---- */

static void count_product(struct ops_phase *p, bool exact, const struct ops_mat *w,
                          uint32_t n_row) {
    uint64_t n = 2 * (uint64_t)w->n_out * w->n_col * n_row;

    p->weight_bytes += w->stride * w->n_out;
    if (ops_form(exact, w) == OPS_Q8)
        p->int8_ops += n;
    else
        p->f32_ops += n;
}

/* Output rows of an item are a multiple of this: whole groups, whose sizes are powers of two. */
static uint32_t row_step(const struct ops_task *t) {
    const struct ops_mat *both[] = { &t->w, &t->w2 };
    uint32_t step = OPS_STEP;

    for (size_t i = 0; i < sizeof both / sizeof *both; i++) {
        uint32_t n = both[i]->pack ? both[i]->pack->n_row : 1;

        assert((n & (n - 1)) == 0 && t->w.n_out % n == 0);
        step = n > step ? n : step;
    }
    return step;
}

/* Cost of an output row of @t, and of the tasks it is summed with. */
static size_t slab_cost(const struct ops_task *t) {
    size_t cost = 0;

    for (uint32_t i = 0; i < t->n_sum; i++)
        cost += row_cost(&t[i].w, t[i].x.n_row);
    return t->w2.data ? cost + row_cost(&t->w2, t->x.n_row) : cost;
}

/* What tasks are, before they are cut: stages, sums, counters. Return: cost of all. */
static size_t link_tasks(struct ops *ops, struct ops_task *task, uint32_t n) {
    struct ops_task *sum = NULL; /* the first task of the sum at hand */
    size_t total = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct ops_task *t = &task[i];
        bool joins = t->row && sum && sum->y == t->y;

        t->stage = t->need ? t->need->stage + 1 : 0;
        assert(t->stage < OPS_STAGES && (i == 0 || t->stage >= task[i - 1].stage));
        t->counted = t->done;
        if (t->need)
            t->need->counted = true;
        t->n_sum = joins ? 0 : 1;
        if (joins)
            sum->n_sum++;
        else
            sum = t->row ? t : NULL;
        if (t->fn) {
            total += t->cost * t->n_item;
            continue;
        }
        total += row_cost(&t->w, t->x.n_row) * t->w.n_out;
        count_product(ops->phase, ops->exact, &t->w, t->x.n_row);
        if (t->w2.data) {
            total += row_cost(&t->w2, t->x.n_row) * t->w.n_out;
            count_product(ops->phase, ops->exact, &t->w2, t->x.n_row);
        }
    }
    return total;
}

/* Rows, or items of its function, of a task. */
static uint32_t n_rows(const struct ops_task *t) {
    return t->fn ? t->n_item : t->w.n_out;
}

/* Where the rows of shard @s end. */
static uint32_t shard_end(const struct ops *ops, const struct ops_task *t, uint32_t s) {
    const struct plan_part *part = t->fn ? NULL : t->w.part ? t->w.part : t->w2.part;

    if (!part)
        return plan_cut(ops->plan, n_rows(t), t->fn ? 1 : row_step(t), 0, s + 1);
    assert(!t->w2.part || part[s].end == t->w2.part[s].end);
    return part[s].end;
}

/* Output rows an item of @t, if it is to cost @want. Activations that do not stay in the cache are
 * read from further away for each item, so larger ones gain more than the wait for the last
 * loses. */
static uint32_t slab_of(const struct ops_task *t, size_t want) {
    size_t cost = slab_cost(t);

    if (t->x.n_row > OPS_CHUNK)
        want *= OPS_ITEMS / OPS_ITEMS_TALL;

    size_t slab = round_up(want / cost + 1, t->row ? OPS_SUM_STEP : row_step(t));

    return (uint32_t)(slab < t->w.n_out ? slab : round_up(t->w.n_out, row_step(t)));
}

/* Cut the tasks of one stage, @task [n], and number their items: shard by shard. */
static void cut_stage(struct run *run, uint32_t stage, struct ops_task *task, uint32_t n) {
    struct ops *ops = run->ops;
    uint32_t n_shard = ops->plan->n_shard;

    for (uint32_t s = 0; s < n_shard; s++) {
        for (uint32_t i = 0; i < n; i++) {
            struct ops_cut *c = &ops->cut[run->n_cut];

            if (!task[i].fn && task[i].n_sum == 0)
                continue;
            *c = (struct ops_cut){ .task = &task[i], .first = run->n_item };
            c->row = s == 0 ? 0 : shard_end(ops, &task[i], s - 1);
            c->end = shard_end(ops, &task[i], s);
            if (c->row == c->end)
                continue;
            task[i].left += n_items(c);
            run->n_item += n_items(c);
            run->n_cut++;
        }
        ops->end[stage * n_shard + s] = run->n_item;
    }
    for (uint32_t i = 0; i < n; i++)
        atomic_store_explicit(&task[i].is_done, task[i].left == 0, memory_order_relaxed);
}

void ops_run(struct ops *ops, struct ops_task *task, uint32_t n) {
    struct run run = { .ops = ops };
    size_t total = link_tasks(ops, task, n), want = total / ((size_t)ops->n_worker * OPS_ITEMS);
    uint32_t first = 0, i = 0;

    assert(n > 0 && n <= OPS_TASK_MAX);
    if (want < OPS_ITEM_MIN)
        want = OPS_ITEM_MIN;
    for (uint32_t stage = 0; stage < OPS_STAGES; stage++, first = i) {
        for (; i < n && task[i].stage == stage; i++) {
            struct ops_task *t = &task[i];

            t->slab = t->fn || t->n_sum == 0 ? 1 : slab_of(t, want);
            run.cost[stage] += t->fn      ? t->cost * t->n_item
                               : t->n_sum ? slab_cost(t) * t->w.n_out
                                          : 0;
            atomic_store_explicit(&t->left, 0, memory_order_relaxed);
        }
        cut_stage(&run, stage, task + first, i - first);
    }
    run_tasks(&run);
}

void ops_each(struct ops *ops, uint32_t n_item, size_t cost, ops_item_fn *fn, void *arg) {
    struct ops_task t = { .fn = fn, .arg = arg, .n_item = n_item, .cost = cost };

    if (n_item > 0)
        ops_run(ops, &t, 1);
}

/* ---- rows and heads ---- */

void ops_rope_angles(const double *freq, uint32_t n, pos_t pos, float *ret_cs) {
    for (uint32_t i = 0; i < n; i++) {
        double s, c;

        sincos(pos * freq[i], &s, &c);
        ret_cs[2 * i] = (float)c;
        ret_cs[2 * i + 1] = (float)s;
    }
}
