/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/tools/bench.h"

/*
 * A block's figure is tokens over time of all turns: the harmonic mean of its samples. A ratio is
 * one a block, so what a block's machine was like is in neither. Rates by the clock are of blocks
 * that count; CPU time is hardly touched by what else runs, and is of all blocks.
 */

enum { WIDTH = 34 /* of the first column */ };

/* Does the wall clock of @block count? When no block does, there is nothing better. */
static bool counts(const struct bench *b, uint32_t block) {
    return b->n_good == 0 || b->args->any || b->block[block].fault == BENCH_FAULT__NONE;
}

/* Tokens per second of a block, or per CPU second; 0: none. */
static double block_rate(const struct bench *b, uint32_t block, uint32_t engine, uint32_t measure,
                         bool cpu) {
    double sum = 0;
    uint32_t n = 0;

    for (uint32_t i = 0; i < b->n_record; i++) {
        const struct bench_record *r = &b->record[i];
        double rate = cpu ? r->s.cpu_rate : r->s.rate;

        if (r->block != block || r->engine != engine || r->measure != measure)
            continue;
        if (rate <= 0)
            return 0;
        sum += 1 / rate;
        n++;
    }
    return n ? n / sum : 0;
}

/* One value a block: of @measure and @engine, over @than and @engine2 when that is not itself. */
static void spread(const struct bench *b, uint32_t measure, uint32_t engine, uint32_t than,
                   uint32_t engine2, bool cpu, struct bench_spread *ret) {
    bool ratio = measure != than || engine != engine2;
    double *x = calloc(b->n_block + (size_t)1, sizeof *x);
    uint32_t n = 0;

    for (uint32_t k = 0; k < b->n_block && x; k++) {
        double a = block_rate(b, k, engine, measure, cpu);
        double c = ratio ? block_rate(b, k, engine2, than, cpu) : 1;

        if (a > 0 && c > 0 && (cpu || counts(b, k)))
            x[n++] = a / c;
    }
    bench_spread(x, n, ret);
    free(x);
}

/* The best tenth of single samples: what the code can do, beside what the machine gave. */
static double best(const struct bench *b, uint32_t measure, uint32_t engine) {
    double *x = calloc(b->n_record + (size_t)1, sizeof *x), q;
    uint32_t n = 0;

    for (uint32_t i = 0; i < b->n_record && x; i++)
        if (b->record[i].engine == engine && b->record[i].measure == measure)
            x[n++] = b->record[i].s.rate;
    q = bench_quantile(x, n, 0.9);
    free(x);
    return q;
}

/* ---- limits ---- */

struct limit {
    double ops, bytes; /* a second */
};

/* What the probes beside @block saw, the better of the two: 99th percentile of reads, integer
 * peak. */
static struct limit limit_of(const struct bench_block *k, uint32_t threads) {
    const struct bench_machine *m[] = { &k->before, &k->after };
    struct limit best_of = { 0 };

    for (int i = 0; i < 2; i++) {
        double ops = threads > 1 ? m[i]->peak_all : m[i]->peak_one;
        double bytes = threads > 1 ? m[i]->read_all[1] : m[i]->read_one[1];

        best_of.ops = ops > best_of.ops ? ops : best_of.ops;
        best_of.bytes = bytes > best_of.bytes ? bytes : best_of.bytes;
    }
    return best_of;
}

/* What a token took, counted; of any sample, since that is the same for all. */
static const struct bench_count *count_of(const struct bench *b, uint32_t measure) {
    for (uint32_t i = 0; i < b->n_record; i++)
        if (b->record[i].measure == measure && b->record[i].s.counted)
            return &b->record[i].s.count;
    return NULL;
}

/* The share of its limit a measure reached, one value a block: of reads or of products, whichever
 * is nearer. */
