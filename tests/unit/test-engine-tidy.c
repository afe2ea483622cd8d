/* SPDX-License-Identifier: Apache-2.0 */

/* Memory, workers and signs of life of an engine, on a small random model given as argument. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include <sched.h>

#include "engine/base/mem.h"
#include "engine/kv/kvcache.h"
#include "tests/unit/engine-rig.h"

/* ---- what the engine thread does is counted ---- */

static atomic_uint n_trim, n_cool;
static _Atomic uint64_t n_left; /* bytes of the cache that cost memory after the last trim */

void __real_kvcache_trim(struct kvcache *kv);
void __wrap_kvcache_trim(struct kvcache *kv);
void __wrap_kvcache_trim(struct kvcache *kv) {
    __real_kvcache_trim(kv);
    atomic_store(&n_left, kvcache_n_touched(kv));
    atomic_fetch_add(&n_trim, 1);
}

void __real_mem_cool(const void *p, size_t size);
void __wrap_mem_cool(const void *p, size_t size);
void __wrap_mem_cool(const void *p, size_t size) {
    atomic_fetch_add(&n_cool, 1);
    __real_mem_cool(p, size);
}

/* VmLck of this process, bytes. */
static uint64_t locked_bytes(void) {
    unsigned long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/self/status", "re");

    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "VmLck: %lu kB", &kib) == 1)
            break;
    (void)fclose(f);
    return (uint64_t)kib * 1024;
}

static struct engine *start_two(void) {
    struct engine_options opt = { .path = model_path,
                                  .n_ctx = N_CTX,
                                  .n_batch = 16,
                                  .n_worker = 2,
                                  .kv_fmt = QUANT_F16,
                                  .prefix_bytes = UINT64_MAX };

    script_clear();
    shared = start_loaded(&opt);
    return shared;
}

static void await_idle(struct engine *e) {
    struct engine_status st;

    for (int i = 0; i < PATIENCE_MS; i++) {
        engine_status(e, &st);
        if (!st.busy)
            return;
        sleep_ms(1);
    }
    fail_msg("the engine is never idle");
}

/* A step in work: busy, and the count grows. Nothing to do, or all on hold: not busy. */
static void test_beat(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    struct engine_request q = raw("abc", 50);
    struct engine_status a, b;
    struct engine_event ev;
    uint64_t job;

    engine_status(e, &a);
    assert_true(a.n_beat > 0); /* loading was */
    await_idle(e);
    atomic_store(&slow_ms, 20);
    job = submit(e, &q);
    await(e, job, ENGINE_TEXT);
    engine_status(e, &a);
    assert_true(a.busy);
    sleep_ms(100);
    engine_status(e, &b);
    assert_true(b.busy);
    assert_true(b.n_beat > a.n_beat);

    engine_pause(e, job, true);
    await_idle(e);
    engine_status(e, &a);
    sleep_ms(60);
    engine_status(e, &b);
    assert_int_equal(b.n_beat, a.n_beat);
    atomic_store(&slow_ms, 0);
    engine_cancel(e, job);
    while (next(e, &ev, PATIENCE_MS) && ev.kind != ENGINE_DONE)
        ;
    await_idle(e);
}

/* Fewer workers, and more again, compute the same. */
static void test_limit(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    struct engine_request q = raw("once upon a time", 40);
    static const uint32_t limits[] = { 1, 2, 7, 0 }, n[] = { 1, 2, 2, 2 };
    static struct seen want, s;
    struct engine_status st;

    q.logprobs = true;
    run(e, &q, &want);
    for (size_t i = 0; i < 4; i++) {
        engine_limit(e, limits[i]);
        run(e, &q, &s);
        engine_status(e, &st);
        assert_int_equal(st.n_worker, n[i]);
        assert_string_equal(s.text, want.text);
        assert_int_equal(s.n_token, want.n_token);
        for (uint32_t t = 0; t < s.n_token; t++)
            assert_memory_equal(&s.token[t].logprob, &want.token[t].logprob,
                                sizeof s.token[t].logprob);
    }
}

