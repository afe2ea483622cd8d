/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "engine/text/sample.h"
#include "tests/unit/tiny-vocab.h"

enum { N = 1536 }; /* tokens of the vocabulary; two of them are suppressed */

static struct vocab *vocab;

static int setup(void **state) {
    static char name[N][16];
    static const int32_t suppressed[] = { 7, 300 };
    struct making *m = calloc(1, sizeof *m);
    struct tiny *t = calloc(1, sizeof *t);
    struct gguf *g;
    struct why why;
    int r;

    (void)state;
    tiny_begin(t);
    while (t->n < N) {
        (void)snprintf(name[t->n], sizeof name[t->n], "t%zu", t->n);
        (void)tiny_token(t, name[t->n], VOCAB_NORMAL);
    }
    tiny_put(t, m);
    making_i32s(m, "tokenizer.ggml.suppress_tokens", suppressed, 2);
    g = making_open(m);
    r = vocab_new(&vocab, g, &why);
    gguf_free(g);
    free(t);
    free(m);

    return r;
}

static int teardown(void **state) {
    (void)state;
    vocab = vocab_free(vocab);
    return 0;
}

/* Greedy and neutral, but for what a test changes. */
static struct sample_params params(void) {
    return (struct sample_params){
        .has = ~0U, .temperature = 1, .top_p = 1, .repeat = 1, .last_n = 64, .seed = 1
    };
}

static struct sampler *sampler(const struct sample_params *p, uint32_t n_top) {
    struct sampler *s = NULL;
    struct why why;

    assert_int_equal(sample_check(p, &why), 0);
    assert_int_equal(sample_new(&s, p, vocab, n_top), 0);
    return s;
}

static tok_t next(struct sampler *s, const float *logits) {
    struct sample_result r;

    sample_next(s, logits, &r);
    return r.id;
}

static void flat(float *x, float value) {
    for (int i = 0; i < N; i++)
        x[i] = value;
}

/* Known answers of the generators' authors. */
static void test_generator(void **state) {
    static const uint64_t split[] = { UINT64_C(0xe220a8397b1dcdaf), UINT64_C(0x6e789e6aa1b965f4),
                                      UINT64_C(0x06c45d188009454f), UINT64_C(0xf88bb8a8724c81ec) };
    static const uint64_t xoshiro[] = { UINT64_C(11520),
                                        UINT64_C(0),
                                        UINT64_C(1509978240),
                                        UINT64_C(1215971899390074240),
                                        UINT64_C(1216172134540287360),
                                        UINT64_C(607988272756665600),
                                        UINT64_C(16172922978634559625),
                                        UINT64_C(8476171486693032832),
                                        UINT64_C(10595114339597558777),
                                        UINT64_C(2904607092377533576) };
    struct sample_rng rng;

    (void)state;
    sample_rng_seed(&rng, 0);
    for (size_t i = 0; i < 4; i++)
        assert_true(rng.s[i] == split[i]);
    rng = (struct sample_rng){ { 1, 2, 3, 4 } };
    for (size_t i = 0; i < 10; i++)
        assert_true(sample_rng_next(&rng) == xoshiro[i]);
}

static void test_greedy(void **state) {
    struct sample_params p = params();
    float x[N];

    (void)state;
    p.temperature = 0;
    AUTO(sample_free) struct sampler *s = sampler(&p, 0);
    flat(x, -1);
    x[50] = x[60] = x[7] = 3;
    assert_int_equal(next(s, x), 50); /* the lowest of equals; 7 is suppressed */
    x[60] = 3.5F;
    assert_int_equal(next(s, x), 60);
    assert_true(x[7] == 3); /* the row is not touched */
}

/* NaN and infinities neither crash nor win, and nothing to draw ends the text. */
static void test_odd_rows(void **state) {
    float x[N];

    (void)state;
    for (int mode = 0; mode < 5; mode++) {
        struct sample_params p = params();
        struct sample_result r;

        p.temperature = mode == 0 ? 0 : 0.7F;
        p.top_k = mode == 1 ? 40 : 0;
        p.top_p = mode == 2 ? 0.9F : 1;
        p.repeat = mode == 3 ? 1.3F : 1;
        p.min_p = mode == 4 ? 0.1F : 0;
        AUTO(sample_free) struct sampler *s = sampler(&p, 3);

        flat(x, NAN);
        assert_int_equal(next(s, x), TINY_EOS);
        flat(x, -INFINITY);
        sample_next(s, x, &r);
        assert_int_equal(r.id, TINY_EOS);
        assert_int_equal(r.n_top, 0);
        flat(x, NAN);
        x[400] = -2e38F;
        assert_int_equal(next(s, x), 400);
        flat(x, -5);
        x[3] = NAN;
        x[9] = INFINITY;
        sample_next(s, x, &r);
        assert_int_equal(r.id, 9);
        assert_int_equal(r.top[0].id, 9);
        assert_float_equal(r.logprob, 0, 1e-6);
        for (int i = 0; i < 100; i++)
            sample_accept(s, 9);
        (void)next(s, x);
        sample_accept(s, -1); /* ids no vocabulary has are not counted */
        sample_accept(s, N);
    }
}

