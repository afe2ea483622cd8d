/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>

#include "client/client.h"
#include "client/moe-session.h"

static void put_messages(struct moe_map *p, const struct moe_message *messages, size_t n) {
    if (messages && n)
        client_put_messages(p, messages, n);
}

/* Call @method with @params, which are freed, and with @more. NULL @params: out of memory. */
static int call(struct moe *m, const char *method, struct moe_map *params,
                const struct moe_map *more, const struct moe_value **ret_result) {
    int r = params ? client_call2_wait(m, method, params, more, MOE_FOREVER, ret_result) : -ENOMEM;

    moe_map_free(params);
    return r;
}

/* Parameters with the session in them, or NULL. */
static struct moe_map *params_of(uint64_t session) {
    struct moe_map *p = moe_map_new();

    moe_map_uint(p, "session", session);
    return p;
}

static int call_for_number(struct moe *m, const char *method, struct moe_map *params,
                           const struct moe_map *more, const char *key, uint64_t *ret) {
    const struct moe_value *v;
    int r = call(m, method, params, more, &v);

    if (r >= 0 && ret)
        *ret = moe_uint(moe_get(v, key));
    return r;
}

int moe_session_open_wait(struct moe *m, const struct moe_session *s, uint64_t *ret_session) {
    struct moe_map *p;

    if (s->size != sizeof *s)
        return -EINVAL;
    p = moe_map_new();
    if (s->model)
        moe_map_str(p, "model", s->model);
    if (s->instructions)
        moe_map_str(p, "instructions", s->instructions);
    put_messages(p, s->messages, s->n_messages);
    if (s->priority)
        moe_map_str(p, "priority", s->priority);
    if (s->thinking)
        moe_map_bool(p, "thinking", true);
    if (s->max_tokens)
        moe_map_uint(p, "max_tokens", s->max_tokens);
    if (s->temperature >= 0)
        moe_map_float(p, "temperature", s->temperature);
    if (s->top_p >= 0)
        moe_map_float(p, "top_p", s->top_p);
    if (s->min_p >= 0)
        moe_map_float(p, "min_p", s->min_p);
    if (s->top_k >= 0)
        moe_map_int(p, "top_k", s->top_k);
    if (s->seed)
        moe_map_uint(p, "seed", *s->seed);

    return call_for_number(m, "session.open", p, s->more, "session", ret_session);
}

int moe_session_append_wait(struct moe *m, uint64_t session, const struct moe_message *messages,
                            size_t n, uint64_t *ret_tokens) {
    struct moe_map *p = params_of(session);

    put_messages(p, messages, n);
    return call_for_number(m, "session.append", p, NULL, "context_used", ret_tokens);
}

int moe_session_measure_wait(struct moe *m, uint64_t session, const struct moe_message *messages,
                             size_t n, uint64_t *ret_tokens, uint64_t *ret_available) {
    struct moe_map *p = params_of(session);
    const struct moe_value *v;
    int r;

    put_messages(p, messages, n);
    r = call(m, "session.measure", p, NULL, &v);
    if (r < 0)
        return r;

    if (ret_tokens)
        *ret_tokens = moe_uint(moe_get(v, "tokens"));
    if (ret_available)
        *ret_available = moe_uint(moe_get(v, "available"));
    return 0;
}

int moe_session_clone_wait(struct moe *m, uint64_t session, uint64_t *ret_session) {
    return call_for_number(m, "session.clone", params_of(session), NULL, "session", ret_session);
}

int moe_session_close_wait(struct moe *m, uint64_t session) {
    return call(m, "session.close", params_of(session), NULL, NULL);
}

int moe_session_save_wait(struct moe *m, uint64_t session, const char *over,
                          const char **ret_token) {
    struct moe_map *p = params_of(session);
    const struct moe_value *v;
    int r;

    if (over)
        moe_map_str(p, "token", over);
    r = call(m, "session.save", p, NULL, &v);
    if (r >= 0)
        *ret_token = moe_str(moe_get(v, "token"));
    return r >= 0 && !*ret_token ? -EPROTO : r;
}

int moe_session_restore_wait(struct moe *m, const char *token, uint64_t *ret_session) {
    struct moe_map *p = moe_map_new();

    moe_map_str(p, "token", token);
    return call_for_number(m, "session.restore", p, NULL, "session", ret_session);
}

int moe_session_forget_wait(struct moe *m, const char *token) {
    struct moe_map *p = moe_map_new();

    moe_map_str(p, "token", token);
    return call(m, "session.forget", p, NULL, NULL);
}
