/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-model - the interface Model: a model of the folder as an object
 *
 * What a file says of itself is read when its object is made: when the service looks at the folder,
 * and there is one that was not there, or has changed.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/bus-priv.h"
#include "daemon/origin.h"

#define PREFIX    BUS_PATH "/model"
#define INTERFACE BUS_NAME ".Model"

struct bus_model {
    LIST_ENTRY(bus_model) link;
    char *id, *path; /* of the object */
    char *file;
    struct timespec mtime;
    uint64_t size;
    char arch[64], quant[32], license[256], digest[ORIGIN_DIGEST];
    uint32_t n_ctx, n_expert, n_used;
    uint32_t state;        /* as the interface numbers it, when it was told */
    uint64_t loaded_since; /* by the clock; 0: it is not */
    bool there;            /* while the list is compared with the folder */
};

/* ---- what a file says ---- */

static void copy_text(char *to, size_t n, const struct engine_value *v) {
    msgpack_object o = { .type = MSGPACK_OBJECT_STR, .via.str = { (uint32_t)v->n, v->s } };

    if (v->kind == ENGINE_VALUE_STR && v->n < n && wire_utf8(&o) && !memchr(v->s, '\0', v->n))
        (void)snprintf(to, n, "%.*s", (int)v->n, v->s);
}

static bool ends_in(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);

    return n >= k && strcmp(s + n - k, end) == 0;
}

static void on_meta(void *arg, const char *key, bool array, const struct engine_value *v,
                    size_t n) {
    struct bus_model *m = arg;

    if (array || !n)
        return;
    if (strcmp(key, "general.architecture") == 0)
        copy_text(m->arch, sizeof m->arch, v);
    else if (strcmp(key, "general.license") == 0 && !m->license[0])
        copy_text(m->license, sizeof m->license, v);
    else if (v->kind != ENGINE_VALUE_UINT)
        return;
    else if (ends_in(key, ".context_length"))
        m->n_ctx = (uint32_t)v->u;
    else if (ends_in(key, ".expert_count"))
        m->n_expert = (uint32_t)v->u;
    else if (ends_in(key, ".expert_used_count"))
        m->n_used = (uint32_t)v->u;
}

/* The format of most of a model is that of its largest tensors. */
struct describe {
    struct bus_model m; /* first: on_meta() takes it */
    uint64_t largest;
};

static void on_tensor(void *arg, const struct engine_tensor *t) {
    struct describe *d = arg;

    if (t->bytes <= d->largest)
        return;
    d->largest = t->bytes;
    (void)snprintf(d->m.quant, sizeof d->m.quant, "%s", t->type);
}

static void describe(struct bus_model *m) {
    static const struct engine_describe_ops ops = { on_meta, on_tensor };
    struct describe d = { .m = *m };
    struct origin o;

    origin_read(m->file, &o);
    (void)snprintf(d.m.license, sizeof d.m.license, "%s", o.license);
    (void)snprintf(d.m.digest, sizeof d.m.digest, "%s", o.digest);
    (void)engine_describe(m->file, &ops, &d, NULL);
    *m = d.m;
}

/* ---- those there are ---- */

static struct bus_model *object_free(struct bus_model *m) {
    free(m->id);
    free(m->path);
    free(m->file);
    free(m);
    return NULL;
}

static struct bus_model *find(const struct bus *bus, const char *path) {
    struct bus_model *m = LIST_FIRST(&bus->models);

    while (m && strcmp(m->path, path) != 0)
        m = LIST_NEXT(m, link);
    return m;
}

static struct bus_model *find_id(const struct bus *bus, const char *id) {
    struct bus_model *m = LIST_FIRST(&bus->models);

    while (m && strcmp(m->id, id) != 0)
        m = LIST_NEXT(m, link);
    return m;
}

static struct bus_model *object_new(const struct registry_file *f) {
    struct bus_model *m = calloc(1, sizeof *m);

    if (!m)
        return NULL;
    m->id = strdup(f->id);
    m->file = strdup(f->path);
    if (!m->id || !m->file || sd_bus_path_encode(PREFIX, f->id, &m->path) < 0)
        return object_free(m);
    return m;
}

/* As the interface numbers it. */
static uint32_t state_of(const struct bus *bus, const struct bus_model *m) {
    return (uint32_t)models_state(bus->server->models, m->id);
}
_Static_assert(MODELS_AVAILABLE == 0 && MODELS_LOADING == 1 && MODELS_LOADED == 2 &&
                   MODELS_FAILED == 3,
               "as the interface numbers them");

