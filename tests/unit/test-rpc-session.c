/* SPDX-License-Identifier: Apache-2.0 */

/* Sessions, over a socket pair and a fake engine: what the engine is asked, and what is kept. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

static char cache[64];
static struct rig rig;
static struct rig_client *client;
static uint32_t msgid;

static int setup_with(const char *idle) {
    const struct config_set set[] = { { "cache-dir", cache, "test" },
                                      { "user-sessions", "4", "test" },
                                      { "user-bytes", "2000", "test" },
                                      { "session-idle", idle, "test" } };

    (void)strcpy(cache, "/tmp/moed-cache-XXXXXX");
    assert_non_null(mkdtemp(cache));
    rig_init(&rig, set, 4);
    client = rig_connect(&rig);
    return 0;
}

static int setup(void **state) {
    return setup_with("3600");
}

static int setup_idle(void **state) {
    return setup_with("1");
}

static int teardown(void **state) {
    char cmd[128];

    (void)snprintf(cmd, sizeof cmd, "rm -r %s", cache);
    rig_hangup(client);
    rig_deinit(&rig);
    return system(cmd);
}

static void has(const char *text, const char *want) {
    assert_non_null(text);
    if (!strstr(text, want))
        fail_msg("'%s' has no '%s'", text, want);
}

static const char *call(const char *method, const char *params) {
    return rig_call(client, ++msgid, method, params);
}

/* The job that was submitted last. */
static struct fake_job *job(void) {
    rig_turn(&rig);
    assert_true(fake.n_job > 0);
    return &fake.job[fake.n_job - 1];
}

/* Ask and say: one exchange that ends well, without @n_drop messages. */
static void exchange(const char *params, const char *want, const char *answer, uint32_t n_drop) {
    struct engine_result r = {
        .end = ENGINE_END_STOP, .stop_index = -1, .n_dropped = 10 * n_drop, .n_dropped_msg = n_drop
    };

    rig_request(client, ++msgid, "session.generate", params);
    assert_string_equal(job()->said, want);
    fake_text(job(), CHAT_THOUGHT, "hm");
    fake_text(job(), CHAT_TEXT, answer);
    fake_done(job(), &r);
    has(rig_recv(client), "\"text\"=>");
}

#define ASK(text_) "{'session': 1, 'messages': [{'role': 'user', 'content': '" text_ "'}]}"

static void test_exchanges(void **state) {
    has(call("session.open", "{'instructions': 'be', 'temperature': 0.5, 'seed': 3, 'top_k': 9, "
                             "'thinking': true, 'max_tokens': 5, 'priority': 'background'}"),
        "nil, {\"session\"=>1, \"model\"=>\"a\"}]");
    assert_int_equal(fake.n_job, 0);
    exchange(ASK("q1"), "system:be user:q1", "a1", 0);
    assert_int_equal(job()->req.sample.has, SAMPLE_TEMPERATURE | SAMPLE_SEED | SAMPLE_TOP_K);
    assert_int_equal(job()->req.sample.seed, 3);
    assert_int_equal(job()->req.max_tokens, 5);
    assert_int_equal(job()->req.who.class, FAIR_BACKGROUND);
    assert_true(job()->req.thinking);
    assert_false(job()->req.drop_oldest);
    fake_loaded();

    exchange("{'session': 1, 'messages': [{'role': 'user', 'content': 'q2'}], 'seed': 4, "
             "'thinking': false, 'overflow': 'drop-oldest', 'priority': 'interactive'}",
             "system:be user:q1 assistant:a1 user:q2", "a2", 0);
    assert_int_equal(job()->req.sample.seed, 4);
    assert_int_equal(job()->req.sample.top_k, 9);
    assert_false(job()->req.thinking);
    assert_true(job()->req.drop_oldest);
    assert_int_equal(job()->req.who.class, FAIR_INTERACTIVE);

    /* What was dropped is gone; instructions stay. */
    exchange(ASK("q3"), "system:be user:q1 assistant:a1 user:q2 assistant:a2 user:q3", "a3", 2);
    has(client->text, "\"dropped\"=>20}");
    has(client->text, "\"dropped_messages\"=>2");
    exchange(ASK("q4"), "system:be user:q2 assistant:a2 user:q3 assistant:a3 user:q4", "a4", 0);
    has(call("session.list", "{}"), "\"messages\"=>7");
    has(call("session.open", "{}"), "\"context_window\"=>");
}

