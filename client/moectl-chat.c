/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/moectl-line.h"

/* The conversation. The service has it in a session; a copy stays here, for when that restarts
 * or closes it. Contents are owned, roles are static. */
struct talk {
    struct moe_message *messages; /* of a session that was resumed: what was said since */
    size_t n, size;
    uint64_t session;
    bool open, resumed;
    char *token;           /* what it was saved under; NULL: it was not */
    uint32_t reading;      /* the call that has it evaluated while the user types; 0: none */
    struct ctl_text files; /* what /file said; goes with the next question */
    char *model;           /* what /model said; NULL: nothing */
    struct ctl_usage last; /* of the last answer */
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
    t->files.n = 0;
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
    t->last = a.usage;
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
static int resume(struct ctl *c, struct talk *t, const char *token) {
    struct moe_map *p = moe_map_new();
    uint64_t session;
    int r = moe_session_restore_wait(c->m, token, &session);

    if (r >= 0) {
        (void)talk_begin(c, t); /* the instructions are in what was kept */
        talk_cut(t, 0);
        t->session = session;
        t->open = t->resumed = true;
        t->token = strdup(token);
        moe_map_uint(p, "session", t->session);
        (void)moe_call(c->m, "session.append", p, on_read, NULL, t, &t->reading);
    }
    moe_map_free(p);
    return r < 0 ? ctl_complain_errno(c, r) : EXIT_OK;
}

/* ---- lines with a slash ---- */

static bool do_quit(struct ctl *c, struct talk *t, const char *arg) {
    (void)c, (void)t, (void)arg;
    return false;
}

static bool do_reset(struct ctl *c, struct talk *t, const char *arg) {
    (void)arg;
    if (!talk_begin(c, t))
        (void)fputs("(forgotten)\n", stderr);
    return true;
}

static bool do_save(struct ctl *c, struct talk *t, const char *arg) {
    (void)arg;
    (void)save(c, t);
    return true;
}

static bool do_load(struct ctl *c, struct talk *t, const char *arg) {
    if (!*arg)
        (void)fputs("Which? /save has told its token.\n", stderr);
    else if (!(c->m ? 0 : ctl_connect(c)) && !resume(c, t, arg))
        (void)fputs("(loaded)\n", stderr);
    return true;
}

static bool do_file(struct ctl *c, struct talk *t, const char *arg) {
    size_t before = t->files.n;

    if (!*arg)
        (void)fputs("Which file?\n", stderr);
    else if (ctl_add_file(&t->files, arg))
        t->files.n = before;
    else if (memchr(t->files.p, 0, t->files.n)) {
        t->files.n = before;
        (void)ctl_complain(EXIT_FAILED, "%s: has a NUL byte in it, and so is no text", arg);
    } else if (!c->quiet)
        (void)fprintf(stderr, "(%s go with the next question)\n", ctl_bytes(t->files.n));
    return true;
}

/* Another model goes on with what was said; it is in the next question's session. */
static bool do_model(struct ctl *c, struct talk *t, const char *arg) {
    const struct moe_value *v;
    struct moe_map *p;

    if (!*arg) {
        (void)fprintf(stderr, "%s\n",
                      *t->last.model      ? t->last.model
                      : c->generate.model ? c->generate.model
                                          : "the service's choice");
        return true;
    }
    if (t->resumed) {
        (void)fputs("What was loaded stays with its model; /reset begins another one.\n", stderr);
        return true;
    }
    if (!c->m && ctl_connect(c))
        return true;
    p = moe_map_new();
    moe_map_str(p, "id", arg);
    if (ctl_call_with(c, "model.availability", p, MOE_FOREVER, &v))
        return true;
    if (!c->quiet)
        (void)fprintf(stderr, "(%s goes on: %s)\n", arg, ctl_str(v, "state"));
    if (t->open) /* after which @v is gone */
        (void)moe_session_close_wait(c->m, t->session);
    t->open = false;
    free(t->token);
    t->token = NULL;
    free(t->model);
    t->model = strdup(arg);
    c->generate.model = t->model;
    *t->last.model = 0;
    return true;
}

static bool do_usage(struct ctl *c, struct talk *t, const char *arg) {
    const struct ctl_usage *u = &t->last;
    uint64_t tokens, available;

    (void)arg;
    if (t->open && c->m &&
        moe_session_measure_wait(c->m, t->session, NULL, 0, &tokens, &available) >= 0)
        (void)fprintf(stderr, "conversation: %ju tokens, of %ju that there is room for\n",
                      (uintmax_t)tokens, (uintmax_t)available);
    if (*u->model)
        (void)fprintf(stderr,
                      "last answer, by %s: %ju tokens read, %ju of them known before; %ju written,"
                      " %.1f a second\n",
                      u->model, (uintmax_t)u->n_prompt, (uintmax_t)u->n_cached,
                      (uintmax_t)u->n_generated,
                      u->decode_usec ? (double)u->n_generated * 1e6 / (double)u->decode_usec : 0);
    else
        (void)fputs("There was no answer yet.\n", stderr);
    return true;
}

static bool do_help(struct ctl *c, struct talk *t, const char *arg);

/* clang-format off */
static const struct {
    const char *name, *arg, *help;
    bool (*run)(struct ctl *c, struct talk *t, const char *arg); /* Return: go on? */
} slashes[] = {
    { "file",  "FILE",    "add a file to the next question",           do_file  },
    { "help",  "",        "this",                                      do_help  },
    { "load",  "TOKEN",   "go on with a conversation that was kept",   do_load  },
    { "model", "[MODEL]", "which one answers; let another one go on",  do_model },
    { "quit",  "",        "end; so does Ctrl-D",                       do_quit  },
    { "reset", "",        "forget the conversation",                   do_reset },
    { "save",  "",        "keep it for /load and --resume",            do_save  },
    { "usage", "",        "tokens of the conversation and the answer", do_usage },
};
/* clang-format on */

static bool do_help(struct ctl *c, struct talk *t, const char *arg) {
    (void)c, (void)t, (void)arg;
    for (size_t i = 0; i < sizeof slashes / sizeof slashes[0]; i++)
        (void)fprintf(stderr, "/%-5s %-8s %s\n", slashes[i].name, slashes[i].arg, slashes[i].help);
    (void)fputs("//…             say something that begins with a slash\n"
                "Ctrl-C          stop the answer\n",
                stderr);
    return true;
}

/* Return: true to go on. */
static bool obey(struct ctl *c, struct talk *t, const char *line) {
    size_t n = strcspn(line + 1, " \t");
    const char *arg = line + 1 + n + strspn(line + 1 + n, " \t");

    for (size_t i = 0; i < sizeof slashes / sizeof slashes[0]; i++)
        if (strlen(slashes[i].name) == n && !strncmp(slashes[i].name, line + 1, n))
            return slashes[i].run(c, t, arg);
    (void)fprintf(stderr, "There is no %.*s; see /help.\n", (int)n + 1, line);
    return true;
}

/* ---- lines and answers ---- */

/* The question and, behind it, the files that were added. Return: 0 or -errno. */
static int add_files(struct talk *t, struct ctl_text *line) {
    int r;

    if (!t->files.n)
        return 0;
    r = ctl_text_add(line, "\n\n", 2);
    if (!r)
        r = ctl_text_add(line, t->files.p, t->files.n);
    t->files.n = 0;

    return r;
}

/* To the end. Return: 0 or -errno. */
static int talk_on(struct ctl *c, struct talk *t, struct line *in) {
    struct ctl_text line = { 0 };
    int r = 0;

    while (!r && !ctl_flush()) {
        r = line_read(in, &line);
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
        r = add_files(t, &line);
        if (!r)
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
    struct line *in = NULL;
    int code, r = 0;

    moe_map_str(more, "overflow", c->overflow ? c->overflow : "drop-oldest");
    c->generate.more = more;
    code = ctl_connect(c);
    if (!code && c->resume)
        code = resume(c, &t, c->resume);
    else if (!code)
        r = talk_begin(c, &t);
    if (!code && !c->quiet && isatty(STDIN_FILENO) && c->err_tty)
        (void)fputs("Ctrl-C stops an answer, Ctrl-D ends, /help for more.\n", stderr);
    if (!code && !r)
        r = line_new(&in, c, "> ");
    if (!code && !r)
        r = talk_on(c, &t, in);
    if (!code && !r && c->save)
        code = save(c, &t);
    if (t.reading) /* @t goes before it is answered */
        c->m = moe_close(c->m);
    talk_cut(&t, 0);
    (void)line_free(in);
    free(t.files.p);
    free(t.model);
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

static int list_saved(struct ctl *c) {
    const struct moe_value *v, *saved;
    int r;

    r = ctl_look(c, "session.saved", MOE_FOREVER, &v);
    if (r >= 0)
        return r;

    saved = moe_get(v, "saved");
    if (!moe_size(saved) && !c->quiet)
        (void)fputs("No conversation is kept.\n", stderr);
    else if (moe_size(saved))
        (void)printf("%-32s  %10s  %10s  IDLE\n", "TOKEN", "TEXT", "EVALUATED");
    for (size_t i = 0; i < moe_size(saved); i++) {
        const struct moe_value *s = moe_at(saved, i);

        ctl_puts(c, ctl_str(s, "token"));
        (void)printf("  %10s", ctl_bytes(ctl_uint(s, "bytes")));
        (void)printf("  %10s  %s\n", ctl_bytes(ctl_uint(s, "cached_bytes")),
                     ctl_span(ctl_uint(s, "idle_us")));
    }
    return EXIT_OK;
}

int verb_sessions(struct ctl *c) {
    const struct moe_value *v, *sessions;
    struct moe_map *p;
    int r;

    if (c->saved)
        return list_saved(c);
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
