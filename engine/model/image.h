/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * image - packed weights as a file of a cache directory, which a later start maps
 *
 *   0                   struct image_head
 *   sizeof head         struct image_tensor [n_tensor], in the order of the model's directory
 *   behind them         uint64_t [n_slab], the sum_bytes() of each IMAGE_SLAB bytes of weights
 *   data_at             the weights, byte for byte as they lie in memory; a multiple of MEM_HUGE
 *
 * Integers are in the machine's order; the version read in the other order is another version.
 *
 * The head says which files the weights are from, how they are packed and where each lies. A reader
 * knows all of that before it looks, and takes an image only if it says the same: no offset or size
 * is ever taken from it. "source" is a sum over size, inode and times of change of each file of the
 * model, its directory, and pieces of its data: a file that is replaced or written to is another
 * source, even with its time of modification set back. The image's own time of modification must be
 * the one in its head: whoever writes to it spoils it. Its owner must be this process's user, and
 * nobody else may write to it.
 *
 * There is one image a model, named by the model's path. It is written under another name, synced
 * and renamed, and never changed afterwards; whoever has the old one mapped keeps it.
 *
 * Owner:   the thread that loads, then image_write()'s thread; one at a time.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/gguf.h"

enum {
    IMAGE__OK,

    IMAGE_NONE, /* there is no image, or no directory for it */
    IMAGE_BAD,  /* not the image of these weights; @why says in what */
    IMAGE_FULL, /* image_write(): the file system has too little room, @why says so */
    IMAGE_LEFT, /* image_write(): *stop was seen, or another process writes the same image */
};

enum {
    IMAGE_VERSION = 2,
    IMAGE_SLAB = 16 << 20, /* bytes of weights a sum is of; a multiple of MEM_HUGE */
    IMAGE_PATH_MAX = 4096,
};

#define IMAGE_MAGIC "MOEDPACK"

struct image_head {
    char magic[8];
    uint32_t version;
    uint32_t n_tensor;
    uint64_t sum; /* of head, tensors and sums, with this field 0 */
    uint64_t source;
    uint64_t data_at, data_size; /* bytes */
    int64_t sec, nsec;           /* the file's time of modification */
    char path[IMAGE_PATH_MAX];   /* of the model's first file, NUL-padded: an image whose model is
                                    gone is removed */
};

struct image_tensor {
    uint64_t name;   /* sum_bytes() of how tensors are cut for nodes, and its name */
    uint64_t at;     /* bytes from data_at */
    uint64_t step;   /* bytes from one expert's matrices to the next one's; 0: of no expert */
    uint64_t size;   /* bytes of all its matrices */
    char layout[28]; /* see kern.h; NUL-padded */
    uint32_t n_row;  /* of a group */
};

struct image;

/* The source of @g's files. Return: 0 or -errno. */
int image_source(const struct gguf *g, uint64_t *ret_source);

/**
 * image_new() - say what an image of some packed weights is
 * @dir:        the cache directory; NULL: it is to be a memory file
 * @g:          the model's files; borrowed for the call
 * @tensor:     [n_tensor], copied
 * @size:       bytes of all weights
 *
 * Return: 0, IMAGE_NONE, or -errno.
 */
int image_new(struct image **ret_image, const char *dir, const struct gguf *g,
              const struct image_tensor *tensor, uint32_t n_tensor, uint64_t size);
struct image *image_free(struct image *img);
AUTO_DEFINE(struct image *, image_free)

/* Are @n bytes the head of this image? Return: 0 or IMAGE_BAD. */
int image_check(const struct image *img, const void *head, size_t n, struct why *why);
/* Bytes of head, tensors and sums. */
size_t image_head_size(const struct image *img);
/* The path in a head of any model; NULL: it is none we know. */
const char *image_path(const void *head, size_t n);

/* Open the image in the directory and check all but its weights; keep its sums.
 * Return: 0, IMAGE_NONE, IMAGE_BAD, or -errno. */
int image_open(struct image *img, struct why *why);
/* Of an image that is open: its file, borrowed, and where in it the weights are. */
int image_fd(const struct image *img, uint64_t *ret_data_at);
/* Does @data [@n], slab @i of an open image, sum up to what the head says? */
bool image_slab_ok(const struct image *img, uint64_t i, const void *data, size_t n);
/* Close it and remove it from the directory. */
void image_drop(struct image *img);
/* Reads of its weights around the page cache: a file descriptor of its own, or -1. */
int image_open_direct(const struct image *img);

/* Called before slab [@at, ...) of the weights is written. */
typedef void image_slab_fn(void *arg, uint64_t at);
/* ---- image-memory.c: an image in a memory file, which whoever has it open keeps ----
 *
 * The file has the same form; its sums of slabs are 0, since memory is not read back from a disk.
 * It is sealed: nobody can change it, so it is what it was when it was made. */

/* Put the weights of @fd, borrowed, in the place of @data, if it is this image.
 * Return: 0, IMAGE_BAD, or -errno. */
int image_adopt(struct image *img, int fd, void *data, struct why *why);
/* Make such a file and put it in the place of @data, to be filled. Return: 0 or -errno. */
int image_begin(struct image *img, void *data);
/* It is filled: write its head and seal it. @data is not written to afterwards, whatever is
 * returned: 0, or -errno when the file is not to be kept. */
int image_seal(struct image *img, void *data);

/**
 * image_write() - make the image of weights in memory, and let the file take their place
 * @data:       the weights, a mapping of mem_map(). Once a slab is on disk, the file is mapped over
 *              it, so weights are never twice in memory, and a later start finds the pages of the
 *              first. What was mapped stays so, even if the image comes to nothing.
 * @before:     may be NULL
 * @stop:       looked at every slab
 *
 * Also removes images of models that are gone. Once it is made, it is open.
 * Return: 0, IMAGE_FULL, IMAGE_LEFT, or -errno with @why.
 */
int image_write(struct image *img, uint8_t *data, image_slab_fn *before, void *arg,
                const atomic_bool *stop, struct why *why);

/* ---- an image that is made before its weights are in memory, since they do not fit ----
 *
 * image_make() puts a new file in the place of @data, to be filled; image_made() writes its head
 * and opens it: then @data is to be mapped anew. In between, image_free() removes it.
 * Return: as image_write(). */
int image_make(struct image *img, uint8_t *data, struct why *why);
int image_made(struct image *img, const uint8_t *data, const atomic_bool *stop, struct why *why);
