/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/rpc-methods.h"
#include "daemon/rpc.h"
#include "daemon/server.h"
#include "engine/base/log.h"
#include "engine/base/utf8.h"

#define MODEL_ERRORS "NoSuchModel ModelUnavailable InsufficientMemory Busy"
/* What generate, session.generate and session.open share. */
#define SAMPLE_PARAMS                                                                              \
    "max_tokens:u? temperature:f? top_p:f? min_p:f? top_k:u? repeat_last_n:u? repeat_penalty:f? "  \
    "frequency_penalty:f? presence_penalty:f? seed:u? "
#define GENERATE_PARAMS                                                                            \
    "logit_bias:m? stop:a? logprobs:u? stream:b? echo:b? deadline_ms:u? overflow:s? "
#define GENERATE_RESULT                                                                            \
    "{text: str?, thought: str?, stop_reason: str, stop: str?, usage: map, timings: map, "         \
    "dropped_messages: uint, seed: uint, model: str, logprobs: array?}"
#define GENERATE_ERRORS MODEL_ERRORS " ContextOverflow TooLarge Cancelled Timeout"

/* Looked up by bsearch(), so sorted by name. */
/* clang-format off */
const struct rpc_method rpc_methods[] = {
    { "client.hello", 1, 0,
      "name:s version:s? api_level:u? attributes:m?",
      "{api_level: uint, limits: map}",
      "NotSupported", "", false, rpc_client_hello },
    { "detokenize", 1, 0,
      "tokens:a special:b?",
      "{text: str}",
      MODEL_ERRORS " TooLarge", "", false, rpc_detokenize },
    { "generate", 1, 0,
      "messages:a? prompt:s? tokens:a? special:b? model:s? use_case:s? language:s? thinking:b? "
      SAMPLE_PARAMS GENERATE_PARAMS "priority:s?",
      GENERATE_RESULT, "NotSupported " GENERATE_ERRORS,
      "generate.progress generate.delta", false, rpc_generate },
    { "generate.cancel", 1, 0,
      "id:u",
      "{cancelled: bool}",
      "", "", true, rpc_generate_cancel },
    { "job.cancel", 1, 0,
      "id:u",
      "{cancelled: bool}",
      "NoSuchJob AccessDenied", "", false, rpc_job_cancel },
    { "job.list", 1, 0,
      "",
      "{jobs: [{id: uint, kind: str, state: str, uid: uint, pid: uint, unit: str, "
      "connection: uint, model: str, priority: str, age_us: uint, done: uint, total: uint, "
      "generated: uint, kv: uint}]}",
      "", "", false, rpc_job_list },
    { "job.wait", 1, 0,
      "id:u",
      "{result: str, reason: str?}",
      "NoSuchJob", "job.progress", false, rpc_job_wait },
    { "memory.trim", 4, 0,
      "level:u",
      "{freed: uint}",
      "AccessDenied Cancelled", "", false, rpc_memory_trim },
    { "model.availability", 1, 0,
      "id:s? use_case:s?",
      "{state: str, reason: str?, progress: float?, retry_after_ms: uint?}",
      "NoSuchModel NotSupported", "", false, rpc_model_availability },
    { "model.import", 4, 0,
      "file:h id:s mode:s? digest:s? license:s?",
      "{job: uint}",
      "AccessDenied Busy", "", false, rpc_model_import },
    { "model.list", 1, 0,
      "",
      "{models: [{id: str, path: str, size: uint, state: str, default: bool}]}",
      "", "", false, rpc_model_list },
    { "model.load", 1, 0,
      "id:s?",
      "{job: uint, state: str}",
      MODEL_ERRORS " AccessDenied", "", false, rpc_model_load },
    { "model.pin", 1, 0,
      "id:s? residency:s? keep:b?",
      "{residency: str}",
      "NoSuchModel AccessDenied", "", false, rpc_model_pin },
    { "model.show", 1, 0,
      "id:s? tensors:b?",
      "{id: str, path: str, size: uint, state: str, metadata: map, chat_template: str?, "
      "tensors: array?}",
      "NoSuchModel Busy Corrupt TooLarge", "", false, rpc_model_show },
    { "model.unload", 1, 0,
      "id:s?",
      "{}",
      "NoSuchModel Busy AccessDenied", "", false, rpc_model_unload },
    { "model.verify", 4, 0,
      "id:s",
      "{job: uint}",
      "AccessDenied NoSuchModel Busy", "", false, rpc_model_verify },
    { "score.choices", 1, 0,
      "choices:a messages:a? prompt:s? model:s? use_case:s? language:s?",
      "{choices: [{text: str, logprob: float, p: float}], confidence: float, usage: map}",
      "NotSupported " MODEL_ERRORS " ContextOverflow InsufficientMemory TooLarge Cancelled", "",
      false, rpc_score_choices },
    { "server.info", 1, 0,
      "",
      "{channel: uint, version: map, methods: array, error_types: map, types: map}",
      "", "", false, rpc_server_info },
    { "server.metrics", 1, 0,
      "format:s?",
      "{text: str}",
      "", "", false, rpc_server_metrics },
    { "server.status", 1, 0,
      "",
      "{state: str, reason: str?, version: str, pid: uint, uptime_us: uint, model: str?, "
      "weights: str?, progress: float?, memory: map, residency: str, pressure: map, power: map, "
      "threads: uint, tier: str, queue: map, connections: uint, tokens: map, prefixes: map, "
      "folders: array, shards: array}",
      "", "", false, rpc_server_status },
    { "server.topology", 3, 0,
      "",
      "{cpus: [{cpu: uint, core: uint, node: uint, node_bytes: uint, cache: uint, cache_bytes: uint, "
      "sibling: uint}], shards: array, model: str?, layers: uint?, experts: uint?, "
      "experts_used: uint?}",
      "", "", false, rpc_server_topology },
    { "session.append", 2, 0,
      "session:u messages:a?",
      "{context_used: uint}",
      MODEL_ERRORS " NoSuchSession QuotaExceeded ContextOverflow TooLarge Cancelled",
      "generate.progress", false, rpc_session_append },
    { "session.clone", 2, 0,
      "session:u",
      "{session: uint}",
      "NoSuchSession QuotaExceeded", "", false, rpc_session_clone },
    { "session.close", 2, 0,
      "session:u",
      "{}",
      "NoSuchSession", "", false, rpc_session_close },
    { "session.forget", 2, 0,
      "token:s",
      "{}",
      "NoSuchSession", "", false, rpc_session_forget },
    { "session.generate", 2, 0,
      "session:u messages:a? thinking:b? " SAMPLE_PARAMS GENERATE_PARAMS "priority:s?",
      GENERATE_RESULT, GENERATE_ERRORS " NoSuchSession QuotaExceeded",
      "generate.progress generate.delta", false, rpc_session_generate },
    { "session.list", 2, 0,
      "all:b?",
      "{sessions: [{session: uint, user: uint, model: str, messages: uint, bytes: uint, "
      "idle_us: uint, busy: bool, own: bool}]}",
      "AccessDenied", "", false, rpc_session_list },
    { "session.measure", 2, 0,
      "session:u messages:a? thinking:b?",
      "{tokens: uint, available: uint, fits: bool}",
      MODEL_ERRORS " NoSuchSession TooLarge Cancelled", "generate.progress", false,
      rpc_session_measure },
    { "session.open", 2, 0,
      "model:s? instructions:s? messages:a? thinking:b? " SAMPLE_PARAMS "priority:s? idle_ms:u?",
      "{session: uint, model: str, context_window: uint?}",
      "NoSuchModel QuotaExceeded TooLarge", "session.closed", false, rpc_session_open },
    { "session.restore", 2, 0,
      "token:s",
      "{session: uint, model: str, context_window: uint?, cached: uint}",
      "NoSuchSession QuotaExceeded Corrupt Cancelled", "generate.progress session.closed", false,
      rpc_session_restore },
    { "session.save", 2, 0,
      "session:u token:s?",
      "{token: str, cached: uint}",
      "NoSuchSession Busy Cancelled", "generate.progress", false, rpc_session_save },
    { "session.saved", 4, 0,
      "",
      "{saved: [{token: str, bytes: uint, cached_bytes: uint, idle_us: uint}]}",
      "", "", false, rpc_session_saved },
    { "template.apply", 1, 0,
      "messages:a thinking:b? generation:b?",
      "{text: str, tokens: [uint]}",
      MODEL_ERRORS " TooLarge", "", false, rpc_template_apply },
    { "tokenize", 1, 0,
      "text:s special:b? bos:b? pieces:b?",
      "{tokens: [uint], pieces: [bin]?}",
      MODEL_ERRORS " TooLarge", "", false, rpc_tokenize },
    { "usecase.list", 3, 0,
      "",
      "{use_cases: [{id: str, model: str?, language: str?}]}",
      "", "", false, rpc_usecase_list },
    { .name = NULL },
};

