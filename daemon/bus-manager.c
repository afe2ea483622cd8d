/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-manager - the interface Manager: what there is, and answers in one piece
 *
 * The vtable is the interface; dbus/Manager.xml.in says the same for people, and a test compares
 * the two.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/bus-priv.h"

#define SESSION_KEYS                                                                               \
    "use-case model instructions context-tokens priority thinking max-tokens temperature seed "    \
    "sampling idle-timeout-usec"
#define GENERATE_KEYS                                                                              \
    "use-case model instructions language priority thinking max-tokens temperature seed stop "     \
    "deadline-usec"

#define CLASSIFY "language.classify"

/* What @o's use case adds to it. Return: 0 or RPC_NOT_SUPPORTED. */
static int apply_use_case(struct bus_call *c, struct bus_options *o,
                          const struct usecase **ret_use_case) {
    const struct config *config = c->peer->bus->server->config;
    const struct usecase *u;

    *ret_use_case = NULL;
    if (!o->use_case || !*o->use_case)
        return 0;
    u = usecase_find(&config->use_cases, o->use_case);
    if (!u)
        return why_set(&c->why, RPC_NOT_SUPPORTED, "no use case %.64s", o->use_case);

    o->model = o->model ?: u->model;
    o->instructions = o->instructions ?: u->instructions;
    *ret_use_case = u;
    return 0;
}

/* ---- GetAvailability ---- */

/* As the interface numbers them; the names are the RPC's. */
enum availability { UNKNOWN, UNAVAILABLE, NOT_LOADED, LOADING, AVAILABLE, BUSY, DENIED };

static int availability_pack(struct bus_call *c, struct bus_params *p) {
    const struct usecase *u;
    struct bus_options o;
    const char *use_case;
    int r;

    r = bus_call_read(c, &use_case, SESSION_KEYS, &o, p);
    if (r)
        return err_up(r);

    msgpack_sbuffer_clear(&p->buf); /* what the answer does not depend on is only checked */
    p->n = 0;
    o.use_case = *use_case ? use_case : o.use_case;
    c->unknown = apply_use_case(c, &o, &u) != 0;
    c->background = false;
    c->context = o.context;
    if (!c->unknown && o.model)
        bus_params_str(p, "id", o.model);
    return 0;
}

/* It is asked for what may be had, so that is an answer. */
static int availability_denied(struct bus_call *c) {
    return sd_bus_reply_method_return(c->m, "ua{sv}", DENIED, 1, "reason", "s", "denied");
}

static int availability_run(struct bus_call *c) {
    if (!c->unknown)
        return RPC_LATER;
    return sd_bus_reply_method_return(c->m, "ua{sv}", UNKNOWN, 1, "reason", "s", "no-use-case") < 0
               ? RPC_INTERNAL
               : 0;
}

static int availability_reply(struct bus_call *c, const msgpack_object *result,
                              sd_bus_message *reply) {
    static const char *const names[] = { "unknown", "unavailable", "not-loaded",
                                         "loading", "available",   "busy" };
    const msgpack_object *name = wire_get(result, "state"), *retry;
    struct models *m = c->peer->bus->server->models;
    const struct model_info *info = models_info(m);
    uint32_t state = BUSY;
    bool small;
    int r;

    while (state > UNKNOWN && (strlen(names[state]) != name->via.str.size ||
                               memcmp(names[state], name->via.str.ptr, name->via.str.size) != 0))
        state--;
    small = info && (state == AVAILABLE || state == BUSY) && c->context > info->n_ctx;
    state = small ? UNAVAILABLE : state;
    r = sd_bus_message_append(reply, "u", state);
    if (r >= 0)
        r = sd_bus_message_open_container(reply, 'a', "{sv}");
    if (r >= 0 && state == UNAVAILABLE)
        r = sd_bus_message_append(reply, "{sv}", "reason", "s",
                                  small               ? "context"
                                  : models_default(m) ? "load-failed"
                                                      : "no-model");
    if (r >= 0)
        r = bus_append_entry(reply, "progress", 'd', wire_get(result, "progress"));
    retry = wire_get(result, "retry_after_ms");
    if (r >= 0 && retry)
        r = sd_bus_message_append(reply, "{sv}", "retry-after-usec", "t", retry->via.u64 * 1000);
    return r < 0 ? r : sd_bus_message_close_container(reply);
}

