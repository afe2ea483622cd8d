/* SPDX-License-Identifier: Apache-2.0 */

/* The engine from its API alone, on a small random model given as argument. model_step() is
 * wrapped: a test may make steps slow, and may script which tokens come out. */

#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <cmocka.h>

#include "tests/unit/engine-rig.h"

/* ---- loading ---- */

static void test_load(void **state) {
    AUTO(engine_free) struct engine *e = start(model_path, 0);
    struct engine_request q = { .kind = ENGINE_TOKENIZE, .text = "ab", .n_text = 2 };
    struct engine_status st;
    struct engine_event ev;
    struct seen s;
    struct stat sb;
    uint64_t job = submit(e, &q); /* waits for the load */

    assert_true(next(e, &ev, PATIENCE_MS));
    assert_int_equal(ev.kind, ENGINE_PROGRESS); /* nothing of the job before the load is over */
    assert_int_equal(ev.job, 0);
    assert_int_equal(stat(model_path, &sb), 0);
    assert_int_equal(ev.total, sb.st_size);
    collect(e, 0, &s);
    assert_true(s.loaded);
    assert_non_null(engine_info(e));
    assert_int_equal(engine_info(e)->n_ctx, N_CTX);
    assert_int_equal(vocab_n(engine_vocab(e)), engine_info(e)->n_vocab);
    assert_true(engine_defaults(e)->has & SAMPLE_TOP_K);
    engine_status(e, &st);
    assert_int_equal(st.state, ENGINE_READY);
    assert_int_equal(st.bytes_done, sb.st_size);
    assert_int_equal(st.bytes_total, sb.st_size);
    assert_true(st.kv_bytes > 0 && st.n_worker > 0 && st.tier);
    collect(e, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_false(engine_next(e, &ev));
}

/* The context is what the bound on keys and values leaves. */
static void test_load_bound(void **state) {
    struct engine_options opt = { .path = model_path, .n_ctx = N_CTX, .kv_fmt = QUANT_F16 };
    AUTO(engine_free) struct engine *e = NULL;
    struct engine_status st;
    struct seen s;

    engine_status(shared, &st);
    opt.kv_bytes = st.kv_bytes / 4; /* f16 of half the positions, or less where layers slide */
    assert_int_equal(engine_new(&e, &opt, NULL), 0);
    collect(e, 0, &s);
    assert_true(s.loaded);
    engine_status(e, &st);
    assert_true(st.kv_bytes <= opt.kv_bytes);
    assert_in_range(engine_info(e)->n_ctx, 1, N_CTX - 1);
}

static void load_fails(const char *path) {
    AUTO(engine_free) struct engine *e = start(path, 4);
    struct engine_request q = raw("ab", 4);
    uint64_t job[3];
    struct seen s;

    for (int i = 0; i < 2; i++)
        job[i] = submit(e, &q);
    q.kind = ENGINE_TOKENIZE;
    job[2] = submit(e, &q);
    collect(e, 0, &s);
    assert_true(s.failed);
    assert_true(strlen(s.why) > 0);
    for (int i = 0; i < 3; i++) {
        collect(e, job[i], &s);
        assert_int_equal(s.result.end, ENGINE_END_MODEL);
        assert_true(strlen(s.result.why.text) > 0);
    }
    run(e, &q, &s); /* later ones too */
    assert_int_equal(s.result.end, ENGINE_END_MODEL);
    assert_null(engine_info(e));
}

static void test_load_fails(void **state) {
    char path[] = "/tmp/test-engine-XXXXXX";
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(write(fd, "garbage ", 8), 8);
    close(fd);
    load_fails(path);
    unlink(path);
    load_fails(path); /* gone */
}

/* Submitted while loading, then ended: announced at once, or with the load; never twice. */
static void test_end_while_loading(void **state) {
    AUTO(engine_free) struct engine *e = start(model_path, 4);
    struct engine_request q = raw("ab", 4);
    uint64_t cancelled = submit(e, &q), late;
    struct engine_event ev;
    struct seen s;

    q.deadline_usec = 1; /* long past */
    late = submit(e, &q);
    engine_cancel(e, cancelled);
    engine_cancel(e, cancelled);
    collect(e, cancelled, &s);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
    engine_cancel(e, cancelled);
    q.deadline_usec = 0;
    collect(e, late, &s);
    assert_int_equal(s.result.end, ENGINE_END_DEADLINE);
    run(e, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    assert_false(next(e, &ev, 20));
}

/* ---- generating ---- */

static void test_generate(void **state) {
    struct engine_request q = raw("hello there", 24);
    struct engine_status before, after;
    struct seen s;

    script_clear();
    q.userdata = &q;
    engine_status(shared, &before);
    run(shared, &q, &s);
    engine_status(shared, &after);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    assert_int_equal(s.result.n_token, 24);
    assert_int_equal(s.result.stop_index, -1);
    assert_true(s.result.n_prompt > 1);
    assert_int_equal(s.result.n_cached, 0);
    assert_true(s.result.prefill_usec > 0 && s.result.decode_usec > 0);
    assert_int_equal(after.n_token - before.n_token, 24);
    assert_int_equal(after.n_prompt_token - before.n_prompt_token, s.result.n_prompt);
    assert_true(after.step_usec > 0);
    assert_int_equal(after.n_running, 0);
}

static void draw(uint64_t seed, bool has_seed, struct seen *s) {
    struct engine_request q = raw("hello", 48);

    q.sample = (struct sample_params){
        .has = SAMPLE_TEMPERATURE | SAMPLE_TOP_K | SAMPLE_TOP_P | (has_seed ? SAMPLE_SEED : 0u),
        .temperature = 1.5f,
        .top_p = 1.0f,
        .seed = seed,
    };
    q.logprobs = true;
    run(shared, &q, s);
    assert_int_equal(s->result.n_token, 48);
}

static bool same(const struct seen *a, const struct seen *b) {
    if (a->n_token != b->n_token)
        return false;
    for (uint32_t i = 0; i < a->n_token; i++)
        if (a->token[i].id != b->token[i].id || a->token[i].logprob != b->token[i].logprob)
            return false;
    return true;
}

static void test_deterministic(void **state) {
    static struct seen a, b, c, d;

    script_clear();
    draw(7, true, &a);
    draw(7, true, &b);
    draw(8, true, &c);
    assert_int_equal(a.result.seed, 7);
    assert_true(a.n_token > 0);
    assert_true(same(&a, &b));
    assert_false(same(&a, &c));

    draw(0, false, &c);
    draw(0, false, &d);
    assert_true(c.result.seed != d.result.seed);
    draw(c.result.seed, true, &d);
    assert_true(same(&c, &d));
}

static void test_logprobs(void **state) {
    struct engine_request q = raw("hello", 8);
    struct seen s;

    script_text("abcdefgh");
    q.logprobs = true;
    for (q.n_top = 0; q.n_top <= 3; q.n_top += 3) {
        script_at = 0;
        run(shared, &q, &s);
        assert_string_equal(s.text, "abcdefgh");
        assert_int_equal(s.n_token, 8);
        for (uint32_t i = 0; i < 8; i++) {
            assert_int_equal(s.token[i].id, script[i]);
            assert_int_equal(s.token[i].n_top, q.n_top);
            assert_true(fabsf(s.token[i].logprob) < 1e-6f);
        }
    }
    q.logprobs = false;
    script_at = 0;
    run(shared, &q, &s);
    assert_string_equal(s.text, "abcdefgh");
    assert_int_equal(s.n_token, 0);
}

static void test_end_token(void **state) {
    struct engine_request q = raw("hello", 8);
    struct seen s;

    script_text("ab");
    script[n_script++] = vocab_eos(engine_vocab(shared));
    q.ignore_end = false;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_int_equal(s.result.stop_index, -1);
    assert_int_equal(s.result.n_token, 3);
    assert_string_equal(s.text, "ab");

    q.ignore_end = true;
    script_at = 0;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    assert_string_equal(s.text, "ababab");
}

static void stop_case(const char *text, const char *const *stop, size_t n_stop, const char *want,
                      int index) {
    struct engine_request q = raw("hello", (uint32_t)strlen(text));
    static struct seen s;

    q.stop = stop;
    q.n_stop = n_stop;
    for (int logprobs = 0; logprobs < 2; logprobs++) {
        script_text(text);
        q.logprobs = logprobs;
        run(shared, &q, &s);
        assert_string_equal(s.text, want);
        assert_int_equal(s.result.stop_index, index);
        assert_int_equal(s.result.end, index < 0 ? ENGINE_END_LENGTH : ENGINE_END_STOP);
        if (logprobs)
            assert_int_equal(s.n_token, s.result.n_token);
    }
}

/* Stop strings over token borders: one token a character. */
static void test_stop(void **state) {
    static const char *const one[] = { "stop" }, *const two[] = { "xyz", "b c" };

    stop_case("ab stop cd", one, 1, "ab ", 0);
    stop_case("ab sto", one, 1, "ab sto", -1); /* held back until the end */
    stop_case("sstostop", one, 1, "ssto", 0);
    stop_case("stop", one, 1, "", 0);
    stop_case("a b c xyz", two, 2, "a ", 1);
    stop_case("a xyb c", two, 2, "a xy", 1);
}

/* Thoughts and markers, of a chat answer and of a raw one. */
static void test_channels(void **state) {
    static const struct chat_message msg = { "user", "hello" };
    static const char *const stop[] = { "xy" };
    struct engine_request q = raw("", 16);
    struct seen s;

    script_clear();
    script_add("<|channel>");
    for (const char *c = "thought"; *c; c++)
        script_add((char[]){ *c, 0 });
    script_add("\n");
    script_add("x");
    script_add("y");
    script_add("<channel|>");
    script_add("a");
    script_add("x");
    script_add("z");
    script_add("<turn|>");
    q.text = NULL;
    q.msg = &msg;
    q.n_msg = 1;
    q.ignore_end = false;
    q.stop = stop; /* not looked for in thoughts */
    q.n_stop = 1;
    run(shared, &q, &s);
    assert_string_equal(s.thought, "xy");
    assert_string_equal(s.text, "axz");
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_int_equal(s.result.stop_index, -1);

    script_at = 0;
    q.msg = NULL;
    q.n_msg = 0;
    q.text = "hello";
    q.n_text = 5;
    q.n_stop = 0;
    run(shared, &q, &s);
    assert_string_equal(s.thought, "");
    assert_string_equal(s.text, "<|channel>thought\nxy<channel|>axz");
}

static void test_context(void **state) {
    struct engine_request q = long_prompt(N_CTX, 8);
    struct engine_status before, after;
    struct seen s;

    script_clear();
    engine_status(shared, &before);
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_CONTEXT);
    assert_int_equal(s.result.n_prompt, N_CTX);
    assert_int_equal(s.result.n_available, N_CTX - 1);
    assert_int_equal(s.result.n_token, 0);
    engine_status(shared, &after);
    assert_int_equal(after.n_prompt_token, before.n_prompt_token);

    q = long_prompt(N_CTX - 1, 8); /* room for one */
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    assert_int_equal(s.result.n_token, 1);
    q = long_prompt(N_CTX - 20, 0); /* all the context holds */
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    assert_int_equal(s.result.n_token, 20);
}

/* ---- control ---- */

static void test_cancel_prefill(void **state) {
    struct engine_request q = long_prompt(N_CTX - 1, 8);
    uint64_t job, asked;
    struct seen s;

    script_clear();
    atomic_store(&slow_ms, 100);
    job = submit(shared, &q);
    await(shared, job, ENGINE_PROGRESS);
    atomic_store(&slow_ms, 30000); /* the step after this one would last */
    sleep_ms(300);
    asked = now_usec();
    engine_cancel(shared, job);
    collect(shared, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
    assert_int_equal(s.result.n_token, 0);
    assert_true(s.done_at - asked < 5000000);
    script_clear();
    q = raw("hello", 4); /* and the next one runs as if nothing had been */
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
}

static void test_cancel_decode(void **state) {
    struct engine_request q = raw("hello", 0);
    struct seen s;
    uint64_t job;

    script_text("abc");
    atomic_store(&slow_ms, 10);
    job = submit(shared, &q);
    await(shared, job, ENGINE_TEXT);
    engine_cancel(shared, job);
    collect(shared, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
    assert_in_range(s.result.n_token, 1, N_CTX / 2);
    script_clear();
}

static void test_deadline(void **state) {
    struct engine_request q = raw("hello", 0), wait = raw("hello", 4);
    uint64_t job, waiting;
    struct seen s;

    script_text("abc"); /* between steps */
    atomic_store(&slow_ms, 10);
    q.deadline_usec = now_usec() + 300000;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_DEADLINE);
    assert_true(s.done_at >= q.deadline_usec && s.done_at < q.deadline_usec + 5000000);
    assert_true(s.n_text > 0);

    atomic_store(&slow_ms, 30000); /* in the middle of one, and in the queue */
    q.deadline_usec = now_usec() + 400000;
    wait.deadline_usec = now_usec() + 100000;
    job = submit(shared, &q);
    waiting = submit(shared, &wait);
    collect(shared, waiting, &s);
    assert_int_equal(s.result.end, ENGINE_END_DEADLINE);
    assert_int_equal(s.result.prefill_usec, 0);
    collect(shared, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_DEADLINE);
    assert_true(s.done_at < q.deadline_usec + 5000000);
    script_clear();
}

static void test_pause(void **state) {
    struct engine_request q = raw("hello", 40);
    struct engine_status st;
    struct engine_event ev;
    struct seen s;
    uint64_t job, n;

    script_text("a");
    atomic_store(&slow_ms, 10);
    job = submit(shared, &q);
    await(shared, job, ENGINE_TEXT);
    engine_pause(shared, job, true);
    do { /* until it stands still, which an ended job would too: hence no event but text */
        engine_status(shared, &st);
        n = st.n_token;
        sleep_ms(200);
        while (engine_next(shared, &ev))
            assert_int_equal(ev.kind, ENGINE_TEXT);
        engine_status(shared, &st);
    } while (st.n_token != n);
    assert_int_equal(st.n_running, 1);
    engine_pause(shared, job, false);
    collect(shared, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    assert_int_equal(s.result.n_token, 40);
    assert_true(s.result.decode_usec < 20000000);

    job = submit(shared, &q); /* held, a job can still be cancelled, and its deadline counts */
    engine_pause(shared, job, true);
    sleep_ms(50);
    engine_cancel(shared, job);
    collect(shared, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
    q.deadline_usec = now_usec() + 100000;
    job = submit(shared, &q);
    engine_pause(shared, job, true);
    collect(shared, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_DEADLINE);
    script_clear();
}

static void test_queue(void **state) {
    struct engine_request q = raw("hello", 0), t = raw("hello", 4);
    struct engine_queue queue;
    struct engine_status st;
    struct engine_job at;
    struct seen s;
    uint64_t job[3], no;

    script_text("abc");
    atomic_store(&slow_ms, 50);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(engine_submit(shared, i == 0 ? &q : &t, &job[i], &queue, NULL), 0);
        assert_int_equal(queue.position, i);
    }
    assert_int_equal(engine_submit(shared, &t, &no, &queue, NULL), ENGINE_BUSY);
    assert_int_equal(queue.position, 3);
    assert_in_range(queue.retry_usec, 1, 3600000000u);
    await(shared, job[0], ENGINE_TEXT);
    engine_status(shared, &st);
    assert_int_equal(st.n_running, 1);
    assert_int_equal(st.n_queued, 2);
    assert_int_equal(st.n_queue_max, 2);
    assert_true(engine_job(shared, job[0], &at));
    assert_true(at.n_prompt > 1 && at.n_done >= at.n_prompt && at.n_token >= 1);
    assert_int_equal(at.kv_bytes, st.kv_room);
    assert_true(engine_job(shared, job[1], &at));
    assert_true(at.n_done == 0 && at.n_token == 0 && at.kv_bytes == 0);
    assert_false(engine_job(shared, 0, &at));

    t.kind = ENGINE_TOKENIZE; /* waits for no generation */
    run(shared, &t, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    engine_cancel(shared, job[2]); /* nor does the end of one that waits */
    collect(shared, job[2], &s);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
    assert_int_equal(s.result.n_token, 0);
    engine_cancel(shared, job[0]);
    collect(shared, job[0], &s);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
    collect(shared, job[1], &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    assert_true(s.result.queue_usec > 0);
    assert_in_range(s.result.kv_bytes, 1, st.kv_room);
    script_clear();
}

/* Work of the background leaves a quarter of the places, one of the two here. */
static void test_queue_of_background(void **state) {
    struct engine_request back = raw("hello", 0), t = raw("hello", 4);
    struct engine_queue queue;
    uint64_t job[3], no;
    struct why why;
    struct seen s;

    script_text("abc");
    atomic_store(&slow_ms, 50);
    back.who.class = FAIR_BACKGROUND;
    assert_int_equal(engine_submit(shared, &back, &job[0], &queue, NULL), 0);
    await(shared, job[0], ENGINE_TEXT);
    assert_int_equal(engine_submit(shared, &back, &job[1], &queue, NULL), 0);
    assert_int_equal(engine_submit(shared, &back, &no, &queue, &why), ENGINE_BUSY);
    assert_string_equal(why.text, "2 requests of the background are waiting");
    assert_int_equal(queue.position, 2);
    assert_int_equal(engine_submit(shared, &t, &job[2], &queue, NULL), 0);
    assert_int_equal(engine_submit(shared, &t, &no, &queue, NULL), ENGINE_BUSY);
    back.kind = ENGINE_TOKENIZE; /* those are counted apart */
    run(shared, &back, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    for (int i = 0; i < 2; i++) {
        engine_cancel(shared, job[i]);
        collect(shared, job[i], &s);
    }
    collect(shared, job[2], &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    script_clear();
}

/* The daemon does not drain: the engine waits, and nothing is lost or out of order. */
static void test_slow_daemon(void **state) {
    struct engine_request q = raw("hello", 900);
    struct engine_status before, after;
    static struct seen s;
    uint64_t job;

    script_text("abcdefghijklmnopqrstuvwxyz");
    q.logprobs = true;
    q.n_top = 2;
    engine_status(shared, &before);
    job = submit(shared, &q);
    sleep_ms(1500);
    engine_status(shared, &after);
    assert_true(after.n_token - before.n_token < 400); /* stuck at the size of the ring */
    collect(shared, job, &s);
    assert_int_equal(s.result.n_token, 900);
    assert_int_equal(s.n_token, 900);
    for (uint32_t i = 0; i < 900; i++)
        assert_int_equal(s.text[i], 'a' + i % 26);
    script_clear();
}

/* ---- texts ---- */

static void test_text(void **state) {
    static const char text[] = "ab cd\n\xc3\xa9\xf0\x9f\x98\x80 <bos>";
    struct engine_request q = { .kind = ENGINE_TOKENIZE, .text = text, .n_text = strlen(text) };
    const struct vocab *v = engine_vocab(shared);
    static struct seen s, r;

    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_int_equal(s.tok[0], vocab_bos(v));
    q = (struct engine_request){ .kind = ENGINE_DETOKENIZE, .tok = s.tok, .n_tok = s.result.n_tok };
    run(shared, &q, &r);
    assert_int_equal(r.result.n_text, strlen(text));
    assert_string_equal(r.out, text);
    q.special = true;
    run(shared, &q, &r);
    assert_memory_equal(r.out, "<bos>ab", 7);

    s.tok[1] = (tok_t)vocab_n(v);
    run(shared, &q, &r);
    assert_int_equal(r.result.end, ENGINE_END_INVALID);
    assert_true(strlen(r.result.why.text) > 0);

    q = (struct engine_request){ .kind = ENGINE_TOKENIZE, .no_bos = true };
    run(shared, &q, &r);
    assert_int_equal(r.result.end, ENGINE_END_STOP);
    assert_int_equal(r.result.n_tok, 0);
    q = (struct engine_request){ .kind = ENGINE_DETOKENIZE };
    run(shared, &q, &r);
    assert_int_equal(r.result.n_text, 0);
}

static void test_render(void **state) {
    static const struct chat_message msg[] = { { "user", "hello <turn|>" } },
                                     bad[] = { { "emperor", "hello" } };
    struct engine_request q = { .kind = ENGINE_RENDER, .msg = msg, .n_msg = 1 };
    const struct vocab *v = engine_vocab(shared);
    static struct seen s;
    uint32_t n_end = 0;

    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_non_null(strstr(s.out, "<|turn>user\nhello <turn|>"));
    assert_int_equal(s.tok[0], vocab_bos(v));
    for (size_t i = 0; i < s.result.n_tok; i++)
        n_end += s.tok[i] == vocab_find(v, "<turn|>", 7);
    assert_int_equal(n_end, 1); /* the turn's own; what the message says is text */

    q.msg = bad;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_INVALID);
    assert_non_null(strstr(s.result.why.text, "emperor"));
    q.kind = ENGINE_GENERATE;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_INVALID);
}

static void refused(const struct engine_request *q, int want) {
    struct why why = { "" };
    uint64_t job = 0;

    assert_int_equal(engine_submit(shared, q, &job, NULL, &why), want);
    assert_true(strlen(why.text) > 0);
}

static void test_refused(void **state) {
    static const char *const bad_stop[] = { "", "\xff" };
    const char *many[ENGINE_STOP_MAX + 1];
    char *big = calloc(1, ENGINE_TEXT_MAX + 2);
    struct engine_request q = raw("a", 1);

    for (int i = 0; i < 2; i++) {
        q.stop = &bad_stop[i];
        q.n_stop = 1;
        refused(&q, ENGINE_BAD);
    }
    for (int i = 0; i <= ENGINE_STOP_MAX; i++)
        many[i] = "x";
    q.stop = many;
    q.n_stop = ENGINE_STOP_MAX + 1;
    refused(&q, ENGINE_BAD);
    q.n_stop = 0;
    q.n_top = SAMPLE_TOP_MAX + 1;
    refused(&q, ENGINE_BAD);
    q.n_top = 0;
    q.sample.temperature = -1.0f;
    refused(&q, ENGINE_BAD);
    q.sample.temperature = 0.0f;
    q.tok = &(tok_t){ 1 };
    q.n_tok = 1;
    refused(&q, ENGINE_BAD); /* a text or tokens */
    q.tok = NULL;
    q.n_tok = 0;
    memset(big, 'a', ENGINE_TEXT_MAX + 1);
    q.text = big;
    q.n_text = ENGINE_TEXT_MAX + 1;
    refused(&q, ENGINE_TOO_LARGE);
    free(big);
}

static void test_invalid(void **state) {
    struct sample_bias bias = { .id = 1 << 30, .bias = 1.0f };
    struct engine_request q = raw("", 1);
    struct seen s;

    q.no_bos = true;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_INVALID);
    assert_true(strlen(s.result.why.text) > 0);
    q.no_bos = false; /* <bos> alone is a prompt */
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_LENGTH);
    q.sample.bias = &bias;
    q.sample.n_bias = 1;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_INVALID);
    q = raw("", 1);
    q.text = NULL;
    q.tok = &(tok_t){ -1 };
    q.n_tok = 1;
    run(shared, &q, &s);
    assert_int_equal(s.result.end, ENGINE_END_INVALID);
}

/* ---- freeing ---- */

static void free_timed(struct engine *e) {
    uint64_t began = now_usec();

    engine_free(e);
    assert_true(now_usec() - began < 5000000);
}

static void test_free_busy(void **state) {
    struct engine_request q = raw("hello", 900), text = raw("hello", 0);
    struct engine *e;
    struct seen s;

    text.kind = ENGINE_TOKENIZE;
    free_timed(start(model_path, 1)); /* while it loads */

    e = start(model_path, 8); /* in the middle of a step, others waiting, events waiting */
    collect(e, 0, &s);
    script_clear();
    atomic_store(&slow_ms, 30000);
    for (int i = 0; i < 4; i++) {
        submit(e, &q);
        submit(e, &text);
    }
    sleep_ms(100);
    free_timed(e);

    e = start(model_path, 8); /* waiting for room in the ring */
    collect(e, 0, &s);
    script_text("abc");
    submit(e, &q);
    sleep_ms(800);
    free_timed(e);

    e = start(model_path, 8); /* on hold */
    collect(e, 0, &s);
    engine_pause(e, submit(e, &q), true);
    sleep_ms(50);
    free_timed(e);
    script_clear();
}

static void test_new_refused(void **state) {
    struct engine_options opt = { .path = "", .kv_fmt = QUANT_F16 };
    struct why why = { "" };
    struct engine *e = NULL;

    assert_true(engine_new(&e, &opt, &why) < 0);
    assert_true(strlen(why.text) > 0);
    opt.path = model_path;
    opt.kv_fmt = QUANT_Q4_0;
    assert_true(engine_new(&e, &opt, &why) < 0);
    assert_null(e);
    assert_null(engine_free(NULL));
}

static int setup(void **state) {
    struct seen s;

    shared = start(model_path, 2);
    collect(shared, 0, &s);
    return s.loaded ? 0 : -1;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load),
        cmocka_unit_test(test_load_bound),
        cmocka_unit_test(test_load_fails),
        cmocka_unit_test(test_end_while_loading),
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_end_token),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_channels),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_cancel_prefill),
        cmocka_unit_test(test_cancel_decode),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_pause),
        cmocka_unit_test(test_queue),
        cmocka_unit_test(test_queue_of_background),
        cmocka_unit_test(test_slow_daemon),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_render),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_free_busy),
        cmocka_unit_test(test_new_refused),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    return cmocka_run_group_tests(tests, setup, rig_teardown_shared);
}