enum { N_METHOD = sizeof rpc_methods / sizeof rpc_methods[0] - 1 };

static const char *const error_names[RPC_ERROR_N] = {
    [RPC_INVALID_ARGS] = "InvalidArgs",
    [RPC_NOT_SUPPORTED] = "NotSupported",
    [RPC_NO_SUCH_MODEL] = "NoSuchModel",
    [RPC_MODEL_UNAVAILABLE] = "ModelUnavailable",
    [RPC_INSUFFICIENT_MEMORY] = "InsufficientMemory",
    [RPC_CONTEXT_OVERFLOW] = "ContextOverflow",
    [RPC_INVALID_SCHEMA] = "InvalidSchema",
    [RPC_INVALID_GRAMMAR] = "InvalidGrammar",
    [RPC_BUSY] = "Busy",
    [RPC_QUOTA_EXCEEDED] = "QuotaExceeded",
    [RPC_ACCESS_DENIED] = "AccessDenied",
    [RPC_CANCELLED] = "Cancelled",
    [RPC_PREEMPTED] = "Preempted",
    [RPC_NO_SUCH_SESSION] = "NoSuchSession",
    [RPC_CORRUPT] = "Corrupt",
    [RPC_SHUTTING_DOWN] = "ShuttingDown",
    [RPC_TOO_LARGE] = "TooLarge",
    [RPC_TIMEOUT] = "Timeout",
    [RPC_INTERNAL] = "Internal",
    [RPC_NO_SUCH_METHOD] = "NoSuchMethod",
    [RPC_NO_SUCH_JOB] = "NoSuchJob",
};

