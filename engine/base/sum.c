/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/base/sum.h"

#include <endian.h>
#include <string.h>

#define P1 0x9E3779B185EBCA87u
#define P2 0xC2B2AE3D27D4EB4Fu
#define P3 0x165667B19E3779F9u
#define P4 0x85EBCA77C2B2AE63u
#define P5 0x27D4EB2F165667C5u

enum { STRIPE = 32 /* bytes: a word of each of four lanes */ };

static inline uint64_t rotate(uint64_t x, unsigned n) {
    return x << n | x >> (64 - n);
}

static inline uint64_t word64(const uint8_t *p) {
    uint64_t x;

    memcpy(&x, p, sizeof x);
    return le64toh(x);
}

static inline uint64_t word32(const uint8_t *p) {
    uint32_t x;

    memcpy(&x, p, sizeof x);
    return le32toh(x);
}

static inline uint64_t add_word(uint64_t lane, uint64_t word) {
    return rotate(lane + word * P2, 31) * P1;
}

static uint64_t join(uint64_t h, uint64_t lane) {
    return (h ^ add_word(0, lane)) * P1 + P4;
}

static uint64_t add_tail(uint64_t h, const uint8_t *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8)
        h = rotate(h ^ add_word(0, word64(p)), 27) * P1 + P4;
    if (n >= 4) {
        h = rotate(h ^ word32(p) * P1, 23) * P2 + P3;
        p += 4;
        n -= 4;
    }
    for (; n > 0; p++, n--)
        h = rotate(h ^ *p * P5, 11) * P1;
    return h;
}

uint64_t sum_bytes(uint64_t seed, const void *data, size_t n) {
    uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1, h = seed + P5;
    const uint8_t *p = data, *end = p + n / STRIPE * STRIPE;

    for (; p < end; p += STRIPE) {
        a = add_word(a, word64(p));
        b = add_word(b, word64(p + 8));
        c = add_word(c, word64(p + 16));
        d = add_word(d, word64(p + 24));
    }
    if (n >= STRIPE) {
        h = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
        h = join(join(join(join(h, a), b), c), d);
    }
    h = add_tail(h + n, p, n % STRIPE);

    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    return h ^ h >> 32;
}
