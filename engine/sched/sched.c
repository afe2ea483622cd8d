/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "engine/kv/kvfile.h"
#include "engine/kv/prefix.h"
#include "engine/sched/answer.h"
#include "engine/sched/batch.h"
#include "engine/sched/pace.h"
#include "engine/sched/sched.h"

enum {
    SCHED_LATE_END = ANSWER_EVENT_MAX + 1,                   /* posted by one end at most */
    SCHED_LATE_PART = ANSWER_EVENT_MAX + 1 + SCHED_LATE_END, /* by one part of a step: progress, a
                                                                token, an end */
};

struct sched {
    struct resident *res;
    struct sched_options opt;
    struct ring *out;
    struct sched_stats *stats;
    struct fair *fair;
    struct prefix *prefix;
    struct pace pace;
    uint32_t n_single; /* single rows of recent steps at most */
    struct batch batch;

    struct job_queue jobs; /* all, in order of arrival */
    uint32_t n_running;    /* have a place */
    uint64_t room;         /* bytes of the cache they have room in */
    enum sched_hold hold;

    /* Events the ring had no room for, in order. Nothing runs while there are any. */
    uint32_t n_late, n_late_max;
    struct job_event *late;
};

int sched_new(struct sched **ret_s, struct resident *r, const struct sched_options *opt,
              struct ring *out, struct sched_stats *stats) {
    AUTO(sched_free) struct sched *s = calloc(1, sizeof *s);
    int k;

    if (!s)
        return err_new(-ENOMEM);
    s->res = r;
    s->opt = *opt;
    s->out = out;
    s->stats = stats;
    pace_init(&s->pace, opt->bound);
    k = batch_init(&s->batch, r->n_batch, r->n_seq);
    if (k == 0)
        k = fair_new(&s->fair, opt->n_job);
    if (k == 0)
        k = prefix_new(&s->prefix, r->kv, r->n_keep, r->n_ctx, opt->prefix_bytes);
    if (k < 0)
        return err_up(k);
    s->n_late_max = r->n_seq * SCHED_LATE_PART;
    s->late = calloc(s->n_late_max, sizeof *s->late);
    if (!s->late)
        return err_new(-ENOMEM);

    *ret_s = take(s);
    return 0;
}

struct sched *sched_free(struct sched *s) {
    if (!s)
        return NULL;
    batch_deinit(&s->batch);
    fair_free(s->fair);
    prefix_free(s->prefix);
    free(s->late);
    free(s);
    return NULL;
}

/* ---- events and counters ---- */

static void sched_post(void *arg, const struct job_event *ev) {
    struct sched *s = arg;

    if (s->n_late == 0 && ring_push(s->out, ev) == 0)
        return;
    assert(s->n_late < s->n_late_max);
    s->late[s->n_late++] = *ev;
}

/* Return: true when nothing is late any more. */
static bool sched_flush(struct sched *s) {
    uint32_t n = 0;

    while (n < s->n_late && ring_push(s->out, &s->late[n]) == 0)
        n++;
    s->n_late -= n;
    memmove(s->late, s->late + n, s->n_late * sizeof *s->late);
    return s->n_late == 0;
}

static void sched_tell(struct sched *s, struct job *j, usec_t now) {
    struct job_event ev = {
        .kind = JOB_EVENT_PROGRESS, .job = j, .done = j->n_done, .total = j->all.n
    };

    if (now - j->told < SCHED_PROGRESS_USEC)
        return;
    j->told = now;
    sched_post(s, &ev);
}

static void sched_mean(_Atomic uint64_t *mean, uint64_t usec) {
    uint64_t m = atomic_load_explicit(mean, memory_order_relaxed);

    m = m ? m - m / 8 + usec / 8 : usec;
    atomic_store_explicit(mean, m ? m : 1, memory_order_relaxed);
}

