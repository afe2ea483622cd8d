/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/hw/quota.h"
#include "engine/hw/topo.h"

/* A made-up machine; the test is skipped in a build without hwloc. */
static struct topo *made_up(const char *synthetic, uint32_t quota) {
    struct topo *t = NULL;
    int r = topo_new_from(&t, synthetic, quota);

    if (r == TOPO_UNSUPPORTED)
        skip();
    assert_int_equal(r, 0);
    return t;
}

/* Two sockets, two nodes each, four cores of two threads: first threads first, in order. */
static void test_two_sockets(void **state) {
    AUTO(topo_free)
    struct topo *t =
        made_up("pack:2 [numa(memory=1073741824)] [numa(memory=1073741824)] l3:2(size=33554432) "
                "l2:2(size=1048576) core:1 pu:2",
                0);

    (void)state;
    assert_int_equal(t->n_cpu, 16);
    assert_int_equal(t->n_core, 8);
    assert_int_equal(t->n_node, 4);
    assert_int_equal(t->quota_cpu, 0);
    assert_int_equal(t->l2, 1 << 20);
    assert_int_equal(t->l3, 32 << 20);
    assert_true(t->memory == UINT64_C(4) << 30);
    assert_int_equal(topo_n_worker(t), 8);
    for (uint32_t i = 0; i < 16; i++) {
        const struct topo_cpu *c = &t->cpu[i];

        assert_int_equal(c->sibling, i / 8);
        assert_int_equal(c->core, i % 8);
        assert_int_equal(c->os, 2 * (i % 8) + i / 8); /* synthetic threads are numbered in order */
        assert_int_equal(c->node, i % 8 / 4 * 2);     /* the nearer, first node of the socket */
    }
}

static void test_nodes(void **state) {
    AUTO(topo_free) struct topo *t = made_up("numa:4(memory=536870912) core:3 pu:1", 0);

    (void)state;
    assert_int_equal(t->n_node, 4);
    assert_int_equal(t->n_core, 12);
    assert_true(t->memory == UINT64_C(2) << 30);
    for (uint32_t i = 0; i < 12; i++)
        assert_int_equal(t->cpu[i].node, i / 3);
}

/* The quota takes second threads away first, then cores; it never grants more than there is. */
static void test_quota_clips(void **state) {
    static const struct {
        uint32_t quota, n_cpu, n_worker;
    } row[] = { { 0, 8, 4 }, { 1, 1, 1 }, { 3, 3, 3 }, { 4, 4, 4 }, { 6, 6, 4 }, { 100, 8, 4 } };

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        AUTO(topo_free) struct topo *t = made_up("pack:1 core:4 pu:2", row[i].quota);

        assert_int_equal(t->quota_cpu, row[i].quota);
        assert_int_equal(t->n_cpu, row[i].n_cpu);
        assert_int_equal(topo_n_worker(t), row[i].n_worker);
    }
}

static void test_absurd_cache_is_unknown(void **state) {
    AUTO(topo_free)
    struct topo *t = made_up("l3:1(size=8589934592) l2:2(size=268435456) core:1 pu:2", 0);

    (void)state;
    assert_int_equal(t->l3, 0);         /* 8 GiB of 4 CPUs */
    assert_int_equal(t->l2, 256 << 20); /* 256 MiB of 2: odd, but it is what was said */
    assert_true(t->cpu[0].cache_size == 0);
}

static void test_environment_describes_machine(void **state) {
    AUTO(topo_free) struct topo *t = NULL;

    (void)state;
    topo_free(made_up("core:1 pu:1", 0));
    setenv("HWLOC_SYNTHETIC", "pack:2 core:2 pu:1", 1);
    assert_int_equal(topo_new_from(&t, NULL, 0), 0);
    unsetenv("HWLOC_SYNTHETIC");
    assert_int_equal(t->n_cpu, 4);
}

static void test_bad_synthetic(void **state) {
    struct topo *t = NULL;
    int r = topo_new_from(&t, "nonsense:", 0);

    (void)state;
    assert_true(r < 0 || r == TOPO_UNSUPPORTED);
    assert_null(t);
    assert_null(topo_free(NULL));
}

static void test_this_machine(void **state) {
    AUTO(topo_free) struct topo *t = NULL;
    cpu_set_t set;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    assert_int_equal(topo_new_from(&t, NULL, 0), 0);
    assert_int_equal(t->n_cpu, CPU_COUNT(&set));
    assert_in_range(topo_n_worker(t), 1, t->n_cpu);
    assert_true(t->memory > 1 << 20);
    for (uint32_t i = 0; i < t->n_cpu; i++) {
        assert_true(CPU_ISSET(t->cpu[i].os, &set));
        CPU_CLR(t->cpu[i].os, &set); /* none twice */
    }
}

