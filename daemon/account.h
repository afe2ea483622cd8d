/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * account - what was served to whom: counters of each user and application
 *
 * A row is one user's unit. There are ACCOUNT_MAX; when another is needed, the one that has no open
 * request and was used the longest ago is added to the row of all such, and its place taken. Sums
 * over the rows never go down, but for the peak, which is no sum.
 *
 * Owner:   the daemon thread.
 * Memory:  fixed at account_new().
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "engine/engine.h"

struct account;

enum { ACCOUNT_MAX = 256 /* rows, besides the one for what was folded */ };

struct account_row {
    uid_t uid;
    char unit[256]; /* "": none is known */
    bool folded;    /* the row of those that have none: uid and unit say nothing */
    uint64_t used;  /* when: the table's count of calls; 0: a free row */

    uint64_t n_open;               /* requests that are not answered */
    uint64_t n_request, n_refused; /* answered, however; turned away without work */
    uint64_t n_prompt, n_cached;   /* tokens of prompts, of them found in the cache */
    uint64_t n_token;              /* generated */
    uint64_t queue_usec, prefill_usec, decode_usec;
    uint64_t kv_bytes; /* of the K/V cache, that one request had room in at most */
};

int account_new(struct account **ret_account);
struct account *account_free(struct account *a);
AUTO_DEFINE(struct account *, account_free)

/* A request begins. Return: its row, which stays where it is until account_end(). */
struct account_row *account_begin(struct account *a, uid_t uid, const char *unit);
/* It was answered. */
void account_end(struct account *a, struct account_row *row, const struct engine_result *result);
/* A request, or a connection, that was turned away. */
void account_refuse(struct account *a, uid_t uid, const char *unit);

/* The @i-th row in use, the folded one last; NULL: no more. */
const struct account_row *account_at(const struct account *a, size_t i);
