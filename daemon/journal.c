/* SPDX-License-Identifier: Apache-2.0 */

#define SD_JOURNAL_SUPPRESS_LOCATION

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include "daemon/journal.h"
#include "engine/base/log.h"

enum { FIELD_MAX = 24, TEXT_MAX = 4096 /* bytes of all fields: two names of 255 and numbers */ };

/* A record as it is put together. What does not fit is left out, whole fields at a time. */
struct record {
    struct iovec field[FIELD_MAX];
    int n;
    char text[TEXT_MAX];
    size_t n_text;
};

static void add(struct record *rec, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void add(struct record *rec, const char *fmt, ...) {
    char *at = rec->text + rec->n_text;
    size_t room = sizeof rec->text - rec->n_text;
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(at, room, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= room || rec->n == FIELD_MAX)
        return;

    rec->field[rec->n++] = (struct iovec){ at, (size_t)n };
    rec->n_text += (size_t)n;
}

/* Is standard error the journal's? */
static bool is_there(void) {
    const char *stream = getenv("JOURNAL_STREAM");
    char own[64];
    struct stat st;

    if (!stream || fstat(STDERR_FILENO, &st) < 0)
        return false;
    (void)snprintf(own, sizeof own, "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, own) == 0;
}

/* The sentence, without what stands before it in each kind of log. */
static void add_sentence(struct record *rec, const char *head, const struct journal_request *r) {
    const struct engine_result *n = r->numbers;

    add(rec, "%schannel %ju: job %ju: user %u: %s: %s: %u prompt, %u generated, %ju ms", head,
        (uintmax_t)r->channel, (uintmax_t)r->job, (unsigned)r->uid, r->kind, r->result, n->n_prompt,
        n->n_token, (uintmax_t)((n->queue_usec + n->prefill_usec + n->decode_usec) / 1000));
}

static void add_fields(struct record *rec, const struct journal_request *r) {
    const struct engine_result *n = r->numbers;

    add(rec, "MESSAGE_ID=" JOURNAL_REQUEST);
    add(rec, "PRIORITY=%d", LOG_LEVEL_INFO);
    add(rec, "MOED_CHANNEL=%ju", (uintmax_t)r->channel);
    add(rec, "MOED_JOB=%ju", (uintmax_t)r->job);
    add(rec, "MOED_UID=%u", (unsigned)r->uid);
    add(rec, "MOED_UNIT=%s", r->unit);
    add(rec, "MOED_MODEL=%s", r->model);
    add(rec, "MOED_KIND=%s", r->kind);
    add(rec, "MOED_RESULT=%s", r->result);
    add(rec, "MOED_TOKENS_PROMPT=%u", n->n_prompt);
    add(rec, "MOED_TOKENS_CACHED=%u", n->n_cached);
    add(rec, "MOED_TOKENS_GENERATED=%u", n->n_token);
    add(rec, "MOED_QUEUE_USEC=%ju", (uintmax_t)n->queue_usec);
    add(rec, "MOED_PREFILL_USEC=%ju", (uintmax_t)n->prefill_usec);
    add(rec, "MOED_DECODE_USEC=%ju", (uintmax_t)n->decode_usec);
    add(rec, "MOED_KV_BYTES=%ju", (uintmax_t)n->kv_bytes);
}

void journal_request(const struct journal_request *r) {
    struct record rec = { .n = 0 };

    if (!is_there()) {
        add_sentence(&rec, "", r);
        log_debug("account", "%s", rec.text);
        return;
    }

    add_sentence(&rec, "MESSAGE=account: ", r);
    add_fields(&rec, r);
    (void)sd_journal_sendv(rec.field, rec.n);
}
