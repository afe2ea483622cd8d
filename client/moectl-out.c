/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "client/moectl.h"

enum {
    BAR = 24,              /* columns of a bar */
    WIDE = 64,             /* columns that make room for it */
    SETTLED_USEC = 500000, /* until a rate means something */
};

static uint64_t now_usec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* "  1.2 GiB/s, 3 s left", or "" while it is too early to say. */
static void say_rate(const struct ctl *c, enum ctl_unit unit, uint64_t done, uint64_t total,
                     char *ret, size_t size) {
    uint64_t took = now_usec() - c->progress.began;
    double rate = took ? (double)(done - c->progress.from) / (double)took : 0; /* a microsecond */
    char speed[64] = "";

    *ret = 0;
    if (took < SETTLED_USEC || rate <= 0)
        return;
    if (unit == CTL_BYTES)
        (void)snprintf(speed, sizeof speed, "%s/s, ", ctl_bytes((uint64_t)(1e6 * rate)));
    else if (unit == CTL_TOKENS)
        (void)snprintf(speed, sizeof speed, "%.0f tokens/s, ", 1e6 * rate);
    (void)snprintf(ret, size, "  %s%s left", speed,
                   ctl_span((uint64_t)((double)(total - done) / rate) + 500000));
}

void ctl_progress(struct ctl *c, const char *stage, enum ctl_unit unit, uint64_t done,
                  uint64_t total) {
    int percent, full;
    struct winsize w;
    char rate[128];

    if (c->quiet || !c->err_tty)
        return;
    done = done < total ? done : total;
    percent = total ? (int)(100.0 * (double)done / (double)total) : 0;
    full = total ? (int)(BAR * (double)done / (double)total) : 0;
    if (!c->progress.shown || strcmp(c->progress.stage, stage) || done < c->progress.from) {
        (void)snprintf(c->progress.stage, sizeof c->progress.stage, "%s", stage);
        c->progress.began = now_usec();
        c->progress.from = done;
    }
    c->progress.shown = true;
    say_rate(c, unit, done, total, rate, sizeof rate);
    (void)fprintf(stderr, "\r%s %3d %%", stage, percent);
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) < 0 || !w.ws_col || w.ws_col >= WIDE)
        (void)fprintf(stderr, " [%.*s%*s]%s", full, "########################", BAR - full, "",
                      rate);
    (void)fputs("\033[K", stderr);
    (void)fflush(stderr);
}

void ctl_progress_clear(struct ctl *c) {
    if (!c->progress.shown)
        return;
    (void)fputs("\r\033[K", stderr);
    (void)fflush(stderr);
    c->progress.shown = false;
}

/* Bytes at @s of a control character that a terminal would obey: C0 but tab and newline, delete,
 * and C1 in UTF-8. */
static size_t control_len(const unsigned char *s, size_t n) {
    if ((s[0] < 0x20 && s[0] != '\n' && s[0] != '\t') || s[0] == 0x7f)
        return 1;

    return n > 1 && s[0] == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0 ? 2 : 0;
}

void ctl_put(FILE *file, bool tty, const char *s, size_t n) {
    size_t from = 0;

    for (size_t i = 0; i < n && tty;) {
        size_t len = control_len((const unsigned char *)s + i, n - i);

        if (!len) {
            i++;
            continue;
        }
        (void)fwrite(s + from, 1, i - from, file);
        (void)fputs("\xef\xbf\xbd", file); /* U+FFFD */
        i += len;
        from = i;
    }
    (void)fwrite(s + from, 1, n - from, file);
}

void ctl_puts(const struct ctl *c, const char *s) {
    ctl_put(stdout, c->out_tty, s, strlen(s));
}

const char *ctl_str(const struct moe_value *v, const char *key) {
    const char *s = moe_str(moe_get(v, key));

    return s ? s : "";
}

uint64_t ctl_uint(const struct moe_value *v, const char *key) {
    return moe_uint(moe_get(v, key));
}

static json_object *to_json_map(const struct moe_value *v) {
    json_object *o = json_object_new_object();

    for (size_t i = 0; i < moe_size(v); i++) {
        const struct moe_value *key = moe_key_at(v, i);
        char number[32];

        (void)snprintf(number, sizeof number, "%jd", (intmax_t)moe_int(key));
        (void)json_object_object_add(o, moe_str(key) ? moe_str(key) : number,
                                     ctl_to_json(moe_at(v, i)));
    }

    return o;
}

static json_object *to_json_list(const struct moe_value *v) {
    const unsigned char *bytes = moe_bin(v);
    json_object *o = json_object_new_array();

    for (size_t i = 0; i < moe_size(v); i++)
        (void)json_object_array_add(o, bytes ? json_object_new_int(bytes[i])
                                             : ctl_to_json(moe_at(v, i)));

    return o;
}

json_object *ctl_to_json(const struct moe_value *v) {
    switch (moe_type(v)) {
    case MOE_BOOL:
        return json_object_new_boolean(moe_bool(v));
    case MOE_INT:
        return moe_int(v) < 0 ? json_object_new_int64(moe_int(v))
                              : json_object_new_uint64(moe_uint(v));
    case MOE_FLOAT:
        return isfinite(moe_float(v)) ? json_object_new_double(moe_float(v)) : NULL;
    case MOE_STR:
        return json_object_new_string_len(moe_str(v), (int)moe_size(v));
    case MOE_BIN:
    case MOE_ARRAY:
        return to_json_list(v);
    case MOE_MAP:
        return to_json_map(v);
    default:
        return NULL;
    }
}

void ctl_put_object(const struct ctl *c, json_object *o) {
    int flags = JSON_C_TO_STRING_NOSLASHESCAPE |
                (c->json == JSON_PRETTY ? JSON_C_TO_STRING_PRETTY : JSON_C_TO_STRING_PLAIN);

    (void)printf("%s\n", json_object_to_json_string_ext(o, flags));
    json_object_put(o);
}

void ctl_put_json(const struct ctl *c, const struct moe_value *v) {
    ctl_put_object(c, ctl_to_json(v));
}

static char *scratch(void) {
    static char buf[2][48];
    static int i;

    return buf[i ^= 1];
}

const char *ctl_bytes(uint64_t n) {
    static const char *const units[] = { "KiB", "MiB", "GiB", "TiB" };
    double v = (double)n;
    char *buf = scratch();
    size_t i = 0;

    if (n < 1024) {
        (void)snprintf(buf, sizeof(char[48]), "%d bytes", (int)n);
        return buf;
    }
    for (v /= 1024; v >= 1024 && i < 3; i++)
        v /= 1024;
    (void)snprintf(buf, sizeof(char[48]), "%.1f %s", v, units[i]);
    return buf;
}

const char *ctl_span(uint64_t usec) {
    uint64_t s = usec / 1000000;
    char *buf = scratch();

    if (s < 60)
        (void)snprintf(buf, sizeof(char[48]), "%d s", (int)s);
    else if (s < 3600)
        (void)snprintf(buf, sizeof(char[48]), "%d min %d s", (int)(s / 60), (int)(s % 60));
    else if (s < 86400)
        (void)snprintf(buf, sizeof(char[48]), "%d h %d min", (int)(s / 3600), (int)(s % 3600 / 60));
    else
        (void)snprintf(buf, sizeof(char[48]), "%ju d %d h", (uintmax_t)(s / 86400),
                       (int)(s % 86400 / 3600));

    return buf;
}

int ctl_flush(void) {
    static int failed;

    if (!failed && (ferror(stdout) || fflush(stdout)))
        failed = errno ? errno : EIO;

    return failed;
}
