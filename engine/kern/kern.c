/* SPDX-License-Identifier: Apache-2.0 */

#include "engine/kern/kern.h"

/* clang-format off */
const struct kern_tier kern_tiers[] = {
    { "generic",    0,                                          kern_use_generic    },
#ifdef KERN_HAVE_AVX2
    { "avx2",       CPU_AVX2 | CPU_FMA,                         kern_use_avx2       },
#endif
#ifdef KERN_HAVE_AVXVNNI
    { "avxvnni",    CPU_AVX2 | CPU_FMA | CPU_AVXVNNI,           kern_use_avxvnni    },
#endif
#ifdef KERN_HAVE_AVX512VNNI
    { "avx512vnni", CPU_AVX2 | CPU_FMA | CPU_AVX512 | CPU_VNNI, kern_use_avx512vnni },
#endif
#ifdef KERN_HAVE_AVX512BF16
    { "avx512bf16", CPU_AVX2 | CPU_FMA | CPU_AVX512 | CPU_VNNI | CPU_BF16, kern_use_avx512bf16 },
#endif
#ifdef KERN_HAVE_NEON
    { "neon",       CPU_NEON | CPU_DOTPROD,                     kern_use_neon       },
#endif
    { 0 },
};
/* clang-format on */

void kern_bind(struct kern *k, uint32_t cpu) {
    for (const struct kern_tier *t = kern_tiers; t->name; t++) {
        if ((t->need & cpu) != t->need)
            continue;

        t->use(k);
        k->tier = t->name;
    }
}
