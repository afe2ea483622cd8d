/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOED_PORTAL_INPUT_H
#define MOED_PORTAL_INPUT_H

/*
 * input - what an application asks, as the portal words it
 *
 * A JSON array, either of parts, which are one message of the user:
 *
 *   [{"type": "input_text", "text": "…"}, …]
 *
 * or of messages, whose content is such parts; an answer's parts are of type "output_text":
 *
 *   [{"role": "user", "content": [{"type": "input_text", "text": "…"}]}, …]
 *
 * Parts of a message are joined by new lines. Keys that are not known are left out.
 *
 * Source: the draft of org.freedesktop.portal.Language, version 1
 */

#include <stddef.h>

#include "client/moe.h"

enum { INPUT_MAX = 4 << 20 /* bytes of JSON */ };

enum {
    INPUT__OK,

    INPUT_BAD,         /* it is not what is described above */
    INPUT_UNSUPPORTED, /* it is, and has an image, a sound or a tool's result */
};

struct input {
    struct moe_message *msg; /* [n], at least one; content is owned, roles are constants */
    size_t n;
};

/** input_parse() - read @json
 * @ret_why: a sentence, constant, for any outcome > 0
 * Return: 0, INPUT_BAD, INPUT_UNSUPPORTED, or -ENOMEM. */
int input_parse(const char *json, struct input *ret, const char **ret_why);
void input_deinit(struct input *in);

#endif
