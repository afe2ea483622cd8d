/* SPDX-License-Identifier: Apache-2.0 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/metrics.h"
#include "daemon/server.h"

enum { LABEL_MAX = 3 };

/* The metrics of a family stand together, so that is how they are written: what it is, then its
 * samples. */
struct out {
    FILE *f;
    const char *name, *suffix; /* of the family, and of its samples */
};

struct label {
    const char *name, *value;
};

static void family(struct out *o, const char *name, const char *type, const char *unit,
                   const char *help) {
    o->name = name;
    o->suffix = strcmp(type, "counter") == 0 ? "_total" : strcmp(type, "info") == 0 ? "_info" : "";
    fprintf(o->f, "# TYPE %s %s\n", name, type);
    if (unit)
        fprintf(o->f, "# UNIT %s %s\n", name, unit);
    fprintf(o->f, "# HELP %s %s\n", name, help);
}

static void put_label(FILE *f, const struct label *l, char before) {
    fprintf(f, "%c%s=\"", before, l->name);
    for (const char *s = l->value; *s; s++) {
        if (*s == '\n')
            (void)fputs("\\n", f);
        else if (*s == '"' || *s == '\\')
            fprintf(f, "\\%c", *s);
        else
            (void)fputc(*s, f);
    }
    (void)fputc('"', f);
}

/* @label: [LABEL_MAX], those without a name are none. Microseconds are told in seconds. */
static void sample(struct out *o, const struct label *label, uint64_t value, bool usec) {
    char before = '{';

    fprintf(o->f, "%s%s", o->name, o->suffix);
    for (size_t i = 0; i < LABEL_MAX; i++)
        if (label[i].name) {
            put_label(o->f, &label[i], before);
            before = ',';
        }
    (void)fputs(before == ',' ? "} " : " ", o->f);
    if (usec)
        fprintf(o->f, "%ju.%06ju\n", (uintmax_t)(value / CLOCK_SECOND),
                (uintmax_t)(value % CLOCK_SECOND));
    else
        fprintf(o->f, "%ju\n", (uintmax_t)value);
}

/* A sample with one label, or none. */
static void sample_of(struct out *o, const char *name, const char *of, uint64_t value) {
    sample(o, (struct label[LABEL_MAX]){ { name, of } }, value, false);
}

static void single(struct out *o, const char *name, const char *type, const char *unit,
                   const char *help, uint64_t value, bool usec) {
    family(o, name, type, unit, help);
    sample(o, (struct label[LABEL_MAX]){ { NULL, NULL } }, value, usec);
}

/* ---- the service ---- */

const char *metrics_state(const struct server *s) {
    const char *model = models_resident(s->models);

    if (s->stopping)
        return "stopping";
    if (!model)
        return "empty";

    switch (models_state(s->models, model)) {
    case MODELS_LOADED:
        return "ready";
    case MODELS_FAILED:
        return "failed";
    default:
        return "loading";
    }
}

uint64_t metrics_resident(void) {
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");

    if (!f)
        return 0;
    if (fscanf(f, "%*s %lu", &pages) != 1)
        pages = 0;
    (void)fclose(f);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void put_state(struct out *o, const struct server *s) {
    static const char *const states[] = { "empty", "failed", "loading", "ready", "stopping" };
    const char *model = models_resident(s->models), *state = metrics_state(s);

    family(o, "moed_build", "info", NULL, "What runs.");
    sample_of(o, "version", MOE_VERSION, 1);
    if (model) {
        family(o, "moed_model", "info", NULL, "The resident model.");
        sample_of(o, "model", model, 1);
    }
    family(o, "moed_state", "stateset", NULL, "State of the service.");
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++)
        sample_of(o, "moed_state", states[i], strcmp(states[i], state) == 0);
    single(o, "moed_uptime_seconds", "gauge", "seconds", "Time since the service started.",
           clock_usec() - s->started_usec, true);
    single(o, "moed_connections", "gauge", NULL, "Connections that are open.",
           server_n_connection(s), false);
}

