/* SPDX-License-Identifier: Apache-2.0 */

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "client/moectl.h"

enum {
    SOON_USEC = 10000000,  /* for what the service knows by heart */
    LATER_USEC = 60000000, /* for what it may have to read from disk */
    POLL_USEC = 250000,    /* wait: between two looks */
};

static void put_label(const char *label) {
    (void)printf("%12s: ", label);
}

static void put_row(const struct ctl *c, const char *label, const char *s) {
    put_label(label);
    ctl_puts(c, s);
    (void)putchar('\n');
}

/* Params {id} of the argument, when there is one. NULL: no argument, or no memory. */
static struct moe_map *id_params(const struct ctl *c) {
    struct moe_map *p = c->n_args ? moe_map_new() : NULL;

    moe_map_str(p, "id", c->n_args ? c->args[0] : "");
    return p;
}

/* Connect, call with {id} of the argument. Return: an exit code. */
static int call_id(struct ctl *c, const char *method, uint64_t usec,
                   const struct moe_value **ret_result) {
    struct moe_map *p;
    int r;

    r = c->m ? 0 : ctl_connect(c);
    if (r)
        return r;
    p = id_params(c);
    if (c->n_args && !p)
        return ctl_complain(EXIT_FAILED, "out of memory");
    r = ctl_call(c, method, p, usec, ret_result);
    moe_map_free(p);

    return r;
}

/* A scalar, or a list of them, on one line. */
static void put_value(const struct ctl *c, const struct moe_value *v) {
    switch (moe_type(v)) {
    case MOE_STR:
        ctl_puts(c, moe_str(v));
        break;
    case MOE_INT:
        if (moe_int(v) < 0)
            (void)printf("%jd", (intmax_t)moe_int(v));
        else
            (void)printf("%ju", (uintmax_t)moe_uint(v));
        break;
    case MOE_FLOAT:
        (void)printf("%g", moe_float(v));
        break;
    case MOE_BOOL:
        (void)fputs(moe_bool(v) ? "yes" : "no", stdout);
        break;
    case MOE_ARRAY:
        for (size_t i = 0; i < moe_size(v); i++) {
            (void)fputs(i ? ", " : "", stdout);
            put_value(c, moe_at(v, i));
        }
        break;
    default:
        break;
    }
}

/* How long the model stays, and what is done because memory is short. */
static void put_pressure(const struct ctl *c, const struct moe_value *status) {
    const struct moe_value *pressure = moe_get(status, "pressure");

    put_label("Residency");
    ctl_puts(c, ctl_str(status, "residency"));
    if (ctl_uint(pressure, "level"))
        (void)printf(", memory is short: step %ju of %ju", (uintmax_t)ctl_uint(pressure, "level"),
                     (uintmax_t)ctl_uint(pressure, "max"));
    (void)fputs("\n", stdout);
}

/* What is done to save power, or before the machine sleeps; nothing is said when nothing is. */
static void put_power(const struct ctl *c, const struct moe_value *power) {
    if (!ctl_uint(power, "level"))
        return;
    put_label("Power");
    if (ctl_uint(power, "level") == 1)
        (void)printf("%s, requests of background wait\n",
                     moe_bool(moe_get(power, "saver")) ? "the power saver is on" : "on battery");
    else
        (void)puts("the machine is about to sleep, all requests wait");
}

/* What is kept of prompts and answers, and what that was good for. */
static void put_prefixes(const struct moe_value *v) {
    (void)printf("%12s: %ju, %ju of them public, in %s; %ju hits saved %ju tokens\n", "Kept",
                 (uintmax_t)ctl_uint(v, "kept"), (uintmax_t)ctl_uint(v, "public"),
                 ctl_bytes(ctl_uint(v, "bytes")), (uintmax_t)ctl_uint(v, "hits"),
                 (uintmax_t)ctl_uint(v, "saved"));
}

