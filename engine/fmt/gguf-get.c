/* SPDX-License-Identifier: Apache-2.0 */

/* The typed getters. Values lie unaligned in the mapping; gguf_open() found all bytes there. */

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/fmt/gguf.h"

/* width: bytes of an integer, negative when it is signed; 0: no integer */
static const struct type {
    const char *name;
    int width;
} types[] = {
    [GGUF_U8] = { "u8", 1 },     [GGUF_I8] = { "i8", -1 },    [GGUF_U16] = { "u16", 2 },
    [GGUF_I16] = { "i16", -2 },  [GGUF_U32] = { "u32", 4 },   [GGUF_I32] = { "i32", -4 },
    [GGUF_F32] = { "f32", 0 },   [GGUF_BOOL] = { "bool", 1 }, [GGUF_STR] = { "string", 0 },
    [GGUF_ARR] = { "array", 0 }, [GGUF_U64] = { "u64", 8 },   [GGUF_I64] = { "i64", -8 },
    [GGUF_F64] = { "f64", 0 },
};

static int bad(const struct gguf *g, const struct gguf_meta *m, struct why *why, const char *fmt,
               ...) __attribute__((format(printf, 4, 5)));

static int bad(const struct gguf *g, const struct gguf_meta *m, struct why *why, const char *fmt,
               ...) {
    char text[sizeof why->text];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return why_set(why, GGUF_BAD, "%s: key %.64s %s", gguf_label(g, 0), m->key, text);
}

static int bad_type(const struct gguf *g, const struct gguf_meta *m, struct why *why,
                    const char *want) {
    bool array = m->type == GGUF_ARR;

    return bad(g, m, why, "is of type %s%s, not %s", types[array ? m->elem : m->type].name,
               array ? " array" : "", want);
}

bool gguf_meta_int(const struct gguf_meta *m, uint64_t i, int64_t *ret) {
    int width = types[m->type == GGUF_ARR ? m->elem : m->type].width;
    unsigned n = (unsigned)(width < 0 ? -width : width), unused = 64 - 8 * n;
    uint64_t v = 0;

    if (width == 0)
        return false;
    memcpy(&v, m->data + i * n, n);
    if (width > 0 && v > INT64_MAX)
        return false;
    *ret = width < 0 ? (int64_t)(v << unused) >> unused : (int64_t)v;
    return true;
}

/* Element @i, or the scalar, which must lie in [min, max]. */
static int int_in(const struct gguf *g, const struct gguf_meta *m, uint64_t i, int64_t min,
                  int64_t max, int64_t *ret, struct why *why) {
    int64_t v = 0;

    if (!gguf_meta_int(m, i, &v))
        return bad_type(g, m, why, "an integer below 2^63");
    if (v >= min && v <= max) {
        *ret = v;
        return 0;
    }
    if (m->type == GGUF_ARR)
        return bad(g, m, why, "has element %" PRIu64 " = %" PRId64 ", not %" PRId64 " to %" PRId64,
                   i, v, min, max);
    return bad(g, m, why, "is %" PRId64 ", not %" PRId64 " to %" PRId64, v, min, max);
}

int gguf_get_int(const struct gguf *g, const char *key, int64_t min, int64_t max, int64_t *ret,
                 struct why *why) {
    const struct gguf_meta *m = gguf_meta(g, key);

    if (!m)
        return GGUF_ABSENT;
    if (m->type == GGUF_ARR || m->type == GGUF_BOOL)
        return bad_type(g, m, why, "an integer");
    return int_in(g, m, 0, min, max, ret, why);
}

int gguf_get_u32(const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t *ret,
                 struct why *why) {
    int64_t v = 0;
    int k = gguf_get_int(g, key, min, max, &v, why);

    if (k == 0)
        *ret = (uint32_t)v;
    return k;
}

