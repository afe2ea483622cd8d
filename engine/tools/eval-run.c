/* SPDX-License-Identifier: Apache-2.0 */
#include <json-c/json.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/tools/eval.h"

enum { LOGIT_BYTES = 256 << 20 }; /* of one step, at most */

int eval_fail(struct eval *e, const char *fmt, ...) {
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(e->why.text, sizeof e->why.text, fmt, ap);
    va_end(ap);

    return EVAL_FAILED;
}

int eval_vocab(struct eval *e) {
    return vocab_new(&e->vocab, e->gguf, &e->why) == 0 ? 0 : EVAL_FAILED;
}

int eval_model_open(struct eval *e, bool exact, uint32_t n_ctx, struct eval_model *ret) {
    const struct eval_args *a = e->args;
    const struct tensor *embd = gguf_tensor(e->gguf, "token_embd.weight");
    uint64_t row_bytes = embd ? embd->ne[1] * sizeof(float) : 1;
    uint64_t fit = LOGIT_BYTES / row_bytes;
    struct kv_shape shape;
    uint32_t seq;

    *ret = (struct eval_model){ .n_batch = a->batch };
    if (ret->n_batch > fit) /* every row may be asked for its logits */
        ret->n_batch = fit ? (uint32_t)fit : 1;

    struct model_options opt = { .n_ctx = n_ctx,
                                 .n_batch = ret->n_batch,
                                 .n_out = ret->n_batch,
                                 .exact = exact,
                                 .no_pack = a->no_pack,
                                 .cache_dir = a->cache_dir };
    static const struct weights_load whole;

    if (model_new(&ret->model, e->gguf, &e->kern, e->pool, &opt, &e->why) != 0 ||
        model_load(ret->model, &whole, &e->why) != 0)
        return EVAL_FAILED;
    model_kv_shape(ret->model, 1, a->kv, &shape);
    ret->row = calloc(ret->n_batch, sizeof *ret->row);
    if (!ret->row || kvcache_new(&ret->kv, &shape) != 0 || kvcache_seq_new(ret->kv, &seq) != 0)
        return eval_fail(e, "no memory for a context of %u", shape.n_ctx);

    return 0;
}

void eval_model_close(struct eval_model *m) {
    kvcache_free(m->kv);
    model_free(m->model);
    free(m->row);
}

void eval_reset(struct eval_model *m) {
    (void)kvcache_truncate(m->kv, 0, 0); /* to nothing: can not fail */
    m->n = 0;
}

int eval_step(struct eval *e, struct eval_model *m, const tok_t *tok, uint32_t n, bool all,
              const float **ret_logits) {
    uint32_t n_vocab = model_info(m->model)->n_vocab;

    if (kvcache_reserve(m->kv, 0, n) != 0)
        return eval_fail(e, "the context of %u tokens is full", model_info(m->model)->n_ctx);
    for (uint32_t i = 0; i < n; i++) {
        if (tok[i] < 0 || (uint32_t)tok[i] >= n_vocab)
            return eval_fail(e, "token %d: the vocabulary has %u", tok[i], n_vocab);
        m->row[i] = (struct model_row){ .tok = tok[i], .pos = m->n + i, .out = all || i == n - 1 };
    }
    if (model_step(m->model, m->kv, m->row, n, NULL, ret_logits) != 0)
        return eval_fail(e, "the step failed");
    m->n += n;

    return 0;
}

int eval_read(struct eval *e, const char *path, char **ret, size_t *ret_n) {
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char *buf = NULL;
    size_t n = 0, size = 0, got = 0;

    if (!f)
        return eval_fail(e, "%s: %m", path);
    do {
        if (size - n < 65536) {
            char *p = realloc(buf, size += size / 2 + 131072);

            if (!p)
                break;
            buf = p;
        }
        n += got = fread(buf + n, 1, size - n, f);
    } while (got > 0);
    bool bad = ferror(f) || !feof(f);

    if (f != stdin)
        fclose(f);
    if (bad) {
        free(buf);
        return eval_fail(e, "%s: can not read all of it", path);
    }
    *ret = buf;
    *ret_n = n;
    return 0;
}

static int parse_ids(struct eval *e, const char *s, struct tok_list *ret) {
    for (;;) {
        char *end;
        unsigned long id = strtoul(s, &end, 10);

        if (*s < '0' || *s > '9' || id > INT32_MAX || (*end && *end != ','))
            return eval_fail(e, "--ids: \"%.20s\" is no token id", s);
        if (tok_list_push(ret, (tok_t)id) != 0)
            return eval_fail(e, "no memory");
        if (!*end)
            return 0;
        s = end + 1;
    }
}

int eval_input(struct eval *e, struct tok_list *ret) {
    const struct eval_args *a = e->args;
    unsigned flags = TOK_BOS | (a->special ? TOK_SPECIAL : 0);
    AUTO(free) char *text = NULL;
    size_t n;
    int r;

    if (a->ids)
        return parse_ids(e, a->ids, ret);
    if (a->text)
        return tok_encode(e->vocab, a->text, strlen(a->text), flags, ret) == 0
                   ? 0
                   : eval_fail(e, "no memory");
    r = eval_read(e, a->file, &text, &n);
    if (r != 0)
        return r;
    return tok_encode(e->vocab, text, n, flags, ret) == 0 ? 0 : eval_fail(e, "no memory");
}

