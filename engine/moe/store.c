/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/moe/store.h"

#include <assert.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/moe/fetch.h"
#include "engine/moe/policy.h"

enum {
    NONE = UINT32_MAX,
    WAIT_MSEC = 50, /* between two looks at *stop */
};

struct slot {
    bool reading;
    uint32_t want;          /* which wanted expert waits for it, or NONE */
    uint32_t layer, expert; /* that are being read */
};

/* Wanted experts are to be read, under way or here, then given, then over. */
enum state { TO_READ, UNDER_WAY, HERE, GIVEN, OVER };

struct want {
    enum state state;
    uint32_t expert, slot;
};

struct store {
    char *name;
    int fd;     /* the caller's */
    int direct; /* the same file around the page cache; -1: the file system does not have that */
    struct stat stat;
    uint32_t n_layer, n_expert, n_slot;
    struct store_layer *layer; /* [n_layer] */
    struct policy *policy;
    struct fetch *fetch;
    uint8_t *memory;
    size_t slot_size, memory_size;
    struct slot *slot; /* [n_slot] */
    struct want *want; /* [n_expert] */
    uint32_t n_want, n_left, next_read, i_layer;
    uint64_t busy_since; /* nsec; 0: no read is under way */
    int failed;          /* -errno of a read that was wanted */
    struct why why;
    _Atomic uint64_t hits, misses, read_bytes, read_nsec, wait_nsec, rows;
};

