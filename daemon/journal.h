/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * journal - one structured record for each request: who and how much, never what
 *
 * Records go to the journal when the service's log does ($JOURNAL_STREAM says so); else the
 * sentence alone goes to the log, at level debug. systemd/moed.catalog explains the message ids.
 *
 * Owner:   the daemon thread.
 * Source:  systemd.journal-fields(7), sd_journal_sendv(3), JOURNAL_STREAM in systemd.exec(5)
 */

#include <stdint.h>
#include <sys/types.h>

#include "engine/engine.h"

#define JOURNAL_REQUEST "34542a62b5ee440fb41f2baa617aa768" /* a request was answered */

struct journal_request {
    uint64_t channel, job;
    uid_t uid;
    const char *unit, *model, *kind;
    const char *result; /* a stop reason, or the name of an error */
    const struct engine_result *numbers;
};

void journal_request(const struct journal_request *r);
