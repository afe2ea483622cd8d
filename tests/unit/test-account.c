/* SPDX-License-Identifier: Apache-2.0 */

/* Who was served how much, what the metrics say of it, and the list of jobs. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/account.h"
#include "daemon/metrics.h"
#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

static void has(const char *text, const char *want) {
    assert_non_null(text);
    if (!strstr(text, want))
        fail_msg("'%s' has no '%s'", text, want);
}

/* ---- the table ---- */

static void add(struct account *a, uid_t uid, const char *unit, uint32_t n_token) {
    const struct engine_result result = { .n_prompt = 10,
                                          .n_cached = 4,
                                          .n_token = n_token,
                                          .queue_usec = 1,
                                          .prefill_usec = 2,
                                          .decode_usec = 3,
                                          .kv_bytes = 100 + n_token };

    account_end(a, account_begin(a, uid, unit), &result);
}

static void test_sums(void **state) {
    AUTO(account_free) struct account *a = NULL;
    const struct account_row *row;

    assert_int_equal(account_new(&a), 0);
    assert_null(account_at(a, 0));
    add(a, 1, "a.service", 5);
    add(a, 1, "a.service", 2);
    add(a, 1, "b.service", 9);
    add(a, 2, "a.service", 1);
    account_refuse(a, 1, "a.service");
    row = account_at(a, 0);
    assert_int_equal(row->uid, 1);
    assert_string_equal(row->unit, "a.service");
    assert_true(row->n_request == 2 && row->n_refused == 1 && row->n_open == 0);
    assert_true(row->n_prompt == 20 && row->n_cached == 8 && row->n_token == 7);
    assert_true(row->queue_usec == 2 && row->prefill_usec == 4 && row->decode_usec == 6);
    assert_int_equal(row->kv_bytes, 105);
    assert_int_equal(account_at(a, 1)->n_token, 9);
    assert_int_equal(account_at(a, 2)->n_token, 1);
    assert_null(account_at(a, 3)); /* nothing was folded */
}

/* Of all that ever asked the sum stays; open requests keep their row. */
static void test_fold(void **state) {
    AUTO(account_free) struct account *a = NULL;
    struct account_row *open, *late;
    uint64_t n_token = 0;
    char unit[32];
    size_t n = 0;

    assert_int_equal(account_new(&a), 0);
    open = account_begin(a, 7, "open.service");
    for (uint32_t i = 0; i < 3 * ACCOUNT_MAX; i++) {
        (void)snprintf(unit, sizeof unit, "run-%u.scope", i);
        add(a, 8, unit, 1);
    }
    for (const struct account_row *row; (row = account_at(a, n)); n++)
        n_token += row->n_token;
    assert_int_equal(n, ACCOUNT_MAX + 1);
    assert_int_equal(n_token, 3 * ACCOUNT_MAX);
    assert_true(account_at(a, ACCOUNT_MAX)->folded);
    assert_int_equal(account_at(a, ACCOUNT_MAX)->n_token, 2 * ACCOUNT_MAX + 1);
    assert_int_equal(account_at(a, ACCOUNT_MAX)->kv_bytes, 101);
    assert_string_equal(open->unit, "open.service"); /* the oldest, and still there */

    /* The one used the longest ago goes. */
    add(a, 8, "run-520.scope", 1);
    add(a, 9, "new.service", 1);
    for (size_t i = 0; i < ACCOUNT_MAX; i++)
        assert_string_not_equal(account_at(a, i)->unit, "run-513.scope");

    /* All rows have open requests: who comes is counted with the folded. */
    for (uint32_t i = 0; i < 2 * ACCOUNT_MAX; i++) {
        (void)snprintf(unit, sizeof unit, "busy-%u.scope", i);
        late = account_begin(a, 8, unit);
    }
    assert_true(late->folded);
    assert_int_equal(late->n_open, ACCOUNT_MAX + 1);
    account_end(a, late, &(struct engine_result){ .n_token = 3 });
    assert_int_equal(late->n_open, ACCOUNT_MAX);
}

/* ---- metrics ---- */

static struct rig rig;
static struct rig_client *client;

static int setup(void **state) {
    rig_init(&rig, NULL, 0);
    client = rig_connect(&rig);
    return 0;
}

static int teardown(void **state) {
    rig_hangup(client);
    rig_deinit(&rig);
    return 0;
}

static void test_metrics(void **state) {
    AUTO(free) char *all = NULL;
    AUTO(free) char *own = NULL;
    size_t n;

    add(rig.server->account, 1000, "a\"b\\c\nd.service", 5);
    add(rig.server->account, 1001, "", 7);
    assert_int_equal(metrics_text(rig.server, true, 0, &all, &n), 0);
    assert_int_equal(n, strlen(all));
    has(all, "# TYPE moed_tokens counter\n# HELP moed_tokens ");
    has(all,
        "\nmoed_tokens_total{uid=\"1000\",unit=\"a\\\"b\\\\c\\nd.service\",kind=\"cached\"} 4\n");
    has(all, "\nmoed_tokens_total{uid=\"1001\",unit=\"\",kind=\"generated\"} 7\n");
    has(all, "# TYPE moed_work_seconds counter\n# UNIT moed_work_seconds seconds\n");
    has(all, "\nmoed_work_seconds_total{uid=\"1001\",unit=\"\",phase=\"decode\"} 0.000003\n");
    has(all, "\nmoed_state{moed_state=\"empty\"} 1\nmoed_state{moed_state=\"failed\"} 0\n");
    assert_string_equal(all + n - 6, "# EOF\n");
    assert_int_equal(metrics_text(rig.server, false, 1001, &own, &n), 0);
    has(own, "moed_requests_total{uid=\"1001\"");
    assert_null(strstr(own, "uid=\"1000\""));
    has(rig_call(client, 1, "server.metrics", "{}"), "uid=\"1000\"");
    has(rig_call(client, 2, "server.metrics", "{'format': 'prometheus'}"),
        "format: not openmetrics");
    LIST_FIRST(&rig.server->channels)->peer.uid = 1001; /* somebody else */
    assert_null(strstr(rig_call(client, 3, "server.metrics", "{}"), "uid=\"1000\""));
}

