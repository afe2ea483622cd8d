/* SPDX-License-Identifier: Apache-2.0 */

/*
 * language - the interface org.freedesktop.impl.portal.Language
 *
 * Language.xml beside this says the same for people, and a test compares the two. A method here
 * reads what the bus brought, and calls moed; moed's callbacks answer the method.
 */

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/portal/input.h"
#include "client/portal/portal.h"

#define PREFIX "language."

/* ---- what is sent to moed ---- */

/* (xdsss) */
struct options {
    int64_t max_tokens;
    double temperature;
    const char *source, *target, *mode;
};

static int read_options(sd_bus_message *m, struct options *o, sd_bus_error *error) {
    int r;

    r = sd_bus_message_read(m, "(xdsss)", &o->max_tokens, &o->temperature, &o->source, &o->target,
                            &o->mode);
    if (r < 0)
        return r;
    if (o->max_tokens < 1)
        return sd_bus_error_set(error, PORTAL_ERROR "InvalidArgument",
                                "maximum_response_tokens is less than 1");
    if (!isfinite(o->temperature) || o->temperature < 0)
        return sd_bus_error_set(error, PORTAL_ERROR "InvalidArgument",
                                "temperature is less than 0");
    if (strcmp(o->mode, "interactive") != 0 && strcmp(o->mode, "background") != 0)
        return sd_bus_error_set(error, PORTAL_ERROR "InvalidArgument",
                                "execution_mode is neither interactive nor background");
    return 0;
}

static void on_done(struct moe *moe, uint32_t id, const struct moe_result *result,
                    const struct moe_error *error, void *userdata) {
    static const bool last = true;
    struct request *r = userdata;

    if (!error && r->kind == REQUEST_RESPOND)
        request_signal(r, "TokenReceived", "", 0, &last);
    else if (!error && r->kind == REQUEST_PREDICT)
        request_signal(r, "PredictionReceived", result->text, result->n_text, &last);
    if (error)
        request_fail(r, error);
    else if (r->call)
        (void)sd_bus_reply_method_return(r->call, NULL);
    r->call = sd_bus_message_unref(r->call);
    request_free(r);
}

static void on_delta(struct moe *moe, uint32_t id, const struct moe_delta *delta, void *userdata) {
    static const bool last = false;

    if (!delta->thought && delta->n_text)
        request_signal(userdata, "TokenReceived", delta->text, delta->n_text, &last);
}

static void on_progress(struct moe *moe, uint32_t id, const char *stage, uint64_t done,
                        uint64_t total, void *userdata) {
    char text[64];
    int n;

    if (strcmp(stage, "loading") != 0)
        return;
    n = snprintf(text, sizeof text, "The model is being loaded: %.0f %%",
                 total ? 100.0 * (double)done / (double)total : 0.0);
    request_signal(userdata, "ModelLoading", text, (size_t)n, NULL);
}

/* Ask for an answer to @msg [n], after the session's instructions. */
static int generate(struct request *r, const struct moe_message *msg, size_t n,
                    const struct options *o) {
    struct moe_map *more = moe_map_new();
    struct moe_generate g = MOE_GENERATE_INIT;
    struct moe_message *all = calloc(n + 1, sizeof *all);
    int k = -ENOMEM;

    if (!all)
        goto out;
    if (*r->session->instructions)
        all[g.n_messages++] = (struct moe_message){ "system", r->session->instructions };
    (void)memcpy(all + g.n_messages, msg, n * sizeof *all);
    g.n_messages += n;
    moe_map_str(more, "use_case", r->session->use_case);
    if (o && *o->target)
        moe_map_str(more, "language", o->target);

    g.messages = all;
    g.max_tokens = o ? (uint64_t)o->max_tokens : 1;
    g.temperature = o ? o->temperature : -1;
    g.priority = o ? o->mode : NULL;
    g.more = more;
    g.on_delta = r->kind == REQUEST_RESPOND ? on_delta : NULL;
    g.on_progress = on_progress;
    g.userdata = r;
    k = moe_generate(r->portal->moe, &g, on_done, &r->id);
out:
    free(all);
    (void)moe_map_free(more);
    return k;
}

