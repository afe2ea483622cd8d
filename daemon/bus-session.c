/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-session - the interface Session: a session of the protocol as an object
 *
 * OpenSession makes a connection and opens a session in it; the object is there as long as both
 * are. Only its caller sees it, and root may call it: what is private is neither listed nor
 * broadcast. Its methods are requests of the protocol in the name of its user.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/bus-priv.h"
#include "daemon/work.h"

#define PREFIX       BUS_PATH "/session"
#define INTERFACE    BUS_NAME ".Session"
#define RESPOND_KEYS "priority thinking max-tokens temperature seed stop deadline-usec overflow"

/* ---- those there are ---- */

static struct bus_session *session_free(struct bus_session *s) {
    LIST_REMOVE(s, link);
    free(s->use_case);
    free(s);
    return NULL;
}

static struct channel *channel_of(const struct bus_session *s) {
    struct channel *at = LIST_FIRST(&s->peer->bus->server->channels);

    while (at && at->id != s->channel)
        at = LIST_NEXT(at, link);
    return at;
}

static struct session *session_of(const struct bus_session *s) {
    return session_find(s->peer->bus->server, s->who.uid, s->id);
}

void bus_session_close(struct bus_session *s) {
    (void)channel_free(channel_of(s)); /* and with it the session */
    (void)session_free(s);
}

void bus_session_prune(struct bus_peer *peer) {
    struct bus_session *s, *next;

    for (s = LIST_FIRST(&peer->sessions); s; s = next) {
        next = LIST_NEXT(s, link);
        if (!channel_of(s))
            (void)session_free(s);
    }
}

const char *bus_session_use_case(const struct bus *bus, uint64_t id) {
    const struct bus_peer *peer;
    const struct bus_session *s;

    for (peer = LIST_FIRST(&bus->peers); peer; peer = LIST_NEXT(peer, link))
        for (s = LIST_FIRST(&peer->sessions); s; s = LIST_NEXT(s, link))
            if (s->id == id)
                return s->use_case;
    return NULL;
}

/* The one at @path; NULL: there is none, or it ended. */
static struct bus_session *find(const struct bus *bus, const char *path) {
    struct bus_peer *peer;
    struct bus_session *s;
    unsigned long long id;
    char *end;

    if (strncmp(path, PREFIX "/", strlen(PREFIX "/")) != 0)
        return NULL;
    id = strtoull(path + strlen(PREFIX "/"), &end, 10);
    if (*end)
        return NULL;
    for (peer = LIST_FIRST(&bus->peers); peer; peer = LIST_NEXT(peer, link))
        for (s = LIST_FIRST(&peer->sessions); s; s = LIST_NEXT(s, link))
            if (s->id == id)
                return channel_of(s) && session_of(s) ? s : NULL;
    return NULL;
}

/* ---- opening ---- */

static int reply_with(struct bus_call *c, uint64_t id, int fd) {
    char path[256];
    int r;

    (void)snprintf(path, sizeof path, PREFIX "/%ju", (uintmax_t)id);
    r = sd_bus_reply_method_return(c->m, "oh", path, fd);
    return r < 0 ? err_new(r) : 0;
}

/* Open a session by @method, with the parameters of @c, in a connection of its own, and reply.
 * Return: as run(). */
static int open_by(struct bus_call *c, const char *method, const char *use_case) {
    struct bus_peer *peer = c->peer;
    AUTO(close) int theirs = -1;
    struct bus_session *s;
    struct channel *channel;
    int r;

    bus_session_prune(peer);
    r = bus_call_connect(c, false, &channel, &theirs);
    if (r)
        return err_up(r);
    s = calloc(1, sizeof *s);
    if (!s) {
        (void)channel_free(channel);
        return err_new(-ENOMEM);
    }
    s->peer = peer;
    s->who = channel->peer;
    s->channel = channel->id;
    LIST_INSERT_HEAD(&peer->sessions, s, link);
    r = bus_call_ask(c, channel, method, "session", &s->id);
    if (!r && use_case && !(s->use_case = strdup(use_case)))
        r = err_new(-ENOMEM);
    if (!r)
        r = reply_with(c, s->id, theirs);
    if (r)
        bus_session_close(s);
    return err_up(r);
}

int bus_session_open(struct bus_call *c, const char *use_case) {
    return err_up(open_by(c, "session.open", use_case));
}

/* ---- methods ---- */

/* The session that @c is for, when its caller may do that; requests then are of the session's user.
 * Return: 0, RPC_NO_SUCH_SESSION, RPC_ACCESS_DENIED. */
static int enter(struct bus_call *c, struct bus_session **ret_s) {
    const char *path = sd_bus_message_get_path(c->m);
    struct bus_session *s = find(c->peer->bus, path);

    if (!s)
        return why_set(&c->why, RPC_NO_SUCH_SESSION, "no session %.100s", path);
    if (s->peer != c->peer && c->peer->who.uid != 0)
        return why_set(&c->why, RPC_ACCESS_DENIED, "the session is another caller's");
    c->as = &s->who;
    *ret_s = s;
    return 0;
}

