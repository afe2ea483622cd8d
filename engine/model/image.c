/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/base/sum.h"
#include "engine/model/image-file.h"

enum {
    SAMPLES = 64,       /* pieces of a file that its sum covers */
    SAMPLE_SIZE = 4096, /* bytes */
};

_Static_assert(sizeof(struct image_head) % 8 == 0 && sizeof(struct image_tensor) == 64,
               "the tables behind the head have no gaps");
_Static_assert(IMAGE_SLAB % MEM_HUGE == 0, "a slab is mapped by huge pages");

/* ---- which files ---- */

/* The bytes before the first tensor of a file: they are in its mapping. */
static uint64_t sum_directory(const struct gguf *g, uint32_t part, uint64_t sum) {
    const struct tensor *first = NULL;

    for (uint32_t i = 0; i < gguf_n_tensor(g); i++) {
        const struct tensor *t = gguf_tensor_at(g, i);

        if (t->part == part && (!first || t->offset < first->offset))
            first = t;
    }
    return first ? sum_bytes(sum, (const uint8_t *)first->data - first->offset, first->offset)
                 : sum;
}

static int sum_samples(int fd, uint64_t size, uint64_t *sum) {
    uint8_t piece[SAMPLE_SIZE];

    for (uint64_t i = 0; i < SAMPLES; i++) {
        uint64_t at = size / SAMPLES * i;
        ssize_t n = pread(fd, piece, sizeof piece, (off_t)at);

        if (n < 0)
            return err_new(-errno);
        *sum = sum_bytes(*sum, piece, (size_t)n);
    }
    return 0;
}

int image_source(const struct gguf *g, uint64_t *ret_source) {
    uint64_t sum = gguf_n_part(g);

    for (uint32_t i = 0; i < gguf_n_part(g); i++) {
        struct stat st;
        int r;

        if (fstat(gguf_part_fd(g, i), &st) < 0)
            return err_new(-errno);
        const int64_t print[] = { (int64_t)st.st_size,        (int64_t)st.st_ino,
                                  (int64_t)st.st_mtim.tv_sec, (int64_t)st.st_mtim.tv_nsec,
                                  (int64_t)st.st_ctim.tv_sec, (int64_t)st.st_ctim.tv_nsec };

        sum = sum_directory(g, i, sum_bytes(sum, print, sizeof print));
        r = sum_samples(gguf_part_fd(g, i), (uint64_t)st.st_size, &sum);
        if (r < 0)
            return err_up(r);
    }
    *ret_source = sum;
    return 0;
}

/* ---- what it must say ---- */

struct image *image_free(struct image *img) {
    if (!img)
        return NULL;
    image_unmake(img);
    if (img->fd >= 0)
        (void)close(img->fd);
    if (img->dir_fd >= 0)
        (void)close(img->dir_fd);
    free(img->head);
    free(img);
    return NULL;
}

static int name_it(struct image *img, const struct gguf *g) {
    char link[32];
    ssize_t n;

    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", gguf_part_fd(g, 0));
    n = readlink(link, img->head->path, sizeof img->head->path - 1);
    if (n < 0)
        return err_new(-errno);
    (void)snprintf(img->name, sizeof img->name, "%016" PRIx64 IMAGE_SUFFIX,
                   sum_bytes(0, img->head->path, (size_t)n));
    return 0;
}