static void test_failed_exchanges(void **state) {
    uint32_t id;

    (void)call("session.open", "{}");
    exchange(ASK("q1"), "user:q1", "a1", 0);
    for (int i = 0; i < 5; i++) {
        const enum engine_end end[] = { ENGINE_END_CONTEXT, ENGINE_END_MEMORY, ENGINE_END_INTERNAL,
                                        ENGINE_END_INVALID, ENGINE_END_CANCELLED };

        rig_request(client, ++msgid, "session.generate", ASK("no"));
        assert_string_equal(job()->said, "user:q1 assistant:a1 user:no");
        fake_text(job(), CHAT_TEXT, "half an ans");
        fake_end(job(), end[i]);
        has(rig_recv(client), "\"name\"=>");
    }
    rig_request(client, id = ++msgid, "session.generate", ASK("no"));
    fake_text(job(), CHAT_TEXT, "half");
    has(call("session.generate", ASK("too early")), "\"Busy\"");
    has(client->text, "\"data\"=>{\"retry_after_ms\"=>100, \"position\"=>1}");
    has(call("session.append", ASK("too early")), "\"Busy\"");
    has(call("session.save", "{'session': 1}"), "\"Busy\"");
    has(call("session.list", "{}"), "\"busy\"=>true");
    {
        char params[32];

        (void)snprintf(params, sizeof params, "{'id': %u}", id);
        rig_notify(client, "generate.cancel", params);
    }
    has(rig_recv(client), "\"Cancelled\"");
    exchange(ASK("q2"), "user:q1 assistant:a1 user:q2", "a2", 0);

    /* A limit is an answer. */
    rig_request(client, ++msgid, "session.generate", ASK("q3"));
    fake_text(job(), CHAT_TEXT, "long");
    fake_end(job(), ENGINE_END_LENGTH);
    has(rig_recv(client), "\"length\"");
    exchange(ASK("q4"), "user:q1 assistant:a1 user:q2 assistant:a2 user:q3 assistant:long user:q4",
             "a4", 0);
}

static void test_append_and_measure(void **state) {
    tok_t tok[30] = { 0 };
    struct engine_result r = { .end = ENGINE_END_STOP, .tok = tok, .n_prompt = 20 };

    fake.info.n_ctx = 25;
    (void)call("session.open", "{'messages': [{'role': 'user', 'content': 'q0'}]}");
    rig_request(client, ++msgid, "session.append", ASK("q1"));
    assert_string_equal(job()->said, "user:q0 user:q1");
    assert_int_equal(job()->req.kind, ENGINE_GENERATE);
    assert_true(job()->req.prefill_only && job()->req.no_generation);
    fake_progress(0, 1, 2);
    has(rig_recv(client), "[2, \"generate.progress\", [{\"id\"=>");
    fake_loaded();
    fake_done(job(), &r);
    has(rig_recv(client), "nil, {\"context_used\"=>20}");

    rig_request(client, ++msgid, "session.measure", ASK("q2"));
    assert_string_equal(job()->said, "user:q0 user:q1 user:q2");
    assert_int_equal(job()->req.kind, ENGINE_RENDER);
    assert_false(job()->req.no_generation);
    r.n_tok = 24;
    fake_done(job(), &r);
    has(rig_recv(client), "nil, {\"tokens\"=>24, \"available\"=>24, \"fits\"=>true}");
    rig_request(client, ++msgid, "session.measure", "{'session': 1}");
    assert_string_equal(job()->said, "user:q0 user:q1");
    r.n_tok = 25;
    fake_done(job(), &r);
    has(rig_recv(client), "\"fits\"=>false}");

    rig_request(client, ++msgid, "session.append", ASK("q2"));
    r = (struct engine_result){ .end = ENGINE_END_CONTEXT, .n_prompt = 25, .n_available = 24 };
    fake_done(job(), &r);
    has(rig_recv(client), "\"ContextOverflow\"");
    has(client->text, "{\"requested\"=>25, \"available\"=>24}");
    exchange("{'session': 1}", "user:q0 user:q1", "a1", 0);
}