int verb_status(struct ctl *c) {
    const struct moe_value *v, *memory, *queue, *tokens;
    int r;

    r = ctl_look(c, "server.status", SOON_USEC, &v);
    if (r >= 0)
        return r;
    memory = moe_get(v, "memory");
    queue = moe_get(v, "queue");
    tokens = moe_get(v, "tokens");

    put_row(c, "State", ctl_str(v, "state"));
    if (moe_get(v, "reason"))
        put_row(c, "Reason", ctl_str(v, "reason"));
    if (moe_get(v, "model"))
        put_row(c, "Model", ctl_str(v, "model"));
    if (moe_get(v, "progress"))
        (void)printf("%12s: %.0f %%\n", "Loaded", 100 * moe_float(moe_get(v, "progress")));
    put_label("Service");
    ctl_puts(c, ctl_str(v, "version"));
    (void)printf(", process %ju, up %s\n", (uintmax_t)ctl_uint(v, "pid"),
                 ctl_span(ctl_uint(v, "uptime_us")));
    (void)printf("%12s: %s", "Memory", ctl_bytes(ctl_uint(memory, "resident")));
    (void)printf(" (weights %s, context %s)\n", ctl_bytes(ctl_uint(memory, "weights")),
                 ctl_bytes(ctl_uint(memory, "kv")));
    if (moe_get(v, "weights"))
        (void)printf("%12s: from the model's %s\n", "Weights", ctl_str(v, "weights"));
    if (moe_get(v, "pressure"))
        put_pressure(c, v);
    put_power(c, moe_get(v, "power"));
    (void)printf("%12s: %ju, ", "Threads", (uintmax_t)ctl_uint(v, "threads"));
    ctl_puts(c, ctl_str(v, "tier"));
    if (moe_size(moe_get(v, "shards")) > 1)
        (void)printf(", %zu shards", moe_size(moe_get(v, "shards")));
    (void)printf("\n%12s: %ju running, %ju waiting, %ju at most\n", "Queue",
                 (uintmax_t)ctl_uint(queue, "running"), (uintmax_t)ctl_uint(queue, "waiting"),
                 (uintmax_t)ctl_uint(queue, "max"));
    (void)printf("%12s: %ju\n", "Connections", (uintmax_t)ctl_uint(v, "connections"));
    (void)printf("%12s: %ju read, %ju generated\n", "Tokens", (uintmax_t)ctl_uint(tokens, "prompt"),
                 (uintmax_t)ctl_uint(tokens, "generated"));
    if (moe_get(v, "prefixes"))
        put_prefixes(moe_get(v, "prefixes"));
    return EXIT_OK;
}

int verb_list(struct ctl *c) {
    const struct moe_value *v, *models;
    int width = 5, r;

    r = ctl_look(c, "model.list", SOON_USEC, &v);
    if (r >= 0)
        return r;
    models = moe_get(v, "models");
    if (!moe_size(models) && !c->quiet)
        (void)fputs("There are no models.\n", stderr);
    for (size_t i = 0; i < moe_size(models); i++) {
        int n = (int)moe_size(moe_get(moe_at(models, i), "id"));

        width = n > width && n < 60 ? n : width;
    }
    for (size_t i = 0; i < moe_size(models); i++) {
        const struct moe_value *m = moe_at(models, i);

        ctl_puts(c, ctl_str(m, "id"));
        (void)printf("%*s  %-9s  %10s  ", width - (int)moe_size(moe_get(m, "id")), "",
                     ctl_str(m, "state"), ctl_bytes(ctl_uint(m, "size")));
        ctl_puts(c, ctl_str(m, "path"));
        (void)puts(moe_bool(moe_get(m, "default")) ? "  (default)" : "");
    }

    return EXIT_OK;
}

static void put_tensors(const struct ctl *c, const struct moe_value *tensors) {
    for (size_t i = 0; i < moe_size(tensors); i++) {
        const struct moe_value *t = moe_at(tensors, i), *shape = moe_get(t, "shape");

        (void)printf("%-7s %10s  ", ctl_str(t, "type"), ctl_bytes(ctl_uint(t, "bytes")));
        ctl_puts(c, ctl_str(t, "name"));
        (void)fputs("  [", stdout);
        put_value(c, shape);
        (void)puts("]");
    }
}

int verb_show(struct ctl *c) {
    const struct moe_value *v, *metadata;
    struct moe_map *p;
    int r;

    r = ctl_connect(c);
    if (r)
        return r;
    p = moe_map_new();
    if (c->n_args)
        moe_map_str(p, "id", c->args[0]);
    if (c->tensors)
        moe_map_bool(p, "tensors", true);
    r = ctl_call_with(c, "model.show", p, LATER_USEC, &v);
    if (r)
        return r;
    if (c->json) {
        ctl_put_json(c, v);
        return EXIT_OK;
    }

    metadata = moe_get(v, "metadata");
    put_row(c, "Model", ctl_str(v, "id"));
    put_row(c, "File", ctl_str(v, "path"));
    put_row(c, "Size", ctl_bytes(ctl_uint(v, "size")));
    put_row(c, "State", ctl_str(v, "state"));
    if (moe_get(v, "chat_template"))
        (void)printf("%12s: %zu bytes\n", "Template", moe_size(moe_get(v, "chat_template")));
    for (size_t i = 0; i < moe_size(metadata); i++) {
        put_value(c, moe_key_at(metadata, i));
        (void)fputs(" = ", stdout);
        put_value(c, moe_at(metadata, i));
        (void)putchar('\n');
    }
    put_tensors(c, moe_get(v, "tensors"));
    return EXIT_OK;
}

static void on_job_progress(struct moe *m, const char *method, const struct moe_value *params,
                            void *userdata) {
    const char *stage = moe_str(moe_get(params, "stage"));

    (void)m;
    if (!strcmp(method, "job.progress"))
        ctl_progress(userdata, stage ? stage : "loading", CTL_BYTES, ctl_uint(params, "done"),
                     ctl_uint(params, "total"));
}