static void put_engine(struct out *o, const struct server *s) {
    const struct model_info *info = models_info(s->models);
    struct engine_status st;

    models_engine(s->models, &st);
    family(o, "moed_generations", "gauge", NULL, "Generations that have a place, or wait for one.");
    sample_of(o, "state", "running", st.n_running);
    sample_of(o, "state", "waiting", st.n_queued);
    single(o, "moed_queue_limit", "gauge", NULL, "Generations that may wait.",
           st.n_queue_max ? st.n_queue_max : s->config->queue, false);
    family(o, "moed_memory_bytes", "gauge", "bytes",
           "Memory of the process, and in it of weights, of keys and values at most, of those that "
           "generations have room in, and of those that only kept prompts hold.");
    sample_of(o, "kind", "resident", metrics_resident());
    sample_of(o, "kind", "weights", info ? info->weight_bytes : 0);
    sample_of(o, "kind", "kv", st.kv_bytes);
    sample_of(o, "kind", "kv_used", st.kv_room);
    sample_of(o, "kind", "kv_cached", st.kv_kept);
    family(o, "moed_engine_tokens", "counter", NULL,
           "Tokens evaluated of prompts, and generated, since the model was loaded.");
    sample_of(o, "kind", "prompt", st.n_prompt_token);
    sample_of(o, "kind", "generated", st.n_token);
    family(o, "moed_engine_prefixes", "gauge", NULL,
           "Prompts and answers that are kept: of one user, and public ones.");
    sample_of(o, "kind", "private", st.n_kept > st.n_public ? st.n_kept - st.n_public : 0);
    sample_of(o, "kind", "public", st.n_public);
    single(o, "moed_engine_prefix_hits", "counter", NULL,
           "Generations that began with something kept.", st.n_hit, false);
    single(o, "moed_engine_prefix_tokens", "counter", NULL,
           "Tokens that were not evaluated, for they were kept.", st.n_saved, false);
    single(o, "moed_engine_evictions", "counter", NULL,
           "Generations that lost their place to others and began again.", st.n_evicted, false);
    single(o, "moed_engine_step_seconds", "gauge", "seconds",
           "Moving mean of a step without prompts; 0 before the first.", st.step_usec, true);
}

/* ---- users and their units ---- */

/* A family with a sample for each row, or one for each row and value of a label. */
static const struct row_family {
    const char *name, *type, *unit, *help, *label;
    struct {
        const char *value;
        size_t at;
    } field[3];
} row_families[] = {
/* clang-format off */
#define FIELD(field_) offsetof(struct account_row, field_)
    { "moed_requests", "counter", NULL, "Requests that were answered, however.", NULL,
      { { "", FIELD(n_request) } } },
    { "moed_refusals", "counter", NULL,
      "Requests and connections that were turned away without work.", NULL,
      { { "", FIELD(n_refused) } } },
    { "moed_open_requests", "gauge", NULL, "Requests that are not answered yet.", NULL,
      { { "", FIELD(n_open) } } },
    { "moed_tokens", "counter", NULL,
      "Tokens of prompts, those of them that were found in the cache, and tokens generated.", "kind",
      { { "prompt", FIELD(n_prompt) }, { "cached", FIELD(n_cached) },
        { "generated", FIELD(n_token) } } },
    { "moed_work_seconds", "counter", "seconds",
      "Time without a place, and of steps with a part of the prompt or the answer.", "phase",
      { { "queue", FIELD(queue_usec) }, { "prefill", FIELD(prefill_usec) },
        { "decode", FIELD(decode_usec) } } },
    { "moed_kv_peak_bytes", "gauge", "bytes",
      "Memory for keys and values that one request had room in at most.", NULL,
      { { "", FIELD(kv_bytes) } } },
#undef FIELD
    /* clang-format on */
};

static void put_row(struct out *o, const struct row_family *f, const struct account_row *row) {
    bool usec = f->unit && strcmp(f->unit, "seconds") == 0;
    char uid[24] = "other";

    if (!row->folded)
        (void)snprintf(uid, sizeof uid, "%u", (unsigned)row->uid);
    for (size_t i = 0; i < 3 && f->field[i].value; i++)
        sample(o,
               (struct label[LABEL_MAX]){
                   { "uid", uid }, { "unit", row->unit }, { f->label, f->field[i].value } },
               *(const uint64_t *)((const char *)row + f->field[i].at), usec);
}

int metrics_text(const struct server *s, bool all, uid_t uid, char **ret_text, size_t *ret_n) {
    const struct account_row *row;
    struct out o = { .f = open_memstream(ret_text, ret_n) };

    if (!o.f)
        return err_new(-ENOMEM);

    put_state(&o, s);
    put_engine(&o, s);
    for (size_t k = 0; k < sizeof row_families / sizeof row_families[0]; k++) {
        const struct row_family *f = &row_families[k];

        family(&o, f->name, f->type, f->unit, f->help);
        for (size_t i = 0; (row = account_at(s->account, i)); i++)
            if (all || (!row->folded && row->uid == uid))
                put_row(&o, f, row);
    }
    (void)fputs("# EOF\n", o.f);
    if (fclose(o.f) != 0) {
        free(*ret_text);
        return err_new(-ENOMEM);
    }

    return 0;
}