/* .method answers, for the session of the object. */
static int ask_run(struct bus_call *c) {
    struct bus_session *s = NULL;
    int r = enter(c, &s);

    if (r)
        return err_up(r);
    wire_pack_str(&c->params.pk, "session");
    msgpack_pack_uint64(&c->params.pk, s->id);
    c->params.n++;
    return RPC_LATER;
}

static int respond_pack(struct bus_call *c, struct bus_params *p) {
    struct bus_options o;
    const char *text;
    int r;

    r = bus_call_read(c, &text, RESPOND_KEYS, &o, p);
    if (r)
        return err_up(r);

    p->n++;
    wire_pack_str(&p->pk, "messages");
    msgpack_pack_array(&p->pk, 1);
    bus_params_message(p, "user", text);
    return 0;
}

/* Tell the caller, and nobody else, what the answer went without. */
static void say_dropped(struct bus_call *c, const msgpack_object *result) {
    const msgpack_object *n_message = wire_get(result, "dropped_messages");
    const msgpack_object *n_token = wire_get(wire_get(result, "usage"), "dropped");
    AUTO(bus_message_unref) sd_bus_message *m = NULL;
    int r;

    if (!n_message || !n_message->via.u64)
        return;
    r = sd_bus_message_new_signal(c->peer->bus->sd, &m, sd_bus_message_get_path(c->m), INTERFACE,
                                  "ContextDropped");
    if (r >= 0)
        r = sd_bus_message_set_destination(m, c->peer->name);
    if (r >= 0)
        r = sd_bus_message_append(m, "uu", (uint32_t)n_message->via.u64,
                                  n_token ? (uint32_t)n_token->via.u64 : 0);
    if (r >= 0)
        (void)sd_bus_send(NULL, m, NULL);
}

static int respond_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    say_dropped(c, result);
    return bus_manager_answer(result, reply);
}

/* One (role, variant): so far all content is text. */
static int read_message(struct bus_call *c, struct bus_params *p) {
    const char *role, *type, *text;
    int r;

    r = sd_bus_message_read(c->m, "s", &role);
    if (r >= 0)
        r = sd_bus_message_peek_type(c->m, NULL, &type);
    if (r >= 0 && strcmp(type, "s") != 0)
        return why_set(&c->why, RPC_INVALID_ARGS, "messages: content is of type s, not %.32s",
                       type);
    if (r >= 0)
        r = sd_bus_message_read(c->m, "v", "s", &text);
    if (r < 0)
        return err_new(r);

    bus_params_message(p, role, text);
    return 0;
}

static int append_pack(struct bus_call *c, struct bus_params *p) {
    struct bus_params list = { 0 };
    int r;

    msgpack_packer_init(&list.pk, &list.buf, msgpack_sbuffer_write);
    r = sd_bus_message_enter_container(c->m, 'a', "(sv)");
    while (r >= 0 && (r = sd_bus_message_enter_container(c->m, 'r', "sv")) > 0) {
        r = read_message(c, &list);
        if (r > 0)
            break;
        list.n++;
        if (r == 0)
            r = sd_bus_message_exit_container(c->m);
    }
    if (r == 0) {
        p->n++;
        wire_pack_str(&p->pk, "messages");
        msgpack_pack_array(&p->pk, list.n);
        if (list.n)
            (void)msgpack_sbuffer_write(&p->buf, list.buf.data, list.buf.size);
    }
    msgpack_sbuffer_destroy(&list.buf);
    return bus_call_unread(c, r);
}

static int append_reply(struct bus_call *c, const msgpack_object *result, sd_bus_message *reply) {
    return sd_bus_message_append(reply, "u", (uint32_t)wire_get(result, "context_used")->via.u64);
}

static int clone_pack(struct bus_call *c, struct bus_params *p) {
    struct bus_options o;

    return bus_call_unread(c, bus_options_read(c->m, "", &o, p, &c->why));
}

static int clone_run(struct bus_call *c) {
    struct bus_session *s;
    int r = ask_run(c);

    if (r != RPC_LATER)
        return err_up(r);
    s = find(c->peer->bus, sd_bus_message_get_path(c->m));
    return err_up(open_by(c, "session.clone", s->use_case));
}

static int cancel_run(struct bus_call *c) {
    struct bus_session *s = NULL;
    struct session *t;
    int r = enter(c, &s);

    if (r)
        return err_up(r);
    t = session_of(s);
    if (t->work)
        work_stop(t->work, RPC_CANCELLED);
    return bus_call_done(c);
}

static int close_run(struct bus_call *c) {
    struct bus_session *s = NULL;
    int r = enter(c, &s);

    if (r)
        return err_up(r);
    bus_session_close(s);
    return bus_call_done(c);
}