static void limit_share(const struct bench *b, uint32_t measure, struct bench_spread *ret) {
    const struct bench_count *c = count_of(b, measure);
    double *x = calloc(b->n_block + (size_t)1, sizeof *x);
    uint32_t n = 0;

    for (uint32_t k = 0; k < b->n_block && x && c; k++) {
        struct limit l = limit_of(&b->block[k], b->measure[measure].threads);
        double rate = block_rate(b, k, 0, measure, false) / (double)c->tokens;
        double bytes = rate * (double)(c->weight_bytes + c->kv_bytes) / l.bytes;
        double ops = rate * (double)c->ops / l.ops;

        if (rate > 0 && counts(b, k))
            x[n++] = bytes > ops ? bytes : ops;
    }
    bench_spread(x, n, ret);
    free(x);
}

/* ---- tables ---- */

static double median_of(const struct bench *b, double (*get)(const struct bench_machine *)) {
    double *x = calloc(2 * (size_t)b->n_block + 1, sizeof *x), q;
    uint32_t n = 0;

    for (uint32_t k = 0; k < b->n_block && x; k++) {
        x[n++] = get(&b->block[k].before);
        x[n++] = get(&b->block[k].after);
    }
    q = bench_quantile(x, n, 0.5);
    free(x);
    return q;
}

#define GET(name_, expr_)                                                                          \
    static double name_(const struct bench_machine *m) {                                           \
        return expr_;                                                                              \
    }
GET(peak_one, m->peak_one)
GET(peak_all, m->peak_all)
GET(read_one, m->read_one[1])
GET(read_all, m->read_all[1])
GET(ping_pong, m->ping_pong)
GET(cpu_share, m->cpu_share)
GET(steal, m->steal)

static void print_machine(const struct bench *b) {
    uint32_t n_fault[3] = { 0 };

    for (uint32_t k = 0; k < b->n_block; k++)
        n_fault[b->block[k].fault]++;
    printf("machine         int8 %.0f Gop/s, of one thread %.0f; memory %.1f GB/s, %.1f; "
           "ping-pong %.0f ns\n",
           median_of(b, peak_all) / 1e9, median_of(b, peak_one) / 1e9, median_of(b, read_all) / 1e9,
           median_of(b, read_one) / 1e9, median_of(b, ping_pong) * 1e9);
    printf("                the probe got %.0f %% of its CPU time; %.1f %% was stolen\n",
           100 * median_of(b, cpu_share), 100 * median_of(b, steal));
    printf("blocks          %u, of which %u discarded: %u shared core, %u busy\n", b->n_block,
           b->args->any ? 0 : b->n_block - n_fault[0], n_fault[BENCH_FAULT_SHARED],
           n_fault[BENCH_FAULT_BUSY]);
    if (b->n_good == 0)
        printf(
            "                NONE COUNTS: rates by the clock below are of a disturbed machine\n");
    else if (b->n_good < b->args->blocks)
        printf("                FEWER THAN ASKED FOR\n");
}

static void print_head(const struct bench *b) {
    const struct model_info *m = &b->info.model;

    printf("%s: %s %s, %.2f G parameters, %.2f GB\n", m->name[0] ? m->name : b->args->model,
           m->arch, m->quant, (double)m->n_param / 1e9, (double)b->info.file_bytes / 1e9);
    printf("kernels %s, up to %u threads, %s cache, seed %llu\n", b->info.tier, b->info.n_worker,
           quant_info(b->args->kv)->name, (unsigned long long)b->args->seed);
    for (uint32_t i = 1; i < b->n_engine; i++)
        printf("%s: %s\n", bench_engine_name(i), bench_vs_command(b->vs[i - 1]));
    putchar('\n');
    printf("load            %.3f s\n", b->load_sec);
    if (m->pack_bytes)
        printf("packed weights  %.3f GB, most as %s, %.0f %% in huge pages\n",
               (double)m->pack_bytes / 1e9, m->layout,
               100 * (double)b->info.huge_bytes / (double)m->pack_bytes);
    else
        printf("packed weights  none\n");
    printf("peak memory     %.3f GB, %.3f of file and cache\n", (double)b->info.peak_bytes / 1e9,
           (double)b->info.peak_bytes / (double)(b->info.file_bytes + b->info.kv_bytes));
}

