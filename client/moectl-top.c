/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-top - top, metrics and kill
 *
 * On a terminal top has a screen of its own, in the modes that reading single keys takes. Whatever
 * ends or stops the command, the terminal is as it was: see leave().
 */

#include <errno.h>
#include <inttypes.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "client/moectl.h"

enum {
    ANSWER_USEC = 10000000,
    REFRESH_USEC = 1000000,
    NAME_MAX_SHOWN = 40, /* bytes of a unit's name */
    LINE_SIZE = 512,
    N_HEAD = 4, /* lines above the table */
};

/* ---- metrics, kill ---- */

int verb_metrics(struct ctl *c) {
    const struct moe_value *v, *text;
    int r;

    r = ctl_connect(c);
    if (!r)
        r = ctl_call(c, "server.metrics", NULL, ANSWER_USEC, &v);
    if (r)
        return r;
    text = moe_get(v, "text");
    if (c->json)
        ctl_put_json(c, v);
    else if (moe_str(text))
        ctl_put(stdout, c->out_tty, moe_str(text), moe_size(text));

    return EXIT_OK;
}

int verb_kill(struct ctl *c) {
    const struct moe_value *v;
    struct moe_map *p;
    uint64_t job = 0;
    char *end = NULL;
    int r;

    errno = 0;
    if (c->n_args)
        job = strtoull(c->args[0], &end, 10);
    if (errno || !end || *end || *c->args[0] < '0' || *c->args[0] > '9')
        return ctl_complain(EXIT_USAGE, "kill: want the number of a job, as moectl top shows it");
    r = ctl_connect(c);
    if (r)
        return r;

    p = moe_map_new();
    moe_map_uint(p, "id", job);
    r = ctl_call_with(c, "job.cancel", p, ANSWER_USEC, &v);
    if (!r && c->json)
        ctl_put_json(c, v);

    return r;
}

/* ---- the terminal ---- */

static struct termios before;                   /* what it was */
static volatile sig_atomic_t has_screen, fresh; /* it is ours; to be painted from nothing */

static void put_raw(const char *s) {
    size_t n = strlen(s);

    while (n) {
        ssize_t k = write(STDOUT_FILENO, s, n);

        if (k < 0 && errno != EINTR)
            return;
        s += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
    }
}

/* Like enter(), safe in a signal handler. */
static void leave(void) {
    if (!has_screen)
        return;
    has_screen = 0;
    put_raw("\033[?25h\033[?1049l");
    (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &before);
}

/* Single keys, no echo; Ctrl-C and its like still are signals. */
static void enter(void) {
    struct termios t = before;

    t.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    has_screen = 1;
    (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &t);
    put_raw("\033[?1049h\033[?25l");
    fresh = 1;
}

static void on_end(int sig) {
    leave();
    (void)signal(sig, SIG_DFL);
    (void)raise(sig); /* as soon as this returns */
}

static void on_stop(int sig) {
    int saved = errno;

    (void)sig;
    leave();
    (void)raise(SIGSTOP); /* until somebody says to go on */
    enter();
    errno = saved;
}

static void on_resize(int sig) {
    (void)sig;
    fresh = 1;
}

static void take_terminal(void) {
    static const struct {
        int sig;
        void (*fn)(int);
    } table[] = {
        { SIGTERM, on_end },  { SIGHUP, on_end },      { SIGQUIT, on_end },
        { SIGTSTP, on_stop }, { SIGWINCH, on_resize },
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct sigaction sa = { .sa_handler = table[i].fn };

        (void)sigfillset(&sa.sa_mask); /* one at a time: they write to the terminal */
        (void)sigaction(table[i].sig, &sa, NULL);
    }
    (void)fflush(stdout);
    enter();
}

/* ---- top ---- */

struct row {
    uint64_t id, uid, age, done, total, generated, kv;
    double rate; /* tokens generated a second, since the last look */
    bool waits;
    char kind[20], priority[12], unit[NAME_MAX_SHOWN];
};

struct rows {
    struct row *p;
    size_t n;
};

struct top {
    struct ctl *c;
    bool screen;
    int awaited;           /* answers */
    int code;              /* why it is over, or -1 */
    struct rows now, last; /* sorted by id */
    uint64_t uptime, n_in, n_out;
    double rate_in, rate_out;
    char head[N_HEAD][LINE_SIZE];
    unsigned line, n_line, n_column; /* being painted, of those there are; 0: any number */
};

static uint64_t now_usec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static double per_second(uint64_t now, uint64_t last, uint64_t usec) {
    return usec && now > last ? (double)(now - last) * 1e6 / (double)usec : 0;
}

static void fail(struct top *t, const struct moe_error *error) {
    leave();
    if (t->code < 0)
        t->code = ctl_complain_error(error);
}

