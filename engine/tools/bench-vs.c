/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "engine/tools/bench.h"

/*
 * A command is asked by one line on its standard input and answers with one line on its standard
 * output: a number, null, or an object. It may stay for the next line, so that its model is loaded
 * once, or end; then it is started again for the next. The same is in its environment, for commands
 * that do not read. moe-bench(1) says how.
 */

enum { LINE_MAX_SIZE = 64 << 10, END_SEC = 10 /* to end by itself once its input is at its end */ };

struct bench_vs {
    const char *command, *model;
    cpu_set_t cpus; /* it may use: more than this thread, once that is a worker */
    pid_t pid;      /* 0: does not run */
    int to, from;   /* its input, its output */
    char line[LINE_MAX_SIZE];
    size_t n_line; /* bytes in it */
};

extern char **environ;

static int __attribute__((format(printf, 3, 4)))
fail(struct why *why, const struct bench_vs *v, const char *fmt, ...) {
    va_list ap;
    int n = snprintf(why->text, sizeof why->text, "--vs \"%.60s\": ", v->command);

    va_start(ap, fmt);
    vsnprintf(why->text + n, sizeof why->text - (size_t)n, fmt, ap);
    va_end(ap);
    return BENCH_FAILED;
}

int bench_vs_new(struct bench_vs **ret_vs, const char *command, const char *model) {
    struct bench_vs *v = calloc(1, sizeof *v);

    if (!v)
        return err_new(-ENOMEM);
    v->command = command;
    v->model = model;
    v->to = v->from = -1;
    if (sched_getaffinity(0, sizeof v->cpus, &v->cpus) < 0)
        memset(&v->cpus, 0xff, sizeof v->cpus);
    *ret_vs = v;
    return 0;
}

struct bench_vs *bench_vs_free(struct bench_vs *v) {
    if (v)
        bench_vs_stop(v);
    free(v);
    return NULL;
}

const char *bench_vs_command(const struct bench_vs *v) {
    return v->command;
}

/* Return: its status once it has ended within @sec, -1 if it has not. */
static int wait_end(struct bench_vs *v, double sec) {
    const struct timespec nap = { .tv_nsec = 2000000 };
    int status;

    for (double waited = 0;; waited += 2e-3) {
        pid_t pid = waitpid(v->pid, &status, WNOHANG);

        if (pid != 0) {
            v->pid = 0;
            return pid < 0 ? 0 : status;
        }
        if (waited >= sec)
            return -1;
        (void)nanosleep(&nap, NULL);
    }
}

/* Its input ends; who does not take that for an answer is killed, with all of its group. */
void bench_vs_stop(struct bench_vs *v) {
    pid_t group = v->pid;

    auto_close(&v->to);
    v->to = -1;
    if (v->pid != 0 && wait_end(v, END_SEC) < 0) {
        (void)kill(-group, SIGKILL);
        (void)wait_end(v, END_SEC);
    }
    auto_close(&v->from);
    v->from = -1;
    v->n_line = 0;
}

static void set_number(const char *name, uint32_t v) {
    char s[16];

    snprintf(s, sizeof s, "%u", v);
    (void)setenv(name, s, 1);
}

/* The request, for commands that do not read their input. */
static void tell(const struct bench_vs *v, const struct bench_measure *m) {
    (void)setenv("BENCH_MODEL", v->model, 1);
    (void)setenv("BENCH_MEASURE", bench_kind_name(m->kind), 1);
    set_number("BENCH_TOKENS", m->n);
    set_number("BENCH_SEQUENCES", m->n_seq);
    set_number("BENCH_DEPTH", m->depth);
    set_number("BENCH_THREADS", m->threads);
}

