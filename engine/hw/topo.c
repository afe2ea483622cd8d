/* SPDX-License-Identifier: Apache-2.0 */

#include <assert.h>
#include <hwloc.h>
#include <stdbool.h>
#include <string.h>

#include "engine/hw/quota.h"
#include "engine/hw/topo.h"

/* More cache than this per CPU is what a hypervisor made up. */
#define CACHE_MAX (UINT64_C(128) << 20)

static hwloc_topology_t destroy(hwloc_topology_t h) {
    hwloc_topology_destroy(h);
    return NULL;
}
AUTO_DEFINE(hwloc_topology_t, destroy)

/* Load this machine (or what $HWLOC_SYNTHETIC, $HWLOC_XMLFILE say), or the @synthetic one. */
static int load(hwloc_topology_t *ret_h, const char *synthetic) {
    AUTO(destroy) hwloc_topology_t h = NULL;

    if (hwloc_topology_init(&h) < 0)
        return err_new(errno ? -errno : -ENOMEM);
    if (synthetic && hwloc_topology_set_synthetic(h, synthetic) < 0)
        return err_new(-EINVAL);
    (void)hwloc_topology_set_all_types_filter(h, HWLOC_TYPE_FILTER_KEEP_ALL);
    (void)hwloc_topology_set_io_types_filter(h, HWLOC_TYPE_FILTER_KEEP_NONE);
    if (hwloc_topology_load(h) < 0)
        return err_new(errno ? -errno : -EIO);

    *ret_h = take(h);
    return 0;
}

/* CPUs we may run on: what the topology allows and, on this machine, what we are bound to. */
static int allowed(hwloc_topology_t h, hwloc_bitmap_t ret) {
    if (hwloc_topology_is_thissystem(h) && hwloc_get_cpubind(h, ret, HWLOC_CPUBIND_PROCESS) == 0 &&
        !hwloc_bitmap_iszero(ret))
        return hwloc_bitmap_and(ret, ret, hwloc_topology_get_allowed_cpuset(h));
    return hwloc_bitmap_copy(ret, hwloc_topology_get_allowed_cpuset(h));
}

/* The node with memory that is nearest to @pu: of those closest in the tree, the first, since what
 * comes behind is memory of another kind. Where no node's memory is known, all count. */
static hwloc_obj_t node_of(hwloc_topology_t h, hwloc_obj_t pu) {
    bool known = hwloc_get_root_obj(h)->total_memory > 0;
    hwloc_obj_t node = NULL, best = NULL;
    int depth, best_depth = -1;

    while ((node = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_NUMANODE, node))) {
        if (known && node->attr->numanode.local_memory == 0)
            continue;
        depth = hwloc_get_common_ancestor_obj(h, pu, node->parent)->depth;
        if (depth > best_depth) {
            best = node;
            best_depth = depth;
        }
    }
    return best;
}

static uint64_t cache_size(hwloc_obj_t cache) {
    uint64_t n_pu = cache ? (uint64_t)hwloc_bitmap_weight(cache->cpuset) : 1;

    return !cache || cache->attr->cache.size / n_pu > CACHE_MAX ? 0 : cache->attr->cache.size;
}

/* First threads of cores first, then in the topology's order. */
static int compare(const void *a, const void *b) {
    const struct topo_cpu *x = a, *y = b;

    if (x->sibling != y->sibling)
        return x->sibling < y->sibling ? -1 : 1;
    return x->core < y->core ? -1 : x->core > y->core;
}

static struct topo_cpu describe(hwloc_topology_t h, hwloc_obj_t pu) {
    hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(h, HWLOC_OBJ_CORE, pu);
    hwloc_obj_t cache = hwloc_get_ancestor_obj_by_type(h, HWLOC_OBJ_L3CACHE, pu);
    hwloc_obj_t node = node_of(h, pu);
    uint64_t size = cache_size(cache);

    return (struct topo_cpu){ .os = pu->os_index,
                              .core = core ? core->logical_index : pu->logical_index,
                              .node = node ? node->logical_index : 0,
                              .node_os = node ? node->os_index : 0,
                              .node_size = node ? node->attr->numanode.local_memory : 0,
                              .cache = size ? cache->logical_index : 0,
                              .cache_size = size };
}

/* Every allowed PU, in hwloc's order; then sorted. */
static void list_cpus(struct topo *t, hwloc_topology_t h, hwloc_const_bitmap_t set) {
    hwloc_obj_t pu = NULL;

    while ((pu = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_PU, pu))) {
        struct topo_cpu *c = &t->cpu[t->n_cpu];

        if (!hwloc_bitmap_isset(set, pu->os_index))
            continue;
        *c = describe(h, pu);
        for (struct topo_cpu *o = c; o > t->cpu && o[-1].core == c->core; o--)
            c->sibling++;
        if (!t->n_cpu++) {
            t->l2 = cache_size(hwloc_get_ancestor_obj_by_type(h, HWLOC_OBJ_L2CACHE, pu));
            t->l3 = c->cache_size;
        }
    }
    qsort(t->cpu, t->n_cpu, sizeof *t->cpu, compare);
    for (uint32_t i = 0; i < t->n_cpu; i++)
        t->n_core += t->cpu[i].sibling == 0;
}

/* Keep @n CPUs: second threads go first; then cores, evenly, so that each node keeps its share. */
static void keep_cpus(struct topo *t, uint32_t n) {
    if (n < t->n_core) {
        for (uint32_t i = 0; i < n; i++)
            t->cpu[i] = t->cpu[(uint64_t)i * t->n_core / n];
        t->n_core = n;
    }
    t->n_cpu = n;
}

int topo_new_from(struct topo **ret_topo, const char *synthetic, uint32_t quota) {
    AUTO(topo_free) struct topo *t = NULL;
    AUTO(destroy) hwloc_topology_t h = NULL;
    hwloc_bitmap_t set;
    int n, r;

    r = load(&h, synthetic);
    if (r < 0)
        return err_up(r);
    n = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_PU);
    t = calloc(1, sizeof *t);
    if (!t || n < 1)
        return err_new(-ENOMEM);
    t->cpu = calloc((size_t)n, sizeof *t->cpu);
    set = hwloc_bitmap_alloc();
    if (!t->cpu || !set || allowed(h, set) < 0) {
        hwloc_bitmap_free(set);
        return err_new(-ENOMEM);
    }
    list_cpus(t, h, set);
    hwloc_bitmap_free(set);
    if (t->n_cpu == 0)
        return err_new(-ENODEV);

    t->quota_cpu = quota;
    if (quota && quota < t->n_cpu)
        keep_cpus(t, quota);
    n = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_NUMANODE);
    t->n_node = n > 1 ? (uint32_t)n : 1;
    t->memory = hwloc_get_root_obj(h)->total_memory;
    if (t->memory == 0) /* a sandbox without /sys */
        t->memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

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
