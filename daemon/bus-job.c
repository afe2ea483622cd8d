/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-job - the interface Job: a task as an object
 *
 * There is one for each load, import and verification, as long as its task is found. Requests that
 * are answered are none: who asks what is private.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/bus-priv.h"

#define PREFIX    BUS_PATH "/job"
#define INTERFACE BUS_NAME ".Job"

enum { PATH_SIZE = 256 };

static void path_of(const struct task *t, char path[PATH_SIZE]) {
    (void)snprintf(path, PATH_SIZE, PREFIX "/%ju", (uintmax_t)t->id);
}

static struct task *find(const struct bus *bus, const char *path) {
    unsigned long long id;
    char *end;

    if (strncmp(path, PREFIX "/", strlen(PREFIX "/")) != 0)
        return NULL;
    id = strtoull(path + strlen(PREFIX "/"), &end, 10);
    return *end ? NULL : tasks_find(bus->server->tasks, id);
}

/* As the interface numbers results. */
static uint32_t result_of(enum task_state state) {
    return state == TASK_DONE ? 0 : state == TASK_FAILED ? 1 : 2;
}

/* ---- methods ---- */

static int id_pack(struct bus_call *c, struct bus_params *p) {
    const struct task *t = find(c->peer->bus, sd_bus_message_get_path(c->m));

    p->n++;
    wire_pack_str(&p->pk, "id");
    msgpack_pack_uint64(&p->pk, t->id);
    return 0;
}

static int wait_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    const msgpack_object_str *s = &wire_get(result, "result")->via.str;
    enum task_state state = TASK_DONE;

    while (state < TASK_CANCELLED && (strlen(tasks_state_name(state)) != s->size ||
                                      memcmp(tasks_state_name(state), s->ptr, s->size) != 0))
        state++;
    return sd_bus_message_append(reply, "u", result_of(state));
}

static int cancel_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    return 0;
}

static const struct bus_gate gates[] = {
    { "Wait", "job.wait", BUS_ANYBODY, id_pack, wait_reply, NULL, NULL },
    { "Cancel", "job.cancel", BUS_ANYBODY, id_pack, cancel_reply, NULL, NULL },
};

static int on_method(sd_bus_message *m, void *arg, sd_bus_error *error) {
    return bus_call_new(arg, m, gates, error);
}

/* ---- properties ---- */

static const char *error_of(const struct task *t, char *buf, size_t n) {
    if (t->state != TASK_FAILED)
        return "";
    bus_call_error_name(t->code ? t->code : RPC_MODEL_UNAVAILABLE, buf, n);
    return buf;
}

static int on_get(sd_bus *sd, const char *path, const char *interface, const char *name,
                  sd_bus_message *reply, void *arg, sd_bus_error *error) {
    const struct task *t = find(arg, path);
    char buf[256];

    if (strcmp(name, "Kind") == 0)
        return sd_bus_message_append(reply, "s", tasks_kind_name(t->kind));
    if (strcmp(name, "State") == 0)
        return sd_bus_message_append(reply, "u", (uint32_t)t->state);
    if (strcmp(name, "Stage") == 0)
        return sd_bus_message_append(
            reply, "s", t->state == TASK_RUNNING ? tasks_stage_name(t->kind) : "ended");
    if (strcmp(name, "Error") == 0)
        return sd_bus_message_append(reply, "s", error_of(t, buf, sizeof buf));
    if (strcmp(name, "Progress") == 0)
        return sd_bus_message_append(reply, "d",
                                     t->state == TASK_DONE ? 1.0
                                     : t->total            ? (double)t->done / (double)t->total
                                                           : 0.0);
    return sd_bus_message_append(reply, "t", strcmp(name, "Bytes") == 0 ? t->done : t->total);
}

static int on_find(sd_bus *sd, const char *path, const char *interface, void *arg, void **ret_found,
                   sd_bus_error *error) {
    *ret_found = arg;
    return find(arg, path) != NULL;
}

static int on_list(sd_bus *sd, const char *prefix, void *arg, char ***ret_nodes,
                   sd_bus_error *error) {
    struct bus *bus = arg;
    const struct task *first = tasks_first(bus->server->tasks), *t;
    AUTO(bus_strv_free) char **s = NULL;
    char path[PATH_SIZE];
    size_t n = 0;

    for (t = first; t; t = TAILQ_NEXT(t, link))
        n++;
    s = calloc(n + 1, sizeof *s);
    if (!s)
        return err_new(-ENOMEM);
    n = 0;
    for (t = first; t; t = TAILQ_NEXT(t, link)) {
        path_of(t, path);
        s[n] = strdup(path);
        if (!s[n++])
            return err_new(-ENOMEM);
    }
    *ret_nodes = take(s);
    return 1;
}

/* clang-format off */
static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD_WITH_ARGS("Wait",
        SD_BUS_NO_ARGS,
        SD_BUS_RESULT("u", result), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Cancel",
        SD_BUS_NO_ARGS,
        SD_BUS_NO_RESULT, on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_PROPERTY("Kind", "s", on_get, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_PROPERTY("State", "u", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("Progress", "d", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("Stage", "s", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("Bytes", "t", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("BytesTotal", "t", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("Error", "s", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_VTABLE_END
};
/* clang-format on */

/* ---- what happens ---- */

static void on_task(void *arg, const struct task *t, enum tasks_event what) {
    struct bus *bus = arg;
    char path[PATH_SIZE];

    if (!bus->sd)
        return;
    path_of(t, path);
    switch (what) {
    case TASKS_BEGAN:
        (void)sd_bus_emit_object_added(bus->sd, path);
        break;
    case TASKS_ADVANCED:
        (void)sd_bus_emit_properties_changed(bus->sd, path, INTERFACE, "Progress", "Bytes",
                                             "BytesTotal", NULL);
        break;
    case TASKS_ENDED:
        (void)sd_bus_emit_properties_changed(bus->sd, path, INTERFACE, "State", "Progress", "Stage",
                                             "Error", NULL);
        if (t->kind == TASK_VERIFY)
            bus_model_digest(bus, t->model);
        (void)sd_bus_emit_signal(bus->sd, BUS_PATH, BUS_MANAGER, "JobRemoved", "uou",
                                 (uint32_t)t->id, path, result_of(t->state));
        break;
    case TASKS_FORGOTTEN:
        (void)sd_bus_emit_object_removed(bus->sd, path);
        break;
    }
    bus_kick(bus);
}

void bus_job_watch(struct bus *bus, bool watch) {
    tasks_watch(bus->server->tasks, watch ? on_task : NULL, bus);
}

int bus_job_add(struct bus *bus) {
    int r = sd_bus_add_fallback_vtable(bus->sd, NULL, PREFIX, INTERFACE, vtable, on_find, bus);

    return r < 0 ? r : sd_bus_add_node_enumerator(bus->sd, NULL, PREFIX, on_list, bus);
}
