/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/sched/resident.h"
#include "engine/text/chat.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; older C libraries do not name it */
#endif

struct load {
    resident_progress_fn *progress;
    void *arg;
    const atomic_bool *stop;
    struct why *why;
    const char *path;
    uint64_t done, total, limit; /* bytes; past limit nothing is read ahead */
};

/* A failure without a sentence gets one. A positive is the callee's way to say bad. */
static int load_failed(const struct load *l, int r, const char *what) {
    if (l->why && !l->why->text[0])
        why_set(l->why, r, "%s: %s: %s", l->path, what, r < 0 ? strerror(-r) : "it is not valid");
    return r < 0 ? err_up(r) : RESIDENT_BAD;
}

static bool load_stopped(const struct load *l) {
    return atomic_load_explicit(l->stop, memory_order_relaxed);
}

/* Make [at, at + n) of a file's mapping resident. */
static int load_chunk(const uint8_t *at, size_t n) {
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

static int load_part(struct load *l, const uint8_t *base, int fd, uint64_t size) {
    for (uint64_t at = 0; at < size;) {
        uint64_t n = size - at < RESIDENT_CHUNK ? size - at : RESIDENT_CHUNK;

        if (load_stopped(l))
            return RESIDENT_STOPPED;
        if (l->done + n <= l->limit) {
            int r;

            /* The disk fetches the next chunk while this one is mapped in. */
            (void)posix_fadvise(fd, (off_t)at, 2 * RESIDENT_CHUNK, POSIX_FADV_WILLNEED);
            r = load_chunk(base + at, n);
            if (r < 0)
                return why_set(l->why, err_up(r), "%s: cannot read at byte %" PRIu64 ": %s",
                               l->path, at, strerror(-r));
        }
        at += n;
        l->done += n;
        l->progress(l->arg, l->done, l->total);
    }
    return 0;
}

/* Read all parts. A model larger than the machine's memory is served too: what does not fit is left
 * to be read when it is used, since reading it ahead would only push out what was read before. */
static int load_pages(struct resident *r, struct load *l) {
    for (uint32_t p = 0; p < gguf_n_part(r->gguf); p++)
        l->total += gguf_part_size(r->gguf, p);
    l->limit = r->topo->memory ? r->topo->memory - r->topo->memory / 8 : UINT64_MAX;
    l->progress(l->arg, 0, l->total);

    for (uint32_t p = 0, t = 0; p < gguf_n_part(r->gguf); p++) {
        const struct tensor *first = NULL;
        int k;

        /* The mapping begins where a tensor's data, less its offset, lies. */
        for (; t < gguf_n_tensor(r->gguf) && gguf_tensor_at(r->gguf, t)->part <= p; t++)
            if (!first && gguf_tensor_at(r->gguf, t)->part == p)
                first = gguf_tensor_at(r->gguf, t);
        if (!first) {
            l->done += gguf_part_size(r->gguf, p);
            continue;
        }
        k = load_part(l, (const uint8_t *)first->data - first->offset, gguf_part_fd(r->gguf, p),
                      gguf_part_size(r->gguf, p));
        if (k != 0)
            return k;
    }
    return 0;
}

/* The largest context, at most @shape's, whose cache is at most @bytes; 0: none. */
static uint32_t load_fit(const struct kv_shape *shape, uint64_t bytes) {
    struct kv_shape s = *shape;
    uint32_t lo = 0, hi = shape->n_ctx;

    while (lo < hi) {
        s.n_ctx = hi - (hi - lo) / 2;
        if (kvcache_size(&s) <= bytes)
            lo = s.n_ctx;
        else
            hi = s.n_ctx - 1;
    }
    return lo;
}

/* Bind the model and map its cache, with the context that @opt asks for or the bound leaves. */
static int load_model(struct resident *r, const struct resident_options *opt, struct load *l) {
    struct model_options mo = {
        .n_ctx = opt->n_ctx, .n_batch = opt->n_batch, .n_out = 1, .exact = opt->exact
    };
    uint64_t bytes = opt->kv_bytes ? opt->kv_bytes : r->topo->memory / 4;
    struct kv_shape shape;
    int k;

    k = model_new(&r->model, r->gguf, &r->kern, r->pool, &mo, l->why);
    if (k != 0)
        return load_failed(l, k, "cannot bind the model");

    model_kv_shape(r->model, 1, opt->kv_fmt, &shape);
    r->n_ctx = load_fit(&shape, bytes);
    if (r->n_ctx == 0)
        return why_set(l->why, RESIDENT_BAD,
                       "%s: %" PRIu64 " bytes for keys and values hold not one position", l->path,
                       bytes);
    if (r->n_ctx < shape.n_ctx) { /* step memory and model_info() follow the context: bind again */
        mo.n_ctx = r->n_ctx;
        r->model = model_free(r->model);
        k = model_new(&r->model, r->gguf, &r->kern, r->pool, &mo, l->why);
        if (k != 0)
            return load_failed(l, k, "cannot bind the model");
        model_kv_shape(r->model, 1, opt->kv_fmt, &shape);
    }

    k = kvcache_new(&r->kv, &shape);
    return k == 0 ? 0 : load_failed(l, k, "cannot map keys and values");
}

/* What the file says of text: vocabulary, sampling defaults, template. */
static int load_text(struct resident *r, struct load *l) {
    int k;

    k = vocab_new(&r->vocab, r->gguf, l->why);
    if (k != 0)
        return load_failed(l, k, "cannot read the vocabulary");
    k = sample_defaults(r->gguf, &r->defaults, l->why);
    if (k != 0)
        return load_failed(l, k, "cannot read the sampling defaults");
    r->empty_thought = chat_wants_empty_thought(r->gguf);
    k = gguf_get_str(r->gguf, "tokenizer.chat_template", &r->template, &r->n_template, l->why);
    if (k != 0 && k != GGUF_ABSENT)
        return load_failed(l, k, "cannot read the chat template");
    return 0;
}

/* The machine: kernels, cores, workers. */
static int load_machine(struct resident *r, const struct resident_options *opt, struct load *l) {
    int k;

    kern_bind(&r->kern, kern_cpu());
    k = topo_new(&r->topo);
    if (k < 0)
        return load_failed(l, k, "cannot read the machine's layout");
    k = pool_new(&r->pool, r->topo, opt->n_worker);
    if (k < 0)
        return load_failed(l, k, "cannot start workers");
    pool_adopt(r->pool);
    return 0;
}

int resident_new(struct resident **ret_r, const struct resident_options *opt,
                 resident_progress_fn *progress, void *arg, const atomic_bool *stop,
                 struct why *why) {
    AUTO(resident_free) struct resident *r = calloc(1, sizeof *r);
    struct load l = {
        .progress = progress, .arg = arg, .stop = stop, .why = why, .path = opt->path
    };
    int k;

    if (why)
        why->text[0] = 0;
    if (!r)
        return load_failed(&l, err_new(-ENOMEM), "cannot load");
    r->n_batch = opt->n_batch;

    k = gguf_open(&r->gguf, opt->path, why);
    if (k != 0)
        return load_failed(&l, k, "cannot open");
    if (load_stopped(&l))
        return RESIDENT_STOPPED;
    k = load_machine(r, opt, &l);
    if (k == 0)
        k = load_text(r, &l);
    if (k == 0)
        k = load_stopped(&l) ? RESIDENT_STOPPED : load_model(r, opt, &l);
    if (k == 0)
        k = load_pages(r, &l);
    if (k != 0)
        return k;

    *ret_r = take(r);
    return 0;
}

struct resident *resident_free(struct resident *r) {
    if (!r)
        return NULL;
    kvcache_free(r->kv);
    model_free(r->model);
    vocab_free(r->vocab);
    gguf_free(r->gguf);
    pool_free(r->pool);
    topo_free(r->topo);
    free(r);
    return NULL;
}
