/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tools/arg.h"

void arg_error(const char *fmt, ...) {
    va_list ap;

    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "; see %s --help\n", program_invocation_short_name);
    exit(2);
}

uint32_t arg_number_at(const char *name, const char *s, uint32_t min, uint32_t max,
                       const char **ret_end) {
    char *end;
    unsigned long v = strtoul(s, &end, 10);

    if (*s < '0' || *s > '9' || v < min || v > max)
        arg_error("--%s takes a number from %u to %u, not \"%s\"", name, min, max, s);
    *ret_end = end;

    return (uint32_t)v;
}

uint32_t arg_number(const char *name, const char *s, uint32_t min, uint32_t max) {
    const char *end;
    uint32_t v = arg_number_at(name, s, min, max, &end);

    if (*end)
        arg_error("--%s takes a number from %u to %u, not \"%s\"", name, min, max, s);

    return v;
}

enum quant_fmt arg_kv(const char *s) {
    if (strcmp(s, "f32") == 0)
        return QUANT_F32;
    if (strcmp(s, "q8_0") == 0)
        return QUANT_Q8_0;
    if (strcmp(s, "f16") != 0)
        arg_error("--kv takes f16, f32 or q8_0, not \"%s\"", s);
    return QUANT_F16;
}
