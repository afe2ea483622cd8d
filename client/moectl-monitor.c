/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-monitor - what happens, as it happens
 *
 * The service is looked at several times a second, and what has changed is told. What begins and
 * ends between two looks is not seen; its tokens are.
 */

#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/moectl.h"

enum { LOOK_USEC = 200000, ANSWER_USEC = 10000000, NAME_SIZE = 64 };

struct seen_job {
    uint64_t id, uid, pid, age, done, total, generated;
    bool runs, load;
    char kind[NAME_SIZE], unit[NAME_SIZE], model[NAME_SIZE], priority[16];
};

struct seen { /* at one look */
    char state[16], model[NAME_SIZE], reason[256], residency[16];
    uint64_t pressure, power, percent;
    struct seen_job *job; /* [n_job] */
    size_t n_job;
};

struct monitor {
    struct ctl *c;
    struct seen now, last;
    bool first;
};

/* One event: what JSON says of it, which is taken, and the same for people. */
static void tell(const struct monitor *m, const char *event, json_object *o, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static void tell(const struct monitor *m, const char *event, json_object *o, const char *fmt, ...) {
    char text[512], when[16];
    struct timespec t;
    struct tm tm;
    va_list ap;

    (void)clock_gettime(CLOCK_REALTIME, &t);
    if (m->c->json) {
        (void)json_object_object_add(o, "event", json_object_new_string(event));
        (void)json_object_object_add(
            o, "time_us",
            json_object_new_uint64((uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000));
        ctl_put_object(m->c, o);
    } else {
        json_object_put(o);
        va_start(ap, fmt);
        (void)vsnprintf(text, sizeof text, fmt, ap);
        va_end(ap);
        (void)strftime(when, sizeof when, "%H:%M:%S", localtime_r(&t.tv_sec, &tm));
        (void)printf("%s.%d  ", when, (int)(t.tv_nsec / 100000000));
        ctl_puts(m->c, text);
        (void)putchar('\n');
    }
    (void)ctl_flush();
}

static void add(json_object *o, const char *key, const char *s) {
    if (*s)
        (void)json_object_object_add(o, key, json_object_new_string(s));
}

static void add_uint(json_object *o, const char *key, uint64_t v) {
    (void)json_object_object_add(o, key, json_object_new_uint64(v));
}

/* ---- the service ---- */

static void read_status(struct seen *s, const struct moe_value *v) {
    (void)snprintf(s->state, sizeof s->state, "%s", ctl_str(v, "state"));
    (void)snprintf(s->model, sizeof s->model, "%s", ctl_str(v, "model"));
    (void)snprintf(s->reason, sizeof s->reason, "%s", ctl_str(v, "reason"));
    (void)snprintf(s->residency, sizeof s->residency, "%s", ctl_str(v, "residency"));
    s->pressure = ctl_uint(moe_get(v, "pressure"), "level");
    s->power = ctl_uint(moe_get(v, "power"), "level");
    s->percent = (uint64_t)(100 * moe_float(moe_get(v, "progress")));
}

static void compare_status(const struct monitor *m) {
    static const char *const power[] = { "power is not saved", "power is saved",
                                         "the machine is about to sleep" };
    const struct seen *now = &m->now, *last = &m->last;
    json_object *o;

    if (m->first || strcmp(now->state, last->state) || strcmp(now->model, last->model)) {
        o = json_object_new_object();
        add(o, "state", now->state);
        add(o, "model", now->model);
        add(o, "reason", now->reason);
        tell(m, "state", o, "%s%s%s%s%s", now->state, *now->model ? ": " : "", now->model,
             *now->reason ? ": " : "", now->reason);
    }
    if (now->percent / 10 > last->percent / 10) {
        o = json_object_new_object();
        add(o, "model", now->model);
        add_uint(o, "percent", now->percent);
        tell(m, "progress", o, "loading %s: %d %%", now->model, (int)now->percent);
    }
    if (!m->first && strcmp(now->residency, last->residency)) {
        o = json_object_new_object();
        add(o, "residency", now->residency);
        tell(m, "residency", o, "residency: %s", now->residency);
    }
    if (now->pressure != last->pressure) {
        o = json_object_new_object();
        add_uint(o, "level", now->pressure);
        tell(m, "pressure", o, "memory is %s: step %d", now->pressure ? "short" : "there again",
             (int)now->pressure);
    }
    if (now->power != last->power) {
        o = json_object_new_object();
        add_uint(o, "level", now->power);
        tell(m, "power", o, "%s", power[now->power < 2 ? now->power : 2]);
    }
}

/* ---- jobs ---- */

static void read_job(struct seen_job *j, const struct moe_value *v) {
    *j = (struct seen_job){ .id = ctl_uint(v, "id"),
                            .uid = ctl_uint(v, "uid"),
                            .pid = ctl_uint(v, "pid"),
                            .age = ctl_uint(v, "age_us"),
                            .done = ctl_uint(v, "done"),
                            .total = ctl_uint(v, "total"),
                            .generated = ctl_uint(v, "generated"),
                            .runs = !strcmp(ctl_str(v, "state"), "running"),
                            .load = !strcmp(ctl_str(v, "kind"), "load") };
    (void)snprintf(j->kind, sizeof j->kind, "%s", ctl_str(v, "kind"));
    (void)snprintf(j->unit, sizeof j->unit, "%s", ctl_str(v, "unit"));
    (void)snprintf(j->model, sizeof j->model, "%s", ctl_str(v, "model"));
    (void)snprintf(j->priority, sizeof j->priority, "%s", ctl_str(v, "priority"));
}

static const struct seen_job *find_job(const struct seen *s, uint64_t id) {
    for (size_t i = 0; i < s->n_job; i++)
        if (s->job[i].id == id)
            return &s->job[i];

    return NULL;
}

static json_object *job_object(const struct seen_job *j) {
    json_object *o = json_object_new_object();

    add_uint(o, "job", j->id);
    add(o, "kind", j->kind);
    add_uint(o, "uid", j->uid);
    add_uint(o, "pid", j->pid);
    add(o, "unit", j->unit);
    add(o, "model", j->model);
    add(o, "priority", j->priority);
    add_uint(o, "age_us", j->age);
    add_uint(o, "done", j->done);
    add_uint(o, "total", j->total);
    add_uint(o, "generated", j->generated);
    return o;
}

static void tell_begin(const struct monitor *m, const struct seen_job *j) {
    const struct passwd *pw = getpwuid((uid_t)j->uid);
    char uid[24];

    (void)snprintf(uid, sizeof uid, "user %ju", (uintmax_t)j->uid);
    tell(m, j->runs ? "job-running" : "job-waiting", job_object(j),
         "job %ju %s: %s of %s%s%s, process %ju", (uintmax_t)j->id, j->runs ? "runs" : "waits",
         j->kind, pw ? pw->pw_name : uid, *j->unit ? " in " : "", j->unit, (uintmax_t)j->pid);
}

static void tell_end(const struct monitor *m, const struct seen_job *j) {
    if (j->load)
        tell(m, "job-ended", job_object(j), "job %ju ended, after %s", (uintmax_t)j->id,
             ctl_span(j->age));
    else
        tell(m, "job-ended", job_object(j),
             "job %ju ended: %ju tokens in the prompt, %ju generated when last seen, after %.1f s",
             (uintmax_t)j->id, (uintmax_t)j->total, (uintmax_t)j->generated, (double)j->age / 1e6);
}

static void compare_jobs(const struct monitor *m) {
    for (size_t i = 0; i < m->last.n_job; i++)
        if (!find_job(&m->now, m->last.job[i].id))
            tell_end(m, &m->last.job[i]);
    for (size_t i = 0; i < m->now.n_job; i++) {
        const struct seen_job *now = &m->now.job[i], *last = find_job(&m->last, now->id);

        if (!last || (now->runs && !last->runs))
            tell_begin(m, now);
    }
}

/* ---- the loop ---- */

/* Ask what there is now. Return: an exit code. */
static int look(struct monitor *m) {
    const struct moe_value *v, *jobs;
    int r;

    free(m->last.job);
    m->last = m->now;
    m->now = (struct seen){ .n_job = 0 };
    r = ctl_call(m->c, "server.status", NULL, ANSWER_USEC, &v);
    if (r)
        return r;
    read_status(&m->now, v);
    r = ctl_call(m->c, "job.list", NULL, ANSWER_USEC, &v);
    if (r)
        return r;

    jobs = moe_get(v, "jobs");
    m->now.job = calloc(moe_size(jobs) + 1, sizeof *m->now.job);
    if (!m->now.job)
        return ctl_complain(EXIT_FAILED, "out of memory");
    for (; m->now.n_job < moe_size(jobs); m->now.n_job++)
        read_job(&m->now.job[m->now.n_job], moe_at(jobs, m->now.n_job));
    return EXIT_OK;
}

int verb_monitor(struct ctl *c) {
    struct monitor m = { .c = c, .first = true };
    int r;

    r = ctl_connect(c);
    while (!r) {
        r = look(&m);
        if (r)
            break;
        compare_status(&m);
        compare_jobs(&m);
        m.first = false;
        if (ctl_flush())
            break;
        r = ctl_poll(c, -1, LOOK_USEC);
        r = r == 2 ? EXIT_INTERRUPTED : r < 0 ? ctl_complain_errno(c, r) : EXIT_OK;
    }
    free(m.now.job);
    free(m.last.job);

    return r;
}
