/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * arg - values of command-line options; what is wrong ends the program with exit code 2 and a
 * sentence on stderr that begins with the program's name
 */

#include <stdint.h>

#include "engine/fmt/quant.h"

void __attribute__((noreturn, format(printf, 1, 2))) arg_error(const char *fmt, ...);

/* The number in [@min, @max] that @s begins with; *ret_end is behind it. @name: the option's. */
uint32_t arg_number_at(const char *name, const char *s, uint32_t min, uint32_t max,
                       const char **ret_end);
/* The number that @s is. */
uint32_t arg_number(const char *name, const char *s, uint32_t min, uint32_t max);
/* "f16" or "f32": the format of a key/value cache. */
enum quant_fmt arg_kv(const char *s);
