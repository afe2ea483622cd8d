/* SPDX-License-Identifier: Apache-2.0 */

#include <stddef.h>
#include <stdio.h>

#include "daemon/journal.h"
#include "daemon/server.h"
#include "daemon/work.h"

enum { WORK_PROGRESS_USEC = 200000 /* between two generate.progress */ };

#define OWNER(ptr_, field_) ((struct work *)((char *)(ptr_)-offsetof(struct work, field_)))

static void on_gone(struct channel_call *call) {
    work_stop(OWNER(call, call), RPC_CANCELLED);
}

static void on_stop(struct channel_call *call, int code) {
    work_stop(OWNER(call, call), code);
}

static void on_sent(struct channel_call *call) {
    struct work *w = OWNER(call, call);

    if (w->ops->sent)
        w->ops->sent(w);
}

static const struct channel_call_ops work_call_ops = { on_gone, on_stop, on_sent };

static void close_account(struct work *w, const struct engine_result *result) {
    const struct journal_request record = { .channel = w->channel,
                                            .job = w->job.id,
                                            .uid = w->peer.uid,
                                            .unit = w->peer.unit,
                                            .model = w->model,
                                            .kind = work_kind(w),
                                            .result = work_reason(w, result),
                                            .numbers = result };

    LIST_REMOVE(w, link);
    account_end(w->server->account, w->row, result);
    journal_request(&record);
}

static void on_event(struct models_job *job, const struct engine_event *ev) {
    struct work *w = OWNER(job, job);

    if (ev->kind == ENGINE_DONE) {
        close_account(w, ev->result);
        w->ops->done(w, ev->result); /* @w is gone */
    } else if (w->call.channel && w->ops->event) {
        w->ops->event(w, ev);
    }
}

void work_progress(struct work *w, const struct engine_event *ev) {
    struct channel *channel = w->call.channel;
    usec_t now = clock_usec();
    msgpack_sbuffer buf;
    msgpack_packer p;

    if (now - w->told < WORK_PROGRESS_USEC || conn_pending(channel->conn) >= CONN_HIGH)
        return;

    w->told = now;
    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    wire_pack_notify(&p, "generate.progress");
    msgpack_pack_map(&p, 4);
    rpc_pack_uint(&p, "id", w->call.msgid);
    rpc_pack_str(&p, "stage", ev->job ? "prefill" : "loading");
    rpc_pack_uint(&p, "done", ev->done);
    rpc_pack_uint(&p, "total", ev->total);
    channel_send(channel, &buf);
    msgpack_sbuffer_destroy(&buf);
}

void work_stop(struct work *w, int code) {
    if (w->stop_code)
        return;

    w->stop_code = code;
    models_cancel(w->models, &w->job);
}

/* {retry_after_ms, position}: of the queue, or of the model that is in the way. */
static void pack_busy(struct rpc_reply *reply, uint64_t retry_usec, uint32_t position) {
    msgpack_pack_map(&reply->data_pk, 2);
    rpc_pack_uint(&reply->data_pk, "retry_after_ms", (retry_usec + 999) / 1000);
    rpc_pack_uint(&reply->data_pk, "position", position);
}

/* Who it is for; what a background slice asks for is background. */
static void fill_who(struct fair_who *who, const struct peer *peer) {
    *who = (struct fair_who){ .class = peer->background ? FAIR_BACKGROUND : who->class,
                              .uid = peer->uid,
                              .uid_weight = peer->uid_weight,
                              .app = peer->app,
                              .app_weight = peer->unit_weight };
}

static void open_account(struct work *w, struct rpc_call *c, const struct engine_request *req) {
    struct server *s = c->server;

    w->peer = c->channel->peer;
    w->channel = c->channel->id;
    w->kind = req->kind;
    w->class = req->who.class;
    w->began = clock_usec();
    w->row = account_begin(s->account, w->peer.uid, w->peer.unit);
    (void)snprintf(w->model, sizeof w->model, "%s", models_resident(s->models));
    LIST_INSERT_HEAD(&s->works, w, link);
    channel_owe(c->channel, &w->call, c->msgid, &work_call_ops);
}

