#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The AArch64 tier on a host that is none: it compiles without a warning, and test-kern, built
# against the few lines of cmocka it needs, runs in qemu. Skipped without a cross compiler, or, when
# that has found nothing to say, without qemu.  check-neon.sh ROOT
set -eu
cc=$(command -v aarch64-linux-gnu-gcc) || { echo "no aarch64-linux-gnu-gcc"; exit 77; }
cd "$1"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for file in engine/kern/arm_neon.c engine/kern/arm_neon-attn.c engine/kern/arm_neon-pack.c \
    engine/kern/cpu.c engine/kern/generic.c engine/kern/generic-attn.c engine/kern/kern.c engine/kern/pack.c \
    engine/fmt/quant.c engine/fmt/quant-fit.c engine/fmt/quant-k.c; do
    "$cc" -c -std=gnu17 -march=armv8.2-a+dotprod -O1 -Wall -Wextra -Werror -Wconversion -Wshadow \
        -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef -Wno-unused-parameter \
        -fno-math-errno -ffp-contract=off -D_GNU_SOURCE -DKERN_HAVE_NEON -I . \
        -o "$dir/${file##*/}.o" "$file"
done
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) || { echo "no qemu-aarch64"; exit 77; }
"$cc" -static -std=gnu17 -O1 -D_GNU_SOURCE -I tests/unit/cross -I . -o "$dir/test-kern" \
    tests/unit/test-kern.c "$dir"/*.o -lm
"$qemu" "$dir/test-kern" >"$dir/log" || { cat "$dir/log"; exit 1; }
grep -q '^tier neon$' "$dir/log"
