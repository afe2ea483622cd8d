/* SPDX-License-Identifier: Apache-2.0 */

/* The record of a request: sd_journal_sendv() is wrapped. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daemon/journal.h"
#include "engine/base/auto.h"

static char seen[32][512];
static int n_seen, n_call;

int __wrap_sd_journal_sendv(const struct iovec *iov, int n);
int __wrap_sd_journal_sendv(const struct iovec *iov, int n) {
    n_call++;
    n_seen = n;
    for (int i = 0; i < n; i++) {
        assert_in_range(iov[i].iov_len, 1, sizeof seen[0] - 1);
        memcpy(seen[i], iov[i].iov_base, iov[i].iov_len);
        seen[i][iov[i].iov_len] = 0;
    }
    return 0;
}

static void has(const char *field) {
    for (int i = 0; i < n_seen; i++)
        if (strcmp(seen[i], field) == 0)
            return;
    fail_msg("no %s", field);
}

static const struct engine_result numbers = { .n_prompt = 100,
                                              .n_cached = 60,
                                              .n_token = 25,
                                              .queue_usec = 1000,
                                              .prefill_usec = 20000,
                                              .decode_usec = 300000,
                                              .kv_bytes = 4096,
                                              .text = (char *)"what was said",
                                              .n_text = 13 };
static const struct journal_request request = { .channel = 3,
                                                .job = 14,
                                                .uid = 1000,
                                                .unit = "app-x.scope",
                                                .model = "tiny",
                                                .kind = "generate",
                                                .result = "length",
                                                .numbers = &numbers };

/* Standard error is the journal's, says the environment. */
static void pretend(bool is) {
    struct stat st;
    char stream[64];

    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    (void)snprintf(stream, sizeof stream, "%ju:%ju", (uintmax_t)st.st_dev,
                   (uintmax_t)st.st_ino + !is);
    assert_int_equal(setenv("JOURNAL_STREAM", stream, 1), 0);
}

static void test_record(void **state) {
    n_call = 0;
    pretend(true);
    journal_request(&request);
    assert_int_equal(n_call, 1);
    has("MESSAGE=account: channel 3: job 14: user 1000: generate: length: 100 prompt, "
        "25 generated, 321 ms");
    has("MESSAGE_ID=" JOURNAL_REQUEST);
    has("PRIORITY=6");
    has("MOED_CHANNEL=3");
    has("MOED_JOB=14");
    has("MOED_UID=1000");
    has("MOED_UNIT=app-x.scope");
    has("MOED_MODEL=tiny");
    has("MOED_KIND=generate");
    has("MOED_RESULT=length");
    has("MOED_TOKENS_PROMPT=100");
    has("MOED_TOKENS_CACHED=60");
    has("MOED_TOKENS_GENERATED=25");
    has("MOED_QUEUE_USEC=1000");
    has("MOED_PREFILL_USEC=20000");
    has("MOED_DECODE_USEC=300000");
    has("MOED_KV_BYTES=4096");
    assert_int_equal(n_seen, 17); /* and nothing else */
    for (int i = 0; i < n_seen; i++)
        assert_null(strstr(seen[i], "said"));
}

/* A name may have any bytes, and be as long as names are: each is in its own field. */
static void test_names(void **state) {
    struct journal_request r = request;
    char unit[256], want[300];

    memset(unit, 'u', 255);
    memcpy(unit, "x\nMOED_UID=0\n", 13);
    unit[255] = 0;
    r.unit = r.model = unit;
    pretend(true);
    journal_request(&r);
    (void)snprintf(want, sizeof want, "MOED_UNIT=%s", unit);
    has(want);
    has("MOED_UID=1000");
    assert_int_equal(n_seen, 17);
}

/* What the log has instead. */
static void logged(const char *level, char *ret, size_t size) {
    int old = dup(STDERR_FILENO), fd[2];
    ssize_t n;

    assert_int_equal(pipe(fd), 0);
    assert_int_equal(setenv("MOE_LOG", level, 1), 0);
    (void)fflush(stderr);
    assert_int_not_equal(dup2(fd[1], STDERR_FILENO), -1);
    journal_request(&request);
    assert_int_not_equal(dup2(old, STDERR_FILENO), -1);
    (void)close(old);
    (void)close(fd[1]);
    n = read(fd[0], ret, size - 1);
    ret[n > 0 ? n : 0] = 0;
    (void)close(fd[0]);
}

static void test_no_journal(void **state) {
    char line[512];

    n_call = 0;
    pretend(false);
    logged("account:7", line, sizeof line);
    assert_int_equal(n_call, 0);
    assert_string_equal(line, "<7>account: channel 3: job 14: user 1000: generate: length: "
                              "100 prompt, 25 generated, 321 ms\n");
    assert_int_equal(unsetenv("JOURNAL_STREAM"), 0);
    journal_request(&request);
    assert_int_equal(n_call, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_no_journal),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
