/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-admin - the interface Admin: what changes things for everybody
 *
 * An interface of its own, so that a bus policy can tell it apart; who may is polkit's to say.
 */

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "daemon/bus-priv.h"
#include "engine/base/log.h"

/* ---- models ---- */

static int load_pack(struct bus_call *c, struct bus_params *p) {
    struct bus_options o;
    const char *id;
    int r;

    r = bus_call_read(c, &id, "", &o, p);
    if (r)
        return err_up(r);

    bus_params_str(p, "id", id);
    return 0;
}

static int load_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    char path[256];

    (void)snprintf(path, sizeof path, BUS_PATH "/job/%ju",
                   (uintmax_t)wire_get(result, "job")->via.u64);
    return sd_bus_message_append(reply, "o", path);
}

/* ---- import, verify ---- */

static int reply_task(struct bus_call *c, const struct task *t) {
    char path[256];
    int r;

    (void)snprintf(path, sizeof path, BUS_PATH "/job/%ju", (uintmax_t)t->id);
    r = sd_bus_reply_method_return(c->m, "o", path);
    return r < 0 ? err_new(r) : 0;
}

static int import_run(struct bus_call *c) {
    struct import_file f = { .fd = -1, .uid = c->peer->who.uid };
    struct bus_options o;
    struct task *t;
    int r;

    r = sd_bus_message_read(c->m, "hs", &f.fd, &f.id);
    if (r >= 0)
        r = bus_options_read(c->m, "mode digest license", &o, &c->params, &c->why);
    if (r)
        return bus_call_unread(c, r);
    if (!import_parse_mode(o.mode ?: "", strlen(o.mode ?: ""), &f.mode))
        return why_set(&c->why, RPC_INVALID_ARGS, "mode: none of reference, reflink, copy");
    f.digest = o.digest;
    f.license = o.license;
    r = import_begin(c->peer->bus->server->imports, &f, &t, &c->why);
    return err_up(r ? r : reply_task(c, t));
}

static int verify_pack(struct bus_call *c, struct bus_params *p) {
    const char *id;

    if (sd_bus_message_read(c->m, "s", &id) < 0)
        return bus_call_unread(c, -EBADMSG);
    bus_params_str(p, "id", id);
    return 0;
}

static int unload_pack(struct bus_call *c, struct bus_params *p) {
    uint32_t flags;
    const char *id;
    int r;

    r = sd_bus_message_read(c->m, "su", &id, &flags);
    if (r < 0)
        return bus_call_unread(c, r);
    if (flags)
        return why_set(&c->why, RPC_INVALID_ARGS, "flags: there are none yet");

    bus_params_str(p, "id", id);
    return 0;
}

static int nothing(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    return 0;
}

static int remove_run(struct bus_call *c) {
    struct models *m = c->peer->bus->server->models;
    const char *id;
    int r;

    if (sd_bus_message_read(c->m, "s", &id) < 0)
        return bus_call_unread(c, -EBADMSG);
    r = models_remove(m, id, &c->why);
    switch (r) {
    case 0:
        log_info("bus", "user %u: %s: removed", (unsigned)c->peer->who.uid, id);
        return bus_call_done(c);
    case MODELS_NONE:
        return RPC_NO_SUCH_MODEL;
    case MODELS_BUSY:
        return RPC_BUSY;
    case MODELS_UNAVAILABLE:
        return RPC_NOT_SUPPORTED;
    default:
        return err_fold(r);
    }
}

/* ---- the service ---- */

/* One way to do it: what SIGHUP does. */
static int reload_run(struct bus_call *c) {
    if (kill(getpid(), SIGHUP) < 0)
        return err_new(-errno);
    return bus_call_done(c);
}

static int set_use_case_run(struct bus_call *c) {
    const struct config *config = c->peer->bus->server->config;
    const char *use_case, *model;
    int r;

    if (sd_bus_message_read(c->m, "ss", &use_case, &model) < 0)
        return bus_call_unread(c, -EBADMSG);
    if (!usecase_find(&config->use_cases, use_case))
        return why_set(&c->why, RPC_NOT_SUPPORTED, "no use case %.64s", use_case);
    if (*model && !models_find(c->peer->bus->server->models, model))
        return why_set(&c->why, RPC_NO_SUCH_MODEL, "no model with the id %.100s", model);

    r = usecase_set_model(use_case, model, &c->why);
    if (r)
        return r > 0 ? RPC_NOT_SUPPORTED : err_up(r);
    return reload_run(c);
}

