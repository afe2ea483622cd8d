/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/sched/pace.h"

void pace_init(struct pace *p, uint64_t bound) {
    *p = (struct pace){ .bound = bound };
}

static uint32_t pace_slot(uint32_t n) {
    uint32_t i = 31 - (uint32_t)__builtin_clz(n);

    return i < PACE_N ? i : PACE_N - 1;
}

static void pace_mean(double *mean, double x) {
    *mean = *mean == 0 || x > *mean ? x : *mean + (x - *mean) / 4;
}

double pace_single(const struct pace *p, uint32_t n) {
    uint32_t i = n > 0 ? pace_slot(n) : 0;

    if (n == 0)
        return 0;
    for (uint32_t k = i + 1; k-- > 0;) /* fewer rows: as if each cost the same */
        if (p->single[k] > 0)
            return p->single[k] * (double)(1u << (i - k));
    for (uint32_t k = i + 1; k < PACE_N; k++) /* more rows: at most that */
        if (p->single[k] > 0)
            return p->single[k];
    return 0;
}

void pace_note(struct pace *p, uint32_t n_single, uint32_t n_prompt, uint64_t usec) {
    double t = usec > 0 ? (double)usec : 0.5, single;

    if (n_prompt == 0) {
        pace_mean(&p->single[pace_slot(n_single)], t);
        return;
    }

    single = pace_single(p, n_single);
    if (n_single > 0 && single > t) /* it cannot be more than the whole */
        p->single[pace_slot(n_single)] = single = t;
    if (single > t / 2)
        single = t / 2;
    pace_mean(&p->prompt, (t - single) / n_prompt);
}

double pace_single_cost(const struct pace *p, uint32_t n) {
    double t = pace_single(p, n);

    return t > 0 ? t / n : pace_prompt_cost(p);
}

double pace_prompt_cost(const struct pace *p) {
    return p->prompt > 0 ? p->prompt : 1;
}

uint32_t pace_room(const struct pace *p, uint32_t n_single) {
    double left = (double)p->bound * PACE_PERCENT / 100 - pace_single(p, n_single), n;

    if (p->prompt == 0)
        return PACE_FIRST;
    n = left / p->prompt;
    return n < PACE_MIN ? PACE_MIN : n > UINT16_MAX ? UINT16_MAX : (uint32_t)n;
}
