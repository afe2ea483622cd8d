/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/config.h"

static char root[64];

static int setup(void **state) {
    (void)strcpy(root, "/tmp/moed-config-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
    char cmd[128];

    (void)snprintf(cmd, sizeof cmd, "rm -r %s", root);
    return system(cmd);
}

/* Write @text to @path below the root, making the folders on the way. */
static void put(const char *path, const char *text) {
    char full[512];
    FILE *f;

    (void)snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = strchr(full + 1, '/'); p; p = strchr(p + 1, '/')) {
        *p = '\0';
        (void)mkdir(full, 0755);
        *p = '/';
    }
    f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    (void)fclose(f);
}

static struct config *load(void) {
    struct config *c = NULL;
    struct why why = { 0 };

    if (config_new(&c, root, NULL, NULL, 0, &why))
        fail_msg("%s", why.text);
    return c;
}

static void refuse(const char *want) {
    struct config *c = NULL;
    struct why why = { 0 };

    assert_int_equal(config_new(&c, root, NULL, NULL, 0, &why), CONFIG_BAD);
    assert_null(c);
    if (!strstr(why.text, want))
        fail_msg("'%s' does not say '%s'", why.text, want);
}

static void test_defaults(void **state) {
    AUTO(config_free) struct config *c = load();

    assert_null(c->model);
    assert_string_equal(c->model_dir, "/var/lib/moed/models");
    assert_int_equal(c->context, 0);
    assert_int_equal(c->queue, 64);
    assert_int_equal(c->kv_type, CONFIG_KV_F16);
    assert_true(c->preload);
    assert_false(c->exact);
}

static void test_values(void **state) {
    AUTO(config_free) struct config *c = NULL;

    put("/etc/moed/moed.conf", "# comment\n; another\n\n  context =  4096  \nkv-bytes=2G\n"
                               "model=/srv/a b=c.gguf\nexact = Yes\nkv-type = f32\nthreads = 8\n"
                               "threads =\n");
    c = load();
    assert_int_equal(c->context, 4096);
    assert_int_equal(c->kv_bytes, 2ull << 30);
    assert_string_equal(c->model, "/srv/a b=c.gguf");
    assert_true(c->exact);
    assert_int_equal(c->kv_type, CONFIG_KV_F32);
    assert_int_equal(c->threads, 0); /* an empty value is the default again */
}

static void test_precedence(void **state) {
    AUTO(config_free) struct config *c = NULL;

    put("/etc/moed/moed.conf", "context = 1\nqueue = 1\nbatch = 1\nthreads = 1\n");
    put("/usr/lib/moed/moed.conf.d/50-a.conf", "queue = 2\nbatch = 2\nthreads = 2\n");
    put("/usr/lib/moed/moed.conf.d/80-d.conf", "threads = 6\n"); /* masked by /usr/local */
    put("/usr/local/lib/moed/moed.conf.d/80-d.conf", "context = 6\n");
    put("/run/moed/moed.conf.d/40-b.conf", "queue = 3\n");           /* sorts before 50-a */
    put("/run/moed/moed.conf.d/60-c.conf", "batch = 4\n");           /* masked by /etc */
    put("/etc/moed/moed.conf.d/60-c.conf", "threads = 5\n");         /* sorts last */
    put("/etc/moed/moed.conf.d/70-d.txt", "threads = nonsense\n");   /* no .conf */
    put("/etc/moed/moed.conf.d/.80-e.conf", "threads = nonsense\n"); /* hidden */
    c = load();
    assert_int_equal(c->context, 6);
    assert_int_equal(c->queue, 2);
    assert_int_equal(c->batch, 2);
    assert_int_equal(c->threads, 5);
}

static void test_mask_by_null(void **state) {
    AUTO(config_free) struct config *c = NULL;
    char link[512];

    put("/usr/lib/moed/moed.conf.d/50-a.conf", "queue = 2\n");
    put("/etc/moed/moed.conf.d/other.conf", "");
    (void)snprintf(link, sizeof link, "%s/etc/moed/moed.conf.d/50-a.conf", root);
    assert_int_equal(symlink("/dev/null", link), 0);
    c = load();
    assert_int_equal(c->queue, 64);
}

static void test_command_line_wins(void **state) {
    const struct config_set set[] = { { "context", "99", "--ctx" } };
    const struct config_set bad[] = { { "context", "many", "--ctx" } };
    AUTO(config_free) struct config *c = NULL;
    struct config *none = NULL;
    struct why why = { 0 };

    put("/etc/moed/moed.conf.d/a.conf", "context = 1\n");
    assert_int_equal(config_new(&c, root, NULL, set, 1, &why), 0);
    assert_int_equal(c->context, 99);
    assert_int_equal(config_new(&none, root, NULL, bad, 1, &why), CONFIG_BAD);
    assert_string_equal(why.text, "--ctx: context: 'many' is not a number");
}

