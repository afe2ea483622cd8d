/* SPDX-License-Identifier: Apache-2.0 */

#include <linux/mempolicy.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/mem.h"

/* Map @size bytes at a multiple of MEM_HUGE: map more, give back what sticks out. */
static int map_aligned(size_t size, void **ret_p) {
    uint8_t *p;
    size_t head, total;

    if (__builtin_add_overflow(size, (size_t)MEM_HUGE, &total))
        return err_new(-ENOMEM);
    p = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
             0);
    if (p == MAP_FAILED)
        return err_new(-errno);

    head = (size_t)(-(uintptr_t)p & (MEM_HUGE - 1));
    if (head)
        (void)munmap(p, head);
    (void)munmap(p + head + size, MEM_HUGE - head);

    (void)madvise(p + head, size, MADV_HUGEPAGE); /* a kernel without them says EINVAL */
    *ret_p = p + head;
    return 0;
}

int mem_map(size_t size, bool huge, void **ret_p) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *p;

    if (size == 0)
        return err_new(-EINVAL);
    if (__builtin_add_overflow(size, page - 1, &size))
        return err_new(-ENOMEM);
    size &= ~(page - 1);
    if (huge && size >= MEM_HUGE)
        return err_up(map_aligned(size, ret_p));

    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
             0);
    if (p == MAP_FAILED)
        return err_new(-errno);
    *ret_p = p;
    return 0;
}

void mem_unmap(void *p, size_t size) {
    if (p)
        (void)munmap(p, size); /* the kernel rounds up to pages */
}

int mem_on_node(void *p, size_t size, uint32_t node) {
    enum { WORD = 8 * sizeof(unsigned long), N_NODE = 1024 /* the kernel's most */ };
    unsigned long mask[N_NODE / WORD] = { 0 };

    if (node >= N_NODE)
        return err_new(-EINVAL);
    mask[node / WORD] = 1ul << node % WORD;
    if (syscall(SYS_mbind, p, size, MPOL_PREFERRED, mask, N_NODE + 1ul, 0u) < 0)
        return err_new(-errno);
    return 0;
}

int mem_put_file(void *p, size_t size, int fd, uint64_t at) {
    if (mmap(p, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)at) == MAP_FAILED)
        return err_new(-errno);
    (void)madvise(p, size, MADV_HUGEPAGE);
    return 0;
}

int mem_put_fresh(void *p, size_t size) {
    if (mmap(p, size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return err_new(-errno);
    (void)madvise(p, size, MADV_HUGEPAGE);
    return 0;
}
