/* SPDX-License-Identifier: Apache-2.0 */

#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/models.h"
#include "daemon/notify.h"
#include "engine/base/log.h"
#include "engine/base/utf8.h"

enum { MODELS_PROGRESS_USEC = 200000 /* between two reports of loading */ };

/* What a file was when loading it failed: while it is that, it fails again. */
struct print {
    dev_t dev;
    ino_t ino;
    off_t size;
    struct timespec mtime;
};

struct models {
    struct event_base *base;
    const struct config *config;
    struct registry files;
    void (*changed)(void *arg); /* NULL: nobody wants to know */
    void *changed_arg;

    /* The resident model. Its engine is freed only from outside the engine's own events. */
    char *id, *path;
    enum models_state state;
    struct why reason;
    struct print print;
    struct engine *engine;
    struct event *readable;
    LIST_HEAD(, models_job) jobs;
    uint32_t n_job;                       /* without idle ones */
    void (*idle)(void *arg, bool loaded); /* NULL: nobody wants to know */
    void *idle_arg;

    struct fdstore store; /* weights of the resident model, or of the last start's */
    usec_t idle_since;    /* when it was loaded or had its last work */

    unsigned tidy; /* what the engine was told last, see engine_tidy() */
    bool closed;
    bool saving; /* power */
    enum engine_hold hold;
    uint64_t need, have; /* bytes, of the last MODELS_MEMORY */

    struct tasks *tasks;
    struct task *load; /* of the resident model while it loads, else NULL */
    uint64_t load_id;  /* its number, or what it was */
    usec_t progress_usec;
};

const char *models_state_name(enum models_state state) {
    static const char *const names[] = { "available", "loading", "loaded", "failed" };

    return names[state];
}

/* ---- files ---- */

const struct registry *models_files(struct models *m) {
    int r = m->config->model ? registry_single(&m->files, m->config->model)
                             : registry_scan(&m->files, m->config->model_dir);

    if (r)
        log_warning("models", "%s: cannot read: %s",
                    m->config->model ? m->config->model : m->config->model_dir, strerror(-r));
    return &m->files;
}

const char *models_folder(const struct models *m) {
    return m->config->model ? NULL : m->config->model_dir;
}

void models_look(struct models *m) {
    (void)models_files(m);
    if (m->changed)
        m->changed(m->changed_arg);
}

const char *models_default(const struct models *m) {
    if (m->config->default_model)
        return registry_find(&m->files, m->config->default_model) ? m->config->default_model : NULL;

    return m->files.n ? m->files.file[0].id : NULL;
}

const struct registry_file *models_find(struct models *m, const char *id) {
    (void)models_files(m);
    if (!id)
        id = m->id && m->state != MODELS_FAILED ? m->id : models_default(m);

    return id ? registry_find(&m->files, id) : NULL;
}

enum models_state models_state(const struct models *m, const char *id) {
    return m->id && strcmp(m->id, id) == 0 ? m->state : MODELS_AVAILABLE;
}

static struct print print_of(const char *path) {
    struct print p = { 0 };
    struct stat st;

    if (stat(path, &st) == 0)
        p = (struct print){ st.st_dev, st.st_ino, st.st_size, st.st_mtim };
    return p;
}

static bool print_same(const struct print *a, const struct print *b) {
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
           a->mtime.tv_sec == b->mtime.tv_sec && a->mtime.tv_nsec == b->mtime.tv_nsec;
}

/* ---- the resident model ---- */

const char *models_resident(const struct models *m) {
    return m->id;
}

const char *models_reason(const struct models *m) {
    return m->reason.text;
}

void models_engine(const struct models *m, struct engine_status *ret) {
    *ret = (struct engine_status){ .tier = "" };
    if (m->engine)
        engine_status(m->engine, ret);
}

bool models_shard(const struct models *m, uint32_t i, struct model_shard *ret) {
    return m->engine && m->state == MODELS_LOADED && engine_shard(m->engine, i, ret);
}

const struct model_info *models_info(const struct models *m) {
    return m->engine && m->state == MODELS_LOADED ? engine_info(m->engine) : NULL;
}

const struct vocab *models_vocab(const struct models *m) {
    return m->engine && m->state == MODELS_LOADED ? engine_vocab(m->engine) : NULL;
}

