/* SPDX-License-Identifier: Apache-2.0 */

#include <stdio.h>
#include <string.h>

#include "client/openai/bridge.h"

static void add(json_object *o, const char *key, json_object *v) {
    (void)json_object_object_add(o, key, v);
}

static void add_str(json_object *o, const char *key, const char *s) {
    add(o, key, s ? json_object_new_string(s) : NULL);
}

static void add_int(json_object *o, const char *key, int64_t v) {
    add(o, key, json_object_new_int64(v));
}

/* Of an answer, which may have any characters. */
static json_object *text_n(const char *s, size_t n) {
    return json_object_new_string_len(s ? s : "", s ? (int)n : 0);
}

/* ---- errors ---- */

json_object *reply_error(const struct fault *f) {
    json_object *o = json_object_new_object(), *e = json_object_new_object();

    add_str(e, "message", f->message);
    add_str(e, "type", f->type);
    add_str(e, "param", *f->param ? f->param : NULL);
    add_str(e, "code", f->code);
    add(o, "error", e);
    return o;
}

int reply_fault(const struct moe_error *e, struct fault *f) {
    static const struct {
        int code, status;
        const char *type, *text;
    } rows[] = {
        { MOE_INVALID_ARGS, 400, "invalid_request_error", "invalid_value" },
        { MOE_NOT_SUPPORTED, 400, "invalid_request_error", "unsupported_value" },
        { MOE_NO_SUCH_MODEL, 404, "invalid_request_error", "model_not_found" },
        { MOE_MODEL_UNAVAILABLE, 503, "service_unavailable_error", "model_unavailable" },
        { MOE_INSUFFICIENT_MEMORY, 503, "service_unavailable_error", "insufficient_memory" },
        { MOE_CONTEXT_OVERFLOW, 400, "invalid_request_error", "context_length_exceeded" },
        { MOE_BUSY, 429, "rate_limit_error", "busy" },
        { MOE_QUOTA_EXCEEDED, 429, "rate_limit_error", "quota_exceeded" },
        { MOE_ACCESS_DENIED, 403, "permission_error", "access_denied" },
        { MOE_CANCELLED, 503, "service_unavailable_error", "cancelled" },
        { MOE_PREEMPTED, 503, "service_unavailable_error", "preempted" },
        { MOE_SHUTTING_DOWN, 503, "service_unavailable_error", "shutting_down" },
        { MOE_TOO_LARGE, 413, "invalid_request_error", "too_large" },
        { MOE_TIMEOUT, 504, "service_unavailable_error", "timeout" },
        { MOE_DISCONNECTED, 503, "service_unavailable_error", "disconnected" },
        { MOE_NO_ANSWER, 504, "service_unavailable_error", "timeout" },
    };
    size_t i = 0;

    while (i < sizeof rows / sizeof *rows && rows[i].code != e->code)
        i++;
    if (i == sizeof rows / sizeof *rows)
        return fault_set(f, 500, "server_error", NULL, NULL, "%s", e->message);
    (void)fault_set(f, rows[i].status, rows[i].type, rows[i].text, NULL, "%s", e->message);
    if (e->code == MOE_NO_SUCH_MODEL)
        (void)strcpy(f->param, "model");
    f->retry_after_ms = e->retry_after_ms > 0 ? e->retry_after_ms : 0;
    return f->status;
}

/* ---- log-probabilities ---- */

/* Bytes of a token as text: what is no UTF-8 alone shows as U+FFFD, as OpenAI's do. */
static json_object *token_text(const struct moe_value *bytes) {
    const unsigned char *p = moe_bin(bytes);
    size_t n = moe_size(bytes), at = 0, to = 0;
    char text[1024];

    while (at < n && to + 4 < sizeof text) {
        size_t k = p[at] < 0x80                    ? 1
                   : p[at] >= 0xc2 && p[at] < 0xe0 ? 2
                   : p[at] >= 0xe0 && p[at] < 0xf0 ? 3
                   : p[at] >= 0xf0 && p[at] < 0xf5 ? 4
                                                   : 0;
        size_t i = 1;

        while (i < k && at + i < n && (p[at + i] & 0xc0) == 0x80)
            i++;
        if (k && i == k) {
            (void)memcpy(text + to, p + at, k);
            at += k, to += k;
        } else {
            (void)memcpy(text + to, "\xef\xbf\xbd", 3);
            at += 1, to += 3;
        }
    }
    return json_object_new_string_len(text, (int)to);
}

