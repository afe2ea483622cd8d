/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-score - score.choices: which of some given answers fits
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/args.h"
#include "daemon/rpc-methods.h"
#include "daemon/server.h"
#include "daemon/work.h"

struct score {
    struct work work;
    struct args_strings choices;
};

static struct score *score_free(struct score *s) {
    if (!s)
        return NULL;

    args_strings_deinit(&s->choices);
    free(s);
    return NULL;
}
AUTO_DEFINE(struct score *, score_free)

/* Probabilities among the choices: @logprob less the log of their sum. */
static double log_total(const double *logprob, size_t n) {
    double max = logprob[0], sum = 0;

    for (size_t i = 1; i < n; i++)
        max = logprob[i] > max ? logprob[i] : max;
    for (size_t i = 0; i < n; i++)
        sum += exp(logprob[i] - max);
    return max + log(sum);
}

static void pack_result(const struct score *s, const struct engine_result *res, msgpack_packer *p) {
    double total = log_total(res->logprob, res->n_logprob), best = 0;

    msgpack_pack_map(p, 3);
    wire_pack_str(p, "choices");
    msgpack_pack_array(p, res->n_logprob);
    for (size_t i = 0; i < res->n_logprob; i++) {
        double prob = exp(res->logprob[i] - total);

        best = prob > best ? prob : best;
        msgpack_pack_map(p, 3);
        rpc_pack_str(p, "text", s->choices.s[i]);
        rpc_pack_float(p, "logprob", res->logprob[i]);
        rpc_pack_float(p, "p", prob);
    }
    rpc_pack_float(p, "confidence", best);
    wire_pack_str(p, "usage");
    msgpack_pack_map(p, 2);
    rpc_pack_uint(p, "prompt", res->n_prompt);
    rpc_pack_uint(p, "cached", res->n_cached);
}

static void on_done(struct work *w, const struct engine_result *res) {
    AUTO(score_free) struct score *s = (struct score *)w;
    struct rpc_reply reply;
    int code;

    rpc_reply_init(&reply);
    code = work_error(w, res, &reply);
    if (!code && res->n_logprob)
        pack_result(s, res, &reply.result_pk);
    else if (!code) /* the deadline came in between */
        code = why_set(&reply.why, RPC_TIMEOUT, "no answer before the deadline");
    channel_answer(&w->call, &reply, code);
    rpc_reply_deinit(&reply);
}

static const struct work_ops score_ops = { NULL, NULL, on_done };

/* In the prompt of the use case, if there is one, {labels} are the choices, with commas. */
static int apply_use_case(struct rpc_call *c, const struct args_strings *choices,
                          struct args_messages *m, char **model) {
    AUTO(free) char *labels = NULL;
    size_t n = 1;
    char *to;

    for (size_t i = 0; i < choices->n; i++)
        n += strlen(choices->s[i]) + 2;
    labels = to = calloc(n, 1);
    if (!labels)
        return err_new(-ENOMEM);
    for (size_t i = 0; i < choices->n; i++)
        to = stpcpy(i ? stpcpy(to, ", ") : to, choices->s[i]);

    return err_up(rpc_use_case(c, labels, m, model));
}

int rpc_score_choices(struct rpc_call *c) {
    AUTO(score_free) struct score *s = calloc(1, sizeof *s);
    struct engine_request req = { .kind = ENGINE_SCORE };
    const msgpack_object *messages = wire_get(c->params, "messages");
    struct args_messages m = { 0 };
    AUTO(free) char *model = NULL;
    int r;

    if (!s)
        return err_new(-ENOMEM);

    s->work.ops = &score_ops;
    req.text = rpc_get_str(c->params, "prompt", &req.n_text);
    if ((messages != NULL) + (req.text != NULL) != 1)
        return why_set(&c->reply->why, RPC_INVALID_ARGS, "want one of messages, prompt");
    r = rpc_dup_str(c->params, "model", &model, &c->reply->why);
    if (!r)
        r = args_strings(wire_get(c->params, "choices"), "choices", ENGINE_CHOICE_MAX, &s->choices,
                         &c->reply->why);
    if (!r && messages)
        r = args_messages(messages, &m, &c->reply->why);
    if (!r)
        r = apply_use_case(c, &s->choices, &m, &model);
    if (!r) {
        req.msg = m.msg;
        req.n_msg = m.n;
        req.choice = (const char *const *)s->choices.s;
        req.n_choice = s->choices.n;
        r = work_submit(&s->work, c, model, &req);
    }
    args_messages_deinit(&m);
    if (r == RPC_LATER)
        (void)take(s); /* the engine's until it is done */
    return err_up(r);
}
