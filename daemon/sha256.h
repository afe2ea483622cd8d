/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * sha256 - the digest that says which file a model is
 *
 * Source: FIPS 180-4, sections 4.1.2, 4.2.2, 5.3.3 and 6.2.
 */

#include <stddef.h>
#include <stdint.h>

enum { SHA256_SIZE = 32, SHA256_TEXT = 2 * SHA256_SIZE + 1 };

struct sha256 {
    uint32_t h[8];
    uint64_t n;       /* bytes so far */
    uint8_t rest[64]; /* [n % 64] */
};

void sha256_init(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *p, size_t n);
/* The digest in hexadecimal, lower case, with a NUL; @s is used up. */
void sha256_text(struct sha256 *s, char ret_text[SHA256_TEXT]);
