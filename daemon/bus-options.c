/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-options - a{sv} to parameters, results to a{sv}
 */

#include <stdlib.h>
#include <string.h>

#include "daemon/bus-priv.h"

/* Where an option goes: into the parameter .rpc as it is, or into struct bus_options. */
/* clang-format off */
static const struct option {
    const char *key, *type, *rpc;
    size_t offset;
} options[] = {
    { "context-tokens", "u",  NULL,          offsetof(struct bus_options, context)      },
    { "deadline-usec",  "t",  "deadline_ms", 0                                          },
    { "digest",         "s",  NULL,          offsetof(struct bus_options, digest)       },
    { "idle-timeout-usec", "t", "idle_ms",   0                                          },
    { "instructions",   "s",  NULL,          offsetof(struct bus_options, instructions) },
    { "language",       "s",  NULL,          offsetof(struct bus_options, language)     },
    { "license",        "s",  NULL,          offsetof(struct bus_options, license)      },
    { "max-tokens",     "u",  "max_tokens",  0                                          },
    { "mode",           "s",  NULL,          offsetof(struct bus_options, mode)         },
    { "model",          "s",  NULL,          offsetof(struct bus_options, model)        },
    { "overflow",       "s",  "overflow",    0                                          },
    { "priority",       "u",  "priority",    0                                          },
    { "sampling",       "s",  NULL,          offsetof(struct bus_options, sampling)     },
    { "seed",           "t",  "seed",        0                                          },
    { "stop",           "as", "stop",        0                                          },
    { "temperature",    "d",  "temperature", 0                                          },
    { "thinking",       "b",  "thinking",    0                                          },
    { "uid",            "u",  NULL,          offsetof(struct bus_options, uid)          },
    { "use-case",       "s",  NULL,          offsetof(struct bus_options, use_case)     },
};
/* clang-format on */

static bool has_word(const char *words, const char *word) {
    size_t n = strlen(word);

    for (const char *s = words; *s; s += strcspn(s, " "), s += strspn(s, " "))
        if (strcspn(s, " ") == n && memcmp(s, word, n) == 0)
            return true;
    return false;
}

static const struct option *find(const char *allowed, const char *key) {
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        if (strcmp(options[i].key, key) == 0)
            return has_word(allowed, key) ? &options[i] : NULL;
    return NULL;
}

/* ---- reading ---- */

char **bus_strv_free(char **s) {
    for (size_t i = 0; s && s[i]; i++)
        free(s[i]);
    free(s);
    return NULL;
}

static int pack_strings(sd_bus_message *m, struct bus_params *p) {
    AUTO(bus_strv_free) char **s = NULL;
    uint32_t n = 0;
    int r;

    r = sd_bus_message_read_strv(m, &s);
    while (s && s[n])
        n++;
    msgpack_pack_array(&p->pk, n);
    for (uint32_t i = 0; i < n; i++)
        wire_pack_str(&p->pk, s[i]);
    return r;
}

static int pack_priority(sd_bus_message *m, struct bus_params *p, bool *ret_background,
                         struct why *why) {
    static const char *const names[] = { "default", "interactive", "background" };
    uint32_t v = 0;
    int r;

    r = sd_bus_message_read(m, "u", &v);
    if (r >= 0 && v >= sizeof names / sizeof names[0])
        return why_set(why, RPC_INVALID_ARGS, "priority: not 0, 1 or 2");
    if (r >= 0)
        wire_pack_str(&p->pk, names[v]);
    *ret_background = v == 2;
    return r < 0 ? r : 0;
}

static int pack_value(sd_bus_message *m, const struct option *o, struct bus_params *p) {
    union {
        const char *s;
        uint32_t u;
        uint64_t t;
        double d;
        int b;
    } v = { .t = 0 };
    int r;

    r = sd_bus_message_read_basic(m, o->type[0], &v);
    switch (o->type[0]) {
    case 's':
        wire_pack_str(&p->pk, v.s ?: "");
        break;
    case 'u':
        msgpack_pack_uint32(&p->pk, v.u);
        break;
    case 't':
        msgpack_pack_uint64(&p->pk, strcmp(o->key, "seed") == 0 ? v.t : v.t / 1000);
        break;
    case 'd':
        msgpack_pack_double(&p->pk, v.d);
        break;
    default:
        (void)(v.b ? msgpack_pack_true(&p->pk) : msgpack_pack_false(&p->pk));
        break;
    }
    return r;
}