uint32_t models_n_job(const struct models *m) {
    return m->n_job;
}

/* ---- engine ---- */

static void say_status(struct models *m, const struct engine_event *ev) {
    if (!ev && m->changed)
        m->changed(m->changed_arg);
    if (!m->id)
        notify_status("No model is loaded");
    else if (m->state == MODELS_LOADED)
        notify_status("Serving %s", m->id);
    else if (m->state == MODELS_FAILED)
        notify_status("Cannot load %s: %s", m->id, m->reason.text);
    else
        notify_status("Loading %s: %u%%", m->id,
                      ev && ev->total ? (unsigned)(ev->done * 100 / ev->total) : 0);
}

/* Weights that are refused make room for those that are read meanwhile. */
static void drop_refused(struct models *m) {
    struct engine_status st;

    engine_status(m->engine, &st);
    if (st.refused)
        fdstore_drop(&m->store);
}

/* Weights in memory, if they are, are kept, unless they were. */
static void keep_weights(struct models *m) {
    int fd = engine_info(m->engine)->from_memory ? -1 : engine_weights(m->engine);

    if (fd >= 0)
        fdstore_put(&m->store, fd);
}

static void load_end(struct models *m, enum task_state state) {
    struct task *load = m->load;

    m->load = NULL;
    if (load)
        tasks_end(load, state, state == TASK_DONE ? NULL : &m->reason);
}

static void on_progress(struct models *m, const struct engine_event *ev) {
    usec_t now = clock_usec();
    struct models_job *job, *next;

    if (now - m->progress_usec < MODELS_PROGRESS_USEC)
        return;

    m->progress_usec = now;
    drop_refused(m);
    say_status(m, ev);
    tasks_progress(m->load, ev->done, ev->total);
    for (job = LIST_FIRST(&m->jobs); job; job = next) {
        next = LIST_NEXT(job, link);
        job->event(job, ev);
    }
}

static void on_loaded(struct models *m) {
    const struct model_info *info = engine_info(m->engine);

    drop_refused(m);
    keep_weights(m);
    m->state = MODELS_LOADED;
    m->idle_since = clock_usec();
    engine_tidy(m->engine, m->tidy & (ENGINE_TIDY_LOCK | ENGINE_TIDY_UNLOCK));
    log_info("models", "%s: loaded: %s, %s, %u tokens of context, weights %s", m->id, info->arch,
             info->quant, info->n_ctx,
             info->from_memory  ? "as the last start left them in memory"
             : info->from_image ? "mapped from the cache"
             : info->pack_bytes ? "packed"
                                : "as in the file");
    say_status(m, NULL);
    load_end(m, TASK_DONE);
}

/* A reason may quote a file: cut at the first byte that is no UTF-8, clients are sent it. */
static void on_load_failed(struct models *m, const struct why *why) {
    size_t n = strlen(why->text), at = 0, k;

    while (at < n && (k = utf8_len(why->text + at, n - at)))
        at += k;
    fdstore_drop(&m->store);
    m->state = MODELS_FAILED;
    m->idle_since = clock_usec();
    (void)why_set(&m->reason, 0, "%.*s", (int)at, why->text);
    log_error("models", "%s: %s", m->id, m->reason.text);
    say_status(m, NULL);
    load_end(m, TASK_FAILED);
}

static void job_event(struct models *m, struct models_job *job, const struct engine_event *ev) {
    if (ev->kind == ENGINE_DONE) {
        LIST_REMOVE(job, link);
        m->n_job -= !job->idle;
        m->idle_since = job->idle ? m->idle_since : clock_usec();
    }
    job->event(job, ev);
}

static void on_engine(evutil_socket_t fd, short what, void *arg) {
    struct models *m = arg;
    bool loaded = false, worked = m->n_job > 0;
    struct engine_event ev;

    while (engine_next(m->engine, &ev)) {
        loaded = loaded || ev.kind == ENGINE_LOADED;
        if (ev.kind == ENGINE_LOADED)
            on_loaded(m);
        else if (ev.kind == ENGINE_LOAD_FAILED)
            on_load_failed(m, ev.why);
        else if (ev.kind == ENGINE_PROGRESS && !ev.job)
            on_progress(m, &ev);
        else if (ev.userdata)
            job_event(m, ev.userdata, &ev);
    }
    if (m->idle && m->state == MODELS_LOADED && !(m->tidy & ENGINE_TIDY_KV) &&
        (loaded || (worked && m->n_job == 0)))
        m->idle(m->idle_arg, loaded);
}

