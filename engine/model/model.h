/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * model - a language model bound to its weights: open, describe, step
 *
 * One table, model_archs[], lists the known architectures; gemma4.c is one row of it.
 *
 * Owner:   the engine thread. model_step() runs the pool.
 * Memory:  weights are packed once, as they are read, or stay in the file's mapping: see weights.h;
 *          step memory is one arena, sized at model_new().
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/gguf.h"
#include "engine/hw/pool.h"
#include "engine/kern/kern.h"
#include "engine/kv/kvcache.h"
#include "engine/model/ops.h"
#include "engine/model/weights.h"
#include "engine/moe/store.h"

struct model;

enum {
    MODEL__OK,

    MODEL_BAD,     /* the file does not describe a model we compute; @why names the key or tensor */
    MODEL_STOPPED, /* model_step() saw *stop; nothing of the step counts */
};

#define MODEL_EXPERTS_ALL  UINT64_C(0)
#define MODEL_EXPERTS_AUTO UINT64_MAX

struct model_options {
    uint32_t n_ctx;        /* context to serve, 0: the trained one */
    uint32_t n_batch;      /* rows of a step at most */
    uint32_t n_out;        /* rows of a step that may ask for logits at most */
    bool exact;            /* float activations everywhere; then weights stay as in the file */
    bool no_pack;          /* weights stay as in the file */
    const char *cache_dir; /* packed weights are kept there as an image, see image.h; NULL: not */
    struct weights_memory *memory; /* or there; NULL: not. It outlives the model. */
    uint64_t expert_bytes; /* of memory for experts at most: those without room are on disk, in the
                              image. MODEL_EXPERTS_ALL, MODEL_EXPERTS_AUTO: what is free, should
                              that be less than all, and with room for an image */
    bool no_uring;         /* they are read by threads in any case */
    uint64_t reserve; /* bytes of memory the caller will use besides: when packed weights and this
                         are more than is free, weights stay as in the file */
};

struct model_info {
    char arch[32];
    char name[128]; /* general.name, or "" */
    char quant[16]; /* format most weight bytes are in */
    uint32_t n_layer, n_embd, n_vocab, n_ctx_train, n_ctx;
    uint32_t n_expert, n_expert_used; /* 0: dense */
    uint32_t window;
    uint64_t n_param;      /* elements of all tensors */
    uint64_t weight_bytes; /* of all tensors */
    uint64_t token_bytes;  /* weight bytes one decoded token reads */
    uint64_t step_bytes;   /* step memory */
    uint64_t pack_bytes;   /* of packed weights; 0: all stay as in the file */
    bool from_image;       /* packed weights are mapped from an image */
    bool from_memory;      /* which is the memory file that was given */
    char layout[32];       /* byte order most packed bytes are in, or "" */
};

/**
 * model_new() - bind the weights of @g and size the step memory
 * @g:          borrowed; must outlive the model
 * @kern:       borrowed, bound
 * @pool:       borrowed
 *
 * Return: 0, MODEL_BAD, or -errno.
 */
int model_new(struct model **ret_model, const struct gguf *g, const struct kern *kern,
              struct pool *pool, const struct model_options *opt, struct why *why);
struct model *model_free(struct model *m);
AUTO_DEFINE(struct model *, model_free)

/* Read the weights; before the first step. Their image is then written in the background.
 * Return: 0, MODEL_STOPPED, or -errno with @why. */
int model_load(struct model *m, const struct weights_load *load, struct why *why);
/* Wait until the image is written, if one is. */
void model_keep_wait(struct model *m);

/* When memory is short: let the kernel take weights of experts that are used least, see heat.h. */
void model_cool(struct model *m);
/* As weights_lock(). */
int model_lock(struct model *m, bool lock);

/* As weights_fd(). */
int model_fd(const struct model *m);

/* What one memory node, or last-level cache, serves; see plan.h. */
struct model_shard {
    uint32_t node;              /* the kernel's number */
    const struct topo_cpu *cpu; /* [n_cpu] of its workers, borrowed */
    uint32_t n_cpu;
    uint64_t bytes; /* of weights in its memory; others stay in the file's mapping */
};
/* The @i-th. Return: false when there is none. */
bool model_shard(const struct model *m, uint32_t i, struct model_shard *ret);

const struct model_info *model_info(const struct model *m);
/* Bytes of packed weights that are in huge pages now. */
uint64_t model_huge_bytes(const struct model *m);

/* The cache this model needs for @n_seq sequences. @ret->layer is borrowed from the model. */
void model_kv_shape(const struct model *m, uint32_t n_seq, enum quant_fmt fmt,
                    struct kv_shape *ret);

/* The rows of one step. Rows of a sequence are in order and follow what its cache holds; rows of
 * several sequences may be mixed. The caller reserved their positions. */
struct model_row {
    int32_t tok;
    uint32_t seq;
    pos_t pos;
    bool out; /* compute logits */
};

/**
 * model_step() - evaluate @n_row rows, append their K and V, and compute logits
 * @row:        [n_row], n_row <= n_batch
 * @stop:       looked at before every item of work, some milliseconds apart; may be NULL
 * @ret_logits: f32 [n rows with .out][n_vocab], borrowed until the next step
 *
 * A row's logits depend on its sequence alone, not on what else is in the step.
 * Return: 0; MODEL_STOPPED, or -errno: then the caller truncates the sequences back. model_why()
 * says what failed, and the next step may be good again.
 */
int model_step(struct model *m, struct kvcache *kv, const struct model_row *row, uint32_t n_row,
               const atomic_bool *stop, const float **ret_logits);

const char *model_why(const struct model *m);

/* How experts on disk fare. Any thread. Return: are there some? */
bool model_store(const struct model *m, struct store_stats *ret);

/* One layer alone, for checks that feed every layer the same input.
 * @x:          f32 [n_row][n_embd], the residual stream; the layer's output when it returns
 * Return: 0 or -errno. K and V of the rows are appended to @kv as model_step() would. */
int model_layer(struct model *m, struct kvcache *kv, uint32_t layer, const struct model_row *row,
                uint32_t n_row, float *x);

/* What all steps so far did. */
struct model_stats {
    uint64_t steps, rows;
    uint64_t barriers;     /* times workers met */
    uint64_t weight_bytes; /* of matrices, once a step however many rows share them */
    uint64_t experts;      /* distinct ones a layer, summed over layers */
};
void model_stats(const struct model *m, struct model_stats *ret);

/* Grows while a step advances, several times a second on any machine that is worth it; for whoever
 * watches. Any thread. */
uint64_t model_beat(const struct model *m);

/* What steps did by phase, summed since model_new(). Times are there while clocks are on; they cost
 * nothing when off. Return: [*ret_n], borrowed from the model. */
const struct ops_phase *model_phases(const struct model *m, uint32_t *ret_n);
void model_clocks(struct model *m, bool on);

/* Called with the residual stream, f32 [n_row][n_embd], before the first layer ("embd") and after
 * each half of a layer ("attn", "out"), and after the router with probabilities [n_row][n_expert]
 * ("probs"); for moe-eval and tests. NULL: off. */
typedef void model_trace_fn(void *arg, uint32_t layer, const char *what, const float *x,
                            uint32_t n_row, uint32_t n_col);
void model_trace(struct model *m, model_trace_fn *fn, void *arg);