/* One variant, entered. */
static int read_one(sd_bus_message *m, const struct option *o, struct bus_options *ret,
                    struct bus_params *p, struct why *why) {
    int r;

    if (!o->rpc)
        return sd_bus_message_read_basic(m, o->type[0], (char *)ret + o->offset);

    wire_pack_str(&p->pk, o->rpc);
    p->n++;
    if (strcmp(o->key, "priority") == 0)
        r = pack_priority(m, p, &ret->background, why);
    else if (strcmp(o->type, "as") == 0)
        r = pack_strings(m, p);
    else
        r = pack_value(m, o, p);
    return r;
}

static int read_entry(sd_bus_message *m, const char *allowed, struct bus_options *ret,
                      struct bus_params *p, struct why *why) {
    const struct option *o;
    const char *key, *type;
    int r;

    r = sd_bus_message_read(m, "s", &key);
    if (r >= 0)
        r = sd_bus_message_peek_type(m, NULL, &type);
    if (r < 0)
        return r;
    o = find(allowed, key);
    if (!o)
        return why_set(why, RPC_INVALID_ARGS, "options: %.64s is not known here", key);
    if (strcmp(type, o->type) != 0)
        return why_set(why, RPC_INVALID_ARGS, "options: %s is of type %s, not %.32s", key, o->type,
                       type);

    r = sd_bus_message_enter_container(m, 'v', o->type);
    if (r >= 0)
        r = read_one(m, o, ret, p, why);
    if (why->text[0])
        return 0;
    return r < 0 ? r : sd_bus_message_exit_container(m);
}

int bus_options_read(sd_bus_message *m, const char *allowed, struct bus_options *ret,
                     struct bus_params *p, struct why *why) {
    int r;

    *ret = (struct bus_options){ .uid = UINT32_MAX };
    r = sd_bus_message_enter_container(m, 'a', "{sv}");
    while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
        r = read_entry(m, allowed, ret, p, why);
        if (why->text[0])
            return RPC_INVALID_ARGS;
        if (r >= 0)
            r = sd_bus_message_exit_container(m);
    }
    return r < 0 ? err_new(r) : 0;
}

void bus_params_str(struct bus_params *p, const char *key, const char *s) {
    rpc_pack_str(&p->pk, key, s);
    p->n++;
}

void bus_params_message(struct bus_params *p, const char *role, const char *text) {
    msgpack_pack_map(&p->pk, 2);
    rpc_pack_str(&p->pk, "role", role);
    rpc_pack_str(&p->pk, "content", text);
}

/* ---- appending ---- */

int bus_append_text(sd_bus_message *m, const msgpack_object *o) {
    AUTO(free) char *s = NULL;
    uint32_t n = o && o->type == MSGPACK_OBJECT_STR ? o->via.str.size : 0;

    s = malloc(n + 1);
    if (!s)
        return err_new(-ENOMEM);

    if (n)
        (void)memcpy(s, o->via.str.ptr, n);
    s[n] = '\0';
    for (char *nul = s; (nul = memchr(nul, '\0', (size_t)(s + n - nul)));)
        *nul = ' ';
    return sd_bus_message_append(m, "s", s);
}

static int append_value(sd_bus_message *m, char type, const msgpack_object *o) {
    switch (type) {
    case 's':
        return bus_append_text(m, o);
    case 'u':
        return sd_bus_message_append(m, "u", (uint32_t)o->via.u64);
    case 't':
        return sd_bus_message_append(m, "t", o->via.u64);
    default:
        return sd_bus_message_append(m, "d", rpc_number(o));
    }
}

int bus_append_entry(sd_bus_message *m, const char *key, char type, const msgpack_object *o) {
    const char contents[] = { type, '\0' };
    int r;

    if (!o)
        return 0;
    r = sd_bus_message_open_container(m, 'e', "sv");
    if (r >= 0)
        r = sd_bus_message_append(m, "s", key);
    if (r >= 0)
        r = sd_bus_message_open_container(m, 'v', contents);
    if (r >= 0)
        r = append_value(m, type, o);
    if (r >= 0)
        r = sd_bus_message_close_container(m);
    if (r >= 0)
        r = sd_bus_message_close_container(m);
    return r;
}
