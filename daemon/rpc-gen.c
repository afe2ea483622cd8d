/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-gen - generate, session.generate and generate.cancel
 *
 * Flow control: text goes out as it comes while less than CONN_HIGH bytes wait in the connection.
 * Beyond that it is held and joined; at STREAM_HELD_MAX the sequence pauses until half of that is
 * taken. Others go on, but it keeps a queue's entry and its text: a reader that takes nothing for
 * "stall-timeout" seconds while others wait for a place loses its job.
 */

#include <event2/event.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/args.h"
#include "daemon/rpc-methods.h"
#include "daemon/server.h"
#include "daemon/session.h"
#include "daemon/stream.h"
#include "daemon/work.h"
#include "engine/base/log.h"

struct gen {
    struct work work;
    struct server *server;
    struct stream stream;
    struct args_strings stop;
    struct session *session;    /* the session it is an exchange of; NULL: none */
    struct args_messages asked; /* what the session gets with the answer */
    char model[256];            /* its id: a file name at most */
    bool paused;
    struct event *stall;
    uint64_t channel; /* for the log */
};

static struct gen *gen_free(struct gen *g) {
    if (!g)
        return NULL;

    if (g->stall)
        event_free(g->stall);
    stream_deinit(&g->stream);
    args_strings_deinit(&g->stop);
    args_messages_deinit(&g->asked);
    (void)session_unref(g->session);
    free(g);

    return NULL;
}
AUTO_DEFINE(struct gen *, gen_free)

static struct conn *gen_conn(const struct gen *g) {
    return g->work.call.channel->conn;
}

/* ---- flow ---- */

static void send_part(struct gen *g) {
    msgpack_sbuffer buf;
    msgpack_packer p;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    stream_pack(&g->stream, g->work.call.msgid, &p);
    channel_send(g->work.call.channel, &buf);
    msgpack_sbuffer_destroy(&buf);
}

static void set_stall(struct gen *g, usec_t usec) {
    struct timeval tv = clock_timeval(usec);

    (void)event_add(g->stall, &tv);
}

static void set_paused(struct gen *g, bool paused) {
    if (g->paused == paused)
        return;

    g->paused = paused;
    models_pause(g->work.models, &g->work.job, paused);
    log_debug("gen", "channel %ju: job %ju: %s", (uintmax_t)g->channel, (uintmax_t)g->work.job.id,
              paused ? "paused, the client does not read" : "goes on");
    if (paused)
        set_stall(g, g->server->config->stall_timeout * CLOCK_SECOND);
    else
        (void)event_del(g->stall);
}

static void pump(struct gen *g) {
    while (stream_has(&g->stream) && conn_pending(gen_conn(g)) < CONN_HIGH)
        send_part(g);

    if (stream_full(&g->stream))
        set_paused(g, true);
    else if (g->stream.n_held + conn_pending(gen_conn(g)) <= STREAM_HELD_MAX / 2)
        set_paused(g, false);
}

static void on_stall(evutil_socket_t fd, short what, void *arg) {
    struct gen *g = arg;
    usec_t limit = g->server->config->stall_timeout * CLOCK_SECOND;
    struct engine_status st;
    usec_t idle;

    if (!g->work.call.channel)
        return;
    idle = clock_usec() - conn_sent_usec(gen_conn(g));
    models_engine(g->server->models, &st);
    if (idle < limit)
        set_stall(g, limit - idle);
    else if (!st.n_queued)
        set_stall(g, CLOCK_SECOND);
    else
        work_stop(&g->work, RPC_TIMEOUT);
}

static void on_sent(struct work *w) {
    pump((struct gen *)w);
}

/* ---- events ---- */

/* {token, bytes, logprob, [top]}. Return: its elements as wire_scan() counts them. */
static uint32_t pack_token(struct gen *g, msgpack_packer *p, tok_t id, float logprob, bool top) {
    size_t n;
    const char *piece = vocab_piece(models_vocab(g->work.models), id, true, &n);

    msgpack_pack_map(p, top ? 4 : 3);
    rpc_pack_uint(p, "token", (uint64_t)id);
    wire_pack_str(p, "bytes");
    msgpack_pack_bin(p, n);
    msgpack_pack_bin_body(p, piece, n);
    rpc_pack_float(p, "logprob", (double)logprob);
    return top ? 9 : 7;
}

static uint32_t pack_logprob(struct gen *g, msgpack_packer *p, const struct sample_result *t) {
    uint32_t n = pack_token(g, p, t->id, t->logprob, true);

    wire_pack_str(p, "top");
    msgpack_pack_array(p, t->n_top);
    for (uint32_t i = 0; i < t->n_top; i++)
        n += pack_token(g, p, t->top[i].id, t->top[i].logprob, false);

    return n;
}

