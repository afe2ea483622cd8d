/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/model/weights.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; older C libraries do not name it */
#endif

#ifndef __NR_cachestat
#define __NR_cachestat 451 /* Linux 6.5, the same on every architecture */
#endif

enum {
    WEIGHTS_DIRECT_ALIGN = 4096, /* what O_DIRECT asks of offsets, sizes and memory at most */
    WEIGHTS_DEPTH = 4,           /* slabs in the making: fewer leave a fast disk idle meanwhile */
};

/* A tensor, cut into items: slabs to read and pack, or chunks to page in. Or the image, cut into
 * slabs to page in and check. */
struct piece {
    const struct tensor *t;            /* NULL: the image */
    const struct weights_place *place; /* NULL: it stays in the file's mapping */
    uint64_t size;
    uint32_t first; /* its first item */
    size_t step;    /* bytes an item */
};

/* Where a part is read from, past its mapping. */
struct source {
    int fd;     /* gguf's, through the page cache */
    int direct; /* around the page cache; -1: not on this file system */
};

struct loader {
    struct weights *w;
    const struct weights_load *load;
    struct piece *piece;   /* [n_piece] */
    struct source *source; /* [n_part] */
    int direct;            /* the image's file around the page cache; -1: not, or no store */
    uint32_t n_piece, n_item;
    uint8_t *bounce; /* [workers and helpers][bounce_size] */
    size_t bounce_size, bounce_total;
    uint64_t total;
    bool drop; /* both copies do not fit: what was read leaves the page cache */
    atomic_uint next;
    _Atomic uint64_t done, ahead;
    atomic_int failed; /* first -errno */
    atomic_uint failed_item;
    atomic_bool damaged; /* the image is */
};

static bool load_over(const struct loader *l) {
    return atomic_load_explicit(&l->failed, memory_order_relaxed) != 0 ||
           atomic_load_explicit(&l->damaged, memory_order_relaxed) ||
           (l->load->stop && atomic_load_explicit(l->load->stop, memory_order_relaxed));
}

/* Make [at, at + n) of a file's mapping resident. */
static int page_in(const uint8_t *at, size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), off = (uintptr_t)at % page;

    if (madvise((void *)(uintptr_t)(at - off), n + off, MADV_POPULATE_READ) == 0)
        return 0;
    if (errno == ENOMEM || errno == EAGAIN)
        return 0; /* memory is short: what is missing is read when it is used */
    if (errno != EINVAL)
        return err_new(-errno); /* EFAULT: a read of the file failed, or it was cut short */

    for (size_t i = 0; i < n; i += page)
        (void)*(const volatile uint8_t *)(at + i);
    return 0;
}

/* A model larger than memory is served too: what does not fit is left to be read when it is used,
 * since reading it ahead would only push out what was read before. */
static int load_chunk(struct loader *l, const struct piece *p, size_t at, size_t n) {
    const struct source *s = &l->source[p->t->part];
    uint64_t ahead = atomic_fetch_add_explicit(&l->ahead, n, memory_order_relaxed) + n;

    if (l->load->ahead_max && ahead > l->load->ahead_max)
        return 0;
    /* The disk fetches the next chunk while this one is mapped in. */
    (void)posix_fadvise(s->fd, (off_t)(p->t->offset + at), 2 * WEIGHTS_CHUNK, POSIX_FADV_WILLNEED);
    return err_up(page_in((const uint8_t *)p->t->data + at, n));
}

/* Read [at, at + n) through the page cache. Return: 0 or -errno. */
static int read_cached(int fd, uint8_t *to, size_t n, uint64_t at) {
    while (n) {
        ssize_t k = pread(fd, to, n, (off_t)at);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return err_new(k < 0 ? -errno : -EIO); /* the file was cut short */
        to += k;
        n -= (size_t)k;
        at += (size_t)k;
    }
    return 0;
}

/* Is all of [at, at + n) in the page cache? Asking by a read that must not wait would not do: it
 * starts read-ahead. No kernel before 6.5 tells, nor may one ask of a file one neither owns nor may
 * write: then it counts as not there. */
