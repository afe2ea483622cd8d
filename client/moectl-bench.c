/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-bench - how fast the service answers, as its clients see it
 *
 * A run is a number of answers that are asked for at the same time. Each prompt begins with words
 * of its own, so that nothing that was kept of another one counts. The time to the first token
 * and the tokens of all are measured here; how long one prompt was read and one answer written, the
 * service says: pieces of text that come fast come together.
 */

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/moectl.h"

enum {
    RUNS = 3,
    TOKENS = 64,
    STREAMS_MAX = 64,      /* that a connection may have */
    CANCEL_USEC = 2000000, /* for what is stopped */
};

static const char text[] =
    "A harbour town in the north has had a market every Saturday since the year it was given a"
    " wall. Farmers come down the river before dawn with apples, cheese and wool, and leave with"
    " salt, iron and news. One winter the river froze, and for six weeks nobody came. The baker"
    " then did something that the town still talks about. Tell what it was, and why it mattered.";

struct stream {
    struct bench *b;
    uint64_t asked, first, ended; /* microseconds; first 0: nothing came */
    uint64_t n_prompt, n_cached, n_generated, prefill, decode;
};

struct bench {
    struct ctl *c;
    struct stream *stream; /* [n_stream], of one run */
    uint32_t *id;          /* [n_stream] */
    size_t n_stream, n_open;
    int code;
    char model[64];
};

struct run {                        /* medians of its streams, but for .all */
    double first, read, write, all; /* seconds; tokens a second */
};

static uint64_t now_usec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static double rate(uint64_t n, uint64_t usec) {
    return usec ? (double)n * 1e6 / (double)usec : 0;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *v, size_t n) {
    qsort(v, n, sizeof *v, by_size);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* ---- a run ---- */

static void on_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    struct stream *s = userdata;

    (void)m, (void)id, (void)d;
    if (!s->first)
        s->first = now_usec();
}

static void on_progress(struct moe *m, uint32_t id, const char *stage, uint64_t done,
                        uint64_t total, void *userdata) {
    struct stream *s = userdata;

    (void)m, (void)id;
    if (!strcmp(stage, "loading"))
        ctl_progress(s->b->c, stage, CTL_BYTES, done, total);
}

static void on_done(struct moe *m, uint32_t id, const struct moe_result *r,
                    const struct moe_error *error, void *userdata) {
    struct stream *s = userdata;
    struct bench *b = s->b;

    (void)m, (void)id;
    b->n_open--;
    s->ended = now_usec();
    s->first = s->first ? s->first : s->ended;
    ctl_progress_clear(b->c);
    if (error && !b->code && !ctl_interrupted)
        b->code = ctl_complain_error(error);
    if (!r)
        return;
    s->n_prompt = r->n_prompt;
    s->n_cached = r->n_cached;
    s->n_generated = r->n_generated;
    s->prefill = r->prefill_usec;
    s->decode = r->decode_usec;
    (void)snprintf(b->model, sizeof b->model, "%s", r->model ? r->model : "");
}

/* Ask with a prompt that nobody has asked before. */
static int ask(struct bench *b, size_t i, const char *prompt, uint64_t max_tokens) {
    struct moe_generate g = b->c->generate;
    struct moe_message message = { "user", NULL };
    uint64_t seed = i + 1;
    char *said = NULL;
    int r;

    if (asprintf(&said, "%jx, question %zu. %s", (uintmax_t)now_usec() ^ (uintmax_t)getpid() << 32,
                 i, prompt) < 0)
        return -ENOMEM;
    message.content = said;
    g.messages = &message;
    g.n_messages = 1;
    g.max_tokens = max_tokens;
    g.seed = &seed;
    g.on_delta = on_delta;
    g.on_progress = on_progress;
    g.userdata = &b->stream[i];
    b->stream[i] = (struct stream){ .b = b, .asked = now_usec() };
    r = moe_generate(b->c->m, &g, on_done, &b->id[i]);
    free(said);

    return r;
}

/* Ask @n times at once, and wait for all. Return: an exit code. */
static int answer(struct bench *b, size_t n, const char *prompt, uint64_t max_tokens) {
    bool stopped = false;
    int r;

    for (size_t i = 0; i < n && !b->code; i++) {
        r = ask(b, i, prompt, max_tokens);
        if (r < 0)
            b->code = ctl_complain_errno(b->c, r);
        else
            b->n_open++;
    }
    while (b->n_open) {
        if ((ctl_interrupted || b->code) && !stopped) {
            stopped = true;
            for (size_t i = 0; i < n; i++)
                if (b->id[i] && moe_cancel(b->c->m, b->id[i]) >= 0)
                    (void)moe_set_deadline(b->c->m, b->id[i], CANCEL_USEC);
        }
        r = ctl_poll(b->c, -1, MOE_FOREVER);
        if (r < 0 && b->n_open)
            b->c->m = moe_close(b->c->m); /* which ends the calls, too */
    }

    return ctl_interrupted ? EXIT_INTERRUPTED : b->code;
}

static struct run sum_up(const struct bench *b, double *v) {
    uint64_t from = UINT64_MAX, to = 0, n = 0;
    struct run r;

