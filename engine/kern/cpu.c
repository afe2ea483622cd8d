/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>

#include "engine/kern/kern.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)
/* clang 14 does not know "f16c" as a name. The registers are AVX's, so AVX2 answers for XCR0. */
static int has_f16c(void) {
    unsigned a, b, c = 0, d;

    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

/* clang 14 does not know "avxvnni" either; the registers are AVX's, too. */
static int has_avxvnni(void) {
    unsigned a = 0, b, c, d;

    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
}
#endif

/* __builtin_cpu_supports() reads CPUID and XCR0: a feature counts only when the kernel saves the
 * registers it needs. */
uint32_t kern_cpu(void) {
    const char *mask = getenv("MOE_CPU_MASK");
    uint32_t f = 0;

#if defined(__x86_64__)
    __builtin_cpu_init();
    f |= __builtin_cpu_supports("avx2") ? CPU_AVX2 : 0;
    f |= __builtin_cpu_supports("fma") && has_f16c() ? CPU_FMA : 0;
    f |= __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
             ? CPU_AVX512
             : 0;
    f |= __builtin_cpu_supports("avx512vnni") ? CPU_VNNI : 0;
    f |= __builtin_cpu_supports("avx512bf16") ? CPU_BF16 : 0;
    f |= f & CPU_AVX2 && has_avxvnni() ? CPU_AVXVNNI : 0;
#elif defined(__aarch64__)
    f |= CPU_NEON;
    f |= getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? CPU_DOTPROD : 0;
#endif

    return mask ? f & (uint32_t)strtoul(mask, NULL, 16) : f;
}
