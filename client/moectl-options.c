/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-options - the command line: what --help says, commands, options
 */

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "client/moectl.h"

static const char help[] =
    "Usage: moectl [OPTION]... COMMAND\n"
    "Talk to moed, the language model service of this machine.\n"
    "\n"
    "  ask [WORD]...        answer a question; also from a pipe, or - for stdin\n"
    "  run [PROMPT]         the same with more options: raw prompts, logprobs\n"
    "  chat                 talk; Ctrl-C stops an answer, Ctrl-D ends\n"
    "  summarize [TEXT]     say it in fewer words\n"
    "  rephrase [TEXT]      say it better\n"
    "  translate [TEXT]     into --language\n"
    "  use-case [ID [TEXT]] for another purpose; which there are\n"
    "  classify [TEXT]      which --choice fits a text\n"
    "  score [PROMPT]       how likely each --choice is to follow\n"
    "  sessions             conversations that are open\n"
    "  forget TOKEN         remove a conversation that was kept\n"
    "  status               what the service is doing\n"
    "  topology             a drawing of the machine, and where the model lies in it\n"
    "  list                 models there are\n"
    "  show [MODEL]         what is known about a model\n"
    "  load [MODEL]         load a model and wait for it\n"
    "  unload [MODEL]       give a model's memory back\n"
    "  pin [MODEL]          keep a model in memory, whatever happens\n"
    "  unpin [MODEL]        no longer\n"
    "  import FILE [MODEL]  give the service a model's file\n"
    "  verify MODEL         have a model's file compared with its digest\n"
    "  wait [MODEL]         wait until a model can answer\n"
    "  top                  requests that run and wait, again every second\n"
    "  bench [PROMPT]       how fast it answers\n"
    "  monitor              what happens, as it happens\n"
    "  metrics              numbers of the service, for monitoring\n"
    "  kill JOB             end a request\n"
    "  tokenize [TEXT]      token ids and their pieces\n"
    "  api-info             methods of the service\n"
    "  call METHOD [JSON]   call any of them\n"
    "  doctor               find what is wrong, and say what mends it\n"
    "\n"
    "Answers:\n"
    "      --system TEXT    instructions that stand before the conversation\n"
    "      --thinking       let the model think first; shown on a terminal only\n"
    "      --model MODEL    instead of the service's choice\n"
    "      --max-tokens N   end the answer after N tokens\n"
    "      --temperature X  --top-k N  --top-p X  --min-p X  --seed N\n"
    "                       how tokens are drawn; default: the model's\n"
    "      --stop TEXT      end the answer where TEXT would begin; repeatable\n"
    "      --deadline TIME  end the answer after TIME: 30, 500ms, 2min; also for wait\n"
    "      --priority WORD  interactive, default or background\n"
    "chat:\n"
    "      --overflow WORD  when the conversation outgrows the context: drop-oldest or error\n"
    "      --save           keep the conversation at the end, and say how to go on with it\n"
    "      --resume TOKEN   go on with one that was kept\n"
    "all but chat:\n"
    "  -f, --file FILE      add a file to the text; repeatable\n"
    "      --no-stream      print the answer when it is complete\n"
    "run:\n"
    "      --raw            continue the prompt as it is, without a chat template; also score\n"
    "      --logprobs N     with --json: N alternatives for each token\n"
    "others:\n"
    "      --language NAME  what translate and use-case translate into, such as German\n"
    "      --choice TEXT    classify, score: one of the answers there may be; repeatable\n"
    "      --svg FILE       topology: write a picture\n"
    "      --mode WORD      import: reference, reflink or copy\n"
    "      --digest SHA256  import: refuse another file\n"
    "      --license TEXT   import: a line that is kept with it\n"
    "      --all            sessions: those of all users\n"
    "      --saved          sessions: those that are kept, for --resume and forget\n"
    "      --tensors        show: list them, too\n"
    "      --no-wait        load, import, verify: return at once\n"
    "  -n, --count N        top: print N times and end; bench: runs, 3 by default\n"
    "      --streams N      bench: answers at a time\n"
    "      --once           top: the same as -n 1\n"
    "      --special        tokenize, run --raw: texts of special tokens become them\n"
    "      --bos            tokenize: begin with the token that begins a text\n"
    "\n"
    "      --socket PATH    default: $MOE_SOCKET, $XDG_RUNTIME_DIR/moed/rpc, /run/moed/rpc\n"
    "      --json[=short|pretty]  answer in JSON\n"
    "  -q, --quiet          no progress, no hints\n"
    "      --no-pager       there is none\n"
    "  -h, --help  --version\n"
    "\n"
    "Exit status: 0 ok, 1 failed, 2 usage, 3 service unreachable, 4 model unavailable, 5 answer\n"
    "cut short by a limit, 6 denied, 7 busy or over quota, 8 bad schema, 130 interrupted.\n";

