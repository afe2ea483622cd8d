/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * args - parameters that methods share: lists, and how an answer is drawn
 *
 * Each call returns 0, RPC_INVALID_ARGS with @why naming the key and element, or -ENOMEM.
 * Memory: lists are the caller's, to be freed; texts are copies that end in NUL.
 */

#include <stddef.h>

#include <msgpack.h>

#include "engine/engine.h"

/* "messages": [{role: str, content: str}]. */
struct args_messages {
    struct chat_message *msg; /* [n] */
    size_t n;
};
int args_messages(const msgpack_object *list, struct args_messages *ret, struct why *why);
void args_messages_deinit(struct args_messages *m);

/* "tokens": [uint]. */
int args_tokens(const msgpack_object *list, tok_t **ret_tok, size_t *ret_n, struct why *why);

/* "stop": [str], none empty, at most @max. */
struct args_strings {
    char **s; /* [n] */
    size_t n;
};
int args_strings(const msgpack_object *list, const char *key, size_t max, struct args_strings *ret,
                 struct why *why);
void args_strings_deinit(struct args_strings *s);

/* "temperature", "top_k", … and "seed"; what is absent stays as it is. */
int args_sample(const msgpack_object *params, struct sample_params *ret, struct why *why);
/* "max_tokens", at least 1; more than 32 bits are 0: what the context holds. Absent: as it is. */
int args_max_tokens(const msgpack_object *params, uint32_t *ret, struct why *why);
/* "priority": absent: as it is. */
int args_priority(const msgpack_object *params, enum fair_class *ret, struct why *why);
/* "overflow": "drop-oldest", "error" or absent. */
int args_overflow(const msgpack_object *params, bool *ret_drop, struct why *why);

/* "logit_bias": {uint: number}. */
int args_bias(const msgpack_object *map, struct sample_bias **ret_bias, uint32_t *ret_n,
              struct why *why);
