/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/moectl.h"

enum {
    CANCEL_USEC = 2000000,  /* for the service to say how far it came */
    ANSWER_USEC = 10000000, /* for what it knows by heart */
};

static void dim(const struct ctl *c, bool on) {
    if (c->colour)
        (void)fputs(on ? "\033[2m" : "\033[0m", stderr);
}

static void put_thought(struct ctl_answer *a, const char *text, size_t n) {
    if (!a->c->err_tty || a->c->json)
        return;
    dim(a->c, true);
    ctl_put(stderr, true, text, n);
    dim(a->c, false);
    a->thinking = true;
}

static void put_text(struct ctl_answer *a, const char *text, size_t n) {
    if (a->thinking)
        (void)fputs("\n\n", stderr);
    a->thinking = false;
    ctl_put(stdout, a->c->out_tty, text, n);
    (void)ctl_flush();
    if (n)
        a->last = text[n - 1];
    /* The text fits, or the conversation goes on without the end of this answer. */
    (void)ctl_text_add(&a->text, text, n);
}

static void on_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    struct ctl_answer *a = userdata;

    ctl_progress_clear(a->c);
    if (d->thought)
        put_thought(a, d->text, d->n_text);
    else
        put_text(a, d->text, d->n_text);
    if (ctl_flush())
        (void)moe_cancel(m, id); /* nobody reads: let others have the machine */
}

static void on_progress(struct moe *m, uint32_t id, const char *stage, uint64_t done,
                        uint64_t total, void *userdata) {
    struct ctl_answer *a = userdata;

    (void)m;
    (void)id;
    ctl_progress(a->c, stage, strcmp(stage, "loading") ? CTL_TOKENS : CTL_BYTES, done, total);
}

static void put_result(struct ctl_answer *a, const struct moe_result *r) {
    if (a->c->json) {
        ctl_put_json(a->c, r->value);
        return;
    }
    if (r->thought && a->c->no_stream)
        put_thought(a, r->thought, r->n_thought);
    if (r->text && a->c->no_stream)
        put_text(a, r->text, r->n_text);
}

static void on_done(struct moe *m, uint32_t id, const struct moe_result *result,
                    const struct moe_error *error, void *userdata) {
    struct ctl_answer *a = userdata;

    (void)m;
    (void)id;
    a->done = true;
    ctl_progress_clear(a->c);
    if (result) {
        bool whole =
            strcmp(result->stop_reason, "length") && strcmp(result->stop_reason, "deadline");

        put_result(a, result);
        a->usage = (struct ctl_usage){ .n_prompt = result->n_prompt,
                                       .n_cached = result->n_cached,
                                       .n_generated = result->n_generated,
                                       .decode_usec = result->decode_usec };
        (void)snprintf(a->usage.model, sizeof a->usage.model, "%s",
                       result->model ? result->model : "");
        a->n_dropped = moe_uint(moe_get(result->value, "dropped_messages"));
        a->code = whole ? EXIT_OK : EXIT_LIMIT;
    }
    if (a->thinking)
        (void)fputc('\n', stderr);
    if (a->c->out_tty && !a->c->json && a->last && a->last != '\n')
        (void)fputc('\n', stdout);
    if (ctl_flush())
        a->code = EXIT_FAILED; /* why is said at the end */
    else if (ctl_interrupted)
        a->code = EXIT_INTERRUPTED;
    else if (error && error->code == MOE_NO_SUCH_SESSION)
        a->lost = true;
    else if (error)
        a->code = ctl_complain_error(error);
}

int ctl_ask(struct ctl_answer *a, const uint64_t *session) {
    struct ctl *c = a->c;
    struct moe_generate g = c->generate;
    bool stopped = false;
    uint32_t id;
    int r;

    g.userdata = a;
    g.on_progress = on_progress;
    g.on_delta = c->no_stream || c->json ? NULL : on_delta;
    if (session)
        g.model = NULL; /* it has its own */
    r = session ? moe_session_generate(c->m, *session, &g, on_done, &id)
                : moe_generate(c->m, &g, on_done, &id);
    if (r < 0)
        return ctl_complain_errno(c, r);
    while (!a->done) {
        if (ctl_interrupted && !stopped) {
            stopped = true;
            (void)moe_cancel(c->m, id);
            (void)moe_set_deadline(c->m, id, CANCEL_USEC);
        }
        r = ctl_poll(c, -1, MOE_FOREVER);
        if (r < 0 && !a->done)
            c->m = moe_close(c->m); /* which ends the call, too */
    }

    return a->code;
}

/* Answer one prompt, which the arguments from @first on begin. @use_case: or NULL */
static int answer(struct ctl *c, size_t first, const char *use_case) {
    struct moe_map *more = use_case ? moe_map_new() : NULL;
    struct ctl_answer a = { .c = c };
    struct ctl_text prompt = { 0 };
    struct moe_message messages[2];
    size_t n = 0;
    int r;

    r = ctl_read_prompt(c, first, &prompt);
    if (!r)
        r = ctl_connect(c);
    if (!r) {
        if (c->system)
            messages[n++] = (struct moe_message){ "system", c->system };
        messages[n++] = (struct moe_message){ "user", prompt.p };
        c->generate.prompt = c->raw ? prompt.p : NULL;
        c->generate.messages = c->raw ? NULL : messages;
        c->generate.n_messages = n;
        moe_map_str(more, "use_case", use_case);
        if (c->language)
            moe_map_str(more, "language", c->language);
        c->generate.more = more;
        r = use_case && !more ? ctl_complain(EXIT_FAILED, "out of memory") : ctl_ask(&a, NULL);
    }
    free(a.text.p);
    free(prompt.p);
    moe_map_free(more);

    return r;
}

int verb_ask(struct ctl *c) {
    return answer(c, 0, NULL);
}

int verb_run(struct ctl *c) {
    if (c->raw && c->system)
        return ctl_complain(EXIT_USAGE,
                            "--raw is a prompt as it is: there is no place for --system");
    if (c->special && !c->raw)
        return ctl_complain(EXIT_USAGE, "--special needs --raw: in messages no text is special");

    return answer(c, 0, NULL);
}

int verb_summarize(struct ctl *c) {
    return answer(c, 0, "language.summarize");
}

int verb_rephrase(struct ctl *c) {
    return answer(c, 0, "language.rephrase");
}

int verb_translate(struct ctl *c) {
    return answer(c, 0, "language.translate");
}

static int list_use_cases(struct ctl *c) {
    const struct moe_value *v, *cases;
    int width = 0, r;

    r = ctl_look(c, "usecase.list", ANSWER_USEC, &v);
    if (r >= 0)
        return r;

    cases = moe_get(v, "use_cases");
    if (!moe_size(cases) && !c->quiet)
        (void)fputs("There are no use cases.\n", stderr);
    for (size_t i = 0; i < moe_size(cases); i++) {
        int n = (int)strlen(ctl_str(moe_at(cases, i), "id"));

        width = n > width && n < 60 ? n : width;
    }
    for (size_t i = 0; i < moe_size(cases); i++) {
        const char *id = ctl_str(moe_at(cases, i), "id"),
                   *model = ctl_str(moe_at(cases, i), "model");

        ctl_puts(c, id);
        (void)printf("%*s  ", width - (int)strlen(id), "");
        ctl_puts(c, *model ? model : "the default model");
        (void)putchar('\n');
    }
    return EXIT_OK;
}

int verb_use_case(struct ctl *c) {
    return c->n_args ? answer(c, 1, c->args[0]) : list_use_cases(c);
}
