/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/fmt/gguf.h"

/* ---- the allocator between the module and libc: counts, and fails when told ---- */

void *__real_malloc(size_t n), *__wrap_malloc(size_t n);
void *__real_calloc(size_t n, size_t size), *__wrap_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n), *__wrap_realloc(void *p, size_t n);
void __real_free(void *p), __wrap_free(void *p);

static struct {
    long until_fail; /* this many succeed; negative: all */
    long n_live;
    size_t asked; /* bytes, never subtracted */
} heap = { .until_fail = -1 };

static bool heap_fails(size_t n) {
    if (heap.until_fail == 0)
        return true;
    if (heap.until_fail > 0)
        heap.until_fail--;
    heap.asked += n;
    return false;
}

void *__wrap_malloc(size_t n) {
    if (heap_fails(n))
        return NULL;
    heap.n_live++;
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    if (heap_fails(n * size))
        return NULL;
    heap.n_live++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    if (heap_fails(n))
        return NULL;
    if (!p)
        heap.n_live++;
    return __real_realloc(p, n);
}

void __wrap_free(void *p) {
    if (p)
        heap.n_live--;
    __real_free(p);
}

/* ---- a file under construction ---- */

static uint8_t file[8 << 20];
static size_t n_file;
static char dir[] = "/tmp/test-gguf-XXXXXX";

static void put(const void *p, size_t n) {
    assert_true(n_file + n <= sizeof file);
    if (n)
        memcpy(file + n_file, p, n);
    n_file += n;
}

static void put8(unsigned v) {
    put(&(uint8_t){ (uint8_t)v }, 1);
}

static void put32(uint32_t v) {
    put(&v, 4);
}

static void put64(uint64_t v) {
    put(&v, 8);
}

static void put_str(const char *s) {
    put64(strlen(s));
    put(s, strlen(s));
}

static void pad(size_t align) {
    while (n_file % align)
        put8(0);
}

static void head(uint32_t version, uint64_t n_tensor, uint64_t n_key) {
    n_file = 0;
    put("GGUF", 4);
    put32(version);
    put64(n_tensor);
    put64(n_key);
}

static void key(const char *name, uint32_t type) {
    put_str(name);
    put32(type);
}

static void key_u32(const char *name, uint32_t v) {
    key(name, GGUF_U32);
    put32(v);
}

static void key_str(const char *name, const char *v) {
    key(name, GGUF_STR);
    put_str(v);
}

static void key_array(const char *name, uint32_t elem, uint64_t n) {
    key(name, GGUF_ARR);
    put32(elem);
    put64(n);
}

static void tensor(const char *name, uint32_t type, uint64_t offset, uint32_t n_dim,
                   const uint64_t *ne) {
    put_str(name);
    put32(n_dim);
    for (uint32_t d = 0; d < n_dim; d++)
        put64(ne[d]);
    put32(type);
    put64(offset);
}

static void tensor_1d(const char *name, uint32_t type, uint64_t offset, uint64_t n) {
    tensor(name, type, offset, 1, &n);
}

enum { F32 = 0, Q4_0 = 2, Q4_K = 12 };

static uint64_t up(uint64_t v, uint64_t align) {
    return (v + align - 1) / align * align;
}

