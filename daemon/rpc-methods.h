/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * rpc-methods - what the method families give to the table in rpc.c
 *
 * Return of each: 0 with the result packed, RPC_LATER, an RPC_* error with its message, or -errno.
 */

#include <stdbool.h>
#include <stdint.h>

#include <msgpack.h>

struct args_messages;
struct rpc_call;
struct session;
struct session_state;

/* rpc-server.c */
int rpc_client_hello(struct rpc_call *c);
int rpc_server_info(struct rpc_call *c);
int rpc_server_metrics(struct rpc_call *c);
int rpc_server_status(struct rpc_call *c);
int rpc_server_topology(struct rpc_call *c);
int rpc_usecase_list(struct rpc_call *c);

/* rpc-job.c */
int rpc_job_cancel(struct rpc_call *c);
int rpc_job_list(struct rpc_call *c);
int rpc_job_wait(struct rpc_call *c);

/* rpc-model.c */
int rpc_model_availability(struct rpc_call *c);
int rpc_model_import(struct rpc_call *c);
int rpc_model_list(struct rpc_call *c);
int rpc_model_pin(struct rpc_call *c);
int rpc_model_load(struct rpc_call *c);
int rpc_model_show(struct rpc_call *c);
int rpc_model_unload(struct rpc_call *c);
int rpc_model_verify(struct rpc_call *c);

/* Only for administrators. Return: 0 or RPC_ACCESS_DENIED. */
int rpc_want_admin(struct rpc_call *c);

/* rpc-memory.c */
int rpc_memory_trim(struct rpc_call *c);

/* rpc-gen.c */
int rpc_generate(struct rpc_call *c);
int rpc_generate_cancel(struct rpc_call *c);
int rpc_session_generate(struct rpc_call *c);

/* Put the use case that the params name, if they do, around messages. @labels: what its prompt may
 * call {labels}, or NULL. @model: if NULL, set to the use case's, when it has one; allocated */
int rpc_use_case(struct rpc_call *c, const char *labels, struct args_messages *m, char **model);

/* rpc-session.c */
int rpc_session_append(struct rpc_call *c);
int rpc_session_clone(struct rpc_call *c);
int rpc_session_close(struct rpc_call *c);
int rpc_session_list(struct rpc_call *c);
int rpc_session_measure(struct rpc_call *c);
int rpc_session_open(struct rpc_call *c);

/* Open a session with @state, which is the caller's to deinitialise. */
int rpc_open_session(struct rpc_call *c, struct session_state *state, struct session **ret_session);
/* {session, model, context_window?, cached?}: a new one.
 * @n_cached:   tokens it begins with that need not be evaluated; NULL: that is not said */
void rpc_pack_opened(msgpack_packer *p, const struct session *t, const uint32_t *n_cached);
/* The session that "session" names. @idle: without an exchange that runs.
 * Return: 0, RPC_NO_SUCH_SESSION, RPC_BUSY. */
int rpc_find_session(struct rpc_call *c, bool idle, struct session **ret_session);
/* May the user have @more, too? Return: 0, RPC_QUOTA_EXCEEDED, or RPC_INVALID_ARGS: a role. */
int rpc_check_session(struct rpc_call *c, const struct session *t,
                      const struct args_messages *more);

/* rpc-saved.c */
int rpc_session_forget(struct rpc_call *c);
int rpc_session_restore(struct rpc_call *c);
int rpc_session_save(struct rpc_call *c);
int rpc_session_saved(struct rpc_call *c);

/* rpc-score.c */
int rpc_score_choices(struct rpc_call *c);

/* rpc-text.c */
int rpc_detokenize(struct rpc_call *c);
int rpc_template_apply(struct rpc_call *c);
int rpc_tokenize(struct rpc_call *c);
