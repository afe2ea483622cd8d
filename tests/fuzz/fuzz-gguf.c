/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as a model file: gguf_open() refuses them in a sentence, or everything it hands out
 * lies inside the file and every getter keeps its promises. */

#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/fmt/gguf.h"
#include "tests/fuzz/fuzz.h"

static uint32_t seen; /* read from the file, so that every read is a real one */

static void read_ends(const void *data, uint64_t n) {
    const uint8_t *p = data;

    if (n)
        seen += p[0] + p[n - 1];
}

static void walk_tensors(const struct gguf *g) {
    for (uint32_t i = 0; i < gguf_n_tensor(g); i++) {
        const struct tensor *t = gguf_tensor_at(g, i);
        const struct quant_info *info = quant_info(t->fmt);
        uint64_t n = 1;

        FUZZ_CHECK(gguf_tensor(g, t->name) == t);
        FUZZ_CHECK(strlen(t->name) >= 1 && strlen(t->name) <= 63);
        FUZZ_CHECK(t->n_dim >= 1 && t->n_dim <= TENSOR_DIM_MAX && t->ne[0] % info->block == 0);
        for (uint32_t d = 0; d < TENSOR_DIM_MAX; d++) {
            FUZZ_CHECK(t->ne[d] >= 1 && (d < t->n_dim || t->ne[d] == 1));
            n *= t->ne[d];
        }
        FUZZ_CHECK(t->size == n / info->block * info->size);
        FUZZ_CHECK(t->offset + t->size <= gguf_part_size(g, t->part));
        FUZZ_CHECK(t->offset + t->size > t->offset);
        read_ends(t->data, t->size);
    }
}

static void get_ints(const struct gguf *g, const char *key) {
    struct why why = { "" };
    uint32_t each[256];
    int32_t *ints = NULL;
    int64_t i = 0;
    uint64_t n = 0;
    uint32_t u = 0;
    int k;

    k = gguf_get_int(g, key, -5, 1000, &i, &why);
    FUZZ_CHECK(k == 0 ? i >= -5 && i <= 1000 : k == GGUF_BAD && strstr(why.text, "key "));
    k = gguf_get_u32(g, key, 1, UINT32_MAX, &u, &why);
    FUZZ_CHECK(k == 0 ? u >= 1 : k == GGUF_BAD);
    n = gguf_meta(g, key)->n;
    k = gguf_get_u32_each(g, key, 0, 256, n < 256 ? (uint32_t)n : 256, each, &why);
    for (uint64_t at = 0; k == 0 && at < n && at < 256; at++)
        FUZZ_CHECK(each[at] <= 256);
    k = gguf_get_ints(g, key, -9, 999, &ints, &n, &why);
    for (uint64_t at = 0; k == 0 && at < n; at++)
        FUZZ_CHECK(ints[at] >= -9 && ints[at] <= 999);
    free(ints);
}

static void get_others(const struct gguf *g, const char *key) {
    struct why why = { "" };
    struct gguf_strs it;
    uint64_t n = 0, n_walked = 0;
    const char *s;
    size_t n_s;
    float f = 0;
    bool b;

    if (gguf_get_f32(g, key, -1, INFINITY, &f, &why) == 0)
        FUZZ_CHECK(isfinite(f) && f >= -1);
    if (gguf_get_bool(g, key, &b, &why) == 0)
        seen += b;
    if (gguf_get_str(g, key, &s, &n_s, &why) == 0)
        read_ends(s, n_s);
    if (gguf_get_strs(g, key, &it, &n, &why) == 0) {
        while (gguf_strs_next(&it, &s, &n_s)) {
            read_ends(s, n_s);
            n_walked++;
        }
        FUZZ_CHECK(n_walked == n);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    AUTO(gguf_free) struct gguf *g = NULL;
    AUTO(close) int fd = memfd_create("input.gguf", MFD_CLOEXEC);
    struct why why = { "" };
    char path[64];
    int k;

    FUZZ_CHECK(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    k = gguf_open(&g, path, &why);
    if (k) {
        FUZZ_CHECK(!g && k == GGUF_BAD && strncmp(why.text, path, strlen(path)) == 0);
        FUZZ_CHECK(!strchr(why.text, '\n'));
        return 0;
    }

    FUZZ_CHECK(gguf_n_part(g) == 1 && gguf_part_size(g, 0) == size);
    walk_tensors(g);
    for (uint32_t i = 0; i < gguf_n_meta(g); i++) {
        const struct gguf_meta *m = gguf_meta_at(g, i);

        FUZZ_CHECK(gguf_meta(g, m->key) == m);
        get_ints(g, m->key);
        get_others(g, m->key);
    }
    return 0;
}
