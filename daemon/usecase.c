/* SPDX-License-Identifier: Apache-2.0 */

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/conffile.h"
#include "daemon/usecase.h"
#include "engine/base/utf8.h"

#define TEXT "{text}"

static void clear(struct usecase *u) {
    free(u->id);
    free(u->model);
    free(u->instructions);
    free(u->prompt);
    free(u->language);
}

/* ---- reading ---- */

/* A copy of @s with "\n" and "\\" replaced; NULL: out of memory. */
static char *unescape(const char *s) {
    char *copy = malloc(strlen(s) + 1), *to = copy;

    for (; copy && *s; s++) {
        if (*s == '\\' && (s[1] == 'n' || s[1] == '\\')) {
            s++;
            *to++ = *s;
            if (*s == 'n')
                to[-1] = '\n';
        } else {
            *to++ = *s;
        }
    }
    if (copy)
        *to = '\0';
    return copy;
}

static int set_key(void *arg, const char *key, const char *value, const char *from,
                   struct why *why) {
    struct usecase *u = arg;
    const struct {
        const char *name;
        char **to;
    } table[] = { { "model", &u->model },
                  { "instructions", &u->instructions },
                  { "prompt", &u->prompt },
                  { "language", &u->language } };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(table[i].name, key) != 0)
            continue;
        if (!utf8_valid(value, strlen(value)))
            return why_set(why, USECASE_BAD, "%s: not valid UTF-8", key);
        free(*table[i].to);
        *table[i].to = *value ? unescape(value) : NULL;
        return *value && !*table[i].to ? err_new(-ENOMEM) : 0;
    }

    return why_set(why, USECASE_BAD, "%s: no such key", key);
}

static int on_file(void *arg, const char *path, const char *name, struct why *why) {
    struct usecase_list *l = arg;
    struct usecase *at = realloc(l->at, (l->n + 1) * sizeof *at), *u;
    int r;

    if (!at)
        return err_new(-ENOMEM);

    l->at = at;
    u = &at[l->n];
    *u = (struct usecase){ .id = strndup(name, strlen(name) - strlen(".conf")) };
    l->n++;
    if (!u->id)
        return err_new(-ENOMEM);
    r = conffile_read(path, true, set_key, u, why);
    if (r)
        return err_up(r);

    if (!u->model && !u->instructions && !u->prompt && !u->language) { /* masked */
        clear(u);
        l->n--;
    } else if (u->prompt && !strstr(u->prompt, TEXT)) {
        return why_set(why, USECASE_BAD, "%s: prompt: there is no " TEXT " in it", path);
    }
    return 0;
}

void usecase_deinit(struct usecase_list *l) {
    for (size_t i = 0; i < l->n; i++)
        clear(&l->at[i]);
    free(l->at);
    *l = (struct usecase_list){ 0 };
}

/* ---- what was set ---- */

/* The file of @id in the state directory; the service manager may name several, the first is it.
 * Return: is there one? */
static bool state_path(const char *id, char *path, size_t n) {
    const char *dir = getenv("STATE_DIRECTORY");

    return dir && *dir &&
           (size_t)snprintf(path, n, "%.*s/use-case-%s", (int)strcspn(dir, ":"), dir, id) < n;
}

/* Of what was set there is the model alone. */
static int set_model(void *arg, const char *key, const char *value, const char *from,
                     struct why *why) {
    return strcmp(key, "model") == 0 ? set_key(arg, key, value, from, why)
                                     : why_set(why, USECASE_BAD, "%s: cannot be set", key);
}

static int apply_set(struct usecase *u, struct why *why) {
    char path[4096];

    return state_path(u->id, path, sizeof path) ? conffile_read(path, false, set_model, u, why) : 0;
}

int usecase_set_model(const char *id, const char *model, struct why *why) {
    char path[4096], new[4096 + 8];
    FILE *f;
    int r;

    if (!state_path(id, path, sizeof path))
        return why_set(why, USECASE_BAD, "the service has no state directory");
    if (!*model)
        return unlink(path) < 0 && errno != ENOENT ? err_new(-errno) : 0;

    (void)snprintf(new, sizeof new, "%s.new", path);
    f = fopen(new, "we");
    if (!f)
        return err_new(-errno);
    r = fprintf(f, "model = %s\n", model) < 0 || fflush(f) != 0 || fsync(fileno(f)) < 0 ? -errno
                                                                                        : 0;
    (void)fclose(f);
    if (!r && rename(new, path) < 0)
        r = -errno;
    return r ? err_new(r) : 0;
}

int usecase_load(struct usecase_list *ret, const char *root, struct why *why) {
    struct usecase_list l = { 0 };
    int r;

    r = conffile_each(root ? root : "", "use-cases.d", on_file, &l, why);
    for (size_t i = 0; !r && i < l.n; i++)
        r = apply_set(&l.at[i], why);
    if (r) {
        usecase_deinit(&l);
        return err_up(r);
    }

    *ret = l;
    return 0;
}

/* ---- use ---- */

const struct usecase *usecase_find(const struct usecase_list *l, const char *id) {
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->at[i].id, id) == 0)
            return &l->at[i];

    return NULL;
}

/* Length of the placeholder at @s and what stands for it; 0: there is none. */
static size_t placeholder(const char *s, const struct usecase_words *w, const char **ret) {
    const struct {
        const char *name, *value;
    } table[] = { { TEXT, w->text }, { "{language}", w->language }, { "{labels}", w->labels } };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strncmp(s, table[i].name, strlen(table[i].name)) == 0) {
            *ret = table[i].value;
            return strlen(table[i].name);
        }
    return 0;
}

/* Write to @to, unless it is NULL. Return: bytes. */
static size_t render(const char *prompt, const struct usecase_words *w, char *to) {
    size_t n = 0, k, n_value;
    const char *value;

    for (const char *s = prompt; *s; s += k) {
        k = placeholder(s, w, &value);
        n_value = k ? strlen(value) : 1;
        if (!k) {
            value = s;
            k = 1;
        }
        if (to)
            (void)memcpy(to + n, value, n_value);
        n += n_value;
    }
    return n;
}

char *usecase_render(const struct usecase *u, const struct usecase_words *words) {
    struct usecase_words w = { words->text, words->language ?: u->language ?: "English",
                               words->labels ?: "" };
    const char *prompt = u->prompt ?: TEXT;
    char *s = malloc(render(prompt, &w, NULL) + 1);

    if (s)
        s[render(prompt, &w, s)] = '\0';
    return s;
}
