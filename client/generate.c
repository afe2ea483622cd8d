/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/moe-session.h"

/* One generate on its way: what to call back. Freed by its reply, which always comes. */
struct generate {
    uint32_t id;
    moe_delta_fn on_delta;
    moe_progress_fn on_progress;
    moe_done_fn done;
    void *userdata;
};

static struct moe_result read_result(const struct moe_value *v) {
    const struct moe_value *usage = moe_get(v, "usage"), *timings = moe_get(v, "timings");
    const struct moe_value *text = moe_get(v, "text"), *thought = moe_get(v, "thought");
    const char *reason = moe_str(moe_get(v, "stop_reason")), *model = moe_str(moe_get(v, "model"));

    return (struct moe_result){
        .text = moe_str(text),
        .thought = moe_str(thought),
        .n_text = moe_size(text),
        .n_thought = moe_size(thought),
        .stop_reason = reason ? reason : "stop",
        .stop = moe_str(moe_get(v, "stop")),
        .model = model ? model : "",
        .seed = moe_uint(moe_get(v, "seed")),
        .n_prompt = moe_uint(moe_get(usage, "prompt")),
        .n_cached = moe_uint(moe_get(usage, "cached")),
        .n_generated = moe_uint(moe_get(usage, "generated")),
        .n_dropped = moe_uint(moe_get(usage, "dropped")),
        .queue_usec = moe_uint(moe_get(timings, "queue_us")),
        .prefill_usec = moe_uint(moe_get(timings, "prefill_us")),
        .decode_usec = moe_uint(moe_get(timings, "decode_us")),
        .logprobs = moe_get(v, "logprobs"),
        .value = v,
    };
}

static void on_notify(struct moe *m, const char *method, const struct moe_value *params,
                      void *userdata) {
    const struct generate *g = userdata;
    const struct moe_value *text = moe_get(params, "text");
    const char *kind = moe_str(moe_get(params, "kind")), *stage = moe_str(moe_get(params, "stage"));
    struct moe_delta d = {
        .thought = kind && !strcmp(kind, "thought"),
        .text = moe_str(text),
        .n_text = moe_size(text),
        .seq = moe_uint(moe_get(params, "seq")),
        .logprobs = moe_get(params, "logprobs"),
    };

    /* Kinds and stages of a newer service are not for us. */
    if (!strcmp(method, "generate.delta") && g->on_delta && d.text && kind &&
        (d.thought || !strcmp(kind, "text")))
        g->on_delta(m, g->id, &d, g->userdata);
    else if (!strcmp(method, "generate.progress") && g->on_progress && stage)
        g->on_progress(m, g->id, stage, moe_uint(moe_get(params, "done")),
                       moe_uint(moe_get(params, "total")), g->userdata);
}

static void on_reply(struct moe *m, uint32_t id, const struct moe_value *value,
                     const struct moe_error *error, void *userdata) {
    struct generate *g = userdata;
    struct moe_result result = read_result(value);

    if (g->done)
        g->done(m, id, error ? NULL : &result, error, g->userdata);
    free(g);
}

static void put_sampling(struct moe_map *p, const struct moe_generate *g) {
    if (g->max_tokens)
        moe_map_uint(p, "max_tokens", g->max_tokens);
    if (g->deadline_ms)
        moe_map_uint(p, "deadline_ms", g->deadline_ms);
    if (g->priority)
        moe_map_str(p, "priority", g->priority);
    if (g->temperature >= 0)
        moe_map_float(p, "temperature", g->temperature);
    if (g->top_p >= 0)
        moe_map_float(p, "top_p", g->top_p);
    if (g->min_p >= 0)
        moe_map_float(p, "min_p", g->min_p);
    if (g->top_k >= 0)
        moe_map_int(p, "top_k", g->top_k);
    if (g->logprobs >= 0)
        moe_map_int(p, "logprobs", g->logprobs);
    if (g->seed)
        moe_map_uint(p, "seed", *g->seed);
    if (g->n_stop) {
        moe_map_open_array(p, "stop");
        for (size_t i = 0; i < g->n_stop; i++)
            moe_map_str(p, NULL, g->stop[i]);
        moe_map_end(p);
    }
}

void client_put_messages(struct moe_map *p, const struct moe_message *messages, size_t n) {
    moe_map_open_array(p, "messages");
    for (size_t i = 0; i < n; i++) {
        moe_map_open_map(p, NULL);
        moe_map_str(p, "role", messages[i].role);
        moe_map_str(p, "content", messages[i].content);
        moe_map_end(p);
    }
    moe_map_end(p);
}