/* Let the resident model go. Jobs it still has end with @why. */
static void drop(struct models *m, const char *why) {
    struct engine_result result = { .end = ENGINE_END_MODEL, .stop_index = -1 };
    struct engine_event ev = { .kind = ENGINE_DONE, .result = &result };
    struct models_job *job;

    if (m->readable)
        event_free(m->readable);
    m->readable = NULL;
    m->engine = engine_free(m->engine);
    (void)why_set(&m->reason, 0, "%s", why);
    load_end(m, TASK_CANCELLED);
    free(m->id);
    free(m->path);
    m->id = m->path = NULL;

    result.why = m->reason;
    while ((job = LIST_FIRST(&m->jobs))) {
        ev.job = job->engine_job;
        ev.userdata = job;
        job_event(m, job, &ev);
    }
}

static void cancel_load(void *arg) {
    struct models *m = arg;

    log_info("models", "%s: loading is cancelled", m->id);
    drop(m, "loading was cancelled");
    say_status(m, NULL);
}

/* Threads that the configuration asks for, or the machine has now; when power is to be saved, half
 * of them, or as many as are configured for that. */
static void set_threads(struct models *m) {
    int n = m->config->threads ? (int)m->config->threads : engine_usable();
    int few = m->config->power_threads ? (int)m->config->power_threads : (n + 1) / 2;

    if (n < 0)
        log_warning("models", "cannot read the machine's layout: %s", strerror(-n));
    else if (m->engine)
        engine_limit(m->engine, (uint32_t)(m->saving && few < n ? few : n));
}

static int start(struct models *m, const struct registry_file *f, uid_t uid, struct why *why) {
    static const enum quant_fmt kv_fmt[] = {
        [CONFIG_KV_F16] = QUANT_F16, [CONFIG_KV_F32] = QUANT_F32, [CONFIG_KV_Q8_0] = QUANT_Q8_0
    };
    const struct config *c = m->config;
    struct engine_options opt = {
        .n_ctx = (uint32_t)c->context,
        .kv_bytes = c->kv_bytes,
        .n_worker = (uint32_t)c->threads,
        .n_batch = (uint32_t)c->batch,
        .n_queue = (uint32_t)c->queue,
        .n_user = (uint32_t)c->user_jobs,
        .user_bytes = c->user_bytes,
        .kv_user = c->user_kv_bytes,
        .prefix_bytes = c->prefix_bytes,
        .n_seq = (uint32_t)c->sequences,
        .bound_usec = c->step_bound * 1000,
        .kv_fmt = kv_fmt[c->kv_type],
        .exact = c->exact,
        .expert_bytes = c->expert_bytes ? c->expert_bytes : MODEL_EXPERTS_AUTO,
        .cache_dir = c->weights_store == CONFIG_STORE_CACHE ? config_cache_dir(c) : NULL,
        .in_memory = c->weights_store == CONFIG_STORE_FDSTORE,
    };
    int r;

    if (m->id || !opt.in_memory) /* at start nobody knows yet whose they are: the engine tells */
        fdstore_drop(&m->store);
    opt.memory_fd = m->store.fd;
    drop(m, "another model was loaded");
    m->id = strdup(f->id);
    m->path = strdup(f->path);
    if (!m->id || !m->path)
        return err_new(-ENOMEM);
    r = tasks_begin(&m->load, m->tasks, TASK_LOAD, m->id, uid, cancel_load, m);
    if (r)
        return err_up(r);

    m->load_id = m->load->id;
    m->state = MODELS_LOADING;
    m->print = print_of(m->path);
    m->progress_usec = 0;
    opt.path = m->path;
    log_info("models", "%s: loading %s", m->id, m->path);
    r = engine_new(&m->engine, &opt, why);
    if (r)
        return err_up(r);
    if (m->saving)
        set_threads(m);
    engine_hold(m->engine, m->hold);
    m->readable = event_new(m->base, engine_fd(m->engine), EV_READ | EV_PERSIST, on_engine, m);
    if (!m->readable || event_add(m->readable, NULL) < 0)
        return err_new(-ENOMEM);

    say_status(m, NULL);
    return 0;
}

