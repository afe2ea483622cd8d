/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOE_H
#define MOE_H

/*
 * moe - talk to moed, the language model service of this machine
 *
 *   struct moe_generate g = MOE_GENERATE_INIT;
 *   g.prompt = "Once upon a time";
 *   r = moe_open(&m, NULL);
 *   r = moe_generate_wait(m, &g, &result);      ... result->text
 *   moe_close(m);
 *
 * There is no thread and no hidden loop: a connection is a file descriptor, the events it waits
 * for, and moe_process(). The *_wait() functions drive that loop themselves; a program that has a
 * loop of its own uses the same calls without _wait and never blocks after moe_open().
 *
 * Return:  0 or a negative errno.
 * Threads: any number of connections; one thread at a time in each. No global state.
 * Memory:  what the service sends is bounded by the limits of the protocol (16 MiB a frame).
 *          Structures from the library may grow at their end; those for it begin with their size.
 * Text:    UTF-8. Strings from the service end in a NUL that their length does not count.
 * Signals: SIGPIPE is never raised. Descriptors are close-on-exec.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#define MOE_API __attribute__((visibility("default")))

struct moe;       /* a connection */
struct moe_map;   /* parameters being written */
struct moe_value; /* something the service sent; NULL reads as nil */

#define MOE_FOREVER  UINT64_MAX
#define MOE_PATH_MAX 108 /* bytes of a socket's path, with its NUL */

/* -- Errors ------------------------------------------------------------------------------------ */

/* clang-format off */
enum moe_code { /* the positive ones are the service's; the others: no answer in time, or ever */
    MOE_NO_ANSWER = -2, MOE_DISCONNECTED = -1,
    MOE_INVALID_ARGS = 1, MOE_NOT_SUPPORTED, MOE_NO_SUCH_MODEL, MOE_MODEL_UNAVAILABLE,
    MOE_INSUFFICIENT_MEMORY, MOE_CONTEXT_OVERFLOW, MOE_INVALID_SCHEMA, MOE_INVALID_GRAMMAR,
    MOE_BUSY, MOE_QUOTA_EXCEEDED, MOE_ACCESS_DENIED, MOE_CANCELLED, MOE_PREEMPTED,
    MOE_NO_SUCH_SESSION, MOE_CORRUPT, MOE_SHUTTING_DOWN, MOE_TOO_LARGE, MOE_TIMEOUT, MOE_INTERNAL,
    MOE_NO_SUCH_METHOD, MOE_NO_SUCH_JOB
};
/* clang-format on */

/* Why a call failed. Numbers are -1 where the service gave none. */
struct moe_error {
    int code;                         /* enum moe_code, or one that a newer service has */
    const char *name, *message;       /* "Busy"; a sentence for people */
    int64_t requested, available;     /* MOE_CONTEXT_OVERFLOW: tokens */
    int64_t need, have;               /* MOE_INSUFFICIENT_MEMORY: bytes */
    int64_t retry_after_ms, position; /* MOE_BUSY: when to ask again, the place in the queue */
    int64_t limit;                    /* MOE_QUOTA_EXCEEDED, MOE_TOO_LARGE */
    const struct moe_value *data;     /* all that was said, or NULL */
};

/* Why the last *_wait() function on @m returned -EREMOTEIO, until the next; else NULL. */
MOE_API const struct moe_error *moe_last_error(const struct moe *m);

/* -- Connection -------------------------------------------------------------------------------- */

/** moe_find_socket() - where moe_open() connects to
 * @path:     taken as it is; NULL: $MOE_SOCKET, else $XDG_RUNTIME_DIR/moed/rpc when it exists,
 *            else /run/moed/rpc
 * @ret_path: [MOE_PATH_MAX]
 * Return: 0, or -ENAMETOOLONG. */
MOE_API int moe_find_socket(const char *path, char *ret_path);

/** moe_open() - connect; may wait for a service that is being started, sends nothing
 * @path: as moe_find_socket()
 * Return: 0; -ENOENT or -ECONNREFUSED: no service; -EACCES, -ENAMETOOLONG, -ENOMEM, … */
MOE_API int moe_open(struct moe **ret_m, const char *path);

/* On a connected stream socket, which the connection owns from then on. */
MOE_API int moe_open_fd(struct moe **ret_m, int fd);

/* Hang up, which cancels whatever runs: each outstanding call gets its reply, MOE_DISCONNECTED.
 * Not from within a callback. Takes NULL, returns NULL; so do the other destructors. */
MOE_API struct moe *moe_close(struct moe *m);

/* What to poll: the descriptor; POLLIN and POLLOUT, to be asked again after each call on @m; the
 * microseconds after which moe_process() has work without any event, or MOE_FOREVER. */