static const char *path_of(const char *name) {
    static char path[512];

    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void spill(const char *name, size_t n) {
    int fd = open(path_of(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, file, n < n_file ? n : n_file), n < n_file ? n : n_file);
    assert_int_equal(ftruncate(fd, (off_t)n), 0); /* what is not written reads as 0 */
    assert_int_equal(close(fd), 0);
}

static int count_fds(void) {
    DIR *d = opendir("/proc/self/fd");
    int n = 0;

    assert_non_null(d);
    while (readdir(d))
        n++;
    (void)closedir(d);
    return n;
}

static struct gguf *open_good(const char *name) {
    struct why why = { "" };
    struct gguf *g = NULL;
    int k = gguf_open(&g, path_of(name), &why);

    if (k)
        fail_msg("%s: %d: %s", name, k, why.text);
    return g;
}

/* Refused, with one sentence that names the file and contains @culprit; nothing stays behind. */
static void expect_bad(const char *name, const char *names_file, const char *culprit) {
    struct why why = { "" };
    struct gguf *g = NULL;
    int fds = count_fds(), k;
    long live = heap.n_live;

    k = gguf_open(&g, path_of(name), &why);
    if (k != GGUF_BAD || g)
        fail_msg("%s: want GGUF_BAD over %s, got %d: %s", name, culprit, k, why.text);
    if (!strstr(why.text, names_file) || !strstr(why.text, culprit) || strchr(why.text, '\n'))
        fail_msg("%s: want %s and %s in: %s", name, names_file, culprit, why.text);
    assert_int_equal(gguf_open(&g, path_of(name), NULL), GGUF_BAD);
    assert_int_equal(count_fds(), fds);
    assert_int_equal(heap.n_live, live);
}

/* ---- well-formed files ---- */

/* Keys of every type, arrays of the common ones, three tensors with known bytes. */
static void build_good(uint32_t version, uint32_t align) {
    const uint64_t ne[4] = { 64, 3, 2, 1 };

    head(version, 3, align ? 21 : 20);
    if (align)
        key_u32("general.alignment", align);
    key_str("general.architecture", "gemma4");
    key("a.u8", GGUF_U8), put8(200);
    key("a.i8", GGUF_I8), put8(0x80);
    key("a.u16", GGUF_U16), put("\xfe\xff", 2);
    key("a.i16", GGUF_I16), put("\xfe\xff", 2);
    key("a.u32", GGUF_U32), put32(0xfffffffe);
    key("a.i32", GGUF_I32), put32(0xfffffffe);
    key("a.u64", GGUF_U64), put64(INT64_MAX);
    key("a.u64big", GGUF_U64), put64(1ull << 63);
    key("a.i64", GGUF_I64), put64((uint64_t)INT64_MIN);
    key("a.f32", GGUF_F32), put(&(float){ 1.5f }, 4);
    key("a.f64", GGUF_F64), put(&(double){ -0.25 }, 8);
    key("a.f32nan", GGUF_F32), put(&(float){ NAN }, 4);
    key("a.f64inf", GGUF_F64), put(&(double){ INFINITY }, 8);
    key("a.f64big", GGUF_F64), put(&(double){ 1e300 }, 8);
    key("a.bool", GGUF_BOOL), put8(1);
    key_array("a.strs", GGUF_STR, 3), put_str("one"), put_str(""), put_str("three");
    key_array("a.bools", GGUF_BOOL, 4), put("\1\0\0\1", 4);
    key_array("a.i16s", GGUF_I16, 3), put("\1\0\xff\xff\0\x7f", 6);
    key_array("a.none", GGUF_F32, 0);

    align = align ? align : 32;
    tensor("one", Q4_0, 0, 4, ne); /* 12 blocks of 18 bytes are 216 */
    tensor_1d("two", F32, up(216, align), 1);
    tensor_1d("three", Q4_K, up(216, align) + align, 256);
    pad(align);
    for (unsigned i = 0; i < 216; i++)
        put8(i);
    pad(align);
    put32(0x3f800000);
    pad(align);
    for (unsigned i = 0; i < 144; i++)
        put8(0xa5);
}

static void check_good(uint32_t version, uint32_t align) {
    AUTO(gguf_free) struct gguf *g = NULL;
    const struct tensor *t;
    float one;

    build_good(version, align);
    spill("good.gguf", n_file);
    g = open_good("good.gguf");
    assert_int_equal(gguf_n_part(g), 1);
    assert_int_equal(gguf_part_size(g, 0), n_file);
    assert_true(fcntl(gguf_part_fd(g, 0), F_GETFD) & FD_CLOEXEC);
    assert_int_equal(gguf_n_meta(g), align ? 21 : 20);
    assert_string_equal(gguf_meta_at(g, align ? 1 : 0)->key, "general.architecture");
    assert_int_equal(gguf_n_tensor(g), 3);

    t = gguf_tensor(g, "one");
    assert_ptr_equal(t, gguf_tensor_at(g, 0));
    assert_int_equal(t->fmt, QUANT_Q4_0);
    assert_int_equal(t->n_dim, 4);
    assert_true(t->ne[0] == 64 && t->ne[1] == 3 && t->ne[2] == 2 && t->ne[3] == 1);
    assert_int_equal(t->size, 216);
    assert_int_equal(t->part, 0);
    assert_memory_equal(t->data, file + t->offset, 216);
    assert_int_equal(((const uint8_t *)t->data)[215], 215);

    t = gguf_tensor(g, "two");
    assert_true(t->n_dim == 1 && t->ne[0] == 1 && t->ne[1] == 1 && t->ne[3] == 1);
    memcpy(&one, t->data, sizeof one);
    assert_true(one == 1);
    t = gguf_tensor(g, "three");
    assert_int_equal(t->size, 144);
    assert_int_equal(t->offset + t->size, n_file);
    assert_int_equal(((const uint8_t *)t->data)[143], 0xa5);
    assert_null(gguf_tensor(g, "four"));
    assert_null(gguf_tensor(g, ""));
}

static void test_good(void **state) {
    check_good(3, 0);
    check_good(2, 0);
    check_good(3, 8);
    check_good(3, 64);
    check_good(3, 4096);
}

static void test_no_tensors(void **state) {
    AUTO(gguf_free) struct gguf *g = NULL;

    head(3, 0, 0);
    spill("empty.gguf", n_file); /* not even padded */
    g = open_good("empty.gguf");
    assert_int_equal(gguf_n_tensor(g) + gguf_n_meta(g), 0);
    assert_null(gguf_tensor(g, "x"));
    assert_null(gguf_meta(g, "x"));
}

/* As many tensors as a model may have: sorted look-up finds each, and all in good time. */
static void test_most_tensors(void **state) {
    AUTO(gguf_free) struct gguf *g = NULL;
    char name[64];

    head(3, 65536, 0);
    for (unsigned i = 0; i < 65536; i++) {
        (void)snprintf(name, sizeof name, "t%u", i);
        tensor_1d(name, F32, i * 32ull, 1);
    }
    spill("most.gguf", n_file + 65536 * 32 + 32);
    g = open_good("most.gguf");
    for (unsigned i = 0; i < 65536; i++) {
        (void)snprintf(name, sizeof name, "t%u", i);
        assert_ptr_equal(gguf_tensor(g, name), gguf_tensor_at(g, i));
    }
}

/* ---- getters ---- */

static void expect_why(const struct why *why, const char *a, const char *b) {
    if (!strstr(why->text, "good.gguf") || !strstr(why->text, a) || !strstr(why->text, b))
        fail_msg("want good.gguf, %s and %s in: %s", a, b, why->text);
}

static void test_get_int(void **state) {
    static const struct {
        const char *key;
        int64_t v;
    } ints[] = {
        { "a.u8", 200 },         { "a.i8", -128 }, { "a.u16", 65534 },     { "a.i16", -2 },
        { "a.u32", 4294967294 }, { "a.i32", -2 },  { "a.u64", INT64_MAX }, { "a.i64", INT64_MIN },
    };
    static const char *const others[] = { "a.u64big", "a.f32",  "a.f64",  "a.bool",
                                          "a.bools",  "a.i16s", "a.strs", "general.architecture" };
    AUTO(gguf_free) struct gguf *g = NULL;
    struct why why = { "" };
    int64_t v = 42;
    uint32_t u = 42;

    build_good(3, 0);
    spill("good.gguf", n_file);
    g = open_good("good.gguf");
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        const char *name = ints[i].key;
        int64_t want = ints[i].v;

        assert_int_equal(gguf_get_int(g, name, INT64_MIN, INT64_MAX, &v, &why), 0);
        assert_true(v == want);
        v = 42;
        assert_int_equal(gguf_get_int(g, name, want, want, &v, &why), 0);
        assert_true(v == want);
        v = 42;
        if (want > INT64_MIN)
            assert_int_equal(gguf_get_int(g, name, INT64_MIN, want - 1, &v, &why), GGUF_BAD);
        if (want < INT64_MAX)
            assert_int_equal(gguf_get_int(g, name, want + 1, INT64_MAX, &v, &why), GGUF_BAD);
        assert_int_equal(v, 42);
        expect_why(&why, name, "not");
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_int_equal(gguf_get_int(g, others[i], INT64_MIN, INT64_MAX, &v, &why), GGUF_BAD);
        assert_int_equal(gguf_get_int(g, others[i], INT64_MIN, INT64_MAX, &v, NULL), GGUF_BAD);
        expect_why(&why, others[i], "integer");
    }
    assert_int_equal(gguf_get_u32(g, "a.u8", 0, 200, &u, &why), 0);
    assert_int_equal(u, 200);
    assert_int_equal(gguf_get_u32(g, "a.i32", 0, UINT32_MAX, &u, &why), GGUF_BAD);
    expect_why(&why, "a.i32", "-2");
    assert_int_equal(u, 200);
}

