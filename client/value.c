/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"

/* Writing. Maps and arrays get 32-bit counts, filled in when they end. */

enum { N_OPEN = 5 }; /* bytes of a header with a 32-bit count */

struct moe_map *moe_map_new(void) {
    struct moe_map *map = calloc(1, sizeof *map);

    if (!map)
        return NULL;
    msgpack_sbuffer_init(&map->bytes);
    msgpack_packer_init(&map->packer, &map->bytes, msgpack_sbuffer_write);
    map->level[0].is_map = true;

    return map;
}

struct moe_map *moe_map_free(struct moe_map *map) {
    if (!map)
        return NULL;
    msgpack_sbuffer_destroy(&map->bytes);
    free(map);

    return NULL;
}

static void note(struct moe_map *map, int r) {
    if (r && !map->error)
        map->error = r < -1 ? r : -ENOMEM; /* the packer says -1, and fails for no other reason */
}

static void pack_str(struct moe_map *map, const char *s, size_t n) {
    note(map, msgpack_pack_str(&map->packer, n));
    note(map, msgpack_pack_str_body(&map->packer, s, n));
}

/* Begin a value: count it, and write its key. Return: may it be written? */
static bool begin(struct moe_map *map, const char *key) {
    if (!map || map->error)
        return false;
    if ((key || map->int_key) != map->level[map->depth].is_map || (key && map->int_key)) {
        map->error = -EINVAL;
        return false;
    }

    map->int_key = false;
    map->level[map->depth].n++;
    if (key)
        pack_str(map, key, strlen(key));
    return !map->error;
}

void moe_map_bool(struct moe_map *map, const char *key, bool v) {
    if (begin(map, key))
        note(map, v ? msgpack_pack_true(&map->packer) : msgpack_pack_false(&map->packer));
}

void moe_map_int(struct moe_map *map, const char *key, int64_t v) {
    if (begin(map, key))
        note(map, msgpack_pack_int64(&map->packer, v));
}

void moe_map_uint(struct moe_map *map, const char *key, uint64_t v) {
    if (begin(map, key))
        note(map, msgpack_pack_uint64(&map->packer, v));
}

void moe_map_float(struct moe_map *map, const char *key, double v) {
    if (begin(map, key))
        note(map, msgpack_pack_double(&map->packer, v));
}

void moe_map_str_n(struct moe_map *map, const char *key, const char *s, size_t n) {
    if (n > WIRE_FRAME_MAX && map)
        note(map, -EMSGSIZE);
    if (begin(map, key))
        pack_str(map, s, n);
}

void moe_map_str(struct moe_map *map, const char *key, const char *s) {
    if (s)
        moe_map_str_n(map, key, s, strlen(s));
    else if (map)
        note(map, -EINVAL);
}

static void open_level(struct moe_map *map, const char *key, bool is_map) {
    char head[N_OPEN] = { is_map ? (char)0xdf : (char)0xdd };

    if (!begin(map, key))
        return;
    /* One level less than the walk allows: the frame and its params array are two, and the
     * outermost map is a third that no bytes here open. Deeper ones moe_call() refuses. */
    if (map->depth + 1 == WIRE_DEPTH_MAX) {
        map->error = -EMSGSIZE;
        return;
    }

    map->depth++;
    map->level[map->depth].at = map->bytes.size + 1;
    map->level[map->depth].n = 0;
    map->level[map->depth].is_map = is_map;
    note(map, msgpack_sbuffer_write(&map->bytes, head, sizeof head));
}

void moe_map_open_array(struct moe_map *map, const char *key) {
    open_level(map, key, false);
}

void moe_map_open_map(struct moe_map *map, const char *key) {
    open_level(map, key, true);
}

void moe_map_end(struct moe_map *map) {
    uint32_t n;

    if (!map || map->error)
        return;
    if (!map->depth || map->int_key) {
        map->error = -EINVAL;
        return;
    }

    n = map->level[map->depth].n;
    for (int i = 0; i < 4; i++)
        map->bytes.data[map->level[map->depth].at + (size_t)i] = (char)(n >> (24 - 8 * i));
    map->depth--;
}

void moe_map_int_key(struct moe_map *map, int64_t key) {
    if (!map || map->error)
        return;
    if (!map->level[map->depth].is_map || map->int_key) {
        map->error = -EINVAL;
        return;
    }
    note(map, msgpack_pack_int64(&map->packer, key));
    map->int_key = true;
}