/* Of a request that was begun, what moed's library said. Return: what a bus callback does. */
static int sent(struct request *r, int k, sd_bus_error *error) {
    if (k >= 0)
        return 1;
    r->call = sd_bus_message_unref(r->call); /* the error below is the answer */
    request_free(r);
    return k == -EAGAIN ? sd_bus_error_set(error, PORTAL_ERROR "Failed", "too many requests") : k;
}

/* ---- availability, sessions ---- */

static void reply_availability(struct request *r, bool is, const char *status, const char *reason) {
    if (r->call)
        (void)sd_bus_reply_method_return(r->call, "(bss)", (int)is, status, reason);
    r->call = sd_bus_message_unref(r->call);
}

static const char *status_of(int code) {
    switch (code) {
    case MOE_NOT_SUPPORTED:
        return "unsupported_use_case";
    case MOE_NO_SUCH_MODEL:
        return "profile_not_installed";
    case MOE_ACCESS_DENIED:
        return "permission_denied";
    default:
        return "runtime_missing";
    }
}

static void on_availability(struct moe *moe, uint32_t id, const struct moe_value *result,
                            const struct moe_error *error, void *userdata) {
    const char *state = moe_str(moe_get(result, "state")),
               *why = moe_str(moe_get(result, "reason"));
    struct request *r = userdata;

    if (error)
        reply_availability(r, false, status_of(error->code), error->message);
    else if (!state || strcmp(state, "unavailable") == 0)
        reply_availability(r, false, "artifact_missing", why ? why : "the model cannot be loaded");
    else
        reply_availability(r, true, "available", state);
    request_free(r);
}

/* Ask moed how a use case is. */
static int ask_use_case(struct request *r, const char *use_case, moe_reply_fn reply) {
    struct moe_map *params = moe_map_new();
    int k;

    moe_map_str(params, "use_case", use_case);
    k = params ? moe_call(r->portal->moe, "model.availability", params, reply, NULL, r, &r->id)
               : -ENOMEM;
    (void)moe_map_free(params);
    return k;
}

static bool is_language(const char *use_case) {
    return strncmp(use_case, PREFIX, strlen(PREFIX)) == 0;
}

static int get_use_case_availability(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    const char *app_id, *use_case;
    struct request *r;
    int k;

    k = sd_bus_message_read(m, "ss", &app_id, &use_case);
    if (k < 0)
        return k;
    if (!is_language(use_case))
        return sd_bus_reply_method_return(m, "(bss)", 0, "unsupported_use_case",
                                          "it is no use case of language");
    k = request_new(userdata, m, REQUEST_AVAILABILITY, NULL, NULL, &r, error);
    if (sd_bus_error_has_name(error, PORTAL_ERROR "Failed")) {
        k = sd_bus_reply_method_return(m, "(bss)", 0, "runtime_missing", error->message);
        sd_bus_error_free(error);
        return k;
    }
    return k < 0 ? k : sent(r, ask_use_case(r, use_case, on_availability), error);
}

static void on_create(struct moe *moe, uint32_t id, const struct moe_value *result,
                      const struct moe_error *error, void *userdata) {
    const char *state = moe_str(moe_get(result, "state")),
               *why = moe_str(moe_get(result, "reason"));
    struct moe_error none = { .code = MOE_MODEL_UNAVAILABLE, .message = why };
    struct request *r = userdata;
    struct session *s = r->session;

    if (error)
        none = *error;
    if (none.code == MOE_NOT_SUPPORTED)
        none.code = MOE_INVALID_ARGS; /* as the portal has it for a use case that is not */
    if (error || !state || strcmp(state, "unavailable") == 0)
        request_fail(r, &none);
    if (r->call && session_export(s) < 0)
        request_fail(r, &(struct moe_error){ .message = "the path is in use" });
    if (!r->call) {
        r->session = NULL; /* it was no session yet; without one it was closed meanwhile */
        (void)session_free(s);
    } else {
        (void)sd_bus_reply_method_return(r->call, NULL);
        r->call = sd_bus_message_unref(r->call);
    }
    request_free(r);
}

