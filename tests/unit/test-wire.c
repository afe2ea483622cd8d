/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "client/wire.h"

/* [2, "m", [X]] without X: every value is tried at depth 3, as element 5 of its frame. */
static const uint8_t open_notify[] = { 0x93, 0x02, 0xa1, 'm', 0x91 };
enum { N_OPEN = sizeof open_notify, OPEN_DEPTH = 2, OPEN_ELEMENTS = 4 };

static int scan(const void *p, size_t n, size_t *ret_len) {
    struct wire_scan s;

    wire_scan_init(&s);
    return wire_scan(&s, p, n, ret_len);
}

/* The same bytes, one more a call, in a buffer that ends where they end and moves. */
static int scan_bytewise(const uint8_t *p, size_t n, size_t *ret_len) {
    struct wire_scan s;
    int r = WIRE_MORE;

    wire_scan_init(&s);
    for (size_t i = 0; i <= n && r == WIRE_MORE; i++) {
        uint8_t *copy = malloc(i ? i : 1);

        memcpy(copy, p, i);
        r = wire_scan(&s, copy, i, ret_len);
        free(copy);
    }

    return r;
}

/* Scan open_notify and @n bytes; whole and byte by byte must agree. */
static int scan_value(const void *value, size_t n) {
    uint8_t *p = malloc(N_OPEN + n);
    size_t whole = 0, bytewise = 0;
    int r, q;

    memcpy(p, open_notify, N_OPEN);
    memcpy(p + N_OPEN, value, n);
    r = scan(p, N_OPEN + n, &whole);
    q = scan_bytewise(p, N_OPEN + n, &bytewise);
    assert_int_equal(r, q);
    assert_int_equal(whole, bytewise);
    if (!r)
        assert_int_equal(whole, N_OPEN + n);
    free(p);

    return r;
}

static void test_every_lead_byte(void **state) {
    (void)state;
    for (int lead = 0; lead < 256; lead++) {
        uint8_t value[64] = { (uint8_t)lead }; /* length fields and elements are zeros */
        bool ext = (lead >= 0xc7 && lead <= 0xc9) || (lead >= 0xd4 && lead <= 0xd8);
        uint8_t frame[N_OPEN + sizeof value];
        msgpack_unpacked u;
        size_t len = 0, off = 0;
        int r;

        memcpy(frame, open_notify, N_OPEN);
        memcpy(frame + N_OPEN, value, sizeof value);
        r = scan(frame, sizeof frame, &len);
        assert_int_equal(r, lead == 0xc1 || ext ? WIRE_MALFORMED : 0);
        if (r)
            continue;

        /* msgpack-c ends where the walk ended, and not a byte earlier. */
        msgpack_unpacked_init(&u);
        assert_int_equal(msgpack_unpack_next(&u, (char *)frame, len, &off), MSGPACK_UNPACK_SUCCESS);
        assert_int_equal(off, len);
        off = 0;
        assert_int_not_equal(msgpack_unpack_next(&u, (char *)frame, len - 1, &off),
                             MSGPACK_UNPACK_SUCCESS);
        msgpack_unpacked_destroy(&u);
        assert_int_equal(scan_value(value, len - N_OPEN), 0);
        assert_int_equal(scan_value(value, len - N_OPEN - 1), WIRE_MORE);
    }
}

static void test_first_byte(void **state) {
    size_t len;

    (void)state;
    assert_int_equal(scan("", 0, &len), WIRE_MORE);
    assert_int_equal(scan("GET / HTTP/1.1\r\n", 16, &len), WIRE_MALFORMED);
    assert_int_equal(scan("\xc0", 1, &len), WIRE_MALFORMED);
    assert_int_equal(scan("\x80", 1, &len), WIRE_MALFORMED);
    assert_int_equal(scan("\x90", 1, &len), WIRE_MALFORMED);
    assert_int_equal(scan("\x92", 1, &len), WIRE_MALFORMED);
    assert_int_equal(scan("\x93", 1, &len), WIRE_MORE);
    assert_int_equal(scan("\x94", 1, &len), WIRE_MORE);
    assert_int_equal(scan("\x95", 1, &len), WIRE_MALFORMED);
    assert_int_equal(scan("\xdc\x00\x04", 3, &len), WIRE_MORE);
    assert_int_equal(scan("\xdd\x00\x00\x00\x03", 5, &len), WIRE_MORE);
    assert_int_equal(scan("\xdd\x00\x01\x00\x03", 5, &len), WIRE_MALFORMED);
}

