/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-session - session.*: conversations that the service remembers; session.generate is rpc-gen's
 */

#include <stdlib.h>
#include <string.h>

#include "daemon/args.h"
#include "daemon/rpc-methods.h"
#include "daemon/server.h"
#include "daemon/work.h"
#include "engine/base/log.h"

enum { BUSY_USEC = 100000 /* when to ask again while an answer is written: nobody knows */ };

/* ---- what the methods share ---- */

int rpc_find_session(struct rpc_call *c, bool idle, struct session **ret_session) {
    uint64_t id = rpc_get_uint(c->params, "session", 0);
    struct session *t = session_find(c->server, c->channel->peer.uid, id);

    if (!t)
        return why_set(&c->reply->why, RPC_NO_SUCH_SESSION, "no session %ju", (uintmax_t)id);
    if (idle && t->work) {
        msgpack_pack_map(&c->reply->data_pk, 2);
        rpc_pack_uint(&c->reply->data_pk, "retry_after_ms", BUSY_USEC / 1000);
        rpc_pack_uint(&c->reply->data_pk, "position", 1);
        return why_set(&c->reply->why, RPC_BUSY, "session %ju is writing an answer", (uintmax_t)id);
    }
    *ret_session = t;
    return 0;
}

static int over_limit(struct rpc_call *c, int r, uint64_t limit) {
    if (r == RPC_QUOTA_EXCEEDED || r == RPC_TOO_LARGE) {
        msgpack_pack_map(&c->reply->data_pk, 1);
        rpc_pack_uint(&c->reply->data_pk, "limit", limit);
    }
    return err_up(r);
}

int rpc_check_session(struct rpc_call *c, const struct session *t,
                      const struct args_messages *more) {
    uint64_t limit;
    int r;

    r = session_check_room(t, more->msg, more->n, &limit, &c->reply->why);
    return over_limit(c, r, limit);
}

void rpc_pack_opened(msgpack_packer *p, const struct session *t, const uint32_t *n_cached) {
    const char *resident = models_resident(t->server->models);
    const struct model_info *info = models_info(t->server->models);
    bool known = info && strcmp(resident, t->state.model) == 0;

    msgpack_pack_map(p, 2u + known + (n_cached != NULL));
    rpc_pack_uint(p, "session", t->id);
    rpc_pack_str(p, "model", t->state.model);
    if (known)
        rpc_pack_uint(p, "context_window", info->n_ctx);
    if (n_cached)
        rpc_pack_uint(p, "cached", *n_cached);
}

int rpc_open_session(struct rpc_call *c, struct session_state *state,
                     struct session **ret_session) {
    uint64_t limit;
    int r;

    r = session_open(c->server, c->channel, state, ret_session, &limit, &c->reply->why);
    return over_limit(c, r, limit);
}

/* ---- open, clone, close, list ---- */

static int get_messages(struct rpc_call *c, struct session_state *s) {
    const msgpack_object *messages = wire_get(c->params, "messages");
    struct args_messages list = { 0 };
    char *text;
    int r;

    r = rpc_dup_str(c->params, "instructions", &text, &c->reply->why);
    if (!r && text)
        r = session_state_add(s, &(struct chat_message){ "system", text }, 1, &c->reply->why);
    free(text);
    if (!r && messages)
        r = args_messages(messages, &list, &c->reply->why);
    if (!r)
        r = session_state_add(s, list.msg, list.n, &c->reply->why);
    args_messages_deinit(&list);
    return over_limit(c, r, ENGINE_TEXT_MAX);
}

static int get_settings(struct rpc_call *c, struct session_state *s) {
    struct why *why = &c->reply->why;
    const struct registry_file *f;
    AUTO(free) char *id = NULL;
    int r;

    r = rpc_dup_str(c->params, "model", &id, why);
    if (r)
        return err_up(r);
    f = models_find(c->server->models, id);
    if (!f)
        return id ? why_set(why, RPC_NO_SUCH_MODEL, "no model with the id %.100s", id)
                  : why_set(why, RPC_NO_SUCH_MODEL, "there is no model");
    s->model = strdup(f->id);
    if (!s->model)
        return err_new(-ENOMEM);

    s->thinking = rpc_get_bool(c->params, "thinking");
    r = args_sample(c->params, &s->sample, why);
    if (!r && sample_check(&s->sample, why))
        r = RPC_INVALID_ARGS;
    if (!r)
        r = args_max_tokens(c->params, &s->max_tokens, why);
    if (!r)
        r = args_priority(c->params, &s->class, why);
    return err_up(r);
}

