/* SPDX-License-Identifier: Apache-2.0 */

#include <arpa/inet.h>
#include <errno.h>
#include <event2/util.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "client/openai/bridge.h"

static const char help[] =
    "Usage: moe-openai [OPTION]...\n"
    "OpenAI's HTTP interface to moed, for this machine alone.\n"
    "\n"
    "      --listen ADDRESS:PORT  of the loopback interface; default 127.0.0.1:11435\n"
    "      --unix PATH            listen there instead\n"
    "      --token-file FILE      what clients have to show as their API key\n"
    "      --idle-timeout SEC     let silent connections go after SEC; default 60\n"
    "      --socket PATH          moed's; default: $MOE_SOCKET, $XDG_RUNTIME_DIR/moed/rpc,\n"
    "                             /run/moed/rpc\n"
    "  -h, --help  --version\n"
    "\n"
    "Sockets that systemd hands over are used instead of --listen and --unix.\n"
    "Exit status: 0 ended by a signal, 1 failed, 2 usage.\n";

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, TOKEN_MAX = 4096, STOP_SEC = 4 };

static int complain(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int complain(int code, const char *fmt, ...) {
    va_list ap;

    (void)fputs("moe-openai: ", stderr);
    va_start(ap, fmt);
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    (void)fputc('\n', stderr);
    return code;
}

/* ---- where to listen ---- */

static bool is_loopback(const struct sockaddr *sa) {
    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 24 == 127;
    if (sa->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)sa)->sin6_addr);
    return sa->sa_family == AF_UNIX;
}

/* Take @fd. Return: 0, or a code to exit with. */
static int serve(struct bridge *b, evutil_socket_t fd) {
    struct sockaddr_storage sa = { 0 };
    socklen_t n = sizeof sa;

    if (getsockname(fd, (struct sockaddr *)&sa, &n) < 0 ||
        !is_loopback((const struct sockaddr *)&sa))
        return complain(EXIT_USAGE, "a socket that is not of the loopback interface: not served");
    if (evutil_make_socket_nonblocking(fd) < 0 || evhttp_accept_socket(b->http, fd) < 0)
        return complain(EXIT_FAILED, "cannot serve a socket");
    return 0;
}

static int listen_tcp(struct bridge *b, const char *where) {
    struct sockaddr_storage sa = { 0 };
    int n = sizeof sa, one = 1, fd;

    if (evutil_parse_sockaddr_port(where, (struct sockaddr *)&sa, &n) < 0)
        return complain(EXIT_USAGE, "--listen %s: not an ADDRESS:PORT", where);
    if (!is_loopback((const struct sockaddr *)&sa))
        return complain(EXIT_USAGE,
                        "--listen %s: only the loopback interface is served: 127.0.0.1 or [::1]",
                        where);
    fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        bind(fd, (struct sockaddr *)&sa, (socklen_t)n) < 0 || listen(fd, SOMAXCONN) < 0)
        return complain(EXIT_FAILED, "--listen %s: %s", where, strerror(errno));
    return serve(b, fd);
}

static int listen_unix(struct bridge *b, const char *path) {
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    struct stat st;
    int fd;

    if (strlen(path) >= sizeof sa.sun_path)
        return complain(EXIT_USAGE, "--unix %s: longer than %zu bytes", path,
                        sizeof sa.sun_path - 1);
    (void)strcpy(sa.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return complain(EXIT_FAILED, "--unix %s: %s", path, strerror(errno));
    /* What an earlier run left there answers nobody. */
    if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode)) {
        if (connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0)
            return complain(EXIT_FAILED, "--unix %s: another program serves it", path);
        (void)unlink(path);
    }
    if (bind(fd, (struct sockaddr *)&sa, sizeof sa) < 0 || listen(fd, SOMAXCONN) < 0)
        return complain(EXIT_FAILED, "--unix %s: %s", path, strerror(errno));
    return serve(b, fd);
}

static int listen_all(struct bridge *b, const char *tcp, const char *path) {
    int n = sd_listen_fds(true), code = 0;

    if (n < 0)
        return complain(EXIT_FAILED, "cannot take over sockets: %s", strerror(-n));
    for (int i = 0; i < n && !code; i++)
        code = serve(b, SD_LISTEN_FDS_START + i);
    if (n)
        return code;
    return path ? listen_unix(b, path) : listen_tcp(b, tcp);
}

