/* SPDX-License-Identifier: Apache-2.0 */

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>

#include "engine/base/ring.h"

enum { LINE = 128 }; /* two cache lines: the prefetcher of x86 fetches pairs */

/* head and tail count elements popped and pushed, modulo 2^32; tail - head is what is in the ring.
 * The consumer sets @armed before it looks at tail a last time, the producer moves tail before it
 * looks at @armed: one of them sees the other. Both orders need seq_cst. Whoever clears @armed
 * writes to @fd, and @fd is read only right before @armed is set: so while an element waits, @fd is
 * readable or about to be. */
struct ring {
    alignas(LINE) atomic_uint tail; /* producer's */
    uint32_t head_seen;             /* head may be further */
    alignas(LINE) atomic_uint head; /* consumer's */
    uint32_t tail_seen;             /* tail may be further */
    uint32_t n_read;                /* writes to @fd that were read back */
    alignas(LINE) atomic_bool armed;
    atomic_uint n_write; /* writes to @fd, counted before they are made */

    alignas(LINE) uint32_t mask; /* elements - 1 */
    int fd;
    size_t elem_size;
    uint8_t *elem; /* [mask + 1][elem_size] */
};

int ring_new(struct ring **ret_ring, uint32_t n, size_t elem_size) {
    AUTO(ring_free) struct ring *r = NULL;
    uint32_t n_elem = 1;

    if (n == 0 || n > UINT32_C(1) << 31 || elem_size == 0)
        return err_new(-EINVAL);
    while (n_elem < n)
        n_elem *= 2;

    r = aligned_alloc(LINE, sizeof *r);
    if (!r)
        return err_new(-ENOMEM);
    *r = (struct ring){ .armed = true, .mask = n_elem - 1, .fd = -1, .elem_size = elem_size };
    r->elem = calloc(n_elem, elem_size);
    if (!r->elem)
        return err_new(-ENOMEM);
    r->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->fd < 0)
        return err_new(-errno);

    *ret_ring = take(r);
    return 0;
}

struct ring *ring_free(struct ring *r) {
    if (!r)
        return NULL;
    if (r->fd >= 0)
        (void)close(r->fd);
    free(r->elem);
    free(r);
    return NULL;
}

static void wake(struct ring *r) {
    if (!atomic_exchange(&r->armed, false))
        return;
    atomic_fetch_add(&r->n_write, 1);
    (void)eventfd_write(r->fd, 1); /* can only fail at a count near 2^64 */
}

int ring_push(struct ring *r, const void *elem) {
    uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);

    if (tail - r->head_seen > r->mask) {
        r->head_seen = atomic_load_explicit(&r->head, memory_order_acquire);
        if (tail - r->head_seen > r->mask)
            return RING_FULL;
    }

    memcpy(r->elem + (tail & r->mask) * r->elem_size, elem, r->elem_size);
    atomic_store(&r->tail, tail + 1);

    if (atomic_load(&r->armed))
        wake(r);
    return 0;
}

/* Make @fd unreadable: read back the writes that have arrived, if any were made. */
static void drain(struct ring *r) {
    eventfd_t n;

    if (r->n_read != atomic_load(&r->n_write) && eventfd_read(r->fd, &n) == 0)
        r->n_read += (uint32_t)n;
}

/* The ring looked empty: ask to be woken, and look again. Return: is there an element after all? */
static bool rearm(struct ring *r, uint32_t head) {
    drain(r);
    atomic_store(&r->armed, true);
    r->tail_seen = atomic_load(&r->tail);
    if (r->tail_seen == head)
        return false;

    wake(r);
    return true;
}

int ring_pop(struct ring *r, void *ret_elem) {
    uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);

    if (head == r->tail_seen) {
        r->tail_seen = atomic_load_explicit(&r->tail, memory_order_acquire);
        if (head == r->tail_seen && !rearm(r, head))
            return RING_EMPTY;
    }

    memcpy(ret_elem, r->elem + (head & r->mask) * r->elem_size, r->elem_size);
    atomic_store_explicit(&r->head, head + 1, memory_order_release);
    return 0;
}

int ring_fd(const struct ring *r) {
    return r->fd;
}