/* ---- Respond ---- */

static int put_messages(struct bus_params *p, const struct usecase *u,
                        const struct usecase_words *words, const struct bus_options *o) {
    AUTO(free) char *prompt = u ? usecase_render(u, words) : strdup(words->text);

    if (!prompt)
        return err_new(-ENOMEM);

    p->n++;
    wire_pack_str(&p->pk, "messages");
    msgpack_pack_array(&p->pk, 1 + (o->instructions != NULL));
    if (o->instructions)
        bus_params_message(p, "system", o->instructions);
    bus_params_message(p, "user", prompt);
    return 0;
}

static int respond_pack(struct bus_call *c, struct bus_params *p) {
    const struct usecase *u;
    struct bus_options o;
    const char *text;
    int r;

    r = bus_call_read(c, &text, GENERATE_KEYS, &o, p);
    if (r)
        return err_up(r);

    r = apply_use_case(c, &o, &u);
    if (r)
        return err_up(r);
    if (o.model)
        bus_params_str(p, "model", o.model);
    return err_up(put_messages(p, u, &(struct usecase_words){ text, o.language, NULL }, &o));
}

int bus_manager_answer(const msgpack_object *result, sd_bus_message *reply) {
    const msgpack_object *usage = wire_get(result, "usage");
    /* clang-format off */
    const struct { const char *key; char type; const msgpack_object *value; } info[] = {
        { "stop-reason",      's', wire_get(result, "stop_reason") },
        { "model",            's', wire_get(result, "model")       },
        { "thought",          's', wire_get(result, "thought")     },
        { "seed",             't', wire_get(result, "seed")        },
        { "prompt-tokens",    'u', wire_get(usage, "prompt")       },
        { "cached-tokens",    'u', wire_get(usage, "cached")       },
        { "generated-tokens", 'u', wire_get(usage, "generated")    },
        { "dropped-messages", 'u', wire_get(result, "dropped_messages") },
    };
    /* clang-format on */
    int r;

    r = bus_append_text(reply, wire_get(result, "text"));
    if (r >= 0)
        r = sd_bus_message_open_container(reply, 'a', "{sv}");
    for (size_t i = 0; r >= 0 && i < sizeof info / sizeof info[0]; i++)
        r = bus_append_entry(reply, info[i].key, info[i].type, info[i].value);
    return r < 0 ? r : sd_bus_message_close_container(reply);
}

static int respond_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    return bus_manager_answer(result, reply);
}

/* ---- Classify ---- */

/* "a, b, c"; NULL: out of memory. */
static char *join(char *const *s) {
    size_t n = 1, at = 0;
    char *text;

    for (size_t i = 0; s[i]; i++)
        n += strlen(s[i]) + 2;
    text = calloc(1, n);
    for (size_t i = 0; text && s[i]; i++)
        at += (size_t)snprintf(text + at, n - at, "%s%s", i ? ", " : "", s[i]);
    return text;
}

static int put_choices(struct bus_params *p, char *const *label) {
    uint32_t n = 0;

    while (label[n])
        n++;
    p->n++;
    wire_pack_str(&p->pk, "choices");
    msgpack_pack_array(&p->pk, n);
    for (uint32_t i = 0; i < n; i++)
        wire_pack_str(&p->pk, label[i]);
    return n ? 0 : RPC_INVALID_ARGS;
}

