/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/bus-loop.h"
#include "daemon/power-watch.h"
#include "daemon/power.h"
#include "daemon/server.h"
#include "engine/base/log.h"

#define DRIVER     "org.freedesktop.DBus"
#define PROPERTIES "org.freedesktop.DBus.Properties"
#define LOGIN1     "org.freedesktop.login1"
#define MANAGER    LOGIN1 ".Manager"
#define SESSION    LOGIN1 ".Session"

enum {
    QUIET_POLL_USEC = 50000,
    QUIET_MAX_USEC = 4000000, /* logind goes on after five seconds, unless configured otherwise */
};

enum { LOGIND, UPOWER, PROFILES, PROFILES_OLD, N_SERVICE };

static const struct kind {
    const char *name, *path, *interface;
    const char *property; /* that says whether it is so: a boolean, or whether a string is ... */
    const char *word;     /* ... this one */
} kinds[N_SERVICE] = {
    [LOGIND] = { LOGIN1, "/org/freedesktop/login1", MANAGER, "PreparingForSleep", "" },
    [UPOWER] = { "org.freedesktop.UPower", "/org/freedesktop/UPower", "org.freedesktop.UPower",
                 "OnBattery", "" },
    [PROFILES] = { "org.freedesktop.UPower.PowerProfiles", "/org/freedesktop/UPower/PowerProfiles",
                   "org.freedesktop.UPower.PowerProfiles", "ActiveProfile", "power-saver" },
    [PROFILES_OLD] = { "net.hadess.PowerProfiles", "/net/hadess/PowerProfiles",
                       "net.hadess.PowerProfiles", "ActiveProfile", "power-saver" },
};

struct service {
    struct power_watch *watch;
    const struct kind *kind;
    char *owner; /* of its name; NULL: it is not there */
    bool on;
};

struct power_watch {
    struct server *server;
    struct bus_loop loop;
    struct service service[N_SERVICE];
    int inhibitor;       /* as long as it is open, sleep waits; -1: none */
    struct event *quiet; /* about to sleep: is everything at rest? */
    usec_t until;        /* when that is waited for no longer */
};

static bool is_from(const struct service *s, sd_bus_message *m) {
    const char *sender = sd_bus_message_get_sender(m);

    return s->owner && sender && strcmp(s->owner, sender) == 0;
}

/* ---- sleep ---- */

static void let_sleep(struct power_watch *w) {
    (void)event_del(w->quiet);
    auto_close(&w->inhibitor);
    w->inhibitor = -1;
}

static void on_quiet(evutil_socket_t fd, short what, void *arg) {
    struct timeval tv = clock_timeval(QUIET_POLL_USEC);
    struct power_watch *w = arg;
    struct engine_status st;

    models_engine(w->server->models, &st);
    if (st.state == ENGINE_READY && st.busy && clock_usec() < w->until) {
        (void)event_add(w->quiet, &tv);
        return;
    }
    log_debug("power", "%s", st.state == ENGINE_READY && st.busy ? "not at rest yet" : "at rest");
    let_sleep(w);
}

static int on_inhibit(sd_bus_message *m, void *arg, sd_bus_error *error) {
    const sd_bus_error *e = sd_bus_message_get_error(m);
    struct power_watch *w = arg;
    int fd;

    if (e || sd_bus_message_read(m, "h", &fd) < 0) {
        log_info("power", "sleep does not wait for us: %s", e ? e->message ?: e->name : "no file");
        return 0;
    }
    auto_close(&w->inhibitor);
    w->inhibitor = w->service[LOGIND].on ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    return 0;
}

static void inhibit(struct power_watch *w) {
    const struct kind *k = &kinds[LOGIND];

    (void)sd_bus_call_method_async(w->loop.sd, NULL, k->name, k->path, k->interface, "Inhibit",
                                   on_inhibit, w, "ssss", "sleep", "moed",
                                   "Answers pause, sessions are saved", "delay");
    bus_loop_kick(&w->loop);
}

/* ---- what services say ---- */

/* What @s says, or nothing does any more. */
static void note(struct service *s, bool on) {
    struct power_watch *w = s->watch;
    const struct service *all = w->service;
    struct power *p = w->server->power;
    bool was = s->on;

    s->on = on;
    power_tell(p, POWER_BATTERY, all[UPOWER].on);
    power_tell(p, POWER_SAVER, all[PROFILES].on || all[PROFILES_OLD].on);
    power_tell(p, POWER_SLEEP, all[LOGIND].on);
    if (s != &all[LOGIND] || on == was)
        return;
    if (on) {
        w->until = clock_usec() + QUIET_MAX_USEC;
        on_quiet(-1, 0, w);
    } else {
        let_sleep(w);
        if (s->owner)
            inhibit(w);
    }
}

