/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * sample - one row of logits to one token
 *
 * Order: logit bias and suppressed tokens, penalties, temperature, top-k, top-p, min-p, draw.
 * Temperature 0 takes the largest logit, the lowest id on ties. The generator is xoshiro256**
 * seeded by splitmix64, drawn once a token, so the same seed gives the same answer everywhere.
 *
 * Owner:   the engine thread, one sampler a sequence.
 * Source:  Blackman and Vigna, "Scrambled linear pseudorandom number generators" (2021); top-p:
 *          Holtzman et al. (2020); min-p: Nguyen et al. (2024).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"
#include "engine/fmt/gguf.h"
#include "engine/text/vocab.h"

enum { SAMPLE_TOP_MAX = 20, SAMPLE_BIAS_MAX = 1024, SAMPLE_LAST_N_MAX = 1 << 16 };

struct sample_bias {
    tok_t id;
    float bias; /* added to the logit; -INFINITY forbids. Ids beyond the vocabulary do nothing. */
};

/* What a request may set; a field counts only when its bit is in @has, else the model's default. */
enum sample_has {
    SAMPLE_TEMPERATURE = 1 << 0,
    SAMPLE_TOP_K = 1 << 1,
    SAMPLE_TOP_P = 1 << 2,
    SAMPLE_MIN_P = 1 << 3,
    SAMPLE_REPEAT = 1 << 4,
    SAMPLE_FREQUENCY = 1 << 5,
    SAMPLE_PRESENCE = 1 << 6,
    SAMPLE_LAST_N = 1 << 7,
    SAMPLE_SEED = 1 << 8,
};

struct sample_params {
    unsigned has;
    float temperature; /* >= 0; 0 is greedy */
    uint32_t top_k;    /* 0: all */
    float top_p;       /* (0, 1]; 1: all */
    float min_p;       /* [0, 1); of the largest probability */
    float repeat;      /* > 0; 1: off. Logits of tokens seen are divided (positive) or multiplied */
    float frequency;   /* subtracted once per occurrence */
    float presence;    /* subtracted once */
    uint32_t last_n;   /* tokens the penalties look back on, up to SAMPLE_LAST_N_MAX; 0: none */
    uint64_t seed;     /* absent: drawn from the system, and reported */
    struct sample_bias *bias; /* [n_bias], borrowed; copied by sample_new() */
    uint32_t n_bias;
};

enum {
    SAMPLE__OK,

    SAMPLE_BAD, /* a parameter out of range; @why names it */
};

/* The model's defaults: general.sampling.*, else 1.0, 64, 0.95, penalties off. All bits set but
 * SEED. Return: 0 or GGUF_BAD. */
int sample_defaults(const struct gguf *g, struct sample_params *ret, struct why *why);
/* Return: 0 or SAMPLE_BAD. */
int sample_check(const struct sample_params *p, struct why *why);
/* Fill what @p has not, from @def. */
void sample_merge(struct sample_params *p, const struct sample_params *def);

struct sample_logprob {
    tok_t id;
    float logprob; /* of the softmax of the raw logits, before anything above */
};

/* One token drawn. @top: the n_top most probable tokens of the raw logits, best first. */
struct sample_result {
    tok_t id;
    float logprob;
    uint32_t n_top;
    struct sample_logprob top[SAMPLE_TOP_MAX];
};

struct sample_rng {
    uint64_t s[4];
};
void sample_rng_seed(struct sample_rng *rng, uint64_t seed);
uint64_t sample_rng_next(struct sample_rng *rng);

struct sampler;
/* @p: complete (merged and checked)   @v: must outlive the sampler
 * @n_top: 0 to SAMPLE_TOP_MAX. Allocates all it will need. Return: 0 or -errno. */
int sample_new(struct sampler **ret_s, const struct sample_params *p, const struct vocab *v,
               uint32_t n_top);
struct sampler *sample_free(struct sampler *s);
AUTO_DEFINE(struct sampler *, sample_free)

uint64_t sample_seed(const struct sampler *s);
/* Count @id (of the prompt or generated) for the penalties. */
void sample_accept(struct sampler *s, tok_t id);
/* @logits: f32 [n_vocab]; not changed. NaN counts as -INFINITY; when every token is forbidden, the
 * answer is the end of text. Logprobs are computed only when n_top was asked for, else they are 0.
 * Does not accept. */
void sample_next(struct sampler *s, const float *logits, struct sample_result *ret);
