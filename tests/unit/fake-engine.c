/* SPDX-License-Identifier: Apache-2.0 */

#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "tests/unit/fake-engine.h"

struct engine {
    int fd;
};

struct slot {
    struct engine_event ev;
    struct engine_result result;
    struct why why;
    char *text;
};

enum { N_SLOT = 65536 };

struct fake fake;
static struct engine the_engine = { .fd = -1 };
static struct slot slots[N_SLOT];
static size_t first, last;

static struct slot *push(enum engine_event_kind kind, uint64_t job, void *userdata) {
    struct slot *s = &slots[last++ % N_SLOT];
    uint64_t one = 1;

    *s = (struct slot){ .ev = { .kind = kind, .job = job, .userdata = userdata } };
    s->ev.result = &s->result;
    s->ev.why = &s->why;
    (void)!write(the_engine.fd, &one, sizeof one);
    return s;
}

static void drain(void) {
    uint64_t n;

    for (; first < last; first++)
        free(slots[first % N_SLOT].text);
    (void)!read(the_engine.fd, &n, sizeof n);
}

void fake_reset(void) {
    for (uint32_t i = 0; i < fake.n_job; i++)
        free(fake.job[i].text), free(fake.job[i].said);
    fake = (struct fake){ .status = { .tier = "fake", .n_queue_max = 64, .n_worker = 3 },
                          .usable = 3,
                          .weights_fd = -1,
                          .memory = 1 << 20,
                          .info = { .arch = "fake", .quant = "F32", .weight_bytes = 1000 } };
}

void fake_progress(uint64_t job, uint64_t done, uint64_t total) {
    struct slot *s = push(ENGINE_PROGRESS, job, NULL);

    for (uint32_t i = 0; i < fake.n_job; i++)
        if (job && fake.job[i].id == job)
            s->ev.userdata = fake.job[i].req.userdata;
    s->ev.done = done;
    s->ev.total = total;
}

void fake_loaded(void) {
    fake.status.state = ENGINE_READY;
    push(ENGINE_LOADED, 0, NULL);
}

void fake_load_failed(const char *why) {
    struct slot *s = push(ENGINE_LOAD_FAILED, 0, NULL);

    fake.status.state = ENGINE_FAILED;
    (void)why_set(&s->why, 0, "%s", why);
    for (uint32_t i = 0; i < fake.n_job; i++)
        if (!fake.job[i].over) {
            struct engine_result r = { .end = ENGINE_END_MODEL, .why = s->why };

            fake_done(&fake.job[i], &r);
        }
}

void fake_text(struct fake_job *j, enum chat_kind kind, const char *text) {
    struct slot *s = push(ENGINE_TEXT, j->id, j->req.userdata);

    s->text = strdup(text);
    s->ev.text_kind = kind;
    s->ev.text = s->text;
    s->ev.n_text = strlen(text);
}

void fake_done(struct fake_job *j, const struct engine_result *result) {
    struct slot *s = push(ENGINE_DONE, j->id, j->req.userdata);

    s->result = *result;
    j->over = true;
}

void fake_end(struct fake_job *j, enum engine_end end) {
    struct engine_result r = {
        .end = end, .stop_index = -1, .n_prompt = 5, .n_token = 7, .seed = 99, .decode_usec = 1000
    };

    fake_done(j, &r);
}

/* ---- engine.h ---- */

int engine_new(struct engine **ret_engine, const struct engine_options *opt, struct why *why) {
    the_engine.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    fake.exists = true;
    fake.n_new++;
    fake.opt = *opt;
    fake.status.state = ENGINE_LOADING;
    (void)snprintf(fake.path, sizeof fake.path, "%s", opt->path);
    *ret_engine = &the_engine;
    return 0;
}

struct engine *engine_free(struct engine *e) {
    if (!e)
        return NULL;