static int on_property(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct service *s = arg;
    const char *word = s->kind->word, *said;
    int on = 0, r;

    if (*word) {
        r = sd_bus_message_read(m, "v", "s", &said);
        on = r >= 0 && strcmp(said, word) == 0;
    } else {
        r = sd_bus_message_read(m, "v", "b", &on);
    }
    if (r < 0)
        log_debug("power", "%s: %s: cannot be read", s->kind->name, s->kind->property);
    note(s, r >= 0 && on);
    return 0;
}

/* Of a service that is there: nobody is started. */
static void get(struct power_watch *w, const char *name, const char *path, const char *interface,
                const char *property, sd_bus_message_handler_t fn, void *arg) {
    sd_bus_message *m = NULL;
    int r;

    r = sd_bus_message_new_method_call(w->loop.sd, &m, name, path, PROPERTIES, "Get");
    if (r >= 0)
        r = sd_bus_message_append(m, "ss", interface, property);
    if (r >= 0)
        r = sd_bus_message_set_auto_start(m, false);
    if (r >= 0)
        r = sd_bus_call_async(w->loop.sd, NULL, m, fn, arg, 0);
    if (r < 0)
        log_warning("power", "%s: cannot be asked: %s", name, strerror(-r));
    (void)sd_bus_message_unref(m);
}

static void ask(struct service *s) {
    const struct kind *k = s->kind;

    get(s->watch, k->name, k->path, k->interface, k->property, on_property, s);
}

static int on_changed(sd_bus_message *m, void *arg, sd_bus_error *error) {
    if (is_from(arg, m))
        ask(arg);
    return 0;
}

/* ---- users ---- */

/* The user of a session that was locked. */
static int on_user(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct power_watch *w = arg;
    uint32_t uid;

    if (sd_bus_message_read(m, "v", "(uo)", &uid, NULL) >= 0)
        power_leave(w->server->power, uid, false);
    return 0;
}

static void locked(struct power_watch *w, sd_bus_message *m) {
    get(w, LOGIN1, sd_bus_message_get_path(m), SESSION, "User", on_user, w);
}

static int on_lock(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct power_watch *w = arg;

    if (is_from(&w->service[LOGIND], m))
        locked(w, m);
    return 0;
}

/* sa{sv}as: is LockedHint among them, and true? */
static bool has_locked(sd_bus_message *m) {
    const char *key;
    int on = 0, r;

    r = sd_bus_message_skip(m, "s");
    if (r >= 0)
        r = sd_bus_message_enter_container(m, 'a', "{sv}");
    while (r >= 0 && !on && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
        r = sd_bus_message_read(m, "s", &key);
        if (r >= 0 && strcmp(key, "LockedHint") == 0)
            r = sd_bus_message_read(m, "v", "b", &on);
        else if (r >= 0)
            r = sd_bus_message_skip(m, "v");
        if (r >= 0)
            r = sd_bus_message_exit_container(m);
    }
    return r >= 0 && on;
}

static int on_session(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct power_watch *w = arg;

    if (is_from(&w->service[LOGIND], m) && has_locked(m))
        locked(w, m);
    return 0;
}

static int on_user_removed(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct power_watch *w = arg;
    uint32_t uid;

    if (is_from(&w->service[LOGIND], m) && sd_bus_message_read(m, "u", &uid) >= 0)
        power_leave(w->server->power, uid, true);
    return 0;
}

static int on_sleep(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct power_watch *w = arg;
    int on;

    if (is_from(&w->service[LOGIND], m) && sd_bus_message_read(m, "b", &on) >= 0)
        note(&w->service[LOGIND], on);
    return 0;
}

/* ---- services that come and go ---- */

static void set_owner(struct service *s, const char *owner) {
    free(s->owner);
    s->owner = NULL;
    note(s, false);
    if (s == &s->watch->service[LOGIND])
        let_sleep(s->watch);
    if (!owner || !*owner)
        return;

    s->owner = strdup(owner);
    log_debug("power", "%s: is there", s->kind->name);
    ask(s);
    if (s == &s->watch->service[LOGIND])
        inhibit(s->watch);
}

