/* SPDX-License-Identifier: Apache-2.0 */

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "tests/unit/engine-rig.h"

const char *model_path;
struct engine *shared; /* ready, n_queue 2, n_batch 16, one generation at a time */

uint64_t now_usec(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- the wrapped step ---- */

atomic_uint n_step;
atomic_uint slow_ms; /* every step lasts this longer, and still looks at @stop */
tok_t script[N_SCRIPT];
uint32_t n_script, script_at;
float *scripted; /* logits */

int __real_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits);
int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits);

int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits) {
    int r = __real_model_step(m, kv, row, n_row, stop, ret_logits);

    atomic_fetch_add(&n_step, 1);
    for (unsigned ms = atomic_load(&slow_ms); r == 0 && ms > 0; ms--) {
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        if (stop && atomic_load(stop))
            return MODEL_STOPPED;
    }
    if (r == 0 && n_script > 0 && row[n_row - 1].out) {
        uint32_t n_vocab = model_info(m)->n_vocab;

        scripted = realloc(scripted, n_vocab * sizeof *scripted);
        for (uint32_t i = 0; i < n_vocab; i++)
            scripted[i] = -100.0f;
        scripted[script[script_at++ % n_script]] = 100.0f;
        *ret_logits = scripted;
    }
    return r;
}

void script_clear(void) {
    n_script = script_at = 0;
    atomic_store(&slow_ms, 0);
}

void script_add(const char *tok) {
    tok_t id = vocab_find(engine_vocab(shared), tok, strlen(tok));

    if (id < 0)
        fail_msg("the vocabulary has no \"%s\"", tok);
    script[n_script++] = id;
}

/* One token a character. */
void script_text(const char *text) {
    script_clear();
    for (; *text; text++)
        script_add(*text == ' ' ? "\xe2\x96\x81" : (char[]){ *text, 0 });
}

/* ---- collecting events ---- */

void see(struct seen *s, const struct engine_event *ev) {
    switch (ev->kind) {
    case ENGINE_PROGRESS:
        assert_true(ev->done <= ev->total);
        s->n_progress++;
        s->bytes_total = ev->total;
        break;
    case ENGINE_LOADED:
        s->loaded = true;
        break;
    case ENGINE_LOAD_FAILED:
        s->failed = true;
        snprintf(s->why, sizeof s->why, "%s", ev->why->text);
        break;
    case ENGINE_TEXT: {
        bool text = ev->text_kind == CHAT_TEXT;
        char *to = text ? s->text : s->thought;
        size_t *n = text ? &s->n_text : &s->n_thought;

        assert_true(*n + ev->n_text < (text ? sizeof s->text : sizeof s->thought));
        memcpy(to + *n, ev->text, ev->n_text);
        *n += ev->n_text;
        to[*n] = 0;
        if (ev->has_token && s->n_token < N_SCRIPT)
            s->token[s->n_token++] = ev->token;
        s->n_event++;
        break;
    }
    case ENGINE_DONE:
        s->done = true;
        s->done_at = now_usec();
        s->result = *ev->result;
        if (ev->result->text)
            snprintf(s->out, sizeof s->out, "%s", ev->result->text);
        if (ev->result->n_tok > 0)
            memcpy(s->tok, ev->result->tok, ev->result->n_tok * sizeof(tok_t));
        break;
    }
}

bool next(struct engine *e, struct engine_event *ev, int ms) {
    struct pollfd p = { .fd = engine_fd(e), .events = POLLIN };

    while (!engine_next(e, ev)) {
        if (poll(&p, 1, ms) <= 0)
            return false;
    }
    return true;
}

/* Ends of jobs that nobody collected yet; their other events are dropped. */
static struct {
    struct engine *e;
    uint64_t job, at;
    struct engine_result result;
} ended[16];
static uint32_t n_ended;

void end_clear(void) {
    memset(ended, 0, sizeof ended);
}

