/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/base/arena.h"
#include "engine/base/mem.h"

enum { N_PIECE = 40 };

/* Pieces of many sizes. @ret: [N_PIECE] */
static void lay_out(struct arena *a, uint8_t **ret) {
    for (size_t i = 0; i < N_PIECE; i++)
        ret[i] = arena_alloc(a, i * 37, i % 5 + 1);
}

static void test_measure_then_place(void **state) {
    struct arena m, a;
    uint8_t *piece[N_PIECE];

    (void)state;
    arena_measure(&m);
    lay_out(&m, piece);
    for (size_t i = 0; i < N_PIECE; i++)
        assert_non_null(piece[i]);
    assert_false(m.failed);

    assert_int_equal(arena_init(&a, m.used, NULL), 0);
    lay_out(&a, piece);
    assert_false(a.failed);
    assert_int_equal(a.used, m.used);
    assert_int_equal(a.used, a.size);
    for (size_t i = 0; i < N_PIECE; i++) {
        size_t size = i * 37 * (i % 5 + 1);

        assert_int_equal((uintptr_t)piece[i] % ARENA_ALIGN, 0);
        for (size_t k = 0; k < size; k++)
            assert_int_equal(piece[i][k], 0);
        memset(piece[i], (int)i + 1, size);
    }
    for (size_t i = 0; i < N_PIECE; i++) /* no piece wrote into another */
        for (size_t k = 0; k < i * 37 * (i % 5 + 1); k++)
            assert_int_equal(piece[i][k], i + 1);
    assert_null(arena_alloc(&a, 1, 1));
    assert_true(a.failed);
    arena_deinit(&a);
    assert_null(a.base);
    arena_deinit(&a);
}

static void test_does_not_fit(void **state) {
    struct arena a;

    (void)state;
    assert_int_equal(arena_init(&a, 100, NULL), 0); /* 128 with padding */
    assert_non_null(arena_alloc(&a, 1, 60));
    assert_null(arena_alloc(&a, 1, 65));
    assert_true(a.failed);
    assert_non_null(arena_alloc(&a, 64, 1)); /* a failure takes nothing */
    assert_int_equal(a.used, 128);
    arena_deinit(&a);

    assert_int_equal(arena_init(&a, 0, NULL), 0);
    assert_false(a.failed);
    assert_null(arena_alloc(&a, 1, 1));
    assert_true(a.failed);
    arena_deinit(&a);
}

static void test_overflow(void **state) {
    static const size_t bad[][2] = {
        { SIZE_MAX, 2 },
        { 2, SIZE_MAX },
        { SIZE_MAX / 2 + 1, 2 },
        { SIZE_MAX, 1 },
        { SIZE_MAX - 62, 1 },
        { (size_t)1 << 33, (size_t)1 << 33 },
        { SIZE_MAX - ARENA_ALIGN, 1 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct arena a;

        arena_measure(&a);
        assert_non_null(arena_alloc(&a, 1, ARENA_ALIGN));
        assert_null(arena_alloc(&a, bad[i][0], bad[i][1]));
        assert_true(a.failed);
        assert_int_equal(a.used, ARENA_ALIGN);
    }
}

static void test_too_big_says_how_big(void **state) {
    struct why why = { "" };
    struct arena a;

    (void)state;
    assert_true(arena_init(&a, SIZE_MAX / 2, &why) < 0);
    assert_non_null(strstr(why.text, "9223372036854775807"));
    assert_null(a.base);
    arena_deinit(&a);
    assert_true(arena_init(&a, SIZE_MAX, &why) < 0);
}

static void test_mem(void **state) {
    static const size_t size[] = { 1, 4096, 5000, MEM_HUGE - 1, MEM_HUGE, 3 * MEM_HUGE + 1 };
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), last;
    void *p = NULL;

    (void)state;
    for (int huge = 0; huge < 2; huge++)
        for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
            unsigned char *c, in;

            assert_int_equal(mem_map(size[i], huge, &p), 0);
            if (huge && size[i] >= MEM_HUGE)
                assert_int_equal((uintptr_t)p % MEM_HUGE, 0);
            c = p;
            c[0] = c[size[i] - 1] = 1;
            mem_unmap(p, size[i]);
            assert_int_equal(mincore(p, 1, &in), -1); /* nothing of it is left */
            last = (uintptr_t)(c + size[i] - 1) / page * page;
            assert_int_equal(mincore((void *)last, 1, &in), -1);
        }
    assert_int_equal(mem_map(0, false, &p), -EINVAL);
    assert_int_equal(mem_map(SIZE_MAX, false, &p), -ENOMEM);
    assert_int_equal(mem_map(SIZE_MAX - MEM_HUGE, true, &p), -ENOMEM);
    mem_unmap(NULL, 1);
}

/* Pieces behind a seek lie where those before it did. */
static void test_seek(void **state) {
    struct arena a, size;
    struct why why;

    (void)state;
    for (size_t n = 100; n <= 300; n += 200) { /* bytes of the second; the first has 200 */
        uint8_t *begin, *one, *two;
        size_t at;

        arena_measure(&size);
        (void)arena_alloc(&size, 1, 10);
        at = size.used;
        (void)arena_alloc(&size, 1, 200);
        assert_int_equal(arena_seek(&size, at), ARENA_ALIGN + 256);
        assert_int_equal(size.used, ARENA_ALIGN);
        (void)arena_alloc(&size, 1, n);

        assert_int_equal(arena_init(&a, ARENA_ALIGN + 320, &why), 0);
        begin = arena_alloc(&a, 1, 10);
        at = a.used;
        one = arena_alloc(&a, 1, 200);
        (void)arena_seek(&a, at);
        two = arena_alloc(&a, 1, n);
        assert_ptr_equal(one, begin + ARENA_ALIGN);
        assert_ptr_equal(two, one);
        assert_int_equal(a.used, size.used);
        assert_false(a.failed);
        arena_deinit(&a);
    }
}

/* None before a page is written; then as many as the kernel gave, never more than there are. */
static void test_mem_huge(void **state) {
    const size_t size = 4 * MEM_HUGE;
    void *p = NULL;

    (void)state;
    assert_int_equal(mem_map(size, true, &p), 0);
    assert_int_equal(mem_huge(p, size), 0);
    memset(p, 1, size);
    assert_in_range(mem_huge(p, size), 0, size);
    assert_in_range(mem_huge(p, MEM_HUGE), 0, MEM_HUGE);
    mem_unmap(p, size);
    assert_int_equal(mem_huge(NULL, 4096), 0); /* nothing is there */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measure_then_place),
        cmocka_unit_test(test_does_not_fit),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_too_big_says_how_big),
        cmocka_unit_test(test_seek),
        cmocka_unit_test(test_mem),
        cmocka_unit_test(test_mem_huge),
    };

    return cmocka_run_group_tests_name("arena", tests, NULL, NULL);
}
