/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/base/utf8.h"
#include "engine/text/chat.h"

static const char label[] = "thought";
enum { LABEL_SIZE = sizeof label - 1 };

/* ---- rendering ---- */

struct render {
    const struct vocab *v;
    struct tok_list *out;
    char *text; /* [n_text] plain text since the last marker: it is encoded in one piece */
    size_t n_text, n_alloc;
};

static int add_text(struct render *d, const char *s, size_t n) {
    if (n > d->n_alloc - d->n_text) {
        size_t n_alloc = 2 * (d->n_text + n);
        char *more = realloc(d->text, n_alloc);

        if (!more)
            return err_new(-ENOMEM);
        d->text = more;
        d->n_alloc = n_alloc;
    }
    if (n)
        memcpy(d->text + d->n_text, s, n);
    d->n_text += n;

    return 0;
}

static int add_words(struct render *d, const char *s) {
    return add_text(d, s, strlen(s));
}

/* Encode the text before the marker, then the marker. */
static int add_mark(struct render *d, enum vocab_mark mark) {
    int r = tok_encode(d->v, d->text, d->n_text, 0, d->out);

    d->n_text = 0;
    return r ? err_up(r) : tok_list_push(d->out, vocab_mark(d->v, mark));
}

/* Bytes of the white space @s begins with, as Python's str.strip() knows it; 0: none. */
static size_t space_size(const char *s, size_t n) {
    static const char wide[][4] = { "\xc2\x85", "\u00a0", "\u1680", "\u2000", "\u2001",
                                    "\u2002",   "\u2003", "\u2004", "\u2005", "\u2006",
                                    "\u2007",   "\u2008", "\u2009", "\u200a", "\u2028",
                                    "\u2029",   "\u202f", "\u205f", "\u3000" };
    size_t k;

    if (!n)
        return 0;
    if (*s == ' ' || (*s >= '\t' && *s <= '\r') || (*s >= 0x1c && *s <= 0x1f))
        return 1;
    k = utf8_len(s, n);
    for (size_t i = 0; k > 1 && i < sizeof wide / sizeof *wide; i++)
        if (strlen(wide[i]) == k && memcmp(wide[i], s, k) == 0)
            return k;

    return 0;
}

/* Bytes of the white space that the @n bytes at @s end in; 0: none. */
static size_t space_size_back(const char *s, size_t n) {
    for (size_t k = 1; k <= 3 && k <= n; k++)
        if (space_size(s + n - k, k) == k)
            return k;

    return 0;
}

static void trim(const char **s, size_t *n) {
    size_t k;

    while ((k = space_size(*s, *n))) {
        *s += k;
        *n -= k;
    }
    while ((k = space_size_back(*s, *n)))
        *n -= k;
}

static int add_trimmed(struct render *d, const char *s, size_t n) {
    trim(&s, &n);
    return add_text(d, s, n);
}

/* A model's earlier answer without its thoughts: of what lies between closers, what comes before
 * the opener. Works on text: here the markers are no tokens. */
static int add_answer(struct render *d, const char *s) {
    const char *open = vocab_mark_text(VOCAB_CHANNEL), *close = vocab_mark_text(VOCAB_CHANNEL_END);
    AUTO(free) char *kept = malloc(strlen(s) + 1);
    size_t n_kept = 0;

    if (!kept)
        return err_new(-ENOMEM);
    for (const char *end; s; s = end ? end + strlen(close) : NULL) {
        size_t n;
        const char *cut;

        end = strstr(s, close);
        n = end ? (size_t)(end - s) : strlen(s);
        cut = memmem(s, n, open, strlen(open));
        n = cut ? (size_t)(cut - s) : n;
        memcpy(kept + n_kept, s, n);
        n_kept += n;
    }

    return add_trimmed(d, kept, n_kept);
}

bool chat_is_instruction(const struct chat_message *m) {
    return strcmp(m->role, "system") == 0 || strcmp(m->role, "developer") == 0;
}

static bool is_answer(const struct chat_message *m) {
    return strcmp(m->role, "assistant") == 0;
}

static int end_turn(struct render *d) {
    int r = add_mark(d, VOCAB_TURN_END);

    return r ? r : add_words(d, "\n");
}

/* @m: the first message if it is the system's, else NULL */
static int system_turn(struct render *d, const struct chat_message *m, bool thinking) {
    int r;

    if ((r = add_mark(d, VOCAB_TURN)) || (r = add_words(d, "system\n")))
        return r;
    if (thinking && ((r = add_mark(d, VOCAB_THINK)) || (r = add_words(d, "\n"))))
        return r;
    if (m && (r = add_trimmed(d, m->text, strlen(m->text))))
        return r;

    return end_turn(d);
}

/* The turn that begins with @m[0]: answers in a row are one. Return: its messages in @ret_n. */
static int turn(struct render *d, const struct chat_message *m, size_t n, size_t *ret_n) {
    size_t k = 1;
    int r;

    if ((r = add_mark(d, VOCAB_TURN)) || (r = add_words(d, is_answer(m) ? "model" : m->role)) ||
        (r = add_words(d, "\n")))
        return r;
    if (is_answer(m)) {
        for (k = 0; k < n && is_answer(&m[k]); k++) {
            r = add_answer(d, m[k].text);
            if (r)
                return r;
        }
    } else {
        r = add_trimmed(d, m->text, strlen(m->text));
        if (r)
            return r;
    }
    *ret_n = k;

    return end_turn(d);
}