/* Types of a schema: as letters, as words, and what may stand for them on the wire. */
static const struct { char letter; const char *name, *wire; } types[] = {
    { 'a', "array", "array" },
    { 'b', "bool",  "boolean" },
    { 'f', "float", "float or integer, finite" },
    { 'h', "descriptor", "no key: it comes with the frame" },
    { 'i', "int",   "integer" },
    { 'm', "map",   "map" },
    { 's', "str",   "str, valid UTF-8" },
    { 'u', "uint",  "integer, not negative" },
    { 'x', "bin",   "bin" },
};
/* clang-format on */

enum { N_TYPE = sizeof types / sizeof types[0] };

const char *rpc_error_name(int code) {
    return error_names[code];
}

/* ---- packing ---- */

void rpc_pack_uint(msgpack_packer *p, const char *key, uint64_t v) {
    wire_pack_str(p, key);
    msgpack_pack_uint64(p, v);
}

void rpc_pack_strn(msgpack_packer *p, const char *key, const char *s, size_t n) {
    wire_pack_str(p, key);
    msgpack_pack_str(p, n);
    msgpack_pack_str_body(p, s, n);
}

void rpc_pack_str(msgpack_packer *p, const char *key, const char *s) {
    rpc_pack_strn(p, key, s, strlen(s));
}

int rpc_pack_shortage(struct rpc_call *c) {
    uint64_t need, have;

    models_shortage(c->server->models, &need, &have);
    msgpack_pack_map(&c->reply->data_pk, 2);
    rpc_pack_uint(&c->reply->data_pk, "need", need);
    rpc_pack_uint(&c->reply->data_pk, "have", have);
    return RPC_INSUFFICIENT_MEMORY;
}

void rpc_pack_bool(msgpack_packer *p, const char *key, bool v) {
    wire_pack_str(p, key);
    if (v)
        msgpack_pack_true(p);
    else
        msgpack_pack_false(p);
}

void rpc_pack_float(msgpack_packer *p, const char *key, double v) {
    wire_pack_str(p, key);
    msgpack_pack_double(p, v);
}

void rpc_pack_error(msgpack_packer *p, int code, const char *message, const msgpack_sbuffer *data) {
    bool has_data = data && data->size;

    msgpack_pack_map(p, has_data ? 4 : 3);
    rpc_pack_uint(p, "code", (uint64_t)code);
    rpc_pack_str(p, "name", rpc_error_name(code));
    rpc_pack_str(p, "message", message);
    if (has_data) {
        wire_pack_str(p, "data");
        (void)p->callback(p->data, data->data, data->size);
    }
}

