/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

#include "engine/tools/bench.h"

/*
 * The linker sends every call of these here (--wrap): those of this program and of the engine in
 * it, not those that libraries make among themselves.
 */

static atomic_uint_fast64_t n_alloc;

#define COUNTED(result_, name_, params_, args_)                                                    \
    result_ __real_##name_ params_;                                                                \
    result_ __wrap_##name_ params_;                                                                \
    result_ __wrap_##name_ params_ {                                                               \
        atomic_fetch_add_explicit(&n_alloc, 1, memory_order_relaxed);                              \
        return __real_##name_ args_;                                                               \
    }

COUNTED(void *, malloc, (size_t n), (n))
COUNTED(void *, calloc, (size_t n, size_t size), (n, size))
COUNTED(void *, realloc, (void *p, size_t n), (p, n))
COUNTED(void *, aligned_alloc, (size_t align, size_t n), (align, n))
COUNTED(void *, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t off),
        (at, n, prot, flags, fd, off))

uint64_t bench_alloc_n(void) {
    return atomic_load_explicit(&n_alloc, memory_order_relaxed);
}
