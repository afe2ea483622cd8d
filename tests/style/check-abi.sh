#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What programs were linked against is still there, and as it was: libmoe against the description of its
# binary interface in client/moe.abi. Functions that are new, and members at the end of structures, are
# told and are no fault.
# check-abi.sh [--write]: writes the description anew
set -eu
cd "$(dirname -- "$0")/../.."
for tool in gcc abidw abidiff pkg-config; do
    command -v $tool >/dev/null || { echo "skipped: no $tool"; exit 77; }
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# Types are read from what a debugger reads; one compiler and no optimisation, so that it is always the same.
# shellcheck disable=SC2046 # words are wanted
gcc -std=gnu17 -D_GNU_SOURCE -DMOE_VERSION='""' -g -O0 -fPIC -shared -fvisibility=hidden -I . \
    -Wl,--version-script=client/moe.sym -Wl,-soname,libmoe.so.0 -o "$tmp/libmoe.so.0" \
    client/client.c client/generate.c client/model.c client/session.c client/value.c client/wire.c \
    $(pkg-config --cflags --libs msgpack-c 2>/dev/null || pkg-config --cflags --libs msgpack)
mkdir "$tmp/public" # the types of other headers are not looked at
cp client/moe.h client/moe-model.h client/moe-session.h "$tmp/public"
abidw --headers-dir "$tmp/public" --drop-private-types --drop-undefined-syms --load-all-types --no-corpus-path \
    --no-comp-dir-path --no-show-locs --no-architecture --out-file "$tmp/moe.abi" "$tmp/libmoe.so.0"
if [ "${1:-}" = --write ]; then
    sed '1a<!-- SPDX-License-Identifier: Apache-2.0 -->' "$tmp/moe.abi" >client/moe.abi
    exit
fi
abidiff --suppressions tests/style/moe.suppr --no-added-syms --non-reachable-types --no-architecture client/moe.abi "$tmp/moe.abi" || {
    echo "programs that use libmoe would break; if it must be, soversion and client/moe.abi change"
    exit 1
}
abidiff --non-reachable-types --no-architecture client/moe.abi "$tmp/moe.abi" >"$tmp/new" || {
    echo "libmoe has grown; tests/style/check-abi.sh --write, before a release:"
    cat "$tmp/new"
}
