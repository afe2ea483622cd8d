/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/engine.h"
#include "engine/fmt/gguf.h"

static uint64_t le(const uint8_t *p, size_t n) {
    uint64_t v = 0;

    for (size_t i = n; i > 0; i--)
        v = v << 8 | p[i - 1];

    return v;
}

/* Bytes of a scalar; 0: not one of fixed size. */
static size_t scalar_size(enum gguf_type type) {
    static const uint8_t sizes[] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2, [GGUF_U32] = 4,
        [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_STR] = 0, [GGUF_ARR] = 0,
        [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };

    return sizes[type];
}

static void read_scalar(enum gguf_type type, const uint8_t *p, struct engine_value *v) {
    size_t n = scalar_size(type);
    uint64_t bits = le(p, n);
    unsigned shift = 64 - 8 * (unsigned)n;
    float f;

    *v = (struct engine_value){ .kind = ENGINE_VALUE_UINT, .u = bits };
    switch (type) {
    case GGUF_I8:
    case GGUF_I16:
    case GGUF_I32:
    case GGUF_I64:
        v->kind = ENGINE_VALUE_INT;
        v->i = (int64_t)(bits << shift) >> shift;
        break;
    case GGUF_BOOL:
        v->kind = ENGINE_VALUE_BOOL;
        v->b = bits != 0;
        break;
    case GGUF_F32:
        (void)memcpy(&f, p, sizeof f);
        v->kind = ENGINE_VALUE_FLOAT;
        v->f = (double)f;
        break;
    case GGUF_F64:
        v->kind = ENGINE_VALUE_FLOAT;
        (void)memcpy(&v->f, p, sizeof v->f);
        break;
    default:
        break;
    }
}

/* Fill @v with the elements of an array of strings. Return: how many, 0 when it cannot be read. */
static size_t read_strs(const struct gguf *g, const char *key, struct engine_value *v) {
    struct gguf_strs it;
    uint64_t n;

    if (gguf_get_strs(g, key, &it, &n, NULL) || n > ENGINE_ARRAY_MAX)
        return 0;
    for (size_t i = 0; i < n; i++) {
        v[i] = (struct engine_value){ .kind = ENGINE_VALUE_STR };
        (void)gguf_strs_next(&it, &v[i].s, &v[i].n);
    }

    return (size_t)n;
}

static void tell_meta(const struct gguf *g, const struct gguf_meta *m,
                      const struct engine_describe_ops *ops, void *arg) {
    struct engine_value v[ENGINE_ARRAY_MAX];
    size_t n = 1;

    if (m->type == GGUF_ARR) {
        if (m->n > ENGINE_ARRAY_MAX || m->elem == GGUF_ARR)
            return;
        n = (size_t)m->n;
        if (m->elem == GGUF_STR)
            n = read_strs(g, m->key, v);
        else
            for (size_t i = 0; i < n; i++)
                read_scalar(m->elem, m->data + i * scalar_size(m->elem), &v[i]);
    } else if (m->type == GGUF_STR) {
        v[0] = (struct engine_value){ .kind = ENGINE_VALUE_STR,
                                      .s = (const char *)m->data,
                                      .n = (size_t)m->n };
    } else {
        read_scalar(m->type, m->data, &v[0]);
    }

    ops->meta(arg, m->key, m->type == GGUF_ARR, v, n);
}

int engine_describe(const char *path, const struct engine_describe_ops *ops, void *arg,
                    struct why *why) {
    AUTO(gguf_free) struct gguf *g = NULL;
    int r;

    r = gguf_open(&g, path, why);
    if (r)
        return r == GGUF_BAD ? ENGINE_BAD : err_up(r);

    for (uint32_t i = 0; i < gguf_n_meta(g); i++)
        tell_meta(g, gguf_meta_at(g, i), ops, arg);
    for (uint32_t i = 0; i < gguf_n_tensor(g); i++) {
        const struct tensor *t = gguf_tensor_at(g, i);
        struct engine_tensor told = { .name = t->name,
                                      .type = quant_info(t->fmt)->name,
                                      .shape = t->ne,
                                      .n_dim = t->n_dim,
                                      .bytes = t->size };

        ops->tensor(arg, &told);
    }

    return 0;
}
