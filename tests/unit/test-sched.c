/* SPDX-License-Identifier: Apache-2.0 */

/* The scheduler and the resident model without threads, on small random models given as arguments,
 * the second one split over three files. model_step() and the clock are replaced: a step records
 * its rows and takes as long as they cost, and the token a row draws depends on all tokens of its
 * sequence so far, as the cache holds them. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "engine/sched/sched.h"

enum { N_BATCH = 16, N_CTX = 2048, N_SEQ = 8, N_KEEP = 16, N_STEP = 65536, BOUND = 250000 };

static const char *model_path, *split_path;
static struct resident *res;

/* ---- the step and the clock ---- */

static struct {
    uint32_t n_row, n_single; /* single: of a sequence that has one row */
    uint32_t seqs;            /* bits */
    struct model_row first, last;
    usec_t usec;
} step[N_STEP];
static uint32_t n_step;
static usec_t now, base_usec, row_usec; /* the clock; what a step and a row cost */
static tok_t letter[26];
static int step_returns;
static struct job *step_halts; /* halted during the step */
static float *logits;

int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits);
usec_t __wrap_job_clock(void);

usec_t __wrap_job_clock(void) {
    return now;
}

static void draw(float *row, uint32_t sum) {
    memset(row, 0, vocab_n(res->vocab) * sizeof *row);
    row[letter[sum % 26]] = 50.0f;
}

/* What the cache has instead of a key: the sum of all tokens up to @pos. */
static uint32_t *sum_at(const struct kvcache *kv, uint32_t seq, pos_t pos) {
    return (uint32_t *)(void *)kvcache_view(kv, 0, seq, 0, pos / KV_BLOCK).key + pos % KV_BLOCK;
}

int __wrap_model_step(struct model *m, struct kvcache *kv, const struct model_row *row,
                      uint32_t n_row, const atomic_bool *stop, const float **ret_logits) {
    uint32_t n_out = 0, n_of[32] = { 0 };

    assert_true(n_row >= 1 && n_row <= N_BATCH && n_step < N_STEP);
    step[n_step].n_row = n_row;
    step[n_step].first = row[0];
    step[n_step].last = row[n_row - 1];
    step[n_step].usec = base_usec + row_usec * n_row;
    step[n_step].seqs = step[n_step].n_single = 0;
    for (uint32_t i = 0; i < n_row; i++) {
        uint32_t seq = row[i].seq;

        assert_true(seq < 32);
        if (i > 0 && row[i - 1].seq == seq)
            assert_int_equal(row[i].pos, row[i - 1].pos + 1);
        else
            assert_false(step[n_step].seqs >> seq & 1); /* the rows of a sequence lie together */
        step[n_step].seqs |= 1u << seq;
        n_of[seq]++;
    }
    for (uint32_t i = 0; i < n_row; i++)
        step[n_step].n_single += n_of[row[i].seq] == 1;
    now += step[n_step++].usec;
    if (step_halts)
        job_halt(step_halts, JOB_END_CANCELLED);
    if (atomic_load(stop))
        return MODEL_STOPPED;
    for (uint32_t i = 0; i < n_row; i++) {
        uint32_t seq = row[i].seq, sum = row[i].pos ? *sum_at(kv, seq, row[i].pos - 1) : 0;

        sum = sum * 31 + (uint32_t)row[i].tok + 1;
        *sum_at(kv, seq, row[i].pos) = sum;
        if (i + 1 == n_row || row[i + 1].seq != seq)
            assert_int_equal(kvcache_n(kv, seq), row[i].pos + 1); /* reserved */
        if (row[i].out) {
            assert_true(i + 1 == n_row || row[i + 1].seq != seq);
            draw(logits + (size_t)n_out++ * vocab_n(res->vocab), sum);
        }
    }
    *ret_logits = logits;
    return step_returns;
}

/* ---- jobs ---- */

static struct job *raw_for(struct fair_who who, size_t n_prompt, uint32_t max_tokens) {
    AUTO(job_free) struct job *j = job_new(JOB_GENERATE);

    for (size_t i = 0; i < n_prompt; i++)
        assert_int_equal(tok_list_push(&j->tok, (tok_t)(i % 50)), 0);
    assert_int_equal(stop_new(&j->stop, NULL, 0), 0);
    j->max_tokens = max_tokens;
    j->sample.has = SAMPLE_TEMPERATURE; /* greedy */
    j->ignore_end = true;
    j->fair.who = who;
    j->submitted = now;
    return take(j);
}

static struct job *prepared_for(struct fair_who who, size_t n_prompt, uint32_t max_tokens) {
    struct job *j = raw_for(who, n_prompt, max_tokens);

    assert_true(job_prepare(j, res));
    return j;
}

static struct job *prepared(size_t n_prompt, uint32_t max_tokens) {
    return prepared_for((struct fair_who){ 0 }, n_prompt, max_tokens);
}

