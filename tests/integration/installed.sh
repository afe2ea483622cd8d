#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# In a clean system that was booted after `meson install`: what its administrator does, then a user
# without rights. Ends with an error at the first thing that is not as it should be.
#
#   installed.sh BUS_NAME MODEL
set -eu

name=$1 model=$2
path=/$(echo "$name" | tr . /)
export PATH=/usr/local/bin:$PATH

as_alice() {
    setpriv --reuid alice --regid alice --init-groups --reset-env env "PATH=$PATH" "$@" </dev/null
}

check() {
    if [ "$2" = yes ]; then echo "ok: $1"; else
        echo "not ok: $1"
        systemctl --no-pager --full status moed.service moed.socket || true
        journalctl --no-pager -n 40 || true
        exit 1
    fi
}

useradd --create-home alice
getent passwd moed >/dev/null && r=yes || r=no
check "the user moed is there" $r

mkdir -p /var/lib/moed/models
cp "$model" /var/lib/moed/models/demo.gguf
systemctl enable --now moed.socket
check "the socket is enabled" "$([ "$(systemctl is-active moed.socket)" = active ] && echo yes)"
check "the service is not started" "$([ "$(systemctl is-active moed.service)" = inactive ] && echo yes)"
check "no user's unit is enabled" "$([ "$(systemctl --global is-enabled moed.socket)" = disabled ] && echo yes)"

said=$(as_alice moectl run --temperature 0 "What does grep do?")
check "moectl run, as alice: $said" "$(echo "$said" | grep -q grep && echo yes)"

said=$(as_alice busctl --timeout=60 call "$name" "$path" "$name.Manager" Respond 'sa{sv}' 'What does grep do?' 1 max-tokens u 40)
check "Respond, as alice: $said" "$(echo "$said" | grep -q '^sa{sv} ".*grep' && echo yes)"
said=$(as_alice busctl --timeout=60 call "$name" "$path" "$name.Manager" Respond 'sa{sv}' 'Files are listed by ls.' 2 use-case s language.summarize max-tokens u 5)
check "a use case, as alice: $said" "$(echo "$said" | grep -q '^sa{sv} "' && echo yes)"

said=$(as_alice busctl call "$name" "$path" "$name.Admin" LoadModel 'sa{sv}' demo 0 2>&1) && r=no || r=yes
check "LoadModel is refused, as alice: $said" "$r"
check "polkit refused it" "$([ "$(systemctl is-active polkit.service)" = active ] && echo "$said" | grep -qiE 'access denied|interactive authentication' && echo yes)"
said=$(busctl call "$name" "$path" "$name.Admin" LoadModel 'sa{sv}' demo 0)
check "LoadModel, as root: $said" "$(echo "$said" | grep -q "^o \"$path/job/" && echo yes)"
