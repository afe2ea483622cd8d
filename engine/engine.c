/* SPDX-License-Identifier: Apache-2.0 */

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>

#include "engine/base/log.h"
#include "engine/base/ring.h"
#include "engine/base/utf8.h"
#include "engine/engine.h"
#include "engine/hw/quota.h"
#include "engine/kv/prefix.h"
#include "engine/sched/job.h"
#include "engine/sched/resident.h"
#include "engine/sched/sched.h"

enum {
    ENGINE_N_EVENT = 256, /* slots of the event ring */
    ENGINE_N_BATCH = 512, /* defaults */
    ENGINE_N_QUEUE = 64,
    ENGINE_N_SEQ = 16,
    ENGINE_N_KEEP = 128, /* kept prefixes */
    ENGINE_BOUND_USEC = 250000,
    ENGINE_FULL_USEC = 20000,    /* look again at a full ring, though nobody called */
    ENGINE_RETRY_USEC = 1000000, /* guess while no generation has ended yet */
    ENGINE_RETRY_MIN_USEC = 50000,
};

/* Two ways lead back to the daemon's thread. The engine thread's events, all the tokens among them,
 * go through @out, which takes no lock. Jobs that end without reaching the engine thread go through
 * @done; two threads end such jobs (the text thread, and the daemon's own when it cancels one that
 * waits), so its producer's end is under @lock. So are the queues between threads: they hand over
 * whole jobs, and cancelling takes one out of their middle, which no ring can do. */
struct engine {
    struct resident_options opt;
    char *path, *cache_dir; /* opt's */
    struct weights_memory memory;
    const char *tier;
    uint32_t n_queue, n_user;
    uint64_t user_bytes, prefix_bytes;
    usec_t bound;
    int epoll_fd;
    bool has_lock;
    uint32_t n_thread;
    pthread_t thread[2]; /* engine, text */

    pthread_mutex_t lock;
    pthread_cond_t engine_cond; /* news, stop, room in @out */
    pthread_cond_t text_cond;   /* todo, stop, load_over, a deadline */
    struct job_queue todo;      /* daemon to text */
    struct job_queue ready;     /* text to engine */
    struct job *first, *last;   /* all jobs; only the daemon's thread changes the list */
    bool news;                  /* for the engine thread: ready, or a job's hold or halt */
    bool waits;                 /* the engine thread does, for news */
    unsigned tidy;              /* ENGINE_TIDY_* to do */
    uint32_t n_tidy;            /* times that was asked; only the daemon's thread changes it */
    enum engine_hold hold;
    uint64_t *forget; /* [n_forget] salts */
    size_t n_forget;
    bool load_over; /* after the event that says so: no job's event comes before it */

    atomic_bool stop;
    atomic_int state;    /* enum engine_state */
    atomic_uint n_limit; /* workers at most, 0: all */
    atomic_bool locked;
    atomic_uint n_tidied; /* of .n_tidy, done */
    _Atomic uint64_t bytes_done, bytes_total;
    _Atomic uint64_t n_beat; /* of the engine thread, between steps and while loading */
    atomic_bool starved;     /* the engine thread waits for room in @out */
    struct sched_stats stats;
    struct ring *out;  /* struct job_event: engine to daemon */
    struct ring *done; /* struct job *: under @lock, to daemon; has room for every job */

    struct resident *res; /* once ENGINE_READY */
    struct why why;       /* once ENGINE_FAILED */
    usec_t told;          /* engine thread: when loading was last reported */

    /* The daemon's thread alone. */
    uint64_t last_id;
    uint32_t n_job[2];     /* alive: generations, others */
    struct job *stash;     /* popped from @done, not delivered yet */
    struct job *delivered; /* its result is out until the next engine_next() */
    struct job_event event;
    struct engine_result result;
};

static bool engine_stopped(struct engine *e) {
    return atomic_load_explicit(&e->stop, memory_order_relaxed);
}

static void engine_timedwait(struct engine *e, pthread_cond_t *cond, usec_t until) {
    struct timespec t = { .tv_sec = (time_t)(until / 1000000),
                          .tv_nsec = (long)(until % 1000000) * 1000 };

    (void)pthread_cond_timedwait(cond, &e->lock, &t);
}

/* ---- ends of jobs outside the engine thread; @lock held ---- */

static void engine_give(struct engine *e, struct job *j) {
    (void)ring_push(e->done, &j); /* never full: n_job is bounded by its size */
}

static void engine_tell(struct engine *e) {
    e->news = true;
    pthread_cond_broadcast(&e->engine_cond);
}

static void engine_halt(struct engine *e, struct job *j, enum job_end end) {
    job_halt(j, end);
    if (job_queue_remove(&e->todo, j) || job_queue_remove(&e->ready, j)) {
        j->result.end = job_halted(j);
        j->result.queue_usec = job_clock() - j->submitted;
        engine_give(e, j);
    } else {
        engine_tell(e);
    }
}

