/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#include "client/moectl-line.h"

enum { HISTORY_MAX = 1000, PATH_SIZE = 4096, PASTE_CHUNK = 1024 };

#define PASTE_ON    "\033[?2004h" /* from now on the terminal puts a paste into brackets */
#define PASTE_OFF   "\033[?2004l"
#define PASTE_BEGIN "\033[200~"
#define PASTE_END   "\033[201~"

struct line {
    struct ctl *c;
    const char *prompt;
    EditLine *el; /* NULL: no editing here */
    History *history;
    char path[PATH_SIZE]; /* of the history; "": there is no place for it */
    char read[PASTE_CHUNK];
    size_t n_read, at; /* bytes in .read; of them, the next one */
    bool interrupted;
};

/* ---- history ---- */

/* Make the folders of @path that are missing, for this user alone. */
static void make_folders(char *path) {
    for (char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = 0;
        (void)mkdir(path, 0700);
        *p = '/';
    }
}

/* $XDG_STATE_HOME/moectl/history, 0600. */
static void open_history(struct line *l) {
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    HistEvent ev;
    int fd;

    if (state && *state == '/')
        (void)snprintf(l->path, sizeof l->path, "%s/moectl/history", state);
    else if (home && *home == '/')
        (void)snprintf(l->path, sizeof l->path, "%s/.local/state/moectl/history", home);
    (void)history(l->history, &ev, H_SETSIZE, HISTORY_MAX);
    (void)history(l->history, &ev, H_SETUNIQUE, 1);
    if (!*l->path)
        return;
    make_folders(l->path);
    fd = open(l->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        *l->path = 0;
        return;
    }
    (void)fchmod(fd, 0600); /* libedit keeps it so */
    (void)close(fd);
    (void)history(l->history, &ev, H_LOAD, l->path);
}

static void keep_in_history(struct line *l, const char *text) {
    HistEvent ev;

    if (!*text)
        return;
    (void)history(l->history, &ev, H_ENTER, text);
    if (*l->path)
        (void)history(l->history, &ev, H_SAVE, l->path);
}

/* ---- characters ---- */

/* The next byte. Return: 1; 0: the end; -1: interrupted, or an error. */
static int next_byte(struct line *l, char *ret) {
    ssize_t n;
    int r;

    while (l->at == l->n_read) {
        r = ctl_poll(l->c, STDIN_FILENO, MOE_FOREVER);
        if (r == 2 && ctl_interrupted) {
            l->interrupted = true;
            l->at = l->n_read; /* the terminal has dropped what was typed before it, so do we */
            return -1;
        }
        if (r == 2) { /* stopped and continued, or resized */
            el_resize(l->el);
            (void)el_set(l->el, EL_PREP_TERM, 1);
            (void)el_set(l->el, EL_REFRESH);
        }
        if (r != 1)
            continue; /* the service hung up: said when it is asked next */
        n = read(STDIN_FILENO, l->read, sizeof l->read);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return -1;
        if (!n)
            return 0;
        l->n_read = n > 0 ? (size_t)n : 0;
        l->at = 0;
    }
    *ret = l->read[l->at++];

    return 1;
}

/* For libedit: the next character. */
static int next_char(EditLine *el, wchar_t *ret) {
    struct line *l = NULL;
    mbstate_t state = { 0 };
    char byte;
    int r;

    (void)el_get(el, EL_CLIENTDATA, &l);
    for (;;) {
        size_t k;

        r = next_byte(l, &byte);
        if (r != 1)
            return r;
        k = mbrtowc(ret, &byte, 1, &state);
        if (k <= 1)
            return 1;
        if (k == (size_t)-1) { /* no character of this locale */
            *ret = L'?';
            return 1;
        }
    }
}

