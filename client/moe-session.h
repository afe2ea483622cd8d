/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOE_SESSION_H
#define MOE_SESSION_H

/*
 * moe-session - conversations that the service remembers, so that only what is new is sent
 *
 *   r = moe_session_open_wait(m, &open, &session);
 *   g.messages = &question, g.n_messages = 1;
 *   r = moe_session_generate_wait(m, session, &g, &result);      ... result->text; and so on
 *   r = moe_session_close_wait(m, session);
 *
 * A session is a number. It belongs to the user, and is closed with the connection that opened it,
 * so closing one is optional; after moe_close() its number means nothing. The service closes what
 * nobody uses for long, and tells by the notification session.closed, see moe_set_notify(). To keep
 * a conversation for later, save it: a token outlives the connection and the service.
 *
 * Return:  as moe_call_wait() unless said otherwise; -EREMOTEIO: see moe_last_error(), whose code
 *          is MOE_NO_SUCH_SESSION for a number that is not, or no longer, a session of this user,
 *          MOE_BUSY while an answer of it is written, MOE_QUOTA_EXCEEDED for too many sessions or
 *          too much text in them.
 * Waiting: for as long as it takes. A program with a loop of its own calls the session.* methods
 *          with moe_call(), and generates with moe_session_generate().
 * Memory:  everything passed is borrowed for the call.
 */

#include "moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a conversation begins with, and how its answers are made: MOE_SESSION_INIT. */
struct moe_session {
    size_t size;
    const char *model;                  /* NULL: the service's choice */
    const char *instructions;           /* stand first and are never dropped; NULL: none */
    const struct moe_message *messages; /* [n_messages] what was said so far; NULL: nothing */
    size_t n_messages;
    const char *priority;             /* NULL: "default" */
    bool thinking;                    /* these are defaults: a moe_generate may say otherwise */
    uint64_t max_tokens;              /* 0: what the context holds */
    double temperature, top_p, min_p; /* negative: the model's */
    int64_t top_k;                    /* negative: the model's */
    const uint64_t *seed;             /* NULL: the service's choice */
    const struct moe_map *more;       /* other keys of session.open's params, or NULL */
};

/* clang-format off */
#define MOE_SESSION_INIT { sizeof(struct moe_session), NULL, NULL, NULL, 0, NULL, false, 0, \
    -1.0, -1.0, -1.0, -1, NULL, NULL }
/* clang-format on */

MOE_API int moe_session_open_wait(struct moe *m, const struct moe_session *s,
                                  uint64_t *ret_session);

/** moe_session_generate() - the next answer; the session gets it with what was asked
 * @g: messages: what is new, or NULL; neither prompt, tokens, model nor special. The key "overflow"
 *     of @g->more may be "drop-oldest"; "dropped_messages" of the result's value says how many.
 * When it fails or is cancelled, the session is as before.
 * Return: as moe_generate(). */
MOE_API int moe_session_generate(struct moe *m, uint64_t session, const struct moe_generate *g,
                                 moe_done_fn done, uint32_t *ret_id);
MOE_API int moe_session_generate_wait(struct moe *m, uint64_t session, const struct moe_generate *g,
                                      const struct moe_result **ret_result);

/* Add @messages [n] and evaluate them ahead of the question. @ret_tokens: of all so far, or NULL */
MOE_API int moe_session_append_wait(struct moe *m, uint64_t session,
                                    const struct moe_message *messages, size_t n,
                                    uint64_t *ret_tokens);

/* What a prompt with @messages [n] added would take, without evaluating it. @ret_tokens: its
 * tokens, or NULL; @ret_available: what a prompt may have, or NULL */
MOE_API int moe_session_measure_wait(struct moe *m, uint64_t session,
                                     const struct moe_message *messages, size_t n,
                                     uint64_t *ret_tokens, uint64_t *ret_available);

/* Another session that says the same so far. */
MOE_API int moe_session_clone_wait(struct moe *m, uint64_t session, uint64_t *ret_session);
MOE_API int moe_session_close_wait(struct moe *m, uint64_t session);

/* Keep it for later. @over: the token of an earlier one, which it replaces and whose token it has;
 * NULL: it is a new one. @ret_token: until the next *_wait() on @m */
MOE_API int moe_session_save_wait(struct moe *m, uint64_t session, const char *over,
                                  const char **ret_token);
/* A new session as it was when it was saved. MOE_NO_SUCH_SESSION: nothing of this user has this
 * token any more; MOE_CORRUPT: it is damaged. */
MOE_API int moe_session_restore_wait(struct moe *m, const char *token, uint64_t *ret_session);
/* Remove what was saved. */
MOE_API int moe_session_forget_wait(struct moe *m, const char *token);

#ifdef __cplusplus
}
#endif
#endif
