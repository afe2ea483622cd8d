/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * ops - what forward passes are written in: kernels spread over the pool, no model knowledge
 *
 * Work is cut into items, by shards (plan.h): products where the rows of matrices lie, all else by
 * the number of workers. Each worker has an even run of its shard's and, when it is through,
 * takes items that others have not begun, last those of other shards. An item computes the same
 * values whoever runs it, and how items are cut never changes a value, so results do not depend on
 * the number of workers or shards.
 *
 * Owner:   the engine thread; items run on the pool's workers.
 * Memory:  none of its own but the caller's arena; nothing here allocates after ops_init().
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/base/arena.h"
#include "engine/hw/plan.h"
#include "engine/hw/pool.h"
#include "engine/kern/kern.h"
#include "engine/kv/kvcache.h"

enum {
    OPS_TASK_MAX = 1032,          /* tasks of one ops_run() */
    OPS_STAGES = 3,               /* tasks that need each other, one behind the other, at most */
    OPS_CHUNK = 64,               /* rows whose products meet in scratch at once */
    OPS_SCRATCH = OPS_CHUNK * 256 /* floats of scratch a worker */
};

/* What the phases of one name did. Counters always run, clocks only under ops_timed(). */
struct ops_phase {
    const char *name;
    uint64_t n;               /* times it was entered */
    uint64_t nsec, busy_nsec; /* wall clock from entering it to the next; workers' time in items */
    uint64_t barriers;        /* times workers met */
    uint64_t weight_bytes;    /* of matrices, once however many rows share them */
    uint64_t int8_ops, f32_ops; /* of products; a multiplication and its addition are two */
    uint64_t kv_bytes;          /* blocks of keys and values read, once an item */
};

struct ops_cut;   /* a shard's items of a task */
struct ops_share; /* items of one worker not begun yet, on a cache line of its own */

struct ops {
    const struct kern *kern;
    struct pool *pool;
    const struct plan *plan;
    uint32_t n_worker;
    bool exact;               /* float activations for every format */
    const atomic_bool *stop;  /* set: items not begun are dropped; NULL: never */
    struct ops_phase outside; /* counts outside of steps */
    struct ops_phase *phase;  /* the one that counts now */
    bool timed;
    uint64_t since;          /* nsec, when it was entered */
    struct ops_cut *cut;     /* [OPS_TASK_MAX * n_shard] */
    uint32_t *end;           /* [OPS_STAGES][n_shard], one past the last item */
    struct ops_share *share; /* [OPS_STAGES][n_worker] */
    float *scratch;          /* [n_worker][OPS_SCRATCH] */
};

/* @plan: of the pool's workers. Return: 0, or -ENOMEM when @a does not hold it. */
int ops_init(struct ops *ops, const struct kern *kern, struct pool *pool, const struct plan *plan,
             struct arena *a);

/* From now on @phase counts. */
void ops_enter(struct ops *ops, struct ops_phase *phase);
/* Turn clocks on or off. */
void ops_timed(struct ops *ops, bool on);

static inline bool ops_stopped(const struct ops *ops) {
    return ops->stop && atomic_load_explicit(ops->stop, memory_order_relaxed);
}

/**
 * ops_each() - run @fn for every item from 0 to @n_item - 1, in any order, on any worker
 * @cost:       of one item, about: bytes it reads. Little work stays on the calling thread.
 */
typedef void ops_item_fn(void *arg, uint32_t item, uint32_t worker);
void ops_each(struct ops *ops, uint32_t n_item, size_t cost, ops_item_fn *fn, void *arg);

/* ---- matrices ---- */

/* y[o] = sum_i w[o][i] * x[i]; rows lie @stride bytes apart. When they are packed, each n_row of
 * them share n_row * stride bytes, and n_out is a multiple of n_row; .exact can not read it. */
struct ops_mat {
    const void *data;
    size_t stride;
    uint32_t n_out, n_col;
    enum quant_fmt fmt;
    const struct kern_pack *pack; /* NULL: as in the file */
    const struct plan_part *part; /* [n_part] where its rows lie; NULL: all at data */
    uint32_t n_part;
};

/* The @i-th behind @m of matrices like it, @size bytes, or in parts @n matrices, from one to the
 * next. */
