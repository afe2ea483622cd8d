/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "engine/hw/topo.h"
#include "engine/kv/kvcache.h"
#include "engine/tools/bench.h"

struct bench_own {
    const struct bench_args *args;
    struct topo *topo;
    struct pool *pool;
    struct kern kern;
    struct gguf *gguf;
    struct model *model; /* NULL: not loaded */
    struct kvcache *kv;
    struct model_row *row;         /* [max(step, largest batch)] */
    uint32_t stem[BENCH_LIST_MAX]; /* a sequence of each depth, which samples go on from */
    uint32_t *seq;                 /* [largest batch] */
    uint32_t n_seq_max;
    uint32_t rng;
};

static int __attribute__((format(printf, 2, 3))) fail(struct why *why, const char *fmt, ...) {
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why->text, sizeof why->text, fmt, ap);
    va_end(ap);
    return BENCH_FAILED;
}

static double now_sec(clockid_t clock) {
    struct timespec t;

    (void)clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t largest(const struct bench_list *l) {
    return l->at[l->n - 1];
}

int bench_own_new(struct bench_own **ret_own, const struct bench_args *a, struct why *why) {
    AUTO(bench_own_free) struct bench_own *o = calloc(1, sizeof *o);
    uint32_t n_row;

    if (!o)
        return fail(why, "no memory");
    o->args = a;
    o->rng = 1;
    o->n_seq_max = largest(&a->batch);
    n_row = a->step > o->n_seq_max ? a->step : o->n_seq_max;
    o->row = calloc(n_row, sizeof *o->row);
    o->seq = calloc(o->n_seq_max, sizeof *o->seq);
    if (!o->row || !o->seq)
        return fail(why, "no memory");
    if (topo_new(&o->topo) != 0 || pool_new(&o->pool, o->topo, largest(&a->threads)) != 0)
        return fail(why, "can not start workers");
    pool_adopt(o->pool);
    kern_bind(&o->kern, kern_cpu());

    *ret_own = take(o);
    return 0;
}

struct bench_own *bench_own_free(struct bench_own *o) {
    if (!o)
        return NULL;

    bench_own_unload(o);
    free(o->seq);
    free(o->row);
    pool_free(o->pool);
    topo_free(o->topo);
    free(o);
    return NULL;
}

static int make_cache(struct bench_own *o, struct why *why) {
    const struct bench_args *a = o->args;
    struct kv_shape shape;

    /* the sequences of all depths stay, and those of a sample go on from them */
    model_kv_shape(o->model, o->n_seq_max + a->depth.n, a->kv, &shape);
    if (kvcache_new(&o->kv, &shape) != 0)
        return fail(why, "no memory for %u sequences of %u tokens", shape.n_seq, shape.n_ctx);
    for (uint32_t i = 0; i < a->depth.n; i++)
        if (kvcache_seq_new(o->kv, &o->stem[i]) != 0)
            return fail(why, "the cache holds no sequence");
    return 0;
}

int bench_own_load(struct bench_own *o, const char *cache_dir, double *ret_sec, struct why *why) {
    const struct bench_args *a = o->args;
    struct model_options opt = {
        .n_ctx = largest(&a->depth) + (a->prompt > a->gen ? a->prompt : a->gen),
        .n_batch = a->step > o->n_seq_max ? a->step : o->n_seq_max,
        .n_out = o->n_seq_max,
        .exact = a->exact,
        .no_pack = a->no_pack,
        .expert_bytes = a->experts << 20,
        .cache_dir = cache_dir,
    };
    static const struct weights_load whole;
    double begin = now_sec(CLOCK_MONOTONIC);

    if (o->model)
        return 0;
    if (gguf_open(&o->gguf, a->model, why) != 0 ||
        model_new(&o->model, o->gguf, &o->kern, o->pool, &opt, why) != 0 ||
        model_load(o->model, &whole, why) != 0)
        return BENCH_FAILED;
    if (ret_sec)
        *ret_sec = now_sec(CLOCK_MONOTONIC) - begin;
    model_keep_wait(o->model);

    return make_cache(o, why);
}

void bench_own_unload(struct bench_own *o) {
    o->kv = kvcache_free(o->kv);
    o->model = model_free(o->model);
    o->gguf = gguf_free(o->gguf);
}

/* ---- steps ---- */

/* Random, the same in every run, so that all experts are used. */
static int32_t random_token(struct bench_own *o) {
    o->rng = o->rng * 1664525 + 1013904223;
    return (int32_t)((uint64_t)o->rng * model_info(o->model)->n_vocab >> 32);
}

static int step(struct bench_own *o, uint32_t n_row, struct why *why) {
    const float *logits;

    return model_step(o->model, o->kv, o->row, n_row, NULL, &logits) == 0
               ? 0
               : fail(why, "%s", model_why(o->model));
}

/* Add @n random tokens to @seq; logits of the last when @out. */
static int extend(struct bench_own *o, uint32_t seq, uint32_t n, bool out, struct why *why) {
    for (uint32_t done = 0; done < n;) {
        uint32_t chunk = n - done < o->args->step ? n - done : o->args->step;
        pos_t pos = kvcache_n(o->kv, seq);
        int r;

        if (kvcache_reserve(o->kv, seq, chunk) != 0)
            return fail(why, "the cache is full");
        done += chunk;
        for (uint32_t i = 0; i < chunk; i++)
            o->row[i] = (struct model_row){
                .tok = random_token(o),
                .seq = seq,
                .pos = pos + i,
                .out = out && done == n && i == chunk - 1,
            };
        r = step(o, chunk, why);
        if (r != 0)
            return r;
    }
    return 0;
}

/* Add @n random tokens to each of @n_seq sequences, one at a time, with logits. */
static int decode(struct bench_own *o, uint32_t n_seq, uint32_t n, struct why *why) {
    int r = 0;

    for (uint32_t i = 0; i < n && r == 0; i++) {
        for (uint32_t k = 0; k < n_seq; k++) {
            o->row[k] = (struct model_row){
                .tok = random_token(o),
                .seq = o->seq[k],
                .pos = kvcache_n(o->kv, o->seq[k]),
                .out = true,
            };
            if (kvcache_reserve(o->kv, o->seq[k], 1) != 0)
                return fail(why, "the cache is full");
        }
        r = step(o, n_seq, why);
    }
    return r;
}

/* ---- samples ---- */

static int open_seqs(struct bench_own *o, uint32_t depth, uint32_t n_seq, struct why *why) {
    const struct bench_list *all = &o->args->depth;
    uint32_t i = 0;

    while (i + 1 < all->n && all->at[i] != depth)
        i++;
    if (kvcache_n(o->kv, o->stem[i]) < depth) {
        int r = extend(o, o->stem[i], depth - kvcache_n(o->kv, o->stem[i]), false, why);

        if (r != 0)
            return r;
    }
    for (uint32_t k = 0; k < n_seq; k++)
        if (kvcache_fork(o->kv, o->stem[i], depth, &o->seq[k]) != 0)
            return fail(why, "the cache holds no %u sequences of %u tokens", n_seq, depth);
    return 0;
}

static void close_seqs(struct bench_own *o, uint32_t n_seq) {
    for (uint32_t k = 0; k < n_seq; k++)
        kvcache_seq_free(o->kv, o->seq[k]);
}

static void count(const struct bench_own *o, struct bench_count *ret) {
    struct model_stats s;
    struct rusage usage;
    const struct ops_phase *phase;
    uint32_t n;

    model_stats(o->model, &s);
    *ret = (struct bench_count){
        .rows = s.rows,
        .steps = s.steps,
        .barriers = s.barriers,
        .experts = s.experts,
        .weight_bytes = s.weight_bytes,
        .allocs = bench_alloc_n(),
    };
    phase = model_phases(o->model, &n);
    for (uint32_t i = 0; i < n; i++) {
        ret->kv_bytes += phase[i].kv_bytes;
        ret->ops += phase[i].int8_ops + phase[i].f32_ops;
    }
    (void)getrusage(RUSAGE_SELF, &usage);
    ret->disk_bytes = (uint64_t)usage.ru_inblock * 512;
}

static void subtract(struct bench_count *a, const struct bench_count *b) {
    a->rows -= b->rows;
    a->steps -= b->steps;
    a->barriers -= b->barriers;
    a->experts -= b->experts;
    a->weight_bytes -= b->weight_bytes;
    a->kv_bytes -= b->kv_bytes;
    a->ops -= b->ops;
    a->disk_bytes -= b->disk_bytes;
    a->allocs -= b->allocs;
}

static int evaluate(struct bench_own *o, const struct bench_measure *m, struct why *why) {
    return m->kind == BENCH_PREFILL ? extend(o, o->seq[0], m->n, true, why)
                                    : decode(o, m->n_seq, m->n, why);
}

int bench_own_sample(struct bench_own *o, const struct bench_measure *m, struct bench_sample *ret,
                     struct why *why) {
    struct bench_count before;
    double wall, cpu;
    int r;

    r = open_seqs(o, m->depth, m->n_seq, why);
    if (r != 0)
        return r;
    pool_limit(o->pool, m->threads);
    count(o, &before);
    wall = now_sec(CLOCK_MONOTONIC);
    cpu = now_sec(CLOCK_PROCESS_CPUTIME_ID);
    r = evaluate(o, m, why);
    if (r != 0)
        return r;
    wall = now_sec(CLOCK_MONOTONIC) - wall;
    cpu = now_sec(CLOCK_PROCESS_CPUTIME_ID) - cpu;

    *ret = (struct bench_sample){ .counted = true };
    count(o, &ret->count);
    subtract(&ret->count, &before);
    ret->count.tokens = (uint64_t)m->n * m->n_seq;
    ret->rate = (double)ret->count.tokens / wall;
    ret->cpu_rate = (double)ret->count.tokens / cpu;
    close_seqs(o, m->n_seq);
    return 0;
}

int bench_own_warm(struct bench_own *o, struct why *why) {
    const struct bench_args *a = o->args;
    int r = 0;

    pool_limit(o->pool, pool_n_worker(o->pool));
    for (uint32_t d = 0; d < a->depth.n && r == 0; d++)
        for (int i = 0; i < 2 && r == 0; i++) {
            struct bench_measure m = {
                .kind = i ? BENCH_DECODE : BENCH_PREFILL,
                .n = i                     ? 1
                     : a->prompt < a->step ? a->prompt
                                           : a->step,
                .n_seq = i ? o->n_seq_max : 1,
            };
            struct bench_sample s;

            m.depth = a->depth.at[d];
            m.threads = pool_n_worker(o->pool);
            if (m.n > 0 && (i == 0 || a->gen > 0))
                r = bench_own_sample(o, &m, &s, why);
        }
    return r;
}

int bench_own_profile(struct bench_own *o, const struct bench_measure *m, struct bench_phase *ret,
                      uint32_t *ret_n, struct why *why) {
    struct ops_phase before[BENCH_PHASE_MAX];
    const struct ops_phase *now;
    struct bench_sample s;
    uint32_t n;
    int r;

    now = model_phases(o->model, &n);
    n = n < BENCH_PHASE_MAX ? n : BENCH_PHASE_MAX;
    memcpy(before, now, n * sizeof *before);
    model_clocks(o->model, true);
    r = bench_own_sample(o, m, &s, why);
    model_clocks(o->model, false);
    if (r != 0)
        return r;
    for (uint32_t i = 0; i < n; i++) {
        struct ops_phase *sum = &ret[i].sum;

        ret[i] = (struct bench_phase){ .name = now[i].name };
        sum->n = now[i].n - before[i].n;
        sum->nsec = now[i].nsec - before[i].nsec;
        sum->busy_nsec = now[i].busy_nsec - before[i].busy_nsec;
        sum->barriers = now[i].barriers - before[i].barriers;
        sum->weight_bytes = now[i].weight_bytes - before[i].weight_bytes;
        sum->kv_bytes = now[i].kv_bytes - before[i].kv_bytes;
        sum->int8_ops = now[i].int8_ops - before[i].int8_ops;
        sum->f32_ops = now[i].f32_ops - before[i].f32_ops;
    }
    *ret_n = n;
    return 0;
}

/* The most memory there was; 0: not known. What getrusage() says may be the parent's. */
static uint64_t peak_bytes(void) {
    FILE *f = fopen("/proc/self/status", "re");
    unsigned long long kib = 0;
    char line[256];

    if (!f)
        return 0;
    while (kib == 0 && fgets(line, sizeof line, f))
        (void)!sscanf(line, "VmHWM: %llu", &kib);
    fclose(f);
    return kib * 1024;
}

void bench_own_describe(const struct bench_own *o, struct bench_own_info *ret) {
    *ret = (struct bench_own_info){
        .tier = o->kern.tier,
        .n_worker = pool_n_worker(o->pool),
        .model = *model_info(o->model),
        .peak_bytes = peak_bytes(),
        .kv_bytes = kvcache_n_touched(o->kv),
        .huge_bytes = model_huge_bytes(o->model),
    };
    for (uint32_t i = 0; i < gguf_n_part(o->gguf); i++)
        ret->file_bytes += gguf_part_size(o->gguf, i);
}
