/* SPDX-License-Identifier: Apache-2.0 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/prefixes.h"
#include "engine/base/log.h"
#include "engine/base/utf8.h"

struct prefixes {
    struct models *models;
    struct {
        char *name, *text;
    } file[PREFIXES_MAX]; /* [n] */
    size_t n, at;         /* at: the next to be evaluated; n: none is */
    uint32_t n_public;    /* kept when the last of them was evaluated */
    bool busy;            /* @job is under way, and evaluates @doing */
    char doing[NAME_MAX + 1];
    struct models_job job;
};

/* ---- files ---- */

/* Return: NULL, for what is not taken from a folder. */
static void *ignore(const char *name, const char *why) {
    log_warning("prefixes", "%s: ignored: %s", name, why);
    return NULL;
}

/* Only what root alone can write is public. */
static bool is_trusted(const struct stat *st) {
    return st->st_uid == 0 && !(st->st_mode & (S_IWGRP | S_IWOTH));
}

/* The text of a file in @dir, owned by the caller; NULL: none that counts. */
static char *read_text(int dir, const char *name) {
    AUTO(close) int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    AUTO(free) char *text = NULL;
    struct stat st;
    size_t n;

    if (fd < 0 || fstat(fd, &st) < 0)
        return ignore(name, strerror(errno));
    if (!is_trusted(&st))
        return ignore(name, "others than root can write to it");
    if (!S_ISREG(st.st_mode) || st.st_size == 0 || st.st_size > PREFIXES_TEXT_MAX)
        return ignore(name, "no file of 1 byte to 256 KiB");
    n = (size_t)st.st_size;
    text = malloc(n + 1);
    if (!text || pread(fd, text, n, 0) != st.st_size)
        return ignore(name, "cannot read it");
    text[n] = '\0';
    if (memchr(text, '\0', n) || !utf8_valid(text, n))
        return ignore(name, "no UTF-8 text");

    return take(text);
}

static void forget(struct prefixes *p) {
    for (size_t i = 0; i < p->n; i++) {
        free(p->file[i].name);
        free(p->file[i].text);
    }
    p->n = p->at = 0;
    p->n_public = 0;
}

static int is_text(const struct dirent *e) {
    size_t n = strlen(e->d_name);

    return n > 4 && e->d_name[0] != '.' && strcmp(e->d_name + n - 4, ".txt") == 0;
}

/* Take the file @name, which is this module's from now on. */
static void add(struct prefixes *p, int dir, char *name) {
    char *text = p->n < PREFIXES_MAX ? read_text(dir, name) : ignore(name, "one too many");

    if (!text) {
        free(name);
        return;
    }
    p->file[p->n].name = name;
    p->file[p->n++].text = text;
}

static void read_folder(struct prefixes *p, const struct config *config) {
    const char *path = config->prefix_bytes ? config->prefix_dir : NULL;
    AUTO(close) int dir = path ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    struct dirent **entry = NULL;
    struct stat st;
    int n;

    forget(p);
    if (dir < 0) {
        if (path && errno != ENOENT)
            (void)ignore(path, strerror(errno));
        return;
    }
    if (fstat(dir, &st) < 0 || !is_trusted(&st)) {
        (void)ignore(path, "others than root can write to it");
        return;
    }
    n = scandirat(dir, ".", &entry, is_text, alphasort);
    for (int i = 0; i < n; i++) {
        char *name = strdup(entry[i]->d_name);

        if (name)
            add(p, dir, name);
        free(entry[i]);
    }
    free(entry);
}

/* ---- evaluating ---- */

static uint32_t n_public(const struct prefixes *p) {
    struct engine_status st;

    models_engine(p->models, &st);
    return st.n_public;
}

static void submit(struct prefixes *p);

static void on_event(struct models_job *job, const struct engine_event *ev) {
    struct prefixes *p = (struct prefixes *)((char *)job - offsetof(struct prefixes, job));

    if (ev->kind != ENGINE_DONE)
        return;
    p->busy = false;
    if (ev->result->end == ENGINE_END_MODEL) /* it went; with the next one all begins anew */
        return;
    if (ev->result->end != ENGINE_END_STOP)
        log_warning("prefixes", "%s: not evaluated: %s", p->doing,
                    ev->result->why.text[0] ? ev->result->why.text : "there is no room for it");
    else
        log_debug("prefixes", "%s: %u tokens for all users", p->doing, ev->result->n_prompt);
    p->n_public = n_public(p);
    submit(p);
}

/* Evaluate the next one, unless there is other work: then when that is done. */
static void submit(struct prefixes *p) {
    struct chat_message msg = { .role = "system" };
    struct engine_request q = { .kind = ENGINE_GENERATE,
                                .who = { .class = FAIR_BACKGROUND, .uid = geteuid() },
                                .msg = &msg,
                                .n_msg = 1,
                                .no_generation = true,
                                .prefill_only = true,
                                .public = true };
    struct why why = { 0 };

    if (p->busy || p->at == p->n || !models_info(p->models) || models_n_job(p->models) > 0)
        return;
    msg.text = p->file[p->at].text;
    (void)snprintf(p->doing, sizeof p->doing, "%s", p->file[p->at++].name);
    p->job = (struct models_job){ .event = on_event, .idle = true };
    if (models_submit(p->models, models_resident(p->models), geteuid(), &q, &p->job, NULL, &why))
        log_warning("prefixes", "%s: not evaluated: %s", p->doing, why.text);
    else
        p->busy = true;
}

static void on_idle(void *arg, bool loaded) {
    struct prefixes *p = arg;

    if (loaded || n_public(p) < p->n_public)
        p->at = 0;
    submit(p);
}

/* ---- life ---- */

void prefixes_reconfigure(struct prefixes *p, const struct config *config) {
    read_folder(p, config);
    submit(p);
}

int prefixes_new(struct prefixes **ret_prefixes, struct models *m, const struct config *config) {
    struct prefixes *p = calloc(1, sizeof *p);

    if (!p)
        return err_new(-ENOMEM);
    p->models = m;
    read_folder(p, config);
    models_on_idle(m, on_idle, p);
    *ret_prefixes = p;
    return 0;
}

struct prefixes *prefixes_free(struct prefixes *p) {
    if (!p)
        return NULL;
    forget(p);
    free(p);
    return NULL;
}
