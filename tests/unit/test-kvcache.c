/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "engine/kv/kvcache.h"

static const struct kv_layer_shape layers[] = {
    { .n_kv_head = 2, .head_dim = 16, .n_key = 16 },
    { .n_kv_head = 3, .head_dim = 40, .n_key = 40, .window = 70 },
    { .n_kv_head = 1, .head_dim = 64, .n_key = 8 },
    { .n_kv_head = 1, .head_dim = 32, .n_key = 32, .window = 150 },
};
enum {
    N_LAYER = sizeof layers / sizeof *layers,
    WINDOW = 150,
    N_CTX = 700,
    N_BATCH = 90,
    N_SEQ = 5,
    N_FMT = 3,
};

static const enum quant_fmt formats[N_FMT] = { QUANT_F32, QUANT_F16, QUANT_Q8_0 };

static struct kv_shape shape(enum quant_fmt fmt) {
    return (struct kv_shape){
        .n_layer = N_LAYER,
        .layer = layers,
        .n_ctx = N_CTX,
        .n_batch = N_BATCH,
        .n_seq = N_SEQ,
        .fmt = fmt,
    };
}

static uint32_t rng = 1;

static uint32_t below(uint32_t n) {
    rng = rng * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)rng * n >> 32);
}

static uint32_t new_seq(struct kvcache *kv) {
    uint32_t seq;

    assert_int_equal(kvcache_seq_new(kv, &seq), 0);
    return seq;
}

/* Views of all heads tile the blocks: none shared, each aligned, as large as the kernels say. */
static void test_layout(void **state) {
    (void)state;
    for (int f = 0; f < N_FMT; f++) {
        AUTO(kvcache_free) struct kvcache *kv = NULL;
        struct kv_shape s = shape(formats[f]);
        uint64_t total = 0;

        assert_int_equal(kvcache_new(&kv, &s), 0);
        assert_int_equal(kvcache_fmt(kv), s.fmt);
        assert_int_equal(kvcache_n_byte(kv), kvcache_size(&s));
        for (uint32_t q = 0; q < 2; q++)
            assert_int_equal(kvcache_reserve(kv, new_seq(kv), 65), 0);
        for (int read = 0; read < 2; read++)
            for (uint32_t l = 0, id = 1; l < N_LAYER; l++)
                for (uint32_t i = 0; i < 4 * layers[l].n_kv_head; i++, id++) {
                    struct kv_view v = kvcache_view(kv, l, i % 2, i / 4, i / 2 % 2);
                    size_t nk = kern_kv_size(s.fmt, kvcache_key_dim(kv, l));
                    size_t nv = kern_kv_size(s.fmt, kvcache_value_dim(kv, l));

                    assert_int_equal((uintptr_t)v.key % 64, 0);
                    assert_int_equal((uintptr_t)v.value % 64, 0);
                    for (size_t at = 0; read && at < nk; at++)
                        assert_int_equal(v.key[at], id);
                    for (size_t at = 0; read && at < nv; at++)
                        assert_int_equal(v.value[at], id + 100);
                    if (!read) {
                        memset(v.key, (int)id, nk);
                        memset(v.value, (int)(id + 100), nv);
                        total += nk + nv;
                    }
                }
        assert_int_equal(kvcache_key_dim(kv, 2), 32);
        assert_int_equal(kvcache_value_dim(kv, 1), 64);
        assert_true(total <= kvcache_n_used(kv) && total + 4 * 4096 > kvcache_n_used(kv));
    }
}

