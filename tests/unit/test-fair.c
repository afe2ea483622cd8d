/* SPDX-License-Identifier: Apache-2.0 */

/* Shares in simulated steps: a stream takes one turn a step, a prompt as much as it is given. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "engine/sched/fair.h"

enum { N_JOB = 64 };

struct sim {
    struct fair *fair;
    struct fair_job job[N_JOB];
    uint32_t n;
    double got[N_JOB]; /* cost served */
    double chunk[N_JOB];
    uint32_t n_step, n_empty;
    uint32_t last[N_JOB], gap[N_JOB]; /* step of the last turn; longest wait */
};

static void sim_open(struct sim *s) {
    *s = (struct sim){ 0 };
    assert_int_equal(fair_new(&s->fair, N_JOB), 0);
}

/* @chunk: cost of a prompt's turn; 0: a stream. Return: the job's number. */
static uint32_t sim_add(struct sim *s, struct fair_who who, double chunk) {
    uint32_t i = s->n++;

    s->job[i] = (struct fair_job){ .who = who, .stream = chunk == 0 };
    s->chunk[i] = chunk;
    s->last[i] = s->n_step;
    fair_add(s->fair, &s->job[i]);
    fair_run(s->fair, &s->job[i], true);
    fair_ready(s->fair, &s->job[i], true);
    return i;
}

/* @room: cost a step holds */
static void sim_run(struct sim *s, uint32_t n_step, double room) {
    for (uint32_t k = 0; k < n_step; k++) {
        double left = room;
        struct fair_job *j;

        s->n_step++;
        fair_begin(s->fair);
        while (left > 0 && (j = fair_next(s->fair))) {
            uint32_t i = (uint32_t)(j - s->job);
            double cost = s->chunk[i] > 0 ? fmin(s->chunk[i], left) : 1;

            fair_charge(s->fair, j, cost);
            s->got[i] += cost;
            left -= cost;
            if (s->n_step - s->last[i] > s->gap[i])
                s->gap[i] = s->n_step - s->last[i];
            s->last[i] = s->n_step;
        }
        s->n_empty += left == room;
    }
}

static double sim_got(const struct sim *s, uint32_t uid) {
    double sum = 0;

    for (uint32_t i = 0; i < s->n; i++)
        sum += s->job[i].who.uid == uid ? s->got[i] : 0;
    return sum;
}

/* Percent of what both got, as a part of 100. */
static double sim_share(const struct sim *s, uint32_t a, uint32_t b) {
    return 100 * sim_got(s, a) / (sim_got(s, a) + sim_got(s, b));
}

static void assert_near(double got, double want, double off) {
    if (fabs(got - want) > off)
        fail_msg("%g, not %g +- %g", got, want, off);
}

/* One stream against fifteen: half each, and each of the fifteen the same. */
static void test_streams(void **state) {
    struct sim s;

    sim_open(&s);
    sim_add(&s, (struct fair_who){ .uid = 1 }, 0);
    for (int i = 0; i < 15; i++)
        sim_add(&s, (struct fair_who){ .uid = 2 }, 0);
    sim_run(&s, 1500, 16);
    assert_near(sim_share(&s, 1, 2), 50, 1);
    assert_near(s.got[0], 1500, 1); /* it never waits */
    for (uint32_t i = 1; i < 16; i++)
        assert_near(s.got[i], 100, 2);
    fair_free(s.fair);
}

static void test_weights(void **state) {
    static const uint32_t n_stream[][2] = { { 1, 1 }, { 15, 15 }, { 1, 15 }, { 15, 1 } };

    for (size_t k = 0; k < 4; k++) {
        struct sim s;

        sim_open(&s);
        for (uint32_t i = 0; i < n_stream[k][0]; i++)
            sim_add(&s, (struct fair_who){ .uid = 1, .uid_weight = 300 }, 0);
        for (uint32_t i = 0; i < n_stream[k][1]; i++)
            sim_add(&s, (struct fair_who){ .uid = 2, .uid_weight = 100 }, 0);
        sim_run(&s, 2000, 16);
        assert_near(sim_share(&s, 1, 2), 75, 1);
        assert_int_equal(s.n_empty, 0);
        fair_free(s.fair);
    }
}

