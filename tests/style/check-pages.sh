#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Manual pages are well formed, and pages of ours that they refer to are there.  check-pages.sh PAGE...
set -eu
command -v mandoc >/dev/null || { echo "skipped: no mandoc"; exit 77; }
bad=0
# The date that no page has is on purpose: it is the same page whenever it is built.
mandoc -T lint -W warning "$@" | grep -v 'missing date, using ""' && bad=1
names=
for page in "$@"; do
    page=${page##*/}
    page=${page%.in}
    names="$names ${page%.*}(${page##*.})"
done
for page in "$@"; do
    for name in $(sed -n 's/\\-/-/g; s/^\.BR \(moe[a-z.-]*\) (\([1-8]\)).*/\1(\2)/p' "$page"); do
        case " $names " in
        *" $name "*) ;;
        *)
            echo "$page: there is no $name"
            bad=1
            ;;
        esac
    done
done
exit $bad
