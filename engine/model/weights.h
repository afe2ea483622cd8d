/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * weights - where a model's matrices lie: in the file's mapping, or packed for the kernels
 *
 * Matrices are planned while they are bound; weights_map() then makes room for all that are packed.
 * weights_load() (weights-load.c) reads them from the file, past the mapping, and packs slab by
 * slab on all workers and some threads more, so that disk and CPUs are busy at once; there is never
 * a second copy of more than a slab each. What is not packed stays in the mapping and is paged in.
 *
 * With a cache directory, packed weights are kept as a file (image.h): written in the background
 * once they are loaded, it takes their place in memory slab by slab, and a later start maps it.
 *
 *   packed tensor:  groups of n_row rows, in the file's order
 *   experts:        behind all else, layer by layer, a record each: its matrices of all tensors of
 *                   the layer, in the file's order; it begins at a multiple of WEIGHTS_RECORD
 *
 * Where there are several shards (plan.h), each has its rows of all matrices in a stretch of that
 * mapping, on its node; then rows that no kernel packs lie there too, as in the file. An image of
 * these is written and read under the policy of the node that each slab is for: pages of a file are
 * where they were first needed.
 *
 * Owner:   the engine thread; read-only once loaded.
 * Memory:  one mapping, huge pages where the kernel gives them; while loading, a slab a thread
 *          besides.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/fmt/gguf.h"
#include "engine/hw/plan.h"
#include "engine/hw/pool.h"
#include "engine/kern/kern.h"
#include "engine/model/image.h"

enum {
    WEIGHTS__OK,

    WEIGHTS_STOPPED,  /* *stop was seen */
    WEIGHTS_LARGE,    /* weights_map(): more than was allowed; nothing will be packed */
    WEIGHTS_NO_STORE, /* weights_map_store(): there can be no image; @why says so */
};

enum {
    WEIGHTS_SLAB = 2 << 20,   /* bytes of whole groups read and packed at once, about */
    WEIGHTS_CHUNK = 16 << 20, /* bytes paged in at once */
    WEIGHTS_RECORD = 4096,    /* bytes; what reads around the page cache ask for */
};

/* How the matrices of a tensor, one after the other, are cut for shards. */
struct weights_cut {
    uint32_t n_out;    /* rows of one */
    uint32_t unit;     /* rows that stay together, whole groups of all packings */
    uint32_t turn;     /* of the first; see plan_cut() */
    uint32_t alike;    /* so many matrices have one turn, the next as many the next */
    uint32_t n_expert; /* whose matrices these are, one after the other; 0: of no expert */
};

struct weights_place {
    const struct kern_pack *pack; /* NULL: in the file's mapping */
    struct weights_cut cut;
    size_t at;              /* bytes from the base, of its first part */
    size_t step;            /* of experts: bytes from one record to the next, of one shard */
    struct plan_part *part; /* [n matrices][n_shard] */
};

struct weights_shard {
    size_t at, size; /* bytes from the base, bytes */
};

/* Packed weights in a sealed memory file, which may outlive this process: see image.h. */
struct weights_memory {
    int fd;              /* of an earlier start; 0: none. Borrowed. */
    atomic_bool refused; /* it is of other weights, and no longer looked at */
};

struct weights {
    const struct gguf *gguf;
    const struct plan *plan;
    struct weights_place *place; /* [n tensors] */
    struct weights_shard *shard; /* [plan->n_shard] */
    struct plan_part *part;      /* of all places */
    uint8_t *base;               /* NULL: nothing is packed */
    size_t size;                 /* bytes of all packed tensors; once mapped, with their padding */
    bool unbound;                /* some shard's memory is not bound to its node */
    bool large;                  /* more than was allowed: there only as an image */
    bool store;                  /* records are left on disk ... */
    size_t store_at;             /* ... from so many bytes behind the base on */
    uint64_t expert_size;        /* bytes of what was planned of experts */

    struct image *image; /* NULL: they are not kept */
    bool mapped;         /* base is the image's file, as an earlier start made it */
    bool memory;         /* the image is a memory file */
    bool sealed;         /* and is complete */
    bool locked;         /* base is, in memory */
    struct weights_keeper {
        pthread_t thread;
        struct pool *pool;
        bool started;
        atomic_bool stop;
        atomic_bool kept; /* there is an image now */
    } keeper;             /* writes the image */
};

