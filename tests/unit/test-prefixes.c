/* SPDX-License-Identifier: Apache-2.0 */

/* Which files are public, and when they are evaluated, on a fake engine. What root alone may do is
 * skipped for others. */

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

#include "daemon/prefixes.h"
#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

static struct rig rig;
static char dir[64];

static void put(const char *name, const char *text, size_t n) {
    char path[128];
    FILE *f;

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, 0644), 0);
}

static void put_text(const char *name, const char *text) {
    put(name, text, strlen(text));
}

static void begin_with(const char *bytes) {
    const struct config_set set[] = { { "prefix-dir", dir, "test" },
                                      { "prefix-bytes", bytes, "test" } };

    rig_init(&rig, set, 2);
}

static void begin(void) {
    begin_with("1M");
}

static int setup(void **state) {
    (void)strcpy(dir, "/tmp/moed-prefixes-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_int_equal(chmod(dir, 0755), 0);
    return 0;
}

static int teardown(void **state) {
    char cmd[128];

    rig_deinit(&rig);
    (void)snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

static void load(void) {
    struct task *l;

    assert_int_equal(models_load(rig.server->models, "a", 0, &l, NULL), 0);
    fake_loaded();
    rig_turn(&rig);
}

/* The job that was submitted last ends; @n_public are kept now. */
static void end(enum engine_end end, uint32_t n_public) {
    assert_true(fake.n_job > 0);
    fake.status.n_public = n_public;
    fake_end(&fake.job[fake.n_job - 1], end);
    rig_turn(&rig);
}

/* The @i-th job is to evaluate @text for all, and no more than it was submitted. */
static void is_evaluated(uint32_t i, const char *text) {
    const struct fake_job *j = &fake.job[i];

    assert_int_equal(fake.n_job, i + 1);
    assert_string_equal(j->text, text);
    assert_string_equal(j->role, "system");
    assert_true(j->req.public && j->req.prefill_only && j->req.no_generation);
    assert_int_equal(j->req.kind, ENGINE_GENERATE);
    assert_int_equal(j->req.n_msg, 1);
    assert_int_equal(j->req.who.class, FAIR_BACKGROUND);
}

static void root_only(void) {
    if (geteuid() != 0)
        skip();
}

/* ---- files ---- */

static void test_files(void **state) {
    static char large[PREFIXES_TEXT_MAX + 1];
    char path[128];

    memset(large, 'x', sizeof large);
    begin();
    root_only();
    put_text("b.txt", "two");
    put_text("a.txt", "one\n");
    put("c.txt", large, PREFIXES_TEXT_MAX);
    put("large.txt", large, sizeof large);
    put_text("empty.txt", "");
    put("zero.txt", "a\0b", 3);
    put_text("latin.txt", "gr\xfc\xdf");
    put_text("readme", "no");
    put_text(".hidden.txt", "no");
    put_text(".txt", "no");
    put_text("group.txt", "no");
    put_text("others.txt", "no");
    put_text("owned.txt", "no");
    (void)snprintf(path, sizeof path, "%s/group.txt", dir);
    assert_int_equal(chmod(path, 0664), 0);
    (void)snprintf(path, sizeof path, "%s/others.txt", dir);
    assert_int_equal(chmod(path, 0646), 0);
    (void)snprintf(path, sizeof path, "%s/owned.txt", dir);
    assert_int_equal(chown(path, 1000, 0), 0);
    (void)snprintf(path, sizeof path, "%s/link.txt", dir);
    assert_int_equal(symlink("a.txt", path), 0);
    (void)snprintf(path, sizeof path, "%s/fifo.txt", dir);
    assert_int_equal(mkfifo(path, 0644), 0);
    (void)snprintf(path, sizeof path, "%s/folder.txt", dir);
    assert_int_equal(mkdir(path, 0755), 0);
    rig_deinit(&rig);

    begin();
    load();
    is_evaluated(0, "one\n");
    end(ENGINE_END_STOP, 1);
    is_evaluated(1, "two");
    end(ENGINE_END_STOP, 2);
    assert_int_equal(fake.n_job, 3);
    assert_int_equal(strlen(fake.job[2].text), PREFIXES_TEXT_MAX);
    end(ENGINE_END_STOP, 3);
    assert_int_equal(fake.n_job, 3);
}

/* The first by name; no more than there may be. */
static void test_many(void **state) {
    char name[32];

    for (int i = PREFIXES_MAX + 3; i-- > 0;) {
        (void)snprintf(name, sizeof name, "%03d.txt", i);
        put_text(name, name);
    }
    begin();
    root_only();
    load();
    for (uint32_t i = 0; i < PREFIXES_MAX; i++) {
        (void)snprintf(name, sizeof name, "%03u.txt", i);
        is_evaluated(i, name);
        end(ENGINE_END_STOP, i + 1);
    }
    assert_int_equal(fake.n_job, PREFIXES_MAX);
}

/* A folder that others can write to, or own, has none; nor is there any where nothing is kept. */
static void test_folder(void **state) {
    put_text("a.txt", "one");
    assert_int_equal(chmod(dir, 0775), 0);
    begin();
    load();
    assert_int_equal(fake.n_job, 0);
    rig_deinit(&rig);

    assert_int_equal(chmod(dir, 0757), 0);
    begin();
    load();
    assert_int_equal(fake.n_job, 0);
    rig_deinit(&rig);

    assert_int_equal(chmod(dir, 0755), 0);
    if (geteuid() == 0)
        assert_int_equal(chown(dir, 1000, 0), 0);
    begin();
    load();
    assert_int_equal(fake.n_job, 0);
    rig_deinit(&rig);

    if (geteuid() == 0)
        assert_int_equal(chown(dir, 0, 0), 0);
    begin_with("0");
    load();
    assert_int_equal(fake.n_job, 0);
}

/* ---- when ---- */

static void request(struct rig_client *c) {
    rig_request(c, 1, "generate", "{\"prompt\": \"hi\", \"max_tokens\": 3}");
    rig_turn(&rig);
}

/* Requests go first: those that wait for the load, and those that come in between. */
static void test_waits_for_work(void **state) {
    struct rig_client *c;

    put_text("a.txt", "one");
    put_text("b.txt", "two");
    begin();
    root_only();
    c = rig_connect(&rig);
    request(c);
    fake_loaded();
    rig_turn(&rig);
    assert_int_equal(fake.n_job, 1);
    assert_string_equal(fake.job[0].text, "hi");
    end(ENGINE_END_STOP, 0);
    assert_non_null(rig_recv(c));
    is_evaluated(1, "one");
    request(c);
    assert_int_equal(fake.n_job, 3);
    fake_end(&fake.job[1], ENGINE_END_STOP);
    rig_turn(&rig);
    assert_int_equal(fake.n_job, 3); /* there is a request now */
    end(ENGINE_END_STOP, 1);
    is_evaluated(3, "two");
    end(ENGINE_END_STOP, 2);
    rig_hangup(c);
}

/* What made room is evaluated again, when there is nothing else to do; what never had room is not
 * tried again and again. */
static void test_again(void **state) {
    struct rig_client *c;

    put_text("a.txt", "one");
    put_text("b.txt", "two");
    begin();
    root_only();
    load();
    is_evaluated(0, "one");
    end(ENGINE_END_STOP, 1);
    end(ENGINE_END_MEMORY, 1);
    assert_int_equal(fake.n_job, 2);
    c = rig_connect(&rig);
    request(c);
    end(ENGINE_END_STOP, 1);
    assert_int_equal(fake.n_job, 3);
    request(c);
    assert_int_equal(fake.n_job, 4);
    end(ENGINE_END_STOP, 0);
    is_evaluated(4, "one");
    rig_hangup(c);
}

/* Not while memory is short: what is kept went for it, and would again. */
static void test_memory_is_short(void **state) {
    struct rig_client *c;

    put_text("a.txt", "one");
    begin();
    root_only();
    load();
    is_evaluated(0, "one");
    end(ENGINE_END_STOP, 1);
    models_tidy(rig.server->models, ENGINE_TIDY_KV);
    c = rig_connect(&rig);
    request(c);
    end(ENGINE_END_STOP, 0);
    assert_int_equal(fake.n_job, 2);
    models_tidy(rig.server->models, 0);
    request(c);
    end(ENGINE_END_STOP, 0);
    is_evaluated(3, "one");
    rig_hangup(c);
}

/* It keeps no model, and is no work that anybody is told of. */
static void test_no_work(void **state) {
    uint32_t n_job = 0;

    put_text("a.txt", "one");
    begin();
    root_only();
    load();
    is_evaluated(0, "one");
    assert_int_equal(models_n_job(rig.server->models), 0);
    assert_true(models_idle_usec(rig.server->models) > 0);
    assert_int_equal(models_unload(rig.server->models, NULL, &n_job), 0);
    assert_false(fake.exists);
    load(); /* and all begins anew */
    is_evaluated(1, "one");
}

/* A new look at the folder. */
static void test_reload(void **state) {
    const struct config_set set[] = { { "prefix-dir", dir, "test" } };
    struct config *config;

    put_text("b.txt", "two");
    begin();
    root_only();
    load();
    is_evaluated(0, "two");
    put_text("a.txt", "one");
    assert_int_equal(config_new(&config, rig.dir, NULL, set, 1, NULL), 0);
    server_reconfigure(rig.server, config);
    rig_turn(&rig);
    assert_int_equal(fake.n_job, 1);
    end(ENGINE_END_STOP, 1);
    is_evaluated(1, "one");
    end(ENGINE_END_STOP, 2);
    is_evaluated(2, "two");
    end(ENGINE_END_STOP, 2);
    assert_int_equal(fake.n_job, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_waits_for_work, setup, teardown),
        cmocka_unit_test_setup_teardown(test_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_is_short, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_work, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reload, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