static int render(struct render *d, const struct chat_message *msg, size_t n_msg,
                  const struct chat_options *opt) {
    bool empty = opt->empty_thought && !opt->thinking && vocab_mark(d->v, VOCAB_CHANNEL) >= 0 &&
                 vocab_mark(d->v, VOCAB_CHANNEL_END) >= 0;
    size_t i = 0;
    int r = 0;

    if (vocab_bos(d->v) >= 0)
        r = tok_list_push(d->out, vocab_bos(d->v));
    if (r == 0 && (opt->thinking || (n_msg && chat_is_instruction(msg)))) {
        i = n_msg && chat_is_instruction(msg);
        r = system_turn(d, i ? msg : NULL, opt->thinking);
    }
    for (size_t k; r == 0 && i < n_msg; i += k)
        r = turn(d, msg + i, n_msg - i, &k);
    if (r == 0 && !opt->no_generation)
        (void)((r = add_mark(d, VOCAB_TURN)) || (r = add_words(d, "model\n")));
    if (r == 0 && !opt->no_generation && empty)
        (void)((r = add_mark(d, VOCAB_CHANNEL)) || (r = add_words(d, label)) ||
               (r = add_words(d, "\n")) || (r = add_mark(d, VOCAB_CHANNEL_END)));
    if (r == 0)
        r = tok_encode(d->v, d->text, d->n_text, 0, d->out);

    return err_up(r);
}

static int check(const struct vocab *v, const struct chat_message *msg, size_t n_msg,
                 const struct chat_options *opt, struct why *why) {
    static const enum vocab_mark need[] = { VOCAB_TURN, VOCAB_TURN_END, VOCAB_THINK };

    for (size_t i = 0; i < (opt->thinking ? 3 : 2); i++)
        if (vocab_mark(v, need[i]) < 0)
            return why_set(why, CHAT_NO_FORMAT, "the vocabulary has no token \"%s\"%s",
                           vocab_mark_text(need[i]),
                           i < 2 ? ": only raw prompts work" : ": the model can not think");
    for (size_t i = 0; i < n_msg; i++)
        if (!chat_is_instruction(&msg[i]) && !is_answer(&msg[i]) &&
            strcmp(msg[i].role, "user") != 0)
            return why_set(why, CHAT_BAD_ROLE,
                           "message %zu: role \"%.40s\" is none of system, developer, user, "
                           "assistant",
                           i, utf8_valid(msg[i].role, strnlen(msg[i].role, 40)) ? msg[i].role : "");

    return 0;
}

int chat_render(const struct vocab *v, const struct chat_message *msg, size_t n_msg,
                const struct chat_options *opt, struct tok_list *out, struct why *why) {
    struct render d = { .v = v, .out = out };
    size_t n_before = out->n;
    int r;

    r = check(v, msg, n_msg, opt, why);
    if (r)
        return r;
    r = render(&d, msg, n_msg, opt);
    free(d.text);
    if (r)
        out->n = n_before;

    return err_up(r);
}

bool chat_wants_empty_thought(const struct gguf *g) {
    /* As a template's string literal spells it, and as one that means a real newline. */
    static const char *const spelt[] = { "<|channel>thought\\n<channel|>",
                                         "<|channel>thought\n<channel|>" };
    const char *s;
    size_t n;

    if (gguf_get_str(g, "tokenizer.chat_template", &s, &n, NULL) != 0)
        return false;
    for (size_t i = 0; i < sizeof spelt / sizeof *spelt; i++)
        if (memmem(s, n, spelt[i], strlen(spelt[i])))
            return true;

    return false;
}

/* ---- parsing ---- */

enum {
    IN_TEXT,
    IN_LABEL, /* behind an opener: n_label bytes of "thought" have come */
    IN_GAP,   /* behind the label: white space is no thought yet */
    IN_THOUGHT,
};

void chat_parser_init(struct chat_parser *p, const struct vocab *v) {
    *p = (struct chat_parser){ .v = v, .state = IN_TEXT };
}

static bool all_space(const char *s, size_t n) {
    trim(&s, &n);
    return n == 0;
}

/* What a piece behind an opener is. A channel of another name is a thought too: not for show, not
 * lost. */
static enum chat_kind parse_label(struct chat_parser *p, const char *s, size_t n) {
    size_t n_want = LABEL_SIZE - p->n_label, k = n < n_want ? n : n_want;

    if (memcmp(s, label + p->n_label, k) == 0) {
        p->n_label = (uint8_t)(p->n_label + k);
        if (k < n_want)
            return CHAT_MARKER;
        p->state = IN_GAP;
        if (all_space(s + k, n - k))
            return CHAT_MARKER;
    }
    p->state = IN_THOUGHT;

    return CHAT_THOUGHT;
}

enum chat_kind chat_parse(struct chat_parser *p, tok_t id) {
    const char *s;
    size_t n;

    if (id == vocab_mark(p->v, VOCAB_CHANNEL)) {
        p->state = IN_LABEL;
        p->n_label = 0;
        return CHAT_MARKER;
    }
    if (id == vocab_mark(p->v, VOCAB_CHANNEL_END)) {
        p->state = IN_TEXT;
        return CHAT_MARKER;
    }
    if (vocab_type(p->v, id) == VOCAB_CONTROL || vocab_is_end(p->v, id))
        return CHAT_MARKER;

    s = vocab_piece(p->v, id, false, &n);
    switch (p->state) {
    case IN_LABEL:
        return parse_label(p, s, n);
    case IN_GAP:
        if (all_space(s, n))
            return CHAT_MARKER;
        p->state = IN_THOUGHT;
        return CHAT_THOUGHT;
    case IN_THOUGHT:
        return CHAT_THOUGHT;
    default:
        return CHAT_TEXT;
    }
}
