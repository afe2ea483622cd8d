/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/moectl.h"

enum { CANCEL_USEC = 2000000 }; /* for the service to say how far it came */

/* One answer on its way to the terminal. */
struct answer {
    struct ctl *c;
    struct ctl_text text; /* what was streamed; kept for the conversation */
    bool thinking;        /* the last piece was a thought */
    bool done;
    int code;   /* to exit with */
    bool whole; /* the model or a stop string ended it */
    char last;  /* byte of the output */
};

static void dim(const struct ctl *c, bool on) {
    if (c->colour)
        (void)fputs(on ? "\033[2m" : "\033[0m", stderr);
}

static void put_thought(struct answer *a, const char *text, size_t n) {
    if (!a->c->err_tty || a->c->json)
        return;
    dim(a->c, true);
    ctl_put(stderr, true, text, n);
    dim(a->c, false);
    a->thinking = true;
}

static void put_text(struct answer *a, const char *text, size_t n) {
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
    struct answer *a = userdata;

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
    struct answer *a = userdata;

    (void)m;
    (void)id;
    ctl_progress(a->c, stage, done, total);
}

static void put_result(struct answer *a, const struct moe_result *r) {
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
    struct answer *a = userdata;

    (void)m;
    (void)id;
    a->done = true;
    ctl_progress_clear(a->c);
    if (result) {
        put_result(a, result);
        a->whole = strcmp(result->stop_reason, "length") && strcmp(result->stop_reason, "deadline");
        a->code = a->whole ? EXIT_OK : EXIT_LIMIT;
    }
    if (a->thinking)
        (void)fputc('\n', stderr);
    if (a->c->out_tty && !a->c->json && a->last && a->last != '\n')
        (void)fputc('\n', stdout);
    if (ctl_flush())
        a->code = EXIT_FAILED; /* why is said at the end */
    else if (ctl_interrupted)
        a->code = EXIT_INTERRUPTED;
    else if (error)
        a->code = ctl_complain_error(error);
}

