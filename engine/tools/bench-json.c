/* SPDX-License-Identifier: Apache-2.0 */
#include <json-c/json.h>
#include <string.h>

#include "engine/tools/bench.h"

/*
 * One object a line, each with "type", flushed as it is written: what was measured is there even if
 * the rest is not. moe-bench(1) lists the fields.
 */

static void put_num(struct json_object *o, const char *key, double x) {
    json_object_object_add(o, key, json_object_new_double(x));
}

static void put_int(struct json_object *o, const char *key, uint64_t x) {
    json_object_object_add(o, key, json_object_new_uint64(x));
}

static void put_str(struct json_object *o, const char *key, const char *s) {
    json_object_object_add(o, key, json_object_new_string(s));
}

static void put_bool(struct json_object *o, const char *key, bool x) {
    json_object_object_add(o, key, json_object_new_boolean(x));
}

static void put_list(struct json_object *o, const char *key, const double *x, uint32_t n) {
    struct json_object *all = json_object_new_array();

    for (uint32_t i = 0; i < n; i++)
        json_object_array_add(all, json_object_new_double(x[i]));
    json_object_object_add(o, key, all);
}

static struct json_object *begin(const struct bench *b, const char *type) {
    struct json_object *o;

    if (!b->json)
        return NULL;
    o = json_object_new_object();
    put_str(o, "type", type);
    return o;
}

