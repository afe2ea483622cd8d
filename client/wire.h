/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * wire - msgpack-rpc framing and its limits, shared by libmoe and the daemon
 *
 * wire_scan() walks the raw bytes of a frame before msgpack-c may see them: msgpack-c allocates
 * what a header declares, this does not. It keeps its place, so a frame that arrives in pieces is
 * walked once. wire_parse() then takes the decoded frame apart.
 *
 * Owner:   one scan per connection and direction.
 * Memory:  none.
 * Source:  the msgpack specification and the msgpack-rpc specification; limits: PROTOCOL.md.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <msgpack.h>

enum {
    WIRE_FRAME_MAX = 16 << 20, /* bytes */
    WIRE_DEPTH_MAX = 16,
    WIRE_ELEMENT_MAX = 65536, /* keys and values counted alike */
    WIRE_OUTSTANDING_MAX = 64,
    WIRE_FRAME_USEC = 5000000 /* to complete a started frame */
};

enum {
    WIRE__OK,

    WIRE_MORE,      /* well-formed so far, not complete */
    WIRE_MALFORMED, /* no msgpack, or no msgpack-rpc frame */
    WIRE_TOO_LARGE,
    WIRE_TOO_DEEP,
    WIRE_TOO_MANY,  /* elements */
    WIRE_TOO_GIVEN, /* descriptors */
};

/* "a frame larger than 16777216 bytes", … for a WIRE_* outcome; static. */
const char *wire_strerror(int outcome);

struct wire_scan {
    size_t pos;                          /* where the next header begins; may be past the bytes */
    uint32_t n_element;                  /* declared: keys and values, not the frame itself */
    uint32_t depth;                      /* open containers */
    uint64_t n_left[WIRE_DEPTH_MAX + 1]; /* values each of them still waits for; [0] the frame */
};

/* Begin a frame. */
void wire_scan_init(struct wire_scan *s);
/* Walk on in @buf, which holds the frame's first @n bytes (and maybe more after it). @buf may move
 * between calls; each byte is looked at once, however it arrives. A frame that can not end within
 * the limits is refused by the header that says so.
 * Return: 0 with the frame's length, WIRE_MORE, or why the frame must be refused. */
int wire_scan(struct wire_scan *s, const void *buf, size_t n, size_t *ret_len);

enum wire_type { WIRE_REQUEST, WIRE_RESPONSE, WIRE_NOTIFY };

/* A frame taken apart; everything points into the decoded object. */
struct wire_frame {
    enum wire_type type;
    uint32_t msgid;     /* REQUEST, RESPONSE */
    const char *method; /* REQUEST, NOTIFY: [n_method], valid UTF-8 */
    size_t n_method;
    const msgpack_object *params; /* REQUEST, NOTIFY: the one map */
    const msgpack_object *error;  /* RESPONSE: a map, or NULL */
    const msgpack_object *result; /* RESPONSE: a map, or NULL with an error */
};

/* Give every empty str and bin in @o a pointer to "". msgpack-c leaves them as they happen to be:
 * NULL, or into what came before. */
void wire_mend(msgpack_object *o);

/* Take the decoded frame @o apart; mends it.
 * Return: 0 or WIRE_MALFORMED; then @ret is as before. */
int wire_parse(const msgpack_object *o, struct wire_frame *ret);

/* Is every str in @o, keys too, valid UTF-8? Recursion is bounded by WIRE_DEPTH_MAX. */
bool wire_utf8(const msgpack_object *o);

/* Packing. What must follow: a request's or notification's params map; the map of a result; the
 * map of an error and then nil. */
void wire_pack_str(msgpack_packer *p, const char *s);
void wire_pack_request(msgpack_packer *p, uint32_t msgid, const char *method);
void wire_pack_notify(msgpack_packer *p, const char *method);
void wire_pack_result(msgpack_packer *p, uint32_t msgid);
void wire_pack_error(msgpack_packer *p, uint32_t msgid);

/* The value of @key in @map, which is a map, or NULL. Of equal keys the first counts. */
const msgpack_object *wire_get(const msgpack_object *map, const char *key);
