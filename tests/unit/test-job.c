/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sched/job.h"

static void test_queue(void **state) {
    struct job_queue q = { 0 };
    struct job *j[4];

    assert_null(job_queue_pop(&q));
    for (int round = 0; round < 4; round++) { /* take out each place in turn, then drain */
        for (int i = 0; i < 4; i++) {
            j[i] = job_new(JOB_TOKENIZE);
            assert_non_null(j[i]);
            job_queue_push(&q, j[i]);
        }
        assert_true(job_queue_remove(&q, j[round]));
        assert_false(job_queue_remove(&q, j[round]));
        for (int i = 0; i < 4; i++)
            if (i != round)
                assert_ptr_equal(job_queue_pop(&q), j[i]);
        assert_null(job_queue_pop(&q));
        assert_null(q.tail);
        for (int i = 0; i < 4; i++)
            job_free(j[i]);
    }
}

/* The first reason stays; a deadline is one. */
static void test_halt(void **state) {
    AUTO(job_free) struct job *a = job_new(JOB_GENERATE), *b = job_new(JOB_GENERATE);

    assert_int_equal(job_halted(a), JOB_END_N);
    a->deadline = job_clock() + 3600000000;
    assert_int_equal(job_halted(a), JOB_END_N);
    assert_false(atomic_load(&a->halt));
    a->deadline = job_clock();
    assert_int_equal(job_halted(a), JOB_END_DEADLINE);
    assert_true(atomic_load(&a->halt));
    job_halt(a, JOB_END_CANCELLED);
    assert_int_equal(job_halted(a), JOB_END_DEADLINE);

    job_halt(b, JOB_END_CANCELLED);
    b->deadline = 1;
    assert_int_equal(job_halted(b), JOB_END_CANCELLED);
}

/* Copies do not look at what they were made from. */
static void test_copy(void **state) {
    AUTO(job_free) struct job *j = job_new(JOB_GENERATE);
    char role[] = "user", text[] = "hello", other[] = "";
    struct chat_message msg[] = { { role, text }, { text, other } };
    struct sample_bias bias = { .id = 3, .bias = 1.0f };
    struct sample_params p = { .bias = &bias, .n_bias = 1 };
    tok_t tok[] = { 5, 6, 7 };

    assert_int_equal(job_copy_messages(j, msg, 2), 0);
    assert_int_equal(job_copy_text(j, text, 5), 0);
    assert_int_equal(job_copy_tokens(j, tok, 3), 0);
    assert_int_equal(job_copy_sample(j, &p), 0);
    memset(role, 'x', 4);
    memset(text, 'x', 5);
    tok[1] = 0;
    bias.id = 0;
    assert_int_equal(j->n_msg, 2);
    assert_string_equal(j->msg[0].role, "user");
    assert_string_equal(j->msg[0].text, "hello");
    assert_string_equal(j->msg[1].role, "hello");
    assert_string_equal(j->msg[1].text, "");
    assert_string_equal(j->text, "hello");
    assert_int_equal(j->n_text, 5);
    assert_int_equal(j->tok.n, 3);
    assert_int_equal(j->tok.id[1], 6);
    assert_int_equal(j->sample.bias[0].id, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue),
        cmocka_unit_test(test_halt),
        cmocka_unit_test(test_copy),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
