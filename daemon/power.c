/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>

#include "daemon/power.h"
#include "engine/base/log.h"

struct power {
    struct models *models;
    const struct config *config;
    bool sign[POWER_N_SIGN];
    enum power_level level;
};

static bool is_saving(const struct power *p) {
    switch ((enum config_save)p->config->power_save) {
    case CONFIG_SAVE_BATTERY:
        return p->sign[POWER_BATTERY] || p->sign[POWER_SAVER];
    case CONFIG_SAVE_PROFILE:
        return p->sign[POWER_SAVER];
    case CONFIG_SAVE_NEVER:
        break;
    }
    return false;
}

static void settle(struct power *p) {
    static const char *const names[] = { "full", "saving", "about to sleep" };
    bool saving = is_saving(p);
    enum power_level level = p->sign[POWER_SLEEP] ? POWER_ASLEEP
                             : saving             ? POWER_SAVING
                                                  : POWER_FULL;

    if (level != p->level)
        log_info("power", "power: %s", names[level]);
    p->level = level;
    models_power(p->models, saving,
                 level == POWER_ASLEEP   ? ENGINE_HOLD_ALL
                 : level == POWER_SAVING ? ENGINE_HOLD_BACKGROUND
                                         : ENGINE_HOLD_NONE);
}

void power_tell(struct power *p, enum power_sign sign, bool on) {
    if (p->sign[sign] == on)
        return;
    p->sign[sign] = on;
    settle(p);
}

void power_leave(struct power *p, uid_t uid, bool for_good) {
    uint64_t forget = p->config->forget;

    if (forget == CONFIG_FORGET_NEVER || (forget == CONFIG_FORGET_LOGOUT && !for_good))
        return;
    log_info("power", "user %u %s: forgotten", (unsigned)uid,
             for_good ? "left" : "locked the screen");
    models_forget(p->models, uid);
}

enum power_level power_level(const struct power *p) {
    return p->level;
}

bool power_sign(const struct power *p, enum power_sign sign) {
    return p->sign[sign];
}

void power_reconfigure(struct power *p, const struct config *config) {
    p->config = config;
    settle(p);
}

struct power *power_free(struct power *p) {
    free(p);
    return NULL;
}

int power_new(struct power **ret_power, struct models *models, const struct config *config) {
    struct power *p = calloc(1, sizeof *p);

    if (!p)
        return err_new(-ENOMEM);
    p->models = models;
    p->config = config;
    *ret_power = p;
    return 0;
}