static void sched_count(_Atomic uint64_t *count, uint64_t n) {
    atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

/* ---- jobs and their places ---- */

static struct job *sched_job(struct fair_job *f) {
    return (struct job *)((char *)f - offsetof(struct job, fair));
}

void sched_add(struct sched *s, struct job *j) {
    usec_t now = job_clock();

    answer_init(j->answer, j, s->res->vocab, sched_post, s);
    j->result.queue_usec = now - j->submitted;
    j->waits = j->told = now;
    atomic_store_explicit(&j->live.n_prompt, j->result.n_prompt, memory_order_relaxed);
    fair_add(s->fair, &j->fair);
    job_queue_push(&s->jobs, j);
}

/* Tokens to have room for: all it may come to, or some more than now when it did not say. */
static uint32_t sched_ahead(const struct job *j) {
    uint32_t most = j->result.n_prompt + j->n_max, n = (uint32_t)j->all.n;

    return j->max_tokens || most - n <= SCHED_AHEAD ? most : n + SCHED_AHEAD;
}

static uint64_t sched_need(const struct sched *s, const struct job *j) {
    return kvcache_need(s->res->kv, sched_ahead(j));
}

/* Bytes that the jobs of @j's user have room in. */
static uint64_t sched_user_room(const struct sched *s, const struct job *j) {
    uint64_t sum = 0;

    for (const struct job *k = s->jobs.head; k; k = k->next)
        sum += k->fair.running && k->fair.who.uid == j->fair.who.uid ? k->room : 0;
    return sum;
}

static bool sched_fits(const struct sched *s, uint64_t more) {
    return more <= kvcache_n_byte(s->res->kv) - s->room;
}

static void sched_set_room(struct sched *s, struct job *j, uint64_t room) {
    s->room = s->room - j->room + room;
    j->room = room;
    j->n_room = room ? sched_ahead(j) : 0;
    if (room > j->result.kv_bytes)
        j->result.kv_bytes = room;
    atomic_store_explicit(&j->live.kv_bytes, room, memory_order_relaxed);
    atomic_store_explicit(&s->stats->kv_room, s->room, memory_order_relaxed);
}

static void sched_set_running(struct sched *s, struct job *j, bool running) {
    s->n_running += running ? 1 : (uint32_t)-1;
    atomic_store_explicit(&s->stats->n_running, s->n_running, memory_order_relaxed);
    fair_run(s->fair, &j->fair, running);
}

/* What is kept has changed. */
static void sched_note_kept(struct sched *s) {
    const struct prefix *p = s->prefix;
    struct sched_stats *st = s->stats;

    atomic_store_explicit(&st->kv_kept, kvcache_n_kept(s->res->kv), memory_order_relaxed);
    atomic_store_explicit(&st->n_kept, prefix_n(p), memory_order_relaxed);
    atomic_store_explicit(&st->n_public, prefix_n_of(p, PREFIX_PUBLIC), memory_order_relaxed);
}

/* Keep the first @n tokens of @j, which it has evaluated. */
static void sched_keep(struct sched *s, struct job *j, pos_t n) {
    if (atomic_load(&j->forget))
        return;
    prefix_keep(s->prefix, j->salt, j->all.id, n, j->seq);
    sched_note_kept(s);
}

void sched_forget(struct sched *s, uint64_t salt) {
    prefix_forget(s->prefix, salt);
    kvcache_trim(s->res->kv);
    sched_note_kept(s);
}

/* A sequence for @j, with what is kept of its tokens. Return: is there one? */
static bool sched_sequence(struct sched *s, struct job *j, struct prefix_hit *ret) {
    int r;

    if (j->kind != JOB_RESTORE)
        return prefix_take(s->prefix, j->salt, j->all.id, (pos_t)j->all.n - 1, ret) == 0;
    *ret = (struct prefix_hit){ 0 };
    do
        r = kvfile_place(j->file, s->res->kv, &ret->seq);
    while (r == KVCACHE_NO_ROOM && prefix_yield(s->prefix));
    return r == 0;
}

/* Return: was there a place? */
static bool sched_place(struct sched *s, struct job *j) {
    usec_t now = job_clock();
    struct prefix_hit hit;

    if (s->n_running == s->res->n_seq || !sched_fits(s, sched_need(s, j)) ||
        !sched_sequence(s, j, &hit))
        return false;
    sched_set_room(s, j, sched_need(s, j));
    sched_set_running(s, j, true);
    j->seq = hit.seq;
    j->n_done = hit.n;
    atomic_store_explicit(&j->live.n_done, hit.n, memory_order_relaxed);
    if (hit.n > 0) {
        sched_count(&s->stats->n_hit, 1);
        sched_count(&s->stats->n_saved, hit.n);
        sched_note_kept(s);
    }
    if (hit.parted >= hit.n + KV_BLOCK && j->n_mark < JOB_MARK_MAX)
        j->mark[j->n_mark++] = hit.parted;
    j->result.queue_usec += now - j->waits;
    if (!j->began) {
        j->began = now;
        j->result.n_cached = hit.n;
    }
    return true;
}

/* What was evaluated is kept. */
static void sched_leave(struct sched *s, struct job *j) {
    if (kvcache_truncate(s->res->kv, j->seq, j->n_done) == 0) /* behind it a step was given up */
        sched_keep(s, j, j->n_done);
    kvcache_seq_free(s->res->kv, j->seq);
    prefix_bound(s->prefix);
    sched_note_kept(s);
    sched_set_room(s, j, 0);
    sched_set_running(s, j, false);
    j->waits = job_clock();
}

static void sched_evict(struct sched *s, struct job *j) {
    sched_leave(s, j);
    sched_count(&s->stats->n_evicted, 1);
}

/* Room for the next @n tokens of @j. Return: is it there? Else it has lost its place. */
static bool sched_grow(struct sched *s, struct job *j, uint32_t n) {
    uint64_t more;

    if (j->n_done + n <= j->n_room)
        return true;
    more = sched_need(s, j) - j->room;
    if (!sched_fits(s, more) || sched_user_room(s, j) + more > s->res->kv_user) {
        sched_evict(s, j);
        return false;
    }
    sched_set_room(s, j, j->room + more);
    return true;
}

/* Hand the job over. What the answer held back goes first; it may still complete a stop string. */
static void sched_end(struct sched *s, struct job *j, enum job_end end) {
    struct job_event ev = { .kind = JOB_EVENT_DONE, .job = j };
    struct job_result *res = &j->result;
    usec_t now = job_clock();

    if (!j->prefill && res->stop_index < 0)
        res->stop_index = answer_end(j->answer);
    if (res->stop_index >= 0 && end == JOB_END_LENGTH)
        end = JOB_END_STOP;
    res->end = end;
    if (res->n_token > 0)
        sched_mean(&s->stats->job_usec, now - j->began);

    if (j->fair.running)
        sched_leave(s, j);
    else
        res->queue_usec += now - j->waits;
    fair_remove(s->fair, &j->fair);
    (void)job_queue_remove(&s->jobs, j);
    sched_post(s, &ev);
}

/* End what shall end. Return: false when its events wait for room: then there may be more. */
static bool sched_sweep(struct sched *s) {
    for (struct job *j = s->jobs.head, *next; j; j = next) {
        enum job_end end = job_halted(j);

        next = j->next;
        if (end != JOB_END_N)
            sched_end(s, j, end);
        if (s->n_late > 0)
            return false;
    }
    return true;
}

void sched_hold(struct sched *s, enum sched_hold hold) {
    if (hold == SCHED_HOLD_ALL && s->hold != hold)
        kvcache_trim(s->res->kv);
    s->hold = hold;
}

static bool sched_on_hold(const struct sched *s, const struct job *j) {
    return atomic_load(&j->hold) ||
           (j->kind != JOB_SAVE &&
            (s->hold == SCHED_HOLD_ALL ||
             (s->hold == SCHED_HOLD_BACKGROUND && j->fair.who.class == FAIR_BACKGROUND)));
}

/* A job on hold is given no place, nor one whose user has too much of the cache. */
static bool sched_may(void *arg, const struct fair_job *f) {
    struct sched *s = arg;
    struct job *j = sched_job((struct fair_job *)f);

    if (sched_on_hold(s, j))
        return false;
    return s->res->kv_user == kvcache_n_byte(s->res->kv) || /* then it need not be looked at */
           sched_user_room(s, j) + sched_need(s, j) <= s->res->kv_user;
}

static bool sched_held(const struct sched *s, const struct job *j) {
    return j->fair.running && sched_on_hold(s, j);
}

/* Does @j give its place to @waiter: on hold, background, one of many? */
static bool sched_yields(const struct sched *s, const struct job *j, const struct job *waiter) {
    return j->fair.running && !j->filing &&
           (sched_held(s, j) || fair_yields(s->fair, &j->fair, &waiter->fair));
}

/* Of those that do, the one on hold or with the least to evaluate again. NULL: nobody. */
static struct job *sched_victim(const struct sched *s, const struct job *waiter) {
    struct job *best = NULL;

    for (struct job *j = s->jobs.head; j; j = j->next) {
        if (!sched_yields(s, j, waiter))
            continue;
        if (!best || sched_held(s, j) > sched_held(s, best) ||
            (sched_held(s, j) == sched_held(s, best) && j->n_done < best->n_done))
            best = j;
    }
    return best;
}

/* Take places away for @waiter, unless that cannot be enough. Return: was it? */
static bool sched_make_room(struct sched *s, const struct job *waiter) {
    uint64_t room = kvcache_n_byte(s->res->kv) - s->room;
    struct job *v = sched_victim(s, waiter);

    for (const struct job *j = s->jobs.head; j; j = j->next)
        room += sched_yields(s, j, waiter) ? j->room : 0;
    if (!v || room < sched_need(s, waiter))
        return false;
    do
        sched_evict(s, v);
    while (!sched_fits(s, sched_need(s, waiter)) && (v = sched_victim(s, waiter)));
    return v != NULL;
}

static void sched_admit(struct sched *s) {
    struct fair_job *f;

    while ((f = fair_wait_next(s->fair, sched_may, s)))
        if (!sched_place(s, sched_job(f)) && !sched_make_room(s, sched_job(f)))
            break;
}

/* A slice of @j's file. */
static void sched_file(struct sched *s, struct job *j) {
    int r = kvfile_go(j->file, s->res->kv, j->seq, SCHED_FILE_BYTES, &j->result.why);

    if (r == KVFILE_MORE)
        return;
    if (r == 0 && j->kind == JOB_RESTORE)
        j->n_done = j->result.n_cached = (uint32_t)j->all.n;
    sched_end(s, j, r == 0 ? JOB_END_STOP : r == KVFILE_BAD ? JOB_END_CORRUPT : JOB_END_INTERNAL);
}

/* A slice of each. Return: were there any? */
static bool sched_files(struct sched *s) {
    bool any = false;

    for (struct job *j = s->jobs.head, *next; j; j = next) {
        next = j->next;
        if (!j->fair.running || !j->filing || sched_on_hold(s, j))
            continue;
        sched_file(s, j);
        any = true;
    }
    return any;
}

/* ---- steps ---- */

/* Mark who has rows for the next step. Return: streams that somebody may be reading. */
static uint32_t sched_ready(struct sched *s) {
    uint32_t n = 0;

    for (struct job *j = s->jobs.head; j; j = j->next) {
        if (!j->fair.running)
            continue;
        fair_ready(s->fair, &j->fair, !j->filing && !sched_on_hold(s, j));
        j->fair.stream = j->n_done + 1 == j->all.n;
        n += j->fair.ready && j->result.n_token > 0 && j->fair.who.class != FAIR_BACKGROUND;
    }
    return n;
}

/* Choose the rows of the next step. Return: are there any? */
static bool sched_fill(struct sched *s) {
    struct batch *b = &s->batch;
    uint32_t n_stream = sched_ready(s), room = b->n_row_max;
    uint32_t n_single = s->n_single < n_stream ? s->n_single + 1 : n_stream;
    struct fair_job *f;

    if (n_stream > 0) {
        uint32_t fits = pace_room(&s->pace, n_single);

        room = room > n_stream ? room - n_stream : 1; /* streams keep their rows */
        room = fits < room ? fits : room;
    }
    batch_clear(b);
    fair_begin(s->fair);
    while (b->n_row < b->n_row_max && (f = fair_next(s->fair))) {
        struct job *j = sched_job(f);
        uint32_t n = (uint32_t)j->all.n - j->n_done;

        if (n > 1 && n > room - b->n_prompt)
            n = room - b->n_prompt;
        if (n > b->n_row_max - b->n_row)
            n = b->n_row_max - b->n_row;
        if (n == 0 || !sched_grow(s, j, n))
            continue;
        batch_add(b, j, n);
        fair_charge(s->fair, f,
                    f->stream ? pace_single_cost(&s->pace, n_single ? n_single : 1)
                              : n * pace_prompt_cost(&s->pace));
    }
    if (b->n_single >= s->n_single) /* not all of them may have a turn in each step */
        s->n_single = b->n_single;
    else
        s->n_single--;
    return b->n_part > 0;
}

/* End every job of the step. */
static void sched_fail(struct sched *s, int r, const char *what) {
    for (uint32_t i = 0; i < s->batch.n_part; i++) {
        struct job *j = s->batch.part[i].job;

        why_set(&j->result.why, r, "%s at position %u", what, j->n_done);
        sched_end(s, j, JOB_END_INTERNAL);
    }
}

/* Evaluate the batch. Return: did it happen? */
static bool sched_eval(struct sched *s, const float **ret_logits) {
    struct resident *r = s->res;
    struct batch *b = &s->batch;
    struct job *alone = b->n_part == 1 ? b->part[0].job : NULL;
    int k;

    for (uint32_t i = 0; i < b->n_part; i++) {
        do
            k = kvcache_reserve(r->kv, b->part[i].job->seq, b->part[i].n);
        while (k == KVCACHE_NO_ROOM && prefix_yield(s->prefix));
        if (k != 0) { /* sched_grow() saw to it */
            sched_fail(s, err_fold(k), "no room for keys and values");
            return false;
        }
    }
    sched_note_kept(s);
    k = model_step(r->model, r->kv, b->row, b->n_row, alone ? &alone->halt : s->opt.stop,
                   ret_logits);
    if (k == MODEL_STOPPED) { /* the job's end, or everybody's */
        if (alone && job_halted(alone) != JOB_END_N)
            sched_end(s, alone, job_halted(alone));
    } else if (k != 0) {
        sched_fail(s, err_fold(k), model_why(r->model));
    }
    return k == 0;
}

/* Say the token that was drawn. Return: JOB_END_N to go on. */
static enum job_end sched_say(struct sched *s, struct job *j, const struct sample_result *token) {
    sample_accept(j->sampler, token->id);
    j->all.id[j->all.n++] = token->id;
    j->result.n_token++;
    atomic_store_explicit(&j->live.n_token, j->result.n_token, memory_order_relaxed);
    sched_count(&s->stats->n_token, 1);

    if (!j->ignore_end && vocab_is_end(s->res->vocab, token->id))
        return JOB_END_STOP;
    j->result.stop_index = answer_token(j->answer, token);
    if (j->result.stop_index >= 0)
        return JOB_END_STOP;
    return j->result.n_token < j->n_max ? JOB_END_N : JOB_END_LENGTH;
}

/* Take what the model says of the choices so far. Return: JOB_END_N to go on. */
static enum job_end sched_score(struct sched *s, struct job *j, const float *logits) {
    uint32_t n = j->result.n_prompt, keep;
    tok_t next;

    if (!score_step(j->score, logits, vocab_n(s->res->vocab), &keep, &next))
        return JOB_END_STOP;
    if (n + keep < j->n_done) { /* to where the next choice parts */
        if (kvcache_truncate(s->res->kv, j->seq, n + keep) != 0)
            return JOB_END_INTERNAL;
        j->n_done = n + keep;
    }
    j->all.n = n + keep;
    j->all.id[j->all.n++] = next;
    return JOB_END_N;
}

/* A part of the step that began at @began was evaluated, and its token drawn. */
static void sched_part(struct sched *s, struct batch_part *p, usec_t began, usec_t now) {
    struct job *j = p->job;
    bool prompt = j->n_done < j->result.n_prompt;
    enum job_end end = JOB_END_N;

    j->n_done += p->n;
    atomic_store_explicit(&j->live.n_done, j->n_done, memory_order_relaxed);
    for (uint32_t i = 0; i < j->n_mark; i++)
        if (j->mark[i] <= j->n_done && j->mark[i] + p->n > j->n_done)
            sched_keep(s, j, j->mark[i]);
    *(prompt || p->n > 1 ? &j->result.prefill_usec : &j->result.decode_usec) += now - began;
    if (prompt) {
        sched_count(&s->stats->n_prompt_token, p->n);
        sched_tell(s, j, now);
    }
    if (p->out)
        end = j->score ? sched_score(s, j, p->logits) : sched_say(s, j, &p->token);
    else if (j->prefill && j->n_done == j->all.n && !(j->filing = j->file != NULL))
        end = JOB_END_STOP;
    if (end != JOB_END_N)
        sched_end(s, j, end);
}

int sched_step(struct sched *s) {
    const float *logits = NULL;
    usec_t began = job_clock(), now;
    uint32_t n_running;
    bool files;

    if (!sched_flush(s) || !sched_sweep(s))
        return SCHED_NO_ROOM;
    sched_admit(s);
    files = sched_files(s);
    if (s->n_late > 0)
        return SCHED_NO_ROOM;
    n_running = s->n_running;
    if (!sched_fill(s) && s->n_running < n_running)
        return 0; /* who lost a place makes room for others */
    if (s->batch.n_part == 0)
        return files ? 0 : s->jobs.head ? SCHED_ON_HOLD : SCHED_NO_JOB;
    if (!sched_eval(s, &logits))
        return 0;

    batch_draw(&s->batch, s->res->pool, logits, vocab_n(s->res->vocab));
    now = job_clock();
    pace_note(&s->pace, s->batch.n_single, s->batch.n_prompt, now - began);
    if (s->batch.n_prompt == 0)
        sched_mean(&s->stats->step_usec, now - began);
    for (uint32_t i = 0; i < s->batch.n_part; i++)
        sched_part(s, &s->batch.part[i], began, now);
    return 0;
}

void sched_trim(struct sched *s) {
    prefix_clear(s->prefix);
    kvcache_trim(s->res->kv);
    sched_note_kept(s);
}
