/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bench - what the parts of moe-bench share
 *
 *   moe-bench.c    options
 *   bench-run.c    blocks: which sample is taken when, and between which probes
 *   bench-own.c    this engine: loading, steps, counters
 *   bench-vs.c     another engine: a command that is asked for figures
 *   bench-answer.c this engine as the command of another moe-bench
 *   bench-load.c   loading beside a plain read of the file
 *   bench-json.c   every sample, a line of JSON each
 *   bench-table.c  what the samples say, for people
 *
 * Functions return 0 or BENCH_FAILED; the sentence is then in the bench's why.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/quant.h"
#include "engine/model/model.h"
#include "engine/tools/bench-probe.h"
#include "engine/tools/bench-stat.h"

enum { BENCH__OK, BENCH_FAILED };

enum {
    BENCH_LIST_MAX = 16,    /* numbers of one option */
    BENCH_VS_MAX = 8,       /* other engines */
    BENCH_MEASURE_MAX = 96, /* things to time */
    BENCH_PHASE_MAX = 16,   /* phases of a profile */
};

struct bench_list {
    uint32_t n, at[BENCH_LIST_MAX];
};

struct bench_args {
    const char *model, *json, *cache_dir;
    const char *vs[BENCH_VS_MAX];
    uint32_t n_vs, prompt, gen, step, blocks, load;
    struct bench_list batch, depth, threads; /* ascending */
    uint64_t seed;
    enum quant_fmt kv;
    uint64_t experts; /* MiB of memory for them; 0: all are there */
    bool exact, no_pack, alone, answer, any, busy, profile;
};

/* ---- what is timed ---- */

enum bench_kind { BENCH_PREFILL, BENCH_DECODE };

struct bench_measure {
    enum bench_kind kind;
    uint32_t n;       /* tokens of a sequence */
    uint32_t n_seq;   /* sequences; PREFILL: 1 */
    uint32_t depth;   /* positions each holds before */
    uint32_t threads; /* workers */
    bool busy;        /* with a spinning thread on every CPU */
};

/* What steps did: exact, whatever the machine does meanwhile. */
struct bench_count {
    uint64_t tokens; /* asked for */
    uint64_t rows;   /* evaluated */
    uint64_t steps, barriers, experts;
    uint64_t weight_bytes, kv_bytes; /* read */
    uint64_t ops;                    /* of products */
    uint64_t disk_bytes;             /* read by this process */
    uint64_t allocs;                 /* calls for memory */
};

struct bench_sample {
    double rate;     /* tokens per second */
    double cpu_rate; /* tokens per second of CPU time; 0: not known */
    bool counted;
    struct bench_count count;
};

/* One phase of a profile. */
struct bench_phase {
    const char *name;
    struct ops_phase sum;
};

/* ---- this engine ---- */

struct bench_own;

/* Starts the workers; loads nothing. @n_worker: the most threads of any measure. */
int bench_own_new(struct bench_own **ret_own, const struct bench_args *a, struct why *why);
struct bench_own *bench_own_free(struct bench_own *o);
AUTO_DEFINE(struct bench_own *, bench_own_free)

/* Load the model and make the cache; nothing when that is done. If packed weights are kept, it
 * returns once they are.
 * @cache_dir:  where to keep them, or NULL
 * *ret_sec, when not NULL: how long the model took. */
int bench_own_load(struct bench_own *o, const char *cache_dir, double *ret_sec, struct why *why);
void bench_own_unload(struct bench_own *o);
/* One step of each kind, and the positions of all depths: then nothing happens a first time. */
int bench_own_warm(struct bench_own *o, struct why *why);
int bench_own_sample(struct bench_own *o, const struct bench_measure *m, struct bench_sample *ret,
                     struct why *why);
/* What the phases of one sample did, and how long they took.
 * @ret: [BENCH_PHASE_MAX], of which *@ret_n are there */
int bench_own_profile(struct bench_own *o, const struct bench_measure *m, struct bench_phase *ret,
                      uint32_t *ret_n, struct why *why);

