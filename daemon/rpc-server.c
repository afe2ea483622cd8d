/* SPDX-License-Identifier: Apache-2.0 */

/*
 * rpc-server - server.info, server.status, server.topology, server.metrics,
 *              client.hello, usecase.list
 */

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "daemon/metrics.h"
#include "daemon/pressure.h"
#include "daemon/rpc-methods.h"
#include "daemon/rpc.h"
#include "daemon/server.h"
#include "engine/base/log.h"

enum { NAME_SHOWN = 64 }; /* bytes of a client's name that go to the log */

int rpc_server_info(struct rpc_call *c) {
    rpc_pack_info(&c->reply->result_pk, c->channel->id);
    return 0;
}

static void log_hello(const struct rpc_call *c) {
    char name[NAME_SHOWN + 1] = "";
    size_t n;
    const char *s = rpc_get_str(c->params, "name", &n);

    for (size_t i = 0; i < n && i < NAME_SHOWN; i++)
        name[i] = (unsigned char)s[i] < ' ' ? '?' : s[i];
    log_info("session", "channel %ju: user %u, process %d: %s", (uintmax_t)c->channel->id,
             (unsigned)c->channel->peer.uid, (int)c->channel->peer.pid, name);
}

int rpc_client_hello(struct rpc_call *c) {
    uint64_t level = rpc_get_uint(c->params, "api_level", RPC_API_LEVEL);
    msgpack_packer *p = &c->reply->result_pk;

    if (level < RPC_API_COMPATIBLE || level > RPC_API_LEVEL) {
        msgpack_pack_map(&c->reply->data_pk, 2);
        rpc_pack_uint(&c->reply->data_pk, "min", RPC_API_COMPATIBLE);
        rpc_pack_uint(&c->reply->data_pk, "max", RPC_API_LEVEL);
        return why_set(&c->reply->why, RPC_NOT_SUPPORTED, "api_level: %d to %d is served",
                       RPC_API_COMPATIBLE, RPC_API_LEVEL);
    }

    log_hello(c);
    msgpack_pack_map(p, 2);
    rpc_pack_uint(p, "api_level", RPC_API_LEVEL);
    wire_pack_str(p, "limits");
    msgpack_pack_map(p, 6);
    rpc_pack_uint(p, "frame_bytes", WIRE_FRAME_MAX);
    rpc_pack_uint(p, "depth", WIRE_DEPTH_MAX);
    rpc_pack_uint(p, "elements", WIRE_ELEMENT_MAX);
    rpc_pack_uint(p, "outstanding", WIRE_OUTSTANDING_MAX);
    rpc_pack_uint(p, "connections", c->server->config->user_connections);
    rpc_pack_uint(p, "frame_usec", WIRE_FRAME_USEC);
    return 0;
}

static void pack_numbers(struct rpc_call *c, const struct engine_status *st) {
    const struct model_info *info = models_info(c->server->models);
    msgpack_packer *p = &c->reply->result_pk;

    wire_pack_str(p, "memory");
    msgpack_pack_map(p, 4);
    rpc_pack_uint(p, "resident", metrics_resident());
    rpc_pack_bool(p, "locked", st->locked);
    rpc_pack_uint(p, "weights", info ? info->weight_bytes : 0);
    rpc_pack_uint(p, "kv", st->kv_bytes);
    rpc_pack_str(p, "residency", residency_name(residency_now(c->server->residency)));
    wire_pack_str(p, "pressure");
    msgpack_pack_map(p, 2);
    rpc_pack_uint(p, "level", residency_level(c->server->residency));
    rpc_pack_uint(p, "max", PRESSURE_MAX);
    wire_pack_str(p, "power");
    msgpack_pack_map(p, 3);
    rpc_pack_uint(p, "level", power_level(c->server->power));
    rpc_pack_bool(p, "battery", power_sign(c->server->power, POWER_BATTERY));
    rpc_pack_bool(p, "saver", power_sign(c->server->power, POWER_SAVER));
    rpc_pack_uint(p, "threads", st->n_worker);
    rpc_pack_str(p, "tier", st->tier ? st->tier : "");
    wire_pack_str(p, "queue");
    msgpack_pack_map(p, 3);
    rpc_pack_uint(p, "running", st->n_running);
    rpc_pack_uint(p, "waiting", st->n_queued);
    rpc_pack_uint(p, "max", st->n_queue_max ? st->n_queue_max : c->server->config->queue);
    rpc_pack_uint(p, "connections", server_n_connection(c->server));
    wire_pack_str(p, "tokens");
    msgpack_pack_map(p, 2);
    rpc_pack_uint(p, "prompt", st->n_prompt_token);
    rpc_pack_uint(p, "generated", st->n_token);
    wire_pack_str(p, "prefixes");
    msgpack_pack_map(p, 5);
    rpc_pack_uint(p, "kept", st->n_kept);
    rpc_pack_uint(p, "public", st->n_public);
    rpc_pack_uint(p, "bytes", st->kv_kept);
    rpc_pack_uint(p, "hits", st->n_hit);
    rpc_pack_uint(p, "saved", st->n_saved);
}

/* A folder, and what the service may do there; nothing when there is none. */
static void pack_folder(msgpack_packer *p, const char *purpose, const char *path) {
    struct statvfs st = { .f_bavail = 0 };

    if (!path)
        return;
    (void)statvfs(path, &st);
    msgpack_pack_map(p, 4);
    rpc_pack_str(p, "purpose", purpose);
    rpc_pack_str(p, "path", path);
    rpc_pack_bool(p, "writable", access(path, W_OK | X_OK) == 0);
    rpc_pack_uint(p, "free", (uint64_t)st.f_bavail * st.f_frsize);
}

