/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * chat - the Gemma 4 turn format, written natively; a template from a file is never executed
 *
 * Rendering goes straight to tokens: markers are ids, message text is encoded as plain text, so a
 * message can not contain a marker. Answers in a row are one turn. Parsing of the answer works on
 * ids for the same reason.
 *
 * Source: the official chat template of Gemma 4, thinking and system turns; tools are not rendered.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/text/tok.h"

struct chat_message {
    const char *role; /* "system", "developer", "user", "assistant" */
    const char *text; /* UTF-8 */
};

enum {
    CHAT__OK,

    CHAT_NO_FORMAT, /* no turn markers: only raw prompts work; or no marker to ask for thinking */
    CHAT_BAD_ROLE,  /* @why names it */
};

struct chat_options {
    bool thinking;      /* ask the model to think first */
    bool empty_thought; /* with thinking off: prompt ends in an empty thought (large models) */
    bool no_generation; /* stop before "<|turn>model\n" */
};

/* Is it of the roles "system" and "developer"? */
bool chat_is_instruction(const struct chat_message *m);

/* Does the file's own template end its prompt in an empty thought? It is searched, not executed. */
bool chat_wants_empty_thought(const struct gguf *g);

/* Append the prompt of @n_msg messages to @out, <bos> first. On failure @out is as before. */
int chat_render(const struct vocab *v, const struct chat_message *msg, size_t n_msg,
                const struct chat_options *opt, struct tok_list *out, struct why *why);

/* What part of an answer a token belongs to. Feed every generated token in order. */
enum chat_kind {
    CHAT_TEXT,
    CHAT_THOUGHT,
    CHAT_MARKER, /* a marker itself, or the "thought\n" label: shown to nobody */
};

struct chat_parser {
    const struct vocab *v;
    uint32_t state;
    uint8_t n_label;
};
void chat_parser_init(struct chat_parser *p, const struct vocab *v);
enum chat_kind chat_parse(struct chat_parser *p, tok_t id);
