/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-text - tokenize, detokenize, template.apply
 */

#include <stdlib.h>

#include "daemon/args.h"
#include "daemon/rpc-methods.h"
#include "daemon/server.h"
#include "daemon/work.h"

enum { TEXT_MAX = 1 << 20 /* bytes that tokenize takes */ };

struct text {
    struct work work;
    enum engine_kind kind;
    bool pieces;
};

static void pack_tokens(msgpack_packer *p, const struct engine_result *res) {
    wire_pack_str(p, "tokens");
    msgpack_pack_array(p, res->n_tok);
    for (size_t i = 0; i < res->n_tok; i++)
        msgpack_pack_uint64(p, (uint64_t)res->tok[i]);
}

static void pack_pieces(msgpack_packer *p, const struct engine_result *res,
                        const struct vocab *vocab) {
    wire_pack_str(p, "pieces");
    msgpack_pack_array(p, res->n_tok);
    for (size_t i = 0; i < res->n_tok; i++) {
        size_t n;
        const char *piece = vocab_piece(vocab, res->tok[i], true, &n);

        msgpack_pack_bin(p, n);
        msgpack_pack_bin_body(p, piece, n);
    }
}

static void pack_result(const struct text *t, const struct engine_result *res, msgpack_packer *p) {
    bool text = t->kind != ENGINE_TOKENIZE, tokens = t->kind != ENGINE_DETOKENIZE;

    msgpack_pack_map(p, (size_t)text + tokens + t->pieces);
    if (text)
        rpc_pack_strn(p, "text", res->text ? res->text : "", res->n_text);
    if (tokens)
        pack_tokens(p, res);
    if (t->pieces)
        pack_pieces(p, res, models_vocab(t->work.models));
}

static void on_done(struct work *w, const struct engine_result *res) {
    struct text *t = (struct text *)w;
    struct rpc_reply reply;
    int code;

    rpc_reply_init(&reply);
    code = work_error(w, res, &reply);
    if (!code)
        pack_result(t, res, &reply.result_pk);
    channel_answer(&w->call, &reply, code);
    rpc_reply_deinit(&reply);
    free(t);
}

static const struct work_ops text_ops = { NULL, NULL, on_done };

static int submit(struct rpc_call *c, struct engine_request *req, bool pieces) {
    AUTO(free) struct text *t = calloc(1, sizeof *t);
    int r;

    if (!t)
        return err_new(-ENOMEM);

    t->work.ops = &text_ops;
    t->kind = req->kind;
    t->pieces = pieces;
    r = work_submit(&t->work, c, NULL, req);
    if (r == RPC_LATER)
        (void)take(t); /* the engine's until it is done */
    return err_up(r);
}

int rpc_tokenize(struct rpc_call *c) {
    struct engine_request req = { .kind = ENGINE_TOKENIZE };

    req.text = rpc_get_str(c->params, "text", &req.n_text);
    req.special = rpc_get_bool(c->params, "special");
    req.no_bos = !rpc_get_bool(c->params, "bos");
    if (req.n_text > TEXT_MAX) {
        msgpack_pack_map(&c->reply->data_pk, 1);
        rpc_pack_uint(&c->reply->data_pk, "limit", TEXT_MAX);
        return why_set(&c->reply->why, RPC_TOO_LARGE, "text: more than %d bytes", TEXT_MAX);
    }

    return err_up(submit(c, &req, rpc_get_bool(c->params, "pieces")));
}

int rpc_detokenize(struct rpc_call *c) {
    struct engine_request req = { .kind = ENGINE_DETOKENIZE };
    AUTO(free) tok_t *tok = NULL;
    int r;

    r = args_tokens(wire_get(c->params, "tokens"), &tok, &req.n_tok, &c->reply->why);
    if (r)
        return err_up(r);

    req.tok = tok;
    req.special = rpc_get_bool(c->params, "special");
    return err_up(submit(c, &req, false));
}

int rpc_template_apply(struct rpc_call *c) {
    const msgpack_object *generation = wire_get(c->params, "generation");
    struct engine_request req = { .kind = ENGINE_RENDER };
    struct args_messages messages = { 0 };
    int r;

    r = args_messages(wire_get(c->params, "messages"), &messages, &c->reply->why);
    if (!r) {
        req.msg = messages.msg;
        req.n_msg = messages.n;
        req.thinking = rpc_get_bool(c->params, "thinking");
        req.no_generation = generation && !generation->via.boolean;
        r = submit(c, &req, false);
    }

    args_messages_deinit(&messages);
    return err_up(r);
}
