/* SPDX-License-Identifier: Apache-2.0 */

#include <float.h>
#include <math.h>
#include <string.h>
#include <sys/random.h>

#include "engine/text/sample.h"

enum { NUCLEUS_FIRST = 1024 }; /* candidates sorted at first for top-p without top-k */

struct cand {
    float logit;
    tok_t id;
};

struct sampler {
    struct sample_params p; /* p.bias is ours */
    const struct vocab *v;
    uint32_t n, n_top;
    struct sample_rng rng;
    float *logit;      /* [n] of this row, adjusted */
    struct cand *cand; /* [max(n_top, top_k, or n without top_k)] */
    double *weight;    /* the same, of each candidate; the largest is 1 */
    tok_t *seen;       /* [last_n] ring; NULL: penalties are off */
    uint64_t n_seen;
    uint32_t *count; /* [n] times a token stands in the ring */
};

/* ---- the generator ---- */

void sample_rng_seed(struct sample_rng *rng, uint64_t seed) {
    for (int i = 0; i < 4; i++) { /* splitmix64 */
        uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);

        z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
        rng->s[i] = z ^ z >> 31;
    }
}

static uint64_t rotl(uint64_t x, unsigned k) {
    return x << k | x >> (64 - k);
}

uint64_t sample_rng_next(struct sample_rng *rng) { /* xoshiro256** */
    uint64_t *s = rng->s, out = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);

    return out;
}

/* [0, 1), all 53 bits of it. */
static double rng_unit(struct sample_rng *rng) {
    return (double)(sample_rng_next(rng) >> 11) * 0x1p-53;
}

/* e^x for x <= 0, of plain arithmetic: libm's differs in its last bit from machine to machine, and
 * with it, now and then, the token drawn. x = i ln(2) / 16 + r; error below 1e-15. */
static double exp_neg(double x) {
    static const double root[16] = {
        /* 2^(j/16) */
        0x1.0000000000000p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,
        0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
        0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
        0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0,
    };
    union {
        uint64_t u;
        double f;
    } scale;
    double r, sum;
    int64_t i;

    if (!(x > -700))
        return 0;
    i = (int64_t)(x * 0x1.71547652b82fep+4 - 0.5); /* to the nearest: the cast cuts towards 0 */
    r = x - (double)i * 0x1.62e42fefa0000p-5 - (double)i * 0x1.cf79abc9e3b3ap-44;
    sum = 1 + r * (1 + r * (1.0 / 2 +
                            r * (1.0 / 6 + r * (1.0 / 24 + r * (1.0 / 120 + r * (1.0 / 720))))));
    scale.u = (uint64_t)((i >> 4) + 1023) << 52;

    return root[i & 15] * sum * scale.f;
}

/* ---- parameters ---- */

static int get_f32(const struct gguf *g, const char *key, float min, float max, float *ret,
                   struct why *why) {
    int r = gguf_get_f32(g, key, min, max, ret, why);

    return r == GGUF_ABSENT ? 0 : err_up(r);
}

/* A count; files write -1 or 0 for "no limit". */
static int get_count(const struct gguf *g, const char *key, uint32_t max, uint32_t *ret,
                     struct why *why) {
    int64_t i;
    int r = gguf_get_int(g, key, -1, INT32_MAX, &i, why);

    if (r)
        return r == GGUF_ABSENT ? 0 : err_up(r);
    *ret = i < 0 ? 0 : i > max ? max : (uint32_t)i;

    return 0;
}

int sample_defaults(const struct gguf *g, struct sample_params *ret, struct why *why) {
    struct sample_params p = {
        .has = SAMPLE_TEMPERATURE | SAMPLE_TOP_K | SAMPLE_TOP_P | SAMPLE_MIN_P | SAMPLE_REPEAT |
               SAMPLE_FREQUENCY | SAMPLE_PRESENCE | SAMPLE_LAST_N,
        .temperature = 1,
        .top_k = 64,
        .top_p = 0.95F,
        .repeat = 1,
        .last_n = 64,
    };
    int r;

    if ((r = get_f32(g, "general.sampling.temp", 0, 100, &p.temperature, why)) ||
        (r = get_count(g, "general.sampling.top_k", INT32_MAX, &p.top_k, why)) ||
        (r = get_f32(g, "general.sampling.top_p", FLT_MIN, 1, &p.top_p, why)) ||
        (r = get_f32(g, "general.sampling.min_p", 0, 0.999F, &p.min_p, why)) ||
        (r = get_f32(g, "general.sampling.penalty_repeat", 0.01F, 100, &p.repeat, why)) ||
        (r = get_count(g, "general.sampling.penalty_last_n", SAMPLE_LAST_N_MAX, &p.last_n, why)))
        return r;

    *ret = p;
    return 0;
}