/* Longer than a year is for ever. */
static void set_idle(struct rpc_call *c, struct session *t) {
    uint64_t ms = rpc_get_uint(c->params, "idle_ms", 0);

    session_set_idle(t, ms < 365ull * 24 * 3600 * 1000 ? ms * 1000 : 0);
}

int rpc_session_open(struct rpc_call *c) {
    struct session_state state = { 0 };
    struct session *t = NULL;
    int r;

    r = get_settings(c, &state);
    if (!r)
        r = get_messages(c, &state);
    if (!r)
        r = rpc_open_session(c, &state, &t);
    if (!r)
        set_idle(c, t);
    if (!r)
        rpc_pack_opened(&c->reply->result_pk, t, NULL);
    session_state_deinit(&state);
    return err_up(r);
}

int rpc_session_clone(struct rpc_call *c) {
    struct session_state state = { 0 };
    struct session *t = NULL, *clone = NULL;
    int r;

    r = rpc_find_session(c, false, &t);
    if (!r)
        r = session_state_copy(&state, &t->state);
    if (!r)
        r = rpc_open_session(c, &state, &clone);
    if (!r) {
        session_set_idle(clone, t->idle_usec);
        msgpack_pack_map(&c->reply->result_pk, 1);
        rpc_pack_uint(&c->reply->result_pk, "session", clone->id);
    }
    session_state_deinit(&state);
    return err_up(r);
}

int rpc_session_close(struct rpc_call *c) {
    struct session *t = NULL;
    int r;

    r = rpc_find_session(c, false, &t);
    if (r)
        return err_up(r);

    session_close(t);
    msgpack_pack_map(&c->reply->result_pk, 0);
    return 0;
}

static void pack_session(msgpack_packer *p, const struct session *t,
                         const struct channel *channel) {
    msgpack_pack_map(p, 8);
    rpc_pack_uint(p, "session", t->id);
    rpc_pack_uint(p, "user", t->uid);
    rpc_pack_str(p, "model", t->state.model);
    rpc_pack_uint(p, "messages", t->state.n_msg);
    rpc_pack_uint(p, "bytes", t->state.n_byte);
    rpc_pack_uint(p, "idle_us", t->work ? 0 : clock_usec() - t->used_usec);
    rpc_pack_bool(p, "busy", t->work != NULL);
    rpc_pack_bool(p, "own", t->owner == channel);
}

int rpc_session_list(struct rpc_call *c) {
    bool all = rpc_get_bool(c->params, "all");
    msgpack_packer *p = &c->reply->result_pk;
    const struct session *t;
    uint32_t n = 0;

    if (all && !channel_is_admin(c->channel))
        return why_set(&c->reply->why, RPC_ACCESS_DENIED, "sessions of others are not shown");

    for (t = LIST_FIRST(&c->server->sessions.list); t; t = LIST_NEXT(t, link))
        n += all || t->uid == c->channel->peer.uid;
    msgpack_pack_map(p, 1);
    wire_pack_str(p, "sessions");
    msgpack_pack_array(p, n);
    for (t = LIST_FIRST(&c->server->sessions.list); t; t = LIST_NEXT(t, link))
        if (all || t->uid == c->channel->peer.uid)
            pack_session(p, t, c->channel);
    return 0;
}

/* ---- append, measure ---- */

/* A job that reads messages and says how many tokens they are. */
struct reading {
    struct work work;
    struct session *session;
    bool append;       /* evaluate them, too: the next answer finds them in the cache */
    size_t n_before;   /* append: messages there were */
    uint64_t n_change; /* and the change that it was */
};

static struct reading *reading_free(struct reading *d) {
    if (d)
        (void)session_unref(d->session);
    free(d);
    return NULL;
}
AUTO_DEFINE(struct reading *, reading_free)

static void take_back(struct reading *d) {
    if (d->append && d->session->n_change == d->n_change)
        session_state_cut(&d->session->state, d->n_before);
}