static void test_sizes_that_do_not_fit(void **state) {
    static const struct kv_layer_shape big = { UINT32_MAX, 1 << 20, 1 << 20, 0 };
    static const struct kv_layer_shape wide = { 1, UINT32_MAX / 2, 1, UINT32_MAX };
    static const struct kv_layer_shape fair = { 8, 256, 256, 0 };
    static const struct kv_layer_shape odd = { 8, 256, 257, 0 };
    const struct kv_shape bad[] = {
        { .n_layer = 1, .layer = &big, .n_ctx = UINT32_MAX, .n_seq = 1000 },
        { .n_layer = 1, .layer = &wide, .n_ctx = 1, .n_seq = 1 },
        { .n_layer = 1, .layer = &odd, .n_ctx = 1, .n_seq = 1 },
        { .n_layer = 1, .layer = &fair, .n_ctx = UINT32_MAX - 64, .n_seq = UINT32_MAX },
    };
    struct kv_shape none = shape(QUANT_F16), small = shape(QUANT_F16);
    struct kvcache *kv = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct kv_shape s = bad[i];

        s.n_batch = 1;
        s.fmt = QUANT_F16;
        assert_true(kvcache_size(&s) == UINT64_MAX);
        assert_int_equal(kvcache_new(&kv, &s), -ENOMEM);
    }
    none.n_seq = 0;
    assert_int_equal(kvcache_size(&none), 0);
    assert_int_equal(kvcache_new(&kv, &none), -EINVAL);
    small.n_byte = 8192; /* not one block of each kind */
    assert_int_equal(kvcache_size(&small), 8192);
    assert_int_equal(kvcache_new(&kv, &small), -EINVAL);
    assert_null(kv);
    assert_null(kvcache_free(NULL));
}

/* A cache far larger than memory costs only what is touched. */
static void test_touched_as_used(void **state) {
    struct kv_layer_shape l = { .n_kv_head = 8, .head_dim = 256, .n_key = 256 };
    struct kv_shape s = { .n_layer = 1, .layer = &l, .n_ctx = 1 << 24, .n_batch = 8, .n_seq = 4 };
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct rusage before, after;

    (void)state;
    if (strstr(getenv("LD_PRELOAD") ?: "", "vgpreload"))
        skip(); /* valgrind has no such address space */
    s.fmt = QUANT_F16;
    getrusage(RUSAGE_SELF, &before);
    assert_int_equal(kvcache_new(&kv, &s), 0);
    assert_true(kvcache_n_byte(kv) == UINT64_C(4) * 2 * 8 * 256 * 2 << 24);
    for (uint32_t q = 0; q < 4; q++) {
        assert_int_equal(kvcache_reserve(kv, new_seq(kv), 1), 0);
        kvcache_view(kv, 0, q, 7, 0).value[0] = 1;
    }
    assert_true(kvcache_n_touched(kv) == UINT64_C(4) * 64 * 2 * 8 * 256 * 2);
    getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 64 * 1024);
}

/* ---- against a naive model ---- */

/* What was written at each position of each sequence. */
struct naive {
    bool open, keep;
    pos_t n, high; /* high: where the furthest kvcache_reserve() began */
    uint32_t stamp[N_CTX];
};
static struct naive naive[N_SEQ];
static uint32_t next_stamp = 1;

/* The stamp of a position: the first bytes of its row among the values, and one of the keys'. */
static uint32_t *value_stamp(const struct kvcache *kv, uint32_t l, uint32_t seq, uint32_t h,
                             pos_t p) {
    return (uint32_t *)(void *)(kvcache_view(kv, l, seq, h, p / KV_BLOCK).value +
                                kern_kv_size(kvcache_fmt(kv), kvcache_value_dim(kv, l)) / 64 / 8 *
                                    8 * (p % KV_BLOCK));
}

static uint8_t *key_stamp(const struct kvcache *kv, uint32_t l, uint32_t seq, uint32_t h, pos_t p) {
    return kvcache_view(kv, l, seq, h, p / KV_BLOCK).key + p % KV_BLOCK;
}

static pos_t first_of(uint32_t window, pos_t p) {
    return window && p + 1 > window ? p + 1 - window : 0;
}

/* Do all rows of all layers that a query at @p sees hold what was written there? */
static void check_seen(const struct kvcache *kv, uint32_t seq, pos_t p) {
    const struct naive *m = &naive[seq];

    for (uint32_t l = 0; l < N_LAYER; l++)
        for (pos_t i = first_of(layers[l].window, p); i <= p && i < m->n; i++)
            for (uint32_t h = 0; h < layers[l].n_kv_head; h++) {
                assert_int_equal(*value_stamp(kv, l, seq, h, i), m->stamp[i] + h);
                assert_int_equal(*key_stamp(kv, l, seq, h, i), (uint8_t)(m->stamp[i] + h));
            }
}