static void on_status(struct moe *m, uint32_t id, const struct moe_value *v,
                      const struct moe_error *error, void *userdata) {
    struct top *t = userdata;
    const struct moe_value *queue = moe_get(v, "queue"), *memory = moe_get(v, "memory");
    const struct moe_value *kept = moe_get(v, "prefixes");
    uint64_t up = ctl_uint(v, "uptime_us"), n_in = ctl_uint(moe_get(v, "tokens"), "prompt");
    uint64_t n_out = ctl_uint(moe_get(v, "tokens"), "generated");

    (void)m;
    (void)id;
    t->awaited--;
    if (error) {
        fail(t, error);
        return;
    }
    t->rate_in = t->uptime ? per_second(n_in, t->n_in, up - t->uptime) : 0;
    t->rate_out = t->uptime ? per_second(n_out, t->n_out, up - t->uptime) : 0;
    t->uptime = up;
    t->n_in = n_in;
    t->n_out = n_out;
    (void)snprintf(t->head[0], LINE_SIZE, "moed %s, up %s, %s%s%s", ctl_str(v, "version"),
                   ctl_span(up), ctl_str(v, "state"), moe_get(v, "model") ? ": " : "",
                   ctl_str(v, "model"));
    (void)snprintf(t->head[1], LINE_SIZE,
                   "%ju running, %ju waiting, %ju connections; tokens a second: %.1f read, "
                   "%.1f generated",
                   (uintmax_t)ctl_uint(queue, "running"), (uintmax_t)ctl_uint(queue, "waiting"),
                   (uintmax_t)ctl_uint(v, "connections"), t->rate_in, t->rate_out);
    (void)snprintf(t->head[2], LINE_SIZE, "%s of memory, %s of it weights; %ju threads",
                   ctl_bytes(ctl_uint(memory, "resident")), ctl_bytes(ctl_uint(memory, "weights")),
                   (uintmax_t)ctl_uint(v, "threads"));
    (void)snprintf(t->head[3], LINE_SIZE,
                   "%ju prompts kept, %ju of them public, in %s; %ju hits saved %ju tokens",
                   (uintmax_t)ctl_uint(kept, "kept"), (uintmax_t)ctl_uint(kept, "public"),
                   ctl_bytes(ctl_uint(kept, "bytes")), (uintmax_t)ctl_uint(kept, "hits"),
                   (uintmax_t)ctl_uint(kept, "saved"));
}

static int by_id(const void *a, const void *b) {
    const struct row *x = a, *y = b;

    return (x->id > y->id) - (x->id < y->id);
}

static void read_row(struct top *t, const struct moe_value *v, struct row *row) {
    const struct row key = { .id = ctl_uint(v, "id") }, *old;

    *row = (struct row){ .id = key.id,
                         .uid = ctl_uint(v, "uid"),
                         .age = ctl_uint(v, "age_us"),
                         .done = ctl_uint(v, "done"),
                         .total = ctl_uint(v, "total"),
                         .generated = ctl_uint(v, "generated"),
                         .kv = ctl_uint(v, "kv"),
                         .waits = strcmp(ctl_str(v, "state"), "running") };
    (void)snprintf(row->kind, sizeof row->kind, "%s", ctl_str(v, "kind"));
    (void)snprintf(row->priority, sizeof row->priority, "%s", ctl_str(v, "priority"));
    (void)snprintf(row->unit, sizeof row->unit, "%s", ctl_str(v, "unit"));
    old = t->last.n ? bsearch(&key, t->last.p, t->last.n, sizeof key, by_id) : NULL;
    if (old)
        row->rate = per_second(row->generated, old->generated, row->age - old->age);
    else
        row->rate = per_second(row->generated, 0, row->age);
}

static void on_jobs(struct moe *m, uint32_t id, const struct moe_value *v,
                    const struct moe_error *error, void *userdata) {
    const struct moe_value *jobs = moe_get(v, "jobs");
    struct top *t = userdata;
    size_t n = moe_size(jobs);

    (void)m;
    (void)id;
    t->awaited--;
    if (error) {
        fail(t, error);
        return;
    }
    if (t->c->json) {
        ctl_put_json(t->c, v);
        return;
    }

    free(t->last.p);
    t->last = t->now;
    t->now = (struct rows){ n ? calloc(n, sizeof *t->now.p) : NULL, n };
    if (!t->now.p)
        t->now.n = 0;
    for (size_t i = 0; i < t->now.n; i++)
        read_row(t, moe_at(jobs, i), &t->now.p[i]);
    if (t->now.n)
        qsort(t->now.p, t->now.n, sizeof *t->now.p, by_id);
}

/* ---- painting ---- */

/* @s, cut to @n columns, one a character: names of units are ASCII but for what users make up. */
static size_t cut(const char *s, size_t n) {
    size_t i = 0;

    for (; s[i]; i++)
        if (((unsigned char)s[i] & 0xc0) != 0x80 && n-- == 0)
            break;
    return i;
}

