/* SPDX-License-Identifier: Apache-2.0 */

/* The tree of kept prefixes, over a cache whose rows hold a sum of the tokens so far: what is taken
 * must be there, for all that a next row sees, and be as long as it can. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kv/prefix.h"

enum { WINDOW = 100, N_CTX = 900, N_BATCH = 50, N_SEQ = 3, N_KEEP = 12, N_SALT = 3 };

static const struct kv_layer_shape layers[] = {
    { .n_kv_head = 1, .head_dim = 32, .n_key = 32 },
    { .n_kv_head = 1, .head_dim = 32, .n_key = 32, .window = WINDOW },
};

static uint32_t rng = 7;

static uint32_t below(uint32_t n) {
    rng = rng * 1664525 + 1013904223;
    return (uint32_t)((uint64_t)rng * n >> 32);
}

static struct kvcache *new_cache(uint64_t n_byte) {
    struct kv_shape s = { .n_layer = 2,
                          .layer = layers,
                          .n_ctx = N_CTX,
                          .n_batch = N_BATCH,
                          .n_seq = N_SEQ,
                          .n_keep = N_KEEP,
                          .n_byte = n_byte,
                          .fmt = QUANT_F16 };
    struct kvcache *kv = NULL;

    assert_int_equal(kvcache_new(&kv, &s), 0);
    return kv;
}

static uint32_t *sum_at(const struct kvcache *kv, uint32_t layer, uint32_t seq, pos_t pos) {
    return (uint32_t *)(void *)kvcache_view(kv, layer, seq, 0, pos / KV_BLOCK).key + pos % KV_BLOCK;
}

static uint32_t sum_of(const int32_t *tok, pos_t n) {
    uint32_t sum = 1;

    for (pos_t i = 0; i < n; i++)
        sum = sum * 31 + (uint32_t)tok[i];
    return sum;
}

/* Do all rows that a row at @n sees hold the sums of @tok? */
static void check_rows(const struct kvcache *kv, uint32_t seq, const int32_t *tok, pos_t n) {
    assert_int_equal(kvcache_n(kv, seq), n);
    for (pos_t i = 0; i < n; i++) {
        assert_int_equal(*sum_at(kv, 0, seq, i), sum_of(tok, i + 1));
        if (i + WINDOW > n)
            assert_int_equal(*sum_at(kv, 1, seq, i), sum_of(tok, i + 1));
    }
}

/* Evaluate @tok up to @n, in steps; prefixes yield. */
static void grow(struct kvcache *kv, struct prefix *p, uint32_t seq, const int32_t *tok, pos_t n) {
    for (pos_t at = kvcache_n(kv, seq); at < n;) {
        pos_t k = 1 + below(N_BATCH), end = at + k < n ? at + k : n;
        uint32_t sum = sum_of(tok, at);
        int r;

        do
            r = kvcache_reserve(kv, seq, end - at);
        while (r == KVCACHE_NO_ROOM && prefix_yield(p));
        assert_int_equal(r, 0);
        for (; at < end; at++) {
            sum = sum * 31 + (uint32_t)tok[at];
            *sum_at(kv, 0, seq, at) = *sum_at(kv, 1, seq, at) = sum;
        }
    }
}

static pos_t common(const int32_t *a, pos_t n_a, const int32_t *b, pos_t n_b) {
    pos_t n = 0;

    while (n < n_a && n < n_b && a[n] == b[n])
        n++;
    return n;
}

/* ---- one prompt after the other ---- */

struct world {
    struct kvcache *kv;
    struct prefix *p;
};

static void open_world(struct world *w, uint64_t kv_bytes, uint64_t n_byte) {
    w->kv = new_cache(kv_bytes);
    assert_int_equal(prefix_new(&w->p, w->kv, N_KEEP, N_CTX, n_byte), 0);
}

static void close_world(struct world *w) {
    assert_true(prefix_sound(w->p));
    w->p = prefix_free(w->p);
    assert_true(kvcache_sound(w->kv));
    assert_int_equal(kvcache_n_used(w->kv), 0);
    kvcache_free(w->kv);
}

