/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/weights.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/sum.h"

int weights_init(struct weights *w, const struct gguf *gguf, const struct plan *plan) {
    *w = (struct weights){ .gguf = gguf, .plan = plan };
    w->place = calloc(gguf_n_tensor(gguf) + 1, sizeof *w->place);
    w->shard = calloc(plan->n_shard, sizeof *w->shard);
    return w->place && w->shard ? 0 : err_new(-ENOMEM);
}

void weights_deinit(struct weights *w) {
    atomic_store(&w->keeper.stop, true);
    weights_keep_wait(w);
    image_free(w->image);
    mem_unmap(w->base, w->size);
    free(w->part);
    free(w->shard);
    free(w->place);
    *w = (struct weights){ 0 };
}

/* ---- the image ---- */

/* How weights are cut for several shards: another cut is another image. */
static uint64_t sum_plan(const struct plan *p) {
    const uint32_t number[] = { p->n_shard, p->n_worker, p->turns, p->step };
    uint64_t sum = 0;

    if (p->n_shard == 1)
        return 0;
    sum = sum_bytes(sum, number, sizeof number);
    for (uint32_t s = 0; s < p->n_shard; s++)
        sum = sum_bytes(sum, &p->shard[s].first, sizeof p->shard[s].first);
    return sum;
}

/* What an image of the planned weights is. Return: 0, IMAGE_NONE, or -errno. */
static int plan_image(struct weights *w, const char *dir) {
    uint32_t n = gguf_n_tensor(w->gguf), n_packed = 0;
    AUTO(free) struct image_tensor *tensor = calloc(n + 1, sizeof *tensor);
    uint64_t cut = sum_plan(w->plan);

    if (!tensor)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < n; i++) {
        const struct tensor *t = gguf_tensor_at(w->gguf, i);
        const struct kern_pack *pack = w->place[i].pack;
        struct image_tensor *to = &tensor[n_packed];

        if (!pack)
            continue;
        *to = (struct image_tensor){ .name = sum_bytes(cut, t->name, strlen(t->name)),
                                     .at = w->place[i].at,
                                     .step = w->place[i].step,
                                     .size = t->size,
                                     .n_row = pack->n_row };
        memcpy(to->layout, pack->layout, strnlen(pack->layout, sizeof to->layout));
        n_packed++;
    }
    return err_up(image_new(&w->image, dir, w->gguf, tensor, n_packed, w->size));
}

/* Map the image, if there is a good one. One that is not goes: there is one a model. */
static void map_image(struct weights *w) {
    struct why why = { 0 };
    uint64_t at;
    int fd, r = image_open(w->image, &why);

    if (r != 0) {
        if (r == IMAGE_BAD) {
            log_debug("image", "refused: %s", why.text);
            image_drop(w->image);
        }
        return;
    }
    fd = image_fd(w->image, &at);
    w->mapped = mem_put_file(w->base, w->size, fd, at) == 0;
}

/* Take over what an earlier start left in memory, or make a memory file to fill. Without one, the
 * weights are where they would be anyway. */
static void map_memory(struct weights *w, struct weights_memory *memory, bool make) {
    struct why why = { 0 };
    int r = plan_image(w, NULL);

    if (r == 0 && memory->fd > 0) {
        w->mapped = image_adopt(w->image, memory->fd, w->base, &why) == 0;
        if (!w->mapped)
            log_debug("image", "refused: %s", why.text);
        atomic_store(&memory->refused, !w->mapped);
    }
    w->memory = r == 0 && (w->mapped || (make && image_begin(w->image, w->base) == 0));
    w->sealed = w->mapped;
    if (!w->memory)
        w->image = image_free(w->image);
}

/* Memory for all, with each matrix where it will lie. */
static int reserve(struct weights *w) {
    void *p;
    int r;

    r = weights_lay_out(w, NULL);
    if (r == 0)
        r = mem_map(w->size, true, &p);
    if (r < 0)
        return err_up(r);
    w->base = p;
    return err_up(weights_lay_out(w, w->base));
}

int weights_map(struct weights *w, uint64_t max, const char *cache_dir,
                struct weights_memory *memory) {
    int r;

    if (w->size == 0)
        return 0;
    r = reserve(w);
    if (r < 0)
        return err_up(r);
    if (memory)
        map_memory(w, memory, w->size <= max);
    else if (cache_dir && plan_image(w, cache_dir) == 0)
        map_image(w);

    w->large = w->size > max;
    if (w->large && !w->mapped) {
        mem_unmap(w->base, w->size);
        w->base = NULL;
        w->image = image_free(w->image);
        weights_forget(w, false);
        return WEIGHTS_LARGE;
    }
    if (!w->mapped)
        weights_bind(w);
    return 0;
}

