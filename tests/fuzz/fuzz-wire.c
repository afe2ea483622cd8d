/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as a stream of frames: what wire_scan() lets through, msgpack-c decodes to the same
 * length and within the limits; how the bytes were cut into pieces does not matter. */

#include <string.h>

#include "client/wire.h"
#include "engine/base/utf8.h"
#include "tests/fuzz/fuzz.h"

struct count {
    size_t n_element, depth;
    bool utf8;
};

static void count(const msgpack_object *o, size_t depth, struct count *c) {
    FUZZ_CHECK(o->type != MSGPACK_OBJECT_EXT);
    if (o->type == MSGPACK_OBJECT_STR && !utf8_valid(o->via.str.ptr, o->via.str.size))
        c->utf8 = false;
    if (o->type != MSGPACK_OBJECT_ARRAY && o->type != MSGPACK_OBJECT_MAP)
        return;

    c->depth = depth > c->depth ? depth : c->depth;
    for (uint32_t i = 0; o->type == MSGPACK_OBJECT_ARRAY && i < o->via.array.size; i++) {
        c->n_element++;
        count(&o->via.array.ptr[i], depth + 1, c);
    }
    for (uint32_t i = 0; o->type == MSGPACK_OBJECT_MAP && i < o->via.map.size; i++) {
        c->n_element += 2;
        count(&o->via.map.ptr[i].key, depth + 1, c);
        count(&o->via.map.ptr[i].val, depth + 1, c);
    }
}

static bool inside(const void *p, size_t n, const uint8_t *data, size_t len) {
    return (const uint8_t *)p >= data && (const uint8_t *)p + n <= data + len;
}

static void parse(const msgpack_object *o, const uint8_t *data, size_t len) {
    struct wire_frame f = { 0 };
    int r = wire_parse(o, &f);

    FUZZ_CHECK(r == 0 || r == WIRE_MALFORMED);
    if (r)
        return;
    if (f.type == WIRE_RESPONSE) {
        FUZZ_CHECK(!f.error != !f.result);
        FUZZ_CHECK((f.error ? f.error : f.result)->type == MSGPACK_OBJECT_MAP);
        return;
    }
    FUZZ_CHECK(f.params->type == MSGPACK_OBJECT_MAP);
    FUZZ_CHECK(f.method && (!f.n_method || inside(f.method, f.n_method, data, len)));
    FUZZ_CHECK(utf8_valid(f.method, f.n_method));
    (void)wire_get(f.params, "id");
}

static void decode(const uint8_t *data, size_t len) {
    struct count c = { .utf8 = true };
    msgpack_unpacked u;
    msgpack_sbuffer again;
    msgpack_packer p;
    size_t off = 0;

    msgpack_unpacked_init(&u);
    FUZZ_CHECK(msgpack_unpack_next(&u, (const char *)data, len, &off) == MSGPACK_UNPACK_SUCCESS);
    FUZZ_CHECK(off == len);
    count(&u.data, 1, &c);
    FUZZ_CHECK(c.n_element <= WIRE_ELEMENT_MAX && c.depth <= WIRE_DEPTH_MAX);
    FUZZ_CHECK(wire_utf8(&u.data) == c.utf8);
    parse(&u.data, data, len);

    /* Packed again it is no longer, and still within the limits. */
    msgpack_sbuffer_init(&again);
    msgpack_packer_init(&p, &again, msgpack_sbuffer_write);
    if (u.data.type == MSGPACK_OBJECT_ARRAY) {
        struct wire_scan s;

        wire_scan_init(&s);
        msgpack_pack_object(&p, u.data);
        FUZZ_CHECK(again.size <= len);
        FUZZ_CHECK(wire_scan(&s, again.data, again.size, &off) == 0 && off == again.size);
    }
    msgpack_sbuffer_destroy(&again);
    msgpack_unpacked_destroy(&u);
}

/* The outcome when the bytes come @step at a time, and the frame's length. */
static int scan_stepwise(const uint8_t *data, size_t size, size_t step, size_t *ret_len) {
    struct wire_scan s;
    int r = WIRE_MORE;

    wire_scan_init(&s);
    for (size_t n = 0; r == WIRE_MORE && n <= size; n += step) {
        r = wire_scan(&s, data, n, ret_len);
        if (n < size && n + step > size)
            n = size - step;
    }

    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    while (size) {
        size_t len = 0, other = 0;
        struct wire_scan s;
        int r;

        wire_scan_init(&s);
        r = wire_scan(&s, data, size, &len);
        FUZZ_CHECK(r >= 0 && r <= WIRE_TOO_MANY);
        FUZZ_CHECK(scan_stepwise(data, size, 1, &other) == r && other == len);
        FUZZ_CHECK(scan_stepwise(data, size, 1 + data[0] % 7u, &other) == r && other == len);
        if (r)
            break;
        FUZZ_CHECK(len > 0 && len <= size && len <= WIRE_FRAME_MAX);
        decode(data, len);
        data += len;
        size -= len;
    }

    return 0;
}
