/* SPDX-License-Identifier: Apache-2.0 */

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/base/sum.h"
#include "engine/model/image-file.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; older C libraries do not name it */
#endif

#define RESERVE_MAX (16ull << 30) /* bytes left free at most */

enum {
    RESERVE_SHARE = 10, /* of the file system, a tenth, is left free */
    NAME_MAX_NEW = 40,
};

/* ---- images nobody will open again ---- */

static bool is_orphan(int dir_fd, const char *name) {
    AUTO(close) int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct image_head h = { 0 };
    const char *path;

    if (fd < 0 || pread(fd, &h, sizeof h, 0) < 0)
        return false;
    path = image_path(&h, sizeof h);
    return !path || (access(path, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR));
}

static void remove_orphans(int dir_fd) {
    AUTO(close) int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const size_t suffix = sizeof IMAGE_SUFFIX - 1;
    struct dirent *e;
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

    if (!d)
        return;
    (void)take_fd(&fd);
    while ((e = readdir(d))) {
        size_t n = strlen(e->d_name);

        if (n == 16 + suffix && strcmp(e->d_name + 16, IMAGE_SUFFIX) == 0 &&
            strspn(e->d_name, "0123456789abcdef") == 16 && is_orphan(dir_fd, e->d_name))
            (void)unlinkat(dir_fd, e->d_name, 0);
    }
    (void)closedir(d);
}

/* ---- writing ---- */

/* Open the file to write under @name, ours alone. What a process left there that died is ours too,
 * but not what another has renamed meanwhile. Return: 0, IMAGE_LEFT, or -errno. */
static int open_new(const struct image *img, const char *name, int *ret_fd) {
    AUTO(close)
    int fd =
        openat(img->dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, S_IRUSR | S_IWUSR);
    struct stat a, b;

    if (fd < 0)
        return err_new(-errno);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? IMAGE_LEFT : err_new(-errno);
    if (fstat(fd, &a) < 0 || fstatat(img->dir_fd, name, &b, AT_SYMLINK_NOFOLLOW) < 0 ||
        a.st_ino != b.st_ino || a.st_dev != b.st_dev)
        return IMAGE_LEFT;
    if (ftruncate(fd, 0) < 0)
        return err_new(-errno);
    *ret_fd = take_fd(&fd);
    return 0;
}

/* Is there room for the whole file, and a reserve for whoever else writes there? It is not taken at
 * once: a file system in memory would take all of it from one node. */
static int check_room(const struct image *img, int fd, struct why *why) {
    uint64_t need = img->head->data_at + img->head->data_size, room, reserve;
    struct statvfs v;

    if (fstatvfs(fd, &v) < 0)
        return why_set(why, err_new(-errno), "%s: %m", img->name);
    room = (uint64_t)v.f_bavail * v.f_frsize;
    reserve = (uint64_t)v.f_blocks * v.f_frsize / RESERVE_SHARE;
    if (reserve > RESERVE_MAX)
        reserve = RESERVE_MAX;
    if (room < need + reserve)
        return why_set(why, IMAGE_FULL,
                       "%s: takes %" PRIu64 " bytes, %" PRIu64 " are free, %" PRIu64
                       " must stay so",
                       img->name, need, room, reserve);
    return 0;
}

static int write_all(int fd, const void *data, size_t n, uint64_t at) {
    const uint8_t *p = data;

    while (n) {
        ssize_t k = pwrite(fd, p, n, (off_t)at);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return err_new(k < 0 ? -errno : -EIO);
        p += k;
        n -= (size_t)k;
        at += (size_t)k;
    }
    return 0;
}

/* Only what is on disk takes the weights' place: pages that cannot be written are lost. */
static int write_slab(struct image *img, int fd, uint64_t i, uint8_t *data, size_t n) {
    uint64_t at = img->head->data_at + i * IMAGE_SLAB;
    int r;

    img->slab[i] = sum_bytes(0, data, n);
    r = write_all(fd, data, n, at);
    if (r < 0)
        return err_up(r);
    if (sync_file_range(fd, (off_t)at, (off_t)n,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER) < 0)
        return err_new(-errno);

    r = mem_put_file(data, n, fd, at);
    if (r == 0)
        (void)madvise(data, n, MADV_POPULATE_READ);
    return err_up(r);
}

/* The head last, then the time that it says, as the file system keeps it. */
static int write_head(struct image *img, int fd) {
    struct timespec time[2] = { { .tv_nsec = UTIME_OMIT } };
    struct stat st;
    int r;

    if (clock_gettime(CLOCK_REALTIME, &time[1]) < 0 || futimens(fd, time) < 0 ||
        fdatasync(fd) < 0 || fstat(fd, &st) < 0)
        return err_new(-errno);
    time[1] = st.st_mtim;
    img->head->sec = st.st_mtim.tv_sec;
    img->head->nsec = st.st_mtim.tv_nsec;
    img->head->sum = image_head_sum(img->head, img->head_size);
    r = write_all(fd, img->head, img->head_size, 0);
    if (r < 0)
        return err_up(r);
    return futimens(fd, time) < 0 || fsync(fd) < 0 ? err_new(-errno) : 0;
}

