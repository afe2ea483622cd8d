/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * prefixes - instructions that all users share, evaluated before anybody asks
 *
 * Each file "*.txt" of the folder of config key "prefix-dir" is the text of a system turn. Folder
 * and files must be root's and writable by nobody else: what is in them is no secret. Others are
 * passed over, with a word in the log. When a model is loaded, and when it has nothing else to do
 * and has let some of them go, they are evaluated one after the other and kept; they are the only
 * prompts that users find of one another's.
 *
 * Owner: the daemon thread.
 */

#include "daemon/config.h"
#include "daemon/models.h"

enum {
    PREFIXES_MAX = 32,              /* files: the first by name */
    PREFIXES_TEXT_MAX = 256 * 1024, /* bytes of one */
};

struct prefixes;

/* Reads the folder. @m is borrowed, and freed first. Return: 0 or -ENOMEM. */
int prefixes_new(struct prefixes **ret_prefixes, struct models *m, const struct config *config);
struct prefixes *prefixes_free(struct prefixes *p);
AUTO_DEFINE(struct prefixes *, prefixes_free)

/* Read the folder again, and evaluate what it has. What was kept so far makes room in its turn. */
void prefixes_reconfigure(struct prefixes *p, const struct config *config);
