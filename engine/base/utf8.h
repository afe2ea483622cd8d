/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * utf8 - where characters begin and end
 *
 * Source: RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the well-formed character at @s, 1 to 4; 0 when the @n bytes there do not begin with
 * one. */
size_t utf8_len(const char *s, size_t n);

/* Are all @n bytes well-formed UTF-8? */
bool utf8_valid(const char *s, size_t n);

/* Bytes at the end of @s (0 to 3) that begin a character which more bytes could complete. */
size_t utf8_partial(const char *s, size_t n);
