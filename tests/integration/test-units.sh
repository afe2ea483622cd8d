#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The units parse, their exposure stays low, and the user is made.  test-units.sh SOURCE BUILD MOED
set -eu
source=$1 build=$2 moed=$(readlink -f "$3")
command -v systemd-analyze >/dev/null || exit 77

dir=$(mktemp -d)
trap 'rm -r "$dir"' EXIT
for kind in system user; do
    sub=
    [ $kind = system ] || sub=user/
    mkdir "$dir/$kind"
    # The program is not installed yet, nor are the manual pages.
    sed "s|^\(Exec[A-Za-z]*\)=/[^ ]*/moed|\1=\"$moed\"|" "$build/systemd/${sub}moed.service" >"$dir/$kind/moed.service"
    cp "$source/systemd/${sub}moed.socket" "$dir/$kind/"
    grep -qF "ExecStart=\"$moed\"" "$dir/$kind/moed.service"
    [ ! -f "$build/systemd/${sub}moe-openai.service" ] || {
        sed "s|^ExecStart=/.*|ExecStart=\"$moed\"|" "$build/systemd/${sub}moe-openai.service" \
            >"$dir/$kind/moe-openai.service"
        cp "$source/systemd/${sub}moe-openai.socket" "$dir/$kind/"
    }
    portal=$build/client/portal/moed-portal.service
    [ $kind = system ] || [ ! -f "$portal" ] ||
        sed "s|^ExecStart=/.*|ExecStart=\"$moed\"|" "$portal" >"$dir/$kind/moed-portal.service"
    XDG_RUNTIME_DIR=$dir systemd-analyze --$kind --man=no verify "$dir/$kind"/*.service \
        "$dir/$kind"/*.socket >"$dir/said" 2>&1 || bad=1
    # Other units of the machine may be talked about; ours must not be.
    if [ -n "${bad:-}" ] || grep -E "moed|moe-" "$dir/said"; then
        cat "$dir/said"
        exit 1
    fi
done

# 10 is an exposure of 1.0.
for unit in "$dir"/system/*.service; do
    systemd-analyze security --offline=true --no-pager --threshold=10 "$unit" >"$dir/exposure" || {
        cat "$dir/exposure"
        exit 1
    }
    grep Overall "$dir/exposure"
done

# What would break the service rather than protect it.
if grep -E '^(PrivateUsers=yes|ProtectProc=invisible|RuntimeDirectory=)' "$dir/system/moed.service"; then
    exit 1
fi

# It waits for nothing that it does not need.
if grep -E '^(After|Wants|Requires)=' "$dir/system/moed.service" | grep -vx '[A-Z][a-z]*=moed.socket'; then
    exit 1
fi

if command -v systemd-sysusers >/dev/null; then
    mkdir -p "$dir/root/etc"
    systemd-sysusers --root="$dir/root" --dry-run "$source/systemd/moed.sysusers.conf" 2>&1 | tee "$dir/sysusers"
    grep -q moed "$dir/sysusers"
fi
