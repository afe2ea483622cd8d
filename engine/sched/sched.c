/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <string.h>

#include "engine/sched/answer.h"
#include "engine/sched/sched.h"

/* A step posts its answer's events twice at most (token and end), progress and done. */
enum { SCHED_LATE_MAX = 2 * ANSWER_EVENT_MAX + 2 };

struct sched {
    struct resident *res;
    struct ring *out;
    struct sched_stats *stats;

    struct job *job; /* running; NULL: none */
    uint32_t n_done; /* prompt tokens evaluated */
    uint32_t n_max;  /* tokens to generate at most */
    tok_t last;      /* token drawn and not evaluated yet */
    usec_t told;     /* when progress was last posted */
    struct answer answer;
    struct model_row *row; /* [res->n_batch] */

    /* Events the ring had no room for, in order. Nothing runs while there are any. */
    uint32_t n_late;
    struct job_event late[SCHED_LATE_MAX];
};

int sched_new(struct sched **ret_s, struct resident *r, struct ring *out,
              struct sched_stats *stats) {
    AUTO(sched_free) struct sched *s = calloc(1, sizeof *s);

    if (!s)
        return err_new(-ENOMEM);
    s->res = r;
    s->out = out;
    s->stats = stats;
    s->row = calloc(r->n_batch, sizeof *s->row);
    if (!s->row)
        return err_new(-ENOMEM);

    *ret_s = take(s);
    return 0;
}

struct sched *sched_free(struct sched *s) {
    if (!s)
        return NULL;
    free(s->row);
    free(s);
    return NULL;
}

/* ---- events ---- */

