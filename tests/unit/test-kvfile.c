/* SPDX-License-Identifier: Apache-2.0 */

/* Keys and values to a file and back: the same bytes, and from a file that is anything else nothing
 * at all. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/kern/kern.h"
#include "engine/kv/kvfile.h"

enum { N_CTX = 500, N_BATCH = 70, WINDOW = 90, N_FMT = 3, OTHERS = 0xa5 };

static const struct kv_layer_shape layers[] = {
    { .n_kv_head = 2, .head_dim = 40, .n_key = 16 },
    { .n_kv_head = 1, .head_dim = 32, .n_key = 32, .window = WINDOW },
    { .n_kv_head = 1, .head_dim = 32, .n_key = 32, .window = 20 },
};
static const enum quant_fmt formats[N_FMT] = { QUANT_F32, QUANT_F16, QUANT_Q8_0 };
static const struct kvfile_id id = { .model = 0x1234567812345678, .salt = 1000 };

static struct kvcache *new_cache(enum quant_fmt fmt, uint32_t n_layer, uint32_t n_ctx) {
    struct kv_shape s = { .n_layer = n_layer,
                          .layer = layers,
                          .n_ctx = n_ctx,
                          .n_batch = N_BATCH,
                          .n_seq = 2,
                          .fmt = fmt };
    struct kvcache *kv = NULL;

    assert_int_equal(kvcache_new(&kv, &s), 0);
    return kv;
}

static size_t head_size(const struct kvcache *kv, uint32_t l) {
    return kern_kv_size(kvcache_fmt(kv), kvcache_key_dim(kv, l)) +
           kern_kv_size(kvcache_fmt(kv), kvcache_value_dim(kv, l));
}

static uint8_t *block_at(const struct kvcache *kv, uint32_t l, uint32_t seq, uint32_t b) {
    return kvcache_view(kv, l, seq, 0, b).key;
}

static uint32_t first_of(const struct kvcache *kv, uint32_t l, uint32_t seq) {
    return kvcache_slides(kv, l) ? kvcache_first(kv, seq) : 0;
}

/* A sequence of @n positions with bytes at random; what it does not use is of others. */
static uint32_t filled(struct kvcache *kv, pos_t n) {
    uint32_t seq;

    assert_int_equal(kvcache_seq_new(kv, &seq), 0);
    for (pos_t at = 0; at < n; at += N_BATCH)
        assert_int_equal(kvcache_reserve(kv, seq, n - at < N_BATCH ? n - at : N_BATCH), 0);
    for (uint32_t l = 0; l < kvcache_n_layer(kv); l++)
        for (uint32_t b = first_of(kv, l, seq); b * KV_BLOCK < n; b++) {
            size_t size = head_size(kv, l) * layers[l].n_kv_head;

            for (size_t i = 0; i < size; i++)
                block_at(kv, l, seq, b)[i] =
                    (b + 1) * KV_BLOCK <= n ? (uint8_t)(rand() % OTHERS) : OTHERS;
        }
    return seq;
}

static int run(struct kvfile *f, struct kvcache *kv, uint32_t seq, size_t slice, struct why *why) {
    int r, n = 0;

    do
        r = kvfile_go(f, kv, seq, slice, why);
    while (r == KVFILE_MORE && ++n < 100000);
    return r;
}

static const int32_t *tokens(void) {
    static int32_t tok[N_CTX];

    for (int i = 0; i < N_CTX; i++)
        tok[i] = 3 * i + 1;
    return tok;
}

