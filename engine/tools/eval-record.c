/* SPDX-License-Identifier: Apache-2.0 */
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/gemma4.h"
#include "engine/moe/router.h"
#include "engine/moe/routes.h"
#include "engine/tools/eval.h"

/*
 * A recording of routes, and how well each could be told in advance: the router of a layer is asked
 * about the stream while the layer before is at work. What it says then is compared with what it
 * says when its turn comes.
 */

enum guess { GUESS_ATTN, GUESS_OUT, GUESS_N }; /* when: behind its attention, behind its end */

struct gate {
    const struct tensor *w;
    const float *scale; /* [n_embd] */
};

struct eval_record {
    FILE *file;
    const struct kern *kern;
    struct gemma4_conf conf;
    uint32_t n_batch;
    struct gate *gate;          /* [n_layer] */
    float *scratch;             /* router_guess()'s */
    uint16_t *id;               /* [n_layer][n_row][k] of the step */
    uint32_t *guess[GUESS_N];   /* [2][n_batch][k] of an even and an odd layer */
    uint64_t n_asked;           /* rows, of all layers but the first */
    uint64_t *n_right[GUESS_N]; /* [k] of them whose i-th guess was right */
};

static uint32_t *guessed(const struct eval_record *c, enum guess when, uint32_t layer, uint32_t r) {
    return c->guess[when] + ((size_t)(layer & 1) * c->n_batch + r) * c->conf.n_expert_used;
}

/* Which will layer @layer choose? */
static void ask(struct eval_record *c, enum guess when, uint32_t layer, const float *x,
                uint32_t n_row) {
    const struct gate *g = &c->gate[layer];
    uint32_t d = c->conf.n_embd;

    for (uint32_t r = 0; r < n_row; r++)
        router_guess(c->kern, x + (size_t)r * d, d, c->conf.eps, g->scale, g->w->fmt, g->w->data,
                     c->conf.n_expert, c->conf.n_expert_used, c->scratch,
                     guessed(c, when, layer, r));
}

static void judge(struct eval_record *c, uint32_t layer, uint32_t r, const uint32_t *id) {
    uint32_t k = c->conf.n_expert_used;

    if (layer == 0)
        return;
    c->n_asked++;
    for (uint32_t when = 0; when < GUESS_N; when++)
        for (uint32_t i = 0; i < k * k; i++)
            c->n_right[when][i / k] += guessed(c, when, layer, r)[i / k] == id[i % k];
}

static void take_routes(struct eval_record *c, uint32_t layer, const float *prob, uint32_t n_row) {
    uint32_t n = c->conf.n_expert, k = c->conf.n_expert_used, id[512];
    float weight[512];

    for (uint32_t r = 0; r < n_row; r++) {
        router_top(prob + (size_t)r * n, n, k, NULL, id, weight);
        judge(c, layer, r, id);
        for (uint32_t i = 0; i < k; i++)
            c->id[((size_t)layer * n_row + r) * k + i] = (uint16_t)id[i];
    }
    if (layer == c->conf.n_layer - 1) { /* errors stay with the file */
        fwrite(&n_row, sizeof n_row, 1, c->file);
        fwrite(c->id, sizeof *c->id * k, (size_t)c->conf.n_layer * n_row, c->file);
    }
}

static void see(void *arg, uint32_t layer, const char *what, const float *x, uint32_t n_row,
                uint32_t n_col) {
    struct eval_record *c = arg;

    if (strcmp(what, "probs") == 0)
        take_routes(c, layer, x, n_row);
    else if (layer + 1 < c->conf.n_layer && strcmp(what, "attn") == 0)
        ask(c, GUESS_ATTN, layer + 1, x, n_row);
    else if (layer + 1 < c->conf.n_layer && strcmp(what, "out") == 0)
        ask(c, GUESS_OUT, layer + 1, x, n_row);
}