int sample_check(const struct sample_params *p, struct why *why) {
    if (p->has & SAMPLE_TEMPERATURE && !(p->temperature >= 0 && p->temperature <= 100))
        return why_set(why, SAMPLE_BAD, "temperature must be from 0 to 100");
    if (p->has & SAMPLE_TOP_P && !(p->top_p > 0 && p->top_p <= 1))
        return why_set(why, SAMPLE_BAD, "top_p must be above 0 and at most 1");
    if (p->has & SAMPLE_MIN_P && !(p->min_p >= 0 && p->min_p < 1))
        return why_set(why, SAMPLE_BAD, "min_p must be from 0 to below 1");
    if (p->has & SAMPLE_REPEAT && !(p->repeat >= 0.01F && p->repeat <= 100))
        return why_set(why, SAMPLE_BAD, "repeat penalty must be from 0.01 to 100");
    if (p->has & SAMPLE_FREQUENCY && !(fabsf(p->frequency) <= 100))
        return why_set(why, SAMPLE_BAD, "frequency penalty must be from -100 to 100");
    if (p->has & SAMPLE_PRESENCE && !(fabsf(p->presence) <= 100))
        return why_set(why, SAMPLE_BAD, "presence penalty must be from -100 to 100");
    if (p->has & SAMPLE_LAST_N && p->last_n > SAMPLE_LAST_N_MAX)
        return why_set(why, SAMPLE_BAD, "last_n must be at most %d", SAMPLE_LAST_N_MAX);
    if (p->n_bias > SAMPLE_BIAS_MAX)
        return why_set(why, SAMPLE_BAD, "logit bias for more than %d tokens", SAMPLE_BIAS_MAX);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        if (p->bias[i].id < 0)
            return why_set(why, SAMPLE_BAD, "logit bias: %d is no token", (int)p->bias[i].id);
        if (!(p->bias[i].bias < INFINITY))
            return why_set(why, SAMPLE_BAD, "logit bias of token %d must be finite or -infinity",
                           (int)p->bias[i].id);
    }

    return 0;
}

void sample_merge(struct sample_params *p, const struct sample_params *def) {
    unsigned lack = def->has & ~p->has;

    p->temperature = lack & SAMPLE_TEMPERATURE ? def->temperature : p->temperature;
    p->top_k = lack & SAMPLE_TOP_K ? def->top_k : p->top_k;
    p->top_p = lack & SAMPLE_TOP_P ? def->top_p : p->top_p;
    p->min_p = lack & SAMPLE_MIN_P ? def->min_p : p->min_p;
    p->repeat = lack & SAMPLE_REPEAT ? def->repeat : p->repeat;
    p->frequency = lack & SAMPLE_FREQUENCY ? def->frequency : p->frequency;
    p->presence = lack & SAMPLE_PRESENCE ? def->presence : p->presence;
    p->last_n = lack & SAMPLE_LAST_N ? def->last_n : p->last_n;
    p->seed = lack & SAMPLE_SEED ? def->seed : p->seed;
    p->has |= lack;
}

/* ---- life ---- */

static bool penalises(const struct sample_params *p) {
    return p->last_n > 0 && (p->repeat != 1 || p->frequency != 0 || p->presence != 0);
}

static int sampler_alloc(struct sampler *s, const struct sample_params *p) {
    size_t n_cand = s->n_top;

    if (p->temperature > 0 && (!p->top_k || p->top_k > s->n))
        n_cand = s->n;
    else if (p->top_k > n_cand)
        n_cand = p->top_k < s->n ? p->top_k : s->n;

    s->logit = malloc(s->n * sizeof *s->logit);
    s->cand = calloc(n_cand + 1, sizeof *s->cand);
    s->weight = calloc(n_cand + 1, sizeof *s->weight);
    if (!s->logit || !s->cand || !s->weight)
        return err_new(-ENOMEM);
    if (p->n_bias) {
        s->p.bias = malloc(p->n_bias * sizeof *p->bias);
        if (!s->p.bias)
            return err_new(-ENOMEM);
        memcpy(s->p.bias, p->bias, p->n_bias * sizeof *p->bias);
    }
    if (penalises(p)) {
        s->seen = malloc(p->last_n * sizeof *s->seen);
        s->count = calloc(s->n, sizeof *s->count);
        if (!s->seen || !s->count)
            return err_new(-ENOMEM);
    }

    return 0;
}

