/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>
#include <string.h>

#include "daemon/rpc.h"
#include "daemon/session.h"

static const char *find_role(const char *role) {
    static const char *const roles[] = { "system", "developer", "user", "assistant" };

    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(roles[i], role) == 0)
            return roles[i];
    return NULL;
}

size_t session_state_size(const struct chat_message *msg, size_t n) {
    size_t n_byte = 0;

    for (size_t i = 0; i < n; i++) /* as the engine counts */
        n_byte += sizeof *msg + strlen(msg[i].role) + strlen(msg[i].text);
    return n_byte;
}

void session_state_cut(struct session_state *s, size_t n) {
    while (s->n_msg > n) {
        s->n_byte -= session_state_size(&s->msg[--s->n_msg], 1);
        free((char *)s->msg[s->n_msg].text);
    }
}

void session_state_deinit(struct session_state *s) {
    session_state_cut(s, 0);
    free(s->msg);
    free(s->model);
    *s = (struct session_state){ 0 };
}

static int reserve(struct session_state *s, size_t n, struct why *why) {
    size_t n_alloc = 2 * (s->n_msg + n);
    struct chat_message *msg;

    if (n > SESSION_MESSAGES_MAX - s->n_msg)
        return why_set(why, RPC_TOO_LARGE, "more than %d messages", SESSION_MESSAGES_MAX);
    if (s->n_msg + n <= s->n_alloc)
        return 0;
    msg = realloc(s->msg, n_alloc * sizeof *msg);
    if (!msg)
        return err_new(-ENOMEM);

    s->msg = msg;
    s->n_alloc = n_alloc;
    return 0;
}

int session_state_add(struct session_state *s, const struct chat_message *msg, size_t n,
                      struct why *why) {
    size_t n_before = s->n_msg;
    int r;

    r = reserve(s, n, why);
    for (size_t i = 0; r == 0 && i < n; i++) {
        struct chat_message m = { find_role(msg[i].role), NULL };

        if (!m.role)
            r = why_set(why, RPC_INVALID_ARGS,
                        "message %zu: role \"%.40s\" is none of system, developer, user, assistant",
                        i, msg[i].role);
        else if (s->n_byte + strlen(msg[i].text) > ENGINE_TEXT_MAX)
            r = why_set(why, RPC_TOO_LARGE, "more than %d bytes of text", ENGINE_TEXT_MAX);
        else if (!(m.text = strdup(msg[i].text)))
            r = err_new(-ENOMEM);
        if (r == 0) {
            s->msg[s->n_msg++] = m;
            s->n_byte += session_state_size(&m, 1);
        }
    }
    if (r)
        session_state_cut(s, n_before);

    return err_up(r);
}

int session_state_join(const struct session_state *s, const struct chat_message *msg, size_t n,
                       struct chat_message **ret_msg, size_t *ret_n) {
    struct chat_message *joined = calloc(s->n_msg + n + 1, sizeof *joined);

    if (!joined)
        return err_new(-ENOMEM);
    if (s->n_msg)
        memcpy(joined, s->msg, s->n_msg * sizeof *joined);
    if (n)
        memcpy(joined + s->n_msg, msg, n * sizeof *joined);
    *ret_msg = joined;
    *ret_n = s->n_msg + n;
    return 0;
}

void session_state_drop(struct session_state *s, size_t n) {
    size_t n_kept = 0;

    for (size_t i = 0; i < s->n_msg; i++) {
        if (n > 0 && !chat_is_instruction(&s->msg[i])) {
            s->n_byte -= session_state_size(&s->msg[i], 1);
            free((char *)s->msg[i].text);
            n--;
        } else {
            s->msg[n_kept++] = s->msg[i];
        }
    }
    s->n_msg = n_kept;
}

int session_state_copy(struct session_state *ret, const struct session_state *from) {
    *ret = *from;
    ret->msg = NULL;
    ret->n_msg = ret->n_alloc = ret->n_byte = 0;
    ret->model = strdup(from->model);
    if (!ret->model)
        return err_new(-ENOMEM);

    return err_up(session_state_add(ret, from->msg, from->n_msg, NULL));
}