/* How often each token comes in @n draws. */
static void count(const struct sample_params *p, const float *x, int n, int *ret) {
    AUTO(sample_free) struct sampler *s = sampler(p, 0);

    memset(ret, 0, N * sizeof *ret);
    for (int i = 0; i < n; i++) {
        tok_t id = next(s, x);

        assert_in_range(id, 0, N - 1);
        ret[id]++;
    }
}

/* The three ways through (top-k, nucleus of all, all) draw from the softmax at the temperature. */
static void test_distribution(void **state) {
    enum { N_DRAW = 20000 };
    const struct {
        uint32_t k;
        float top_p;
    } way[] = { { 5, 1 }, { 0, 0.99999F }, { 0, 1 } };
    float x[N];
    int n[N];

    (void)state;
    flat(x, -100);
    for (int i = 0; i < 5; i++)
        x[100 + 31 * i] = (float)i * 0.5F - 1;
    for (size_t w = 0; w < 3; w++) {
        struct sample_params p = params();
        double sum = 0;

        p.top_k = way[w].k;
        p.top_p = way[w].top_p;
        p.temperature = 0.8F;
        for (int i = 0; i < 5; i++)
            sum += exp(x[100 + 31 * i] / 0.8);
        count(&p, x, N_DRAW, n);
        for (int i = 0; i < 5; i++) { /* five standard deviations */
            double q = exp(x[100 + 31 * i] / 0.8) / sum, got = n[100 + 31 * i];

            assert_true(fabs(got - q * N_DRAW) < 5 * sqrt(N_DRAW * q * (1 - q)));
        }
    }
}

/* Which of 100 tokens with probabilities falling by half are ever drawn. */
static int reach(const struct sample_params *p) {
    float x[N];
    int n[N], last = -1;

    flat(x, -INFINITY);
    for (int i = 0; i < 20; i++)
        x[20 + i] = -(float)i * (float)M_LN2;
    count(p, x, 5000, n);
    for (int i = 0; i < N; i++)
        last = n[i] ? i - 20 : last;

    return last + 1;
}

static void test_cuts(void **state) {
    struct sample_params p = params();

    (void)state;
    p.top_k = 3;
    assert_int_equal(reach(&p), 3);
    p.top_k = 1;
    assert_int_equal(reach(&p), 1);
    for (uint32_t k = 0; k <= 20; k += 20) { /* 1/2 + 1/4 + 1/8 < 0.9 <= 15/16 */
        p = params();
        p.top_k = k;
        p.top_p = 0.9F;
        assert_int_equal(reach(&p), 4);
        p.top_p = 0.5F;
        assert_int_equal(reach(&p), 1);
        p.top_p = 1;
        p.min_p = 0.1F; /* 1/8 of the largest, not 1/16 */
        assert_int_equal(reach(&p), 4);
        p.top_p = 0.76F; /* both: top-p leaves three */
        assert_int_equal(reach(&p), 3);
    }
    /* top-p counts within what top-k left: 1/2 of 3/4 is 0.67 */
    p = params();
    p.top_k = 2;
    p.top_p = 0.66F;
    assert_int_equal(reach(&p), 1);
}

/* A nucleus wider than what is sorted first: of equals, nine in ten, the lowest ids. */
static void test_wide_nucleus(void **state) {
    struct sample_params p = params();
    int n[N], n_drawn = 0, last = 0;
    float x[N];

    (void)state;
    flat(x, 0);
    p.top_p = 0.9F;
    count(&p, x, 3000, n);
    for (int i = 0; i < N; i++) {
        n_drawn += n[i] > 0;
        last = n[i] ? i : last;
    }
    assert_in_range(last, 1300, (N - 2) * 9 / 10 + 2); /* two below it are suppressed */
    assert_true(n_drawn > 1100);
    assert_int_equal(n[7] + n[300], 0);
}

