/* SPDX-License-Identifier: Apache-2.0 */

#include <string.h>

#include "engine/base/utf8.h"
#include "engine/sched/answer.h"

void answer_init(struct answer *a, struct job *j, const struct vocab *v, answer_post_fn *post,
                 void *arg) {
    *a = (struct answer){
        .vocab = v,
        .stop = j->stop,
        .raw = j->n_msg == 0,
        .logprobs = j->logprobs,
        .n_top = j->n_top,
        .kind = CHAT_TEXT,
        .post = post,
        .arg = arg,
        .event = { .kind = JOB_EVENT_TEXT, .job = j },
    };
    chat_parser_init(&a->parser, v);
}

/* Post @text in as many events as it takes; the last one bears @token, if there is one. */
static void answer_post(struct answer *a, const char *text, size_t n,
                        const struct sample_result *token) {
    struct job_event *ev = &a->event;

    while (n > 0 || token) {
        size_t k = n < JOB_TEXT_MAX ? n : JOB_TEXT_MAX - utf8_partial(text, JOB_TEXT_MAX);

        ev->text_kind = a->kind;
        ev->has_token = token && k == n;
        if (ev->has_token) {
            ev->token = *token;
            if (ev->token.n_top > a->n_top)
                ev->token.n_top = a->n_top;
            token = NULL;
        }
        memcpy(ev->text, text, k);
        ev->n_text = (uint32_t)k;
        a->post(a->arg, ev);
        text += k;
        n -= k;
    }
}

/* Pass a piece on, through the stop strings where they count. */
static int32_t answer_piece(struct answer *a, const char *piece, size_t n,
                            const struct sample_result *token) {
    size_t n_old = stop_n_held(a->stop), n_text;
    const char *text;
    int32_t hit;

    if (a->kind != CHAT_TEXT) {
        answer_post(a, piece, n, token);
        return -1;
    }

    hit = stop_feed(a->stop, piece, n, &text, &n_text);
    if (token) { /* what earlier tokens left behind goes first, alone */
        if (n_old > n_text)
            n_old = n_text;
        answer_post(a, text, n_old, NULL);
        text += n_old;
        n_text -= n_old;
    }
    answer_post(a, text, n_text, token);
    return hit;
}

int32_t answer_end(struct answer *a) {
    char piece[TOK_PIECE_MAX];
    size_t n = tok_decode_end(&a->decoder, piece);
    const char *text;
    int32_t hit;

    hit = n > 0 ? answer_piece(a, piece, n, NULL) : -1;
    if (hit < 0) {
        stop_flush(a->stop, &text, &n);
        answer_post(a, text, n, NULL);
    }
    return hit;
}

int32_t answer_token(struct answer *a, const struct sample_result *token) {
    enum chat_kind kind = a->raw ? CHAT_TEXT : chat_parse(&a->parser, token->id);
    char piece[TOK_PIECE_MAX];
    int32_t hit = -1;
    size_t n;

    if (kind != a->kind)
        hit = answer_end(a);
    a->kind = kind;
    if (hit >= 0 || kind == CHAT_MARKER)
        return hit;

    n = tok_decode(&a->decoder, a->vocab, token->id, false, piece);
    return answer_piece(a, piece, n, a->logprobs ? token : NULL);
}
