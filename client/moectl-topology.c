/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-topology - read it, and draw it in text
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/moectl-topology.h"

enum {
    ANSWER_USEC = 10000000,
    WIDTH = 78, /* of a drawing, in columns */
};

/* ---- reading ---- */

static int by_place(const void *a, const void *b) {
    const struct place_cpu *x = a, *y = b;
    const int64_t by[] = { (int64_t)x->node - y->node, (int64_t)x->cache - y->cache,
                           (int64_t)x->core - y->core, (int64_t)x->sibling - y->sibling };

    for (size_t i = 0; i < sizeof by / sizeof by[0]; i++)
        if (by[i])
            return by[i] < 0 ? -1 : 1;
    return 0;
}

static void read_cpus(struct place *p, const struct moe_value *cpus) {
    for (size_t i = 0; i < moe_size(cpus); i++) {
        const struct moe_value *v = moe_at(cpus, i);

        p->cpu[p->n_cpu++] = (struct place_cpu){ .cpu = (uint32_t)ctl_uint(v, "cpu"),
                                                 .core = (uint32_t)ctl_uint(v, "core"),
                                                 .node = (uint32_t)ctl_uint(v, "node"),
                                                 .cache = (uint32_t)ctl_uint(v, "cache"),
                                                 .sibling = (uint32_t)ctl_uint(v, "sibling"),
                                                 .node_bytes = ctl_uint(v, "node_bytes"),
                                                 .cache_bytes = ctl_uint(v, "cache_bytes"),
                                                 .shard = -1 };
    }
    if (p->n_cpu)
        qsort(p->cpu, p->n_cpu, sizeof *p->cpu, by_place);
    for (uint32_t i = 0; i < p->n_cpu; i = place_node_end(p, i))
        p->n_node++;
    for (uint32_t i = 0; i < p->n_cpu; i = place_cache_end(p, i))
        p->n_cache += p->cpu[i].cache_bytes > 0;
    for (uint32_t i = 0; i < p->n_cpu; i = place_core_end(p, i))
        p->n_core++;
}

static void read_shards(struct place *p, const struct moe_value *shards) {
    for (size_t s = 0; s < moe_size(shards) && s < PLACE_SHARD_MAX; s++) {
        const struct moe_value *v = moe_at(shards, s), *cpus = moe_get(v, "cpus");

        p->n_shard++;
        p->shard[s].node = (uint32_t)ctl_uint(v, "node");
        p->shard[s].bytes = ctl_uint(v, "bytes");
        p->shard[s].n_worker = (uint32_t)moe_size(cpus);
        p->shard[s].whole_node = true;
        p->n_worker += p->shard[s].n_worker;
        for (size_t o = 0; o < s; o++)
            if (p->shard[o].node == p->shard[s].node)
                p->shard[o].whole_node = p->shard[s].whole_node = false;
        for (size_t i = 0; i < moe_size(cpus); i++)
            for (uint32_t k = 0; k < p->n_cpu; k++)
                if (p->cpu[k].cpu == moe_uint(moe_at(cpus, i))) {
                    p->cpu[k].shard = (int)s;
                    p->shard[s].cache = p->cpu[k].cache;
                }
    }
}

static int read_place(struct place *p, const struct moe_value *v) {
    const struct moe_value *cpus = moe_get(v, "cpus");

    *p = (struct place){ .cpu = calloc(moe_size(cpus) + 1, sizeof *p->cpu) };
    if (!p->cpu)
        return -ENOMEM;
    read_cpus(p, cpus);
    read_shards(p, moe_get(v, "shards"));
    p->n_layer = (uint32_t)ctl_uint(v, "layers");
    p->n_expert = (uint32_t)ctl_uint(v, "experts");
    p->n_expert_used = (uint32_t)ctl_uint(v, "experts_used");
    (void)snprintf(p->model, sizeof p->model, "%s", ctl_str(v, "model"));
    return 0;
}

uint32_t place_node_end(const struct place *p, uint32_t from) {
    uint32_t i = from;

    while (i < p->n_cpu && p->cpu[i].node == p->cpu[from].node)
        i++;
    return i;
}

