/* SPDX-License-Identifier: Apache-2.0 */

/* The store of experts by itself, on a small file: what it gives is what the file has, in slots
 * that are too few, and reads that fail are reported and leave it as good as before. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/moe/fetch.h"
#include "engine/moe/store.h"

enum { N_LAYER = 3, N_EXPERT = 12, K = 4, HEAD = 2 * STORE_ALIGN, N_ROW = 8 };

static char path[] = "/tmp/test-store-XXXXXX";
static int fd;
static uint32_t fail_after; /* so many reads; then one fails with EIO. 0: none does */

bool __real_fetch_next(struct fetch *f, uint32_t wait_msec, uint32_t *ret_tag, int *ret_r);
bool __wrap_fetch_next(struct fetch *f, uint32_t wait_msec, uint32_t *ret_tag, int *ret_r);

bool __wrap_fetch_next(struct fetch *f, uint32_t wait_msec, uint32_t *ret_tag, int *ret_r) {
    if (!__real_fetch_next(f, wait_msec, ret_tag, ret_r))
        return false;
    if (fail_after > 0 && --fail_after == 0)
        *ret_r = -EIO;
    return true;
}

/* Records of layers have other sizes; each expert has bytes of its own. */
static size_t size_of(uint32_t layer) {
    return (layer + 1) * (size_t)STORE_ALIGN;
}

static uint64_t at_of(uint32_t layer) {
    uint64_t at = HEAD;

    for (uint32_t i = 0; i < layer; i++)
        at += N_EXPERT * size_of(i);
    return at;
}

static uint8_t byte_of(uint32_t layer, uint32_t expert) {
    return (uint8_t)(layer * 50 + expert + 1);
}

static int write_file(void **state) {
    uint8_t *p = malloc(size_of(N_LAYER));

    fd = mkstemp(path);
    if (fd < 0 || !p)
        return -1;
    for (uint32_t l = 0; l < N_LAYER; l++)
        for (uint32_t e = 0; e < N_EXPERT; e++) {
            memset(p, byte_of(l, e), size_of(l));
            if (pwrite(fd, p, size_of(l), (off_t)(at_of(l) + e * size_of(l))) !=
                (ssize_t)size_of(l))
                return -1;
        }
    free(p);
    return fsync(fd);
}

static int remove_file(void **state) {
    (void)close(fd);
    return unlink(path);
}

struct world {
    struct store *s;
    struct group g;
    struct arena a;
    uint32_t rng;
};

static void open_world(struct world *w, uint32_t n_slot, bool no_uring) {
    struct store_layer layer[N_LAYER];
    struct store_options opt = { .name = "file",
                                 .fd = fd,
                                 .layer = layer,
                                 .n_layer = N_LAYER,
                                 .n_expert = N_EXPERT,
                                 .bytes = n_slot * size_of(N_LAYER - 1),
                                 .no_uring = no_uring };
    struct store_stats stats;
    struct why why = { "" };

    for (uint32_t i = 0; i < N_LAYER; i++)
        layer[i] = (struct store_layer){ at_of(i), size_of(i) };
    *w = (struct world){ .rng = 7 };
    assert_int_equal(arena_init(&w->a, 1 << 16, &why), 0);
    group_init(&w->g, N_EXPERT, N_ROW, K, &w->a);
    if (store_new(&w->s, &opt, &why) != 0)
        fail_msg("%s", why.text);
    store_stats(w->s, &stats);
    assert_int_equal(stats.n_slot, n_slot < STORE_SLOT_MIN ? STORE_SLOT_MIN : n_slot);
}

static void close_world(struct world *w) {
    store_free(w->s);
    arena_deinit(&w->a);
}

static void choose(struct world *w) {
    uint32_t id[N_ROW * K];
    float weight[N_ROW * K] = { 0 };

    for (uint32_t r = 0; r < N_ROW; r++)
        for (uint32_t i = 0; i < K; i++) { /* distinct in a row */
            w->rng = w->rng * 1664525 + 1013904223;
            id[r * K + i] = i * (N_EXPERT / K) + (w->rng >> 16) % (N_EXPERT / K);
        }
    group_rows(&w->g, id, weight, 1 + w->rng % N_ROW);
}

