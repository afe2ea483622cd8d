/* SPDX-License-Identifier: Apache-2.0 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/model/gemma4.h"
#include "engine/model/model.h"

enum {
    DIM_MAX = 1 << 17,     /* any width; products of two of them fit 64 bits by far */
    CONTEXT_MAX = 1 << 24, /* positions */
};

/* Keys this file reads or that change nothing we compute. */
static const char *const known_keys[] = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.key_length_swa",
    "attention.layer_norm_rms_epsilon",
    "attention.shared_kv_layers",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attention.value_length_swa",
    "block_count",
    "context_length",
    "embedding_length",
    "embedding_length_per_layer_input",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.dimension_count_swa",
    "rope.freq_base",
    "rope.freq_base_swa",
    "vocab_size",
};

/* What a key we do not know begins with, or contains, when it would change the computation. */
static const char *const structural[] = { "attention.", "rope.", "expert", "ssm.",  "_length",
                                          "softcap",    "dense", "mtp.",   "swiglu" };

struct reader {
    const struct gguf *g;
    struct why *why;
    int r; /* first failure; everything after it is skipped */
};

static void bad(struct reader *rd, const char *text, const char *key) {
    if (!rd->r)
        rd->r = why_set(rd->why, MODEL_BAD, "gemma4.%s: %s", key, text);
}

/* Fold a getter's outcome: absence is an error here unless @optional. Return: is there a value? */
static bool have(struct reader *rd, int r, const char *key, bool optional) {
    if (r == GGUF_ABSENT && !optional)
        bad(rd, "missing", key);
    else if (r == GGUF_BAD)
        rd->r = MODEL_BAD; /* the getter wrote why */
    else if (r < 0)
        rd->r = err_up(r);

    return r == 0;
}

static const char *full(char buf[96], const char *key) {
    snprintf(buf, 96, "gemma4.%s", key);
    return buf;
}

static void read_u32(struct reader *rd, const char *key, uint32_t min, uint32_t max,
                     uint32_t *ret) {
    char buf[96];

    if (!rd->r)
        have(rd, gguf_get_u32(rd->g, full(buf, key), min, max, ret, rd->why), key, false);
}

static void read_u32_or(struct reader *rd, const char *key, uint32_t min, uint32_t max,
                        uint32_t other, uint32_t *ret) {
    char buf[96];

    if (!rd->r && !have(rd, gguf_get_u32(rd->g, full(buf, key), min, max, ret, rd->why), key, true))
        *ret = other;
}

static void read_f32(struct reader *rd, const char *key, float min, float max, float *ret) {
    char buf[96];

    if (!rd->r)
        have(rd, gguf_get_f32(rd->g, full(buf, key), min, max, ret, rd->why), key, false);
}

static void read_f32_or(struct reader *rd, const char *key, float min, float max, float other,
                        float *ret) {
    char buf[96];

    if (!rd->r && !have(rd, gguf_get_f32(rd->g, full(buf, key), min, max, ret, rd->why), key, true))
        *ret = other;
}

static void read_each(struct reader *rd, const char *key, uint32_t min, uint32_t max, uint32_t n,
                      uint32_t *ret) {
    char buf[96];

    if (!rd->r)
        have(rd, gguf_get_u32_each(rd->g, full(buf, key), min, max, n, ret, rd->why), key, false);
}

/* A key that may be there, but then must say @want. */
static void read_same(struct reader *rd, const char *key, uint32_t want, const char *text) {
    uint32_t got;

    read_u32_or(rd, key, 0, UINT32_MAX, want, &got);
    if (!rd->r && got != want)
        bad(rd, text, key);
}

static void check_unknown(struct reader *rd) {
    for (uint32_t i = 0; i < gguf_n_meta(rd->g) && !rd->r; i++) {
        const char *key = gguf_meta_at(rd->g, i)->key;
        bool known = false;

        if (strncmp(key, "gemma4.", 7) != 0)
            continue;
        key += 7;
        for (size_t j = 0; j < sizeof known_keys / sizeof *known_keys; j++)
            known = known || strcmp(key, known_keys[j]) == 0;
        for (size_t j = 0; j < sizeof structural / sizeof *structural && !known; j++)
            if (strstr(key, structural[j])) {
                bad(rd, "this engine does not know what that asks for", key);
                break;
            }
    }
}

/* Which layers slide: an array of flags, or a period whose last layer is full. */
static void read_pattern(struct reader *rd, struct gemma4_conf *c) {
    static const char key[] = "attention.sliding_window_pattern";
    const struct gguf_meta *meta = gguf_meta(rd->g, "gemma4.attention.sliding_window_pattern");
    uint32_t v[GEMMA4_LAYER_MAX];
    bool array = meta && meta->type == GGUF_ARR;

    read_each(rd, key, array ? 0 : 1, array ? 1 : GEMMA4_LAYER_MAX, c->n_layer, v);
    if (rd->r)
        return;
    for (uint32_t i = 0; i < c->n_layer; i++)
        c->layer[i].sliding = array ? v[i] : (i + 1) % v[i] != 0;
    if (c->layer[c->n_layer - 1].sliding)
        bad(rd, "the last layer must be a full one", key);
}

