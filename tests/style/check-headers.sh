#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every header compiles alone.  check-headers.sh ROOT CC
set -eu
cd "$1"
bad=0
for h in $(find engine client daemon -name '*.h' | LC_ALL=C sort); do
    "$2" -fsyntax-only -std=gnu17 -Wall -Werror -D_GNU_SOURCE -I . -include "$h" -x c /dev/null || {
        echo "$h does not compile alone"
        bad=1
    }
done
exit $bad