int gguf_get_f32(const struct gguf *g, const char *key, float min, float max, float *ret,
                 struct why *why) {
    const struct gguf_meta *m = gguf_meta(g, key);
    double v;
    float f;

    if (!m)
        return GGUF_ABSENT;
    if (m->type == GGUF_F64) {
        memcpy(&v, m->data, sizeof v);
    } else if (m->type == GGUF_F32) {
        memcpy(&f, m->data, sizeof f);
        v = (double)f;
    } else {
        return bad_type(g, m, why, "a float");
    }
    f = (float)v; /* an f64 may be finite and not fit */
    if (!isfinite(f) || v < (double)min || v > (double)max)
        return bad(g, m, why, "is %g, not %g to %g", v, (double)min, (double)max);
    *ret = f;
    return 0;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct why *why) {
    const struct gguf_meta *m = gguf_meta(g, key);

    if (!m)
        return GGUF_ABSENT;
    if (m->type != GGUF_BOOL)
        return bad_type(g, m, why, "a bool");
    *ret = *m->data != 0;
    return 0;
}

int gguf_get_str(const struct gguf *g, const char *key, const char **ret_s, size_t *ret_n,
                 struct why *why) {
    const struct gguf_meta *m = gguf_meta(g, key);

    if (!m)
        return GGUF_ABSENT;
    if (m->type != GGUF_STR)
        return bad_type(g, m, why, "a string");
    *ret_s = (const char *)m->data;
    *ret_n = m->n;
    return 0;
}

int gguf_get_u32_each(const struct gguf *g, const char *key, uint32_t min, uint32_t max, uint32_t n,
                      uint32_t *ret, struct why *why) {
    const struct gguf_meta *m = gguf_meta(g, key);
    bool array;

    if (!m)
        return GGUF_ABSENT;
    array = m->type == GGUF_ARR;
    if (array && m->n != n)
        return bad(g, m, why, "has %" PRIu64 " elements, not %" PRIu32, m->n, n);
    for (uint32_t i = 0; i < n; i++) {
        int64_t v = 0;
        int k = int_in(g, m, array ? i : 0, min, max, &v, why);

        if (k)
            return k;
        ret[i] = (uint32_t)v;
    }
    return 0;
}

int gguf_get_strs(const struct gguf *g, const char *key, struct gguf_strs *ret, uint64_t *ret_n,
                  struct why *why) {
    const struct gguf_meta *m = gguf_meta(g, key);

    if (!m)
        return GGUF_ABSENT;
    if (m->type != GGUF_ARR || m->elem != GGUF_STR)
        return bad_type(g, m, why, "an array of strings");
    *ret = (struct gguf_strs){ m->data, m->n };
    *ret_n = m->n;
    return 0;
}

bool gguf_strs_next(struct gguf_strs *it, const char **ret_s, size_t *ret_n) {
    uint64_t n;

    if (it->n_left == 0)
        return false;
    memcpy(&n, it->pos, sizeof n);
    *ret_s = (const char *)it->pos + sizeof n;
    *ret_n = n;
    it->pos += sizeof n + n;
    it->n_left--;
    return true;
}

int gguf_get_ints(const struct gguf *g, const char *key, int32_t min, int32_t max, int32_t **ret,
                  uint64_t *ret_n, struct why *why) {
    const struct gguf_meta *m = gguf_meta(g, key);
    AUTO(free) int32_t *at = NULL;

    if (!m)
        return GGUF_ABSENT;
    if (m->type != GGUF_ARR || m->elem == GGUF_BOOL || types[m->elem].width == 0)
        return bad_type(g, m, why, "an array of integers");

    at = malloc((m->n + 1) * sizeof *at); /* an element has a byte of the file at least */
    if (!at)
        return why_set(why, err_new(-ENOMEM), "%s: key %.64s: out of memory", gguf_label(g, 0),
                       key);
    for (uint64_t i = 0; i < m->n; i++) {
        int64_t v = 0;
        int k = int_in(g, m, i, min, max, &v, why);

        if (k)
            return k;
        at[i] = (int32_t)v;
    }
    *ret = take(at);
    *ret_n = m->n;
    return 0;
}
