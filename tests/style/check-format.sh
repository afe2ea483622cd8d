#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The sources are as clang-format would write them.  check-format.sh ROOT CLANG_FORMAT
set -eu
cd "$1"
find engine client daemon tests contrib -name '*.[ch]' -print0 | xargs -0 "$2" --dry-run -Werror
