#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Memcheck has nothing to say of the kernels, the cache and a short generation, packed weights and
# native ones. valgrind's CPU has AVX2 and no more. Skipped without valgrind.
#   check-valgrind.sh MOE_EVAL MODEL TEST...
set -eu
command -v valgrind >/dev/null || { echo "no valgrind"; exit 77; }
eval=$1
model=$2
shift 2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
check() {
    valgrind -q --error-exitcode=9 "$@" >"$log" 2>&1 || {
        status=$?
        cat "$log"
        echo "$* under valgrind: exit $status"
        exit 1
    }
}
for test in "$@"; do
    check "$test"
done
for opt in "--kv f16" "--kv q8_0" "--kv f32 --exact" --no-pack; do
    # shellcheck disable=SC2086 # words are wanted
    check "$eval" "$model" --ids 2,5,7,9,11,3,4,8,6,10 --greedy 3 --threads 2 $opt
done