static void test_frames_in_a_row(void **state) {
    static const uint8_t two[] = { 0x93, 2, 0xa1, 'm', 0x91, 0x80, 0x93, 2, 0xa1, 'n' };
    struct wire_scan s;
    size_t len = 0;

    (void)state;
    assert_int_equal(scan(two, sizeof two, &len), 0);
    assert_int_equal(len, 6);
    wire_scan_init(&s);
    assert_int_equal(wire_scan(&s, two + 6, 4, &len), WIRE_MORE);
    /* A walked frame stays complete. */
    wire_scan_init(&s);
    assert_int_equal(wire_scan(&s, two, 6, &len), 0);
    assert_int_equal(wire_scan(&s, two, 10, &len), 0);
    assert_int_equal(len, 6);
}

static void test_depth(void **state) {
    uint8_t value[100];

    (void)state;
    memset(value, 0x91, sizeof value);
    value[WIRE_DEPTH_MAX - OPEN_DEPTH] = 0xc0;
    assert_int_equal(scan_value(value, WIRE_DEPTH_MAX - OPEN_DEPTH + 1), 0);
    /* An empty container is a level, too. */
    for (int lead = 0x80; lead <= 0x90; lead += 0x10) {
        value[WIRE_DEPTH_MAX - OPEN_DEPTH - 1] = (uint8_t)lead;
        assert_int_equal(scan_value(value, WIRE_DEPTH_MAX - OPEN_DEPTH), 0);
        value[WIRE_DEPTH_MAX - OPEN_DEPTH - 1] = 0x91;
        value[WIRE_DEPTH_MAX - OPEN_DEPTH] = (uint8_t)lead;
        assert_int_equal(scan_value(value, WIRE_DEPTH_MAX - OPEN_DEPTH + 1), WIRE_TOO_DEEP);
    }
    /* Levels that were left do not count. */
    memset(value, 0x90, sizeof value);
    value[0] = 0xdc;
    value[1] = 0;
    value[2] = 97;
    assert_int_equal(scan_value(value, sizeof value), 0);
}

static void test_bombs(void **state) {
    static const struct {
        const char *bytes;
        size_t n;
        int want;
    } bombs[] = {
        { "\xdd\xff\xff\xff\xff", 5, WIRE_TOO_MANY },
        { "\xdf\xff\xff\xff\xff", 5, WIRE_TOO_MANY },
        { "\xdd\x04\x00\x00\x00", 5, WIRE_TOO_MANY },
        { "\xdf\x80\x00\x00\x00", 5, WIRE_TOO_MANY },
        { "\xdc\xff\xff", 3, WIRE_TOO_MANY },
        { "\xdb\xff\xff\xff\xff", 5, WIRE_TOO_LARGE },
        { "\xc6\xff\xff\xff\xff", 5, WIRE_TOO_LARGE },
        { "\xdb\x01\x00\x00\x00", 5, WIRE_TOO_LARGE },
    };
    uint8_t nested[100];

    (void)state;
    for (size_t i = 0; i < sizeof bombs / sizeof bombs[0]; i++)
        assert_int_equal(scan_value(bombs[i].bytes, bombs[i].n), bombs[i].want);

    memset(nested, 0xdd, sizeof nested); /* each level declares 0xdddddddd values */
    assert_int_equal(scan_value(nested, sizeof nested), WIRE_TOO_MANY);
    for (size_t i = 0; i + 5 <= sizeof nested; i += 5)
        memcpy(nested + i, "\xdd\x00\x00\x01\x00", 5);
    assert_int_equal(scan_value(nested, sizeof nested), WIRE_TOO_DEEP);
    for (size_t i = 0; i + 5 <= sizeof nested; i += 5)
        memcpy(nested + i, "\xdd\x00\x00\x40\x00", 5);
    assert_int_equal(scan_value(nested, sizeof nested), WIRE_TOO_MANY);
}

