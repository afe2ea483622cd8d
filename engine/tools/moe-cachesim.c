/* SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/auto.h"
#include "engine/tools/arg.h"
#include "engine/tools/sim.h"

/*
 * moe-cachesim - how many experts would be read from disk, by policy and number of slots
 */

static const char usage_text[] =
    "Usage: moe-cachesim [RECORDING] [options]\n"
    "\n"
    "Replays which experts were used, as moe-eval --record wrote it or made up, and prints how\n"
    "many of them were in memory, and what was read instead.\n"
    "\n"
    "Options:\n"
    "  --slots N,N,...        experts that fit in memory (a quarter, half, 85 % of all)\n"
    "  --expert-bytes N       of one expert (3345408: Gemma 4 26B at Q4_0)\n"
    "  --json                 one JSON object\n"
    "\n"
    "What is made up, without a recording:\n"
    "  --layers N             (30)\n"
    "  --experts N            of a layer (128)\n"
    "  --used N               by a token in a layer (8)\n"
    "  --tokens N             decoded one by one (400)\n"
    "  --skew X               the i-th expert is drawn in proportion to 1 / i^X; 0: all alike (1)\n"
    "  --locality X           share of draws that repeat the token before (0)\n"
    "  --topic N              tokens until a quarter of the experts trade places; 0: never (0)\n"
    "  --seed N               (1)\n"
    "\n"
    "  --help, --version\n";

enum {
    OPT_SLOTS = 1,
    OPT_EXPERT_BYTES,
    OPT_JSON,
    OPT_LAYERS,
    OPT_EXPERTS,
    OPT_USED,
    OPT_TOKENS,
    OPT_SKEW,
    OPT_LOCALITY,
    OPT_TOPIC,
    OPT_SEED,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option options[] = {
    { "slots", required_argument, NULL, OPT_SLOTS },
    { "expert-bytes", required_argument, NULL, OPT_EXPERT_BYTES },
    { "json", no_argument, NULL, OPT_JSON },
    { "layers", required_argument, NULL, OPT_LAYERS },
    { "experts", required_argument, NULL, OPT_EXPERTS },
    { "used", required_argument, NULL, OPT_USED },
    { "tokens", required_argument, NULL, OPT_TOKENS },
    { "skew", required_argument, NULL, OPT_SKEW },
    { "locality", required_argument, NULL, OPT_LOCALITY },
    { "topic", required_argument, NULL, OPT_TOPIC },
    { "seed", required_argument, NULL, OPT_SEED },
    { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION },
    { 0 },
};

enum { SLOTS_MAX = 16 };

struct args {
    const char *file;
    struct sim_router router;
    uint32_t slots[SLOTS_MAX], n_slots; /* none: by share */
    uint32_t expert_bytes;
    bool json;
};

static double real(const char *name, const char *s, double max) {
    char *end;
    double x = strtod(s, &end);

    if (end == s || *end || !(x >= 0 && x <= max))
        arg_error("--%s takes a number from 0 to %g, not \"%s\"", name, max, s);
    return x;
}

static void parse_slots(struct args *a, const char *s) {
    for (a->n_slots = 0; a->n_slots < SLOTS_MAX; s++) {
        a->slots[a->n_slots++] = arg_number_at("slots", s, 1, 1 << 24, &s);
        if (!*s)
            return;
        if (*s != ',')
            break;
    }
    arg_error("--slots takes up to %d numbers with commas between", SLOTS_MAX);
}

static void parse_one(struct args *a, int opt, const char *arg) {
    struct sim_router *m = &a->router;

    // clang-format off
    switch (opt) {
    case OPT_SLOTS:        parse_slots(a, optarg); break;
    case OPT_EXPERT_BYTES: a->expert_bytes = arg_number("expert-bytes", optarg, 1, 1u << 31); break;
    case OPT_JSON:         a->json = true; break;
    case OPT_LAYERS:       m->n_layer = arg_number("layers", optarg, 1, ROUTES_LAYER_MAX); break;
    case OPT_EXPERTS:      m->n_expert = arg_number("experts", optarg, 1, ROUTES_EXPERT_MAX); break;
    case OPT_USED:         m->k = arg_number("used", optarg, 1, ROUTES_EXPERT_MAX); break;
    case OPT_TOKENS:       m->n_token = arg_number("tokens", optarg, 1, 1 << 20); break;
    case OPT_SKEW:         m->skew = real("skew", optarg, 4); break;
    case OPT_LOCALITY:     m->locality = real("locality", optarg, 0.99); break;
    case OPT_TOPIC:        m->topic = arg_number("topic", optarg, 0, 1 << 20); break;
    case OPT_SEED:         m->seed = arg_number("seed", optarg, 0, UINT32_MAX); break;
    case OPT_HELP:
        fputs(usage_text, stdout);
        exit(0);
    case OPT_VERSION:
        puts("moe-cachesim " MOE_VERSION);
        exit(0);
    default:
        arg_error("%s: no such option, or its value is missing", arg);
    }
    // clang-format on
}

static void parse(struct args *a, int argc, char **argv) {
    int opt;

    opterr = 0;
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1)
        parse_one(a, opt, argv[optind - 1]);
    if (optind + 1 < argc)
        arg_error("one recording at a time");
    a->file = argv[optind];
    if (a->router.k > a->router.n_expert)
        arg_error("--used: there are only %u experts", a->router.n_expert);
}

