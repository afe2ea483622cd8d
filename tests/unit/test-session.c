/* SPDX-License-Identifier: Apache-2.0 */

/* What a session says, and its bytes in a file. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/rpc.h"
#include "daemon/session.h"

static const struct chat_message messages[] = {
    { "system", "be brief" }, { "user", "one" },      { "assistant", "1" },
    { "developer", "count" }, { "user", "\xc3\xa4" }, { "assistant", "" },
};
enum { N = sizeof messages / sizeof messages[0] };

static struct session_state make(void) {
    struct session_state s = { .max_tokens = 77, .class = FAIR_BACKGROUND, .thinking = true };

    s.model = strdup("a-model");
    s.sample.has = SAMPLE_TEMPERATURE | SAMPLE_SEED | SAMPLE_TOP_K;
    s.sample.temperature = 0.7f;
    s.sample.top_k = 40;
    s.sample.seed = UINT64_MAX;
    assert_int_equal(session_state_add(&s, messages, N, NULL), 0);
    return s;
}

static void has_texts(const struct session_state *s, const char *want) {
    char got[256] = "";
    size_t n_byte = 0;

    for (size_t i = 0; i < s->n_msg; i++) {
        strcat(got, i ? "|" : "");
        strcat(got, s->msg[i].text);
        n_byte += sizeof s->msg[i] + strlen(s->msg[i].role) + strlen(s->msg[i].text);
    }
    assert_string_equal(got, want);
    assert_int_equal(s->n_byte, n_byte);
}

static void test_messages(void **state) {
    const struct chat_message bad[] = { { "user", "fine" }, { "robot", "no" } };
    struct session_state s = make();
    struct why why = { 0 };

    assert_int_equal(session_state_add(&s, bad, 2, &why), RPC_INVALID_ARGS);
    assert_non_null(strstr(why.text, "message 1: role \"robot\""));
    has_texts(&s, "be brief|one|1|count|\xc3\xa4|");
    session_state_drop(&s, 2);
    has_texts(&s, "be brief|count|\xc3\xa4|");
    session_state_drop(&s, 100);
    has_texts(&s, "be brief|count");
    session_state_cut(&s, 1);
    has_texts(&s, "be brief");
    session_state_deinit(&s);
}

static void test_bounds(void **state) {
    char *text = malloc(ENGINE_TEXT_MAX + 1);
    struct session_state s = make();
    struct chat_message big = { "user", text };

    memset(text, 'x', ENGINE_TEXT_MAX);
    text[ENGINE_TEXT_MAX] = '\0';
    assert_int_equal(session_state_add(&s, &big, 1, NULL), RPC_TOO_LARGE);
    text[ENGINE_TEXT_MAX / 2] = '\0';
    assert_int_equal(session_state_add(&s, &big, 1, NULL), 0);
    assert_int_equal(session_state_add(&s, &big, 1, NULL), RPC_TOO_LARGE);
    session_state_cut(&s, N);
    has_texts(&s, "be brief|one|1|count|\xc3\xa4|");
    big.text = "";
    while (s.n_msg < SESSION_MESSAGES_MAX)
        assert_int_equal(session_state_add(&s, &big, 1, NULL), 0);
    assert_int_equal(session_state_add(&s, &big, 1, NULL), RPC_TOO_LARGE);
    assert_int_equal(s.n_msg, SESSION_MESSAGES_MAX);

    free(text);
    session_state_deinit(&s);
}

static void test_copy(void **state) {
    struct session_state s = make(), copy;

    assert_int_equal(session_state_copy(&copy, &s), 0);
    session_state_deinit(&s);
    has_texts(&copy, "be brief|one|1|count|\xc3\xa4|");
    assert_string_equal(copy.model, "a-model");
    assert_int_equal(copy.max_tokens, 77);
    session_state_deinit(&copy);
}

static void test_file(void **state) {
    struct session_state s = make(), back;
    struct session_blob blob;
    struct why why = { 0 };

    assert_int_equal(session_pack(&s, &blob), 0);
    assert_int_equal(session_unpack(blob.p, blob.n, &back, &why), 0);
    has_texts(&back, "be brief|one|1|count|\xc3\xa4|");
    assert_string_equal(back.msg[3].role, "developer");
    assert_string_equal(back.model, s.model);
    assert_true(back.thinking);
    assert_int_equal(back.class, s.class);
    assert_int_equal(back.max_tokens, 77);
    assert_int_equal(back.sample.has, s.sample.has);
    assert_true(back.sample.temperature == s.sample.temperature);
    assert_int_equal(back.sample.top_k, 40);
    assert_int_equal(back.sample.seed, UINT64_MAX);
    session_state_deinit(&back);

    /* Any byte that is not what was written, and any length that is not the whole. */
    for (size_t i = 0; i < blob.n; i++) {
        char *part = malloc(i + 1); /* so that a sanitizer sees a step past the end */

        memcpy(part, blob.p, i);
        assert_int_equal(session_unpack(part, i, &back, &why), RPC_CORRUPT);
        free(part);
        blob.p[i] ^= 1;
        assert_int_equal(session_unpack(blob.p, blob.n, &back, &why), RPC_CORRUPT);
        assert_non_null(strstr(why.text, "saved"));
        blob.p[i] ^= 1;
    }
    free(blob.p);
    session_state_deinit(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