static int classify_pack(struct bus_call *c, struct bus_params *p) {
    AUTO(bus_strv_free) char **label = NULL;
    AUTO(free) char *labels = NULL;
    const struct usecase *u;
    struct bus_options o;
    const char *text;
    int r;

    r = sd_bus_message_read(c->m, "s", &text);
    if (r >= 0)
        r = sd_bus_message_read_strv(c->m, &label);
    if (r >= 0)
        r = bus_options_read(c->m, "use-case model instructions language", &o, p, &c->why);
    if (r)
        return bus_call_unread(c, r);
    if (!label || put_choices(p, label))
        return why_set(&c->why, RPC_INVALID_ARGS, "labels: there are none");

    if (!o.use_case && usecase_find(&c->peer->bus->server->config->use_cases, CLASSIFY))
        o.use_case = CLASSIFY;
    r = apply_use_case(c, &o, &u);
    if (r)
        return err_up(r);
    if (o.model)
        bus_params_str(p, "model", o.model);
    labels = join(label);
    if (!labels)
        return err_new(-ENOMEM);
    return err_up(put_messages(p, u, &(struct usecase_words){ text, o.language, labels }, &o));
}

static int classify_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    const msgpack_object_array *a = &wire_get(result, "choices")->via.array;
    const msgpack_object *usage = wire_get(result, "usage");
    int r;

    r = sd_bus_message_open_container(reply, 'a', "(sd)");
    for (uint32_t i = 0; r >= 0 && i < a->size; i++) {
        r = sd_bus_message_open_container(reply, 'r', "sd");
        if (r >= 0)
            r = bus_append_text(reply, wire_get(&a->ptr[i], "text"));
        if (r >= 0)
            r = sd_bus_message_append(reply, "d", rpc_number(wire_get(&a->ptr[i], "p")));
        if (r >= 0)
            r = sd_bus_message_close_container(reply);
    }
    if (r >= 0)
        r = sd_bus_message_close_container(reply);
    if (r >= 0)
        r = sd_bus_message_open_container(reply, 'a', "{sv}");
    if (r >= 0)
        r = bus_append_entry(reply, "confidence", 'd', wire_get(result, "confidence"));
    if (r >= 0)
        r = bus_append_entry(reply, "prompt-tokens", 'u', wire_get(usage, "prompt"));
    if (r >= 0)
        r = bus_append_entry(reply, "cached-tokens", 'u', wire_get(usage, "cached"));
    return r < 0 ? r : sd_bus_message_close_container(reply);
}

/* ---- CountTokens ---- */

static int count_pack(struct bus_call *c, struct bus_params *p) {
    struct bus_options o;
    const char *text;
    int r;

    r = bus_call_read(c, &text, "", &o, p);
    if (r)
        return err_up(r);

    bus_params_str(p, "text", text);
    return 0;
}

static int count_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    return sd_bus_message_append(reply, "u", wire_get(result, "tokens")->via.array.size);
}

/* ---- Embed ---- */

static int embed_run(struct bus_call *c) {
    return why_set(&c->why, RPC_NOT_SUPPORTED,
                   "there are no embeddings: the service computes answers, not vectors of texts");
}

/* ---- OpenSession ---- */

/* What "sampling" stands for, less what is said one by one: of equal keys the first counts. */
static int put_sampling(struct bus_call *c, struct bus_params *p, const char *sampling) {
    if (strcmp(sampling, "model") != 0 && strcmp(sampling, "greedy") != 0)
        return why_set(&c->why, RPC_INVALID_ARGS, "sampling: none of model, greedy");
    if (strcmp(sampling, "greedy") == 0) {
        rpc_pack_float(&p->pk, "temperature", 0);
        p->n++;
    }
    return 0;
}

static int open_pack(struct bus_call *c, struct bus_params *p) {
    const struct usecase *u;
    struct bus_options o;
    int r;

    r = bus_options_read(c->m, SESSION_KEYS, &o, p, &c->why);
    if (r)
        return bus_call_unread(c, r);
    r = apply_use_case(c, &o, &u);
    if (!r && o.sampling)
        r = put_sampling(c, p, o.sampling);
    if (r)
        return err_up(r);

    if (o.model)
        bus_params_str(p, "model", o.model);
    if (o.instructions)
        bus_params_str(p, "instructions", o.instructions);
    c->background = o.background;
    c->context = o.context;
    c->use_case = u ? strdup(u->id) : NULL; /* a reload replaces them */
    return u && !c->use_case ? err_new(-ENOMEM) : 0;
}

