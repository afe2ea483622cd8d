/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "engine/model/model.h"
#include "engine/tools/arg.h"
#include "engine/tools/bench-probe.h"

/*
 * moe-bench - how fast the engine computes, without the service around it
 */

static const char usage_text[] =
    "Usage: moe-bench MODEL [options]\n"
    "\n"
    "Times loading, prompt evaluation of one sequence, and decoding of several sequences at once.\n"
    "Token ids are random, the same in every run, so that all experts are used. Rates are tokens\n"
    "per second over all sequences: the median of the repeats, with the slowest and the fastest,\n"
    "and the median per second of CPU time. Of what memory can deliver, measured before and\n"
    "after, the share is shown that the weights of a lone sequence took.\n"
    "\n"
    "  -p, --prompt N     prompt tokens; 0: do not time prompts (512)\n"
    "  -n, --gen N        tokens decoded by each sequence; 0: do not time decoding (64)\n"
    "  -b, --batch LIST   numbers of sequences to decode at once (1,8)\n"
    "  -d, --depth N      tokens the sequences hold before (0)\n"
    "  -t, --threads N    workers (one a usable core)\n"
    "  -r, --repeat N     repeats (5)\n"
    "  -s, --step N       prompt tokens evaluated together at most (128)\n"
    "      --kv FORMAT    format of the key/value cache: f16, f32 or q8_0 (f16)\n"
    "      --exact        float activations everywhere\n"
    "      --no-blas      never call OpenBLAS\n"
    "      --no-pack      weights stay as in the file\n"
    "      --cache-dir DIR  keep packed weights there, or take them from there\n"
    "      --json         one JSON object instead of the table\n"
    "      --help, --version\n";

enum { BATCH_MAX = 16, REPEAT_MAX = 1000, TOKEN_MAX = 1 << 24 };

struct args {
    const char *model, *cache_dir;
    uint32_t prompt, gen, depth, threads, repeat, step;
    uint32_t batch[BATCH_MAX], n_batch;
    enum quant_fmt kv;
    bool exact, no_blas, no_pack, json;
};

/* Tokens per second, one a repeat, and the same per second of CPU time. */
struct rates {
    uint32_t n_token; /* of one repeat, all sequences */
    uint32_t n_seq;
    double wall[REPEAT_MAX], cpu[REPEAT_MAX];
};

struct bench {
    const struct args *args;
    struct gguf *gguf;
    struct topo *topo;
    struct pool *pool;
    struct kern kern;
    struct model *model;
    struct kvcache *kv;
    struct model_row *row; /* [max(step, largest batch)] */
    uint32_t rng;
    struct why why;

    double load_sec;
    double read_before, read_after; /* bytes per second */
    uint64_t probe_size;
    uint64_t peak_rss; /* bytes */
    struct rates prefill;
    struct rates decode[BATCH_MAX];
};

enum {
    BENCH__OK,

    BENCH_FAILED, /* bench.why says what */
};

static int __attribute__((format(printf, 2, 3))) fail(struct bench *b, const char *fmt, ...) {
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(b->why.text, sizeof b->why.text, fmt, ap);
    va_end(ap);
    return BENCH_FAILED;
}