enum { N_TEXT = N_CTX };

struct world {
    struct ring *ring;
    struct sched *s;
    struct sched_stats stats;
    atomic_bool stop;
    struct job *job[64]; /* .userdata is where its text goes, [N_TEXT] */
    char text[64][N_TEXT];
    bool done[64];
    usec_t last[64], gap[64]; /* when its last text came, and the longest time between two */
    uint32_t n_job;
};

static void open_keeping(struct world *w, uint32_t n_ring, uint64_t prefix_bytes) {
    struct sched_options opt = {
        .n_job = 64, .bound = BOUND, .prefix_bytes = prefix_bytes, .stop = &w->stop
    };

    memset(w, 0, sizeof *w);
    n_step = 0;
    step_returns = 0;
    step_halts = NULL;
    base_usec = 20000;
    row_usec = 5000;
    assert_int_equal(ring_new(&w->ring, n_ring, sizeof(struct job_event)), 0);
    assert_int_equal(sched_new(&w->s, res, &opt, w->ring, &w->stats), 0);
    assert_int_equal(sched_step(w->s), SCHED_NO_JOB);
}

static void open_world(struct world *w, uint32_t n_ring) {
    open_keeping(w, n_ring, 0);
}

/* All is as it was. */
static void close_world(struct world *w) {
    for (uint32_t i = 0; i < w->n_job; i++)
        job_free(w->job[i]);
    assert_int_equal(w->stats.n_running, 0);
    assert_int_equal(w->stats.kv_room, 0);
    assert_int_equal(kvcache_n_used(res->kv), w->stats.kv_kept);
    assert_int_equal(kvcache_n_kept(res->kv), w->stats.kv_kept);
    assert_true(kvcache_sound(res->kv));
    sched_free(w->s);
    assert_int_equal(kvcache_n_used(res->kv), 0);
    ring_free(w->ring);
}

static uint32_t add(struct world *w, struct job *j) {
    uint32_t i = w->n_job++;

    w->job[i] = j;
    sched_add(w->s, j);
    return i;
}

/* Take the events there are; they come in order, and none after the last. */
static void drain(struct world *w) {
    struct job_event ev;

    while (ring_pop(w->ring, &ev) == 0) {
        uint32_t i = 0;

        while (i < w->n_job && w->job[i] != ev.job)
            i++;
        assert_true(i < w->n_job && !w->done[i]);
        if (ev.kind == JOB_EVENT_DONE)
            w->done[i] = true;
        if (ev.kind == JOB_EVENT_TEXT) {
            size_t n = strlen(w->text[i]);

            if (w->last[i] && now - w->last[i] > w->gap[i])
                w->gap[i] = now - w->last[i];
            w->last[i] = now;
            assert_true(n + ev.n_text < N_TEXT);
            memcpy(w->text[i] + n, ev.text, ev.n_text);
        }
    }
}

/* Up to @n steps, or until nothing is left to do. Return: what the last one said. */
static int steps(struct world *w, uint32_t n) {
    int r = 0;

    for (; n > 0 && r == 0; n--) {
        do {
            r = sched_step(w->s);
            drain(w);
        } while (r == SCHED_NO_ROOM);
    }
    return r;
}

static void run(struct world *w) {
    assert_int_equal(steps(w, N_STEP), SCHED_NO_JOB);
    for (uint32_t i = 0; i < w->n_job; i++)
        assert_true(w->done[i]);
}

/* ---- one job ---- */

/* The rows of a generation: the prompt in batches, then one token a step, each at its position. */
static void test_rows(void **state) {
    static struct world w;

    open_world(&w, 64);
    for (int round = 0; round < 2; round++) { /* the second begins at position 0 again */
        struct job *j = prepared(40, 5);

        n_step = 0;
        add(&w, j);
        run(&w);
        assert_int_equal(strlen(w.text[round]), 5);
        assert_int_equal(n_step, 3 + 4);
        assert_int_equal(step[0].n_row, 16);
        assert_int_equal(step[1].n_row, 16);
        assert_int_equal(step[2].n_row, 8);
        assert_int_equal(step[0].first.pos, 0);
        assert_int_equal(step[1].first.tok, 16);
        assert_false(step[1].last.out);
        assert_true(step[2].last.out);
        for (uint32_t i = 0; i < 4; i++) {
            assert_int_equal(step[3 + i].n_row, 1);
            assert_int_equal(step[3 + i].first.pos, 40 + i);
            assert_int_equal(step[3 + i].first.tok, j->all.id[40 + i]);
            assert_true(step[3 + i].first.out);
        }
        assert_int_equal(j->result.end, JOB_END_LENGTH);
        assert_int_equal(j->result.n_token, 5);
        assert_int_equal(j->result.prefill_usec, step[0].usec + step[1].usec + step[2].usec);
        assert_int_equal(j->result.decode_usec, 4 * step[3].usec);
        assert_int_equal(j->result.queue_usec, 0);
    }
    assert_int_equal(w.stats.n_prompt_token, 80);
    assert_int_equal(w.stats.n_token, 10);
    assert_true(w.stats.job_usec > 0 && w.stats.step_usec > 0);
    close_world(&w);
}

