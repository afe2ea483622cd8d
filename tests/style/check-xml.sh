#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The XML files that are installed are what their readers take.  check-xml.sh DIR...
set -eu
command -v xmllint >/dev/null || { echo "skipped: no xmllint"; exit 77; }
here=$(dirname "$0")
polkit=/usr/share/polkit-1/policyconfig-1.dtd
dir=$(mktemp -d) # xmllint takes a DTD for a URL, in which a space is none
trap 'rm -r "$dir"' EXIT
cp "$here"/*.dtd "$dir"
n=0
for d in "$@"; do
    for f in "$d"/*.xml "$d"/*.conf "$d"/*.policy; do
        case $f in
        *.xml) dtd=$dir/introspect.dtd ;;
        *.conf) dtd=$dir/busconfig.dtd ;;
        *.policy) dtd=$polkit ;;
        esac
        [ -f "$f" ] || continue
        [ -f "$dtd" ] || { echo "skipped: no $dtd"; exit 77; }
        sed '/<!DOCTYPE/,/>/d' "$f" | xmllint --nonet --noout --dtdvalid "$dtd" - || { echo "in $f"; exit 1; }
        n=$((n + 1))
    done
done
echo "$n files"
[ "$n" -ge 4 ]
