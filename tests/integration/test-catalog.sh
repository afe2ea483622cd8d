#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The catalog explains each message id of the journal's records, and no other, with fields that the
# records have; journald takes it.  test-catalog.sh SOURCE
set -eu
source=$1 catalog=$1/systemd/moed.catalog

dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
grep -oE '"[0-9a-f]{32}"' "$source/daemon/journal.h" | tr -d '"' | sort >"$dir/sent"
sed -n 's/^-- //p' "$catalog" | sort >"$dir/explained"
[ -s "$dir/sent" ]
diff "$dir/sent" "$dir/explained"
grep -oE '@[A-Z_]+@' "$catalog" | tr -d '@' | sort -u | while read -r field; do
    grep -q "\"$field=" "$source/daemon/journal.c" || { echo "no record has $field"; exit 1; }
done
grep -qF "$(cat "$dir/sent")" "$source/daemon/moed.8"

command -v journalctl >/dev/null || exit 0
mkdir -p "$dir/root/usr/lib/systemd/catalog" "$dir/root/var/lib/systemd/catalog"
cp "$catalog" "$dir/root/usr/lib/systemd/catalog/"
journalctl --root="$dir/root" --update-catalog
journalctl --root="$dir/root" --list-catalog "$(cat "$dir/sent")" | grep -q moed