static int create_session(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    const char *handle, *path, *app_id, *window, *use_case, *instructions;
    struct portal *p = userdata;
    struct session *s = NULL;
    struct request *r = NULL;
    int k;

    k = sd_bus_message_read(m, "oossss", &handle, &path, &app_id, &window, &use_case,
                            &instructions);
    if (k < 0)
        return k;
    if (!is_language(use_case))
        return sd_bus_error_setf(error, PORTAL_ERROR "InvalidArgument",
                                 "%s is no use case of language", use_case);
    if (strlen(instructions) > PORTAL_TEXT_MAX)
        return sd_bus_error_set(error, PORTAL_ERROR "InvalidArgument",
                                "the instructions are larger than 1 MiB");
    k = session_new(p, m, path, use_case, instructions, &s, error);
    if (k >= 0)
        k = request_new(p, m, REQUEST_CREATE, handle, s, &r, error);
    if (k >= 0) {
        k = sent(r, ask_use_case(r, use_case, on_create), error);
        if (k > 0)
            return k;
    }
    (void)session_free(s);
    return k;
}

/* ---- requests of a session ---- */

static int prewarm(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    static const struct moe_message nothing = { "user", "" };
    const char *handle, *path;
    struct session *s;
    struct request *r;
    int k;

    k = sd_bus_message_read(m, "oo", &handle, &path);
    if (k >= 0)
        k = session_find(userdata, m, path, &s, error);
    if (k >= 0)
        k = request_new(userdata, m, REQUEST_PREWARM, handle, s, &r, error);
    /* What an answer begins with is evaluated for this, and kept; the one token is lost. */
    return k < 0 ? k : sent(r, generate(r, &nothing, 1, NULL), error);
}

static int stream_response(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    const char *handle, *path, *json, *why;
    struct input in = { 0 };
    struct options o;
    struct session *s;
    struct request *r;
    int k;

    k = sd_bus_message_read(m, "oos", &handle, &path, &json);
    if (k >= 0)
        k = sd_bus_message_skip(m, "ah"); /* media, which are refused where the text names them */
    if (k >= 0)
        k = read_options(m, &o, error);
    if (k >= 0)
        k = session_find(userdata, m, path, &s, error);
    if (k < 0)
        return k;
    k = input_parse(json, &in, &why);
    if (k > 0)
        return sd_bus_error_set(
            error, k == INPUT_BAD ? PORTAL_ERROR "InvalidArgument" : SD_BUS_ERROR_NOT_SUPPORTED,
            why);
    if (!k)
        k = request_new(userdata, m, REQUEST_RESPOND, handle, s, &r, error);
    if (k >= 0)
        k = sent(r, generate(r, in.msg, in.n, &o), error);
    input_deinit(&in);
    return k;
}

static int stream_predict_next(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    const char *handle, *path, *prefix;
    struct portal *p = userdata;
    struct request *r, *old;
    struct options o;
    struct session *s;
    int k;

    k = sd_bus_message_read(m, "oos", &handle, &path, &prefix);
    if (k >= 0)
        k = read_options(m, &o, error);
    if (k >= 0)
        k = session_find(p, m, path, &s, error);
    if (k >= 0 && strcmp(s->use_case, PREFIX "complete") != 0)
        k = sd_bus_error_setf(error, PORTAL_ERROR "InvalidArgument", "the session is for %s",
                              s->use_case);
    if (k >= 0)
        k = request_new(p, m, REQUEST_PREDICT, handle, s, &r, error);
    if (k < 0)
        return k;

    LIST_FOREACH(old, &p->requests, link)
    if (old != r && old->session == s && old->kind == REQUEST_PREDICT)
        request_cancel(old, "a newer prediction was asked for");
    return sent(r, generate(r, &(struct moe_message){ "user", prefix }, 1, &o), error);
}