/* To the last position of the context, and not one further. */
static void test_context(void **state) {
    static struct world w;

    open_world(&w, 256);
    add(&w, prepared(N_CTX - 3, 0));
    run(&w);
    assert_int_equal(w.job[0]->result.n_token, 3);
    assert_int_equal(step[n_step - 1].last.pos, N_CTX - 2);
    close_world(&w);
}

/* A ring that is full stops the steps, not the events. */
static void test_no_room(void **state) {
    uint32_t n_full = 0;
    static struct world w;

    open_world(&w, 1);
    for (int i = 0; i < 3; i++)
        add(&w, prepared(4, 20));
    for (int r = 0; r != SCHED_NO_JOB;) {
        uint32_t n;

        r = sched_step(w.s);
        n = n_step;
        if (r == 0)
            continue;
        n_full += r == SCHED_NO_ROOM;
        assert_int_equal(sched_step(w.s), r);
        assert_int_equal(n_step, n);
        drain(&w);
    }
    for (int i = 0; i < 3; i++) {
        assert_true(w.done[i]);
        assert_int_equal(strlen(w.text[i]), 20);
        assert_string_equal(w.text[i], w.text[0]);
    }
    assert_true(n_full >= 10);
    close_world(&w);
}

/* Halted in the middle of a step: nothing of that step counts. */
static void test_halt(void **state) {
    static struct world w;

    open_world(&w, 64);
    add(&w, prepared(20, 5));
    assert_int_equal(steps(&w, 1), 0);
    step_halts = w.job[0];
    run(&w);
    assert_string_equal(w.text[0], "");
    assert_int_equal(n_step, 2);
    assert_int_equal(w.job[0]->result.end, JOB_END_CANCELLED);
    assert_int_equal(w.job[0]->result.n_token, 0);
    assert_int_equal(w.stats.n_prompt_token, 16);
    close_world(&w);
}

static void test_step_fails(void **state) {
    static struct world w;

    open_world(&w, 64);
    add(&w, prepared(5, 5));
    add(&w, prepared(5, 5));
    step_returns = -EIO;
    run(&w);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(w.job[i]->result.end, JOB_END_INTERNAL);
        assert_true(strlen(w.job[i]->result.why.text) > 0);
    }
    assert_int_equal(n_step, 1);
    close_world(&w);
}

/* ---- several ---- */

/* All streams have a row in each step, and say what they say alone. */
static void test_together(void **state) {
    static struct world alone, w;

    open_world(&alone, 64);
    for (uint32_t i = 0; i < 5; i++) {
        add(&alone, prepared(3 + i, 20));
        run(&alone);
    }
    close_world(&alone);

    open_world(&w, 64);
    for (uint32_t i = 0; i < 5; i++)
        add(&w, prepared(3 + i, 20));
    run(&w);
    for (uint32_t i = 0; i < 5; i++)
        assert_string_equal(w.text[i], alone.text[i]);
    assert_int_equal(step[0].n_row, 16); /* the prompts, 25 tokens, take two steps */
    for (uint32_t i = 2; i < n_step - 1; i++)
        assert_int_equal(step[i].n_single, 5);
    close_world(&w);
}

/* A long prompt goes in by parts, and the streams of everybody else keep to the bound. */
static void long_prompt(struct fair_who who) {
    usec_t began;
    uint32_t j;
    static struct world w;

    open_world(&w, 64);
    row_usec = 30000; /* 16 rows are 500 ms: twice the bound */
    add(&w, prepared_for((struct fair_who){ .uid = 1 }, 4, 900));
    add(&w, prepared_for((struct fair_who){ .uid = 1, .class = FAIR_INTERACTIVE }, 4, 900));
    steps(&w, 20);
    j = add(&w, prepared_for(who, 900, 2));
    began = now;
    w.gap[0] = w.gap[1] = 0;
    while (!w.done[j])
        assert_int_equal(steps(&w, 1), 0);
    assert_true(w.gap[0] > 0 && w.gap[0] <= 2 * BOUND);
    assert_true(w.gap[1] > 0 && w.gap[1] <= 2 * BOUND);
    /* 900 rows of 30 ms are 27 s; it has half of the time, more beside its own user's streams. */
    assert_true(now - began < 3 * (usec_t)900 * row_usec);
    for (uint32_t i = 0; i < 2; i++)
        job_halt(w.job[i], JOB_END_CANCELLED);
    run(&w);
    close_world(&w);
}

