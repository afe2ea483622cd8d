/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/hw/plan.h"

/* uneven.xml: two packages of two nodes each; cores of two threads, 4, 2, 3 and 2 a node. The last
 * node has no memory, and the first core is not allowed. */
static const char *xml;

/* Matrices of a model, the 26B's in miniature: its rows, and so how they are cut, but fewer of
 * them. */
static const struct mat {
    const char *name;
    uint32_t n_row, unit, n_expert;
    size_t row_size;
    bool by_expert; /* each expert is another turn */
} mats[] = {
    { "q", 4096, 16, 1, 1584, false },          { "k", 2048, 16, 1, 1584, false },
    { "o", 2816, 16, 1, 2304, false },          { "gate", 2112, 32, 1, 1584, false },
    { "down", 2816, 16, 1, 1188, false },       { "router", 128, 16, 1, 5632, false },
    { "gate_exps", 704, 32, 128, 1584, true },  { "up_exps", 704, 32, 128, 1584, true },
    { "down_exps", 2816, 16, 128, 396, false }, { "odd", 100, 16, 3, 64, true },
};

enum { N_MAT = sizeof mats / sizeof *mats, N_LAYER = 30 };

/* A machine and what its plan must be like. */
static const struct machine {
    const char *name, *synthetic; /* NULL: uneven.xml */
    uint32_t n_worker;            /* 0: one a core */
    uint64_t bytes;               /* of weights */
    uint32_t n_shard, n[8];       /* workers of each */
} machines[] = {
    { "one node", "numa:1 l3:2(size=33554432) core:4 pu:2", 0, 1ull << 34, 1, { 8 } },
    { "one CPU", "core:1 pu:1", 0, 1ull << 34, 1, { 1 } },
    { "two sockets",
      "pack:2 numa:1(memory=1073741824) l3:8(size=33554432) l2:8 core:1 pu:2",
      0,
      1ull << 34,
      2,
      { 64, 64 } },
    { "four nodes", "pack:2 numa:2 core:3 pu:1", 0, 1ull << 34, 4, { 3, 3, 3, 3 } },
    { "eight caches that hold all",
      "pack:2 numa:1 l3:4(size=33554432) core:4 pu:2",
      0,
      200 << 20,
      8,
      { 4, 4, 4, 4, 4, 4, 4, 4 } },
    { "eight caches that do not",
      "pack:2 numa:1 l3:4(size=33554432) core:4 pu:2",
      0,
      250 << 20,
      2,
      { 16, 16 } },
    { "no caches known", "numa:2 core:4 pu:1", 0, 1, 2, { 4, 4 } },
    { "few workers", "numa:4 core:6 pu:2", 6, 1ull << 34, 4, { 2, 1, 2, 1 } },
    { "second threads too", "numa:2 core:4 pu:2", 12, 1ull << 34, 2, { 8, 4 } },
    { "more workers than CPUs", "numa:2 core:2 pu:1", 9, 1ull << 34, 2, { 5, 4 } },
    { "fewer workers than nodes", "numa:4 core:6 pu:2", 2, 1ull << 34, 2, { 1, 1 } },
    { "uneven", NULL, 0, 1ull << 34, 3, { 3, 2, 5 } },
};

enum { N_MACHINE = sizeof machines / sizeof *machines };

static struct topo *machine(const char *synthetic, uint32_t quota) {
    struct topo *t = NULL;

    if (topo_new_from(&t, synthetic ? synthetic : "core:1 pu:1", quota) == TOPO_UNSUPPORTED)
        skip(); /* a build without hwloc */
    assert_non_null(t);
    if (synthetic)
        return t;
    topo_free(t);
    setenv("HWLOC_XMLFILE", xml, 1);
    assert_int_equal(topo_new_from(&t, NULL, quota), 0);
    unsetenv("HWLOC_XMLFILE");
    return t;
}

static struct plan *plan_of(const struct topo *t, uint32_t n_worker, uint64_t bytes,
                            struct topo_cpu **ret_cpu) {
    struct topo_cpu *cpu;
    struct plan *p;

    n_worker = n_worker ? n_worker : topo_n_worker(t);
    cpu = calloc(n_worker, sizeof *cpu);
    assert_non_null(cpu);
    plan_place(t, n_worker, cpu);
    assert_int_equal(plan_new(&p, cpu, n_worker, bytes), 0);
    assert_int_equal(p->n_worker, n_worker);
    *ret_cpu = cpu;
    return p;
}

/* Bytes of every layer's matrices on the node of the workers that multiply them, and elsewhere. */
struct tally {
    uint64_t total, of_shard[64], remote;
};

static void cut_matrix(const struct plan *p, const struct topo_cpu *cpu, const struct mat *m,
                       uint32_t turn, struct tally *t) {
    uint32_t end = 0;

    for (uint32_t s = 0; s < p->n_shard; s++) {
        const struct plan_shard *shard = &p->shard[s];
        uint32_t begin = plan_cut(p, m->n_row, m->unit, turn, s);
        uint64_t size;

        assert_int_equal(begin, end); /* each row once */
        assert_true(begin % m->unit == 0 || begin == m->n_row);
        end = plan_cut(p, m->n_row, m->unit, turn, s + 1);
        assert_in_range(end, begin, m->n_row);
        size = (uint64_t)(end - begin) * m->row_size;
        t->total += size;
        t->of_shard[s] += size;
        for (uint32_t w = shard->first; w < shard->first + shard->n_worker; w++)
            if (cpu[w].node != shard->node || cpu[w].node_os != shard->node_os)
                t->remote += size;
    }
    assert_int_equal(end, m->n_row);
}