    for (size_t i = 0; i < b->n_stream; i++) {
        const struct stream *s = &b->stream[i];

        from = s->asked < from ? s->asked : from;
        to = s->ended > to ? s->ended : to;
        n += s->n_generated;
        v[i] = (double)(s->first - s->asked) / 1e6;
    }
    r.all = rate(n, to - from);
    r.first = median(v, b->n_stream);
    for (size_t i = 0; i < b->n_stream; i++)
        v[i] = rate(b->stream[i].n_prompt - b->stream[i].n_cached, b->stream[i].prefill);
    r.read = median(v, b->n_stream);
    for (size_t i = 0; i < b->n_stream; i++)
        v[i] = rate(b->stream[i].n_generated, b->stream[i].decode);
    r.write = median(v, b->n_stream);

    return r;
}

/* ---- what is said ---- */

static json_object *run_object(const struct run *r) {
    json_object *o = json_object_new_object();

    (void)json_object_object_add(o, "first_token_s", json_object_new_double(r->first));
    (void)json_object_object_add(o, "read_per_s", json_object_new_double(r->read));
    (void)json_object_object_add(o, "written_per_s", json_object_new_double(r->write));
    (void)json_object_object_add(o, "all_written_per_s", json_object_new_double(r->all));
    return o;
}

static void put_run(const char *label, const struct run *r) {
    (void)printf("%6s  %10.3f s  %14.1f  %14.1f  %14.1f\n", label, r->first, r->read, r->write,
                 r->all);
    (void)ctl_flush();
}

/* Of the column at byte @at of each. @v: room for @n */
static double column(const struct run *runs, size_t n, size_t at, double *v) {
    for (size_t i = 0; i < n; i++)
        memcpy(&v[i], (const char *)&runs[i] + at, sizeof v[i]);
    return median(v, n);
}

static struct run median_run(const struct run *runs, size_t n, double *v) {
    return (struct run){ .first = column(runs, n, offsetof(struct run, first), v),
                         .read = column(runs, n, offsetof(struct run, read), v),
                         .write = column(runs, n, offsetof(struct run, write), v),
                         .all = column(runs, n, offsetof(struct run, all), v) };
}

static void put_all(const struct bench *b, const struct run *runs, size_t n, const struct run *m) {
    json_object *o, *list;

    if (!b->c->json) {
        put_run("median", m);
        return;
    }
    o = json_object_new_object();
    list = json_object_new_array();
    for (size_t i = 0; i < n; i++)
        (void)json_object_array_add(list, run_object(&runs[i]));
    (void)json_object_object_add(o, "model", json_object_new_string(b->model));
    (void)json_object_object_add(o, "streams", json_object_new_uint64(b->n_stream));
    (void)json_object_object_add(o, "prompt_tokens", json_object_new_uint64(b->stream->n_prompt));
    (void)json_object_object_add(o, "runs", list);
    (void)json_object_object_add(o, "median", run_object(m));
    ctl_put_object(b->c, o);
}

/* A short one first: the model is loaded by then. Return: an exit code. */
static int measure(struct bench *b, const char *prompt, struct run *runs, size_t n, double *v) {
    uint64_t max = b->c->generate.max_tokens ? b->c->generate.max_tokens : TOKENS;
    struct run m;
    char label[24];
    int r;

    r = answer(b, 1, prompt, 1);
    if (!r && !b->c->json) {
        ctl_puts(b->c, b->model);
        (void)printf(": %ju tokens of prompt, up to %ju of answer, %zu at a time\n",
                     (uintmax_t)b->stream->n_prompt, (uintmax_t)max, b->n_stream);
        (void)printf("%6s  %12s  %14s  %14s  %14s\n", "run", "first token", "read tok/s",
                     "written tok/s", "of all");
    }
    for (size_t i = 0; i < n && !r && !ctl_flush(); i++) {
        r = answer(b, b->n_stream, prompt, max);
        if (r)
            break;
        runs[i] = sum_up(b, v);
        (void)snprintf(label, sizeof label, "%zu", i + 1);
        if (!b->c->json)
            put_run(label, &runs[i]);
    }
    if (!r && !ctl_flush()) {
        m = median_run(runs, n, v);
        put_all(b, runs, n, &m);
    }

    return r;
}

int verb_bench(struct ctl *c) {
    size_t n = c->count ? (size_t)c->count : RUNS, n_stream = c->streams ? (size_t)c->streams : 1;
    struct bench b = { .c = c, .n_stream = n_stream };
    struct ctl_text prompt = { 0 };
    struct run *runs = calloc(n, sizeof *runs);
    double *v = calloc(n > n_stream ? n : n_stream, sizeof *v);
    int r = 0;

    b.stream = calloc(n_stream, sizeof *b.stream);
    b.id = calloc(n_stream, sizeof *b.id);
    if (!runs || !v || !b.stream || !b.id)
        r = ctl_complain(EXIT_FAILED, "out of memory");
    if (!r && (c->n_args || c->n_files))
        r = ctl_read_prompt(c, 0, &prompt);
    if (!r)
        r = ctl_connect(c);
    if (!r)
        r = measure(&b, prompt.p ? prompt.p : text, runs, n, v);
    free(prompt.p);
    free(runs);
    free(v);
    free(b.stream);
    free(b.id);

    return r;
}