/* Whether the context is large enough is known only while the model is there. */
static int open_run(struct bus_call *c) {
    const struct model_info *info = models_info(c->peer->bus->server->models);

    if (info && c->context > info->n_ctx)
        return why_set(&c->why, RPC_CONTEXT_OVERFLOW,
                       "the context is too small (requested=%u available=%u)", c->context,
                       info->n_ctx);
    return err_up(bus_session_open(c, c->use_case));
}

/* ---- dispatch ---- */

static const struct bus_gate gates[] = {
    { "GetAvailability", "model.availability", BUS_USE, availability_pack, availability_reply,
      availability_run, availability_denied },
    { "OpenSession", NULL, BUS_USE, open_pack, NULL, open_run, NULL },
    { "Respond", "generate", BUS_USE, respond_pack, respond_reply, NULL, NULL },
    { "Classify", "score.choices", BUS_USE, classify_pack, classify_reply, NULL, NULL },
    { "CountTokens", "tokenize", BUS_USE, count_pack, count_reply, NULL, NULL },
    { "Embed", NULL, BUS_USE, NULL, NULL, embed_run, NULL },
};

static int on_method(sd_bus_message *m, void *arg, sd_bus_error *error) {
    return bus_call_new(arg, m, gates, error);
}

/* ---- properties ---- */

/* As the interface numbers them. */
static uint32_t state_of(const struct server *s) {
    static const uint32_t states[] = {
        [MODELS_AVAILABLE] = 0, [MODELS_LOADING] = 1, [MODELS_LOADED] = 2, [MODELS_FAILED] = 3
    };
    const char *id = models_resident(s->models);

    return s->stopping ? 4 : id ? states[models_state(s->models, id)] : 0;
}

static int get_features(sd_bus_message *reply) {
    return sd_bus_message_append(reply, "as", 4, "classify", "respond", "session", "use-cases");
}

static int get_use_cases(sd_bus_message *reply, const struct usecase_list *l) {
    int r = sd_bus_message_open_container(reply, 'a', "{ss}");

    for (size_t i = 0; r >= 0 && i < l->n; i++)
        r = sd_bus_message_append(reply, "{ss}", l->at[i].id, l->at[i].model ?: "");
    return r < 0 ? r : sd_bus_message_close_container(reply);
}

static int get_placement(sd_bus_message *reply, const struct models *m) {
    int r = sd_bus_message_open_container(reply, 'a', "(uut)");
    struct model_shard s;

    for (uint32_t i = 0; r >= 0 && models_shard(m, i, &s); i++)
        r = sd_bus_message_append(reply, "(uut)", s.node, s.n_cpu, s.bytes);
    return r < 0 ? r : sd_bus_message_close_container(reply);
}

static uint32_t n_session(const struct server *s) {
    const struct session *t;
    uint32_t n = 0;

    for (t = LIST_FIRST(&s->sessions.list); t; t = LIST_NEXT(t, link))
        n++;
    return n;
}

static int get_number(sd_bus_message *reply, struct server *s, const char *name) {
    struct engine_status st;

    models_engine(s->models, &st);
    if (strcmp(name, "SessionCount") == 0)
        return sd_bus_message_append(reply, "u", n_session(s));
    if (strcmp(name, "QueueLength") == 0)
        return sd_bus_message_append(reply, "u", st.n_queued);
    if (strcmp(name, "PressureLevel") == 0)
        return sd_bus_message_append(reply, "u", residency_level(s->residency));
    if (strcmp(name, "PowerLevel") == 0)
        return sd_bus_message_append(reply, "u", power_level(s->power));
    return sd_bus_message_append(reply, "u", state_of(s));
}

