/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "daemon/bus.h"
#include "daemon/listen.h"
#include "daemon/notify.h"
#include "daemon/power-watch.h"
#include "daemon/server.h"
#include "daemon/watchdog.h"
#include "engine/base/log.h"

enum { EXIT_USAGE = 2, ARG_SET_MAX = 16 };

static const char *arg_socket, *arg_config, *arg_root;
static struct config_set arg_set[ARG_SET_MAX]; /* what the command line says of config keys */
static size_t arg_n_set;
static void (*arg_print)(void); /* say something and leave */
static bool arg_check;

static const char usage[] =
    "moed [OPTION]...\n"
    "Keep a mixture-of-experts language model resident and serve it on a socket.\n"
    "\n"
    "  --model FILE       serve this file; the configuration may be absent\n"
    "  --socket PATH      listen there, besides the sockets of the service manager\n"
    "  --ctx N            tokens of context (key context)\n"
    "  --threads N        worker threads (key threads)\n"
    "  --config FILE      read this file and no other; with a '-' before it, if it is there\n"
    "  --config-root DIR  look for /etc, /run and /usr below DIR\n"
    "  --check-config     print the values in force and where they come from\n"
    "  --describe         print the methods and the configuration keys\n"
    "  --api-info         print what server.info answers, as msgpack\n"
    "  --stopped          give up weights that are kept, if the service ended for want of memory:\n"
    "                     for the service manager, when it has ended\n"
    "  --help, --version\n"
    "\n"
    "Exit status: 0 stopped as asked, 1 failed, 2 wrong usage, 78 bad configuration.\n";

static void print_usage(void) {
    (void)fputs(usage, stdout);
}

static void print_version(void) {
    puts("moed " MOE_VERSION);
}

static void print_describe(void) {
    rpc_describe(stdout);
    puts("\nmoed.conf");
    config_describe(stdout);
}

static void print_api_info(void) {
    msgpack_sbuffer buf;
    msgpack_packer p;

    msgpack_sbuffer_init(&buf);
    msgpack_packer_init(&p, &buf, msgpack_sbuffer_write);
    rpc_pack_info(&p, 0);
    (void)fwrite(buf.data, 1, buf.size, stdout);
    msgpack_sbuffer_destroy(&buf);
}

static void set(const char *key, const char *value, const char *from) {
    if (arg_n_set < ARG_SET_MAX)
        arg_set[arg_n_set++] = (struct config_set){ key, value, from };
}

/* clang-format off */
static const struct option options[] = {
    { "model",         required_argument, NULL, 'm' },
    { "socket",        required_argument, NULL, 's' },
    { "ctx",           required_argument, NULL, 'c' },
    { "threads",       required_argument, NULL, 't' },
    { "config",        required_argument, NULL, 'f' },
    { "config-root",   required_argument, NULL, 'r' },
    { "check-config",  no_argument,       NULL, 'C' },
    { "describe",      no_argument,       NULL, 'D' },
    { "api-info",      no_argument,       NULL, 'A' },
    { "help",          no_argument,       NULL, 'h' },
    { "stopped",       no_argument,       NULL, 'S' },
    { "version",       no_argument,       NULL, 'V' },
    { NULL, 0, NULL, 0 },
};
/* clang-format on */

