/* SPDX-License-Identifier: Apache-2.0 */

#include <inttypes.h>
#include <string.h>

#include "engine/base/sum.h"
#include "engine/model/image.h"
#include "engine/sched/resident.h"
#include "engine/text/chat.h"

struct load {
    resident_progress_fn *progress;
    void *arg;
    const atomic_bool *stop;
    struct why *why;
    const char *path;
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

/* The most positions of one sequence, up to @n_ctx, that need at most @bytes of @kv. */
static uint32_t load_most(const struct kvcache *kv, uint32_t n_ctx, uint64_t bytes) {
    uint32_t lo = 0, hi = n_ctx;

    while (lo < hi) {
        uint32_t n = hi - (hi - lo) / 2;

        if (kvcache_need(kv, n) <= bytes)
            lo = n;
        else
            hi = n - 1;
    }
    return lo;
}

/* Bind the model, with the context that @opt asks for or the bound leaves, and map its cache. Bound
 * twice: only then is the cache's size known, which packed weights must leave room for. */
static int load_model(struct resident *r, const struct resident_options *opt, struct load *l) {
    struct model_options mo = { .n_ctx = opt->n_ctx,
                                .n_batch = opt->n_batch,
                                .n_out = 1,
                                .exact = opt->exact,
                                .no_pack = true };
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
    r->n_seq = opt->n_seq < opt->n_batch ? opt->n_seq : opt->n_batch; /* each has a row in a step */
    shape.n_seq = mo.n_out = r->n_seq;
    shape.n_ctx = mo.n_ctx = r->n_ctx; /* step memory and model_info() follow it */
    shape.n_byte = bytes;
    mo.no_pack = opt->no_pack;
    mo.cache_dir = opt->cache_dir;
    mo.memory = opt->memory;
    mo.expert_bytes = opt->memory ? MODEL_EXPERTS_ALL : opt->expert_bytes;
    mo.reserve = kvcache_size(&shape);
    r->model = model_free(r->model);
    k = model_new(&r->model, r->gguf, &r->kern, r->pool, &mo, l->why);
    if (k != 0)
        return load_failed(l, k, "cannot bind the model");
    model_kv_shape(r->model, r->n_seq, opt->kv_fmt, &shape);
    shape.n_byte = bytes;
    shape.n_keep = r->n_keep = opt->n_keep;

    k = kvcache_new(&r->kv, &shape);
    if (k != 0)
        return load_failed(l, k, "cannot map keys and values");
    r->kv_user = kvcache_n_byte(r->kv);
    if (opt->kv_user && opt->kv_user < r->kv_user)
        r->kv_user = opt->kv_user;
    r->n_user = load_most(r->kv, r->n_ctx, r->kv_user);
    return 0;
}

static int load_weights(struct resident *r, struct load *l) {
    struct weights_load wl = {
        .progress = l->progress,
        .arg = l->arg,
        .stop = l->stop,
        .ahead_max = r->topo->memory - r->topo->memory / 8,
    };
    int k = model_load(r->model, &wl, l->why);

    if (k == MODEL_STOPPED)
        return RESIDENT_STOPPED;
    return k == 0 ? 0 : load_failed(l, k, "cannot read the weights");
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

/* Of the files, of the kernels that compute, and of what they compute with. */
static int load_print(struct resident *r, const struct resident_options *opt, struct load *l) {
    const struct model_info *info = model_info(r->model);
    int k = image_source(r->gguf, &r->print);

    if (k < 0)
        return load_failed(l, k, "cannot read again");
    r->print = sum_bytes(r->print, r->kern.tier, strlen(r->kern.tier));
    r->print = sum_bytes(r->print, info->layout, strlen(info->layout));
    r->print = sum_bytes(r->print, &opt->exact, sizeof opt->exact);
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
        k = load_weights(r, &l);
    if (k == 0)
        k = load_print(r, opt, &l);
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
