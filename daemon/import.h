/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * import - an open file becomes a model of the folder, and models are checked against their digest
 *
 * The file is read by the descriptor alone, so whoever can read it can give it, wherever it lies.
 * All of it is read in a thread of its own: the digest is kept (origin.h), and a file that is no
 * model is not kept. The model appears under its name when it is whole.
 *
 * Owner: the daemon thread; each import has a thread besides.
 */

#include <stdint.h>
#include <sys/types.h>

#include "daemon/models.h"
#include "daemon/tasks.h"

struct event_base;
struct imports;

enum { IMPORT_MAX = 4 /* that run at a time */ };

/* How the file comes into the folder. */
enum import_mode {
    IMPORT_AUTO,      /* shares its blocks if the file system can do that, else a copy */
    IMPORT_REFERENCE, /* a link to it; the service must be able to open it by its name */
    IMPORT_REFLINK,   /* shares its blocks */
    IMPORT_COPY,
};
/* "reference", "reflink", "copy", or "": AUTO. Return: is it one of them? */
bool import_parse_mode(const char *s, size_t n, enum import_mode *ret_mode);

struct import_file {
    int fd; /* a copy is taken */
    enum import_mode mode;
    const char *id;
    const char *digest;  /* that it must have, in hexadecimal; or NULL */
    const char *license; /* or NULL */
    uid_t uid;           /* who asks */
};

/* @tasks, @models: borrowed. */
int import_new(struct imports **ret_all, struct event_base *base, struct tasks *tasks,
               struct models *models);
/* What runs is cancelled. */
struct imports *import_free(struct imports *all);
AUTO_DEFINE(struct imports *, import_free)

/* Begin. Return: 0, -errno, or RPC_INVALID_ARGS: a parameter, or there is a model of that id;
 * RPC_NOT_SUPPORTED: no folder is served; RPC_BUSY. The task fails with RPC_CORRUPT for what is no
 * model or has another digest, RPC_NOT_SUPPORTED where it cannot be linked. */
int import_begin(struct imports *all, const struct import_file *file, struct task **ret_task,
                 struct why *why);
/* Begin to read a model's file, and compare; its digest is kept if none was known.
 * Return: 0, -errno, RPC_NO_SUCH_MODEL, RPC_NOT_SUPPORTED: the model is in parts, or RPC_BUSY. */
int import_verify(struct imports *all, const char *id, uid_t uid, struct task **ret_task,
                  struct why *why);