static void test_long_prompt(void **state) {
    long_prompt((struct fair_who){ .uid = 2 });
    long_prompt((struct fair_who){ .uid = 1 });
    long_prompt((struct fair_who){ .uid = 1, .app = 7 });
}

/* Tokens of two users in 60 s: @n streams each, and how many percent the first one has. */
static double share(const uint32_t n[2], const uint32_t weight[2]) {
    uint64_t got[2] = { 0 };
    static struct world w;

    open_world(&w, 256);
    base_usec = 60000;             /* nobody comes to an end within the minute */
    for (uint32_t u = 2; u-- > 0;) /* the one with many comes first */
        for (uint32_t i = 0; i < n[u]; i++)
            add(&w, prepared_for((struct fair_who){ .uid = u, .uid_weight = weight[u] }, 4, 1000));
    for (usec_t end = now + 60000000; now < end;)
        assert_int_equal(steps(&w, 1), 0);
    for (uint32_t i = 0; i < w.n_job; i++) {
        got[w.job[i]->fair.who.uid] += w.job[i]->result.n_token;
        job_halt(w.job[i], JOB_END_CANCELLED);
    }
    run(&w);
    close_world(&w);
    return 100 * (double)got[0] / (double)(got[0] + got[1]);
}

static void test_shares(void **state) {
    static const uint32_t one_many[] = { 1, 15 }, many[] = { 8, 8 };
    static const uint32_t same[] = { 100, 100 }, third[] = { 300, 100 };
    double s;

    s = share(one_many, same); /* fewer places than streams */
    assert_true(s > 45 && s < 55);
    s = share(many, third);
    assert_true(s > 70 && s < 80);
    s = share(one_many, third);
    assert_true(s > 70 && s < 80);
}

/* A job on hold is left out, and the others go on; its end does not wait. */
static void test_hold(void **state) {
    static struct world w;
    char text[N_TEXT];

    open_world(&w, 64);
    add(&w, prepared(20, 50));
    add(&w, prepared(20, 30));
    steps(&w, 10);
    atomic_store(&w.job[0]->hold, true);
    strcpy(text, w.text[0]);
    assert_int_equal(steps(&w, 100), SCHED_ON_HOLD);
    assert_true(w.done[1]);
    assert_string_equal(w.text[0], text);
    for (int i = 0; i < 3; i++)
        assert_int_equal(sched_step(w.s), SCHED_ON_HOLD);
    atomic_store(&w.job[0]->hold, false);
    assert_int_equal(steps(&w, 1), 0);
    assert_int_equal(strlen(w.text[0]), strlen(text) + 1);
    atomic_store(&w.job[0]->hold, true);
    job_halt(w.job[0], JOB_END_CANCELLED);
    run(&w);
    assert_int_equal(w.job[0]->result.end, JOB_END_CANCELLED);
    close_world(&w);
}

/* More jobs than places: the last one waits until one ends. */
static void test_wait(void **state) {
    static struct world w;
    uint32_t last;

    open_world(&w, 256);
    for (uint32_t i = 0; i < N_SEQ; i++)
        add(&w, prepared(2, 40 + 10 * i));
    last = add(&w, prepared(2, 10));
    steps(&w, 30);
    assert_int_equal(w.stats.n_running, N_SEQ);
    assert_int_equal(w.job[last]->result.n_token, 0);
    run(&w);
    assert_true(w.job[last]->result.queue_usec > 0);
    assert_int_equal(w.stats.n_evicted, 0);
    for (uint32_t i = 0; i < N_SEQ; i++)
        assert_int_equal(w.job[i]->result.n_token, 40 + 10 * i);
    close_world(&w);
}

/* @takes, coming when all places are taken by @has, gets one at once; who lost it says the same as
 * alone nevertheless. */
static void evicts(struct fair_who has, struct fair_who takes, bool hold) {
    static struct world w;
    char alone[N_TEXT];
    uint32_t j;

    open_world(&w, 256);
    add(&w, prepared(20, 100));
    run(&w);
    strcpy(alone, w.text[0]);
    for (uint32_t i = 1; i <= N_SEQ; i++)
        add(&w, prepared_for(has, 20, 100));
    steps(&w, 60);
    if (hold)
        atomic_store(&w.job[1]->hold, true);
    j = add(&w, prepared_for(takes, 2, 50));
    steps(&w, 10);
    assert_true(w.job[j]->result.n_token > 0);
    assert_int_equal(w.stats.n_evicted, 1);
    if (hold) {
        assert_false(w.job[1]->fair.running);
        atomic_store(&w.job[1]->hold, false);
    }
    run(&w);
    for (uint32_t i = 1; i <= N_SEQ; i++)
        assert_string_equal(w.text[i], alone);
    assert_int_equal(w.stats.n_evicted, 1);
    close_world(&w);
}

