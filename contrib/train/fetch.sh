#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetch what the model learns from, beside our own text: Debian packages, by apt-get download, for the
# NAME lines of their manual pages, the names of their commands, and WordNet. Nothing is installed.
#
#   contrib/train/fetch.sh DIRECTORY     about 200 MB of packages; writes DIRECTORY/facts.json
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mkdir -p "$1/packages" "$1/root"
cd "$1"

# The candidates of this release only: a name that it does not know is left out.
grep -v '^#' "$here/text/packages.txt" | tr -s ' ' '\n' | sort -u >wanted
xargs apt-cache policy <wanted |
    awk '/^[a-z0-9]/ { name = $1; sub(":", "", name) } /Candidate: [^(]/ { print name }' >known
(cd packages && xargs apt-get download -q <../known)

for deb in packages/*.deb; do
    package=$(basename "$deb" | cut -d_ -f1)
    dpkg-deb -x "$deb" root
    dpkg-deb -c "$deb" | awk -v p="$package" '{ print p "\t" $6 }' |
        grep -E '	\./(usr/share/man/man[1-8]/|(usr/)?(s?bin|games)/[^/]+$)' || :
done >files.tsv
apt-cache dumpavail | grep -E '^(Package|Description(-en)?|Section):|^$' >available

/usr/bin/python3 "$here/extract.py" . facts.json