/* Halt what is past its deadline. Return: the next deadline, 0: none. */
static usec_t engine_expire(struct engine *e) {
    usec_t now = job_clock(), next = 0;

    for (struct job *j = e->first; j; j = j->list_next) {
        if (!j->deadline || atomic_load(&j->halt))
            continue;
        if (j->deadline <= now)
            engine_halt(e, j, JOB_END_DEADLINE);
        else if (!next || j->deadline < next)
            next = j->deadline;
    }
    return next;
}

/* ---- text thread: prepares jobs, and keeps their deadlines ---- */

static bool engine_prepare(struct engine *e, struct job *j) {
    if (atomic_load(&e->state) != ENGINE_FAILED)
        return job_prepare(j, e->res);
    j->result.end = JOB_END_MODEL;
    j->result.why = e->why;
    return false;
}

static void *engine_text_main(void *arg) {
    struct engine *e = arg;

    pthread_mutex_lock(&e->lock);
    while (!engine_stopped(e)) {
        usec_t next = engine_expire(e);
        struct job *j = e->load_over ? job_queue_pop(&e->todo) : NULL;
        bool goes_on;

        if (!j) {
            if (next)
                engine_timedwait(e, &e->text_cond, next);
            else
                pthread_cond_wait(&e->text_cond, &e->lock);
            continue;
        }

        pthread_mutex_unlock(&e->lock);
        j->result.queue_usec = job_clock() - j->submitted;
        goes_on = engine_prepare(e, j);
        pthread_mutex_lock(&e->lock);
        if (!goes_on) {
            engine_give(e, j);
            continue;
        }
        job_queue_push(&e->ready, j);
        if (job_halted(j) != JOB_END_N) /* while it was in no queue */
            engine_halt(e, j, job_halted(j));
        else
            engine_tell(e);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* ---- engine thread: loads, then steps ---- */

static void engine_beat(struct engine *e) {
    atomic_fetch_add_explicit(&e->n_beat, 1, memory_order_relaxed);
}

static void engine_progress(void *arg, uint64_t done, uint64_t total) {
    struct engine *e = arg;
    struct job_event ev = { .kind = JOB_EVENT_PROGRESS, .done = done, .total = total };
    usec_t now = job_clock();

    engine_beat(e);
    atomic_store_explicit(&e->bytes_total, total, memory_order_relaxed);
    atomic_store_explicit(&e->bytes_done, done, memory_order_relaxed);
    if (e->told && now - e->told < SCHED_PROGRESS_USEC)
        return;
    e->told = now;
    (void)ring_push(e->out, &ev); /* when it is full, the next one says more */
}

/* Wait until the daemon's thread took an event, or a moment. */
static void engine_wait_room(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    atomic_store(&e->starved, true);
    if (!engine_stopped(e))
        engine_timedwait(e, &e->engine_cond, job_clock() + ENGINE_FULL_USEC);
    pthread_mutex_unlock(&e->lock);
}

/* Give the scheduler what is ready. @wait: for news first. */
static void engine_take(struct engine *e, struct sched *s, bool wait) {
    struct job *j;

    pthread_mutex_lock(&e->lock);
    e->waits = wait;
    while (wait && !e->news && !engine_stopped(e))
        pthread_cond_wait(&e->engine_cond, &e->lock);
    e->waits = e->news = false;
    while ((j = job_queue_pop(&e->ready)))
        sched_add(s, j);
    pthread_mutex_unlock(&e->lock);
}

/* Load, and say so. Return: is there anything to run? */
static bool engine_load(struct engine *e, struct sched **ret_s) {
    struct job_event ev = { .kind = JOB_EVENT_LOADED };
    struct sched_options so = { .n_job = e->opt.n_seq + e->n_queue,
                                .bound = e->bound,
                                .prefix_bytes = e->prefix_bytes,
                                .stop = &e->stop };
    int r = resident_new(&e->res, &e->opt, engine_progress, e, &e->stop, &e->why);

    if (r == RESIDENT_STOPPED)
        return false;
    if (r == 0) {
        r = sched_new(ret_s, e->res, &so, e->out, &e->stats);
        if (r < 0)
            why_set(&e->why, err_up(r), "out of memory");
    }
    atomic_store(&e->state, r == 0 ? ENGINE_READY : ENGINE_FAILED);
    if (r != 0)
        ev.kind = JOB_EVENT_LOAD_FAILED;
    while (ring_push(e->out, &ev) != 0 && !engine_stopped(e))
        engine_wait_room(e);

    pthread_mutex_lock(&e->lock);
    e->load_over = true;
    pthread_cond_broadcast(&e->text_cond);
    pthread_mutex_unlock(&e->lock);
    return r == 0;
}

/* Workers that compute, of the resident model. */
static uint32_t engine_n_worker(const struct engine *e) {
    uint32_t n = pool_n_worker(e->res->pool), limit = atomic_load(&e->n_limit);

    return limit && limit < n ? limit : n;
}

/* Between two steps: what the daemon's thread wants of memory, workers and jobs. */
static void engine_do_tidy(struct engine *e, struct sched *s) {
    static const enum sched_hold hold[] = { [ENGINE_HOLD_NONE] = SCHED_HOLD_NONE,
                                            [ENGINE_HOLD_BACKGROUND] = SCHED_HOLD_BACKGROUND,
                                            [ENGINE_HOLD_ALL] = SCHED_HOLD_ALL };
    struct model *m = e->res->model;
    unsigned what;
    uint32_t n;

    pthread_mutex_lock(&e->lock);
    n = e->n_tidy;
    what = e->tidy;
    e->tidy = 0;
    while (e->n_forget > 0)
        sched_forget(s, e->forget[--e->n_forget]);
    sched_hold(s, hold[e->hold]);
    pthread_mutex_unlock(&e->lock);

    pool_limit(e->res->pool, engine_n_worker(e));
    if (what & ENGINE_TIDY_KV)
        sched_trim(s);
    if (what & (ENGINE_TIDY_LOCK | ENGINE_TIDY_UNLOCK)) {
        bool lock = what & ENGINE_TIDY_LOCK;

        atomic_store(&e->locked, model_lock(m, lock) == 0 && lock);
    }
    if (what & ENGINE_TIDY_COLD) /* now that they may go */
        model_cool(m);
    atomic_store(&e->n_tidied, n);
}

static void *engine_main(void *arg) {
    AUTO(sched_free) struct sched *s = NULL;
    struct engine *e = arg;
    bool wait = false;

    if (!engine_load(e, &s))
        return NULL;

    while (!engine_stopped(e)) {
        engine_take(e, s, wait);
        engine_beat(e);
        engine_do_tidy(e, s);
        switch (sched_step(s)) {
        case 0:
            wait = false;
            break;
        case SCHED_NO_ROOM:
            engine_wait_room(e);
            wait = false;
            break;
        default:
            wait = true;
        }
    }
    return NULL;
}

/* ---- begin and end ---- */

static int engine_check(const struct engine_options *opt, struct why *why) {
    if (!opt->path || !opt->path[0])
        return why_set(why, err_new(-EINVAL), "no model file");
    if (!kern_kv_fmt(opt->kv_fmt))
        return why_set(why, err_new(-EINVAL), "keys and values can be F16, F32 or Q8_0");
    if (opt->n_queue > 1 << 20 || opt->n_batch > 1 << 16 || opt->n_seq > 1 << 10)
        return why_set(why, err_new(-EINVAL), "n_queue, n_batch or n_seq is out of range");
    return 0;
}

static int engine_init_lock(struct engine *e) {
    pthread_condattr_t attr;
    int r = pthread_mutex_init(&e->lock, NULL);

    if (r != 0)
        return err_new(-r);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->engine_cond, &attr);
    pthread_cond_init(&e->text_cond, &attr);
    pthread_condattr_destroy(&attr);
    e->has_lock = true;
    return 0;
}

static int engine_init_rings(struct engine *e) {
    struct epoll_event in = { .events = EPOLLIN };
    int r;

    r = ring_new(&e->out, ENGINE_N_EVENT, sizeof(struct job_event));
    if (r < 0)
        return err_up(r);
    r = ring_new(&e->done, 2 * (e->n_queue + e->opt.n_seq), sizeof(struct job *));
    if (r < 0)
        return err_up(r);
    e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (e->epoll_fd < 0 || epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, ring_fd(e->out), &in) < 0 ||
        epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, ring_fd(e->done), &in) < 0)
        return err_new(-errno);
    return 0;
}