/* Is there memory for @f? Weights that may be paged out take what there is, unless the
 * configuration wants all of a model in memory; those that may not need room for all of them, and
 * for the cache. */
static int admit(struct models *m, const struct registry_file *f, struct why *why) {
    const struct config *c = m->config;
    const struct model_info *info = models_info(m);

    m->need = f->size + c->kv_bytes;
    m->have = engine_memory();
    if (m->closed)
        return why_set(why, MODELS_MEMORY,
                       "memory is short: no model is loaded until that is over");
    if (info && !info->from_image && m->have <= UINT64_MAX - info->pack_bytes)
        m->have += info->pack_bytes; /* the resident one goes first */
    if (m->store.fd)                 /* what is there already */
        return 0;
    if ((c->oversize && !c->lock_weights && c->weights_store != CONFIG_STORE_FDSTORE) ||
        m->need <= m->have)
        return 0;
    return why_set(why, MODELS_MEMORY, "%.100s takes %ju bytes of memory, %ju are to be had", f->id,
                   (uintmax_t)m->need, (uintmax_t)m->have);
}

/* Make @id (NULL: see models_find()) the resident model, unless it is.
 * @again: try also what failed and has not changed since
 * Return: 0 when it is loading or loaded, MODELS_NONE, MODELS_BUSY, MODELS_UNAVAILABLE,
 * MODELS_MEMORY, -errno. */
static int want(struct models *m, const char *id, uid_t uid, bool again, struct why *why) {
    const struct registry_file *f;
    struct print print;
    int r;

    if (m->id && m->state != MODELS_FAILED && (!id || strcmp(id, m->id) == 0))
        return 0;
    f = models_find(m, id);
    if (!f)
        return id ? why_set(why, MODELS_NONE, "no model with the id %.100s", id)
                  : why_set(why, MODELS_NONE, "there is no model: %.200s has no *.gguf file",
                            m->config->model_dir);
    if (m->n_job || (m->id && m->state == MODELS_LOADING))
        return why_set(why, MODELS_BUSY, "%.100s is resident and has work", m->id);

    print = print_of(f->path);
    if (!again && m->id && strcmp(m->id, f->id) == 0 && print_same(&print, &m->print))
        return why_set(why, MODELS_UNAVAILABLE, "%s", m->reason.text);

    r = admit(m, f, why);
    if (r)
        return err_up(r);
    r = start(m, f, uid, why);
    if (r)
        drop(m, "out of memory");
    return err_up(r);
}

void models_preload(struct models *m) {
    struct task *load;
    struct why why = { 0 };
    int r;

    if (!m->config->preload) {
        say_status(m, NULL);
        return;
    }
    r = models_load(m, NULL, geteuid(), &load, &why);
    if (r) {
        log_warning("models", "nothing is loaded: %s", r > 0 ? why.text : strerror(-r));
        say_status(m, NULL);
    }
}

int models_load(struct models *m, const char *id, uid_t uid, struct task **ret_load,
                struct why *why) {
    struct task *load;
    int r = want(m, id, uid, true, why);

    if (r)
        return err_up(r);
    load = tasks_find(m->tasks, m->load_id);
    if (!load) { /* loaded, and the attempt that did it is forgotten */
        r = tasks_begin(&load, m->tasks, TASK_LOAD, m->id, uid, cancel_load, m);
        if (r)
            return err_up(r);
        m->load_id = load->id;
        tasks_end(load, TASK_DONE, NULL);
    }

    *ret_load = load;
    return 0;
}

int models_unload(struct models *m, const char *id, uint32_t *ret_n_job) {
    if (id && !(m->id && strcmp(m->id, id) == 0))
        return models_find(m, id) ? 0 : MODELS_NONE;
    if (!m->id)
        return 0;
    if (m->n_job) {
        *ret_n_job = m->n_job;
        return MODELS_BUSY;
    }

    log_info("models", "%s: unloaded", m->id);
    fdstore_drop(&m->store);
    drop(m, "the model was unloaded");
    say_status(m, NULL);
    return 0;
}