static void on_text(struct gen *g, const struct engine_event *ev) {
    bool logprob = g->stream.with_logprobs && ev->has_token;
    msgpack_sbuffer buf;
    msgpack_packer p;
    uint32_t n = 0;
    int r;

    if (ev->text_kind == CHAT_MARKER || (!ev->n_text && !logprob))
        return;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    if (logprob)
        n = pack_logprob(g, &p, &ev->token);
    r = stream_add(&g->stream, ev->text_kind, ev->text, ev->n_text, logprob ? &buf : NULL, n);
    msgpack_sbuffer_destroy(&buf);
    if (r)
        work_stop(&g->work, RPC_INTERNAL);
    else if (stream_too_large(&g->stream))
        work_stop(&g->work, RPC_TOO_LARGE);
    else
        pump(g);
}

static void on_event(struct work *w, const struct engine_event *ev) {
    struct gen *g = (struct gen *)w;

    if (ev->kind == ENGINE_PROGRESS)
        work_progress(w, ev);
    else if (ev->kind == ENGINE_TEXT)
        on_text(g, ev);
}

/* ---- the end ---- */

static void pack_usage(msgpack_packer *p, const struct engine_result *res) {
    wire_pack_str(p, "usage");
    msgpack_pack_map(p, 4);
    rpc_pack_uint(p, "prompt", res->n_prompt);
    rpc_pack_uint(p, "cached", res->n_cached);
    rpc_pack_uint(p, "generated", res->n_token);
    rpc_pack_uint(p, "dropped", res->n_dropped);
    wire_pack_str(p, "timings");
    msgpack_pack_map(p, 3);
    rpc_pack_uint(p, "queue_us", res->queue_usec);
    rpc_pack_uint(p, "prefill_us", res->prefill_usec);
    rpc_pack_uint(p, "decode_us", res->decode_usec);
}

static void pack_result(struct gen *g, const struct engine_result *res, msgpack_packer *p) {
    bool stopped =
        res->end == ENGINE_END_STOP && res->stop_index >= 0 && (size_t)res->stop_index < g->stop.n;

    msgpack_pack_map(p, 6 + stopped + stream_n_key(&g->stream));
    rpc_pack_str(p, "stop_reason", work_reason(&g->work, res));
    if (stopped)
        rpc_pack_str(p, "stop", g->stop.s[res->stop_index]);
    pack_usage(p, res);
    rpc_pack_uint(p, "dropped_messages", res->n_dropped_msg);
    rpc_pack_uint(p, "seed", res->seed);
    rpc_pack_str(p, "model", g->model);
    stream_pack_whole(&g->stream, p);
}

static const char *stop_message(int code) {
    switch (code) {
    case RPC_TIMEOUT:
        return "the answer was left unread while others waited";
    case RPC_TOO_LARGE:
        return "the answer does not fit into one frame: ask for a stream";
    case RPC_INTERNAL:
        return "out of memory";
    default:
        return "";
    }
}

/* The exchange is over: the session gets question and answer, or stays as it was when the answer
 * is none, or nobody is there to know of it. */
static int end_exchange(struct gen *g, const struct engine_result *res, int code, struct why *why) {
    struct session *t = g->session;
    int r;

    t->work = NULL;
    if (code || t->closed || !g->work.call.channel)
        return code;
    t->n_used = res->n_prompt + res->n_token;
    r = session_answer(t, g->asked.msg, g->asked.n, g->stream.text.data, g->stream.text.size,
                       res->n_dropped_msg, why);
    return r < 0 ? why_set(why, RPC_INTERNAL, "out of memory") : r;
}

static void on_done(struct work *w, const struct engine_result *res) {
    AUTO(gen_free) struct gen *g = (struct gen *)w;
    struct rpc_reply reply;
    int code;

    rpc_reply_init(&reply);
    (void)why_set(&reply.why, 0, "%s", stop_message(w->stop_code));
    code = work_error(w, res, &reply);
    if (g->session)
        code = end_exchange(g, res, code, &reply.why);
    if (w->call.channel)
        while (stream_has(&g->stream))
            send_part(g);
    if (!code) {
        pack_result(g, res, &reply.result_pk);
    } else if (res->end == ENGINE_END_CANCELLED || res->end == ENGINE_END_DEADLINE) {
        bool limit = code == RPC_TOO_LARGE;

        msgpack_pack_map(&reply.data_pk, limit ? 3 : 2);
        pack_usage(&reply.data_pk, res);
        if (limit)
            rpc_pack_uint(&reply.data_pk, "limit", STREAM_WHOLE_MAX);
    }
    channel_answer(&w->call, &reply, code);
    rpc_reply_deinit(&reply);
}