/* @gguf, @plan: borrowed. Return: 0 or -ENOMEM. */
int weights_init(struct weights *w, const struct gguf *gguf, const struct plan *plan);
/* Zero-initialised is fine. */
void weights_deinit(struct weights *w);

/* Plan to pack @t, if @pack can. Return: 0 or -ENOMEM when the sizes overflow. */
int weights_plan(struct weights *w, const struct tensor *t, const struct weights_cut *cut,
                 const struct kern_pack *pack);
/* Make room for what was planned, unless that is more than @max bytes: map the image that is in
 * @cache_dir (NULL: none) or, instead, @memory (NULL: none; else it must outlive the weights), else
 * memory, whose pages take memory as they are filled.
 * Return: 0, WEIGHTS_LARGE, or -ENOMEM. */
int weights_map(struct weights *w, uint64_t max, const char *cache_dir,
                struct weights_memory *memory);
/* The same, but leave experts on disk, in the image in @cache_dir, which weights_load() makes if it
 * is not there: their place in the mapping is never touched. They are whole there, of however many
 * shards. Return: 0, WEIGHTS_NO_STORE: it is as if nothing had been planned, or -errno. */
int weights_map_store(struct weights *w, const char *cache_dir, struct why *why);
/* Forget what was planned. Next time, @store: also what no kernel packs goes there, of experts. */
void weights_forget(struct weights *w, bool store);
/* Of an image with records: its file, borrowed, and where in it byte 0 of the base is. */
int weights_image(const struct weights *w, uint64_t *ret_data_at);
/* Where @t lies. @ret_pack: how it is packed; NULL: as in the file */
const void *weights_at(const struct weights *w, const struct tensor *t,
                       const struct kern_pack **ret_pack);
/* Bytes from one expert's matrices of @t to the next one's; of several shards, in the file. */
size_t weights_step(const struct weights *w, const struct tensor *t);
/* The parts of its matrices, [n matrices][plan->n_shard]; NULL: each lies in one piece. */
const struct plan_part *weights_parts(const struct weights *w, const struct tensor *t);

/* ---- weights-place.c, for weights*.c ---- */

/* Lay out what is planned, from @base on; NULL: only sum up w->size. Return: 0 or -ENOMEM. */
int weights_lay_out(struct weights *w, uint8_t *base);
/* Bind each shard's memory to its node. */
void weights_bind(struct weights *w);
/* From now on the calling thread's fresh pages are from the node of the shard that byte @at is of;
 * weights_prefer_any(): from anywhere again. Nothing where there is one shard. */
void weights_prefer(const struct weights *w, uint64_t at);
void weights_prefer_any(const struct weights *w);
/* Where row @row of the tensor belongs, the first of a group. @stride: bytes a row */
uint8_t *weights_group_at(const struct weights *w, const struct weights_place *p, uint64_t row,
                          size_t stride);

/* Called now and then, from the thread that loads, with bytes of the files done so far. */
typedef void weights_progress_fn(void *arg, uint64_t done, uint64_t total);

struct weights_load {
    weights_progress_fn *progress; /* NULL: nobody listens */
    void *arg;
    const atomic_bool *stop; /* looked at every slab and chunk; NULL: never */
    uint64_t ahead_max;      /* bytes to page in at most, the rest comes when used; 0: all */
};

/* An image is read and checked; a damaged one is removed, and the weights are packed again.
 * Return: 0, WEIGHTS_STOPPED, or -errno with @why: reading failed, or memory is short. */
int weights_load(struct weights *w, struct pool *pool, const struct weights_load *load,
                 struct why *why);

/* When memory is short: let the kernel take the whole pages in [@p, @p + @size), weights. */
void weights_cool(const struct weights *w, const void *p, size_t size);
/* Keep packed weights in memory, or no longer. Not while an image is being written, whose pages
 * take their place. Return: 0, or -errno: they may be paged out. */
int weights_lock(struct weights *w, bool lock);

/* The memory file that has the weights, once they are loaded: open for reading, sealed, borrowed;
 * -1: there is none. */
int weights_fd(const struct weights *w);

/* Begin to write the image, or seal it, if there is to be one and it is not mapped already. Whether
 * it comes to be is shown in the log topic "image" at level debug alone. */
void weights_keep(struct weights *w, struct pool *pool);
/* Wait for that to end. */
void weights_keep_wait(struct weights *w);