static int start(struct bench_vs *v, const struct bench_measure *m, struct why *why) {
    const char *const argv[] = { "sh", "-c", v->command, NULL };
    AUTO(close) int in = -1, out = -1;
    posix_spawn_file_actions_t act;
    posix_spawnattr_t attr;
    sigset_t none, dflt;
    cpu_set_t own;
    int fd[2], r;

    tell(v, m);
    if (pipe2(fd, O_CLOEXEC) < 0)
        return fail(why, v, "%m");
    in = fd[0];
    v->to = fd[1];
    if (pipe2(fd, O_CLOEXEC) < 0)
        return fail(why, v, "%m");
    v->from = fd[0];
    out = fd[1];
    v->n_line = 0;

    (void)sigemptyset(&none);
    (void)sigemptyset(&dflt);
    (void)sigaddset(&dflt, SIGPIPE);
    (void)posix_spawn_file_actions_init(&act);
    (void)posix_spawn_file_actions_adddup2(&act, in, STDIN_FILENO);
    (void)posix_spawn_file_actions_adddup2(&act, out, STDOUT_FILENO);
    (void)posix_spawnattr_init(&attr);
    (void)posix_spawnattr_setpgroup(&attr, 0);
    (void)posix_spawnattr_setsigmask(&attr, &none);
    (void)posix_spawnattr_setsigdefault(&attr, &dflt);
    (void)posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                              POSIX_SPAWN_SETSIGDEF);
    (void)sched_getaffinity(0, sizeof own, &own);
    (void)sched_setaffinity(0, sizeof v->cpus, &v->cpus);
    r = posix_spawn(&v->pid, "/bin/sh", &act, &attr, (char *const *)(uintptr_t)argv, environ);
    (void)sched_setaffinity(0, sizeof own, &own);
    (void)posix_spawn_file_actions_destroy(&act);
    (void)posix_spawnattr_destroy(&attr);
    if (r != 0)
        v->pid = 0;
    return r == 0 ? 0 : fail(why, v, "%s", strerror(r));
}

/* The next line of its output, without the newline. Return: false when there is none. */
static bool read_line(struct bench_vs *v, char *ret, size_t size) {
    for (;;) {
        char *end = memchr(v->line, '\n', v->n_line);
        ssize_t n;

        if (end) {
            size_t len = (size_t)(end - v->line);

            snprintf(ret, size, "%.*s", (int)len, v->line);
            v->n_line -= len + 1;
            memmove(v->line, end + 1, v->n_line);
            return true;
        }
        if (v->n_line == sizeof v->line)
            return false;
        n = read(v->from, v->line + v->n_line, sizeof v->line - v->n_line);
        if (n <= 0)
            return false;
        v->n_line += (size_t)n;
    }
}

static double figure(const struct json_object *o, const char *name) {
    struct json_object *v;

    return json_object_object_get_ex(o, name, &v) && (json_object_is_type(v, json_type_double) ||
                                                      json_object_is_type(v, json_type_int))
               ? json_object_get_double(v)
               : 0;
}

static int parse(const struct bench_vs *v, const char *line, struct bench_sample *ret,
                 bool *ret_known, struct why *why) {
    enum json_tokener_error error;
    struct json_object *o = json_tokener_parse_verbose(line, &error);

    *ret = (struct bench_sample){ 0 };
    *ret_known = true;
    if (error == json_tokener_success && !o) {
        *ret_known = false; /* null */
        return 0;
    }
    if (json_object_is_type(o, json_type_object)) {
        ret->rate = figure(o, "rate");
        ret->cpu_rate = figure(o, "cpu_rate");
    } else if (json_object_is_type(o, json_type_double) || json_object_is_type(o, json_type_int)) {
        ret->rate = json_object_get_double(o);
    }
    json_object_put(o);

    return ret->rate > 0 && ret->cpu_rate >= 0
               ? 0
               : fail(why, v, "answers \"%.60s\", which is no rate", line);
}

/* Return: false when it ended without an answer. */
static bool ask(struct bench_vs *v, const struct bench_measure *m, char *ret, size_t size) {
    char line[128];
    int n = snprintf(line, sizeof line, "%s %u %u %u %u\n", bench_kind_name(m->kind), m->n,
                     m->n_seq, m->depth, m->threads);

    (void)!write(v->to, line, (size_t)n); /* it need not read */
    return read_line(v, ret, size);
}

int bench_vs_sample(struct bench_vs *v, const struct bench_measure *m, struct bench_sample *ret,
                    bool *ret_known, struct why *why) {
    char line[1024];
    int status, r;

    /* one that ended since its last answer is no failure: it answers once a start */
    if (v->pid != 0) {
        if (ask(v, m, line, sizeof line))
            return parse(v, line, ret, ret_known, why);
        bench_vs_stop(v);
    }
    r = start(v, m, why);
    if (r != 0)
        return r;
    if (ask(v, m, line, sizeof line))
        return parse(v, line, ret, ret_known, why);

    status = wait_end(v, END_SEC);
    bench_vs_stop(v);
    return fail(why, v, "no answer, %s %d", WIFEXITED(status) ? "exit code" : "status",
                WIFEXITED(status) ? WEXITSTATUS(status) : status);
}
