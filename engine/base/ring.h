/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * ring - queue of fixed-size elements from one thread to one other, without locks
 *
 * Elements are copied in and out. ring_fd() is for the consumer's event loop: while
 * an element waits it is readable (level-triggered), and it turns unreadable when ring_pop() says
 * RING_EMPTY. So the consumer may pop some and come back for the rest, and a consumer that is busy
 * popping costs the producer no system call. At worst it is woken once to find nothing: when it had
 * already popped what the wake was for.
 *
 * Owner:   one producer thread and one consumer thread, in any state of either. What was written
 *          before ring_push() is seen after the ring_pop() that returns the element.
 * Memory:  fixed at ring_new().
 */

#include <stddef.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct ring;

enum {
    RING__OK,

    RING_FULL,  /* nothing was pushed */
    RING_EMPTY, /* nothing was popped */
};

/**
 * ring_new() - an empty ring
 * @ret_ring:   owned by the caller: ring_free(), when neither thread uses it any more
 * @n:          elements it holds at least, >= 1; rounded up to a power of two
 * @elem_size:  bytes of one element, >= 1
 *
 * Return: 0 or -errno from memory, eventfd(2).
 */
int ring_new(struct ring **ret_ring, uint32_t n, size_t elem_size);
/* Elements still in it are forgotten. */
struct ring *ring_free(struct ring *r);
AUTO_DEFINE(struct ring *, ring_free)

/* Producer. @elem: [elem_size], copied. Return: 0 or RING_FULL. */
int ring_push(struct ring *r, const void *elem);

/* Consumer. @ret_elem: [elem_size], written on 0 only. Return: 0 or RING_EMPTY. */
int ring_pop(struct ring *r, void *ret_elem);

/* Consumer. Readable when there is something to pop; borrowed, never to be read from. */
int ring_fd(const struct ring *r);
