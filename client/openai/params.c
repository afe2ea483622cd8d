/* SPDX-License-Identifier: Apache-2.0 */

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/openai/params.h"

enum { COMPLETION_TOKENS = 16 /* what the older interface generates when nothing is said */ };

int fault_set(struct fault *f, int status, const char *type, const char *code, const char *param,
              const char *fmt, ...) {
    va_list ap;

    *f = (struct fault){ .status = status, .type = type, .code = code };
    (void)snprintf(f->param, sizeof f->param, "%s", param ? param : "");
    va_start(ap, fmt);
    (void)vsnprintf(f->message, sizeof f->message, fmt, ap);
    va_end(ap);
    return status;
}

#define BAD(f, param, ...)                                                                         \
    fault_set(f, 400, "invalid_request_error", "invalid_value", param, __VA_ARGS__)
#define UNSUPPORTED(f, param, ...)                                                                 \
    fault_set(f, 400, "invalid_request_error", "unsupported_value", param, __VA_ARGS__)
#define NO_MEMORY(f) fault_set(f, 500, "server_error", NULL, NULL, "out of memory")

/* The value of @key; NULL when it is absent or null, which mean the same. */
static json_object *get(json_object *o, const char *key) {
    json_object *v = NULL;

    return json_object_object_get_ex(o, key, &v) ? v : NULL;
}

/* A string that ends at its NUL: C strings carry it from here. NULL: it is none. */
static const char *text_of(json_object *v) {
    const char *s;

    if (!json_object_is_type(v, json_type_string))
        return NULL;
    s = json_object_get_string(v);
    return strlen(s) == (size_t)json_object_get_string_len(v) ? s : NULL;
}

static bool number_of(json_object *v, double *ret) {
    if (!json_object_is_type(v, json_type_double) && !json_object_is_type(v, json_type_int))
        return false;
    *ret = json_object_get_double(v);
    return isfinite(*ret);
}

/* ---- numbers ---- */

/* @key as a number in @min .. @max; @ret stays when it is absent. */
static int read_number(json_object *o, const char *key, double min, double max, double *ret,
                       struct fault *f) {
    json_object *v = get(o, key);
    double x;

    if (!v)
        return 0;
    if (!number_of(v, &x) || x < min || x > max)
        return BAD(f, key, "%s is to be a number from %g to %g", key, min, max);
    *ret = x;
    return 0;
}

static int read_int(json_object *o, const char *key, int64_t min, int64_t max, int64_t *ret,
                    struct fault *f) {
    json_object *v = get(o, key);
    double x;

    if (!v)
        return 0;
    if (!number_of(v, &x) || x != floor(x) || x < (double)min || x > (double)max)
        return BAD(f, key, "%s is to be a whole number from %" PRId64 " to %" PRId64, key, min,
                   max);
    *ret = json_object_get_int64(v);
    return 0;
}

static int read_bool(json_object *o, const char *key, bool *ret, struct fault *f) {
    json_object *v = get(o, key);

    if (!v)
        return 0;
    if (!json_object_is_type(v, json_type_boolean))
        return BAD(f, key, "%s is to be true or false", key);
    *ret = json_object_get_boolean(v);
    return 0;
}

/* How tokens are drawn. */
static int read_sampling(struct params *p, json_object *o, struct fault *f) {
    static const struct {
        const char *key;
        double min, max;
    } more[] = { { "frequency_penalty", -2, 2 },
                 { "presence_penalty", -2, 2 },
                 { "repeat_penalty", 0, 10 } };
    struct moe_generate *g = &p->generate;
    int64_t seed = 0;
    int r;

    r = read_number(o, "temperature", 0, 2, &g->temperature, f);
    if (!r)
        r = read_number(o, "top_p", 0, 1, &g->top_p, f);
    if (!r)
        r = read_number(o, "min_p", 0, 1, &g->min_p, f);
    if (!r)
        r = read_int(o, "top_k", 0, INT32_MAX, &g->top_k, f);
    if (!r)
        r = read_int(o, "seed", INT64_MIN / 2, INT64_MAX / 2, &seed, f);
    if (!r && get(o, "seed")) {
        p->seed = (uint64_t)seed;
        g->seed = &p->seed;
    }
    for (size_t i = 0; i < sizeof more / sizeof *more && !r; i++) {
        double x = 0;

        r = read_number(o, more[i].key, more[i].min, more[i].max, &x, f);
        if (!r && get(o, more[i].key))
            moe_map_float(p->more, more[i].key, x);
    }
    return r;
}