MOE_API int moe_fd(const struct moe *m);
MOE_API int moe_events(const struct moe *m);
MOE_API uint64_t moe_timeout(const struct moe *m);

/** moe_process() - send and receive what can be without waiting, and call back
 * @revents: as poll() gave them; 0 is fine
 * Return: 0. -ECONNRESET: the service hung up. -EPROTO: it sent what is no frame of the protocol.
 *         -ENOMEM and others. After these, each outstanding call has had its reply and the
 *         connection is over. -EBUSY: called from within a callback. */
MOE_API int moe_process(struct moe *m, int revents);

/** moe_wait() - wait until there is something to process, @usec at most, and process it
 * Return: as moe_process(); or -ETIMEDOUT, or -EINTR after a signal: then nothing changed. */
MOE_API int moe_wait(struct moe *m, uint64_t usec);

/* -- Calls ------------------------------------------------------------------------------------- */

/* The answer, exactly once for each call that was accepted: one of @result, a map, and @error.
 * They are gone when the callback returns. It may start and cancel calls. */
typedef void (*moe_reply_fn)(struct moe *, uint32_t id, const struct moe_value *result,
                             const struct moe_error *error, void *userdata);

/* A notification: "generate.delta", … and its map, gone when the callback returns. */
typedef void (*moe_notify_fn)(struct moe *, const char *method, const struct moe_value *params,
                              void *userdata);

/** moe_call() - ask; the methods are in PROTOCOL.md. Nothing is sent before moe_process()
 * @params: borrowed for the call; NULL: none
 * @reply, @notify: or NULL; the second gets the generate.* notifications of this call
 * @ret_id: the call's number, for moe_cancel(); may be NULL
 * Return: 0. -EAGAIN: 64 calls are outstanding. -EMSGSIZE: @params break a limit of the protocol.
 *         -EINVAL: @params are unfinished or out of order. -ENOTCONN: the connection is over.
 *         -ENOMEM. On anything but 0 there will be no reply. */
MOE_API int moe_call(struct moe *m, const char *method, const struct moe_map *params,
                     moe_reply_fn reply, moe_notify_fn notify, void *userdata, uint32_t *ret_id);

/** moe_call_wait() - ask and wait for the answer
 * @usec:       at most this long
 * @ret_result: a map, until the next *_wait() or moe_close(); may be NULL
 * Return: 0. -EREMOTEIO: the answer is an error, see moe_last_error(), or never came. -EINTR: a
 *         signal; the answer will be ignored. Or as moe_call(). */
MOE_API int moe_call_wait(struct moe *m, const char *method, const struct moe_map *params,
                          uint64_t usec, const struct moe_value **ret_result);

/* Stop a generate; its reply still comes. -ENOENT: no such call is outstanding. */
MOE_API int moe_cancel(struct moe *m, uint32_t id);

/* Give a call up @usec from now, with MOE_NO_ANSWER; MOE_FOREVER: do not. The service is not told
 * and its answer ignored. -ENOENT: no such call is outstanding. */
MOE_API int moe_set_deadline(struct moe *m, uint32_t id, uint64_t usec);

/* Who gets notifications that belong to no call, such as job.progress. */
MOE_API void moe_set_notify(struct moe *m, moe_notify_fn notify, void *userdata);

/* -- Generate ---------------------------------------------------------------------------------- */

struct moe_message {
    const char *role, *content; /* roles: "system", "developer", "user", "assistant" */
};
struct moe_delta { /* a piece of an answer while it is written */
    bool thought;  /* what the model thinks, and not the answer */
    const char *text;
    size_t n_text;
    uint64_t seq;                     /* from 0 */
    const struct moe_value *logprobs; /* array, or NULL */
};

struct moe_result {             /* a finished answer */
    const char *text, *thought; /* NULL when they were streamed and not echoed */
    size_t n_text, n_thought;
    const char *stop_reason;  /* "stop", "length", "deadline" */
    const char *stop, *model; /* the stop string that was met, or NULL */
    uint64_t seed, n_prompt, n_cached, n_generated, n_dropped; /* n: tokens */
    uint64_t queue_usec, prefill_usec, decode_usec;
    const struct moe_value *logprobs, *value; /* an array or NULL; the whole map */
};

/* As moe_reply_fn. @stage is "loading", counted in bytes, or "prefill", in tokens. */
typedef void (*moe_delta_fn)(struct moe *, uint32_t id, const struct moe_delta *, void *userdata);
typedef void (*moe_progress_fn)(struct moe *, uint32_t id, const char *stage, uint64_t done,
                                uint64_t total, void *userdata);
typedef void (*moe_done_fn)(struct moe *, uint32_t id, const struct moe_result *result,
                            const struct moe_error *error, void *userdata);