static const struct work_ops gen_ops = { on_event, on_sent, on_done };

/* ---- the request ---- */

/* What get_*() below fill; the request borrows from it. */
struct input {
    struct engine_request req;
    struct args_messages messages;
    struct chat_message *joined; /* of a session, and what is asked; texts borrowed */
    tok_t *tok;
    struct sample_bias *bias;
    char *model;
};

static void input_deinit(struct input *in) {
    args_messages_deinit(&in->messages);
    free(in->joined);
    free(in->tok);
    free(in->bias);
    free(in->model);
}

/* Of a use case: its model, its instructions where none stand first, its prompt around the last of
 * the messages. */
static int apply_use_case(const struct usecase *u, struct usecase_words words,
                          struct args_messages *m, char **model) {
    struct chat_message *last = &m->msg[m->n - 1], *more;
    char *text;

    if (strcmp(last->role, "user") == 0) {
        words.text = last->text;
        text = usecase_render(u, &words);
        if (!text)
            return err_new(-ENOMEM);
        free((char *)last->text);
        last->text = text;
    }
    if (u->model && !*model && !(*model = strdup(u->model)))
        return err_new(-ENOMEM);
    if (!u->instructions || chat_is_instruction(&m->msg[0]))
        return 0;

    more = realloc(m->msg, (m->n + 1) * sizeof *more);
    if (!more)
        return err_new(-ENOMEM);
    m->msg = more;
    (void)memmove(more + 1, more, m->n++ * sizeof *more);
    more[0] = (struct chat_message){ strdup("system"), strdup(u->instructions) };
    return more[0].role && more[0].text ? 0 : err_new(-ENOMEM);
}

int rpc_use_case(struct rpc_call *c, const char *labels, struct args_messages *m, char **model) {
    struct why *why = &c->reply->why;
    AUTO(free) char *id = NULL, *language = NULL;
    const struct usecase *u;
    int r;

    r = rpc_dup_str(c->params, "use_case", &id, why);
    if (!r)
        r = rpc_dup_str(c->params, "language", &language, why);
    if (r || !id)
        return err_up(r);
    u = usecase_find(&c->server->config->use_cases, id);
    if (!u)
        return why_set(why, RPC_NOT_SUPPORTED, "no use case %.100s", id);
    if (!m->n)
        return why_set(why, RPC_INVALID_ARGS, "use_case: wants messages");
    return err_up(apply_use_case(u, (struct usecase_words){ NULL, language, labels }, m, model));
}

/* What generate takes and session.generate does not. */
static int get_prompt(struct rpc_call *c, struct input *in) {
    const msgpack_object *params = c->params;
    struct why *why = &c->reply->why;
    const msgpack_object *messages = wire_get(params, "messages");
    const msgpack_object *tokens = wire_get(params, "tokens");
    struct engine_request *req = &in->req;
    int r = 0;

    req->special = rpc_get_bool(params, "special");
    req->text = rpc_get_str(params, "prompt", &req->n_text);
    r = rpc_dup_str(params, "model", &in->model, why);
    if (r)
        return err_up(r);
    if ((messages != NULL) + (tokens != NULL) + (req->text != NULL) != 1)
        return why_set(why, RPC_INVALID_ARGS, "want one of messages, prompt, tokens");
    if (messages) {
        r = args_messages(messages, &in->messages, why);
    } else if (tokens) {
        r = args_tokens(tokens, &in->tok, &req->n_tok, why);
        req->tok = in->tok;
    }
    if (!r && tokens && !req->n_tok)
        return why_set(why, RPC_INVALID_ARGS, "tokens: empty");

    if (!r)
        r = rpc_use_case(c, NULL, &in->messages, &in->model);
    req->msg = in->messages.msg;
    req->n_msg = in->messages.n;
    return err_up(r);
}

/* The session's messages and settings, and what is asked. */
static int get_exchange(struct rpc_call *c, struct input *in, struct gen *g) {
    const msgpack_object *messages = wire_get(c->params, "messages");
    const struct session_state *s = &g->session->state;
    int r = 0;

    if (messages)
        r = args_messages(messages, &g->asked, &c->reply->why);
    if (!r)
        r = rpc_check_session(c, g->session, &g->asked);
    if (!r)
        r = session_state_join(s, g->asked.msg, g->asked.n, &in->joined, &in->req.n_msg);
    if (r)
        return err_up(r);
    if (!in->req.n_msg)
        return why_set(&c->reply->why, RPC_INVALID_ARGS, "messages: the session has none yet");

    in->req.msg = in->joined;
    in->req.sample = s->sample;
    in->req.max_tokens = s->max_tokens;
    in->req.thinking = s->thinking;
    in->req.who.class = s->class;
    in->model = strdup(s->model);
    return in->model ? 0 : err_new(-ENOMEM);
}

