/* SPDX-License-Identifier: Apache-2.0 */

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/conffile.h"
#include "daemon/config.h"
#include "engine/base/utf8.h"

enum config_type {
    CONFIG_STR,
    CONFIG_PATH, /* absolute, or made so from the working directory by the command line */
    CONFIG_BOOL,
    CONFIG_UINT,
    CONFIG_SIZE, /* bytes; K, M, G, T are powers of 1024 */
    CONFIG_ENUM, /* one of .words; the value is its index */
};

struct config_key {
    const char *name;
    enum config_type type;
    size_t offset;
    uint64_t min, max;
    const char *def;      /* "" for strings: not set */
    const char *words[5]; /* of an enum, two to four */
    const char *doc;
};

#define AT(field_) offsetof(struct config, field_)

/* clang-format off */
static const struct config_key keys[] = {
    /* name, type, where, min, max, default, words, meaning */
    { "batch",            CONFIG_UINT, AT(batch),           0, 4096,       "0", { NULL },
      "prompt tokens of one step; 0: 128" },
    { "bus",              CONFIG_ENUM, AT(bus),             0, 0,          "auto", { "auto", "system", "session", "none" },
      "message bus to serve on; auto: the service manager's, if it started us; read at start only" },
    { "cache-dir",        CONFIG_PATH, AT(cache_dir),       0, 4095,       "", { NULL },
      "where packed weights and saved sessions are kept; unset: $CACHE_DIRECTORY, if there is one" },
    { "context",          CONFIG_UINT, AT(context),         0, 1 << 20,    "0", { NULL },
      "tokens of context; 0: what the model was trained for, as far as kv-bytes holds it" },
    { "default-model",    CONFIG_STR,  AT(default_model),   0, 255,        "", { NULL },
      "id of the model that is meant when none is named; unset: the first by name" },
    { "exact",            CONFIG_BOOL, AT(exact),           0, 1,          "no", { NULL },
      "float activations everywhere: slower, for comparisons" },
    { "expert-bytes",     CONFIG_SIZE, AT(expert_bytes),    0, 1ull << 50, "0", { NULL },
      "memory for experts at most, others stay on disk below cache-dir; 0: what is free" },
    { "forget",           CONFIG_ENUM, AT(forget),          0, 0,
      "lock", { "lock", "logout", "never" },
      "when what is kept of a user's prompts and answers is given up, but for saved sessions" },
    { "idle-timeout",     CONFIG_UINT, AT(idle_timeout),    1, 1u << 31,   "300", { NULL },
      "seconds without work after which a model goes, with residency = idle" },
    { "kv-bytes",         CONFIG_SIZE, AT(kv_bytes),        0, 1ull << 50, "0", { NULL },
      "bound of the K/V cache; 0: a quarter of the memory" },
    { "kv-type",          CONFIG_ENUM, AT(kv_type),         0, 0,          "f16", { "f16", "f32", "q8_0" },
      "format of the K/V cache; q8_0: half of f16" },
    { "lock-weights",     CONFIG_BOOL, AT(lock_weights),    0, 1,          "no", { NULL },
      "keep packed weights from being paged out, as far as the limit on locked memory allows" },
    { "log",              CONFIG_STR,  AT(log),             0, 255,        "", { NULL },
      "levels as in $MOE_LOG, which wins: 6, or rpc:7,models:7; read at start only" },
    { "max-connections",  CONFIG_UINT, AT(max_connections), 1, 65536,      "256", { NULL },
      "connections of all users together" },
    { "model",            CONFIG_PATH, AT(model),           0, 4095,       "", { NULL },
      "serve this one file, and no folder" },
    { "model-dir",        CONFIG_PATH, AT(model_dir),       0, 4095,
      "/var/lib/moed/models", { NULL },
      "serve the *.gguf files of this folder" },
    { "oversize",         CONFIG_BOOL, AT(oversize),        0, 1,          "yes", { NULL },
      "load also a model for which there is too little memory: its pages come and go" },
    { "power-save",       CONFIG_ENUM, AT(power_save),      0, 0,
      "battery", { "battery", "profile", "never" },
      "fewer threads, and no work of background: on battery or with the power saver, with that only, never" },
    { "power-threads",    CONFIG_UINT, AT(power_threads),   0, 1024,       "0", { NULL },
      "worker threads while power is saved; 0: half of them" },
    { "prefix-bytes",     CONFIG_SIZE, AT(prefix_bytes),    0, 1ull << 50, "1024T", { NULL },
      "part of kv-bytes for prompts and answers that are kept, as far as generations leave it; 0: none are" },
    { "prefix-dir",       CONFIG_PATH, AT(prefix_dir),      0, 4095,
      "/usr/share/moed/prefixes.d", { NULL },
      "instructions in *.txt files of root's, evaluated when there is no work and shared by all users" },
    { "preload",          CONFIG_BOOL, AT(preload),         0, 1,          "yes", { NULL },
      "load the default model at start, not at the first request" },
    { "pressure-calm",    CONFIG_UINT, AT(pressure_calm),   1, 86400,      "30", { NULL },
      "seconds without memory pressure, for taking back one of the steps against it" },
    { "pressure-watch",   CONFIG_PATH, AT(pressure_watch),  0, 4095,       "", { NULL },
      "file, FIFO or socket that tells of memory pressure; unset: $MEMORY_PRESSURE_WATCH, or the kernel" },
    { "queue",            CONFIG_UINT, AT(queue),           1, 4096,       "64", { NULL },
      "generations that may wait for a place, and other requests likewise" },
    { "residency",        CONFIG_ENUM, AT(residency),       0, 0,
      "pressure", { "idle", "pressure", "pinned" },
      "when the model goes: without work for a time, when memory is short, never" },
    { "saved-bytes",      CONFIG_SIZE, AT(saved_bytes),     0, 1ull << 50, "4G", { NULL },
      "saved sessions of all users together; what is saved beyond that makes the oldest go" },
    { "sequences",        CONFIG_UINT, AT(sequences),       0, 1024,       "0", { NULL },
      "generations at a time, as far as kv-bytes holds them; 0: 16" },
    { "session-idle",     CONFIG_UINT, AT(session_idle),    0, 1 << 30,    "3600", { NULL },
      "seconds after which a session that nobody uses is closed; 0: never" },
    { "stall-timeout",    CONFIG_UINT, AT(stall_timeout),   1, 86400,      "30", { NULL },
      "seconds a client may leave a full stream unread while others wait for a place" },
    { "step-bound",       CONFIG_UINT, AT(step_bound),      1, 60000,      "250", { NULL },
      "milliseconds between two tokens of an answer, as far as prompts of others go" },
    { "threads",          CONFIG_UINT, AT(threads),         0, 1024,       "0", { NULL },
      "worker threads; 0: one a usable core" },
    { "user-bytes",       CONFIG_SIZE, AT(user_bytes),      1, 1ull << 50, "64M", { NULL },
      "text of all requests of one user that are not answered yet, and of all its sessions" },
    { "user-connections", CONFIG_UINT, AT(user_connections), 1, 65536,     "16", { NULL },
      "connections of one user" },
    { "user-jobs",        CONFIG_UINT, AT(user_jobs),       1, 4096,       "64", { NULL },
      "generations of one user that wait or run, and other requests likewise" },
    { "user-kv-bytes",    CONFIG_SIZE, AT(user_kv_bytes),   0, 1ull << 50, "0", { NULL },
      "part of kv-bytes that generations of one user may have; 0: all" },
    { "user-sessions",    CONFIG_UINT, AT(user_sessions),   1, 65536,      "64", { NULL },
      "open sessions of one user" },
    { "weights-store",    CONFIG_ENUM, AT(weights_store),   0, 0,
      "cache", { "cache", "fdstore", "none" },
      "where packed weights are kept for a later start: as a file, in memory, not at all" },
};
/* clang-format on */

