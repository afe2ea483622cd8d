/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <signal.h>
#include <string.h>

#include "engine/hw/topo.h"
#include "engine/tools/arg.h"
#include "engine/tools/bench-kern.h"
#include "engine/tools/bench.h"

/*
 * moe-bench - how fast the engine computes, without the service around it, and beside others
 */

static const char usage_text[] =
    "Usage: moe-bench MODEL [options]\n"
    "\n"
    "Times prompts of one sequence and decoding of several at once, in blocks between two probes\n"
    "of the machine, and prints tokens per second over all sequences: the median of blocks, 10\n"
    "and 90 % of them, the best tenth of samples, and the median per second of CPU time. A block\n"
    "does not count if meanwhile the machine was busy or CPUs shared a core. Token ids are\n"
    "random, the same in every run, so that all experts are used.\n"
    "\n"
    "  -p, --prompt N      prompt tokens; 0: do not time prompts (512)\n"
    "  -n, --gen N         tokens decoded by each sequence; 0: do not time decoding (16)\n"
    "  -b, --batch LIST    numbers of sequences to decode at once (1,8)\n"
    "  -d, --depth LIST    tokens the sequences hold before (0)\n"
    "  -t, --threads LIST  workers (one a usable core)\n"
    "  -r, --blocks N      blocks that count (5; with --vs 10), of twice as many at most\n"
    "  -s, --step N        prompt tokens evaluated together at most (512)\n"
    "      --busy          decode also with one spinning thread on every CPU\n"
    "      --vs COMMAND    time another engine in turn; up to 8 times\n"
    "      --answer        be such a command\n"
    "      --alone         one engine in memory at a time\n"
    "      --any           every block counts\n"
    "      --load N        first load N times, beside a plain read of the file (0)\n"
    "      --profile       then show the time of each phase, and how near its limit it is\n"
    "      --json FILE     every sample, a line each; -: to standard output, without the table\n"
    "      --seed N        of the order (1)\n"
    "      --kv FORMAT     format of the key/value cache: f16, f32 or q8_0 (f16)\n"
    "      --cache-dir DIR  keep packed weights there, or take them from there\n"
    "      --exact         float activations everywhere\n"
    "      --no-pack       weights stay as in the file\n"
    "      --expert-memory MIB  for experts, others are on disk, in --cache-dir; 0: all in memory\n"
    "      --kernels[=FORMAT]  time the matrix kernels alone; no model\n"
    "      --help, --version\n";

enum { BLOCK_MAX = 1000, TOKEN_MAX = 1 << 24 };

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static void parse_list(struct bench_list *l, const char *name, const char *s, uint32_t min,
                       uint32_t max) {
    for (l->n = 0;; s++) {
        if (l->n == BENCH_LIST_MAX)
            arg_error("--%s takes at most %d numbers", name, BENCH_LIST_MAX);
        l->at[l->n++] = arg_number_at(name, s, min, max, &s);
        if (!*s)
            break;
        if (*s != ',')
            arg_error("--%s takes numbers with commas between, not \"%s\"", name, s);
    }
    qsort(l->at, l->n, sizeof *l->at, ascending);
    for (uint32_t i = 1; i < l->n; i++)
        if (l->at[i] == l->at[i - 1])
            arg_error("--%s has %u twice", name, l->at[i]);
}

static void add_vs(struct bench_args *a, const char *command) {
    if (a->n_vs == BENCH_VS_MAX)
        arg_error("--vs at most %d times", BENCH_VS_MAX);
    a->vs[a->n_vs++] = command;
}