static int read_logit_bias(struct params *p, json_object *o, struct fault *f) {
    json_object *bias = get(o, "logit_bias");

    if (!bias)
        return 0;
    if (!json_object_is_type(bias, json_type_object))
        return BAD(f, "logit_bias", "logit_bias is to be an object of token ids and numbers");
    if (!json_object_object_length(bias))
        return 0;

    moe_map_open_map(p->more, "logit_bias");
    json_object_object_foreach(bias, key, v) {
        char *end;
        long id = strtol(key, &end, 10);
        double x;

        if (*key < '0' || *key > '9' || *end || id < 0 || id > INT32_MAX || !number_of(v, &x) ||
            x < -100 || x > 100)
            return BAD(f, "logit_bias",
                       "logit_bias: %.40s is to be a token id, and its value a "
                       "number from -100 to 100",
                       key);
        moe_map_int_key(p->more, id);
        moe_map_float(p->more, NULL, x);
    }
    moe_map_end(p->more);
    return 0;
}

/* ---- text ---- */

static int read_stop(struct params *p, json_object *o, struct fault *f) {
    static const char bad[] = "stop is to be a string, or up to %d of them, none of them empty";
    json_object *v = get(o, "stop");
    bool array = json_object_is_type(v, json_type_array);
    size_t n = array ? json_object_array_length(v) : v != NULL;

    if (n > PARAMS_STOP_MAX)
        return BAD(f, "stop", bad, PARAMS_STOP_MAX);
    for (size_t i = 0; i < n; i++) {
        p->stop[i] = text_of(array ? json_object_array_get_idx(v, i) : v);
        if (!p->stop[i] || !*p->stop[i])
            return BAD(f, "stop", bad, PARAMS_STOP_MAX);
    }
    p->generate.stop = p->stop;
    p->generate.n_stop = n;
    return 0;
}

/* A content of several parts, put together into @ret_text. */
static int join_parts(struct params *p, json_object *parts, size_t at, const char **ret_text,
                      struct fault *f) {
    size_t n = json_object_array_length(parts), size = 1;
    char *text;

    for (size_t i = 0; i < n; i++) {
        json_object *part = json_object_array_get_idx(parts, i);
        const char *type = text_of(get(part, "type")), *s = text_of(get(part, "text"));

        if (type && strcmp(type, "text") != 0)
            return UNSUPPORTED(f, "messages",
                               "messages[%zu].content[%zu]: a part of type %.40s; the "
                               "model reads text",
                               at, i, type);
        if (!type || !s)
            return BAD(f, "messages", "messages[%zu].content[%zu] is to be {type: \"text\", text}",
                       at, i);
        size += strlen(s);
    }
    text = malloc(size);
    if (!text)
        return NO_MEMORY(f);
    p->text[p->n_text++] = text;
    *ret_text = text;
    for (size_t i = 0; i < n; i++)
        text = stpcpy(text, text_of(get(json_object_array_get_idx(parts, i), "text")));
    *text = '\0';
    return 0;
}

