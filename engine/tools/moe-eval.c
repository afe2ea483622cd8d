/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tools/arg.h"
#include "engine/tools/eval.h"

/*
 * moe-eval - what the engine computes, without the service around it
 */

static const char usage_text[] =
    "Usage: moe-eval MODEL [what] [options]\n"
    "\n"
    "What to do, one of:\n"
    "  --ids ID,ID,...        evaluate these tokens\n"
    "  --text TEXT            evaluate this text, <bos> first\n"
    "  --file FILE            evaluate the text of a file, - for standard input\n"
    "  --layers               with one of the above: error of each layer against --exact, fed the\n"
    "                         same input\n"
    "  --perplexity FILE      perplexity of a file of documents that begin with <bos>\n"
    "  --tokenize TEXT        token ids of a text, - for standard input\n"
    "  --tokenize-lines FILE  token ids of each line of a file\n"
    "  --ls                   metadata and tensors; --json for programs\n"
    "\n"
    "Options:\n"
    "  --logits FILE          with an input: write logits, float32 [token][vocabulary]\n"
    "  --record FILE          with an input: write which experts tokens go to, and print how many\n"
    "                         could be guessed a layer before; see moe-cachesim\n"
    "  --greedy N             with an input: continue with N most likely tokens\n"
    "  --special              texts of special tokens are those tokens\n"
    "  --window N             with --perplexity: tokens evaluated together (512)\n"
    "  --kl                   with --perplexity: also KL(exact || fast) per token\n"
    "  --exact                float activations everywhere\n"
    "  --kv FORMAT            format of the key/value cache: f16, f32 or q8_0 (f16)\n"
    "  --threads N            workers (one a usable core)\n"
    "  --batch N              tokens a step (128)\n"
    "  --ctx N                context (as long as the input needs)\n"
    "  --no-pack              weights stay as in the file\n"
    "  --cache-dir DIR        keep packed weights there, or take them from there\n"
    "  --help, --version\n";

enum {
    OPT_IDS = 256,
    OPT_TEXT,
    OPT_FILE,
    OPT_LAYERS,
    OPT_PERPLEXITY,
    OPT_TOKENIZE,
    OPT_TOKENIZE_LINES,
    OPT_LS,
    OPT_JSON,
    OPT_LOGITS,
    OPT_GREEDY,
    OPT_SPECIAL,
    OPT_WINDOW,
    OPT_KL,
    OPT_RECORD,
    OPT_EXACT,
    OPT_KV,
    OPT_THREADS,
    OPT_BATCH,
    OPT_CTX,
    OPT_NO_PACK,
    OPT_CACHE_DIR,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option options[] = {
    { "ids", required_argument, NULL, OPT_IDS },
    { "text", required_argument, NULL, OPT_TEXT },
    { "file", required_argument, NULL, OPT_FILE },
    { "layers", no_argument, NULL, OPT_LAYERS },
    { "perplexity", required_argument, NULL, OPT_PERPLEXITY },
    { "tokenize", required_argument, NULL, OPT_TOKENIZE },
    { "tokenize-lines", required_argument, NULL, OPT_TOKENIZE_LINES },
    { "ls", no_argument, NULL, OPT_LS },
    { "json", no_argument, NULL, OPT_JSON },
    { "logits", required_argument, NULL, OPT_LOGITS },
    { "record", required_argument, NULL, OPT_RECORD },
    { "greedy", required_argument, NULL, OPT_GREEDY },
    { "special", no_argument, NULL, OPT_SPECIAL },
    { "window", required_argument, NULL, OPT_WINDOW },
    { "kl", no_argument, NULL, OPT_KL },
    { "exact", no_argument, NULL, OPT_EXACT },
    { "kv", required_argument, NULL, OPT_KV },
    { "threads", required_argument, NULL, OPT_THREADS },
    { "batch", required_argument, NULL, OPT_BATCH },
    { "ctx", required_argument, NULL, OPT_CTX },
    { "no-pack", no_argument, NULL, OPT_NO_PACK },
    { "cache-dir", required_argument, NULL, OPT_CACHE_DIR },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { 0 },
};

static void parse_one(struct eval_args *a, int opt, const char *arg) {
    // clang-format off
    switch (opt) {
    case OPT_IDS:            a->ids = optarg; break;
    case OPT_TEXT:           a->text = optarg; break;
    case OPT_FILE:           a->file = optarg; break;
    case OPT_LAYERS:         a->layers = true; break;
    case OPT_PERPLEXITY:     a->perplexity = optarg; break;
    case OPT_TOKENIZE:       a->tokenize = optarg; break;
    case OPT_TOKENIZE_LINES: a->tokenize_lines = optarg; break;
    case OPT_LS:             a->ls = true; break;
    case OPT_JSON:           a->json = true; break;
    case OPT_LOGITS:         a->logits = optarg; break;
    case OPT_RECORD:         a->record = optarg; break;
    case OPT_GREEDY:         a->greedy = arg_number("greedy", optarg, 1, 1 << 20); break;
    case OPT_SPECIAL:        a->special = true; break;
    case OPT_WINDOW:         a->window = arg_number("window", optarg, 2, 1 << 24); break;
    case OPT_KL:             a->kl = true; break;
    case OPT_EXACT:          a->exact = true; break;
    case OPT_THREADS:        a->threads = arg_number("threads", optarg, 1, 1024); break;
    case OPT_BATCH:          a->batch = arg_number("batch", optarg, 1, 4096); break;
    case OPT_CTX:            a->ctx = arg_number("ctx", optarg, 1, 1 << 24); break;
    case OPT_NO_PACK:        a->no_pack = true; break;
    case OPT_CACHE_DIR:      a->cache_dir = optarg; break;
    case OPT_KV:             a->kv = arg_kv(optarg); break;
    case OPT_HELP:
        fputs(usage_text, stdout);
        exit(0);
    case OPT_VERSION:
        puts("moe-eval " MOE_VERSION);
        exit(0);
    default:
        arg_error("%s: no such option, or its value is missing", arg);
    }
    // clang-format on
}

static void parse(struct eval_args *a, int argc, char **argv) {
    int opt;

    opterr = 0;
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1)
        parse_one(a, opt, argv[optind - 1]);
    if (optind + 1 != argc)
        arg_error(optind == argc ? "which model?" : "one model at a time");
    a->model = argv[optind];

