/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "engine/base/ring.h"

/* Odd size on purpose: elements are not aligned in the ring. */
struct elem {
    uint32_t n;
    char tag[7];
} __attribute__((packed));

enum { N_STREAM = 1000000 };

static bool readable(struct ring *r, int timeout_msec) {
    struct pollfd p = { .fd = ring_fd(r), .events = POLLIN };

    return poll(&p, 1, timeout_msec) == 1;
}

static int push(struct ring *r, uint32_t n) {
    struct elem e = { .n = n };

    memset(e.tag, (int)(n % 251), sizeof e.tag);
    return ring_push(r, &e);
}

/* Pop one and check that it is number @n, whole. */
static int pop(struct ring *r, uint32_t n) {
    struct elem e = { 0 };
    int ret = ring_pop(r, &e);

    if (ret == 0) {
        assert_int_equal(e.n, n);
        for (size_t i = 0; i < sizeof e.tag; i++)
            assert_int_equal((uint8_t)e.tag[i], n % 251);
    }
    return ret;
}

static void test_bad_sizes(void **state) {
    struct ring *r = NULL;

    (void)state;
    assert_true(ring_new(&r, 0, 4) < 0);
    assert_true(ring_new(&r, 4, 0) < 0);
    assert_true(ring_new(&r, UINT32_MAX, 4) < 0);
    assert_null(r);
    assert_null(ring_free(NULL));
}

/* Every fill level, at every place of the counters, wrapping many times. */
static void test_order_full_empty(void **state) {
    AUTO(ring_free) struct ring *r = NULL;
    uint32_t in = 0, out = 0;

    (void)state;
    assert_int_equal(ring_new(&r, 5, sizeof(struct elem)), 0);
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t n = round % 9;

        for (uint32_t i = 0; i < n; i++) {
            int want = in - out == 8 ? RING_FULL : 0;

            assert_int_equal(push(r, in), want);
            in += want == 0;
        }
        for (uint32_t i = 0; i < round % 7; i++) {
            int want = in == out ? RING_EMPTY : 0;

            assert_int_equal(pop(r, out), want);
            out += want == 0;
        }
    }
    for (; out < in; out++)
        assert_int_equal(pop(r, out), 0);
    assert_int_equal(pop(r, out), RING_EMPTY);
}

static void test_fd_follows_elements(void **state) {
    AUTO(ring_free) struct ring *r = NULL;

    (void)state;
    assert_int_equal(ring_new(&r, 8, sizeof(struct elem)), 0);
    assert_false(readable(r, 0));
    for (int round = 0; round < 3; round++) {
        assert_int_equal(push(r, 1), 0);
        assert_true(readable(r, 0));
        assert_int_equal(push(r, 2), 0);
        assert_int_equal(pop(r, 1), 0);
        assert_true(readable(r, 0)); /* one is left */
        assert_int_equal(pop(r, 2), 0);
        assert_int_equal(pop(r, 3), RING_EMPTY);
        assert_false(readable(r, 0));
        assert_int_equal(pop(r, 3), RING_EMPTY);
        assert_false(readable(r, 0));
    }
}

struct stream {
    struct ring *r;
    uint32_t n;
    atomic_bool stop;
};

static void *produce(void *arg) {
    struct stream *s = arg;

    for (uint32_t i = 0; i < s->n && !atomic_load(&s->stop); i++)
        while (push(s->r, i) == RING_FULL && !atomic_load(&s->stop))
            sched_yield();
    return NULL;
}

/* A consumer that only ever pops after poll() said so: a lost wake shows as a time-out. @budget:
 * elements it takes each time, 0: all there are. */
static void stream(uint32_t n, uint32_t n_ring, uint32_t budget) {
    AUTO(ring_free) struct ring *r = NULL;
    struct stream s = { .n = n };
    uint32_t out = 0;
    pthread_t t;

    assert_int_equal(ring_new(&r, n_ring, sizeof(struct elem)), 0);
    s.r = r;
    assert_int_equal(pthread_create(&t, NULL, produce, &s), 0);
    while (out < n && readable(r, 60000))
        for (uint32_t i = 0; (!budget || i < budget) && pop(r, out) == 0; i++)
            out++;
    atomic_store(&s.stop, true);
    pthread_join(t, NULL);
    assert_int_equal(out, n);
    assert_int_equal(pop(r, out), RING_EMPTY);
}

static void test_stream_small_ring(void **state) {
    (void)state;
    stream(N_STREAM / 10, 2, 0);
}

static void test_stream_budget(void **state) {
    (void)state;
    stream(N_STREAM / 10, 64, 3);
}

static void test_stream_million(void **state) {
    (void)state;
    stream(N_STREAM, 1024, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_sizes),           cmocka_unit_test(test_order_full_empty),
        cmocka_unit_test(test_fd_follows_elements), cmocka_unit_test(test_stream_small_ring),
        cmocka_unit_test(test_stream_budget),       cmocka_unit_test(test_stream_million),
    };

    return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
