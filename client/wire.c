/* SPDX-License-Identifier: Apache-2.0 */

#include <stdbool.h>
#include <string.h>

#include "client/wire.h"

/* What a value's first bytes say of it. */
struct head {
    size_t size;      /* of the header, lead byte and length field together */
    uint64_t payload; /* bytes after it */
    uint64_t n_child; /* values after it */
    bool container;
};

const char *wire_strerror(int outcome) {
    switch (outcome) {
    case WIRE__OK:
        return "a complete frame";
    case WIRE_MORE:
        return "an incomplete frame";
    case WIRE_TOO_LARGE:
        return "a frame larger than 16777216 bytes";
    case WIRE_TOO_DEEP:
        return "a frame nested deeper than 16";
    case WIRE_TOO_MANY:
        return "a frame of more than 65536 elements";
    case WIRE_TOO_GIVEN:
        return "a frame with more than one descriptor";
    default:
        return "not a msgpack-rpc frame";
    }
}

void wire_scan_init(struct wire_scan *s) {
    *s = (struct wire_scan){ .n_left = { 1 } };
}

static uint64_t be(const uint8_t *p, size_t n) {
    uint64_t v = 0;

    for (size_t i = 0; i < n; i++)
        v = v << 8 | p[i];

    return v;
}

/* The header of @lead's kind: how many bytes of length field it has, and how to read it.
 * Return: 0, or WIRE_MALFORMED for the reserved byte and extension types. */
static int head_shape(uint8_t lead, size_t *ret_field, struct head *h) {
    /* clang-format off */
    static const uint8_t field[0x20] = { /* c0 to df: bytes of the length field */
        0, 0, 0, 0,  1, 2, 4,  0, 0, 0,  0, 0,  0, 0, 0, 0,
        0, 0, 0, 0,  0, 0, 0, 0, 0,  1, 2, 4,  2, 4,  2, 4,
    };
    static const uint8_t fixed[0x20] = { /* c0 to df: bytes of a number */
        0, 0, 0, 0,  0, 0, 0,  0, 0, 0,  4, 8,  1, 2, 4, 8,
        1, 2, 4, 8,  0, 0, 0, 0, 0,  0, 0, 0,  0, 0,  0, 0,
    };
    /* clang-format on */

    *ret_field = 0;
    *h = (struct head){ .size = 1 };
    if (lead < 0x80 || lead >= 0xe0) /* small integers */
        return 0;
    if (lead < 0xa0) { /* fixmap 80 to 8f, fixarray 90 to 9f */
        h->container = true;
        h->n_child = (uint64_t)(lead & 0x0f) << (lead < 0x90);
        return 0;
    }
    if (lead < 0xc0) {
        h->payload = lead & 0x1f;
        return 0;
    }
    if (lead == 0xc1 || (lead >= 0xc7 && lead <= 0xc9) || (lead >= 0xd4 && lead <= 0xd8))
        return WIRE_MALFORMED;
    *ret_field = field[lead - 0xc0];
    h->payload = fixed[lead - 0xc0];
    h->size += *ret_field;
    h->container = lead >= 0xdc;
    return 0;
}

/* Read the header at @p, of which @n >= 1 bytes are there. Return: 0, WIRE_MORE, WIRE_MALFORMED. */
static int head_read(const uint8_t *p, size_t n, struct head *h) {
    size_t n_field;
    uint64_t v;
    int r;

    r = head_shape(p[0], &n_field, h);
    if (r || !n_field)
        return r;
    if (n < h->size)
        return WIRE_MORE;

    v = be(p + 1, n_field);
    if (!h->container)
        h->payload = v;
    else
        h->n_child = p[0] >= 0xde ? 2 * v : v;

    return 0;
}

/* May the value @h stand here? On 0 it is entered, and everything it ends is left. */
static int enter(struct wire_scan *s, const struct head *h) {
    uint64_t end = s->pos + h->size + h->payload; /* fits: a payload is below 2^32 */

    if (!s->pos && (!h->container || h->n_child < 3 || h->n_child > 4))
        return WIRE_MALFORMED;
    if (h->n_child > WIRE_ELEMENT_MAX - s->n_element)
        return WIRE_TOO_MANY;
    if (h->container && s->depth == WIRE_DEPTH_MAX)
        return WIRE_TOO_DEEP;

    s->n_left[s->depth]--;
    if (h->container)
        s->n_left[++s->depth] = h->n_child;
    s->n_element += (uint32_t)h->n_child;

    /* Each value that is still to come takes a byte at least. */
    for (uint32_t i = 0; i <= s->depth; i++)
        end += s->n_left[i];
    if (end > WIRE_FRAME_MAX)
        return WIRE_TOO_LARGE;
    s->pos += h->size + (size_t)h->payload;

    while (s->depth && !s->n_left[s->depth])
        s->depth--;
    return 0;
}

int wire_scan(struct wire_scan *s, const void *buf, size_t n, size_t *ret_len) {
    const uint8_t *p = buf;
    struct head h;
    int r;

    while (s->depth || s->n_left[0]) {
        if (s->pos >= n)
            return WIRE_MORE;
        r = head_read(p + s->pos, n - s->pos, &h);
        if (!r)
            r = enter(s, &h);
        if (r)
            return r;
    }
    if (s->pos > n)
        return WIRE_MORE;

    *ret_len = s->pos;
    return 0;
}

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
static bool utf8_ok(const char *s, size_t n) {
    const uint8_t *p = (const uint8_t *)s;

    for (size_t i = 0; i < n;) {
        uint8_t c = p[i++], lo = 0x80, hi = 0xbf;
        int more = c < 0x80 ? 0 : c < 0xc2 ? -1 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : -1;

        if (more < 0 || n - i < (size_t)more)
            return false;
        lo = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : lo;
        hi = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : hi;
        for (int k = 0; k < more; k++, lo = 0x80, hi = 0xbf)
            if (p[i] < lo || p[i++] > hi)
                return false;
    }

    return true;
}

