/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-saved - session.save, session.restore, session.saved and session.forget
 *
 * A session is saved as its text, and beside it keys and values of its prompt, which the engine
 * writes and reads. Those are a matter of speed alone: without them, or with some that are not what
 * they should be, the text is evaluated again. So whatever is wrong with them is logged, no error.
 */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/rpc-methods.h"
#include "daemon/saved.h"
#include "daemon/server.h"
#include "daemon/work.h"
#include "engine/base/log.h"

static void reset_reply(struct rpc_reply *reply) {
    rpc_reply_deinit(reply);
    rpc_reply_init(reply);
}

static void on_event(struct work *w, const struct engine_event *ev) {
    if (ev->kind == ENGINE_PROGRESS)
        work_progress(w, ev);
}

/* ---- save ---- */

/* First the engine writes keys and values, if it has the model, then an errand the rest. */
struct saving {
    struct work work; /* its call is owed until all is written */
    struct errand errand;
    struct server *server;
    struct saved saved;
    struct session_blob blob;
    struct saved_draft kv;
    uint32_t n_cached; /* tokens in @kv */
    int r;             /* what the errand came to */
    struct why why;
};

static struct saving *saving_free(struct saving *s) {
    if (!s)
        return NULL;
    saved_discard(&s->kv);
    free(s->blob.p);
    free(s);
    return NULL;
}
AUTO_DEFINE(struct saving *, saving_free)

static void write_all(struct errand *errand) {
    struct saving *s = (struct saving *)((char *)errand - offsetof(struct saving, errand));

    s->r = saved_write(&s->saved, &s->blob, &s->kv, &s->why);
}

static void on_written(struct errand *errand) {
    AUTO(saving_free)
    struct saving *s = (struct saving *)((char *)errand - offsetof(struct saving, errand));
    const struct config *config = s->server->config;
    struct rpc_reply reply;

    rpc_reply_init(&reply);
    if (s->r) {
        reply.why = s->why;
    } else {
        if (config_cache_dir(config))
            saved_trim(config_cache_dir(config), config->saved_bytes);
        msgpack_pack_map(&reply.result_pk, 2);
        rpc_pack_str(&reply.result_pk, "token", s->saved.token);
        rpc_pack_uint(&reply.result_pk, "cached", saved_has_kv(&s->saved) ? s->n_cached : 0);
    }
    channel_answer(&s->work.call, &reply, s->r);
    rpc_reply_deinit(&reply);
}

/* It is soon over, and kept also when nobody waits for it any more. */
static void on_gone(struct channel_call *call) {
}

static void on_stop(struct channel_call *call, int code) {
}

static const struct channel_call_ops writing_ops = { on_gone, on_stop, NULL };

/* Hand @s to the errands. Return: RPC_LATER, or RPC_BUSY with @reply filled. */
static int begin_writing(struct saving *s, struct rpc_reply *reply) {
    s->work.call.ops = &writing_ops;
    s->errand = (struct errand){ write_all, on_written };
    if (errands_add(s->server->errands, &s->errand) == 0)
        return RPC_LATER;
    msgpack_pack_map(&reply->data_pk, 2);
    rpc_pack_uint(&reply->data_pk, "retry_after_ms", CLOCK_SECOND / 1000);
    rpc_pack_uint(&reply->data_pk, "position", ERRANDS_MAX);
    return why_set(&reply->why, RPC_BUSY, "%d sessions are being saved", ERRANDS_MAX);
}

static void on_saved(struct work *w, const struct engine_result *res) {
    AUTO(saving_free) struct saving *s = (struct saving *)w;
    struct rpc_reply reply;
    int code;

    rpc_reply_init(&reply);
    code = work_error(w, res, &reply);
    if (res->end != ENGINE_END_CANCELLED) {
        if (code) {
            log_info("session", "saved without keys and values: %s", reply.why.text);
            reset_reply(&reply);
            saved_discard(&s->kv);
        }
        s->n_cached = code ? 0 : res->n_prompt;
        code = begin_writing(s, &reply);
    }
    if (code == RPC_LATER)
        (void)take(s); /* the errand's */
    else
        channel_answer(&w->call, &reply, code);
    rpc_reply_deinit(&reply);
}

static const struct work_ops saving_ops = { on_event, NULL, on_saved };

/* Have the engine write keys and values of @t, if its model is there: else nothing was evaluated
 * that could be kept. Return: RPC_LATER; 0: it does not. */
static int save_kv(struct rpc_call *c, const struct session *t, struct saving *s) {
    struct models *m = c->server->models;
    struct engine_request req = {
        .kind = ENGINE_SAVE,
        .msg = t->state.msg,
        .n_msg = t->state.n_msg,
        .no_generation = true,
        .thinking = t->state.thinking,
        .who.class = t->state.class,
    };
    int r;

    if (!t->state.n_msg || !models_info(m) || strcmp(models_resident(m), t->state.model) != 0)
        return 0;
    r = saved_draft(s->saved.kv, &s->kv, &c->reply->why);
    req.fd = s->kv.fd;
    if (!r)
        r = work_submit(&s->work, c, t->state.model, &req);
    if (r == RPC_LATER)
        return r;

    log_info("session", "saved without keys and values: %s", c->reply->why.text);
    reset_reply(c->reply);
    saved_discard(&s->kv);
    return 0;
}

