/* SPDX-License-Identifier: Apache-2.0 */
#include <json-c/json.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/moe/router.h"
#include "engine/tools/eval.h"

/*
 * Layer errors: the exact model runs and leaves the input and output of every layer; the fast one
 * computes each layer alone from the same input. So errors do not add up over layers, and a layer
 * that is wrong shows itself. A row whose router was so near a tie that the fast path takes other
 * experts is another function of its input: such rows are counted and left out of "error".
 */

struct layer_error {
    double sq, diff;         /* sums over rows that route alike: outputs squared, differences */
    double sq_all, diff_all; /* over all rows */
    double worst;            /* largest relative error of a row that routes alike */
    uint32_t n_rerouted;
};

struct capture {
    uint32_t n_row, n_embd, n_used;
    float *x;          /* [n_layer + 1][n_row][n_embd]: input of each layer, then the last output */
    uint32_t *route;   /* [n_layer][n_batch][n_used] experts of the exact model, best first */
    uint32_t *route_l; /* [n_batch][n_used] of the layer the fast model computes */
    uint32_t n_batch;
    struct layer_error *error; /* [n_layer] */
};

static void take_routes(const struct capture *c, const float *prob, uint32_t n_expert,
                        uint32_t *ret) {
    float weight[512];

    for (uint32_t r = 0; r < c->n_row; r++)
        router_top(prob + (size_t)r * n_expert, n_expert, c->n_used, NULL,
                   ret + (size_t)r * c->n_used, weight);
}

static void see_exact(void *arg, uint32_t layer, const char *what, const float *x, uint32_t n_row,
                      uint32_t n_col) {
    struct capture *c = arg;
    size_t n = (size_t)n_row * n_col;

    c->n_row = n_row;
    if (strcmp(what, "embd") == 0)
        memcpy(c->x, x, n * sizeof *x);
    else if (strcmp(what, "out") == 0)
        memcpy(c->x + (layer + 1) * n, x, n * sizeof *x);
    else if (strcmp(what, "probs") == 0)
        take_routes(c, x, n_col, c->route + (size_t)layer * c->n_batch * c->n_used);
}

static void see_fast(void *arg, uint32_t layer, const char *what, const float *x, uint32_t n_row,
                     uint32_t n_col) {
    struct capture *c = arg;

    if (strcmp(what, "probs") == 0)
        take_routes(c, x, n_col, c->route_l);
}

/* Did row @r take the same experts, in whatever order? */
static bool routes_alike(const struct capture *c, uint32_t layer, uint32_t r) {
    const uint32_t *a = c->route + ((size_t)layer * c->n_batch + r) * c->n_used;
    const uint32_t *b = c->route_l + (size_t)r * c->n_used;

    for (uint32_t i = 0; i < c->n_used; i++) {
        bool found = false;

        for (uint32_t j = 0; j < c->n_used; j++)
            found = found || a[i] == b[j];
        if (!found)
            return false;
    }

    return true;
}

static void compare(struct capture *c, uint32_t layer, const float *got) {
    const float *want = c->x + (size_t)(layer + 1) * c->n_row * c->n_embd;
    struct layer_error *e = &c->error[layer];

    for (uint32_t r = 0; r < c->n_row; r++) {
        double sq = 0, diff = 0;

        for (size_t i = (size_t)r * c->n_embd; i < (size_t)(r + 1) * c->n_embd; i++) {
            sq += (double)want[i] * want[i];
            diff += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        }
        e->sq_all += sq;
        e->diff_all += diff;
        if (!routes_alike(c, layer, r)) {
            e->n_rerouted++;
            continue;
        }
        e->sq += sq;
        e->diff += diff;
        if (sqrt(diff / sq) > e->worst)
            e->worst = sqrt(diff / sq);
    }
}

/* @y: room for [n_batch][n_embd] */
static int run(struct eval *e, struct eval_model *exact, struct eval_model *fast,
               const struct tok_list *in, struct capture *c, float *y) {
    const float *logits;

    model_trace(exact->model, see_exact, c);
    model_trace(fast->model, see_fast, c);
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
            (void)model_layer(fast->model, fast->kv, i, exact->row, n, y); /* nobody stops it */
            compare(c, i, y);
        }
    }

    return 0;
}

static void report(const struct capture *c, uint32_t n_layer) {
    json_object *out = json_object_new_object(), *layers = json_object_new_array();
    double max = 0;

    for (uint32_t i = 0; i < n_layer; i++) {
        const struct layer_error *e = &c->error[i];
        json_object *o = json_object_new_object();
        double error = e->sq > 0 ? sqrt(e->diff / e->sq) : 0;

        max = error > max ? error : max;
        json_object_object_add(o, "layer", json_object_new_int64(i));
        eval_add_double(o, "error", error);
        eval_add_double(o, "worst_row", e->worst);
        eval_add_double(o, "error_all_rows", sqrt(e->diff_all / e->sq_all));
        json_object_object_add(o, "rerouted_rows", json_object_new_int64(e->n_rerouted));
        json_object_array_add(layers, o);
    }
    eval_add_double(out, "max_error", max);
    json_object_object_add(out, "layers", layers);
    puts(json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
    json_object_put(out);
}

static int measure(struct eval *e, struct eval_model *exact, struct eval_model *fast,
                   const struct tok_list *in) {
    const struct model_info *info = model_info(exact->model);
    size_t n = (size_t)exact->n_batch * info->n_embd;
    size_t n_route = (size_t)exact->n_batch * info->n_expert_used;
    AUTO(free) float *x = calloc(info->n_layer + 2, n * sizeof *x);
    AUTO(free) uint32_t *route = calloc(info->n_layer + 1, n_route * sizeof *route + 1);
    AUTO(free) struct layer_error *error = calloc(info->n_layer, sizeof *error);
    int r;

    if (!x || !route || !error)
        return eval_fail(e, "no memory");

    struct capture c = { .n_embd = info->n_embd,
                         .n_used = info->n_expert_used,
                         .n_batch = exact->n_batch,
                         .x = x,
                         .route = route,
                         .route_l = route + info->n_layer * n_route,
                         .error = error };

    r = run(e, exact, fast, in, &c, x + (info->n_layer + 1) * n);
    if (r == 0)
        report(&c, info->n_layer);

    return r;
}

int eval_layers(struct eval *e) {
    AUTO(eval_model) struct eval_model exact = { 0 };
    AUTO(eval_model) struct eval_model fast = { 0 };
    struct tok_list in = { 0 };
    uint32_t n_ctx = e->args->ctx;
    int r;

    r = eval_input(e, &in);
    if (r == 0 && in.n == 0)
        r = eval_fail(e, "there is nothing to evaluate");
    n_ctx = n_ctx ? n_ctx : (uint32_t)in.n;
    if (r == 0)
        r = eval_model_open(e, true, n_ctx, &exact);
    if (r == 0)
        r = eval_model_open(e, false, n_ctx, &fast);
    if (r == 0)
        r = measure(e, &exact, &fast, &in);
    tok_list_deinit(&in);

    return r;
}
