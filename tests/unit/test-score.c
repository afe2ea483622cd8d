/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/sched/score.h"
#include "tests/unit/tiny-vocab.h"

enum { N_VOCAB = 1024, N_STEP_MAX = 64 };

/* Logits that depend on the tokens so far, as a model's would. */
static void fake_logits(const tok_t *path, uint32_t n, float *logits) {
    uint32_t h = 2166136261u;

    for (uint32_t i = 0; i < n; i++)
        h = (h ^ (uint32_t)path[i]) * 16777619u;
    for (uint32_t i = 0; i < N_VOCAB; i++) {
        h = h * 1664525u + 1013904223u;
        logits[i] = (float)(h >> 16) / 6553.6f - 5;
    }
}

/* The definition: each label by itself, token by token. */
static double define(const struct vocab *v, const char *label) {
    struct tok_list tok = { 0 };
    float logits[N_VOCAB];
    double logprob = 0;

    assert_int_equal(tok_encode(v, label, strlen(label), 0, &tok), 0);
    for (uint32_t d = 0; d < tok.n; d++) {
        double sum = 0;

        fake_logits(tok.id, d, logits);
        for (uint32_t i = 0; i < N_VOCAB; i++)
            sum += exp((double)logits[i]);
        logprob += (double)logits[tok.id[d]] - log(sum);
    }
    tok_list_deinit(&tok);
    return logprob;
}

/* Return: steps it took. */
static uint32_t walk(struct score *s) {
    tok_t path[SCORE_TOKEN_MAX], next;
    uint32_t n = 0, keep, n_step = 1;
    float logits[N_VOCAB];

    fake_logits(path, 0, logits);
    while (score_step(s, logits, N_VOCAB, &keep, &next)) {
        assert_true(keep <= n && keep < score_depth(s));
        path[keep] = next;
        n = keep + 1;
        fake_logits(path, n, logits);
        assert_true(++n_step <= N_STEP_MAX);
    }
    return n_step;
}

static struct vocab *make_vocab(void) {
    static struct tiny t;
    struct vocab *v = NULL;
    struct why why = { 0 };

    tiny_all(&t);
    assert_int_equal(tiny_new(&t, &v, &why), 0);
    return v;
}

static void test_every_label_as_by_itself(void **state) {
    static const struct {
        const char *label[8];
        size_t n;
        uint32_t n_step; /* 0: not looked at */
    } row[] = {
        { { "a", "b", "c" }, 3, 1 }, /* one token each: the prompt is enough */
        { { "a" }, 1, 1 },
        { { "a", "a" }, 2, 1 },
        { { "zq", "zqzq", "z", "zqzx", "zx", "zqzq" }, 6, 0 },
        { { "zqzqzqzq", "zqzqzqzx", "zqzqzx", "x" }, 4, 0 },
        { { "\xc3\xa4\xc3\xb6", "\xc3\xa4", "\xc3\xbc" }, 3, 0 },
    };
    AUTO(vocab_free) struct vocab *v = make_vocab();

    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        AUTO(score_free) struct score *s = NULL;
        const double *got;
        uint32_t n_step;
        size_t n;

        assert_int_equal(score_new(&s, row[i].label, row[i].n), 0);
        assert_int_equal(score_prepare(s, v, NULL), 0);
        n_step = walk(s);
        got = score_result(s, &n);
        assert_int_equal(n, row[i].n);
        if (row[i].n_step)
            assert_int_equal(n_step, row[i].n_step);
        for (size_t k = 0; k < n; k++)
            if (fabs(got[k] - define(v, row[i].label[k])) > 1e-9)
                fail_msg("row %zu, label %zu: %g, not %g", i, k, got[k],
                         define(v, row[i].label[k]));
    }
}

static void test_a_label_that_is_too_long(void **state) {
    AUTO(vocab_free) struct vocab *v = make_vocab();
    AUTO(score_free) struct score *s = NULL;
    char text[SCORE_TOKEN_MAX * 2 + 1] = "";
    const char *label[] = { "a", text };
    struct why why = { 0 };

    for (size_t i = 0; i < SCORE_TOKEN_MAX; i++)
        (void)memcpy(text + 2 * i, "\xc2\x80", 2); /* two byte tokens each */
    text[SCORE_TOKEN_MAX * 2] = '\0';
    assert_int_equal(score_new(&s, label, 2), 0);
    assert_int_equal(score_prepare(s, v, &why), SCORE_BAD);
    assert_non_null(strstr(why.text, "choice 1"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_label_as_by_itself),
        cmocka_unit_test(test_a_label_that_is_too_long),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
