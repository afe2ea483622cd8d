/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * origin - what is known of a model's file beyond the file: its digest, its licence
 *
 * Kept beside the model as FILE.origin, lines "key = value" as in moed.conf. A file that is not
 * there, or not readable, says nothing.
 *
 * Owner: any thread.
 */

#include <stdbool.h>

#include "engine/base/err.h"

enum { ORIGIN_DIGEST = 64 + 1 /* a SHA-256 in hexadecimal, lower case, with a NUL */ };

struct origin {
    char digest[ORIGIN_DIGEST]; /* "": not known */
    char license[256];          /* likewise */
};

bool origin_is_digest(const char *s);

/* What is no digest, or no UTF-8, or longer than there is room, is as if it were not there. */
void origin_read(const char *model_path, struct origin *ret);
/* Return: 0 or -errno. */
int origin_write(const char *model_path, const struct origin *o);
/* There may be none. */
void origin_remove(const char *model_path);
