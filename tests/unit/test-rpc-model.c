/* SPDX-License-Identifier: Apache-2.0 */

/* What the service says of model files that are slow to read. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <semaphore.h>
#include <string.h>

#include "daemon/errands.h"
#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

static sem_t begun, go;

static int setup(void **state) {
    assert_int_equal(sem_init(&begun, 0, 0), 0);
    assert_int_equal(sem_init(&go, 0, 0), 0);
    return 0;
}

static int teardown(void **state) {
    (void)sem_destroy(&begun);
    (void)sem_destroy(&go);
    return 0;
}

int __wrap_engine_describe(const char *path, const struct engine_describe_ops *ops, void *arg,
                           struct why *why);
int __wrap_engine_describe(const char *path, const struct engine_describe_ops *ops, void *arg,
                           struct why *why) {
    const struct engine_value v = { .kind = ENGINE_VALUE_UINT, .u = 7 };

    (void)sem_post(&begun);
    (void)sem_wait(&go);
    if (strstr(path, "/b.gguf"))
        return why_set(why, ENGINE_BAD, "b is bad");
    ops->meta(arg, "k", false, &v, 1);
    return 0;
}

static void has(const char *text, const char *want) {
    assert_non_null(text);
    if (!strstr(text, want))
        fail_msg("'%s' has no '%s'", text, want);
}

/* One thread reads, one after the other; nobody else waits. */
static void test_show(void **state) {
    struct rig_client *slow, *other;
    struct rig rig;

    rig_init(&rig, NULL, 0);
    slow = rig_connect(&rig);
    other = rig_connect(&rig);
    rig_request(slow, 1, "model.show", "{'id': 'a'}");
    rig_request(slow, 2, "model.show", "{'id': 'b'}");
    (void)sem_wait(&begun);
    has(rig_call(other, 1, "server.status", "{}"), "[1, 1, nil");
    has(rig_call(slow, 3, "server.status", "{}"), "[1, 3, nil");
    (void)sem_post(&go);
    (void)sem_post(&go);
    has(rig_recv(slow), "[1, 1, nil");
    has(slow->text, "\"metadata\"=>{\"k\"=>7}");
    has(rig_recv(slow), "\"name\"=>\"Corrupt\", \"message\"=>\"b is bad\"");
    rig_hangup(slow);
    rig_hangup(other);
    rig_deinit(&rig);
}

/* Whoever asked may go, and so may the service: the file is read to its end. */
static void test_gone(void **state) {
    struct rig_client *client, *other;
    struct rig rig;

    rig_init(&rig, NULL, 0);
    client = rig_connect(&rig);
    other = rig_connect(&rig);
    for (uint32_t i = 1; i < ERRANDS_MAX; i++)
        rig_request(client, i, "model.show", "{'id': 'a'}");
    rig_request(other, 1, "model.show", "{'id': 'a'}");
    has(rig_call(other, 2, "model.show", "{'id': 'a'}"), "\"Busy\"");
    rig_hangup(client);
    server_stop(rig.server);
    has(rig_recv(other), "ShuttingDown");
    for (int i = 0; i < ERRANDS_MAX; i++)
        (void)sem_post(&go);
    rig_hangup(other);
    rig_deinit(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_show, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gone, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