int weights_map_store(struct weights *w, const char *cache_dir, struct why *why) {
    struct why bad = { 0 };
    int r;

    r = reserve(w);
    if (r == 0)
        r = cache_dir ? plan_image(w, cache_dir) : IMAGE_NONE;
    if (r < 0)
        return err_up(r);
    if (r == 0) {
        r = image_open(w->image, &bad);
        w->mapped = r == 0;
        if (r == IMAGE_BAD) {
            log_debug("image", "refused: %s", bad.text);
            image_drop(w->image);
        }
        r = w->mapped ? 0 : image_make(w->image, w->base, why);
    } else {
        r = why_set(why, IMAGE_NONE, "there is no cache directory to keep experts in");
    }
    if (r != 0) {
        mem_unmap(w->base, w->size);
        w->base = NULL;
        w->image = image_free(w->image);
        weights_forget(w, false);
        return WEIGHTS_NO_STORE;
    }
    weights_bind(w);
    return 0;
}

int weights_image(const struct weights *w, uint64_t *ret_data_at) {
    return image_fd(w->image, ret_data_at);
}

/* Of a huge page that others share the kernel first makes small ones, which it then finds in use no
 * more, and leaves: the file's pages are given up by themselves. */
void weights_cool(const struct weights *w, const void *p, size_t size) {
    uintptr_t at = (uintptr_t)p - (uintptr_t)w->base;
    uint64_t data_at;

    if (w->store)
        return; /* it has a bound of its own */
    mem_cool(p, size);
    if (!w->base || at >= w->size || w->memory || w->locked)
        return;
    if (w->mapped || atomic_load_explicit(&w->keeper.kept, memory_order_acquire))
        (void)posix_fadvise(image_fd(w->image, &data_at), (off_t)(data_at + at), (off_t)size,
                            POSIX_FADV_DONTNEED);
}

int weights_lock(struct weights *w, bool lock) {
    int r;

    if (!w->base || w->locked == lock)
        return 0;
    if (lock && w->keeper.started)
        return err_new(-EBUSY);
    r = mem_lock(w->base, w->store ? w->store_at : w->size, lock);
    w->locked = lock && r == 0;
    return err_up(r);
}

enum {
    KEEP_NICE = 19,
    KEEP_IO_IDLE = 3 << 13, /* ioprio_set(2): only when nobody else uses the disk */
    KEEP_IO_SELF = 1,       /* IOPRIO_WHO_PROCESS */
};

static void before_slab(void *arg, uint64_t at) {
    weights_prefer(arg, at);
}

/* What computes comes first. */
static void *keeper_main(void *arg) {
    struct weights *w = arg;
    struct why why = { 0 };
    int r;

    pool_float(w->keeper.pool);
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), KEEP_NICE);
    (void)syscall(SYS_ioprio_set, KEEP_IO_SELF, 0, KEEP_IO_IDLE);
    r = image_write(w->image, w->base, before_slab, w, &w->keeper.stop, &why);
    atomic_store_explicit(&w->keeper.kept, r == 0, memory_order_release);
    if (r == 0)
        log_debug("image", "written");
    else
        log_debug("image", "not written: %s", why.text[0] ? why.text : "left");
    return NULL;
}

int weights_fd(const struct weights *w) {
    uint64_t at;

    return w->sealed ? image_fd(w->image, &at) : -1;
}

void weights_keep(struct weights *w, struct pool *pool) {
    sigset_t all, old;

    if (!w->image || w->mapped || w->keeper.started)
        return;
    if (w->memory) {
        w->sealed = image_seal(w->image, w->base) == 0;
        return;
    }
    w->keeper.pool = pool;
    (void)sigfillset(&all); /* signals are for the threads that expect them */
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    w->keeper.started = pthread_create(&w->keeper.thread, NULL, keeper_main, w) == 0;
    if (w->keeper.started)
        (void)pthread_setname_np(w->keeper.thread, "image");
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void weights_keep_wait(struct weights *w) {
    if (w->keeper.started)
        (void)pthread_join(w->keeper.thread, NULL);
    w->keeper.started = false;
}
