/* SPDX-License-Identifier: Apache-2.0 */

/* How long a model stays: wishes, idle times and memory pressure from a FIFO, on a fake engine. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/pressure.h"
#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

static struct rig rig;
static struct rig_client *client;
static char fifo[64];
static int signs;

/* A service with this wish, an idle time of 1 s, and steps that are taken back after 1 s. */
static void begin(const char *residency, const char *lock, const char *oversize) {
    const struct config_set set[] = {
        { "residency", residency, "test" },     { "idle-timeout", "1", "test" },
        { "pressure-watch", fifo, "test" },     { "pressure-calm", "1", "test" },
        { "lock-weights", lock, "test" },       { "oversize", oversize, "test" },
        { "user-connections", "1000", "test" },
    };

    (void)snprintf(fifo, sizeof fifo, "/tmp/moed-residency-%d", (int)getpid());
    (void)unlink(fifo);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    signs = open(fifo, O_RDWR | O_CLOEXEC);
    assert_true(signs >= 0);
    rig_init(&rig, set, sizeof set / sizeof set[0]);
    client = rig_connect(&rig);
}

static int teardown(void **state) {
    rig_hangup(client);
    rig_deinit(&rig);
    (void)close(signs);
    (void)unlink(fifo);
    return 0;
}

static void load(const char *id) {
    struct task *l;

    assert_int_equal(models_load(rig.server->models, id, 0, &l, NULL), 0);
    fake_loaded();
    rig_turn(&rig);
    assert_int_equal(models_state(rig.server->models, id), MODELS_LOADED);
}

static bool is_loaded(void) {
    return models_resident(rig.server->models) != NULL;
}

static void turn(unsigned ms) {
    usec_t end = clock_usec() + ms * 1000;

    do
        rig_turn(&rig);
    while (clock_usec() < end && usleep(1000) == 0);
}

static void sign(unsigned n) {
    while (n--) {
        assert_int_equal(write(signs, "!", 1), 1);
        rig_turn(&rig);
    }
}

static void has(const char *text, const char *want) {
    assert_non_null(text);
    if (!strstr(text, want))
        fail_msg("'%s' has no '%s'", text, want);
}

/* ---- wishes ---- */

static void wish(struct residency_lease *lease, const char *model, enum residency_wish w) {
    assert_int_equal(residency_take(rig.server->residency, lease, model, w), 0);
}

static void test_names(void **state) {
    enum residency_wish w;

    begin("pressure", "no", "yes");
    for (enum residency_wish i = RESIDENCY_IDLE; i <= RESIDENCY_PINNED; i++) {
        assert_true(residency_parse(residency_name(i), strlen(residency_name(i)), &w));
        assert_int_equal(w, i);
    }
    assert_false(residency_parse("pin", 3, &w));
    assert_false(residency_parse("pinnedx", 7, &w));
}

/* The strongest of those that live; the order in which they come and go is all the same. */
static void test_strongest_counts(void **state) {
    struct residency_lease a = { 0 }, b = { 0 };
    struct residency *r;

    begin("idle", "no", "yes");
    r = rig.server->residency;
    assert_int_equal(residency_now(r), RESIDENCY_IDLE);
    wish(&a, NULL, RESIDENCY_PINNED);
    wish(&b, NULL, RESIDENCY_PRESSURE);
    assert_int_equal(residency_now(r), RESIDENCY_PINNED);
    wish(&a, NULL, RESIDENCY_IDLE); /* changes its mind */
    assert_int_equal(residency_now(r), RESIDENCY_PRESSURE);
    wish(&a, NULL, RESIDENCY_PINNED);
    residency_drop(r, &b);
    assert_int_equal(residency_now(r), RESIDENCY_PINNED);
    residency_drop(r, &a);
    residency_drop(r, &a);
    assert_int_equal(residency_now(r), RESIDENCY_IDLE);
}

/* A client's wish ends with it, however it goes. */
static void test_connection_is_a_lease(void **state) {
    struct rig_client *other;

    begin("idle", "no", "yes");
    other = rig_connect(&rig);
    has(rig_call(other, 1, "model.pin", "{}"), "\"residency\"=>\"pinned\"");
    has(rig_call(client, 1, "model.pin", "{'residency': 'pressure'}"), "\"residency\"=>\"pinned\"");
    has(rig_call(client, 2, "server.status", "{}"), "\"residency\"=>\"pinned\"");
    rig_hangup(other);
    has(rig_call(client, 3, "server.status", "{}"), "\"residency\"=>\"pressure\"");
    has(rig_call(client, 4, "model.pin", "{'residency': 'none'}"), "\"residency\"=>\"idle\"");
    has(rig_call(client, 5, "model.pin", "{'residency': 'forever'}"), "InvalidArgs");
}