struct bench_own_info {
    const char *tier;
    uint32_t n_worker;
    struct model_info model;
    uint64_t file_bytes; /* of all parts */
    uint64_t peak_bytes; /* most memory this process had, file mappings included */
    uint64_t kv_bytes;   /* of the cache, as far as it was touched */
    uint64_t huge_bytes; /* of packed weights in huge pages */
};
/* Of a model that is loaded. */
void bench_own_describe(const struct bench_own *o, struct bench_own_info *ret);

/* Calls for memory by this program so far, all threads. */
uint64_t bench_alloc_n(void);

/* ---- other engines ---- */

struct bench_vs;

/* Starts nothing yet. */
int bench_vs_new(struct bench_vs **ret_vs, const char *command, const char *model);
struct bench_vs *bench_vs_free(struct bench_vs *v);
/* Ask for one sample; starts the command when it does not run.
 * *ret_known: false when the command says it can not do this. */
int bench_vs_sample(struct bench_vs *v, const struct bench_measure *m, struct bench_sample *ret,
                    bool *ret_known, struct why *why);
/* End the command, if it runs. */
void bench_vs_stop(struct bench_vs *v);
const char *bench_vs_command(const struct bench_vs *v);

/* Answer requests on standard input until it ends. */
int bench_answer(struct bench_own *o, const struct bench_args *a, struct why *why);
/* "prefill" or "decode", as in requests and in JSON */
const char *bench_kind_name(enum bench_kind kind);

/* ---- loading ---- */

struct bench_load {
    double raw, cold, warm; /* seconds */
    bool from_image;        /* warm: packed weights were there */
    uint64_t bytes;         /* of the files */
    double cached;          /* of the files, what was still in memory before the cold load */
};

/* One round: read the files past the page cache; load with nothing cached or packed; load again,
 * with what was packed if there is a cache directory. Nothing is loaded afterwards. */
int bench_load_round(struct bench_own *o, const struct bench_args *a, struct bench_load *ret,
                     struct why *why);

/* ---- all of it ---- */

struct bench_record {
    uint32_t block, turn, engine, measure; /* engine 0: this one */
    struct bench_sample s;
};

struct bench_block {
    struct bench_machine before, after;
    enum bench_fault fault;
};

struct bench {
    const struct bench_args *args;
    struct bench_probe *probe;
    struct bench_own *own;
    struct bench_vs *vs[BENCH_VS_MAX];
    bool unknown[1 + BENCH_VS_MAX][BENCH_MEASURE_MAX]; /* the engine can not do it */
    uint32_t n_engine;
    struct bench_measure measure[BENCH_MEASURE_MAX];
    uint32_t n_measure;

    struct bench_block *block;
    uint32_t n_block, n_good;
    struct bench_record *record;
    uint32_t n_record, record_max;
    struct bench_load *load; /* [args->load] */
    struct bench_phase profile[BENCH_MEASURE_MAX][BENCH_PHASE_MAX];
    uint32_t n_phase;
    struct bench_own_info info;
    double load_sec;

    FILE *json; /* NULL: none */
    uint64_t rng;
    struct why why;
};

extern const char bench_commit[]; /* of the sources, or the version */

int bench_run(struct bench *b);
/* "moed", "vs1", … */
const char *bench_engine_name(uint32_t engine);
/* "decode 16 x 8 at 1024, 2 threads, busy" */
void bench_measure_name(const struct bench_measure *m, char *ret, size_t n);

void bench_json_run(const struct bench *b);
void bench_json_load(const struct bench *b, uint32_t round);
void bench_json_probe(const struct bench *b, uint32_t block, bool after);
void bench_json_sample(const struct bench *b, const struct bench_record *r);
void bench_json_profile(const struct bench *b, uint32_t measure);
/* A figure of the table, so that scripts need not parse it. */
void bench_json_result(const struct bench *b, uint32_t measure, uint32_t engine, const char *what,
                       const struct bench_spread *s);

void bench_table(struct bench *b);