static uint64_t now_nsec(void) {
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void count(_Atomic uint64_t *c, uint64_t n) {
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

/* ---- life ---- */

static int open_file(struct store *s) {
    char path[32];

    if (fstat(s->fd, &s->stat) < 0)
        return err_new(-errno);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", s->fd);
    s->direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    return 0;
}

static int make_slots(struct store *s, uint64_t bytes) {
    uint64_t n_all = (uint64_t)s->n_layer * s->n_expert, n = bytes / s->slot_size;
    void *p;
    int r;

    n = n < n_all ? n : n_all;
    s->n_slot = n > STORE_SLOT_MIN ? (uint32_t)n : STORE_SLOT_MIN;
    s->memory_size = s->n_slot * s->slot_size;
    s->slot = calloc(s->n_slot, sizeof *s->slot);
    s->want = calloc(s->n_expert, sizeof *s->want);
    if (!s->slot || !s->want)
        return err_new(-ENOMEM);
    for (uint32_t i = 0; i < s->n_slot; i++)
        s->slot[i].want = NONE;
    r = mem_map(s->memory_size, true, &p);
    if (r < 0)
        return err_up(r);
    s->memory = p;
    return err_up(policy_new(&s->policy, s->n_layer, s->n_expert, s->n_slot));
}

int store_new(struct store **ret_store, const struct store_options *opt, struct why *why) {
    AUTO(store_free) struct store *s = calloc(1, sizeof *s);
    int r;

    if (!s)
        return err_new(-ENOMEM);
    s->direct = -1;
    s->fd = opt->fd;
    s->n_layer = opt->n_layer;
    s->n_expert = opt->n_expert;
    s->name = strdup(opt->name);
    s->layer = calloc(opt->n_layer, sizeof *s->layer);
    if (!s->name || !s->layer)
        return err_new(-ENOMEM);
    memcpy(s->layer, opt->layer, opt->n_layer * sizeof *s->layer);
    for (uint32_t i = 0; i < s->n_layer; i++) {
        assert(s->layer[i].at % STORE_ALIGN == 0 && s->layer[i].size % STORE_ALIGN == 0);
        s->slot_size = s->layer[i].size > s->slot_size ? s->layer[i].size : s->slot_size;
    }
    r = open_file(s);
    if (r < 0)
        return why_set(why, err_up(r), "%s: %s", s->name, strerror(-r));
    r = make_slots(s, opt->bytes);
    if (r == 0)
        r = fetch_new(&s->fetch, s->direct >= 0 ? s->direct : s->fd, STORE_DEPTH, opt->pool,
                      opt->no_uring);
    if (r < 0)
        return why_set(why, err_up(r), "%s: cannot prepare to read experts: %s", s->name,
                       strerror(-r));
    *ret_store = take(s);
    return 0;
}

struct store *store_free(struct store *s) {
    if (!s)
        return NULL;
    fetch_free(s->fetch); /* first: reads go to the slots */
    policy_free(s->policy);
    mem_unmap(s->memory, s->memory_size);
    if (s->direct >= 0)
        (void)close(s->direct);
    free(s->want);
    free(s->slot);
    free(s->layer);
    free(s->name);
    free(s);
    return NULL;
}

/* ---- reads ---- */

static uint64_t record_at(const struct store *s, uint32_t layer, uint32_t expert) {
    return s->layer[layer].at + (uint64_t)expert * s->layer[layer].size;
}

/* Begin to read what is wanted, in the order of the file, as far as there are slots and turns. */
static void begin_reads(struct store *s) {
    size_t size = s->layer[s->i_layer].size;

    for (; s->next_read < s->n_want && fetch_room(s->fetch) > 0; s->next_read++) {
        struct want *w = &s->want[s->next_read];

        if (w->state != TO_READ)
            continue;
        w->slot = policy_take(s->policy, s->i_layer, w->expert);
        if (w->slot == POLICY_NONE)
            return;
        w->state = UNDER_WAY;
        s->slot[w->slot] = (struct slot){
            .reading = true, .want = s->next_read, .layer = s->i_layer, .expert = w->expert
        };
        if (fetch_n(s->fetch) == 0)
            s->busy_since = now_nsec();
        fetch_begin(s->fetch, s->memory + w->slot * s->slot_size, size,
                    record_at(s, s->i_layer, w->expert), w->slot);
    }
}

static void fail(struct store *s, const struct slot *slot, int r) {
    s->failed = r;
    (void)why_set(&s->why, r, "%s: cannot read expert %u of layer %u at byte %" PRIu64 ": %s",
                  s->name, slot->expert, slot->layer, record_at(s, slot->layer, slot->expert),
                  r == -ENODATA ? "the file ends before" : strerror(-r));
}

/* Take note of a read that is over. Return: was there one? */
static bool end_read(struct store *s, uint32_t wait_msec) {
    struct slot *slot;
    uint32_t i;
    int r;

    if (!fetch_next(s->fetch, wait_msec, &i, &r))
        return false;
    slot = &s->slot[i];
    slot->reading = false;
    if (r == 0) {
        size_t size = s->layer[slot->layer].size;

        count(&s->read_bytes, size);
        if (s->direct < 0) /* it is in memory already */
            (void)posix_fadvise(s->fd, (off_t)record_at(s, slot->layer, slot->expert), (off_t)size,
                                POSIX_FADV_DONTNEED);
    } else {
        policy_drop(s->policy, i);
        if (slot->want != NONE)
            fail(s, slot, r);
    }
    if (slot->want != NONE && r == 0)
        s->want[slot->want].state = HERE;
    else
        policy_release(s->policy, i); /* held for its read alone */
    if (slot->want != NONE && r != 0) {
        s->want[slot->want].state = OVER;
        slot->want = NONE;
    }
    if (fetch_n(s->fetch) == 0)
        count(&s->read_nsec, now_nsec() - s->busy_since);
    return true;
}

/* ---- what a layer wants ---- */

int store_step(struct store *s, uint32_t n_row) {
    struct stat now;

    policy_step(s->policy, n_row);
    count(&s->rows, n_row);
    if (fstat(s->fd, &now) < 0)
        return why_set(&s->why, err_new(-errno), "%s: %m", s->name);
    if (now.st_size != s->stat.st_size || now.st_mtim.tv_sec != s->stat.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != s->stat.st_mtim.tv_nsec)
        return why_set(&s->why, err_new(-ESTALE),
                       "%s: the file was changed while experts are read from it", s->name);
    return 0;
}

/* Those given are computed. */
static void take_back(struct store *s) {
    for (uint32_t i = 0; i < s->n_want; i++)
        if (s->want[i].state == GIVEN) {
            s->want[i].state = OVER;
            s->slot[s->want[i].slot].want = NONE;
            policy_release(s->policy, s->want[i].slot);
        }
}

void store_leave(struct store *s) {
    take_back(s);
    for (uint32_t i = 0; i < s->n_want; i++) {
        struct want *w = &s->want[i];

        if (w->state == HERE)
            policy_release(s->policy, w->slot);
        if (w->state == HERE || w->state == UNDER_WAY)
            s->slot[w->slot].want = NONE; /* a read that is under way fills its slot all the same */
    }
    s->n_want = s->n_left = s->next_read = 0;
}

void store_want(struct store *s, uint32_t layer, const struct group *g) {
    uint32_t n_miss = 0;

    store_leave(s);
    s->i_layer = layer;
    s->n_want = s->n_left = g->n_expert;
    s->failed = 0;
    for (uint32_t i = 0; i < g->n_expert; i++) { /* what is here is held before room is made */
        struct want *w = &s->want[i];
        uint32_t slot = policy_find(s->policy, layer, g->expert[i].id);

        *w = (struct want){ .expert = g->expert[i].id, .slot = slot };
        if (slot == POLICY_NONE) {
            n_miss++;
            continue;
        }
        w->state = s->slot[slot].reading ? UNDER_WAY : HERE;
        s->slot[slot].want = i;
        if (!s->slot[slot].reading)
            policy_hold(s->policy, slot); /* else it is for the read */
    }
    for (uint32_t i = 0; i < g->n_expert; i++)
        policy_use(s->policy, layer, g->expert[i].id, g->expert[i].n);
    count(&s->hits, g->n_expert - n_miss);
    count(&s->misses, n_miss);
    begin_reads(s);
}

static uint32_t give(struct store *s, struct store_here *ret_here) {
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->n_want; i++)
        if (s->want[i].state == HERE) {
            s->want[i].state = GIVEN;
            ret_here[n++] = (struct store_here){ i, s->memory + s->want[i].slot * s->slot_size };
        }
    s->n_left -= n;
    return n;
}

int store_next(struct store *s, bool wait, const atomic_bool *stop, struct store_here *ret_here,
               uint32_t *ret_n) {
    uint64_t since = 0;
    int r = 0;

    take_back(s);
    for (;;) {
        while (end_read(s, 0))
            ;
        begin_reads(s);
        *ret_n = 0;
        if (s->failed < 0)
            r = s->failed;
        else if (stop && atomic_load_explicit(stop, memory_order_relaxed))
            r = STORE_STOPPED;
        else
            *ret_n = give(s, ret_here);
        if (r != 0 || *ret_n > 0 || s->n_left == 0 || !wait)
            break;
        since = since ? since : now_nsec();
        (void)end_read(s, WAIT_MSEC);
    }
    if (since)
        count(&s->wait_nsec, now_nsec() - since);
    if (r != 0)
        store_leave(s);
    return r;
}

const char *store_why(const struct store *s) {
    return s->why.text;
}

static uint64_t get(const _Atomic uint64_t *c) {
    return atomic_load_explicit(c, memory_order_relaxed);
}

void store_stats(const struct store *s, struct store_stats *ret) {
    *ret = (struct store_stats){
        .n_slot = s->n_slot,
        .slot_bytes = s->memory_size,
        .hits = get(&s->hits),
        .misses = get(&s->misses),
        .read_bytes = get(&s->read_bytes),
        .read_nsec = get(&s->read_nsec),
        .wait_nsec = get(&s->wait_nsec),
        .rows = get(&s->rows),
        .how = fetch_how(s->fetch),
        .direct = s->direct >= 0,
    };
}
