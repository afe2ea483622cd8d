/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * resident - a model file, open, in memory, and everything that computes with it
 *
 * Loading opens the file and checks all of it first, then reads it, so that a bad file fails at
 * once and a good one answers its first prompt without waiting for the disk. Weights are packed as
 * they are read; where memory is too short for that they stay in the file's mapping, whose pages
 * the kernel may drop under pressure, and they come back from the file.
 *
 * Owner:   the engine thread makes and frees it and runs the model; once made, any thread may read
 *          the vocabulary, the defaults and model_info().
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/gguf.h"
#include "engine/hw/pool.h"
#include "engine/hw/topo.h"
#include "engine/kern/kern.h"
#include "engine/kv/kvcache.h"
#include "engine/model/model.h"
#include "engine/text/sample.h"
#include "engine/text/vocab.h"

enum {
    RESIDENT__OK,

    RESIDENT_BAD,     /* no model we can serve; @why says what is wrong */
    RESIDENT_STOPPED, /* *stop was seen */
};

struct resident_options {
    const char *path;
    uint32_t n_ctx;    /* 0: the trained context; either way at most what kv_bytes can hold */
    uint64_t kv_bytes; /* 0: a quarter of memory */
    uint32_t n_worker; /* 0: one a usable core */
    uint32_t n_batch;  /* >= 1 */
    uint32_t n_seq;    /* sequences at a time at most, >= 1 */
    uint32_t n_keep;   /* kept prefixes besides */
    uint64_t kv_user;  /* bytes of keys and values the jobs of one user may take; 0: all */
    enum quant_fmt kv_fmt;
    bool exact;
    bool no_pack;                  /* weights stay as in the file */
    uint64_t expert_bytes;         /* as in struct model_options */
    const char *cache_dir;         /* where packed weights are kept, see image.h; NULL: nowhere */
    struct weights_memory *memory; /* or there; NULL: not. It outlives the resident. */
};

struct resident {
    struct kern kern;
    struct topo *topo;
    struct pool *pool;
    struct gguf *gguf;
    struct vocab *vocab;
    struct model *model;
    struct kvcache *kv;
    struct sample_params defaults;
    bool empty_thought;   /* see chat.h */
    uint32_t n_ctx;       /* positions a sequence can hold */
    uint32_t n_seq;       /* sequences at a time, <= n_batch */
    uint32_t n_keep;      /* kept prefixes besides */
    uint64_t kv_user;     /* bytes of the cache for one user ... */
    uint32_t n_user;      /* ... and the most positions a sequence can hold within them */
    uint64_t print;       /* the same only where a prompt's keys and values are the same */
    uint32_t n_batch;     /* rows a step at most */
    const char *template; /* [n_template], in the file; NULL: none */
    size_t n_template;
};

typedef weights_progress_fn resident_progress_fn;

/**
 * resident_new() - load; the calling thread becomes worker 0 of the pool
 * @stop:       checked between steps of loading and every WEIGHTS_CHUNK bytes
 *
 * Return: 0, RESIDENT_BAD, RESIDENT_STOPPED, or -errno with @why filled.
 */
int resident_new(struct resident **ret_r, const struct resident_options *opt,
                 resident_progress_fn *progress, void *arg, const atomic_bool *stop,
                 struct why *why);
struct resident *resident_free(struct resident *r);
AUTO_DEFINE(struct resident *, resident_free)
