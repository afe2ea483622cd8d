/* SPDX-License-Identifier: Apache-2.0 */

#include <math.h>
#include <string.h>
#include <time.h>

#include "engine/kv/kvfile.h"
#include "engine/sched/answer.h"
#include "engine/sched/job.h"
#include "engine/sched/shorten.h"

usec_t job_clock(void) {
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (usec_t)t.tv_sec * 1000000 + (usec_t)t.tv_nsec / 1000;
}

struct job *job_new(enum job_kind kind) {
    struct job *j = calloc(1, sizeof *j);

    if (!j)
        return NULL;
    j->kind = kind;
    j->fd = -1;
    j->prefill = kind == JOB_SAVE || kind == JOB_RESTORE;
    j->submitted = job_clock();
    j->result.stop_index = -1;
    atomic_init(&j->halt_end, JOB_END_N);
    return j;
}

struct job *job_free(struct job *j) {
    if (!j)
        return NULL;
    free(j->msg);
    free(j->text);
    tok_list_deinit(&j->tok);
    free(j->sample.bias);
    tok_list_deinit(&j->all);
    sample_free(j->sampler);
    stop_free(j->stop);
    kvfile_free(j->file);
    if (j->fd >= 0)
        (void)close(j->fd);
    free(j->answer);
    score_free(j->score);
    free(j->result.text);
    tok_list_deinit(&j->result.tok);
    free(j);
    return NULL;
}

/* ---- copying a request ---- */

static const char *job_place(char **at, const char *s) {
    size_t n = strlen(s) + 1;
    char *to = *at;

    memcpy(to, s, n);
    *at += n;
    return to;
}

int job_copy_messages(struct job *j, const struct chat_message *msg, size_t n) {
    size_t size = n * sizeof *msg;
    char *at;

    for (size_t i = 0; i < n; i++)
        size += strlen(msg[i].role) + strlen(msg[i].text) + 2;
    j->msg = malloc(size);
    if (!j->msg)
        return err_new(-ENOMEM);
    j->n_msg = n;

    at = (char *)(j->msg + n);
    for (size_t i = 0; i < n; i++) {
        j->msg[i].role = job_place(&at, msg[i].role);
        j->msg[i].text = job_place(&at, msg[i].text);
    }
    return 0;
}

int job_copy_text(struct job *j, const char *text, size_t n) {
    j->text = malloc(n + 1);
    if (!j->text)
        return err_new(-ENOMEM);
    memcpy(j->text, text, n);
    j->text[n] = 0;
    j->n_text = n;
    return 0;
}

int job_copy_tokens(struct job *j, const tok_t *tok, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (tok_list_push(&j->tok, tok[i]) < 0)
            return err_up(-ENOMEM);
    return 0;
}

int job_copy_sample(struct job *j, const struct sample_params *p) {
    j->sample = *p;
    j->sample.bias = NULL;
    if (p->n_bias == 0)
        return 0;
    j->sample.bias = calloc(p->n_bias, sizeof *p->bias);
    if (!j->sample.bias)
        return err_new(-ENOMEM);
    memcpy(j->sample.bias, p->bias, p->n_bias * sizeof *p->bias);
    return 0;
}

/* ---- control ---- */

void job_halt(struct job *j, enum job_end end) {
    int none = JOB_END_N;

    atomic_compare_exchange_strong(&j->halt_end, &none, (int)end);
    atomic_store(&j->halt, true);
}

enum job_end job_halted(struct job *j) {
    if (j->deadline && job_clock() >= j->deadline)
        job_halt(j, JOB_END_DEADLINE);
    return (enum job_end)atomic_load(&j->halt_end);
}

/* ---- preparing ---- */

/* Each step below returns JOB_END_N to go on, or how the job ends, with its sentence. */
static enum job_end job_invalid(struct job *j, const char *what) {
    if (!j->result.why.text[0])
        why_set(&j->result.why, 0, "%s", what);
    return JOB_END_INVALID;
}

static enum job_end job_no_memory(struct job *j) {
    why_set(&j->result.why, 0, "out of memory");
    return JOB_END_INTERNAL;
}

static enum job_end job_check_tokens(struct job *j, const struct vocab *v) {
    uint32_t n_vocab = vocab_n(v);