static int on_owner(sd_bus_message *m, void *arg, sd_bus_error *error) {
    const char *sender = sd_bus_message_get_sender(m), *owner;

    if (sender && strcmp(sender, DRIVER) == 0 &&
        sd_bus_message_read(m, "sss", NULL, NULL, &owner) >= 0)
        set_owner(arg, owner);
    return 0;
}

static int on_get_owner(sd_bus_message *m, void *arg, sd_bus_error *error) {
    const char *owner;

    if (!sd_bus_message_get_error(m) && sd_bus_message_read(m, "s", &owner) >= 0)
        set_owner(arg, owner);
    return 0;
}

static int match(struct power_watch *w, const char *what, sd_bus_message_handler_t fn, void *arg) {
    return sd_bus_add_match_async(w->loop.sd, NULL, what, fn, NULL, arg);
}

static int watch_service(struct service *s) {
    const struct kind *k = s->kind;
    struct power_watch *w = s->watch;
    char what[512];
    int r;

    (void)snprintf(what, sizeof what,
                   "type='signal',sender='" DRIVER "',member='NameOwnerChanged',arg0='%s'",
                   k->name);
    r = match(w, what, on_owner, s);
    (void)snprintf(what, sizeof what,
                   "type='signal',sender='%s',path='%s',interface='" PROPERTIES
                   "',member='PropertiesChanged',arg0='%s'",
                   k->name, k->path, k->interface);
    if (r >= 0)
        r = match(w, what, on_changed, s);
    if (r >= 0)
        r = sd_bus_call_method_async(w->loop.sd, NULL, DRIVER, "/org/freedesktop/DBus", DRIVER,
                                     "GetNameOwner", on_get_owner, s, "s", k->name);
    return r;
}

static int watch_logind(struct power_watch *w) {
#define FROM "type='signal',sender='" LOGIN1 "',"
    static const struct {
        const char *what;
        sd_bus_message_handler_t fn;
    } table[] = {
        { FROM "interface='" MANAGER "',member='PrepareForSleep'", on_sleep },
        { FROM "interface='" MANAGER "',member='UserRemoved'", on_user_removed },
        { FROM "interface='" SESSION "',member='Lock'", on_lock },
        { FROM "interface='" PROPERTIES "',member='PropertiesChanged',arg0='" SESSION "'",
          on_session },
    };
#undef FROM
    int r = 0;

    for (size_t i = 0; r >= 0 && i < sizeof table / sizeof table[0]; i++)
        r = match(w, table[i].what, table[i].fn, w);
    return r;
}

static int on_open(void *arg, sd_bus **ret_sd) {
    struct power_watch *w = arg;
    int r;

    r = sd_bus_open_system_with_description(ret_sd, "moed-power");
    if (r >= 0)
        r = watch_logind(w);
    for (size_t i = 0; r >= 0 && i < N_SERVICE; i++)
        r = watch_service(&w->service[i]);
    return r < 0 ? r : 0;
}

static void on_lost(void *arg) {
    struct power_watch *w = arg;

    for (size_t i = 0; i < N_SERVICE; i++)
        set_owner(&w->service[i], NULL);
}

static const struct bus_loop_ops ops = { "power", on_open, on_lost };

/* ---- life ---- */

struct power_watch *power_watch_free(struct power_watch *w) {
    if (!w)
        return NULL;
    bus_loop_deinit(&w->loop);
    if (w->quiet)
        event_free(w->quiet);
    auto_close(&w->inhibitor);
    free(w);
    return NULL;
}

int power_watch_new(struct power_watch **ret_watch, struct server *server) {
    AUTO(power_watch_free) struct power_watch *w = NULL;
    int r;

    *ret_watch = NULL;
    if (!config_wants_bus(server->config))
        return 0;
    w = calloc(1, sizeof *w);
    if (!w)
        return err_new(-ENOMEM);
    w->server = server;
    w->inhibitor = -1;
    for (size_t i = 0; i < N_SERVICE; i++)
        w->service[i] = (struct service){ .watch = w, .kind = &kinds[i] };
    w->quiet = evtimer_new(server->base, on_quiet, w);
    if (!w->quiet)
        return err_new(-ENOMEM);
    r = bus_loop_init(&w->loop, server->base, &ops, w);
    if (r)
        return err_up(r);

    *ret_watch = take(w);
    return 0;
}
