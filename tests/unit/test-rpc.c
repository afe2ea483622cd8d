/* SPDX-License-Identifier: Apache-2.0 */

/* The methods, over a socket pair and a fake engine: what goes in, what comes out. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

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

static void has(const char *text, const char *want) {
    assert_non_null(text);
    if (!strstr(text, want))
        fail_msg("'%s' has no '%s'", text, want);
}

static void has_error(const char *text, const char *name, const char *message) {
    char want[256];

    (void)snprintf(want, sizeof want, "\"name\"=>\"%s\", \"message\"=>\"%s", name, message);
    has(text, want);
}

/* ---- parameters ---- */

static void test_check(void **state) {
    /* clang-format off */
    static const struct {
        const char *method, *params, *error, *message;
    } table[] = {
        { "nonsense", "{}", "NoSuchMethod", "no such method: nonsense" },
        { "server.inf", "{}", "NoSuchMethod", "no such method" },
        { "server.infos", "{}", "NoSuchMethod", "no such method" },
        { "client.hello", "{}", "InvalidArgs", "name: missing" },
        { "client.hello", "{'name': 3}", "InvalidArgs", "name: not of type str" },
        { "client.hello", "{'name': 'x', 'api_level': 99}", "NotSupported", "api_level: 1 to 4" },
        { "client.hello", "{'name': 'x', 'attributes': []}",
          "InvalidArgs", "attributes: not of type map" },
        { "generate", "{}", "InvalidArgs", "want one of messages, prompt, tokens" },
        { "generate", "{'prompt': 'a', 'tokens': [1]}", "InvalidArgs", "want one of" },
        { "generate", "{'tokens': []}", "InvalidArgs", "tokens: empty" },
        { "generate", "{'tokens': [1, -2]}", "InvalidArgs", "tokens, element 1: not a token id" },
        { "generate", "{'messages': []}", "InvalidArgs", "messages: empty" },
        { "generate", "{'messages': [3]}", "InvalidArgs", "messages, element 0: not a map" },
        { "generate", "{'messages': [{'role': 'user'}]}",
          "InvalidArgs", "content of messages, element 0: not a text" },
        { "generate", "{'messages': [{'role': 'user', 'content': 'a\\u0000b'}]}",
          "InvalidArgs", "content of messages, element 0: has a NUL" },
        { "generate", "{'prompt': 'a', 'max_tokens': 0}", "InvalidArgs", "max_tokens: 0" },
        { "generate", "{'prompt': 'a', 'max_tokens': -1}",
          "InvalidArgs", "max_tokens: not of type uint" },
        { "generate", "{'prompt': 'a', 'temperature': 'hot'}",
          "InvalidArgs", "temperature: not of type float" },
        { "generate", "{'prompt': 'a', 'top_k': 99999999999}", "InvalidArgs", "top_k: larger" },
        { "generate", "{'prompt': 'a', 'logprobs': 21}", "InvalidArgs", "logprobs: more than 20" },
        { "generate", "{'prompt': 'a', 'stop': ['']}", "InvalidArgs", "stop, element 0: empty" },
        { "generate", "{'prompt': 'a', 'stop': [1]}",
          "InvalidArgs", "stop, element 0: not a text" },
        { "generate", "{'prompt': 'a', 'stop': ['1','2','3','4','5','6','7','8','9',"
          "'a','b','c','d','e','f','g','h']}",
          "InvalidArgs", "stop: more than 16" },
        { "generate", "{'prompt': 'a', 'logit_bias': {'x': 1}}",
          "InvalidArgs", "logit_bias: a key" },
        { "generate", "{'prompt': 'a', 'model': 'zzz'}",
          "NoSuchModel", "no model with the id zzz" },
        { "generate", "{'prompt': 'a', 'model': 'a\\u0000'}", "InvalidArgs", "model: has a NUL" },
        { "generate", "{'prompt': 'a', 'must': ['seed', 'grammar']}",
          "NotSupported", "grammar: not supported" },
        { "generate", "{'prompt': 'a', 'must': 'seed'}", "InvalidArgs", "must: not an array" },
        { "generate", "{'prompt': 'a', 'must': [1]}", "InvalidArgs", "must: not an array" },
        { "generate.cancel", "{}", "InvalidArgs", "id: missing" },
        { "job.wait", "{'id': 77}", "NoSuchJob", "no job 77" },
        { "job.cancel", "{'id': 0}", "NoSuchJob", "no job 0" },
        { "job.cancel", "{'id': '0'}", "InvalidArgs", "id: not of type uint" },
        { "model.load", "{'id': 'zzz'}", "NoSuchModel", "no model with the id zzz" },
        { "model.load", "{'id': 1}", "InvalidArgs", "id: not of type str" },
        { "model.show", "{'id': 'zzz'}", "NoSuchModel", "no model with the id zzz" },
        { "model.show", "{'id': 'a'}", "Corrupt", "" },
        { "model.show", "{'tensors': 1}", "InvalidArgs", "tensors: not of type bool" },
        { "model.unload", "{'id': 'zzz'}", "NoSuchModel", "no model with the id zzz" },
        { "model.availability", "{'id': 'zzz'}", "NoSuchModel", "no model with the id zzz" },
        { "tokenize", "{}", "InvalidArgs", "text: missing" },
        { "detokenize", "{'tokens': ['a']}", "InvalidArgs", "tokens, element 0: not a token id" },
        { "template.apply", "{}", "InvalidArgs", "messages: missing" },
        { "template.apply", "{'messages': [], 'thinking': 0}",
          "InvalidArgs", "thinking: not of type bool" },
    };
    /* clang-format on */

    for (uint32_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        const char *reply = rig_call(client, i, table[i].method, table[i].params);
        char head[32];

        (void)snprintf(head, sizeof head, "[1, %u, {", i);
        has(reply, head);
        has(reply, "}, nil]");
        has_error(reply, table[i].error, table[i].message);
    }
    assert_int_equal(fake.n_job, 0); /* nothing of that reached the engine */
}