    for (size_t i = 0; i < j->tok.n; i++)
        if ((uint32_t)j->tok.id[i] >= n_vocab) {
            why_set(&j->result.why, 0, "token %zu is %d; the vocabulary has 0 to %u", i,
                    j->tok.id[i], n_vocab - 1);
            return JOB_END_INVALID;
        }
    for (uint32_t i = 0; i < j->sample.n_bias; i++)
        if ((uint32_t)j->sample.bias[i].id >= n_vocab) {
            why_set(&j->result.why, 0, "bias for token %d; the vocabulary has 0 to %u",
                    j->sample.bias[i].id, n_vocab - 1);
            return JOB_END_INVALID;
        }
    return JOB_END_N;
}

static enum job_end job_encode(struct job *j, const struct vocab *v, struct tok_list *out) {
    unsigned flags = (j->no_bos ? 0 : TOK_BOS) | (j->special ? TOK_SPECIAL : 0);

    return tok_encode(v, j->text, j->n_text, flags, out) == 0 ? JOB_END_N : job_no_memory(j);
}

static enum job_end job_render(struct job *j, const struct resident *r,
                               const struct chat_message *msg, size_t n_msg, struct tok_list *out) {
    struct chat_options opt = {
        .thinking = j->thinking,
        .empty_thought = r->empty_thought,
        .no_generation = j->no_generation,
    };
    int k = chat_render(r->vocab, msg, n_msg, &opt, out, &j->result.why);

    switch (k) {
    case 0:
        return JOB_END_N;
    case CHAT_NO_FORMAT:
        return job_invalid(j, "the model has no chat format: use a raw prompt");
    case CHAT_BAD_ROLE:
        return job_invalid(j, "a role that does not exist");
    default:
        return job_no_memory(j);
    }
}

static enum job_end job_chat(struct job *j, const struct resident *r, struct tok_list *out) {
    return job_render(j, r, j->msg, j->n_msg, out);
}

/* Render into j->all all but the @n_exchange oldest exchanges. @msg: room for j->n_msg */
static enum job_end job_render_rest(struct job *j, const struct resident *r, size_t n_exchange,
                                    struct chat_message *msg) {
    size_t n_msg = shorten_by(j->msg, j->n_msg, n_exchange, msg);
    enum job_end halted = job_halted(j);

    if (halted != JOB_END_N)
        return halted;
    j->all.n = 0;
    j->result.n_dropped_msg = (uint32_t)(j->n_msg - n_msg);
    return job_render(j, r, msg, n_msg, &j->all);
}

/* Drop the fewest exchanges that leave @max tokens or fewer, else all that may go. */
static enum job_end job_drop(struct job *j, const struct resident *r, size_t max) {
    size_t lo = 1, hi = shorten_most(j->msg, j->n_msg), n_exchange = hi, n_all = j->all.n;
    AUTO(free) struct chat_message *msg = calloc(j->n_msg, sizeof *msg);
    enum job_end end = JOB_END_N;

    if (!msg)
        return job_no_memory(j);
    while (end == JOB_END_N && lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        end = job_render_rest(j, r, mid, msg);
        if (j->all.n <= max)
            hi = mid;
        else
            lo = mid + 1;
    }
    if (end == JOB_END_N && n_exchange > 0)
        end = job_render_rest(j, r, lo, msg);
    j->result.n_dropped = (uint32_t)(n_all - j->all.n);
    return end;
}

/* The messages, shortened if that is asked for and the answer has no room otherwise. What is
 * dropped then leaves room for more than this answer: the next turns of the conversation find
 * their beginning in the cache, not each of them a later one. */
static enum job_end job_conversation(struct job *j, const struct resident *r) {
    enum job_end end = job_chat(j, r, &j->all);
    size_t part = r->n_user / JOB_DROP_PARTS, room = part;

    if (j->max_tokens)
        room = j->max_tokens < r->n_user / 2 ? j->max_tokens : r->n_user / 2;
    if (end != JOB_END_N || !j->drop_oldest || j->all.n + room <= r->n_user)
        return end;
    return job_drop(j, r, r->n_user - room - part);
}