/* Of layer @layer; the model was opened, so they are there and of the right size. */
static bool find_gate(struct eval *e, struct eval_record *c, uint32_t layer) {
    char name[64];
    const struct tensor *scale;

    snprintf(name, sizeof name, "blk.%u.ffn_gate_inp.weight", layer);
    c->gate[layer].w = gguf_tensor(e->gguf, name);
    snprintf(name, sizeof name, "blk.%u.ffn_gate_inp.scale", layer);
    scale = gguf_tensor(e->gguf, name);
    c->gate[layer].scale = scale ? scale->data : NULL;
    return c->gate[layer].w && scale && scale->fmt == QUANT_F32;
}

int eval_record_new(struct eval *e, struct eval_model *m, struct eval_record **ret) {
    AUTO(eval_record_free) struct eval_record *c = calloc(1, sizeof *c);
    struct routes_head head;

    if (!c || gemma4_conf_read(&c->conf, e->gguf, NULL) != 0)
        return eval_fail(e, "no memory");

    const struct gemma4_conf *f = &c->conf;
    size_t n_id = (size_t)m->n_batch * f->n_expert_used;

    if (f->n_expert == 0)
        return eval_fail(e, "--record: the model has no experts");
    if (f->n_expert > ROUTES_EXPERT_MAX || f->n_expert_used > 512)
        return eval_fail(e, "--record: %u of %u experts are too many", f->n_expert_used,
                         f->n_expert);
    c->kern = &e->kern;
    c->n_batch = m->n_batch;
    c->gate = calloc(f->n_layer, sizeof *c->gate);
    c->id = calloc(f->n_layer * n_id, sizeof *c->id);
    c->scratch = aligned_alloc(64, router_guess_size(f->n_embd, f->n_expert, f->n_expert_used));
    for (uint32_t i = 0; i < GUESS_N; i++) {
        c->guess[i] = calloc(2 * n_id, sizeof *c->guess[i]);
        c->n_right[i] = calloc(f->n_expert_used, sizeof *c->n_right[i]);
        if (!c->guess[i] || !c->n_right[i])
            return eval_fail(e, "no memory");
    }
    if (!c->gate || !c->id || !c->scratch)
        return eval_fail(e, "no memory");
    for (uint32_t i = 0; i < f->n_layer; i++)
        if (!find_gate(e, c, i))
            return eval_fail(e, "--record: the router of layer %u is of another form", i);
    head = routes_begin(f->n_layer, f->n_expert, f->n_expert_used);
    c->file = fopen(e->args->record, "we");
    if (!c->file || fwrite(&head, sizeof head, 1, c->file) != 1)
        return eval_fail(e, "%s: %m", e->args->record);
    model_trace(m->model, see, c);
    *ret = take(c);
    return 0;
}

/* Shares of guesses that were right: of all, and of a row's first, second, ... */
static void add_guess(const struct eval_record *c, json_object *out, enum guess when,
                      const char *name, const char *name_rank) {
    double n = c->n_asked > 0 ? (double)c->n_asked : 1, all = 0;
    json_object *rank = json_object_new_array();

    for (uint32_t i = 0; i < c->conf.n_expert_used; i++) {
        double share = (double)c->n_right[when][i] / n;

        json_object_array_add(rank, json_object_new_double(share));
        all += share / c->conf.n_expert_used;
    }
    eval_add_double(out, name, all);
    json_object_object_add(out, name_rank, rank);
}

int eval_record_end(struct eval *e, struct eval_record *c, json_object *out) {
    FILE *file = take(c->file);
    bool bad = ferror(file);
    json_object *o;

    if (fclose(file) != 0 || bad)
        return eval_fail(e, "%s: can not write all of it", e->args->record);
    o = json_object_new_object();
    add_guess(c, o, GUESS_ATTN, "attn", "attn_by_rank");
    add_guess(c, o, GUESS_OUT, "out", "out_by_rank");
    json_object_object_add(out, "look_ahead", o);
    return 0;
}

struct eval_record *eval_record_free(struct eval_record *c) {
    if (!c)
        return NULL;
    if (c->file)
        fclose(c->file);
    for (uint32_t i = 0; i < GUESS_N; i++) {
        free(c->guess[i]);
        free(c->n_right[i]);
    }
    free(c->scratch);
    free(c->id);
    free(c->gate);
    free(c);
    return NULL;
}