/* ---- replies ---- */

void rpc_reply_init(struct rpc_reply *r) {
    *r = (struct rpc_reply){ 0 };
    msgpack_sbuffer_init(&r->result);
    msgpack_sbuffer_init(&r->data);
    msgpack_packer_init(&r->result_pk, &r->result, msgpack_sbuffer_write);
    msgpack_packer_init(&r->data_pk, &r->data, msgpack_sbuffer_write);
}

void rpc_reply_deinit(struct rpc_reply *r) {
    msgpack_sbuffer_destroy(&r->result);
    msgpack_sbuffer_destroy(&r->data);
}

/* A message may quote what a client or a file said: cut at the first malformed character. */
static void clean(struct why *why) {
    size_t n = strlen(why->text), at = 0, k;

    while (at < n && (k = utf8_len(why->text + at, n - at)))
        at += k;
    why->text[at] = '\0';
}

static void pack_error_frame(struct rpc_reply *r, uint32_t msgid, int code, msgpack_packer *p) {
    clean(&r->why);
    wire_pack_error(p, msgid);
    rpc_pack_error(p, code, r->why.text[0] ? r->why.text : rpc_error_name(code), &r->data);
    msgpack_pack_nil(p);
}

/* Does the frame at @from keep the limits the client holds us to? */
static bool fits(const msgpack_sbuffer *out, size_t from) {
    struct wire_scan scan;
    size_t n;

    wire_scan_init(&scan);
    return wire_scan(&scan, out->data + from, out->size - from, &n) == 0 && n == out->size - from;
}

int rpc_reply_pack(struct rpc_reply *r, uint32_t msgid, int code, msgpack_sbuffer *out) {
    size_t from = out->size;
    msgpack_packer p;

    msgpack_packer_init(&p, out, msgpack_sbuffer_write);
    if (code < 0) {
        log_error("rpc", "a method failed: %s", strerror(-code));
        (void)why_set(&r->why, 0, "%s", strerror(-code));
        code = RPC_INTERNAL;
    }
    if (code) {
        pack_error_frame(r, msgid, code, &p);
    } else {
        wire_pack_result(&p, msgid);
        if (p.callback(p.data, r->result.data, r->result.size) < 0)
            return err_new(-ENOMEM);
    }
    if (!fits(out, from)) {
        out->size = from;
        msgpack_sbuffer_clear(&r->data);
        msgpack_pack_map(&r->data_pk, 1);
        rpc_pack_uint(&r->data_pk, "limit", WIRE_ELEMENT_MAX);
        (void)why_set(&r->why, 0, "the answer does not fit into one frame");
        pack_error_frame(r, msgid, RPC_TOO_LARGE, &p);
    }

    msgpack_sbuffer_clear(&r->result);
    msgpack_sbuffer_clear(&r->data);
    return 0;
}

/* ---- parameters ---- */

bool rpc_is_number(const msgpack_object *o) {
    return o->type == MSGPACK_OBJECT_POSITIVE_INTEGER ||
           o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER || o->type == MSGPACK_OBJECT_FLOAT32 ||
           o->type == MSGPACK_OBJECT_FLOAT64;
}

double rpc_number(const msgpack_object *o) {
    switch (o->type) {
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        return (double)o->via.u64;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return (double)o->via.i64;
    default:
        return o->via.f64;
    }
}

static bool type_ok(const msgpack_object *o, char type) {
    switch (type) {
    case 's':
        return o->type == MSGPACK_OBJECT_STR;
    case 'x':
        return o->type == MSGPACK_OBJECT_BIN;
    case 'u':
        return o->type == MSGPACK_OBJECT_POSITIVE_INTEGER;
    case 'i':
        return o->type == MSGPACK_OBJECT_POSITIVE_INTEGER ||
               o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER;
    case 'f':
        return rpc_is_number(o);
    case 'b':
        return o->type == MSGPACK_OBJECT_BOOLEAN;
    case 'a':
        return o->type == MSGPACK_OBJECT_ARRAY;
    default:
        return o->type == MSGPACK_OBJECT_MAP;
    }
}

static const char *type_name(char type) {
    size_t i = 0;

    while (i < N_TYPE - 1 && types[i].letter != type)
        i++;
    return types[i].name;
}

/* One "key:type?" of a schema. */
struct param {
    char name[32];
    char type;
    bool optional;
};

