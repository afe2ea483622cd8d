/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "engine/fmt/gguf.h"

enum {
    COUNT_MAX = 65536,     /* keys of a file; tensors of a model */
    KEY_LEN_MAX = 65535,   /* bytes of a key */
    TENSOR_LEN_MAX = 63,   /* bytes of a tensor's name */
    STR_LEN_MAX = 1 << 24, /* bytes of a string value; a chat template has some 20,000 */
    PART_MAX = 1024,       /* files of a split model */
    ALIGN_DEFAULT = 32,    /* of tensor data, where general.alignment says nothing else */
    ALIGN_MIN = 8,
    ALIGN_MAX = 65536,

    HEAD_SIZE = 4 + 4 + 8 + 8,          /* magic, version, tensors, keys */
    META_MIN = 8 + 1 + 4 + 1,           /* the smallest entry: key, type, value */
    TENSOR_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* name, dimensions, one size, type, offset */
    STR_MIN = 8,                        /* length */
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "values are read as they lie in the file");

struct part {
    char label[128]; /* the path or its end: what messages call the file */
    int fd;
    uint8_t *map;
    uint64_t size;
};

/* Entries in file order, and their numbers sorted by key. */
struct metas {
    struct gguf_meta *at;
    uint32_t *by_key;
    uint32_t n, n_alloc;
};

struct gguf {
    struct part *part;
    uint32_t n_part;
    struct metas meta; /* of the first part */
    struct tensor *tensor;
    uint32_t *by_name; /* their numbers sorted by name */
    uint32_t n_tensor, n_tensor_alloc;
};

/* ---- bounds: every length goes through bytes(), every sum and product through these ---- */

struct reader {
    const struct part *part;
    const uint8_t *pos, *end;
    const char *what, *name; /* "key", "general.name": what messages are about; NULL: the file */
    struct why *why;
};

static bool sum(uint64_t a, uint64_t b, uint64_t *ret) {
    return !__builtin_add_overflow(a, b, ret);
}

static bool product(uint64_t a, uint64_t b, uint64_t *ret) {
    return !__builtin_mul_overflow(a, b, ret);
}

static bool align_up(uint64_t v, uint64_t align, uint64_t *ret) {
    if (!sum(v, align - 1, ret))
        return false;
    *ret &= ~(align - 1);
    return true;
}

static uint64_t left(const struct reader *r) {
    return (uint64_t)(r->end - r->pos);
}

static const uint8_t *bytes(struct reader *r, uint64_t n) {
    const uint8_t *p = r->pos;

    if (n > left(r))
        return NULL;
    r->pos += n;
    return p;
}

static bool get32(struct reader *r, uint32_t *ret) {
    const uint8_t *p = bytes(r, sizeof *ret);

    if (p)
        memcpy(ret, p, sizeof *ret);
    return p;
}

static bool get64(struct reader *r, uint64_t *ret) {
    const uint8_t *p = bytes(r, sizeof *ret);

    if (p)
        memcpy(ret, p, sizeof *ret);
    return p;
}

/* ---- messages ---- */

static int bad(const struct reader *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int bad(const struct reader *r, const char *fmt, ...) {
    char text[sizeof r->why->text];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);

    if (!r->name)
        return why_set(r->why, GGUF_BAD, "%s: %s", r->part->label, text);
    return why_set(r->why, GGUF_BAD, "%s: %s %.64s %s", r->part->label, r->what, r->name, text);
}

static int no_memory(const struct part *part, struct why *why) {
    return why_set(why, err_new(-ENOMEM), "%s: out of memory for its directory", part->label);
}

/* ---- names ---- */

