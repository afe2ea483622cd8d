/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire.h"
#include "daemon/args.h"
#include "daemon/rpc.h"

/* A copy of @o, which the engine takes as NUL-terminated: a NUL inside would cut it silently. */
static int copy(const msgpack_object *o, const char *key, size_t i, char **ret, struct why *why) {
    if (!o || o->type != MSGPACK_OBJECT_STR)
        return why_set(why, RPC_INVALID_ARGS, "%s, element %zu: not a text", key, i);
    if (memchr(o->via.str.ptr, '\0', o->via.str.size))
        return why_set(why, RPC_INVALID_ARGS, "%s, element %zu: has a NUL character", key, i);

    *ret = strndup(o->via.str.ptr, o->via.str.size);
    return *ret ? 0 : err_new(-ENOMEM);
}

int args_messages(const msgpack_object *list, struct args_messages *ret, struct why *why) {
    const msgpack_object_array *a = &list->via.array;
    char *role, *text;
    int r;

    if (!a->size)
        return why_set(why, RPC_INVALID_ARGS, "messages: empty");
    ret->msg = calloc(a->size, sizeof *ret->msg);
    if (!ret->msg)
        return err_new(-ENOMEM);

    ret->n = a->size;
    for (uint32_t i = 0; i < a->size; i++) {
        if (a->ptr[i].type != MSGPACK_OBJECT_MAP)
            return why_set(why, RPC_INVALID_ARGS, "messages, element %u: not a map", i);
        role = text = NULL;
        r = copy(wire_get(&a->ptr[i], "role"), "role of messages", i, &role, why);
        ret->msg[i].role = role;
        if (!r)
            r = copy(wire_get(&a->ptr[i], "content"), "content of messages", i, &text, why);
        ret->msg[i].text = text;
        if (r)
            return err_up(r);
    }

    return 0;
}

void args_messages_deinit(struct args_messages *m) {
    for (size_t i = 0; i < m->n; i++) {
        free((char *)m->msg[i].role);
        free((char *)m->msg[i].text);
    }
    free(m->msg);
}

int args_tokens(const msgpack_object *list, tok_t **ret_tok, size_t *ret_n, struct why *why) {
    const msgpack_object_array *a = &list->via.array;
    AUTO(free) tok_t *tok = malloc((a->size + 1) * sizeof *tok);

    if (!tok)
        return err_new(-ENOMEM);

    for (uint32_t i = 0; i < a->size; i++) {
        const msgpack_object *o = &a->ptr[i];

        if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER || o->via.u64 > INT32_MAX)
            return why_set(why, RPC_INVALID_ARGS, "tokens, element %u: not a token id", i);
        tok[i] = (tok_t)o->via.u64;
    }

    *ret_tok = take(tok);
    *ret_n = a->size;
    return 0;
}

int args_strings(const msgpack_object *list, const char *key, size_t max, struct args_strings *ret,
                 struct why *why) {
    const msgpack_object_array *a = &list->via.array;
    int r;

    if (a->size > max)
        return why_set(why, RPC_INVALID_ARGS, "%s: more than %zu", key, max);
    ret->s = calloc(a->size + 1, sizeof *ret->s);
    if (!ret->s)
        return err_new(-ENOMEM);

    ret->n = a->size;
    for (uint32_t i = 0; i < a->size; i++) {
        r = copy(&a->ptr[i], key, i, &ret->s[i], why);
        if (r)
            return err_up(r);
        if (!*ret->s[i])
            return why_set(why, RPC_INVALID_ARGS, "%s, element %u: empty", key, i);
    }

    return 0;
}

void args_strings_deinit(struct args_strings *s) {
    for (size_t i = 0; i < s->n; i++)
        free(s->s[i]);
    free(s->s);
    *s = (struct args_strings){ 0 };
}