static bool param_next(const char **schema, struct param *ret) {
    const char *p = *schema + strspn(*schema, " ");
    size_t n = strcspn(p, ":");

    if (!*p)
        return false;

    (void)snprintf(ret->name, sizeof ret->name, "%.*s", (int)n, p);
    ret->type = p[n + 1];
    ret->optional = p[n + 2] == '?';
    *schema = p + n + 2 + ret->optional;
    return true;
}

static bool schema_has(const char *schema, const msgpack_object_str *key) {
    struct param p;

    while (param_next(&schema, &p))
        if (strlen(p.name) == key->size && memcmp(p.name, key->ptr, key->size) == 0)
            return true;

    return false;
}

static int check_must(const msgpack_object *must, const char *schema, struct why *why) {
    if (must->type != MSGPACK_OBJECT_ARRAY)
        return why_set(why, RPC_INVALID_ARGS, "must: not an array of names");

    for (uint32_t i = 0; i < must->via.array.size; i++) {
        const msgpack_object *name = &must->via.array.ptr[i];

        if (name->type != MSGPACK_OBJECT_STR)
            return why_set(why, RPC_INVALID_ARGS, "must: not an array of names");
        if (!schema_has(schema, &name->via.str))
            return why_set(why, RPC_NOT_SUPPORTED, "%.*s: not supported here",
                           (int)(name->via.str.size < 64 ? name->via.str.size : 64),
                           name->via.str.ptr);
    }

    return 0;
}

int rpc_check(const msgpack_object *params, const char *schema, struct why *why) {
    const msgpack_object *val = wire_get(params, "must");
    struct param p;

    if (!wire_utf8(params))
        return why_set(why, RPC_INVALID_ARGS, "params: text that is not valid UTF-8");
    for (const char *at = schema; param_next(&at, &p);) {
        const msgpack_object *v = wire_get(params, p.name);

        if (p.type == 'h')
            continue;
        if (!v && !p.optional)
            return why_set(why, RPC_INVALID_ARGS, "%s: missing", p.name);
        if (v && !type_ok(v, p.type))
            return why_set(why, RPC_INVALID_ARGS, "%s: not of type %s", p.name, type_name(p.type));
        if (v && p.type == 'f' && !isfinite(rpc_number(v)))
            return why_set(why, RPC_INVALID_ARGS, "%s: not a finite number", p.name);
    }

    return val ? check_must(val, schema, why) : 0;
}

const char *rpc_get_str(const msgpack_object *params, const char *key, size_t *ret_n) {
    const msgpack_object *o = wire_get(params, key);

    if (!o)
        return NULL;
    *ret_n = o->via.str.size;
    return o->via.str.ptr;
}

uint64_t rpc_get_uint(const msgpack_object *params, const char *key, uint64_t def) {
    const msgpack_object *o = wire_get(params, key);

    return o ? o->via.u64 : def;
}

bool rpc_get_bool(const msgpack_object *params, const char *key) {
    const msgpack_object *o = wire_get(params, key);

    return o && o->via.boolean;
}

int rpc_dup_str(const msgpack_object *params, const char *key, char **ret_s, struct why *why) {
    size_t n;
    const char *s = rpc_get_str(params, key, &n);

    *ret_s = NULL;
    if (!s)
        return 0;
    if (memchr(s, '\0', n))
        return why_set(why, RPC_INVALID_ARGS, "%s: has a NUL character", key);
    *ret_s = strndup(s, n);
    return *ret_s ? 0 : err_new(-ENOMEM);
}

/* ---- calls ---- */

struct name {
    const char *s;
    size_t n;
};

static int method_cmp(const void *key, const void *item) {
    const struct name *name = key;
    const struct rpc_method *m = item;
    int r = strncmp(name->s, m->name, name->n);

    return r ? r : -(m->name[name->n] != '\0');
}

int rpc_call(struct rpc_call *c, const struct wire_frame *frame) {
    struct name name = { frame->method, frame->n_method };
    const struct rpc_method *m;
    struct why *why = &c->reply->why;
    int r;

    m = memchr(name.s, '\0', name.n)
            ? NULL
            : bsearch(&name, rpc_methods, N_METHOD, sizeof rpc_methods[0], method_cmp);
    if (!m)
        return why_set(why, RPC_NO_SUCH_METHOD, "no such method: %.*s",
                       (int)(name.n < 64 ? name.n : 64), name.s);
    if (frame->type == WIRE_NOTIFY && !m->notify)
        return why_set(why, RPC_NOT_SUPPORTED, "%s: not as a notification", m->name);
    if (c->server->stopping)
        return why_set(why, RPC_SHUTTING_DOWN, "the service is stopping");
    r = rpc_check(c->params, m->params, why);
    if (r)
        return r;

    return err_up(m->call(c));
}