static void read_layers(struct reader *rd, struct gemma4_conf *c) {
    uint32_t head[GEMMA4_LAYER_MAX], kv[GEMMA4_LAYER_MAX], ff[GEMMA4_LAYER_MAX];
    bool any_sliding = false;

    read_pattern(rd, c);
    read_each(rd, "attention.head_count", 1, 4096, c->n_layer, head);
    read_each(rd, "attention.head_count_kv", 1, 4096, c->n_layer, kv);
    read_each(rd, "feed_forward_length", 1, DIM_MAX, c->n_layer, ff);
    read_u32(rd, "attention.key_length", 2, 4096, &c->head_dim);
    for (uint32_t i = 0; i < c->n_layer && !rd->r; i++)
        any_sliding = any_sliding || c->layer[i].sliding;
    if (any_sliding) {
        read_u32(rd, "attention.key_length_swa", 2, 4096, &c->head_dim_sliding);
        read_u32(rd, "attention.sliding_window", 1, CONTEXT_MAX, &c->window);
        read_same(rd, "attention.value_length_swa", c->head_dim_sliding,
                  "differs from key_length_swa");
        read_same(rd, "rope.dimension_count_swa", c->head_dim_sliding,
                  "differs from key_length_swa; heads that rotate in part are not computed");
    }
    read_same(rd, "attention.value_length", c->head_dim, "differs from key_length");
    read_same(rd, "rope.dimension_count", c->head_dim,
              "differs from key_length; heads that rotate in part are not computed");
    if (!rd->r && (c->head_dim % 2 || c->head_dim_sliding % 2))
        bad(rd, "heads must have an even number of elements", "attention.key_length");

    for (uint32_t i = 0; i < c->n_layer && !rd->r; i++) {
        struct gemma4_layer_conf *l = &c->layer[i];
        uint32_t dim = l->sliding ? c->head_dim_sliding : c->head_dim;

        if (head[i] % kv[i] != 0)
            bad(rd, "does not divide head_count", "attention.head_count_kv");
        else if ((uint64_t)head[i] * dim > DIM_MAX)
            bad(rd, "times key_length is too wide", "attention.head_count");
        *l = (struct gemma4_layer_conf){ .sliding = l->sliding,
                                         .n_head = head[i],
                                         .n_kv_head = kv[i],
                                         .head_dim = dim,
                                         .n_ff = ff[i] };
        c->kv[i] = (struct kv_layer_shape){ .n_kv_head = kv[i],
                                            .head_dim = dim,
                                            .window = l->sliding ? c->window : 0 };
#define MAX_OF(field_, value_)                                                                     \
    do {                                                                                           \
        if (c->field_ < (value_))                                                                  \
            c->field_ = (value_);                                                                  \
    } while (0)
        MAX_OF(n_head_max, head[i]);
        MAX_OF(n_ff_max, ff[i]);
        MAX_OF(n_q_max, head[i] * dim);
        MAX_OF(n_kv_max, kv[i] * dim);
        MAX_OF(n_group_max, head[i] / kv[i]);
#undef MAX_OF
    }
}

static void read_experts(struct reader *rd, struct gemma4_conf *c) {
    read_u32_or(rd, "expert_count", 0, GEMMA4_EXPERT_MAX, 0, &c->n_expert);
    if (rd->r || c->n_expert == 0)
        return;
    read_u32(rd, "expert_used_count", 1, c->n_expert, &c->n_expert_used);
    read_u32(rd, "expert_feed_forward_length", 1, DIM_MAX, &c->n_ff_exp);
}

int gemma4_conf_read(struct gemma4_conf *c, const struct gguf *g, struct why *why) {
    struct reader rd = { .g = g, .why = why };
    const struct tensor *embd = gguf_tensor(g, "token_embd.weight");
    uint32_t n;

    *c = (struct gemma4_conf){ 0 };
    if (!embd)
        return why_set(why, MODEL_BAD, "token_embd.weight: missing");

    check_unknown(&rd);
    read_u32(&rd, "block_count", 1, GEMMA4_LAYER_MAX, &c->n_layer);
    read_u32(&rd, "embedding_length", 1, DIM_MAX, &c->n_embd);
    read_u32(&rd, "context_length", 1, CONTEXT_MAX, &c->n_ctx);
    read_u32_or(&rd, "embedding_length_per_layer_input", 0, UINT32_MAX, 0, &n);
    if (!rd.r && n > 0)
        bad(&rd, "per-layer embeddings (the E2B and E4B models) are not computed",
            "embedding_length_per_layer_input");
    read_u32_or(&rd, "attention.shared_kv_layers", 0, UINT32_MAX, 0, &n);
    if (!rd.r && n > 0)
        bad(&rd, "layers that share keys and values are not computed",
            "attention.shared_kv_layers");

    read_f32(&rd, "attention.layer_norm_rms_epsilon", FLT_MIN, 1e-2f, &c->eps);
    read_f32_or(&rd, "final_logit_softcapping", 0, FLT_MAX, 30, &c->softcap);
    read_f32(&rd, "rope.freq_base", FLT_MIN, FLT_MAX, &c->rope_base);
    read_f32_or(&rd, "rope.freq_base_swa", FLT_MIN, FLT_MAX, 1e4f, &c->rope_base_sliding);
    if (!rd.r)
        read_layers(&rd, c);
    read_experts(&rd, c);

    if (!rd.r && (embd->ne[1] < 1 || embd->ne[1] > 1 << 24))
        rd.r = why_set(why, MODEL_BAD, "token_embd.weight: %llu tokens are none or too many",
                       (unsigned long long)embd->ne[1]);
    c->n_vocab = (uint32_t)embd->ne[1];
    read_same(&rd, "vocab_size", c->n_vocab, "differs from the rows of token_embd.weight");

    return rd.r;
}
