/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <string.h>

#include "engine/tools/bench.h"

/*
 * A block is one probe, one sample of every engine in some order and then in the reverse of it, and
 * one more probe. What drifts slowly so meets all engines alike. Which measure comes first, and
 * which engine, is drawn anew for every block.
 */

static int __attribute__((format(printf, 2, 3))) fail(struct bench *b, const char *fmt, ...) {
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(b->why.text, sizeof b->why.text, fmt, ap);
    va_end(ap);
    return BENCH_FAILED;
}

const char *bench_engine_name(uint32_t engine) {
    static const char *const name[] = { "moed", "vs1", "vs2", "vs3", "vs4",
                                        "vs5",  "vs6", "vs7", "vs8" };

    return name[engine];
}

void bench_measure_name(const struct bench_measure *m, char *ret, size_t n) {
    char batch[32] = "", depth[32] = "";

    if (m->n_seq > 1)
        snprintf(batch, sizeof batch, " x %u", m->n_seq);
    if (m->depth)
        snprintf(depth, sizeof depth, " at %u", m->depth);
    snprintf(ret, n, "%s %u%s%s, %u thread%s%s", bench_kind_name(m->kind), m->n, batch, depth,
             m->threads, m->threads > 1 ? "s" : "", m->busy ? ", busy" : "");
}

static int add_measure(struct bench *b, struct bench_measure m) {
    if (b->n_measure == BENCH_MEASURE_MAX)
        return fail(b, "more than %d things to time", BENCH_MEASURE_MAX);
    b->measure[b->n_measure++] = m;
    return 0;
}

/* Busy CPUs are for what a user waits for first: one sequence, from the start. */
static int list_measures(struct bench *b) {
    const struct bench_args *a = b->args;
    int r = 0;

    for (uint32_t busy = 0; busy <= a->busy; busy++)
        for (uint32_t t = 0; t < a->threads.n; t++)
            for (uint32_t d = 0; d < (busy ? 1 : a->depth.n); d++) {
                struct bench_measure m = { BENCH_PREFILL,  a->prompt,        1,
                                           a->depth.at[d], a->threads.at[t], busy };

                if (a->prompt && !busy)
                    r = r ? r : add_measure(b, m);
                m.kind = BENCH_DECODE;
                m.n = a->gen;
                for (uint32_t k = 0; k < (busy ? 1 : a->batch.n) && a->gen; k++) {
                    m.n_seq = a->batch.at[k];
                    r = r ? r : add_measure(b, m);
                }
            }
    return r;
}

/* ---- samples ---- */

/* What is to be sampled next has its memory; under --alone nobody else has any. */
static int make_ready(struct bench *b, uint32_t engine) {
    int r = 0;

    for (uint32_t i = 1; i < b->n_engine && b->args->alone; i++)
        if (i != engine)
            bench_vs_stop(b->vs[i - 1]);
    if (engine == 0) {
        double sec = 0;

        r = bench_own_load(b->own, b->args->cache_dir, &sec, &b->why);
        if (r == 0 && sec > 0)
            r = bench_own_warm(b->own, &b->why);
        b->load_sec = sec > 0 ? sec : b->load_sec;
    } else if (b->args->alone) {
        bench_own_unload(b->own);
    }
    return r;
}

static struct bench_record *add_record(struct bench *b) {
    if (b->n_record == b->record_max) {
        uint32_t max = 2 * b->record_max + 64;
        struct bench_record *more = realloc(b->record, max * sizeof *more);

        if (!more)
            return NULL;
        b->record = more;
        b->record_max = max;
    }
    return &b->record[b->n_record++];
}

static int take_sample(struct bench *b, uint32_t turn, uint32_t engine, uint32_t measure) {
    const struct bench_measure *m = &b->measure[measure];
    struct bench_record *rec;
    struct bench_sample s;
    bool known = true;
    int r;

    if (b->unknown[engine][measure])
        return 0;
    if (m->busy && bench_probe_spin(b->probe, true) < 0)
        return fail(b, "can not keep CPUs busy");
    r = engine == 0 ? bench_own_sample(b->own, m, &s, &b->why)
                    : bench_vs_sample(b->vs[engine - 1], m, &s, &known, &b->why);
    if (m->busy)
        (void)bench_probe_spin(b->probe, false);
    if (r != 0)
        return r;
    b->unknown[engine][measure] = !known;
    if (!known)
        return 0;

    rec = add_record(b);
    if (!rec)
        return fail(b, "no memory");
    *rec = (struct bench_record){ b->n_block - 1, turn, engine, measure, s };
    bench_json_sample(b, rec);
    return 0;
}

/* A command's first answer may include loading and whatever else happens once. */
static int warm_up(struct bench *b) {
    int r = 0;

    for (uint32_t e = 1; e < b->n_engine && r == 0 && !b->args->alone; e++)
        for (uint32_t i = 0; i < b->n_measure && r == 0; i++) {
            struct bench_sample s;
            bool known;

            if (b->measure[i].busy)
                continue;
            r = bench_vs_sample(b->vs[e - 1], &b->measure[i], &s, &known, &b->why);
            b->unknown[e][i] = r == 0 && !known;
        }
    return r;
}