enum {
    V_RUN = 1 << 0,
    V_CHAT = 1 << 1,
    V_SHOW = 1 << 2,
    V_LOAD = 1 << 3,
    V_TOKENIZE = 1 << 4,
    V_WAIT = 1 << 5,
    V_OTHER = 1 << 6,
    V_TOP = 1 << 7,
    V_SESSIONS = 1 << 8,
    V_FORGET = 1 << 9,
    V_ASK = 1 << 10,
    V_PURPOSE = 1 << 11,
    V_SCORE = 1 << 12,
    V_CLASSIFY = 1 << 13,
    V_TOPOLOGY = 1 << 14,
    V_BENCH = 1 << 15,
    V_IMPORT = 1 << 16,
    V_VERIFY = 1 << 17,
    V_ALL = (1 << 18) - 1,
    V_ONCE = V_RUN | V_ASK | V_PURPOSE, /* one answer */
    V_ANSWER = V_ONCE | V_CHAT,
    V_CHOICE = V_SCORE | V_CLASSIFY,
    V_TEXT = V_BENCH | V_RUN | V_PURPOSE | V_CHOICE | V_TOKENIZE,
};

static const struct verb {
    const char *name;
    int bit;
    size_t max_args;
    ctl_verb *run;
} verbs[] = {
    { "ask", V_ASK, SIZE_MAX, verb_ask },
    { "run", V_RUN, 1, verb_run },
    { "chat", V_CHAT, 0, verb_chat },
    { "summarize", V_PURPOSE, 1, verb_summarize },
    { "rephrase", V_PURPOSE, 1, verb_rephrase },
    { "translate", V_PURPOSE, 1, verb_translate },
    { "use-case", V_PURPOSE, 2, verb_use_case },
    { "classify", V_CLASSIFY, 1, verb_classify },
    { "score", V_SCORE, 1, verb_score },
    { "sessions", V_SESSIONS, 0, verb_sessions },
    { "forget", V_FORGET, 1, verb_forget },
    { "status", V_OTHER, 0, verb_status },
    { "topology", V_TOPOLOGY, 0, verb_topology },
    { "list", V_OTHER, 0, verb_list },
    { "show", V_SHOW, 1, verb_show },
    { "load", V_LOAD, 1, verb_load },
    { "unload", V_OTHER, 1, verb_unload },
    { "pin", V_OTHER, 1, verb_pin },
    { "unpin", V_OTHER, 1, verb_unpin },
    { "import", V_IMPORT, 2, verb_import },
    { "verify", V_VERIFY, 1, verb_verify },
    { "wait", V_WAIT, 1, verb_wait },
    { "top", V_TOP, 0, verb_top },
    { "bench", V_BENCH, 1, verb_bench },
    { "monitor", V_OTHER, 0, verb_monitor },
    { "metrics", V_OTHER, 0, verb_metrics },
    { "kill", V_OTHER, 1, verb_kill },
    { "tokenize", V_TOKENIZE, 1, verb_tokenize },
    { "api-info", V_OTHER, 0, verb_api_info },
    { "doctor", V_OTHER, 0, verb_doctor },
    { "call", V_OTHER, 2, verb_call },
};