/* ---- the table, told ---- */

static uint32_t count_words(const char *s) {
    uint32_t n = 0;

    for (s += strspn(s, " "); *s; s += strspn(s, " ")) {
        s += strcspn(s, " ");
        n++;
    }

    return n;
}

static void pack_words(msgpack_packer *p, const char *key, const char *s) {
    wire_pack_str(p, key);
    msgpack_pack_array(p, count_words(s));
    for (s += strspn(s, " "); *s; s += strspn(s, " ")) {
        size_t n = strcspn(s, " ");

        msgpack_pack_str(p, n);
        msgpack_pack_str_body(p, s, n);
        s += n;
    }
}

static void pack_method(msgpack_packer *p, const struct rpc_method *m) {
    const char *at = m->params;
    struct param param;

    msgpack_pack_map(p, m->deprecated_since ? 7 : 6);
    rpc_pack_str(p, "name", m->name);
    rpc_pack_uint(p, "since", m->since);
    if (m->deprecated_since)
        rpc_pack_uint(p, "deprecated_since", m->deprecated_since);
    wire_pack_str(p, "params");
    msgpack_pack_array(p, count_words(m->params));
    while (param_next(&at, &param)) {
        msgpack_pack_map(p, 3);
        rpc_pack_str(p, "name", param.name);
        rpc_pack_str(p, "type", type_name(param.type));
        rpc_pack_bool(p, "required", !param.optional);
    }
    rpc_pack_str(p, "result", m->result);
    pack_words(p, "errors", m->errors);
    pack_words(p, "notifies", m->notifies);
}

static void pack_version(msgpack_packer *p) {
    unsigned major = 0, minor = 0, patch = 0;

    (void)sscanf(MOE_VERSION, "%u.%u.%u", &major, &minor, &patch);
    wire_pack_str(p, "version");
    msgpack_pack_map(p, 6);
    rpc_pack_uint(p, "major", major);
    rpc_pack_uint(p, "minor", minor);
    rpc_pack_uint(p, "patch", patch);
    rpc_pack_uint(p, "api_level", RPC_API_LEVEL);
    rpc_pack_uint(p, "api_compatible", RPC_API_COMPATIBLE);
    rpc_pack_bool(p, "prerelease", strchr(MOE_VERSION, '-') != NULL);
}

void rpc_pack_info(msgpack_packer *p, uint64_t channel) {
    msgpack_pack_map(p, channel ? 5 : 4);
    if (channel)
        rpc_pack_uint(p, "channel", channel);
    pack_version(p);
    wire_pack_str(p, "methods");
    msgpack_pack_array(p, N_METHOD);
    for (const struct rpc_method *m = rpc_methods; m->name; m++)
        pack_method(p, m);
    wire_pack_str(p, "error_types");
    msgpack_pack_map(p, RPC_ERROR_N - 1);
    for (int i = 1; i < RPC_ERROR_N; i++) {
        wire_pack_str(p, error_names[i]);
        msgpack_pack_map(p, 1);
        rpc_pack_uint(p, "code", (uint64_t)i);
    }
    wire_pack_str(p, "types");
    msgpack_pack_map(p, N_TYPE);
    for (size_t i = 0; i < N_TYPE; i++)
        rpc_pack_str(p, types[i].name, types[i].wire);
}

void rpc_describe(FILE *f) {
    struct param param;

    for (const struct rpc_method *m = rpc_methods; m->name; m++) {
        const char *at = m->params;

        fprintf(f, "%s\n    params   {", m->name);
        for (bool first = true; param_next(&at, &param); first = false)
            fprintf(f, "%s%s: %s%s", first ? "" : ", ", param.name, type_name(param.type),
                    param.optional ? "?" : "");
        fprintf(f, "}\n    result   %s\n", m->result);
        if (*m->errors)
            fprintf(f, "    errors   %s\n", m->errors);
        if (*m->notifies)
            fprintf(f, "    notifies %s\n", m->notifies);
    }
}
