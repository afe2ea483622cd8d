/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/moectl.h"

volatile int ctl_interrupted;

int ctl_complain(int code, const char *fmt, ...) {
    va_list ap;

    (void)ctl_flush();
    (void)fputs("moectl: ", stderr);
    va_start(ap, fmt);
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    (void)fputc('\n', stderr);

    return code;
}

static int exit_of(int code) {
    switch (code) {
    case MOE_DISCONNECTED:
    case MOE_NO_ANSWER:
    case MOE_SHUTTING_DOWN:
        return EXIT_UNREACHABLE;
    case MOE_NO_SUCH_MODEL:
    case MOE_MODEL_UNAVAILABLE:
    case MOE_INSUFFICIENT_MEMORY:
    case MOE_CORRUPT:
        return EXIT_NO_MODEL;
    case MOE_TIMEOUT:
        return EXIT_LIMIT;
    case MOE_ACCESS_DENIED:
        return EXIT_DENIED;
    case MOE_BUSY:
    case MOE_QUOTA_EXCEEDED:
        return EXIT_BUSY;
    case MOE_INVALID_SCHEMA:
    case MOE_INVALID_GRAMMAR:
        return EXIT_SCHEMA;
    default:
        return EXIT_FAILED;
    }
}

/* Is @number in @message already? */
static bool says(const char *message, int64_t number) {
    char text[24];

    (void)snprintf(text, sizeof text, "%jd", (intmax_t)number);
    return strstr(message, text);
}

int ctl_complain_error(const struct moe_error *e) {
    char more[128] = "";

    if (e->retry_after_ms >= 0)
        (void)snprintf(more, sizeof more, "; try again in %.1f s",
                       (double)e->retry_after_ms / 1000);
    else if (e->requested >= 0 && e->available >= 0 && !says(e->message, e->requested))
        (void)snprintf(more, sizeof more, " (%jd tokens requested, %jd available)",
                       (intmax_t)e->requested, (intmax_t)e->available);
    else if (e->need >= 0 && e->have >= 0 && !says(e->message, e->need))
        (void)snprintf(more, sizeof more, " (%s needed, %s free)", ctl_bytes((uint64_t)e->need),
                       ctl_bytes((uint64_t)e->have));
    else if (e->limit >= 0 && !says(e->message, e->limit))
        (void)snprintf(more, sizeof more, " (the limit is %jd)", (intmax_t)e->limit);

    return ctl_complain(exit_of(e->code), "%s%s", e->message, more);
}

int ctl_complain_errno(struct ctl *c, int r) {
    switch (r) {
    case -EREMOTEIO:
        return ctl_complain_error(moe_last_error(c->m));
    case -EINTR:
        return EXIT_INTERRUPTED;
    case -EMSGSIZE:
        return ctl_complain(EXIT_FAILED,
                            "the request is larger than 16 MiB, or has too many parts");
    case -ENOTCONN:
    case -ECONNRESET:
        return ctl_complain(EXIT_UNREACHABLE, "the service closed the connection");
    default:
        return ctl_complain(EXIT_FAILED, "cannot ask the service: %s", strerror(-r));
    }
}

int ctl_connect(struct ctl *c) {
    const char *run = getenv("XDG_RUNTIME_DIR"), *env = getenv("MOE_SOCKET");
    char path[MOE_PATH_MAX], tried[256] = "";
    int r;

    r = moe_find_socket(c->socket, path);
    if (r < 0)
        return ctl_complain(EXIT_UNREACHABLE, "the path of the socket is longer than %d bytes",
                            MOE_PATH_MAX - 1);
    r = moe_open(&c->m, c->socket);
    if (r >= 0)
        return 0;

    if (r == -EACCES || r == -EPERM)
        return ctl_complain(EXIT_DENIED, "%s: %s. You may have to join the service's group.", path,
                            strerror(-r));
    if (!c->socket && !(env && *env))
        (void)snprintf(tried, sizeof tried,
                       " $MOE_SOCKET is not set%s%s%s. Is the service installed and its socket"
                       " active (systemctl start moed.socket)?",
                       run && strncmp(path, run, strlen(run)) ? " and there is no " : "",
                       run && strncmp(path, run, strlen(run)) ? run : "",
                       run && strncmp(path, run, strlen(run)) ? "/moed/rpc" : "");
    return ctl_complain(EXIT_UNREACHABLE, "cannot reach the service at %s: %s.%s", path,
                        strerror(-r), tried);
}