static void test_unknown_keys_are_ignored(void **state) {
    has(rig_call(client, 1, "client.hello", "{'name': 't', 'wild': {'a': []}}"),
        "[1, 1, nil, {\"api_level\"=>4, \"limits\"=>{\"frame_bytes\"=>16777216");
}

static void test_bad_utf8(void **state) {
    static const char frame[] = "\x94\x00\x05\xa8tokenize\x91\x81\xa4text\xa2\xc3\x28";

    rig_send(client, frame, sizeof frame - 1);
    has_error(rig_recv(client), "InvalidArgs", "params: text that is not valid UTF-8");
    has(rig_call(client, 6, "server.status", "{}"), "\"empty\""); /* it goes on */
}

static void test_table(void **state) {
    const struct rpc_method *m = rpc_methods;

    for (; m[1].name; m++)
        assert_true(strcmp(m[0].name, m[1].name) < 0);
    for (int i = 1; i < RPC_ERROR_N; i++)
        assert_non_null(rpc_error_name(i));
    assert_string_equal(rpc_error_name(RPC_NO_SUCH_JOB), "NoSuchJob");
    assert_int_equal(RPC_NO_SUCH_JOB, 21);
}

static void test_info(void **state) {
    const char *info = rig_call(client, 1, "server.info", "{}");

    has(info, "{\"channel\"=>1, \"version\"=>{\"major\"=>");
    has(info, "{\"name\"=>\"generate.cancel\", \"since\"=>1, \"params\"=>[{\"name\"=>\"id\", "
              "\"type\"=>\"uint\", \"required\"=>true}]");
    has(info, "\"notifies\"=>[\"generate.progress\", \"generate.delta\"]");
    has(info, "\"Busy\"=>{\"code\"=>9}");
}

/* ---- models ---- */