/* What of @uid has the token in @c's parameters; else a new one, if that may be absent. */
static int find_saved(struct rpc_call *c, uid_t uid, struct saved *ret) {
    const char *dir = config_cache_dir(c->server->config);
    size_t n;
    const char *token = rpc_get_str(c->params, "token", &n);

    return token ? err_up(saved_find(dir, uid, token, n, ret, &c->reply->why))
                 : err_up(saved_new(dir, uid, ret, &c->reply->why));
}

int rpc_session_save(struct rpc_call *c) {
    AUTO(saving_free) struct saving *s = calloc(1, sizeof *s);
    struct session *t = NULL;
    int r;

    if (!s)
        return err_new(-ENOMEM);
    s->work.ops = &saving_ops;
    s->server = c->server;
    s->kv.fd = -1;
    r = rpc_find_session(c, true, &t);
    if (!r)
        r = find_saved(c, t->uid, &s->saved);
    if (!r)
        r = session_pack(&t->state, &s->blob);
    if (!r)
        r = save_kv(c, t, s);
    if (!r) {
        r = begin_writing(s, c->reply);
        if (r == RPC_LATER)
            channel_owe(c->channel, &s->work.call, c->msgid, &writing_ops);
    }
    if (r == RPC_LATER)
        (void)take(s); /* the engine's, or the errand's */
    return err_up(r);
}

/* ---- restore ---- */

struct restoring {
    struct work work;
    struct session *session;
};

static struct restoring *restoring_free(struct restoring *d) {
    if (d)
        (void)session_unref(d->session);
    free(d);
    return NULL;
}
AUTO_DEFINE(struct restoring *, restoring_free)

static void say_refused(const struct session *t, const char *why) {
    log_warning("session", "conversation %ju: its keys and values are not used: %s",
                (uintmax_t)t->id, why);
}

static void on_restored(struct work *w, const struct engine_result *res) {
    AUTO(restoring_free) struct restoring *d = (struct restoring *)w;
    struct rpc_reply reply;
    int code;

    rpc_reply_init(&reply);
    code = work_error(w, res, &reply);
    if (res->end == ENGINE_END_CANCELLED) {
        session_close(d->session);
    } else {
        if (code) {
            say_refused(d->session, reply.why.text);
            reset_reply(&reply);
        }
        rpc_pack_opened(&reply.result_pk, d->session, &(uint32_t){ code ? 0 : res->n_cached });
        code = 0;
    }
    channel_answer(&w->call, &reply, code);
    rpc_reply_deinit(&reply);
}

static const struct work_ops restoring_ops = { on_event, NULL, on_restored };

/* Have the engine read keys and values of @t. Return: RPC_LATER; 0: it does not. */
static int restore_kv(struct rpc_call *c, const struct saved *saved, struct session *t) {
    AUTO(restoring_free) struct restoring *d = calloc(1, sizeof *d);
    AUTO(close) int fd = saved_open_kv(saved);
    struct engine_request req = { .kind = ENGINE_RESTORE, .who.class = t->state.class, .fd = fd };
    int r;

    if (!d || fd < 0)
        return 0;
    d->work.ops = &restoring_ops;
    d->session = session_ref(t);
    r = work_submit(&d->work, c, t->state.model, &req);
    if (r == RPC_LATER) {
        (void)take(d); /* the engine's until it is done */
        return r;
    }
    say_refused(t, c->reply->why.text);
    reset_reply(c->reply);
    return 0;
}

int rpc_session_restore(struct rpc_call *c) {
    struct why *why = &c->reply->why;
    struct session_state state = { 0 };
    struct session_blob blob = { 0 };
    struct session *t = NULL;
    struct saved saved;
    int r;

    r = find_saved(c, c->channel->peer.uid, &saved);
    if (!r)
        r = saved_read(&saved, &blob, why);
    if (!r)
        r = session_unpack(blob.p, blob.n, &state, why);
    free(blob.p);
    if (!r)
        r = rpc_open_session(c, &state, &t);
    session_state_deinit(&state);
    if (!r)
        r = restore_kv(c, &saved, t);
    if (!r)
        rpc_pack_opened(&c->reply->result_pk, t, &(uint32_t){ 0 });
    return err_up(r);
}

/* ---- forget ---- */

int rpc_session_forget(struct rpc_call *c) {
    struct saved saved;
    int r;

    r = find_saved(c, c->channel->peer.uid, &saved);
    if (r)
        return err_up(r);

    saved_remove(&saved);
    msgpack_pack_map(&c->reply->result_pk, 0);
    return 0;
}

/* ---- list ---- */

static uint64_t since(const struct timespec *then) {
    struct timespec now;
    int64_t usec;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    usec =
        (now.tv_sec - then->tv_sec) * (int64_t)CLOCK_SECOND + (now.tv_nsec - then->tv_nsec) / 1000;
    return usec > 0 ? (uint64_t)usec : 0; /* a clock may have been set back */
}

int rpc_session_saved(struct rpc_call *c) {
    msgpack_packer *p = &c->reply->result_pk;
    AUTO(free) struct saved_item *item = NULL;
    size_t n;
    int r;

    r = saved_list(config_cache_dir(c->server->config), c->channel->peer.uid, &item, &n);
    if (r)
        return err_up(r);

    msgpack_pack_map(p, 1);
    wire_pack_str(p, "saved");
    msgpack_pack_array(p, n);
    for (size_t i = 0; i < n; i++) {
        msgpack_pack_map(p, 4);
        rpc_pack_str(p, "token", item[i].token);
        rpc_pack_uint(p, "bytes", item[i].n_byte);
        rpc_pack_uint(p, "cached_bytes", item[i].n_kv_byte);
        rpc_pack_uint(p, "idle_us", since(&item[i].used));
    }
    return 0;
}