/* Reading. A struct moe_value is a msgpack_object under a name of our own. */

static const msgpack_object *object(const struct moe_value *v) {
    static const msgpack_object nil = { .type = MSGPACK_OBJECT_NIL };

    return v ? (const msgpack_object *)v : &nil;
}

static const struct moe_value *value(const msgpack_object *o) {
    return (const struct moe_value *)o;
}

enum moe_type moe_type(const struct moe_value *v) {
    switch (object(v)->type) {
    case MSGPACK_OBJECT_BOOLEAN:
        return MOE_BOOL;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return MOE_INT;
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return MOE_FLOAT;
    case MSGPACK_OBJECT_STR:
        return MOE_STR;
    case MSGPACK_OBJECT_BIN:
        return MOE_BIN;
    case MSGPACK_OBJECT_ARRAY:
        return MOE_ARRAY;
    case MSGPACK_OBJECT_MAP:
        return MOE_MAP;
    default:
        return MOE_NIL;
    }
}

const struct moe_value *moe_get(const struct moe_value *map, const char *key) {
    return moe_type(map) == MOE_MAP ? value(wire_get(object(map), key)) : NULL;
}

size_t moe_size(const struct moe_value *v) {
    const msgpack_object *o = object(v);

    switch (moe_type(v)) {
    case MOE_STR:
        return o->via.str.size;
    case MOE_BIN:
        return o->via.bin.size;
    case MOE_ARRAY:
        return o->via.array.size;
    case MOE_MAP:
        return o->via.map.size;
    default:
        return 0;
    }
}

const struct moe_value *moe_at(const struct moe_value *v, size_t i) {
    const msgpack_object *o = object(v);

    if (moe_type(v) == MOE_ARRAY && i < o->via.array.size)
        return value(&o->via.array.ptr[i]);
    if (moe_type(v) == MOE_MAP && i < o->via.map.size)
        return value(&o->via.map.ptr[i].val);

    return NULL;
}

const struct moe_value *moe_key_at(const struct moe_value *map, size_t i) {
    const msgpack_object *o = object(map);

    return moe_type(map) == MOE_MAP && i < o->via.map.size ? value(&o->via.map.ptr[i].key) : NULL;
}

bool moe_bool(const struct moe_value *v) {
    return moe_type(v) == MOE_BOOL && object(v)->via.boolean;
}

int64_t moe_int(const struct moe_value *v) {
    const msgpack_object *o = object(v);

    if (o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER)
        return o->via.i64;
    if (o->type == MSGPACK_OBJECT_POSITIVE_INTEGER)
        return o->via.u64 > INT64_MAX ? INT64_MAX : (int64_t)o->via.u64;

    return 0;
}

uint64_t moe_uint(const struct moe_value *v) {
    const msgpack_object *o = object(v);

    return o->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? o->via.u64 : 0;
}

double moe_float(const struct moe_value *v) {
    const msgpack_object *o = object(v);

    switch (o->type) {
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return o->via.f64;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        return (double)o->via.u64;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return (double)o->via.i64;
    default:
        return 0;
    }
}

const char *moe_str(const struct moe_value *v) {
    return moe_type(v) == MOE_STR ? object(v)->via.str.ptr : NULL;
}

const void *moe_bin(const struct moe_value *v) {
    return moe_type(v) == MOE_BIN ? object(v)->via.bin.ptr : NULL;
}

void client_terminate(const msgpack_object *o) {
    switch (o->type) {
    case MSGPACK_OBJECT_STR:
        /* Into the buffer that was decoded, which is ours to write; an empty one is "" already. */
        if (o->via.str.size)
            ((char *)(uintptr_t)o->via.str.ptr)[o->via.str.size] = 0;
        break;
    case MSGPACK_OBJECT_ARRAY:
        for (uint32_t i = 0; i < o->via.array.size; i++)
            client_terminate(&o->via.array.ptr[i]);
        break;
    case MSGPACK_OBJECT_MAP:
        for (uint32_t i = 0; i < o->via.map.size; i++) {
            client_terminate(&o->via.map.ptr[i].key);
            client_terminate(&o->via.map.ptr[i].val);
        }
        break;
    default:
        break;
    }
}