static int parse_args(int argc, char **argv) {
    int opt;

    while ((opt = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (opt) {
        case 'm':
            set("model", realpath(optarg, NULL) ?: optarg, "--model");
            break;
        case 's':
            arg_socket = optarg;
            break;
        case 'c':
            set("context", optarg, "--ctx");
            break;
        case 't':
            set("threads", optarg, "--threads");
            break;
        case 'f':
            arg_config = optarg;
            break;
        case 'r':
            arg_root = optarg;
            break;
        case 'C':
            arg_check = true;
            break;
        case 'D':
            arg_print = print_describe;
            break;
        case 'A':
            arg_print = print_api_info;
            break;
        case 'S':
            arg_print = fdstore_after_stop;
            break;
        case 'h':
            arg_print = print_usage;
            break;
        case 'V':
            arg_print = print_version;
            break;
        default:
            return EXIT_USAGE;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "moed: unexpected argument: %s\n", argv[optind]);
        return EXIT_USAGE;
    }

    return 0;
}

/* ---- signals ---- */

static void on_stop(evutil_socket_t sig, short what, void *arg) {
    log_info("main", "signal %d", (int)sig);
    server_stop(arg);
}

/* A bad configuration is reported and the old one kept: the service goes on. */
static void on_reload(evutil_socket_t sig, short what, void *arg) {
    struct config *config = NULL;
    struct why why = { 0 };
    int r;

    notify_reloading();
    r = config_new(&config, arg_root, arg_config, arg_set, arg_n_set, &why);
    if (r)
        log_error("main", "the old configuration stays: %s", r > 0 ? why.text : strerror(-r));
    else
        server_reconfigure(arg, config);
    if (!r)
        log_info("main", "configuration read again");
    notify_ready();
}

/* ---- run ---- */

static struct event_base *main_base_free(struct event_base *base) {
    event_base_free(base);
    return NULL;
}
AUTO_DEFINE(struct event_base *, main_base_free)

static int listen_all(struct server *server, struct listen *l, struct why *why) {
    int r = listen_systemd(l, models_store(server->models), why);

    if (!r && arg_socket)
        r = listen_bind(l, arg_socket, why);
    if (!r && !l->n)
        r = why_set(why, LISTEN_BAD,
                    "no socket: started by moed.socket there is one, else give "
                    "--socket");
    for (size_t i = 0; !r && i < l->n; i++) {
        r = server_listen(server, l->fd[i]);
        if (!r)
            l->fd[i] = -1; /* the server's */
    }

    return err_up(r);
}

/* SIGPIPE comes of a client that went away; EPIPE says the same. */
static int serve(struct event_base *base, struct server *server) {
    static const struct {
        int sig;
        void (*fn)(evutil_socket_t, short, void *);
    } table[] = {
        { SIGTERM, on_stop },
        { SIGINT, on_stop },
        { SIGHUP, on_reload },
    };
    struct event *ev[3] = { 0 };
    int r = 0;

    (void)signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < 3; i++) {
        ev[i] = evsignal_new(base, table[i].sig, table[i].fn, server);
        if (!ev[i] || event_add(ev[i], NULL) < 0)
            r = err_new(-ENOMEM);
    }
    if (!r) {
        notify_ready();
        models_preload(server->models);
        r = event_base_dispatch(base) < 0 ? err_new(-EIO) : 0;
    }

    for (size_t i = 0; i < 3; i++)
        if (ev[i])
            event_free(ev[i]);
    return r;
}

static int run(struct config *config, struct why *why) {
    AUTO(main_base_free) struct event_base *base = event_base_new();
    AUTO(server_free) struct server *server = NULL;
    AUTO(bus_free) struct bus *bus = NULL;
    AUTO(power_watch_free) struct power_watch *power = NULL;
    AUTO(watchdog_free) struct watchdog *watchdog = NULL;
    struct listen listen = { 0 };
    int r;

    if (!base) {
        (void)config_free(config);
        return err_new(-ENOMEM);
    }

    r = server_new(&server, base, config);
    if (!r)
        r = listen_all(server, &listen, why);
    if (!r)
        r = bus_new(&bus, server);
    if (!r)
        r = power_watch_new(&power, server);
    if (!r)
        r = watchdog_new(&watchdog, base, server->models);
    if (!r)
        r = serve(base, server);
    listen_deinit(&listen);

    return err_up(r);
}

static void refuse_clients(void) {
    struct fdstore store = { 0 };
    struct listen listen = { 0 };

    if (!listen_systemd(&listen, &store, NULL))
        listen_refuse(&listen, "the service cannot start; its log says why");
    fdstore_deinit(&store);
    listen_deinit(&listen);
}

int main(int argc, char **argv) {
    struct config *config = NULL;
    struct why why = { 0 };
    int r;

    r = parse_args(argc, argv);
    if (r)
        return r;
    if (arg_print) {
        arg_print();
        return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    }

    r = config_new(&config, arg_root, arg_config, arg_set, arg_n_set, &why);
    if (r) {
        log_error("main", "%s", r > 0 ? why.text : strerror(-r));
        refuse_clients();
        return r > 0 ? EX_CONFIG : EXIT_FAILURE;
    }
    if (arg_check) {
        config_print(config, stdout);
        (void)config_free(config);
        return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    }
    if (config->log)
        (void)setenv("MOE_LOG", config->log, 0);

    r = run(config, &why);
    if (r)
        log_error("main", "%s", why.text[0] ? why.text : strerror(r < 0 ? -r : EIO));
    return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
