/* SPDX-License-Identifier: Apache-2.0 */

/* Who has which slot, against a plain statement of the rule: the lowest sum of aged uses goes. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/moe/policy.h"

enum { N_LAYER = 3, N_EXPERT = 7, N_ITEM = N_LAYER * N_EXPERT, N_SLOT = 9, N_OP = 200000 };

static struct policy *new (uint32_t n_slot) {
    struct policy *p = NULL;

    assert_int_equal(policy_new(&p, N_LAYER, N_EXPERT, n_slot), 0);
    return p;
}

/* Into a slot and out of the caller's hands. */
static uint32_t place(struct policy *p, uint32_t layer, uint32_t expert) {
    uint32_t slot = policy_take(p, layer, expert);

    assert_int_not_equal(slot, POLICY_NONE);
    assert_int_equal(policy_find(p, layer, expert), slot);
    policy_release(p, slot);
    return slot;
}

static void test_empty_first(void **state) {
    AUTO(policy_free) struct policy *p = new (3);
    uint32_t seen = 0, layer, expert;

    assert_int_equal(policy_find(p, 0, 0), POLICY_NONE);
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t slot = place(p, i, i);

        assert_true(policy_at(p, slot, &layer, &expert));
        assert_true(layer == i && expert == i);
        seen |= 1u << slot;
    }
    assert_int_equal(seen, 7);
}

/* Of those that are not held, the one used least goes, in whichever layer. */
static void test_least_used(void **state) {
    AUTO(policy_free) struct policy *p = new (3);
    uint32_t a = place(p, 0, 1), b = place(p, 1, 1), c = place(p, 2, 1);

    policy_use(p, 0, 1, 2);
    policy_use(p, 1, 1, 1);
    policy_use(p, 2, 1, 3);
    policy_hold(p, b);
    assert_int_equal(place(p, 0, 2), a); /* it was never used itself, so it is the next to go */
    assert_int_equal(place(p, 0, 3), a);
    policy_use(p, 0, 3, 9);
    assert_int_equal(place(p, 0, 4), c);
    assert_int_equal(policy_find(p, 2, 1), POLICY_NONE);
    policy_use(p, 0, 4, 9);
    policy_release(p, b);
    assert_int_equal(place(p, 2, 1), b);
    assert_int_equal(place(p, 1, 1), b); /* used once, but 2, 1 was used thrice */
}

static void test_all_held(void **state) {
    AUTO(policy_free) struct policy *p = new (2);
    uint32_t a = policy_take(p, 0, 0), b = policy_take(p, 0, 1);

    policy_hold(p, a);
    assert_int_equal(policy_take(p, 0, 2), POLICY_NONE);
    policy_release(p, a); /* held twice, released once */
    assert_int_equal(policy_take(p, 0, 2), POLICY_NONE);
    policy_release(p, a);
    assert_int_equal(policy_take(p, 0, 2), a);
    assert_int_equal(policy_find(p, 0, 1), b);
}

/* What could not be read has no slot, and its slot is the next to be filled. */
static void test_drop(void **state) {
    AUTO(policy_free) struct policy *p = new (2);
    uint32_t a = place(p, 0, 0), b = policy_take(p, 0, 1), layer, expert;

    policy_use(p, 0, 1, 100);
    policy_drop(p, b);
    assert_int_equal(policy_find(p, 0, 1), POLICY_NONE);
    assert_false(policy_at(p, b, &layer, &expert));
    assert_int_equal(place(p, 0, 2), a); /* b is still the caller's */
    policy_release(p, b);
    assert_int_equal(place(p, 0, 1), b);
}

/* A use is worth half a use POLICY_HALF rows later, and recent ones win in the end. */
static void test_ages(void **state) {
    AUTO(policy_free) struct policy *p = new (2);
    uint32_t a = place(p, 0, 0), b = place(p, 0, 1);

    policy_use(p, 0, 0, 3 * POLICY_LAST);
    policy_step(p, POLICY_HALF);
    policy_use(p, 0, 1, POLICY_LAST / 2); /* 1.5 times POLICY_LAST; the other is at twice */
    assert_int_equal(place(p, 1, 0), b);
    place(p, 0, 1);
    policy_step(p, POLICY_HALF);
    policy_use(p, 0, 1, 1); /* 1.25 and one, the other 1 */
    assert_int_equal(place(p, 1, 0), a);
}

