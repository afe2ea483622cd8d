/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * bench-probe - what the machine can do just now, so that figures taken beside it mean something
 *
 * A child process measures and, on demand, keeps every CPU busy: its buffer and its threads are not
 * in the measured process. All rates are of windows shorter than a slice of the scheduler, so on a
 * busy machine too most are undisturbed; that there was a disturbance shows in cpu_share.
 *
 * Owner:   one thread; make it before other threads and before large memory, it forks.
 * Memory:  in the child, eight times the last-level cache: 256 MiB to 1 GiB, and not more than an
 *          eighth of the machine's.
 * Source:  proc(5), Documentation/accounting/psi.rst of the Linux kernel.
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/auto.h"
#include "engine/base/err.h"

struct bench_probe;

struct bench_machine {
    uint32_t n_worker;               /* threads of the figures "all" */
    double peak_one, peak_all;       /* int8 operations a second of the bound tier, median */
    double read_one[2], read_all[2]; /* bytes a second out of memory, median and 99th percentile */
    double ping_pong;                /* seconds between two CPUs and back, median; 0: one worker */
    double cpu_share;                /* of the CPU time the probe wanted, what it got */
    double steal;                    /* of all CPU time since the probe before, what the hypervisor
                                       took */
    double pressure[3];              /* cpu, memory, io: percent of 10 seconds some task waited */
    double load;                     /* of one minute */
    double mhz;                      /* of the first CPU, as the kernel says; 0: it does not */
};

enum bench_fault {
    BENCH_FAULT__NONE,

    BENCH_FAULT_BUSY,   /* the probe got less than 0.9 of the CPU time it wanted */
    BENCH_FAULT_SHARED, /* it did, and all workers reach less than 0.95 of what one alone promises:
                           some share a core, or a clock */
};

/* @n_worker: threads that measure together. Return: 0 or -errno. */
int bench_probe_new(struct bench_probe **ret_probe, uint32_t n_worker);
struct bench_probe *bench_probe_free(struct bench_probe *p);
AUTO_DEFINE(struct bench_probe *, bench_probe_free)

/* Takes half a second. Return: 0 or -errno; -EPIPE: the child is gone. */
int bench_probe_run(struct bench_probe *p, struct bench_machine *ret);
/* From now on one spinning thread a usable CPU, or none. Return: as above. */
int bench_probe_spin(struct bench_probe *p, bool on);

/* Why figures beside @m can not be trusted. */
enum bench_fault bench_machine_fault(const struct bench_machine *m);
const char *bench_fault_name(enum bench_fault f);