static void test_elements(void **state) {
    enum { FREE = WIRE_ELEMENT_MAX - OPEN_ELEMENTS - 1 };
    /* The one value of the params array is the container itself, counted by what holds it. */
    uint8_t *p = calloc(1, FREE + 8);
    uint32_t n = FREE + 1;

    (void)state;
    memcpy(p, "\xdd\x00\x00\xff", 4);
    p[2] = (uint8_t)(n >> 8 >> 8);
    p[3] = (uint8_t)(n >> 8);
    p[4] = (uint8_t)n;
    assert_int_equal(scan_value(p, 5), WIRE_MORE);
    p[4]++;
    assert_int_equal(scan_value(p, 5), WIRE_TOO_MANY);

    /* A map's keys count: half as many pairs. */
    p[0] = 0xdf;
    p[2] = 0;
    p[3] = (uint8_t)(n / 2 >> 8);
    p[4] = (uint8_t)(n / 2);
    assert_int_equal(scan_value(p, 5), WIRE_MORE);
    n = n / 2 + 1;
    p[3] = (uint8_t)(n >> 8);
    p[4] = (uint8_t)n;
    assert_int_equal(scan_value(p, 5), WIRE_TOO_MANY);
    free(p);
}

static void test_elements_complete(void **state) {
    enum { N = WIRE_ELEMENT_MAX - OPEN_ELEMENTS };
    uint8_t *p = calloc(1, N_OPEN + 5 + N);
    size_t len = 0;

    (void)state;
    memcpy(p, open_notify, N_OPEN);
    memcpy(p + N_OPEN, "\xdd\x00\x00\xff\xfc", 5);
    assert_int_equal(scan(p, N_OPEN + 5 + N, &len), 0);
    assert_int_equal(len, N_OPEN + 5 + N);
    assert_int_equal(scan(p, N_OPEN + 5 + N - 1, &len), WIRE_MORE);
    free(p);
}

static void test_size(void **state) {
    /* [2, "m", [str]]: the frame is exactly as long as a frame may be. */
    uint32_t n = WIRE_FRAME_MAX - N_OPEN - 5;
    uint8_t head[N_OPEN + 5];
    struct wire_scan s;
    size_t len = 0;
    uint8_t *p;

    (void)state;
    memcpy(head, open_notify, N_OPEN);
    head[N_OPEN] = 0xdb;
    for (int over = 0; over < 2; over++, n++) {
        for (int i = 0; i < 4; i++)
            head[N_OPEN + 1 + i] = (uint8_t)(n >> (24 - 8 * i));
        assert_int_equal(scan(head, sizeof head, &len), over ? WIRE_TOO_LARGE : WIRE_MORE);
    }

    n = WIRE_FRAME_MAX - N_OPEN - 5;
    for (int i = 0; i < 4; i++)
        head[N_OPEN + 1 + i] = (uint8_t)(n >> (24 - 8 * i));
    p = calloc(1, WIRE_FRAME_MAX);
    memcpy(p, head, sizeof head);
    wire_scan_init(&s);
    assert_int_equal(wire_scan(&s, p, WIRE_FRAME_MAX - 1, &len), WIRE_MORE);
    assert_int_equal(wire_scan(&s, p, WIRE_FRAME_MAX, &len), 0);
    assert_int_equal(len, WIRE_FRAME_MAX);

    /* Full before its last values came: refused as soon as the long string's header is read. */
    p[0] = 0x94;
    p[4] = 0x92;
    n = WIRE_FRAME_MAX - N_OPEN - 5 - 1; /* one byte left, two values open */
    for (int i = 0; i < 4; i++)
        p[N_OPEN + 1 + i] = (uint8_t)(n >> (24 - 8 * i));
    assert_int_equal(scan(p, sizeof head, &len), WIRE_TOO_LARGE);
    p[0] = 0x93;
    assert_int_equal(scan(p, sizeof head, &len), WIRE_MORE);
    free(p);
}

static void test_declared_count_against_space(void **state) {
    /* A string leaves 100 bytes; then an array may declare 100 values and not 101. */
    uint32_t n = WIRE_FRAME_MAX - 5 - 5 - 3 - 100;
    uint8_t *p = calloc(1, WIRE_FRAME_MAX);
    size_t at = 5 + 5 + n, len;

    (void)state;
    memcpy(p, "\x93\x02\xa1m\x92\xdb", 6);
    for (int i = 0; i < 4; i++)
        p[6 + i] = (uint8_t)(n >> (24 - 8 * i));
    p[at] = 0xdc;
    p[at + 2] = 100;
    assert_int_equal(scan(p, at + 3, &len), WIRE_MORE);
    p[at + 2] = 101;
    assert_int_equal(scan(p, at + 3, &len), WIRE_TOO_LARGE);
    free(p);
}