/* A paste has begun: take all of it into the line, newlines too. */
static unsigned char take_paste(EditLine *el, int ch) {
    static const char end[] = PASTE_END;
    struct ctl_text text = { 0 };
    struct line *l = NULL;
    size_t n = sizeof end - 1;
    unsigned char code = CC_REFRESH;
    char byte;

    (void)ch;
    (void)el_get(el, EL_CLIENTDATA, &l);
    while (text.n < n || memcmp(text.p + text.n - n, end, n) != 0) {
        if (next_byte(l, &byte) != 1 || ctl_text_add(&text, &byte, 1)) {
            free(text.p);
            return CC_EOF;
        }
        if (byte == '\r')
            text.p[text.n - 1] = '\n';
    }
    text.p[text.n - n] = 0;
    if (*text.p && el_insertstr(el, text.p) < 0)
        code = CC_REFRESH_BEEP;
    free(text.p);

    return code;
}

/* ---- the line ---- */

static char *prompt_of(EditLine *el) {
    struct line *l = NULL;

    (void)el_get(el, EL_CLIENTDATA, &l);
    return (char *)(uintptr_t)l->prompt;
}

static void on_signal(int sig) {
    (void)sig; /* that it came is what counts: see next_byte() */
}

/* Is there a terminal that can move its cursor? What is typed is shown where messages go. */
static bool can_edit(const struct ctl *c) {
    const char *term = getenv("TERM");

    return isatty(STDIN_FILENO) && c->err_tty && term && *term && strcmp(term, "dumb") != 0;
}

static bool start_editing(struct line *l) {
    const struct sigaction sa = { .sa_handler = on_signal };
    sigset_t set;

    (void)setlocale(LC_CTYPE, "");
    l->el = el_init("moectl", stdin, stderr, stderr);
    l->history = history_init();
    if (!l->el || !l->history)
        return false;
    (void)el_set(l->el, EL_CLIENTDATA, l);
    (void)el_set(l->el, EL_PROMPT, prompt_of);
    (void)el_set(l->el, EL_GETCFN, next_char);
    (void)el_set(l->el, EL_HIST, history, l->history);
    (void)el_set(l->el, EL_EDITOR, "emacs");
    /* Wide, because the other one copies the names and never frees them. */
    (void)el_wset(l->el, EL_ADDFN, L"moectl-paste", L"take what is pasted", take_paste);
    (void)el_set(l->el, EL_BIND, PASTE_BEGIN, "moectl-paste", NULL);
    (void)el_set(l->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    (void)el_source(l->el, NULL); /* ~/.editrc has the last word */
    (void)sigaction(SIGCONT, &sa, NULL);
    (void)sigaction(SIGWINCH, &sa, NULL);
    (void)sigemptyset(&set); /* ctl_poll() lets them in: one that comes before it is not lost */
    (void)sigaddset(&set, SIGCONT);
    (void)sigaddset(&set, SIGWINCH);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    open_history(l);
    return true;
}

int line_new(struct line **ret_line, struct ctl *c, const char *prompt) {
    struct line *l = calloc(1, sizeof *l);

    if (!l)
        return -ENOMEM;
    l->c = c;
    l->prompt = prompt;
    if (can_edit(c) && !start_editing(l)) {
        (void)line_free(l);
        return -ENOMEM;
    }

    *ret_line = l;
    return 0;
}

struct line *line_free(struct line *l) {
    if (!l)
        return NULL;
    if (l->el)
        el_end(l->el);
    if (l->history)
        history_end(l->history);
    free(l);
    return NULL;
}

int line_read(struct line *l, struct ctl_text *ret) {
    const char *text;
    int n = 0, r;

    if (!l->el)
        return ctl_read_typed(l->c, l->prompt, ret);

    l->interrupted = false;
    el_resize(l->el);
    (void)el_set(l->el, EL_PREP_TERM, 1); /* before the prompt, which is answered at once */
    (void)fputs(PASTE_ON, stderr);
    text = el_gets(l->el, &n);
    (void)fputs(PASTE_OFF, stderr);
    (void)fflush(stderr);
    if (l->interrupted) {
        el_reset(l->el);
        return 2;
    }
    if (!text || n <= 0)
        return 1;

    ret->n = 0;
    r = ctl_text_add(ret, text, (size_t)n - (text[n - 1] == '\n'));
    if (!r)
        keep_in_history(l, ret->p);
    return r;
}