/* A wish about one model says nothing about another. */
static void test_wish_of_a_model(void **state) {
    struct residency_lease a = { 0 }, b = { 0 };
    struct residency *r;

    begin("idle", "no", "yes");
    r = rig.server->residency;
    wish(&a, "a", RESIDENCY_PINNED);
    wish(&b, "b", RESIDENCY_PRESSURE);
    assert_int_equal(residency_now(r), RESIDENCY_IDLE);
    assert_int_equal(residency_of(r, "a"), RESIDENCY_PINNED);
    load("a");
    assert_int_equal(residency_now(r), RESIDENCY_PINNED);
    turn(1300);
    load("b");
    assert_int_equal(residency_now(r), RESIDENCY_PRESSURE);
    turn(1300);
    assert_true(is_loaded());
    residency_drop(r, &b);
    turn(50);
    assert_false(is_loaded());
    residency_drop(r, &a);
}

/* And when nobody has one about the model that came, it goes as configured. */
static void test_other_model_goes(void **state) {
    struct residency_lease a = { 0 };

    begin("idle", "no", "yes");
    load("a");
    wish(&a, "a", RESIDENCY_PINNED);
    load("b");
    turn(2500);
    assert_false(is_loaded());
    residency_drop(rig.server->residency, &a);
}

static void test_session_is_a_lease(void **state) {
    begin("idle", "no", "yes");
    load("a");
    has(rig_call(client, 1, "session.open", "{'model': 'a'}"), "\"session\"=>1");
    has(rig_call(client, 2, "session.open", "{'model': 'b'}"), "\"session\"=>2");
    has(rig_call(client, 3, "session.clone", "{'session': 1}"), "\"session\"=>3");
    has(rig_call(client, 4, "server.status", "{}"), "\"residency\"=>\"pressure\"");
    has(rig_call(client, 5, "session.close", "{'session': 1}"), "nil");
    turn(1300);
    assert_true(is_loaded());
    has(rig_call(client, 6, "session.close", "{'session': 3}"), "nil");
    turn(50);
    assert_false(is_loaded());
}

/* However its client goes; and when memory is short it keeps nothing. */
static void test_session_ends(void **state) {
    struct rig_client *other;

    begin("idle", "no", "yes");
    load("a");
    other = rig_connect(&rig);
    has(rig_call(other, 1, "session.open", "{'model': 'a'}"), "\"session\"=>1");
    turn(1300);
    assert_true(is_loaded());
    rig_hangup(other);
    turn(50);
    assert_false(is_loaded());
    load("a");
    has(rig_call(client, 1, "session.open", "{'model': 'a'}"), "\"session\"=>2");
    sign(4);
    turn(50);
    assert_false(is_loaded());
}

/* A kept wish outlives its client, and is one a model. */
static void test_kept(void **state) {
    struct rig_client *other;

    begin("idle", "no", "yes");
    load("a");
    other = rig_connect(&rig);
    has(rig_call(other, 1, "model.pin", "{'id': 'b', 'keep': true}"), "\"pinned\"");
    has(rig_call(other, 2, "model.pin", "{'keep': true, 'residency': 'pressure'}"), "\"pressure\"");
    has(rig_call(other, 3, "model.pin", "{'id': 'a', 'keep': true}"), "\"pinned\"");
    has(rig_call(other, 4, "model.pin", "{'id': 'a', 'keep': true}"), "\"pinned\"");
    has(rig_call(other, 5, "model.pin", "{'id': 'c', 'keep': true}"), "NoSuchModel");
    rig_hangup(other);
    sign(4);
    turn(50);
    assert_true(is_loaded());
    /* the connection's own is another one */
    has(rig_call(client, 1, "model.pin", "{'id': 'a', 'residency': 'none'}"), "\"pinned\"");
    has(rig_call(client, 2, "model.pin", "{'id': 'a', 'residency': 'none', 'keep': true}"),
        "\"pressure\"");
    turn(1100);
    assert_false(is_loaded());
}

/* ---- idle ---- */

static void test_idle_goes(void **state) {
    usec_t began;

    begin("idle", "no", "yes");
    load("a");
    began = clock_usec();
    turn(700);
    assert_true(is_loaded());
    while (is_loaded() && clock_usec() - began < 5 * CLOCK_SECOND)
        turn(1);
    assert_false(is_loaded());
    assert_true(clock_usec() - began >= 900000);
    load("b"); /* and so again */
    turn(1500);
    assert_false(is_loaded());
}

/* Work, and a stronger wish, keep it; the time begins anew when the work ends. */
static void test_work_keeps_it(void **state) {
    begin("idle", "no", "yes");
    load("a");
    rig_request(client, 1, "generate", "{'prompt': 'x'}");
    turn(1300);
    assert_true(is_loaded());
    assert_int_equal(fake.n_job, 1);
    fake_end(&fake.job[0], ENGINE_END_STOP);
    turn(700);
    assert_true(is_loaded());
    turn(1000);
    assert_false(is_loaded());
}

static void test_wish_keeps_it(void **state) {
    struct residency_lease a = { 0 };

    begin("idle", "no", "yes");
    load("a");
    wish(&a, NULL, RESIDENCY_PRESSURE);
    turn(1300);
    assert_true(is_loaded());
    residency_drop(rig.server->residency, &a); /* it was idle for long enough */
    turn(50);
    assert_false(is_loaded());
}

/* ---- pressure ---- */