/* The last use counts more, once, however often there was one. */
static void test_last(void **state) {
    AUTO(policy_free) struct policy *p = new (2);
    uint32_t a = place(p, 0, 0), b = place(p, 0, 1);

    for (uint32_t i = 0; i < POLICY_LAST / 4; i++)
        policy_use(p, 0, 0, 1);
    policy_step(p, POLICY_HALF);
    policy_use(p, 0, 1, 1);
    assert_int_equal(place(p, 1, 0), a); /* 1.25 / 2 of POLICY_LAST against one and a use */
    place(p, 0, 0);
    policy_use(p, 0, 0, 2);
    assert_int_equal(place(p, 1, 1), b);
}

/* Time goes on for ever, also in steps larger than any batch. */
static void test_long(void **state) {
    AUTO(policy_free) struct policy *p = new (2);
    uint32_t a = place(p, 0, 0), b = place(p, 0, 1);

    for (uint32_t i = 0; i < 5000; i++) {
        policy_step(p, POLICY_HALF / 2);
        policy_use(p, 0, 0, 2);
        policy_use(p, 0, 1, 3);
    }
    assert_int_equal(place(p, 1, 0), a);
    place(p, 0, 0);
    policy_step(p, UINT32_MAX);
    policy_use(p, 0, 0, 1);
    assert_int_equal(place(p, 1, 1), b);
}

static void test_resize(void **state) {
    AUTO(policy_free) struct policy *p = new (4);
    uint32_t slot[3], n_out = 0;

    for (uint32_t e = 0; e < 3; e++) {
        slot[e] = place(p, 0, e);
        policy_use(p, 0, e, 3 - e);
    }
    assert_int_equal(policy_resize(p, 3), 3); /* the empty one */
    for (uint32_t e = 0; e < 3; e++)
        assert_true(policy_in_use(p, slot[e]));
    policy_hold(p, slot[2]);
    assert_int_equal(policy_resize(p, 2), 2); /* the coldest is held, so the next */
    assert_false(policy_in_use(p, slot[1]));
    assert_int_equal(policy_find(p, 0, 1), POLICY_NONE);
    assert_int_equal(policy_resize(p, 0), 1);
    assert_int_equal(policy_take(p, 1, 0), POLICY_NONE);
    policy_release(p, slot[2]);
    assert_int_equal(policy_resize(p, 0), 0);
    assert_int_equal(policy_take(p, 1, 0), POLICY_NONE);
    assert_int_equal(policy_resize(p, 4), 4);
    for (uint32_t i = 0; i < 4; i++) {
        n_out += !policy_in_use(p, i);
        place(p, 2, i);
    }
    assert_int_equal(n_out, 0);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_not_equal(policy_find(p, 2, i), POLICY_NONE);
}

static void test_want(void **state) {
    AUTO(policy_free) struct policy *p = new (2);
    uint32_t layer, expert;

    assert_false(policy_want(p, &layer, &expert)); /* nothing was used */
    policy_use(p, 0, 3, 1);
    policy_use(p, 1, 2, 2);
    policy_use(p, 2, 1, 3);
    for (uint32_t i = 0; i < 2; i++) { /* the hottest first, while there is room */
        assert_true(policy_want(p, &layer, &expert));
        assert_true(layer == 2 - i && expert == 1 + i);
        place(p, layer, expert);
    }
    assert_false(policy_want(p, &layer, &expert));
}

/* ---- scores as bytes ---- */

static void use_some(struct policy *p) {
    for (uint32_t i = 0; i < N_ITEM; i++) {
        policy_step(p, 1 + i % 5);
        policy_use(p, i % N_LAYER, i % N_EXPERT, 1 + i * 7 % 11);
    }
}