static void add(struct kvcache *kv, uint32_t seq, uint32_t n) {
    struct naive *m = &naive[seq];
    uint64_t used = kvcache_n_used(kv);
    pos_t begin = m->n;
    int r = kvcache_reserve(kv, seq, n);

    assert_int_equal(r == KVCACHE_FULL, begin + n > N_CTX);
    if (r != 0) {
        assert_true(r == KVCACHE_FULL || r == KVCACHE_NO_ROOM);
        assert_int_equal(kvcache_n(kv, seq), begin);
        assert_int_equal(kvcache_n_used(kv), used);
        return;
    }
    for (; m->n < begin + n; m->n++, next_stamp += 1000) {
        m->stamp[m->n] = next_stamp;
        for (uint32_t l = 0; l < N_LAYER; l++)
            for (uint32_t h = 0; h < layers[l].n_kv_head; h++) {
                *value_stamp(kv, l, seq, h, m->n) = next_stamp + h;
                *key_stamp(kv, l, seq, h, m->n) = (uint8_t)(next_stamp + h);
            }
    }
    m->high = n > 0 && begin > m->high ? begin : m->high;
    check_seen(kv, seq, begin);
    if (m->n > 0)
        check_seen(kv, seq, m->n - 1);
}

/* May a sequence that grew from @high go back to @n? It must, within n_back; it can not, when
 * a block a row there sees lies before all that any row after high - n_back sees. */
static void check_way_back(const struct naive *m, pos_t n, bool can) {
    pos_t kept = m->high > KV_BLOCK ? first_of(WINDOW, m->high - KV_BLOCK) : 0;

    if (n == 0 || n + KV_BLOCK >= m->high)
        assert_true(can);
    else if (first_of(WINDOW, n) / KV_BLOCK < kept / KV_BLOCK)
        assert_false(can);
}

static void cut(struct kvcache *kv, uint32_t seq, pos_t n) {
    struct naive *m = &naive[seq];
    bool can = n >= m->n || kvcache_holds(kv, seq, n);
    int r = kvcache_truncate(kv, seq, n);

    assert_int_equal(r, can ? 0 : KVCACHE_GONE);
    if (n < m->n)
        check_way_back(m, n, can);
    if (r == 0 && n < m->n)
        m->n = n;
    if (m->n == 0)
        m->high = 0;
    assert_int_equal(kvcache_n(kv, seq), m->n);
    check_seen(kv, seq, m->n);
}

static void fork_one(struct kvcache *kv, uint32_t from, pos_t n) {
    bool can = kvcache_holds(kv, from, n), room = false;
    uint64_t used = kvcache_n_used(kv);
    uint32_t to = N_SEQ;
    int r;

    for (uint32_t q = 0; q < N_SEQ; q++)
        room = room || !naive[q].open;
    r = kvcache_fork(kv, from, n, &to);
    assert_int_equal(r, !can ? KVCACHE_GONE : !room ? KVCACHE_NO_SEQ : 0);
    assert_int_equal(kvcache_n_used(kv), used); /* all is shared */
    if (r != 0)
        return;
    assert_true(to < N_SEQ && !naive[to].open);
    naive[to] = naive[from];
    naive[to].n = n;
    naive[to].keep = false;
    naive[to].high = n > naive[from].high ? n : naive[from].high;
    if (n == 0)
        naive[to].high = 0;
    assert_int_equal(kvcache_n(kv, to), n);
    check_seen(kv, to, n);
}

static void one_op(struct kvcache *kv) {
    uint32_t q = below(N_SEQ), n = naive[q].n, seq;
    uint64_t kept;

    if (!naive[q].open) {
        if (kvcache_seq_new(kv, &seq) == 0) {
            assert_false(naive[seq].open);
            naive[seq] = (struct naive){ .open = true };
        }
        return;
    }
    if (naive[q].keep) {
        check_seen(kv, q, n);
        fork_one(kv, q, below(n + 1));
        if (below(3) == 0) {
            kvcache_seq_free(kv, q);
            naive[q].open = false;
        }
        return;
    }
    switch (below(13)) {
    case 0:
        cut(kv, q, below(n + 2));
        break;
    case 1: /* some of what was just added, as after a step that was stopped */
        cut(kv, q, n - below(n < KV_BLOCK ? n + 1 : KV_BLOCK + 1));
        break;
    case 2:
        fork_one(kv, q, n - below(n < 100 ? n + 1 : 100));
        break;
    case 3:
        fork_one(kv, q, below(n + 1));
        break;
    case 4:
        if (below(3) == 0) {
            kvcache_seq_free(kv, q);
            naive[q].open = false;
        }
        break;
    case 5:
        if (below(4) == 0)
            kvcache_trim(kv);
        break;
    case 6:
        kept = kvcache_n_kept(kv);
        kvcache_keep(kv, q);
        naive[q].keep = true;
        assert_true(kvcache_n_kept(kv) >= kept && kvcache_n_kept(kv) <= kvcache_n_used(kv));
        break;
    default:
        add(kv, q, below(below(2) ? 3 : N_BATCH + 1));
    }
}