static int read_message(struct params *p, json_object *m, size_t at, struct fault *f) {
    static const char *const roles[] = { "system", "developer", "user", "assistant" };
    const char *role = text_of(get(m, "role")), *text = NULL;
    json_object *content = get(m, "content");
    int r;

    if (!role)
        return BAD(f, "messages", "messages[%zu] is to have a role", at);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(role, roles[i]) == 0)
            p->messages[at].role = roles[i];
    if (!p->messages[at].role)
        return UNSUPPORTED(f, "messages",
                           "messages[%zu]: the role %.40s is not one of system, "
                           "developer, user and assistant",
                           at, role);
    if (get(m, "tool_calls") || get(m, "function_call"))
        return UNSUPPORTED(f, "messages", "messages[%zu]: calls of tools are not supported", at);

    if (json_object_is_type(content, json_type_array)) {
        r = join_parts(p, content, at, &text, f);
        if (r)
            return r;
    } else {
        text = text_of(content);
        if (!text)
            return BAD(f, "messages",
                       "messages[%zu].content is to be a string without NUL characters, "
                       "or an array of parts",
                       at);
    }
    p->messages[at].content = text;
    return 0;
}

static int read_messages(struct params *p, json_object *o, struct fault *f) {
    json_object *v = get(o, "messages");
    size_t n = json_object_is_type(v, json_type_array) ? json_object_array_length(v) : 0;
    int r = 0;

    if (!n)
        return BAD(f, "messages", "messages is to be an array of at least one message");
    p->messages = calloc(n, sizeof *p->messages);
    p->text = calloc(n, sizeof *p->text);
    if (!p->messages || !p->text)
        return NO_MEMORY(f);
    for (size_t i = 0; i < n && !r; i++)
        r = read_message(p, json_object_array_get_idx(v, i), i, f);
    p->generate.messages = p->messages;
    p->generate.n_messages = n;
    return r;
}

/* A text, an array of one text, or an array of token ids. */
static int read_prompt(struct params *p, json_object *o, struct fault *f) {
    static const char bad[] =
        "prompt is to be a string without NUL characters, or an array of token ids";
    json_object *v = get(o, "prompt");
    size_t n;

    if (!json_object_is_type(v, json_type_array)) {
        p->generate.prompt = text_of(v);
        return p->generate.prompt ? 0 : BAD(f, "prompt", bad);
    }
    n = json_object_array_length(v);
    if (n && json_object_is_type(json_object_array_get_idx(v, 0), json_type_string)) {
        if (n > 1)
            return UNSUPPORTED(f, "prompt", "prompt: one at a time");
        p->generate.prompt = text_of(json_object_array_get_idx(v, 0));
        return p->generate.prompt ? 0 : BAD(f, "prompt", bad);
    }
    p->tokens = calloc(n ? n : 1, sizeof *p->tokens);
    if (!p->tokens)
        return NO_MEMORY(f);
    for (size_t i = 0; i < n; i++) {
        json_object *id = json_object_array_get_idx(v, i);
        int64_t x = json_object_get_int64(id);

        if (!json_object_is_type(id, json_type_int) || x < 0 || x > UINT32_MAX)
            return BAD(f, "prompt", bad);
        p->tokens[i] = (uint32_t)x;
    }
    p->generate.tokens = p->tokens;
    p->generate.n_tokens = n;
    return n ? 0 : BAD(f, "prompt", bad);
}

/* ---- what goes with one of the two ---- */

static int read_chat(struct params *p, json_object *o, struct fault *f) {
    const char *effort = text_of(get(o, "reasoning_effort"));
    int64_t max = 0, top = 0;
    bool logprobs = false;
    int r;

    r = read_messages(p, o, f);
    if (!r)
        r = read_int(o, "max_tokens", 1, UINT32_MAX, &max, f);
    if (!r)
        r = read_int(o, "max_completion_tokens", 1, UINT32_MAX, &max, f);
    if (!r)
        r = read_bool(o, "logprobs", &logprobs, f);
    if (!r)
        r = read_int(o, "top_logprobs", 0, PARAMS_TOP_LOGPROBS_MAX, &top, f);
    if (!r && get(o, "chat_template_kwargs"))
        r = read_bool(get(o, "chat_template_kwargs"), "enable_thinking", &p->generate.thinking, f);
    if (r)
        return r;
    if (get(o, "reasoning_effort") && !effort)
        return BAD(f, "reasoning_effort", "reasoning_effort is to be a string");
    if (effort)
        p->generate.thinking = strcmp(effort, "none") != 0 && strcmp(effort, "minimal") != 0;
    p->generate.max_tokens = (uint64_t)max;
    p->generate.logprobs = logprobs ? (int)top : -1;
    return 0;
}

