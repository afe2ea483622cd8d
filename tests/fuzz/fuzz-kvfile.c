/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as a file of keys and values, once as they are and once with a head of this cache. What
 * is refused leaves nothing behind; what is taken is a sequence of the size it says. */

#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kv/kvfile.h"
#include "tests/fuzz/fuzz.h"

enum { N_CTX = 200 };

static const struct kv_layer_shape layers[] = {
    { .n_kv_head = 1, .head_dim = 32, .n_key = 32 },
    { .n_kv_head = 1, .head_dim = 32, .n_key = 32, .window = 16 },
};
static const struct kvfile_id id = { .model = 0x1234, .salt = 1000 };

static void check(struct kvcache *kv, int fd) {
    struct why why = { "" };
    struct kvfile *f = NULL;
    int r = kvfile_load(&f, fd, kv, &id, &why);
    uint32_t seq;
    pos_t n;

    FUZZ_CHECK(r == 0 || (r == KVFILE_BAD && why.text[0] && !f));
    if (r != 0)
        return;
    FUZZ_CHECK(kvfile_place(f, kv, &seq) == 0);
    (void)kvfile_tokens(f, &n);
    FUZZ_CHECK(n >= 1 && n <= N_CTX && kvcache_n(kv, seq) == n && kvcache_holds(kv, seq, n));
    do
        r = kvfile_go(f, kv, seq, 1000, &why);
    while (r == KVFILE_MORE);
    FUZZ_CHECK(r == 0 || (r == KVFILE_BAD && why.text[0]));
    kvcache_seq_free(kv, seq);
    FUZZ_CHECK(kvcache_n_used(kv) == 0);
    kvfile_free(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const struct kvfile_head head = {
        .magic = KVFILE_MAGIC,
        .version = KVFILE_VERSION,
        .n_block = KV_BLOCK,
        .model = 0x1234,
        .salt = 1000,
        .fmt = QUANT_Q8_0,
        .n_layer = 2,
        .window = 16,
    };
    struct kv_shape shape = {
        .n_layer = 2, .layer = layers, .n_ctx = N_CTX, .n_batch = 16, .n_seq = 1, .fmt = QUANT_Q8_0
    };
    struct kvcache *kv = NULL;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    FUZZ_CHECK(kvcache_new(&kv, &shape) == 0 && fd >= 0);
    FUZZ_CHECK(pwrite(fd, data, n, 0) == (ssize_t)n);
    check(kv, fd);
    FUZZ_CHECK(pwrite(fd, &head, offsetof(struct kvfile_head, n_tok), 0) > 0);
    check(kv, fd);
    kvcache_free(kv);
    close(fd);
    return 0;
}
