/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/portal/portal.h"

const char *request_error_name(int code) {
    switch (code) {
    case MOE_INVALID_ARGS:
        return PORTAL_ERROR "InvalidArgument";
    case MOE_CANCELLED:
        return PORTAL_ERROR "Cancelled";
    case MOE_ACCESS_DENIED:
        return PORTAL_ERROR "NotAllowed";
    case MOE_NO_SUCH_MODEL:
        return PORTAL_ERROR "NotFound";
    case MOE_NOT_SUPPORTED:
        return SD_BUS_ERROR_NOT_SUPPORTED;
    default:
        return PORTAL_ERROR "Failed";
    }
}

static void fail(struct request *r, const char *name, const char *text) {
    if (r->call)
        (void)sd_bus_reply_method_errorf(r->call, name, "%s", text);
    r->call = sd_bus_message_unref(r->call);
}

void request_fail(struct request *r, const struct moe_error *e) {
    fail(r, request_error_name(e->code), e->message);
}

void request_cancel(struct request *r, const char *why) {
    fail(r, PORTAL_ERROR "Cancelled", why);
    r->slot = sd_bus_slot_unref(r->slot);
    r->session = NULL;
    if (r->portal->moe)
        (void)moe_cancel(r->portal->moe, r->id); /* of others than answers the reply is ignored */
}

static int on_close(sd_bus_message *m, void *userdata, sd_bus_error *error) {
    struct request *r = userdata;
    int k;

    if (strcmp(sd_bus_message_get_sender(m), r->owner) != 0)
        return sd_bus_error_set(error, SD_BUS_ERROR_ACCESS_DENIED, "it is another's request");
    k = sd_bus_reply_method_return(m, NULL);
    if (r->kind == REQUEST_CREATE)
        (void)session_free(r->session); /* and with it the request */
    else
        request_cancel(r, "the request was closed");
    return k;
}

static const sd_bus_vtable vtable[] = {
    SD_BUS_VTABLE_START(0),
    SD_BUS_METHOD("Close", NULL, NULL, on_close, SD_BUS_VTABLE_UNPRIVILEGED),
    SD_BUS_VTABLE_END,
};

int request_new(struct portal *p, sd_bus_message *m, enum request_kind kind, const char *path,
                struct session *session, struct request **ret, sd_bus_error *error) {
    struct request *r;
    int k;

    k = link_open(p, error);
    if (k < 0)
        return k;
    r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;

    r->portal = p;
    r->kind = kind;
    r->session = session;
    r->call = sd_bus_message_ref(m);
    LIST_INSERT_HEAD(&p->requests, r, link);
    r->owner = strdup(sd_bus_message_get_sender(m));
    r->path = path ? strdup(path) : NULL;
    k = r->owner && (r->path || !path) ? 0 : -ENOMEM;
    if (!k && path)
        k = sd_bus_add_object_vtable(p->bus, &r->slot, path, PORTAL_IMPL "Request", vtable, r);
    if (k < 0) {
        r->call = sd_bus_message_unref(r->call);
        request_free(r);
        return k == -EEXIST
                   ? sd_bus_error_setf(error, PORTAL_ERROR "Exists", "%s is a request", path)
                   : k;
    }

    *ret = r;
    return 0;
}

void request_free(struct request *r) {
    fail(r, PORTAL_ERROR "Failed", "out of memory");
    (void)sd_bus_slot_unref(r->slot);
    LIST_REMOVE(r, link);
    free(r->path);
    free(r->owner);
    free(r);
}

/* @n bytes as text of the bus, which has no NUL. */
static int append_text(sd_bus_message *m, const char *text, size_t n) {
    char *s;
    int r;

    r = sd_bus_message_append_string_space(m, n, &s);
    for (size_t i = 0; r >= 0 && i < n; i++)
        s[i] = text[i] ? text[i] : ' ';
    return r;
}

void request_signal(struct request *r, const char *member, const char *text, size_t n,
                    const bool *done) {
    sd_bus_message *m = NULL;
    int k;

    if (!r->call || !r->session)
        return;
    k = sd_bus_message_new_signal(r->portal->bus, &m, PORTAL_PATH, PORTAL_IMPL "Language", member);
    if (k >= 0)
        k = sd_bus_message_append(m, "oo", r->path, r->session->path);
    if (k >= 0)
        k = append_text(m, text, n);
    if (k >= 0 && done)
        k = sd_bus_message_append(m, "b", (int)*done);
    if (k >= 0)
        k = sd_bus_send_to(r->portal->bus, m, r->owner, NULL);
    (void)sd_bus_message_unref(m);
    if (k < 0)
        request_cancel(r, "a part of the answer could not be sent");
}