static int read_completion(struct params *p, json_object *o, struct fault *f) {
    int64_t max = COMPLETION_TOKENS, logprobs = -1;
    bool echo = false;
    int r;

    r = read_prompt(p, o, f);
    if (!r)
        r = read_int(o, "max_tokens", 1, UINT32_MAX, &max, f);
    if (!r)
        r = read_int(o, "logprobs", 0, PARAMS_TOP_LOGPROBS_MAX, &logprobs, f);
    if (!r)
        r = read_bool(o, "echo", &echo, f);
    if (!r && echo)
        r = UNSUPPORTED(f, "echo", "echo is not supported");
    p->generate.max_tokens = (uint64_t)max;
    p->generate.logprobs = (int)logprobs;
    return r;
}

/* Does @v of @key ask for what is done anyway? */
static bool harmless(const char *key, json_object *v) {
    const char *s = text_of(v), *type = text_of(get(v, "type"));

    if (strcmp(key, "n") == 0 || strcmp(key, "best_of") == 0)
        return json_object_is_type(v, json_type_int) && json_object_get_int64(v) == 1;
    if (strcmp(key, "response_format") == 0)
        return type && strcmp(type, "text") == 0;
    if (strcmp(key, "tool_choice") == 0)
        return s && (strcmp(s, "none") == 0 || strcmp(s, "auto") == 0);
    if (strcmp(key, "suffix") == 0)
        return s && !*s;
    return json_object_is_type(v, json_type_array) && !json_object_array_length(v);
}

/* What would change the answer and is not there yet must not be passed over. */
static int refuse_unsupported(json_object *o, struct fault *f) {
    static const char *const keys[] = {
        "n",         "best_of",       "response_format", "tools", "tool_choice",
        "functions", "function_call", "suffix",          "audio", "web_search_options"
    };

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_object *v = get(o, keys[i]);

        if (v && !harmless(keys[i], v))
            return UNSUPPORTED(f, keys[i], "%s: this value is not supported", keys[i]);
    }
    return 0;
}

int params_read(struct params *p, json_object *body, bool chat, struct fault *f) {
    int r;

    *p = (struct params){ .generate = MOE_GENERATE_INIT, .more = moe_map_new() };
    if (!p->more)
        return NO_MEMORY(f);
    if (!json_object_is_type(body, json_type_object))
        return BAD(f, NULL, "the body is to be a JSON object");
    if (get(body, "model") && !text_of(get(body, "model")))
        return BAD(f, "model", "model is to be a string");
    p->generate.model = text_of(get(body, "model"));
    if (p->generate.model && !*p->generate.model)
        p->generate.model = NULL;

    r = refuse_unsupported(body, f);
    if (!r)
        r = chat ? read_chat(p, body, f) : read_completion(p, body, f);
    if (!r)
        r = read_sampling(p, body, f);
    if (!r)
        r = read_logit_bias(p, body, f);
    if (!r)
        r = read_stop(p, body, f);
    if (!r)
        r = read_bool(body, "stream", &p->stream, f);
    if (!r && get(body, "stream_options"))
        r = read_bool(get(body, "stream_options"), "include_usage", &p->usage, f);
    p->generate.more = p->more;
    return r;
}

void params_deinit(struct params *p) {
    for (size_t i = 0; i < p->n_text; i++)
        free(p->text[i]);
    free(p->text);
    free(p->messages);
    free(p->tokens);
    p->more = moe_map_free(p->more);
}
