/* SPDX-License-Identifier: Apache-2.0 */
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tools/eval.h"

/*
 * Perplexity: the file's text becomes tokens, special ones included, and is cut into documents at
 * <bos>. Whole documents are packed into windows of at most --window tokens; one that is longer is
 * cut. A window is evaluated from an empty cache, and each of its tokens but the first is
 * predicted from those before it. Perplexity is exp of the mean of -log p.
 */

struct sums {
    uint64_t n;
    double nll, nll_exact, kl, kl_max; /* nats */
};

/* log sum exp of a row */
static double log_norm(const float *x, uint32_t n) {
    double max = -INFINITY, sum = 0;

    for (uint32_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (uint32_t i = 0; i < n; i++)
        sum += exp(x[i] - max);

    return max + log(sum);
}

static double kl_row(const float *p, double p_norm, const float *q, double q_norm, uint32_t n) {
    double kl = 0;

    for (uint32_t i = 0; i < n; i++) {
        double log_p = p[i] - p_norm;

        kl += exp(log_p) * (log_p - (q[i] - q_norm));
    }

    return kl;
}

/* One window. @exact: NULL, or the model to compare with. */
static int window(struct eval *e, struct eval_model *m, struct eval_model *exact, const tok_t *tok,
                  size_t n, struct sums *s) {
    uint32_t n_vocab = model_info(m->model)->n_vocab;
    const float *logits, *want = NULL;
    int r;

    eval_reset(m);
    if (exact)
        eval_reset(exact);
    for (size_t at = 0; at < n; at += m->n_batch) {
        uint32_t n_row = n - at < m->n_batch ? (uint32_t)(n - at) : m->n_batch;

        r = eval_step(e, m, tok + at, n_row, true, &logits);
        if (r == 0 && exact)
            r = eval_step(e, exact, tok + at, n_row, true, &want);
        if (r != 0)
            return r;
        for (uint32_t i = 0; i < n_row && at + i + 1 < n; i++) {
            const float *x = logits + (size_t)i * n_vocab;
            double norm = log_norm(x, n_vocab);
            tok_t next = tok[at + i + 1];

            s->nll += norm - x[next];
            s->n++;
            if (exact) {
                const float *y = want + (size_t)i * n_vocab;
                double y_norm = log_norm(y, n_vocab), kl = kl_row(y, y_norm, x, norm, n_vocab);

                s->nll_exact += y_norm - y[next];
                s->kl += kl;
                s->kl_max = kl > s->kl_max ? kl : s->kl_max;
            }
        }
    }

    return 0;
}

static void report(const struct eval_args *a, const struct sums *s, uint32_t n_doc,
                   uint32_t n_window) {
    json_object *out = json_object_new_object();

    json_object_object_add(out, "documents", json_object_new_int64(n_doc));
    json_object_object_add(out, "windows", json_object_new_int64(n_window));
    json_object_object_add(out, "window", json_object_new_int64(a->window));
    json_object_object_add(out, "tokens", json_object_new_int64((int64_t)s->n));
    eval_add_double(out, "perplexity", exp(s->nll / (double)s->n));
    if (a->kl) {
        eval_add_double(out, "perplexity_exact", exp(s->nll_exact / (double)s->n));
        eval_add_double(out, "kl_mean", s->kl / (double)s->n);
        eval_add_double(out, "kl_max", s->kl_max);
    }
    puts(json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
    json_object_put(out);
}

static int windows(struct eval *e, struct eval_model *m, struct eval_model *exact,
                   const struct tok_list *in) {
    const struct eval_args *a = e->args;
    tok_t bos = vocab_bos(e->vocab);
    uint32_t n_doc = 0, n_window = 0;
    struct sums s = { 0 };

    for (size_t begin = 0, end; begin < in->n; begin = end) {
        end = begin;
        while (end < in->n) { /* one document more, if it fits */
            size_t doc = end + 1;

            while (doc < in->n && in->id[doc] != bos)
                doc++;
            if (doc - begin > a->window && end > begin)
                break;
            n_doc++;
            end = doc;
        }
        size_t n = end - begin < a->window ? end - begin : a->window;
        int r = window(e, m, exact, in->id + begin, n, &s);

        if (r != 0)
            return r;
        n_window++;
    }
    if (s.n == 0)
        return eval_fail(e, "%s: there is nothing to predict", a->perplexity);
    report(a, &s, n_doc, n_window);

    return 0;
}

int eval_perplexity(struct eval *e) {
    const struct eval_args *a = e->args;
    AUTO(eval_model) struct eval_model m = { 0 };
    AUTO(eval_model) struct eval_model exact = { 0 };
    AUTO(free) char *text = NULL;
    struct tok_list in = { 0 };
    size_t n = 0;
    int r;

    r = eval_read(e, a->perplexity, &text, &n);
    if (r == 0 && tok_encode(e->vocab, text, n, TOK_BOS | TOK_SPECIAL, &in) != 0)
        r = eval_fail(e, "no memory");
    if (r == 0)
        r = eval_model_open(e, a->exact, a->ctx ? a->ctx : a->window, &m);
    if (r == 0 && a->kl)
        r = eval_model_open(e, true, a->ctx ? a->ctx : a->window, &exact);
    if (r == 0)
        r = windows(e, &m, a->kl ? &exact : NULL, &in);
    tok_list_deinit(&in);

    return r;
}