/* Decode and parse @n bytes of a frame. */
static int parse(const char *bytes, size_t n, struct wire_frame *f, msgpack_unpacked *u) {
    size_t len = 0, off = 0;

    assert_int_equal(scan(bytes, n, &len), 0);
    assert_int_equal(len, n);
    msgpack_unpacked_init(u);
    assert_int_equal(msgpack_unpack_next(u, bytes, n, &off), MSGPACK_UNPACK_SUCCESS);
    return wire_parse(&u->data, f);
}

static void test_parse(void **state) {
    static const struct {
        const char *bytes;
        size_t n;
        bool ok;
    } rows[] = {
#define ROW(s_, ok_) { s_, sizeof s_ - 1, ok_ }
        ROW("\x94\x00\x07\xa1m\x91\x80", true),
        ROW("\x94\x00\xce\xff\xff\xff\xff\xa1m\x91\x80", true),
        ROW("\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa1m\x91\x80", false), /* msgid 2^32 */
        ROW("\x94\x00\xff\xa1m\x91\x80", false),                                 /* msgid -1 */
        ROW("\x94\x00\xa1x\xa1m\x91\x80", false),
        ROW("\x93\x00\x07\xa1m", false),
        ROW("\x94\x00\x07\xc4\x01m\x91\x80", false),        /* method is bin */
        ROW("\x94\x00\x07\xa2\xc3\x28\x91\x80", false),     /* no UTF-8 */
        ROW("\x94\x00\x07\xa3\xed\xa0\x80\x91\x80", false), /* a surrogate */
        ROW("\x94\x00\x07\xa2\xc3\xbc\x91\x80", true),
        ROW("\x94\x00\x07\xa1m\x80", false), /* params not in an array */
        ROW("\x94\x00\x07\xa1m\x90", false),
        ROW("\x94\x00\x07\xa1m\x92\x80\x80", false),
        ROW("\x94\x00\x07\xa1m\x91\x90", false),
        ROW("\x94\x01\x07\xc0\x80", true),
        ROW("\x94\x01\x07\x80\xc0", true),
        ROW("\x94\x01\x07\xc0\xc0", false),
        ROW("\x94\x01\x07\x80\x80", false),
        ROW("\x94\x01\x07\xa1x\xc0", false),
        ROW("\x94\x01\x07\xc0\x90", false),
        ROW("\x93\x02\xa1m\x91\x80", true),
        ROW("\x94\x02\xa1m\x91\x80\xc0", false),
        ROW("\x93\x03\xa1m\x91\x80", false),
        ROW("\x93\xa1x\xa1m\x91\x80", false),
        ROW("\x82\x02\xa1m\x01\x02", false), /* a map of as many values */
#undef ROW
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct wire_frame f = { .msgid = 99 };
        msgpack_unpacked u;
        int r = parse(rows[i].bytes, rows[i].n, &f, &u);

        if (r != (rows[i].ok ? 0 : WIRE_MALFORMED))
            fail_msg("row %zu: got %d", i, r);
        if (r)
            assert_int_equal(f.msgid, 99);
        msgpack_unpacked_destroy(&u);
    }
}

static void test_pack_then_parse(void **state) {
    msgpack_sbuffer b;
    msgpack_packer p;
    msgpack_unpacked u;
    struct wire_frame f;
    const msgpack_object *v;

    (void)state;
    msgpack_sbuffer_init(&b);
    msgpack_packer_init(&p, &b, msgpack_sbuffer_write);
    wire_pack_request(&p, UINT32_MAX, "model.show");
    msgpack_pack_map(&p, 3);
    msgpack_pack_int(&p, 1);
    wire_pack_str(&p, "not a str key");
    wire_pack_str(&p, "id");
    wire_pack_str(&p, "first");
    wire_pack_str(&p, "id");
    wire_pack_str(&p, "second");
    assert_int_equal(parse(b.data, b.size, &f, &u), 0);
    assert_int_equal(f.type, WIRE_REQUEST);
    assert_int_equal(f.msgid, UINT32_MAX);
    assert_int_equal(f.n_method, 10);
    assert_memory_equal(f.method, "model.show", 10);
    v = wire_get(f.params, "id");
    assert_non_null(v);
    assert_int_equal(v->via.str.size, 5);
    assert_memory_equal(v->via.str.ptr, "first", 5);
    assert_null(wire_get(f.params, "i"));
    assert_null(wire_get(f.params, "id2"));
    msgpack_unpacked_destroy(&u);

    msgpack_sbuffer_clear(&b);
    wire_pack_notify(&p, "job.progress");
    msgpack_pack_map(&p, 0);
    assert_int_equal(parse(b.data, b.size, &f, &u), 0);
    assert_int_equal(f.type, WIRE_NOTIFY);
    msgpack_unpacked_destroy(&u);

    msgpack_sbuffer_clear(&b);
    wire_pack_result(&p, 3);
    msgpack_pack_map(&p, 0);
    assert_int_equal(parse(b.data, b.size, &f, &u), 0);
    assert_true(f.type == WIRE_RESPONSE && f.result && !f.error && f.msgid == 3);
    msgpack_unpacked_destroy(&u);

    msgpack_sbuffer_clear(&b);
    wire_pack_error(&p, 4);
    msgpack_pack_map(&p, 0);
    msgpack_pack_nil(&p);
    assert_int_equal(parse(b.data, b.size, &f, &u), 0);
    assert_true(f.type == WIRE_RESPONSE && !f.result && f.error && f.msgid == 4);
    msgpack_unpacked_destroy(&u);
    msgpack_sbuffer_destroy(&b);
}