enum opt_id {
    OPT_FILE = 'f',
    OPT_HELP = 'h',
    OPT_COUNT = 'n',
    OPT_QUIET = 'q',
    OPT_SYSTEM = 256,
    OPT_THINKING,
    OPT_MODEL,
    OPT_MAX_TOKENS,
    OPT_TEMPERATURE,
    OPT_TOP_K,
    OPT_TOP_P,
    OPT_MIN_P,
    OPT_SEED,
    OPT_STOP,
    OPT_DEADLINE,
    OPT_PRIORITY,
    OPT_OVERFLOW,
    OPT_SAVE,
    OPT_RESUME,
    OPT_ALL,
    OPT_SAVED,
    OPT_RAW,
    OPT_LOGPROBS,
    OPT_NO_STREAM,
    OPT_LANGUAGE,
    OPT_CHOICE,
    OPT_SVG,
    OPT_MODE,
    OPT_DIGEST,
    OPT_LICENSE,
    OPT_STREAMS,
    OPT_TENSORS,
    OPT_NO_WAIT,
    OPT_ONCE,
    OPT_SPECIAL,
    OPT_BOS,
    OPT_SOCKET,
    OPT_JSON,
    OPT_NO_PAGER,
    OPT_VERSION,
};

/* clang-format off */
static const struct option options[] = {
    { "file",        required_argument, NULL, OPT_FILE },
    { "help",        no_argument,       NULL, OPT_HELP },
    { "quiet",       no_argument,       NULL, OPT_QUIET },
    { "system",      required_argument, NULL, OPT_SYSTEM },
    { "thinking",    no_argument,       NULL, OPT_THINKING },
    { "model",       required_argument, NULL, OPT_MODEL },
    { "max-tokens",  required_argument, NULL, OPT_MAX_TOKENS },
    { "temperature", required_argument, NULL, OPT_TEMPERATURE },
    { "top-k",       required_argument, NULL, OPT_TOP_K },
    { "top-p",       required_argument, NULL, OPT_TOP_P },
    { "min-p",       required_argument, NULL, OPT_MIN_P },
    { "seed",        required_argument, NULL, OPT_SEED },
    { "stop",        required_argument, NULL, OPT_STOP },
    { "deadline",    required_argument, NULL, OPT_DEADLINE },
    { "priority",    required_argument, NULL, OPT_PRIORITY },
    { "overflow",    required_argument, NULL, OPT_OVERFLOW },
    { "save",        no_argument,       NULL, OPT_SAVE },
    { "resume",      required_argument, NULL, OPT_RESUME },
    { "all",         no_argument,       NULL, OPT_ALL },
    { "saved",       no_argument,       NULL, OPT_SAVED },
    { "raw",         no_argument,       NULL, OPT_RAW },
    { "logprobs",    required_argument, NULL, OPT_LOGPROBS },
    { "no-stream",   no_argument,       NULL, OPT_NO_STREAM },
    { "language",    required_argument, NULL, OPT_LANGUAGE },
    { "choice",      required_argument, NULL, OPT_CHOICE },
    { "streams",     required_argument, NULL, OPT_STREAMS },
    { "mode",        required_argument, NULL, OPT_MODE },
    { "digest",      required_argument, NULL, OPT_DIGEST },
    { "license",     required_argument, NULL, OPT_LICENSE },
    { "svg",         required_argument, NULL, OPT_SVG },
    { "tensors",     no_argument,       NULL, OPT_TENSORS },
    { "no-wait",     no_argument,       NULL, OPT_NO_WAIT },
    { "count",       required_argument, NULL, OPT_COUNT },
    { "once",        no_argument,       NULL, OPT_ONCE },
    { "special",     no_argument,       NULL, OPT_SPECIAL },
    { "bos",         no_argument,       NULL, OPT_BOS },
    { "socket",      required_argument, NULL, OPT_SOCKET },
    { "json",        optional_argument, NULL, OPT_JSON },
    { "no-pager",    no_argument,       NULL, OPT_NO_PAGER },
    { "version",     no_argument,       NULL, OPT_VERSION },
    { 0 },
};

