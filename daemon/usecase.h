/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * usecase - what an application asks for by purpose: the model and the words that go with it
 *
 * A use case is a file ID.conf of {/etc,/run,/usr/local/lib,/usr/lib}/moed/use-cases.d, of equal
 * names the first masks the others, with lines "key = value" as in moed.conf:
 *
 *   model         id; absent: the default model
 *   instructions  what the model is told before anything else
 *   prompt        what it is asked; {text} is the caller's text, {language} the language it names,
 *                 {labels} what it may choose from, with commas
 *   language      when the caller names none
 *
 * What an administrator said of models by usecase_set_model() wins over the files.
 *
 * In values "\n" is a new line and "\\" a backslash. A file that is wrong is an error that names
 * it, like one of moed.conf.
 *
 * Owner: the daemon thread. Immutable once made.
 */

#include <stddef.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

enum {
    USECASE__OK,

    USECASE_BAD, /* @why says where and what */
};

struct usecase {
    char *id;
    char *model, *instructions, *prompt, *language; /* NULL: not set */
};

struct usecase_list {
    struct usecase *at; /* [n], sorted by id */
    size_t n;
};

/* Read all of them. @root: put before every path, or NULL. Return: 0, USECASE_BAD, or -errno. */
int usecase_load(struct usecase_list *ret, const char *root, struct why *why);
void usecase_deinit(struct usecase_list *l);

/* From the next time they are read, the model of @id is @model, "" what its file says; kept in the
 * state directory. Return: 0, USECASE_BAD when there is no such directory, or -errno. */
int usecase_set_model(const char *id, const char *model, struct why *why);

/* NULL: there is none of that id. */
const struct usecase *usecase_find(const struct usecase_list *l, const char *id);

/* What the caller says; only .text must be set. */
struct usecase_words {
    const char *text, *language, *labels;
};
/* The prompt of @u. Return: allocated, NULL: out of memory. */
char *usecase_render(const struct usecase *u, const struct usecase_words *words);