/* Evaluate the rest of @tok, keeping it at @mark (0: nowhere) and at its end. Return: what of it
 * was there. */
static struct prefix_hit visit(struct world *w, uint64_t salt, const int32_t *tok, pos_t n,
                               pos_t mark) {
    struct prefix_hit hit = { 0 };

    assert_int_equal(prefix_take(w->p, salt, tok, n - 1, &hit), 0);
    assert_true(hit.n <= n - 1 && hit.parted >= hit.n && hit.parted <= n - 1);
    check_rows(w->kv, hit.seq, tok, hit.n);
    if (mark > hit.n) {
        grow(w->kv, w->p, hit.seq, tok, mark);
        prefix_keep(w->p, salt, tok, mark, hit.seq);
    }
    grow(w->kv, w->p, hit.seq, tok, n);
    prefix_keep(w->p, salt, tok, n, hit.seq);
    kvcache_seq_free(w->kv, hit.seq);
    prefix_bound(w->p);
    assert_true(prefix_sound(w->p));
    return hit;
}

static void fill(int32_t *tok, pos_t from, pos_t to, int32_t with) {
    for (pos_t i = from; i < to; i++)
        tok[i] = with + (int32_t)(i % 5);
}

/* The turns of a chat: each history leaves out some of what was evaluated. */
static void test_chat(void **state) {
    struct world w;
    int32_t tok[N_CTX];

    open_world(&w, 0, UINT64_MAX);
    fill(tok, 0, N_CTX, 10);
    assert_int_equal(visit(&w, 1, tok, 300, 280).n, 0);
    fill(tok, 281, 600, 50); /* parts behind 281 */
    assert_int_equal(visit(&w, 1, tok, 600, 590).n, 281);
    fill(tok, 591, N_CTX, 90);
    assert_int_equal(visit(&w, 1, tok, N_CTX, 0).n, 591);
    close_world(&w);
}

/* Before what sliding layers still hold, only a place that was kept can be gone on from. */
static void test_sliding(void **state) {
    struct prefix_hit hit;
    struct world w;
    int32_t tok[N_CTX];

    open_world(&w, 0, UINT64_MAX);
    fill(tok, 0, N_CTX, 10);
    (void)visit(&w, 1, tok, 800, 0);
    fill(tok, 400, 800, 50);
    hit = visit(&w, 1, tok, 800, 400);
    assert_int_equal(hit.n, 0);
    assert_int_equal(hit.parted, 400);
    fill(tok, 400, 800, 90);
    assert_int_equal(visit(&w, 1, tok, 800, 0).n, 400);
    fill(tok, 0, N_CTX, 10);
    assert_int_equal(visit(&w, 1, tok, 810, 0).n, 800);
    close_world(&w);
}

/* What one covers is not kept twice; what is short, or off, not at all. */
static void test_cover(void **state) {
    struct world w;
    int32_t tok[N_CTX];

    open_world(&w, 0, UINT64_MAX);
    fill(tok, 0, N_CTX, 10);
    (void)visit(&w, 1, tok, PREFIX_MIN - 1, 0);
    assert_int_equal(prefix_n(w.p), 0);
    for (pos_t n = 20; n < 160; n += 20)
        (void)visit(&w, 1, tok, n, 0);
    assert_int_equal(prefix_n(w.p), 1);
    (void)visit(&w, 1, tok, 60, 0); /* held by the longer one */
    assert_int_equal(prefix_n(w.p), 1);
    (void)visit(&w, 2, tok, 60, 0); /* held, but not by them */
    assert_int_equal(prefix_n(w.p), 2);
    assert_int_equal(prefix_n_of(w.p, 1), 1);
    close_world(&w);

    open_world(&w, 0, 0);
    (void)visit(&w, 1, tok, 600, 0);
    assert_int_equal(visit(&w, 1, tok, 600, 0).n, 0);
    assert_int_equal(kvcache_n_used(w.kv), 0);
    close_world(&w);
}