enum { N_KEY = sizeof keys / sizeof keys[0], N_SUFFIX = 4 };
_Static_assert(sizeof keys / sizeof keys[0] <= (size_t)CONFIG_KEY_MAX,
               "struct config has no room for where a key comes from");

static const char *const type_names[] = {
    [CONFIG_STR] = "string",  [CONFIG_PATH] = "path", [CONFIG_BOOL] = "yes or no",
    [CONFIG_UINT] = "number", [CONFIG_SIZE] = "size", [CONFIG_ENUM] = "word",
};

static void *field(struct config *c, const struct config_key *k) {
    return (char *)c + k->offset;
}

static int set_string(struct config *c, const struct config_key *k, const char *v,
                      struct why *why) {
    char **to = field(c, k);
    char *s = NULL;

    if (strlen(v) > k->max)
        return why_set(why, CONFIG_BAD, "%s: longer than %" PRIu64 " bytes", k->name, k->max);
    if (k->type == CONFIG_PATH && *v && *v != '/')
        return why_set(why, CONFIG_BAD, "%s: '%s' is not an absolute path", k->name, v);
    if (!utf8_valid(v, strlen(v)))
        return why_set(why, CONFIG_BAD, "%s: not valid UTF-8", k->name);
    if (*v && !(s = strdup(v)))
        return err_new(-ENOMEM);

    free(*to);
    *to = s;
    return 0;
}