static bool is_key_byte(uint8_t c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

static bool is_tensor_byte(uint8_t c) {
    return c > ' ' && c < 0x7f;
}

/* A name of 1 to @max bytes; @ret: a terminated copy. From here on messages are about it. */
static int read_name(struct reader *r, const char *what, uint64_t max, bool is_byte(uint8_t),
                     char **ret) {
    const uint8_t *p;
    uint64_t n;
    char *s;

    r->name = NULL;
    if (!get64(r, &n) || n > left(r))
        return bad(r, "the file ends within the name of a %s", what);
    if (n < 1 || n > max)
        return bad(r, "the name of a %s has %" PRIu64 " bytes, not 1 to %" PRIu64, what, n, max);
    p = bytes(r, n);
    for (uint64_t i = 0; i < n; i++)
        if (!is_byte(p[i]))
            return bad(r, "the name of a %s has a byte 0x%02x after \"%.*s\"", what, p[i],
                       i < 64 ? (int)i : 64, (const char *)p);

    s = malloc(n + 1);
    if (!s)
        return no_memory(r->part, r->why);
    memcpy(s, p, n);
    s[n] = 0;
    *ret = s;
    r->what = what;
    r->name = s;
    return 0;
}

/* Twice the room, so what is allocated follows what was read, never what a count claims. */
static void *grow(void *p, uint32_t *n_alloc, size_t size) {
    uint32_t n = *n_alloc ? 2 * *n_alloc : 16;

    p = realloc(p, n * size);
    if (p)
        *n_alloc = n;
    return p;
}

/* ---- metadata ---- */

static uint32_t type_size(enum gguf_type type) {
    static const uint8_t size[] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_BOOL] = 1, [GGUF_U16] = 2,
        [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,  [GGUF_F32] = 4,
        [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
    };

    return size[type];
}

static int read_str(struct reader *r, const uint8_t **ret_s, uint64_t *ret_n) {
    if (!get64(r, ret_n) || *ret_n > left(r))
        return bad(r, "has a string longer than the file");
    if (*ret_n > STR_LEN_MAX)
        return bad(r, "has a string of %" PRIu64 " bytes, more than %d", *ret_n, STR_LEN_MAX);
    *ret_s = bytes(r, *ret_n);
    return 0;
}

static int read_scalars(struct reader *r, struct gguf_meta *m, enum gguf_type type) {
    uint64_t size;

    if (!product(m->n, type_size(type), &size) || size > left(r))
        return bad(
            r, "needs %" PRIu64 " values of %" PRIu32 " bytes, the file has %" PRIu64 " bytes left",
            m->n, type_size(type), left(r));
    m->data = bytes(r, size);
    for (uint64_t i = 0; type == GGUF_BOOL && i < m->n; i++)
        if (m->data[i] > 1)
            return bad(r, "has a boolean of %u, not 0 or 1", m->data[i]);
    return 0;
}

static int read_strs(struct reader *r, struct gguf_meta *m) {
    if (m->n > left(r) / STR_MIN)
        return bad(r, "needs %" PRIu64 " strings, the file has %" PRIu64 " bytes left", m->n,
                   left(r));
    m->data = r->pos;
    for (uint64_t i = 0; i < m->n; i++) {
        const uint8_t *s;
        uint64_t n;
        int k = read_str(r, &s, &n);

        if (k)
            return k;
    }
    return 0;
}

static int read_type(struct reader *r, enum gguf_type *ret) {
    uint32_t type;

    if (!get32(r, &type))
        return bad(r, "has no type, the file ends");
    if (type > GGUF_F64)
        return bad(r, "is of type %" PRIu32 ", which GGUF does not know", type);
    *ret = type;
    return 0;
}

static int read_value(struct reader *r, struct gguf_meta *m) {
    int k = read_type(r, &m->type);

    if (k)
        return k;
    m->n = 1;
    if (m->type == GGUF_STR)
        return read_str(r, &m->data, &m->n);
    if (m->type != GGUF_ARR)
        return read_scalars(r, m, m->type);

    k = read_type(r, &m->elem);
    if (k)
        return k;
    if (m->elem == GGUF_ARR)
        return bad(r, "is an array of arrays");
    if (!get64(r, &m->n))
        return bad(r, "has no element count, the file ends");
    return m->elem == GGUF_STR ? read_strs(r, m) : read_scalars(r, m, m->elem);
}

static int compare_keys(const void *a, const void *b, void *arg) {
    const struct gguf_meta *at = arg;

    return strcmp(at[*(const uint32_t *)a].key, at[*(const uint32_t *)b].key);
}

static int index_metas(struct reader *r, struct metas *ms) {
    ms->by_key = malloc((ms->n + 1) * sizeof *ms->by_key);
    if (!ms->by_key)
        return no_memory(r->part, r->why);
    for (uint32_t i = 0; i < ms->n; i++)
        ms->by_key[i] = i;
    qsort_r(ms->by_key, ms->n, sizeof *ms->by_key, compare_keys, ms->at);

    for (uint32_t i = 1; i < ms->n; i++)
        if (compare_keys(&ms->by_key[i - 1], &ms->by_key[i], ms->at) == 0) {
            r->what = "key";
            r->name = ms->at[ms->by_key[i]].key;
            return bad(r, "occurs twice");
        }
    return 0;
}

static int read_metas(struct reader *r, uint64_t n, struct metas *ms) {
    for (uint64_t i = 0; i < n; i++) {
        struct gguf_meta m = { 0 };
        char *key = NULL;
        int k;

        if (ms->n == ms->n_alloc) {
            void *p = grow(ms->at, &ms->n_alloc, sizeof *ms->at);

            if (!p)
                return no_memory(r->part, r->why);
            ms->at = p;
        }
        k = read_name(r, "key", KEY_LEN_MAX, is_key_byte, &key);
        if (k)
            return err_up(k);
        m.key = key;
        k = read_value(r, &m);
        ms->at[ms->n++] = m; /* also when it is bad: from here @ms owns the key */
        if (k)
            return k;
    }
    return err_up(index_metas(r, ms));
}

static void metas_deinit(struct metas *ms) {
    for (uint32_t i = 0; i < ms->n; i++)
        free((char *)ms->at[i].key);
    free(ms->at);
    free(ms->by_key);
}

static const struct gguf_meta *find_meta(const struct metas *ms, const char *key) {
    uint32_t lo = 0, hi = ms->n;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        const struct gguf_meta *m = &ms->at[ms->by_key[mid]];
        int order = strcmp(key, m->key);

        if (order == 0)
            return m;
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

/* ---- tensors ---- */

/* What refused type numbers are called. NULL: unknown to us, or withdrawn from the format. */
static const char *foreign_type(uint32_t id) {
    static const char *const names[] = {
        [9] = "Q8_1",   [15] = "Q8_K",  [16] = "IQ2_XXS", [17] = "IQ2_XS", [18] = "IQ3_XXS",
        [19] = "IQ1_S", [21] = "IQ3_S", [22] = "IQ2_S",   [24] = "I8",     [25] = "I16",
        [26] = "I32",   [27] = "I64",   [28] = "F64",     [29] = "IQ1_M",  [34] = "TQ1_0",
        [35] = "TQ2_0", [40] = "NVFP4", [41] = "Q1_0",
    };

    return id < sizeof names / sizeof *names ? names[id] : NULL;
}

static int read_shape(struct reader *r, struct tensor *t) {
    if (!get32(r, &t->n_dim))
        return bad(r, "has no dimensions, the file ends");
    if (t->n_dim < 1 || t->n_dim > TENSOR_DIM_MAX)
        return bad(r, "has %" PRIu32 " dimensions, not 1 to %d", t->n_dim, TENSOR_DIM_MAX);
    for (uint32_t d = 0; d < TENSOR_DIM_MAX; d++) {
        t->ne[d] = 1;
        if (d < t->n_dim && !get64(r, &t->ne[d]))
            return bad(r, "has no dimension %" PRIu32 ", the file ends", d);
        if (t->ne[d] == 0)
            return bad(r, "has 0 elements in dimension %" PRIu32, d);
    }
    return 0;
}

static int read_format(struct reader *r, struct tensor *t) {
    uint32_t id;

    if (!get32(r, &id))
        return bad(r, "has no type, the file ends");
    if (quant_from_ggml(id, &t->fmt) == 0)
        return 0;
    if (foreign_type(id))
        return bad(r, "is of type %s, which this engine does not compute with", foreign_type(id));
    return bad(r, "is of type %" PRIu32 ", which this engine does not know", id);
}

static int size_tensor(const struct reader *r, struct tensor *t) {
    const struct quant_info *info = quant_info(t->fmt);
    uint64_t n = t->ne[0];

    if (n % info->block)
        return bad(r, "has rows of %" PRIu64 " elements, %s needs a multiple of %" PRIu32, n,
                   info->name, info->block);
    for (int d = 1; d < TENSOR_DIM_MAX; d++)
        if (!product(n, t->ne[d], &n) || n > INT64_MAX)
            return bad(r, "has more elements than 63 bits can count");
    if (!product(n / info->block, info->size, &t->size))
        return bad(r, "has more bytes than 64 bits can count");
    return 0;
}

/* @end: of the tensor before, from the start of the data; moves behind this one. */
static int place_tensor(struct reader *r, struct tensor *t, uint64_t align, uint64_t *end) {
    if (!get64(r, &t->offset))
        return bad(r, "has no offset, the file ends");
    if (t->offset != *end)
        return bad(r, "is at offset %" PRIu64 ", the one before ends at %" PRIu64, t->offset, *end);
    if (!sum(t->offset, t->size, end) || !align_up(*end, align, end))
        return bad(r, "ends beyond what 64 bits can count");
    return 0;
}

static int read_tensor(struct reader *r, struct gguf *g, uint64_t align, uint64_t *end) {
    struct tensor t = { .part = g->n_part - 1 };
    char *name = NULL;
    int k;

    if (g->n_tensor == COUNT_MAX)
        return bad(r, "the model has more than %d tensors", COUNT_MAX);
    if (g->n_tensor == g->n_tensor_alloc) {
        void *p = grow(g->tensor, &g->n_tensor_alloc, sizeof *g->tensor);

        if (!p)
            return no_memory(r->part, r->why);
        g->tensor = p;
    }

    k = read_name(r, "tensor", TENSOR_LEN_MAX, is_tensor_byte, &name);
    if (k)
        return err_up(k);
    t.name = name;
    k = read_shape(r, &t);
    if (!k)
        k = read_format(r, &t);
    if (!k)
        k = size_tensor(r, &t);
    if (!k)
        k = place_tensor(r, &t, align, end);
    g->tensor[g->n_tensor++] = t; /* also when it is bad: from here @g owns the name */
    return k;
}

static int read_tensors(struct reader *r, struct gguf *g, uint64_t n, uint64_t align) {
    uint32_t first = g->n_tensor;
    uint64_t end = 0, start;

    for (uint64_t i = 0; i < n; i++) {
        int k = read_tensor(r, g, align, &end);

        if (k)
            return err_up(k);
    }

    /* pos is inside the file: no overflow */
    (void)align_up((uint64_t)(r->pos - r->part->map), align, &start);
    for (uint32_t i = first; i < g->n_tensor; i++) {
        struct tensor *t = &g->tensor[i];

        r->name = t->name;
        if (!sum(start, t->offset, &t->offset) || !sum(t->offset, t->size, &end) ||
            end > r->part->size)
            return bad(r,
                       "of %" PRIu64 " bytes ends behind the end of the file, which has %" PRIu64,
                       t->size, r->part->size);
        t->data = r->part->map + t->offset;
    }
    return 0;
}

static int compare_names(const void *a, const void *b, void *arg) {
    const struct tensor *at = arg;

    return strcmp(at[*(const uint32_t *)a].name, at[*(const uint32_t *)b].name);
}

static int index_tensors(struct gguf *g, struct why *why) {
    g->by_name = malloc((g->n_tensor + 1) * sizeof *g->by_name);
    if (!g->by_name)
        return no_memory(&g->part[0], why);
    for (uint32_t i = 0; i < g->n_tensor; i++)
        g->by_name[i] = i;
    qsort_r(g->by_name, g->n_tensor, sizeof *g->by_name, compare_names, g->tensor);

    for (uint32_t i = 1; i < g->n_tensor; i++) {
        const struct tensor *t = &g->tensor[g->by_name[i]], *u = &g->tensor[g->by_name[i - 1]];

        if (strcmp(t->name, u->name) == 0) {
            uint32_t part = t->part > u->part ? t->part : u->part;
            const struct reader r = {
                .part = &g->part[part], .what = "tensor", .name = t->name, .why = why
            };

            return bad(&r, "occurs twice");
        }
    }
    return 0;
}

/* ---- files ---- */

static int open_part(struct part *part, const char *path, struct why *why) {
    size_t n = strlen(path), room = sizeof part->label - 1;
    struct stat st;
    void *map;

    part->fd = -1;
    (void)snprintf(part->label, sizeof part->label, "%s%s", n > room ? "..." : "",
                   n > room ? path + n - (room - 3) : path);

    /* without O_NONBLOCK a pipe would hold us before we see that it is one */
    part->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (part->fd < 0 || fstat(part->fd, &st) < 0)
        return why_set(why, err_new(-errno), "%s: cannot open: %m", part->label);
    if (!S_ISREG(st.st_mode))
        return why_set(why, GGUF_BAD, "%s: not a regular file", part->label);
    if (st.st_size < HEAD_SIZE)
        return why_set(why, GGUF_BAD, "%s: %jd bytes is no GGUF file", part->label,
                       (intmax_t)st.st_size);

    map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, part->fd, 0);
    if (map == MAP_FAILED)
        return why_set(why, err_new(-errno), "%s: cannot map: %m", part->label);
    part->map = map;
    part->size = (uint64_t)st.st_size;
    return 0;
}

static int check_count(const struct reader *r, const char *what, uint64_t n, uint64_t min_size) {
    if (n > COUNT_MAX)
        return bad(r, "claims %" PRIu64 " %s, more than %d", n, what, COUNT_MAX);
    if (n > left(r) / min_size)
        return bad(r, "claims %" PRIu64 " %s in %" PRIu64 " bytes", n, what, left(r));
    return 0;
}

static int read_head(struct reader *r, uint64_t *ret_n_tensor, uint64_t *ret_n_meta) {
    const uint8_t *magic = bytes(r, 4); /* HEAD_SIZE bytes are there, see open_part() */
    uint32_t version = 0;
    int k;

    if (memcmp(magic, "GGUF", 4) != 0)
        return bad(r, "does not begin with \"GGUF\"");
    (void)get32(r, &version);
    (void)get64(r, ret_n_tensor);
    (void)get64(r, ret_n_meta);
    if (version && (version & 0xffff) == 0)
        return bad(r, "is a big-endian GGUF file");
    if (version != 2 && version != 3)
        return bad(r, "is GGUF version %" PRIu32 ", not 2 or 3", version);

    k = check_count(r, "tensors", *ret_n_tensor, TENSOR_MIN);
    return k ? k : check_count(r, "keys", *ret_n_meta, META_MIN);
}

static int read_alignment(struct reader *r, const struct metas *ms, uint64_t *ret) {
    const struct gguf_meta *m = find_meta(ms, "general.alignment");
    uint32_t v;

    *ret = ALIGN_DEFAULT;
    if (!m)
        return 0;
    r->what = "key";
    r->name = m->key;
    if (m->type != GGUF_U32)
        return bad(r, "is not an unsigned 32-bit integer");
    memcpy(&v, m->data, sizeof v);
    if (v < ALIGN_MIN || v > ALIGN_MAX || (v & (v - 1)))
        return bad(r, "is %" PRIu32 ", not a power of two from %d to %d", v, ALIGN_MIN, ALIGN_MAX);
    *ret = v;
    return 0;
}

/* The last part of @g, its keys into @ms. */
static int read_part(struct gguf *g, struct metas *ms, struct why *why) {
    const struct part *part = &g->part[g->n_part - 1];
    struct reader r = { .part = part, .pos = part->map, .end = part->map + part->size, .why = why };
    uint64_t n_tensor = 0, n_meta = 0, align = 0;
    int k;

    k = read_head(&r, &n_tensor, &n_meta);
    if (!k)
        k = read_metas(&r, n_meta, ms);
    if (!k)
        k = read_alignment(&r, ms, &align);
    if (!k)
        k = read_tensors(&r, g, n_tensor, align);
    return err_up(k);
}

/* ---- split models: PREFIX-00001-of-00003.gguf; numbered from 1 in names, from 0 in keys ---- */

static const char split_form[] = "-00000-of-00000.gguf"; /* 0: a digit */

/* Where the digits of the part's number begin in @path, NULL when its name has not that form. */
static char *split_digits(char *path, unsigned *ret_part, unsigned *ret_count) {
    size_t n = strlen(path), n_form = sizeof split_form - 1;
    char *s;

    if (n < n_form)
        return NULL;
    s = path + n - n_form;
    for (size_t i = 0; i < n_form; i++)
        if (split_form[i] == '0' ? s[i] < '0' || s[i] > '9' : s[i] != split_form[i])
            return NULL;
    *ret_part = (unsigned)strtoul(s + 1, NULL, 10);
    *ret_count = (unsigned)strtoul(s + 10, NULL, 10);
    return s + 1;
}

/* An integer of a split model; @ret stays as it is when the key is absent. */
static int split_int(const struct reader *r, const struct metas *ms, const char *key, int64_t max,
                     int64_t *ret) {
    const struct gguf_meta *m = find_meta(ms, key);
    struct reader at = *r;

    at.what = "key";
    at.name = key;
    if (m && (m->type == GGUF_ARR || !gguf_meta_int(m, 0, ret)))
        return bad(&at, "is not an integer");
    if (m && (*ret < 0 || *ret > max))
        return bad(&at, "is %" PRId64 ", not 0 to %" PRId64, *ret, max);
    return 0;
}

static bool same_arch(const struct metas *a, const struct metas *b) {
    const struct gguf_meta *x = find_meta(a, "general.architecture");
    const struct gguf_meta *y = find_meta(b, "general.architecture");

    if (!x || !y)
        return true;
    return x->type == GGUF_STR && y->type == GGUF_STR && x->n == y->n &&
           memcmp(x->data, y->data, x->n) == 0;
}

/* Keys of part @i > 0 of @count. */
static int check_part(const struct gguf *g, const struct metas *ms, int64_t i, int64_t count,
                      struct why *why) {
    const struct reader r = { .part = &g->part[i], .why = why };
    int64_t no = -1, of = -1;
    int k;

    k = split_int(&r, ms, "split.no", PART_MAX, &no);
    if (!k)
        k = split_int(&r, ms, "split.count", PART_MAX, &of);
    if (k)
        return k;
    if (no != i)
        return bad(&r, "key split.no is %" PRId64 ", in this file it must be %" PRId64, no, i);
    if (of != count)
        return bad(&r, "key split.count is %" PRId64 ", in the first part it is %" PRId64, of,
                   count);
    if (!same_arch(&g->meta, ms))
        return bad(&r, "key general.architecture differs from the first part's");
    return 0;
}

static int add_part(struct gguf *g, const char *path, int64_t count, struct why *why) {
    struct metas ms = { 0 };
    int k;

    k = open_part(&g->part[g->n_part++], path, why);
    if (!k)
        k = read_part(g, &ms, why);
    if (!k)
        k = check_part(g, &ms, g->n_part - 1, count, why);
    metas_deinit(&ms);
    return err_up(k);
}

static int add_parts(struct gguf *g, const char *path, int64_t count, struct why *why) {
    const struct reader r = { .part = &g->part[0], .why = why };
    AUTO(free) char *name = NULL;
    unsigned no, of;
    char *digits;
    void *p;

    name = malloc(strlen(path) + 1);
    if (!name)
        return no_memory(&g->part[0], why);
    strcpy(name, path);
    digits = split_digits(name, &no, &of);
    if (!digits || no != 1 || of != count)
        return bad(&r,
                   "is the first of %" PRId64 " parts, so its name must end in "
                   "-00001-of-%05" PRId64 ".gguf",
                   count, count);

    p = realloc(g->part, (size_t)count * sizeof *g->part);
    if (!p)
        return no_memory(&g->part[0], why);
    g->part = p;
    memset(g->part + 1, 0, (size_t)(count - 1) * sizeof *g->part);
    for (unsigned i = 1; i < of; i++) {
        char five[16];
        int k;

        (void)snprintf(five, sizeof five, "%05u", i + 1);
        memcpy(digits, five, 5);
        k = add_part(g, name, count, why);
        if (k)
            return err_up(k);
    }
    return 0;
}

static int read_split(struct gguf *g, const char *path, struct why *why) {
    struct reader r = { .part = &g->part[0], .why = why };
    int64_t no = 0, count = 1, n_tensor = -1;
    int k;

    k = split_int(&r, &g->meta, "split.no", PART_MAX, &no);
    if (!k)
        k = split_int(&r, &g->meta, "split.count", PART_MAX, &count);
    if (!k)
        k = split_int(&r, &g->meta, "split.tensors.count", COUNT_MAX, &n_tensor);
    if (k)
        return k;
    if (no != 0)
        return bad(&r, "is part %" PRId64 " of a split model; open the first", no + 1);

    if (count > 1) {
        if (n_tensor < 0)
            return bad(&r, "key split.tensors.count is missing");
        k = add_parts(g, path, count, why);
        if (k)
            return err_up(k);
    }
    r.part = &g->part[0];
    if (n_tensor >= 0 && n_tensor != g->n_tensor)
        return bad(&r, "key split.tensors.count is %" PRId64 ", the parts have %" PRIu32, n_tensor,
                   g->n_tensor);
    return 0;
}

/* ---- the view ---- */

int gguf_open(struct gguf **ret_gguf, const char *path, struct why *why) {
    AUTO(gguf_free) struct gguf *g = NULL;
    int k;

    g = calloc(1, sizeof *g);
    if (g)
        g->part = calloc(1, sizeof *g->part);
    if (!g || !g->part)
        return why_set(why, err_new(-ENOMEM), "out of memory for the directory of a model");

    g->n_part = 1;
    k = open_part(&g->part[0], path, why);
    if (!k)
        k = read_part(g, &g->meta, why);
    if (!k)
        k = read_split(g, path, why);
    if (!k)
        k = index_tensors(g, why);
    if (k)
        return err_up(k);

    *ret_gguf = take(g);
    return 0;
}

struct gguf *gguf_free(struct gguf *g) {
    if (!g)
        return NULL;

    for (uint32_t i = 0; i < g->n_tensor; i++)
        free((char *)g->tensor[i].name);
    free(g->tensor);
    free(g->by_name);
    metas_deinit(&g->meta);
    for (uint32_t i = 0; i < g->n_part; i++) {
        if (g->part[i].map)
            (void)munmap(g->part[i].map, g->part[i].size);
        if (g->part[i].fd >= 0)
            (void)close(g->part[i].fd);
    }
    free(g->part);
    free(g);
    return NULL;
}

const char *gguf_label(const struct gguf *g, uint32_t part) {
    return g->part[part].label;
}

uint32_t gguf_n_part(const struct gguf *g) {
    return g->n_part;
}

uint64_t gguf_part_size(const struct gguf *g, uint32_t part) {
    return g->part[part].size;
}

int gguf_part_fd(const struct gguf *g, uint32_t part) {
    return g->part[part].fd;
}

uint32_t gguf_n_tensor(const struct gguf *g) {
    return g->n_tensor;
}

const struct tensor *gguf_tensor_at(const struct gguf *g, uint32_t i) {
    return &g->tensor[i];
}

const struct tensor *gguf_tensor(const struct gguf *g, const char *name) {
    uint32_t lo = 0, hi = g->n_tensor;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        const struct tensor *t = &g->tensor[g->by_name[mid]];
        int order = strcmp(name, t->name);

        if (order == 0)
            return t;
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

uint32_t gguf_n_meta(const struct gguf *g) {
    return g->meta.n;
}

const struct gguf_meta *gguf_meta_at(const struct gguf *g, uint32_t i) {
    return &g->meta.at[i];
}

const struct gguf_meta *gguf_meta(const struct gguf *g, const char *key) {
    return find_meta(&g->meta, key);
}
