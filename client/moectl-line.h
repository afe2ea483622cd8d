/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * moectl-line - lines that are typed
 *
 * On a terminal, and built with libedit: with editing, history, and pasted text as one line,
 * whatever is in it. Otherwise (moectl-line-fallback.c) as the terminal gives them. The service is
 * answered meanwhile.
 *
 * Owner: chat; there is at most one.
 */

#include "client/moectl.h"

struct line;

/* @prompt: borrowed. Return: 0 or -errno. */
int line_new(struct line **ret_line, struct ctl *c, const char *prompt);
struct line *line_free(struct line *l);

/* The next one, without its end; pasted text may have newlines in it. Return: 0; 1: there is none;
 * 2: Ctrl-C, which drops what was typed; -errno. */
int line_read(struct line *l, struct ctl_text *ret);