static void test_evict(void **state) {
    struct fair_who none = { 0 }, other = { .uid = 2 }, back = { .class = FAIR_BACKGROUND };

    evicts(back, none, false);
    evicts(none, other, false);
    evicts(none, none, true);
}

/* Background has next to nothing while others have work, and goes on from where it was. */
static void test_background(void **state) {
    static struct world w;
    uint32_t n;

    open_world(&w, 256);
    add(&w, prepared_for((struct fair_who){ .class = FAIR_BACKGROUND }, 4, 400));
    steps(&w, 50);
    add(&w, prepared(4, 400));
    n = w.job[0]->result.n_token;
    while (!w.done[1])
        steps(&w, 1);
    assert_in_range(w.job[0]->result.n_token - n, 2, 20);
    assert_int_equal(w.stats.n_evicted, 0); /* there is room: it keeps its place */
    assert_int_equal(w.stats.n_prompt_token, 8);
    run(&w);
    assert_int_equal(w.job[0]->result.n_token, 400);
    close_world(&w);
}

/* Cancelled at any time, waiting or running, alone or not: nothing is left behind. */
static void test_cancel(void **state) {
    for (uint32_t at = 0; at < 40; at += 3) {
        static struct world w;

        open_world(&w, 4);
        for (uint32_t i = 0; i < N_SEQ + 4; i++)
            add(&w, prepared_for((struct fair_who){ .uid = i % 3 }, 1 + 11 * i, 10));
        for (uint32_t i = 0; i < w.n_job; i++) {
            steps(&w, at);
            if (!w.done[i])
                job_halt(w.job[i], JOB_END_CANCELLED);
        }
        run(&w);
        close_world(&w);
    }
}

/* ---- bytes of the cache ---- */

static struct resident *resident_of(uint64_t kv_bytes, uint64_t kv_user) {
    struct resident_options opt = { .path = model_path,
                                    .n_ctx = N_CTX,
                                    .n_batch = N_BATCH,
                                    .n_seq = N_SEQ,
                                    .kv_bytes = kv_bytes,
                                    .kv_user = kv_user,
                                    .n_keep = N_KEEP,
                                    .kv_fmt = QUANT_F32,
                                    .n_worker = 1 };
    atomic_bool stop = false;
    struct resident *r = NULL;

    assert_int_equal(resident_new(&r, &opt, NULL, NULL, &stop, NULL), 0);
    return r;
}

/* Jobs that said how much they want have room for it from the beginning; the others, when there is
 * no more, begin again later, and say the same. */
static void test_bytes(void **state) {
    struct resident *all = res;
    static struct world w;
    static char alone[N_TEXT];

    open_world(&w, 256);
    add(&w, prepared(20, 0));
    run(&w);
    strcpy(alone, w.text[0]);
    close_world(&w);

    res = resident_of(2 * kvcache_need(all->kv, 1600), 0);
    open_world(&w, 256);
    for (int i = 0; i < 5; i++)
        add(&w, prepared(20, 1500));
    for (int r = 0; r == 0;) {
        r = steps(&w, 1);
        assert_true(w.stats.n_running <= 2);
        assert_true(w.stats.kv_room <= kvcache_n_byte(res->kv));
    }
    assert_int_equal(w.stats.n_evicted, 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(w.job[i]->result.n_token, 1500);
        assert_memory_equal(w.text[i], alone, 1500);
    }
    close_world(&w);

    open_world(&w, 256);
    for (int i = 0; i < 3; i++)
        add(&w, prepared(20, 0));
    run(&w);
    assert_in_range(w.stats.n_evicted, 1, 10);
    for (int i = 0; i < 3; i++)
        assert_string_equal(w.text[i], alone);
    close_world(&w);
    resident_free(res);
    res = all;
}

/* What a user may have of it: more waits, while others go on; what can never be is refused. */
static void test_user_bytes(void **state) {
    struct resident *all = res;
    struct job *j;
    static struct world w;

    res = resident_of(0, kvcache_need(all->kv, 700));
    open_world(&w, 256);
    for (int i = 0; i < 3; i++)
        add(&w, prepared_for((struct fair_who){ .uid = 1 }, 20, 500));
    add(&w, prepared_for((struct fair_who){ .uid = 2 }, 20, 500));
    steps(&w, 50);
    assert_true(w.job[0]->result.n_token > 0 && w.job[3]->result.n_token > 0);
    assert_true(w.job[1]->result.n_token == 0 && w.job[2]->result.n_token == 0);
    run(&w);
    assert_int_equal(w.job[2]->result.n_token, 500);

    j = raw_for((struct fair_who){ 0 }, 20, 1000);
    assert_false(job_prepare(j, res));
    assert_int_equal(j->result.end, JOB_END_MEMORY);
    assert_int_equal(j->result.have, kvcache_need(res->kv, 700));
    assert_int_equal(j->result.need, kvcache_need(res->kv, 1020));
    job_free(j);
    j = raw_for((struct fair_who){ 0 }, 900, 0);
    assert_false(job_prepare(j, res));
    assert_int_equal(j->result.end, JOB_END_MEMORY);
    job_free(j);
    j = prepared(20, 0); /* as much as there is */
    assert_true(kvcache_need(res->kv, 20 + j->n_max) <= res->kv_user);
    assert_in_range(j->n_max, 680, 680 + KV_BLOCK);
    job_free(j);
    close_world(&w);
    resident_free(res);
    res = all;
}

