/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/origin.h"

#define DIGEST "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static char dir[64], model[128], path[160];

static int setup(void **state) {
    (void)strcpy(dir, "/tmp/moed-origin-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    (void)snprintf(model, sizeof model, "%s/a.gguf", dir);
    (void)snprintf(path, sizeof path, "%s.origin", model);
    return 0;
}

static int teardown(void **state) {
    char cmd[128];

    (void)snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

static struct origin read_back(const char *text) {
    struct origin o;

    if (text) {
        FILE *f = fopen(path, "w");

        assert_non_null(f);
        fputs(text, f);
        (void)fclose(f);
    }
    memset(&o, 'x', sizeof o);
    origin_read(model, &o);
    return o;
}

static void test_kept(void **state) {
    const struct origin o = { DIGEST, "MIT or \xe2\x9c\x93" };
    struct origin back;

    assert_int_equal(origin_write(model, &o), 0);
    back = read_back(NULL);
    assert_string_equal(back.digest, o.digest);
    assert_string_equal(back.license, o.license);
    assert_int_equal(origin_write(model, &(struct origin){ DIGEST, "" }), 0); /* over it */
    assert_string_equal(read_back(NULL).license, "");
    origin_remove(model);
    assert_int_equal(access(path, F_OK), -1);
    origin_remove(model);
    assert_string_equal(read_back(NULL).digest, "");
}

static void test_cannot_write(void **state) {
    assert_int_equal(origin_write("/proc/none/a.gguf", &(struct origin){ DIGEST, "" }), -ENOENT);
}

static void test_said_wrong(void **state) {
    static const char *const digests[] = { "12", DIGEST "0",
                                           "0123456789ABCDEF0123456789abcdef"
                                           "0123456789abcdef0123456789abcdef",
                                           "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
                                           "\xff\xff\xff"
                                           "0123456789abcdef0123456789abcdef"
                                           "0123456789abcdef" };
    char text[1024], license[400];

    for (size_t i = 0; i < sizeof digests / sizeof digests[0]; i++) {
        (void)snprintf(text, sizeof text, "digest = %s\nlicense = MIT\n", digests[i]);
        assert_string_equal(read_back(text).digest, "");
        assert_string_equal(read_back(NULL).license, "MIT");
    }
    assert_string_equal(read_back("license = \xff\ndigest = " DIGEST "\n").license, "");
    assert_string_equal(read_back(NULL).digest, DIGEST);
    memset(license, 'l', sizeof license - 1);
    license[sizeof license - 1] = '\0';
    (void)snprintf(text, sizeof text, "license = %s\n", license);
    assert_string_equal(read_back(text).license, ""); /* whole, or not at all */
    assert_string_equal(read_back("digest = " DIGEST "\nno line\n").digest, DIGEST);
}

int main(void) {
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_kept),
        TEST(test_cannot_write),
        TEST(test_said_wrong),
    };

    return cmocka_run_group_tests_name("origin", tests, NULL, NULL);
}
