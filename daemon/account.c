/* SPDX-License-Identifier: Apache-2.0 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/account.h"

struct account {
    uint64_t n_call;
    size_t n_row; /* rows are taken in order and never given back, only to another */
    struct account_row row[ACCOUNT_MAX], other;
};

static struct account_row *find(struct account *a, uid_t uid, const char *unit) {
    for (size_t i = 0; i < a->n_row; i++)
        if (a->row[i].uid == uid && strcmp(a->row[i].unit, unit) == 0)
            return &a->row[i];

    return NULL;
}

/* The row without open requests that was used the longest ago; NULL: all have some. */
static struct account_row *idle(struct account *a) {
    struct account_row *best = NULL;

    for (size_t i = 0; i < a->n_row; i++)
        if (!a->row[i].n_open && (!best || a->row[i].used < best->used))
            best = &a->row[i];

    return best;
}

static void fold(struct account *a, const struct account_row *row) {
    struct account_row *o = &a->other;

    o->used = a->n_call;
    o->n_request += row->n_request;
    o->n_refused += row->n_refused;
    o->n_prompt += row->n_prompt;
    o->n_cached += row->n_cached;
    o->n_token += row->n_token;
    o->queue_usec += row->queue_usec;
    o->prefill_usec += row->prefill_usec;
    o->decode_usec += row->decode_usec;
    if (row->kv_bytes > o->kv_bytes)
        o->kv_bytes = row->kv_bytes;
}

static struct account_row *row_of(struct account *a, uid_t uid, const char *unit) {
    struct account_row *row = find(a, uid, unit);

    a->n_call++;
    if (!row) {
        row = a->n_row < ACCOUNT_MAX ? &a->row[a->n_row++] : idle(a);
        if (row && row->used)
            fold(a, row);
        if (row) {
            *row = (struct account_row){ .uid = uid };
            (void)snprintf(row->unit, sizeof row->unit, "%s", unit);
        } else {
            row = &a->other;
        }
    }

    row->used = a->n_call;
    return row;
}

struct account_row *account_begin(struct account *a, uid_t uid, const char *unit) {
    struct account_row *row = row_of(a, uid, unit);

    row->n_open++;
    return row;
}

void account_end(struct account *a, struct account_row *row, const struct engine_result *result) {
    row->used = ++a->n_call;
    row->n_open--;
    row->n_request++;
    row->n_prompt += result->n_prompt;
    row->n_cached += result->n_cached;
    row->n_token += result->n_token;
    row->queue_usec += result->queue_usec;
    row->prefill_usec += result->prefill_usec;
    row->decode_usec += result->decode_usec;
    if (result->kv_bytes > row->kv_bytes)
        row->kv_bytes = result->kv_bytes;
}

void account_refuse(struct account *a, uid_t uid, const char *unit) {
    row_of(a, uid, unit)->n_refused++;
}

const struct account_row *account_at(const struct account *a, size_t i) {
    if (i < a->n_row)
        return &a->row[i];

    return i == a->n_row && a->other.used ? &a->other : NULL;
}

struct account *account_free(struct account *a) {
    free(a);
    return NULL;
}

int account_new(struct account **ret_account) {
    struct account *a = calloc(1, sizeof *a);

    if (!a)
        return err_new(-ENOMEM);

    a->other.folded = true;
    *ret_account = a;
    return 0;
}