int ctl_wait_for_job(struct ctl *c, uint64_t job, const char *done) {
    const struct moe_value *v = NULL;
    struct moe_map *p = moe_map_new();
    int r;

    moe_map_uint(p, "id", job);
    moe_set_notify(c->m, on_job_progress, c);
    r = ctl_call_with(c, "job.wait", p, MOE_FOREVER, &v);
    moe_set_notify(c->m, NULL, NULL);
    ctl_progress_clear(c);
    if (r)
        return r;
    if (c->json)
        ctl_put_json(c, v);
    if (strcmp(ctl_str(v, "result"), "done"))
        return ctl_complain(EXIT_NO_MODEL, "the model was not %s: %s", done,
                            moe_get(v, "reason") ? ctl_str(v, "reason") : ctl_str(v, "result"));

    return EXIT_OK;
}

int verb_load(struct ctl *c) {
    const struct moe_value *v;
    int r;

    r = call_id(c, "model.load", LATER_USEC, &v);
    if (r)
        return r;
    if (!c->no_wait)
        return ctl_wait_for_job(c, ctl_uint(v, "job"), "loaded");
    if (c->json)
        ctl_put_json(c, v);

    return EXIT_OK;
}

int verb_unload(struct ctl *c) {
    const struct moe_value *v;
    int r;

    r = call_id(c, "model.unload", LATER_USEC, &v);
    if (!r && c->json)
        ctl_put_json(c, v);

    return r;
}

/* A wish that outlives this connection, or its end. Others may be stronger: what counts is told. */
static int keep_wish(struct ctl *c, const char *residency) {
    const struct moe_value *v;
    struct moe_map *p;
    int r;

    r = ctl_connect(c);
    if (r)
        return r;
    p = moe_map_new();
    if (c->n_args)
        moe_map_str(p, "id", c->args[0]);
    moe_map_str(p, "residency", residency);
    moe_map_bool(p, "keep", true);
    r = ctl_call_with(c, "model.pin", p, SOON_USEC, &v);
    if (!r && c->json)
        ctl_put_json(c, v);
    else if (!r && !c->quiet)
        put_row(c, "Residency", ctl_str(v, "residency"));

    return r;
}

int verb_pin(struct ctl *c) {
    return keep_wish(c, "pinned");
}

int verb_unpin(struct ctl *c) {
    return keep_wish(c, "none");
}

int verb_wait(struct ctl *c) {
    uint64_t waited = 0;

    for (;;) {
        const struct moe_value *v;
        const char *state;
        int r;

        r = call_id(c, "model.availability", SOON_USEC, &v);
        if (r)
            return r;
        state = ctl_str(v, "state");
        if (!strcmp(state, "available") || !strcmp(state, "busy")) {
            if (c->json)
                ctl_put_json(c, v);
            return EXIT_OK;
        }
        if (!strcmp(state, "unavailable"))
            return ctl_complain(EXIT_NO_MODEL, "the model is not available: %s",
                                moe_get(v, "reason") ? ctl_str(v, "reason") : "no reason given");
        if (waited >= c->deadline_usec)
            return ctl_complain(EXIT_NO_MODEL, "the model is not ready after %s: %s",
                                ctl_span(waited), state);
        if (moe_get(v, "progress"))
            ctl_progress(c, state, CTL_PARTS, (uint64_t)(1000 * moe_float(moe_get(v, "progress"))),
                         1000);
        /* Nothing is outstanding: what the service may say meanwhile does not shorten the wait. */
        r = ctl_poll(c, -1, POLL_USEC);
        if (r == 2)
            return EXIT_INTERRUPTED;
        if (r < 0)
            return ctl_complain_errno(c, r);
        waited += POLL_USEC;
    }
}

/* A token's bytes in C's notation: tokens may be parts of characters, and have any byte. */
static void put_piece(const struct moe_value *piece) {
    const unsigned char *p = moe_bin(piece);

    (void)putchar('"');
    for (size_t i = 0; i < moe_size(piece); i++) {
        if (p[i] == '\n')
            (void)fputs("\\n", stdout);
        else if (p[i] == '"' || p[i] == '\\')
            (void)printf("\\%c", p[i]);
        else if (p[i] < 0x80 && isprint(p[i]))
            (void)putchar(p[i]);
        else
            (void)printf("\\%03o", p[i]);
    }
    (void)puts("\"");
}

int verb_tokenize(struct ctl *c) {
    const struct moe_value *v, *tokens, *pieces;
    struct ctl_text text = { 0 };
    struct moe_map *p;
    int r;

    r = ctl_read_input(c, 0, &text);
    if (!r)
        r = ctl_connect(c);
    if (r) {
        free(text.p);
        return r;
    }
    p = moe_map_new();
    moe_map_str_n(p, "text", text.p, text.n);
    moe_map_bool(p, "special", c->special);
    moe_map_bool(p, "bos", c->bos);
    moe_map_bool(p, "pieces", true);
    r = ctl_call_with(c, "tokenize", p, MOE_FOREVER, &v);
    free(text.p);
    if (r)
        return r;
    if (c->json) {
        ctl_put_json(c, v);
        return EXIT_OK;
    }

    tokens = moe_get(v, "tokens");
    pieces = moe_get(v, "pieces");
    for (size_t i = 0; i < moe_size(tokens); i++) {
        (void)printf("%ju\t", (uintmax_t)moe_uint(moe_at(tokens, i)));
        put_piece(moe_at(pieces, i));
    }
    return EXIT_OK;
}