/* ---- the token ---- */

static int read_token(struct bridge *b, const char *path) {
    char buf[TOKEN_MAX + 1];
    size_t n;
    FILE *f = fopen(path, "re");

    if (!f)
        return complain(EXIT_FAILED, "--token-file %s: %s", path, strerror(errno));
    n = fread(buf, 1, TOKEN_MAX, f);
    (void)fclose(f);
    buf[n] = '\0';
    buf[strcspn(buf, "\r\n")] = '\0';
    if (!*buf)
        return complain(EXIT_FAILED, "--token-file %s: its first line is empty", path);
    b->token = strdup(buf);
    return b->token ? 0 : complain(EXIT_FAILED, "out of memory");
}

/* ---- running ---- */

static void on_signal(evutil_socket_t sig, short what, void *userdata) {
    static const struct timeval soon = { .tv_sec = STOP_SEC };
    struct bridge *b = userdata;

    b->stopping = true;
    (void)sd_notify(0, "STOPPING=1");
    (void)event_base_loopexit(b->base, &soon);
    ask_stop_all(b);
}

static int run(struct bridge *b, const char *tcp, const char *path) {
    struct event *term = NULL, *intr = NULL;
    int code;

    b->base = event_base_new();
    if (!b->base || link_init(b) < 0 || http_init(b) < 0)
        return complain(EXIT_FAILED, "out of memory");
    code = listen_all(b, tcp, path);
    if (code)
        return code;
    term = evsignal_new(b->base, SIGTERM, on_signal, b);
    intr = evsignal_new(b->base, SIGINT, on_signal, b);
    if (!term || !intr || event_add(term, NULL) < 0 || event_add(intr, NULL) < 0) {
        code = complain(EXIT_FAILED, "cannot watch signals");
    } else {
        (void)sd_notify(0, "READY=1");
        if (event_base_dispatch(b->base) < 0)
            code = complain(EXIT_FAILED, "the event loop failed");
    }
    if (term)
        event_free(term);
    if (intr)
        event_free(intr);
    return code;
}

static void deinit(struct bridge *b) {
    link_deinit(b); /* every request that is open gets its error */
    if (b->http)
        evhttp_free(b->http);
    if (b->base)
        event_base_free(b->base);
    free(b->token);
}

int main(int argc, char **argv) {
    enum { OPT_LISTEN = 256, OPT_UNIX, OPT_TOKEN, OPT_IDLE, OPT_SOCKET, OPT_VERSION };
    static const struct option options[] = {
        { "listen", required_argument, NULL, OPT_LISTEN },
        { "unix", required_argument, NULL, OPT_UNIX },
        { "token-file", required_argument, NULL, OPT_TOKEN },
        { "idle-timeout", required_argument, NULL, OPT_IDLE },
        { "socket", required_argument, NULL, OPT_SOCKET },
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, OPT_VERSION },
        { 0 },
    };
    struct bridge b = { .idle_sec = 60 };
    const char *tcp = "127.0.0.1:11435", *path = NULL, *token = NULL;
    char *end;
    int c, code = 0;

    (void)signal(SIGPIPE, SIG_IGN);
    while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
        switch (c) {
        case OPT_LISTEN:
            tcp = optarg;
            break;
        case OPT_UNIX:
            path = optarg;
            break;
        case OPT_TOKEN:
            token = optarg;
            break;
        case OPT_SOCKET:
            b.socket = optarg;
            break;
        case OPT_IDLE:
            b.idle_sec = (int)strtol(optarg, &end, 10);
            if (!*optarg || *end || b.idle_sec < 1 || b.idle_sec > 86400)
                return complain(EXIT_USAGE,
                                "--idle-timeout %s: not a number of seconds from 1 to 86400",
                                optarg);
            break;
        case 'h':
            (void)fputs(help, stdout);
            return fflush(stdout) ? EXIT_FAILED : 0;
        case OPT_VERSION:
            (void)printf("moe-openai %s\n", MOE_VERSION);
            return fflush(stdout) ? EXIT_FAILED : 0;
        default:
            return EXIT_USAGE;
        }
    if (optind < argc)
        return complain(EXIT_USAGE, "%s: there are no arguments but options", argv[optind]);

    if (token)
        code = read_token(&b, token);
    if (!code)
        code = run(&b, tcp, path);
    deinit(&b);
    return code;
}