/* The one that was of no use for longest goes, and public ones after all others. */
static void test_order(void **state) {
    struct world w;
    int32_t tok[N_CTX];

    open_world(&w, 0, UINT64_MAX);
    fill(tok, 0, 100, 900);
    (void)visit(&w, PREFIX_PUBLIC, tok, 100, 0);
    for (int i = 0; i < N_KEEP + 5; i++) {
        fill(tok, 0, 100, 10 * i);
        (void)visit(&w, (uint64_t)i % 3, tok, 100, 0);
        fill(tok, 0, 100, 0);
        assert_int_equal(visit(&w, 0, tok, 100, 0).n, 99); /* this one stays in use */
    }
    assert_int_equal(prefix_n(w.p), N_KEEP);
    for (int i = 1; i < N_KEEP + 5; i++) {
        struct prefix_hit hit;

        fill(tok, 0, 100, 10 * i);
        assert_int_equal(prefix_take(w.p, (uint64_t)i % 3, tok, 100, &hit), 0);
        assert_int_equal(hit.n, i < 7 ? 0 : 100);
        kvcache_seq_free(w.kv, hit.seq);
    }
    for (int i = 0; i < N_KEEP - 1; i++)
        assert_true(prefix_yield(w.p));
    fill(tok, 0, 100, 900);
    assert_int_equal(visit(&w, 5, tok, 100, 0).n, 99);
    assert_int_equal(prefix_n_of(w.p, PREFIX_PUBLIC), 1);
    close_world(&w);
}

/* How many of @n prompts that visit_many() made can be had. */
static uint32_t n_found(struct world *w, uint64_t salt, uint32_t n) {
    struct prefix_hit hit;
    int32_t tok[N_CTX];
    uint32_t found = 0;

    for (uint32_t i = 0; i < n; i++) {
        fill(tok, 0, 100, (int32_t)(10 * i));
        assert_int_equal(prefix_take(w->p, salt, tok, 100, &hit), 0);
        found += hit.n == 100;
        kvcache_seq_free(w->kv, hit.seq);
    }
    return found;
}

static void visit_many(struct world *w, uint64_t salt, uint32_t n) {
    int32_t tok[N_CTX];

    for (uint32_t i = 0; i < n; i++) {
        fill(tok, 0, 100, (int32_t)(10 * i));
        (void)visit(w, salt, tok, 100, 0);
    }
}

/* Who keeps a lot has what others leave, and pushes out their own: of prefixes and of bytes. */
static void test_fair(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = new_cache(0);
    uint64_t one = kvcache_need(kv, 100);
    struct world w;

    for (int bytes = 0; bytes < 2; bytes++) {
        open_world(&w, 0, bytes ? N_KEEP * one : UINT64_MAX);
        visit_many(&w, 1, 3);
        visit_many(&w, 2, 2);
        visit_many(&w, 3, 5 * N_KEEP);
        assert_int_equal(n_found(&w, 1, 3), 3);
        assert_int_equal(n_found(&w, 2, 2), 2);
        assert_int_equal(n_found(&w, 3, 5 * N_KEEP), N_KEEP - 5);
        visit_many(&w, 4, N_KEEP); /* another one, until both have the same */
        assert_int_equal(prefix_n_of(w.p, 1), 3);
        assert_int_equal(prefix_n_of(w.p, 2), 2);
        assert_in_range(prefix_n_of(w.p, 3), 3, 4);
        assert_int_equal(prefix_n_of(w.p, 3) + prefix_n_of(w.p, 4), N_KEEP - 5);
        assert_true(kvcache_n_kept(w.kv) <= N_KEEP * one);
        prefix_clear(w.p);
        assert_int_equal(prefix_n(w.p), 0);
        assert_int_equal(kvcache_n_used(w.kv), 0);
        close_world(&w);
    }
}

