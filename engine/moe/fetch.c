/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <stdlib.h>

#include "engine/moe/fetch-how.h"

int fetch_new(struct fetch **ret_fetch, int fd, uint32_t depth, const struct pool *pool,
              bool no_uring) {
    AUTO(fetch_free) struct fetch *f = calloc(1, sizeof *f);
    int r = -ENOSYS;

    assert(depth >= 1);
    if (!f)
        return err_new(-ENOMEM);
    f->read = calloc(depth, sizeof *f->read);
    if (!f->read)
        return err_new(-ENOMEM);
    f->fd = fd;
    f->depth = depth;
    f->pool = pool;
    for (uint32_t i = 0; i < depth; i++)
        f->read[i].next_free = i + 1;
    if (!no_uring)
        r = fetch_uring.init(f);
    f->way = r == 0 ? &fetch_uring : &fetch_thread;
    if (r != 0)
        r = f->way->init(f);
    if (r < 0) {
        f->way = NULL;
        return err_up(r);
    }
    *ret_fetch = take(f);
    return 0;
}

struct fetch *fetch_free(struct fetch *f) {
    uint32_t tag;
    int r;

    if (!f)
        return NULL;
    while (f->n > 0)
        (void)fetch_next(f, 1000, &tag, &r);
    if (f->way)
        f->way->deinit(f);
    free(f->read);
    free(f);
    return NULL;
}

uint32_t fetch_room(const struct fetch *f) {
    return f->depth - f->n;
}

uint32_t fetch_n(const struct fetch *f) {
    return f->n;
}

void fetch_begin(struct fetch *f, void *to, size_t size, uint64_t at, uint32_t tag) {
    uint32_t i = f->first_free;
    struct fetch_read *r = &f->read[i];

    assert(f->n < f->depth);
    f->first_free = r->next_free;
    f->n++;
    *r = (struct fetch_read){ .to = to, .size = size, .at = at, .tag = tag };
    f->way->begin(f, i);
}

bool fetch_next(struct fetch *f, uint32_t wait_msec, uint32_t *ret_tag, int *ret_r) {
    struct fetch_read *r;
    uint32_t i;
    int64_t n;

    for (;;) {
        if (f->n == 0 || !f->way->next(f, wait_msec, &i, &n))
            return false;
        r = &f->read[i];
        if (n > 0 && (uint64_t)n < r->size) { /* the kernel may give less at a time */
            r->to += n;
            r->at += (uint64_t)n;
            r->size -= (size_t)n;
        } else if (n != -EINTR && n != -EAGAIN) {
            break;
        }
        f->way->begin(f, i);
    }
    *ret_tag = r->tag;
    *ret_r = n > 0 ? 0 : n == 0 ? -ENODATA : (int)n;
    r->next_free = f->first_free;
    f->first_free = i;
    f->n--;
    return true;
}

const char *fetch_how(const struct fetch *f) {
    return f->way->name;
}
