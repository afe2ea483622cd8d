/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * clock - microseconds that never jump
 */

#include <stdint.h>
#include <sys/time.h>
#include <time.h>

typedef uint64_t usec_t;

enum { CLOCK_SECOND = 1000000 }; /* usec */

static inline usec_t clock_usec(void) {
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (usec_t)ts.tv_sec * CLOCK_SECOND + (usec_t)ts.tv_nsec / 1000;
}

static inline struct timeval clock_timeval(usec_t usec) {
    return (struct timeval){ .tv_sec = (time_t)(usec / CLOCK_SECOND),
                             .tv_usec = (suseconds_t)(usec % CLOCK_SECOND) };
}