/* Nobody finds what another salt has. */
static void test_salt(void **state) {
    struct prefix_hit hit;
    struct world w;
    int32_t tok[N_CTX];

    open_world(&w, 0, UINT64_MAX);
    fill(tok, 0, N_CTX, 10);
    (void)visit(&w, 1, tok, 500, 200);
    hit = visit(&w, 2, tok, 500, 200);
    assert_int_equal(hit.n, 0);
    assert_int_equal(hit.parted, 0);
    assert_int_equal(visit(&w, PREFIX_PUBLIC, tok, 500, 0).n, 0);
    assert_int_equal(visit(&w, 3, tok, 600, 0).n, 500);
    close_world(&w);
}

/* All that one salt has goes, and nothing of others. */
static void test_forget(void **state) {
    struct world w;
    int32_t tok[N_CTX];

    open_world(&w, 0, UINT64_MAX);
    prefix_forget(w.p, 1);
    fill(tok, 0, N_CTX, 10);
    (void)visit(&w, 2, tok, 300, 0);
    (void)visit(&w, PREFIX_PUBLIC, tok, 40, 0);
    for (int i = 0; i < 4; i++) {
        fill(tok, 100, N_CTX, 50 * i);
        (void)visit(&w, 1, tok, 400, 100);
    }
    assert_true(prefix_n_of(w.p, 1) >= 4);
    prefix_forget(w.p, 1);
    assert_true(prefix_sound(w.p));
    assert_int_equal(prefix_n_of(w.p, 1), 0);
    assert_int_equal(prefix_n(w.p), 2);
    assert_int_equal(visit(&w, 1, tok, 400, 0).n, 40);
    fill(tok, 0, N_CTX, 10);
    assert_int_equal(visit(&w, 2, tok, 300, 0).n, 299);
    close_world(&w);
}

/* ---- at random ---- */

struct seen {
    uint64_t salt;
    pos_t n;
    int32_t tok[N_CTX];
};

/* Few tokens that differ, so that prompts branch everywhere. */
static pos_t random_prompt(const struct seen *s, uint32_t n_seen, int32_t *tok) {
    const struct seen *from = n_seen ? &s[below(n_seen)] : NULL;
    pos_t n = from ? below(from->n + 1) : 0, end = 2 + below(N_CTX - 2);

    memcpy(tok, from ? from->tok : tok, n * sizeof *tok);
    for (; n < end; n++)
        tok[n] = below(40) ? 1 : 2 + (int32_t)below(3);
    return end;
}

static void random_visits(uint64_t kv_bytes, uint64_t n_byte, uint32_t n) {
    struct seen *s = calloc(n, sizeof *s);
    struct world w;

    open_world(&w, kv_bytes, n_byte);
    for (uint32_t i = 0; i < n; i++) {
        pos_t most = 0, all = random_prompt(s, i, s[i].tok);
        struct prefix_hit hit;

        s[i].n = all;
        s[i].salt = below(N_SALT) ? below(N_SALT) : PREFIX_PUBLIC;
        hit = visit(&w, s[i].salt, s[i].tok, all, below(2) ? 1 + below(all) : 0);
        for (uint32_t k = 0; k < i; k++) /* nothing comes from where it may not */
            if (s[k].salt == s[i].salt || s[k].salt == PREFIX_PUBLIC) {
                pos_t same = common(s[k].tok, s[k].n, s[i].tok, all - 1);

                most = same > most ? same : most;
            }
        assert_true(hit.parted <= most);
        assert_true(kvcache_n_kept(w.kv) <= n_byte);
        assert_true(prefix_n(w.p) <= N_KEEP);
        if (i % 8 == 0)
            assert_true(kvcache_sound(w.kv));
    }
    close_world(&w);
    free(s);
}

static void test_random(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = new_cache(0);
    uint64_t need = kvcache_need(kv, N_CTX);

    random_visits(0, UINT64_MAX, 300);
    random_visits(0, need / 2, 300);
    random_visits(need, UINT64_MAX, 300);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),   cmocka_unit_test(test_sliding), cmocka_unit_test(test_cover),
        cmocka_unit_test(test_order),  cmocka_unit_test(test_fair),    cmocka_unit_test(test_salt),
        cmocka_unit_test(test_forget), cmocka_unit_test(test_random),
    };

    return cmocka_run_group_tests_name("prefix", tests, NULL, NULL);
}
