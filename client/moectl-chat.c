/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/moectl.h"

/* The conversation. The service has it in a session; a copy stays here, for when that restarts
 * or closes it. Contents are owned, roles are static. */
struct talk {
    struct moe_message *messages; /* of a session that was resumed: what was said since */
    size_t n, size;
    uint64_t session;
    bool open, resumed;
    char *token;      /* what it was saved under; NULL: it was not */
    uint32_t reading; /* the call that has it evaluated while the user types; 0: none */
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

/* Forget the oldest @n messages, as the service did. */
static void talk_drop(struct talk *t, size_t n) {
    size_t first = t->n && !strcmp(t->messages[0].role, "system");

    n = n < t->n - first ? n : t->n - first;
    for (size_t i = first; i < first + n; i++)
        free((char *)(uintptr_t)t->messages[i].content);
    memmove(t->messages + first, t->messages + first + n, (t->n - first - n) * sizeof *t->messages);
    t->n -= n;
}

static int talk_begin(struct ctl *c, struct talk *t) {
    if (t->open && c->m)
        (void)moe_session_close_wait(c->m, t->session);
    talk_cut(t, 0);
    t->open = t->resumed = false;
    free(t->token);
    t->token = NULL;

    return c->system ? talk_add(t, "system", c->system) : 0;
}

/* Be connected, and have the session. Return: an exit code. */
static int talk_open(struct ctl *c, struct talk *t) {
    struct moe_session s = MOE_SESSION_INIT;
    int r;

    /* A service that restarted meanwhile is as good: the conversation is here. */
    if (c->m && moe_process(c->m, 0) < 0)
        c->m = moe_close(c->m);
    if (!c->m) {
        t->open = false;
        r = ctl_connect(c);
        if (r)
            return r;
    }
    if (t->open)
        return EXIT_OK;
    if (t->resumed)
        return ctl_complain(EXIT_FAILED, "the service has closed the conversation; /reset begins"
                                         " another one");

    s.model = c->generate.model;
    s.messages = t->messages;
    s.n_messages = t->n;
    s.priority = c->generate.priority;
    s.thinking = c->generate.thinking;
    s.max_tokens = c->generate.max_tokens;
    s.temperature = c->generate.temperature;
    s.top_p = c->generate.top_p;
    s.min_p = c->generate.min_p;
    s.top_k = c->generate.top_k;
    s.seed = c->generate.seed;
    r = moe_session_open_wait(c->m, &s, &t->session);
    t->open = r >= 0;

    return r < 0 ? ctl_complain_errno(c, r) : EXIT_OK;
}

/* Ask, again if the session had been closed for being idle. Return: an exit code. */
static int talk_ask(struct ctl *c, struct talk *t, const char *line, struct ctl_answer *a) {
    const struct moe_message question = { "user", line };
    int r;

    for (int i = 0; i < 2; i++) {
        *a = (struct ctl_answer){ .c = c };
        r = talk_open(c, t);
        if (r)
            return r;
        if (t->reading) /* the answer goes on from what was evaluated */
            (void)moe_cancel(c->m, t->reading);
        c->generate.messages = &question;
        c->generate.n_messages = 1;
        r = ctl_ask(a, &t->session);
        if (!a->lost)
            return r;
        t->open = false;
    }

    return ctl_complain(EXIT_FAILED, "the service does not keep the conversation");
}

/* One line of the user and its answer. An answer that failed or was stopped is taken back together
 * with the question. Return: 0 or -errno. */
static int say(struct ctl *c, struct talk *t, const char *line) {
    struct ctl_answer a = { .c = c };
    int code, r = 0;

    code = talk_ask(c, t, line, &a);
    if (!c->out_tty && a.last && a.last != '\n')
        (void)fputc('\n', stdout);
    (void)ctl_flush();
    if (code == EXIT_LIMIT && !c->quiet)
        (void)fputs("(cut short by a limit)\n", stderr);
    if (code == EXIT_OK || code == EXIT_LIMIT) {
        r = talk_add(t, "user", line);
        if (!r)
            r = talk_add(t, "assistant", a.text.n ? a.text.p : "");
        talk_drop(t, (size_t)a.n_dropped);
    }
    if (a.n_dropped && !c->quiet)
        (void)fprintf(stderr, "(the oldest %ju messages do not fit any more and are forgotten)\n",
                      (uintmax_t)a.n_dropped);
    if (ctl_interrupted && !c->quiet)
        (void)fputs("(stopped; question and answer are taken back)\n", stderr);
    ctl_interrupted = 0;
    free(a.text.p);

    return r;
}

/* Over what it was saved as before, if that is still there. */
static int save(struct ctl *c, struct talk *t) {
    const char *token;
    char *copy;
    int r;

    r = talk_open(c, t);
    if (r)
        return r;
    r = moe_session_save_wait(c->m, t->session, t->token, &token);
    if (r == -EREMOTEIO && t->token && moe_last_error(c->m)->code == MOE_NO_SUCH_SESSION)
        r = moe_session_save_wait(c->m, t->session, NULL, &token);
    if (r < 0)
        return ctl_complain_errno(c, r);
    copy = strdup(token);
    if (copy) {
        free(t->token);
        t->token = copy;
    }

    (void)fprintf(stderr, "(saved; go on with: moectl chat --resume %s)\n", token);
    return EXIT_OK;
}

static void on_read(struct moe *m, uint32_t id, const struct moe_value *result,
                    const struct moe_error *error, void *userdata) {
    struct talk *t = userdata;

    (void)m, (void)id, (void)result, (void)error; /* it was a matter of speed */
    t->reading = 0;
}

/* What the service has not kept of it is evaluated while the user types. */
static int resume(struct ctl *c, struct talk *t) {
    struct moe_map *p = moe_map_new();
    int r = moe_session_restore_wait(c->m, c->resume, &t->session);

    if (r >= 0) {
        t->open = t->resumed = true;
        t->token = strdup(c->resume);
        moe_map_uint(p, "session", t->session);
        (void)moe_call(c->m, "session.append", p, on_read, NULL, t, &t->reading);
    }
    moe_map_free(p);
    return r < 0 ? ctl_complain_errno(c, r) : EXIT_OK;
}

/* A line with a slash. Return: true to go on. */
static bool obey(struct ctl *c, struct talk *t, const char *line) {
    if (!strcmp(line, "/quit") || !strcmp(line, "/exit"))
        return false;
    if (!strcmp(line, "/reset") && !talk_begin(c, t))
        (void)fputs("(forgotten)\n", stderr);
    else if (!strcmp(line, "/save"))
        (void)save(c, t);
    else if (!strcmp(line, "/help"))
        (void)fputs("/reset  forget the conversation\n"
                    "/save   keep it for --resume\n"
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

/* Lines and answers, to the end. Return: 0 or -errno. */
static int talk_on(struct ctl *c, struct talk *t) {
    struct ctl_text line = { 0 };
    int r = 0;

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
            if (!obey(c, t, line.p))
                break;
            continue;
        }
        r = say(c, t, line.p + (line.p[0] == '/'));
    }
    if (r == 1 && isatty(STDIN_FILENO) && c->err_tty)
        (void)fputc('\n', stderr);
    free(line.p);

    return r < 0 ? r : 0;
}

int verb_chat(struct ctl *c) {
    struct moe_map *more = moe_map_new();
    struct talk t = { 0 };
    int code, r = 0;

    moe_map_str(more, "overflow", c->overflow ? c->overflow : "drop-oldest");
    c->generate.more = more;
    code = ctl_connect(c);
    if (!code && c->resume)
        code = resume(c, &t);
    else if (!code)
        r = talk_begin(c, &t);
    if (!code && !c->quiet && isatty(STDIN_FILENO) && c->err_tty)
        (void)fputs("Ctrl-C stops an answer, Ctrl-D ends, /help for more.\n", stderr);
    if (!code && !r)
        r = talk_on(c, &t);
    if (!code && !r && c->save)
        code = save(c, &t);
    if (t.reading) /* @t goes before it is answered */
        c->m = moe_close(c->m);
    talk_cut(&t, 0);
    free(t.token);
    free(t.messages);
    moe_map_free(more);

    return r < 0 ? ctl_complain(EXIT_FAILED, "cannot go on: %s", strerror(-r)) : code;
}

/* -- sessions ---------------------------------------------------------------------------------- */

static void put_session(const struct ctl *c, const struct moe_value *s) {
    (void)printf("%7ju  ", (uintmax_t)ctl_uint(s, "session"));
    if (c->all)
        (void)printf("%10ju  ", (uintmax_t)ctl_uint(s, "user"));
    (void)printf("%8ju  %10s  %-12s  ", (uintmax_t)ctl_uint(s, "messages"),
                 ctl_bytes(ctl_uint(s, "bytes")),
                 moe_bool(moe_get(s, "busy")) ? "answers" : ctl_span(ctl_uint(s, "idle_us")));
    ctl_puts(c, ctl_str(s, "model"));
    (void)putchar('\n');
}

int verb_sessions(struct ctl *c) {
    const struct moe_value *v, *sessions;
    struct moe_map *p;
    int r;

    r = ctl_connect(c);
    if (r)
        return r;
    p = moe_map_new();
    if (c->all)
        moe_map_bool(p, "all", true);
    r = ctl_call_with(c, "session.list", p, MOE_FOREVER, &v);
    if (r)
        return r;
    if (c->json) {
        ctl_put_json(c, v);
        return EXIT_OK;
    }

    sessions = moe_get(v, "sessions");
    if (!moe_size(sessions) && !c->quiet)
        (void)fputs("No conversation is open.\n", stderr);
    else
        (void)printf("SESSION  %sMESSAGES        TEXT  IDLE          MODEL\n",
                     c->all ? "      USER  " : "");
    for (size_t i = 0; i < moe_size(sessions); i++)
        put_session(c, moe_at(sessions, i));
    return EXIT_OK;
}

int verb_forget(struct ctl *c) {
    int r;

    if (!c->n_args)
        return ctl_complain(EXIT_USAGE, "forget: want the token of a conversation that was kept");
    r = ctl_connect(c);
    if (r)
        return r;
    r = moe_session_forget_wait(c->m, c->args[0]);
    return r < 0 ? ctl_complain_errno(c, r) : EXIT_OK;
}
