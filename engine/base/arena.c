/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/base/arena.h"
#include "engine/base/mem.h"

int arena_init(struct arena *a, size_t size, struct why *why) {
    void *p = NULL;
    int r;

    *a = (struct arena){ 0 };
    if (size == 0)
        return 0;
    r = mem_map(size, true, &p);
    if (r < 0)
        return why_set(why, err_up(r), "cannot map %zu bytes of memory", size);

    a->base = p;
    a->size = (size + ARENA_ALIGN - 1) & ~((size_t)ARENA_ALIGN - 1); /* still within its page */
    return 0;
}

void arena_measure(struct arena *a) {
    *a = (struct arena){ .size = SIZE_MAX };
}

void arena_deinit(struct arena *a) {
    mem_unmap(a->base, a->size);
    *a = (struct arena){ 0 };
}

void *arena_alloc(struct arena *a, size_t n, size_t size) {
    size_t begin = a->used, end;

    if (__builtin_mul_overflow(n, size, &size) || __builtin_add_overflow(begin, size, &end) ||
        __builtin_add_overflow(end, (size_t)ARENA_ALIGN - 1, &end) ||
        (end &= ~((size_t)ARENA_ALIGN - 1)) > a->size) {
        a->failed = true;
        return NULL;
    }

    a->used = end;
    return a->base ? a->base + begin : (void *)(uintptr_t)ARENA_ALIGN;
}

size_t arena_seek(struct arena *a, size_t used) {
    size_t at = a->used;

    a->used = used;
    return at;
}