static inline struct ops_mat ops_mat_next(const struct ops_mat *m, uint32_t i, size_t size,
                                          uint32_t n) {
    struct ops_mat next = *m;

    if (m->part)
        next.part += n * m->n_part * i;
    next.data = m->part ? next.part->data : (const uint8_t *)m->data + i * size;
    return next;
}

/* Row @row of @m to f32 [n_col]. */
void ops_mat_row(const struct kern *k, const struct ops_mat *m, uint32_t row, float *ret);

/* Forms of activations. */
enum { OPS_F32 = 1, OPS_Q8 = 2 };

/* The form the matrix reads; 0 for one that is not there. */
static inline unsigned ops_form(bool exact, const struct ops_mat *m) {
    return !m->data ? 0 : exact || m->fmt <= QUANT_BF16 ? OPS_F32 : OPS_Q8;
}

/* Rows of activations that matrices read. */
struct ops_act {
    float *f;  /* [n_row_max][f_stride]; NULL: never in this form */
    int8_t *q; /* [n_row_max][q_stride]; NULL: never in this form */
    float *d;
    int16_t *s;
    uint32_t n_row_max, n_col_max;
    uint32_t n_col; /* of the rows now in it */
    unsigned forms; /* of the rows now in it */
    size_t f_stride, q_stride;
};

/* Lay out room for @n_row rows of @n_col elements in @forms. */
void ops_act_init(struct ops_act *x, uint32_t n_row, uint32_t n_col, unsigned forms,
                  struct arena *a);
/* From now on rows have @n_col elements in @forms; what they held is lost. */
void ops_act_shape(struct ops_act *x, uint32_t n_col, unsigned forms);
float *ops_act_row(const struct ops_act *x, uint32_t row);
/* Row @row of .f is complete: make its quantised form if there is to be one. */
void ops_act_done(const struct ops *ops, const struct ops_act *x, uint32_t row);
/* dst's row = src's row, in the forms dst has. Same n_col. */
void ops_act_copy(const struct ops_act *dst, uint32_t to, const struct ops_act *src, uint32_t from);
/* @n rows from @first on, as kernels take them. */
struct kern_rows ops_act_rows(const struct ops_act *x, uint32_t first, uint32_t n);

/* ---- phases ---- */

/* One part of a phase: a product, a share of a sum of products, or any items.
 *
 *   y[m][o] = softcap(w x)            w2.data NULL
 *   y[m][o] = gelu(w x) * (w2 x)
 *   y[row[m]][o] += weight[m] * w x   row not NULL; from 0 on, by tasks that follow each other and
 *                                     have the same y, in their order
 *   fn(arg, item, worker)             fn not NULL; @n_item items, @cost bytes each
 */
struct ops_task {
    struct ops_mat w, w2; /* same n_out and n_col */
    struct kern_rows x;
    float *y; /* [x.n_row][y_stride]; of a sum [n_y][y_stride] */
    size_t y_stride;
    float softcap; /* 0: none */

    const uint32_t *row; /* [x.n_row] */
    const float *weight; /* [x.n_row] */
    uint32_t n_y;

    ops_item_fn *fn;
    void *arg;
    uint32_t n_item;
    size_t cost;

    struct ops_task *need; /* an earlier task that is done before this one begins; NULL: none */
    ops_item_fn *done;     /* done(done_arg, done_item, worker) ends the task; NULL: nothing */
    void *done_arg;
    uint32_t done_item;

    /* set by ops_run() */
    uint32_t stage, slab, n_sum; /* output rows an item, tasks of its sum */
    bool counted;
    atomic_uint left, is_done; /* items not done */
};

/* All of @task at once; they may share inputs, not outputs. Tasks are in the order of their stages:
 * those that need nothing, those that need one of these, and so on. @n <= OPS_TASK_MAX */
void ops_run(struct ops *ops, struct ops_task *task, uint32_t n);

/* ---- rows and heads ---- */

/* Angles of one position, [n][2] = cos, sin of pos * freq[i]. In double: at position 262143 a float
 * product would be off by 0.02 rad. */
void ops_rope_angles(const double *freq, uint32_t n, pos_t pos, float *ret_cs);
