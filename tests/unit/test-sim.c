/* SPDX-License-Identifier: Apache-2.0 */

/* Policies on recordings: what is known by hand, and that none beats the one that knows the future.
 * test-sim RECORDING, of the demo model */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/auto.h"
#include "engine/tools/sim.h"

static const char *demo;

/* The shape of Gemma 4 26B, and what fits in 12 GiB: 1.6 GB are dense weights, 0.4 GB keys and
 * values, an expert is 3,345,408 bytes. */
enum { BIG_LAYER = 30, BIG_EXPERT = 128, BIG_USED = 8, BIG_SLOT = 3253 };

static uint64_t reads(const struct routes *r, enum sim_policy p, uint32_t n_slot) {
    struct sim_count c;

    assert_int_equal(sim_run(r, p, n_slot, &c), 0);
    return c.reads;
}

/* One layer, one expert a token: the reference string of textbooks. */
static void test_by_hand(void **state) {
    static const uint16_t id[] = { 7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1 };
    enum { N = sizeof id / sizeof *id };
    struct routes_head head = routes_begin(1, 8, 1);
    uint8_t buf[sizeof head + N * 6] __attribute__((aligned(8)));
    uint32_t one = 1;
    struct sim_count c;
    struct routes r;

    memcpy(buf, &head, sizeof head);
    for (size_t i = 0; i < N; i++) {
        memcpy(buf + sizeof head + i * 6, &one, 4);
        memcpy(buf + sizeof head + i * 6 + 4, &id[i], 2);
    }
    assert_int_equal(routes_open(&r, buf, sizeof buf, NULL), 0);
    assert_int_equal(r.n_step, N);
    assert_int_equal(reads(&r, SIM_BEST, 3), 9);
    assert_int_equal(reads(&r, SIM_LRU, 3), 12);
    for (uint32_t p = 0; p < SIM_N; p++) { /* all fit: each once */
        assert_int_equal(sim_run(&r, p, 6, &c), 0);
        assert_true(c.uses == N && c.first == 6 && c.reads == 6);
        assert_true(sim_hit(&c) == 1);
    }
}

/* Steps of several rows: an expert that rows share is used once. */
static void *random_routes(uint32_t seed, struct routes *ret) {
    uint32_t n_layer = 1 + seed % 4, n_expert = 2 + seed % 9, k = 1 + seed % 2;
    struct routes_head head = routes_begin(n_layer, n_expert, k);
    size_t size = 0;
    char *buf = NULL;
    FILE *f = open_memstream(&buf, &size);

    assert_non_null(f);
    srand(seed);
    fwrite(&head, sizeof head, 1, f);
    for (uint32_t step = 0; step < 60; step++) {
        uint32_t n_row = 1 + (uint32_t)rand() % 3;

        fwrite(&n_row, sizeof n_row, 1, f);
        for (uint32_t i = 0; i < n_layer * n_row; i++) {
            uint16_t id[2] = { (uint16_t)((uint32_t)rand() % n_expert) };

            id[1] = (uint16_t)((id[0] + 1) % n_expert);
            fwrite(id, sizeof *id, k, f);
        }
    }
    fclose(f);
    assert_int_equal(routes_open(ret, buf, size, NULL), 0);
    return buf;
}

static void test_none_beats_the_optimum(void **state) {
    for (uint32_t seed = 0; seed < 40; seed++) {
        struct routes r;
        AUTO(free) void *buf = random_routes(seed, &r);

        assert_non_null(buf);
        for (uint32_t n_slot = 1; n_slot <= r.n_layer * r.n_expert; n_slot++) {
            uint64_t best = reads(&r, SIM_BEST, n_slot);

            for (uint32_t p = 0; p < SIM_N; p++)
                assert_true(reads(&r, p, n_slot) >= best);
        }
    }
}