static void test_get_float_bool_str(void **state) {
    AUTO(gguf_free) struct gguf *g = NULL;
    struct why why = { "" };
    const char *s;
    size_t n;
    float f = 7;
    bool b = false;

    build_good(3, 0);
    spill("good.gguf", n_file);
    g = open_good("good.gguf");
    assert_int_equal(gguf_get_f32(g, "a.f32", 1.5f, 1.5f, &f, &why), 0);
    assert_true(f == 1.5f);
    assert_int_equal(gguf_get_f32(g, "a.f64", -1, 0, &f, &why), 0);
    assert_true(f == -0.25f);
    assert_int_equal(gguf_get_f32(g, "a.f64", 0, 1, &f, &why), GGUF_BAD);
    expect_why(&why, "a.f64", "-0.25");
    assert_int_equal(gguf_get_f32(g, "a.f32nan", -INFINITY, INFINITY, &f, &why), GGUF_BAD);
    expect_why(&why, "a.f32nan", "nan");
    assert_int_equal(gguf_get_f32(g, "a.f64inf", -INFINITY, INFINITY, &f, &why), GGUF_BAD);
    assert_int_equal(gguf_get_f32(g, "a.f64big", -INFINITY, INFINITY, &f, &why), GGUF_BAD);
    assert_int_equal(gguf_get_f32(g, "a.u32", 0, 1, &f, &why), GGUF_BAD);
    expect_why(&why, "a.u32", "float");
    assert_true(f == -0.25f);

    assert_int_equal(gguf_get_bool(g, "a.bool", &b, &why), 0);
    assert_true(b);
    assert_int_equal(gguf_get_bool(g, "a.u8", &b, &why), GGUF_BAD);
    expect_why(&why, "a.u8", "bool");
    assert_int_equal(gguf_get_bool(g, "a.bools", &b, &why), GGUF_BAD);

    assert_int_equal(gguf_get_str(g, "general.architecture", &s, &n, &why), 0);
    assert_int_equal(n, 6);
    assert_memory_equal(s, "gemma4", 6);
    assert_int_equal(gguf_get_str(g, "a.strs", &s, &n, &why), GGUF_BAD);
    expect_why(&why, "a.strs", "not a string");
}

static void test_get_arrays(void **state) {
    static const char *const want[] = { "one", "", "three" };
    AUTO(gguf_free) struct gguf *g = NULL;
    AUTO(free) int32_t *ints = NULL;
    struct why why = { "" };
    struct gguf_strs it;
    uint32_t each[4] = { 9, 9, 9, 9 };
    uint64_t n = 0;
    const char *s;
    size_t n_s;

    build_good(3, 0);
    spill("good.gguf", n_file);
    g = open_good("good.gguf");

    assert_int_equal(gguf_get_u32_each(g, "a.u8", 0, 200, 4, each, &why), 0);
    assert_true(each[0] == 200 && each[3] == 200);
    assert_int_equal(gguf_get_u32_each(g, "a.bools", 0, 1, 4, each, &why), 0);
    assert_true(each[0] == 1 && each[1] == 0 && each[2] == 0 && each[3] == 1);
    assert_int_equal(gguf_get_u32_each(g, "a.bools", 0, 1, 3, each, &why), GGUF_BAD);
    expect_why(&why, "a.bools", "4 elements");
    assert_int_equal(gguf_get_u32_each(g, "a.i16s", 0, 9, 3, each, &why), GGUF_BAD);
    expect_why(&why, "a.i16s", "element 1 = -1");
    assert_int_equal(gguf_get_u32_each(g, "a.f32", 0, 9, 3, each, &why), GGUF_BAD);
    assert_int_equal(gguf_get_u32_each(g, "a.strs", 0, 9, 3, each, &why), GGUF_BAD);
    assert_int_equal(gguf_get_u32_each(g, "a.bool", 0, 1, 2, each, &why), 0);
    assert_true(each[0] == 1 && each[1] == 1);

    assert_int_equal(gguf_get_strs(g, "a.strs", &it, &n, &why), 0);
    assert_int_equal(n, 3);
    for (int i = 0; i < 3; i++) {
        assert_true(gguf_strs_next(&it, &s, &n_s));
        assert_int_equal(n_s, strlen(want[i]));
        assert_memory_equal(s, want[i], n_s);
    }
    assert_false(gguf_strs_next(&it, &s, &n_s));
    assert_int_equal(gguf_get_strs(g, "a.none", &it, &n, &why), GGUF_BAD);
    expect_why(&why, "a.none", "array of strings");

    assert_int_equal(gguf_get_ints(g, "a.i16s", -1, 32512, &ints, &n, &why), 0);
    assert_true(n == 3 && ints[0] == 1 && ints[1] == -1 && ints[2] == 0x7f00);
    assert_int_equal(gguf_get_ints(g, "a.i16s", -1, 32511, &ints, &n, &why), GGUF_BAD);
    expect_why(&why, "a.i16s", "element 2");
    assert_int_equal(gguf_get_ints(g, "a.none", 0, 1, &ints, &n, &why), GGUF_BAD);
    assert_int_equal(gguf_get_ints(g, "a.bools", 0, 1, &ints, &n, &why), GGUF_BAD);
    assert_int_equal(gguf_get_ints(g, "a.u8", 0, 255, &ints, &n, &why), GGUF_BAD);
}

