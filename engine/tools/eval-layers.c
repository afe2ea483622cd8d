/* SPDX-License-Identifier: Apache-2.0 */
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tools/eval.h"

/*
 * Layer errors: the exact model runs and leaves the input and output of every layer; the fast one
 * computes each layer alone from the same input. So errors do not add up over layers, and a layer
 * that is wrong shows itself.
 */

struct capture {
    uint32_t n_row, n_embd;
    float *x;      /* [n_layer + 1][n_row][n_embd]: input of each layer, then the last output */
    double *sq;    /* [n_layer] sum of squares of the outputs, all rows */
    double *diff;  /* [n_layer] of their differences */
    double *worst; /* [n_layer] largest relative error of a row */
};

static void capture(void *arg, uint32_t layer, const char *what, const float *x, uint32_t n_row,
                    uint32_t n_col) {
    struct capture *c = arg;
    size_t n = (size_t)n_row * n_col;

    c->n_row = n_row;
    if (strcmp(what, "embd") == 0)
        memcpy(c->x, x, n * sizeof *x);
    else if (strcmp(what, "out") == 0)
        memcpy(c->x + (layer + 1) * n, x, n * sizeof *x);
}

static void compare(struct capture *c, uint32_t layer, const float *got) {
    const float *want = c->x + (size_t)(layer + 1) * c->n_row * c->n_embd;

    for (uint32_t r = 0; r < c->n_row; r++) {
        double sq = 0, diff = 0;

        for (size_t i = (size_t)r * c->n_embd; i < (size_t)(r + 1) * c->n_embd; i++) {
            sq += (double)want[i] * want[i];
            diff += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        }
        c->sq[layer] += sq;
        c->diff[layer] += diff;
        if (sqrt(diff / sq) > c->worst[layer])
            c->worst[layer] = sqrt(diff / sq);
    }
}

static int run(struct eval *e, struct eval_model *exact, struct eval_model *fast,
               const struct tok_list *in, struct capture *c, float *y) {
    const float *logits;

    for (size_t at = 0; at < in->n; at += exact->n_batch) {
        uint32_t n = in->n - at < exact->n_batch ? (uint32_t)(in->n - at) : exact->n_batch;
        size_t size = (size_t)n * c->n_embd;
        int r = eval_step(e, exact, in->id + at, n, false, &logits);

        if (r == 0 && kvcache_reserve(fast->kv, 0, n) != 0)
            r = eval_fail(e, "the context is full");
        if (r != 0)
            return r;
        for (uint32_t i = 0; i < model_info(exact->model)->n_layer; i++) {
            memcpy(y, c->x + i * size, size * sizeof *y);
            (void)model_layer(fast->model, fast->kv, i, exact->row, n, y);
            compare(c, i, y);
        }
    }

    return 0;
}

static void report(const struct capture *c, uint32_t n_layer) {
    json_object *out = json_object_new_object(), *layers = json_object_new_array();
    double max = 0;

    for (uint32_t i = 0; i < n_layer; i++) {
        json_object *o = json_object_new_object();
        double error = sqrt(c->diff[i] / c->sq[i]);

        max = error > max ? error : max;
        json_object_object_add(o, "layer", json_object_new_int64(i));
        eval_add_double(o, "error", error);
        eval_add_double(o, "worst_row", c->worst[i]);
        json_object_array_add(layers, o);
    }
    eval_add_double(out, "max_error", max);
    json_object_object_add(out, "layers", layers);
    puts(json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
    json_object_put(out);
}

int eval_layers(struct eval *e) {
    AUTO(eval_model) struct eval_model exact = { 0 };
    AUTO(eval_model) struct eval_model fast = { 0 };
    AUTO(free) float *x = NULL;
    AUTO(free) double *sums = NULL;
    struct tok_list in = { 0 };
    int r;

    r = eval_input(e, &in);
    if (r == 0 && in.n == 0)
        r = eval_fail(e, "there is nothing to evaluate");
    if (r == 0)
        r = eval_model_open(e, true, e->args->ctx ? e->args->ctx : (uint32_t)in.n, &exact);
    if (r == 0)
        r = eval_model_open(e, false, e->args->ctx ? e->args->ctx : (uint32_t)in.n, &fast);
    if (r == 0) {
        const struct model_info *info = model_info(exact.model);
        size_t n = (size_t)exact.n_batch * info->n_embd;

        x = calloc(info->n_layer + 2, n * sizeof *x);
        sums = calloc(info->n_layer, 3 * sizeof *sums);
        if (!x || !sums) {
            r = eval_fail(e, "no memory");
        } else {
            struct capture c = { .n_embd = info->n_embd,
                                 .x = x,
                                 .sq = sums,
                                 .diff = sums + info->n_layer,
                                 .worst = sums + 2 * (size_t)info->n_layer };

            model_trace(exact.model, capture, &c);
            r = run(e, &exact, &fast, &in, &c, x + (info->n_layer + 1) * n);
            if (r == 0)
                report(&c, info->n_layer);
        }
    }
    tok_list_deinit(&in);

    return r;
}
