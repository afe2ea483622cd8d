/* SPDX-License-Identifier: Apache-2.0 */

#include <sched.h>

#include "engine/hw/quota.h"
#include "engine/hw/topo.h"

enum { CPU_MAX = 8192 }; /* CONFIG_NR_CPUS at its largest */

static int list_cpus(struct topo *t) {
    size_t size = CPU_ALLOC_SIZE(CPU_MAX);
    cpu_set_t *set = CPU_ALLOC(CPU_MAX);
    uint32_t n;

    if (!set)
        return err_new(-ENOMEM);
    if (sched_getaffinity(0, size, set) < 0) {
        CPU_FREE(set);
        return err_new(-errno);
    }
    n = (uint32_t)CPU_COUNT_S(size, set);
    t->cpu = calloc(n, sizeof *t->cpu);
    for (uint32_t os = 0; t->cpu && os < CPU_MAX; os++)
        if (CPU_ISSET_S(os, size, set)) {
            t->cpu[t->n_cpu] = (struct topo_cpu){ .os = os, .core = t->n_cpu };
            t->n_cpu++;
        }
    CPU_FREE(set);
    return t->cpu ? 0 : err_new(-ENOMEM);
}

int topo_new_from(struct topo **ret_topo, const char *synthetic, uint32_t quota) {
    AUTO(topo_free) struct topo *t = NULL;
    int r;

    if (synthetic)
        return TOPO_UNSUPPORTED;
    t = calloc(1, sizeof *t);
    if (!t)
        return err_new(-ENOMEM);
    r = list_cpus(t);
    if (r < 0)
        return err_up(r);

    t->quota_cpu = quota;
    if (quota && quota < t->n_cpu)
        t->n_cpu = quota;
    t->n_core = t->n_cpu; /* cores are not told apart */
    t->n_node = 1;
    t->memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    for (uint32_t i = 0; i < t->n_cpu; i++)
        t->cpu[i].node_size = t->memory;

    *ret_topo = take(t);
    return 0;
}

int topo_new(struct topo **ret_topo) {
    return err_up(topo_new_from(ret_topo, NULL, quota_cpu("")));
}

struct topo *topo_free(struct topo *t) {
    if (!t)
        return NULL;
    free(t->cpu);
    free(t);
    return NULL;
}

uint32_t topo_n_worker(const struct topo *t) {
    return t->n_core;
}
