#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# From a fresh checkout to an answer: install what is missing, build, start moed on the demo model
# by socket activation, ask it one question, stop it.
#
#   contrib/quickstart.sh [QUESTION]
set -eu
. "$(dirname -- "$0")/common.sh"

question=${1:-What does grep do?}
model=$root/contrib/demo-model/tiny-linux-gemma4-Q8_0.gguf
run= daemon=

stop() {
    [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
    [ -z "$run" ] || rm -rf "$run"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# shellcheck disable=SC2086
install_packages $packages_build
configure build -Dtests=disabled
say "building"
ninja -C build >build/quickstart.log || { cat build/quickstart.log >&2; exit 1; }

run=$(mktemp -d "${TMPDIR:-/tmp}/moed.XXXXXX")
say "a first connection to $run/rpc will start moed"
systemd-socket-activate --listen="$run/rpc" --fdname=rpc \
    "$root/build/daemon/moed" --model "$model" 2>"$run/log" &
daemon=$!
n=0
while [ ! -S "$run/rpc" ] && [ $n -lt 50 ]; do
    sleep 0.1
    n=$((n + 1))
done

say "moectl run \"$question\""
if ! "$root/build/client/moectl" --socket "$run/rpc" run --temperature 0 "$question"; then
    say "moed said:"
    cat "$run/log" >&2
    exit 1
fi
[ -t 1 ] || echo # on a terminal moectl ends the line itself
