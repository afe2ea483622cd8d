/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <stdatomic.h>

#include "engine/sched/batch.h"

int batch_init(struct batch *b, uint32_t n_row_max, uint32_t n_part_max) {
    *b = (struct batch){ .n_row_max = n_row_max, .n_part_max = n_part_max };
    b->row = calloc(n_row_max, sizeof *b->row);
    b->part = calloc(n_part_max, sizeof *b->part);
    return b->row && b->part ? 0 : err_new(-ENOMEM);
}

void batch_deinit(struct batch *b) {
    free(b->row);
    free(b->part);
}

void batch_clear(struct batch *b) {
    b->n_row = b->n_part = b->n_single = b->n_prompt = 0;
}

void batch_add(struct batch *b, struct job *j, uint32_t n) {
    uint32_t n_all = (uint32_t)j->all.n;
    bool out = j->n_done + n == n_all && !j->prefill;

    assert(n >= 1 && n <= n_all - j->n_done);
    assert(b->n_row + n <= b->n_row_max && b->n_part < b->n_part_max);
    b->part[b->n_part++] = (struct batch_part){ .job = j, .n = n, .out = out };
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pos = j->n_done + i;

        b->row[b->n_row++] = (struct model_row){
            .tok = j->all.id[pos], .seq = j->seq, .pos = pos, .out = out && i + 1 == n
        };
    }
    *(n == 1 ? &b->n_single : &b->n_prompt) += n;
}

/* ---- drawing ---- */

struct draw {
    struct batch *batch;
    atomic_uint next; /* part nobody has taken yet */
};

static void draw_parts(void *arg, uint32_t worker, uint32_t n_worker) {
    struct draw *d = arg;
    uint32_t i;

    while ((i = atomic_fetch_add_explicit(&d->next, 1, memory_order_relaxed)) < d->batch->n_part) {
        struct batch_part *p = &d->batch->part[i];

        if (p->out && !p->job->score)
            sample_next(p->job->sampler, p->logits, &p->token);
    }
}

void batch_draw(struct batch *b, struct pool *pool, const float *logits, uint32_t n_vocab) {
    struct draw d = { .batch = b };
    uint32_t n = 0;

    for (uint32_t i = 0; i < b->n_part; i++)
        if (b->part[i].out)
            b->part[i].logits = logits + (size_t)n++ * n_vocab;
    if (n > 1) /* each looks at all of the vocabulary */
        pool_share(pool, draw_parts, &d);
    else if (n > 0)
        draw_parts(&d, 0, 1);
}