/* Of applications too, below the user's share. */
static void test_apps(void **state) {
    struct sim s;

    sim_open(&s);
    sim_add(&s, (struct fair_who){ .uid = 1, .app = 1, .app_weight = 200 }, 0);
    for (int i = 0; i < 9; i++)
        sim_add(&s, (struct fair_who){ .uid = 1, .app = 2 }, 0);
    for (int i = 0; i < 3; i++)
        sim_add(&s, (struct fair_who){ .uid = 2 }, 0);
    sim_run(&s, 3000, 16);
    assert_near(sim_share(&s, 1, 2), 50, 1);
    assert_near(100 * s.got[0] / sim_got(&s, 1), 66.7, 1);
    fair_free(s.fair);
}

/* Who is alone gets all there is, and so does everybody when the others are on hold. */
static void test_alone(void **state) {
    struct sim s;

    sim_open(&s);
    for (int i = 0; i < 8; i++)
        sim_add(&s, (struct fair_who){ .uid = 1 + (i == 0) }, 0);
    fair_ready(s.fair, &s.job[0], false);
    sim_run(&s, 100, 16);
    assert_near(s.got[0], 0, 0);
    assert_near(sim_got(&s, 1), 700, 0);

    fair_ready(s.fair, &s.job[0], true); /* what it did not use is gone */
    sim_run(&s, 100, 16);
    assert_near(s.got[0], 100, 0);
    assert_near(sim_got(&s, 1), 800, 1);
    fair_free(s.fair);
}

/* A long prompt beside a stream: half of the time each, and the stream is in every step but those
 * in which it would get more than that. */
static void test_prompt(void **state) {
    struct sim s;
    uint32_t a, b;

    sim_open(&s);
    a = sim_add(&s, (struct fair_who){ .uid = 1 }, 0);
    b = sim_add(&s, (struct fair_who){ .uid = 2 }, 7);
    sim_run(&s, 700, 8);
    assert_near(s.got[a], 700, 0);
    assert_near(s.got[b], 700, 8);
    fair_free(s.fair);
}

/* In one application the streams go on and the prompts take turns, interactive ones more. */
static void test_jobs(void **state) {
    struct sim s;

    sim_open(&s);
    for (int i = 0; i < 4; i++)
        sim_add(&s, (struct fair_who){ .uid = 1 }, i < 2 ? 0 : 6);
    sim_add(&s, (struct fair_who){ .uid = 1, .class = FAIR_INTERACTIVE }, 6);
    sim_run(&s, 600, 8);
    assert_near(s.got[0], 600, 0);
    assert_near(s.got[1], 600, 0);
    assert_near(s.got[2], 600, 12);
    assert_near(s.got[3], 600, 12);
    assert_near(s.got[4], 2400, 12);
    fair_free(s.fair);
}

/* Background: next to nothing beside others, never nothing, and all when they are gone. */
static void test_background(void **state) {
    struct sim s;

    sim_open(&s);
    for (int i = 0; i < 4; i++)
        sim_add(&s, (struct fair_who){ .uid = 1, .class = FAIR_BACKGROUND }, 0);
    sim_run(&s, 50, 16);
    assert_near(sim_got(&s, 1), 200, 0);
    sim_add(&s, (struct fair_who){ .uid = 2 }, 0);
    sim_run(&s, 640, 16);
    assert_near(s.got[4], 640, 0);
    assert_near(sim_got(&s, 1) - 200, 10, 4);
    fair_ready(s.fair, &s.job[4], false);
    sim_run(&s, 50, 16);
    assert_near(sim_got(&s, 1), 410, 4);
    fair_free(s.fair);
}

/* What came late, with the least weight there is, is served all the same. */
static void test_no_starvation(void **state) {
    struct sim s;
    uint32_t late;

    sim_open(&s);
    for (uint32_t i = 0; i < 40; i++)
        sim_add(&s, (struct fair_who){ .uid = i, .uid_weight = 10000 }, i % 2 ? 0 : 8);
    sim_run(&s, 5000, 8);
    late = sim_add(&s, (struct fair_who){ .uid = 99, .uid_weight = 100 }, 0);
    sim_run(&s, 100000, 8);
    assert_true(s.got[late] > 100);
    for (uint32_t i = 0; i < 40; i++)
        assert_in_range(s.gap[i], 1, 400);
    fair_free(s.fair);
}

