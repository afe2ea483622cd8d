/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * log - leveled lines on stderr, one topic each
 *
 *   <6>session 3: job 7: refused, 4 jobs is the quota
 *
 * The "<n>" prefix is for journald and is left out on a terminal. What is shown: levels up to
 * LOG_LEVEL_INFO, or what $MOE_LOG asks for, as "level" or "topic:level,topic:level" (0 to 7).
 * The engine itself logs nothing above debug: it returns.
 *
 * Owner: any thread; one write(2) a line.
 */

#include <stdbool.h>

enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_NOTICE = 5,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7,
};

bool log_shows(enum log_level level, const char *topic);
void log_line(enum log_level level, const char *topic, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_at(level_, topic_, ...)                                                                \
    do {                                                                                           \
        if (log_shows((level_), (topic_)))                                                         \
            log_line((level_), (topic_), __VA_ARGS__);                                             \
    } while (0)

#define log_error(topic_, ...)   log_at(LOG_LEVEL_ERROR, topic_, __VA_ARGS__)
#define log_warning(topic_, ...) log_at(LOG_LEVEL_WARNING, topic_, __VA_ARGS__)
#define log_notice(topic_, ...)  log_at(LOG_LEVEL_NOTICE, topic_, __VA_ARGS__)
#define log_info(topic_, ...)    log_at(LOG_LEVEL_INFO, topic_, __VA_ARGS__)
#define log_debug(topic_, ...)   log_at(LOG_LEVEL_DEBUG, topic_, __VA_ARGS__)