static void test_save(void **state) {
    AUTO(policy_free) struct policy *p = new (1);
    AUTO(policy_free) struct policy *q = new (1);
    size_t n = policy_save_size(p);
    AUTO(free) void *a = malloc(n);
    AUTO(free) void *b = malloc(n);
    uint32_t layer = 0, expert = 0;

    assert_true(a && b);
    use_some(p);
    policy_save(p, 5, a);
    policy_use(q, 1, 1, 1000); /* is forgotten */
    assert_int_equal(policy_load(q, 5, a, n, NULL), 0);
    policy_save(q, 5, b);
    assert_memory_equal(a, b, n);
    assert_true(policy_want(q, &layer, &expert));
    assert_true(layer == 14 % N_LAYER && expert == 14 % N_EXPERT); /* 11 rows, as one before */
}

/* Scores that are loaded while slots are taken say who goes: here in the other order. */
static void test_load_late(void **state) {
    AUTO(policy_free) struct policy *p = new (1);
    AUTO(policy_free) struct policy *q = new (N_EXPERT);
    size_t n = policy_save_size(p);
    AUTO(free) void *a = malloc(n);
    uint32_t slot[N_EXPERT];

    assert_true(a);
    for (uint32_t e = 0; e < N_EXPERT; e++) {
        policy_use(p, 0, e, N_EXPERT - e);
        policy_use(q, 0, e, 1 + e);
        slot[e] = place(q, 0, e);
    }
    policy_save(p, 5, a);
    assert_int_equal(policy_load(q, 5, a, n, NULL), 0);
    for (uint32_t e = N_EXPERT; e-- > 0;)
        assert_int_equal(policy_take(q, 1, e), slot[e]);
}

static void test_bad_bytes(void **state) {
    AUTO(policy_free) struct policy *p = new (1);
    AUTO(policy_free) struct policy *other = NULL;
    size_t n = policy_save_size(p);
    AUTO(free) uint8_t *good = malloc(n);
    AUTO(free) uint8_t *now = malloc(n);
    AUTO(free) uint8_t *bad = malloc(n);
    struct why why;

    assert_true(good && now && bad);
    use_some(p);
    policy_save(p, 5, good);
    for (size_t i = 0; i < n; i++) { /* any byte is noticed, and nothing is taken from it */
        memcpy(bad, good, n);
        bad[i] ^= 1;
        why.text[0] = 0;
        assert_int_equal(policy_load(p, 5, bad, n, &why), POLICY_BAD);
        assert_true(why.text[0]);
    }
    policy_save(p, 5, now);
    assert_memory_equal(now, good, n);
    assert_int_equal(policy_load(p, 6, good, n, NULL), POLICY_BAD);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(policy_load(p, 5, good, i, NULL), POLICY_BAD);
    assert_int_equal(policy_new(&other, N_EXPERT, N_LAYER, 1), 0);
    assert_int_equal(policy_load(other, 5, good, n, NULL), POLICY_BAD);
}

/* ---- against the rule itself ---- */

struct naive {
    double used[N_ITEM], last[N_ITEM]; /* aged by every step */
    uint32_t item[N_SLOT], n_hold[N_SLOT];
    bool out[N_SLOT];
};

static uint32_t naive_find(const struct naive *m, uint32_t item) {
    for (uint32_t s = 0; s < N_SLOT; s++)
        if (m->item[s] == item)
            return s;

    return POLICY_NONE;
}

static double naive_key(const struct naive *m, uint32_t slot) {
    uint32_t item = m->item[slot];

    return item == POLICY_NONE ? -1 : m->used[item] + m->last[item];
}

/* What the coldest free slot holds is worth; NAN: there is none. */
static double naive_coldest(const struct naive *m) {
    double least = NAN;

    for (uint32_t s = 0; s < N_SLOT; s++)
        if (m->n_hold[s] == 0 && !m->out[s])
            least = fmin(least, naive_key(m, s));

    return least;
}

