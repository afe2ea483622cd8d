#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Boot a real systemd as process 1 of namespaces of its own, on an overlay of this machine's root, run
# a command there, and leave nothing behind.
#
#   boot.sh [-r ROOT] TREE COMMAND [ARGUMENT]...
#
# TREE is laid over the root, or over ROOT instead, before the boot. The command runs as root, beside that systemd; its exit
# status is ours. 77: this machine cannot, with the reason.
#
# Only what the test brings and the journal and the bus are started. /tmp and /run are new, and the
# network has no interface.
set -euo pipefail

systemd=/lib/systemd/systemd
boot_sec=30

skip() {
    echo "skipped: $*"
    exit 77
}

# ---- inside: file systems, then systemd ----

enter() {
    set -eu
    cannot() {
        echo "skipped: $*"
        exit 77
    }
    mount --make-rprivate / || cannot "mounts cannot be private here"
    mkdir "$work/fs"
    mount -t tmpfs -o size=1g,mode=755 tmpfs "$work/fs" || cannot "no tmpfs may be mounted here"
    mkdir "$work/fs/upper" "$work/fs/work" "$work/fs/root"
    root=$work/fs/root
    mount -t overlay -o "lowerdir=$lower,upperdir=$work/fs/upper,workdir=$work/fs/work" overlay "$root" ||
        cannot "no overlay of the root may be mounted here"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount -t sysfs -o nosuid,nodev,noexec sysfs "$root/sys"
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
    devices
    control_groups
    mount -o remount,ro,nosuid,nodev,noexec,bind "$root/sys"

    tar -C "$tree" -c . | tar -C "$root" -x --keep-directory-symlink --no-overwrite-dir --no-same-owner
    units
    cd "$root"
    mkdir -p .old
    pivot_root . .old
    exec chroot . /bin/sh -c '
        umount -l /.old
        ldconfig 2>/dev/null
        systemd-sysusers >/dev/null 2>&1
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=moed-test TERM=dumb \
            "$0" --system --log-target=journal-or-kmsg --show-status=no' "$systemd" </dev/null
}

devices() {
    mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
    for n in null:3 zero:5 full:7 random:8 urandom:9; do
        mknod -m 666 "$root/dev/${n%:*}" c 1 "${n#*:}"
    done
    mknod -m 666 "$root/dev/tty" c 5 0
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    for n in 0:stdin 1:stdout 2:stderr; do
        ln -s "fd/${n%:*}" "$root/dev/${n#*:}"
    done
}

# Control groups as the machine has them: one hierarchy, or controllers beside it.
control_groups() {
    if [ -z "$controllers" ]; then
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
        return
    fi
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    for c in $controllers; do
        mkdir "$root/sys/fs/cgroup/$c"
        [ "$c" = systemd ] && o=none,name=systemd || o=$c
        mount -t cgroup -o "$o" cgroup "$root/sys/fs/cgroup/$c"
    done
    mkdir "$root/sys/fs/cgroup/unified"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
}