static void test_absent(void **state) {
    AUTO(gguf_free) struct gguf *g = NULL;
    struct why why = { "untouched" };
    struct gguf_strs it;
    int32_t *ints = NULL;
    uint64_t n;
    int64_t i;
    uint32_t u;
    const char *s;
    size_t n_s;
    float f;
    bool b;

    build_good(3, 0);
    spill("good.gguf", n_file);
    g = open_good("good.gguf");
    assert_int_equal(gguf_get_int(g, "a", 0, 1, &i, &why), GGUF_ABSENT);
    assert_int_equal(gguf_get_u32(g, "a.", 0, 1, &u, &why), GGUF_ABSENT);
    assert_int_equal(gguf_get_f32(g, "a.f3", 0, 1, &f, &why), GGUF_ABSENT);
    assert_int_equal(gguf_get_bool(g, "a.f322", &b, &why), GGUF_ABSENT);
    assert_int_equal(gguf_get_str(g, "", &s, &n_s, &why), GGUF_ABSENT);
    assert_int_equal(gguf_get_u32_each(g, "z", 0, 1, 1, &u, &why), GGUF_ABSENT);
    assert_int_equal(gguf_get_strs(g, "0", &it, &n, &why), GGUF_ABSENT);
    assert_int_equal(gguf_get_ints(g, "A.U8", 0, 1, &ints, &n, &why), GGUF_ABSENT);
    assert_string_equal(why.text, "untouched");
}

/* ---- one hostile file a rule ---- */

static const char *long_name(size_t n) {
    static char s[70000];

    memset(s, 'k', n);
    s[n] = 0;
    return s;
}

static void key_bytes(const char *s, uint64_t claimed, size_t n) {
    head(3, 0, 1);
    put64(claimed);
    put(s, n);
    put32(GGUF_U8);
    put64(0);
}

static void one_key(const char *name, uint32_t type) {
    head(3, 0, 1);
    key(name, type);
}

/* A tensor alone in its file; the data is there as far as @n_data goes. */
static void one_tensor(const char *name, uint32_t type, uint64_t offset, uint32_t n_dim,
                       const uint64_t *ne, size_t n_data) {
    head(3, 1, 0);
    tensor(name, type, offset, n_dim, ne);
    pad(32);
    for (size_t i = 0; i < n_data; i++)
        put8(0);
}

static void alignment(uint32_t type, uint64_t v, size_t size) {
    one_key("general.alignment", type);
    put(&v, size);
    put64(0); /* so that the file is long enough for one key */
}

static void two_tensors(const char *second, uint64_t offset) {
    head(3, 2, 0);
    tensor_1d("first", F32, 0, 9);
    tensor_1d(second, F32, offset, 8);
    pad(32);
    for (int i = 0; i < 96; i++)
        put8(0);
}

/* clang-format off */
#define NE(...) (const uint64_t[]){ __VA_ARGS__ }