/* Coming back under a new number does not wash off what was had: a user whose jobs are short and
 * many has no more than one whose job is long. */
static void test_come_and_go(void **state) {
    struct sim s;
    uint32_t b;

    sim_open(&s);
    sim_add(&s, (struct fair_who){ .uid = 1 }, 8);
    b = sim_add(&s, (struct fair_who){ .uid = 2 }, 8);
    for (int i = 0; i < 4000; i++) {
        double had = s.got[b];

        sim_run(&s, 1, 8);
        if (s.got[b] > had) {
            fair_remove(s.fair, &s.job[b]);
            s.n--;
            assert_int_equal(sim_add(&s, (struct fair_who){ .uid = 2 }, 8), b);
        }
    }
    assert_near(sim_share(&s, 1, 2), 50, 1);
    fair_free(s.fair);
}

/* ---- places ---- */

static bool may(void *arg, const struct fair_job *j) {
    return !arg || j->who.uid != *(uint32_t *)arg;
}

static void test_places(void **state) {
    static const struct fair_who who[] = {
        { .uid = 1 },
        { .uid = 1 },
        { .uid = 1, .class = FAIR_INTERACTIVE },
        { .uid = 1, .class = FAIR_BACKGROUND },
        { .uid = 2 },
        { .uid = 3, .class = FAIR_BACKGROUND },
    };
    /* Background last; fewest places first, interactive ones before others of the same user. */
    static const uint32_t order[] = { 2, 4, 0, 1, 3, 5 };
    uint32_t skipped = 1;
    struct sim s;

    sim_open(&s);
    for (uint32_t i = 0; i < 6; i++) {
        s.job[i] = (struct fair_job){ .who = who[i] };
        fair_add(s.fair, &s.job[i]);
    }
    fair_begin(s.fair);
    assert_null(fair_next(s.fair));
    assert_ptr_equal(fair_wait_next(s.fair, may, &skipped), &s.job[4]);
    for (uint32_t i = 0; i < 6; i++) {
        struct fair_job *j = fair_wait_next(s.fair, may, NULL);

        assert_ptr_equal(j, &s.job[order[i]]);
        fair_run(s.fair, j, true);
    }
    assert_null(fair_wait_next(s.fair, may, NULL));

    assert_true(fair_yields(s.fair, &s.job[3], &s.job[4])); /* background to others */
    assert_false(fair_yields(s.fair, &s.job[4], &s.job[3]));
    assert_false(fair_yields(s.fair, &s.job[0], &s.job[4])); /* it has a place */
    fair_run(s.fair, &s.job[4], false);
    assert_true(fair_yields(s.fair, &s.job[0], &s.job[4]));
    fair_run(s.fair, &s.job[0], false);
    fair_run(s.fair, &s.job[1], false);
    assert_false(fair_yields(s.fair, &s.job[2], &s.job[4])); /* the only one of its user */
    fair_free(s.fair);
}

/* Users that come once and never again do not use the memory up. */
static void test_many_users(void **state) {
    struct sim s;

    sim_open(&s);
    for (uint32_t i = 0; i < 20 * N_JOB; i++) {
        sim_add(&s, (struct fair_who){ .uid = i, .app = i }, 100);
        if (s.n < N_JOB)
            continue;
        sim_run(&s, 10, 100);
        while (s.n > 0)
            fair_remove(s.fair, &s.job[--s.n]);
    }
    fair_begin(s.fair);
    assert_null(fair_next(s.fair));
    fair_free(s.fair);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams),     cmocka_unit_test(test_weights),
        cmocka_unit_test(test_apps),        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_prompt),      cmocka_unit_test(test_jobs),
        cmocka_unit_test(test_background),  cmocka_unit_test(test_no_starvation),
        cmocka_unit_test(test_come_and_go), cmocka_unit_test(test_places),
        cmocka_unit_test(test_many_users),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
