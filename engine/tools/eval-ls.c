/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

#include "engine/base/utf8.h"
#include "engine/tools/eval.h"

enum { SHOW_ELEMENTS = 8, SHOW_BYTES = 160 }; /* of arrays and strings */

static const char *const type_names[] = { "u8",   "i8",  "u16",   "i16", "u32", "i32", "f32",
                                          "bool", "str", "array", "u64", "i64", "f64" };
static const uint8_t type_sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };

static json_object *string(const char *s, size_t n) {
    char text[SHOW_BYTES + 4];

    if (n <= SHOW_BYTES)
        return json_object_new_string_len(s, (int)n);
    n = SHOW_BYTES;
    n -= utf8_partial(s, n); /* end with a whole character */
    memcpy(text, s, n);
    memcpy(text + n, "...", 4);

    return json_object_new_string(text);
}

static json_object *scalar(enum gguf_type type, const uint8_t *data) {
    union {
        uint64_t u;
        double d;
        float f;
    } v = { .u = 0 };
    unsigned bits = 8u * type_sizes[type];

    memcpy(&v, data, type_sizes[type]);
    switch (type) {
    case GGUF_F32:
        return json_object_new_double((double)v.f);
    case GGUF_F64:
        return json_object_new_double(v.d);
    case GGUF_BOOL:
        return json_object_new_boolean(v.u != 0);
    case GGUF_I8:
    case GGUF_I16:
    case GGUF_I32:
    case GGUF_I64:
        return json_object_new_int64((int64_t)(v.u << (64 - bits)) >> (64 - bits));
    default:
        return json_object_new_uint64(v.u);
    }
}

static json_object *value(const struct gguf *g, const struct gguf_meta *m) {
    json_object *a;

    if (m->type == GGUF_STR)
        return string((const char *)m->data, m->n);
    if (m->type != GGUF_ARR)
        return scalar(m->type, m->data);

    a = json_object_new_array();
    if (m->elem == GGUF_STR) {
        struct gguf_strs it;
        uint64_t n;
        const char *s;
        size_t len;

        if (gguf_get_strs(g, m->key, &it, &n, NULL) == 0)
            for (int i = 0; i < SHOW_ELEMENTS && gguf_strs_next(&it, &s, &len); i++)
                json_object_array_add(a, string(s, len));
    } else {
        for (uint64_t i = 0; i < m->n && i < SHOW_ELEMENTS; i++)
            json_object_array_add(a, scalar(m->elem, m->data + i * type_sizes[m->elem]));
    }

    return a;
}

static json_object *meta_json(const struct gguf *g, const struct gguf_meta *m) {
    json_object *o = json_object_new_object();

    json_object_object_add(o, "key", json_object_new_string(m->key));
    json_object_object_add(o, "type", json_object_new_string(type_names[m->type]));
    if (m->type == GGUF_ARR) {
        json_object_object_add(o, "element", json_object_new_string(type_names[m->elem]));
        json_object_object_add(o, "n", json_object_new_uint64(m->n));
    }
    json_object_object_add(o, m->type == GGUF_ARR ? "first" : "value", value(g, m));

    return o;
}

static json_object *tensor_json(const struct tensor *t) {
    json_object *o = json_object_new_object(), *ne = json_object_new_array();

    for (uint32_t i = 0; i < t->n_dim; i++)
        json_object_array_add(ne, json_object_new_uint64(t->ne[i]));
    json_object_object_add(o, "name", json_object_new_string(t->name));
    json_object_object_add(o, "format", json_object_new_string(quant_info(t->fmt)->name));
    json_object_object_add(o, "shape", ne);
    json_object_object_add(o, "bytes", json_object_new_uint64(t->size));
    json_object_object_add(o, "part", json_object_new_int64(t->part));
    json_object_object_add(o, "offset", json_object_new_uint64(t->offset));

    return o;
}

static void show_meta(const struct gguf *g, const struct gguf_meta *m) {
    json_object *v = value(g, m);

    if (m->type == GGUF_ARR)
        printf("%s = %s[%" PRIu64 "] %s%s\n", m->key, type_names[m->elem], m->n,
               json_object_to_json_string_ext(v, JSON_C_TO_STRING_PLAIN),
               m->n > SHOW_ELEMENTS ? " ..." : "");
    else
        printf("%s = %s %s\n", m->key, type_names[m->type],
               json_object_to_json_string_ext(v, JSON_C_TO_STRING_PLAIN |
                                                     JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(v);
}

static void show_tensor(const struct tensor *t) {
    char shape[96];
    int n = 0;

    for (uint32_t i = 0; i < t->n_dim; i++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%" PRIu64, i ? " x " : "", t->ne[i]);
    printf("%-40s %-7s %14" PRIu64 "  %s\n", t->name, quant_info(t->fmt)->name, t->size, shape);
}

int eval_ls(struct eval *e) {
    const struct gguf *g = e->gguf;
    uint32_t n_meta = gguf_n_meta(g), n_tensor = gguf_n_tensor(g);

    if (!e->args->json) {
        for (uint32_t i = 0; i < n_meta; i++)
            show_meta(g, gguf_meta_at(g, i));
        for (uint32_t i = 0; i < n_tensor; i++)
            show_tensor(gguf_tensor_at(g, i));
        return 0;
    }

    json_object *out = json_object_new_object();
    json_object *meta = json_object_new_array(), *tensors = json_object_new_array();

    for (uint32_t i = 0; i < n_meta; i++)
        json_object_array_add(meta, meta_json(g, gguf_meta_at(g, i)));
    for (uint32_t i = 0; i < n_tensor; i++)
        json_object_array_add(tensors, tensor_json(gguf_tensor_at(g, i)));
    json_object_object_add(out, "metadata", meta);
    json_object_object_add(out, "tensors", tensors);
    puts(json_object_to_json_string_ext(out, JSON_C_TO_STRING_PLAIN));
    json_object_put(out);

    return 0;
}
