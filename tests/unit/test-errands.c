/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#include "daemon/errands.h"

static pthread_t here;
static atomic_uint n_run, n_done;
static atomic_bool gate; /* closed: run() waits */

struct counted {
    struct errand errand; /* first */
    unsigned at;          /* in which order it ran */
    bool elsewhere, done;
};

static void run(struct errand *errand) {
    struct counted *c = (struct counted *)errand;

    while (atomic_load(&gate))
        (void)usleep(1000);
    c->elsewhere = !pthread_equal(pthread_self(), here);
    c->at = atomic_fetch_add(&n_run, 1);
}

static void done(struct errand *errand) {
    struct counted *c = (struct counted *)errand;

    assert_true(pthread_equal(pthread_self(), here));
    assert_true(c->elsewhere && !c->done);
    c->done = true;
    atomic_fetch_add(&n_done, 1);
}

static struct event_base *base;
static struct counted c[ERRANDS_MAX + 1];

static int setup(void **state) {
    here = pthread_self();
    n_run = n_done = 0;
    gate = false;
    for (size_t i = 0; i <= ERRANDS_MAX; i++)
        c[i] = (struct counted){ .errand = { run, done } };
    base = event_base_new();
    return base ? 0 : -1;
}

static int teardown(void **state) {
    event_base_free(base);
    return 0;
}

/* In order, elsewhere, and done here; who is done makes room. */
static void test_order(void **state) {
    AUTO(errands_free) struct errands *t = NULL;

    assert_int_equal(errands_new(&t, base), 0);
    atomic_store(&gate, true);
    for (unsigned i = 0; i < ERRANDS_MAX; i++)
        assert_int_equal(errands_add(t, &c[i].errand), 0);
    assert_int_equal(errands_add(t, &c[ERRANDS_MAX].errand), ERRANDS_FULL);
    assert_int_equal(event_base_loop(base, EVLOOP_NONBLOCK), 0);
    assert_int_equal(n_done, 0);
    atomic_store(&gate, false);
    while (n_done < ERRANDS_MAX)
        assert_int_equal(event_base_loop(base, EVLOOP_ONCE), 0);
    for (unsigned i = 0; i < ERRANDS_MAX; i++)
        assert_int_equal(c[i].at, i);
    assert_int_equal(errands_add(t, &c[ERRANDS_MAX].errand), 0);
    while (!c[ERRANDS_MAX].done)
        assert_int_equal(event_base_loop(base, EVLOOP_ONCE), 0);
}

/* What was added is finished, also when nobody turns the loop any more. */
static void test_end(void **state) {
    struct errands *t = NULL;

    assert_int_equal(errands_new(&t, base), 0);
    for (unsigned i = 0; i < ERRANDS_MAX; i++)
        assert_int_equal(errands_add(t, &c[i].errand), 0);
    t = errands_free(t);
    assert_int_equal(n_run, ERRANDS_MAX);
    assert_int_equal(n_done, ERRANDS_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_end, setup, teardown),
    };

    return cmocka_run_group_tests_name("errands", tests, NULL, NULL);
}