static int append_session(struct bus *bus, sd_bus_message *reply, const struct session *t) {
    const char *use_case = bus_session_use_case(bus, t->id);
    char path[256];

    (void)snprintf(path, sizeof path, BUS_PATH "/session/%ju", (uintmax_t)t->id);
    return sd_bus_message_append(reply, "(osuusst)", path, t->owner->peer.unit, (uint32_t)t->uid,
                                 (uint32_t)(t->work != NULL), t->state.model, use_case ?: "",
                                 (uint64_t)t->n_used);
}

static int list_run(struct bus_call *c) {
    AUTO(bus_message_unref) sd_bus_message *reply = NULL;
    struct bus *bus = c->peer->bus;
    const struct session *t;
    struct bus_options o;
    int r;

    r = bus_options_read(c->m, "model uid", &o, &c->params, &c->why);
    if (r)
        return bus_call_unread(c, r);
    r = sd_bus_message_new_method_return(c->m, &reply);
    if (r >= 0)
        r = sd_bus_message_open_container(reply, 'a', "(osuusst)");
    for (t = LIST_FIRST(&bus->server->sessions.list); t && r >= 0; t = LIST_NEXT(t, link))
        if ((o.uid == UINT32_MAX || o.uid == t->uid) &&
            (!o.model || strcmp(o.model, t->state.model) == 0))
            r = append_session(bus, reply, t);
    if (r >= 0)
        r = sd_bus_message_close_container(reply);
    if (r >= 0)
        r = sd_bus_send(NULL, reply, NULL);
    return r < 0 ? err_new(r) : 0;
}

/* ---- memory ---- */

static int trim_pack(struct bus_call *c, struct bus_params *p) {
    uint32_t level;

    if (sd_bus_message_read(c->m, "u", &level) < 0)
        return bus_call_unread(c, -EBADMSG);
    rpc_pack_uint(&p->pk, "level", level);
    p->n++;
    return 0;
}

static int trim_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    return sd_bus_message_append(reply, "t", wire_get(result, "freed")->via.u64);
}

/* ---- dispatch ---- */

static const struct bus_gate gates[] = {
    { "LoadModel", "model.load", BUS_MANAGE, load_pack, load_reply, NULL, NULL },
    { "UnloadModel", "model.unload", BUS_MANAGE, unload_pack, nothing, NULL, NULL },
    { "ImportModel", NULL, BUS_MANAGE, NULL, NULL, import_run, NULL },
    { "VerifyModel", "model.verify", BUS_MANAGE, verify_pack, load_reply, NULL, NULL },
    { "RemoveModel", NULL, BUS_MANAGE, NULL, NULL, remove_run, NULL },
    { "SetUseCase", NULL, BUS_MANAGE, NULL, NULL, set_use_case_run, NULL },
    { "ListSessions", NULL, BUS_INSPECT, NULL, NULL, list_run, NULL },
    { "Reload", NULL, BUS_MANAGE, NULL, NULL, reload_run, NULL },
    { "Trim", "memory.trim", BUS_TRIM, trim_pack, trim_reply, NULL, NULL },
};

static int on_method(sd_bus_message *m, void *arg, sd_bus_error *error) {
    return bus_call_new(arg, m, gates, error);
}

/* clang-format off */
static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD_WITH_ARGS("LoadModel",
        SD_BUS_ARGS("s", id, "a{sv}", options),
        SD_BUS_RESULT("o", job), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("UnloadModel",
        SD_BUS_ARGS("s", id, "u", flags),
        SD_BUS_NO_RESULT, on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("ImportModel",
        SD_BUS_ARGS("h", file, "s", id, "a{sv}", options),
        SD_BUS_RESULT("o", job), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("VerifyModel",
        SD_BUS_ARGS("s", id),
        SD_BUS_RESULT("o", job), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("RemoveModel",
        SD_BUS_ARGS("s", id),
        SD_BUS_NO_RESULT, on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("SetUseCase",
        SD_BUS_ARGS("s", use_case, "s", model),
        SD_BUS_NO_RESULT, on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("ListSessions",
        SD_BUS_ARGS("a{sv}", filter),
        SD_BUS_RESULT("a(osuusst)", sessions), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Reload",
        SD_BUS_NO_ARGS,
        SD_BUS_NO_RESULT, on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Trim",
        SD_BUS_ARGS("u", level),
        SD_BUS_RESULT("t", bytes_freed), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_VTABLE_END
};
/* clang-format on */

int bus_admin_add(struct bus *bus) {
    return sd_bus_add_object_vtable(bus->sd, NULL, BUS_PATH, BUS_NAME ".Admin", vtable, bus);
}