static void tell_state(struct bus *bus, struct bus_model *m) {
    uint32_t state = state_of(bus, m);
    struct timespec now;

    if (state == m->state)
        return;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    m->state = state;
    m->loaded_since = state == MODELS_LOADED
                          ? (uint64_t)now.tv_sec * CLOCK_SECOND + (uint64_t)now.tv_nsec / 1000
                          : 0;
    (void)sd_bus_emit_properties_changed(bus->sd, m->path, INTERFACE, "State", "Resident",
                                         "LoadedSince", NULL);
}

/* The object of @f: made, or read anew when the file is another one. */
static void look_at(struct bus *bus, const struct registry_file *f) {
    struct bus_model *m = find_id(bus, f->id);
    struct stat st = { 0 };
    bool new = !m;

    if (new)
        m = object_new(f);
    if (!m)
        return;
    m->there = true;
    (void)stat(f->path, &st);
    if (new || m->size != f->size || m->mtime.tv_sec != st.st_mtim.tv_sec ||
        m->mtime.tv_nsec != st.st_mtim.tv_nsec) {
        m->size = f->size;
        m->mtime = st.st_mtim;
        describe(m);
    }
    if (!new)
        return;
    LIST_INSERT_HEAD(&bus->models, m, link);
    (void)sd_bus_emit_object_added(bus->sd, m->path);
}

void bus_model_look(struct bus *bus) {
    const struct registry *files = models_files(bus->server->models);
    struct bus_model *m, *next;

    for (m = LIST_FIRST(&bus->models); m; m = LIST_NEXT(m, link))
        m->there = false;
    for (size_t i = 0; i < files->n; i++)
        look_at(bus, &files->file[i]);
    for (m = LIST_FIRST(&bus->models); m; m = next) {
        next = LIST_NEXT(m, link);
        if (m->there) {
            tell_state(bus, m);
            continue;
        }
        (void)sd_bus_emit_object_removed(bus->sd, m->path);
        LIST_REMOVE(m, link);
        (void)object_free(m);
    }
    bus_kick(bus);
}

/* A verification may have found the digest. */
void bus_model_digest(struct bus *bus, const char *id) {
    struct bus_model *m = find_id(bus, id);
    struct origin o;

    if (!m)
        return;
    origin_read(m->file, &o);
    if (strcmp(o.digest, m->digest) == 0)
        return;
    (void)strcpy(m->digest, o.digest);
    (void)sd_bus_emit_properties_changed(bus->sd, m->path, INTERFACE, "Digest", NULL);
}

void bus_model_free_all(struct bus *bus) {
    struct bus_model *m;

    while ((m = LIST_FIRST(&bus->models))) {
        LIST_REMOVE(m, link);
        (void)object_free(m);
    }
}

/* ---- residency ---- */

/* As the interface numbers what is kept about a model. */
static const char *const residencies[] = { "none", "pinned", "pressure" };
enum { N_RESIDENCY = sizeof residencies / sizeof residencies[0] };

static uint32_t get_residency(const struct bus *bus, const struct bus_model *m) {
    enum residency_wish wish;
    uint32_t i = N_RESIDENCY;

    if (!residency_kept(bus->server->residency, m->id, &wish))
        return 0;
    while (--i && strcmp(residencies[i], residency_name(wish)) != 0)
        ;
    return i;
}

static int set_pack(struct bus_call *c, struct bus_params *p) {
    const struct bus_model *m = find(c->peer->bus, sd_bus_message_get_path(c->m));
    uint32_t v = 0;
    int r;

    r = sd_bus_message_read(c->m, "ssv", NULL, NULL, "u", &v);
    if (r < 0)
        return why_set(&c->why, RPC_INVALID_ARGS, "Residency: not of type u");
    if (v >= N_RESIDENCY)
        return why_set(&c->why, RPC_INVALID_ARGS, "Residency: not 0, 1 or 2");
    bus_params_str(p, "id", m->id);
    bus_params_str(p, "residency", residencies[v]);
    rpc_pack_bool(&p->pk, "keep", true);
    p->n++;
    return 0;
}

static int set_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    return 0;
}

static const struct bus_gate set_gates[] = {
    { "Set", "model.pin", BUS_MANAGE, set_pack, set_reply, NULL, NULL },
};

/* A property's setter has to answer at once, and polkit is not waited for: so this one is taken out
 * before it gets there. */
static int on_message(sd_bus_message *m, void *arg, sd_bus_error *error) {
    const char *interface, *name;
    bool ours;

    if (!sd_bus_message_is_method_call(m, "org.freedesktop.DBus.Properties", "Set") ||
        !find(arg, sd_bus_message_get_path(m)))
        return 0;
    ours = sd_bus_message_read(m, "ss", &interface, &name) > 0 &&
           strcmp(interface, INTERFACE) == 0 && strcmp(name, "Residency") == 0;
    if (sd_bus_message_rewind(m, true) < 0 || !ours)
        return 0;
    return bus_call_new(arg, m, set_gates, error);
}

