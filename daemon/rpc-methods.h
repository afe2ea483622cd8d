/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * rpc-methods - what the method families give to the table in rpc.c
 *
 * Return of each: 0 with the result packed, RPC_LATER, an RPC_* error with its message, or -errno.
 */

struct rpc_call;

/* rpc-server.c */
int rpc_client_hello(struct rpc_call *c);
int rpc_server_info(struct rpc_call *c);
int rpc_server_metrics(struct rpc_call *c);
int rpc_server_status(struct rpc_call *c);

/* rpc-job.c */
int rpc_job_cancel(struct rpc_call *c);
int rpc_job_list(struct rpc_call *c);
int rpc_job_wait(struct rpc_call *c);

/* rpc-model.c */
int rpc_model_availability(struct rpc_call *c);
int rpc_model_list(struct rpc_call *c);
int rpc_model_load(struct rpc_call *c);
int rpc_model_show(struct rpc_call *c);
int rpc_model_unload(struct rpc_call *c);

/* rpc-gen.c */
int rpc_generate(struct rpc_call *c);
int rpc_generate_cancel(struct rpc_call *c);

/* rpc-score.c */
int rpc_score_choices(struct rpc_call *c);

/* rpc-text.c */
int rpc_detokenize(struct rpc_call *c);
int rpc_template_apply(struct rpc_call *c);
int rpc_tokenize(struct rpc_call *c);
