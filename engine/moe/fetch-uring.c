/* SPDX-License-Identifier: Apache-2.0 */

#include <liburing.h>
#include <stdlib.h>

#include "engine/moe/fetch-how.h"

/* A kernel before 5.11 waits for a time by an entry of its own: there, threads read. */
static int init(struct fetch *f) {
    struct io_uring *ring = calloc(1, sizeof *ring);
    int r;

    if (!ring)
        return err_new(-ENOMEM);
    r = io_uring_queue_init(f->depth, ring, 0);
    if (r == 0 && !(ring->features & IORING_FEAT_EXT_ARG)) {
        io_uring_queue_exit(ring);
        r = -ENOSYS;
    }
    if (r < 0) {
        free(ring);
        return r; /* no failure: see fetch_new() */
    }
    f->state = ring;
    return 0;
}

static void deinit(struct fetch *f) {
    io_uring_queue_exit(f->state);
    free(f->state);
}

static void begin(struct fetch *f, uint32_t read) {
    struct io_uring *ring = f->state;
    const struct fetch_read *r = &f->read[read];
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring); /* there are depth, and all were submitted */
    unsigned n = r->size < INT32_MAX ? (unsigned)r->size : 1u << 30;

    io_uring_prep_read(sqe, f->fd, r->to, n, r->at);
    io_uring_sqe_set_data64(sqe, read);
    (void)io_uring_submit(ring); /* what it does not take now goes with the next one, or a wait */
}

static bool next(struct fetch *f, uint32_t wait_msec, uint32_t *ret_read, int64_t *ret_n) {
    struct io_uring *ring = f->state;
    struct __kernel_timespec wait = { .tv_sec = wait_msec / 1000,
                                      .tv_nsec = (long long)(wait_msec % 1000) * 1000000 };
    struct io_uring_cqe *cqe = NULL;

    if (io_uring_peek_cqe(ring, &cqe) != 0 &&
        (wait_msec == 0 || io_uring_submit_and_wait_timeout(ring, &cqe, 1, &wait, NULL) < 0))
        return false;
    if (!cqe)
        return false;
    *ret_read = (uint32_t)io_uring_cqe_get_data64(cqe);
    *ret_n = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    return true;
}

const struct fetch_way fetch_uring = { "io_uring", init, deinit, begin, next };