static void test_one_file(void **state) {
    AUTO(config_free) struct config *c = NULL;
    struct why why = { 0 };
    char path[512];

    put("/etc/moed/moed.conf.d/a.conf", "context = 1\n");
    put("/my.conf", "queue = 7\n");
    (void)snprintf(path, sizeof path, "%s/my.conf", root);
    assert_int_equal(config_new(&c, root, path, NULL, 0, &why), 0);
    assert_int_equal(c->queue, 7);
    assert_int_equal(c->context, 0);
    (void)strcat(path, ".absent");
    assert_int_equal(config_new(&c, root, path, NULL, 0, &why), CONFIG_BAD);
    assert_non_null(strstr(why.text, "my.conf.absent: cannot read: No such file"));
    c = config_free(c);
    memmove(path + 1, path, strlen(path) + 1);
    path[0] = '-';
    assert_int_equal(config_new(&c, root, path, NULL, 0, &why), 0);
    assert_int_equal(c->queue, 64); /* absent, and the tree is not read in its stead */
}

static void test_errors_say_where(void **state) {
    put("/etc/moed/moed.conf", "\nqueue = 0\n");
    refuse("/etc/moed/moed.conf:2: queue: 0 is not within 1 to 4096");
    put("/etc/moed/moed.conf", "queue = 12x\n");
    refuse("moed.conf:1: queue: '12x' is not a number");
    put("/etc/moed/moed.conf", "queue = -1\n");
    refuse("moed.conf:1: queue: '-1' is not a number");
    put("/etc/moed/moed.conf", "queue = 99999999999999999999\n");
    refuse("moed.conf:1: queue: '99999999999999999999' is not a number");
    put("/etc/moed/moed.conf", "kv-bytes = 99999999T\n");
    refuse("moed.conf:1: kv-bytes: 99999999T is not within");
    put("/etc/moed/moed.conf", "kv-type = q4_0\n");
    refuse("moed.conf:1: kv-type: 'q4_0' is none of f16, f32, q8_0");
    put("/etc/moed/moed.conf", "exact = perhaps\n");
    refuse("moed.conf:1: exact: 'perhaps' is neither yes nor no");
    put("/etc/moed/moed.conf", "model = a.gguf\n");
    refuse("moed.conf:1: model: 'a.gguf' is not an absolute path");
    put("/etc/moed/moed.conf", "modle = /a.gguf\n");
    refuse("moed.conf:1: modle: no such key");
    put("/etc/moed/moed.conf", "# fine\n[Section]\n");
    refuse("moed.conf:2: '[Section]' is no \"key = value\"");
    put("/etc/moed/moed.conf", "log = \xff\n");
    refuse("moed.conf:1: log: not valid UTF-8");
    put("/etc/moed/moed.conf", "");
    put("/run/moed/moed.conf.d/x.conf", "threads = all\n");
    refuse("/run/moed/moed.conf.d/x.conf:1: threads: 'all' is not a number");
}

static void test_print(void **state) {
    const struct config_set set[] = { { "model", "/m.gguf", "--model" } };
    AUTO(config_free) struct config *c = NULL;
    AUTO(config_free) struct config *again = NULL;
    struct why why = { 0 };
    char *text = NULL, path[512];
    size_t n;
    FILE *f = open_memstream(&text, &n);

    put("/etc/moed/moed.conf", "\nkv-type = f32\n");
    assert_int_equal(config_new(&c, root, NULL, set, 1, &why), 0);
    config_print(c, f);
    (void)fclose(f);
    assert_non_null(strstr(text, "# --model\nmodel = /m.gguf\n"));
    assert_non_null(strstr(text, "/etc/moed/moed.conf:2\nkv-type = f32\n"));
    assert_non_null(strstr(text, "# default\nqueue = 64\n"));

    /* What is printed is a configuration file that says the same. */
    put("/again.conf", text);
    (void)snprintf(path, sizeof path, "%s/again.conf", root);
    assert_int_equal(config_new(&again, root, path, NULL, 0, &why), 0);
    assert_string_equal(again->model, "/m.gguf");
    assert_int_equal(again->kv_type, CONFIG_KV_F32);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_defaults, setup, teardown),
        cmocka_unit_test_setup_teardown(test_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_precedence, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mask_by_null, setup, teardown),
        cmocka_unit_test_setup_teardown(test_command_line_wins, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors_say_where, setup, teardown),
        cmocka_unit_test_setup_teardown(test_print, setup, teardown),
    };

    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