static void test_models(void **state) {
    char want[256];

    (void)snprintf(want, sizeof want,
                   "{\"models\"=>[{\"id\"=>\"a\", \"path\"=>\"%s/a.gguf\", \"size\"=>4, "
                   "\"state\"=>\"available\", \"default\"=>true}, {\"id\"=>\"b\"",
                   rig.dir);
    has(rig_call(client, 1, "model.list", "{}"), want);
    has(rig_call(client, 2, "model.availability", "{}"), "{\"state\"=>\"not-loaded\"}");
    assert_int_equal(fake.n_new, 0); /* asking never loads */

    has(rig_call(client, 3, "model.load", "{}"), "{\"job\"=>1, \"state\"=>\"loading\"}");
    rig_request(client, 4, "job.wait", "{'id': 1}");
    fake.status.bytes_done = 25, fake.status.bytes_total = 100;
    has(rig_call(client, 5, "server.status", "{}"), "\"progress\"=>0.25");
    has(rig_call(client, 6, "model.availability", "{}"),
        "{\"state\"=>\"loading\", \"progress\"=>0.25");
    fake_progress(0, 50, 100);
    has(rig_recv(client), "[2, \"job.progress\", [{\"id\"=>1, \"stage\"=>\"loading\", "
                          "\"done\"=>50, \"total\"=>100}]]");
    has_error(rig_call(client, 7, "model.load", "{'id': 'b'}"), "Busy", "a is resident");
    fake_loaded();
    has(rig_recv(client), "[1, 4, nil, {\"result\"=>\"done\"}]");
    has(rig_call(client, 8, "model.load", "{'id': 'a'}"), "{\"job\"=>1, \"state\"=>\"loaded\"}");
    has(rig_call(client, 9, "job.wait", "{'id': 1}"), "{\"result\"=>\"done\"}");
    has(rig_call(client, 10, "server.status", "{}"), "\"state\"=>\"ready\"");
    has(rig_call(client, 11, "model.list", "{}"), "\"state\"=>\"loaded\"");
    has(rig_call(client, 12, "model.unload", "{'id': 'b'}"), "[1, 12, nil, {}]");
    assert_true(fake.exists); /* b was not resident */
    has(rig_call(client, 13, "model.unload", "{}"), "[1, 13, nil, {}]");
    assert_false(fake.exists);
    has(rig_call(client, 14, "server.status", "{}"), "\"state\"=>\"empty\"");
}