static void test_bias(void **state) {
    struct sample_bias bias[] = { { 40, -INFINITY }, { 41, 5 }, { 100000, 3 } };
    struct sample_params p = params();
    float x[N];

    (void)state;
    p.temperature = 0;
    p.bias = bias;
    p.n_bias = 3;
    AUTO(sample_free) struct sampler *s = sampler(&p, 1);
    bias[1].bias = 0; /* it was copied */
    flat(x, 0);
    x[40] = 30;
    x[42] = 4;
    struct sample_result r;
    sample_next(s, x, &r);
    assert_int_equal(r.id, 41);
    assert_int_equal(r.top[0].id, 40); /* logprobs are of the raw row */
    assert_float_equal(r.top[0].logprob, 0, 1e-6);
    assert_float_equal(r.logprob, -30, 1e-4);
    x[42] = 5.5F;
    assert_int_equal(next(s, x), 42);
}

static void test_penalties(void **state) {
    float x[N];
    struct sample_params p = params();

    (void)state;
    flat(x, -10);
    x[30] = 4;
    x[31] = 3;
    x[32] = 1.5F;
    p.temperature = 0;
    p.last_n = 4;
    p.repeat = 2; /* positive logits are divided */
    AUTO(sample_free) struct sampler *a = sampler(&p, 0);
    sample_accept(a, 30);
    assert_int_equal(next(a, x), 31);
    sample_accept(a, 30); /* once, however often it came */
    assert_int_equal(next(a, x), 31);
    sample_accept(a, 31);
    assert_int_equal(next(a, x), 30); /* 2 1.5 1.5 */
    for (int i = 0; i < 4; i++)       /* out of sight */
        sample_accept(a, 99);
    assert_int_equal(next(a, x), 30);
    flat(x, -10);
    x[99] = -9; /* negative ones are multiplied: -18 */
    assert_int_equal(next(a, x), 0);

    p.repeat = 1;
    p.presence = 1.25F;
    AUTO(sample_free) struct sampler *b = sampler(&p, 0);
    flat(x, -10);
    x[30] = 4;
    x[31] = 3;
    sample_accept(b, 30);
    assert_int_equal(next(b, x), 31);
    sample_accept(b, 30);
    x[31] = 2.5F;
    assert_int_equal(next(b, x), 30);

    p.presence = 0;
    p.frequency = 0.75F;
    AUTO(sample_free) struct sampler *c = sampler(&p, 0);
    sample_accept(c, 30);
    assert_int_equal(next(c, x), 30); /* 3.25 against 2.5 */
    sample_accept(c, 30);
    sample_accept(c, 30); /* 1.75 */
    assert_int_equal(next(c, x), 31);
    for (int i = 0; i < 3; i++)
        sample_accept(c, 5);
    assert_int_equal(next(c, x), 30); /* one left: 3.25 */
}

static void test_logprobs(void **state) {
    struct sample_params p = params();
    struct sample_result r;
    float x[N];
    double sum = 0;

    (void)state;
    for (int i = 0; i < N; i++)
        x[i] = (float)((i * 37) % N) * 0.01F;
    for (int i = 0; i < N; i++)
        sum += exp((double)x[i]);
    p.top_k = 10;
    AUTO(sample_free) struct sampler *s = sampler(&p, SAMPLE_TOP_MAX);
    sample_next(s, x, &r);
    assert_int_equal(r.n_top, SAMPLE_TOP_MAX);
    for (uint32_t i = 0; i < r.n_top; i++) {
        assert_float_equal(r.top[i].logprob, x[r.top[i].id] - (float)log(sum), 1e-5);
        assert_true(i == 0 || r.top[i].logprob < r.top[i - 1].logprob);
    }
    assert_true(x[r.top[0].id] == (float)(N - 1) * 0.01F);
    assert_float_equal(r.logprob, x[r.id] - (float)log(sum), 1e-5);
}

/* The same seed gives the same answer; these are recorded, so another build's must be the same. */
static void test_seed(void **state) {
    static const tok_t want[] = { 1533, 1523, 1509, 1489, 1481, 1503, 1507, 1497 };
    struct sample_params p = params();
    float x[N];
    tok_t first[64];

    (void)state;
    for (int i = 0; i < N; i++)
        x[i] = (float)i * 0.03125F;
    p.top_k = 64;
    p.top_p = 0.95F;
    p.seed = 42;
    for (int round = 0; round < 2; round++) {
        AUTO(sample_free) struct sampler *s = sampler(&p, 0);

        assert_true(sample_seed(s) == 42);
        for (int i = 0; i < 64; i++) {
            tok_t id = next(s, x);

            if (round)
                assert_int_equal(id, first[i]);
            first[i] = id;
        }
    }
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        assert_int_equal(first[i], want[i]);

    p.has &= ~(unsigned)SAMPLE_SEED;
    AUTO(sample_free) struct sampler *a = sampler(&p, 0);
    AUTO(sample_free) struct sampler *b = sampler(&p, 0);
    assert_true(sample_seed(a) != sample_seed(b));
}