/* One step after the other, each telling the engine what it is about; back down the same way. */
static void test_ladder(void **state) {
    static const unsigned want[] = {
        ENGINE_TIDY_LOCK,
        ENGINE_TIDY_KV | ENGINE_TIDY_LOCK,
        ENGINE_TIDY_KV | ENGINE_TIDY_COLD | ENGINE_TIDY_LOCK,
        ENGINE_TIDY_KV | ENGINE_TIDY_COLD | ENGINE_TIDY_UNLOCK,
    };

    begin("pressure", "yes", "yes");
    load("a");
    assert_int_equal(fake.tidy, want[0]);
    for (unsigned level = 1; level <= 3; level++) {
        fake.tidy = 0;
        sign(1);
        assert_int_equal(residency_level(rig.server->residency), level);
        assert_int_equal(fake.tidy, want[level]);
        assert_true(is_loaded());
    }
    has(rig_call(client, 1, "server.status", "{}"), "\"pressure\"=>{\"level\"=>3, \"max\"=>4}");
    sign(1);
    assert_false(is_loaded());
    has(rig_call(client, 2, "generate", "{'prompt': 'x'}"), "InsufficientMemory");
    has(rig_call(client, 3, "model.load", "{'id': 'b'}"), "\"need\"=>4, \"have\"=>1048576");
    assert_int_equal(fake.n_new, 1);
    turn(1200);
    assert_int_equal(residency_level(rig.server->residency), 3);
    fake.tidy = 0;
    load("a"); /* loaded again, and not locked yet, nor are its weights let go */
    turn(2200);
    assert_int_equal(residency_level(rig.server->residency), 1);
    assert_int_equal(fake.tidy, ENGINE_TIDY_UNLOCK);
    fake.tidy = 0;
    sign(1); /* up again: the same steps again */
    assert_int_equal(fake.tidy, ENGINE_TIDY_KV | ENGINE_TIDY_COLD | ENGINE_TIDY_UNLOCK);
    fake.tidy = 0;
    turn(2300);
    assert_int_equal(residency_level(rig.server->residency), 0);
    assert_int_equal(fake.tidy, ENGINE_TIDY_UNLOCK | ENGINE_TIDY_LOCK); /* at 1, then at 0 */
}

/* Who has work goes when that is over, who is pinned stays. */
static void test_last_step_waits(void **state) {
    begin("pressure", "no", "yes");
    load("a");
    rig_request(client, 1, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    sign(4);
    assert_true(is_loaded());
    fake_end(&fake.job[0], ENGINE_END_STOP);
    turn(30);
    sign(1); /* pressure goes on */
    turn(1100);
    assert_false(is_loaded());
}

static void test_pinned_stays(void **state) {
    begin("pinned", "no", "yes");
    load("a");
    sign(5);
    turn(100);
    assert_true(is_loaded());
}

/* ---- admission ---- */

static void test_too_large(void **state) {
    begin("pressure", "no", "no");
    fake.memory = 3; /* the file has 4 bytes */
    has(rig_call(client, 1, "model.load", "{'id': 'a'}"), "\"need\"=>4, \"have\"=>3");
    has(rig_call(client, 2, "generate", "{'prompt': 'x'}"), "InsufficientMemory");
    assert_int_equal(fake.n_new, 0);
    fake.memory = 4;
    load("a");
    fake.memory = 2; /* what the resident one gives back counts */
    fake.info.pack_bytes = 2;
    load("b");
    fake.memory = 1;
    has(rig_call(client, 3, "model.load", "{'id': 'a'}"), "\"need\"=>4, \"have\"=>3");
    assert_int_equal(models_state(rig.server->models, "b"), MODELS_LOADED); /* nothing changed */
}

static void test_locked_must_fit(void **state) {
    begin("pressure", "yes", "yes");
    fake.memory = 3;
    has(rig_call(client, 1, "model.load", "{'id': 'a'}"), "InsufficientMemory");
}

static void test_oversize(void **state) {
    begin("pressure", "no", "yes");
    fake.memory = 0;
    load("a");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_names, teardown),
        cmocka_unit_test_teardown(test_strongest_counts, teardown),
        cmocka_unit_test_teardown(test_connection_is_a_lease, teardown),
        cmocka_unit_test_teardown(test_wish_of_a_model, teardown),
        cmocka_unit_test_teardown(test_other_model_goes, teardown),
        cmocka_unit_test_teardown(test_session_is_a_lease, teardown),
        cmocka_unit_test_teardown(test_session_ends, teardown),
        cmocka_unit_test_teardown(test_kept, teardown),
        cmocka_unit_test_teardown(test_idle_goes, teardown),
        cmocka_unit_test_teardown(test_work_keeps_it, teardown),
        cmocka_unit_test_teardown(test_wish_keeps_it, teardown),
        cmocka_unit_test_teardown(test_ladder, teardown),
        cmocka_unit_test_teardown(test_last_step_waits, teardown),
        cmocka_unit_test_teardown(test_pinned_stays, teardown),
        cmocka_unit_test_teardown(test_too_large, teardown),
        cmocka_unit_test_teardown(test_locked_must_fit, teardown),
        cmocka_unit_test_teardown(test_oversize, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
