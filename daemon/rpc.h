/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * rpc - the methods: one table, one check of parameters, one form of answers
 *
 *   request       [0, msgid, method, [params]]      client -> daemon
 *   response      [1, msgid, error, result]         exactly one per request, always last
 *   notification  [2, method, [params]]             daemon -> client, streams between the two
 *
 * The client's msgid names the whole exchange: notifications of a generation carry it,
 * generate.cancel takes it. A method that answers at once packs its result; one that answers later
 * returns RPC_LATER and keeps a channel_call, which owes the response.
 *
 * Owner:   the daemon thread.
 * Source:  client/PROTOCOL.md; what this table says of itself must agree with it.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <msgpack.h>

#include "client/wire.h"
#include "engine/base/err.h"

struct channel;
struct server;

enum { RPC_API_LEVEL = 4, RPC_API_COMPATIBLE = 1 };

enum {
    RPC__OK,

    /* Outcomes a method may return: the error's code on the wire. */
    RPC_INVALID_ARGS = 1,
    RPC_NOT_SUPPORTED,
    RPC_NO_SUCH_MODEL,
    RPC_MODEL_UNAVAILABLE,
    RPC_INSUFFICIENT_MEMORY,
    RPC_CONTEXT_OVERFLOW,
    RPC_INVALID_SCHEMA,
    RPC_INVALID_GRAMMAR,
    RPC_BUSY,
    RPC_QUOTA_EXCEEDED,
    RPC_ACCESS_DENIED,
    RPC_CANCELLED,
    RPC_PREEMPTED,
    RPC_NO_SUCH_SESSION,
    RPC_CORRUPT,
    RPC_SHUTTING_DOWN,
    RPC_TOO_LARGE,
    RPC_TIMEOUT,
    RPC_INTERNAL,
    RPC_NO_SUCH_METHOD,
    RPC_NO_SUCH_JOB,
    RPC_ERROR_N,

    RPC_LATER, /* no response yet: a channel_call owes it */
};

/* The answer to one request while it is made. */
struct rpc_reply {
    msgpack_sbuffer result, data;
    msgpack_packer result_pk, data_pk; /* pack one map each; data only for an error, or nothing */
    struct why why;                    /* the error's message */
};
void rpc_reply_init(struct rpc_reply *r);
void rpc_reply_deinit(struct rpc_reply *r);
/* Append the response frame to @out: the result for @code 0, else the error; negative codes are
 * Internal. A frame that would break the limits of PROTOCOL.md becomes TooLarge. Resets @r's
 * buffers. Return: 0 or -ENOMEM. */
int rpc_reply_pack(struct rpc_reply *r, uint32_t msgid, int code, msgpack_sbuffer *out);

struct rpc_call {
    struct server *server;
    struct channel *channel;
    uint32_t msgid;
    const msgpack_object *params; /* a map, as the method's schema says */
    struct rpc_reply *reply;
};

/* @params is a contract, not prose: "key:type key:type?" with type s str, x bin, u uint, i int, f
 * float, b bool, a array, m map; ? marks what may be absent. It is checked before call(), so a
 * method never sees a missing or ill-typed key, nor text that is no UTF-8. Type h is no key, but a
 * descriptor that comes with the frame: the method takes it, and says so when there is none. */
struct rpc_method {
    const char *name;
    uint32_t since, deprecated_since; /* API levels; 0: not deprecated */
    const char *params;
    const char *result;
    const char *errors;   /* names, separated by spaces: beyond those that any method has */
    const char *notifies; /* likewise */
    bool notify;          /* may come as a notification */
    int (*call)(struct rpc_call *c);
};

/* NULL-terminated by .name, sorted by name. */
extern const struct rpc_method rpc_methods[];

/* "Busy" of RPC_BUSY. */
const char *rpc_error_name(int code);
/* {code, name, message, data?}. */
void rpc_pack_error(msgpack_packer *p, int code, const char *message, const msgpack_sbuffer *data);

/**
 * rpc_check() - do @params have the shape @schema asks for?
 * @params:     a map
 *
 * Return: 0, RPC_INVALID_ARGS, or RPC_NOT_SUPPORTED for a name in "must" that is not in @schema;
 * @why names the key.
 */
int rpc_check(const msgpack_object *params, const char *schema, struct why *why);

/* Answer one request or notification. Return: what the method returned, or why it was not called;
 * the result or the error's message and data are in @c->reply. */
int rpc_call(struct rpc_call *c, const struct wire_frame *frame);

/* What server.info answers; without @channel when it is 0. */
void rpc_pack_info(msgpack_packer *p, uint64_t channel);
/* The table for people. */
void rpc_describe(FILE *f);

/* ---- typed access to params; NULL or the default when absent ---- */

const char *rpc_get_str(const msgpack_object *params, const char *key, size_t *ret_n);
uint64_t rpc_get_uint(const msgpack_object *params, const char *key, uint64_t def);
bool rpc_get_bool(const msgpack_object *params, const char *key);
double rpc_number(const msgpack_object *o);
bool rpc_is_number(const msgpack_object *o);
/* A copy that ends in NUL, for ids and names; NULL when absent.
 * Return: 0, RPC_INVALID_ARGS for text with a NUL in it, or -ENOMEM. */
int rpc_dup_str(const msgpack_object *params, const char *key, char **ret_s, struct why *why);

/* Packing helpers: a key and its value. */
void rpc_pack_uint(msgpack_packer *p, const char *key, uint64_t v);
void rpc_pack_str(msgpack_packer *p, const char *key, const char *s);
void rpc_pack_strn(msgpack_packer *p, const char *key, const char *s, size_t n);
void rpc_pack_bool(msgpack_packer *p, const char *key, bool v);
void rpc_pack_float(msgpack_packer *p, const char *key, double v);
/* The data of RPC_INSUFFICIENT_MEMORY, after a MODELS_MEMORY. Return: that code. */
int rpc_pack_shortage(struct rpc_call *c);