uint32_t eval_argmax(const float *x, uint32_t n) {
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;

    return best;
}

static double now(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Evaluate the input, all logits to @file when there is one. */
static int run_prompt(struct eval *e, struct eval_model *m, const struct tok_list *in, FILE *file,
                      json_object *argmax, tok_t *ret_last) {
    uint32_t n_vocab = model_info(m->model)->n_vocab;
    const float *logits;
    int r;

    for (size_t at = 0; at < in->n;) {
        uint32_t n = in->n - at < m->n_batch ? (uint32_t)(in->n - at) : m->n_batch;

        r = eval_step(e, m, in->id + at, n, true, &logits);
        if (r != 0)
            return r;
        for (uint32_t i = 0; i < n; i++) {
            *ret_last = (tok_t)eval_argmax(logits + (size_t)i * n_vocab, n_vocab);
            json_object_array_add(argmax, json_object_new_int(*ret_last));
        }
        if (file && fwrite(logits, sizeof *logits * n_vocab, n, file) != n)
            return eval_fail(e, "%s: %m", e->args->logits);
        at += n;
    }

    return 0;
}

static int run_greedy(struct eval *e, struct eval_model *m, tok_t tok, json_object *greedy) {
    const float *logits;

    for (uint32_t i = 0; i < e->args->greedy; i++) {
        json_object_array_add(greedy, json_object_new_int(tok));
        if (i + 1 == e->args->greedy)
            break;
        int r = eval_step(e, m, &tok, 1, true, &logits);

        if (r != 0)
            return r;
        tok = (tok_t)eval_argmax(logits, model_info(m->model)->n_vocab);
    }

    return 0;
}

static void add_text(struct eval *e, json_object *out, const char *key, json_object *ids) {
    struct tok_decoder d = { .n_held = 0 };
    char buf[TOK_PIECE_MAX];
    AUTO(free) char *text = NULL;
    size_t n = 0, size;
    FILE *f = open_memstream(&text, &size);

    if (!f)
        return;
    for (size_t i = 0; i < json_object_array_length(ids); i++) {
        n = tok_decode(&d, e->vocab, json_object_get_int(json_object_array_get_idx(ids, i)), true,
                       buf);
        fwrite(buf, 1, n, f);
    }
    n = tok_decode_end(&d, buf);
    fwrite(buf, 1, n, f);
    fclose(f);
    json_object_object_add(out, key, json_object_new_string_len(text, (int)size));
}

void eval_add_double(json_object *o, const char *key, double v) {
    static char digits[] = "%.9g";
    json_object *d = json_object_new_double(v);

    json_object_set_serializer(d, json_object_double_to_json_string, digits, NULL);
    json_object_object_add(o, key, d);
}

int eval_run(struct eval *e) {
    const struct eval_args *a = e->args;
    AUTO(eval_model) struct eval_model m = { 0 };
    AUTO(eval_record_free) struct eval_record *record = NULL;
    struct tok_list in = { 0 };
    FILE *file = NULL;
    tok_t last = 0;
    int r;

    r = eval_input(e, &in);
    if (r == 0 && in.n == 0)
        r = eval_fail(e, "there is nothing to evaluate");
    if (r == 0)
        r = eval_model_open(e, a->exact, a->ctx ? a->ctx : (uint32_t)in.n + a->greedy, &m);
    if (r == 0 && a->logits && !(file = fopen(a->logits, "we")))
        r = eval_fail(e, "%s: %m", a->logits);
    if (r == 0 && a->record)
        r = eval_record_new(e, &m, &record);

    json_object *out = json_object_new_object(), *argmax = json_object_new_array();
    json_object *greedy = json_object_new_array();
    double t0 = now(), t1 = t0;

    if (r == 0)
        r = run_prompt(e, &m, &in, file, argmax, &last);
    t1 = now();
    if (r == 0)
        r = run_greedy(e, &m, last, greedy);
    if (file && fclose(file) != 0 && r == 0)
        r = eval_fail(e, "%s: %m", a->logits);
    if (r == 0 && record)
        r = eval_record_end(e, record, out);
    if (r == 0) {
        json_object_object_add(out, "n_token", json_object_new_int64((int64_t)in.n));
        json_object_object_add(out, "argmax", json_object_get(argmax));
        if (a->greedy) {
            json_object_object_add(out, "greedy", json_object_get(greedy));
            if (e->vocab)
                add_text(e, out, "text", greedy);
        }
        eval_add_double(out, "prefill_tokens_per_second", (double)in.n / (t1 - t0));
        if (a->greedy > 1)
            eval_add_double(out, "decode_tokens_per_second", (a->greedy - 1) / (now() - t1));
        puts(json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
    }
    json_object_put(greedy);
    json_object_put(argmax);
    json_object_put(out);
    tok_list_deinit(&in);

    return r;
}
