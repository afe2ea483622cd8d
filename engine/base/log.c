/* SPDX-License-Identifier: Apache-2.0 */

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/log.h"

enum { LOG_TOPIC_MAX = 16, LOG_LINE_MAX = 2048 };

static pthread_once_t log_once = PTHREAD_ONCE_INIT;
static int log_default = LOG_LEVEL_INFO;
static bool log_prefix;
static struct {
    char name[16];
    int level;
} log_topic[LOG_TOPIC_MAX];
static size_t n_log_topic;

/* $MOE_LOG: "7", "session:7", "5,rpc:7"; what does not parse is passed over. */
static void log_init(void) {
    const char *env = getenv("MOE_LOG");

    log_prefix = !isatty(STDERR_FILENO);
    for (const char *p = env; p && *p; p += strspn(p, ",")) {
        size_t n = strcspn(p, ",");
        const char *colon = memchr(p, ':', n);
        size_t n_name = colon ? (size_t)(colon - p) : 0;
        int level = atoi(colon ? colon + 1 : p);

        if (!colon) {
            log_default = level;
        } else if (n_log_topic < LOG_TOPIC_MAX && n_name < sizeof log_topic[0].name) {
            memcpy(log_topic[n_log_topic].name, p, n_name);
            log_topic[n_log_topic++].level = level;
        }
        p += n;
    }
}

bool log_shows(enum log_level level, const char *topic) {
    (void)pthread_once(&log_once, log_init);
    for (size_t i = 0; i < n_log_topic; i++)
        if (strcmp(topic, log_topic[i].name) == 0)
            return (int)level <= log_topic[i].level;

    return (int)level <= log_default;
}

void log_line(enum log_level level, const char *topic, const char *fmt, ...) {
    char line[LOG_LINE_MAX];
    size_t n, room = sizeof line - 1; /* one byte stays for the newline */
    va_list ap;
    int k;

    k = log_prefix ? snprintf(line, room, "<%d>%s: ", (int)level, topic)
                   : snprintf(line, room, "%s: ", topic);
    n = (size_t)k;
    va_start(ap, fmt);
    k = vsnprintf(line + n, room - n, fmt, ap);
    va_end(ap);
    n = k < 0 ? n : n + (size_t)k >= room ? room - 1 : n + (size_t)k;
    for (size_t i = 0; i < n; i++)
        if (line[i] == '\n')
            line[i] = ' ';
    line[n++] = '\n';
    (void)!write(STDERR_FILENO, line, n);
}