static void on_sigint(int sig) {
    (void)sig;
    ctl_interrupted = 1;
}

static void signal_mask(int how) {
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigprocmask(how, &set, NULL);
}

int ctl_try(struct ctl *c, const char *method, const struct moe_map *params, uint64_t usec,
            const struct moe_value **ret_result) {
    int r;

    signal_mask(SIG_UNBLOCK);
    r = ctl_interrupted ? -EINTR : moe_call_wait(c->m, method, params, usec, ret_result);
    signal_mask(SIG_BLOCK);

    return r;
}

int ctl_call(struct ctl *c, const char *method, const struct moe_map *params, uint64_t usec,
             const struct moe_value **ret_result) {
    int r = ctl_try(c, method, params, usec, ret_result);

    return r < 0 ? ctl_complain_errno(c, r) : EXIT_OK;
}

int ctl_call_with(struct ctl *c, const char *method, struct moe_map *params, uint64_t usec,
                  const struct moe_value **ret_result) {
    int r = params ? ctl_call(c, method, params, usec, ret_result)
                   : ctl_complain(EXIT_FAILED, "out of memory");

    moe_map_free(params);
    return r;
}

int ctl_look(struct ctl *c, const char *method, uint64_t usec,
             const struct moe_value **ret_result) {
    int r = ctl_connect(c);

    if (!r)
        r = ctl_call(c, method, NULL, usec, ret_result);
    if (!r && c->json) {
        ctl_put_json(c, *ret_result);
        return EXIT_OK;
    }

    return r ? r : -1;
}

/* A ppoll() that finds something ready leaves a signal pending. What was typed after Ctrl-C must
 * not be read before it is obeyed, nor be what it stops. */
static bool sigint_pending(void) {
    const struct timespec now = { 0 };
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    if (sigtimedwait(&set, NULL, &now) != SIGINT)
        return false;

    ctl_interrupted = 1;
    return true;
}

int ctl_poll(struct ctl *c, int fd, uint64_t usec) {
    uint64_t own = c->m ? moe_timeout(c->m) : MOE_FOREVER, wait = own < usec ? own : usec;
    struct pollfd p[2] = { { .fd = -1 }, { .fd = fd, .events = POLLIN } };
    struct timespec t = { .tv_sec = (time_t)(wait / 1000000),
                          .tv_nsec = (long)(wait % 1000000) * 1000 };
    sigset_t none;
    int n;

    if (c->m && moe_events(c->m)) /* else it is over, and would be ready for ever */
        p[0] = (struct pollfd){ .fd = moe_fd(c->m), .events = (short)moe_events(c->m) };
    (void)sigemptyset(&none);
    n = ppoll(p, 2, wait == MOE_FOREVER ? NULL : &t, &none);
    if ((n < 0 && errno == EINTR) || sigint_pending())
        return 2;
    if (n < 0)
        return -errno;
    if (p[0].revents || (!n && own < usec))
        return moe_process(c->m, p[0].revents);

    return n ? 1 : 3;
}

/* A descriptor that came closed would be given to the socket, and then be written to. */
static void open_standard_files(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            _exit(EXIT_FAILED);
}

int main(int argc, char **argv) {
    const struct sigaction sa = { .sa_handler = on_sigint };
    struct ctl c = { .generate = MOE_GENERATE_INIT, .deadline_usec = MOE_FOREVER };
    ctl_verb *run = NULL;
    const char *no_color = getenv("NO_COLOR");
    int r;

    open_standard_files();
    c.out_tty = isatty(STDOUT_FILENO);
    c.err_tty = isatty(STDERR_FILENO);
    c.colour = !(no_color && *no_color);
    r = ctl_parse(&c, argc, argv, &run);
    if (!r) {
        c.generate.stop = c.stop;
        c.generate.n_stop = c.n_stop;
        c.generate.special = c.special;
        signal_mask(SIG_BLOCK);
        (void)sigaction(SIGINT, &sa, NULL);
        r = run(&c);
        ctl_progress_clear(&c);
        moe_close(c.m);
    }
    if (r < 0)
        r = EXIT_OK;
    if (!ctl_flush())
        return r;

    /* Nobody reads any more: that is their business. */
    return ctl_flush() == EPIPE
               ? EXIT_FAILED
               : ctl_complain(EXIT_FAILED, "cannot write the output: %s", strerror(ctl_flush()));
}
