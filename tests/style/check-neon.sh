#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The AArch64 tier still compiles, on a host that is none. Skipped without a cross compiler.
set -eu
cc=$(command -v aarch64-linux-gnu-gcc) || exit 77
for file in arm_neon cpu generic kern; do
    "$cc" -fsyntax-only -std=gnu17 -march=armv8.2-a+dotprod -O1 -Wall -Wextra -Werror -Wconversion \
        -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef -Wno-unused-parameter \
        -ffp-contract=off -D_GNU_SOURCE -DKERN_HAVE_NEON -I "$1" "$1/engine/kern/$file.c"
done