static void run_against_naive(struct kvcache *kv, int n_op) {
    memset(naive, 0, sizeof naive);
    for (int i = 0; i < n_op; i++) {
        one_op(kv);
        if (i % 16 == 0)
            assert_true(kvcache_sound(kv));
        assert_true(kvcache_n_used(kv) <= kvcache_n_touched(kv));
        assert_true(kvcache_n_touched(kv) <= kvcache_n_byte(kv));
    }
    for (uint32_t q = 0; q < N_SEQ; q++) {
        if (naive[q].open)
            check_seen(kv, q, naive[q].n);
        if (naive[q].open)
            kvcache_seq_free(kv, q);
    }
    assert_true(kvcache_sound(kv));
    assert_int_equal(kvcache_n_used(kv), 0); /* nothing leaked */
    assert_int_equal(kvcache_n_kept(kv), 0);
    kvcache_trim(kv);
    assert_int_equal(kvcache_n_touched(kv), 0);
    assert_true(kvcache_sound(kv));
}

static void test_against_naive_model(void **state) {
    (void)state;
    for (int f = 0; f < N_FMT; f++)
        for (int tight = 0; tight < 2; tight++) {
            AUTO(kvcache_free) struct kvcache *kv = NULL;
            struct kv_shape s = shape(formats[f]);

            if (tight) /* so that blocks run out, and memory moves between the kinds */
                s.n_byte = kvcache_size(&s) / 4;
            assert_int_equal(kvcache_new(&kv, &s), 0);
            run_against_naive(kv, 4000);
        }
}

/* ---- one property each ---- */

/* Any step can be taken back, at any place, and a block more: the scheduler counts on it. */
static void test_last_step_can_be_undone(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct kv_shape s = shape(QUANT_F16);
    uint32_t seq;

    (void)state;
    memset(naive, 0, sizeof naive);
    assert_int_equal(kvcache_new(&kv, &s), 0);
    seq = new_seq(kv);
    naive[seq].open = true;
    for (pos_t n = 0; n + N_BATCH <= N_CTX; n++) {
        add(kv, seq, N_BATCH);
        cut(kv, seq, n);
        if (n > KV_BLOCK) {
            assert_true(kvcache_holds(kv, seq, n - KV_BLOCK));
            assert_true(n < 400 || !kvcache_holds(kv, seq, n - 3 * KV_BLOCK));
        }
        add(kv, seq, 1);
    }
}

static void test_room_and_need(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct kv_shape s = shape(QUANT_F16);
    uint32_t a, b, n = 0;

    (void)state;
    assert_int_equal(kvcache_new(&kv, &s), 0);
    s.n_byte = kvcache_need(kv, 300);
    kv = kvcache_free(kv);
    assert_int_equal(kvcache_new(&kv, &s), 0);
    assert_int_equal(kvcache_need(kv, 0), 0);
    assert_true(kvcache_need(kv, 1) > 0);
    assert_int_equal(kvcache_need(kv, 300), kvcache_n_byte(kv));

    a = new_seq(kv);
    for (; n < 300; n += 60)
        assert_int_equal(kvcache_reserve(kv, a, 60), 0);
    assert_true(kvcache_n_used(kv) <= kvcache_need(kv, 300));
    assert_int_equal(kvcache_share(kv, a), kvcache_n_used(kv));
    while (kvcache_reserve(kv, a, 1) == 0)
        n++;
    assert_int_equal(kvcache_n(kv, a), n);
    b = new_seq(kv);
    assert_int_equal(kvcache_reserve(kv, b, 1), KVCACHE_NO_ROOM);
    assert_int_equal(kvcache_share(kv, b), 0);
    kvcache_seq_free(kv, a);
    assert_int_equal(kvcache_reserve(kv, b, 1), 0);
    assert_true(kvcache_sound(kv));
}

