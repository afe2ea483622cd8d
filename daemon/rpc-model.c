/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-model - model.*
 */

#include <stdlib.h>
#include <string.h>

#include "daemon/rpc-methods.h"
#include "daemon/server.h"

enum { RETRY_LOADING_MS = 1000 /* when to ask again while a model loads */ };

static int no_such_model(struct rpc_call *c, const char *id) {
    return id ? why_set(&c->reply->why, RPC_NO_SUCH_MODEL, "no model with the id %.100s", id)
              : why_set(&c->reply->why, RPC_NO_SUCH_MODEL, "there is no model");
}

int rpc_want_admin(struct rpc_call *c) {
    if (channel_is_admin(c->channel))
        return 0;

    return why_set(&c->reply->why, RPC_ACCESS_DENIED,
                   "only root and the service's own user may do this");
}

/* ---- list, availability ---- */

int rpc_model_list(struct rpc_call *c) {
    struct models *m = c->server->models;
    const struct registry *files = models_files(m);
    const char *def = models_default(m);
    msgpack_packer *p = &c->reply->result_pk;

    msgpack_pack_map(p, 1);
    wire_pack_str(p, "models");
    msgpack_pack_array(p, files->n);
    for (size_t i = 0; i < files->n; i++) {
        const struct registry_file *f = &files->file[i];

        msgpack_pack_map(p, 5);
        rpc_pack_str(p, "id", f->id);
        rpc_pack_str(p, "path", f->path);
        rpc_pack_uint(p, "size", f->size);
        rpc_pack_str(p, "state", models_state_name(models_state(m, f->id)));
        rpc_pack_bool(p, "default", def && strcmp(def, f->id) == 0);
    }

    return 0;
}

/* Of a model that is loaded, or could be: would a request find room? */
static bool is_busy(struct models *m, const char *id, uint64_t *ret_ms) {
    const char *resident = models_resident(m);
    bool other = resident && strcmp(resident, id) != 0;
    struct engine_status st;

    models_engine(m, &st);
    *ret_ms = st.step_usec ? st.step_usec * 100 / 1000 + 1 : RETRY_LOADING_MS;
    return other ? models_n_job(m) > 0 || models_state(m, resident) == MODELS_LOADING
                 : st.n_queue_max && st.n_queued >= st.n_queue_max;
}

static int pack_availability(struct rpc_call *c, const char *id) {
    struct models *m = c->server->models;
    enum models_state state = models_state(m, id);
    msgpack_packer *p = &c->reply->result_pk;
    struct engine_status st;
    uint64_t ms;

    if (state == MODELS_FAILED) {
        msgpack_pack_map(p, 2);
        rpc_pack_str(p, "state", "unavailable");
        rpc_pack_str(p, "reason", models_reason(m));
    } else if (state == MODELS_LOADING) {
        models_engine(m, &st);
        msgpack_pack_map(p, 3);
        rpc_pack_str(p, "state", "loading");
        rpc_pack_float(p, "progress",
                       st.bytes_total ? (double)st.bytes_done / (double)st.bytes_total : 0);
        rpc_pack_uint(p, "retry_after_ms", RETRY_LOADING_MS);
    } else if (is_busy(m, id, &ms)) {
        msgpack_pack_map(p, 2);
        rpc_pack_str(p, "state", "busy");
        rpc_pack_uint(p, "retry_after_ms", ms);
    } else {
        msgpack_pack_map(p, 1);
        rpc_pack_str(p, "state", state == MODELS_LOADED ? "available" : "not-loaded");
    }

    return 0;
}

int rpc_model_availability(struct rpc_call *c) {
    AUTO(free) char *id = NULL, *use_case = NULL;
    const struct usecase *u = NULL;
    const struct registry_file *f;
    const char *want;
    int r;

    r = rpc_dup_str(c->params, "id", &id, &c->reply->why);
    if (!r)
        r = rpc_dup_str(c->params, "use_case", &use_case, &c->reply->why);
    if (r)
        return err_up(r);
    if (use_case && !(u = usecase_find(&c->server->config->use_cases, use_case)))
        return why_set(&c->reply->why, RPC_NOT_SUPPORTED, "no use case %.100s", use_case);

    want = id ? id : u ? u->model : NULL;
    f = models_find(c->server->models, want);
    if (!f && want)
        return no_such_model(c, want);
    if (!f) {
        msgpack_pack_map(&c->reply->result_pk, 2);
        rpc_pack_str(&c->reply->result_pk, "state", "unavailable");
        rpc_pack_str(&c->reply->result_pk, "reason", "there is no model");
        return 0;
    }

    return err_up(pack_availability(c, f->id));
}