/* The text that @tok stands for, into the result. */
static enum job_end job_decode(struct job *j, const struct vocab *v, const struct tok_list *tok,
                               bool special) {
    struct job_result *res = &j->result;
    struct tok_decoder d = { 0 };
    size_t n_alloc = 0;

    for (size_t i = 0; i <= tok->n; i++) {
        if (n_alloc - res->n_text <= TOK_PIECE_MAX) {
            char *text;

            if (res->n_text > JOB_OUT_MAX) {
                why_set(&res->why, 0, "the text is longer than %d bytes", JOB_OUT_MAX);
                return JOB_END_INVALID;
            }
            n_alloc = n_alloc * 2 + 4 * TOK_PIECE_MAX;
            text = realloc(res->text, n_alloc);
            if (!text)
                return job_no_memory(j);
            res->text = text;
        }
        res->n_text += i < tok->n ? tok_decode(&d, v, tok->id[i], special, res->text + res->n_text)
                                  : tok_decode_end(&d, res->text + res->n_text);
    }
    res->text[res->n_text] = 0;
    return JOB_END_N;
}

/* Chats part where a turn begins: others with the same instructions at the second one, the next
 * turn of the same chat at the last, for the history of an answer is not what opened it. */
static void job_find_marks(struct job *j, const struct vocab *v) {
    uint32_t n_turn = 0;

    for (size_t i = 0; i < j->all.n; i++)
        if (j->all.id[i] == vocab_mark(v, VOCAB_TURN) && ++n_turn >= 2) {
            j->n_mark = n_turn == 2 ? 1 : 2;
            j->mark[j->n_mark - 1] = (pos_t)i + 1;
        }
}

static enum job_end job_prompt(struct job *j, const struct resident *r) {
    enum job_end end = JOB_END_N;

    if (j->n_msg > 0)
        end = job_conversation(j, r);
    else if (j->text)
        end = job_encode(j, r->vocab, &j->all);
    else {
        j->all = j->tok;
        j->tok = (struct tok_list){ 0 };
    }
    if (end != JOB_END_N)
        return end;
    if (j->all.n == 0)
        return job_invalid(j, "the prompt is empty");

    j->result.n_prompt = j->all.n < UINT32_MAX ? (uint32_t)j->all.n : UINT32_MAX;
    j->result.n_available = r->n_ctx - 1;
    if (j->all.n >= r->n_ctx)
        return JOB_END_CONTEXT;
    job_find_marks(j, r->vocab);
    return JOB_END_N;
}

/* Tokens the prompt and its answer may have together, so that they fit into the user's part of the
 * cache: what was asked for, or what there is when nothing was. Return: 0: not even that fits. */
static uint32_t job_fit(struct job *j, const struct resident *r) {
    bool open = !j->max_tokens && !j->prefill;
    uint32_t n = j->result.n_prompt + (open ? 1 : j->n_max);

    j->result.need = kvcache_need(r->kv, n);
    j->result.have = r->kv_user;
    if (n > r->n_user)
        return 0;
    return open ? r->n_user : n;
}

/* Room for the answer, so that running allocates nothing. */
static enum job_end job_room(struct job *j, const struct resident *r) {
    uint32_t room = r->n_ctx - j->result.n_prompt, n;
    tok_t *id;

    j->n_max = j->max_tokens > 0 && j->max_tokens < room ? j->max_tokens : room;
    if (j->prefill)
        j->n_max = 0;
    n = job_fit(j, r);
    if (n == 0)
        return JOB_END_MEMORY;
    j->n_max = n - j->result.n_prompt;
    id = realloc(j->all.id, n * sizeof *id);
    if (!id)
        return job_no_memory(j);
    j->all.id = id;
    j->all.n_alloc = n;
    j->answer = calloc(1, sizeof *j->answer);
    return j->answer ? JOB_END_N : job_no_memory(j);
}

/* What is to be scored; then no more is generated than that. */
static enum job_end job_score(struct job *j, const struct resident *r) {
    int k = score_prepare(j->score, r->vocab, &j->result.why);

    if (k < 0)
        return job_no_memory(j);
    if (k > 0)
        return job_invalid(j, "a choice that cannot be scored");
    j->max_tokens = score_depth(j->score);
    if (j->max_tokens > r->n_ctx - j->result.n_prompt) {
        j->result.n_available = r->n_ctx - j->max_tokens;
        return JOB_END_CONTEXT;
    }
    return JOB_END_N;
}

