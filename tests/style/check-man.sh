#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The manual page names the options and commands that --help names, and no others.
# check-man.sh PROGRAM PAGE [LEAST]: there are more than LEAST (15) of them, lest nothing was read
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"$1" --help | grep -oE -- '--[a-z][a-z-]*' | sort -u > "$tmp/help"
sed 's/\\-/-/g; s/\\f[A-Z]//g' "$2" | grep -oE -- '--[a-z][a-z-]*' | sort -u > "$tmp/page"
"$1" --help | sed -n 's/^  \([a-z][a-z-]*\) .*/\1/p' | sort -u >> "$tmp/help"
sed -n '/^.SH COMMANDS/,/^.SH OPTIONS/{s/\\-/-/g;s/^\.BR\{0,1\} \([a-z][a-z-]*\)\( ".*\)\{0,1\}$/\1/p}' "$2" | sort -u >> "$tmp/page"
test "$(wc -l < "$tmp/help")" -gt "${3:-15}"
diff "$tmp/help" "$tmp/page" > "$tmp/diff" || { echo "--help (<) and $2 (>):"; cat "$tmp/diff"; exit 1; }