/* ---- show ---- */

struct show {
    struct errand errand; /* first */
    struct channel_call call;
    struct server *server;
    char *id, *path;
    uint64_t size;
    bool tensors_too;

    /* The errands', until it is done. */
    int r; /* of engine_describe() */
    struct why why;
    msgpack_sbuffer meta, tensors, template;
    msgpack_packer meta_pk, tensors_pk;
    uint32_t n_meta, n_tensor;
    bool has_template;
};

static void pack_text(msgpack_packer *p, const char *s, size_t n) {
    msgpack_object o = { .type = MSGPACK_OBJECT_STR, .via.str = { (uint32_t)n, s } };

    if (n <= WIRE_FRAME_MAX && wire_utf8(&o)) {
        msgpack_pack_str(p, n);
        msgpack_pack_str_body(p, s, n);
    } else {
        msgpack_pack_nil(p);
    }
}

static void pack_value(msgpack_packer *p, const struct engine_value *v) {
    switch (v->kind) {
    case ENGINE_VALUE_UINT:
        msgpack_pack_uint64(p, v->u);
        break;
    case ENGINE_VALUE_INT:
        msgpack_pack_int64(p, v->i);
        break;
    case ENGINE_VALUE_FLOAT:
        msgpack_pack_double(p, v->f);
        break;
    case ENGINE_VALUE_BOOL:
        (void)(v->b ? msgpack_pack_true(p) : msgpack_pack_false(p));
        break;
    case ENGINE_VALUE_STR:
        pack_text(p, v->s, v->n);
        break;
    }
}

static void on_meta(void *arg, const char *key, bool array, const struct engine_value *v,
                    size_t n) {
    struct show *s = arg;

    if (strcmp(key, "tokenizer.chat_template") == 0 && !array && v->kind == ENGINE_VALUE_STR) {
        s->has_template = msgpack_sbuffer_write(&s->template, v->s, v->n) == 0;
        return;
    }

    s->n_meta++;
    pack_text(&s->meta_pk, key, strlen(key));
    if (array)
        msgpack_pack_array(&s->meta_pk, n);
    for (size_t i = 0; i < n; i++)
        pack_value(&s->meta_pk, &v[i]);
}

static void on_tensor(void *arg, const struct engine_tensor *t) {
    struct show *s = arg;
    msgpack_packer *p = &s->tensors_pk;

    s->n_tensor++;
    msgpack_pack_map(p, 4);
    wire_pack_str(p, "name");
    pack_text(p, t->name, strlen(t->name));
    rpc_pack_str(p, "type", t->type);
    wire_pack_str(p, "shape");
    msgpack_pack_array(p, t->n_dim);
    for (uint32_t i = 0; i < t->n_dim; i++)
        msgpack_pack_uint64(p, t->shape[i]);
    rpc_pack_uint(p, "bytes", t->bytes);
}

static void pack_show(const struct show *s, msgpack_packer *p) {
    msgpack_pack_map(p, 5u + s->has_template + s->tensors_too);
    rpc_pack_str(p, "id", s->id);
    rpc_pack_str(p, "path", s->path);
    rpc_pack_uint(p, "size", s->size);
    rpc_pack_str(p, "state", models_state_name(models_state(s->server->models, s->id)));
    wire_pack_str(p, "metadata");
    msgpack_pack_map(p, s->n_meta);
    (void)p->callback(p->data, s->meta.data, s->meta.size);
    if (s->has_template) {
        wire_pack_str(p, "chat_template");
        pack_text(p, s->template.data, s->template.size);
    }
    if (s->tensors_too) {
        wire_pack_str(p, "tensors");
        msgpack_pack_array(p, s->n_tensor);
        (void)p->callback(p->data, s->tensors.data, s->tensors.size);
    }
}

static struct show *show_free(struct show *s) {
    if (!s)
        return NULL;
    msgpack_sbuffer_destroy(&s->meta);
    msgpack_sbuffer_destroy(&s->tensors);
    msgpack_sbuffer_destroy(&s->template);
    free(s->id);
    free(s->path);
    free(s);
    return NULL;
}
AUTO_DEFINE(struct show *, show_free)

static void show_gone(struct channel_call *call) {
    /* The errand is run; show_answer() will find nobody to answer. */
}

static void show_stop(struct channel_call *call, int code) {
    struct rpc_reply reply;

    rpc_reply_init(&reply);
    channel_answer(call, &reply, code);
    rpc_reply_deinit(&reply);
}

static const struct channel_call_ops show_ops = { show_gone, show_stop, NULL };

