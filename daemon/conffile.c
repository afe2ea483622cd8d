/* SPDX-License-Identifier: Apache-2.0 */

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/conffile.h"

enum { CONFFILE_LINE_MAX = 8192 /* bytes */ };

/* ---- lines ---- */

static char *trim(char *s) {
    size_t n;

    s += strspn(s, " \t\r\n");
    for (n = strlen(s); n > 0 && strchr(" \t\r\n", s[n - 1]); n--)
        ;
    s[n] = '\0';
    return s;
}

/* One line, without its comment. @from: "file:line". */
static int read_line(char *line, const char *from, conffile_set_fn *set, void *arg,
                     struct why *why) {
    char *key = trim(line), *eq;
    struct why inner = { 0 };
    int r;

    if (!*key || *key == '#' || *key == ';')
        return 0;
    eq = strchr(key, '=');
    if (!eq)
        return why_set(why, CONFFILE_BAD, "%s: '%.40s' is no \"key = value\"", from, key);

    *eq = '\0';
    r = set(arg, trim(key), trim(eq + 1), from, &inner);
    if (r > 0)
        return why_set(why, CONFFILE_BAD, "%s: %.150s", from, inner.text);
    return err_up(r);
}

int conffile_read(const char *path, bool must, conffile_set_fn *set, void *arg, struct why *why) {
    AUTO(free) char *line = NULL;
    size_t n_alloc = 0;
    FILE *f = fopen(path, "re");
    char from[4200];
    ssize_t n;
    int r = 0;

    if (!f && errno == ENOENT && !must)
        return 0;
    if (!f)
        return why_set(why, CONFFILE_BAD, "%s: cannot read: %m", path);

    for (unsigned i = 1; r == 0 && (n = getline(&line, &n_alloc, f)) >= 0; i++) {
        (void)snprintf(from, sizeof from, "%s:%u", path, i);
        if (n > CONFFILE_LINE_MAX)
            r = why_set(why, CONFFILE_BAD, "%s: line longer than %d bytes", from,
                        CONFFILE_LINE_MAX);
        else if (memchr(line, '\0', (size_t)n))
            r = why_set(why, CONFFILE_BAD, "%s: a NUL character", from);
        else
            r = read_line(line, from, set, arg, why);
    }
    if (r == 0 && ferror(f))
        r = why_set(why, CONFFILE_BAD, "%s: cannot read: %m", path);

    (void)fclose(f);
    return err_up(r);
}

/* ---- drop-ins ---- */

enum { DROPIN_MAX = 256 };

struct dropins {
    struct dropin {
        char *path;
        const char *name; /* in path */
    } at[DROPIN_MAX];
    size_t n;
};

static void dropins_free(struct dropins *d) {
    for (size_t i = 0; i < d->n; i++)
        free(d->at[i].path);
    free(d);
}

static int dropin_cmp(const void *a, const void *b) {
    return strcmp(((const struct dropin *)a)->name, ((const struct dropin *)b)->name);
}

static int dropins_add(struct dropins *d, const char *dir, const char *name, struct why *why) {
    struct dropin *new = &d->at[d->n];

    for (size_t i = 0; i < d->n; i++)
        if (strcmp(d->at[i].name, name) == 0)
            return 0; /* masked by a folder before */
    if (d->n == DROPIN_MAX)
        return why_set(why, CONFFILE_BAD, "%s: more than %d files", dir, DROPIN_MAX);
    if (asprintf(&new->path, "%s/%s", dir, name) < 0)
        return err_new(-ENOMEM);

    new->name = strrchr(new->path, '/') + 1;
    d->n++;
    return 0;
}

static int dropins_scan(struct dropins *d, const char *root, const char *top, const char *sub,
                        struct why *why) {
    char dir[4096];
    struct dirent *e;
    DIR *at;
    int r = 0;

    (void)snprintf(dir, sizeof dir, "%s%s/moed/%s", root, top, sub);
    at = opendir(dir);
    if (!at)
        return errno == ENOENT ? 0 : why_set(why, CONFFILE_BAD, "%s: cannot read: %m", dir);

    while (r == 0 && (e = readdir(at))) {
        size_t n = strlen(e->d_name);

        if (n > 5 && e->d_name[0] != '.' && strcmp(e->d_name + n - 5, ".conf") == 0)
            r = dropins_add(d, dir, e->d_name, why);
    }

    (void)closedir(at);
    return err_up(r);
}

int conffile_each(const char *root, const char *sub, conffile_file_fn *file, void *arg,
                  struct why *why) {
    /* An earlier one masks a later one. */
    static const char *const tops[] = { "/etc", "/run", "/usr/local/lib", "/usr/lib" };
    struct dropins *d = calloc(1, sizeof *d);
    int r = 0;

    if (!d)
        return err_new(-ENOMEM);

    for (size_t i = 0; r == 0 && i < sizeof tops / sizeof tops[0]; i++)
        r = dropins_scan(d, root, tops[i], sub, why);
    if (r == 0)
        qsort(d->at, d->n, sizeof d->at[0], dropin_cmp);
    for (size_t i = 0; r == 0 && i < d->n; i++)
        r = file(arg, d->at[i].path, d->at[i].name, why);

    dropins_free(d);
    return err_up(r);
}