static void sched_post(void *arg, const struct job_event *ev) {
    struct sched *s = arg;

    if (s->n_late == 0 && ring_push(s->out, ev) == 0)
        return;
    assert(s->n_late < SCHED_LATE_MAX);
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

static void sched_tell(struct sched *s) {
    struct job_event ev = { .kind = JOB_EVENT_PROGRESS, .job = s->job };
    usec_t now = job_clock();

    if (now - s->told < SCHED_PROGRESS_USEC)
        return;
    s->told = now;
    ev.done = s->n_done;
    ev.total = s->job->prompt.n;
    sched_post(s, &ev);
}

/* ---- begin and end ---- */

static void sched_mean(_Atomic uint64_t *mean, uint64_t usec) {
    uint64_t m = atomic_load_explicit(mean, memory_order_relaxed);

    m = m ? m - m / 8 + usec / 8 : usec;
    atomic_store_explicit(mean, m ? m : 1, memory_order_relaxed);
}

static void sched_count(_Atomic uint64_t *count, uint64_t n) {
    atomic_fetch_add_explicit(count, n, memory_order_relaxed);
}

void sched_admit(struct sched *s, struct job *j) {
    uint32_t room = s->res->n_ctx - (uint32_t)j->prompt.n; /* >= 1: job_prepare() saw to it */
    usec_t now = job_clock();

    s->job = j;
    s->n_done = 0;
    s->n_max = j->max_tokens > 0 && j->max_tokens < room ? j->max_tokens : room;
    s->told = now;
    j->result.queue_usec = now - j->submitted;
    answer_init(&s->answer, j, s->res->vocab, sched_post, s);
    (void)kvcache_truncate(s->res->kv, 0, 0); /* to nothing always works */

    atomic_store_explicit(&s->stats->began, now, memory_order_relaxed);
    atomic_store_explicit(&s->stats->n_running, 1, memory_order_relaxed);
}

/* Hand the job over. What the answer held back goes first; it may still complete a stop string. */
static void sched_end(struct sched *s, enum job_end end) {
    struct job_event ev = { .kind = JOB_EVENT_DONE, .job = s->job };
    struct job_result *res = &s->job->result;
    usec_t began = atomic_load_explicit(&s->stats->began, memory_order_relaxed);

    if (res->stop_index < 0)
        res->stop_index = answer_end(&s->answer);
    if (res->stop_index >= 0 && end == JOB_END_LENGTH)
        end = JOB_END_STOP;
    res->end = end;
    if (res->n_token > 0)
        sched_mean(&s->stats->job_usec, job_clock() - began);

    s->job = NULL;
    atomic_store_explicit(&s->stats->n_running, 0, memory_order_relaxed);
    sched_post(s, &ev);
}

/* ---- steps ---- */

/* Evaluate s->row[n_row]. Return: JOB_END_N with logits, or how the job ends. */
static enum job_end sched_eval(struct sched *s, uint32_t n_row, const float **ret_logits) {
    struct resident *r = s->res;
    struct why *why = &s->job->result.why;
    int k;

    k = kvcache_reserve(r->kv, 0, n_row);
    if (k != 0) { /* sched_admit() bounded it */
        why_set(why, err_fold(k), "no room for keys and values at position %u", s->row[0].pos);
        return JOB_END_INTERNAL;
    }
    k = model_step(r->model, r->kv, s->row, n_row, &s->job->halt, ret_logits);
    if (k == MODEL_STOPPED)
        return job_halted(s->job);
    if (k != 0) {
        why_set(why, err_fold(k), "a step of the model failed at position %u", s->row[0].pos);
        return JOB_END_INTERNAL;
    }
    return JOB_END_N;
}

/* Draw a token from @logits and say it. Return: JOB_END_N to go on. */
static enum job_end sched_draw(struct sched *s, const float *logits) {
    struct job *j = s->job;
    struct sample_result token;

    sample_next(j->sampler, logits, &token);
    sample_accept(j->sampler, token.id);
    s->last = token.id;
    j->result.n_token++;
    sched_count(&s->stats->n_token, 1);

    if (!j->ignore_end && vocab_is_end(s->res->vocab, token.id))
        return JOB_END_STOP;
    j->result.stop_index = answer_token(&s->answer, &token);
    if (j->result.stop_index >= 0)
        return JOB_END_STOP;
    return j->result.n_token < s->n_max ? JOB_END_N : JOB_END_LENGTH;
}

/* The next part of the prompt; after the last one, the first token. */
static enum job_end sched_prefill(struct sched *s) {
    struct job *j = s->job;
    uint32_t n_prompt = (uint32_t)j->prompt.n, left = n_prompt - s->n_done;
    uint32_t n = left < s->res->n_batch ? left : s->res->n_batch;
    usec_t began = job_clock();
    const float *logits = NULL;
    enum job_end end;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t pos = s->n_done + i;

        s->row[i] =
            (struct model_row){ .tok = j->prompt.id[pos], .pos = pos, .out = pos + 1 == n_prompt };
    }
    end = sched_eval(s, n, &logits);
    if (end != JOB_END_N)
        return end;

    s->n_done += n;
    sched_count(&s->stats->n_prompt_token, n);
    j->result.prefill_usec += job_clock() - began;
    sched_tell(s);
    return s->n_done == n_prompt ? sched_draw(s, logits) : JOB_END_N;
}

static enum job_end sched_decode(struct sched *s) {
    struct job *j = s->job;
    usec_t began = job_clock(), usec;
    const float *logits = NULL;
    enum job_end end;

    s->row[0] = (struct model_row){ .tok = s->last,
                                    .pos = (uint32_t)j->prompt.n + j->result.n_token - 1,
                                    .out = true };
    end = sched_eval(s, 1, &logits);
    if (end != JOB_END_N)
        return end;

    end = sched_draw(s, logits);
    usec = job_clock() - began;
    j->result.decode_usec += usec;
    sched_mean(&s->stats->step_usec, usec);
    return end;
}

int sched_step(struct sched *s) {
    enum job_end end;

    if (!sched_flush(s))
        return SCHED_NO_ROOM;
    if (!s->job)
        return SCHED_NO_JOB;

    end = job_halted(s->job);
    if (end == JOB_END_N) {
        if (atomic_load(&s->job->hold))
            return SCHED_ON_HOLD;
        end = s->n_done < s->job->prompt.n ? sched_prefill(s) : sched_decode(s);
    }
    if (end != JOB_END_N)
        sched_end(s, end);
    return 0;
}