/* Signals are the daemon's: its thread alone takes them. */
static int engine_start(struct engine *e) {
    static void *(*const fn[])(void *) = { engine_main, engine_text_main };
    static const char *const name[] = { "moed-engine", "moed-text" };
    sigset_t all, old;
    int r = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = 0; i < 2 && r == 0; i++) {
        r = pthread_create(&e->thread[i], NULL, fn[i], e);
        if (r == 0) {
            e->n_thread++;
            (void)pthread_setname_np(e->thread[i], name[i]);
        }
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r == 0 ? 0 : err_new(-r);
}

static const char *engine_bound_tier(void) {
    struct kern k = { 0 };

    kern_bind(&k, kern_cpu());
    return k.tier;
}

int engine_new(struct engine **ret_engine, const struct engine_options *opt, struct why *why) {
    AUTO(engine_free) struct engine *e = NULL;
    int r = engine_check(opt, why);

    if (r < 0)
        return err_up(r);
    e = calloc(1, sizeof *e);
    if (!e)
        return why_set(why, err_new(-ENOMEM), "out of memory");
    e->epoll_fd = -1;
    e->n_queue = opt->n_queue ? opt->n_queue : ENGINE_N_QUEUE;
    e->n_user = opt->n_user;
    e->user_bytes = opt->user_bytes;
    e->prefix_bytes = opt->prefix_bytes;
    e->bound = opt->bound_usec ? opt->bound_usec : ENGINE_BOUND_USEC;
    e->tier = engine_bound_tier();
    e->path = strdup(opt->path);
    e->cache_dir = opt->cache_dir ? strdup(opt->cache_dir) : NULL;
    e->opt = (struct resident_options){
        .path = e->path,
        .n_ctx = opt->n_ctx,
        .kv_bytes = opt->kv_bytes,
        .kv_user = opt->kv_user,
        .n_worker = opt->n_worker,
        .n_batch = opt->n_batch ? opt->n_batch : ENGINE_N_BATCH,
        .n_seq = opt->n_seq ? opt->n_seq : ENGINE_N_SEQ,
        .n_keep = opt->prefix_bytes ? ENGINE_N_KEEP : 0,
        .kv_fmt = opt->kv_fmt,
        .exact = opt->exact,
        .no_pack = opt->no_pack,
        .expert_bytes = opt->expert_bytes,
        .cache_dir = e->cache_dir,
        .memory = opt->in_memory ? &e->memory : NULL,
    };
    e->memory.fd = opt->memory_fd;
    r = e->path && (e->cache_dir || !opt->cache_dir) ? engine_init_lock(e) : err_new(-ENOMEM);
    if (r == 0)
        r = engine_init_rings(e);
    if (r == 0)
        r = engine_start(e);
    if (r < 0)
        return why_set(why, err_up(r), "cannot start the engine: %s", strerror(-r));

    *ret_engine = take(e);
    return 0;
}