/* name of the file, words of the sentence, how the file is made */
#define BADS(X) \
    X(magic,         "\"GGUF\"",                                    head(3, 0, 0); file[3] = 'X') \
    X(version0,      "version 0",                                   head(0, 0, 0)) \
    X(version1,      "version 1",                                   head(1, 0, 0)) \
    X(version4,      "version 4",                                   head(4, 0, 0)) \
    X(big_endian,    "big-endian",                                  head(0x03000000, 0, 0)) \
    X(short,         "23 bytes",                                    head(3, 0, 0); n_file = 23) \
    X(nothing,       "0 bytes",                                     n_file = 0) \
    X(tensor_max,    "65537 tensors, more",                         head(3, 65537, 0)) \
    X(tensor_neg,    "tensors, more than",                          head(3, 1ull << 63, 0)) \
    X(tensor_left,   "3 tensors in 98",                             head(3, 3, 0); while (n_file < 24 + 98) put8(0)) \
    X(key_max,       "65537 keys, more",                            head(3, 0, 65537)) \
    X(key_left,      "2 keys in 27",                                head(3, 0, 2); while (n_file < 24 + 27) put8(0)) \
    X(key_empty,     "key has 0 bytes",                             key_bytes("", 0, 0)) \
    X(key_long,      "key has 65536 bytes",                         key_bytes(long_name(65536), 65536, 65536)) \
    X(key_nul,       "0x00 after \"a\"",                            key_bytes("a\0b", 3, 3)) \
    X(key_space,     "0x20 after \"gen\"",                          key_bytes("gen eral", 8, 8)) \
    X(key_high,      "0xc3 after \"caf\"",                          key_bytes("caf\xc3\xa9", 5, 5)) \
    X(key_past,      "name of a key",                               key_bytes("abc", 40, 3)) \
    X(key_wrap,      "name of a key",                               key_bytes("abc", UINT64_MAX, 3)) \
    X(type,          "the.key is of type 13",                       one_key("the.key", 13); put64(0)) \
    X(type_big,      "key the.key",                                 one_key("the.key", 0xffffffff); put64(0)) \
    X(bool,          "key the.key has a boolean of 2",              one_key("the.key", GGUF_BOOL); put8(2)) \
    X(str_past,      "key the.key",                                 one_key("the.key", GGUF_STR); put64(5); put("abcd", 4)) \
    X(str_wrap,      "key the.key",                                 one_key("the.key", GGUF_STR); put64(UINT64_MAX - 7); put("abcd", 4)) \
    X(nested,        "the.key is an array of arrays",               one_key("the.key", GGUF_ARR); put32(GGUF_ARR); put64(1); put64(0)) \
    X(elem,          "the.key is of type 13",                       one_key("the.key", GGUF_ARR); put32(13); put64(1); put64(0)) \
    X(count_past,    "the.key needs 3",                             head(3, 0, 1); key_array("the.key", GGUF_U32, 3); put64(0)) \
    X(count_wrap,    "key the.key needs",                           head(3, 0, 1); key_array("the.key", GGUF_U64, (1ull << 61) + 1); put64(0)) \
    X(count_neg,     "key the.key needs",                           head(3, 0, 1); key_array("the.key", GGUF_U8, 1ull << 63); put64(0)) \
    X(bools,         "the.key has a boolean of 255",                head(3, 0, 1); key_array("the.key", GGUF_BOOL, 3); put("\1\0\xff", 3)) \
    X(strs_count,    "the.key needs 3 strings",                     head(3, 0, 1); key_array("the.key", GGUF_STR, 3); put64(0); put64(0)) \
    X(strs_wrap,     "the.key needs",                               head(3, 0, 1); key_array("the.key", GGUF_STR, 1ull << 61); put64(0)) \
    X(strs_elem,     "key the.key",                                 head(3, 0, 1); key_array("the.key", GGUF_STR, 2); put_str("ok"); put64(9); put64(0)) \
    X(key_twice,     "the.key occurs twice",                        head(3, 0, 3); key_u32("the.key", 1); key_u32("other", 1); key_u32("the.key", 1)) \
    X(align_u64,     "key general.alignment",                       alignment(GGUF_U64, 32, 8)) \
    X(align_i32,     "key general.alignment",                       alignment(GGUF_I32, 32, 4)) \
    X(align_str,     "key general.alignment",                       alignment(GGUF_STR, 0, 8)) \
    X(align_0,       "general.alignment is 0",                      alignment(GGUF_U32, 0, 4)) \
    X(align_4,       "general.alignment is 4",                      alignment(GGUF_U32, 4, 4)) \
    X(align_24,      "general.alignment is 24",                     alignment(GGUF_U32, 24, 4)) \
    X(align_big,     "general.alignment is 131072",                 alignment(GGUF_U32, 131072, 4)) \
    X(name_empty,    "tensor has 0 bytes",                          one_tensor("", F32, 0, 1, NE(1), 32)) \
    X(name_long,     "tensor has 64 bytes",                         one_tensor(long_name(64), F32, 0, 1, NE(1), 32)) \
    X(name_ctrl,     "0x1b after \"the\"",                          one_tensor("the\x1btensor", F32, 0, 1, NE(1), 32)) \
    X(name_past,     "name of a tensor",                            head(3, 1, 0); put64(30); put("abc", 3); while (n_file < 60) put8(0)) \
    X(dims_0,        "the.tensor has 0 dim",                        one_tensor("the.tensor", F32, 0, 0, NE(1), 32)) \
    X(dims_5,        "the.tensor has 5 dim",                        one_tensor("the.tensor", F32, 0, 5, NE(1, 1, 1, 1, 1), 32)) \
    X(ne_0,          "the.tensor has 0 elements in dimension 1",    one_tensor("the.tensor", F32, 0, 2, NE(4, 0), 32)) \
    X(ne_block,      "the.tensor has rows of 33",                   one_tensor("the.tensor", Q4_0, 0, 2, NE(33, 32), 2048)) \
    X(ne_kblock,     "the.tensor has rows of 32",                   one_tensor("the.tensor", Q4_K, 0, 2, NE(32, 8), 2048)) \
    X(fmt_gone,      "the.tensor is of type 4",                     one_tensor("the.tensor", 4, 0, 1, NE(32), 256)) \
    X(fmt_iq2,       "the.tensor is of type IQ2_XXS",               one_tensor("the.tensor", 16, 0, 1, NE(256), 256)) \
    X(fmt_i8,        "the.tensor is of type I8",                    one_tensor("the.tensor", 24, 0, 1, NE(32), 256)) \
    X(fmt_f64,       "the.tensor is of type F64",                   one_tensor("the.tensor", 28, 0, 1, NE(1), 256)) \
    X(fmt_nvfp4,     "the.tensor is of type NVFP4",                 one_tensor("the.tensor", 40, 0, 1, NE(64), 256)) \
    X(fmt_999,       "the.tensor is of type 999",                   one_tensor("the.tensor", 999, 0, 1, NE(1), 256)) \
    X(n_wrap,        "the.tensor has more elements",                one_tensor("the.tensor", F32, 0, 2, NE(1ull << 32, 1ull << 32), 32)) \
    X(n_wrap4,       "the.tensor has more elements",                one_tensor("the.tensor", F32, 0, 4, NE(1ull << 16, 1ull << 16, 1ull << 16, 1ull << 16), 32)) \
    X(n_sign,        "the.tensor has more elements",                one_tensor("the.tensor", F32, 0, 2, NE(1ull << 32, 1ull << 31), 32)) \
    X(n_huge,        "the.tensor has more elements",                one_tensor("the.tensor", F32, 0, 1, NE(UINT64_MAX), 32)) \
    X(size_wrap,     "the.tensor has more bytes",                   one_tensor("the.tensor", F32, 0, 1, NE((1ull << 62) + 1), 32)) \
    X(size_pads,     "tensor the.tensor",                           one_tensor("the.tensor", F32, 0, 3, NE(4, (1ull << 30) - 1, (1ull << 30) + 1), 32)) \
    X(size_align,    "tensor the.tensor ends beyond",               one_tensor("the.tensor", F32, 0, 1, NE((1ull << 62) - 1), 32)) \
    X(offset_first,  "the.tensor is at offset 32",                  one_tensor("the.tensor", F32, 32, 1, NE(1), 64)) \
    X(offset_odd,    "the.tensor is at offset 1",                   one_tensor("the.tensor", F32, 1, 1, NE(1), 64)) \
    X(offset_neg,    "tensor the.tensor",                           one_tensor("the.tensor", F32, (uint64_t)-32, 1, NE(1), 64)) \
    X(data_past,     "tensor the.tensor",                           one_tensor("the.tensor", F32, 0, 1, NE(8), 31)) \
    X(data_none,     "tensor the.tensor",                           one_tensor("the.tensor", F32, 0, 1, NE(8), 0); n_file -= 2) \
    X(data_far,      "tensor the.tensor",                           one_tensor("the.tensor", F32, 0, 1, NE(1ull << 40), 32)) \
    X(overlap,       "the.tensor is at offset 32",                  two_tensors("the.tensor", 32)) \
    X(gap,           "the.tensor is at offset 96",                  two_tensors("the.tensor", 96)) \
    X(unaligned,     "the.tensor is at offset 36",                  two_tensors("the.tensor", 36)) \
    X(same,          "the.tensor is at offset 0",                   two_tensors("the.tensor", 0)) \
    X(split_array,   "key split.no is not an integer",              head(3, 0, 1); key_array("split.no", GGUF_U16, 1); put("\0\0", 2)) \
    X(split_neg,     "key split.no is -1",                          one_key("split.no", GGUF_I32); put32(0xffffffff)) \
    X(name_twice,    "first occurs twice",                          two_tensors("first", 64))

