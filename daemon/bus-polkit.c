/* SPDX-License-Identifier: Apache-2.0 */

/*
 * bus-polkit - may this caller do that?
 *
 * Asked of polkit and not waited for, since it may ask a person. A bus without polkit allows to
 * use the service, which everybody who can open its socket may as well, and nothing else to others
 * than root and the service's own user.
 */

#include <string.h>

#include "daemon/bus-priv.h"

static const char *const names[] = {
    [BUS_USE] = BUS_NS ".use",
    [BUS_BACKGROUND] = BUS_NS ".background",
    [BUS_MANAGE] = BUS_NS ".manage-models",
    [BUS_INSPECT] = BUS_NS ".inspect-others",
    [BUS_TRIM] = BUS_NS ".trim",
};

static void on_answer(struct bus_call *c, bool allowed, bool challenge) {
    if (allowed) {
        bus_call_allowed(c);
        return;
    }
    if (challenge && !c->gate->denied &&
        sd_bus_message_get_allow_interactive_authorization(c->m) <= 0)
        c->answered = sd_bus_reply_method_errorf(
                          c->m, SD_BUS_ERROR_INTERACTIVE_AUTHORIZATION_REQUIRED,
                          "a person must allow it, and the call does not let one be asked") >= 0;
    bus_call_denied(c, "polkit does not allow it");
}

static int on_reply(sd_bus_message *m, void *arg, sd_bus_error *error) {
    struct bus_call *c = arg;
    int allowed = 0, challenge = 0;

    if (sd_bus_message_get_error(m) && c->action < BUS_MANAGE)
        bus_call_allowed(c);
    else if (sd_bus_message_get_error(m))
        bus_call_denied(c, "polkit does not answer");
    else if (sd_bus_message_read(m, "(bba{ss})", &allowed, &challenge, 0) < 0)
        bus_call_denied(c, "polkit's answer is unreadable");
    else
        on_answer(c, allowed, challenge);
    return 0;
}

int bus_polkit_ask(struct bus_call *c) {
    AUTO(bus_message_unref) sd_bus_message *m = NULL;
    sd_bus *sd = c->peer->bus->sd;
    uint32_t interactive =
        !c->gate->denied && sd_bus_message_get_allow_interactive_authorization(c->m) > 0;
    int r;

    c->polkit = sd_bus_slot_unref(c->polkit); /* of the action before */
    r = sd_bus_message_new_method_call(
        sd, &m, "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority",
        "org.freedesktop.PolicyKit1.Authority", "CheckAuthorization");
    if (r >= 0)
        r = sd_bus_message_append(m, "(sa{sv})sa{ss}us", "system-bus-name", 1, "name", "s",
                                  c->peer->name, names[c->action], 0, interactive, "");
    if (r >= 0) /* a person may take as long as it takes */
        r = sd_bus_call_async(sd, &c->polkit, m, on_reply, c, UINT64_MAX);
    return r < 0 ? err_new(r) : 0;
}