static void end(const struct bench *b, struct json_object *o) {
    (void)json_c_set_serialization_double_format("%.9g", JSON_C_OPTION_GLOBAL);
    fprintf(
        b->json, "%s\n",
        json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    (void)fflush(b->json);
    json_object_put(o);
}

static void put_measure(struct json_object *o, const struct bench_measure *m) {
    put_str(o, "measure", bench_kind_name(m->kind));
    put_int(o, "tokens", m->n);
    put_int(o, "sequences", m->n_seq);
    put_int(o, "depth", m->depth);
    put_int(o, "threads", m->threads);
    put_bool(o, "busy", m->busy);
}

static struct json_object *model_object(const struct bench *b) {
    const struct model_info *m = &b->info.model;
    struct json_object *o = json_object_new_object();

    put_str(o, "path", b->args->model);
    put_str(o, "name", m->name);
    put_str(o, "arch", m->arch);
    put_str(o, "quant", m->quant);
    put_str(o, "layout", m->layout);
    put_int(o, "n_param", m->n_param);
    put_int(o, "file_bytes", b->info.file_bytes);
    put_int(o, "weight_bytes", m->weight_bytes);
    put_int(o, "token_bytes", m->token_bytes);
    put_int(o, "pack_bytes", m->pack_bytes);
    put_int(o, "huge_bytes", b->info.huge_bytes);
    put_int(o, "step_bytes", m->step_bytes);
    return o;
}

void bench_json_run(const struct bench *b) {
    const struct bench_args *a = b->args;
    struct json_object *o = begin(b, "run"), *vs;

    if (!o)
        return;
    put_str(o, "engine", "moed");
    put_str(o, "version", MOE_VERSION);
    put_str(o, "commit", bench_commit);
    json_object_object_add(o, "model", model_object(b));
    put_str(o, "tier", b->info.tier);
    put_int(o, "workers", b->info.n_worker);
    put_str(o, "kv", quant_info(a->kv)->name);
    put_int(o, "step", a->step);
    put_int(o, "seed", a->seed);
    put_bool(o, "exact", a->exact);
    put_bool(o, "pack", !a->no_pack);
    put_bool(o, "alone", a->alone);
    put_num(o, "load_sec", b->load_sec);
    vs = json_object_new_array();
    for (uint32_t i = 0; i < a->n_vs; i++)
        json_object_array_add(vs, json_object_new_string(a->vs[i]));
    json_object_object_add(o, "vs", vs);
    end(b, o);
}

void bench_json_load(const struct bench *b, uint32_t round) {
    const struct bench_load *l = &b->load[round];
    struct json_object *o = begin(b, "load");

    if (!o)
        return;
    put_int(o, "round", round);
    put_int(o, "file_bytes", l->bytes);
    put_num(o, "still_cached", l->cached);
    put_num(o, "raw_sec", l->raw);
    put_num(o, "cold_sec", l->cold);
    put_num(o, "warm_sec", l->warm);
    put_bool(o, "from_image", l->from_image);
    end(b, o);
}

void bench_json_probe(const struct bench *b, uint32_t block, bool after) {
    const struct bench_block *k = &b->block[block];
    const struct bench_machine *m = after ? &k->after : &k->before;
    struct json_object *o = begin(b, "probe");

    if (!o)
        return;
    put_int(o, "block", block);
    put_str(o, "when", after ? "after" : "before");
    put_int(o, "workers", m->n_worker);
    put_num(o, "int8_one_ops_per_sec", m->peak_one);
    put_num(o, "int8_all_ops_per_sec", m->peak_all);
    put_list(o, "read_one_bytes_per_sec", m->read_one, 2);
    put_list(o, "read_all_bytes_per_sec", m->read_all, 2);
    put_num(o, "ping_pong_sec", m->ping_pong);
    put_num(o, "cpu_share", m->cpu_share);
    put_num(o, "steal", m->steal);
    put_list(o, "pressure", m->pressure, 3);
    put_num(o, "load", m->load);
    put_num(o, "mhz", m->mhz);
    put_str(o, "fault", bench_fault_name(bench_machine_fault(m)));
    if (after)
        put_bool(o, "counts", k->fault == BENCH_FAULT__NONE || b->args->any);
    end(b, o);
}

static struct json_object *count_object(const struct bench_count *c) {
    struct json_object *o = json_object_new_object();

    put_int(o, "tokens", c->tokens);
    put_int(o, "rows", c->rows);
    put_int(o, "steps", c->steps);
    put_int(o, "barriers", c->barriers);
    put_int(o, "experts", c->experts);
    put_int(o, "weight_bytes", c->weight_bytes);
    put_int(o, "kv_bytes", c->kv_bytes);
    put_int(o, "ops", c->ops);
    put_int(o, "disk_bytes", c->disk_bytes);
    put_int(o, "allocations", c->allocs);
    return o;
}

void bench_json_sample(const struct bench *b, const struct bench_record *r) {
    struct json_object *o = begin(b, "sample");

    if (!o)
        return;
    put_int(o, "block", r->block);
    put_int(o, "turn", r->turn);
    put_str(o, "engine", bench_engine_name(r->engine));
    put_measure(o, &b->measure[r->measure]);
    put_num(o, "rate", r->s.rate);
    if (r->s.cpu_rate > 0)
        put_num(o, "cpu_rate", r->s.cpu_rate);
    if (r->s.counted)
        json_object_object_add(o, "count", count_object(&r->s.count));
    end(b, o);
}

void bench_json_profile(const struct bench *b, uint32_t measure) {
    struct json_object *o = begin(b, "profile"), *all;

    if (!o)
        return;
    put_measure(o, &b->measure[measure]);
    all = json_object_new_array();
    for (uint32_t i = 0; i < b->n_phase; i++) {
        const struct bench_phase *p = &b->profile[measure][i];
        struct json_object *one = json_object_new_object();

        put_str(one, "name", p->name);
        put_int(one, "n", p->sum.n);
        put_num(one, "sec", 1e-9 * (double)p->sum.nsec);
        put_num(one, "busy_sec", 1e-9 * (double)p->sum.busy_nsec);
        put_int(one, "barriers", p->sum.barriers);
        put_int(one, "weight_bytes", p->sum.weight_bytes);
        put_int(one, "kv_bytes", p->sum.kv_bytes);
        put_int(one, "int8_ops", p->sum.int8_ops);
        put_int(one, "f32_ops", p->sum.f32_ops);
        json_object_array_add(all, one);
    }
    json_object_object_add(o, "phases", all);
    end(b, o);
}

void bench_json_result(const struct bench *b, uint32_t measure, uint32_t engine, const char *what,
                       const struct bench_spread *s) {
    struct json_object *o = begin(b, "result");

    if (!o)
        return;
    put_str(o, "engine", bench_engine_name(engine));
    put_measure(o, &b->measure[measure]);
    put_str(o, "what", what);
    put_int(o, "n", s->n);
    put_num(o, "median", s->median);
    put_num(o, "p10", s->p10);
    put_num(o, "p90", s->p90);
    put_num(o, "low", s->low);
    put_num(o, "high", s->high);
    end(b, o);
}
