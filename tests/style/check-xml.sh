#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The XML files that are installed are what their readers take.  check-xml.sh DIR...
set -eu
command -v xmllint >/dev/null || { echo "skipped: no xmllint"; exit 77; }
here=$(dirname "$0")
polkit=/usr/share/polkit-1/policyconfig-1.dtd
n=0
for f in $(find "$@" -maxdepth 1 -name '*.xml' -o -maxdepth 1 -name '*.conf' -o -maxdepth 1 -name '*.policy' | LC_ALL=C sort); do
    case $f in
    *.xml) dtd=$here/introspect.dtd ;;
    *.conf) dtd=$here/busconfig.dtd ;;
    *.policy) dtd=$polkit ;;
    esac
    [ -f "$dtd" ] || { echo "skipped: no $dtd"; exit 77; }
    sed '/<!DOCTYPE/,/>/d' "$f" | xmllint --nonet --noout --dtdvalid "$dtd" - || { echo "in $f"; exit 1; }
    n=$((n + 1))
done
echo "$n files"
[ "$n" -ge 4 ]