/* ---- kept prefixes ---- */

/* A job for @uid whose prompt is the first @n_same tokens that all have, then @n_own of its own. */
static struct job *branch(uint32_t uid, size_t n_same, tok_t own, size_t n_own, uint32_t max) {
    struct job *j = raw_for((struct fair_who){ .uid = uid }, n_same, max);

    j->salt = uid;
    for (size_t i = 0; i < n_own; i++)
        assert_int_equal(tok_list_push(&j->tok, own + (tok_t)(i % 7)), 0);
    assert_true(job_prepare(j, res));
    return j;
}

/* What @j says when nothing is kept; @j is gone. */
static void alone(struct job *j, char *text) {
    static struct world w;

    open_world(&w, 256);
    add(&w, j);
    run(&w);
    strcpy(text, w.text[0]);
    close_world(&w);
}

/* The same prompt again, longer, and parted from: only what is new is evaluated, and the answer is
 * the same. Of another user nothing is found, nor of a prompt that is evaluated at the time. */
static void test_prefix(void **state) {
    static const struct {
        uint32_t uid;
        size_t n_same, n_own;
        uint32_t n_cached;
    } c[] = {
        { 1, 40, 0, 0 },   { 1, 40, 0, 39 }, { 1, 60, 0, 40 },  { 2, 60, 0, 0 },
        { 1, 50, 30, 50 }, { 2, 60, 1, 60 }, { 1, 50, 31, 80 },
    };
    static char text[8][N_TEXT];
    static struct world w;
    uint64_t n_eval = 0, n_saved = 0;

    for (size_t i = 0; i < sizeof c / sizeof *c; i++)
        alone(branch(c[i].uid, c[i].n_same, 60, c[i].n_own, 10), text[i]);
    open_keeping(&w, 256, UINT64_MAX);
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        add(&w, branch(c[i].uid, c[i].n_same, 60, c[i].n_own, 10));
        run(&w);
        assert_string_equal(w.text[i], text[i]);
        assert_int_equal(w.job[i]->result.n_cached, c[i].n_cached);
        n_eval += c[i].n_same + c[i].n_own - c[i].n_cached;
        n_saved += c[i].n_cached;
        assert_int_equal(w.stats.n_prompt_token, n_eval);
    }
    assert_int_equal(w.stats.n_saved, n_saved);
    assert_int_equal(w.stats.n_hit, 5);
    assert_true(w.stats.n_kept > 0 && w.stats.kv_kept > 0);
    close_world(&w);
}

/* Where two long prompts part is known when the third comes. */
static void test_prefix_parted(void **state) {
    static char text[3][N_TEXT];
    static struct world w;

    for (int i = 0; i < 3; i++)
        alone(branch(1, 500, (tok_t)(60 + 10 * i), 400, 10), text[i]);
    open_keeping(&w, 256, UINT64_MAX);
    for (int i = 0; i < 3; i++) {
        add(&w, branch(1, 500, (tok_t)(60 + 10 * i), 400, 10));
        run(&w);
        assert_string_equal(w.text[i], text[i]);
        assert_int_equal(w.job[i]->result.n_cached, i < 2 ? 0 : 500);
    }
    close_world(&w);
}

/* What is evaluated and kept, with no answer. */
static void test_prefill(void **state) {
    static struct world w;
    struct job *j;

    open_keeping(&w, 256, UINT64_MAX);
    for (uint32_t i = 0; i < 2; i++) {
        j = raw_for((struct fair_who){ 0 }, 100, 5);
        j->prefill = true;
        assert_true(job_prepare(j, res));
        assert_int_equal(j->n_max, 0);
        add(&w, j);
        run(&w);
        assert_string_equal(w.text[i], "");
        assert_int_equal(j->result.end, JOB_END_STOP);
        assert_int_equal(j->result.n_token, 0);
        assert_int_equal(j->result.n_cached, i * 99);
        assert_false(step[n_step - 1].last.out);
    }
    add(&w, branch(0, 100, 60, 20, 5));
    run(&w);
    assert_int_equal(w.job[2]->result.n_cached, 100);
    close_world(&w);
}