int sample_new(struct sampler **ret_s, const struct sample_params *p, const struct vocab *v,
               uint32_t n_top) {
    AUTO(sample_free) struct sampler *s = NULL;
    int r;

    s = calloc(1, sizeof *s);
    if (!s)
        return err_new(-ENOMEM);
    s->p = *p;
    s->p.bias = NULL;
    s->v = v;
    s->n = vocab_n(v);
    s->n_top = n_top < SAMPLE_TOP_MAX ? n_top : SAMPLE_TOP_MAX;
    if (s->n_top > s->n)
        s->n_top = s->n;
    r = sampler_alloc(s, p);
    if (r)
        return err_up(r);
    if (!(p->has & SAMPLE_SEED) &&
        getrandom(&s->p.seed, sizeof s->p.seed, 0) != (ssize_t)sizeof s->p.seed)
        return err_new(-errno);
    sample_rng_seed(&s->rng, s->p.seed);

    *ret_s = take(s);
    return 0;
}

struct sampler *sample_free(struct sampler *s) {
    if (!s)
        return NULL;

    free(s->p.bias);
    free(s->logit);
    free(s->cand);
    free(s->weight);
    free(s->seen);
    free(s->count);
    free(s);

    return NULL;
}

uint64_t sample_seed(const struct sampler *s) {
    return s->p.seed;
}

void sample_accept(struct sampler *s, tok_t id) {
    tok_t *place;

    if (!s->seen || id < 0 || (uint32_t)id >= s->n)
        return;
    place = &s->seen[s->n_seen % s->p.last_n];
    if (s->n_seen++ >= s->p.last_n)
        s->count[*place]--;
    *place = id;
    s->count[id]++;
}

/* ---- one row ---- */

/* Finite, or -INFINITY for what can not be drawn. */
static float tame(float x) {
    return x <= FLT_MAX ? x : x > 0 ? FLT_MAX : -INFINITY;
}

static void adjust(struct sampler *s) {
    const struct sample_params *p = &s->p;
    size_t n_suppressed, n_seen = s->n_seen < p->last_n ? s->n_seen : p->last_n;
    const int32_t *suppressed = vocab_suppressed(s->v, &n_suppressed);
    enum { DONE = 1U << 31 };

    for (uint32_t i = 0; i < p->n_bias; i++)
        if ((uint32_t)p->bias[i].id < s->n)
            s->logit[p->bias[i].id] = tame(s->logit[p->bias[i].id] + p->bias[i].bias);
    for (size_t i = 0; i < n_suppressed; i++)
        s->logit[suppressed[i]] = -INFINITY;

    if (!s->seen)
        return;
    for (size_t i = 0; i < n_seen; i++) {
        uint32_t *count = &s->count[s->seen[i]];
        float *x = &s->logit[s->seen[i]];

        if (*count & DONE)
            continue;
        *x = *x > 0 ? *x / p->repeat : *x * p->repeat;
        *x = tame(*x - (float)*count * p->frequency - p->presence);
        *count |= DONE;
    }
    for (size_t i = 0; i < n_seen; i++)
        s->count[s->seen[i]] &= ~DONE;
}

static bool worse(struct cand a, struct cand b) {
    return a.logit < b.logit || (a.logit == b.logit && a.id > b.id);
}

/* Put @c where the root of the heap was; the worst rises to the root. */
static void sift(struct cand *heap, size_t n, struct cand c) {
    size_t i = 0;

    for (size_t down; (down = 2 * i + 1) < n; i = down) {
        if (down + 1 < n && worse(heap[down + 1], heap[down]))
            down++;
        if (!worse(heap[down], c))
            break;
        heap[i] = heap[down];
    }
    heap[i] = c;
}

/* The @k largest of @x [n] that are not -INFINITY, best first, the lowest id first on ties.
 * Return: how many. O(n + changes log k); on a row of a model the changes are few. */
static size_t select_top(const float *x, uint32_t n, size_t k, struct cand *ret) {
    size_t n_heap = 0;
    float bar = -INFINITY;

    for (uint32_t i = 0; i < n && k; i++) {
        struct cand c = { x[i], (tok_t)i };

        if (!(x[i] > bar))
            continue;
        if (n_heap < k) {
            size_t at = n_heap++;

            for (size_t up; at && worse(c, ret[up = (at - 1) / 2]); at = up)
                ret[at] = ret[up];
            ret[at] = c;
        } else {
            sift(ret, k, c);
        }
        bar = n_heap < k ? bar : ret[0].logit;
    }
    for (size_t left = n_heap; left > 1; left--) { /* the worst goes last */
        struct cand worst = ret[0];

        sift(ret, left - 1, ret[left - 1]);
        ret[left - 1] = worst;
    }

    return n_heap;
}