static void engine_stop(struct engine *e) {
    pthread_mutex_lock(&e->lock);
    atomic_store(&e->stop, true);
    for (struct job *j = e->first; j; j = j->list_next)
        job_halt(j, JOB_END_CANCELLED);
    pthread_cond_broadcast(&e->engine_cond);
    pthread_cond_broadcast(&e->text_cond);
    pthread_mutex_unlock(&e->lock);
    for (uint32_t i = 0; i < e->n_thread; i++)
        (void)pthread_join(e->thread[i], NULL);
}

struct engine *engine_free(struct engine *e) {
    if (!e)
        return NULL;
    if (e->has_lock) {
        engine_stop(e);
        pthread_cond_destroy(&e->engine_cond);
        pthread_cond_destroy(&e->text_cond);
        pthread_mutex_destroy(&e->lock);
    }
    while (e->first) {
        struct job *j = e->first;

        e->first = j->list_next;
        job_free(j);
    }
    job_free(e->delivered);
    resident_free(e->res);
    ring_free(e->out);
    ring_free(e->done);
    if (e->epoll_fd >= 0)
        (void)close(e->epoll_fd);
    free(e->path);
    free(e->cache_dir);
    free(e->forget);
    free(e);
    return NULL;
}

/* ---- what it is ---- */

static const struct resident *engine_ready(const struct engine *e) {
    return atomic_load(&e->state) == ENGINE_READY ? e->res : NULL;
}

/* Also when it waits but has not seen the news. */
static bool engine_busy(struct engine *e) {
    bool busy;

    pthread_mutex_lock(&e->lock);
    busy = !e->waits || e->news;
    pthread_mutex_unlock(&e->lock);
    return busy && atomic_load(&e->state) != ENGINE_FAILED;
}

void engine_status(struct engine *e, struct engine_status *ret) {
    const struct resident *r = engine_ready(e);
    uint32_t n_running = atomic_load_explicit(&e->stats.n_running, memory_order_relaxed);

    *ret = (struct engine_status){
        .state = (enum engine_state)atomic_load(&e->state),
        .bytes_done = atomic_load_explicit(&e->bytes_done, memory_order_relaxed),
        .bytes_total = atomic_load_explicit(&e->bytes_total, memory_order_relaxed),
        .n_running = n_running,
        .n_queued = e->n_job[0] > n_running ? e->n_job[0] - n_running : 0,
        .n_queue_max = e->n_queue,
        .n_worker = r ? engine_n_worker(e) : 0,
        .tier = e->tier,
        .kv_bytes = r ? kvcache_n_byte(r->kv) : 0,
        .kv_room = atomic_load_explicit(&e->stats.kv_room, memory_order_relaxed),
        .n_prompt_token = atomic_load_explicit(&e->stats.n_prompt_token, memory_order_relaxed),
        .n_token = atomic_load_explicit(&e->stats.n_token, memory_order_relaxed),
        .step_usec = atomic_load_explicit(&e->stats.step_usec, memory_order_relaxed),
        .n_evicted = atomic_load_explicit(&e->stats.n_evicted, memory_order_relaxed),
        .refused = atomic_load(&e->memory.refused),
        .locked = atomic_load(&e->locked),
        .tidying = atomic_load(&e->n_tidied) != e->n_tidy,
        .busy = engine_busy(e),
        .n_beat =
            atomic_load_explicit(&e->n_beat, memory_order_relaxed) + (r ? model_beat(r->model) : 0),
        .kv_kept = atomic_load_explicit(&e->stats.kv_kept, memory_order_relaxed),
        .n_kept = atomic_load_explicit(&e->stats.n_kept, memory_order_relaxed),
        .n_public = atomic_load_explicit(&e->stats.n_public, memory_order_relaxed),
        .n_hit = atomic_load_explicit(&e->stats.n_hit, memory_order_relaxed),
        .n_saved = atomic_load_explicit(&e->stats.n_saved, memory_order_relaxed),
    };
}