/* A full sequence needs no more than it was said to, however it grows. */
static void test_need_is_enough(void **state) {
    (void)state;
    for (uint32_t step = 1; step <= N_BATCH; step += 11) {
        AUTO(kvcache_free) struct kvcache *kv = NULL;
        struct kv_shape s = shape(QUANT_Q8_0);
        uint32_t seq, n;

        s.n_seq = 1;
        assert_int_equal(kvcache_new(&kv, &s), 0);
        seq = new_seq(kv);
        for (n = 0; n + step <= N_CTX; n += step)
            assert_int_equal(kvcache_reserve(kv, seq, step), 0);
        assert_int_equal(kvcache_reserve(kv, seq, N_CTX - n), 0);
        assert_int_equal(kvcache_reserve(kv, seq, 1), KVCACHE_FULL);
    }
}

/* Whoever writes first after a fork goes on in place; the other one copies the block. */
static void test_copy_on_write(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct kv_shape s = shape(QUANT_F16);
    uint64_t used, one;
    uint32_t a, b;

    (void)state;
    memset(naive, 0, sizeof naive);
    assert_int_equal(kvcache_new(&kv, &s), 0);
    a = new_seq(kv);
    naive[a].open = true;
    add(kv, a, 40);
    one = kvcache_n_used(kv);
    add(kv, a, 50);
    used = kvcache_n_used(kv);
    assert_int_equal(used, 2 * one);
    fork_one(kv, a, 70);
    b = a + 1;
    assert_int_equal(kvcache_share(kv, a), one);
    assert_int_equal(kvcache_share(kv, b), one);
    add(kv, a, 3);
    assert_int_equal(kvcache_n_used(kv), used);
    add(kv, b, 3);
    assert_int_equal(kvcache_n_used(kv), used + one);
    assert_int_equal(kvcache_share(kv, b), one + one / 2);
    add(kv, b, 3);
    assert_int_equal(kvcache_n_used(kv), used + one);
    check_seen(kv, a, 92);
    check_seen(kv, b, 75);
    kvcache_seq_free(kv, a);
    assert_int_equal(kvcache_n_used(kv), used);
    check_seen(kv, b, 75);
    assert_true(kvcache_sound(kv));
}

/* What only kept sequences hold, beside one that runs, is known exactly; they come on top of n_seq,
 * without more bytes. */
static void test_kept(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = NULL;
    struct kv_shape s = shape(QUANT_F16);
    uint64_t size, one;
    uint32_t a, b, c;

    (void)state;
    s.n_seq = 1;
    size = kvcache_size(&s);
    s.n_keep = 2;
    assert_int_equal(kvcache_size(&s), size);
    assert_int_equal(kvcache_new(&kv, &s), 0);
    a = new_seq(kv);
    assert_int_equal(kvcache_reserve(kv, a, 40), 0);
    one = kvcache_n_used(kv);
    assert_int_equal(kvcache_reserve(kv, a, 60), 0);
    assert_int_equal(kvcache_fork(kv, a, 100, &b), 0);
    assert_int_equal(kvcache_fork(kv, a, 50, &c), 0);
    kvcache_keep(kv, b);
    kvcache_keep(kv, c);
    assert_int_equal(kvcache_n_kept(kv), 0);
    assert_int_equal(kvcache_truncate(kv, a, 64), 0);
    assert_int_equal(kvcache_n_kept(kv), one);
    kvcache_seq_free(kv, a);
    assert_int_equal(kvcache_n_kept(kv), 2 * one);
    assert_int_equal(kvcache_fork(kv, c, 50, &a), 0);
    assert_int_equal(kvcache_n_kept(kv), one);
    assert_int_equal(kvcache_reserve(kv, a, 1), 0); /* a copy of its own */
    assert_int_equal(kvcache_n_used(kv), 3 * one);
    assert_int_equal(kvcache_n_kept(kv), 2 * one);
    kvcache_seq_free(kv, b);
    assert_int_equal(kvcache_n_kept(kv), one);
    assert_true(kvcache_sound(kv));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_sizes_that_do_not_fit),
        cmocka_unit_test(test_touched_as_used),
        cmocka_unit_test(test_against_naive_model),
        cmocka_unit_test(test_last_step_can_be_undone),
        cmocka_unit_test(test_room_and_need),
        cmocka_unit_test(test_need_is_enough),
        cmocka_unit_test(test_copy_on_write),
        cmocka_unit_test(test_kept),
    };

    return cmocka_run_group_tests_name("kvcache", tests, NULL, NULL);
}