static bool is_cached(int fd, size_t n, uint64_t at) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct {
        uint64_t at, n;
    } range = { at, n };
    struct {
        uint64_t n_cached, n_dirty, n_writeback, n_evicted, n_recently_evicted; /* pages */
    } stat;

    return syscall(__NR_cachestat, fd, &range, &stat, 0) == 0 &&
           stat.n_cached == (at + n - 1) / page - at / page + 1;
}

/* Read [at, at + n) of a part into @buf, which has room for a page more at either end; *ret_src is
 * where the bytes begin. What the page cache has is taken from there, the rest around it. */
static int read_slab(const struct loader *l, const struct source *s, uint8_t *buf, size_t n,
                     uint64_t at, const uint8_t **ret_src) {
    size_t off = (size_t)(at % WEIGHTS_DIRECT_ALIGN);
    size_t whole =
        (off + n + WEIGHTS_DIRECT_ALIGN - 1) / WEIGHTS_DIRECT_ALIGN * WEIGHTS_DIRECT_ALIGN;
    int r;

    *ret_src = buf + off;
    /* At the end of the file it gives less than whole, but not less than what lies there. */
    if (s->direct >= 0 && !is_cached(s->fd, n, at) &&
        pread(s->direct, buf, whole, (off_t)(at - off)) >= (ssize_t)(off + n))
        return 0;
    r = read_cached(s->fd, buf + off, n, at);
    if (r == 0 && (l->drop || s->direct < 0))
        (void)posix_fadvise(s->fd, (off_t)at, (off_t)n, POSIX_FADV_DONTNEED);
    return err_up(r);
}

static int load_slab(struct loader *l, const struct piece *p, size_t at, size_t n,
                     uint32_t worker) {
    const struct kern_pack *pack = p->place->pack;
    size_t stride = quant_row_size(p->t->fmt, p->t->ne[0]), group = stride * pack->n_row;
    const uint8_t *src;
    int r;

    r = read_slab(l, &l->source[p->t->part], l->bounce + worker * l->bounce_size, n,
                  p->t->offset + at, &src);
    if (r < 0)
        return err_up(r);
    for (size_t i = 0; i < n; i += group)
        pack->pack(src + i, stride, (uint32_t)p->t->ne[0],
                   weights_group_at(l->w, p->place, (at + i) / stride, stride));
    return 0;
}

/* Beside a store of experts, all other weights are read into memory of our own: no page of them may
 * be dropped to read an expert. The last slab has some experts, too, which go again. */
static int read_image(struct loader *l, size_t at) {
    struct weights *w = l->w;
    uint64_t data_at;
    int fd = image_fd(w->image, &data_at);
    size_t left = w->size - at, n = left < IMAGE_SLAB ? left : IMAGE_SLAB;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), end = (w->store_at + page - 1) & ~(page - 1);
    uint8_t *to = w->base + at;
    bool direct = l->direct >= 0 && pread(l->direct, to, n, (off_t)(data_at + at)) == (ssize_t)n;
    int r = direct ? 0 : read_cached(fd, to, n, data_at + at);

    if (r < 0)
        return err_up(r);
    if (!direct)
        (void)posix_fadvise(fd, (off_t)(data_at + at), (off_t)n, POSIX_FADV_DONTNEED);
    if (!image_slab_ok(w->image, at / IMAGE_SLAB, to, n))
        atomic_store(&l->damaged, true);
    if (at + n > end)
        return err_up(mem_put_fresh(w->base + end, at + n - end));
    return 0;
}

/* Mapped in by all threads, in large steps, and not page by page as the model's first step meets
 * them. What comes from the disk is checked. What is in the page cache was, when it came from there
 * or was written, and the image has not been written to since: checking it would take longer than
 * all else. */