void engine_limit(struct engine *e, uint32_t n) {
    atomic_store(&e->n_limit, n);
}

void engine_tidy(struct engine *e, unsigned what) {
    pthread_mutex_lock(&e->lock);
    if (what & (ENGINE_TIDY_LOCK | ENGINE_TIDY_UNLOCK))
        e->tidy &= ~(unsigned)(ENGINE_TIDY_LOCK | ENGINE_TIDY_UNLOCK);
    e->tidy |= what;
    e->n_tidy++;
    engine_tell(e);
    pthread_mutex_unlock(&e->lock);
}

void engine_hold(struct engine *e, enum engine_hold hold) {
    pthread_mutex_lock(&e->lock);
    e->hold = hold;
    engine_tell(e);
    pthread_mutex_unlock(&e->lock);
}

int engine_forget(struct engine *e, uint32_t uid) {
    uint64_t *more;

    pthread_mutex_lock(&e->lock);
    for (struct job *j = e->first; j; j = j->list_next)
        if (j->salt == uid)
            atomic_store(&j->forget, true);
    more = realloc(e->forget, (e->n_forget + 1) * sizeof *more);
    if (more) {
        e->forget = more;
        more[e->n_forget++] = uid;
        engine_tell(e);
    }
    pthread_mutex_unlock(&e->lock);
    return more ? 0 : err_new(-ENOMEM);
}

uint64_t engine_memory(void) {
    return quota_memory("");
}

uint64_t engine_memory_spare(void) {
    return quota_spare("");
}

int engine_usable(void) {
    AUTO(topo_free) struct topo *t = NULL;
    int r = topo_new(&t);

    return r < 0 ? err_up(r) : (int)topo_n_worker(t);
}

bool engine_shard(const struct engine *e, uint32_t i, struct model_shard *ret) {
    const struct resident *r = engine_ready(e);

    return r && model_shard(r->model, i, ret);
}

int engine_weights(const struct engine *e) {
    const struct resident *r = engine_ready(e);

    return r ? model_fd(r->model) : -1;
}

const struct model_info *engine_info(const struct engine *e) {
    const struct resident *r = engine_ready(e);

    return r ? model_info(r->model) : NULL;
}

const struct vocab *engine_vocab(const struct engine *e) {
    const struct resident *r = engine_ready(e);

    return r ? r->vocab : NULL;
}

const char *engine_template(const struct engine *e, size_t *ret_n) {
    const struct resident *r = engine_ready(e);

    *ret_n = r ? r->n_template : 0;
    return r ? r->template : NULL;
}

const struct sample_params *engine_defaults(const struct engine *e) {
    const struct resident *r = engine_ready(e);

    return r ? &r->defaults : NULL;
}

/* ---- submitting ---- */

/* Does a job of this kind wait for no place? */
static bool engine_is_text(enum engine_kind kind) {
    return kind >= ENGINE_TOKENIZE;
}

static int engine_check_source(const struct engine_request *q, struct why *why) {
    bool ok = false;

    switch (q->kind) {
    case ENGINE_RESTORE:
        ok = q->n_msg == 0 && !q->text && !q->tok;
        break;
    case ENGINE_SAVE:
    case ENGINE_GENERATE:
    case ENGINE_SCORE:
        ok = (q->n_msg > 0) + (q->text != NULL) + (q->tok != NULL) == 1;
        break;
    case ENGINE_TOKENIZE:
        ok = q->text || q->n_text == 0;
        break;
    case ENGINE_DETOKENIZE:
        ok = q->tok || q->n_tok == 0;
        break;
    case ENGINE_RENDER:
        ok = q->n_msg > 0;
        break;
    }
    return ok ? 0 : why_set(why, ENGINE_BAD, "a job needs messages, a text or tokens: one of them");
}