static void print_loads(const struct bench *b) {
    double x[3][64], over[2][64];
    uint32_t n = b->args->load < 64 ? b->args->load : 64;

    if (n == 0)
        return;
    for (uint32_t i = 0; i < n; i++) {
        const struct bench_load *l = &b->load[i];

        x[0][i] = l->raw;
        x[1][i] = l->cold;
        x[2][i] = l->warm;
        over[0][i] = l->cold / l->raw;
        over[1][i] = l->warm / l->cold;
    }
    printf("loading         plain read %.2f s, load %.2f s (%.2f x), ",
           bench_quantile(x[0], n, 0.5), bench_quantile(x[1], n, 0.5),
           bench_quantile(over[0], n, 0.5));
    printf("again%s %.2f s (%.2f x of that)\n", b->load[0].from_image ? " from the image" : "",
           bench_quantile(x[2], n, 0.5), bench_quantile(over[1], n, 0.5));
}

static void print_rate(const struct bench *b, uint32_t measure, uint32_t engine) {
    struct bench_spread wall, cpu, share;
    char name[64] = "";

    spread(b, measure, engine, measure, engine, false, &wall);
    spread(b, measure, engine, measure, engine, true, &cpu);
    if (wall.n == 0 && cpu.n == 0)
        return;
    if (engine == 0)
        bench_measure_name(&b->measure[measure], name, sizeof name);
    printf("%-*s %-9s %8.2f %8.2f %8.2f %8.2f  ", WIDTH, name, bench_engine_name(engine),
           wall.median, wall.p10, wall.p90, best(b, measure, engine));
    if (cpu.n)
        printf("%8.2f", cpu.median);
    if (engine == 0) {
        limit_share(b, measure, &share);
        printf("   %3.0f %%", 100 * share.median);
        bench_json_result(b, measure, engine, "limit_share", &share);
    }
    putchar('\n');
    bench_json_result(b, measure, engine, "rate", &wall);
    if (cpu.n)
        bench_json_result(b, measure, engine, "cpu_rate", &cpu);
}

static void print_over(const struct bench *b, uint32_t measure, uint32_t engine) {
    char what[32];

    for (int cpu = 0; cpu < 2; cpu++) {
        struct bench_spread s;

        spread(b, measure, 0, measure, engine, cpu, &s);
        if (s.n == 0)
            continue;
        snprintf(what, sizeof what, "moed/%s%s", bench_engine_name(engine), cpu ? ", CPU" : "");
        printf("%-*s %-14s %6.2f x  10-90 %%: %.2f to %.2f   95 %%: %.2f to %.2f   of %u\n", WIDTH,
               "", what, s.median, s.p10, s.p90, s.low, s.high, s.n);
        snprintf(what, sizeof what, "%srate_over_%s", cpu ? "cpu_" : "", bench_engine_name(engine));
        bench_json_result(b, measure, 0, what, &s);
    }
}

static void print_rates(const struct bench *b) {
    printf("\n%-*s %-9s %8s %8s %8s %8s  %8s   %s\n", WIDTH, "", "", "tokens/s", "10 %", "90 %",
           "best", "per CPU s", "of limit");
    for (uint32_t i = 0; i < b->n_measure; i++) {
        for (uint32_t e = 0; e < b->n_engine; e++)
            print_rate(b, i, e);
        for (uint32_t e = 1; e < b->n_engine; e++)
            print_over(b, i, e);
    }
}

/* ---- one measure over another ---- */

static bool same(const struct bench_measure *a, const struct bench_measure *b) {
    return a->kind == b->kind && a->n == b->n && a->n_seq == b->n_seq && a->depth == b->depth &&
           a->threads == b->threads && a->busy == b->busy;
}

/* The measure that is @m with one thing as small as it was asked for; -1: none, or @m itself. */
static int base_of(const struct bench *b, const struct bench_measure *m, int what) {
    const struct bench_args *a = b->args;
    struct bench_measure want = *m;

    if (what == 0)
        want.n_seq = a->batch.at[0];
    else if (what == 1)
        want.depth = a->depth.at[0];
    else
        want.threads = a->threads.at[0];
    if (same(&want, m) || (what == 0 && m->kind == BENCH_PREFILL))
        return -1;
    for (uint32_t i = 0; i < b->n_measure; i++)
        if (same(&b->measure[i], &want))
            return (int)i;
    return -1;
}