static void test_usable(void **state) {
    int all = engine_usable();
    cpu_set_t old, one;

    assert_true(all >= 1);
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    CPU_ZERO(&one);
    for (size_t i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &old))
            CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(engine_usable(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
    assert_int_equal(engine_usable(), all);
}

static void await_count(atomic_uint *n, unsigned want) {
    for (int i = 0; i < PATIENCE_MS && atomic_load(n) != want; i++)
        sleep_ms(1);
    assert_int_equal(atomic_load(n), want);
}

/* Each is done once, also while nothing else is to do. Of experts nobody used yet all go, later
 * those that were used least. */
static void test_give_up(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    const struct model_info *info = engine_info(e);
    unsigned n_all = 3 * info->n_layer * info->n_expert; /* matrices of experts */
    struct engine_request q = raw("ab", 8);
    static struct seen before, after;

    engine_tidy(e, ENGINE_TIDY_COLD);
    await_count(&n_cool, n_all);
    run(e, &q, &before);
    await_idle(e);
    atomic_store(&n_trim, 0);
    atomic_store(&n_cool, 0);
    engine_tidy(e, ENGINE_TIDY_KV);
    await_count(&n_trim, 1);
    assert_int_equal(atomic_load(&n_cool), 0);
    engine_tidy(e, ENGINE_TIDY_COLD);
    await_idle(e);
    assert_in_range(atomic_load(&n_cool), 1, n_all - 3 * info->n_layer * info->n_expert_used);
    assert_int_equal(atomic_load(&n_trim), 1);
    run(e, &q, &after);
    assert_string_equal(after.text, before.text);
    assert_int_equal(atomic_load(&n_trim), 1);
}

/* What is kept of earlier prompts is given up, too, and then evaluated again. */
static void test_give_up_kept(void **state) {
    struct engine_options opt = { .path = model_path,
                                  .n_ctx = N_CTX,
                                  .n_batch = 16,
                                  .prefix_bytes = UINT64_MAX,
                                  .kv_fmt = QUANT_F16 };
    AUTO(engine_free) struct engine *e = shared = start_loaded(&opt);
    struct engine_request q = long_prompt(300, 4);
    static struct seen first, again, after;
    struct engine_status st;

    run(e, &q, &first);
    run(e, &q, &again);
    assert_int_equal(again.result.n_cached, 299);
    engine_status(e, &st);
    assert_true(st.kv_kept > 0 && st.n_kept > 0);
    atomic_store(&n_trim, 0);
    atomic_store(&n_left, UINT64_MAX);
    engine_tidy(e, ENGINE_TIDY_KV);
    await_count(&n_trim, 1);
    await_idle(e);
    assert_int_equal(atomic_load(&n_left), 0);
    engine_status(e, &st);
    assert_int_equal(st.kv_kept, 0);
    assert_int_equal(st.n_kept, 0);
    run(e, &q, &after);
    assert_int_equal(after.result.n_cached, 0);
    assert_string_equal(after.text, first.text);
}

static void await_lock(struct engine *e, bool want) {
    struct engine_status st;

    for (int i = 0; i < PATIENCE_MS; i++) {
        engine_status(e, &st);
        if (st.locked == want)
            return;
        sleep_ms(1);
    }
    fail_msg("locked: %d is wanted", want);
}

/* A sanitizer's mlock() does nothing, and says it did. */
static bool can_lock(void) {
    static char page[4096];
    uint64_t before = locked_bytes();
    bool grew = mlock(page, sizeof page) == 0 && locked_bytes() > before;

    (void)munlock(page, sizeof page);
    return grew;
}

static void test_lock(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    uint64_t before = locked_bytes();
    struct engine_status st;

    if (!engine_info(e)->pack_bytes || !can_lock())
        skip();
    engine_tidy(e, ENGINE_TIDY_UNLOCK | ENGINE_TIDY_KV); /* of what is not locked: nothing */
    await_idle(e);
    engine_tidy(e, ENGINE_TIDY_LOCK);
    await_idle(e);
    engine_status(e, &st);
    if (!st.locked) { /* RLIMIT_MEMLOCK */
        assert_int_equal(locked_bytes(), before);
        skip();
    }
    assert_true(locked_bytes() >= before + engine_info(e)->pack_bytes / 2);
    engine_tidy(e, ENGINE_TIDY_UNLOCK);
    await_lock(e, false);
    assert_int_equal(locked_bytes(), before);
    engine_tidy(e, ENGINE_TIDY_UNLOCK);
    engine_tidy(e, ENGINE_TIDY_LOCK); /* the later one counts */
    await_lock(e, true);
}

/* ---- jobs on hold ---- */

static void await_tokens(struct engine *e, uint64_t job) {
    struct engine_job at = { 0 };

    for (int i = 0; i < PATIENCE_MS && at.n_token < 3; i++) {
        assert_true(engine_job(e, job, &at));
        sleep_ms(1);
    }
    assert_in_range(at.n_token, 3, 150);
}

/* Tokens of @job do not come any more. */
static void check_still(struct engine *e, uint64_t job) {
    struct engine_job a, b;

    await_idle(e);
    assert_true(engine_job(e, job, &a));
    sleep_ms(60);
    assert_true(engine_job(e, job, &b));
    assert_int_equal(a.n_token, b.n_token);
    assert_int_equal(a.n_done, b.n_done);
}

/* Held and let go on, an answer is as long as it would have been. Background alone may be held;
 * what comes meanwhile is held likewise. */
static void test_hold(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    struct engine_request front = raw("once upon a time", 200), back = front;
    static struct seen want, s;
    uint64_t a, b;

    back.who.class = FAIR_BACKGROUND;
    run(e, &front, &want);
    atomic_store(&slow_ms, 2);
    b = submit(e, &back);
    await_tokens(e, b);
    engine_hold(e, ENGINE_HOLD_BACKGROUND);
    check_still(e, b);
    a = submit(e, &front);
    await_tokens(e, a);
    engine_hold(e, ENGINE_HOLD_ALL);
    check_still(e, a);
    check_still(e, b);
    back.text = front.text = "another";
    back.n_text = front.n_text = 7;
    check_still(e, submit(e, &front));
    check_still(e, submit(e, &back));
    atomic_store(&slow_ms, 0);
    engine_hold(e, ENGINE_HOLD_BACKGROUND);
    collect(e, a, &s);
    assert_int_equal(s.result.n_token, want.result.n_token);
    check_still(e, b);
    engine_hold(e, ENGINE_HOLD_NONE);
    collect(e, b, &s);
    assert_int_equal(s.result.n_token, want.result.n_token);
}

/* What is held ends when it is cancelled, and what is saved is written. */
static void test_hold_ends(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    AUTO(close) int fd = memfd_create("save", MFD_CLOEXEC);
    struct engine_request q = long_prompt(200, 4), keep = q;
    static struct seen s;
    uint64_t job;

    keep.kind = ENGINE_SAVE;
    keep.fd = fd;
    engine_hold(e, ENGINE_HOLD_ALL);
    job = submit(e, &q);
    check_still(e, job);
    run(e, &keep, &s);
    assert_int_equal(s.result.end, ENGINE_END_STOP);
    assert_true(lseek(fd, 0, SEEK_END) > 0);
    engine_cancel(e, job);
    collect(e, job, &s);
    assert_int_equal(s.result.end, ENGINE_END_CANCELLED);
}

/* ---- what is forgotten ---- */

static uint32_t n_cached(struct engine *e, uint32_t uid) {
    struct engine_request q = long_prompt(300, 4);
    static struct seen s;

    q.who.uid = uid;
    run(e, &q, &s);
    return s.result.n_cached;
}

/* Nothing is found of it any more, its memory is given up; what others have stays. */
static void test_forget(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    struct engine_status before, after;

    assert_int_equal(n_cached(e, 1), 0);
    assert_int_equal(n_cached(e, 2), 0);
    engine_status(e, &before);
    atomic_store(&n_trim, 0);
    assert_int_equal(engine_forget(e, 1), 0);
    await_count(&n_trim, 1);
    await_idle(e);
    engine_status(e, &after);
    assert_true(after.kv_kept < before.kv_kept);
    assert_true(after.n_kept < before.n_kept);
    assert_int_equal(n_cached(e, 2), 299);
    assert_int_equal(n_cached(e, 1), 0);
    assert_int_equal(n_cached(e, 1), 299); /* from now on again */
    assert_int_equal(engine_forget(e, 1), 0);
    assert_int_equal(engine_forget(e, 2), 0);
    assert_int_equal(engine_forget(e, 3), 0);
    assert_int_equal(n_cached(e, 2), 0);
    assert_int_equal(n_cached(e, 1), 0);
}

/* Jobs that were there leave nothing, be they running or waiting. */
static void test_forget_running(void **state) {
    AUTO(engine_free) struct engine *e = start_two();
    struct engine_request q = long_prompt(300, 200);
    struct engine_status st;
    static struct seen s;
    uint64_t a, b;

    q.who.uid = 1;
    atomic_store(&slow_ms, 2);
    a = submit(e, &q);
    await_tokens(e, a);
    engine_hold(e, ENGINE_HOLD_ALL);
    b = submit(e, &q);
    assert_int_equal(engine_forget(e, 1), 0);
    atomic_store(&slow_ms, 0);
    engine_hold(e, ENGINE_HOLD_NONE);
    collect(e, a, &s);
    assert_int_equal(s.result.n_token, 200);
    collect(e, b, &s);
    assert_int_equal(s.result.n_token, 200);
    assert_int_equal(s.result.n_cached, 0);
    await_idle(e);
    engine_status(e, &st);
    assert_int_equal(st.n_kept, 0);
    assert_int_equal(st.kv_kept, 0);
    assert_int_equal(n_cached(e, 1), 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_beat),         cmocka_unit_test(test_limit),
        cmocka_unit_test(test_usable),       cmocka_unit_test(test_give_up),
        cmocka_unit_test(test_give_up_kept), cmocka_unit_test(test_lock),
        cmocka_unit_test(test_hold),         cmocka_unit_test(test_hold_ends),
        cmocka_unit_test(test_forget),       cmocka_unit_test(test_forget_running),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, rig_teardown);
}
