/* SPDX-License-Identifier: Apache-2.0 */

/* What becomes of a file that is given, and what of the folder when it is none. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/event.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/import.h"
#include "daemon/origin.h"
#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

#define FOUR                                                                                       \
    "04efaf080f5a3e74e1c29d1ca6a48569382cbbcd324e8d59d2b83ef21c039f00" /* SHA-256 of "four" */

static struct rig rig;
static int bad; /* what engine_describe() says */

int __wrap_engine_describe(const char *path, const struct engine_describe_ops *ops, void *arg,
                           struct why *why);
int __wrap_engine_describe(const char *path, const struct engine_describe_ops *ops, void *arg,
                           struct why *why) {
    return bad ? why_set(why, ENGINE_BAD, "no GGUF file") : 0;
}

static int setup(void **state) {
    rig_init(&rig, NULL, 0);
    bad = 0;
    return 0;
}

static int teardown(void **state) {
    rig_deinit(&rig);
    return 0;
}

static const char *in_dir(const char *name) {
    static char path[128];

    (void)snprintf(path, sizeof path, "%s/%s", rig.dir, name);
    return path;
}

static bool there(const char *name) {
    struct stat st;

    return lstat(in_dir(name), &st) == 0;
}

/* Begin with a copy of the descriptor alone. */
static int begin(int fd, const char *id, enum import_mode mode, const char *digest,
                 struct task **ret_task) {
    struct import_file f = { fd, mode, id, digest, "MIT", 7 };
    struct why why = { 0 };
    int r = import_begin(rig.server->imports, &f, ret_task, &why);

    assert_true(r <= 0 || why.text[0]);
    return r;
}

static void end(struct task *t, enum task_state state, int code) {
    usec_t until = clock_usec() + 30 * CLOCK_SECOND;

    while (t->state == TASK_RUNNING && clock_usec() < until) {
        rig_turn(&rig);
        (void)usleep(1000);
    }
    if (t->state != state)
        fail_msg("%s: %s", tasks_state_name(t->state), t->reason.text);
    assert_int_equal(t->code, code);
}

static void test_copy(void **state) {
    int fd = open(in_dir("a.gguf"), O_RDONLY | O_CLOEXEC);
    struct task *t;
    struct origin o;
    char text[8] = "";

    assert_int_equal(begin(fd, "new", IMPORT_COPY, FOUR, &t), 0);
    (void)close(fd);
    assert_int_equal(t->uid, 7);
    end(t, TASK_DONE, 0);
    assert_int_equal(t->done, 4);
    fd = open(in_dir("new.gguf"), O_RDONLY | O_CLOEXEC);
    assert_int_equal(read(fd, text, sizeof text), 4);
    (void)close(fd);
    assert_string_equal(text, "four");
    origin_read(in_dir("new.gguf"), &o);
    assert_string_equal(o.digest, FOUR);
    assert_string_equal(o.license, "MIT");
    assert_non_null(models_find(rig.server->models, "new"));
}

static void test_reference(void **state) {
    int fd = open(in_dir("a.gguf"), O_RDONLY | O_CLOEXEC);
    char to[128] = "";
    struct task *t;

    assert_int_equal(begin(fd, "link", IMPORT_REFERENCE, NULL, &t), 0);
    end(t, TASK_DONE, 0);
    assert_true(readlink(in_dir("link.gguf"), to, sizeof to - 1) > 0);
    assert_string_equal(to, in_dir("a.gguf"));

    /* A file that has no name any more cannot be linked. */
    assert_int_equal(unlink(in_dir("a.gguf")), 0);
    assert_int_equal(begin(fd, "gone", IMPORT_REFERENCE, NULL, &t), 0);
    (void)close(fd);
    end(t, TASK_FAILED, RPC_NOT_SUPPORTED);
    assert_false(there("gone.gguf") || there(".gone.gguf.new") || there("gone.gguf.origin"));
}