static int write_file(struct image *img, int fd, uint8_t *data, image_slab_fn *before, void *arg,
                      const atomic_bool *stop, struct why *why) {
    int r = check_room(img, fd, why);

    if (r != 0)
        return err_up(r);
    for (uint64_t i = 0, at = 0; at < img->head->data_size && r == 0; i++, at += IMAGE_SLAB) {
        uint64_t left = img->head->data_size - at;

        if (atomic_load_explicit(stop, memory_order_relaxed))
            return IMAGE_LEFT;
        if (before)
            before(arg, at);
        r = write_slab(img, fd, i, data + at, left < IMAGE_SLAB ? (size_t)left : IMAGE_SLAB);
    }
    if (r == 0)
        r = write_head(img, fd);
    return r == 0 ? 0 : why_set(why, err_up(r), "%s: %s", img->name, strerror(-r));
}

/* Give the file its name, and open it. */
static int publish(struct image *img, const char *name, struct why *why) {
    if (renameat(img->dir_fd, name, img->dir_fd, img->name) < 0)
        return why_set(why, err_new(-errno), "%s: %m", img->name);
    (void)fsync(img->dir_fd);
    img->fd = openat(img->dir_fd, img->name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return 0;
}

int image_write(struct image *img, uint8_t *data, image_slab_fn *before, void *arg,
                const atomic_bool *stop, struct why *why) {
    AUTO(close) int fd = -1;
    char name[sizeof img->name + 4];
    int r;

    remove_orphans(img->dir_fd);
    (void)snprintf(name, sizeof name, "%s.new", img->name);
    r = open_new(img, name, &fd);
    if (r != 0)
        return r < 0 ? why_set(why, err_up(r), "%s: %s", name, strerror(-r)) : r;

    r = write_file(img, fd, data, before, arg, stop, why);
    if (r == 0)
        r = publish(img, name, why);
    if (r != 0)
        (void)unlinkat(img->dir_fd, name, 0);
    return err_up(r);
}

/* ---- a file that is filled in its place ---- */

static void name_new(const struct image *img, char name[NAME_MAX_NEW]) {
    (void)snprintf(name, NAME_MAX_NEW, "%s.new", img->name);
}

/* All of it is taken at once: a page that finds no room later could not be reported. */
int image_make(struct image *img, uint8_t *data, struct why *why) {
    char name[NAME_MAX_NEW];
    uint64_t size = img->head->data_at + img->head->data_size;
    int r;

    remove_orphans(img->dir_fd);
    name_new(img, name);
    r = open_new(img, name, &img->new_fd);
    if (r != 0)
        return r < 0 ? why_set(why, err_up(r), "%s: %s", name, strerror(-r))
                     : why_set(why, r, "%s: another process is making it", name);
    r = check_room(img, img->new_fd, why);
    if (r == 0 && fallocate(img->new_fd, 0, 0, (off_t)size) < 0 &&
        (errno != EOPNOTSUPP || ftruncate(img->new_fd, (off_t)size) < 0))
        r = why_set(why, err_new(-errno), "%s: %m", name);
    if (r == 0)
        r = mem_put_shared(data, img->head->data_size, img->new_fd, img->head->data_at);
    if (r != 0)
        image_unmake(img);
    return err_up(r);
}

int image_made(struct image *img, const uint8_t *data, const atomic_bool *stop, struct why *why) {
    char name[NAME_MAX_NEW];
    int r = 0;

    name_new(img, name);
    for (uint64_t i = 0, at = 0; at < img->head->data_size; i++, at += IMAGE_SLAB) {
        uint64_t left = img->head->data_size - at;

        if (stop && atomic_load_explicit(stop, memory_order_relaxed))
            return IMAGE_LEFT;
        img->slab[i] = sum_bytes(0, data + at, left < IMAGE_SLAB ? (size_t)left : IMAGE_SLAB);
    }
    if (fsync(img->new_fd) < 0)
        r = err_new(-errno);
    if (r == 0)
        r = write_head(img, img->new_fd);
    if (r < 0)
        return why_set(why, err_up(r), "%s: %s", name, strerror(-r));
    r = publish(img, name, why);
    if (r < 0)
        return err_up(r);
    (void)posix_fadvise(img->new_fd, 0, 0, POSIX_FADV_DONTNEED);
    (void)close(take_fd(&img->new_fd));
    return 0;
}

void image_unmake(struct image *img) {
    char name[NAME_MAX_NEW];

    if (img->new_fd < 0)
        return;
    name_new(img, name);
    (void)close(take_fd(&img->new_fd));
    (void)unlinkat(img->dir_fd, name, 0);
}