static void put_line(struct top *t, bool inverse, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void put_line(struct top *t, bool inverse, const char *fmt, ...) {
    char line[LINE_SIZE];
    va_list ap;

    if (t->n_line && t->line >= t->n_line)
        return;
    va_start(ap, fmt);
    (void)vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    /* On a screen lines are begun, not ended: a newline on the last one would move them all. */
    if (t->screen)
        (void)fputs(t->line ? "\n" : "\033[H", stdout);
    if (t->screen && inverse)
        (void)fputs("\033[7m", stdout);
    ctl_put(stdout, t->c->out_tty, line, t->n_column ? cut(line, t->n_column) : strlen(line));
    if (t->screen)
        (void)fputs("\033[K\033[0m", stdout);
    else
        (void)putchar('\n');
    t->line++;
}

static const char *user_name(uint64_t uid, char *buf, size_t size) {
    const struct passwd *pw = getpwuid((uid_t)uid);

    if (pw)
        (void)snprintf(buf, size, "%s", pw->pw_name);
    else
        (void)snprintf(buf, size, "%ju", (uintmax_t)uid);
    return buf;
}

/* Work first, then what waits. */
static void put_rows(struct top *t, bool waits) {
    for (size_t i = 0; i < t->now.n; i++) {
        const struct row *r = &t->now.p[i];
        char user[33], age[16];

        if (r->waits != waits)
            continue;
        (void)snprintf(age, sizeof age, "%ju:%02ju", (uintmax_t)(r->age / 60000000),
                       (uintmax_t)(r->age / 1000000 % 60));
        put_line(t, false, "%7ju %-10.10s %c %-11s %9ju %9ju %9ju %7.1f %10s %7s  %-14s %s",
                 (uintmax_t)r->id, user_name(r->uid, user, sizeof user), r->waits ? 'W' : 'R',
                 r->priority, (uintmax_t)r->total, (uintmax_t)r->done, (uintmax_t)r->generated,
                 r->rate, r->kv ? ctl_bytes(r->kv) : "-", age, r->kind, r->unit);
    }
}

static void paint(struct top *t) {
    struct winsize w = { 0 };

    if (t->c->json)
        return;
    if (t->screen && ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0) {
        t->n_line = w.ws_row;
        t->n_column = w.ws_col;
    }
    t->line = 0;
    if (fresh)
        (void)fputs("\033[2J", stdout);
    fresh = 0;
    for (size_t i = 0; i < N_HEAD; i++)
        put_line(t, false, "%s", t->head[i]);
    put_line(t, false, "%s", "");
    put_line(t, true, "%7s %-10s %c %-11s %9s %9s %9s %7s %10s %7s  %-14s %s", "JOB", "USER", 'S',
             "PRIORITY", "PROMPT", "DONE", "GENERATED", "TOK/S", "KV", "TIME", "KIND", "UNIT");
    put_rows(t, false);
    put_rows(t, true);
    if (t->screen)
        (void)fputs("\033[J", stdout);
    (void)ctl_flush();
}

/* ---- the loop ---- */

static void ask(struct top *t) {
    static const struct {
        const char *method;
        moe_reply_fn reply;
    } table[] = { { "server.status", on_status }, { "job.list", on_jobs } };
    uint32_t id;
    int r;

    for (size_t i = t->c->json ? 1 : 0; i < 2 && t->code < 0; i++) {
        r = moe_call(t->c->m, table[i].method, NULL, table[i].reply, NULL, t, &id);
        if (r < 0) {
            leave();
            t->code = ctl_complain_errno(t->c, r);
            return;
        }
        (void)moe_set_deadline(t->c->m, id, ANSWER_USEC);
        t->awaited++;
    }
}

/* One key. Return: look again at once? */
static bool obey(struct top *t) {
    char key;

    if (read(STDIN_FILENO, &key, 1) != 1 || key == 'q')
        t->code = EXIT_OK;
    return key == ' ' || key == '\n';
}

/* Wait for something, at most @usec. Return: look again at once? */
static bool turn(struct top *t, uint64_t usec) {
    int r = ctl_poll(t->c, t->screen ? STDIN_FILENO : -1, usec);

    if (r == 1)
        return obey(t);
    if (r == 2 && ctl_interrupted)
        t->code = EXIT_INTERRUPTED;
    else if (r == 2 && t->screen)
        paint(t); /* it was resized, or is ours again */
    if (r < 0 && t->code < 0) {
        leave();
        t->code = ctl_complain_errno(t->c, r);
    }
    return false;
}

int verb_top(struct ctl *c) {
    struct top t = { .c = c, .code = -1 };
    uint64_t n = 0, count = c->count;
    int r;

    r = ctl_connect(c);
    if (r)
        return r;
    t.screen = !c->json && !count && c->out_tty && isatty(STDIN_FILENO) &&
               tcgetattr(STDIN_FILENO, &before) == 0;
    if (!t.screen && !count)
        count = 1;
    if (t.screen)
        take_terminal();
    while (t.code < 0) {
        uint64_t due = now_usec() + REFRESH_USEC, now;

        ask(&t);
        while (t.awaited && t.code < 0)
            (void)turn(&t, MOE_FOREVER);
        if (t.code >= 0)
            break;
        paint(&t);
        if (ctl_flush() || ++n == count)
            t.code = EXIT_OK;
        while (t.code < 0 && (now = now_usec()) < due)
            if (turn(&t, due - now))
                break;
    }
    leave();
    c->m = moe_close(c->m); /* answers that are still to come find @t here */
    free(t.now.p);
    free(t.last.p);

    return t.code;
}
