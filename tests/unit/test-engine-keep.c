/* SPDX-License-Identifier: Apache-2.0 */

/* What the engine keeps of prompts and answers, from its API alone: who finds it, what a next
 * turn evaluates, and files of it. The first argument is a small random model, the second one with
 * a context for long chats. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/kern/attn.h"
#include "tests/unit/engine-rig.h"

enum { N_LONG = 8192, N_BLOCK = KERN_KV_BLOCK, N_BATCH = 64 /* rows of a step */ };

static const char *long_path;

static struct engine *open_keeping(const char *path, uint32_t n_ctx, uint64_t prefix_bytes) {
    struct engine_options opt = { .path = path,
                                  .n_ctx = n_ctx,
                                  .n_seq = 2,
                                  .n_batch = N_BATCH,
                                  .prefix_bytes = prefix_bytes,
                                  .kv_fmt = QUANT_F16 };

    return start_loaded(&opt);
}

static struct engine_request prompt_of(uint32_t uid, size_t n) {
    struct engine_request q = long_prompt(n, 6);

    q.who.uid = uid;
    return q;
}

/* Who has the prompt evaluates one token and can tell it; who has not can tell nothing, be it there
 * for others or not. */
static void test_users_apart(void **state) {
    AUTO(engine_free) struct engine *e = open_keeping(model_path, N_CTX, UINT64_MAX);
    struct engine_request q = prompt_of(1, 640);
    struct seen first, again, other;
    struct engine_status st;

    atomic_store(&slow_ms, 10); /* a step; 640 tokens are 10 steps */
    run(e, &q, &first);
    run(e, &q, &again);
    q.who.uid = 2;
    run(e, &q, &other);
    script_clear();
    assert_int_equal(first.result.n_cached, 0);
    assert_int_equal(again.result.n_cached, 639);
    assert_int_equal(other.result.n_cached, 0);
    assert_true(first.result.prefill_usec >= 100000);
    assert_true(other.result.prefill_usec >= 100000);
    assert_true(again.result.prefill_usec < first.result.prefill_usec / 2);
    assert_string_equal(first.text, again.text);
    assert_string_equal(first.text, other.text);
    engine_status(e, &st);
    assert_int_equal(st.n_hit, 1);
    assert_int_equal(st.n_saved, 639);
    assert_int_equal(st.n_prompt_token, 2 * 640 + 1);
    assert_true(st.n_kept >= 2 && st.kv_kept > 0 && st.n_public == 0);
}