static double now_sec(clockid_t clock) {
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- running ---- */

static int32_t random_token(struct bench *b) {
    b->rng = b->rng * 1664525 + 1013904223;
    return (int32_t)((uint64_t)b->rng * model_info(b->model)->n_vocab >> 32);
}

static int step(struct bench *b, uint32_t n_row) {
    const float *logits;

    return model_step(b->model, b->kv, b->row, n_row, NULL, &logits) == 0
               ? 0
               : fail(b, "the step failed");
}

/* Add @n random tokens to @seq; logits of the last when @out. */
static int extend(struct bench *b, uint32_t seq, uint32_t n, bool out) {
    for (uint32_t done = 0; done < n;) {
        uint32_t chunk = n - done < b->args->step ? n - done : b->args->step;
        pos_t pos = kvcache_n(b->kv, seq);
        int r;

        if (kvcache_reserve(b->kv, seq, chunk) != 0)
            return fail(b, "the context is full");
        done += chunk;
        for (uint32_t i = 0; i < chunk; i++)
            b->row[i] = (struct model_row){
                .tok = random_token(b),
                .seq = seq,
                .pos = pos + i,
                .out = out && done == n && i == chunk - 1,
            };
        r = step(b, chunk);
        if (r != 0)
            return r;
    }
    return 0;
}

/* Add @n random tokens to each of @n_seq sequences, one at a time, with logits. */
static int decode(struct bench *b, uint32_t n_seq, uint32_t n) {
    int r = 0;

    for (uint32_t i = 0; i < n && r == 0; i++) {
        for (uint32_t seq = 0; seq < n_seq; seq++) {
            b->row[seq] = (struct model_row){
                .tok = random_token(b),
                .seq = seq,
                .pos = kvcache_n(b->kv, seq),
                .out = true,
            };
            if (kvcache_reserve(b->kv, seq, 1) != 0)
                return fail(b, "the context is full");
        }
        r = step(b, n_seq);
    }
    return r;
}

/* Back to the depth all sequences begin at. The cache was made wide enough to allow it. */
static int rewind_all(struct bench *b, uint32_t n_seq) {
    for (uint32_t seq = 0; seq < n_seq; seq++) {
        if (kvcache_n(b->kv, seq) >= b->args->depth) {
            if (kvcache_truncate(b->kv, seq, b->args->depth) != 0)
                return fail(b, "can not go back to depth %u", b->args->depth);
        } else {
            int r = extend(b, seq, b->args->depth - kvcache_n(b->kv, seq), false);

            if (r != 0)
                return r;
        }
    }
    return 0;
}

/* @n tokens of @n_seq sequences (0: a prompt of one), repeated; once more before, not counted, so
 * that weights are in memory and caches are warm. */
static int measure(struct bench *b, uint32_t n_seq, uint32_t n, struct rates *ret) {
    ret->n_seq = n_seq ? n_seq : 1;
    ret->n_token = n * ret->n_seq;
    for (uint32_t i = 0; i <= b->args->repeat; i++) {
        double wall, cpu;
        int r = rewind_all(b, ret->n_seq);

        if (r != 0)
            return r;
        wall = now_sec(CLOCK_MONOTONIC);
        cpu = now_sec(CLOCK_PROCESS_CPUTIME_ID);
        r = n_seq ? decode(b, n_seq, n) : extend(b, 0, n, true);
        if (r != 0)
            return r;
        wall = now_sec(CLOCK_MONOTONIC) - wall;
        cpu = now_sec(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        if (i > 0) {
            ret->wall[i - 1] = ret->n_token / wall;
            ret->cpu[i - 1] = ret->n_token / cpu;
        }
    }
    return 0;
}

static uint32_t max_batch(const struct args *a) {
    uint32_t max = 1;

    for (uint32_t i = 0; i < a->n_batch; i++)
        max = a->batch[i] > max ? a->batch[i] : max;
    return max;
}

static int load(struct bench *b) {
    const struct args *a = b->args;
    uint32_t n_seq = max_batch(a), longest = a->prompt > a->gen ? a->prompt : a->gen;
    struct model_options opt = {
        .n_ctx = a->depth + longest,
        .n_batch = a->step > n_seq ? a->step : n_seq,
        .n_out = n_seq,
        .exact = a->exact,
        .no_blas = a->no_blas,
        .no_pack = a->no_pack,
        .cache_dir = a->cache_dir,
    };
    static const struct weights_load whole;
    struct kv_shape shape;
    double begin = now_sec(CLOCK_MONOTONIC);

    if (gguf_open(&b->gguf, a->model, &b->why) != 0 ||
        model_new(&b->model, b->gguf, &b->kern, b->pool, &opt, &b->why) != 0 ||
        model_load(b->model, &whole, &b->why) != 0)
        return BENCH_FAILED;
    model_kv_shape(b->model, n_seq, a->kv, &shape);
    shape.n_back = longest; /* a repeat can be taken back even where the window slid */
    if (kvcache_new(&b->kv, &shape) != 0)
        return fail(b, "no memory for %u sequences of %u tokens", n_seq, shape.n_ctx);
    for (uint32_t i = 0, seq; i < n_seq; i++)
        (void)kvcache_seq_new(b->kv, &seq); /* as many as it was made for: 0, 1, 2, ... */
    b->load_sec = now_sec(CLOCK_MONOTONIC) - begin;

    b->row = calloc(opt.n_batch, sizeof *b->row);
    return b->row ? 0 : fail(b, "no memory");
}

/* Forget the peak so far: it is the probe's. Without the right to, the peak includes it. */
static void reset_peak(void) {
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    (void)!write(fd, "5", 1);
    (void)close(fd);
}

static int probe(struct bench *b, double *ret_rate) {
    return bench_probe(b->pool, b->topo, ret_rate, &b->probe_size) == 0
               ? 0
               : fail(b, "no memory to measure its speed with");
}

static int run(struct bench *b) {
    const struct args *a = b->args;
    struct rusage usage;
    int r;

    if (topo_new(&b->topo) != 0 || pool_new(&b->pool, b->topo, a->threads) != 0)
        return fail(b, "can not start workers");
    pool_adopt(b->pool);
    kern_bind(&b->kern, kern_cpu());
    r = probe(b, &b->read_before);
    if (r != 0)
        return r;

    reset_peak();
    r = load(b);
    if (r == 0 && a->prompt)
        r = measure(b, 0, a->prompt, &b->prefill);
    for (uint32_t i = 0; i < a->n_batch && r == 0 && a->gen; i++)
        r = measure(b, a->batch[i], a->gen, &b->decode[i]);
    if (r != 0)
        return r;
    getrusage(RUSAGE_SELF, &usage);
    b->peak_rss = (uint64_t)usage.ru_maxrss * 1024;

    return probe(b, &b->read_after);
}

/* ---- reporting ---- */

struct summary {
    double median, min, max;
};

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static struct summary sum_up(const double *x, uint32_t n) {
    double sorted[REPEAT_MAX];

    memcpy(sorted, x, n * sizeof *x);
    qsort(sorted, n, sizeof *sorted, compare);
    return (struct summary){ (sorted[(n - 1) / 2] + sorted[n / 2]) / 2, sorted[0], sorted[n - 1] };
}

static double read_rate(const struct bench *b) {
    return b->read_before > b->read_after ? b->read_before : b->read_after;
}

/* Of what the machine can read, how much a lone sequence's weights were. */
static double share(const struct bench *b, double token_rate) {
    return token_rate * (double)model_info(b->model)->token_bytes / read_rate(b);
}

static void print_rates(const struct bench *b, const char *what, const struct rates *s) {
    uint32_t n = b->args->repeat;
    struct summary wall = sum_up(s->wall, n), cpu = sum_up(s->cpu, n);

    printf("%-8s %6u x %-3u  %9.2f %9.2f %9.2f   %9.2f", what, s->n_token / s->n_seq, s->n_seq,
           wall.median, wall.min, wall.max, cpu.median);
    if (s != &b->prefill && s->n_seq == 1)
        printf("   %3.0f %%", 100 * share(b, wall.median));
    putchar('\n');
}

static void print_table(const struct bench *b) {
    const struct model_info *m = model_info(b->model);

    printf("%s: %s %s, %.2f G parameters, %.2f GB\n", m->name[0] ? m->name : b->args->model,
           m->arch, m->quant, (double)m->n_param / 1e9, (double)m->weight_bytes / 1e9);
    printf("%u threads, kernels %s, %s cache, depth %u\n\n", pool_n_worker(b->pool), b->kern.tier,
           quant_info(b->args->kv)->name, b->args->depth);

    printf("load            %9.3f s\n", b->load_sec);
    if (m->pack_bytes)
        printf("packed weights  %9.3f GB, most as %s\n", (double)m->pack_bytes / 1e9, m->layout);
    else
        printf("packed weights       none\n");
    printf("peak memory     %9.3f GB, %.3f of weights and cache\n", (double)b->peak_rss / 1e9,
           (double)b->peak_rss / (double)(m->weight_bytes + kvcache_n_byte(b->kv)));
    printf("weights a token %9.3f GB\n", (double)m->token_bytes / 1e9);
    printf("memory reads    %9.2f GB/s before, %.2f after\n\n", b->read_before / 1e9,
           b->read_after / 1e9);

    printf("%-22s %9s %9s %9s   %9s   %s\n", "tokens x sequences", "tokens/s", "slowest", "fastest",
           "per CPU s", "of memory reads");
    if (b->args->prompt)
        print_rates(b, "prompt", &b->prefill);
    for (uint32_t i = 0; i < b->args->n_batch && b->args->gen; i++)
        print_rates(b, "decode", &b->decode[i]);
}

static void put_num(struct json_object *o, const char *key, double x) {
    json_object_object_add(o, key, json_object_new_double(x));
}

static void put_int(struct json_object *o, const char *key, uint64_t x) {
    json_object_object_add(o, key, json_object_new_uint64(x));
}

static void put_str(struct json_object *o, const char *key, const char *s) {
    json_object_object_add(o, key, json_object_new_string(s));
}

static struct json_object *json_samples(const double *x, uint32_t n) {
    struct json_object *o = json_object_new_object(), *all = json_object_new_array();
    struct summary s = sum_up(x, n);

    put_num(o, "median", s.median);
    put_num(o, "min", s.min);
    put_num(o, "max", s.max);
    for (uint32_t i = 0; i < n; i++)
        json_object_array_add(all, json_object_new_double(x[i]));
    json_object_object_add(o, "samples", all);
    return o;
}

static struct json_object *json_rates(const struct bench *b, const struct rates *s) {
    struct json_object *o = json_object_new_object();
    uint32_t n = b->args->repeat;

    put_int(o, "n_seq", s->n_seq);
    put_int(o, "n_token", s->n_token);
    json_object_object_add(o, "token_per_sec", json_samples(s->wall, n));
    json_object_object_add(o, "token_per_cpu_sec", json_samples(s->cpu, n));
    if (s != &b->prefill && s->n_seq == 1)
        put_num(o, "read_share", share(b, sum_up(s->wall, n).median));
    return o;
}

static struct json_object *json_model(const struct bench *b) {
    const struct model_info *m = model_info(b->model);
    struct json_object *o = json_object_new_object();

    put_str(o, "path", b->args->model);
    put_str(o, "name", m->name);
    put_str(o, "arch", m->arch);
    put_str(o, "quant", m->quant);
    put_int(o, "n_param", m->n_param);
    put_int(o, "weight_bytes", m->weight_bytes);
    put_int(o, "token_bytes", m->token_bytes);
    put_int(o, "step_bytes", m->step_bytes);
    return o;
}

static void print_json(const struct bench *b) {
    struct json_object *o = json_object_new_object(), *all = json_object_new_array();

    put_str(o, "version", MOE_VERSION);
    json_object_object_add(o, "model", json_model(b));
    put_str(o, "tier", b->kern.tier);
    put_int(o, "threads", pool_n_worker(b->pool));
    put_str(o, "kv", quant_info(b->args->kv)->name);
    put_int(o, "kv_bytes", kvcache_n_byte(b->kv));
    put_int(o, "depth", b->args->depth);
    put_int(o, "step", b->args->step);
    put_num(o, "load_sec", b->load_sec);
    put_int(o, "pack_bytes", model_info(b->model)->pack_bytes);
    put_str(o, "layout", model_info(b->model)->layout);
    put_int(o, "peak_rss_bytes", b->peak_rss);
    put_num(o, "read_before_bytes_per_sec", b->read_before);
    put_num(o, "read_after_bytes_per_sec", b->read_after);
    put_int(o, "read_probe_bytes", b->probe_size);
    if (b->args->prompt)
        json_object_object_add(o, "prefill", json_rates(b, &b->prefill));
    for (uint32_t i = 0; i < b->args->n_batch && b->args->gen; i++)
        json_object_array_add(all, json_rates(b, &b->decode[i]));
    json_object_object_add(o, "decode", all);

    (void)json_c_set_serialization_double_format("%.6g", JSON_C_OPTION_GLOBAL);
    puts(
        json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(o);
}

/* ---- options ---- */

static void parse_batch(struct args *a, const char *s) {
    for (a->n_batch = 0;; s++) {
        if (a->n_batch == BATCH_MAX)
            arg_error("--batch takes at most %d numbers", BATCH_MAX);
        a->batch[a->n_batch++] = arg_number_at("batch", s, 1, 1024, &s);
        if (!*s)
            return;
        if (*s != ',')
            arg_error("--batch takes numbers with commas between, not \"%s\"", s);
    }
}

enum {
    OPT_KV = 256,
    OPT_EXACT,
    OPT_NO_BLAS,
    OPT_NO_PACK,
    OPT_CACHE_DIR,
    OPT_JSON,
    OPT_HELP,
    OPT_VERSION
};

static const struct option options[] = {
    { "prompt", required_argument, NULL, 'p' },
    { "gen", required_argument, NULL, 'n' },
    { "batch", required_argument, NULL, 'b' },
    { "depth", required_argument, NULL, 'd' },
    { "threads", required_argument, NULL, 't' },
    { "repeat", required_argument, NULL, 'r' },
    { "step", required_argument, NULL, 's' },
    { "kv", required_argument, NULL, OPT_KV },
    { "exact", no_argument, NULL, OPT_EXACT },
    { "no-blas", no_argument, NULL, OPT_NO_BLAS },
    { "no-pack", no_argument, NULL, OPT_NO_PACK },
    { "cache-dir", required_argument, NULL, OPT_CACHE_DIR },
    { "json", no_argument, NULL, OPT_JSON },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { 0 },
};

static void parse_one(struct args *a, int opt, const char *arg) {
    // clang-format off
    switch (opt) {
    case 'p':         a->prompt = arg_number("prompt", optarg, 0, TOKEN_MAX); break;
    case 'n':         a->gen = arg_number("gen", optarg, 0, TOKEN_MAX); break;
    case 'b':         parse_batch(a, optarg); break;
    case 'd':         a->depth = arg_number("depth", optarg, 0, TOKEN_MAX); break;
    case 't':         a->threads = arg_number("threads", optarg, 1, 1024); break;
    case 'r':         a->repeat = arg_number("repeat", optarg, 1, REPEAT_MAX); break;
    case 's':         a->step = arg_number("step", optarg, 1, 4096); break;
    case OPT_EXACT:   a->exact = true; break;
    case OPT_NO_BLAS: a->no_blas = true; break;
    case OPT_NO_PACK: a->no_pack = true; break;
    case OPT_CACHE_DIR: a->cache_dir = optarg; break;
    case OPT_JSON:    a->json = true; break;
    case OPT_KV:      a->kv = arg_kv(optarg); break;
    case OPT_HELP:
        fputs(usage_text, stdout);
        exit(0);
    case OPT_VERSION:
        puts("moe-bench " MOE_VERSION);
        exit(0);
    default:
        arg_error("%s: no such option, or its value is missing", arg);
    }
    // clang-format on
}

static void parse(struct args *a, int argc, char **argv) {
    int opt;

    opterr = 0;
    while ((opt = getopt_long(argc, argv, "p:n:b:d:t:r:s:", options, NULL)) != -1)
        parse_one(a, opt, argv[optind - 1]);
    if (optind + 1 != argc)
        arg_error(optind == argc ? "which model?" : "one model at a time");
    if (a->prompt == 0 && a->gen == 0)
        arg_error("nothing to time: --prompt and --gen are both 0");
    a->model = argv[optind];
}

int main(int argc, char **argv) {
    static struct bench b = { .rng = 1 };
    struct args args = {
        .prompt = 512,
        .gen = 64,
        .repeat = 5,
        .step = 128,
        .batch = { 1, 8 },
        .n_batch = 2,
        .kv = QUANT_F16,
    };
    int r;

    parse(&args, argc, argv);
    b.args = &args;
    r = run(&b);
    if (r == 0) {
        args.json ? print_json(&b) : print_table(&b);
        if (fflush(stdout) != 0 || ferror(stdout))
            r = fail(&b, "standard output: %m");
    }
    if (r != 0)
        fprintf(stderr, "moe-bench: %s\n", b.why.text);

    free(b.row);
    kvcache_free(b.kv);
    model_free(b.model);
    gguf_free(b.gguf);
    pool_free(b.pool);
    topo_free(b.topo);
    return r == 0 ? 0 : 1;
}