static int engine_check_stop(const struct engine_request *q, struct why *why) {
    if (q->n_stop > ENGINE_STOP_MAX)
        return why_set(why, ENGINE_BAD, "stop: %zu strings; %d is the limit", q->n_stop,
                       ENGINE_STOP_MAX);
    for (size_t i = 0; i < q->n_stop; i++) {
        size_t n = strlen(q->stop[i]);

        if (n == 0 || n > ENGINE_STOP_BYTES)
            return why_set(why, ENGINE_BAD, "stop: string %zu has %zu bytes; 1 to %d are allowed",
                           i, n, ENGINE_STOP_BYTES);
        if (!utf8_valid(q->stop[i], n))
            return why_set(why, ENGINE_BAD, "stop: string %zu is no UTF-8", i);
    }
    return 0;
}

/* Bytes of the texts of @q, at most one more than ENGINE_TEXT_MAX. */
static size_t engine_size(const struct engine_request *q) {
    size_t n = q->n_text;

    if (q->n_tok > ENGINE_TEXT_MAX / sizeof *q->tok || n > ENGINE_TEXT_MAX)
        n = (size_t)ENGINE_TEXT_MAX + 1;
    else
        n += q->n_tok * sizeof *q->tok;
    for (size_t i = 0; i < q->n_choice && n <= ENGINE_TEXT_MAX; i++)
        n += strlen(q->choice[i]) + sizeof *q->choice;
    for (size_t i = 0; i < q->n_msg && n <= ENGINE_TEXT_MAX; i++)
        n += strlen(q->msg[i].role) + strlen(q->msg[i].text) + sizeof *q->msg;
    return n <= ENGINE_TEXT_MAX ? n : (size_t)ENGINE_TEXT_MAX + 1;
}

static int engine_check_choices(const struct engine_request *q, struct why *why) {
    if (q->n_choice == 0 || q->n_choice > ENGINE_CHOICE_MAX)
        return why_set(why, ENGINE_BAD, "choices: %zu; 1 to %d are allowed", q->n_choice,
                       ENGINE_CHOICE_MAX);
    for (size_t i = 0; i < q->n_choice; i++)
        if (q->choice[i][0] == 0)
            return why_set(why, ENGINE_BAD, "choices: number %zu is empty", i);
    return 0;
}

static int engine_check_request(const struct engine_request *q, struct why *why) {
    int r = engine_check_source(q, why);

    if (r == 0 && engine_size(q) > ENGINE_TEXT_MAX)
        r = why_set(why, ENGINE_TOO_LARGE, "a job may have %d bytes of text", ENGINE_TEXT_MAX);
    if (r == 0 && q->kind == ENGINE_SCORE)
        r = engine_check_choices(q, why);
    if (r == 0 && q->kind == ENGINE_GENERATE) {
        r = engine_check_stop(q, why);
        if (r == 0 && q->n_top > SAMPLE_TOP_MAX)
            r = why_set(why, ENGINE_BAD, "logprobs: %u alternatives; %d is the limit", q->n_top,
                        SAMPLE_TOP_MAX);
        if (r == 0 && sample_check(&q->sample, why) != 0)
            r = ENGINE_BAD;
    }
    return r;
}

/* Generations at a time; before the load, what was asked for. */
static uint32_t engine_n_seq(const struct engine *e) {
    return atomic_load(&e->state) == ENGINE_READY ? e->res->n_seq : e->opt.n_seq;
}

static void engine_guess(struct engine *e, bool text, struct engine_queue *ret) {
    uint64_t mean = atomic_load_explicit(&e->stats.job_usec, memory_order_relaxed);

    ret->position = e->n_job[text];
    if (!mean || text)
        mean = text ? ENGINE_RETRY_MIN_USEC : ENGINE_RETRY_USEC;
    /* When the next of those that run ends, there is room in a full queue. */
    ret->retry_usec = mean / (text ? 1 : engine_n_seq(e));
    if (ret->retry_usec < ENGINE_RETRY_MIN_USEC)
        ret->retry_usec = ENGINE_RETRY_MIN_USEC;
}