/* Bound to each CPU in turn: that one, and one worker. */
static void test_binding(void **state) {
    cpu_set_t all;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    for (uint32_t os = 0; os < CPU_SETSIZE; os++) {
        AUTO(topo_free) struct topo *t = NULL;
        cpu_set_t one;

        if (!CPU_ISSET(os, &all))
            continue;
        CPU_ZERO(&one);
        CPU_SET(os, &one);
        assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
        assert_int_equal(topo_new(&t), 0);
        assert_int_equal(t->n_cpu, 1);
        assert_int_equal(t->cpu[0].os, os);
        assert_int_equal(t->cpu[0].sibling, 0);
        assert_int_equal(topo_n_worker(t), 1);
    }
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

/* ---- quota: a directory stands for "/" ---- */

static char fake_root[] = "/tmp/moe-test-topo-XXXXXX";

static void put(const char *path, const char *text) {
    char full[PATH_MAX];
    FILE *f;

    snprintf(full, sizeof full, "%s/%s", fake_root, path);
    for (char *p = full + strlen(fake_root) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        (void)mkdir(full, 0700);
        *p = '/';
    }
    f = fopen(full, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static int make_root(void **state) {
    (void)state;
    memset(fake_root + sizeof fake_root - 7, 'X', 6);
    return mkdtemp(fake_root) ? 0 : -1;
}

static int remove_root(void **state) {
    (void)state;
    return nftw(fake_root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void test_quota_absent(void **state) {
    (void)state;
    assert_int_equal(quota_cpu(fake_root), 0);
    put("proc/self/cgroup", "0::/a/b\n");
    assert_int_equal(quota_cpu(fake_root), 0);
    put("proc/self/cgroup", "garbage\n\n0\n0:\n");
    assert_int_equal(quota_cpu(fake_root), 0);
}

static void test_quota_v2(void **state) {
    static const struct {
        const char *text;
        uint32_t want;
    } row[] = {
        { "max 100000\n", 0 },
        { "100000 100000\n", 1 },
        { "100001 100000\n", 2 },
        { "150000 100000\n", 2 },
        { "1000 100000\n", 1 },
        { "800000 100000\n", 8 },
        { "50000 10000\n", 5 },
        { "", 0 },
        { "0 0\n", 0 },
        { "-1 100000\n", 0 },
        { "100000\n", 0 },
        { "100000 -5\n", 0 },
        { "9223372036854775807 1\n", 0 },
    };

    (void)state;
    put("proc/self/cgroup", "0::/system.slice/moed.service\n");
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        put("sys/fs/cgroup/system.slice/moed.service/cpu.max", row[i].text);
        assert_int_equal(quota_cpu(fake_root), row[i].want);
    }
}

/* The tightest of the group and its parents counts, in whichever of them it stands. */
static void test_quota_v2_parents(void **state) {
    (void)state;
    put("proc/self/cgroup", "0::/a/b/c\n");
    put("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n");
    put("sys/fs/cgroup/a/cpu.max", "600000 100000\n");
    assert_int_equal(quota_cpu(fake_root), 6);
    put("sys/fs/cgroup/a/b/cpu.max", "300000 100000\n");
    assert_int_equal(quota_cpu(fake_root), 3);
    put("sys/fs/cgroup/a/b/c/cpu.max", "400000 100000\n");
    assert_int_equal(quota_cpu(fake_root), 3);
    put("sys/fs/cgroup/cpu.max", "200000 100000\n"); /* a container sees its own group as root */
    assert_int_equal(quota_cpu(fake_root), 2);
    put("sys/fs/cgroup/x/cpu.max", "100000 100000\n"); /* not ours */
    assert_int_equal(quota_cpu(fake_root), 2);
    put("proc/self/cgroup", "0::/\n");
    assert_int_equal(quota_cpu(fake_root), 2);
}

/* What others can have: the page cache is free, but for what is mapped here. */
static void test_quota_spare(void **state) {
    assert_true(quota_spare(fake_root) == UINT64_MAX);
    put("proc/meminfo", "MemTotal:  24000000 kB\nMemAvailable:   2048 kB\n");
    assert_int_equal(quota_spare(fake_root), 2 << 20);
    put("proc/self/status", "VmLck:\t 0 kB\nRssAnon:\t 1976 kB\nRssFile:\t 1024 kB\n");
    assert_int_equal(quota_spare(fake_root), 1 << 20);
    put("proc/self/cgroup", "0::/a/b\n"); /* of a group, too, files do not count as used */
    put("sys/fs/cgroup/a/memory.max", "1572864\n");
    put("sys/fs/cgroup/a/memory.current", "1500000\n");
    put("sys/fs/cgroup/a/memory.stat", "active_file 1000000\ninactive_file 500000\n");
    assert_int_equal(quota_spare(fake_root), 1 << 19);
    put("proc/self/status", "VmLck:\t 512 kB\nRssFile:\t 1024 kB\n");
    assert_int_equal(quota_spare(fake_root), 1 << 20);
    put("proc/self/status", "VmLck:\t 0 kB\nRssFile:\t 4096 kB\n");
    assert_int_equal(quota_spare(fake_root), 0);
}

/* What is free, and no more than the group and its parents may use. */
static void test_quota_memory(void **state) {
    assert_true(quota_memory(fake_root) == UINT64_MAX);
    put("proc/meminfo", "MemTotal:  24000000 kB\nMemFree:  10 kB\nMemAvailable:   2048 kB\n");
    assert_int_equal(quota_memory(fake_root), 2 << 20);
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    assert_int_equal(quota_memory(fake_root), 2 << 20);
    put("sys/fs/cgroup/a/memory.max", "1048576\n");
    assert_int_equal(quota_memory(fake_root), 1 << 20);
    put("sys/fs/cgroup/a/memory.max", "104857600\n");
    assert_int_equal(quota_memory(fake_root), 2 << 20);
    put("proc/self/cgroup", "5:cpu:/a\n4:memory:/docker/id\n0::/\n");
    put("sys/fs/cgroup/memory/docker/id/memory.limit_in_bytes", "9223372036854771712\n");
    assert_int_equal(quota_memory(fake_root), 2 << 20);
    put("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "4096\n");
    assert_int_equal(quota_memory(fake_root), 4096);

    /* what is used counts, but for the page cache */
    put("sys/fs/cgroup/memory/docker/memory.usage_in_bytes", "3000\n");
    assert_int_equal(quota_memory(fake_root), 1096);
    put("sys/fs/cgroup/memory/docker/memory.stat",
        "cache 900\ninactive_file 7\ntotal_inactive_file 500\ntotal_active_file 400\n");
    assert_int_equal(quota_memory(fake_root), 1996);
    put("sys/fs/cgroup/memory/docker/memory.usage_in_bytes", "30000\n");
    assert_int_equal(quota_memory(fake_root), 0);
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/memory.max", "1048576\n");
    put("sys/fs/cgroup/a/memory.current", "1000000\n");
    put("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 100000\nactive_file 100000\n");
    assert_int_equal(quota_memory(fake_root), 248576);
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    put("sys/fs/cgroup/a/b/memory.current", "800000\n");
    assert_int_equal(quota_memory(fake_root), 248576);
}

static void test_quota_v1(void **state) {
    (void)state;
    put("proc/self/cgroup", "5:cpuset:/z\n4:cpu,cpuacct:/docker/id\n1:name=systemd:/\n0::/\n");
    put("sys/fs/cgroup/cpuset/z/cpu.cfs_quota_us", "1000\n");
    put("sys/fs/cgroup/cpuset/z/cpu.cfs_period_us", "1000\n");
    assert_int_equal(quota_cpu(fake_root), 0);
    put("sys/fs/cgroup/cpu,cpuacct/docker/id/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu,cpuacct/docker/id/cpu.cfs_period_us", "100000\n");
    assert_int_equal(quota_cpu(fake_root), 0);
    put("sys/fs/cgroup/cpu,cpuacct/docker/id/cpu.cfs_quota_us", "250000\n");
    assert_int_equal(quota_cpu(fake_root), 3);
    put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");
    put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "50000\n");
    assert_int_equal(quota_cpu(fake_root), 1);
}

/* v2 beside v1: the hybrid mount. */
static void test_quota_hybrid(void **state) {
    (void)state;
    put("proc/self/cgroup", "3:cpuset:/\n0::/u\n");
    put("sys/fs/cgroup/unified/u/cpu.max", "700000 100000\n");
    assert_int_equal(quota_cpu(fake_root), 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_sockets),
        cmocka_unit_test(test_nodes),
        cmocka_unit_test(test_quota_clips),
        cmocka_unit_test(test_absurd_cache_is_unknown),
        cmocka_unit_test(test_environment_describes_machine),
        cmocka_unit_test(test_bad_synthetic),
        cmocka_unit_test(test_this_machine),
        cmocka_unit_test(test_binding),
        cmocka_unit_test_setup_teardown(test_quota_absent, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_quota_v2, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_quota_v2_parents, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_quota_memory, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_quota_spare, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_quota_v1, make_root, remove_root),
        cmocka_unit_test_setup_teardown(test_quota_hybrid, make_root, remove_root),
    };

    return cmocka_run_group_tests_name("topo", tests, NULL, NULL);
}