static void test_errors(void **state) {
    char text[2100];

    has(call("session.generate", "{'session': 1}"), "\"NoSuchSession\"");
    has(call("session.append", "{'session': 1}"), "\"NoSuchSession\"");
    has(call("session.measure", "{'session': 1}"), "\"NoSuchSession\"");
    has(call("session.clone", "{'session': 1}"), "\"NoSuchSession\"");
    has(call("session.close", "{'session': 1}"), "\"NoSuchSession\"");
    has(call("session.save", "{'session': 1}"), "\"NoSuchSession\"");
    has(call("session.restore", "{'token': 'no'}"), "\"NoSuchSession\"");
    has(call("session.restore", "{}"), "token: missing");
    has(call("session.open", "{'model': 'zzz'}"), "\"NoSuchModel\"");
    has(call("session.open", "{'top_p': 2}"), "\"InvalidArgs\"");
    has(call("session.open", "{'priority': 'no'}"), "priority: not");
    has(call("session.open", "{'messages': [{'role': 'x', 'content': 'y'}]}"), "role \"x\"");
    has(call("session.open", "{'max_tokens': 0}"), "max_tokens: 0");
    has(call("session.list", "{}"), "{\"sessions\"=>[]}");
    has(call("session.open", "{}"), "\"session\"=>1");
    has(call("session.generate", "{'session': 1}"), "the session has none yet");
    has(call("session.append", "{'session': 1}"), "the session has none yet");
    has(call("session.measure", "{'session': 1}"), "the session has none yet");
    has(call("session.generate", "{'session': 1, 'overflow': 'x'}"), "the session has none yet");
    has(call("generate", "{'prompt': 'a', 'overflow': 'x'}"), "overflow: not error or drop");
    (void)snprintf(text, sizeof text,
                   "{'session': 1, 'messages': [{'role': 'user', 'content': "
                   "'%01999d'}]}",
                   0);
    has(call("session.append", text), "\"QuotaExceeded\"");
    has(client->text, "{\"limit\"=>2000}");
    has(call("session.generate", text), "\"QuotaExceeded\"");
    assert_int_equal(fake.n_job, 0);
}

static void test_clone_close_quota(void **state) {
    (void)call("session.open", "{'seed': 5}");
    exchange(ASK("q1"), "user:q1", "a1", 0);
    has(call("session.clone", "{'session': 1}"), "nil, {\"session\"=>2}");
    exchange(ASK("q2"), "user:q1 assistant:a1 user:q2", "a2", 0);
    exchange("{'session': 2, 'messages': [{'role': 'user', 'content': 'x'}]}",
             "user:q1 assistant:a1 user:x", "y", 0);
    assert_int_equal(job()->req.sample.seed, 5);
    has(call("session.close", "{'session': 1}"), "nil, {}");
    has(call("session.generate", ASK("q3")), "\"NoSuchSession\"");

    has(call("session.open", "{}"), "\"session\"=>3");
    has(call("session.open", "{}"), "\"session\"=>4");
    has(call("session.open", "{}"), "\"session\"=>5");
    has(call("session.open", "{}"), "\"QuotaExceeded\"");
    has(client->text, "{\"limit\"=>4}");
    has(call("session.clone", "{'session': 2}"), "\"QuotaExceeded\"");
}

/* Closed while an answer is written, or its connection gone: the job ends, and nothing is kept. */
static void test_close_while_busy(void **state) {
    struct rig_client *other = rig_connect(&rig);

    (void)call("session.open", "{}");
    rig_request(client, ++msgid, "session.generate", ASK("q1"));
    (void)job();
    rig_request(client, ++msgid, "session.close", "{'session': 1}");
    has(rig_recv(client), "nil, {}");
    has(rig_recv(client), "\"Cancelled\"");

    /* Another connection of the user may use it, until the one that opened it goes. */
    has(rig_call(other, 1, "session.open", "{}"), "\"session\"=>2");
    rig_request(client, ++msgid, "session.generate",
                "{'session': 2, 'messages': [{'role': 'user', 'content': 'x'}]}");
    (void)job();
    has(rig_call(other, 2, "session.list", "{}"), "\"own\"=>true");
    has(call("session.list", "{}"), "\"own\"=>false");
    rig_hangup(other);
    has(rig_recv(client), "\"Cancelled\"");
    has(call("session.list", "{}"), "{\"sessions\"=>[]}");
    has(call("session.open", "{}"), "\"session\"=>3");
    exchange("{'session': 3, 'messages': [{'role': 'user', 'content': 'x'}]}", "user:x", "y", 0);
}