static void test_check(void **state) {
    const struct {
        struct sample_params p;
        const char *name;
    } bad[] = {
        { { .has = SAMPLE_TEMPERATURE, .temperature = -0.1F }, "temperature" },
        { { .has = SAMPLE_TEMPERATURE, .temperature = NAN }, "temperature" },
        { { .has = SAMPLE_TOP_P, .top_p = 0 }, "top_p" },
        { { .has = SAMPLE_TOP_P, .top_p = 1.01F }, "top_p" },
        { { .has = SAMPLE_MIN_P, .min_p = 1 }, "min_p" },
        { { .has = SAMPLE_REPEAT, .repeat = 0 }, "repeat" },
        { { .has = SAMPLE_REPEAT, .repeat = INFINITY }, "repeat" },
        { { .has = SAMPLE_FREQUENCY, .frequency = NAN }, "frequency" },
        { { .has = SAMPLE_PRESENCE, .presence = -INFINITY }, "presence" },
        { { .has = SAMPLE_LAST_N, .last_n = SAMPLE_LAST_N_MAX + 1 }, "last_n" },
        { { .bias = &(struct sample_bias){ 1, NAN }, .n_bias = 1 }, "bias" },
        { { .bias = &(struct sample_bias){ 1, INFINITY }, .n_bias = 1 }, "bias" },
        { { .bias = &(struct sample_bias){ -1, 0 }, .n_bias = 1 }, "bias" },
        { { .n_bias = SAMPLE_BIAS_MAX + 1 }, "bias" },
    };
    struct sample_params p = { 0 };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct why why = { "" };

        p = bad[i].p;
        assert_int_equal(sample_check(&p, &why), SAMPLE_BAD);
        assert_non_null(strstr(why.text, bad[i].name));
        p.has = 0;
        if (!p.n_bias) /* what is not set is not looked at */
            assert_int_equal(sample_check(&p, &why), 0);
    }
}

static void test_defaults_and_merge(void **state) {
    AUTO(free) struct making *m = calloc(1, sizeof *m);
    struct sample_params def, p;
    struct why why = { "" };
    struct gguf *g;

    (void)state;
    making_text(m, "general.architecture", "gemma4");
    g = making_open(m);
    assert_int_equal(sample_defaults(g, &def, &why), 0);
    gguf_free(g);
    assert_true(def.temperature == 1 && def.top_k == 64 && def.top_p == 0.95F && def.min_p == 0);
    assert_true(def.repeat == 1 && def.frequency == 0 && def.presence == 0 && def.last_n == 64);
    assert_int_equal(def.has, SAMPLE_SEED - 1);

    making_f32(m, "general.sampling.temp", 0.5F);
    making_u32(m, "general.sampling.top_k", 7);
    g = making_open(m);
    assert_int_equal(sample_defaults(g, &def, &why), 0);
    gguf_free(g);
    assert_true(def.temperature == 0.5F && def.top_k == 7 && def.top_p == 0.95F);

    p = (struct sample_params){ .has = SAMPLE_TOP_P | SAMPLE_SEED, .top_p = 0.3F, .seed = 9 };
    sample_merge(&p, &def);
    assert_true(p.has == ~0U >> 23 && p.top_p == 0.3F && p.temperature == 0.5F && p.top_k == 7);
    assert_true(p.seed == 9 && p.last_n == 64 && p.repeat == 1);

    making_f32(m, "general.sampling.top_p", 2);
    g = making_open(m);
    assert_int_equal(sample_defaults(g, &def, &why), GGUF_BAD);
    assert_non_null(strstr(why.text, "top_p"));
    gguf_free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generator), cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_odd_rows),  cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_cuts),      cmocka_unit_test(test_wide_nucleus),
        cmocka_unit_test(test_bias),      cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_logprobs),  cmocka_unit_test(test_seed),
        cmocka_unit_test(test_check),     cmocka_unit_test(test_defaults_and_merge),
    };

    return cmocka_run_group_tests_name("sample", tests, setup, teardown);
}
