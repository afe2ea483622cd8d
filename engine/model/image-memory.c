/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/model/image-file.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u /* Linux 6.3; older C libraries do not name it */
#endif

enum { SEALS = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };

int image_adopt(struct image *img, int fd, void *data, struct why *why) {
    AUTO(free) struct image_head *h = malloc(img->head_size);
    struct stat st;
    ssize_t n;
    int r, seals = fcntl(fd, F_GET_SEALS);

    if (!h)
        return err_new(-ENOMEM);
    if (seals < 0 || (seals & SEALS) != SEALS)
        return why_set(why, IMAGE_BAD, "not a memory file that nobody can change any more");
    n = pread(fd, h, img->head_size, 0);
    if (n < 0 || fstat(fd, &st) < 0)
        return why_set(why, IMAGE_BAD, "%m");
    r = image_check(img, h, (size_t)n, why);
    if (r == 0 && (uint64_t)st.st_size != img->head->data_at + img->head->data_size)
        r = why_set(why, IMAGE_BAD, "cut short, or too long");
    if (r != 0)
        return r;

    img->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (img->fd < 0)
        return err_new(-errno);
    return err_up(mem_put_file(data, img->head->data_size, img->fd, img->head->data_at));
}

static int make_file(void) {
    const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create("moed-weights", flags | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("moed-weights", flags);
    return fd < 0 ? err_new(-errno) : fd;
}

int image_begin(struct image *img, void *data) {
    AUTO(close) int fd = make_file();
    int r;

    if (fd < 0)
        return err_up(fd);
    if (ftruncate(fd, (off_t)(img->head->data_at + img->head->data_size)) < 0)
        return err_new(-errno);
    r = mem_put_shared(data, img->head->data_size, fd, img->head->data_at);
    if (r < 0)
        return err_up(r);
    img->fd = take_fd(&fd);
    return 0;
}

/* Readers have it open for reading alone: old kernels count each other shared mapping as one that
 * may be written through, and then seal nothing. */
int image_seal(struct image *img, void *data) {
    AUTO(close) int fd = -1;
    char path[32];
    int r;

    img->head->sum = image_head_sum(img->head, img->head_size);
    if (pwrite(img->fd, img->head, img->head_size, 0) != (ssize_t)img->head_size)
        return err_new(-EIO);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", img->fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_new(-errno);
    r = mem_put_file(data, img->head->data_size, fd, img->head->data_at);
    if (r < 0)
        return err_up(r);
    if (fcntl(img->fd, F_ADD_SEALS, SEALS) < 0)
        return err_new(-errno);

    (void)close(img->fd);
    img->fd = take_fd(&fd);
    return 0;
}
