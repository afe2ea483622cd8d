/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-topology-svg - a picture of the machine and the model in it
 *
 * Boxes in boxes: nodes, below each other; in a node its caches, in rows; in a cache its cores; in
 * a core its CPUs, coloured by the shard whose worker computes there. Sizes are in pixels.
 */

#include <errno.h>
#include <string.h>

#include "client/moectl-topology.h"

enum {
    CPU = 34,        /* side of a CPU's box */
    GAP = 10,        /* around what lies in a box */
    TITLE = 26,      /* height of a box's own line */
    HEAD = 76,       /* of the whole */
    FOOT = 44,       /* the same, with what the colours mean */
    CORES = 8,       /* at most in a row of a cache */
    ROW = 1240,      /* pixels that caches of a row may take */
    NARROWEST = 420, /* the lines at the top take this */
    N_COLOUR = 8,
};

static const char *const colours[N_COLOUR] = { "#2f6fb2", "#c5553d", "#3d8b52", "#8659a8",
                                               "#b5832b", "#2a8f93", "#b34b7e", "#66707a" };

struct box {
    int w, h;
};

static int count(const struct place *p, uint32_t from, uint32_t end,
                 uint32_t (*next)(const struct place *, uint32_t)) {
    int n = 0;

    for (uint32_t i = from; i < end; i = next(p, i))
        n++;
    return n;
}

/* Threads of the core that has most of them, from @from on to @end. */
static int threads(const struct place *p, uint32_t from, uint32_t end) {
    int max = 1;

    for (uint32_t i = from; i < end; i = place_core_end(p, i)) {
        int n = (int)(place_core_end(p, i) - i);

        max = n > max ? n : max;
    }
    return max;
}

/* At least as wide as the line of @title characters in it. */
static int at_least(int w, size_t title) {
    int need = (int)title * 7 + 2 * GAP;

    return w > need ? w : need;
}

static void say_cache(const struct place *p, uint32_t from, char *ret, size_t size) {
    char shard[160];
    int n;

    *ret = 0;
    if (!p->cpu[from].cache_bytes)
        return;
    n = snprintf(ret, size, "cache %u, %s", p->cpu[from].cache,
                 ctl_bytes(p->cpu[from].cache_bytes));
    place_say_shard(p, from, false, shard, sizeof shard);
    if (*shard)
        (void)snprintf(ret + n, size - (size_t)n, " - %s", shard);
}

static void say_node(const struct place *p, uint32_t from, char *ret, size_t size) {
    char shard[160];
    int n;

    n = snprintf(ret, size, "node %u", p->cpu[from].node);
    if (p->cpu[from].node_bytes)
        n += snprintf(ret + n, size - (size_t)n, ", %s of memory",
                      ctl_bytes(p->cpu[from].node_bytes));
    place_say_shard(p, from, true, shard, sizeof shard);
    if (*shard)
        (void)snprintf(ret + n, size - (size_t)n, " - %s", shard);
}

static struct box core_box(const struct place *p, uint32_t from, uint32_t end) {
    return (struct box){ threads(p, from, end) * (CPU + 4) + 8, CPU + 8 + 16 };
}

static struct box cache_box(const struct place *p, uint32_t from) {
    uint32_t end = place_cache_end(p, from);
    struct box core = core_box(p, from, end);
    int n = count(p, from, end, place_core_end), cols = n < CORES ? n : CORES;
    char title[256];

    say_cache(p, from, title, sizeof title);
    return (struct box){ at_least(cols * (core.w + GAP) + GAP, strlen(title)),
                         (n + cols - 1) / cols * (core.h + GAP) + TITLE };
}

/* Where the caches of a node go: each in turn to the right, or to the next row. */
struct flow {
    int x, y, row; /* of the next one; height of the row */
    int w, h;      /* that all take so far */
};

static void flow_add(struct flow *f, struct box b, int *ret_x, int *ret_y) {
    if (f->x > GAP && f->x + b.w + GAP > ROW) {
        f->x = GAP;
        f->y += f->row + GAP;
        f->row = 0;
    }
    *ret_x = f->x;
    *ret_y = f->y;
    f->x += b.w + GAP;
    f->row = b.h > f->row ? b.h : f->row;
    f->w = f->x > f->w ? f->x : f->w;
    f->h = f->y + f->row + GAP;
}

static struct box node_box(const struct place *p, uint32_t from) {
    uint32_t end = place_node_end(p, from);
    struct flow f = { .x = GAP, .y = TITLE };
    char title[256];
    int x, y;

    for (uint32_t i = from; i < end; i = place_cache_end(p, i))
        flow_add(&f, cache_box(p, i), &x, &y);
    say_node(p, from, title, sizeof title);
    return (struct box){ at_least(f.w, strlen(title)), f.h };
}

/* ---- drawing ---- */

static void put_escaped(FILE *f, const char *s) {
    for (; *s; s++) {
        const char *e = *s == '&' ? "&amp;" : *s == '<' ? "&lt;" : *s == '>' ? "&gt;" : NULL;

        if (e)
            (void)fputs(e, f);
        else if ((unsigned char)*s >= ' ')
            (void)fputc(*s, f);
    }
}

