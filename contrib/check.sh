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
