#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The whole test run: install what is missing, build with gcc (release) and with clang (address and
# undefined-behaviour sanitizers), run every test of both, and end with one line of counts.
#
#   contrib/check.sh
set -eu
. "$(dirname -- "$0")/common.sh"

# shellcheck disable=SC2086
install_packages $packages_build $packages_check

# A client of others' making, for the bridge: its test is skipped without.
command -v npm >/dev/null || install_packages nodejs npm
npm install --silent --no-fund --no-audit --prefix build-check-npm openai@6.49.0 >/dev/null ||
    say "cannot install the npm package openai"
if [ -d build-check-npm/node_modules/openai ]; then
    MOED_NODE_MODULES=$root/build-check-npm/node_modules
    export MOED_NODE_MODULES
fi

failed=0
for kind in gcc clang; do
    dir=build-check-$kind
    say "$kind: building"
    case $kind in
    gcc) CC=gcc configure "$dir" -Dwerror=true -Dtests=enabled ;;
    clang) CC=clang configure "$dir" -Dwerror=true -Dtests=enabled -Dbuildtype=debugoptimized \
        -Db_sanitize=address,undefined -Db_lundef=false ;;
    esac
    ninja -C "$dir" >"$dir/check.log" 2>&1 || { cat "$dir/check.log" >&2; exit 1; }
    say "$kind: testing"
    meson test -C "$dir" --print-errorlogs || failed=1
done

/usr/bin/python3 contrib/count-tests.py build-check-gcc build-check-clang || failed=1
exit $failed