static json_object *token_bytes(const struct moe_value *bytes) {
    const unsigned char *p = moe_bin(bytes);
    json_object *a = json_object_new_array();

    for (size_t i = 0; i < moe_size(bytes); i++)
        (void)json_object_array_add(a, json_object_new_int(p[i]));
    return a;
}

static json_object *token(const struct moe_value *v) {
    json_object *o = json_object_new_object();

    add(o, "token", token_text(moe_get(v, "bytes")));
    add(o, "logprob", json_object_new_double(moe_float(moe_get(v, "logprob"))));
    add(o, "bytes", token_bytes(moe_get(v, "bytes")));
    return o;
}

/* {content: [{token, logprob, bytes, top_logprobs}]} */
static json_object *logprobs_chat(const struct moe_value *list) {
    json_object *o = json_object_new_object(), *content = json_object_new_array();

    for (size_t i = 0; i < moe_size(list); i++) {
        const struct moe_value *top = moe_get(moe_at(list, i), "top");
        json_object *t = token(moe_at(list, i)), *others = json_object_new_array();

        for (size_t k = 0; k < moe_size(top); k++)
            (void)json_object_array_add(others, token(moe_at(top, k)));
        add(t, "top_logprobs", others);
        (void)json_object_array_add(content, t);
    }
    add(o, "content", content);
    return o;
}

/* The older form: {tokens, token_logprobs, top_logprobs: [{text: logprob}]} */
static json_object *logprobs_text(const struct moe_value *list) {
    json_object *o = json_object_new_object(), *tokens = json_object_new_array();
    json_object *own = json_object_new_array(), *tops = json_object_new_array();

    for (size_t i = 0; i < moe_size(list); i++) {
        const struct moe_value *v = moe_at(list, i), *top = moe_get(v, "top");
        json_object *others = json_object_new_object();

        (void)json_object_array_add(tokens, token_text(moe_get(v, "bytes")));
        (void)json_object_array_add(own, json_object_new_double(moe_float(moe_get(v, "logprob"))));
        for (size_t k = 0; k < moe_size(top); k++) {
            json_object *text = token_text(moe_get(moe_at(top, k), "bytes"));

            add(others, json_object_get_string(text),
                json_object_new_double(moe_float(moe_get(moe_at(top, k), "logprob"))));
            (void)json_object_put(text);
        }
        (void)json_object_array_add(tops, others);
    }
    add(o, "tokens", tokens);
    add(o, "token_logprobs", own);
    add(o, "top_logprobs", tops);
    return o;
}

static json_object *logprobs(const struct reply *r, const struct moe_value *list) {
    if (!list || moe_type(list) != MOE_ARRAY)
        return NULL;
    return r->chat ? logprobs_chat(list) : logprobs_text(list);
}

/* ---- answers ---- */

static json_object *head(const struct reply *r, const char *model, bool piece) {
    json_object *o = json_object_new_object();

    add_str(o, "id", r->id);
    add_str(o, "object",
            r->chat ? piece ? "chat.completion.chunk" : "chat.completion" : "text_completion");
    add_int(o, "created", r->created);
    add_str(o, "model", model);
    return o;
}

/* The only choice. @said: an object in a chat, else a string. */
static json_object *choice(const struct reply *r, bool piece, json_object *said,
                           const struct moe_value *list, const char *finish) {
    json_object *o = json_object_new_object(), *a = json_object_new_array();

    add_int(o, "index", 0);
    add(o, !r->chat ? "text" : piece ? "delta" : "message", said);
    add(o, "logprobs", logprobs(r, list));
    add_str(o, "finish_reason", finish);
    (void)json_object_array_add(a, o);
    return a;
}

/* A deadline cuts an answer short just as a limit does. */
static const char *finish_of(const struct moe_result *result) {
    return strcmp(result->stop_reason, "stop") == 0 ? "stop" : "length";
}