bool wire_utf8(const msgpack_object *o) {
    switch (o->type) {
    case MSGPACK_OBJECT_STR:
        return utf8_ok(o->via.str.ptr, o->via.str.size);
    case MSGPACK_OBJECT_ARRAY:
        for (uint32_t i = 0; i < o->via.array.size; i++)
            if (!wire_utf8(&o->via.array.ptr[i]))
                return false;
        return true;
    case MSGPACK_OBJECT_MAP:
        for (uint32_t i = 0; i < o->via.map.size; i++)
            if (!wire_utf8(&o->via.map.ptr[i].key) || !wire_utf8(&o->via.map.ptr[i].val))
                return false;
        return true;
    default:
        return true;
    }
}

void wire_mend(msgpack_object *o) {
    switch (o->type) {
    case MSGPACK_OBJECT_STR:
        if (!o->via.str.size)
            o->via.str.ptr = "";
        break;
    case MSGPACK_OBJECT_BIN:
        if (!o->via.bin.size)
            o->via.bin.ptr = "";
        break;
    case MSGPACK_OBJECT_ARRAY:
        for (uint32_t i = 0; i < o->via.array.size; i++)
            wire_mend(&o->via.array.ptr[i]);
        break;
    case MSGPACK_OBJECT_MAP:
        for (uint32_t i = 0; i < o->via.map.size; i++) {
            wire_mend(&o->via.map.ptr[i].key);
            wire_mend(&o->via.map.ptr[i].val);
        }
        break;
    default:
        break;
    }
}

static bool is_msgid(const msgpack_object *o) {
    return o->type == MSGPACK_OBJECT_POSITIVE_INTEGER && o->via.u64 <= UINT32_MAX;
}

/* @method and @params of a request or a notification. */
static int parse_call(const msgpack_object *method, const msgpack_object *params,
                      struct wire_frame *f) {
    if (method->type != MSGPACK_OBJECT_STR || !wire_utf8(method))
        return WIRE_MALFORMED;
    if (params->type != MSGPACK_OBJECT_ARRAY || params->via.array.size != 1 ||
        params->via.array.ptr[0].type != MSGPACK_OBJECT_MAP)
        return WIRE_MALFORMED;

    f->method = method->via.str.ptr;
    f->n_method = method->via.str.size;
    f->params = &params->via.array.ptr[0];
    return 0;
}

static int parse_response(const msgpack_object *error, const msgpack_object *result,
                          struct wire_frame *f) {
    if (error->type == MSGPACK_OBJECT_NIL && result->type == MSGPACK_OBJECT_MAP)
        f->result = result;
    else if (error->type == MSGPACK_OBJECT_MAP && result->type == MSGPACK_OBJECT_NIL)
        f->error = error;
    else
        return WIRE_MALFORMED;

    return 0;
}

int wire_parse(const msgpack_object *o, struct wire_frame *ret) {
    const msgpack_object *v = o->via.array.ptr;
    struct wire_frame f = { 0 };
    int r = WIRE_MALFORMED;

    wire_mend((msgpack_object *)(uintptr_t)o);
    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size < 3 ||
        v[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER || v[0].via.u64 > WIRE_NOTIFY)
        return WIRE_MALFORMED;
    f.type = (enum wire_type)v[0].via.u64;
    if (o->via.array.size != (f.type == WIRE_NOTIFY ? 3 : 4))
        return WIRE_MALFORMED;

    if (f.type == WIRE_NOTIFY) {
        r = parse_call(&v[1], &v[2], &f);
    } else if (is_msgid(&v[1])) {
        f.msgid = (uint32_t)v[1].via.u64;
        r = f.type == WIRE_REQUEST ? parse_call(&v[2], &v[3], &f)
                                   : parse_response(&v[2], &v[3], &f);
    }
    if (!r)
        *ret = f;
    return r;
}

void wire_pack_str(msgpack_packer *p, const char *s) {
    size_t n = strlen(s);

    msgpack_pack_str(p, n);
    msgpack_pack_str_body(p, s, n);
}

void wire_pack_request(msgpack_packer *p, uint32_t msgid, const char *method) {
    msgpack_pack_array(p, 4);
    msgpack_pack_int(p, WIRE_REQUEST);
    msgpack_pack_uint32(p, msgid);
    wire_pack_str(p, method);
    msgpack_pack_array(p, 1);
}

void wire_pack_notify(msgpack_packer *p, const char *method) {
    msgpack_pack_array(p, 3);
    msgpack_pack_int(p, WIRE_NOTIFY);
    wire_pack_str(p, method);
    msgpack_pack_array(p, 1);
}

void wire_pack_result(msgpack_packer *p, uint32_t msgid) {
    msgpack_pack_array(p, 4);
    msgpack_pack_int(p, WIRE_RESPONSE);
    msgpack_pack_uint32(p, msgid);
    msgpack_pack_nil(p);
}

void wire_pack_error(msgpack_packer *p, uint32_t msgid) {
    msgpack_pack_array(p, 4);
    msgpack_pack_int(p, WIRE_RESPONSE);
    msgpack_pack_uint32(p, msgid);
}

const msgpack_object *wire_get(const msgpack_object *map, const char *key) {
    size_t n = strlen(key);

    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];

        if (kv->key.type == MSGPACK_OBJECT_STR && kv->key.via.str.size == n &&
            !memcmp(kv->key.via.str.ptr, key, n))
            return &kv->val;
    }

    return NULL;
}