static enum job_end job_save(struct job *j, const struct resident *r) {
    const struct kvfile_id id = { .model = r->print, .salt = j->salt };

    return kvfile_save(&j->file, j->fd, r->kv, &id, j->all.id, (pos_t)j->all.n) == 0
               ? JOB_END_N
               : job_no_memory(j);
}

/* The prompt is the file's. */
static enum job_end job_restore(struct job *j, const struct resident *r) {
    const struct kvfile_id id = { .model = r->print, .salt = j->salt };
    const tok_t *tok;
    pos_t n;
    int k = kvfile_load(&j->file, j->fd, r->kv, &id, &j->result.why);

    if (k != 0)
        return k == KVFILE_BAD ? JOB_END_CORRUPT : JOB_END_INTERNAL;
    tok = kvfile_tokens(j->file, &n);
    if (job_copy_tokens(j, tok, n) < 0)
        return job_no_memory(j);
    return job_check_tokens(j, r->vocab) == JOB_END_N ? JOB_END_N : JOB_END_CORRUPT;
}

/* The sampler, which has seen the prompt. */
static enum job_end job_sampler(struct job *j, const struct resident *r) {
    uint32_t n_top = j->logprobs && j->n_top == 0 ? 1 : j->n_top; /* 0 would compute none */
    int k;

    sample_merge(&j->sample, &r->defaults);
    if (sample_check(&j->sample, &j->result.why) != 0)
        return job_invalid(j, "a sampling parameter is out of range");
    k = sample_new(&j->sampler, &j->sample, r->vocab, j->logprobs ? n_top : 0);
    if (k < 0)
        return job_no_memory(j);
    for (size_t i = 0; i < j->all.n; i++)
        sample_accept(j->sampler, j->all.id[i]);
    j->result.seed = sample_seed(j->sampler);
    return JOB_END_N;
}

static enum job_end job_work(struct job *j, const struct resident *r) {
    enum job_end end = job_check_tokens(j, r->vocab);

    if (end != JOB_END_N)
        return end;
    switch (j->kind) {
    case JOB_RESTORE:
        end = job_restore(j, r);
        if (end != JOB_END_N)
            return end;
        __attribute__((fallthrough));
    case JOB_SAVE:
    case JOB_GENERATE:
        end = job_prompt(j, r);
        if (end == JOB_END_N && j->score)
            end = job_score(j, r);
        if (end == JOB_END_N)
            end = job_room(j, r);
        if (end == JOB_END_N && j->kind == JOB_SAVE)
            end = job_save(j, r);
        j->filing = j->kind == JOB_RESTORE;
        return end == JOB_END_N && !j->score && !j->prefill ? job_sampler(j, r) : end;
    case JOB_TOKENIZE:
        end = job_encode(j, r->vocab, &j->result.tok);
        break;
    case JOB_DETOKENIZE:
        end = job_decode(j, r->vocab, &j->tok, j->special);
        break;
    case JOB_RENDER:
        end = job_chat(j, r, &j->result.tok);
        if (end == JOB_END_N)
            end = job_decode(j, r->vocab, &j->result.tok, true);
        break;
    }
    return end == JOB_END_N ? JOB_END_STOP : end;
}

bool job_prepare(struct job *j, const struct resident *r) {
    enum job_end end = job_halted(j), halted;

    if (end == JOB_END_N)
        end = job_work(j, r);
    halted = job_halted(j); /* it may have come in the meantime */
    if (halted != JOB_END_N)
        end = halted;

    j->result.end = end;
    return end == JOB_END_N;
}

/* ---- queue ---- */

void job_queue_push(struct job_queue *q, struct job *j) {
    j->next = NULL;
    if (q->tail)
        q->tail->next = j;
    else
        q->head = j;
    q->tail = j;
}

struct job *job_queue_pop(struct job_queue *q) {
    struct job *j = q->head;

    if (j) {
        q->head = j->next;
        if (!q->head)
            q->tail = NULL;
    }
    return j;
}

bool job_queue_remove(struct job_queue *q, struct job *j) {
    struct job *prev = NULL;

    for (struct job *k = q->head; k; prev = k, k = k->next)
        if (k == j) {
            if (prev)
                prev->next = k->next;
            else
                q->head = k->next;
            if (q->tail == k)
                q->tail = prev;
            return true;
        }
    return false;
}