/* Ask, and show the answer as it comes. Ctrl-C stops the answer. Return: an exit code. */
static int ask(struct answer *a) {
    struct ctl *c = a->c;
    struct moe_generate g = c->generate;
    bool stopped = false;
    uint32_t id;
    int r;

    g.userdata = a;
    g.on_progress = on_progress;
    g.on_delta = c->no_stream || c->json ? NULL : on_delta;
    r = moe_generate(c->m, &g, on_done, &id);
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

int verb_run(struct ctl *c) {
    struct answer a = { .c = c };
    struct ctl_text prompt = { 0 };
    struct moe_message messages[2];
    size_t n = 0;
    int r;

    if (c->raw && c->system)
        return ctl_complain(EXIT_USAGE,
                            "--raw is a prompt as it is: there is no place for --system");
    if (c->special && !c->raw)
        return ctl_complain(EXIT_USAGE, "--special needs --raw: in messages no text is special");
    r = ctl_read_input(c, &prompt);
    if (!r)
        r = ctl_connect(c);
    if (!r && strlen(prompt.p) != prompt.n)
        r = ctl_complain(EXIT_FAILED, "the prompt has a NUL byte in it, and so is no text");
    if (!r) {
        if (c->system)
            messages[n++] = (struct moe_message){ "system", c->system };
        messages[n++] = (struct moe_message){ "user", prompt.p };
        c->generate.prompt = c->raw ? prompt.p : NULL;
        c->generate.messages = c->raw ? NULL : messages;
        c->generate.n_messages = n;
        r = ask(&a);
    }
    free(a.text.p);
    free(prompt.p);

    return r;
}

/* -- chat -------------------------------------------------------------------------------------- */

/* The conversation. Contents are owned, roles are static. */
struct talk {
    struct moe_message *messages;
    size_t n, size;
};

static int talk_add(struct talk *t, const char *role, const char *content) {
    size_t size = t->size ? 2 * t->size : 16;
    struct moe_message *p;
    char *copy;

    if (t->n == t->size) {
        p = realloc(t->messages, size * sizeof *p);
        if (!p)
            return -ENOMEM;
        t->messages = p;
        t->size = size;
    }
    copy = strdup(content);
    if (!copy)
        return -ENOMEM;
    t->messages[t->n++] = (struct moe_message){ role, copy };

    return 0;
}

static void talk_cut(struct talk *t, size_t n) {
    while (t->n > n)
        free((char *)(uintptr_t)t->messages[--t->n].content);
}

static int talk_begin(struct ctl *c, struct talk *t) {
    talk_cut(t, 0);

    return c->system ? talk_add(t, "system", c->system) : 0;
}

static bool reachable(struct ctl *c) {
    /* A service that restarted meanwhile is as good: the conversation is here. */
    if (c->m && moe_process(c->m, 0) < 0)
        c->m = moe_close(c->m);

    return c->m || !ctl_connect(c);
}

/* One line of the user and its answer. An answer that failed or was stopped is taken back together
 * with the question. Return: 0 or -errno. */
static int say(struct ctl *c, struct talk *t, const char *line) {
    struct answer a = { .c = c };
    size_t n = t->n;
    int r;

    r = talk_add(t, "user", line);
    if (r < 0)
        return r;
    if (reachable(c)) {
        c->generate.messages = t->messages;
        c->generate.n_messages = t->n;
        a.code = ask(&a);
        if (!c->out_tty && a.last && a.last != '\n')
            (void)fputc('\n', stdout);
        (void)ctl_flush();
        if (a.code == EXIT_LIMIT && !c->quiet)
            (void)fputs("(cut short by a limit)\n", stderr);
        if (a.code == EXIT_OK || a.code == EXIT_LIMIT)
            r = talk_add(t, "assistant", a.text.n ? a.text.p : "");
        else
            talk_cut(t, n);
        if (ctl_interrupted && !c->quiet)
            (void)fputs("(stopped; question and answer are taken back)\n", stderr);
    } else {
        talk_cut(t, n);
    }
    ctl_interrupted = 0;
    free(a.text.p);

    return r;
}

/* A line with a slash. Return: true to go on. */
static bool obey(struct ctl *c, struct talk *t, const char *line) {
    if (!strcmp(line, "/quit") || !strcmp(line, "/exit"))
        return false;
    if (!strcmp(line, "/reset") && !talk_begin(c, t))
        (void)fputs("(forgotten)\n", stderr);
    else if (!strcmp(line, "/help"))
        (void)fputs("/reset  forget the conversation\n"
                    "/quit   end; so does Ctrl-D\n"
                    "//…     say something that begins with a slash\n"
                    "Ctrl-C  stop the answer\n",
                    stderr);
    else
        (void)fprintf(stderr, "There is no %s; see /help.\n", line);

    return true;
}

static void prompt_user(const struct ctl *c) {
    if (isatty(STDIN_FILENO) && c->err_tty) {
        (void)fputs("> ", stderr);
        (void)fflush(stderr);
    }
}

int verb_chat(struct ctl *c) {
    struct ctl_text line = { 0 };
    struct talk t = { 0 };
    int r;

    r = ctl_connect(c);
    if (r)
        return r;
    if (!c->quiet && isatty(STDIN_FILENO) && c->err_tty)
        (void)fputs("Ctrl-C stops an answer, Ctrl-D ends, /help for more.\n", stderr);
    r = talk_begin(c, &t);
    while (!r && !ctl_flush()) {
        prompt_user(c);
        r = ctl_read_line(c, &line);
        if (r == 2) {
            ctl_interrupted = 0;
            (void)fputc('\n', stderr);
            r = 0;
            continue;
        }
        if (r || !line.n)
            continue;
        if (line.p[0] == '/' && line.p[1] != '/') {
            if (!obey(c, &t, line.p))
                break;
            continue;
        }
        r = say(c, &t, line.p + (line.p[0] == '/'));
    }
    if (r == 1 && isatty(STDIN_FILENO) && c->err_tty)
        (void)fputc('\n', stderr);
    talk_cut(&t, 0);
    free(t.messages);
    free(line.p);

    return r < 0 ? ctl_complain(EXIT_FAILED, "cannot go on: %s", strerror(-r)) : EXIT_OK;
}
