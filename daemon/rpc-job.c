/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-job - job.*: what is being loaded, and the requests that the engine has
 */

#include <stddef.h>
#include <stdlib.h>

#include "daemon/rpc-methods.h"
#include "daemon/server.h"
#include "daemon/work.h"

/* ---- job.wait ---- */

/* One job.wait. */
struct wait {
    struct channel_call call;
    struct task_waiter waiter;
    const struct task *task;
};

#define WAIT_OF(ptr_, field_) ((struct wait *)((char *)(ptr_)-offsetof(struct wait, field_)))

static void pack_ended(msgpack_packer *p, const struct task *t) {
    bool reason = t->reason.text[0] != '\0';

    msgpack_pack_map(p, 1u + reason);
    rpc_pack_str(p, "result", tasks_state_name(t->state));
    if (reason)
        rpc_pack_str(p, "reason", t->reason.text);
}

static void wait_progress(struct task_waiter *waiter) {
    struct wait *w = WAIT_OF(waiter, waiter);
    msgpack_sbuffer buf;
    msgpack_packer p;

    if (conn_pending(w->call.channel->conn) >= CONN_HIGH)
        return;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    wire_pack_notify(&p, "job.progress");
    msgpack_pack_map(&p, 4);
    rpc_pack_uint(&p, "id", w->task->id);
    rpc_pack_str(&p, "stage", tasks_stage_name(w->task->kind));
    rpc_pack_uint(&p, "done", w->task->done);
    rpc_pack_uint(&p, "total", w->task->total);
    channel_send(w->call.channel, &buf);
    msgpack_sbuffer_destroy(&buf);
}

static void wait_ended(struct task_waiter *waiter) {
    struct wait *w = WAIT_OF(waiter, waiter);
    struct rpc_reply reply;

    rpc_reply_init(&reply);
    pack_ended(&reply.result_pk, w->task);
    channel_answer(&w->call, &reply, 0);
    rpc_reply_deinit(&reply);
    free(w);
}

static void wait_gone(struct channel_call *call) {
    struct wait *w = WAIT_OF(call, call);

    LIST_REMOVE(&w->waiter, link);
    free(w);
}

static void wait_stop(struct channel_call *call, int code) {
    struct rpc_reply reply;

    rpc_reply_init(&reply);
    (void)why_set(&reply.why, 0, "the request was ended before the job");
    channel_answer(call, &reply, code);
    rpc_reply_deinit(&reply);
    wait_gone(call);
}

static const struct channel_call_ops wait_ops = { wait_gone, wait_stop, NULL };

static int find_task(struct rpc_call *c, struct task **ret_task) {
    uint64_t id = rpc_get_uint(c->params, "id", 0);

    *ret_task = tasks_find(c->server->tasks, id);
    return *ret_task ? 0 : why_set(&c->reply->why, RPC_NO_SUCH_JOB, "no job %ju", (uintmax_t)id);
}

int rpc_job_wait(struct rpc_call *c) {
    struct task *t;
    struct wait *w;
    int r;

    r = find_task(c, &t);
    if (r)
        return err_up(r);
    if (t->state != TASK_RUNNING) {
        pack_ended(&c->reply->result_pk, t);
        return 0;
    }

    w = calloc(1, sizeof *w);
    if (!w)
        return err_new(-ENOMEM);
    w->task = t;
    w->waiter.progress = wait_progress;
    w->waiter.ended = wait_ended;
    LIST_INSERT_HEAD(&t->waiters, &w->waiter, link);
    channel_owe(c->channel, &w->call, c->msgid, &wait_ops);
    return RPC_LATER;
}

/* ---- job.list ---- */

static bool may(const struct rpc_call *c, uid_t uid) {
    return c->channel->peer.uid == uid || channel_is_admin(c->channel);
}

/* What both kinds of jobs say. */
struct row {
    uint64_t id;
    const char *kind, *state, *unit, *model, *priority;
    uid_t uid;
    pid_t pid;
    uint64_t connection, age, done, total, n_token, kv_bytes;
};