static void print_bases(const struct bench *b) {
    bool any = false;

    for (uint32_t i = 0; i < b->n_measure; i++)
        for (int what = 0; what < 3; what++) {
            int base = base_of(b, &b->measure[i], what);
            char name[64], than[64];
            struct bench_spread s;

            if (base < 0)
                continue;
            spread(b, i, 0, (uint32_t)base, 0, false, &s);
            if (s.n == 0)
                continue;
            bench_measure_name(&b->measure[i], name, sizeof name);
            bench_measure_name(&b->measure[base], than, sizeof than);
            printf("%s%-*s %6.2f x  10-90 %%: %.2f to %.2f   of %s\n", any ? "" : "\n", WIDTH, name,
                   s.median, s.p10, s.p90, than);
            any = true;
        }
}

static void print_counts(const struct bench *b) {
    printf("\n%-*s %9s %9s %8s %9s %9s %9s %7s\n", WIDTH, "per token", "weights", "keys etc",
           "experts", "barriers", "evaluated", "from disk", "allocs");
    for (uint32_t i = 0; i < b->n_measure; i++) {
        const struct bench_count *c = count_of(b, i);
        char name[64];
        double n;

        if (!c)
            continue;
        n = (double)c->tokens;
        bench_measure_name(&b->measure[i], name, sizeof name);
        printf("%-*s %6.1f MB %6.2f MB %8.1f %9.1f %9.2f %6.2f MB %7.2f\n", WIDTH, name,
               (double)c->weight_bytes / n / 1e6, (double)c->kv_bytes / n / 1e6,
               (double)c->experts / n, (double)c->barriers / n, (double)c->rows / n,
               (double)c->disk_bytes / n / 1e6, (double)c->allocs / n);
    }
}

/* ---- profiles ---- */

static void print_profile(const struct bench *b, uint32_t measure) {
    const struct bench_measure *m = &b->measure[measure];
    const struct bench_phase *all = b->profile[measure];
    struct limit l = limit_of(&b->block[b->n_block - 1], m->threads);
    double total = 0;
    char name[64];

    for (uint32_t i = 0; i < b->n_phase; i++)
        total += 1e-9 * (double)all[i].sum.nsec;
    if (total <= 0)
        return;
    bench_measure_name(m, name, sizeof name);
    printf("\n%-*s %8s %8s %8s %8s %8s  %s\n", WIDTH, name, "of time", "us each", "GB/s", "Gop/s",
           "at work", "of limit");
    for (uint32_t i = 0; i < b->n_phase; i++) {
        const struct ops_phase *p = &all[i].sum;
        double sec = 1e-9 * (double)p->nsec, bytes, ops;

        if (sec <= 0 || p->n == 0)
            continue;
        bytes = (double)(p->weight_bytes + p->kv_bytes) / sec;
        ops = (double)(p->int8_ops + p->f32_ops) / sec;
        printf("  %-*s %6.1f %% %8.1f %8.2f %8.1f %6.0f %%  %3.0f %% of %s\n", WIDTH - 2,
               all[i].name, 100 * sec / total, 1e6 * sec / (double)p->n, bytes / 1e9, ops / 1e9,
               1e-7 * (double)p->busy_nsec / sec / m->threads,
               100 * (bytes / l.bytes > ops / l.ops ? bytes / l.bytes : ops / l.ops),
               bytes / l.bytes > ops / l.ops ? "reads" : "products");
    }
}

void bench_table(struct bench *b) {
    print_head(b);
    print_loads(b);
    print_machine(b);
    print_rates(b);
    print_bases(b);
    print_counts(b);
    for (uint32_t i = 0; i < b->n_measure && b->args->profile; i++)
        print_profile(b, i);
}