static int engine_copy(const struct engine_request *q, struct job **ret_job) {
    static const enum job_kind kind[] = {
        [ENGINE_SCORE] = JOB_GENERATE,    [ENGINE_GENERATE] = JOB_GENERATE,
        [ENGINE_SAVE] = JOB_SAVE,         [ENGINE_RESTORE] = JOB_RESTORE,
        [ENGINE_TOKENIZE] = JOB_TOKENIZE, [ENGINE_DETOKENIZE] = JOB_DETOKENIZE,
        [ENGINE_RENDER] = JOB_RENDER,
    };
    AUTO(job_free) struct job *j = job_new(kind[q->kind]);
    int r = 0;

    if (!j)
        return err_new(-ENOMEM);
    j->userdata = q->userdata;
    j->fair.who = q->who;
    j->n_byte = engine_size(q);
    j->special = q->special;
    j->no_bos = q->no_bos;
    j->thinking = q->thinking;
    j->no_generation = q->no_generation;
    j->prefill = j->prefill || q->prefill_only;
    j->salt = q->prefill_only && q->public ? PREFIX_PUBLIC : q->who.uid;
    j->ignore_end = q->ignore_end;
    j->drop_oldest = q->drop_oldest;
    j->logprobs = q->logprobs;
    j->max_tokens = q->max_tokens;
    j->n_top = q->n_top;
    j->deadline = q->deadline_usec;

    if (q->n_msg > 0)
        r = job_copy_messages(j, q->msg, q->n_msg);
    if (r == 0 && (q->text || q->kind == ENGINE_TOKENIZE))
        r = job_copy_text(j, q->text ? q->text : "", q->n_text);
    if (r == 0 && q->n_tok > 0)
        r = job_copy_tokens(j, q->tok, q->n_tok);
    if (r == 0 && q->kind == ENGINE_GENERATE)
        r = job_copy_sample(j, &q->sample);
    if (r == 0 && j->kind == JOB_GENERATE)
        r = stop_new(&j->stop, q->stop, q->n_stop);
    if (r == 0 && q->kind == ENGINE_SCORE)
        r = score_new(&j->score, q->choice, q->n_choice);
    if (r == 0 && (q->kind == ENGINE_SAVE || q->kind == ENGINE_RESTORE)) {
        j->fd = fcntl(q->fd, F_DUPFD_CLOEXEC, 3);
        r = j->fd < 0 ? err_new(-errno) : 0;
    }
    if (r < 0)
        return err_up(r);

    *ret_job = take(j);
    return 0;
}

/* Is there room in the queue, for anybody, for work of the background, and for this user? */
static int engine_check_queue(struct engine *e, const struct engine_request *q,
                              struct engine_queue *queue, struct why *why) {
    bool text = engine_is_text(q->kind);
    uint32_t room = e->n_queue + (text ? 1 : engine_n_seq(e)), n = 0, n_back = 0;
    size_t n_byte = engine_size(q);

    if (e->n_job[text] >= room)
        return why_set(why, ENGINE_BUSY, "%u requests are waiting", e->n_job[text]);
    for (const struct job *j = e->first; j; j = j->list_next) {
        bool same = (j->kind >= JOB_TOKENIZE) == text, own = j->fair.who.uid == q->who.uid;

        n_back += same && j->fair.who.class == FAIR_BACKGROUND;
        n += same && own;
        n_byte += own ? j->n_byte : 0;
    }
    if (q->who.class == FAIR_BACKGROUND && n_back + (e->n_queue + 3) / 4 >= room)
        return why_set(why, ENGINE_BUSY, "%u requests of the background are waiting", n_back);
    if (e->n_user && n >= e->n_user) {
        queue->position = n;
        return why_set(why, ENGINE_BUSY, "%u requests of this user are not answered yet", n);
    }
    if (e->user_bytes && n_byte > e->user_bytes) {
        queue->position = n;
        return why_set(why, ENGINE_BUSY, "requests of this user have %zu bytes of text", n_byte);
    }
    return 0;
}

int engine_submit(struct engine *e, const struct engine_request *req, uint64_t *ret_job,
                  struct engine_queue *ret_queue, struct why *why) {
    bool text = engine_is_text(req->kind);
    struct engine_queue queue;
    struct job *j = NULL;
    int r;

    r = engine_check_request(req, why);
    if (r != 0)
        return r;
    engine_guess(e, text, &queue);
    r = engine_check_queue(e, req, &queue, why);
    if (ret_queue)
        *ret_queue = queue;
    if (r != 0)
        return r;
    r = engine_copy(req, &j);
    if (r != 0)
        return why_set(why, err_up(r), "out of memory");

    j->id = *ret_job = ++e->last_id;
    e->n_job[text]++;
    pthread_mutex_lock(&e->lock);
    j->list_prev = e->last;
    if (e->last)
        e->last->list_next = j;
    else
        e->first = j;
    e->last = j;
    job_queue_push(&e->todo, j);
    pthread_cond_broadcast(&e->text_cond);
    pthread_mutex_unlock(&e->lock);
    return 0;
}

static struct job *engine_find(const struct engine *e, uint64_t id) {
    struct job *j = e->first;

    while (j && j->id != id)
        j = j->list_next;
    return j;
}

void engine_cancel(struct engine *e, uint64_t job) {
    struct job *j = engine_find(e, job);

    if (!j)
        return;
    pthread_mutex_lock(&e->lock);
    engine_halt(e, j, JOB_END_CANCELLED);
    pthread_mutex_unlock(&e->lock);
}

void engine_pause(struct engine *e, uint64_t job, bool pause) {
    struct job *j = engine_find(e, job);

    if (!j)
        return;
    pthread_mutex_lock(&e->lock);
    atomic_store(&j->hold, pause);
    engine_tell(e);
    pthread_mutex_unlock(&e->lock);
}

