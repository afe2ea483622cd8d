/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as the head of an image of packed weights, once as they are and once with a sum that is
 * right. What is taken says of the weights exactly what was planned. */

#include <string.h>

#include "engine/base/sum.h"
#include "engine/model/image-file.h"
#include "tests/fuzz/fuzz.h"

enum {
    N_TENSOR = 3,
    N_SLAB = 2,
    N = sizeof(struct image_head) + N_TENSOR * sizeof(struct image_tensor) + N_SLAB * 8
};

/* As image_new() makes it, of a model that is not there. */
static void plan(struct image *img, void *head) {
    struct image_tensor *t;

    *img = (struct image){ .dir_fd = -1, .fd = -1, .head = head, .head_size = N, .name = "fuzz" };
    memset(head, 0, N);
    memcpy(img->head->magic, IMAGE_MAGIC, sizeof img->head->magic);
    img->head->version = IMAGE_VERSION;
    img->head->n_tensor = N_TENSOR;
    img->head->source = 0x1234;
    img->head->data_at = 2 << 20;
    img->head->data_size = 3 << 20;
    t = (struct image_tensor *)(img->head + 1);
    for (uint32_t i = 0; i < N_TENSOR; i++)
        t[i] = (struct image_tensor){ i, i << 20, 4096, 1 << 20, "Q4_0.r16", 16 };
    img->slab = (uint64_t *)(t + N_TENSOR);
}

static void check(const struct image *img, const void *head, size_t n) {
    const struct image_head *h = head;
    struct why why = { "" };
    int r = image_check(img, head, n, &why);

    FUZZ_CHECK(r == 0 || (r == IMAGE_BAD && strncmp(why.text, "fuzz: ", 6) == 0));
    if (r != 0)
        return;
    FUZZ_CHECK(n == N && h->sum == image_head_sum(h, n));
    FUZZ_CHECK(memcmp(h->magic, img->head->magic, 16) == 0 && h->source == img->head->source);
    FUZZ_CHECK(h->data_at == img->head->data_at && h->data_size == img->head->data_size);
    FUZZ_CHECK(memcmp(h + 1, img->head + 1, N_TENSOR * sizeof(struct image_tensor)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static uint64_t planned[N / 8];
    uint64_t *copy = malloc(n ? n : 1); /* no more, so that a read past it is seen */
    const char *path;
    struct image img;

    FUZZ_CHECK(copy != NULL);
    memcpy(copy, data, n);
    plan(&img, planned);
    check(&img, copy, n);
    path = image_path(copy, n);
    FUZZ_CHECK(!path || (path[0] == '/' && strlen(path) < IMAGE_PATH_MAX));

    if (n >= sizeof(struct image_head)) {
        struct image_head *h = (struct image_head *)copy;

        h->sum = image_head_sum(h, n);
        check(&img, copy, n);
    }
    free(copy);
    return 0;
}
