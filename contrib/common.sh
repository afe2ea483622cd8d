# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: go to the root of the tree, install what is missing.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

# What building takes, and what the tests take beyond it. Debian 12 names.
packages_build="gcc libc6-dev meson ninja-build pkg-config libevent-dev libmsgpack-dev libsystemd-dev
libhwloc-dev libjson-c-dev libedit-dev liburing-dev nettle-dev systemd"
packages_check="clang clang-format libclang-rt-14-dev llvm g++ libcmocka-dev python3 python3-msgpack
python3-dbus python3-dbusmock python3-gi dbus-daemon dbus-user-session polkitd libxml2-utils debootstrap
binutils procps gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user valgrind zsh fish abigail-tools
libglib2.0-dev valac gjs mandoc curl git ccache"
packages_debian="debhelper dpkg-dev lintian"

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# install_packages NAME...: apt-get those that are not installed; nothing is asked.
install_packages() {
    missing=
    for p in "$@"; do
        case $(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null) in
        ii*) ;;
        *) missing="$missing $p" ;;
        esac
    done
    [ -n "$missing" ] || return 0

    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
        as_root=sudo
    else
        say "these packages are missing, and neither root nor sudo without a password is at hand:"
        say "  apt-get install$missing"
        exit 1
    fi
    say "installing$missing"
    # shellcheck disable=SC2086 # words are wanted
    { $as_root apt-get update -qq &&
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends $missing; } </dev/null >/dev/null
}

# configure DIR OPTION...: meson setup, once; a directory that is no build of this tree is made anew.
configure() {
    dir=$1
    shift
    grep -qsF "\"source\": \"$root\"" "$dir/meson-info/meson-info.json" && [ -f "$dir/build.ninja" ] &&
        return 0
    rm -rf "$dir"
    mkdir "$dir"
    meson setup "$dir" "$@" >"$dir/setup.log" 2>&1 || {
        cat "$dir/setup.log" >&2
        exit 1
    }
}