int args_bias(const msgpack_object *map, struct sample_bias **ret_bias, uint32_t *ret_n,
              struct why *why) {
    const msgpack_object_map *m = &map->via.map;
    AUTO(free) struct sample_bias *bias = NULL;

    if (m->size > SAMPLE_BIAS_MAX)
        return why_set(why, RPC_INVALID_ARGS, "logit_bias: more than %d tokens", SAMPLE_BIAS_MAX);
    bias = malloc((m->size + 1) * sizeof *bias);
    if (!bias)
        return err_new(-ENOMEM);

    for (uint32_t i = 0; i < m->size; i++) {
        const msgpack_object *k = &m->ptr[i].key, *v = &m->ptr[i].val;

        if (k->type != MSGPACK_OBJECT_POSITIVE_INTEGER || k->via.u64 > INT32_MAX)
            return why_set(why, RPC_INVALID_ARGS, "logit_bias: a key that is no token id");
        if (!rpc_is_number(v) || isnan(rpc_number(v)) || rpc_number(v) == INFINITY)
            return why_set(why, RPC_INVALID_ARGS, "logit_bias: %ju: not a number to add",
                           (uintmax_t)k->via.u64);
        bias[i] = (struct sample_bias){ (tok_t)k->via.u64, (float)rpc_number(v) };
    }

    *ret_bias = take(bias);
    *ret_n = m->size;
    return 0;
}

int args_sample(const msgpack_object *params, struct sample_params *ret, struct why *why) {
    /* clang-format off */
    const struct { const char *key; unsigned has; float *f; uint32_t *u; } table[] = {
        { "temperature",       SAMPLE_TEMPERATURE, &ret->temperature, NULL         },
        { "top_p",             SAMPLE_TOP_P,       &ret->top_p,       NULL         },
        { "min_p",             SAMPLE_MIN_P,       &ret->min_p,       NULL         },
        { "repeat_penalty",    SAMPLE_REPEAT,      &ret->repeat,      NULL         },
        { "frequency_penalty", SAMPLE_FREQUENCY,   &ret->frequency,   NULL         },
        { "presence_penalty",  SAMPLE_PRESENCE,    &ret->presence,    NULL         },
        { "top_k",             SAMPLE_TOP_K,       NULL,              &ret->top_k  },
        { "repeat_last_n",     SAMPLE_LAST_N,      NULL,              &ret->last_n },
    };
    /* clang-format on */
    const msgpack_object *o;

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        o = wire_get(params, table[i].key);
        if (!o)
            continue;
        if (table[i].u && o->via.u64 > UINT32_MAX)
            return why_set(why, RPC_INVALID_ARGS, "%s: larger than 2^32", table[i].key);
        ret->has |= table[i].has;
        if (table[i].f)
            *table[i].f = (float)rpc_number(o);
        else
            *table[i].u = (uint32_t)o->via.u64;
    }

    o = wire_get(params, "seed");
    if (o) {
        ret->has |= SAMPLE_SEED;
        ret->seed = o->via.u64;
    }
    return 0;
}

int args_max_tokens(const msgpack_object *params, uint32_t *ret, struct why *why) {
    const msgpack_object *o = wire_get(params, "max_tokens");

    if (!o)
        return 0;
    if (!o->via.u64)
        return why_set(why, RPC_INVALID_ARGS, "max_tokens: 0");
    *ret = o->via.u64 >= UINT32_MAX ? 0 : (uint32_t)o->via.u64;
    return 0;
}

/* Which of @words the text @key is; none: @def. Return: its index, or -1. */
static int find_word(const msgpack_object *params, const char *key, const char *const *words,
                     size_t n, int def) {
    const msgpack_object *o = wire_get(params, key);

    for (size_t i = 0; o && i < n; i++)
        if (strlen(words[i]) == o->via.str.size &&
            memcmp(words[i], o->via.str.ptr, o->via.str.size) == 0)
            return (int)i;
    return o ? -1 : def;
}

int args_priority(const msgpack_object *params, enum fair_class *ret, struct why *why) {
    static const char *const words[] = { [FAIR_DEFAULT] = "default",
                                         [FAIR_INTERACTIVE] = "interactive",
                                         [FAIR_BACKGROUND] = "background" };
    int i = find_word(params, "priority", words, 3, (int)*ret);

    if (i < 0)
        return why_set(why, RPC_INVALID_ARGS, "priority: not interactive, default or background");
    *ret = (enum fair_class)i;
    return 0;
}

int args_overflow(const msgpack_object *params, bool *ret_drop, struct why *why) {
    static const char *const words[] = { "error", "drop-oldest" };
    int i = find_word(params, "overflow", words, 2, 0);

    if (i < 0)
        return why_set(why, RPC_INVALID_ARGS, "overflow: not error or drop-oldest");
    *ret_drop = i == 1;
    return 0;
}
