/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/model/model.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/mem.h"
#include "engine/model/model-arch.h"

static const struct model_arch *const model_archs[] = { &gemma4_arch };

enum { N_ARCH = sizeof model_archs / sizeof *model_archs };

/* What the tensors add up to, and the format most of their bytes are in. */
static void describe(struct model_info *info, const struct gguf *g) {
    uint64_t bytes[QUANT_FMT_N] = { 0 };
    enum quant_fmt most = QUANT_F32;
    const char *s;
    size_t n;

    info->n_param = info->weight_bytes = 0;
    for (uint32_t i = 0; i < gguf_n_tensor(g); i++) {
        const struct tensor *t = gguf_tensor_at(g, i);

        info->n_param += t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
        info->weight_bytes += t->size;
        bytes[t->fmt] += t->size;
        if (bytes[t->fmt] > bytes[most])
            most = t->fmt;
    }
    snprintf(info->quant, sizeof info->quant, "%s", quant_info(most)->name);
    if (gguf_get_str(g, "general.name", &s, &n, NULL) == 0)
        snprintf(info->name, sizeof info->name, "%.*s",
                 (int)(n < sizeof info->name ? n : sizeof info->name - 1), s);
}

static void describe_packing(struct model_info *info, const struct gguf *g,
                             const struct weights *w) {
    uint64_t bytes[QUANT_FMT_N] = { 0 }, most = 0;

    info->pack_bytes = w->size;
    for (uint32_t i = 0; i < gguf_n_tensor(g); i++) {
        const struct tensor *t = gguf_tensor_at(g, i);
        const struct kern_pack *pack;

        (void)weights_at(w, t, &pack);
        if (!pack)
            continue;
        bytes[t->fmt] += t->size;
        if (bytes[t->fmt] > most) {
            most = bytes[t->fmt];
            snprintf(info->layout, sizeof info->layout, "%s", pack->layout);
        }
    }
}

int model_new(struct model **ret_model, const struct gguf *g, const struct kern *kern,
              struct pool *pool, const struct model_options *opt, struct why *why) {
    const struct model_arch *arch = NULL;
    struct model *m;
    const char *name;
    size_t n;
    int r;

    assert(opt->n_batch > 0 && opt->n_out > 0);
    r = gguf_get_str(g, "general.architecture", &name, &n, why);
    if (r == GGUF_ABSENT)
        return why_set(why, MODEL_BAD, "general.architecture: missing");
    if (r != 0)
        return r < 0 ? err_up(r) : MODEL_BAD;
    for (size_t i = 0; i < N_ARCH && !arch; i++)
        if (strlen(model_archs[i]->name) == n && memcmp(model_archs[i]->name, name, n) == 0)
            arch = model_archs[i];
    if (!arch)
        return why_set(why, MODEL_BAD, "general.architecture: \"%.*s\" is not computed here",
                       (int)(n < 40 ? n : 40), name);

    r = arch->new (&m, g, kern, pool, opt, why);
    if (r != 0)
        return err_up(r);
    m->arch = arch;
    m->n_batch = opt->n_batch;
    m->n_out = opt->n_out;
    m->pool = pool;
    m->expert_bytes = opt->expert_bytes;
    m->reserve = opt->reserve;
    m->no_uring = opt->no_uring;
    snprintf(m->info.arch, sizeof m->info.arch, "%s", arch->name);
    describe(&m->info, g);
    describe_packing(&m->info, g, &m->weights);
    *ret_model = m;
    return 0;
}

struct model *model_free(struct model *m) {
    return m ? m->arch->free(m) : NULL;
}

int model_load(struct model *m, const struct weights_load *load, struct why *why) {
    int r = weights_load(&m->weights, m->pool, load, why);

    m->info.from_image = m->weights.mapped;
    m->info.from_memory = m->weights.mapped && m->weights.memory;
    if (r == 0)
        weights_keep(&m->weights, m->pool);
    if (r == 0)
        r = m->arch->loaded(m, why);
    return r == WEIGHTS_STOPPED ? MODEL_STOPPED : err_up(r);
}

void model_keep_wait(struct model *m) {
    weights_keep_wait(&m->weights);
}

void model_cool(struct model *m) {
    m->arch->cool(m);
}

int model_lock(struct model *m, bool lock) {
    return err_up(weights_lock(&m->weights, lock));
}

int model_fd(const struct model *m) {
    return weights_fd(&m->weights);
}

bool model_shard(const struct model *m, uint32_t i, struct model_shard *ret) {
    const struct plan_shard *s;

    if (i >= m->plan->n_shard)
        return false;
    s = &m->plan->shard[i];
    *ret = (struct model_shard){ .node = s->node_os,
                                 .cpu = pool_cpus(m->pool) + s->first,
                                 .n_cpu = s->n_worker,
                                 .bytes = m->weights.shard[i].size };
    return true;
}

const struct model_info *model_info(const struct model *m) {
    return &m->info;
}

uint64_t model_huge_bytes(const struct model *m) {
    return m->weights.base ? mem_huge(m->weights.base, m->weights.size) : 0;
}

void model_kv_shape(const struct model *m, uint32_t n_seq, enum quant_fmt fmt,
                    struct kv_shape *ret) {
    *ret = (struct kv_shape){
        .n_layer = m->info.n_layer,
        .layer = m->kv_layer,
        .n_ctx = m->info.n_ctx,
        .n_batch = m->n_batch,
        .n_seq = n_seq,
        .fmt = fmt,
    };
}

int model_step(struct model *m, struct kvcache *kv, const struct model_row *row, uint32_t n_row,
               const atomic_bool *stop, const float **ret_logits) {
    uint32_t n_out = 0;

    assert(n_row > 0 && n_row <= m->n_batch);
    for (uint32_t i = 0; i < n_row; i++) {
        assert(row[i].tok >= 0 && (uint32_t)row[i].tok < m->info.n_vocab);
        n_out += row[i].out;
    }
    assert(n_out <= m->n_out);
    m->n_step++;
    m->n_row += n_row;

    return m->arch->step(m, kv, row, n_row, stop, ret_logits);
}

int model_layer(struct model *m, struct kvcache *kv, uint32_t layer, const struct model_row *row,
                uint32_t n_row, float *x) {
    assert(layer < m->info.n_layer && n_row > 0 && n_row <= m->n_batch);

    return m->arch->layer(m, kv, layer, row, n_row, x);
}

const char *model_why(const struct model *m) {
    const struct store *s = m->arch->store(m);

    return s ? store_why(s) : "a step of the model failed";
}

bool model_store(const struct model *m, struct store_stats *ret) {
    const struct store *s = m->arch->store(m);

    if (s)
        store_stats(s, ret);
    return s;
}

void model_stats(const struct model *m, struct model_stats *ret) {
    *ret =
        (struct model_stats){ .steps = m->n_step, .rows = m->n_row, .experts = m->n_expert_read };
    for (uint32_t i = 0; i < m->n_phase; i++) {
        ret->barriers += m->phase[i].barriers;
        ret->weight_bytes += m->phase[i].weight_bytes;
    }
}

uint64_t model_beat(const struct model *m) {
    return atomic_load_explicit(&m->n_beat, memory_order_relaxed);
}

const struct ops_phase *model_phases(const struct model *m, uint32_t *ret_n) {
    *ret_n = m->n_phase;
    return m->phase;
}

void model_clocks(struct model *m, bool on) {
    ops_timed(m->ops, on);
}

void model_trace(struct model *m, model_trace_fn *fn, void *arg) {
    m->trace = fn;
    m->trace_arg = arg;
}