/* Public ones are found by all, and go last. */
static void test_prefix_public(void **state) {
    static struct world w;
    struct job *j = raw_for((struct fair_who){ 0 }, 100, 5);
    uint32_t i;

    open_keeping(&w, 256, UINT64_MAX);
    j->prefill = true;
    j->salt = UINT64_MAX;
    assert_true(job_prepare(j, res));
    add(&w, j);
    run(&w);
    assert_int_equal(w.stats.n_public, 1);
    for (uint32_t uid = 1; uid < 3 * N_KEEP; uid++) {
        i = add(&w, branch(uid, 100, (tok_t)(60 + uid), 40, 5));
        run(&w);
        assert_int_equal(w.job[i]->result.n_cached, 100);
    }
    assert_int_equal(w.stats.n_public, 1);
    assert_int_equal(w.stats.n_kept, N_KEEP);
    close_world(&w);
}

/* A job that lost its place goes on from where it was, and is not slower for what others keep. */
static void test_prefix_evicted(void **state) {
    struct fair_who back = { .class = FAIR_BACKGROUND };
    static char text[N_TEXT];
    static struct world w;

    alone(prepared_for(back, 400, 100), text);
    open_keeping(&w, 256, UINT64_MAX);
    for (uint32_t i = 0; i < N_SEQ; i++)
        add(&w, prepared_for(back, 400, 100));
    while (w.job[N_SEQ - 1]->result.n_token < 20)
        steps(&w, 1);
    add(&w, prepared(4, 20));
    run(&w);
    assert_int_equal(w.stats.n_evicted, 1);
    for (uint32_t i = 0; i < N_SEQ; i++)
        assert_string_equal(w.text[i], text);
    assert_true(w.stats.n_prompt_token <= N_SEQ * 400 + 4 + 1);
    assert_true(w.stats.n_saved > 400);
    close_world(&w);
}

/* Kept prefixes take no room from jobs: what fits without them fits with them, at once; and they
 * stay within their own bound. */
static void test_prefix_room(void **state) {
    struct resident *all = res;
    static struct world w;

    res = resident_of(2 * kvcache_need(all->kv, 800), 0);
    for (int bound = 0; bound < 2; bound++) {
        uint64_t most = bound ? kvcache_n_byte(res->kv) / 2 : kvcache_n_byte(res->kv);

        open_keeping(&w, 256, most);
        for (uint32_t i = 0; i < 30; i++) {
            add(&w, branch(i % 3, 300, (tok_t)(60 + i), 200 + 7 * i % 50, 90));
            if (i % 3 == 2)
                run(&w);
            assert_true(w.stats.kv_kept <= most);
            assert_true(kvcache_n_used(res->kv) <= kvcache_n_byte(res->kv));
            assert_true(kvcache_sound(res->kv));
        }
        for (uint32_t i = 0; i < 30; i++)
            assert_int_equal(w.job[i]->result.n_token, 90);
        assert_int_equal(w.stats.n_evicted, 0);
        assert_true(w.stats.n_kept > 0);
        close_world(&w);
    }
    resident_free(res);
    res = all;
}

/* Trimmed, the cache holds what running jobs need and no other memory; they say the same. */
static void test_trim(void **state) {
    static char text[N_TEXT];
    static struct world w;

    alone(branch(1, 300, 71, 200, 40), text);
    open_keeping(&w, 256, UINT64_MAX);
    for (uint32_t i = 0; i < 4; i++)
        add(&w, branch(i, 300, (tok_t)(70 + i), 200, 10));
    run(&w);
    assert_true(w.stats.kv_kept > kvcache_need(res->kv, 540));
    add(&w, branch(1, 300, 71, 200, 40));
    while (w.job[4]->result.n_token < 20)
        steps(&w, 1);
    assert_true(w.job[4]->result.n_cached == 499);
    sched_trim(w.s);
    assert_int_equal(w.stats.kv_kept, 0);
    assert_int_equal(w.stats.n_kept, 0);
    assert_int_equal(kvcache_n_touched(res->kv), kvcache_n_used(res->kv));
    assert_in_range(kvcache_n_used(res->kv), 1, kvcache_need(res->kv, 540));
    run(&w);
    assert_string_equal(w.text[4], text);
    sched_trim(w.s);
    assert_int_equal(kvcache_n_touched(res->kv), 0);
    close_world(&w);
}

/* Given up in the middle of a step: of that step nothing is kept. */
static void test_prefix_halt(void **state) {
    static char text[N_TEXT];
    static struct world w;

    alone(branch(1, 300, 60, 0, 10), text);
    open_keeping(&w, 64, UINT64_MAX);
    add(&w, branch(1, 300, 60, 0, 10));
    assert_int_equal(steps(&w, 10), 0);
    step_halts = w.job[0];
    run(&w);
    assert_int_equal(w.job[0]->result.end, JOB_END_CANCELLED);
    step_halts = NULL;
    add(&w, branch(1, 300, 60, 0, 10));
    run(&w);
    assert_int_equal(w.job[1]->result.n_cached, 160);
    assert_string_equal(w.text[1], text);
    close_world(&w);
}