int image_new(struct image **ret_image, const char *dir, const struct gguf *g,
              const struct image_tensor *tensor, uint32_t n_tensor, uint64_t size) {
    AUTO(image_free) struct image *img = calloc(1, sizeof *img);
    uint64_t n_slab = (size + IMAGE_SLAB - 1) / IMAGE_SLAB;
    int r;

    if (!img)
        return err_new(-ENOMEM);
    img->fd = img->dir_fd = img->new_fd = -1;
    if (dir && (img->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        return IMAGE_NONE;

    img->head_size = sizeof *img->head + n_tensor * sizeof *tensor + n_slab * sizeof *img->slab;
    img->head = calloc(1, img->head_size);
    if (!img->head)
        return err_new(-ENOMEM);
    img->slab = (uint64_t *)((uint8_t *)(img->head + 1) + n_tensor * sizeof *tensor);
    memcpy(img->head->magic, IMAGE_MAGIC, sizeof img->head->magic);
    img->head->version = IMAGE_VERSION;
    img->head->n_tensor = n_tensor;
    img->head->data_at = (img->head_size + MEM_HUGE - 1) / MEM_HUGE * MEM_HUGE;
    img->head->data_size = size;
    memcpy(img->head + 1, tensor, n_tensor * sizeof *tensor);
    r = name_it(img, g);
    if (r == 0)
        r = image_source(g, &img->head->source);
    if (r < 0)
        return err_up(r);

    *ret_image = take(img);
    return 0;
}

size_t image_head_size(const struct image *img) {
    return img->head_size;
}

/* ---- is it that? ---- */

uint64_t image_head_sum(const struct image_head *head, size_t n) {
    struct image_head h = *head;

    h.sum = 0;
    return sum_bytes(sum_bytes(0, &h, sizeof h), head + 1, n - sizeof h);
}

/* The first tensor that is not as it must be; NULL: none. */
static const char *other_tensor(const struct image *img, const struct image_head *h) {
    const struct image_tensor *want = (const struct image_tensor *)(img->head + 1);
    const struct image_tensor *is = (const struct image_tensor *)(h + 1);

    if (h->n_tensor != img->head->n_tensor || h->data_at != img->head->data_at ||
        h->data_size != img->head->data_size)
        return "other weights are packed";
    for (uint32_t i = 0; i < h->n_tensor; i++) {
        if (memcmp(want[i].layout, is[i].layout, sizeof is[i].layout) != 0 ||
            want[i].n_row != is[i].n_row)
            return "weights are packed in another layout";
        if (memcmp(&want[i], &is[i], sizeof is[i]) != 0)
            return "weights lie in other places";
    }
    return NULL;
}

int image_check(const struct image *img, const void *head, size_t n, struct why *why) {
    const struct image_head *h = head;
    const char *what = NULL;

    assert((uintptr_t)head % _Alignof(struct image_head) == 0);
    if (n < sizeof *h)
        what = "the head is cut short";
    else if (memcmp(h->magic, IMAGE_MAGIC, sizeof h->magic) != 0)
        what = "no image of weights";
    else if (h->version != IMAGE_VERSION)
        what = "another version";
    else if (h->source != img->head->source)
        what = "of another model, or of what it was before it changed";
    else if (n != img->head_size)
        what = "other weights are packed";
    else if (h->sum != image_head_sum(h, n))
        what = "the head is damaged";
    else
        what = other_tensor(img, h);
    return what ? why_set(why, IMAGE_BAD, "%s: %s", img->name, what) : 0;
}

const char *image_path(const void *head, size_t n) {
    const struct image_head *h = head;

    if (n < sizeof *h || memcmp(h->magic, IMAGE_MAGIC, sizeof h->magic) != 0 ||
        h->version != IMAGE_VERSION || h->path[0] != '/' || !memchr(h->path, '\0', sizeof h->path))
        return NULL;
    return h->path;
}

/* ---- opening ---- */

static int check_file(const struct image *img, const struct image_head *h, const struct stat *st,
                      struct why *why) {
    const char *what = NULL;

    if (!S_ISREG(st->st_mode) || st->st_uid != geteuid() || (st->st_mode & (S_IWGRP | S_IWOTH)))
        what = "not a file that only this user may write";
    else if ((uint64_t)st->st_size != img->head->data_at + img->head->data_size)
        what = "cut short, or too long";
    else if (st->st_mtim.tv_sec != h->sec || st->st_mtim.tv_nsec != h->nsec)
        what = "changed after it was written";
    return what ? why_set(why, IMAGE_BAD, "%s: %s", img->name, what) : 0;
}

int image_open(struct image *img, struct why *why) {
    AUTO(close) int fd = openat(img->dir_fd, img->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    AUTO(free) struct image_head *h = malloc(img->head_size);
    struct stat st;
    ssize_t n;
    int r;

    if (!h)
        return err_new(-ENOMEM);
    if (fd < 0 && errno == ENOENT)
        return IMAGE_NONE;
    if (fd < 0 || fstat(fd, &st) < 0)
        return why_set(why, IMAGE_BAD, "%s: %m", img->name);
    n = pread(fd, h, img->head_size, 0);
    if (n < 0)
        return why_set(why, IMAGE_BAD, "%s: %m", img->name);
    r = image_check(img, h, (size_t)n, why);
    if (r == 0)
        r = check_file(img, h, &st, why);
    if (r != 0)
        return r;

    memcpy(img->slab, (const uint8_t *)h + ((uint8_t *)img->slab - (uint8_t *)img->head),
           img->head_size - (size_t)((uint8_t *)img->slab - (uint8_t *)img->head));
    img->fd = take_fd(&fd);
    return 0;
}

int image_fd(const struct image *img, uint64_t *ret_data_at) {
    *ret_data_at = img->head->data_at;
    return img->fd;
}

int image_open_direct(const struct image *img) {
    char path[32];

    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", img->fd);
    return open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
}

bool image_slab_ok(const struct image *img, uint64_t i, const void *data, size_t n) {
    return sum_bytes(0, data, n) == img->slab[i];
}

void image_drop(struct image *img) {
    if (img->fd >= 0)
        (void)close(img->fd);
    img->fd = -1;
    (void)unlinkat(img->dir_fd, img->name, 0);
}