static void test_not_kept(void **state) {
    static const char other[] = "0000000000000000000000000000000000000000000000000000000000000000";
    int fd = open(in_dir("a.gguf"), O_RDONLY | O_CLOEXEC);
    struct task *t;

    assert_int_equal(begin(fd, "x", IMPORT_AUTO, other, &t), 0);
    end(t, TASK_FAILED, RPC_CORRUPT);
    bad = ENGINE_BAD;
    assert_int_equal(begin(fd, "x", IMPORT_AUTO, NULL, &t), 0);
    end(t, TASK_FAILED, RPC_CORRUPT);
    assert_string_equal(t->reason.text, "no GGUF file");
    assert_false(there("x.gguf") || there(".x.gguf.new") || there("x.gguf.origin"));

    bad = 0; /* what an interrupted one left is in nobody's way */
    (void)close(open(in_dir(".x.gguf.new"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    assert_int_equal(begin(fd, "x", IMPORT_AUTO, NULL, &t), 0);
    (void)close(fd);
    end(t, TASK_DONE, 0);
    assert_true(there("x.gguf") && !there(".x.gguf.new"));
}

static void test_refused(void **state) {
    static const char *const ids[] = { "",       ".x",   "a/b",  "mmproj-x", "mtp-x",
                                       "x-of-2", "a\nb", "\xff", "a" };
    int fd = open(in_dir("a.gguf"), O_RDONLY | O_CLOEXEC), pipes[2], blind, path;
    char longest[256] = "";
    struct task *t;

    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++)
        assert_int_equal(begin(fd, ids[i], IMPORT_AUTO, NULL, &t), RPC_INVALID_ARGS);
    memset(longest, 'l', 201);
    assert_int_equal(begin(fd, longest, IMPORT_AUTO, NULL, &t), RPC_INVALID_ARGS);
    assert_int_equal(begin(fd, "x", IMPORT_AUTO, "12", &t), RPC_INVALID_ARGS);

    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(begin(pipes[0], "x", IMPORT_AUTO, NULL, &t), RPC_INVALID_ARGS);
    blind = open(in_dir("a.gguf"), O_WRONLY | O_CLOEXEC);
    assert_int_equal(begin(blind, "x", IMPORT_AUTO, NULL, &t), RPC_INVALID_ARGS);
    path = open(in_dir("a.gguf"), O_PATH | O_CLOEXEC);
    assert_int_equal(begin(path, "x", IMPORT_AUTO, NULL, &t), RPC_INVALID_ARGS);
    assert_true(begin(-1, "x", IMPORT_AUTO, NULL, &t) < 0);
    for (size_t i = 0; i < 5; i++)
        (void)close((int[]){ fd, pipes[0], pipes[1], blind, path }[i]);
}

static void test_many(void **state) {
    int fd = open(in_dir("a.gguf"), O_RDWR | O_CLOEXEC);
    struct task *t[IMPORT_MAX], *more;
    char id[8];

    assert_int_equal(ftruncate(fd, 8ll << 30), 0); /* a hole takes long to read */
    for (int i = 0; i < IMPORT_MAX; i++) {
        (void)snprintf(id, sizeof id, "n%d", i);
        assert_int_equal(begin(fd, id, IMPORT_REFERENCE, NULL, &t[i]), 0);
    }
    assert_int_equal(begin(fd, "n0", IMPORT_AUTO, NULL, &more), RPC_INVALID_ARGS); /* underway */
    assert_int_equal(begin(fd, "m", IMPORT_AUTO, NULL, &more), RPC_BUSY);
    assert_int_equal(import_verify(rig.server->imports, "b", 7, &more, NULL), RPC_BUSY);
    (void)close(fd);
    for (int i = 0; i < IMPORT_MAX; i++) {
        assert_true(tasks_cancel(t[i]));
        end(t[i], TASK_CANCELLED, RPC_CANCELLED);
    }
    assert_false(there("n0.gguf") || there(".n0.gguf.new"));
    assert_int_equal(import_verify(rig.server->imports, "b", 7, &more, NULL), 0);
    end(more, TASK_DONE, 0);
}

static void test_verify(void **state) {
    struct origin o;
    struct task *t;
    int fd;

    assert_int_equal(import_verify(rig.server->imports, "none", 7, &t, NULL), RPC_NO_SUCH_MODEL);
    assert_int_equal(import_verify(rig.server->imports, "b", 7, &t, NULL), 0);
    end(t, TASK_DONE, 0);
    origin_read(in_dir("b.gguf"), &o);
    assert_string_equal(o.digest, FOUR); /* as none was known */
    fd = open(in_dir("b.gguf"), O_WRONLY | O_CLOEXEC);
    assert_int_equal(write(fd, "five", 4), 4);
    (void)close(fd);
    assert_int_equal(import_verify(rig.server->imports, "b", 7, &t, NULL), 0);
    end(t, TASK_FAILED, RPC_CORRUPT);
    assert_int_equal(unlink(in_dir("b.gguf")), 0);
    origin_remove(in_dir("b.gguf"));
}

/* The service stops while a file is read. */
static void test_stop(void **state) {
    int fd = open(in_dir("a.gguf"), O_RDWR | O_CLOEXEC);
    struct task *t;

    assert_int_equal(ftruncate(fd, 8ll << 30), 0);
    assert_int_equal(begin(fd, "x", IMPORT_REFERENCE, NULL, &t), 0);
    (void)close(fd);
}

int main(void) {
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_copy), TEST(test_reference), TEST(test_not_kept), TEST(test_refused),
        TEST(test_many), TEST(test_verify),    TEST(test_stop),
    };

    return cmocka_run_group_tests_name("import", tests, NULL, NULL);
}