static int get_limits(const msgpack_object *params, struct input *in, struct gen *g,
                      struct why *why) {
    uint64_t deadline = rpc_get_uint(params, "deadline_ms", 0);
    const msgpack_object *stop = wire_get(params, "stop");
    const msgpack_object *logprobs = wire_get(params, "logprobs");
    struct engine_request *req = &in->req;
    int r = 0;

    if (logprobs && logprobs->via.u64 > SAMPLE_TOP_MAX)
        return why_set(why, RPC_INVALID_ARGS, "logprobs: more than %d", SAMPLE_TOP_MAX);
    if (wire_get(params, "deadline_ms")) {
        deadline = deadline > UINT32_MAX ? UINT32_MAX : deadline; /* 49 days */
        req->deadline_usec = clock_usec() + deadline * 1000;
    }
    req->logprobs = logprobs != NULL;
    req->n_top = logprobs ? (uint32_t)logprobs->via.u64 : 0;
    r = args_max_tokens(params, &req->max_tokens, why);
    if (!r && stop)
        r = args_strings(stop, "stop", ENGINE_STOP_MAX, &g->stop, why);
    req->stop = (const char *const *)g->stop.s;
    req->n_stop = g->stop.n;
    return err_up(r);
}

static int get_sample(const msgpack_object *params, struct input *in, struct why *why) {
    const msgpack_object *bias = wire_get(params, "logit_bias");
    struct sample_params *s = &in->req.sample;
    int r;

    r = args_sample(params, s, why);
    if (!r && bias)
        r = args_bias(bias, &in->bias, &s->n_bias, why);
    s->bias = in->bias;
    return err_up(r);
}

static int get_input(struct rpc_call *c, struct input *in, struct gen *g) {
    const msgpack_object *params = c->params, *thinking = wire_get(params, "thinking");
    struct why *why = &c->reply->why;
    int r;

    in->req.kind = ENGINE_GENERATE;
    r = g->session ? get_exchange(c, in, g) : get_prompt(c, in);
    if (thinking)
        in->req.thinking = thinking->via.boolean;
    if (!r)
        r = get_sample(params, in, why);
    if (!r)
        r = get_limits(params, in, g, why);
    if (!r)
        r = args_priority(params, &in->req.who.class, why);
    if (!r)
        r = args_overflow(params, &in->req.drop_oldest, why);

    return err_up(r);
}

/* @session: the session it is an exchange of, or NULL */
static int generate(struct rpc_call *c, struct session *session) {
    AUTO(gen_free) struct gen *g = calloc(1, sizeof *g);
    struct input in = { 0 };
    int r;

    if (!g)
        return err_new(-ENOMEM);

    g->work.ops = &gen_ops;
    g->server = c->server;
    g->channel = c->channel->id;
    g->session = session ? session_ref(session) : NULL;
    stream_init(&g->stream, rpc_get_bool(c->params, "stream"), rpc_get_bool(c->params, "echo"),
                wire_get(c->params, "logprobs") != NULL);
    g->stream.keep = session != NULL;
    g->stall = evtimer_new(c->server->base, on_stall, g);
    r = g->stall ? get_input(c, &in, g) : err_new(-ENOMEM);
    if (!r)
        r = work_submit(&g->work, c, in.model, &in.req);
    input_deinit(&in);
    if (r != RPC_LATER)
        return err_up(r);

    (void)snprintf(g->model, sizeof g->model, "%s", models_resident(c->server->models));
    log_debug("gen", "channel %ju: job %ju: submitted", (uintmax_t)g->channel,
              (uintmax_t)g->work.job.id);
    if (session)
        session->work = &g->work;
    (void)take(g); /* the engine's until it is done */
    return RPC_LATER;
}

int rpc_generate(struct rpc_call *c) {
    return err_up(generate(c, NULL));
}

int rpc_session_generate(struct rpc_call *c) {
    struct session *t;
    int r;

    r = rpc_find_session(c, true, &t);
    return r ? err_up(r) : err_up(generate(c, t));
}

int rpc_generate_cancel(struct rpc_call *c) {
    uint64_t id = rpc_get_uint(c->params, "id", 0);
    struct channel_call *call = id <= UINT32_MAX ? channel_find(c->channel, (uint32_t)id) : NULL;
    bool cancelled = call != NULL;

    if (call)
        call->ops->stop(call, RPC_CANCELLED);
    msgpack_pack_map(&c->reply->result_pk, 1);
    rpc_pack_bool(&c->reply->result_pk, "cancelled", cancelled);
    return 0;
}