/* ---- the resident model ---- */

struct loading {
    uint64_t done, total;
    uint32_t n;
    atomic_bool stop;
    bool stops;
};

static void loading(void *arg, uint64_t done, uint64_t total) {
    struct loading *l = arg;

    assert_true(done >= l->done && done <= total);
    assert_true(l->n == 0 || total == l->total);
    l->done = done;
    l->total = total;
    l->n++;
    atomic_store(&l->stop, l->stops);
}

static void test_load_stops(void **state) {
    struct resident_options opt = {
        .path = model_path, .n_batch = 1, .n_seq = 1, .kv_fmt = QUANT_F16
    };
    struct loading l = { .stops = true };
    struct resident *r = NULL;

    assert_int_equal(resident_new(&r, &opt, loading, &l, &l.stop, NULL), RESIDENT_STOPPED);
    assert_int_equal(l.n, 1);
    assert_int_equal(l.done, 0);
    assert_null(r);
}

static void test_load_no_room(void **state) {
    struct resident_options opt = {
        .path = model_path, .n_batch = 1, .n_seq = 1, .kv_bytes = 1, .kv_fmt = QUANT_F16
    };
    struct loading l = { 0 };
    struct resident *r = NULL;
    struct why why;

    assert_int_equal(resident_new(&r, &opt, loading, &l, &l.stop, &why), RESIDENT_BAD);
    assert_non_null(strstr(why.text, model_path));
}

/* All files of a split model are read, and all of it is one model. */
static void test_load_split(void **state) {
    struct resident_options opt = {
        .path = split_path, .n_batch = 4, .n_seq = 2, .kv_fmt = QUANT_F16
    };
    AUTO(resident_free) struct resident *r = NULL;
    struct loading l = { 0 };
    char path[4096];
    uint64_t size = 0;

    for (int part = 1; part <= 3; part++) {
        size_t n = strlen(split_path) - strlen("00001-of-00003.gguf");
        struct stat st;

        snprintf(path, sizeof path, "%.*s%05d-of-00003.gguf", (int)n, split_path, part);
        assert_int_equal(stat(path, &st), 0);
        size += (uint64_t)st.st_size;
    }
    assert_int_equal(resident_new(&r, &opt, loading, &l, &l.stop, NULL), 0);
    assert_int_equal(l.total, size);
    assert_int_equal(l.done, size);
    assert_int_equal(r->n_ctx, model_info(r->model)->n_ctx_train);
    assert_int_equal(model_info(r->model)->n_ctx, r->n_ctx);
}

static int setup(void **state) {
    struct resident_options opt = { .path = model_path,
                                    .n_ctx = N_CTX,
                                    .n_batch = N_BATCH,
                                    .n_seq = N_SEQ,
                                    .n_keep = N_KEEP,
                                    .kv_fmt = QUANT_F32,
                                    .n_worker = 1 };
    struct loading l = { 0 };
    struct why why = { "" };

    now = 1;
    if (resident_new(&res, &opt, loading, &l, &l.stop, &why) != 0) {
        print_error("%s\n", why.text);
        return -1;
    }
    assert_int_equal(res->n_seq, N_SEQ);
    for (int i = 0; i < 26; i++)
        letter[i] = vocab_find(res->vocab, (char[]){ (char)('a' + i) }, 1);
    logits = calloc((size_t)N_SEQ * vocab_n(res->vocab), sizeof *logits);
    return logits && l.done == l.total && l.total > 0 ? 0 : -1;
}

static int teardown(void **state) {
    free(logits);
    resident_free(res);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),           cmocka_unit_test(test_context),
        cmocka_unit_test(test_no_room),        cmocka_unit_test(test_halt),
        cmocka_unit_test(test_step_fails),     cmocka_unit_test(test_together),
        cmocka_unit_test(test_long_prompt),    cmocka_unit_test(test_shares),
        cmocka_unit_test(test_hold),           cmocka_unit_test(test_wait),
        cmocka_unit_test(test_evict),          cmocka_unit_test(test_background),
        cmocka_unit_test(test_bytes),          cmocka_unit_test(test_user_bytes),
        cmocka_unit_test(test_cancel),         cmocka_unit_test(test_load_stops),
        cmocka_unit_test(test_load_no_room),   cmocka_unit_test(test_load_split),
        cmocka_unit_test(test_prefix),         cmocka_unit_test(test_prefix_parted),
        cmocka_unit_test(test_prefill),        cmocka_unit_test(test_prefix_public),
        cmocka_unit_test(test_prefix_evicted), cmocka_unit_test(test_prefix_room),
        cmocka_unit_test(test_trim),           cmocka_unit_test(test_prefix_halt),
    };

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL SPLIT-MODEL\n", argv[0]);
        return 2;
    }
    model_path = argv[1];
    split_path = argv[2];
    return cmocka_run_group_tests(tests, setup, teardown);
}