/* Of a large model nobody has read yet, the directory alone may take seconds. */
static void show_read(struct errand *errand) {
    static const struct engine_describe_ops ops = { on_meta, on_tensor };
    struct show *s = (struct show *)errand;

    s->r = engine_describe(s->path, &ops, s, &s->why);
}

static void show_answer(struct errand *errand) {
    AUTO(show_free) struct show *s = (struct show *)errand;
    struct rpc_reply reply;

    if (!s->call.channel)
        return;
    rpc_reply_init(&reply);
    reply.why = s->why;
    if (!s->r)
        pack_show(s, &reply.result_pk);
    channel_answer(&s->call, &reply, s->r ? RPC_CORRUPT : 0);
    rpc_reply_deinit(&reply);
}

static int show_new(struct rpc_call *c, const struct registry_file *f, struct show **ret_show) {
    AUTO(show_free) struct show *s = calloc(1, sizeof *s);

    if (!s)
        return err_new(-ENOMEM);
    msgpack_packer_init(&s->meta_pk, &s->meta, msgpack_sbuffer_write);
    msgpack_packer_init(&s->tensors_pk, &s->tensors, msgpack_sbuffer_write);
    s->errand = (struct errand){ show_read, show_answer };
    s->server = c->server;
    s->tensors_too = rpc_get_bool(c->params, "tensors");
    s->size = f->size;
    s->id = strdup(f->id);
    s->path = strdup(f->path);
    if (!s->id || !s->path)
        return err_new(-ENOMEM);
    *ret_show = take(s);
    return 0;
}

int rpc_model_show(struct rpc_call *c) {
    AUTO(show_free) struct show *s = NULL;
    AUTO(free) char *id = NULL;
    const struct registry_file *f;
    int r;

    r = rpc_dup_str(c->params, "id", &id, &c->reply->why);
    if (r)
        return err_up(r);
    f = models_find(c->server->models, id);
    if (!f)
        return no_such_model(c, id);

    r = show_new(c, f, &s);
    if (r)
        return err_up(r);
    if (errands_add(c->server->errands, &s->errand) == ERRANDS_FULL) {
        msgpack_pack_map(&c->reply->data_pk, 2);
        rpc_pack_uint(&c->reply->data_pk, "retry_after_ms", RETRY_LOADING_MS);
        rpc_pack_uint(&c->reply->data_pk, "position", ERRANDS_MAX);
        return why_set(&c->reply->why, RPC_BUSY, "%d files wait for the disk", ERRANDS_MAX);
    }
    channel_owe(c->channel, &take(s)->call, c->msgid, &show_ops);
    return RPC_LATER;
}

/* ---- load, unload ---- */

/* Of a caller who may manage models: the name of the one that is meant, NULL: the default. */
static int want_model(struct rpc_call *c, char **ret_id) {
    int r = rpc_want_admin(c);

    return r ? err_up(r) : err_up(rpc_dup_str(c->params, "id", ret_id, &c->reply->why));
}

int rpc_model_load(struct rpc_call *c) {
    struct models *m = c->server->models;
    AUTO(free) char *id = NULL;
    struct task *load;
    int r;

    r = want_model(c, &id);
    if (r)
        return err_up(r);

    r = models_load(m, id, c->channel->peer.uid, &load, &c->reply->why);
    switch (r) {
    case 0:
        msgpack_pack_map(&c->reply->result_pk, 2);
        rpc_pack_uint(&c->reply->result_pk, "job", load->id);
        rpc_pack_str(&c->reply->result_pk, "state",
                     models_state_name(models_state(m, models_resident(m))));
        return 0;
    case MODELS_NONE:
        return RPC_NO_SUCH_MODEL;
    case MODELS_BUSY:
        msgpack_pack_map(&c->reply->data_pk, 2);
        rpc_pack_uint(&c->reply->data_pk, "retry_after_ms", RETRY_LOADING_MS);
        rpc_pack_uint(&c->reply->data_pk, "position", models_n_job(m));
        return RPC_BUSY;
    case MODELS_UNAVAILABLE:
        return RPC_MODEL_UNAVAILABLE;
    case MODELS_MEMORY:
        return rpc_pack_shortage(c);
    default:
        return err_fold(r);
    }
}