static void big_hits(double skew, double locality, double *ret_hit) {
    struct sim_router m = { .n_layer = BIG_LAYER,
                            .n_expert = BIG_EXPERT,
                            .k = BIG_USED,
                            .n_token = 200,
                            .skew = skew,
                            .locality = locality,
                            .seed = 3 };
    AUTO(free) void *buf = NULL;
    struct sim_count c;
    struct routes r;
    size_t size;

    assert_int_equal(sim_make(&m, &buf, &size), 0);
    assert_int_equal(routes_open(&r, buf, size, NULL), 0);
    for (uint32_t p = 0; p < SIM_N; p++) {
        assert_int_equal(sim_run(&r, p, BIG_SLOT, &c), 0);
        ret_hit[p] = sim_hit(&c);
        assert_true(c.uses == 200 * BIG_LAYER * BIG_USED);
    }
}

/* With a router that has favourites, ours is near the optimum. */
static void test_skewed(void **state) {
    double hit[SIM_N];

    for (int i = 0; i < 3; i++) {
        big_hits(0.9 + 0.2 * i, 0.2 * i, hit);
        assert_true(hit[SIM_OURS] >= hit[SIM_BEST] - 0.05);
        assert_true(hit[SIM_OURS] >= hit[SIM_LRU] - 0.005);
    }
}

/* With one that has none, nobody who does not know the future has more than the share that fits. */
static void test_even(void **state) {
    double hit[SIM_N], share = (double)BIG_SLOT / (BIG_LAYER * BIG_EXPERT);

    big_hits(0, 0, hit);
    for (uint32_t p = SIM_OURS; p <= SIM_LFU;
         p++) /* before slots are full, all that is read stays */
        assert_true(hit[p] >= share - 0.01 && hit[p] <= share + 0.03);
    assert_true(hit[SIM_BEST] > share + 0.05);
}

static void test_demo(void **state) {
    AUTO(free) char *buf = malloc(1 << 20);
    FILE *f = fopen(demo, "re");
    struct why why = { "" };
    struct routes r;
    size_t n;

    assert_true(f && buf);
    n = fread(buf, 1, 1 << 20, f);
    fclose(f);
    if (routes_open(&r, buf, n, &why) != 0)
        fail_msg("%s", why.text);
    assert_true(r.n_layer == 4 && r.n_expert == 8 && r.k == 2 && r.n_row > 100);
    for (uint32_t n_slot = 2; n_slot < 32; n_slot += 6)
        for (uint32_t p = 0; p < SIM_N; p++)
            assert_true(reads(&r, p, n_slot) >= reads(&r, SIM_BEST, n_slot));
    assert_int_equal(reads(&r, SIM_OURS, 32), reads(&r, SIM_BEST, 32));
}

/* Any cut is noticed, and so is an expert that is not there or is there twice. */
static void test_bad_recording(void **state) {
    struct routes r;
    AUTO(free) uint8_t *buf = random_routes(1, &r);
    size_t head = sizeof(struct routes_head), size = head + r.size, whole = 0, at = 0;
    struct routes_step step;
    struct why why;
    uint16_t id[2];

    for (size_t n = 0; n < size; n++)
        whole += routes_open(&r, buf, n, &why) == 0;
    assert_int_equal(whole, 60); /* between two steps */
    assert_int_equal(routes_open(&r, buf, size, NULL), 0);
    assert_true(routes_next(&r, &at, &step));
    memcpy(id, step.id, sizeof id);
    assert_int_equal(r.k, 2);
    memcpy(buf + head + 4, &(uint16_t){ 3 }, 2); /* of 3 experts */
    assert_int_equal(routes_open(&r, buf, size, &why), ROUTES_BAD);
    assert_non_null(strstr(why.text, "step 0"));
    memcpy(buf + head + 4, &id[1], 2);
    assert_int_equal(routes_open(&r, buf, size, NULL), ROUTES_BAD);
    memcpy(buf + head + 4, &id[0], 2);
    assert_int_equal(routes_open(&r, buf, size, NULL), 0);
    memset(buf + head, 0, 4); /* no rows */
    assert_int_equal(routes_open(&r, buf, size, NULL), ROUTES_BAD);
    buf[8]++;
    assert_int_equal(routes_open(&r, buf, head, &why), ROUTES_BAD);
    assert_non_null(strstr(why.text, "version"));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand), cmocka_unit_test(test_none_beats_the_optimum),
        cmocka_unit_test(test_skewed),  cmocka_unit_test(test_even),
        cmocka_unit_test(test_demo),    cmocka_unit_test(test_bad_recording),
    };

    if (argc != 2)
        return 2;
    demo = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
