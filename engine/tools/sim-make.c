/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/auto.h"
#include "engine/tools/sim.h"

/*
 * A made-up router. Each layer has a popularity of its own; a token's experts are drawn by it, or
 * repeat the token before.
 */

struct maker {
    const struct sim_router *m;
    uint64_t random;
    double *below;  /* [n_expert] share of draws that go to ranks up to this one */
    uint16_t *rank; /* [n_layer][n_expert] the i-th most popular */
};

/* Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014) */
static uint64_t draw(struct maker *k) {
    uint64_t x = k->random += 0x9e3779b97f4a7c15;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static double draw_share(struct maker *k) {
    return (double)(draw(k) >> 11) * 0x1p-53;
}

/* @n of the ranks of a layer, drawn at random, trade with any. */
static void trade(struct maker *k, uint16_t *rank, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        uint32_t a = (uint32_t)(draw(k) % k->m->n_expert), b = (uint32_t)(draw(k) % k->m->n_expert);
        uint16_t x = rank[a];

        rank[a] = rank[b];
        rank[b] = x;
    }
}

static uint16_t draw_expert(struct maker *k, const uint16_t *rank) {
    double x = draw_share(k);
    uint32_t low = 0, high = k->m->n_expert - 1;

    while (low < high) { /* the first rank whose share reaches x */
        uint32_t mid = (low + high) / 2;

        if (k->below[mid] < x)
            low = mid + 1;
        else
            high = mid;
    }
    return rank[low];
}

/* @before: the last token's, NULL: there is none */
static void draw_row(struct maker *k, const uint16_t *rank, const uint16_t *before, uint16_t *id) {
    for (uint32_t n = 0; n < k->m->k;) {
        bool again = before && draw_share(k) < k->m->locality, seen = false;
        uint16_t e = again ? before[draw(k) % k->m->k] : draw_expert(k, rank);

        for (uint32_t i = 0; i < n; i++)
            seen = seen || id[i] == e;
        if (!seen)
            id[n++] = e;
    }
}

static void make(struct maker *k, uint8_t *to) {
    const struct sim_router *m = k->m;
    size_t row = (size_t)m->n_layer * m->k;
    uint16_t *before = NULL;
    uint32_t one = 1;

    for (uint32_t t = 0; t < m->n_token; t++) {
        uint16_t *id = (uint16_t *)(void *)(to + sizeof one);

        memcpy(to, &one, sizeof one);
        for (uint32_t i = 0; i < m->n_layer; i++) {
            uint16_t *rank = k->rank + (size_t)i * m->n_expert;

            if (m->topic > 0 && t > 0 && t % m->topic == 0)
                trade(k, rank, m->n_expert / 8); /* two a trade */
            draw_row(k, rank, before ? before + i * m->k : NULL, id + i * m->k);
        }
        before = id;
        to += sizeof one + row * sizeof *id;
    }
}

int sim_make(const struct sim_router *m, void **ret_buf, size_t *ret_size) {
    size_t size = sizeof(struct routes_head) +
                  m->n_token * (sizeof(uint32_t) + (size_t)m->n_layer * m->k * sizeof(uint16_t));
    AUTO(free) uint8_t *buf = malloc(size);
    AUTO(free) double *below = calloc(m->n_expert, sizeof *below);
    AUTO(free) uint16_t *rank = calloc((size_t)m->n_layer * m->n_expert, sizeof *rank);
    struct routes_head head = routes_begin(m->n_layer, m->n_expert, m->k);
    struct maker k = { .m = m, .random = m->seed, .below = below, .rank = rank };
    double sum = 0;

    if (!buf || !below || !rank)
        return err_new(-ENOMEM);
    for (uint32_t e = 0; e < m->n_expert; e++)
        below[e] = sum += pow(e + 1, -m->skew);
    for (uint32_t e = 0; e < m->n_expert; e++)
        below[e] /= sum;
    for (size_t i = 0; i < (size_t)m->n_layer * m->n_expert; i++)
        rank[i] = (uint16_t)(i % m->n_expert);
    for (uint32_t i = 0; i < m->n_layer; i++)
        trade(&k, rank + (size_t)i * m->n_expert, 4 * m->n_expert);
    memcpy(buf, &head, sizeof head);
    make(&k, buf + sizeof head);
    *ret_buf = take(buf);
    *ret_size = size;
    return 0;
}
