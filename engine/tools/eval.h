/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * eval - what the parts of moe-eval share
 *
 * Every command prints one JSON object on standard output, or on failure one sentence on standard
 * error. Commands return 0 or EVAL_FAILED; the sentence is then in the context's why.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "engine/base/auto.h"
#include "engine/hw/topo.h"
#include "engine/model/model.h"
#include "engine/text/tok.h"

enum { EVAL__OK, EVAL_FAILED };

struct json_object;

struct eval_args {
    const char *model, *cache_dir;
    const char *ids, *text, *file; /* the input, at most one of them */
    const char *logits, *record;   /* files to write */
    const char *perplexity, *tokenize, *tokenize_lines;
    uint32_t greedy, window, threads, batch, ctx;
    enum quant_fmt kv;
    bool special, kl, exact, no_pack, layers, ls, json;
};

struct eval {
    const struct eval_args *args;
    struct gguf *gguf;
    struct vocab *vocab; /* NULL until eval_vocab() */
    struct topo *topo;
    struct pool *pool;
    struct kern kern;
    struct why why;
};

/* A model with a cache for one sequence. */
struct eval_model {
    struct model *model;
    struct kvcache *kv;
    struct model_row *row; /* [n_batch] */
    uint32_t n_batch;
    pos_t n; /* positions evaluated */
};

/* Sets e->why. Return: EVAL_FAILED. */
int eval_fail(struct eval *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

int eval_vocab(struct eval *e);
int eval_model_open(struct eval *e, bool exact, uint32_t n_ctx, struct eval_model *ret);
void eval_model_close(struct eval_model *m);
static inline void auto_eval_model(struct eval_model *m) {
    eval_model_close(m);
}

/* Evaluate up to n_batch tokens. @ret_logits: f32 [n][n_vocab] when @all, else [1][n_vocab] of the
 * last; borrowed until the next call. */
int eval_step(struct eval *e, struct eval_model *m, const tok_t *tok, uint32_t n, bool all,
              const float **ret_logits);
/* Forget what was evaluated. */
void eval_reset(struct eval_model *m);

/* All of a file, or of standard input for "-". @ret: free() */
int eval_read(struct eval *e, const char *path, char **ret, size_t *ret_n);
/* The tokens of --ids, --text or --file. */
int eval_input(struct eval *e, struct tok_list *ret);
/* o[key] = v, to nine digits */
void eval_add_double(struct json_object *o, const char *key, double v);
uint32_t eval_argmax(const float *x, uint32_t n);

/* Write routes to --record while @m is at work; freed before @m. */
struct eval_record;
int eval_record_new(struct eval *e, struct eval_model *m, struct eval_record **ret);
/* The file is whole; how well routes could be guessed is added to @out. */
int eval_record_end(struct eval *e, struct eval_record *c, struct json_object *out);
struct eval_record *eval_record_free(struct eval_record *c);
AUTO_DEFINE(struct eval_record *, eval_record_free)

int eval_run(struct eval *e);        /* --ids, --text, --file */
int eval_layers(struct eval *e);     /* --layers */
int eval_perplexity(struct eval *e); /* --perplexity */
int eval_tokenize(struct eval *e);   /* --tokenize, --tokenize-lines */
int eval_ls(struct eval *e);         /* --ls */
