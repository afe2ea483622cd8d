#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Debian packages of this tree, by contrib/debian.
#
#   contrib/packages.sh FOLDER
set -eu
. "$(dirname -- "$0")/common.sh"

[ $# = 1 ] || { echo "usage: contrib/packages.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
out=$(CDPATH='' cd -- "$1" && pwd)
# shellcheck disable=SC2086
install_packages $packages_build $packages_debian

work=$(mktemp -d "${TMPDIR:-/tmp}/moed-packages.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What git tracks, as it is now; without git what is here, less the builds.
mkdir "$work/moed"
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git ls-files -z | xargs -0 ls -d 2>/dev/null | tar -c -T - | tar -x -C "$work/moed"
else
    tar -c --exclude './build*' . | tar -x -C "$work/moed"
fi
cp -r contrib/debian "$work/moed/debian"

cd "$work/moed"
PATH=/usr/lib/ccache:$PATH dpkg-buildpackage --build=binary --no-sign --no-check-builddeps >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
}
mv ../*.deb ../*.changes ../*.buildinfo "$out"