/* All of a file. */
static int read_file(const char *path, void **ret_buf, size_t *ret_size, struct why *why) {
    FILE *f = fopen(path, "re");
    AUTO(free) char *buf = NULL;
    size_t size = 0;
    FILE *to;
    int c;

    if (!f)
        return why_set(why, -errno, "%s: %m", path);
    to = open_memstream(&buf, &size);
    while (to && (c = getc_unlocked(f)) != EOF)
        putc_unlocked(c, to);

    bool bad = ferror(f) || !to || ferror(to);

    bad = (to && fclose(to) != 0) || bad;
    fclose(f);
    if (bad)
        return why_set(why, -EIO, "%s: can not read all of it", path);
    *ret_buf = take(buf);
    *ret_size = size;
    return 0;
}

/* ---- what is printed ---- */

static double token_mb(const struct args *a, const struct routes *r, const struct sim_count *c) {
    return (double)(c->reads - c->first) * a->expert_bytes / 1e6 / (double)r->n_row;
}

static json_object *row_json(const struct args *a, const struct routes *r, uint32_t n_slot,
                             const struct sim_count *count) {
    json_object *row = json_object_new_object();

    json_object_object_add(row, "slots", json_object_new_int64(n_slot));
    for (uint32_t p = 0; p < SIM_N; p++) {
        json_object *o = json_object_new_object();

        json_object_object_add(o, "hit", json_object_new_double(sim_hit(&count[p])));
        json_object_object_add(o, "reads", json_object_new_int64((int64_t)count[p].reads));
        json_object_object_add(o, "bytes_per_token",
                               json_object_new_double(token_mb(a, r, &count[p]) * 1e6));
        json_object_object_add(row, sim_name[p], o);
    }
    return row;
}

static void print_head(const struct routes *r, const struct sim_count *c) {
    printf(
        "%u layers, %u of %u experts; %ju tokens in %ju steps, %ju uses, %ju of them an expert's "
        "first\n",
        r->n_layer, r->k, r->n_expert, (uintmax_t)r->n_row, (uintmax_t)r->n_step,
        (uintmax_t)c->uses, (uintmax_t)c->first);
    printf("%18s%-32s    %s\n%8s%8s", "", "found in memory, %", "read, MB a token", "slots",
           "of all");
    for (uint32_t i = 0; i < 2 * SIM_N; i++)
        printf("%9s", sim_name[i % SIM_N]);
    putchar('\n');
}

static void print_row(const struct args *a, const struct routes *r, uint32_t n_slot,
                      const struct sim_count *count) {
    printf("%8u%7.1f%%", n_slot, 100.0 * n_slot / (r->n_layer * r->n_expert));
    for (uint32_t p = 0; p < SIM_N; p++)
        printf("%9.1f", 100 * sim_hit(&count[p]));
    for (uint32_t p = 0; p < SIM_N; p++)
        printf("%9.1f", token_mb(a, r, &count[p]));
    putchar('\n');
}

static void add_head(json_object *out, const struct routes *r, const struct sim_count *c) {
    json_object_object_add(out, "layers", json_object_new_int64(r->n_layer));
    json_object_object_add(out, "experts", json_object_new_int64(r->n_expert));
    json_object_object_add(out, "used", json_object_new_int64(r->k));
    json_object_object_add(out, "tokens", json_object_new_int64((int64_t)r->n_row));
    json_object_object_add(out, "steps", json_object_new_int64((int64_t)r->n_step));
    json_object_object_add(out, "uses", json_object_new_int64((int64_t)c->uses));
    json_object_object_add(out, "first", json_object_new_int64((int64_t)c->first));
}

static int replay(const struct args *a, const struct routes *r, json_object *out) {
    static const double share[] = { 0.25, 0.5, 0.85 };
    uint32_t n = a->n_slots ? a->n_slots : sizeof share / sizeof *share;
    json_object *rows = json_object_new_array();
    struct sim_count count[SIM_N] = { 0 };

    for (uint32_t i = 0; i < n; i++) {
        uint32_t n_slot =
            a->n_slots ? a->slots[i] : (uint32_t)(share[i] * r->n_layer * r->n_expert);
        int res = 0;

        n_slot += n_slot == 0;
        for (uint32_t p = 0; p < SIM_N && res == 0; p++)
            res = sim_run(r, p, n_slot, &count[p]);
        if (res != 0) {
            json_object_put(rows);
            return err_up(res);
        }
        if (i == 0 && !a->json)
            print_head(r, count);
        if (i == 0)
            add_head(out, r, count);
        if (!a->json)
            print_row(a, r, n_slot, count);
        json_object_array_add(rows, row_json(a, r, n_slot, count));
    }
    json_object_object_add(out, "rows", rows);
    return 0;
}

int main(int argc, char **argv) {
    struct args a = {
        .expert_bytes = 3345408,
        .router = { .n_layer = 30, .n_expert = 128, .k = 8, .n_token = 400, .skew = 1, .seed = 1 }
    };
    json_object *out = json_object_new_object();
    AUTO(free) void *buf = NULL;
    struct why why = { "no memory" };
    struct routes r = { 0 };
    size_t size;
    int res;

    parse(&a, argc, argv);
    res = a.file ? read_file(a.file, &buf, &size, &why) : sim_make(&a.router, &buf, &size);
    if (res == 0)
        res = routes_open(&r, buf, size, &why);
    if (res == 0 && r.n_row == 0)
        res = why_set(&why, -EINVAL, "there is no step in it");
    if (res == 0)
        res = replay(&a, &r, out);
    if (res == 0 && a.json)
        puts(json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
    json_object_put(out);
    if (res == 0 && fflush(stdout) != 0)
        res = why_set(&why, -errno, "standard output: %m");
    if (res != 0)
        fprintf(stderr, "moe-cachesim: %s\n", why.text);

    return res != 0;
}