enum {
    OPT_KV = 256,
    OPT_CACHE_DIR,
    OPT_EXACT,
    OPT_EXPERTS,
    OPT_NO_PACK,
    OPT_BUSY,
    OPT_VS,
    OPT_ANSWER,
    OPT_ALONE,
    OPT_ANY,
    OPT_LOAD,
    OPT_PROFILE,
    OPT_JSON,
    OPT_SEED,
    OPT_KERNELS,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option options[] = {
    { "prompt", required_argument, NULL, 'p' },
    { "gen", required_argument, NULL, 'n' },
    { "batch", required_argument, NULL, 'b' },
    { "depth", required_argument, NULL, 'd' },
    { "threads", required_argument, NULL, 't' },
    { "blocks", required_argument, NULL, 'r' },
    { "step", required_argument, NULL, 's' },
    { "busy", no_argument, NULL, OPT_BUSY },
    { "vs", required_argument, NULL, OPT_VS },
    { "answer", no_argument, NULL, OPT_ANSWER },
    { "alone", no_argument, NULL, OPT_ALONE },
    { "any", no_argument, NULL, OPT_ANY },
    { "load", required_argument, NULL, OPT_LOAD },
    { "profile", no_argument, NULL, OPT_PROFILE },
    { "json", required_argument, NULL, OPT_JSON },
    { "seed", required_argument, NULL, OPT_SEED },
    { "kernels", optional_argument, NULL, OPT_KERNELS },
    { "kv", required_argument, NULL, OPT_KV },
    { "cache-dir", required_argument, NULL, OPT_CACHE_DIR },
    { "exact", no_argument, NULL, OPT_EXACT },
    { "no-pack", no_argument, NULL, OPT_NO_PACK },
    { "expert-memory", required_argument, NULL, OPT_EXPERTS },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { 0 },
};

static void parse_one(struct bench_args *a, int opt, const char *arg) {
    // clang-format off
    switch (opt) {
    case 'p':         a->prompt = arg_number("prompt", optarg, 0, TOKEN_MAX); break;
    case 'n':         a->gen = arg_number("gen", optarg, 0, TOKEN_MAX); break;
    case 'b':         parse_list(&a->batch, "batch", optarg, 1, 1024); break;
    case 'd':         parse_list(&a->depth, "depth", optarg, 0, TOKEN_MAX); break;
    case 't':         parse_list(&a->threads, "threads", optarg, 1, 1024); break;
    case 'r':         a->blocks = arg_number("blocks", optarg, 1, BLOCK_MAX); break;
    case 's':         a->step = arg_number("step", optarg, 1, 4096); break;
    case OPT_BUSY:    a->busy = true; break;
    case OPT_VS:      add_vs(a, optarg); break;
    case OPT_ANSWER:  a->answer = true; break;
    case OPT_ALONE:   a->alone = true; break;
    case OPT_ANY:     a->any = true; break;
    case OPT_LOAD:    a->load = arg_number("load", optarg, 0, BLOCK_MAX); break;
    case OPT_PROFILE: a->profile = true; break;
    case OPT_JSON:    a->json = optarg; break;
    case OPT_SEED:    a->seed = arg_number("seed", optarg, 0, UINT32_MAX); break;
    case OPT_CACHE_DIR: a->cache_dir = optarg; break;
    case OPT_EXACT:   a->exact = true; break;
    case OPT_NO_PACK: a->no_pack = true; break;
    case OPT_EXPERTS: a->experts = arg_number("expert-memory", optarg, 0, UINT32_MAX); break;
    case OPT_KV:      a->kv = arg_kv(optarg); break;
    case OPT_KERNELS:
        exit(bench_kern(optarg) < 0);
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

static void parse(struct bench_args *a, int argc, char **argv) {
    int opt;

    opterr = 0;
    while ((opt = getopt_long(argc, argv, "p:n:b:d:t:r:s:", options, NULL)) != -1)
        parse_one(a, opt, argv[optind - 1]);
    if (optind + 1 != argc)
        arg_error(optind == argc ? "which model?" : "one model at a time");
    if (a->prompt == 0 && a->gen == 0)
        arg_error("nothing to time: --prompt and --gen are both 0");
    a->model = argv[optind];
    if (a->blocks == 0)
        a->blocks = a->n_vs ? 10 : 5;
}

/* The probe first: it forks, and wants neither threads nor a model's memory in its child. */
static int open_all(struct bench *b, struct bench_args *a) {
    AUTO(topo_free) struct topo *topo = NULL;
    int r = topo_new(&topo);

    if (r < 0)
        return why_set(&b->why, BENCH_FAILED, "can not read the machine's topology");
    if (a->threads.n == 0)
        a->threads = (struct bench_list){ 1, { topo_n_worker(topo) } };
    if (a->answer)
        return bench_own_new(&b->own, a, &b->why);
    r = bench_probe_new(&b->probe, a->threads.at[a->threads.n - 1]);
    if (r < 0)
        return why_set(&b->why, BENCH_FAILED, "can not start the probe: %s", strerror(-r));
    if (a->json) {
        b->json = strcmp(a->json, "-") == 0 ? stdout : fopen(a->json, "we");
        if (!b->json)
            return why_set(&b->why, BENCH_FAILED, "%s: %m", a->json);
    }
    b->n_engine = 1 + a->n_vs;
    for (uint32_t i = 0; i < a->n_vs; i++)
        if (bench_vs_new(&b->vs[i], a->vs[i], a->model) != 0)
            return why_set(&b->why, BENCH_FAILED, "no memory");
    return bench_own_new(&b->own, a, &b->why);
}

static void close_all(struct bench *b) {
    for (uint32_t i = 0; i < b->args->n_vs; i++)
        bench_vs_free(b->vs[i]);
    bench_own_free(b->own);
    bench_probe_free(b->probe);
    if (b->json && b->json != stdout)
        fclose(b->json);
    free(b->block);
    free(b->load);
    free(b->record);
}

int main(int argc, char **argv) {
    static struct bench b;
    struct bench_args args = {
        .prompt = 512,
        .gen = 16,
        .step = 512,
        .seed = 1,
        .batch = { 2, { 1, 8 } },
        .depth = { 1, { 0 } },
        .kv = QUANT_F16,
    };
    int r;

    parse(&args, argc, argv);
    (void)signal(SIGPIPE, SIG_IGN); /* a command that does not read its input is no reason to end */
    b.args = &args;
    r = open_all(&b, &args);
    if (r == 0)
        r = args.answer ? bench_answer(b.own, &args, &b.why) : bench_run(&b);
    if (r == 0 && b.json != stdout && !args.answer)
        bench_table(&b);
    if (r == 0 && (fflush(stdout) != 0 || ferror(stdout)))
        r = why_set(&b.why, BENCH_FAILED, "standard output: %m");
    if (r == 0 && b.json && (fflush(b.json) != 0 || ferror(b.json)))
        r = why_set(&b.why, BENCH_FAILED, "%s: %m", args.json);
    if (r != 0)
        fprintf(stderr, "moe-bench: %s\n", b.why.text);
    close_all(&b);
    return r == 0 ? 0 : 1;
}