uint32_t place_cache_end(const struct place *p, uint32_t from) {
    uint32_t i = from;

    while (i < p->n_cpu && p->cpu[i].node == p->cpu[from].node &&
           p->cpu[i].cache == p->cpu[from].cache)
        i++;
    return i;
}

uint32_t place_core_end(const struct place *p, uint32_t from) {
    uint32_t i = from;

    while (i < p->n_cpu && p->cpu[i].node == p->cpu[from].node &&
           p->cpu[i].cache == p->cpu[from].cache && p->cpu[i].core == p->cpu[from].core)
        i++;
    return i;
}

/* ---- words ---- */

static uint32_t gcd(uint32_t a, uint32_t b) {
    return b ? gcd(b, a % b) : a;
}

void place_say_shard(const struct place *p, uint32_t from, bool node, char *ret, size_t size) {
    const char *what = p->n_expert ? "expert" : "matrix";

    *ret = 0;
    for (uint32_t s = 0; s < p->n_shard; s++) {
        uint32_t n = p->shard[s].n_worker, g = gcd(n, p->n_worker);

        if (p->shard[s].node != p->cpu[from].node || p->shard[s].whole_node != node ||
            (!node && p->shard[s].cache != p->cpu[from].cache))
            continue;
        if (n == p->n_worker)
            (void)snprintf(ret, size, "%s of weights, all of every %s",
                           ctl_bytes(p->shard[s].bytes), what);
        else
            (void)snprintf(ret, size, "shard %u: %s of weights, %u/%u of every %s", s,
                           ctl_bytes(p->shard[s].bytes), g ? n / g : 0, g ? p->n_worker / g : 0,
                           what);
    }
}

static const char *plural(uint32_t n) {
    return n == 1 ? "" : "s";
}

void place_say_machine(const struct place *p, char *ret, size_t size) {
    char caches[48] = "";

    if (p->n_cache)
        (void)snprintf(caches, sizeof caches, "%u last-level cache%s, ", p->n_cache,
                       plural(p->n_cache));
    (void)snprintf(ret, size, "%u memory node%s, %s%u core%s, %u CPU%s", p->n_node,
                   plural(p->n_node), caches, p->n_core, plural(p->n_core), p->n_cpu,
                   plural(p->n_cpu));
}

void place_say_model(const struct place *p, char *ret, size_t size) {
    if (!*p->model)
        (void)snprintf(ret, size, "no model is loaded");
    else if (p->n_expert)
        (void)snprintf(
            ret, size, "%s: %u layers of %u experts, of which a token takes %u; %u worker%s",
            p->model, p->n_layer, p->n_expert, p->n_expert_used, p->n_worker, plural(p->n_worker));
    else
        (void)snprintf(ret, size, "%s: %u layers, dense; %u worker%s", p->model, p->n_layer,
                       p->n_worker, plural(p->n_worker));
}

/* ---- text ---- */

/* Is the terminal's character set UTF-8? Its locale is not loaded for that. */
static bool is_utf8(void) {
    static const char *const names[] = { "LC_ALL", "LC_CTYPE", "LANG" };

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *s = getenv(names[i]);

        if (s && *s)
            return strcasestr(s, "utf-8") || strcasestr(s, "utf8");
    }
    return false;
}

struct pen {
    const struct ctl *c;
    bool utf8;
    char line[512];
    int n; /* columns of it; each character is one */
};

static void rule(const struct pen *pen, const char *left, const char *title, const char *right,
                 int inner) {
    const char *dash = pen->utf8 ? "─" : "-";
    int n = inner;

    (void)fputs("  ", stdout);
    (void)fputs(pen->utf8 ? left : "+", stdout);
    (void)fputs(dash, stdout);
    n -= 1;
    if (*title) {
        ctl_puts(pen->c, title);
        n -= (int)strlen(title);
    }
    for (; n > 0; n--)
        (void)fputs(dash, stdout);
    (void)puts(pen->utf8 ? right : "+");
}

static void end_line(struct pen *pen, int inner) {
    const char *bar = pen->utf8 ? "│" : "|";

    if (pen->n)
        (void)printf("  %s %s%*s%s\n", bar, pen->line, inner - 1 - pen->n, "", bar);
    pen->line[0] = 0;
    pen->n = 0;
}