static void pack_tokens(const struct reading *d, const struct engine_result *res,
                        msgpack_packer *p) {
    const struct model_info *info = models_info(d->work.models);
    uint64_t available = info ? info->n_ctx - 1 : 0;

    msgpack_pack_map(p, d->append ? 1 : 3);
    rpc_pack_uint(p, d->append ? "context_used" : "tokens", d->append ? res->n_prompt : res->n_tok);
    if (d->append)
        return;
    rpc_pack_uint(p, "available", available);
    rpc_pack_bool(p, "fits", res->n_tok <= available);
}

static void on_event(struct work *w, const struct engine_event *ev) {
    if (ev->kind == ENGINE_PROGRESS)
        work_progress(w, ev);
}

static void on_read(struct work *w, const struct engine_result *res) {
    AUTO(reading_free) struct reading *d = (struct reading *)w;
    struct rpc_reply reply;
    int code;

    rpc_reply_init(&reply);
    code = work_error(w, res, &reply);
    if (!code && d->append)
        d->session->n_used = res->n_prompt;
    if (code)
        take_back(d);
    else
        pack_tokens(d, res, &reply.result_pk);
    channel_answer(&w->call, &reply, code);
    rpc_reply_deinit(&reply);
}

static const struct work_ops reading_ops = { on_event, NULL, on_read };

/* Have @msg [n] of @t counted, or evaluated. */
static int read_session(struct rpc_call *c, struct session *t, struct reading *own,
                        const struct chat_message *msg, size_t n) {
    AUTO(reading_free) struct reading *d = own;
    const msgpack_object *thinking = wire_get(c->params, "thinking");
    struct engine_request req = {
        .kind = d->append ? ENGINE_GENERATE : ENGINE_RENDER,
        .prefill_only = d->append,
        .msg = msg,
        .n_msg = n,
        .no_generation = d->append,
        .thinking = thinking && !d->append ? thinking->via.boolean : t->state.thinking,
        .who.class = t->state.class,
    };
    int r;

    d->work.ops = &reading_ops;
    d->session = session_ref(t);
    r = work_submit(&d->work, c, t->state.model, &req);
    if (r != RPC_LATER)
        take_back(d);
    else
        (void)take(d); /* the engine's until it is done */
    return err_up(r);
}

/* The session, and what is new; together there is something.
 * @ret_list:   to be deinitialised in any case */
static int get_reading(struct rpc_call *c, bool idle, struct session **ret_session,
                       struct args_messages *ret_list) {
    const msgpack_object *messages = wire_get(c->params, "messages");
    int r = rpc_find_session(c, idle, ret_session);

    if (!r && messages)
        r = args_messages(messages, ret_list, &c->reply->why);
    if (!r && !((*ret_session)->state.n_msg + ret_list->n))
        r = why_set(&c->reply->why, RPC_INVALID_ARGS, "messages: the session has none yet");
    return err_up(r);
}

int rpc_session_append(struct rpc_call *c) {
    AUTO(reading_free) struct reading *d = calloc(1, sizeof *d);
    struct args_messages list = { 0 };
    struct session *t = NULL;
    int r;

    if (!d)
        return err_new(-ENOMEM);
    r = get_reading(c, true, &t, &list);
    if (!r)
        r = rpc_check_session(c, t, &list);
    if (!r) {
        d->append = true;
        d->n_before = t->state.n_msg;
        r = over_limit(c, session_state_add(&t->state, list.msg, list.n, &c->reply->why),
                       ENGINE_TEXT_MAX);
    }
    args_messages_deinit(&list);
    if (r)
        return err_up(r);

    d->n_change = ++t->n_change;
    return err_up(read_session(c, t, take(d), t->state.msg, t->state.n_msg));
}

int rpc_session_measure(struct rpc_call *c) {
    AUTO(reading_free) struct reading *d = calloc(1, sizeof *d);
    AUTO(free) struct chat_message *joined = NULL;
    struct args_messages list = { 0 };
    struct session *t = NULL;
    size_t n = 0;
    int r;

    if (!d)
        return err_new(-ENOMEM);
    r = get_reading(c, false, &t, &list);
    if (!r)
        r = session_state_join(&t->state, list.msg, list.n, &joined, &n);
    if (!r)
        r = read_session(c, t, take(d), joined, n);
    args_messages_deinit(&list);
    return err_up(r);
}
