/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>

#include "daemon/rpc.h"
#include "daemon/stream.h"
#include "engine/base/err.h"

static void part_free(struct stream_part *part) {
    msgpack_sbuffer_destroy(&part->text);
    msgpack_sbuffer_destroy(&part->logprobs.buf);
    free(part);
}

void stream_init(struct stream *s, bool live, bool echo, bool with_logprobs) {
    *s = (struct stream){ .live = live, .echo = echo, .with_logprobs = with_logprobs };
    TAILQ_INIT(&s->held);
    msgpack_sbuffer_init(&s->text);
    msgpack_sbuffer_init(&s->thought);
    msgpack_sbuffer_init(&s->logprobs.buf);
}

void stream_deinit(struct stream *s) {
    struct stream_part *part;

    while ((part = TAILQ_FIRST(&s->held))) {
        TAILQ_REMOVE(&s->held, part, link);
        part_free(part);
    }
    msgpack_sbuffer_destroy(&s->text);
    msgpack_sbuffer_destroy(&s->thought);
    msgpack_sbuffer_destroy(&s->logprobs.buf);
}

static int append(msgpack_sbuffer *to, const char *p, size_t n) {
    return n && msgpack_sbuffer_write(to, p, n) < 0 ? err_new(-ENOMEM) : 0;
}

/* The part that more text of @kind joins. */
static struct stream_part *part_for(struct stream *s, enum chat_kind kind) {
    struct stream_part *part = TAILQ_LAST(&s->held, stream_held);

    if (part && part->kind == kind)
        return part;
    part = calloc(1, sizeof *part);
    if (!part)
        return NULL;

    part->kind = kind;
    TAILQ_INSERT_TAIL(&s->held, part, link);
    return part;
}

static int add_held(struct stream *s, enum chat_kind kind, const char *text, size_t n,
                    const msgpack_sbuffer *logprob) {
    struct stream_part *part = part_for(s, kind);
    int r;

    if (!part)
        return err_new(-ENOMEM);
    r = append(&part->text, text, n);
    if (!r && logprob) {
        r = append(&part->logprobs.buf, logprob->data, logprob->size);
        part->logprobs.n++;
    }
    if (r)
        return err_up(r);

    s->n_held += n + (logprob ? logprob->size : 0);
    return 0;
}

int stream_add(struct stream *s, enum chat_kind kind, const char *text, size_t n,
               const msgpack_sbuffer *logprob, uint32_t n_element) {
    int r = 0;

    s->n_element += n_element;
    if (s->live)
        r = add_held(s, kind, text, n, logprob);
    if (!r && (!s->live || s->echo || s->keep))
        r = append(kind == CHAT_THOUGHT ? &s->thought : &s->text, text, n);
    if (!r && !s->live && logprob) {
        r = append(&s->logprobs.buf, logprob->data, logprob->size);
        s->logprobs.n++;
    }

    return err_up(r);
}

bool stream_has(const struct stream *s) {
    return !TAILQ_EMPTY(&s->held);
}

bool stream_full(const struct stream *s) {
    return s->live && (s->n_held >= STREAM_HELD_MAX || s->n_element >= STREAM_HELD_ELEMENTS);
}

bool stream_too_large(const struct stream *s) {
    return s->text.size + s->thought.size + s->logprobs.buf.size > STREAM_WHOLE_MAX ||
           (!s->live && s->n_element > STREAM_WHOLE_ELEMENTS);
}

static void pack_logprobs(const struct stream_logprobs *l, msgpack_packer *p) {
    wire_pack_str(p, "logprobs");
    msgpack_pack_array(p, l->n);
    if (l->n)
        (void)p->callback(p->data, l->buf.data, l->buf.size);
}

void stream_pack(struct stream *s, uint32_t msgid, msgpack_packer *p) {
    struct stream_part *part = TAILQ_FIRST(&s->held);

    TAILQ_REMOVE(&s->held, part, link);
    wire_pack_notify(p, "generate.delta");
    msgpack_pack_map(p, s->with_logprobs ? 5 : 4);
    rpc_pack_uint(p, "id", msgid);
    rpc_pack_uint(p, "seq", s->seq++);
    rpc_pack_str(p, "kind", part->kind == CHAT_THOUGHT ? "thought" : "text");
    rpc_pack_strn(p, "text", part->text.data, part->text.size);
    if (s->with_logprobs)
        pack_logprobs(&part->logprobs, p);

    s->n_held -= part->text.size + part->logprobs.buf.size;
    if (TAILQ_EMPTY(&s->held))
        s->n_element = 0;
    part_free(part);
}

uint32_t stream_n_key(const struct stream *s) {
    uint32_t n = !s->live && s->with_logprobs;

    return s->live && !s->echo ? n : n + 1 + (s->thought.size > 0);
}

void stream_pack_whole(const struct stream *s, msgpack_packer *p) {
    if (!s->live || s->echo) {
        rpc_pack_strn(p, "text", s->text.data, s->text.size);
        if (s->thought.size)
            rpc_pack_strn(p, "thought", s->thought.data, s->thought.size);
    }
    if (!s->live && s->with_logprobs)
        pack_logprobs(&s->logprobs, p);
}