/* ---- blocks ---- */

static int probe(struct bench *b, struct bench_machine *ret) {
    int r = bench_probe_run(b->probe, ret);

    return r == 0 ? 0 : fail(b, "the probe failed: %s", strerror(-r));
}

/* A B C C B A. Without others there is nothing to compare with, and once is enough. */
static uint32_t draw_turns(struct bench *b, uint32_t *turn) {
    uint32_t n = b->n_engine;

    for (uint32_t i = 0; i < n; i++)
        turn[i] = i;
    bench_shuffle(turn, n, &b->rng);
    for (uint32_t i = 0; i < n; i++)
        turn[n + i] = turn[n - 1 - i];
    return n > 1 ? 2 * n : 1;
}

static int sample_all(struct bench *b) {
    uint32_t turn[2 * (1 + BENCH_VS_MAX)], order[BENCH_MEASURE_MAX];
    uint32_t n_turn = draw_turns(b, turn), n = b->n_measure;
    int r = 0;

    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    bench_shuffle(order, n, &b->rng);
    if (b->args->alone) {
        for (uint32_t t = 0; t < n_turn && r == 0; t++) {
            r = make_ready(b, turn[t]);
            for (uint32_t i = 0; i < n && r == 0; i++)
                r = take_sample(b, t, turn[t], order[i]);
        }
        return r;
    }
    for (uint32_t i = 0; i < n && r == 0; i++)
        for (uint32_t t = 0; t < n_turn && r == 0; t++) {
            r = make_ready(b, turn[t]);
            r = r ? r : take_sample(b, t, turn[t], order[i]);
        }
    return r;
}

static int run_block(struct bench *b) {
    struct bench_block *k = &b->block[b->n_block++];
    int r = probe(b, &k->before);

    if (r != 0)
        return r;
    bench_json_probe(b, b->n_block - 1, false);
    r = sample_all(b);
    if (r == 0)
        r = probe(b, &k->after);
    if (r != 0)
        return r;
    k->fault = bench_machine_fault(&k->before);
    if (k->fault == BENCH_FAULT__NONE)
        k->fault = bench_machine_fault(&k->after);
    b->n_good += k->fault == BENCH_FAULT__NONE || b->args->any;
    bench_json_probe(b, b->n_block - 1, true);
    return 0;
}

static int run_loads(struct bench *b) {
    for (uint32_t i = 0; i < b->args->load; i++) {
        int r = bench_load_round(b->own, b->args, &b->load[i], &b->why);

        if (r != 0)
            return r;
        bench_json_load(b, i);
    }
    return 0;
}

static uint64_t profile_nsec(const struct bench_phase *p, uint32_t n) {
    uint64_t sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += p[i].sum.nsec;
    return sum;
}

/* Of some samples the quickest, which was disturbed the least. */
static int run_profile(struct bench *b, uint32_t measure) {
    struct bench_phase one[BENCH_PHASE_MAX];
    uint64_t least = UINT64_MAX;

    for (int i = 0; i < 5; i++) {
        int r = bench_own_profile(b->own, &b->measure[measure], one, &b->n_phase, &b->why);

        if (r != 0)
            return r;
        if (profile_nsec(one, b->n_phase) < least) {
            least = profile_nsec(one, b->n_phase);
            memcpy(b->profile[measure], one, sizeof one);
        }
    }
    return 0;
}

/* Clocks cost a little, so profiles are not of samples that count. */
static int run_profiles(struct bench *b) {
    int r = make_ready(b, 0);

    for (uint32_t i = 0; i < b->n_measure && r == 0; i++) {
        if (b->measure[i].busy)
            continue;
        r = run_profile(b, i);
        if (r == 0)
            bench_json_profile(b, i);
    }
    return r;
}

int bench_run(struct bench *b) {
    const struct bench_args *a = b->args;
    int r = list_measures(b);

    b->rng = a->seed;
    b->block = calloc(2 * (size_t)a->blocks, sizeof *b->block);
    b->load = calloc(a->load + (size_t)1, sizeof *b->load);
    if (!b->block || !b->load)
        return fail(b, "no memory");
    r = r ? r : run_loads(b);
    r = r ? r : make_ready(b, 0);
    if (r != 0)
        return r;
    bench_own_describe(b->own, &b->info);
    bench_json_run(b);
    r = warm_up(b);
    while (r == 0 && b->n_good < a->blocks && b->n_block < 2 * a->blocks)
        r = run_block(b);
    r = r ? r : make_ready(b, 0);
    if (r != 0)
        return r;
    bench_own_describe(b->own, &b->info);
    return a->profile ? run_profiles(b) : 0;
}
