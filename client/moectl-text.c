/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/moectl.h"

enum { CHUNK = 64 << 10, INPUT_MAX = 16 << 20 }; /* the protocol takes no larger frame */

int ctl_text_add(struct ctl_text *t, const char *s, size_t n) {
    size_t size = t->size ? t->size : 4096;
    char *p;

    if (n > INPUT_MAX - t->n)
        return -EMSGSIZE;
    while (size < t->n + n + 1)
        size *= 2;
    if (size != t->size) {
        p = realloc(t->p, size);
        if (!p)
            return -ENOMEM;
        t->p = p;
        t->size = size;
    }
    memcpy(t->p + t->n, s, n);
    t->n += n;
    t->p[t->n] = 0;

    return 0;
}

/* All of @fd. SIGINT is let through while there is nothing to read. Return: 0 or -errno. */
static int read_all(int fd, struct ctl_text *ret) {
    struct pollfd p = { .fd = fd, .events = POLLIN };
    char buf[CHUNK];
    sigset_t none;
    ssize_t n;
    int r = 0;

    (void)sigemptyset(&none);
    do {
        if (ppoll(&p, 1, NULL, &none) < 0)
            return -errno;
        n = read(fd, buf, sizeof buf);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return -errno;
        if (n > 0)
            r = ctl_text_add(ret, buf, (size_t)n);
    } while (n && !r);

    return r;
}

static int read_error(const char *name, int r) {
    if (r == -EINTR)
        return EXIT_INTERRUPTED;
    if (r == -EMSGSIZE)
        return ctl_complain(EXIT_FAILED, "%s: more than 16 MiB, which is the most", name);

    return ctl_complain(EXIT_FAILED, "%s: cannot read: %s", name, strerror(-r));
}

/* A part of the input, set off by an empty line; nothing is added for an empty one. */
static int add_part(struct ctl_text *t, const struct ctl_text *part) {
    int r = 0;

    if (!part->n)
        return 0;
    if (t->n)
        r = ctl_text_add(t, "\n\n", 2);

    return r ? r : ctl_text_add(t, part->p, part->n);
}

static int add_fd(struct ctl_text *t, int fd, const char *name) {
    struct ctl_text part = { 0 };
    int r;

    r = read_all(fd, &part);
    if (!r)
        r = add_part(t, &part);
    free(part.p);

    return r ? read_error(name, r) : 0;
}

int ctl_add_file(struct ctl_text *t, const char *path) {
    int fd, r;

    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return ctl_complain(EXIT_FAILED, "%s: cannot open: %s", path, strerror(errno));
    r = add_fd(t, fd, path);
    (void)close(fd);

    return r;
}

int ctl_read_input(struct ctl *c, size_t first, struct ctl_text *ret) {
    size_t n = c->n_args > first ? c->n_args - first : 0;
    bool dash = n == 1 && !strcmp(c->args[first], "-"), tty = isatty(STDIN_FILENO);
    int r = 0;

    if (!n && !c->n_files && tty)
        return ctl_complain(EXIT_USAGE, "there is no text: give it as an argument, with a pipe, or "
                                        "as - to type it");
    for (size_t i = first; i < c->n_args && !dash && !r; i++) {
        r = i > first ? ctl_text_add(ret, " ", 1) : 0;
        r = r ? r : ctl_text_add(ret, c->args[i], strlen(c->args[i]));
    }
    if (r)
        return read_error("the argument", r);
    for (size_t i = 0; i < c->n_files && !r; i++)
        r = ctl_add_file(ret, c->files[i]);
    if (!r && (dash || !tty))
        r = add_fd(ret, STDIN_FILENO, "stdin");
    if (!r && !ret->n)
        r = ctl_complain(EXIT_USAGE, "the text is empty");

    return r;
}

int ctl_read_prompt(struct ctl *c, size_t first, struct ctl_text *ret) {
    int r = ctl_read_input(c, first, ret);

    return r || strlen(ret->p) == ret->n
               ? r
               : ctl_complain(EXIT_FAILED, "the prompt has a NUL byte in it, and so is no text");
}

/* What was read beyond the last line. */
static struct ctl_text pending;

int ctl_read_typed(struct ctl *c, const char *prompt, struct ctl_text *ret) {
    char buf[4096], *end;
    size_t len;
    ssize_t n;
    int r;

    if (isatty(STDIN_FILENO) && c->err_tty) {
        (void)fputs(prompt, stderr);
        (void)fflush(stderr);
    }
    ret->n = 0;
    for (;;) {
        end = pending.n ? memchr(pending.p, '\n', pending.n) : NULL;
        if (end) {
            len = (size_t)(end - pending.p);
            r = ctl_text_add(ret, pending.p, len);
            pending.n -= len + 1;
            memmove(pending.p, end + 1, pending.n);
            return r;
        }
        r = ctl_poll(c, STDIN_FILENO, MOE_FOREVER);
        if (r == 2)
            pending.n = 0; /* the terminal has dropped the line, so do we */
        if (r == 2)
            return r;
        if (r != 1)
            continue; /* the service hung up: said when it is asked next */
        n = read(STDIN_FILENO, buf, sizeof buf);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return -errno;
        if (!n && !pending.n)
            return 1;
        r = n ? ctl_text_add(&pending, buf, n > 0 ? (size_t)n : 0)
              : ctl_text_add(&pending, "\n", 1);
        if (r < 0)
            return r;
    }
}