    int n_input = !!a->ids + !!a->text + !!a->file;
    int n_what = (n_input > 0) + !!a->perplexity + !!a->tokenize + !!a->tokenize_lines + a->ls;

    if (n_input > 1 || n_what > 1)
        arg_error("--ids, --text, --file, --perplexity, --tokenize, --tokenize-lines and --ls "
                  "exclude each other");
    if (n_what == 0)
        arg_error("what is to be done?");
    if (n_input == 0 && (a->layers || a->logits || a->record || a->greedy))
        arg_error("--layers, --logits, --record and --greedy need --ids, --text or --file");
    if (a->kl && !a->perplexity)
        arg_error("--kl needs --perplexity");
    if (a->kl && a->exact)
        arg_error("--kl compares with --exact already");
}

static int run(struct eval *e) {
    const struct eval_args *a = e->args;
    int r = gguf_open(&e->gguf, a->model, &e->why);

    if (r != 0)
        return EVAL_FAILED;
    if (a->ls)
        return eval_ls(e);
    if (!a->ids) {
        r = eval_vocab(e);
        if (r != 0)
            return r;
    }
    if (a->tokenize || a->tokenize_lines)
        return eval_tokenize(e);

    if (topo_new(&e->topo) != 0 || pool_new(&e->pool, e->topo, a->threads) != 0)
        return eval_fail(e, "can not start workers");
    pool_adopt(e->pool);
    kern_bind(&e->kern, kern_cpu());

    return a->perplexity ? eval_perplexity(e) : a->layers ? eval_layers(e) : eval_run(e);
}

int main(int argc, char **argv) {
    struct eval_args args = { .window = 512, .batch = 128, .kv = QUANT_F16 };
    struct eval e = { .args = &args };
    int r;

    parse(&args, argc, argv);
    r = run(&e);
    if (r == 0 && (fflush(stdout) != 0 || ferror(stdout)))
        r = eval_fail(&e, "standard output: %m");
    if (r != 0)
        fprintf(stderr, "moe-eval: %s\n", e.why.text);
    pool_free(e.pool);
    topo_free(e.topo);
    vocab_free(e.vocab);
    gguf_free(e.gguf);

    return r == 0 ? 0 : 1;
}
