/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * image-file - what image.c and image-write.c share
 */

#include "engine/model/image.h"

#define IMAGE_SUFFIX ".weights"

struct image {
    int dir_fd;
    int fd;                  /* of the file, once it is open; else -1 */
    struct image_head *head; /* [head_size]: what it must say, and its tables */
    uint64_t *slab;          /* sums, in head */
    size_t head_size;
    char name[32]; /* in the directory */
    int new_fd;    /* of a file that is being made by image_make(); else -1 */
};

/* Close and remove the file that is being made, if there is one. */
void image_unmake(struct image *img);
uint64_t image_head_sum(const struct image_head *head, size_t n);
