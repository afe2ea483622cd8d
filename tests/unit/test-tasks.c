/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/event.h>

#include "daemon/tasks.h"

static struct event_base *base;
static struct tasks *all;

static int setup(void **state) {
    base = event_base_new();
    return !base || tasks_new(&all, base);
}

static int teardown(void **state) {
    all = tasks_free(all);
    event_base_free(base);
    return 0;
}

/* Work that is cancelled at once; it counts how often. */
struct job {
    struct task *task;
    unsigned n_cancel;
};

static void cancel(void *arg) {
    struct job *j = arg;
    struct why why = { .text = "not wanted any more" };

    j->n_cancel++;
    tasks_end(j->task, TASK_CANCELLED, &why);
}

static struct job job_new(void) {
    struct job j = { 0 };

    assert_int_equal(tasks_begin(&j.task, all, TASK_LOAD, "m", 7, cancel, NULL), 0);
    return j;
}

struct wait {
    struct task_waiter waiter;
    unsigned n_progress, n_ended;
};

static void on_progress(struct task_waiter *w) {
    ((struct wait *)w)->n_progress++;
}

static void on_ended(struct task_waiter *w) {
    ((struct wait *)w)->n_ended++;
}

static void test_life(void **state) {
    struct wait w = { .waiter = { .progress = on_progress, .ended = on_ended } };
    struct job j = job_new();
    uint64_t id = j.task->id;

    assert_ptr_equal(tasks_find(all, id), j.task);
    assert_int_equal(j.task->uid, 7);
    assert_string_equal(tasks_kind_name(j.task->kind), "load");
    LIST_INSERT_HEAD(&j.task->waiters, &w.waiter, link);
    tasks_progress(j.task, 3, 9);
    assert_int_equal(j.task->done, 3);
    assert_int_equal(j.task->total, 9);
    tasks_end(j.task, TASK_DONE, NULL);
    tasks_end(j.task, TASK_FAILED, NULL);
    assert_int_equal(w.n_progress, 1);
    assert_int_equal(w.n_ended, 1);
    assert_true(LIST_EMPTY(&j.task->waiters));
    assert_string_equal(tasks_state_name(j.task->state), "done");
    assert_int_equal(j.task->reason.text[0], 0);
    assert_ptr_equal(tasks_find(all, id), j.task);
}

static void test_cancel(void **state) {
    struct job j = job_new();

    j.task->arg = &j;
    assert_true(tasks_cancel(j.task));
    assert_false(tasks_cancel(j.task));
    assert_int_equal(j.n_cancel, 1);
    assert_int_equal(j.task->state, TASK_CANCELLED);
    assert_string_equal(j.task->reason.text, "not wanted any more");
}

/* Numbers are never given twice, whoever takes them. */
static void test_numbers(void **state) {
    uint64_t a = tasks_number(all);
    struct job j = job_new();
    uint64_t b = tasks_number(all);

    assert_true(a < j.task->id);
    assert_true(j.task->id < b);
    assert_null(tasks_find(all, b));
}

/* Of too many the oldest go, but none that runs. */
static void test_too_many(void **state) {
    struct job running = job_new(), first = job_new(), last;
    uint64_t id = first.task->id;

    tasks_end(first.task, TASK_DONE, NULL);
    for (int i = 0; i < TASK_MAX - 2; i++) {
        last = job_new();
        tasks_end(last.task, TASK_DONE, NULL);
    }
    assert_ptr_equal(tasks_find(all, id), first.task);
    last = job_new();
    tasks_end(last.task, TASK_DONE, NULL);
    assert_null(tasks_find(all, id));
    assert_ptr_equal(tasks_first(all), running.task);
    assert_ptr_equal(tasks_find(all, last.task->id), last.task);
}

/* What ended long ago is forgotten, though nobody asks. */
static void test_forgotten(void **state) {
    struct job old = job_new(), new = job_new();
    uint64_t id = old.task->id;

    tasks_end(old.task, TASK_DONE, NULL);
    old.task->ended_usec -= TASK_KEEP_USEC - 20000;
    tasks_end(new.task, TASK_DONE, NULL); /* looks when the next one goes */
    assert_non_null(tasks_find(all, id));
    event_base_loop(base, EVLOOP_ONCE);
    assert_null(tasks_find(all, id));
    assert_ptr_equal(tasks_find(all, new.task->id), new.task);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_numbers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_forgotten, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