#define BUILD(name_, words_, ...) static void build_##name_(void) { __VA_ARGS__; }
#define ROW(name_, words_, ...)   { #name_ ".gguf", words_, build_##name_ },
/* clang-format on */
BADS(BUILD)

static const struct bad {
    const char *name, *words;
    void (*build)(void);
} bads[] = { BADS(ROW) };

static void test_bad(void **state) {
    for (const struct bad *b = bads; b < bads + sizeof bads / sizeof *bads; b++) {
        b->build();
        spill(b->name, n_file);
        expect_bad(b->name, b->name, b->words);
        assert_int_equal(unlink(path_of(b->name)), 0);
    }
}

/* A string of 16 MiB is taken, one byte more is not, though the file has it. */
static void test_long_string(void **state) {
    struct gguf *g;

    one_key("the.key", GGUF_STR);
    put64(1 << 24);
    spill("long.gguf", n_file + (1 << 24));
    g = open_good("long.gguf");
    assert_int_equal(gguf_meta(g, "the.key")->n, 1 << 24);
    gguf_free(g);

    one_key("the.key", GGUF_STR);
    put64((1 << 24) + 1);
    spill("long.gguf", n_file + (1 << 24) + 1);
    expect_bad("long.gguf", "long.gguf", "the.key has a string of 16777217");
}

/* A file cut anywhere is refused, and no cut confuses it into another outcome. */
static void test_truncated(void **state) {
    build_good(3, 64);
    spill("cut.gguf", n_file);
    for (size_t n = n_file; n-- > 0;) {
        assert_int_equal(truncate(path_of("cut.gguf"), (off_t)n), 0);
        expect_bad("cut.gguf", "cut.gguf", "");
    }
}

/* Any one byte of the header changed: opened or refused; what opens can be walked. */
static void test_changed_byte(void **state) {
    static const uint8_t to[] = { 0x00, 0x01, 0x7f, 0x80, 0xff };
    size_t n_good = 0, n_bad = 0;
    int fd;

    build_good(3, 0);
    spill("flip.gguf", n_file);
    fd = open(path_of("flip.gguf"), O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t at = 0; at < n_file - 288; at++) /* where the data begins */
        for (size_t i = 0; i < sizeof to; i++) {
            AUTO(gguf_free) struct gguf *g = NULL;
            struct why why = { "" };
            uint8_t byte = file[at] ^ to[i];
            int k;

            assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
            k = gguf_open(&g, path_of("flip.gguf"), &why);
            assert_true(k == 0 || k == GGUF_BAD);
            assert_true(k == 0 || strstr(why.text, "flip.gguf"));
            assert_int_equal(pwrite(fd, &file[at], 1, (off_t)at), 1);
            n_good += k == 0;
            n_bad += k != 0;
            for (uint32_t t = 0; g && t < gguf_n_tensor(g); t++) {
                const struct tensor *v = gguf_tensor_at(g, t);

                assert_true(v->offset + v->size <= n_file);
            }
        }
    (void)close(fd);
    assert_true(n_good > 500 && n_bad > 500); /* both happen, in numbers */
}