/* "core 3 [6] 7": the numbers are CPUs, in brackets those that compute. */
static int say_core(const struct place *p, uint32_t from, char *ret, size_t size) {
    uint32_t end = place_core_end(p, from);
    int n = snprintf(ret, size, "core %-3u", p->cpu[from].core);

    for (uint32_t i = from; i < end && (size_t)n < size; i++)
        n += snprintf(ret + n, size - (size_t)n, p->cpu[i].shard < 0 ? "  %u " : " [%u]",
                      p->cpu[i].cpu);
    return n;
}

/* The cores of one cache in a box, as many in a row as fit. */
static void draw_cache(struct pen *pen, const struct place *p, uint32_t from) {
    uint32_t end = place_cache_end(p, from);
    const int inner = WIDTH - 4;
    char title[256] = "", shard[160], core[256];
    int width = 0, n;

    for (uint32_t i = from; i < end; i = place_core_end(p, i)) {
        n = say_core(p, i, core, sizeof core);
        width = n > width ? n : width;
    }
    place_say_shard(p, from, false, shard, sizeof shard);
    if (p->cpu[from].cache_bytes || *shard)
        (void)snprintf(title, sizeof title, " %s of cache%s%s ",
                       p->cpu[from].cache_bytes ? ctl_bytes(p->cpu[from].cache_bytes) : "?",
                       *shard ? " - " : "", shard);
    rule(pen, "┌", title, "┐", inner);
    for (uint32_t i = from; i < end; i = place_core_end(p, i)) {
        n = say_core(p, i, core, sizeof core);
        if (pen->n && pen->n + 3 + width > inner - 1)
            end_line(pen, inner);
        if (pen->n + 3 + width < (int)sizeof pen->line)
            pen->n += snprintf(pen->line + pen->n, sizeof pen->line - (size_t)pen->n, "%s%-*s",
                               pen->n ? "   " : "", width, core);
    }
    end_line(pen, inner);
    rule(pen, "└", "", "┘", inner);
}

static void draw_text(const struct ctl *c, const struct place *p) {
    struct pen pen = { .c = c, .utf8 = is_utf8() };
    char text[256];

    place_say_machine(p, text, sizeof text);
    ctl_puts(c, text);
    (void)putchar('\n');
    place_say_model(p, text, sizeof text);
    ctl_puts(c, text);
    (void)putchar('\n');
    for (uint32_t i = 0; i < p->n_cpu; i = place_node_end(p, i)) {
        (void)printf("\nnode %u", p->cpu[i].node);
        if (p->cpu[i].node_bytes)
            (void)printf(", %s of memory", ctl_bytes(p->cpu[i].node_bytes));
        place_say_shard(p, i, true, text, sizeof text);
        (void)printf("%s%s\n", *text ? " - " : "", text);
        for (uint32_t k = i; k < place_node_end(p, i); k = place_cache_end(p, k))
            draw_cache(&pen, p, k);
    }
    if (p->n_shard)
        (void)puts("\n[n]: a worker computes on CPU n");
}

/* ---- the command ---- */

static int write_svg(const struct ctl *c, const struct place *p) {
    FILE *f;
    int r;

    if (!strcmp(c->svg, "-")) {
        (void)place_draw_svg(p, stdout);
        (void)ctl_flush(); /* what went wrong is said at the end, as of all output */
        return EXIT_OK;
    }

    f = fopen(c->svg, "we");
    if (!f)
        return ctl_complain(EXIT_FAILED, "%s: cannot write: %s", c->svg, strerror(errno));
    r = place_draw_svg(p, f);
    if (fclose(f) != 0 && !r)
        r = -errno;
    return r ? ctl_complain(EXIT_FAILED, "%s: cannot write: %s", c->svg, strerror(-r)) : EXIT_OK;
}

int verb_topology(struct ctl *c) {
    const struct moe_value *v;
    struct place p;
    int r;

    r = ctl_connect(c);
    if (!r)
        r = ctl_call(c, "server.topology", NULL, ANSWER_USEC, &v);
    if (r)
        return r;
    if (c->json)
        ctl_put_json(c, v);
    if (read_place(&p, v))
        return ctl_complain(EXIT_FAILED, "out of memory");
    if (c->svg)
        r = write_svg(c, &p);
    else if (!c->json)
        draw_text(c, &p);
    free(p.cpu);

    return r;
}
