/* SPDX-License-Identifier: Apache-2.0 */

/* What signs of power, sleep and users who leave come to, on a fake engine. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

static struct rig rig;
static struct rig_client *client;

static void begin(const char *save, const char *threads, const char *forget) {
    const struct config_set set[] = {
        { "power-save", save, "test" },
        { "power-threads", threads, "test" },
        { "forget", forget, "test" },
    };

    rig_init(&rig, set, sizeof set / sizeof set[0]);
    fake.usable = 6;
    client = rig_connect(&rig);
}

static int teardown(void **state) {
    rig_hangup(client);
    rig_deinit(&rig);
    return 0;
}

static void load(void) {
    struct task *l;

    assert_int_equal(models_load(rig.server->models, "a", 0, &l, NULL), 0);
    fake_loaded();
    rig_turn(&rig);
}

static void tell(enum power_sign sign, bool on) {
    power_tell(rig.server->power, sign, on);
    rig_turn(&rig);
}

static void check(enum power_level level, uint32_t n_thread, enum engine_hold hold) {
    assert_int_equal(power_level(rig.server->power), level);
    assert_int_equal(fake.n_limit, n_thread);
    assert_int_equal(fake.hold, hold);
}

static void has(const char *text, const char *want) {
    assert_non_null(text);
    if (!strstr(text, want))
        fail_msg("'%s' has no '%s'", text, want);
}

/* Either sign is enough, and both have to go. */
static void test_saving(void **state) {
    begin("battery", "0", "lock");
    load();
    tell(POWER_BATTERY, true);
    check(POWER_SAVING, 3, ENGINE_HOLD_BACKGROUND);
    has(rig_call(client, 1, "server.status", "{}"),
        "\"power\"=>{\"level\"=>1, \"battery\"=>true, \"saver\"=>false}");
    tell(POWER_SAVER, true);
    tell(POWER_BATTERY, false);
    check(POWER_SAVING, 3, ENGINE_HOLD_BACKGROUND);
    tell(POWER_SAVER, false);
    check(POWER_FULL, 6, ENGINE_HOLD_NONE);
    has(rig_call(client, 2, "server.status", "{}"),
        "\"power\"=>{\"level\"=>0, \"battery\"=>false, \"saver\"=>false}");
}

/* The battery alone does not matter, or nothing does; sleep does all the same. */
static void test_profile_only(void **state) {
    begin("profile", "2", "lock");
    load();
    tell(POWER_BATTERY, true);
    check(POWER_FULL, 6, ENGINE_HOLD_NONE);
    tell(POWER_SAVER, true);
    check(POWER_SAVING, 2, ENGINE_HOLD_BACKGROUND);
}

static void test_never(void **state) {
    begin("never", "2", "lock");
    load();
    tell(POWER_BATTERY, true);
    tell(POWER_SAVER, true);
    check(POWER_FULL, 6, ENGINE_HOLD_NONE);
    tell(POWER_SLEEP, true);
    check(POWER_ASLEEP, 6, ENGINE_HOLD_ALL);
}

/* More threads than there are otherwise are not taken. */
static void test_threads(void **state) {
    begin("battery", "16", "lock");
    load();
    tell(POWER_BATTERY, true);
    check(POWER_SAVING, 6, ENGINE_HOLD_BACKGROUND);
    fake.usable = 1;
    tell(POWER_SAVER, true);
    check(POWER_SAVING, 1, ENGINE_HOLD_BACKGROUND);
}

/* Sleep wins, and what was before it is again; the machine is looked at anew. */
static void test_sleep(void **state) {
    begin("battery", "0", "lock");
    load();
    tell(POWER_BATTERY, true);
    tell(POWER_SLEEP, true);
    check(POWER_ASLEEP, 3, ENGINE_HOLD_ALL);
    tell(POWER_BATTERY, false);
    check(POWER_ASLEEP, 6, ENGINE_HOLD_ALL);
    fake.usable = 4;
    tell(POWER_SLEEP, false);
    check(POWER_FULL, 4, ENGINE_HOLD_NONE);
}

/* What is loaded later is told, too. */
static void test_load_later(void **state) {
    begin("battery", "0", "lock");
    tell(POWER_BATTERY, true);
    tell(POWER_SLEEP, true);
    assert_false(fake.exists);
    load();
    check(POWER_ASLEEP, 3, ENGINE_HOLD_ALL);
    power_leave(rig.server->power, 7, true);
    assert_int_equal(fake.n_forgot, 1);
}

static void leave(const char *forget, uint32_t n_lock, uint32_t n_left) {
    begin("battery", "0", forget);
    power_leave(rig.server->power, 7, true); /* of nothing there is nothing to forget */
    assert_int_equal(fake.n_forgot, 0);
    load();
    power_leave(rig.server->power, 1001, false);
    assert_int_equal(fake.n_forgot, n_lock);
    power_leave(rig.server->power, 1002, true);
    assert_int_equal(fake.n_forgot, n_lock + n_left);
    if (n_lock)
        assert_int_equal(fake.forgot[0], 1001);
    if (n_left)
        assert_int_equal(fake.forgot[n_lock], 1002);
}

static void test_forget_lock(void **state) {
    leave("lock", 1, 1);
}

static void test_forget_logout(void **state) {
    leave("logout", 0, 1);
}

static void test_forget_never(void **state) {
    leave("never", 0, 0);
}

/* Another configuration counts at once. */
static void test_reconfigure(void **state) {
    const struct config_set set[] = { { "power-save", "never", "test" } };
    struct config *config;

    begin("battery", "0", "lock");
    load();
    tell(POWER_BATTERY, true);
    check(POWER_SAVING, 3, ENGINE_HOLD_BACKGROUND);
    assert_int_equal(config_new(&config, rig.dir, NULL, set, 1, NULL), 0);
    server_reconfigure(rig.server, config);
    check(POWER_FULL, 6, ENGINE_HOLD_NONE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_saving, teardown),
        cmocka_unit_test_teardown(test_profile_only, teardown),
        cmocka_unit_test_teardown(test_never, teardown),
        cmocka_unit_test_teardown(test_threads, teardown),
        cmocka_unit_test_teardown(test_sleep, teardown),
        cmocka_unit_test_teardown(test_load_later, teardown),
        cmocka_unit_test_teardown(test_forget_lock, teardown),
        cmocka_unit_test_teardown(test_forget_logout, teardown),
        cmocka_unit_test_teardown(test_forget_never, teardown),
        cmocka_unit_test_teardown(test_reconfigure, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
