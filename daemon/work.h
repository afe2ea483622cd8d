/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * work - a request that the engine answers: between a channel_call and a models_job
 *
 * It lives until the engine is done with the job, with or without a client, and knows whose it is.
 * Its owner embeds it and frees it in done(). What it took goes to the account and the journal.
 *
 * Owner: the daemon thread.
 */

#include "daemon/account.h"
#include "daemon/channel.h"
#include "daemon/models.h"
#include "daemon/rpc.h"

struct work;

struct work_ops {
    /* Progress and text, only while there is a client. May be NULL. */
    void (*event)(struct work *w, const struct engine_event *ev);
    /* The client took some bytes. May be NULL. */
    void (*sent)(struct work *w);
    /* Over: answer (nobody may be there) and free. */
    void (*done)(struct work *w, const struct engine_result *result);
};

struct work {
    LIST_ENTRY(work) link; /* of the server's list */
    const struct work_ops *ops;
    struct models_job job;
    struct channel_call call;
    struct server *server;
    struct models *models;
    int stop_code; /* the error it was told to end with; 0: nobody told it */

    /* For whom; stays when the client goes. */
    struct peer peer;
    uint64_t channel; /* its number */
    enum engine_kind kind;
    enum fair_class class;
    char model[256];    /* its id: a file name at most */
    usec_t began, told; /* told: of its progress */
    struct account_row *row;
};

/**
 * work_submit() - hand the request to the engine, loading @model if need be
 * @w:          ops set, else zero
 * @model:      id, or NULL
 * @req:        borrowed for the call
 *
 * Return: RPC_LATER, then done() comes once; else an RPC_* error in @c->reply, or -errno.
 */
int work_submit(struct work *w, struct rpc_call *c, const char *model, struct engine_request *req);

/* End it; done() comes with the engine's answer, work_error() then says @code. */
void work_stop(struct work *w, int code);

/* Tell the client how far loading, or evaluating its prompt, is; not too often. */
void work_progress(struct work *w, const struct engine_event *ev);

/* "generate", ... */
const char *work_kind(const struct work *w);
/* How it ended: "stop", "length" or "deadline" of an answer, else the name of an error. */
const char *work_reason(const struct work *w, const struct engine_result *result);

/* The RPC_* error a result stands for, with its message and data in @reply but for usage; 0 when it
 * is an answer. */
int work_error(const struct work *w, const struct engine_result *result, struct rpc_reply *reply);