/* Nobody comes here. */
static int on_set(sd_bus *sd, const char *path, const char *interface, const char *name,
                  sd_bus_message *value, void *arg, sd_bus_error *error) {
    return -EOPNOTSUPP;
}

/* ---- properties ---- */

static int get_number(const struct bus *bus, const struct bus_model *m, const char *name,
                      sd_bus_message *reply) {
    const struct model_info *info = models_info(bus->server->models);
    bool loaded = info && strcmp(models_resident(bus->server->models), m->id) == 0;
    const struct {
        const char *name;
        uint32_t value;
    } small[] = { { "State", state_of(bus, m) },
                  { "ContextMax", loaded ? info->n_ctx : m->n_ctx },
                  { "ExpertCount", m->n_expert },
                  { "ExpertsUsed", m->n_used },
                  { "Residency", get_residency(bus, m) } };

    for (size_t i = 0; i < sizeof small / sizeof small[0]; i++)
        if (strcmp(name, small[i].name) == 0)
            return sd_bus_message_append(reply, "u", small[i].value);
    return sd_bus_message_append(reply, "t",
                                 strcmp(name, "Size") == 0       ? m->size
                                 : strcmp(name, "Resident") == 0 ? (loaded ? info->weight_bytes : 0)
                                                                 : m->loaded_since);
}

static int on_get(sd_bus *sd, const char *path, const char *interface, const char *name,
                  sd_bus_message *reply, void *arg, sd_bus_error *error) {
    const struct bus_model *m = find(arg, path);
    const struct {
        const char *name, *value;
    } texts[] = { { "Id", m->id },
                  { "Digest", m->digest },
                  { "Architecture", m->arch },
                  { "Quantization", m->quant },
                  { "License", m->license } };

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (strcmp(name, texts[i].name) == 0)
            return sd_bus_message_append(reply, "s", texts[i].value);
    if (strcmp(name, "Capabilities") == 0)
        return sd_bus_message_append(reply, "as", 3, "classify", "generate", "tokenize");
    return get_number(arg, m, name, reply);
}

static int on_find(sd_bus *sd, const char *path, const char *interface, void *arg, void **ret_found,
                   sd_bus_error *error) {
    *ret_found = arg;
    return find(arg, path) != NULL;
}

static int on_list(sd_bus *sd, const char *prefix, void *arg, char ***ret_nodes,
                   sd_bus_error *error) {
    AUTO(bus_strv_free) char **s = NULL;
    const struct bus_model *m;
    struct bus *bus = arg;
    size_t n = 0;

    for (m = LIST_FIRST(&bus->models); m; m = LIST_NEXT(m, link))
        n++;
    s = calloc(n + 1, sizeof *s);
    if (!s)
        return err_new(-ENOMEM);
    n = 0;
    for (m = LIST_FIRST(&bus->models); m; m = LIST_NEXT(m, link)) {
        s[n] = strdup(m->path);
        if (!s[n++])
            return err_new(-ENOMEM);
    }
    *ret_nodes = take(s);
    return 1;
}

/* clang-format off */
static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_PROPERTY("Id", "s", on_get, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_PROPERTY("Digest", "s", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("Architecture", "s", on_get, 0, 0),
    SD_BUS_PROPERTY("Quantization", "s", on_get, 0, 0),
    SD_BUS_PROPERTY("Size", "t", on_get, 0, 0),
    SD_BUS_PROPERTY("Resident", "t", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_PROPERTY("ContextMax", "u", on_get, 0, 0),
    SD_BUS_PROPERTY("ExpertCount", "u", on_get, 0, 0),
    SD_BUS_PROPERTY("ExpertsUsed", "u", on_get, 0, 0),
    SD_BUS_PROPERTY("State", "u", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_WRITABLE_PROPERTY("Residency", "u", on_get, on_set, 0, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_PROPERTY("Capabilities", "as", on_get, 0, 0),
    SD_BUS_PROPERTY("License", "s", on_get, 0, 0),
    SD_BUS_PROPERTY("LoadedSince", "t", on_get, 0, SD_BUS_VTABLE_PROPERTY_EMITS_CHANGE),
    SD_BUS_VTABLE_END
};
/* clang-format on */

int bus_model_add(struct bus *bus) {
    int r = sd_bus_add_fallback_vtable(bus->sd, NULL, PREFIX, INTERFACE, vtable, on_find, bus);

    if (r >= 0)
        r = sd_bus_add_filter(bus->sd, NULL, on_message, bus);
    return r < 0 ? r : sd_bus_add_node_enumerator(bus->sd, NULL, PREFIX, on_list, bus);
}
