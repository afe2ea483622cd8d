/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/portal/portal.h"

static int on_close(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    struct session *s = userdata;
    int r;

    if (strcmp(sd_bus_message_get_sender(m), s->owner) != 0)
        return sd_bus_error_set(error, SD_BUS_ERROR_ACCESS_DENIED, "it is another's session");
    r = sd_bus_reply_method_return(m, NULL);
    (void)session_free(s);
    return r;
}

static int get_version(sd_bus *bus, const char *path, const char *interface, const char *property,
                       sd_bus_message *reply, void *userdata, sd_bus_error *error) {
    return sd_bus_message_append(reply, "u", 1);
}

static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD("Close", NULL, NULL, on_close, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_SIGNAL("Closed", NULL, 0),
    SD_BUS_PROPERTY("version", "u", get_version, 0, SD_BUS_VTABLE_PROPERTY_CONST),
    SD_BUS_VTABLE_END,
};

static int on_gone(sd_bus_track *track, void *userdata) {
    (void)session_free(userdata);
    return 0;
}

int session_new(struct portal *p, sd_bus_message *m, const char *path, const char *use_case,
                const char *instructions, struct session **ret, sd_bus_error *error) {
    struct session *s;
    int r;

    LIST_FOREACH(s, &p->sessions, link)
    if (strcmp(s->path, path) == 0)
        return sd_bus_error_setf(error, PORTAL_ERROR "Exists", "%s is a session", path);
    if (p->n_session >= PORTAL_SESSIONS_MAX)
        return sd_bus_error_setf(error, PORTAL_ERROR "Failed", "more than %d sessions",
                                 PORTAL_SESSIONS_MAX);
    s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;

    s->portal = p;
    LIST_INSERT_HEAD(&p->sessions, s, link);
    p->n_session++;
    s->path = strdup(path);
    s->owner = strdup(sd_bus_message_get_sender(m));
    s->use_case = strdup(use_case);
    s->instructions = strdup(instructions);
    r = s->path && s->owner && s->use_case && s->instructions ? 0 : -ENOMEM;
    if (!r)
        r = sd_bus_track_new(p->bus, &s->track, on_gone, s);
    if (r >= 0)
        r = sd_bus_track_add_sender(s->track, m);
    if (r < 0) {
        (void)session_free(s);
        return r;
    }

    *ret = s;
    return 0;
}

int session_export(struct session *s) {
    return sd_bus_add_object_vtable(s->portal->bus, &s->slot, s->path, PORTAL_IMPL "Session",
                                    vtable, s);
}

struct session *session_free(struct session *s) {
    struct request *r;

    if (!s)
        return NULL;

    LIST_FOREACH(r, &s->portal->requests, link)
    if (r->session == s)
        request_cancel(r, "the session is closed");
    LIST_REMOVE(s, link);
    s->portal->n_session--;
    (void)sd_bus_slot_unref(s->slot);
    (void)sd_bus_track_unref(s->track);
    free(s->path);
    free(s->owner);
    free(s->use_case);
    free(s->instructions);
    free(s);

    return NULL;
}

int session_find(struct portal *p, sd_bus_message *m, const char *path, struct session **ret,
                 sd_bus_error *error) {
    struct session *s;

    LIST_FOREACH(s, &p->sessions, link)
    if (s->slot && strcmp(s->path, path) == 0 &&
        strcmp(s->owner, sd_bus_message_get_sender(m)) == 0) {
        *ret = s;
        return 0;
    }
    return sd_bus_error_setf(error, SD_BUS_ERROR_ACCESS_DENIED, "%s is no session of yours", path);
}

void session_tell_closed(struct session *s) {
    sd_bus_message *m = NULL;
    int r;

    if (!s->slot)
        return;
    r = sd_bus_message_new_signal(s->portal->bus, &m, s->path, PORTAL_IMPL "Session", "Closed");
    if (r >= 0)
        (void)sd_bus_send_to(s->portal->bus, m, s->owner, NULL);
    (void)sd_bus_message_unref(m);
}