static void test_empty(void **state) {
    /* [0, 1, "", [{"": ""}]], and once more with bin */
    static const char *const frames[] = { "\x94\x00\x01\xa0\x91\x81\xa0\xa0",
                                          "\x94\x00\x01\xa0\x91\x81\xa0\xc4\x00" };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct wire_frame f = { 0 };
        msgpack_unpacked u;
        const msgpack_object *v;

        assert_int_equal(parse(frames[i], 8 + i, &f, &u), 0);
        assert_int_equal(f.n_method, 0);
        assert_non_null(f.method);
        v = wire_get(f.params, "");
        assert_non_null(v);
        assert_non_null(i ? v->via.bin.ptr : v->via.str.ptr);
        msgpack_unpacked_destroy(&u);
    }
}

static void test_utf8(void **state) {
    static const struct {
        const char *bytes;
        size_t n;
        bool ok;
    } rows[] = {
#define ROW(s_, ok_) { s_, sizeof s_ - 1, ok_ }
        ROW("\xa0", true),
        ROW("\xa1\x7f", true),
        ROW("\xa1\x80", false),
        ROW("\xa2\xc2\x80", true),
        ROW("\xa2\xc1\xbf", false),
        ROW("\xa3\xe0\xa0\x80", true),
        ROW("\xa3\xe0\x9f\x80", false),
        ROW("\xa3\xed\x9f\xbf", true),
        ROW("\xa3\xed\xa0\x80", false),
        ROW("\xa4\xf0\x90\x80\x80", true),
        ROW("\xa4\xf0\x8f\x80\x80", false),
        ROW("\xa4\xf4\x8f\xbf\xbf", true),
        ROW("\xa4\xf4\x90\x80\x80", false),
        ROW("\xa3\xf0\x90\x80", false),
        ROW("\xa2\xc2\x41", false),
        ROW("\xc4\x01\xff", true), /* bin may hold anything */
        ROW("\x92\xa1x\xa1\xff", false),
        ROW("\x81\xa1\xff\x01", false),
        ROW("\x81\x01\x91\xa1\xff", false),
        ROW("\x81\x01\x91\xa1x", true),
#undef ROW
    };

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        msgpack_unpacked u;
        size_t off = 0;

        msgpack_unpacked_init(&u);
        assert_int_equal(msgpack_unpack_next(&u, rows[i].bytes, rows[i].n, &off),
                         MSGPACK_UNPACK_SUCCESS);
        if (wire_utf8(&u.data) != rows[i].ok)
            fail_msg("row %zu", i);
        msgpack_unpacked_destroy(&u);
    }
}

static void test_strerror(void **state) {
    (void)state;
    assert_non_null(strstr(wire_strerror(WIRE_TOO_LARGE), "16777216"));
    assert_non_null(strstr(wire_strerror(WIRE_TOO_DEEP), "16"));
    assert_non_null(strstr(wire_strerror(WIRE_TOO_MANY), "65536"));
    assert_non_null(strstr(wire_strerror(WIRE_MALFORMED), "msgpack-rpc"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_lead_byte),
        cmocka_unit_test(test_first_byte),
        cmocka_unit_test(test_frames_in_a_row),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_elements),
        cmocka_unit_test(test_elements_complete),
        cmocka_unit_test(test_size),
        cmocka_unit_test(test_declared_count_against_space),
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_pack_then_parse),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_strerror),
    };

    return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
