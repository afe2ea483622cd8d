/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * config - moed.conf as one table of keys
 *
 * Files hold lines "key = value"; '#' and ';' begin a comment line, an empty value is the default.
 * Read in this order, a later one wins:
 *
 *   /etc/moed/moed.conf
 *   *.conf of {/etc,/run,/usr/local/lib,/usr/lib}/moed/moed.conf.d, sorted by file name over all
 *   folders; of equal names an earlier one masks the others: a link to /dev/null takes a file out
 *   the command line
 *
 * An unknown key, a value out of range and a line that is neither are errors, named by file, line
 * and key: a service that guesses what its operator meant is worse than one that does not start.
 * Use cases are read along with it, see usecase.h.
 *
 * Owner: the daemon thread. Immutable once made; a reload makes a new one.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/usecase.h"
#include "engine/base/auto.h"
#include "engine/base/err.h"

enum {
    CONFIG__OK,

    CONFIG_BAD, /* @why says where and what */
};

enum { CONFIG_KEY_MAX = 48 };

enum config_bus { CONFIG_BUS_AUTO, CONFIG_BUS_SYSTEM, CONFIG_BUS_SESSION, CONFIG_BUS_NONE };
enum config_store { CONFIG_STORE_CACHE, CONFIG_STORE_FDSTORE, CONFIG_STORE_NONE };
enum config_forget { CONFIG_FORGET_LOCK, CONFIG_FORGET_LOGOUT, CONFIG_FORGET_NEVER };
enum config_save { CONFIG_SAVE_BATTERY, CONFIG_SAVE_PROFILE, CONFIG_SAVE_NEVER };
enum config_kv { CONFIG_KV_F16, CONFIG_KV_F32, CONFIG_KV_Q8_0 };

struct config {
    char *model, *model_dir, *default_model, *log, *cache_dir, *prefix_dir,
        *pressure_watch; /* NULL: not set */
    bool preload, exact, lock_weights, oversize;
    uint64_t weights_store, residency, idle_timeout, pressure_calm;
    uint64_t bus, context, kv_bytes, kv_type, threads, batch, queue, max_connections, prefix_bytes,
        sequences, stall_timeout, step_bound, user_bytes, user_connections, user_jobs,
        user_kv_bytes, expert_bytes;
    uint64_t user_sessions, session_idle, saved_bytes;
    uint64_t forget, power_save, power_threads;

    struct usecase_list use_cases; /* by purpose, see usecase.h */
    char *from[CONFIG_KEY_MAX];    /* where each key's value comes from, NULL: the default */
};

/* One setting of the command line: @from is the option's name. */
struct config_set {
    const char *key, *value, *from;
};

/**
 * config_new() - read the files, then apply the command line
 * @root:       put before every path of the search, or NULL
 * @file:       read this one file and no other, or NULL; "-FILE" may be absent
 * @set:        [n_set]
 *
 * Return: 0, CONFIG_BAD, or -errno.
 */
int config_new(struct config **ret_config, const char *root, const char *file,
               const struct config_set *set, size_t n_set, struct why *why);
struct config *config_free(struct config *c);
AUTO_DEFINE(struct config *, config_free)

/* The folder for what is kept for later: "cache-dir", or the service manager's; NULL: there is
 * none. */
const char *config_cache_dir(const struct config *c);

/* Is a message bus to be looked for? Unless the configuration says so, only by whom a service
 * manager started. */
bool config_wants_bus(const struct config *c);

/* The values in force, one a line, and where each comes from. */
void config_print(const struct config *c, FILE *f);
/* The table itself: key, type, default, meaning. */
void config_describe(FILE *f);