/* Bytes of the model, and what of the machine's memory it could grow into. */
static int get_memory(sd_bus_message *reply, const struct models *m, bool budget) {
    const struct model_info *info = models_info(m);
    uint64_t n, free = budget ? engine_memory() : 0;
    struct engine_status st;

    models_engine(m, &st);
    n = (info ? info->weight_bytes : 0) + st.kv_bytes;
    return sd_bus_message_append(reply, "t", free > UINT64_MAX - n ? UINT64_MAX : n + free);
}

static int on_get(sd_bus *sd, const char *path, const char *interface, const char *name,
                  sd_bus_message *reply, void *arg, sd_bus_error *error) {
    struct bus *bus = arg;
    struct server *s = bus->server;

    if (strcmp(name, "Version") == 0)
        return sd_bus_message_append(reply, "s", MOE_VERSION);
    if (strcmp(name, "ApiLevel") == 0)
        return sd_bus_message_append(reply, "u", BUS_API_LEVEL);
    if (strcmp(name, "Features") == 0)
        return get_features(reply);
    if (strcmp(name, "UseCases") == 0)
        return get_use_cases(reply, &s->config->use_cases);
    if (strcmp(name, "Placement") == 0)
        return get_placement(reply, s->models);
    if (strncmp(name, "Memory", strlen("Memory")) == 0)
        return get_memory(reply, s->models, strcmp(name, "MemoryBudget") == 0);
    return get_number(reply, s, name);
}

/* clang-format off */
static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD_WITH_ARGS("GetAvailability",
        SD_BUS_ARGS("s", use_case, "a{sv}", requirements),
        SD_BUS_RESULT("u", state, "a{sv}", details), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("OpenSession",
        SD_BUS_ARGS("a{sv}", options),
        SD_BUS_RESULT("o", session, "h", connection), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Respond",
        SD_BUS_ARGS("s", prompt, "a{sv}", options),
        SD_BUS_RESULT("s", text, "a{sv}", info), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Classify",
        SD_BUS_ARGS("s", text, "as", labels, "a{sv}", options),
        SD_BUS_RESULT("a(sd)", scores, "a{sv}", info), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("CountTokens",
        SD_BUS_ARGS("s", text, "a{sv}", options),
        SD_BUS_RESULT("u", tokens), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Embed",
        SD_BUS_ARGS("as", texts, "a{sv}", options),
        SD_BUS_RESULT("aad", vectors, "a{sv}", info), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_SIGNAL_WITH_ARGS("JobRemoved", SD_BUS_ARGS("u", id, "o", job, "u", result), 0),
    SD_BUS_PROPERTY("Version", "s", on_get, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_PROPERTY("ApiLevel", "u", on_get, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_PROPERTY("Features", "as", on_get, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_PROPERTY("UseCases", "a{ss}", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("State", "u", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("SessionCount", "u", on_get, 0, 0),
    SD_BUS_PROPERTY("QueueLength", "u", on_get, 0, 0),
    SD_BUS_PROPERTY("MemoryResident", "t", on_get, 0, 0),
    SD_BUS_PROPERTY("MemoryBudget", "t", on_get, 0, 0),
    SD_BUS_PROPERTY("PressureLevel", "u", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("PowerLevel", "u", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("Placement", "a(uut)", on_get, 0, 0),
    SD_BUS_VTABLE_END
};
/* clang-format on */

int bus_manager_add(struct bus *bus) {
    return sd_bus_add_object_vtable(bus->sd, NULL, BUS_PATH, BUS_MANAGER, vtable, bus);
}

void bus_manager_changed(struct bus *bus) {
    (void)sd_bus_emit_properties_changed(bus->sd, BUS_PATH, BUS_MANAGER, "State", "UseCases",
                                         "PressureLevel", "PowerLevel", NULL);
    bus_kick(bus);
}