static int load_image(struct loader *l, const struct piece *p, size_t at, size_t n) {
    uint64_t data_at;

    if (l->w->store)
        return err_up(read_image(l, at));
    int fd = image_fd(l->w->image, &data_at);
    bool good = l->w->memory || is_cached(fd, n, data_at + at);
    const uint8_t *to = l->w->base + at;
    int r;

    weights_prefer(l->w, at);
    r = page_in(to, n);
    weights_prefer_any(l->w);
    if (r < 0)
        return err_up(r);
    if (!good && !image_slab_ok(l->w->image, at / IMAGE_SLAB, to, n))
        atomic_store(&l->damaged, true);
    return 0;
}

static int load_item(struct loader *l, const struct piece *p, size_t at, size_t n,
                     uint32_t worker) {
    if (!p->t)
        return err_up(load_image(l, p, at, n));
    return err_up(p->place ? load_slab(l, p, at, n, worker) : load_chunk(l, p, at, n));
}

static const struct piece *piece_of(const struct loader *l, uint32_t item) {
    uint32_t lo = 0, hi = l->n_piece;

    while (hi - lo > 1) { /* the last piece whose first item is not after this one */
        uint32_t mid = lo + (hi - lo) / 2;

        if (l->piece[mid].first <= item)
            lo = mid;
        else
            hi = mid;
    }
    return &l->piece[lo];
}

static const char *name_of(const struct loader *l, uint32_t item) {
    const struct piece *p = piece_of(l, item);

    return p->t ? p->t->name : "image";
}

static void load_items(void *arg, uint32_t worker, uint32_t n_worker) {
    struct loader *l = arg;

    while (!load_over(l)) {
        uint32_t item = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed);
        uint64_t done;
        int r, none = 0;

        if (item >= l->n_item)
            return;
        const struct piece *p = piece_of(l, item);
        size_t at = (item - p->first) * p->step;
        size_t n = p->size - at < p->step ? (size_t)p->size - at : p->step;

        r = load_item(l, p, at, n, worker);
        if (r < 0) {
            if (atomic_compare_exchange_strong(&l->failed, &none, r))
                atomic_store(&l->failed_item, item);
            return;
        }
        done = atomic_fetch_add_explicit(&l->done, n, memory_order_relaxed) + n;
        if (worker == 0 && l->load->progress)
            l->load->progress(l->load->arg, done, l->total);
    }
}

static int add_piece(struct loader *l, const struct piece *piece) {
    uint64_t n = (piece->size - 1) / piece->step + 1;
    struct piece *p = &l->piece[l->n_piece++];

    *p = *piece;
    p->first = l->n_item;
    if (l->n_item + n > UINT32_MAX / 2)
        return err_new(-ENOMEM);
    l->n_item += (uint32_t)n;
    return 0;
}

static int add_tensor(struct loader *l, uint32_t i) {
    const struct tensor *t = gguf_tensor_at(l->w->gguf, i);
    struct piece p = { .t = t, .size = t->size, .step = WEIGHTS_CHUNK };

    if (l->w->base && l->w->place[i].pack) {
        size_t group = l->w->place[i].pack->n_row * quant_row_size(t->fmt, t->ne[0]);

        p.place = &l->w->place[i];
        p.step = group < WEIGHTS_SLAB ? WEIGHTS_SLAB / group * group : group;
        if (p.step > l->bounce_size)
            l->bounce_size = p.step;
    }
    return err_up(add_piece(l, &p));
}

/* Cut all tensors into items. Return: 0 or -ENOMEM. */
static int plan_items(struct loader *l) {
    const struct gguf *g = l->w->gguf;
    uint64_t to_do = 0;
    int r = 0;

    l->piece = calloc(gguf_n_tensor(g) + 1, sizeof *l->piece);
    if (!l->piece)
        return err_new(-ENOMEM);
    if (l->w->mapped)
        r = add_piece(l, &(struct piece){ .size = l->w->store ? l->w->store_at : l->w->size,
                                          .step = IMAGE_SLAB });
    for (uint32_t i = 0; i < gguf_n_tensor(g) && r == 0; i++)
        if (gguf_tensor_at(g, i)->size && !(l->w->mapped && l->w->place[i].pack))
            r = add_tensor(l, i);
    for (uint32_t i = 0; i < l->n_piece; i++)
        to_do += l->piece[i].size;
    for (uint32_t i = 0; i < gguf_n_part(g); i++)
        l->total += gguf_part_size(g, i);
    l->total = l->total > to_do ? l->total : to_do;
    atomic_store(&l->done, l->total - to_do); /* directories were read by gguf_open() */
    return err_up(r);
}

