/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/ops.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <time.h>

enum {
    OPS_STEP = 16,            /* output rows come in multiples of this, as tiers want them */
    OPS_SERIAL = 48 * 1024,   /* bytes one core reads in about the time two barriers take */
    OPS_ITEMS = 12,           /* items a worker, about: what is left to take is 1/12 of its share */
    OPS_ITEM_MIN = 24 * 1024, /* bytes below which an item is not worth its bookkeeping */
};

struct ops_cursor {
    _Alignas(128) atomic_uint next; /* may run past end */
    uint32_t end;
};

int ops_init(struct ops *ops, const struct kern *kern, struct pool *pool, size_t n_scratch,
             struct arena *a) {
    *ops = (struct ops){ .kern = kern, .pool = pool, .n_worker = pool_n_worker(pool) };
    ops->phase = &ops->outside;
    ops->n_scratch = (n_scratch + 31) & ~(size_t)31;
    /* arena pieces are aligned to 64, a cursor wants 128 */
    uintptr_t at = (uintptr_t)arena_alloc(a, ops->n_worker + 1, sizeof *ops->cursor);
    ops->cursor = (struct ops_cursor *)((at + 127) & ~(uintptr_t)127);
    ops->scratch = arena_alloc(a, ops->n_worker, ops->n_scratch * sizeof(float));

    return a->failed ? err_new(-ENOMEM) : 0;
}

float *ops_scratch(const struct ops *ops, uint32_t worker) {
    return ops->scratch + worker * ops->n_scratch;
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

/* ---- items ---- */

struct ops_run {
    struct ops *ops;
    ops_item_fn *fn;
    void *arg;
    _Atomic uint64_t busy_nsec;
};

static void run_items(void *arg, uint32_t worker, uint32_t n_worker) {
    struct ops_run *run = arg;
    struct ops *ops = run->ops;
    uint64_t since = ops->timed ? now_nsec() : 0;

    for (uint32_t i = 0; i < n_worker; i++) {
        struct ops_cursor *c = &ops->cursor[(worker + i) % n_worker];

        for (;;) {
            if (atomic_load_explicit(&c->next, memory_order_relaxed) >= c->end)
                break;
            uint32_t item = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed);
            if (item >= c->end || ops_stopped(ops))
                break;
            run->fn(run->arg, item, worker);
        }
    }
    if (ops->timed)
        atomic_fetch_add_explicit(&run->busy_nsec, now_nsec() - since, memory_order_relaxed);
}