/* What is allocated follows what is there, not what the header claims. */
static void test_memory(void **state) {
    head(3, 65536, 0); /* the bytes would do for as many; the first is bad */
    spill("claims.gguf", 4 << 20);
    heap.asked = 0;
    expect_bad("claims.gguf", "claims.gguf", "tensor has 0 bytes");
    assert_in_range(heap.asked, 1, 16384);

    head(3, 0, 1);
    key_array("the.key", GGUF_STR, 1 << 19);
    spill("claims.gguf", n_file + (8 << 19));
    heap.asked = 0;
    gguf_free(open_good("claims.gguf"));
    assert_in_range(heap.asked, 1, 16384);

    head(3, 0, 20000);
    for (unsigned i = 0; i < 20000; i++) {
        char name[16];

        (void)snprintf(name, sizeof name, "%u", i);
        key(name, GGUF_BOOL), put8(0);
    }
    spill("keys.gguf", n_file);
    heap.asked = 0;
    gguf_free(open_good("keys.gguf"));
    assert_in_range(heap.asked, 1, 12 * n_file); /* all steps of growing together */
}

static void test_not_a_file(void **state) {
    struct why why = { "" };
    struct gguf *g = NULL;
    char deep[512];

    assert_int_equal(gguf_open(&g, path_of("absent.gguf"), &why), -ENOENT);
    assert_non_null(strstr(why.text, "absent.gguf"));
    assert_int_equal(gguf_open(&g, "", &why), -ENOENT);
    assert_int_equal(gguf_open(&g, dir, &why), GGUF_BAD);
    assert_non_null(strstr(why.text, "not a regular file"));
    assert_int_equal(gguf_open(&g, "/dev/null", &why), GGUF_BAD);
    assert_int_equal(mkfifo(path_of("pipe.gguf"), 0600), 0);
    assert_int_equal(gguf_open(&g, path_of("pipe.gguf"), &why), GGUF_BAD); /* and does not wait */
    assert_non_null(strstr(why.text, "pipe.gguf: not a regular file"));

    /* of a long path the message keeps the end */
    memset(deep, 'd', sizeof deep);
    (void)snprintf(deep + 200, sizeof deep - 200, "/the-file.gguf");
    assert_int_equal(gguf_open(&g, deep, &why), -ENOENT);
    assert_non_null(strstr(why.text, "ddd/the-file.gguf: cannot open"));
    assert_int_equal(strncmp(why.text, "...", 3), 0);
    assert_null(g);
}

/* ---- split models ---- */

struct split {
    int64_t no, count, n_tensor; /* negative: no such key */
    const char *arch, *tensor;   /* NULL: none */
    uint32_t align;
};

static void write_split(const char *name, const struct split *s) {
    int n_key = 1 + (s->no >= 0) + (s->count >= 0) + (s->n_tensor >= 0) + (s->arch != NULL);

    head(3, s->tensor != NULL, (uint64_t)n_key);
    key_u32("general.alignment", s->align ? s->align : 32);
    if (s->arch)
        key_str("general.architecture", s->arch);
    if (s->no >= 0)
        key("split.no", GGUF_U16), put(&(uint16_t){ (uint16_t)s->no }, 2);
    if (s->count >= 0)
        key("split.count", GGUF_U16), put(&(uint16_t){ (uint16_t)s->count }, 2);
    if (s->n_tensor >= 0)
        key("split.tensors.count", GGUF_I32), put32((uint32_t)s->n_tensor);
    if (s->tensor) {
        tensor_1d(s->tensor, F32, 0, 2);
        pad(s->align ? s->align : 32);
        put64(0x3f80000000000000 + (uint64_t)s->no);
    }
    spill(name, n_file);
}

static struct split split_parts[3];

static void write_parts(void) {
    for (int i = 0; i < 3; i++) {
        char name[64];

        (void)snprintf(name, sizeof name, "m-%05d-of-00003.gguf", i + 1);
        write_split(name, &split_parts[i]);
    }
}

static void reset_parts(void) {
    split_parts[0] = (struct split){ 0, 3, 2, "gemma4", NULL, 0 };
    split_parts[1] = (struct split){ 1, 3, 2, NULL, "b", 4096 };
    split_parts[2] = (struct split){ 2, 3, 2, "gemma4", "c", 8 };
}

static void test_split(void **state) {
    AUTO(gguf_free) struct gguf *g = NULL;

    reset_parts();
    write_parts();
    g = open_good("m-00001-of-00003.gguf");
    assert_int_equal(gguf_n_part(g), 3);
    assert_int_equal(gguf_n_tensor(g), 2);
    for (uint32_t i = 0; i < 2; i++) {
        const struct tensor *t = gguf_tensor_at(g, i);
        uint64_t v, there;

        assert_string_equal(t->name, i ? "c" : "b");
        assert_ptr_equal(gguf_tensor(g, t->name), t);
        assert_int_equal(t->part, i + 1);
        assert_int_equal(t->offset + t->size, gguf_part_size(g, t->part));
        assert_int_equal(t->offset % split_parts[i + 1].align, 0);
        memcpy(&v, t->data, sizeof v);
        assert_int_equal(v, 0x3f80000000000000 + i + 1);
        assert_int_equal(pread(gguf_part_fd(g, t->part), &there, 8, (off_t)t->offset), 8);
        assert_true(v == there);
    }
    gguf_free(take(g));

    /* the only part of its model is no split model, whatever it is called */
    write_split("alone.gguf", &(struct split){ 0, 1, 1, "gemma4", "a", 0 });
    g = open_good("alone.gguf");
    assert_int_equal(gguf_n_part(g), 1);
}