static void pack_row(msgpack_packer *p, const struct row *r) {
    msgpack_pack_map(p, 14);
    rpc_pack_uint(p, "id", r->id);
    rpc_pack_str(p, "kind", r->kind);
    rpc_pack_str(p, "state", r->state);
    rpc_pack_uint(p, "uid", r->uid);
    rpc_pack_uint(p, "pid", (uint64_t)r->pid);
    rpc_pack_str(p, "unit", r->unit);
    rpc_pack_uint(p, "connection", r->connection);
    rpc_pack_str(p, "model", r->model);
    rpc_pack_str(p, "priority", r->priority);
    rpc_pack_uint(p, "age_us", r->age);
    rpc_pack_uint(p, "done", r->done);
    rpc_pack_uint(p, "total", r->total);
    rpc_pack_uint(p, "generated", r->n_token);
    rpc_pack_uint(p, "kv", r->kv_bytes);
}

static void pack_task(const struct task *t, msgpack_packer *p) {
    pack_row(p, &(struct row){ .id = t->id,
                               .kind = tasks_kind_name(t->kind),
                               .state = tasks_state_name(t->state),
                               .unit = "",
                               .model = t->model,
                               .priority = "default",
                               .uid = t->uid,
                               .age = clock_usec() - t->began_usec,
                               .done = t->done,
                               .total = t->total });
}

static void pack_work(const struct work *w, msgpack_packer *p) {
    static const char *const classes[] = { [FAIR_DEFAULT] = "default",
                                           [FAIR_INTERACTIVE] = "interactive",
                                           [FAIR_BACKGROUND] = "background" };
    struct engine_job at;

    models_at(w->models, &w->job, &at);
    pack_row(p, &(struct row){ .id = w->job.id,
                               .kind = work_kind(w),
                               .state = at.kv_bytes ? "running" : "waiting",
                               .unit = w->peer.unit,
                               .model = w->model,
                               .priority = classes[w->class],
                               .uid = w->peer.uid,
                               .pid = w->peer.pid,
                               .connection = w->channel,
                               .age = clock_usec() - w->began,
                               .done = at.n_done,
                               .total = at.n_prompt,
                               .n_token = at.n_token,
                               .kv_bytes = at.kv_bytes });
}

static bool is_listed(const struct rpc_call *c, const struct task *t) {
    return t->state == TASK_RUNNING && may(c, t->uid);
}

int rpc_job_list(struct rpc_call *c) {
    const struct task *first = tasks_first(c->server->tasks), *t;
    msgpack_packer *p = &c->reply->result_pk;
    const struct work *w;
    uint32_t n = 0;

    for (t = first; t; t = TAILQ_NEXT(t, link))
        n += is_listed(c, t);
    LIST_FOREACH(w, &c->server->works, link)
    n += may(c, w->peer.uid);

    msgpack_pack_map(p, 1);
    wire_pack_str(p, "jobs");
    msgpack_pack_array(p, n);
    for (t = first; t; t = TAILQ_NEXT(t, link))
        if (is_listed(c, t))
            pack_task(t, p);
    LIST_FOREACH(w, &c->server->works, link)
    if (may(c, w->peer.uid))
        pack_work(w, p);
    return 0;
}

/* ---- job.cancel ---- */

int rpc_job_cancel(struct rpc_call *c) {
    uint64_t id = rpc_get_uint(c->params, "id", 0);
    struct task *t;
    struct work *w;
    bool cancelled;
    int r;

    LIST_FOREACH(w, &c->server->works, link)
    if (w->job.id == id)
        break;
    r = w ? 0 : find_task(c, &t);
    if (r)
        return err_up(r);
    if (!may(c, w ? w->peer.uid : t->uid))
        return why_set(&c->reply->why, RPC_ACCESS_DENIED,
                       "only who started it, root and the service's own user may do this");

    cancelled = w ? !w->stop_code : tasks_cancel(t);
    if (w)
        work_stop(w, RPC_CANCELLED);
    msgpack_pack_map(&c->reply->result_pk, 1);
    rpc_pack_bool(&c->reply->result_pk, "cancelled", cancelled);
    return 0;
}
