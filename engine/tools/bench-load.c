/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "engine/base/mem.h"
#include "engine/tools/bench.h"

enum { CHUNK = 8 << 20 /* bytes read at once: disks are at their best well below */ };

static double now_sec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int __attribute__((format(printf, 2, 3))) fail(struct why *why, const char *fmt, ...) {
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(why->text, sizeof why->text, fmt, ap);
    va_end(ap);
    return BENCH_FAILED;
}

/* Read all parts one after the other, past the page cache where the file system allows it. */
static int read_raw(const struct gguf *g, double *ret_sec, struct why *why) {
    double begin = now_sec();
    void *buf;
    int r;

    r = mem_map(CHUNK, false, &buf);
    if (r < 0)
        return fail(why, "no memory");
    for (uint32_t i = 0; i < gguf_n_part(g) && r == 0; i++) {
        char path[64];
        ssize_t n;
        int fd;

        snprintf(path, sizeof path, "/proc/self/fd/%d", gguf_part_fd(g, i));
        fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
        if (fd < 0)
            fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            r = fail(why, "%s: cannot open: %m", gguf_label(g, i));
            break;
        }
        while ((n = read(fd, buf, CHUNK)) > 0) {
        }
        if (n < 0)
            r = fail(why, "%s: cannot read: %m", gguf_label(g, i));
        (void)close(fd);
    }
    mem_unmap(buf, CHUNK);
    *ret_sec = now_sec() - begin;
    return r;
}

/* Of the @size bytes behind @fd, the share in the page cache; 0 when the kernel does not say. */
static double cached(int fd, uint64_t size) {
    enum { STEP = 1 << 30, PAGE = 4096 }; /* a larger page counts fewer, of fewer */
    uint64_t n_page = 0, n_in = 0;
    unsigned char *in = malloc(STEP / PAGE);

    for (uint64_t at = 0; in && at < size; at += STEP) {
        size_t n = size - at < STEP ? (size_t)(size - at) : STEP;
        size_t page = (size_t)sysconf(_SC_PAGESIZE), n_vec = (n + page - 1) / page;
        void *p = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, (off_t)at);

        if (p == MAP_FAILED)
            break;
        if (mincore(p, n, in) == 0)
            for (size_t i = 0; i < n_vec; i++)
                n_in += in[i] & 1;
        n_page += n_vec;
        (void)munmap(p, n);
    }
    free(in);
    return n_page ? (double)n_in / (double)n_page : 0;
}

/* Make the page cache forget the files, as far as nobody else has them mapped or dirty. */
static double forget(const struct gguf *g) {
    double bytes = 0, in = 0;

    for (uint32_t i = 0; i < gguf_n_part(g); i++) {
        uint64_t size = gguf_part_size(g, i);
        int fd = gguf_part_fd(g, i);

        (void)fdatasync(fd);
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        in += cached(fd, size) * (double)size;
        bytes += (double)size;
    }
    return bytes > 0 ? in / bytes : 0;
}

static int prepare(const struct bench_args *a, struct bench_load *ret, struct why *why) {
    AUTO(gguf_free) struct gguf *g = NULL;
    int r;

    if (gguf_open(&g, a->model, why) != 0)
        return BENCH_FAILED;
    for (uint32_t i = 0; i < gguf_n_part(g); i++)
        ret->bytes += gguf_part_size(g, i);
    r = read_raw(g, &ret->raw, why);
    g = gguf_free(g); /* what is mapped stays in the cache */
    if (r != 0)
        return r;
    if (gguf_open(&g, a->model, why) != 0)
        return BENCH_FAILED;
    ret->cached = forget(g);
    return 0;
}

/* A directory of its own, so that there is no image from before. */
static int make_cache(const char *parent, char *ret, size_t size, struct why *why) {
    snprintf(ret, size, "%s/moe-bench-XXXXXX", parent);
    return mkdtemp(ret) ? 0 : fail(why, "%s: cannot make a directory there: %m", parent);
}

static void remove_cache(const char *path) {
    DIR *dir = opendir(path);
    struct dirent *e;

    while (dir && (e = readdir(dir)))
        (void)unlinkat(dirfd(dir), e->d_name, 0); /* refuses "." and ".." */
    if (dir)
        (void)closedir(dir);
    (void)rmdir(path);
}

int bench_load_round(struct bench_own *o, const struct bench_args *a, struct bench_load *ret,
                     struct why *why) {
    char dir[4096];
    int r;

    *ret = (struct bench_load){ 0 };
    bench_own_unload(o);
    r = prepare(a, ret, why);
    if (r == 0 && a->cache_dir)
        r = make_cache(a->cache_dir, dir, sizeof dir, why);
    if (r != 0)
        return r;
    for (int warm = 0; warm < 2 && r == 0; warm++) {
        r = bench_own_load(o, a->cache_dir ? dir : NULL, warm ? &ret->warm : &ret->cold, why);
        if (r == 0) {
            struct bench_own_info info;

            bench_own_describe(o, &info);
            ret->from_image = info.model.from_image;
        }
        bench_own_unload(o);
    }
    if (a->cache_dir)
        remove_cache(dir);
    return r;
}
