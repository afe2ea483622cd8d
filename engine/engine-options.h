/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * engine-options - what engine_new() is told; borrowed for the call, see engine.h
 */

#include <stdbool.h>
#include <stdint.h>

#include "engine/fmt/quant.h"

struct engine_options {
    const char *path;      /* model file */
    uint32_t n_ctx;        /* 0: the trained context; more than that fails the load. What is served
                              is at most what kv_bytes can hold: see model_info.n_ctx. */
    uint64_t kv_bytes;     /* bound of the K/V cache; 0: a quarter of memory */
    uint64_t kv_user;      /* of it for the jobs of one user; 0: all */
    uint64_t prefix_bytes; /* of it for what is kept, as far as jobs leave it; 0: nothing is */
    uint32_t n_worker;     /* 0: one a usable core */
    uint32_t n_batch;      /* prompt tokens a step; 0: 512 */
    uint32_t n_queue;      /* generations waiting at most, and text jobs as many; 0: 64 */
    uint32_t n_user;       /* jobs of one user, generations and text jobs each; 0: no limit */
    uint64_t user_bytes;   /* texts of all jobs of one user; 0: no limit */
    uint32_t n_seq;        /* generations at a time, as far as kv_bytes holds them; 0: 16 */
    uint64_t bound_usec;   /* between two tokens of an answer while prompts go in; 0: 250 ms */
    enum quant_fmt kv_fmt; /* QUANT_F16, QUANT_F32 or QUANT_Q8_0 */
    bool exact;
    bool no_pack;          /* weights stay as in the file */
    uint64_t expert_bytes; /* as in struct model_options; with in_memory all are in memory */
    const char *cache_dir; /* packed weights are kept there for a later start, see
                              model/image.h; NULL: nowhere */
    bool in_memory;        /* or in a sealed memory file: engine_weights() */
    int memory_fd;         /* one of an earlier start, to be taken over; 0: none. Borrowed until
                              loading is over, or it is refused. */
};
