#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The library exports what moe.sym lists, moe.sym lists what the headers declare, and nothing else.
# check-exports.sh LIBRARY MOE.SYM HEADER...
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
nm -D --defined-only "$1" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | LC_ALL=C sort > "$tmp/exported"
sed -n 's/^ *\(moe_[a-z0-9_]*\);$/\1/p' "$2" > "$tmp/listed"
shift 2
sed -n 's/^MOE_API .*[ *]\(moe_[a-z0-9_]*\)(.*/\1/p' "$@" | LC_ALL=C sort > "$tmp/declared"
test -s "$tmp/declared"
diff "$tmp/exported" "$tmp/listed" > "$tmp/diff" || { echo "library (<) and moe.sym (>):"; cat "$tmp/diff"; exit 1; }
diff "$tmp/listed" "$tmp/declared" > "$tmp/diff" || { echo "moe.sym (<) and the headers (>):"; cat "$tmp/diff"; exit 1; }
