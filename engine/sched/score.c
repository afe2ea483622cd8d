/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sched/score.h"

struct score_label {
    char *text;
    struct tok_list tok;
    uint32_t index; /* as given */
};

struct score {
    struct score_label *label; /* [n], sorted by tokens once prepared */
    double *logprob;           /* [n] as given */
    size_t n;
    uint32_t at, depth; /* the label being walked, and how many of its tokens are added */
};

struct score *score_free(struct score *s) {
    if (!s)
        return NULL;

    for (size_t i = 0; s->label && i < s->n; i++) {
        free(s->label[i].text);
        tok_list_deinit(&s->label[i].tok);
    }
    free(s->label);
    free(s->logprob);
    free(s);
    return NULL;
}

int score_new(struct score **ret_score, const char *const *label, size_t n) {
    AUTO(score_free) struct score *s = calloc(1, sizeof *s);

    if (!s)
        return err_new(-ENOMEM);
    s->label = calloc(n, sizeof *s->label);
    s->logprob = calloc(n, sizeof *s->logprob);
    if (!s->label || !s->logprob)
        return err_new(-ENOMEM);
    s->n = n;
    for (size_t i = 0; i < n; i++) {
        s->label[i].index = (uint32_t)i;
        s->label[i].text = strdup(label[i]);
        if (!s->label[i].text)
            return err_new(-ENOMEM);
    }

    *ret_score = take(s);
    return 0;
}

/* ---- preparing ---- */

static uint32_t common(const struct tok_list *a, const struct tok_list *b) {
    uint32_t n = 0;

    while (n < a->n && n < b->n && a->id[n] == b->id[n])
        n++;
    return n;
}

static int label_cmp(const void *a, const void *b) {
    const struct tok_list *x = &((const struct score_label *)a)->tok;
    const struct tok_list *y = &((const struct score_label *)b)->tok;
    uint32_t n = common(x, y);

    if (n == x->n || n == y->n)
        return (x->n > y->n) - (x->n < y->n);
    return (x->id[n] > y->id[n]) - (x->id[n] < y->id[n]);
}

int score_prepare(struct score *s, const struct vocab *v, struct why *why) {
    for (size_t i = 0; i < s->n; i++) {
        struct score_label *l = &s->label[i];

        if (tok_encode(v, l->text, strlen(l->text), 0, &l->tok) < 0)
            return err_new(-ENOMEM);
        if (l->tok.n == 0 || l->tok.n > SCORE_TOKEN_MAX)
            return why_set(why, SCORE_BAD, "choice %zu has %zu tokens; 1 to %d are allowed", i,
                           l->tok.n, SCORE_TOKEN_MAX);
    }

    qsort(s->label, s->n, sizeof *s->label, label_cmp);
    return 0;
}

uint32_t score_depth(const struct score *s) {
    size_t n = 1;

    for (size_t i = 0; i < s->n; i++)
        n = s->label[i].tok.n > n ? s->label[i].tok.n : n;
    return (uint32_t)n;
}

/* ---- the walk ---- */

/* log of the sum of exponentials, by the largest so that none overflows. */
static double log_sum(const float *logits, uint32_t n) {
    float max = logits[0];
    double sum = 0;

    for (uint32_t i = 1; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)(logits[i] - max));
    return (double)max + log(sum);
}

/* Does label @i begin with the tokens that are added, and have more? */
static bool passes(const struct score *s, size_t i) {
    return s->label[i].tok.n > s->depth &&
           common(&s->label[s->at].tok, &s->label[i].tok) >= s->depth;
}

/* The first node of label @i that the one before has not been to. */
static uint32_t first_depth(const struct score *s, size_t i) {
    const struct tok_list *before = &s->label[i - 1].tok;
    uint32_t n = common(before, &s->label[i].tok);

    return n == before->n ? n : n + 1;
}

bool score_step(struct score *s, const float *logits, uint32_t n_vocab, uint32_t *ret_keep,
                tok_t *ret_next) {
    double sum = log_sum(logits, n_vocab);
    uint32_t depth = s->depth + 1;

    for (size_t i = s->at; i < s->n && passes(s, i); i++)
        s->logprob[s->label[i].index] += (double)logits[s->label[i].tok.id[s->depth]] - sum;

    while (depth >= s->label[s->at].tok.n) { /* its last token was just scored */
        if (++s->at == s->n)
            return false;
        depth = first_depth(s, s->at);
    }
    s->depth = depth;
    *ret_keep = depth - 1;
    *ret_next = s->label[s->at].tok.id[depth - 1];
    return true;
}

const double *score_result(const struct score *s, size_t *ret_n) {
    *ret_n = s->n;
    return s->logprob;
}
