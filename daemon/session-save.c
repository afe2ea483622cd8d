/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The bytes of a saved session:
 *
 *   "moedsess"   u32 version   u32 zero   u64 bytes that follow the head   u64 sum of them
 *   [[model, thinking, class, max_tokens],
 *    [has, temperature, top_p, min_p, repeat, frequency, presence, top_k, last_n, seed],
 *    [role, text, role, text, …]]                                            in msgpack
 *
 * Numbers of the head are little-endian. The sum is of engine/base/sum.h.
 */

#include <endian.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "client/wire.h"
#include "daemon/rpc.h"
#include "daemon/session.h"
#include "engine/base/sum.h"

enum { SESSION_VERSION = 1, N_SAMPLE = 10, N_FLOAT = 6 };

struct head {
    char magic[8];
    uint32_t version, zero;
    uint64_t size, sum;
};

static const char magic[8] = { 'm', 'o', 'e', 'd', 's', 'e', 's', 's' };

/* ---- writing ---- */

static void pack_sample(msgpack_packer *p, const struct sample_params *s) {
    const float f[N_FLOAT] = { s->temperature, s->top_p,     s->min_p,
                               s->repeat,      s->frequency, s->presence };

    msgpack_pack_array(p, N_SAMPLE);
    msgpack_pack_uint32(p, s->has);
    for (size_t i = 0; i < N_FLOAT; i++)
        msgpack_pack_float(p, f[i]);
    msgpack_pack_uint32(p, s->top_k);
    msgpack_pack_uint32(p, s->last_n);
    msgpack_pack_uint64(p, s->seed);
}

static void pack_state(msgpack_packer *p, const struct session_state *s) {
    msgpack_pack_array(p, 3);
    msgpack_pack_array(p, 4);
    wire_pack_str(p, s->model);
    (void)(s->thinking ? msgpack_pack_true(p) : msgpack_pack_false(p));
    msgpack_pack_uint32(p, s->class);
    msgpack_pack_uint32(p, s->max_tokens);
    pack_sample(p, &s->sample);
    msgpack_pack_array(p, 2 * s->n_msg);
    for (size_t i = 0; i < s->n_msg; i++) {
        wire_pack_str(p, s->msg[i].role);
        wire_pack_str(p, s->msg[i].text);
    }
}

int session_pack(const struct session_state *s, struct session_blob *ret) {
    struct head head = { .version = htole32(SESSION_VERSION) };
    msgpack_sbuffer buf;
    msgpack_packer p;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    pack_state(&p, s);
    ret->n = sizeof head + buf.size;
    ret->p = malloc(ret->n);
    if (ret->p) {
        memcpy(head.magic, magic, sizeof magic);
        head.size = htole64(buf.size);
        head.sum = htole64(sum_bytes(0, buf.data, buf.size));
        memcpy(ret->p, &head, sizeof head);
        memcpy(ret->p + sizeof head, buf.data, buf.size);
    }
    msgpack_sbuffer_destroy(&buf);

    return ret->p ? 0 : err_new(-ENOMEM);
}

/* ---- reading ---- */

static int corrupt(struct why *why, const char *what) {
    return why_set(why, RPC_CORRUPT, "the saved session is damaged: %s", what);
}

/* Is @o an array of these types? s str, b bool, u uint, f float, a array */
static bool is_row(const msgpack_object *o, const char *types) {
    size_t n = strlen(types);

    if (o->type != MSGPACK_OBJECT_ARRAY || o->via.array.size != n)
        return false;
    for (size_t i = 0; i < n; i++) {
        const msgpack_object *at = &o->via.array.ptr[i];
        msgpack_object_type want = types[i] == 's'   ? MSGPACK_OBJECT_STR
                                   : types[i] == 'b' ? MSGPACK_OBJECT_BOOLEAN
                                   : types[i] == 'u' ? MSGPACK_OBJECT_POSITIVE_INTEGER
                                   : types[i] == 'f' ? MSGPACK_OBJECT_FLOAT32
                                                     : MSGPACK_OBJECT_ARRAY;

        if (at->type != want || (types[i] == 'f' && !isfinite(at->via.f64)))
            return false;
    }
    return true;
}

static char *dup_str(const msgpack_object *o) {
    return strndup(o->via.str.ptr, o->via.str.size);
}

static bool has_nul(const msgpack_object *o) {
    return memchr(o->via.str.ptr, '\0', o->via.str.size);
}