/* What to generate: MOE_GENERATE_INIT, and exactly one of messages, prompt and tokens filled in.
 * All of it is borrowed for the call. */
struct moe_generate {
    size_t size;
    const struct moe_message *messages; /* [n_messages] */
    size_t n_messages;
    const char *prompt;     /* raw: continued as it is */
    const uint32_t *tokens; /* [n_tokens], raw */
    size_t n_tokens;
    const char *model, *priority;     /* NULL: the service's choice; "default" */
    bool special;                     /* texts of special tokens in @prompt become those tokens */
    bool thinking, echo;              /* echo: with on_delta, the result repeats the text */
    uint64_t max_tokens, deadline_ms; /* 0: what the context holds; none */
    double temperature, top_p, min_p; /* negative: the model's */
    int64_t top_k;                    /* negative: the model's */
    int logprobs;                     /* alternatives a token, 0 to 20; negative: no logprobs */
    const uint64_t *seed;             /* NULL: the service's choice */
    const char *const *stop;          /* [n_stop], up to 16 */
    size_t n_stop;
    const struct moe_map *more;  /* other keys of generate's params, or NULL */
    moe_delta_fn on_delta;       /* NULL: the text comes whole, in the result */
    moe_progress_fn on_progress; /* or NULL */
    void *userdata;              /* of these and of done */
};

/* clang-format off */
#define MOE_GENERATE_INIT { sizeof(struct moe_generate), NULL, 0, NULL, NULL, 0, NULL, NULL, \
    false, false, false, 0, 0, -1.0, -1.0, -1.0, -1, -1, NULL, NULL, 0, NULL, NULL, NULL, NULL }
/* clang-format on */

/* Start an answer. Return: as moe_call(). */
MOE_API int moe_generate(struct moe *m, const struct moe_generate *g, moe_done_fn done,
                         uint32_t *ret_id);
/* The same, waited for. Return: as moe_call_wait(); on -EINTR the service was told to stop. */
MOE_API int moe_generate_wait(struct moe *m, const struct moe_generate *g,
                              const struct moe_result **ret_result);

/* -- Values ------------------------------------------------------------------------------------ */

/* Writing parameters, in order. A value in an array has no key: NULL. What opens takes the values
 * up to its end. After int_key the next value has that number for its key, and NULL here. A mistake
 * or a lack of memory is remembered for moe_call() to return, so these return nothing. */
MOE_API struct moe_map *moe_map_new(void); /* or NULL, which the others tolerate */
MOE_API struct moe_map *moe_map_free(struct moe_map *map);
MOE_API void moe_map_bool(struct moe_map *map, const char *key, bool v);
MOE_API void moe_map_int(struct moe_map *map, const char *key, int64_t v);
MOE_API void moe_map_uint(struct moe_map *map, const char *key, uint64_t v);
MOE_API void moe_map_float(struct moe_map *map, const char *key, double v);
MOE_API void moe_map_str(struct moe_map *map, const char *key, const char *s);
MOE_API void moe_map_str_n(struct moe_map *map, const char *key, const char *s, size_t n);
MOE_API void moe_map_open_array(struct moe_map *map, const char *key);
MOE_API void moe_map_open_map(struct moe_map *map, const char *key);
MOE_API void moe_map_end(struct moe_map *map);
MOE_API void moe_map_int_key(struct moe_map *map, int64_t key);

/* Reading. A value of another type reads as false, 0 or NULL, so calls nest; a number out of range
 * as the nearest one. Size: values of an array, pairs of a map, bytes of a str or bin. */
enum moe_type { MOE_NIL, MOE_BOOL, MOE_INT, MOE_FLOAT, MOE_STR, MOE_BIN, MOE_ARRAY, MOE_MAP };
MOE_API enum moe_type moe_type(const struct moe_value *v);
MOE_API const struct moe_value *moe_get(const struct moe_value *map, const char *key);
MOE_API size_t moe_size(const struct moe_value *v);
MOE_API const struct moe_value *moe_at(const struct moe_value *v, size_t i);
MOE_API const struct moe_value *moe_key_at(const struct moe_value *map, size_t i);
MOE_API bool moe_bool(const struct moe_value *v);
MOE_API int64_t moe_int(const struct moe_value *v);
MOE_API uint64_t moe_uint(const struct moe_value *v);
MOE_API double moe_float(const struct moe_value *v);    /* integers, too */
MOE_API const char *moe_str(const struct moe_value *v); /* ends in a NUL */
MOE_API const void *moe_bin(const struct moe_value *v);
MOE_API const char *moe_version(void); /* of the library that runs: "0.1.0" */

#ifdef __cplusplus
}
#endif
#endif