int work_submit(struct work *w, struct rpc_call *c, const char *model, struct engine_request *req) {
    struct models *m = c->server->models;
    struct engine_queue queue = { 0 };
    struct why *why = &c->reply->why;
    int r;

    fill_who(&req->who, &c->channel->peer);
    w->server = c->server;
    w->models = m;
    w->job.event = on_event;
    r = models_submit(m, model, c->channel->peer.uid, req, &w->job, &queue, why);
    if (r)
        account_refuse(c->server->account, c->channel->peer.uid, c->channel->peer.unit);
    switch (r) {
    case 0:
        open_account(w, c, req);
        return RPC_LATER;
    case MODELS_NONE:
        return RPC_NO_SUCH_MODEL;
    case MODELS_UNAVAILABLE:
        return RPC_MODEL_UNAVAILABLE;
    case MODELS_BUSY:
        pack_busy(c->reply, CLOCK_SECOND, models_n_job(m));
        return RPC_BUSY;
    case MODELS_MEMORY:
        return rpc_pack_shortage(c);
    case MODELS_QUEUE_FULL:
        pack_busy(c->reply, queue.retry_usec, queue.position);
        return RPC_BUSY;
    case MODELS_TOO_LARGE:
        msgpack_pack_map(&c->reply->data_pk, 1);
        rpc_pack_uint(&c->reply->data_pk, "limit", ENGINE_TEXT_MAX);
        return RPC_TOO_LARGE;
    case MODELS_BAD:
        return RPC_INVALID_ARGS;
    default:
        return err_fold(r);
    }
}

const char *work_kind(const struct work *w) {
    static const char *const names[] = {
        [ENGINE_GENERATE] = "generate",       [ENGINE_SAVE] = "session.save",
        [ENGINE_RESTORE] = "session.restore", [ENGINE_SCORE] = "score.choices",
        [ENGINE_TOKENIZE] = "tokenize",       [ENGINE_DETOKENIZE] = "detokenize",
        [ENGINE_RENDER] = "template.apply"
    };

    return names[w->kind];
}

/* 0: an answer. */
static int code_of(const struct work *w, const struct engine_result *result) {
    static const int codes[] = {
        [ENGINE_END_STOP] = 0,
        [ENGINE_END_LENGTH] = 0,
        [ENGINE_END_DEADLINE] = RPC_TIMEOUT,
        [ENGINE_END_CANCELLED] = RPC_CANCELLED,
        [ENGINE_END_CONTEXT] = RPC_CONTEXT_OVERFLOW,
        [ENGINE_END_MEMORY] = RPC_INSUFFICIENT_MEMORY,
        [ENGINE_END_INVALID] = RPC_INVALID_ARGS,
        [ENGINE_END_CORRUPT] = RPC_CORRUPT,
        [ENGINE_END_MODEL] = RPC_MODEL_UNAVAILABLE,
        [ENGINE_END_INTERNAL] = RPC_INTERNAL,
    };

    if (result->end == ENGINE_END_DEADLINE && result->n_token)
        return 0;
    if (result->end == ENGINE_END_CANCELLED && w->stop_code)
        return w->stop_code;
    return codes[result->end];
}

const char *work_reason(const struct work *w, const struct engine_result *result) {
    int code = code_of(w, result);

    return code                                 ? rpc_error_name(code)
           : result->end == ENGINE_END_LENGTH   ? "length"
           : result->end == ENGINE_END_DEADLINE ? "deadline"
                                                : "stop";
}

int work_error(const struct work *w, const struct engine_result *result, struct rpc_reply *reply) {
    int code = code_of(w, result);
    struct why *why = &reply->why;

    if (!code)
        return 0;
    switch (result->end) {
    case ENGINE_END_DEADLINE:
        return why_set(why, code, "no answer before the deadline");
    case ENGINE_END_CANCELLED:
        return why->text[0]                ? code
               : code == RPC_SHUTTING_DOWN ? why_set(why, code, "the service is stopping")
                                           : why_set(why, code, "the request was cancelled");
    case ENGINE_END_CONTEXT:
        msgpack_pack_map(&reply->data_pk, 2);
        rpc_pack_uint(&reply->data_pk, "requested", result->n_prompt);
        rpc_pack_uint(&reply->data_pk, "available", result->n_available);
        return why_set(why, code, "the prompt has %u tokens, the context holds %u",
                       result->n_prompt, result->n_available);
    case ENGINE_END_MEMORY:
        msgpack_pack_map(&reply->data_pk, 2);
        rpc_pack_uint(&reply->data_pk, "need", result->need);
        rpc_pack_uint(&reply->data_pk, "have", result->have);
        return why_set(why, code,
                       "prompt and max_tokens need %ju bytes of the cache, a user may have %ju",
                       (uintmax_t)result->need, (uintmax_t)result->have);
    default:
        return why_set(why, code, "%s", result->why.text);
    }
}