static int set_number(struct config *c, const struct config_key *k, const char *v,
                      struct why *why) {
    static const char suffix[N_SUFFIX] = "KMGT";
    uint64_t *to = field(c, k);
    unsigned long long n;
    const char *s;
    char *end;

    errno = 0;
    n = strtoull(v, &end, 10);
    if (!isdigit((unsigned char)*v) || errno)
        return why_set(why, CONFIG_BAD, "%s: '%s' is not a number", k->name, v);
    if (k->type == CONFIG_SIZE && *end && (s = memchr(suffix, *end, N_SUFFIX))) {
        unsigned shift = 10 * (unsigned)(s - suffix + 1);

        n = n > UINT64_MAX >> shift ? UINT64_MAX : n << shift;
        end++;
    }
    if (*end)
        return why_set(why, CONFIG_BAD, "%s: '%s' is not a %s", k->name, v, type_names[k->type]);
    if (n < k->min || n > k->max)
        return why_set(why, CONFIG_BAD, "%s: %s is not within %" PRIu64 " to %" PRIu64, k->name, v,
                       k->min, k->max);

    *to = n;
    return 0;
}

static int set_word(struct config *c, const struct config_key *k, const char *v, struct why *why) {
    for (uint64_t i = 0; k->words[i]; i++)
        if (strcmp(k->words[i], v) == 0) {
            *(uint64_t *)field(c, k) = i;
            return 0;
        }

    return why_set(why, CONFIG_BAD, "%s: '%s' is none of %s, %s%s%s%s%s", k->name, v, k->words[0],
                   k->words[1], k->words[2] ? ", " : "", k->words[2] ?: "",
                   k->words[2] && k->words[3] ? ", " : "", k->words[2] ? k->words[3] ?: "" : "");
}

static int set_bool(struct config *c, const struct config_key *k, const char *v, struct why *why) {
    static const char *const words[] = { "no", "yes", "false", "true", "off", "on", "0", "1" };

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcasecmp(words[i], v) == 0) {
            *(bool *)field(c, k) = i & 1;
            return 0;
        }

    return why_set(why, CONFIG_BAD, "%s: '%s' is neither yes nor no", k->name, v);
}

static int set_value(struct config *c, const struct config_key *k, const char *v, struct why *why) {
    if (!*v)
        v = k->def;

    switch (k->type) {
    case CONFIG_STR:
    case CONFIG_PATH:
        return set_string(c, k, v, why);
    case CONFIG_BOOL:
        return set_bool(c, k, v, why);
    case CONFIG_ENUM:
        return set_word(c, k, v, why);
    case CONFIG_UINT:
    case CONFIG_SIZE:
        return set_number(c, k, v, why);
    }

    return 0;
}

static int set_key(struct config *c, const char *name, const char *value, const char *from,
                   struct why *why) {
    char *s;
    int r;

    for (size_t i = 0; i < N_KEY; i++) {
        if (strcmp(keys[i].name, name) != 0)
            continue;
        r = set_value(c, &keys[i], value, why);
        if (r)
            return err_up(r);
        s = strdup(from);
        if (!s)
            return err_new(-ENOMEM);
        free(c->from[i]);
        c->from[i] = s;
        return 0;
    }

    return why_set(why, CONFIG_BAD, "%s: no such key", name);
}