static int saved(struct kvcache *kv, uint32_t seq, pos_t n, size_t slice) {
    AUTO(kvfile_free) struct kvfile *f = NULL;
    int fd = memfd_create("kvfile", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(kvfile_save(&f, fd, kv, &id, tokens(), n), 0);
    assert_int_equal(run(f, kv, seq, slice, NULL), 0);
    return fd;
}

/* Return: as kvfile_load() or kvfile_go(); nothing is left in @kv. */
static int loads(int fd, struct kvcache *kv, const struct kvfile_id *as, struct why *why) {
    AUTO(kvfile_free) struct kvfile *f = NULL;
    uint32_t seq;
    int r;

    why->text[0] = 0;
    r = kvfile_load(&f, fd, kv, as, why);
    if (r != 0)
        return r;
    assert_int_equal(kvfile_place(f, kv, &seq), 0);
    r = run(f, kv, seq, 4096, why);
    kvcache_seq_free(kv, seq);
    return r;
}

static void same_blocks(const struct kvcache *a, uint32_t sa, const struct kvcache *b, uint32_t sb,
                        pos_t n) {
    for (uint32_t l = 0; l < kvcache_n_layer(a); l++)
        for (uint32_t k = first_of(a, l, sa); k * KV_BLOCK < n; k++) {
            size_t size = head_size(a, l) * layers[l].n_kv_head;

            if ((k + 1) * KV_BLOCK <= n)
                assert_memory_equal(block_at(a, l, sa, k), block_at(b, l, sb, k), size);
        }
}

/* Of the last block, each row in use is there, and no other: rows are put there by the kernels. */
static void last_block(enum quant_fmt fmt) {
    AUTO(kvcache_free) struct kvcache *a = new_cache(fmt, 3, N_CTX), *b = new_cache(fmt, 3, N_CTX);
    pos_t n = 2 * KV_BLOCK + 37;
    uint32_t sa = filled(a, n), sb;
    struct kern k = { 0 };

    kern_bind(&k, 0);
    for (uint32_t l = 0; l < 3; l++)
        for (uint32_t h = 0; h < layers[l].n_kv_head; h++)
            for (uint32_t at = 0; at < KV_BLOCK; at++) {
                struct kv_view v = kvcache_view(a, l, sa, h, 2);
                float x[64];

                for (int i = 0; i < 64; i++)
                    x[i] = at < 37 ? (float)(i + (int)at) + 1 : NAN;
                for (int i = 0; i < 64 && at >= 37 && fmt == QUANT_Q8_0; i++)
                    x[i] = 1000;
                k.attn[fmt].put_key(x, kvcache_key_dim(a, l), at, v.key);
                k.attn[fmt].put_value(x, kvcache_value_dim(a, l), at, v.value);
            }
    AUTO(close) int fd = saved(a, sa, n, 100);
    AUTO(kvfile_free) struct kvfile *f = NULL;

    assert_int_equal(kvfile_load(&f, fd, b, &id, NULL), 0);
    assert_int_equal(kvfile_place(f, b, &sb), 0);
    assert_int_equal(run(f, b, sb, 1000, NULL), 0);
    for (uint32_t l = 0; l < 3; l++)
        for (uint32_t at = 37; at < KV_BLOCK; at++) { /* as if zeros had been put */
            struct kv_view v = kvcache_view(a, l, sa, 0, 2);
            static const float zero[64];

            for (uint32_t h = 0; h < layers[l].n_kv_head; h++) {
                v = kvcache_view(a, l, sa, h, 2);
                k.attn[fmt].put_key(zero, kvcache_key_dim(a, l), at, v.key);
                k.attn[fmt].put_value(zero, kvcache_value_dim(a, l), at, v.value);
            }
        }
    for (uint32_t l = 0; l < 3; l++)
        assert_memory_equal(block_at(a, l, sa, 2), block_at(b, l, sb, 2),
                            head_size(a, l) * layers[l].n_kv_head);
}

static void test_last_block(void **state) {
    for (int f = 0; f < N_FMT; f++)
        last_block(formats[f]);
}

static void test_there_and_back(void **state) {
    static const pos_t lengths[] = { 1, 63, 64, 65, 89, 90, 200, 320, 499, 500 };

    for (int f = 0; f < N_FMT; f++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            AUTO(kvcache_free) struct kvcache *a = new_cache(formats[f], 3, N_CTX);
            AUTO(kvcache_free) struct kvcache *b = new_cache(formats[f], 3, N_CTX);
            AUTO(kvfile_free) struct kvfile *r = NULL;
            pos_t n = lengths[i], n_tok;
            uint32_t sa = filled(a, n), sb;
            AUTO(close) int fd = saved(a, sa, n, 1 + i * 1000);

            assert_int_equal(kvfile_load(&r, fd, b, &id, NULL), 0);
            assert_memory_equal(kvfile_tokens(r, &n_tok), tokens(), n * sizeof(int32_t));
            assert_int_equal(n_tok, n);
            assert_int_equal(kvfile_place(r, b, &sb), 0);
            assert_int_equal(kvcache_n(b, sb), n);
            assert_true(kvcache_holds(b, sb, n));
            assert_int_equal(kvcache_first(b, sb), kvcache_first(a, sa));
            assert_int_equal(run(r, b, sb, 5000, NULL), 0);
            same_blocks(a, sa, b, sb, n);
            assert_true(kvcache_sound(b));
            if (n < N_CTX) /* it goes on */
                assert_int_equal(kvcache_reserve(b, sb, 1), 0);
        }
}

/* Damage anywhere, and any length but its own, is seen, with a sentence. */
static void test_damage(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = new_cache(QUANT_Q8_0, 3, N_CTX);
    uint32_t seq = filled(kv, 150);
    AUTO(close) int fd = saved(kv, seq, 150, SIZE_MAX);
    struct why why;
    struct stat st;

    kvcache_seq_free(kv, seq);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(loads(fd, kv, &id, &why), 0);
    for (off_t at = 0; at < st.st_size; at += at < 800 ? 1 : 97) {
        uint8_t byte, other;

        assert_int_equal(pread(fd, &byte, 1, at), 1);
        other = byte ^ (uint8_t)(1 << at % 8);
        assert_int_equal(pwrite(fd, &other, 1, at), 1);
        assert_int_equal(loads(fd, kv, &id, &why), KVFILE_BAD);
        assert_true(strlen(why.text) > 20);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    assert_int_equal(loads(fd, kv, &id, &why), 0);
    assert_int_equal(ftruncate(fd, st.st_size + 1), 0);
    assert_int_equal(loads(fd, kv, &id, &why), KVFILE_BAD);
    for (off_t n = st.st_size - 1; n >= 0; n -= n > 200 ? 997 : 1) {
        assert_int_equal(ftruncate(fd, n), 0);
        assert_int_equal(loads(fd, kv, &id, &why), KVFILE_BAD);
    }
    assert_int_equal(kvcache_n_used(kv), 0);
    assert_true(kvcache_sound(kv));
}

static void refused(int fd, struct kvcache *kv, const struct kvfile_id *as, const char *what) {
    struct why why;

    assert_int_equal(loads(fd, kv, as, &why), KVFILE_BAD);
    if (!strstr(why.text, what))
        fail_msg("\"%s\" does not say \"%s\"", why.text, what);
    kvcache_free(kv);
}

static void test_foreign(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = new_cache(QUANT_F16, 3, N_CTX);
    AUTO(close) int fd = saved(kv, filled(kv, 150), 150, SIZE_MAX);
    int p[2];
    struct kvfile_id model = id, salt = id;
    struct why why;

    model.model++;
    salt.salt++;
    refused(fd, new_cache(QUANT_F16, 3, N_CTX), &model, "model");
    refused(fd, new_cache(QUANT_F16, 3, N_CTX), &salt, "owner");
    refused(fd, new_cache(QUANT_Q8_0, 3, N_CTX), &id, "layout");
    refused(fd, new_cache(QUANT_F16, 2, N_CTX), &id, "layout");
    refused(fd, new_cache(QUANT_F16, 3, 149), &id, "150 tokens");
    assert_int_equal(pipe(p), 0);
    assert_int_equal(loads(p[0], kv, &id, &why), KVFILE_BAD);
    close(p[0]);
    close(p[1]);
}

static void test_no_room_on_disk(void **state) {
    AUTO(kvcache_free) struct kvcache *kv = new_cache(QUANT_F16, 3, N_CTX);
    AUTO(kvfile_free) struct kvfile *f = NULL;
    int fd = open("/dev/full", O_RDWR | O_CLOEXEC);
    struct why why = { "" };

    assert_true(fd >= 0);
    assert_int_equal(kvfile_save(&f, fd, kv, &id, tokens(), 150), 0);
    assert_int_equal(run(f, kv, filled(kv, 150), 100, &why), -ENOSPC);
    assert_non_null(strstr(why.text, "cannot write"));
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),  cmocka_unit_test(test_last_block),
        cmocka_unit_test(test_damage),          cmocka_unit_test(test_foreign),
        cmocka_unit_test(test_no_room_on_disk),
    };

    return cmocka_run_group_tests_name("kvfile", tests, NULL, NULL);
}