void end_keep(struct engine *e, const struct engine_event *ev) {
    uint32_t i = n_ended++ % 16;

    ended[i].e = e;
    ended[i].job = ev->job;
    ended[i].at = now_usec();
    ended[i].result = *ev->result;
}

void end_find(struct engine *e, uint64_t job, struct seen *s) {
    for (uint32_t i = 0; i < 16; i++)
        if (ended[i].e == e && ended[i].job == job) {
            s->done = true;
            s->done_at = ended[i].at;
            s->result = ended[i].result;
            ended[i].e = NULL;
        }
}

/* Until @job is done (0: until loading is over); its events into @s. */
void collect(struct engine *e, uint64_t job, struct seen *s) {
    struct engine_event ev;

    memset(s, 0, sizeof *s);
    end_find(e, job, s);
    while (!s->done && !(job == 0 && (s->loaded || s->failed))) {
        if (!next(e, &ev, PATIENCE_MS))
            fail_msg("job %ju: no event came", (uintmax_t)job);
        if (ev.job == job)
            see(s, &ev);
        else if (ev.kind == ENGINE_DONE)
            end_keep(e, &ev);
    }
}

/* Until @job's first event of @kind. */
void await(struct engine *e, uint64_t job, enum engine_event_kind kind) {
    struct engine_event ev;

    do {
        if (!next(e, &ev, PATIENCE_MS))
            fail_msg("job %ju: no event came", (uintmax_t)job);
        assert_false(ev.job == job && ev.kind == ENGINE_DONE);
        if (ev.kind == ENGINE_DONE)
            end_keep(e, &ev);
    } while (ev.job != job || ev.kind != kind);
}

void sleep_ms(unsigned ms) {
    nanosleep(&(struct timespec){ .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L }, NULL);
}

/* ---- requests ---- */

struct engine_request raw(const char *text, uint32_t max_tokens) {
    return (struct engine_request){
        .kind = ENGINE_GENERATE,
        .text = text,
        .n_text = strlen(text),
        .max_tokens = max_tokens,
        .ignore_end = true,
        .sample = { .has = SAMPLE_TEMPERATURE },
    };
}

uint64_t submit(struct engine *e, const struct engine_request *q) {
    struct why why = { "" };
    uint64_t job = 0;
    int r = engine_submit(e, q, &job, NULL, &why);

    if (r != 0)
        fail_msg("submit: %d %s", r, why.text);
    assert_true(job != 0);
    return job;
}

void run(struct engine *e, const struct engine_request *q, struct seen *s) {
    collect(e, submit(e, q), s);
}

/* A prompt of @n tokens: <bos> and letters. */
struct engine_request long_prompt(size_t n, uint32_t max_tokens) {
    static tok_t tok[4096];
    struct engine_request q = raw("", max_tokens);

    assert_true(n <= 4096);
    q.text = NULL;
    tok[0] = vocab_bos(engine_vocab(shared));
    for (size_t i = 1; i < n; i++)
        tok[i] = vocab_find(engine_vocab(shared), i % 3 ? "a" : "b", 1);
    q.tok = tok;
    q.n_tok = n;
    return q;
}

struct engine *start(const char *path, uint32_t n_queue) {
    struct engine_options opt = {
        .path = path,
        .n_ctx = N_CTX,
        .n_queue = n_queue,
        .n_batch = 16,
        .n_seq = 1,
        .kv_fmt = QUANT_F32,
    };
    struct engine *e = NULL;

    end_clear();
    assert_int_equal(engine_new(&e, &opt, NULL), 0);
    return e;
}

struct engine *start_loaded(const struct engine_options *opt) {
    static struct seen s;
    struct engine *e = NULL;

    end_clear();
    assert_int_equal(engine_new(&e, opt, NULL), 0);
    collect(e, 0, &s);
    assert_true(s.loaded);
    return e;
}

int rig_teardown(void **state) {
    free(scripted);
    return 0;
}

int rig_teardown_shared(void **state) {
    shared = engine_free(shared);
    return rig_teardown(state);
}