static void put_input(struct moe_map *p, const struct moe_generate *g) {
    if (g->messages)
        client_put_messages(p, g->messages, g->n_messages);
    if (g->prompt)
        moe_map_str(p, "prompt", g->prompt);
    if (g->tokens) {
        moe_map_open_array(p, "tokens");
        for (size_t i = 0; i < g->n_tokens; i++)
            moe_map_uint(p, NULL, g->tokens[i]);
        moe_map_end(p);
    }
    if (g->model)
        moe_map_str(p, "model", g->model);
    if (g->special)
        moe_map_bool(p, "special", true);
    if (g->thinking)
        moe_map_bool(p, "thinking", true);
    if (g->on_delta)
        moe_map_bool(p, "stream", true);
    if (g->echo)
        moe_map_bool(p, "echo", true);
}

/* @session: NULL: it is generate, not session.generate */
static int start(struct moe *m, const uint64_t *session, const struct moe_generate *g,
                 moe_done_fn done, uint32_t *ret_id) {
    int n_source = !!g->messages + !!g->prompt + !!g->tokens;
    struct generate *own;
    struct moe_map *p;
    int r;

    if (g->size != sizeof *g || (session ? g->prompt || g->tokens || g->model : n_source != 1))
        return -EINVAL;
    own = calloc(1, sizeof *own);
    p = moe_map_new();
    r = own && p ? 0 : -ENOMEM;
    if (!r) {
        *own = (struct generate){ .on_delta = g->on_delta,
                                  .on_progress = g->on_progress,
                                  .done = done,
                                  .userdata = g->userdata };
        if (session)
            moe_map_uint(p, "session", *session);
        put_input(p, g);
        put_sampling(p, g);
        r = client_call2(m, session ? "session.generate" : "generate", p, g->more, on_reply,
                         on_notify, own, &own->id);
    }
    moe_map_free(p);
    if (r < 0) {
        free(own);
        return r;
    }

    if (ret_id)
        *ret_id = own->id;
    return 0;
}

int moe_generate(struct moe *m, const struct moe_generate *g, moe_done_fn done, uint32_t *ret_id) {
    return start(m, NULL, g, done, ret_id);
}

int moe_session_generate(struct moe *m, uint64_t session, const struct moe_generate *g,
                         moe_done_fn done, uint32_t *ret_id) {
    return start(m, &session, g, done, ret_id);
}

/* The callbacks of a caller who waits, and whether it is over. */
struct waiter {
    const struct moe_generate *g;
    bool done;
    int r;
};

static void wait_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    const struct waiter *w = userdata;

    w->g->on_delta(m, id, d, w->g->userdata);
}

static void wait_progress(struct moe *m, uint32_t id, const char *stage, uint64_t done,
                          uint64_t total, void *userdata) {
    const struct waiter *w = userdata;

    w->g->on_progress(m, id, stage, done, total, w->g->userdata);
}

static void wait_done(struct moe *m, uint32_t id, const struct moe_result *result,
                      const struct moe_error *error, void *userdata) {
    struct waiter *w = userdata;

    (void)id;
    (void)result;
    w->r = client_keep(m, error);
    w->done = true;
}

static int start_wait(struct moe *m, const uint64_t *session, const struct moe_generate *g,
                      const struct moe_result **ret_result) {
    struct waiter w = { .g = g };
    struct moe_generate own;
    uint32_t id;
    int r;

    if (m->busy)
        return -EBUSY;
    if (g->size != sizeof *g)
        return -EINVAL;
    own = *g;
    own.on_delta = g->on_delta ? wait_delta : NULL;
    own.on_progress = g->on_progress ? wait_progress : NULL;
    own.userdata = &w;

    m->kept.failed = false;
    r = start(m, session, &own, wait_done, &id);
    if (r < 0)
        return r;
    r = client_run(m, &w.done, id);
    if (r == -EINTR) {
        (void)moe_cancel(m, id);
        client_flush(m);
    }
    if (r < 0 || w.r < 0)
        return r < 0 ? r : w.r;
    if (m->kept.failed)
        return -EREMOTEIO;

    m->kept.result = read_result(client_kept_value(m));
    if (ret_result)
        *ret_result = &m->kept.result;
    return 0;
}

int moe_generate_wait(struct moe *m, const struct moe_generate *g,
                      const struct moe_result **ret_result) {
    return start_wait(m, NULL, g, ret_result);
}

int moe_session_generate_wait(struct moe *m, uint64_t session, const struct moe_generate *g,
                              const struct moe_result **ret_result) {
    return start_wait(m, &session, g, ret_result);
}
