/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * conffile - files of lines "key = value", and folders of them
 *
 * '#' and ';' begin a comment line. A folder NAME is {/etc,/run,/usr/local/lib,/usr/lib}/moed/NAME:
 * its *.conf files are taken in the order of their names over all of them, and of equal names that
 * in an earlier one masks the others, so a link to /dev/null takes a file out.
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

enum {
    CONFFILE__OK,

    CONFFILE_BAD, /* @why says where and what; the callbacks' outcome too */
};

/* Takes one line. @from: "file:line". Return: 0, CONFFILE_BAD with what is wrong, or -errno. */
typedef int conffile_set_fn(void *arg, const char *key, const char *value, const char *from,
                            struct why *why);
/* Takes one file of a folder. @name: in @path. Return: likewise. */
typedef int conffile_file_fn(void *arg, const char *path, const char *name, struct why *why);

/* Each line of @path. @must: a file that is not there is an error.
 * Return: 0, CONFFILE_BAD, or -errno. */
int conffile_read(const char *path, bool must, conffile_set_fn *set, void *arg, struct why *why);
/* Each file of the folder @sub. @root: put before every path. Return: likewise. */
int conffile_each(const char *root, const char *sub, conffile_file_fn *file, void *arg,
                  struct why *why);