/* Which commands an option is for; those not listed are for all. */
static const struct { int opt, verbs; } option_verbs[] = {
    { OPT_FILE,        V_ONCE | V_CHOICE | V_BENCH },
    { OPT_SYSTEM,      V_ANSWER | V_CHOICE },
    { OPT_THINKING,    V_ANSWER },
    { OPT_MODEL,       V_ANSWER | V_CHOICE | V_BENCH },
    { OPT_MAX_TOKENS,  V_ANSWER | V_BENCH },
    { OPT_TEMPERATURE, V_ANSWER },
    { OPT_TOP_K,       V_ANSWER },
    { OPT_TOP_P,       V_ANSWER },
    { OPT_MIN_P,       V_ANSWER },
    { OPT_SEED,        V_ANSWER },
    { OPT_STOP,        V_ANSWER },
    { OPT_DEADLINE,    V_ANSWER | V_WAIT },
    { OPT_PRIORITY,    V_ANSWER | V_BENCH },
    { OPT_OVERFLOW,    V_CHAT },
    { OPT_SAVE,        V_CHAT },
    { OPT_RESUME,      V_CHAT },
    { OPT_ALL,         V_SESSIONS },
    { OPT_SAVED,       V_SESSIONS },
    { OPT_RAW,         V_RUN | V_SCORE },
    { OPT_LOGPROBS,    V_RUN },
    { OPT_NO_STREAM,   V_ONCE },
    { OPT_LANGUAGE,    V_PURPOSE },
    { OPT_CHOICE,      V_CHOICE },
    { OPT_SVG,         V_TOPOLOGY },
    { OPT_MODE,        V_IMPORT },
    { OPT_DIGEST,      V_IMPORT },
    { OPT_LICENSE,     V_IMPORT },
    { OPT_STREAMS,     V_BENCH },
    { OPT_TENSORS,     V_SHOW },
    { OPT_NO_WAIT,     V_LOAD | V_IMPORT | V_VERIFY },
    { OPT_COUNT,       V_TOP | V_BENCH },
    { OPT_ONCE,        V_TOP },
    { OPT_SPECIAL,     V_TOKENIZE | V_RUN },
    { OPT_BOS,         V_TOKENIZE },
    { OPT_JSON,        V_ALL & ~(V_CHAT | V_FORGET) },
};
/* clang-format on */

/* Numbers of the command line. Each: 0, or EXIT_USAGE after a complaint. */

static int parse_uint(const char *name, const char *s, uint64_t min, uint64_t max, uint64_t *ret) {
    char *end;

    errno = 0;
    *ret = strtoull(s, &end, 10);
    if (errno || end == s || *end || *s < '0' || *s > '9' || *ret < min || *ret > max)
        return ctl_complain(EXIT_USAGE, "--%s: \"%s\" is no number from %d to %ju", name, s,
                            (int)min, (uintmax_t)max);

    return 0;
}

static int parse_float(const char *name, const char *s, double *ret) {
    char *end;

    *ret = strtod(s, &end);
    if (end == s || *end || !(*ret >= 0) || *ret > 1e9)
        return ctl_complain(EXIT_USAGE, "--%s: \"%s\" is no number from 0", name, s);

    return 0;
}