static json_object *usage(const struct moe_result *result) {
    json_object *o = json_object_new_object(), *prompt = json_object_new_object();

    add_int(o, "prompt_tokens", (int64_t)result->n_prompt);
    add_int(o, "completion_tokens", (int64_t)result->n_generated);
    add_int(o, "total_tokens", (int64_t)(result->n_prompt + result->n_generated));
    add_int(prompt, "cached_tokens", (int64_t)result->n_cached);
    add(o, "prompt_tokens_details", prompt);
    return o;
}

json_object *reply_whole(const struct reply *r, const struct moe_result *result) {
    json_object *o = head(r, result->model, false), *said = text_n(result->text, result->n_text);

    if (r->chat) {
        json_object *text = said;

        said = json_object_new_object();
        add_str(said, "role", "assistant");
        add(said, "content", text);
        if (result->n_thought)
            add(said, "reasoning_content", text_n(result->thought, result->n_thought));
        add(said, "refusal", NULL);
    }
    add(o, "choices", choice(r, false, said, result->logprobs, finish_of(result)));
    add(o, "usage", usage(result));
    return o;
}

json_object *reply_begin(const struct reply *r, const char *model) {
    json_object *o = head(r, model, true), *said = json_object_new_object();

    add_str(said, "role", "assistant");
    add_str(said, "content", "");
    add(o, "choices", choice(r, true, said, NULL, NULL));
    return o;
}

json_object *reply_delta(const struct reply *r, const char *model, const struct moe_delta *d) {
    json_object *o = head(r, model, true), *said = text_n(d->text, d->n_text);

    if (r->chat) {
        json_object *text = said;

        said = json_object_new_object();
        add(said, d->thought ? "reasoning_content" : "content", text);
    }
    add(o, "choices", choice(r, true, said, d->logprobs, NULL));
    return o;
}

json_object *reply_end(const struct reply *r, const struct moe_result *result) {
    json_object *o = head(r, result->model, true);
    json_object *said = r->chat ? json_object_new_object() : text_n(NULL, 0);

    add(o, "choices", choice(r, true, said, NULL, finish_of(result)));
    return o;
}

json_object *reply_usage(const struct reply *r, const struct moe_result *result) {
    json_object *o = head(r, result->model, true);

    add(o, "choices", json_object_new_array());
    add(o, "usage", usage(result));
    return o;
}

/* ---- models, health ---- */

static json_object *model(const char *id) {
    json_object *o = json_object_new_object();

    add_str(o, "id", id);
    add_str(o, "object", "model");
    add_int(o, "created", 0);
    add_str(o, "owned_by", "moed");
    return o;
}

json_object *reply_models(const struct moe_value *result, const char *id, struct fault *f) {
    const struct moe_value *list = moe_get(result, "models");
    json_object *o, *data;

    if (id) {
        for (size_t i = 0; i < moe_size(list); i++)
            if (strcmp(moe_str(moe_get(moe_at(list, i), "id")), id) == 0)
                return model(id);
        (void)fault_set(f, 404, "invalid_request_error", "model_not_found", "model",
                        "no model %.100s", id);
        return NULL;
    }
    o = json_object_new_object();
    data = json_object_new_array();
    for (size_t i = 0; i < moe_size(list); i++)
        (void)json_object_array_add(data, model(moe_str(moe_get(moe_at(list, i), "id"))));
    add_str(o, "object", "list");
    add(o, "data", data);
    return o;
}

json_object *reply_health(const struct moe_value *result, const char *arg, struct fault *f) {
    const char *state = moe_str(moe_get(result, "state")),
               *reason = moe_str(moe_get(result, "reason"));
    json_object *o;

    if (state && (strcmp(state, "failed") == 0 || strcmp(state, "stopping") == 0)) {
        (void)fault_set(f, 503, "service_unavailable_error", state, NULL, "%s",
                        reason ? reason : "moed is stopping");
        return NULL;
    }
    o = json_object_new_object();
    add_str(o, "status", "ok");
    add_str(o, "state", state);
    add_str(o, "model", moe_str(moe_get(result, "model")));
    if (moe_get(result, "progress"))
        add(o, "progress", json_object_new_double(moe_float(moe_get(result, "progress"))));
    return o;
}