/* Every answer is counted, and every refusal. */
static void test_counted(void **state) {
    const struct account_row *row;
    struct engine_result result = {
        .end = ENGINE_END_LENGTH, .stop_index = -1, .n_prompt = 5, .n_token = 7
    };

    rig_request(client, 1, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    fake_loaded();
    row = account_at(rig.server->account, 0);
    assert_int_equal(row->uid, geteuid());
    assert_int_equal(row->n_open, 1);
    fake_done(&fake.job[0], &result);
    has(rig_recv(client), "\"stop_reason\"=>\"length\"");
    assert_true(row->n_open == 0 && row->n_request == 1 && row->n_prompt == 5 && row->n_token == 7);

    rig_request(client, 2, "tokenize", "{'text': 'x'}");
    rig_turn(&rig);
    fake_end(&fake.job[1], ENGINE_END_INVALID);
    has(rig_recv(client), "InvalidArgs");
    assert_int_equal(row->n_request, 2);

    fake.submit = ENGINE_BUSY;
    has(rig_call(client, 3, "generate", "{'prompt': 'x'}"), "Busy");
    has(rig_call(client, 4, "generate", "{'prompt': 'x', 'model': 'zzz'}"), "NoSuchModel");
    assert_true(row->n_request == 2 && row->n_refused == 2 && row->n_open == 0);
    fake.submit = 0;

    rig_request(client, 5, "generate", "{'prompt': 'x'}"); /* nobody is there for the answer */
    rig_turn(&rig);
    assert_int_equal(row->n_open, 1);
    rig_hangup(client);
    client = rig_connect(&rig);
    assert_true(row->n_open == 0 && row->n_request == 3);
}

/* ---- jobs ---- */

static void test_jobs(void **state) {
    struct rig_client *other = rig_connect(&rig);
    struct channel *theirs = LIST_FIRST(&rig.server->channels);
    const char *said;

    theirs->peer.uid = 1001;
    (void)strcpy(theirs->peer.unit, "theirs.scope");
    has(rig_call(client, 1, "job.list", "{}"), "{\"jobs\"=>[]}");
    has(rig_call(client, 2, "model.load", "{}"), "{\"job\"=>1,");
    fake_progress(0, 25, 100);
    rig_turn(&rig);
    has(rig_call(client, 3, "job.list", "{}"),
        "[{\"id\"=>1, \"kind\"=>\"load\", \"state\"=>\"running\", ");
    has(rig_call(client, 4, "job.list", "{}"), "\"done\"=>25, \"total\"=>100, ");
    has(rig_call(other, 1, "job.list", "{}"), "{\"jobs\"=>[]}");
    fake_loaded();

    rig_request(other, 2, "generate", "{'prompt': 'x', 'priority': 'background'}");
    rig_request(client, 5, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    said = rig_call(other, 3, "job.list", "{}");
    has(said, "[{\"id\"=>2, \"kind\"=>\"generate\", \"state\"=>\"waiting\", \"uid\"=>1001, ");
    has(said, "\"unit\"=>\"theirs.scope\", \"connection\"=>2, \"model\"=>\"a\", "
              "\"priority\"=>\"background\", ");
    assert_null(strstr(said, "\"id\"=>3"));
    fake.job[0].at = (struct engine_job){ 9, 20, 11, 4096 };
    said = rig_call(client, 6, "job.list", "{}"); /* the service's own user sees all */
    has(said, "\"id\"=>3");
    has(said, "\"id\"=>2, \"kind\"=>\"generate\", \"state\"=>\"running\"");
    has(said, "\"done\"=>20, \"total\"=>9, \"generated\"=>11, \"kv\"=>4096}");

    has(rig_call(other, 4, "job.cancel", "{'id': 3}"), "AccessDenied");
    has(rig_call(other, 5, "job.cancel", "{'id': 9}"), "NoSuchJob");
    has(rig_call(client, 7, "job.cancel", "{'id': 2}"), "{\"cancelled\"=>true}");
    has(rig_recv(other), "\"name\"=>\"Cancelled\"");
    has(rig_call(client, 8, "job.cancel", "{'id': 2}"), "NoSuchJob");
    rig_request(client, 9, "job.cancel", "{'id': 3}");
    has(rig_recv(client), "[1, 9, nil, {\"cancelled\"=>true}]");
    has(rig_recv(client), "[1, 5, {\"code\"=>12");
    has(rig_call(client, 10, "job.list", "{}"), "{\"jobs\"=>[]}");
    rig_hangup(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_fold),
        cmocka_unit_test_setup_teardown(test_metrics, setup, teardown),
        cmocka_unit_test_setup_teardown(test_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(test_jobs, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