static void put_text(FILE *f, int x, int y, const char *class, const char *s) {
    (void)fprintf(f, "<text x=\"%d\" y=\"%d\" class=\"%s\">", x, y, class);
    put_escaped(f, s);
    (void)fputs("</text>\n", f);
}

static void put_box(FILE *f, int x, int y, struct box b, const char *class) {
    (void)fprintf(f, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\" class=\"%s\"/>\n",
                  x, y, b.w, b.h, class);
}

static void draw_core(const struct place *p, FILE *f, uint32_t from, int x, int y, struct box b) {
    char text[32];

    put_box(f, x, y, b, "core");
    (void)snprintf(text, sizeof text, "core %u", p->cpu[from].core);
    put_text(f, x + 6, y + 14, "small", text);
    for (uint32_t i = from; i < place_core_end(p, from); i++) {
        int at = x + 6 + (int)(i - from) * (CPU + 4), shard = p->cpu[i].shard;

        (void)fprintf(f,
                      "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"4\" fill=\"%s\""
                      " stroke=\"%s\"/>\n",
                      at, y + 19, CPU, CPU, shard < 0 ? "none" : colours[shard % N_COLOUR],
                      shard < 0 ? "#9aa4ae" : colours[shard % N_COLOUR]);
        (void)snprintf(text, sizeof text, "%u", p->cpu[i].cpu);
        put_text(f, at + CPU / 2, y + 19 + CPU / 2 + 5, shard < 0 ? "idle" : "works", text);
    }
}

static void draw_cache(const struct place *p, FILE *f, uint32_t from, int x, int y) {
    uint32_t end = place_cache_end(p, from), i = from;
    struct box b = cache_box(p, from), core = core_box(p, from, end);
    char title[256];

    put_box(f, x, y, b, "cache");
    say_cache(p, from, title, sizeof title);
    put_text(f, x + GAP, y + 18, "label", title);
    for (int n = 0; i < end; i = place_core_end(p, i), n++)
        draw_core(p, f, i, x + GAP + n % CORES * (core.w + GAP),
                  y + TITLE + n / CORES * (core.h + GAP), core);
}

static void draw_node(const struct place *p, FILE *f, uint32_t from, int x, int y, struct box b) {
    struct flow flow = { .x = GAP, .y = TITLE };
    char title[256];
    int dx, dy;

    put_box(f, x, y, b, "node");
    say_node(p, from, title, sizeof title);
    put_text(f, x + GAP, y + 18, "label", title);
    for (uint32_t i = from; i < place_node_end(p, from); i = place_cache_end(p, i)) {
        flow_add(&flow, cache_box(p, i), &dx, &dy);
        draw_cache(p, f, i, x + dx, y + dy);
    }
}

static void put_style(FILE *f) {
    (void)fputs("<style>\n"
                "text { font: 13px system-ui, sans-serif; fill: #20262c }\n"
                ".title { font-size: 18px; font-weight: 600 }\n"
                ".small { font-size: 10px; fill: #5b6670 }\n"
                ".works { fill: #fff; text-anchor: middle }\n"
                ".idle { fill: #5b6670; text-anchor: middle }\n"
                ".node { fill: #eef1f4; stroke: #b9c2cb }\n"
                ".cache { fill: #fff; stroke: #ccd3da }\n"
                ".core { fill: #f6f8fa; stroke: #dde2e7 }\n"
                "</style>\n",
                f);
}

int place_draw_svg(const struct place *p, FILE *f) {
    char machine[256], model[256];
    int w = NARROWEST, h = HEAD, y = HEAD;

    place_say_machine(p, machine, sizeof machine);
    place_say_model(p, model, sizeof model);
    w = at_least(at_least(w, strlen(machine)), strlen(model));
    for (uint32_t i = 0; i < p->n_cpu; i = place_node_end(p, i)) {
        struct box b = node_box(p, i);

        w = b.w > w ? b.w : w;
        h += b.h + GAP;
    }
    (void)fprintf(f,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\""
                  " viewBox=\"0 0 %d %d\">\n",
                  w + 2 * GAP, h + FOOT, w + 2 * GAP, h + FOOT);
    put_style(f);
    (void)fprintf(f, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", w + 2 * GAP, h + FOOT);
    put_text(f, GAP, 28, "title", machine);
    put_text(f, GAP, 54, "label", model);
    for (uint32_t i = 0; i < p->n_cpu; i = place_node_end(p, i)) {
        struct box b = node_box(p, i);

        b.w = w;
        draw_node(p, f, i, GAP, y, b);
        y += b.h + GAP;
    }
    put_text(f, GAP, y + 20, "small",
             "A number is a CPU. On those that are filled a worker computes; a colour is a shard.");
    (void)fputs("</svg>\n", f);

    return ferror(f) || fflush(f) ? -(errno ? errno : EIO) : 0;
}