static int open_sources(struct loader *l) {
    const struct gguf *g = l->w->gguf;

    l->source = calloc(gguf_n_part(g), sizeof *l->source);
    if (!l->source)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < gguf_n_part(g); i++) {
        char path[32];

        l->source[i].fd = gguf_part_fd(g, i);
        snprintf(path, sizeof path, "/proc/self/fd/%d", l->source[i].fd);
        l->source[i].direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    }
    return 0;
}

static int make_bounce(struct loader *l, uint32_t n_worker) {
    void *p;
    int r;

    if (l->bounce_size == 0)
        return 0;
    l->bounce_size = (l->bounce_size + 3 * WEIGHTS_DIRECT_ALIGN - 1) / WEIGHTS_DIRECT_ALIGN *
                     WEIGHTS_DIRECT_ALIGN;
    if (__builtin_mul_overflow(l->bounce_size, (size_t)n_worker, &l->bounce_total))
        return err_new(-ENOMEM);
    r = mem_map(l->bounce_total, false, &p);
    if (r < 0)
        return err_up(r);
    l->bounce = p;
    return 0;
}

static void loader_deinit(struct loader *l) {
    for (uint32_t i = 0; l->source && i < gguf_n_part(l->w->gguf); i++)
        if (l->source[i].direct >= 0)
            (void)close(l->source[i].direct);
    mem_unmap(l->bounce, l->bounce_total);
    free(l->source);
    free(l->piece);
}

/* A thread that loads beside the pool's workers: a worker waits for its slab to be read, and the
 * disk for it to be packed, unless others read and pack meanwhile. */
struct helper {
    struct loader *l;
    struct pool *pool;
    uint32_t index; /* as a worker */
    pthread_t thread;
};

static void *helper_main(void *arg) {
    struct helper *h = arg;

    pool_float(h->pool);
    load_items(h->l, h->index, WEIGHTS_DEPTH);
    return NULL;
}

/* Run load_items() in @n_worker workers, and in as many helpers as are missing to WEIGHTS_DEPTH.
 * A helper that cannot be started is one slab less in the making. */
static void run_items(struct loader *l, struct pool *pool, uint32_t n_worker) {
    struct helper helper[WEIGHTS_DEPTH];
    uint32_t n = 0;
    sigset_t all, old;

    (void)sigfillset(&all); /* signals are for the threads that expect them */
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = n_worker; i < WEIGHTS_DEPTH && i < l->n_item; i++) {
        helper[n] = (struct helper){ .l = l, .pool = pool, .index = i };
        if (pthread_create(&helper[n].thread, NULL, helper_main, &helper[n]) != 0)
            break;
        (void)pthread_setname_np(helper[n++].thread, "load");
    }
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);

    pool_share(pool, load_items, l);
    while (n > 0)
        (void)pthread_join(helper[--n].thread, NULL);
}

static int load_all(struct loader *l, struct pool *pool, struct why *why) {
    uint32_t n_worker = pool_n_worker(pool);
    int r = plan_items(l);

    if (r == 0)
        r = open_sources(l);
    if (r == 0)
        r = make_bounce(l, n_worker < WEIGHTS_DEPTH ? WEIGHTS_DEPTH : n_worker);
    if (r < 0)
        return why_set(why, err_up(r), "no memory to read the weights with");

    if (l->load->progress)
        l->load->progress(l->load->arg, 0, l->total);
    run_items(l, pool, n_worker);
    r = atomic_load(&l->failed);
    if (r < 0)
        return why_set(why, err_up(r), "%s: cannot read the weights: %s",
                       name_of(l, atomic_load(&l->failed_item)), strerror(-r));
    if (atomic_load(&l->damaged))
        return 0;
    if (load_over(l))
        return WEIGHTS_STOPPED;
    if (l->load->progress)
        l->load->progress(l->load->arg, l->total, l->total);
    return 0;
}

