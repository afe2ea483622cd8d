#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# In a clean system that was booted: its administrator installs the packages, they work, and when they
# are purged nothing of them is left.
#
#   packaged.sh BUS_NAME MODEL PACKAGE.deb...
set -eu

name=$1 model=$2
shift 2
export DEBIAN_FRONTEND=noninteractive

say() {
    echo "not ok: $*"
    exit 1
}

# Every path, and what configuration says; not what belongs to dpkg, logs and caches. An account stays
# when a package goes, since files of its number may lie anywhere.
state() {
    find / -xdev \( -path /opt -o -path '/etc/*-' -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache/ldconfig \
        -o -path /var/cache/man -o -path /var/lib/systemd -o -path /root \) -prune -o -print | LC_ALL=C sort
    find /etc -xdev -type f ! -name ld.so.cache ! -name 'passwd*' ! -name 'group*' ! -name '*shadow*' ! -name 'sub?id*' ! -name '*-' \
        ! -name .pwd.lock -exec sha256sum {} + | LC_ALL=C sort
}

state >/run/before
dpkg --install "$@" >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }
busctl --no-pager list --activatable | grep -q "^$name " || say "the bus does not know $name"
[ "$(systemctl is-enabled moed.socket)/$(systemctl is-active moed.socket)" = enabled/active ] ||
    say "moed.socket is not enabled and active"
[ "$(systemctl is-enabled moe-openai.socket)/$(systemctl is-active moe-openai.socket)" = disabled/inactive ] ||
    say "moe-openai.socket is not disabled and inactive"
[ "$(systemctl --global is-enabled moed-portal.service moed.socket | sort -u | tr '\n' /)" = disabled/static/ ] ||
    say "a user's unit is enabled"
echo "ok: installed"

sh "$(dirname "$0")/installed.sh" "$name" "$model"
systemctl start moe-openai.socket
printf 'GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n' >/run/request
health=$(bash -c 'exec 3<>/dev/tcp/127.0.0.1/11435; cat /run/request >&3; cat <&3') || true
echo "$health" | grep -q '"ok"' || say "moe-openai says: $health"
echo "ok: the bridge answers"

userdel --remove alice 2>/dev/null
# shellcheck disable=SC2046 # words are wanted
dpkg --purge $(for f; do dpkg-deb --field "$f" Package; done) >/run/dpkg.log 2>&1 || { cat /run/dpkg.log; exit 1; }
state >/run/after
diff /run/before /run/after || say "this is left or changed after the purge"
[ "$(systemctl is-active moed.service moed.socket moe-openai.socket | sort -u)" = inactive ] || say "something still runs"
busctl --no-pager list | grep -q "^$name " && say "the bus still knows $name"
echo "ok: purged"
