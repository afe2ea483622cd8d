/* SPDX-License-Identifier: Apache-2.0 */

#include <inttypes.h>
#include <linux/mempolicy.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
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

enum { WORD = 8 * sizeof(unsigned long), N_NODE = 1024 /* the kernel's most */ };

/* The set that has @node alone. Return: 0, or -EINVAL. */
static int make_mask(uint32_t node, unsigned long mask[N_NODE / WORD]) {
    if (node >= N_NODE)
        return err_new(-EINVAL);
    memset(mask, 0, N_NODE / 8);
    mask[node / WORD] = 1ul << node % WORD;
    return 0;
}

int mem_on_node(void *p, size_t size, uint32_t node) {
    unsigned long mask[N_NODE / WORD];
    int r = make_mask(node, mask);

    if (r < 0)
        return err_up(r);
    if (syscall(SYS_mbind, p, size, MPOL_PREFERRED, mask, N_NODE + 1ul, 0u) < 0)
        return err_new(-errno);
    return 0;
}

int mem_prefer_node(uint32_t node) {
    unsigned long mask[N_NODE / WORD];
    int r = node == MEM_ANY_NODE ? 0 : make_mask(node, mask);

    if (r < 0)
        return err_up(r);
    if (syscall(SYS_set_mempolicy, node == MEM_ANY_NODE ? MPOL_DEFAULT : MPOL_PREFERRED,
                node == MEM_ANY_NODE ? NULL : mask, N_NODE + 1ul) < 0)
        return err_new(-errno);
    return 0;
}

void mem_cool(const void *p, size_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), end = ((uintptr_t)p + size) & ~(page - 1);
    uintptr_t begin = ((uintptr_t)p + page - 1) & ~(page - 1);

    if (begin >=
        end) /* Linux 5.4 knows both; of a file of somebody else's the second does nothing */
        return;
    (void)madvise((void *)begin, end - begin, MADV_COLD);
    (void)madvise((void *)begin, end - begin, MADV_PAGEOUT);
}

int mem_lock(void *p, size_t size, bool lock) {
    return (lock ? mlock(p, size) : munlock(p, size)) < 0 ? err_new(-errno) : 0;
}

static int put_file(void *p, size_t size, int prot, int fd, uint64_t at) {
    if (mmap(p, size, prot, MAP_SHARED | MAP_FIXED, fd, (off_t)at) == MAP_FAILED)
        return err_new(-errno);
    (void)madvise(p, size, MADV_HUGEPAGE);
    return 0;
}

int mem_put_file(void *p, size_t size, int fd, uint64_t at) {
    return err_up(put_file(p, size, PROT_READ, fd, at));
}

int mem_put_shared(void *p, size_t size, int fd, uint64_t at) {
    return err_up(put_file(p, size, PROT_READ | PROT_WRITE, fd, at));
}

int mem_put_fresh(void *p, size_t size) {
    if (mmap(p, size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return err_new(-errno);
    (void)madvise(p, size, MADV_HUGEPAGE);
    return 0;
}

/* Bytes that [@begin, @end) and [@p, @p + @size) have in common. */
static uint64_t overlap(uintptr_t begin, uintptr_t end, uintptr_t p, size_t size) {
    uintptr_t from = begin > p ? begin : p, to = end < p + size ? end : p + size;

    return from < to ? to - from : 0;
}

/* Of every mapping there is a line with its range, and then some that say what its pages are. */
uint64_t mem_huge(const void *p, size_t size) {
    static const char *const kind[] = { "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped" };
    uint64_t kib, common = 0, sum = 0;
    FILE *f = fopen("/proc/self/smaps", "re");
    uintptr_t begin, end;
    char line[512], key[32];

    if (!f)
        return 0;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &begin, &end) == 2)
            common = overlap(begin, end, (uintptr_t)p, size);
        if (!common || sscanf(line, "%31[A-Za-z]: %" SCNu64, key, &kib) != 2)
            continue;
        for (size_t i = 0; i < sizeof kind / sizeof *kind; i++)
            if (strcmp(key, kind[i]) == 0)
                sum += kib * 1024 < common ? kib * 1024 : common;
    }
    (void)fclose(f);
    return sum;
}