/* One layer: all that is wanted comes once, and is what it should be. Return: store_next()'s. */
static int layer(struct world *w, uint32_t l) {
    struct store_here here[N_EXPERT];
    bool seen[N_EXPERT] = { false };
    uint32_t n, n_seen = 0;
    int r;

    choose(w);
    store_want(w->s, l, &w->g);
    for (bool wait = false;; wait = true) {
        r = store_next(w->s, wait, NULL, here, &n);
        if (r != 0 || (n == 0 && wait))
            break;
        for (uint32_t i = 0; i < n; i++) {
            uint8_t want = byte_of(l, w->g.expert[here[i].i].id);

            assert_false(seen[here[i].i]);
            seen[here[i].i] = true;
            n_seen++;
            for (size_t k = 0; k < size_of(l); k++)
                assert_int_equal(here[i].data[k], want);
        }
    }
    if (r == 0)
        assert_int_equal(n_seen, w->g.n_expert);
    return r;
}

static void test_gives(void **state) {
    for (uint32_t n_slot = 1; n_slot <= N_LAYER * N_EXPERT; n_slot += 1 + n_slot)
        for (int no_uring = 0; no_uring < 2; no_uring++) {
            struct store_stats stats;
            struct world w;

            open_world(&w, n_slot, no_uring);
            for (uint32_t i = 0; i < 60; i++) {
                assert_int_equal(store_step(w.s, 1), 0);
                for (uint32_t l = 0; l < N_LAYER; l++)
                    assert_int_equal(layer(&w, l), 0);
            }
            store_stats(w.s, &stats);
            assert_true(stats.hits + stats.misses >= 60 * N_LAYER * K);
            assert_int_equal(stats.rows, 60);
            close_world(&w);
        }
}

/* With a slot for each, everything is read once at most. */
static void test_keeps(void **state) {
    struct store_stats stats;
    struct world w;

    open_world(&w, N_LAYER * N_EXPERT, false);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(store_step(w.s, 1), 0);
        for (uint32_t l = 0; l < N_LAYER; l++)
            assert_int_equal(layer(&w, l), 0);
    }
    store_stats(w.s, &stats);
    assert_int_equal(stats.misses, N_LAYER * N_EXPERT);
    assert_int_equal(stats.read_bytes, at_of(N_LAYER) - HEAD);
    close_world(&w);
}

static void test_failure(void **state) {
    for (int no_uring = 0; no_uring < 2; no_uring++)
        for (uint32_t k = 1; k < 8; k++) {
            struct world w;
            uint32_t n_failed = 0;

            open_world(&w, 5, no_uring);
            fail_after = k;
            for (uint32_t i = 0; i < 20; i++)
                for (uint32_t l = 0; l < N_LAYER; l++)
                    if (layer(&w, l) != 0) {
                        n_failed++;
                        assert_non_null(strstr(store_why(w.s), "file: cannot read expert "));
                        assert_non_null(strstr(store_why(w.s), "Input/output error"));
                    }
            assert_true(n_failed == 1);
            close_world(&w);
        }
    fail_after = 0;
}

/* Wanted, and then no longer: what is under way comes to nothing worse than being there. */
static void test_leaves(void **state) {
    atomic_bool stop = true;
    struct store_here here[N_EXPERT];
    struct world w;
    uint32_t n;

    open_world(&w, 9, false);
    for (uint32_t i = 0; i < 50; i++) {
        choose(&w);
        store_want(w.s, i % N_LAYER, &w.g);
        if (i % 2)
            assert_int_equal(store_next(w.s, true, &stop, here, &n), STORE_STOPPED);
        else
            store_leave(w.s);
        assert_int_equal(layer(&w, i % N_LAYER), 0);
    }
    close_world(&w);
}

/* Last: the file is cut short, and stays so. */
static void test_short(void **state) {
    struct world w;
    int r = 0;

    open_world(&w, 2, false);
    assert_int_equal(ftruncate(fd, (off_t)at_of(N_LAYER - 1)), 0);
    assert_int_equal(store_step(w.s, 1), -ESTALE);
    assert_non_null(strstr(store_why(w.s), "file: the file was changed"));
    for (uint32_t i = 0; i < 4 && r == 0; i++)
        r = layer(&w, N_LAYER - 1);
    assert_int_equal(r, -ENODATA);
    assert_non_null(strstr(store_why(w.s), "the file ends before"));
    assert_int_equal(layer(&w, 0), 0);
    close_world(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gives),  cmocka_unit_test(test_keeps), cmocka_unit_test(test_failure),
        cmocka_unit_test(test_leaves), cmocka_unit_test(test_short),
    };

    return cmocka_run_group_tests_name("store", tests, write_file, remove_file);
}