static int not_supported(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    return sd_bus_error_setf(error, SD_BUS_ERROR_NOT_SUPPORTED, "%s is not supported yet",
                             sd_bus_message_get_member(m));
}

/* ---- the interface ---- */

static int get_version(sd_bus *bus, const char *path, const char *interface, const char *property,
                       sd_bus_message *reply, void *userdata, sd_bus_error *error) {
    return sd_bus_message_append(reply, "u", 1);
}

#define HANDLES SD_BUS_PARAM(handle) SD_BUS_PARAM(session_handle)

/* clang-format off */
static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD_WITH_NAMES("GetUseCaseAvailability",
        "ss", SD_BUS_PARAM(app_id) SD_BUS_PARAM(use_case), "(bss)", SD_BUS_PARAM(availability),
        get_use_case_availability, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_NAMES("CreateSession",
        "oossss", HANDLES SD_BUS_PARAM(app_id) SD_BUS_PARAM(parent_window) SD_BUS_PARAM(use_case)
        SD_BUS_PARAM(instructions), "",, create_session, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_NAMES("Prewarm",
        "oo", HANDLES, "",, prewarm, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_NAMES("StreamResponse",
        "oosah(xdsss)", HANDLES SD_BUS_PARAM(input_json) SD_BUS_PARAM(media_fds)
        SD_BUS_PARAM(options), "",, stream_response, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_NAMES("StreamPredictNext",
        "oos(xdsss)", HANDLES SD_BUS_PARAM(prefix) SD_BUS_PARAM(options), "",,
        stream_predict_next, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_NAMES("StreamRespondGuided",
        "oosaha(sssb)a(sss)(xds)", HANDLES SD_BUS_PARAM(prompt) SD_BUS_PARAM(media_fds)
        SD_BUS_PARAM(fields) SD_BUS_PARAM(tools) SD_BUS_PARAM(options), "",,
        not_supported, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_NAMES("StreamSubmitToolResultsGuided",
        "oosaha(sss)a(sssb)a(sss)(xds)", HANDLES SD_BUS_PARAM(prompt) SD_BUS_PARAM(media_fds)
        SD_BUS_PARAM(results) SD_BUS_PARAM(fields) SD_BUS_PARAM(tools) SD_BUS_PARAM(options), "",,
        not_supported, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_NAMES("StreamEmbed",
        "oos(s)", HANDLES SD_BUS_PARAM(text) SD_BUS_PARAM(options), "",,
        not_supported, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_SIGNAL_WITH_NAMES("ModelLoading", "oos", HANDLES SD_BUS_PARAM(message), 0),
    SD_BUS_SIGNAL_WITH_NAMES("TokenReceived", "oosb",
        HANDLES SD_BUS_PARAM(token) SD_BUS_PARAM(done), 0),
    SD_BUS_SIGNAL_WITH_NAMES("PredictionReceived", "oosb",
        HANDLES SD_BUS_PARAM(completion) SD_BUS_PARAM(done), 0),
    SD_BUS_SIGNAL_WITH_NAMES("GuidedSnapshotReceived", "oosb",
        HANDLES SD_BUS_PARAM(snapshot_json) SD_BUS_PARAM(done), 0),
    SD_BUS_SIGNAL_WITH_NAMES("GuidedToolCallsReceived", "ooa(sss)b",
        HANDLES SD_BUS_PARAM(tool_calls) SD_BUS_PARAM(done), 0),
    SD_BUS_SIGNAL_WITH_NAMES("EmbeddingReceived", "ooadsb",
        HANDLES SD_BUS_PARAM(embedding) SD_BUS_PARAM(embedding_pipeline_id) SD_BUS_PARAM(done), 0),
    SD_BUS_PROPERTY("version", "u", get_version, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_VTABLE_END,
};
/* clang-format on */

int language_add(struct portal *p) {
    return sd_bus_add_object_vtable(p->bus, NULL, PORTAL_PATH, PORTAL_IMPL "Language", vtable, p);
}