/* Write to the pages of a worker's shard first: they are then from its node. */
static void touch_pages(void *arg, uint32_t worker, uint32_t n_worker) {
    const struct weights *w = arg;
    const struct plan_shard *s = &w->plan->shard[plan_shard_of(w->plan, worker)];
    const struct weights_shard *m = &w->shard[s - w->plan->shard];
    uint32_t n_page = (uint32_t)((m->size + MEM_HUGE - 1) / MEM_HUGE), begin, end;

    pool_slice(n_page, 1, worker - s->first, s->n_worker, &begin, &end);
    for (size_t at = (size_t)begin * MEM_HUGE; at < (size_t)end * MEM_HUGE && at < m->size;
         at += (size_t)sysconf(_SC_PAGESIZE))
        *(volatile uint8_t *)(w->base + m->at + at) = 0;
}

/* Load, once. *ret_damaged: the image was, nothing is loaded. */
static int load_once(struct weights *w, struct pool *pool, const struct weights_load *load,
                     bool *ret_damaged, struct why *why) {
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    struct loader l = { .w = w, .load = load, .drop = w->store || w->size > memory / 2 };
    int r;

    l.direct = w->store && w->mapped ? image_open_direct(w->image) : -1;
    r = load_all(&l, pool, why);
    *ret_damaged = atomic_load(&l.damaged);
    if (l.direct >= 0)
        (void)close(l.direct);
    loader_deinit(&l);
    return r;
}

/* Fresh memory for all weights again. */
static int begin_again(struct weights *w, struct pool *pool, struct why *why) {
    int r = mem_put_fresh(w->base, w->size);

    if (r < 0)
        return why_set(why, err_up(r), "no memory for weights");
    weights_bind(w);
    if (w->unbound)
        pool_run(pool, touch_pages, w);
    return 0;
}

/* Pack everything into the image, where it is not there yet. */
static int make_store(struct weights *w, struct pool *pool, const struct weights_load *load,
                      struct why *why) {
    bool damaged;
    int r = load_once(w, pool, load, &damaged, why);

    if (r == 0)
        r = image_made(w->image, w->base, load->stop, why);
    if (r == IMAGE_LEFT)
        return WEIGHTS_STOPPED;
    if (r != 0)
        return err_up(r);
    w->mapped = true;
    return err_up(begin_again(w, pool, why));
}

/* Then, or at once, read from there what stays in memory. */
static int load_store(struct weights *w, struct pool *pool, const struct weights_load *load,
                      struct why *why) {
    bool damaged;
    int r = w->mapped ? 0 : make_store(w, pool, load, why);

    if (r == 0)
        r = load_once(w, pool, load, &damaged, why);
    if (r != 0 || !damaged)
        return r;
    log_debug("image", "damaged, removed");
    image_drop(w->image);
    return why_set(why, err_new(-EIO),
                   "the image of packed weights was damaged and is removed; load again");
}

int weights_load(struct weights *w, struct pool *pool, const struct weights_load *load,
                 struct why *why) {
    bool damaged;
    int r;

    if (w->store)
        return load_store(w, pool, load, why);
    if (w->unbound)
        pool_run(pool, touch_pages, w);
    r = load_once(w, pool, load, &damaged, why);
    if (!damaged)
        return r;
    log_debug("image", "damaged, removed");
    image_drop(w->image);
    if (w->large)
        return why_set(why, err_new(-EIO),
                       "the image of packed weights was damaged and is removed; load again");
    w->mapped = false;
    r = begin_again(w, pool, why);
    if (r < 0)
        return err_up(r);
    return load_once(w, pool, load, &damaged, why);
}
