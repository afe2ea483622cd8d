/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/moe/routes.h"

#include <string.h>

_Static_assert(sizeof(struct routes_head) == 24, "the head has no gaps");

struct routes_head routes_begin(uint32_t n_layer, uint32_t n_expert, uint32_t k) {
    struct routes_head h = {
        .version = ROUTES_VERSION, .n_layer = n_layer, .n_expert = n_expert, .k = k
    };

    memcpy(h.magic, ROUTES_MAGIC, sizeof h.magic);
    return h;
}

bool routes_next(const struct routes *r, size_t *at, struct routes_step *ret) {
    if (*at == r->size)
        return false;
    memcpy(&ret->n_row, r->step + *at, sizeof ret->n_row);
    ret->id = (const uint16_t *)(const void *)(r->step + *at + sizeof ret->n_row);
    *at += sizeof ret->n_row + (size_t)r->n_layer * ret->n_row * r->k * sizeof *ret->id;
    return true;
}

/* @id: [n] rows of k */
static bool rows_good(const struct routes *r, const uint16_t *id, size_t n) {
    for (size_t i = 0; i < n; i++, id += r->k)
        for (uint32_t j = 0; j < r->k; j++) {
            if (id[j] >= r->n_expert)
                return false;
            for (uint32_t other = 0; other < j; other++)
                if (id[other] == id[j])
                    return false;
        }

    return true;
}

static int check_steps(struct routes *r, struct why *why) {
    size_t row_size = (size_t)r->n_layer * r->k * sizeof(uint16_t), at = 0;
    struct routes_step step;

    for (; at < r->size; r->n_step++, r->n_row += step.n_row) {
        size_t left = r->size - at;

        if (left < sizeof step.n_row)
            return why_set(why, ROUTES_BAD, "step %ju is cut short", (uintmax_t)r->n_step);
        memcpy(&step.n_row, r->step + at, sizeof step.n_row);
        if (step.n_row == 0 || step.n_row > ROUTES_ROW_MAX)
            return why_set(why, ROUTES_BAD, "step %ju has %u rows", (uintmax_t)r->n_step,
                           step.n_row);
        if (left - sizeof step.n_row < step.n_row * row_size)
            return why_set(why, ROUTES_BAD, "step %ju is cut short", (uintmax_t)r->n_step);
        (void)routes_next(r, &at, &step);
        if (!rows_good(r, step.id, (size_t)r->n_layer * step.n_row))
            return why_set(why, ROUTES_BAD, "step %ju: a row has an expert twice, or one past %u",
                           (uintmax_t)r->n_step, r->n_expert - 1);
    }

    return 0;
}

int routes_open(struct routes *ret, const void *buf, size_t size, struct why *why) {
    struct routes_head h;

    if (size < sizeof h)
        return why_set(why, ROUTES_BAD, "%zu bytes are no recording of routes", size);
    memcpy(&h, buf, sizeof h);
    if (memcmp(h.magic, ROUTES_MAGIC, sizeof h.magic) != 0 || h.version != ROUTES_VERSION)
        return why_set(why, ROUTES_BAD, "no recording of routes, or of another version");
    if (h.n_layer == 0 || h.n_layer > ROUTES_LAYER_MAX || h.n_expert == 0 ||
        h.n_expert > ROUTES_EXPERT_MAX || h.k == 0 || h.k > h.n_expert)
        return why_set(why, ROUTES_BAD, "%u of %u experts in %u layers can not be", h.k, h.n_expert,
                       h.n_layer);

    struct routes r = { .n_layer = h.n_layer,
                        .n_expert = h.n_expert,
                        .k = h.k,
                        .step = (const uint8_t *)buf + sizeof h,
                        .size = size - sizeof h };
    int res = check_steps(&r, why);

    if (res == 0)
        *ret = r;
    return res;
}