bool engine_job(const struct engine *e, uint64_t job, struct engine_job *ret) {
    const struct job *j = engine_find(e, job);

    if (!j)
        return false;
    *ret = (struct engine_job){
        .n_prompt = atomic_load_explicit(&j->live.n_prompt, memory_order_relaxed),
        .n_done = atomic_load_explicit(&j->live.n_done, memory_order_relaxed),
        .n_token = atomic_load_explicit(&j->live.n_token, memory_order_relaxed),
        .kv_bytes = atomic_load_explicit(&j->live.kv_bytes, memory_order_relaxed),
    };
    return true;
}

/* ---- events ---- */

int engine_fd(const struct engine *e) {
    return e->epoll_fd;
}

/* Take @j out of the list and show its result. */
static void engine_deliver(struct engine *e, struct job *j, struct engine_event *ret) {
    static const enum engine_end end[] = {
        [JOB_END_STOP] = ENGINE_END_STOP,         [JOB_END_LENGTH] = ENGINE_END_LENGTH,
        [JOB_END_DEADLINE] = ENGINE_END_DEADLINE, [JOB_END_CANCELLED] = ENGINE_END_CANCELLED,
        [JOB_END_CONTEXT] = ENGINE_END_CONTEXT,   [JOB_END_MEMORY] = ENGINE_END_MEMORY,
        [JOB_END_INVALID] = ENGINE_END_INVALID,   [JOB_END_MODEL] = ENGINE_END_MODEL,
        [JOB_END_INTERNAL] = ENGINE_END_INTERNAL, [JOB_END_CORRUPT] = ENGINE_END_CORRUPT,
    };
    struct job_result *r = &j->result;

    pthread_mutex_lock(&e->lock);
    *(j->list_prev ? &j->list_prev->list_next : &e->first) = j->list_next;
    *(j->list_next ? &j->list_next->list_prev : &e->last) = j->list_prev;
    pthread_mutex_unlock(&e->lock);
    e->n_job[j->kind >= JOB_TOKENIZE]--;
    e->delivered = j;

    e->result = (struct engine_result){
        .end = end[r->end],
        .stop_index = r->stop_index,
        .n_prompt = r->n_prompt,
        .n_cached = r->n_cached,
        .n_token = r->n_token,
        .n_available = r->n_available,
        .n_dropped = r->n_dropped,
        .n_dropped_msg = r->n_dropped_msg,
        .need = r->need,
        .have = r->have,
        .kv_bytes = r->kv_bytes,
        .queue_usec = r->queue_usec,
        .prefill_usec = r->prefill_usec,
        .decode_usec = r->decode_usec,
        .seed = r->seed,
        .why = r->why,
        .text = r->text,
        .n_text = r->n_text,
        .tok = r->tok.id,
        .n_tok = r->tok.n,
    };
    if (j->score && r->end == JOB_END_STOP)
        e->result.logprob = score_result(j->score, &e->result.n_logprob);
    ret->kind = ENGINE_DONE;
    ret->job = j->id;
    ret->userdata = j->userdata;
    ret->result = &e->result;
}

/* Show e->event. */
static void engine_show(struct engine *e, struct engine_event *ret) {
    struct job_event *ev = &e->event;

    if (ev->job) {
        ret->job = ev->job->id;
        ret->userdata = ev->job->userdata;
    }
    switch (ev->kind) {
    case JOB_EVENT_PROGRESS:
        ret->kind = ENGINE_PROGRESS;
        ret->done = ev->done;
        ret->total = ev->total;
        break;
    case JOB_EVENT_LOADED:
        ret->kind = ENGINE_LOADED;
        break;
    case JOB_EVENT_LOAD_FAILED:
        ret->kind = ENGINE_LOAD_FAILED;
        ret->why = &e->why;
        break;
    case JOB_EVENT_TEXT:
        ret->kind = ENGINE_TEXT;
        ret->text_kind = ev->text_kind;
        ret->text = ev->text;
        ret->n_text = ev->n_text;
        ret->has_token = ev->has_token;
        ret->token = ev->token;
        break;
    case JOB_EVENT_DONE:
        engine_deliver(e, ev->job, ret);
        break;
    }
}

bool engine_next(struct engine *e, struct engine_event *ret) {
    *ret = (struct engine_event){ 0 };
    e->delivered = job_free(e->delivered);

    /* Look at @done first, deliver from it last: what ended after the load was over has seen the
     * event that says so pushed, so that event is in @out by now and goes first. */
    if (!e->stash && ring_pop(e->done, &e->stash) != 0)
        e->stash = NULL;
    if (ring_pop(e->out, &e->event) == 0) {
        if (atomic_load(&e->starved) && atomic_exchange(&e->starved, false)) {
            pthread_mutex_lock(&e->lock);
            pthread_cond_broadcast(&e->engine_cond);
            pthread_mutex_unlock(&e->lock);
        }
        engine_show(e, ret);
        return true;
    }
    if (e->stash) {
        engine_deliver(e, take(e->stash), ret);
        return true;
    }
    return false;
}
