/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * params - the body of a request in OpenAI's form, as what libmoe is asked for
 *
 * Reads what anybody may have sent. A key that would change the answer in a way the service cannot
 * follow (tools, several choices, an answer in JSON) is refused; one that is unknown is passed
 * over, as the peers do.
 *
 * Source: OpenAI's API reference, "Create chat completion" and "Create completion".
 */

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/moe.h"

enum { PARAMS_STOP_MAX = 16, PARAMS_TOP_LOGPROBS_MAX = 20 };

/* Why a request is refused; what becomes the "error" object of the response. */
struct fault {
    int status; /* of HTTP */
    const char *type, *code;
    char param[40], message[300]; /* param: "": none of them */
    int64_t retry_after_ms;       /* 0: nothing said */
};

/* Fill in @f. Return: @status. */
int fault_set(struct fault *f, int status, const char *type, const char *code, const char *param,
              const char *fmt, ...) __attribute__((format(printf, 6, 7)));

struct params {
    struct moe_generate generate; /* without callbacks; borrows from here and from the body */
    bool stream, usage;           /* usage: in a stream, at its end */
    struct moe_message *messages;
    char **text; /* [n_text] contents that were put together from parts */
    size_t n_text;
    uint32_t *tokens;
    const char *stop[PARAMS_STOP_MAX];
    struct moe_map *more;
    uint64_t seed;
};

/**
 * params_read() - from a parsed body
 * @body:       any JSON; must outlive @p
 * @chat:       of /v1/chat/completions; else of /v1/completions
 *
 * Return: 0; or the status of HTTP, with @f. @p is to be deinitialised in any case.
 */
int params_read(struct params *p, json_object *body, bool chat, struct fault *f);
void params_deinit(struct params *p);