/* ---- files ---- */

static int on_key(void *arg, const char *key, const char *value, const char *from,
                  struct why *why) {
    return set_key(arg, key, value, from, why);
}

static int on_file(void *arg, const char *path, const char *name, struct why *why) {
    return conffile_read(path, true, on_key, arg, why);
}

static int read_tree(struct config *c, const char *root, struct why *why) {
    char path[4096];
    int r;

    (void)snprintf(path, sizeof path, "%s/etc/moed/moed.conf", root);
    r = conffile_read(path, false, on_key, c, why);
    if (r)
        return err_up(r);

    return err_up(conffile_each(root, "moed.conf.d", on_file, c, why));
}

/* ---- */

struct config *config_free(struct config *c) {
    if (!c)
        return NULL;

    free(c->model);
    free(c->model_dir);
    free(c->default_model);
    free(c->log);
    free(c->cache_dir);
    free(c->prefix_dir);
    usecase_deinit(&c->use_cases);
    free(c->pressure_watch);
    for (size_t i = 0; i < N_KEY; i++)
        free(c->from[i]);
    free(c);

    return NULL;
}

int config_new(struct config **ret_config, const char *root, const char *file,
               const struct config_set *set, size_t n_set, struct why *why) {
    AUTO(config_free) struct config *c = calloc(1, sizeof *c);
    struct why inner = { 0 };
    int r;

    if (!c)
        return err_new(-ENOMEM);

    for (size_t i = 0; i < N_KEY; i++) {
        r = set_value(c, &keys[i], "", why);
        if (r)
            return err_fold(r);
    }

    if (file)
        r = conffile_read(file + (*file == '-'), *file != '-', on_key, c, why);
    else
        r = read_tree(c, root ? root : "", why);
    if (!r)
        r = usecase_load(&c->use_cases, root, why);
    if (r)
        return err_up(r);

    for (size_t i = 0; i < n_set; i++) {
        r = set_key(c, set[i].key, set[i].value, set[i].from, &inner);
        if (r > 0)
            return why_set(why, CONFIG_BAD, "%s: %.150s", set[i].from, inner.text);
        if (r)
            return err_up(r);
    }

    *ret_config = take(c);
    return 0;
}

const char *config_cache_dir(const struct config *c) {
    return c->cache_dir ? c->cache_dir : getenv("CACHE_DIRECTORY");
}

bool config_wants_bus(const struct config *c) {
    return c->bus == CONFIG_BUS_AUTO ? getenv("NOTIFY_SOCKET") != NULL : c->bus != CONFIG_BUS_NONE;
}

static void print_value(const struct config *c, const struct config_key *k, FILE *f) {
    const void *at = (const char *)c + k->offset;

    switch (k->type) {
    case CONFIG_STR:
    case CONFIG_PATH:
        fputs(*(char *const *)at ? *(char *const *)at : "", f);
        break;
    case CONFIG_BOOL:
        fputs(*(const bool *)at ? "yes" : "no", f);
        break;
    case CONFIG_ENUM:
        fputs(k->words[*(const uint64_t *)at], f);
        break;
    case CONFIG_UINT:
    case CONFIG_SIZE:
        fprintf(f, "%" PRIu64, *(const uint64_t *)at);
        break;
    }
}

void config_print(const struct config *c, FILE *f) {
    for (size_t i = 0; i < N_KEY; i++) {
        fprintf(f, "# %s\n%s = ", c->from[i] ? c->from[i] : "default", keys[i].name);
        print_value(c, &keys[i], f);
        fputc('\n', f);
    }
}

void config_describe(FILE *f) {
    for (size_t i = 0; i < N_KEY; i++) {
        const struct config_key *k = &keys[i];

        fprintf(f, "%-16s %-9s ", k->name, type_names[k->type]);
        if (k->type == CONFIG_UINT)
            fprintf(f, "%" PRIu64 " to %" PRIu64 ", ", k->min, k->max);
        for (size_t w = 0; k->words[w]; w++)
            fprintf(f, "%s, ", k->words[w]);
        fprintf(f, "default: %s\n    %s\n", *k->def ? k->def : "unset", k->doc);
    }
}
