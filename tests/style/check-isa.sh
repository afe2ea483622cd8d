#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Instructions past baseline x86-64 stand in the tiers' objects alone: a ymm or zmm register, or a
# VEX-coded one on xmm, anywhere else would fault on a CPU without AVX. zmm and the mask registers
# are for the 512-bit tier only, and every tier that touches them clears the upper halves.
set -eu
objdump -d --no-show-raw-insn "$@" | awk '
    /file format/ { n = split($1, at, "/"); obj = at[n]; sub(/:$/, "", obj)
        tier = obj ~ /^kern_x86_avx512/ ? 2 : obj ~ /^kern_x86_avx(2|vnni)[-.]/ ? 1 : 0
        n_obj++; next }
    { wide = /%zmm|%k[0-7]/ ? 2 : /%ymm/ || $2 ~ /^v[a-z]/ && /%xmm/ || $2 == "vzeroupper" ? 1 : 0 }
    wide > tier { print obj ": " $0; bad = 1 }
    wide { seen[tier]++ }
    tier && $2 == "vzeroupper" { clean[tier]++ }
    END {
        if (n_obj < 10) { print "no objects to look at"; bad = 1 }
        for (t in seen)
            if (!clean[t]) { print "tier " t " never clears the upper halves"; bad = 1 }
        exit bad }'
