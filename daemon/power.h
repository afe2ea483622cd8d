/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * power - what is done to save energy, before the machine sleeps, and when a user leaves
 *
 *   POWER_FULL     nothing
 *   POWER_SAVING   the machine is on battery, or its power saver is on, as far as "power-save"
 *                  minds that: fewer threads compute, and work of background waits
 *   POWER_ASLEEP   the machine is about to sleep: all work waits at its next token, but what is
 *                  being saved; memory of the cache that holds nothing is given up
 *
 * When a user locks the screen or leaves, as "forget" says, keys and values that are kept of it are
 * given up, except for those in files of saved sessions. Answers that are being written go on.
 *
 * It knows no bus: power-watch.h tells it.
 *
 * Owner: the daemon thread.
 */

#include <stdbool.h>
#include <sys/types.h>

#include "daemon/config.h"
#include "daemon/models.h"

struct power;

enum power_level { POWER_FULL, POWER_SAVING, POWER_ASLEEP };
enum power_sign { POWER_BATTERY, POWER_SAVER, POWER_SLEEP, POWER_N_SIGN };

/* @models, @config: borrowed. Return: 0 or -ENOMEM. */
int power_new(struct power **ret_power, struct models *models, const struct config *config);
struct power *power_free(struct power *p);
AUTO_DEFINE(struct power *, power_free)
void power_reconfigure(struct power *p, const struct config *config);

/* Is it so? At first nothing is. */
void power_tell(struct power *p, enum power_sign sign, bool on);
/* A user locked the screen, or left for good. */
void power_leave(struct power *p, uid_t uid, bool for_good);

enum power_level power_level(const struct power *p);
bool power_sign(const struct power *p, enum power_sign sign);