    drain();
    (void)close(e->fd);
    e->fd = -1;
    fake.exists = false;
    for (uint32_t i = 0; i < fake.n_job; i++)
        fake.job[i].over = true;
    return NULL;
}

void engine_status(struct engine *e, struct engine_status *ret) {
    *ret = fake.status;
}

void engine_limit(struct engine *e, uint32_t n) {
    fake.n_limit = n;
}

int engine_usable(void) {
    return fake.usable;
}

void engine_tidy(struct engine *e, unsigned what) {
    fake.tidy |= what;
}

void engine_hold(struct engine *e, enum engine_hold hold) {
    fake.hold = hold;
}

int engine_forget(struct engine *e, uint32_t uid) {
    fake.forgot[fake.n_forgot++ % 8] = uid;
    return 0;
}

uint64_t engine_memory(void) {
    return fake.memory;
}

uint64_t engine_memory_spare(void) {
    return 0;
}

int engine_weights(const struct engine *e) {
    return fake.weights_fd;
}

/* Two nodes of two CPUs each. */
bool engine_shard(const struct engine *e, uint32_t i, struct model_shard *ret) {
    static const struct topo_cpu cpu[4] = { { .os = 0 }, { .os = 2 }, { .os = 4 }, { .os = 6 } };

    *ret = (struct model_shard){ .node = i, .cpu = cpu + 2 * i, .n_cpu = 2, .bytes = 1000 + i };
    return i < 2;
}

const struct model_info *engine_info(const struct engine *e) {
    return &fake.info;
}

const struct vocab *engine_vocab(const struct engine *e) {
    return NULL;
}

const char *engine_template(const struct engine *e, size_t *ret_n) {
    return NULL;
}

const struct sample_params *engine_defaults(const struct engine *e) {
    return NULL;
}

static char *join(const struct engine_request *req) {
    char *said = NULL;
    size_t n;
    FILE *f = open_memstream(&said, &n);

    for (size_t i = 0; i < req->n_msg; i++)
        fprintf(f, "%s%s:%s", i ? " " : "", req->msg[i].role, req->msg[i].text);
    (void)fclose(f);
    return said;
}

int engine_submit(struct engine *e, const struct engine_request *req, uint64_t *ret_job,
                  struct engine_queue *ret_queue, struct why *why) {
    struct fake_job *j = &fake.job[fake.n_job];

    if (ret_queue)
        *ret_queue = (struct engine_queue){ .position = 4, .retry_usec = 2500000 };
    if (fake.submit)
        return why_set(why, fake.submit, "the fake says no");

    *j = (struct fake_job){ .id = ++fake.n_job, .req = *req };
    if (req->n_msg) {
        j->text = strdup(req->msg[0].text);
        (void)snprintf(j->role, sizeof j->role, "%s", req->msg[0].role);
        j->said = join(req);
    } else if (req->text) {
        j->text = strndup(req->text, req->n_text);
    }
    *ret_job = j->id;
    return 0;
}

void engine_cancel(struct engine *e, uint64_t job) {
    struct fake_job *j = &fake.job[job - 1];

    if (!j->over)
        fake_end(j, ENGINE_END_CANCELLED);
}

void engine_pause(struct engine *e, uint64_t job, bool pause) {
    fake.job[job - 1].paused = pause;
    fake.job[job - 1].n_pause += pause;
}

bool engine_job(const struct engine *e, uint64_t job, struct engine_job *ret) {
    *ret = fake.job[job - 1].at;
    return true;
}

int engine_fd(const struct engine *e) {
    return e->fd;
}

bool engine_next(struct engine *e, struct engine_event *ret) {
    uint64_t n;

    if (first > 0)
        free(slots[(first - 1) % N_SLOT].text), slots[(first - 1) % N_SLOT].text = NULL;
    if (first == last) {
        (void)!read(e->fd, &n, sizeof n);
        return false;
    }

    *ret = slots[first++ % N_SLOT].ev;
    return true;
}