#define FIRST "m-00001-of-00003.gguf"

static void expect_split(const char *names_file, const char *culprit) {
    write_parts();
    expect_bad(FIRST, names_file, culprit);
    reset_parts();
}

static void test_split_bad(void **state) {
    reset_parts();
    write_parts();
    expect_bad("m-00002-of-00003.gguf", "m-00002", "is part 2 of a split model");

    split_parts[1].no = 2;
    expect_split("m-00002", "split.no is 2");
    split_parts[2].no = -1;
    expect_split("m-00003", "split.no");
    split_parts[2].count = 4;
    expect_split("m-00003", "split.count is 4");
    split_parts[2].count = -1;
    expect_split("m-00003", "split.count");
    split_parts[0].count = 2;
    expect_split("m-00001", "first of 2 parts");
    split_parts[0].count = 1025;
    expect_split("m-00001", "split.count is 1025");
    split_parts[0].n_tensor = 3;
    expect_split("m-00001", "split.tensors.count is 3");
    split_parts[0].n_tensor = -1;
    expect_split("m-00001", "split.tensors.count is missing");
    split_parts[2].tensor = "b";
    expect_split("m-00003", "tensor b occurs twice");
    split_parts[2].arch = "gemma3";
    expect_split("m-00003", "general.architecture");
    split_parts[1].align = 12;
    expect_split("m-00002", "general.alignment is 12");

    /* names that are not of the form, though the keys are right */
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = { "m.gguf", "m-0001-of-00003.gguf",
                                             "m-00001-of-0000x.gguf" };

        write_split(names[i], &split_parts[0]);
        expect_bad(names[i], names[i], "its name must end in -00001-of-00003.gguf");
    }
    write_split("m-00002-of-00003.gguf", &split_parts[0]);
    expect_bad("m-00002-of-00003.gguf", "m-00002", "its name must end in");
}

static void test_split_absent(void **state) {
    struct why why = { "" };
    struct gguf *g = NULL;

    reset_parts();
    write_parts();
    assert_int_equal(unlink(path_of("m-00003-of-00003.gguf")), 0);
    assert_int_equal(gguf_open(&g, path_of(FIRST), &why), -ENOENT);
    assert_non_null(strstr(why.text, "m-00003-of-00003.gguf: cannot open"));
    assert_int_equal(mkdir(path_of("m-00003-of-00003.gguf"), 0700), 0);
    expect_bad(FIRST, "m-00003", "not a regular file");
    assert_int_equal(rmdir(path_of("m-00003-of-00003.gguf")), 0);
}

/* The limit is of the model, not of each file. */
static void test_split_too_many(void **state) {
    for (unsigned part = 0; part < 2; part++) {
        char name[64];

        head(3, 40000, 3);
        key("split.no", GGUF_U16), put(&(uint16_t){ (uint16_t)part }, 2);
        key_u32("split.count", 2);
        key_u32("split.tensors.count", 65536);
        for (unsigned i = 0; i < 40000; i++) {
            (void)snprintf(name, sizeof name, "t%u.%u", part, i);
            tensor_1d(name, F32, i * 32ull, 1);
        }
        (void)snprintf(name, sizeof name, "n-0000%u-of-00002.gguf", part + 1);
        spill(name, n_file + 40000 * 32 + 32);
    }
    expect_bad("n-00001-of-00002.gguf", "n-00002", "more than 65536 tensors");
}

/* ---- out of memory ---- */

static void fail_each(const char *name) {
    long live = heap.n_live, n = 0;
    int fds = count_fds(), k;
    struct gguf *g = NULL;

    do {
        struct why why = { "" };

        heap.until_fail = n;
        k = gguf_open(&g, path_of(name), &why);
        heap.until_fail = -1;
        if (k) {
            assert_int_equal(k, -ENOMEM);
            assert_non_null(strstr(why.text, "out of memory"));
            assert_int_equal(count_fds(), fds);
            assert_int_equal(heap.n_live, live);
            n++;
        }
    } while (k);
    assert_true(n > 10);
    gguf_free(g);
    assert_int_equal(count_fds(), fds);
    assert_int_equal(heap.n_live, live);
}

static void test_out_of_memory(void **state) {
    AUTO(gguf_free) struct gguf *g = NULL;
    struct why why = { "" };
    int32_t *ints = NULL;
    uint64_t n;

    build_good(3, 0);
    spill("good.gguf", n_file);
    fail_each("good.gguf");
    reset_parts();
    write_parts();
    fail_each(FIRST);

    g = open_good("good.gguf");
    heap.until_fail = 0;
    assert_int_equal(gguf_get_ints(g, "a.i16s", -1, 32767, &ints, &n, &why), -ENOMEM);
    heap.until_fail = -1;
    expect_why(&why, "a.i16s", "out of memory");
    assert_null(ints);
}

static int make_dir(void **state) {
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    DIR *d = opendir(dir);
    struct dirent *e;

    if (!d)
        return -1;
    while ((e = readdir(d)))
        (void)unlink(path_of(e->d_name));
    (void)closedir(d);
    return rmdir(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_no_tensors),
        cmocka_unit_test(test_most_tensors),
        cmocka_unit_test(test_get_int),
        cmocka_unit_test(test_get_float_bool_str),
        cmocka_unit_test(test_get_arrays),
        cmocka_unit_test(test_absent),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_long_string),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_changed_byte),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_bad),
        cmocka_unit_test(test_split_absent),
        cmocka_unit_test(test_split_too_many),
        cmocka_unit_test(test_out_of_memory),
    };

    return cmocka_run_group_tests_name("gguf", tests, make_dir, remove_dir);
}
