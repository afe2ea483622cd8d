/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "engine/tools/bench.h"

const char *bench_kind_name(enum bench_kind kind) {
    return kind == BENCH_PREFILL ? "prefill" : "decode";
}

static bool has(const struct bench_list *l, uint32_t x) {
    for (uint32_t i = 0; i < l->n; i++)
        if (l->at[i] == x)
            return true;
    return false;
}

/* Return: false when @line asks for what memory was not made for. */
static bool parse(const struct bench_args *a, const char *line, struct bench_measure *ret) {
    char kind[16];

    *ret = (struct bench_measure){ 0 };
    if (sscanf(line, "%15s %u %u %u %u", kind, &ret->n, &ret->n_seq, &ret->depth, &ret->threads) !=
        5)
        return false;
    ret->kind = strcmp(kind, "prefill") == 0 ? BENCH_PREFILL : BENCH_DECODE;
    if (strcmp(kind, bench_kind_name(ret->kind)) != 0 || ret->n == 0 || ret->threads == 0)
        return false;
    if (ret->n > (a->prompt > a->gen ? a->prompt : a->gen) || !has(&a->depth, ret->depth))
        return false;
    return ret->threads <= a->threads.at[a->threads.n - 1] &&
           (ret->kind == BENCH_PREFILL ? ret->n_seq == 1 : has(&a->batch, ret->n_seq));
}

int bench_answer(struct bench_own *o, const struct bench_args *a, struct why *why) {
    char line[128];
    int r = bench_own_load(o, a->cache_dir, NULL, why);

    r = r ? r : bench_own_warm(o, why);
    while (r == 0 && fgets(line, sizeof line, stdin)) {
        struct bench_measure m;
        struct bench_sample s;

        if (!parse(a, line, &m)) {
            puts("null");
        } else {
            r = bench_own_sample(o, &m, &s, why);
            if (r == 0)
                printf("{\"rate\": %.9g, \"cpu_rate\": %.9g}\n", s.rate, s.cpu_rate);
        }
        (void)fflush(stdout);
    }
    return r;
}