static int read_sample(const msgpack_object *o, struct sample_params *s, struct why *why) {
    float *const f[N_FLOAT] = { &s->temperature, &s->top_p,     &s->min_p,
                                &s->repeat,      &s->frequency, &s->presence };
    const msgpack_object *at = o->via.array.ptr;

    if (!is_row(o, "uffffffuuu") || at[0].via.u64 >= SAMPLE_SEED << 1 ||
        at[7].via.u64 > UINT32_MAX || at[8].via.u64 > UINT32_MAX)
        return corrupt(why, "sampling");
    s->has = (unsigned)at[0].via.u64;
    for (size_t i = 0; i < N_FLOAT; i++)
        *f[i] = (float)at[1 + i].via.f64;
    s->top_k = (uint32_t)at[7].via.u64;
    s->last_n = (uint32_t)at[8].via.u64;
    s->seed = at[9].via.u64;

    return sample_check(s, NULL) ? corrupt(why, "sampling") : 0;
}

static int read_messages(const msgpack_object *o, struct session_state *s, struct why *why) {
    const msgpack_object_array *a = &o->via.array;
    int r = 0;

    if (a->size % 2)
        return corrupt(why, "messages");
    for (uint32_t i = 0; r == 0 && i < a->size; i += 2) {
        const msgpack_object *role = &a->ptr[i], *text = role + 1;
        AUTO(free) char *role_copy = NULL;
        AUTO(free) char *text_copy = NULL;

        if (role->type != MSGPACK_OBJECT_STR || text->type != MSGPACK_OBJECT_STR || has_nul(role) ||
            has_nul(text))
            return corrupt(why, "messages");
        role_copy = dup_str(role);
        text_copy = dup_str(text);
        if (!role_copy || !text_copy)
            return err_new(-ENOMEM);
        r = session_state_add(s, &(struct chat_message){ role_copy, text_copy }, 1, NULL);
    }

    return r > 0 ? corrupt(why, "messages") : err_up(r);
}

static int read_settings(const msgpack_object *o, struct session_state *s, struct why *why) {
    const msgpack_object *at = o->via.array.ptr;

    if (!is_row(o, "sbuu") || has_nul(&at[0]) || at[2].via.u64 > FAIR_BACKGROUND ||
        at[3].via.u64 > UINT32_MAX)
        return corrupt(why, "settings");
    s->model = dup_str(&at[0]);
    s->thinking = at[1].via.boolean;
    s->class = (enum fair_class)at[2].via.u64;
    s->max_tokens = (uint32_t)at[3].via.u64;

    return s->model ? 0 : err_new(-ENOMEM);
}

static int read_state(const msgpack_object *o, struct session_state *s, struct why *why) {
    const msgpack_object *at = o->via.array.ptr;
    int r;

    if (!is_row(o, "aaa") || !wire_utf8(o))
        return corrupt(why, "its parts");
    r = read_settings(&at[0], s, why);
    if (r == 0)
        r = read_sample(&at[1], &s->sample, why);
    if (r == 0)
        r = read_messages(&at[2], s, why);

    return err_up(r);
}

/* Is this whole and by us? What is inside may be anything still. */
static int check_head(const void *p, size_t n, struct why *why) {
    const char *body = (const char *)p + sizeof(struct head);
    struct wire_scan scan;
    struct head head;
    size_t n_scan;

    if (n < sizeof head)
        return corrupt(why, "too short");
    memcpy(&head, p, sizeof head);
    if (memcmp(head.magic, magic, sizeof magic) != 0)
        return corrupt(why, "not one of ours");
    if (le32toh(head.version) != SESSION_VERSION || head.zero)
        return why_set(why, RPC_CORRUPT, "the session was saved by another version");
    if (le64toh(head.size) != n - sizeof head ||
        le64toh(head.sum) != sum_bytes(0, body, n - sizeof head))
        return corrupt(why, "wrong sum");
    wire_scan_init(&scan);
    if (wire_scan(&scan, body, n - sizeof head, &n_scan) != 0 || n_scan != n - sizeof head)
        return corrupt(why, "no msgpack");
    return 0;
}

int session_unpack(const void *p, size_t n, struct session_state *ret, struct why *why) {
    const char *body = (const char *)p + sizeof(struct head);
    struct session_state state = { 0 };
    msgpack_unpacked u;
    size_t off = 0;
    int r;

    r = check_head(p, n, why);
    if (r)
        return r;
    msgpack_unpacked_init(&u);
    r = msgpack_unpack_next(&u, body, n - sizeof(struct head), &off) == MSGPACK_UNPACK_SUCCESS
            ? 0
            : err_new(-ENOMEM);
    if (r == 0) {
        wire_mend(&u.data);
        r = read_state(&u.data, &state, why);
    }
    msgpack_unpacked_destroy(&u);
    if (r) {
        session_state_deinit(&state);
        return err_up(r);
    }

    *ret = state;
    return 0;
}