/* Weights of candidates, e^((logit - max) / temperature). Return: their sum. */
static double weigh(struct sampler *s, size_t n, float max) {
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += s->weight[i] =
            exp_neg(((double)s->cand[i].logit - (double)max) / (double)s->p.temperature);

    return sum;
}

/* How many of @n sorted candidates it takes to reach top_p of @total; @n when they do not. */
static size_t nucleus(const struct sampler *s, size_t n, double total) {
    double sum = 0, want = (double)s->p.top_p * total;

    for (size_t i = 0; i < n; i++) {
        sum += s->weight[i];
        if (sum >= want)
            return i + 1;
    }

    return n;
}

/* Every token that can be drawn, by id. */
static size_t select_all(struct sampler *s, float *ret_max) {
    size_t n = 0;
    float max = -INFINITY;

    for (uint32_t i = 0; i < s->n; i++) {
        if (!(s->logit[i] > -INFINITY))
            continue;
        s->cand[n++] = (struct cand){ s->logit[i], (tok_t)i };
        max = s->logit[i] > max ? s->logit[i] : max;
    }
    *ret_max = max;

    return n;
}

/* Candidates after top-k and top-p, with weights. Return: how many. */
static size_t candidates(struct sampler *s) {
    size_t n, k = s->p.top_k && s->p.top_k < s->n ? s->p.top_k : s->n;
    bool cut = s->p.top_p < 1;
    double total;
    float max;

    if (k < s->n) {
        n = select_top(s->logit, s->n, k, s->cand);
        total = weigh(s, n, n ? s->cand[0].logit : 0);
        return cut ? nucleus(s, n, total) : n;
    }

    n = select_all(s, &max);
    total = weigh(s, n, max);
    if (!cut)
        return n;
    /* The nucleus is mostly small: sort more only while it is not. */
    for (k = NUCLEUS_FIRST; n; k *= 8) {
        size_t n_sorted = select_top(s->logit, s->n, k < n ? k : n, s->cand), n_cut;

        (void)weigh(s, n_sorted, max);
        n_cut = nucleus(s, n_sorted, total);
        if (n_cut < n_sorted || n_sorted == n)
            return n_cut;
    }

    return 0;
}

static tok_t draw(struct sampler *s, double unit) {
    size_t n = candidates(s), n_kept = 0;
    double sum = 0, at;

    for (size_t i = 0; i < n; i++) {
        if (!(s->weight[i] > 0 && s->weight[i] >= (double)s->p.min_p))
            continue;
        s->cand[n_kept] = s->cand[i];
        sum += s->weight[n_kept++] = s->weight[i];
    }
    at = unit * sum;
    for (size_t i = 0; i < n_kept; i++) {
        at -= s->weight[i];
        if (at < 0)
            return s->cand[i].id;
    }

    return n_kept ? s->cand[n_kept - 1].id : -1;
}

static tok_t greedy(const struct sampler *s) {
    struct cand best = { -INFINITY, -1 };

    for (uint32_t i = 0; i < s->n; i++)
        if (s->logit[i] > best.logit)
            best = (struct cand){ s->logit[i], (tok_t)i };

    return best.id;
}

/* Fill @ret->top from the raw row. Return: the logarithm of its softmax's denominator. */
static double top_logprobs(struct sampler *s, struct sample_result *ret) {
    size_t n = select_top(s->logit, s->n, s->n_top, s->cand);
    double max = n ? (double)s->cand[0].logit : 0, sum = 0, norm;

    for (uint32_t i = 0; i < s->n; i++)
        sum += exp_neg((double)s->logit[i] - max);
    norm = max + log(sum);
    for (size_t i = 0; i < n; i++)
        ret->top[i] =
            (struct sample_logprob){ s->cand[i].id, (float)((double)s->cand[i].logit - norm) };
    ret->n_top = (uint32_t)n;

    return norm;
}

void sample_next(struct sampler *s, const float *logits, struct sample_result *ret) {
    double unit = rng_unit(&s->rng), norm = 0;

    ret->n_top = 0;
    ret->logprob = 0;
    for (uint32_t i = 0; i < s->n; i++)
        s->logit[i] = tame(logits[i]);
    if (s->n_top)
        norm = top_logprobs(s, ret);
    adjust(s);
    ret->id = s->p.temperature > 0 ? draw(s, unit) : greedy(s);
    if (ret->id < 0)
        ret->id = vocab_eos(s->v) >= 0 ? vocab_eos(s->v) : 0;
    if (s->n_top)
        ret->logprob = (float)((double)tame(logits[ret->id]) - norm);
}