static int parse_time(const char *name, const char *s, uint64_t *ret_usec) {
    static const struct {
        const char *unit;
        double usec;
    } units[] = { { "", 1e6 }, { "s", 1e6 }, { "ms", 1e3 }, { "min", 60e6 }, { "h", 3600e6 } };
    char *end;
    double v = strtod(s, &end);

    for (size_t i = 0; i < sizeof units / sizeof units[0] && end != s; i++) {
        double usec = v * units[i].usec;

        if (!strcmp(end, units[i].unit) && usec >= 1000 && usec <= 1e15) {
            *ret_usec = (uint64_t)usec;
            return 0;
        }
    }

    return ctl_complain(EXIT_USAGE, "--%s: \"%s\" is no time such as 30, 500ms or 2min", name, s);
}

static int add_to(const char *name, const char **list, size_t *n, size_t max, const char *s) {
    if (*n == max)
        return ctl_complain(EXIT_USAGE, "--%s: %zu of them is the most", name, max);
    list[(*n)++] = s;

    return 0;
}

static int parse_json(struct ctl *c, const char *s) {
    c->json = !s || !strcmp(s, "short") ? JSON_SHORT
              : !strcmp(s, "pretty")    ? JSON_PRETTY
                                        : JSON_OFF;
    if (!c->json && strcmp(s, "off"))
        return ctl_complain(EXIT_USAGE, "--json: \"%s\" is not short, pretty or off", s);

    return 0;
}

/* An option of sampling and length. Return: 0, EXIT_USAGE, or -1 when it is none of these. */
static int set_sampling(struct ctl *c, int opt, const char *arg) {
    struct moe_generate *g = &c->generate;
    uint64_t v = 0;
    int r;

    switch (opt) {
    case OPT_MAX_TOKENS:
        return parse_uint("max-tokens", arg, 1, UINT32_MAX, &g->max_tokens);
    case OPT_TEMPERATURE:
        return parse_float("temperature", arg, &g->temperature);
    case OPT_TOP_P:
        return parse_float("top-p", arg, &g->top_p);
    case OPT_MIN_P:
        return parse_float("min-p", arg, &g->min_p);
    case OPT_TOP_K:
        r = parse_uint("top-k", arg, 0, INT32_MAX, &v);
        g->top_k = (int64_t)v;
        return r;
    case OPT_LOGPROBS:
        r = parse_uint("logprobs", arg, 0, 20, &v);
        g->logprobs = (int)v;
        return r;
    case OPT_SEED:
        g->seed = &c->seed;
        return parse_uint("seed", arg, 0, UINT64_MAX, &c->seed);
    case OPT_DEADLINE:
        r = parse_time("deadline", arg, &c->deadline_usec);
        g->deadline_ms = c->deadline_usec / 1000;
        return r;
    case OPT_PRIORITY:
        g->priority = arg; /* the service knows the words */
        return 0;
    case OPT_STOP:
        return add_to("stop", c->stop, &c->n_stop, 16, arg);
    default:
        return -1;
    }
}

/* An option without an argument. Return: is it one? */
static bool set_flag(struct ctl *c, int opt) {
    /* clang-format off */
    const struct { int opt; bool *flag; } flags[] = {
        { OPT_THINKING,  &c->generate.thinking },
        { OPT_SAVE,      &c->save },
        { OPT_ALL,       &c->all },
        { OPT_SAVED,     &c->saved },
        { OPT_RAW,       &c->raw },
        { OPT_NO_STREAM, &c->no_stream },
        { OPT_TENSORS,   &c->tensors },
        { OPT_NO_WAIT,   &c->no_wait },
        { OPT_SPECIAL,   &c->special },
        { OPT_BOS,       &c->bos },
        { OPT_QUIET,     &c->quiet },
    };
    /* clang-format on */

    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (flags[i].opt == opt) {
            *flags[i].flag = true;
            return true;
        }

    return false;
}