static void test_load_fails(void **state) {
    const char *reply;

    rig_request(client, 1, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    assert_int_equal(fake.n_job, 1);
    fake_load_failed("a.gguf: 4 bytes is no \xff");
    has_error(rig_recv(client), "ModelUnavailable", "a.gguf: 4 bytes is no ");
    reply = rig_call(client, 2, "generate", "{'prompt': 'x'}");
    has_error(reply, "ModelUnavailable", "a.gguf: 4 bytes is no \"");
    assert_int_equal(fake.n_new, 1); /* not tried again while the file is as it was */
    has(rig_call(client, 3, "server.status", "{}"),
        "\"state\"=>\"failed\", \"reason\"=>\"a.gguf: 4");
    has(rig_call(client, 4, "model.availability", "{}"), "\"state\"=>\"unavailable\", \"reason\"");
    has(rig_call(client, 5, "job.wait", "{'id': 1}"),
        "{\"result\"=>\"failed\", \"reason\"=>\"a.gguf");
    has(rig_call(client, 6, "model.load", "{}"), "\"state\"=>\"loading\""); /* but when told to */
    assert_int_equal(fake.n_new, 2);
    fake_loaded();
    has(rig_call(client, 7, "server.status", "{}"), "\"state\"=>\"ready\"");
}

static void test_load_again_when_file_changes(void **state) {
    char path[128];
    FILE *f;

    rig_request(client, 1, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    fake_load_failed("broken");
    has_error(rig_recv(client), "ModelUnavailable", "broken");
    (void)snprintf(path, sizeof path, "%s/a.gguf", rig.dir);
    f = fopen(path, "a");
    fputs("more", f);
    (void)fclose(f);
    rig_request(client, 2, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    assert_int_equal(fake.n_new, 2);
}

static void test_load_cancel(void **state) {
    has(rig_call(client, 1, "model.load", "{}"), "\"job\"=>1");
    rig_request(client, 2, "job.wait", "{'id': 1}");
    rig_request(client, 3, "generate", "{'prompt': 'x'}");
    rig_request(client, 4, "job.cancel", "{'id': 1}");
    has(rig_recv(client), "[1, 2, nil, {\"result\"=>\"cancelled\", \"reason\"=>\"loading was");
    has_error(rig_recv(client), "ModelUnavailable", "loading was cancelled");
    has(rig_recv(client), "[1, 4, nil, {\"cancelled\"=>true}]");
    assert_false(fake.exists);
    has(rig_call(client, 5, "job.cancel", "{'id': 1}"), "{\"cancelled\"=>false}");
}

static void test_switch_when_idle(void **state) {
    rig_request(client, 1, "generate", "{'prompt': 'x', 'model': 'a'}");
    rig_turn(&rig);
    fake_loaded();
    has_error(rig_call(client, 2, "generate", "{'prompt': 'x', 'model': 'b'}"), "Busy",
              "a is resident");
    has(client->text, "\"data\"=>{\"retry_after_ms\"=>1000, \"position\"=>1}");
    has(rig_call(client, 3, "model.availability", "{'id': 'b'}"), "\"state\"=>\"busy\"");
    has_error(rig_call(client, 4, "model.unload", "{}"), "Busy", "1 requests");
    fake_end(&fake.job[0], ENGINE_END_STOP);
    has(rig_recv(client), "\"model\"=>\"a\"");
    rig_request(client, 5, "generate", "{'prompt': 'x', 'model': 'b'}");
    rig_turn(&rig);
    has(fake.path, "/b.gguf");
    fake_loaded();
    fake_end(&fake.job[1], ENGINE_END_STOP);
    has(rig_recv(client), "\"model\"=>\"b\"");
    /* With no model named, the loaded one serves, not the default one. */
    rig_request(client, 6, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    assert_int_equal(fake.n_new, 2);
}

/* ---- generate ---- */

static void ready(void) {
    has(rig_call(client, 900, "model.load", "{}"), "\"job\"");
    fake_loaded();
    rig_turn(&rig);
}

static void test_generate_request(void **state) {
    struct engine_request *r = &fake.job[0].req;

    ready();
    rig_request(client, 1, "generate",
                "{'messages': [{'role': 'user', 'content': 'hello'}], 'thinking': true,"
                " 'max_tokens': 12, 'temperature': 0, 'top_k': 3, 'seed': 5, 'stop': "
                "['END'], 'logprobs': 2, 'deadline_ms': 1000, 'repeat_last_n': 9}");
    rig_turn(&rig);
    assert_int_equal(fake.n_job, 1);
    assert_int_equal(r->kind, ENGINE_GENERATE);
    assert_string_equal(fake.job[0].role, "user");
    assert_string_equal(fake.job[0].text, "hello");
    assert_true(r->thinking);
    assert_int_equal(r->max_tokens, 12);
    assert_int_equal(r->n_stop, 1);
    assert_int_equal(r->n_top, 2);
    assert_true(r->logprobs);
    assert_int_equal(r->sample.has,
                     SAMPLE_TEMPERATURE | SAMPLE_TOP_K | SAMPLE_SEED | SAMPLE_LAST_N);
    assert_int_equal(r->sample.top_k, 3);
    assert_int_equal(r->sample.seed, 5);
    assert_int_equal(r->sample.last_n, 9);
    assert_true(r->deadline_usec > clock_usec() && r->deadline_usec <= clock_usec() + 1000000);
}

static void test_generate_whole(void **state) {
    ready();
    rig_request(client, 1, "generate", "{'prompt': 'x', 'stop': ['a', 'b']}");
    rig_turn(&rig);
    fake_text(&fake.job[0], CHAT_THOUGHT, "hm");
    fake_text(&fake.job[0], CHAT_TEXT, "Hel");
    fake_text(&fake.job[0], CHAT_TEXT, "lo");
    fake_done(&fake.job[0], &(struct engine_result){ .end = ENGINE_END_STOP,
                                                     .stop_index = 1,
                                                     .n_prompt = 5,
                                                     .n_cached = 2,
                                                     .n_token = 3,
                                                     .seed = 8,
                                                     .queue_usec = 1,
                                                     .prefill_usec = 2,
                                                     .decode_usec = 3 });
    assert_string_equal(
        rig_recv(client),
        "[1, 1, nil, {\"stop_reason\"=>\"stop\", \"stop\"=>\"b\", \"usage\"=>{\"prompt\"=>5, "
        "\"cached\"=>2, \"generated\"=>3, \"dropped\"=>0}, \"timings\"=>{\"queue_us\"=>1, "
        "\"prefill_us\"=>2, \"decode_us\"=>3}, "
        "\"dropped_messages\"=>0, \"seed\"=>8, \"model\"=>\"a\", "
        "\"text\"=>\"Hello\", \"thought\"=>\"hm\"}]");
}

static void test_generate_stream(void **state) {
    ready();
    rig_request(client, 1, "generate", "{'prompt': 'x', 'stream': true}");
    rig_request(client, 2, "generate", "{'prompt': 'x', 'stream': true, 'echo': true}");
    rig_turn(&rig);
    fake_progress(1, 3, 9);
    fake_text(&fake.job[0], CHAT_THOUGHT, "hm");
    fake_text(&fake.job[0], CHAT_TEXT, "yes");
    fake_end(&fake.job[0], ENGINE_END_LENGTH);
    has(rig_recv(client), "[2, \"generate.progress\", [{\"id\"=>1, \"stage\"=>\"prefill\", "
                          "\"done\"=>3, \"total\"=>9}]]");
    has(rig_recv(client), "[2, \"generate.delta\", [{\"id\"=>1, \"seq\"=>0, "
                          "\"kind\"=>\"thought\", \"text\"=>\"hm\"}]]");
    has(rig_recv(client), "{\"id\"=>1, \"seq\"=>1, \"kind\"=>\"text\", \"text\"=>\"yes\"}");
    has(rig_recv(client), "[1, 1, nil, {\"stop_reason\"=>\"length\"");
    assert_null(strstr(client->text, "\"text\""));

    fake_text(&fake.job[1], CHAT_TEXT, "no");
    fake_end(&fake.job[1], ENGINE_END_STOP);
    has(rig_recv(client), "{\"id\"=>2, \"seq\"=>0");
    has(rig_recv(client), "\"text\"=>\"no\"");
}

static void test_generate_ends(void **state) {
    /* clang-format off */
    static const struct { struct engine_result result; const char *want; } table[] = {
        { { .end = ENGINE_END_DEADLINE, .n_token = 4 }, "\"stop_reason\"=>\"deadline\"" },
        { { .end = ENGINE_END_DEADLINE },               "\"name\"=>\"Timeout\"" },
        { { .end = ENGINE_END_CANCELLED, .n_token = 4 },
          "\"message\"=>\"the request was cancelled\", \"data\"=>{\"usage\"" },
        { { .end = ENGINE_END_CONTEXT, .n_prompt = 9000, .n_available = 8192 },
          "\"name\"=>\"ContextOverflow\", "
          "\"message\"=>\"the prompt has 9000 tokens, the context holds 8192\", "
          "\"data\"=>{\"requested\"=>9000, \"available\"=>8192}" },
        { { .end = ENGINE_END_INVALID, .why = { "messages: role 'x'" } },
          "\"name\"=>\"InvalidArgs\", \"message\"=>\"messages: role 'x'\"" },
        { { .end = ENGINE_END_MODEL, .why = { "no file" } },
          "\"name\"=>\"ModelUnavailable\", \"message\"=>\"no file\"" },
        { { .end = ENGINE_END_INTERNAL, .why = { "oops" } }, "\"name\"=>\"Internal\"" },
    };
    /* clang-format on */

    ready();
    for (uint32_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        rig_request(client, i, "generate", "{'prompt': 'x'}");
        rig_turn(&rig);
        fake_done(&fake.job[i], &table[i].result);
        has(rig_recv(client), table[i].want);
    }
}

static void test_generate_refused(void **state) {
    ready();
    fake.submit = ENGINE_BUSY;
    has_error(rig_call(client, 1, "generate", "{'prompt': 'x'}"), "Busy", "the fake says no");
    has(client->text, "\"data\"=>{\"retry_after_ms\"=>2500, \"position\"=>4}");
    fake.submit = ENGINE_TOO_LARGE;
    has_error(rig_call(client, 2, "generate", "{'prompt': 'x'}"), "TooLarge", "the fake says");
    has(client->text, "\"data\"=>{\"limit\"=>4194304}");
    fake.submit = ENGINE_BAD;
    has_error(rig_call(client, 3, "generate", "{'prompt': 'x'}"), "InvalidArgs", "the fake");
    fake.submit = -ENOMEM;
    has_error(rig_call(client, 4, "generate", "{'prompt': 'x'}"), "Internal", "Cannot alloc");
}

static void test_cancel(void **state) {
    ready();
    rig_request(client, 1, "generate", "{'prompt': 'x', 'stream': true}");
    has(rig_call(client, 2, "generate.cancel", "{'id': 1}"), "[1, 2, nil, {\"cancelled\"=>true}]");
    has_error(rig_recv(client), "Cancelled", "the request was cancelled");
    has(client->text, "\"data\"=>{\"usage\"=>{\"prompt\"=>5");
    has(rig_call(client, 4, "generate.cancel", "{'id': 1}"), "{\"cancelled\"=>false}");

    rig_request(client, 5, "generate", "{'prompt': 'x'}");
    rig_notify(client, "generate.cancel", "{'id': 5}");
    has_error(rig_recv(client), "Cancelled", "the request");
    rig_notify(client, "server.info", "{}"); /* not as a notification: ignored */
    has(rig_call(client, 6, "server.status", "{}"), "[1, 6, nil");
}

static void test_too_large(void **state) {
    char big[4096];

    ready();
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    rig_request(client, 1, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    for (int i = 0; i < 4200 && !fake.job[0].over; i++) {
        fake_text(&fake.job[0], CHAT_TEXT, big);
        rig_turn(&rig);
    }
    assert_true(fake.job[0].over);
    has_error(rig_recv(client), "TooLarge", "the answer does not fit into one frame");
}

/* ---- text ---- */

static void test_text(void **state) {
    tok_t tok[] = { 3, 400 };
    char text[] = "two words";

    ready();
    rig_request(client, 1, "tokenize", "{'text': 'abc', 'bos': true}");
    rig_turn(&rig);
    assert_int_equal(fake.job[0].req.kind, ENGINE_TOKENIZE);
    assert_string_equal(fake.job[0].text, "abc");
    assert_false(fake.job[0].req.no_bos);
    fake_done(&fake.job[0], &(struct engine_result){ .tok = tok, .n_tok = 2 });
    has(rig_recv(client), "[1, 1, nil, {\"tokens\"=>[3, 400]}]");

    rig_request(client, 2, "detokenize", "{'tokens': [3, 400], 'special': true}");
    rig_turn(&rig);
    assert_int_equal(fake.job[1].req.kind, ENGINE_DETOKENIZE);
    assert_int_equal(fake.job[1].req.n_tok, 2);
    assert_true(fake.job[1].req.special);
    fake_done(&fake.job[1], &(struct engine_result){ .text = text, .n_text = 9 });
    has(rig_recv(client), "[1, 2, nil, {\"text\"=>\"two words\"}]");

    rig_request(
        client, 3, "template.apply",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}], \"generation\": false}");
    rig_turn(&rig);
    assert_int_equal(fake.job[2].req.kind, ENGINE_RENDER);
    assert_true(fake.job[2].req.no_generation);
    fake_done(&fake.job[2],
              &(struct engine_result){ .text = text, .n_text = 9, .tok = tok, .n_tok = 2 });
    has(rig_recv(client), "[1, 3, nil, {\"text\"=>\"two words\", \"tokens\"=>[3, 400]}]");
}

static void test_answer_beyond_a_frame(void **state) {
    static tok_t tok[70000];

    ready();
    rig_request(client, 1, "tokenize", "{'text': 'abc'}");
    rig_turn(&rig);
    fake_done(&fake.job[0], &(struct engine_result){ .tok = tok, .n_tok = 70000 });
    has_error(rig_recv(client), "TooLarge", "the answer does not fit into one frame");
    has(client->text, "\"data\"=>{\"limit\"=>65536}");
}

/* ---- the end of the service ---- */

static void test_stop(void **state) {
    struct rig_client *idle = rig_connect(&rig);

    has(rig_call(client, 1, "model.load", "{}"), "\"job\"=>1");
    rig_request(client, 2, "job.wait", "{'id': 1}");
    rig_request(client, 3, "generate", "{'prompt': 'x', 'stream': true}");
    rig_turn(&rig);
    fake_text(&fake.job[0], CHAT_TEXT, "so far");
    rig_turn(&rig);
    server_stop(rig.server);
    has(rig_recv(client), "so far");
    has_error(rig_recv(client), "ShuttingDown", "the request was ended before the job");
    has_error(rig_recv(client), "ShuttingDown", "the service is stopping");
    has(client->text, "\"data\"=>{\"usage\"=>{");
    assert_null(rig_recv(client));
    assert_null(rig_recv(idle));
    assert_int_equal(rig.server->n_channel, 0);
    rig_hangup(idle);
}

int main(void) {
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_check),
        TEST(test_unknown_keys_are_ignored),
        TEST(test_bad_utf8),
        TEST(test_table),
        TEST(test_info),
        TEST(test_models),
        TEST(test_load_fails),
        TEST(test_load_again_when_file_changes),
        TEST(test_load_cancel),
        TEST(test_switch_when_idle),
        TEST(test_generate_request),
        TEST(test_generate_whole),
        TEST(test_generate_stream),
        TEST(test_generate_ends),
        TEST(test_generate_refused),
        TEST(test_cancel),
        TEST(test_too_large),
        TEST(test_text),
        TEST(test_answer_beyond_a_frame),
        TEST(test_stop),
    };

    return cmocka_run_group_tests_name("rpc", tests, NULL, NULL);
}