static void test_idle(void **state) {
    usec_t until = clock_usec() + 5 * CLOCK_SECOND;

    (void)call("session.open", "{}");
    while (!LIST_EMPTY(&rig.server->sessions.list) && clock_usec() < until)
        rig_turn(&rig);
    has(rig_recv(client), "[2, \"session.closed\", [{\"session\"=>1, \"reason\"=>\"idle\"}]]");
    has(call("session.generate", ASK("q")), "\"NoSuchSession\"");
}

static void test_save(void **state) {
    char token[64], params[128];
    const char *at;

    (void)call("session.open", "{'instructions': 'be', 'seed': 7, 'thinking': true}");
    exchange(ASK("q1"), "system:be user:q1", "a1", 0);
    at = strstr(call("session.save", "{'session': 1}"), "token\"=>\"");
    assert_non_null(at);
    (void)snprintf(token, sizeof token, "%.32s", at + 9);
    (void)call("session.close", "{'session': 1}");

    (void)snprintf(params, sizeof params, "{'token': '%s'}", token);
    for (int i = 2; i < 4; i++) { /* the token stays good */
        char ask[128];

        has(call("session.restore", params), "\"model\"=>\"a\"");
        (void)snprintf(ask, sizeof ask,
                       "{'session': %d, 'messages': [{'role': 'user', 'content': 'q2'}]}", i);
        exchange(ask, "system:be user:q1 assistant:a1 user:q2", "a2", 0);
        assert_int_equal(job()->req.sample.seed, 7);
        assert_true(job()->req.thinking);
    }
    (void)snprintf(params, sizeof params, "{'token': '%.31sg'}", token);
    has(call("session.restore", params), "\"NoSuchSession\"");
}

/* The token that a save answered with, as parameters of session.restore, into @ret [64]. */
static void get_token(char *ret) {
    const char *at = strstr(client->text, "token\"=>\"");

    assert_non_null(at);
    (void)snprintf(ret, 64, "{'token': '%.32s'}", at + 9);
}

static int n_file(const char *ending) {
    char cmd[160];

    (void)snprintf(cmd, sizeof cmd, "exit $(ls %s/sessions/*/ | grep -c '%s$')", cache, ending);
    return WEXITSTATUS(system(cmd));
}

/* The engine ends the job that was submitted last; @n of its prompt. */
static void end(enum engine_end how, uint32_t n) {
    struct engine_result r = { .end = how, .n_prompt = n, .n_cached = n };

    (void)why_set(&r.why, 0, "so it is");
    fake_done(job(), &r);
}

/* With the model there, the engine writes keys and values, and reads them; without them, whatever
 * the reason, the text is saved and restored. */