static void random_take(struct policy *p, struct naive *m, uint32_t item) {
    double least = naive_coldest(m);
    uint32_t slot;

    if (naive_find(m, item) != POLICY_NONE)
        return;
    slot = policy_take(p, item / N_EXPERT, item % N_EXPERT);
    assert_int_equal(slot == POLICY_NONE, isnan(least));
    if (slot == POLICY_NONE)
        return;
    assert_true(m->n_hold[slot] == 0 && !m->out[slot]);
    assert_true(naive_key(m, slot) <= least + 1e-9 * fabs(least)); /* equals may go in any order */
    m->item[slot] = item;
    m->n_hold[slot] = 1;
}

static void random_resize(struct policy *p, struct naive *m, uint32_t n) {
    uint32_t n_held = 0, n_in = 0;
    double kept = INFINITY, left = -INFINITY;

    for (uint32_t s = 0; s < N_SLOT; s++) {
        n_held += m->n_hold[s] > 0;
        n_in += !m->out[s];
    }
    assert_int_equal(policy_resize(p, n), n > n_held ? n : n_held);
    for (uint32_t s = 0; s < N_SLOT; s++) {
        bool in = policy_in_use(p, s);

        if (!m->out[s] && m->n_hold[s] == 0 && in && n < n_in)
            kept = fmin(kept, naive_key(m, s));
        if (!m->out[s] && !in) {
            assert_int_equal(m->n_hold[s], 0);
            left = fmax(left, naive_key(m, s));
            m->item[s] = POLICY_NONE;
        }
        m->out[s] = !in;
    }
    assert_true(left <= kept + 1e-9 * fabs(kept));
}

static void random_op(struct policy *p, struct naive *m) {
    uint32_t item = (uint32_t)rand() % N_ITEM, slot = (uint32_t)rand() % N_SLOT;
    uint32_t n = 1 + (uint32_t)rand() % 20;

    switch (rand() % 16) {
    case 0:
        random_resize(p, m, (uint32_t)rand() % (N_SLOT + 1));
        break;
    case 1:
        policy_step(p, n);
        for (uint32_t i = 0; i < N_ITEM; i++) {
            m->used[i] *= exp2(-(double)n / POLICY_HALF);
            m->last[i] *= exp2(-(double)n / POLICY_HALF);
        }
        break;
    case 2:
    case 3:
    case 4:
        policy_use(p, item / N_EXPERT, item % N_EXPERT, n);
        m->used[item] += n;
        m->last[item] = POLICY_LAST;
        break;
    case 5:
        if (m->out[slot])
            break;
        policy_hold(p, slot);
        m->n_hold[slot]++;
        break;
    case 6:
        if (m->n_hold[slot] == 0)
            break;
        policy_drop(p, slot);
        m->item[slot] = POLICY_NONE;
        break;
    case 7:
    case 8:
    case 9:
    case 10:
        if (m->n_hold[slot] == 0)
            break;
        policy_release(p, slot);
        m->n_hold[slot]--;
        break;
    default:
        random_take(p, m, item);
    }
}

static void test_random(void **state) {
    AUTO(policy_free) struct policy *p = new (N_SLOT);
    struct naive m = { 0 };

    for (uint32_t s = 0; s < N_SLOT; s++)
        m.item[s] = POLICY_NONE;
    srand(1);
    for (uint32_t i = 0; i < N_OP; i++) {
        random_op(p, &m);
        for (uint32_t item = 0; item < N_ITEM; item++)
            assert_int_equal(policy_find(p, item / N_EXPERT, item % N_EXPERT),
                             naive_find(&m, item));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_first), cmocka_unit_test(test_least_used),
        cmocka_unit_test(test_all_held),    cmocka_unit_test(test_drop),
        cmocka_unit_test(test_ages),        cmocka_unit_test(test_last),
        cmocka_unit_test(test_long),        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_want),        cmocka_unit_test(test_save),
        cmocka_unit_test(test_load_late),   cmocka_unit_test(test_bad_bytes),
        cmocka_unit_test(test_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
