/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AVX-VNNI: the packed kernels of AVX2 with vpdpbusd in place of three instructions. The rest is
 * AVX2's.
 */

#include "engine/kern/x86_avx2-pack.c"

/* What the registers hold does not matter. */
static uint64_t peak(uint32_t n) {
    for (uint32_t i = 0; i < n * 128; i++)
        __asm__ volatile(".irp acc, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
                         "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm\\acc\n"
                         ".endr"
                         :
                         :
                         : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                           "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    _mm256_zeroupper();

    return (uint64_t)n * 128 * 15 * 32 * 2;
}

void kern_use_avxvnni(struct kern *k) {
    bind_packs(k);
    k->peak = peak;
}