static const struct bus_gate gates[] = {
    { "Respond", "session.generate", BUS_ANYBODY, respond_pack, respond_reply, ask_run, NULL },
    { "Append", "session.append", BUS_ANYBODY, append_pack, append_reply, ask_run, NULL },
    { "Clone", NULL, BUS_ANYBODY, clone_pack, NULL, clone_run, NULL },
    { "Cancel", NULL, BUS_ANYBODY, NULL, NULL, cancel_run, NULL },
    { "Close", NULL, BUS_ANYBODY, NULL, NULL, close_run, NULL },
};

static int on_method(sd_bus_message *m, void *arg, sd_bus_error *error) {
    return bus_call_new(arg, m, gates, error);
}

/* ---- properties ---- */

static int get_text(sd_bus_message *reply, const struct bus_session *s, const struct session *t,
                    const char *name) {
    AUTO(free) char *path = NULL;
    int r;

    if (strcmp(name, "UseCase") == 0)
        return sd_bus_message_append(reply, "s", s->use_case ?: "");
    r = sd_bus_path_encode(BUS_PATH "/model", t->state.model, &path);
    return r < 0 ? r : sd_bus_message_append(reply, "o", path);
}

static int on_get(sd_bus *sd, const char *path, const char *interface, const char *name,
                  sd_bus_message *reply, void *arg, sd_bus_error *error) {
    const struct bus_session *s = find(arg, path);
    const struct session *t = session_of(s);
    const struct models *m = s->peer->bus->server->models;
    const struct model_info *info = models_info(m);
    uint32_t n = 0;

    if (strcmp(name, "UseCase") == 0 || strcmp(name, "Model") == 0)
        return get_text(reply, s, t, name);
    if (strcmp(name, "ContextWindow") == 0)
        n = info && strcmp(models_resident(m), t->state.model) == 0 ? info->n_ctx : 0;
    else if (strcmp(name, "ContextUsed") == 0)
        n = t->n_used;
    else if (strcmp(name, "Priority") == 0)
        n = (uint32_t)t->state.class;
    else
        n = t->work != NULL;
    return sd_bus_message_append(reply, "u", n);
}

/* Background work is asked leave for when a session is opened; a property cannot wait for that. */
static int on_set(sd_bus *sd, const char *path, const char *interface, const char *name,
                  sd_bus_message *value, void *arg, sd_bus_error *error) {
    struct session *t = session_of(find(arg, path));
    uint32_t v;
    int r;

    r = sd_bus_message_read(value, "u", &v);
    if (r < 0)
        return r;
    if (v != FAIR_DEFAULT && v != FAIR_INTERACTIVE)
        return sd_bus_error_set(error, SD_BUS_ERROR_INVALID_ARGS, "Priority: not 0 or 1");
    t->state.class = (enum fair_class)v;
    return 0;
}

_Static_assert(FAIR_DEFAULT == 0 && FAIR_INTERACTIVE == 1 && FAIR_BACKGROUND == 2,
               "as the interface numbers them");

/* Methods are enter()'s to answer, also of what is no session; all else is the owner's alone. */
static int on_find(sd_bus *sd, const char *path, const char *interface, void *arg, void **ret_found,
                   sd_bus_error *error) {
    sd_bus_message *m = sd_bus_get_current_message(sd);
    const struct bus_session *s = find(arg, path);
    const char *sender = m ? sd_bus_message_get_sender(m) : NULL;

    *ret_found = arg;
    return sender && (sd_bus_message_is_method_call(m, INTERFACE, NULL) ||
                      (s && strcmp(sender, s->peer->name) == 0));
}

/* clang-format off */
static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD_WITH_ARGS("Respond",
        SD_BUS_ARGS("s", prompt, "a{sv}", options),
        SD_BUS_RESULT("s", text, "a{sv}", info), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Append",
        SD_BUS_ARGS("a(sv)", messages),
        SD_BUS_RESULT("u", context_used), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Clone",
        SD_BUS_ARGS("a{sv}", options),
        SD_BUS_RESULT("o", session, "h", connection), on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Cancel",
        SD_BUS_NO_ARGS,
        SD_BUS_NO_RESULT, on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_METHOD_WITH_ARGS("Close",
        SD_BUS_NO_ARGS,
        SD_BUS_NO_RESULT, on_method, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_SIGNAL_WITH_ARGS("ContextDropped", SD_BUS_ARGS("u", messages, "u", tokens), 0),
    SD_BUS_PROPERTY("Model", "o", on_get, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_PROPERTY("UseCase", "s", on_get, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_PROPERTY("ContextWindow", "u", on_get, 0, 0),
    SD_BUS_PROPERTY("ContextUsed", "u", on_get, 0, 0),
    SD_BUS_PROPERTY("State", "u", on_get, 0, 0),
    SD_BUS_WRITABLE_PROPERTY("Priority", "u", on_get, on_set, 0, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_VTABLE_END
};
/* clang-format on */

int bus_session_add(struct bus *bus) {
    return sd_bus_add_fallback_vtable(bus->sd, NULL, PREFIX, INTERFACE, vtable, on_find, bus);
}