static void test_save_kv(void **state) {
    static const enum engine_end bad[] = { ENGINE_END_MEMORY, ENGINE_END_INTERNAL };
    char token[64], again[128];

    (void)call("session.open", "{'thinking': true}");
    exchange(ASK("q1"), "user:q1", "a1", 0);
    fake_loaded();
    for (int i = 0; i < 2; i++) {
        rig_request(client, ++msgid, "session.save", "{'session': 1}");
        end(bad[i], 20);
        has(rig_recv(client), "\"cached\"=>0}");
    }
    fake.submit = ENGINE_BUSY;
    has(call("session.save", "{'session': 1}"), "\"cached\"=>0}");
    fake.submit = 0;
    assert_int_equal(n_file("new") + n_file("kv"), 0);
    assert_int_equal(n_file("session"), 3);

    rig_request(client, ++msgid, "session.save", "{'session': 1}");
    assert_int_equal(job()->req.kind, ENGINE_SAVE);
    assert_string_equal(job()->said, "user:q1 assistant:a1");
    assert_true(job()->req.no_generation && job()->req.thinking);
    assert_int_equal(write(job()->req.fd, "keys", 4), 4);
    assert_int_equal(n_file("new"), 1);
    end(ENGINE_END_STOP, 20);
    has(rig_recv(client), "\"cached\"=>20}");
    get_token(token);
    assert_int_equal(n_file("new"), 0);
    assert_int_equal(n_file("kv"), 1);

    rig_request(client, ++msgid, "session.restore", token);
    assert_int_equal(job()->req.kind, ENGINE_RESTORE);
    end(ENGINE_END_STOP, 20);
    has(rig_recv(client), "{\"session\"=>2, \"model\"=>\"a\", \"context_window\"=>0, "
                          "\"cached\"=>20}");
    rig_request(client, ++msgid, "session.restore", token);
    end(ENGINE_END_CORRUPT, 0);
    has(rig_recv(client), "\"session\"=>3");
    has(client->text, "\"cached\"=>0}");
    exchange("{'session': 3, 'messages': [{'role': 'user', 'content': 'q2'}]}",
             "user:q1 assistant:a1 user:q2", "a2", 0);

    /* The same name again, and gone. */
    (void)snprintf(again, sizeof again, "{'session': 3, %s", token + 1);
    rig_request(client, ++msgid, "session.save", again);
    end(ENGINE_END_STOP, 30);
    has(rig_recv(client), "\"cached\"=>30}");
    assert_int_equal(n_file("session"), 4);
    rig_request(client, ++msgid, "session.restore", token);
    end(ENGINE_END_STOP, 30);
    has(rig_recv(client), "\"session\"=>4");
    exchange("{'session': 4, 'messages': [{'role': 'user', 'content': 'q3'}]}",
             "user:q1 assistant:a1 user:q2 assistant:a2 user:q3", "a3", 0);
    has(call("session.forget", token), "nil, {}");
    has(call("session.forget", token), "\"NoSuchSession\"");
    has(call("session.restore", token), "\"NoSuchSession\"");
    has(call("session.save", again), "\"NoSuchSession\"");
    assert_int_equal(n_file("session"), 3);
    assert_int_equal(n_file("kv"), 0);
}

/* Cancelled while the engine writes or reads: nothing is saved, and none is open. */
static void test_save_cancelled(void **state) {
    struct rig_client *other = rig_connect(&rig);
    char token[64], params[32];

    (void)call("session.open", "{}");
    exchange(ASK("q1"), "user:q1", "a1", 0);
    fake_loaded();
    rig_request(client, ++msgid, "session.save", "{'session': 1}");
    (void)job();
    (void)snprintf(params, sizeof params, "{'id': %u}", msgid);
    rig_notify(client, "generate.cancel", params);
    has(rig_recv(client), "\"Cancelled\"");
    assert_int_equal(n_file("new") + n_file("kv") + n_file("session"), 0);
    rig_request(other, 1, "session.save", "{'session': 1}");
    (void)job();
    rig_hangup(other);
    rig_turn(&rig);
    assert_int_equal(n_file("new") + n_file("kv") + n_file("session"), 0);

    rig_request(client, ++msgid, "session.save", "{'session': 1}");
    end(ENGINE_END_STOP, 20);
    (void)rig_recv(client);
    get_token(token);
    rig_request(client, ++msgid, "session.restore", token);
    (void)job();
    (void)snprintf(params, sizeof params, "{'id': %u}", msgid);
    rig_notify(client, "generate.cancel", params);
    has(rig_recv(client), "\"Cancelled\"");
    has(call("session.generate", "{'session': 2}"), "\"NoSuchSession\"");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_exchanges, setup, teardown),
        cmocka_unit_test_setup_teardown(test_failed_exchanges, setup, teardown),
        cmocka_unit_test_setup_teardown(test_append_and_measure, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_clone_close_quota, setup, teardown),
        cmocka_unit_test_setup_teardown(test_close_while_busy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_idle, setup_idle, teardown),
        cmocka_unit_test_setup_teardown(test_save, setup, teardown),
        cmocka_unit_test_setup_teardown(test_save_kv, setup, teardown),
        cmocka_unit_test_setup_teardown(test_save_cancelled, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
