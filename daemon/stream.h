/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * stream - the text of one answer: what waits to be sent, and what the result will repeat
 *
 * Text that is held back is joined, so a reader that falls behind gets fewer, larger deltas and
 * loses nothing. How much is held is the caller's to bound: stream_full() says when to pause.
 *
 * Owner:   the daemon thread.
 * Memory:  live: STREAM_HELD_MAX and one event. Not live: STREAM_WHOLE_MAX, what a frame holds.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include <msgpack.h>

#include "client/wire.h"
#include "engine/engine.h"

enum {
    STREAM_HELD_MAX = 256 << 10,                     /* bytes */
    STREAM_HELD_ELEMENTS = WIRE_ELEMENT_MAX / 2,     /* of logprobs, see stream_add() */
    STREAM_WHOLE_MAX = WIRE_FRAME_MAX - (64 << 10),  /* bytes; the rest is for the other keys */
    STREAM_WHOLE_ELEMENTS = WIRE_ELEMENT_MAX - 1024, /* likewise */
};

/* Packed logprobs: msgpack of [n] items, without the array's header. */
struct stream_logprobs {
    msgpack_sbuffer buf;
    uint32_t n;
};

struct stream_part {
    TAILQ_ENTRY(stream_part) link;
    enum chat_kind kind;
    msgpack_sbuffer text;
    struct stream_logprobs logprobs;
};

struct stream {
    bool live, echo, with_logprobs;
    bool keep; /* whatever is sent: ->text is wanted at the end. For the owner to set. */
    uint32_t seq;
    TAILQ_HEAD(stream_held, stream_part) held;
    size_t n_held;      /* bytes of text and logprobs held */
    uint32_t n_element; /* msgpack elements of the logprobs held, or of all when not live */

    msgpack_sbuffer text, thought;   /* not live, or to be echoed or kept */
    struct stream_logprobs logprobs; /* not live */
};

/* @live: deltas are sent. @echo: the result repeats the text nevertheless. */
void stream_init(struct stream *s, bool live, bool echo, bool with_logprobs);
void stream_deinit(struct stream *s);

/* One piece of the answer. @logprob: one packed item of @n_element elements, or NULL.
 * Return: 0 or -ENOMEM. */
int stream_add(struct stream *s, enum chat_kind kind, const char *text, size_t n,
               const msgpack_sbuffer *logprob, uint32_t n_element);

/* Is anything held? Is it so much that the sequence should pause? Does the whole answer outgrow
 * the frame it must fit into? */
bool stream_has(const struct stream *s);
bool stream_full(const struct stream *s);
bool stream_too_large(const struct stream *s);

/* Pack the oldest part as one generate.delta and let it go. stream_has() must be true. */
void stream_pack(struct stream *s, uint32_t msgid, msgpack_packer *p);

/* Keys "text", "thought" and "logprobs" of the result; as many as stream_n_key() says. */
uint32_t stream_n_key(const struct stream *s);
void stream_pack_whole(const struct stream *s, msgpack_packer *p);