# Nothing of the machine's own starts: no unit is wanted but the journal and the bus.
units() {
    etc=$root/etc/systemd
    rm -rf "$etc/system" "$etc/user" "$root"/lib/systemd/system/*.wants "$root/var/log/journal"
    rm -f "$root/usr/sbin/policy-rc.d" "$root/var/lib/dbus/machine-id"
    mkdir -p "$etc/system" "$etc/user" "$etc/system.conf.d" "$etc/journald.conf.d"
    [ ! -d "$tree/etc/systemd/system" ] || cp -r "$tree/etc/systemd/system/." "$etc/system/"
    for u in dev-hugepages.mount systemd-journal-flush.service systemd-udevd.service \
        systemd-logind.service getty.target remote-fs.target nss-lookup.target; do
        ln -sf /dev/null "$etc/system/$u"
    done
    printf '%s\n' '[Unit]' 'Requires=basic.target' 'After=basic.target dbus.socket' \
        'Wants=systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service dbus.socket' \
        >"$etc/system/moed-test.target"
    ln -s moed-test.target "$etc/system/default.target"
    printf '[Manager]\nDefaultTimeoutStartSec=15s\nDefaultTimeoutStopSec=15s\nLogColor=no\n' \
        >"$etc/system.conf.d/test.conf"
    printf '[Journal]\nStorage=volatile\nReadKMsg=no\nForwardToConsole=no\nRateLimitBurst=0\n' \
        >"$etc/journald.conf.d/test.conf"
    : >"$root/etc/fstab"
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
}

# ---- outside ----

clean_up() {
    set +e
    [ -z "$init" ] || kill -KILL "$init" 2>/dev/null # and all of its namespace
    [ -z "$pid" ] || { kill -KILL "$pid"; wait "$pid"; } 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        left=
        for g in "${cgroups[@]}"; do
            [ ! -d "$g" ] || { find "$g" -depth -type d -exec rmdir {} + 2>/dev/null; }
            [ ! -d "$g" ] || left=1
        done
        [ -n "$left" ] || break
        sleep 0.1
    done
    rm -rf "$work"
}

inside() {
    nsenter -t "$init" -a -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        SYSTEMD_COLORS=0 SYSTEMD_PAGER=cat "$@" </dev/null
}

wait_for_boot() {
    local end=$((SECONDS + boot_sec)) state=
    while [ $SECONDS -lt $end ]; do
        kill -0 "$pid" 2>/dev/null || {
            wait "$pid" || exit $?
            exit 1
        }
        [ -n "$init" ] || init=$(tr -d ' ' <"/proc/$pid/task/$pid/children" 2>/dev/null) || init=
        [ -z "$init" ] || state=$(inside systemctl is-system-running 2>/dev/null) || true
        case $state in running | degraded) return ;; esac
        sleep 0.1
    done
    echo "systemd did not come up: ${state:-it does not answer}"
    inside systemctl --no-pager list-jobs || true
    exit 1
}

[ "$(id -u)" = 0 ] || skip "needs root"
[ -x $systemd ] || skip "no $systemd"
for tool in unshare nsenter pivot_root tar; do
    command -v $tool >/dev/null || skip "no $tool"
done
unshare -m -p -u -i -n -C --fork true 2>/dev/null || skip "namespaces may not be made here"

lower=/
[ "$1" != -r ] || {
    lower=$(readlink -f "$2")
    shift 2
}
tree=$(readlink -f "$1")
shift
name=moed-test.$$ init='' pid='' controllers='' cgroups=()
work=$(mktemp -d "/tmp/$name.XXXX")
trap clean_up EXIT
trap 'exit 130' INT TERM
for c in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
    [ ! -d "/sys/fs/cgroup/$c" ] || [ -f /sys/fs/cgroup/cgroup.procs ] || controllers="$controllers $c"
done
unified=/sys/fs/cgroup
[ -z "$controllers" ] || unified=/sys/fs/cgroup/unified
for g in $unified ${controllers:+$(printf '/sys/fs/cgroup/%s ' $controllers)}; do
    mkdir "$g/$name" 2>/dev/null || skip "no control group can be made in $g"
    cgroups+=("$g/$name")
done
for f in cpus mems; do # a new set is empty
    [ ! -f "/sys/fs/cgroup/cpuset/$name/cpuset.$f" ] ||
        cat "/sys/fs/cgroup/cpuset/cpuset.$f" >"/sys/fs/cgroup/cpuset/$name/cpuset.$f"
done

export systemd work tree controllers lower
export -f enter devices control_groups units
(
    for g in "${cgroups[@]}"; do
        echo $BASHPID >"$g/cgroup.procs"
    done
    exec unshare -m -p -u -i -n -C --fork --kill-child=SIGKILL bash -c enter
) &
pid=$!
wait_for_boot
status=0
inside "$@" || status=$?
exit $status