void ops_each(struct ops *ops, uint32_t n_item, size_t cost, ops_item_fn *fn, void *arg) {
    struct ops_run run = { .ops = ops, .fn = fn, .arg = arg };

    if (ops->n_worker == 1 || n_item <= 1 || cost < OPS_SERIAL / n_item) {
        uint64_t since = ops->timed ? now_nsec() : 0;

        for (uint32_t i = 0; i < n_item && !ops_stopped(ops); i++)
            fn(arg, i, 0);
        if (ops->timed)
            ops->phase->busy_nsec += now_nsec() - since;
        return;
    }
    for (uint32_t w = 0; w < ops->n_worker; w++) {
        uint32_t begin;

        pool_slice(n_item, 1, w, ops->n_worker, &begin, &ops->cursor[w].end);
        atomic_store_explicit(&ops->cursor[w].next, begin, memory_order_relaxed);
    }
    pool_share(ops->pool, run_items, &run);
    ops->phase->barriers++;
    ops->phase->busy_nsec += run.busy_nsec;
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

void ops_mat_row(const struct kern *k, const struct ops_mat *m, uint32_t row, float *ret) {
    const uint8_t *data = m->data;

    if (m->pack) {
        uint32_t i = row % m->pack->n_row;

        m->pack->decode_row(data + (row - i) * m->stride, i, m->n_col, ret);
    } else {
        k->decode[m->fmt](data + row * m->stride, ret, m->n_col);
    }
}

struct ops_products {
    struct ops *ops;
    const struct ops_task *task;
    uint32_t n;
};

static bool use_blas(const struct ops *ops, const struct ops_task *t) {
    return ops->blas && !t->no_blas && t->w.fmt <= QUANT_BF16 && !t->w.pack &&
           t->x.n_row >= OPS_BLAS_ROWS;
}

/* Weight bytes and arithmetic of one output row, in bytes streamed: a core multiplies about four
 * times as many int8 values as it reads bytes. */
static size_t row_cost(const struct ops_task *t) {
    size_t cost = t->w.stride + (size_t)t->w.n_col * t->x.n_row / 4;

    return t->w2.data ? 2 * cost : cost;
}

static void mul_rows(const struct ops *ops, const struct ops_task *t, const struct ops_mat *w,
                     uint32_t begin, uint32_t n, float *y, uint32_t worker) {
    const struct kern *k = ops->kern;
    const uint8_t *rows = (const uint8_t *)w->data + begin * w->stride;
    float *scratch = ops_scratch(ops, worker);

    if (w->pack) {
        w->pack->mul(rows, w->stride, n, w->n_col, &t->x, y + begin, t->y_stride);
    } else if (!use_blas(ops, t)) {
        kern_mul_fn *mul = ops->exact ? k->mul_exact[w->fmt] : k->mul[w->fmt];

        mul(rows, w->stride, n, w->n_col, &t->x, y + begin, t->y_stride);
    } else if (w->fmt == QUANT_F32) {
        ops_blas_mul((const float *)(const void *)rows, w->stride / sizeof(float), n, w->n_col,
                     t->x.f, t->x.f_stride, t->x.n_row, y + begin, t->y_stride);
    } else {
        assert((size_t)n * w->n_col <= ops->n_scratch);
        for (uint32_t o = 0; o < n; o++)
            k->decode[w->fmt](rows + o * w->stride, scratch + (size_t)o * w->n_col, w->n_col);
        ops_blas_mul(scratch, w->n_col, n, w->n_col, t->x.f, t->x.f_stride, t->x.n_row, y + begin,
                     t->y_stride);
    }
}

static void mul_item(void *arg, uint32_t item, uint32_t worker) {
    const struct ops_products *p = arg;
    const struct kern *k = p->ops->kern;
    uint32_t lo = 0, hi = p->n;

    while (hi - lo > 1) { /* the last task whose first item is not after this one */
        uint32_t mid = lo + (hi - lo) / 2;

        if (p->task[mid].first <= item)
            lo = mid;
        else
            hi = mid;
    }
    const struct ops_task *t = &p->task[lo];
    uint32_t begin = (item - t->first) * t->slab;
    uint32_t n = t->w.n_out - begin < t->slab ? t->w.n_out - begin : t->slab;

    mul_rows(p->ops, t, &t->w, begin, n, t->y, worker);
    if (t->w2.data)
        mul_rows(p->ops, t, &t->w2, begin, n, t->y2, worker);
    for (uint32_t m = 0; m < t->x.n_row; m++) {
        float *y = t->y + m * t->y_stride + begin;

        if (t->w2.data)
            k->geglu(y, t->y2 + m * t->y_stride + begin, y, n);
        if (t->softcap > 0)
            k->softcap(y, t->softcap, n);
    }
}

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

void ops_mul(struct ops *ops, struct ops_task *task, uint32_t n) {
    struct ops_products p = { .ops = ops, .task = task, .n = n };
    size_t total = 0;
    uint32_t n_item = 0;

    assert(n > 0 && n <= OPS_TASK_MAX);
    for (uint32_t i = 0; i < n; i++) {
        total += row_cost(&task[i]) * task[i].w.n_out;
        count_product(ops->phase, ops->exact, &task[i].w, task[i].x.n_row);
        if (task[i].w2.data)
            count_product(ops->phase, ops->exact, &task[i].w2, task[i].x.n_row);
    }

    size_t want = total / ((size_t)ops->n_worker * OPS_ITEMS);

    if (want < OPS_ITEM_MIN)
        want = OPS_ITEM_MIN;
    for (uint32_t i = 0; i < n; i++) {
        struct ops_task *t = &task[i];
        uint32_t step = row_step(t);
        size_t slab = round_up(want / row_cost(t) + 1, step);

        t->slab = (uint32_t)(slab < t->w.n_out ? slab : round_up(t->w.n_out, step));
        if (use_blas(ops, t))
            t->slab = OPS_BLAS_SLAB;
        t->first = n_item;
        n_item += (t->w.n_out + t->slab - 1) / t->slab;
    }
    ops_each(ops, n_item, total / n_item, mul_item, &p);
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