/* *ret_none: the wish is to have none. Return: 0 or RPC_INVALID_ARGS. */
static int get_wish(struct rpc_call *c, enum residency_wish *ret_wish, bool *ret_none) {
    size_t n;
    const char *s = rpc_get_str(c->params, "residency", &n);

    *ret_wish = RESIDENCY_PINNED;
    *ret_none = s && n == 4 && memcmp(s, "none", n) == 0;
    if (s && !*ret_none && !residency_parse(s, n, ret_wish))
        return why_set(&c->reply->why, RPC_INVALID_ARGS,
                       "residency: none of none, idle, pressure, pinned");
    return 0;
}

/* Kept, or as long as this connection lives: it is its lease. */
int rpc_model_pin(struct rpc_call *c) {
    struct residency *r = c->server->residency;
    struct residency_lease *lease = rpc_get_bool(c->params, "keep") ? NULL : &c->channel->lease;
    AUTO(free) char *id = NULL;
    enum residency_wish wish;
    bool none = false;
    int k;

    k = want_model(c, &id);
    if (!k)
        k = get_wish(c, &wish, &none);
    if (k)
        return err_up(k);
    if (id && !none && !models_find(c->server->models, id))
        return no_such_model(c, id);

    if (none && lease)
        residency_drop(r, lease);
    else if (none)
        residency_forget(r, id);
    else
        k = lease ? residency_take(r, lease, id, wish) : residency_keep(r, id, wish);
    if (k)
        return err_fold(k);

    msgpack_pack_map(&c->reply->result_pk, 1);
    rpc_pack_str(&c->reply->result_pk, "residency",
                 residency_name(id ? residency_of(r, id) : residency_now(r)));
    return 0;
}

int rpc_model_unload(struct rpc_call *c) {
    AUTO(free) char *id = NULL;
    uint32_t n_job = 0;
    int r;

    r = want_model(c, &id);
    if (r)
        return err_up(r);

    r = models_unload(c->server->models, id, &n_job);
    if (r == MODELS_NONE)
        return no_such_model(c, id);
    if (r == MODELS_BUSY) {
        msgpack_pack_map(&c->reply->data_pk, 1);
        rpc_pack_uint(&c->reply->data_pk, "position", n_job);
        return why_set(&c->reply->why, RPC_BUSY, "%u requests have work there", n_job);
    }
    if (r)
        return err_fold(r);

    msgpack_pack_map(&c->reply->result_pk, 0);
    return 0;
}

/* ---- import, verify ---- */

/* @r: of the beginning of @t. */
static int reply_task(struct rpc_call *c, int r, const struct task *t) {
    if (r == RPC_BUSY) {
        msgpack_pack_map(&c->reply->data_pk, 2);
        rpc_pack_uint(&c->reply->data_pk, "retry_after_ms", RETRY_LOADING_MS);
        rpc_pack_uint(&c->reply->data_pk, "position", IMPORT_MAX);
    }
    if (r)
        return err_up(r);

    msgpack_pack_map(&c->reply->result_pk, 1);
    rpc_pack_uint(&c->reply->result_pk, "job", t->id);
    return 0;
}

static int get_mode(struct rpc_call *c, enum import_mode *ret_mode) {
    size_t n = 0;
    const char *s = rpc_get_str(c->params, "mode", &n);

    if (!import_parse_mode(s ?: "", n, ret_mode))
        return why_set(&c->reply->why, RPC_INVALID_ARGS, "mode: none of reference, reflink, copy");
    return 0;
}

int rpc_model_import(struct rpc_call *c) {
    AUTO(free) char *id = NULL, *digest = NULL, *license = NULL;
    AUTO(close) int fd = conn_take_fd(c->channel->conn);
    struct import_file f = { .fd = fd, .uid = c->channel->peer.uid };
    struct why *why = &c->reply->why;
    struct task *t = NULL;
    int r;

    r = rpc_want_admin(c);
    if (!r && fd < 0)
        r = why_set(why, RPC_INVALID_ARGS, "file: no descriptor came with the request");
    if (!r)
        r = get_mode(c, &f.mode);
    if (!r)
        r = rpc_dup_str(c->params, "id", &id, why);
    if (!r)
        r = rpc_dup_str(c->params, "digest", &digest, why);
    if (!r)
        r = rpc_dup_str(c->params, "license", &license, why);
    if (r)
        return err_up(r);

    f.id = id;
    f.digest = digest;
    f.license = license;
    r = import_begin(c->server->imports, &f, &t, why);
    return reply_task(c, r, t);
}

int rpc_model_verify(struct rpc_call *c) {
    AUTO(free) char *id = NULL;
    struct task *t = NULL;
    int r;

    r = want_model(c, &id);
    if (r)
        return err_up(r);

    r = import_verify(c->server->imports, id, c->channel->peer.uid, &t, &c->reply->why);
    return reply_task(c, r, t);
}
