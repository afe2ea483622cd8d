/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * model-arch - what an architecture gives model.c, and what it gets; for engine/model/ only
 */

#include "engine/model/model.h"

/* A model of one architecture: its own struct begins with this. */
struct model {
    const struct model_arch *arch;
    struct model_info info;
    const struct kv_layer_shape *kv_layer; /* [info.n_layer] */
    uint32_t n_batch, n_out;
    uint64_t expert_bytes, reserve; /* as in struct model_options */
    bool no_uring;
    struct plan *plan;
    struct weights weights;
    struct pool *pool;
    struct ops *ops;
    const struct ops_phase *phase; /* [n_phase] */
    uint32_t n_phase;
    uint64_t n_step, n_row, n_expert_read; /* so far */
    _Atomic uint64_t n_beat;               /* parts of steps begun */
    model_trace_fn *trace;
    void *trace_arg;
};

struct model_arch {
    const char *name; /* general.architecture */

    /* Return: 0, MODEL_BAD, or -errno. @opt is complete but for n_ctx. */
    int (*new)(struct model **ret_model, const struct gguf *g, const struct kern *kern,
               struct pool *pool, const struct model_options *opt, struct why *why);
    struct model *(*free)(struct model *m);

    /* Return: 0, MODEL_STOPPED, or -errno. */
    int (*step)(struct model *m, struct kvcache *kv, const struct model_row *row, uint32_t n_row,
                const atomic_bool *stop, const float **ret_logits);
    int (*layer)(struct model *m, struct kvcache *kv, uint32_t layer, const struct model_row *row,
                 uint32_t n_row, float *x);
    void (*cool)(struct model *m);
    /* Weights are there. Return: 0 or -errno. */
    int (*loaded)(struct model *m, struct why *why);
    const struct store *(*store)(const struct model *m); /* NULL: there is none */
};

extern const struct model_arch gemma4_arch;