/* What is public all find, and it alone. */
static void test_public(void **state) {
    AUTO(engine_free) struct engine *e = open_keeping(model_path, N_CTX, UINT64_MAX);
    struct chat_message msg[2] = { { "system", "answer the question about the kernel" } };
    struct engine_request q = { .kind = ENGINE_GENERATE,
                                .msg = msg,
                                .n_msg = 1,
                                .no_generation = true,
                                .prefill_only = true,
                                .public = true };
    struct engine_status st;
    uint32_t n_public;
    struct seen s;

    run(e, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_int_equal(s.result.n_token, 0);
    n_public = s.result.n_prompt;
    engine_status(e, &st);
    assert_int_equal(st.n_public, 1);
    q = (struct engine_request){ .kind = ENGINE_GENERATE, .msg = msg, .n_msg = 2, .max_tokens = 4 };
    msg[1] = (struct chat_message){ "user", "hello world" };
    for (uint32_t uid = 1; uid < 4; uid++) {
        q.who.uid = uid;
        run(e, &q, &s);
        assert_int_equal(s.result.n_cached, n_public);
    }
}

/* ---- chats ---- */

static uint32_t n_rendered(struct engine *e, const struct engine_request *chat) {
    struct engine_request q = *chat;
    struct seen s;

    q.kind = ENGINE_RENDER;
    q.no_generation = true;
    q.max_tokens = 0;
    memset(&s, 0, sizeof s);
    for (uint64_t job = submit(e, &q); !s.done;) {
        struct engine_event ev;

        assert_true(next(e, &ev, PATIENCE_MS));
        if (ev.job == job && ev.kind == ENGINE_DONE) {
            s.done = true;
            s.result = *ev.result;
        }
    }
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    return (uint32_t)s.result.n_tok;
}

/* As run(), alone. Return: steps up to the first token; each further token is one more. */
static uint32_t run_first(struct engine *e, const struct engine_request *q, struct seen *s) {
    uint32_t before = atomic_load(&n_step);

    run(e, q, s);
    assert_true(s->result.n_token > 0);
    return atomic_load(&n_step) - before - (s->result.n_token - 1);
}

static uint32_t n_steps(uint32_t n_row) {
    return (n_row + N_BATCH - 1) / N_BATCH;
}

/* The turns of a long chat: each evaluates the last reply, as the history has it, and what is new,
 * and no more than one block besides; the first token comes within two steps of what that takes. */
static void test_chat(void **state) {
    AUTO(engine_free) struct engine *e = open_keeping(long_path, N_LONG, UINT64_MAX);
    AUTO(engine_free) struct engine *bare = open_keeping(long_path, N_LONG, 0);
    static char said[3][8192], words[40000];
    struct chat_message msg[6] = { { "system", "answer the question" }, { "user", words } };
    struct engine_request q = { .kind = ENGINE_GENERATE,
                                .msg = msg,
                                .max_tokens = 90,
                                .ignore_end = true,
                                .who.uid = 7,
                                .sample = { .has = SAMPLE_TEMPERATURE } };
    uint32_t n_before = 0;

    for (int i = 0; i < 4000; i++)
        strcat(words + 6 * i, i % 3 ? "hello " : "world ");
    for (uint32_t turn = 0; turn < 3; turn++) {
        static struct seen s, want;
        uint32_t n_new, n_all, n_eval, n_first;

        q.n_msg = 2 + 2 * turn;
        n_first = run_first(e, &q, &s);
        run(bare, &q, &want);
        assert_string_equal(s.text, want.text);
        assert_int_equal(s.result.n_prompt, want.result.n_prompt);
        n_all = s.result.n_prompt;
        n_eval = n_all - s.result.n_cached;
        n_new = n_all - n_before;
        assert_int_equal(n_first, n_steps(n_eval));
        if (turn == 0)
            assert_true(n_all > 4000);
        else if (n_eval > n_new + N_BLOCK || n_first > n_steps(n_new) + 2)
            fail_msg(
                "turn %u: %u tokens evaluated, %u are new; the first token came after %u steps",
                turn, n_eval, n_new, n_first);
        n_before = n_rendered(e, &q);
        snprintf(said[turn], sizeof said[turn], "%s", s.text);
        if (turn < 2) {
            msg[q.n_msg] = (struct chat_message){ "assistant", said[turn] };
            msg[q.n_msg + 1] = (struct chat_message){ "user", "what about the memory" };
        }
    }
}

/* Another chat with the same instructions has those. */
static void test_instructions(void **state) {
    AUTO(engine_free) struct engine *e = open_keeping(long_path, N_LONG, UINT64_MAX);
    static char words[8000];
    struct chat_message msg[2] = { { "system", words }, { "user", words } };
    struct engine_request q = { .kind = ENGINE_GENERATE, .msg = msg, .n_msg = 2, .max_tokens = 4 };
    uint32_t n_system;
    struct seen s;

    for (int i = 0; i < 1000; i++)
        strcat(words + 6 * i, i % 3 ? "hello " : "world ");
    run(e, &q, &s);
    q.n_msg = 1;
    n_system = n_rendered(e, &q);
    q.n_msg = 2;
    msg[1].text = "question";
    run(e, &q, &s);
    assert_in_range(s.result.n_cached, n_system, n_system + 2);
}

/* ---- files ---- */

static int save(struct engine *e, uint32_t uid, size_t n) {
    struct engine_request q = prompt_of(uid, n);
    int fd = memfd_create("keep", MFD_CLOEXEC);
    struct seen s;

    q.kind = ENGINE_SAVE;
    q.fd = fd;
    run(e, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_int_equal(s.result.n_prompt, n);
    return fd;
}

static enum engine_end restore(struct engine *e, uint32_t uid, int fd, struct seen *s) {
    struct engine_request q = { .kind = ENGINE_RESTORE, .fd = fd, .who.uid = uid };

    run(e, &q, s);
    return s->result.end;
}

/* Another engine goes on from the file after one step, and says the same. */
static void test_restore(void **state) {
    AUTO(engine_free) struct engine *a = open_keeping(model_path, N_CTX, UINT64_MAX);
    AUTO(engine_free) struct engine *b = open_keeping(model_path, N_CTX, UINT64_MAX);
    struct engine_request q = prompt_of(1, 700);
    AUTO(close) int fd = save(a, 1, 700);
    struct seen want, s;
    struct engine_status st;

    assert_int_equal(restore(b, 1, fd, &s), ENGINE_END_STOP);
    assert_int_equal(s.result.n_prompt, 700);
    assert_int_equal(s.result.n_cached, 700);
    engine_status(b, &st);
    assert_int_equal(st.n_prompt_token, 0);
    q = prompt_of(1, 740);
    q.max_tokens = 60;
    run(a, &q, &want);
    run(b, &q, &s);
    assert_int_equal(want.result.n_cached, 700);
    assert_int_equal(s.result.n_cached, 700);
    assert_string_equal(s.text, want.text);
    q.who.uid = 2; /* nothing of it is theirs */
    run(b, &q, &s);
    assert_int_equal(s.result.n_cached, 0);
    assert_string_equal(s.text, want.text);
}

/* A file of somebody else, of another model or damaged: refused with a sentence, and nothing of it
 * is kept. */
static void test_restore_refused(void **state) {
    AUTO(engine_free) struct engine *a = open_keeping(model_path, N_CTX, UINT64_MAX);
    AUTO(engine_free) struct engine *b = open_keeping(long_path, N_CTX, UINT64_MAX);
    struct engine_request q = prompt_of(1, 300);
    AUTO(close) int fd = save(a, 1, 300);
    struct engine_status st;
    struct seen s;
    struct stat sb;
    uint8_t byte;

    assert_int_equal(restore(a, 2, fd, &s), ENGINE_END_CORRUPT);
    assert_non_null(strstr(s.result.why.text, "owner"));
    assert_int_equal(restore(b, 1, fd, &s), ENGINE_END_CORRUPT);
    assert_non_null(strstr(s.result.why.text, "model"));
    assert_int_equal(fstat(fd, &sb), 0);
    assert_int_equal(pread(fd, &byte, 1, sb.st_size / 2), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, sb.st_size / 2), 1);
    engine_free(take(b));
    b = open_keeping(model_path, N_CTX, UINT64_MAX);
    assert_int_equal(restore(b, 1, fd, &s), ENGINE_END_CORRUPT);
    assert_non_null(strstr(s.result.why.text, "damaged"));
    engine_status(b, &st);
    assert_int_equal(st.n_kept, 0);
    run(b, &q, &s);
    assert_int_equal(s.result.n_cached, 0);
    q = (struct engine_request){ .kind = ENGINE_RESTORE, .fd = -1 };
    assert_int_equal(engine_submit(b, &q, &(uint64_t){ 0 }, NULL, NULL), -EBADF);
}

/* Saving and restoring beside streams, and cancelled: nothing is stuck. */
static void test_files_beside(void **state) {
    AUTO(engine_free) struct engine *e = open_keeping(model_path, N_CTX, UINT64_MAX);
    AUTO(close) int fd = save(e, 1, 600);
    struct engine_request q = prompt_of(1, 20),
                          r = { .kind = ENGINE_RESTORE, .fd = fd, .who.uid = 1 };
    uint64_t job[6];
    struct seen s;

    q.max_tokens = 200;
    for (int i = 0; i < 6; i++)
        job[i] = submit(e, i % 2 ? &r : &q);
    engine_cancel(e, job[3]);
    for (int i = 0; i < 6; i++) {
        collect(e, job[i], &s);
        if (i != 3)
            assert_true(s.result.end == ENGINE_END_STOP || s.result.end == ENGINE_END_LENGTH);
    }
}

static int setup(void **state) {
    shared = open_keeping(model_path, N_CTX, 0);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_users_apart),  cmocka_unit_test(test_public),
        cmocka_unit_test(test_chat),         cmocka_unit_test(test_instructions),
        cmocka_unit_test(test_restore),      cmocka_unit_test(test_restore_refused),
        cmocka_unit_test(test_files_beside),
    };

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL LONG-MODEL\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    long_path = argv[2];
    return cmocka_run_group_tests(tests, setup, rig_teardown_shared);
}