static void pack_folders(const struct config *config, msgpack_packer *p) {
    const char *models = config->model ? NULL : config->model_dir;
    const char *cache = config_cache_dir(config);

    wire_pack_str(p, "folders");
    msgpack_pack_array(p, (size_t)(models != NULL) + (cache != NULL));
    pack_folder(p, "models", models);
    pack_folder(p, "cache", cache);
}

static void pack_shards(const struct models *m, msgpack_packer *p) {
    struct model_shard s;
    uint32_t n = 0;

    while (models_shard(m, n, &s))
        n++;
    wire_pack_str(p, "shards");
    msgpack_pack_array(p, n);
    for (uint32_t i = 0; i < n && models_shard(m, i, &s); i++) {
        msgpack_pack_map(p, 3);
        rpc_pack_uint(p, "node", s.node);
        wire_pack_str(p, "cpus");
        msgpack_pack_array(p, s.n_cpu);
        for (uint32_t k = 0; k < s.n_cpu; k++)
            msgpack_pack_uint32(p, s.cpu[k].os);
        rpc_pack_uint(p, "bytes", s.bytes);
    }
}

int rpc_server_status(struct rpc_call *c) {
    struct models *m = c->server->models;
    const char *model = models_resident(m);
    const struct model_info *info = models_info(m);
    bool failed = model && models_state(m, model) == MODELS_FAILED;
    bool loading = model && models_state(m, model) == MODELS_LOADING;
    msgpack_packer *p = &c->reply->result_pk;
    struct engine_status st;

    models_engine(m, &st);
    msgpack_pack_map(p, 16u + (model != NULL) + (info != NULL) + failed + loading);
    rpc_pack_str(p, "state", metrics_state(c->server));
    if (failed)
        rpc_pack_str(p, "reason", models_reason(m));
    rpc_pack_str(p, "version", MOE_VERSION);
    rpc_pack_uint(p, "pid", (uint64_t)getpid());
    rpc_pack_uint(p, "uptime_us", clock_usec() - c->server->started_usec);
    if (model)
        rpc_pack_str(p, "model", model);
    if (info)
        rpc_pack_str(p, "weights", info->from_image ? "image" : "file");
    if (loading)
        rpc_pack_float(p, "progress",
                       st.bytes_total ? (double)st.bytes_done / (double)st.bytes_total : 0);
    pack_numbers(c, &st);
    pack_folders(c->server->config, p);
    pack_shards(m, p);
    return 0;
}

/* The CPUs the service may use, whatever the quota. */
static void pack_cpus(const struct topo *t, msgpack_packer *p) {
    wire_pack_str(p, "cpus");
    msgpack_pack_array(p, t->n_cpu);
    for (uint32_t i = 0; i < t->n_cpu; i++) {
        const struct topo_cpu *cpu = &t->cpu[i];

        msgpack_pack_map(p, 7);
        rpc_pack_uint(p, "cpu", cpu->os);
        rpc_pack_uint(p, "core", cpu->core);
        rpc_pack_uint(p, "node", cpu->node_os);
        rpc_pack_uint(p, "node_bytes", cpu->node_size);
        rpc_pack_uint(p, "cache", cpu->cache);
        rpc_pack_uint(p, "cache_bytes", cpu->cache_size);
        rpc_pack_uint(p, "sibling", cpu->sibling);
    }
}

int rpc_server_topology(struct rpc_call *c) {
    const struct model_info *info = models_info(c->server->models);
    msgpack_packer *p = &c->reply->result_pk;
    int r;

    if (!c->server->topo) {
        r = topo_new_from(&c->server->topo, NULL, 0);
        if (r)
            return err_up(r);
    }
    msgpack_pack_map(p, 2u + 4u * (info != NULL));
    pack_cpus(c->server->topo, p);
    pack_shards(c->server->models, p);
    if (info) {
        rpc_pack_str(p, "model", models_resident(c->server->models));
        rpc_pack_uint(p, "layers", info->n_layer);
        rpc_pack_uint(p, "experts", info->n_expert);
        rpc_pack_uint(p, "experts_used", info->n_expert_used);
    }
    return 0;
}

int rpc_server_metrics(struct rpc_call *c) {
    const struct channel *s = c->channel;
    AUTO(free) char *text = NULL;
    size_t n;
    const char *format = rpc_get_str(c->params, "format", &n);
    int r;

    if (format && !(n == strlen("openmetrics") && memcmp(format, "openmetrics", n) == 0))
        return why_set(&c->reply->why, RPC_INVALID_ARGS, "format: not openmetrics");
    r = metrics_text(c->server, channel_is_admin(s), s->peer.uid, &text, &n);
    if (r)
        return err_up(r);

    msgpack_pack_map(&c->reply->result_pk, 1);
    rpc_pack_strn(&c->reply->result_pk, "text", text, n);
    return 0;
}

int rpc_usecase_list(struct rpc_call *c) {
    const struct usecase_list *l = &c->server->config->use_cases;
    msgpack_packer *p = &c->reply->result_pk;

    msgpack_pack_map(p, 1);
    wire_pack_str(p, "use_cases");
    msgpack_pack_array(p, l->n);
    for (size_t i = 0; i < l->n; i++) {
        const struct usecase *u = &l->at[i];

        msgpack_pack_map(p, 1u + (u->model != NULL) + (u->language != NULL));
        rpc_pack_str(p, "id", u->id);
        if (u->model)
            rpc_pack_str(p, "model", u->model);
        if (u->language)
            rpc_pack_str(p, "language", u->language);
    }
    return 0;
}
