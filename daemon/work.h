/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * work - a request that the engine answers: between a session_call and a models_job
 *
 * It lives until the engine is done with the job, with or without a client. Its owner embeds it and
 * frees it in done().
 *
 * Owner: the daemon thread.
 */

#include "daemon/models.h"
#include "daemon/rpc.h"
#include "daemon/session.h"

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
    const struct work_ops *ops;
    struct models_job job;
    struct session_call call;
    struct models *models;
    int stop_code; /* the error it was told to end with; 0: nobody told it */
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

/* The RPC_* error a result stands for, with its message and data in @reply but for usage; 0 when it
 * is an answer. */
int work_error(const struct work *w, const struct engine_result *result, struct rpc_reply *reply);