static void check_machine(const struct machine *m) {
    AUTO(topo_free) struct topo *t = machine(m->synthetic, 0);
    struct topo_cpu *cpu;
    AUTO(plan_free) struct plan *p = plan_of(t, m->n_worker, m->bytes, &cpu);
    struct tally tally = { 0 };
    uint32_t first = 0;

    assert_int_equal(p->n_shard, m->n_shard);
    for (uint32_t s = 0; s < p->n_shard; s++) {
        assert_int_equal(p->shard[s].first, first);
        assert_int_equal(p->shard[s].n_worker, m->n[s]);
        for (uint32_t w = 0; w < m->n[s]; w++)
            assert_int_equal(plan_shard_of(p, first + w), s);
        first += m->n[s];
    }
    assert_int_equal(first, p->n_worker);

    for (uint32_t layer = 0; layer < N_LAYER; layer++)
        for (size_t i = 0; i < N_MAT; i++)
            for (uint32_t e = 0; e < mats[i].n_expert; e++)
                cut_matrix(p, cpu, &mats[i], layer + (mats[i].by_expert ? e : 0), &tally);
    assert_true(tally.remote == 0);
    for (uint32_t s = 0; s < p->n_shard; s++) {
        double share = (double)tally.total * p->shard[s].n_worker / p->n_worker;

        if (!((double)tally.of_shard[s] > 0.99 * share && (double)tally.of_shard[s] < 1.01 * share))
            fail_msg("%s: shard %u has %.4f of its share", m->name, s,
                     (double)tally.of_shard[s] / share);
    }
    free(cpu);
}

static void test_machines(void **state) {
    (void)state;
    for (size_t i = 0; i < N_MACHINE; i++)
        check_machine(&machines[i]);
}

/* Every expert is cut as evenly as units allow, and runs of experts too, wherever they begin: any
 * eight that a token needs are spread better than the worst of them. */
static void test_turns_are_even(void **state) {
    AUTO(topo_free) struct topo *t = machine("numa:4 core:3 pu:1", 0);
    struct topo_cpu *cpu;
    AUTO(plan_free) struct plan *p = plan_of(t, 0, 0, &cpu);

    (void)state;
    assert_int_equal(p->turns, 4);
    for (uint32_t first = 0; first < 8; first++)
        for (uint32_t s = 0; s < 4; s++) {
            uint32_t rows = 0;

            for (uint32_t e = first; e < first + 8; e++) {
                uint32_t n = plan_cut(p, 704, 32, e, s + 1) - plan_cut(p, 704, 32, e, s);

                assert_in_range(n, 160, 192); /* 5.5 units */
                rows += n;
            }
            assert_int_equal(rows, 8 * 176);
        }
    free(cpu);
}

/* Fewer units than shards: some have nothing, each row is still somebody's. */
static void test_few_rows(void **state) {
    AUTO(topo_free) struct topo *t = machine("numa:8 core:1 pu:1", 0);
    struct topo_cpu *cpu;
    AUTO(plan_free) struct plan *p = plan_of(t, 0, 0, &cpu);
    uint32_t n[8] = { 0 };

    (void)state;
    for (uint32_t turn = 0; turn < 8; turn++) {
        struct tally tally = { 0 };

        cut_matrix(p, cpu, &(struct mat){ "few", 40, 16, 1, 1, false }, turn, &tally);
        assert_int_equal(tally.total, 40);
        for (uint32_t s = 0; s < 8; s++) {
            assert_in_range(tally.of_shard[s], 0, 16);
            n[s] += tally.of_shard[s] > 0;
        }
    }
    for (uint32_t s = 0; s < 8; s++)
        assert_int_equal(n[s], 3); /* 3 units of 8 turns are 24 over 8 shards */
    assert_int_equal(plan_cut(p, 40, 16, UINT32_MAX, 8), 40);
    free(cpu);
}

/* Fewer workers, or a small quota, take cores from all nodes, never two threads of one. */
static void test_place(void **state) {
    static const struct { uint32_t quota, n_worker; } row[] = { { 0, 4 }, { 4, 0 }, { 4, 4 } };

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        AUTO(topo_free)
        struct topo *t = machine("numa:2 l3:2(size=1048576) core:3 pu:2", row[i].quota);
        struct topo_cpu cpu[4];

        if (!row[i].n_worker)
            assert_int_equal(topo_n_worker(t), 4);
        plan_place(t, 4, cpu);
        for (uint32_t k = 0; k < 4; k++) {
            assert_int_equal(cpu[k].sibling, 0);
            assert_int_equal(cpu[k].core, 3 * k);
            assert_int_equal(cpu[k].node, k / 2);
            assert_int_equal(cpu[k].cache, k);
        }
    }
}

/* Only what is allowed, and a node without memory is served by its neighbour. */
static void test_uneven(void **state) {
    static const uint32_t os[] = { 2, 4, 6, 8, 10, 16, 18, 20, 24, 26 };
    static const uint32_t node[] = { 0, 0, 0, 1, 1, 2, 2, 2, 2, 2 };
    AUTO(topo_free) struct topo *t = machine(NULL, 0);
    struct topo_cpu cpu[10];

    (void)state;
    assert_int_equal(t->n_cpu, 20);
    assert_int_equal(topo_n_worker(t), 10);
    plan_place(t, 10, cpu);
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(cpu[i].os, os[i]);
        assert_int_equal(cpu[i].node, node[i]);
        assert_int_equal(cpu[i].node_os, node[i]);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_machines), cmocka_unit_test(test_turns_are_even),
        cmocka_unit_test(test_few_rows), cmocka_unit_test(test_place),
        cmocka_unit_test(test_uneven),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s uneven.xml\n", argv[0]);
        return 2;
    }
    xml = argv[1];
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
