/* SPDX-License-Identifier: Apache-2.0 */

#include <stddef.h>

#include "daemon/server.h"
#include "daemon/work.h"

#define OWNER(ptr_, field_) ((struct work *)((char *)(ptr_)-offsetof(struct work, field_)))

static void on_gone(struct session_call *call) {
    work_stop(OWNER(call, call), RPC_CANCELLED);
}

static void on_stop(struct session_call *call, int code) {
    work_stop(OWNER(call, call), code);
}

static void on_sent(struct session_call *call) {
    struct work *w = OWNER(call, call);

    if (w->ops->sent)
        w->ops->sent(w);
}

static const struct session_call_ops work_call_ops = { on_gone, on_stop, on_sent };

static void on_event(struct models_job *job, const struct engine_event *ev) {
    struct work *w = OWNER(job, job);

    if (ev->kind == ENGINE_DONE)
        w->ops->done(w, ev->result); /* @w is gone */
    else if (w->call.session && w->ops->event)
        w->ops->event(w, ev);
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

int work_submit(struct work *w, struct rpc_call *c, const char *model, struct engine_request *req) {
    struct models *m = c->server->models;
    struct engine_queue queue = { 0 };
    struct why *why = &c->reply->why;
    int r;

    fill_who(&req->who, &c->session->peer);
    w->models = m;
    w->job.event = on_event;
    r = models_submit(m, model, c->session->peer.uid, req, &w->job, &queue, why);
    switch (r) {
    case 0:
        session_owe(c->session, &w->call, c->msgid, &work_call_ops);
        return RPC_LATER;
    case MODELS_NONE:
        return RPC_NO_SUCH_MODEL;
    case MODELS_UNAVAILABLE:
        return RPC_MODEL_UNAVAILABLE;
    case MODELS_BUSY:
        pack_busy(c->reply, CLOCK_SECOND, models_n_job(m));
        return RPC_BUSY;
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

int work_error(const struct work *w, const struct engine_result *result, struct rpc_reply *reply) {
    struct why *why = &reply->why;

    switch (result->end) {
    case ENGINE_END_STOP:
    case ENGINE_END_LENGTH:
        return 0;
    case ENGINE_END_DEADLINE:
        return result->n_token ? 0 : why_set(why, RPC_TIMEOUT, "no answer before the deadline");
    case ENGINE_END_CANCELLED:
        if (!why->text[0])
            (void)why_set(why, 0, "%s",
                          w->stop_code == RPC_SHUTTING_DOWN ? "the service is stopping"
                                                            : "the request was cancelled");
        return w->stop_code ? w->stop_code : RPC_CANCELLED;
    case ENGINE_END_CONTEXT:
        msgpack_pack_map(&reply->data_pk, 2);
        rpc_pack_uint(&reply->data_pk, "requested", result->n_prompt);
        rpc_pack_uint(&reply->data_pk, "available", result->n_available);
        return why_set(why, RPC_CONTEXT_OVERFLOW, "the prompt has %u tokens, the context holds %u",
                       result->n_prompt, result->n_available);
    case ENGINE_END_MEMORY:
        msgpack_pack_map(&reply->data_pk, 2);
        rpc_pack_uint(&reply->data_pk, "need", result->need);
        rpc_pack_uint(&reply->data_pk, "have", result->have);
        return why_set(why, RPC_INSUFFICIENT_MEMORY,
                       "prompt and max_tokens need %ju bytes of the cache, a user may have %ju",
                       (uintmax_t)result->need, (uintmax_t)result->have);
    case ENGINE_END_INVALID:
        return why_set(why, RPC_INVALID_ARGS, "%s", result->why.text);
    case ENGINE_END_MODEL:
        return why_set(why, RPC_MODEL_UNAVAILABLE, "%s", result->why.text);
    case ENGINE_END_INTERNAL:
        return why_set(why, RPC_INTERNAL, "%s", result->why.text);
    }

    return RPC_INTERNAL;
}