static int set_option(struct ctl *c, int opt, const char *arg) {
    int r = set_flag(c, opt) ? 0 : set_sampling(c, opt, arg);

    if (r >= 0)
        return r;
    switch (opt) {
    case OPT_FILE:
        return add_to("file", c->files, &c->n_files, CTL_LIST_MAX, arg);
    case OPT_CHOICE:
        return add_to("choice", c->choices, &c->n_choices, CTL_CHOICE_MAX, arg);
    case OPT_STREAMS:
        return parse_uint("streams", arg, 1, 64, &c->streams);
    case OPT_MODE:
        c->mode = arg; /* the service knows the words */
        break;
    case OPT_DIGEST:
        c->digest = arg;
        break;
    case OPT_LICENSE:
        c->license = arg;
        break;
    case OPT_SVG:
        c->svg = arg;
        break;
    case OPT_LANGUAGE:
        c->language = arg;
        break;
    case OPT_JSON:
        return parse_json(c, arg);
    case OPT_COUNT:
        return parse_uint("count", arg, 1, UINT32_MAX, &c->count);
    case OPT_ONCE:
        c->count = 1;
        break;
    case OPT_SYSTEM:
        c->system = arg;
        break;
    case OPT_MODEL:
        c->generate.model = arg;
        break;
    case OPT_SOCKET:
        c->socket = arg;
        break;
    case OPT_OVERFLOW:
        c->overflow = arg; /* the service knows the words */
        break;
    case OPT_RESUME:
        c->resume = arg;
        break;
    case OPT_NO_PAGER:
        break;
    default:
        return EXIT_USAGE; /* getopt has complained */
    }

    return 0;
}

static const char *option_name(int opt) {
    for (const struct option *o = options; o->name; o++)
        if (o->val == opt)
            return o->name;

    return "?";
}

static int check_options(const struct verb *v, const int *used, size_t n_used) {
    for (size_t i = 0; i < n_used; i++)
        for (size_t k = 0; k < sizeof option_verbs / sizeof option_verbs[0]; k++)
            if (option_verbs[k].opt == used[i] && !(option_verbs[k].verbs & v->bit))
                return ctl_complain(EXIT_USAGE, "%s has no option --%s; see moectl --help", v->name,
                                    option_name(used[i]));

    return 0;
}

static int find_verb(struct ctl *c, char **args, size_t n, const struct verb **ret) {
    if (!n)
        return ctl_complain(EXIT_USAGE, "what to do? See moectl --help.");
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++) {
        if (strcmp(args[0], verbs[i].name))
            continue;
        c->args = args + 1;
        c->n_args = n - 1;
        if (c->n_args > verbs[i].max_args)
            return ctl_complain(EXIT_USAGE, "%s: \"%s\" is one argument too many%s", args[0],
                                args[1 + verbs[i].max_args],
                                verbs[i].bit & V_TEXT ? "; put the text in quotes" : "");
        *ret = &verbs[i];
        return 0;
    }

    return ctl_complain(EXIT_USAGE, "there is no command \"%s\"; see moectl --help", args[0]);
}

int ctl_parse(struct ctl *c, int argc, char **argv, ctl_verb **ret_run) {
    enum { USED_MAX = 1024 };
    const struct verb *verb = NULL;
    int used[USED_MAX], opt, r;
    size_t n_used = 0;

    while ((opt = getopt_long(argc, argv, "f:hn:q", options, NULL)) >= 0) {
        if (opt == OPT_HELP || opt == OPT_VERSION) {
            (void)(opt == OPT_HELP ? fputs(help, stdout) : printf("moectl %s\n", moe_version()));
            return -1;
        }
        r = set_option(c, opt, optarg);
        if (r)
            return r;
        if (n_used == USED_MAX)
            return ctl_complain(EXIT_USAGE, "more than %d options", USED_MAX);
        used[n_used++] = opt;
    }
    r = find_verb(c, argv + optind, (size_t)(argc - optind), &verb);
    if (!r)
        r = check_options(verb, used, n_used);
    if (!r && c->generate.logprobs >= 0 && !c->json)
        r = ctl_complain(EXIT_USAGE, "--logprobs needs --json, which is where they go");
    if (!r)
        *ret_run = verb->run;

    return r;
}