int models_remove(struct models *m, const char *id, struct why *why) {
    const struct registry_file *f = models_find(m, id);
    int r;

    if (!f)
        return why_set(why, MODELS_NONE, "no model with the id %.100s", id);
    if (m->config->model)
        return why_set(why, MODELS_UNAVAILABLE, "%.200s is served by itself", m->config->model);
    if (m->id && strcmp(m->id, id) == 0 && m->state != MODELS_FAILED)
        return why_set(why, MODELS_BUSY, "%.100s is loaded", id);
    r = registry_remove(f);
    models_look(m);
    return err_up(r);
}

/* ---- memory ---- */

usec_t models_idle_usec(const struct models *m) {
    if (!m->id || m->n_job || m->state == MODELS_LOADING)
        return 0;
    return clock_usec() - m->idle_since + 1;
}

void models_trim(struct models *m, unsigned what) {
    if (m->engine && m->state == MODELS_LOADED)
        engine_tidy(m->engine, what);
}

void models_tidy(struct models *m, unsigned what) {
    m->tidy = what;
    models_trim(m, what);
}

void models_close(struct models *m, bool closed) {
    m->closed = closed;
}

struct fdstore *models_store(struct models *m) {
    return &m->store;
}

void models_shortage(const struct models *m, uint64_t *ret_need, uint64_t *ret_have) {
    *ret_need = m->need;
    *ret_have = m->have;
}

/* ---- power ---- */

void models_power(struct models *m, bool saving, enum engine_hold hold) {
    m->saving = saving;
    m->hold = hold;
    set_threads(m); /* the machine may have others than before it slept */
    if (m->engine)
        engine_hold(m->engine, hold);
    if (m->changed)
        m->changed(m->changed_arg);
}

void models_forget(struct models *m, uid_t uid) {
    if (m->engine && engine_forget(m->engine, uid) < 0)
        log_warning("models", "user %u: not forgotten: out of memory", (unsigned)uid);
}

/* ---- work ---- */

int models_submit(struct models *m, const char *id, uid_t uid, struct engine_request *req,
                  struct models_job *job, struct engine_queue *ret_queue, struct why *why) {
    int r = want(m, id, uid, false, why);

    if (r)
        return err_up(r);

    req->userdata = job;
    r = engine_submit(m->engine, req, &job->engine_job, ret_queue, why);
    switch (r) {
    case 0:
        job->id = tasks_number(m->tasks);
        LIST_INSERT_HEAD(&m->jobs, job, link);
        m->n_job += !job->idle;
        return 0;
    case ENGINE_BUSY:
        return MODELS_QUEUE_FULL;
    case ENGINE_TOO_LARGE:
        return MODELS_TOO_LARGE;
    case ENGINE_BAD:
        return MODELS_BAD;
    default:
        return err_fold(r);
    }
}

void models_cancel(struct models *m, struct models_job *job) {
    engine_cancel(m->engine, job->engine_job);
}

void models_pause(struct models *m, struct models_job *job, bool pause) {
    engine_pause(m->engine, job->engine_job, pause);
}

void models_at(const struct models *m, const struct models_job *job, struct engine_job *ret) {
    *ret = (struct engine_job){ 0 };
    (void)engine_job(m->engine, job->engine_job, ret);
}

/* ---- life ---- */

void models_watch(struct models *m, void (*changed)(void *arg), void *arg) {
    m->changed = changed;
    m->changed_arg = arg;
}

void models_on_idle(struct models *m, void (*fn)(void *arg, bool loaded), void *arg) {
    m->idle = fn;
    m->idle_arg = arg;
}

void models_reconfigure(struct models *m, const struct config *config) {
    m->config = config;
    (void)models_files(m);
    set_threads(m);
    if (m->changed)
        m->changed(m->changed_arg);
}

struct models *models_free(struct models *m) {
    if (!m)
        return NULL;

    drop(m, "the service is stopping");
    fdstore_deinit(&m->store);
    registry_deinit(&m->files);
    free(m);

    return NULL;
}

int models_new(struct models **ret_models, struct event_base *base, struct tasks *tasks,
               const struct config *config) {
    struct models *m = calloc(1, sizeof *m);

    if (!m)
        return err_new(-ENOMEM);

    m->base = base;
    m->config = config;
    m->tasks = tasks;
    LIST_INIT(&m->jobs);
    *ret_models = m;
    return 0;
}
