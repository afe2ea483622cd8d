/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/portal/portal.h"

enum { EXIT_USAGE = 2 };

static const char help[] =
    "Usage: moed-portal [OPTION]...\n"
    "Serve desktop applications that ask a portal for language models.\n"
    "\n"
    "      --socket PATH    moed's; default: the user's own, else the system's\n"
    "  -h, --help           this\n"
    "      --version        the version\n";

static int on_name(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    struct portal *p = userdata;
    uint32_t got = 0;

    if (!sd_bus_message_is_method_error(m, NULL) && sd_bus_message_read(m, "u", &got) >= 0 &&
        got == 1) /* the primary owner */
        return 0;
    (void)fprintf(stderr, "<3>" PORTAL_NAME " is another's\n");
    return sd_event_exit(p->event, -EEXIST);
}

static int start(struct portal *p) {
    int r;

    r = sd_event_default(&p->event);
    if (r >= 0)
        r = sd_event_add_signal(p->event, NULL, SIGTERM, NULL, NULL);
    if (r >= 0)
        r = sd_event_add_signal(p->event, NULL, SIGINT, NULL, NULL);
    if (r >= 0)
        r = sd_bus_open_user(&p->bus);
    if (r >= 0)
        r = sd_bus_set_exit_on_disconnect(p->bus, true);
    if (r >= 0)
        r = sd_bus_set_close_on_exit(p->bus, false); /* sessions are told first */
    if (r >= 0)
        r = sd_bus_attach_event(p->bus, p->event, SD_EVENT_PRIORITY_NORMAL);
    if (r >= 0)
        r = language_add(p);
    if (r >= 0) /* bit 2: do not queue for it */
        r = sd_bus_request_name_async(p->bus, NULL, PORTAL_NAME, 4, on_name, p);
    return r;
}

static void stop(struct portal *p) {
    struct session *s;

    link_close(p);
    while ((s = LIST_FIRST(&p->sessions))) {
        session_tell_closed(s);
        (void)session_free(s);
    }
    (void)sd_bus_flush_close_unref(p->bus);
    (void)sd_event_unref(p->event);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        { "socket", required_argument, NULL, 's' },
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'v' },
        { NULL, 0, NULL, 0 },
    };
    struct portal p = { 0 };
    sigset_t set;
    int c, r;

    while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
        switch (c) {
        case 's':
            p.socket = optarg;
            break;
        case 'h':
            return fputs(help, stdout) < 0 || fflush(stdout) != 0;
        case 'v':
            return puts("moed-portal " MOE_VERSION) < 0 || fflush(stdout) != 0;
        default:
            return EXIT_USAGE;
        }
    }
    if (optind < argc) {
        (void)fprintf(stderr, "moed-portal: it takes no arguments\n");
        return EXIT_USAGE;
    }

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    LIST_INIT(&p.sessions);
    LIST_INIT(&p.requests);
    r = start(&p);
    if (r >= 0)
        r = sd_event_loop(p.event);
    if (r < 0)
        (void)fprintf(stderr, "<3>moed-portal: %s\n", strerror(-r));
    stop(&p);
    return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
