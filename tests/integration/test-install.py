#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`meson install` into a clean Debian system, which is then booted: test-install.py BUILD MESON BUS_NAME

The system is debootstrap's minbase with the libraries that are linked, a bus and polkit; $MOE_TEST_ROOT
names one that is there already. Skipped where it cannot be made or booted.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import rig

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parents[1] / "contrib/demo-model/tiny-linux-gemma4-Q8_0.gguf"
PACKAGES = "systemd,systemd-sysv,libpam-systemd,dbus,polkitd,libevent-core-2.1-7,libevent-extra-2.1-7,libmsgpackc2,libhwloc15,libjson-c5,libedit2,libnettle8"
SUITE = "bookworm"


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def make_root(folder):
    """A clean system in @folder."""
    if os.geteuid():
        skip("needs root")
    if not shutil.which("debootstrap"):
        skip("no debootstrap")
    if f"VERSION_CODENAME={SUITE}" not in pathlib.Path("/etc/os-release").read_text():
        skip(f"what is built here is not for Debian {SUITE}")
    done = subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, folder], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        skip("debootstrap: " + done.stdout.strip().rpartition("\n")[2])


def main():
    build, meson, name = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="moed-install-") as d:
        root, tree = pathlib.Path(os.environ.get("MOE_TEST_ROOT", f"{d}/root")), pathlib.Path(d) / "tree"
        if not (root / "etc/debian_version").exists():
            make_root(root)
        rig.install(build, meson, tree)
        (tree / "opt").mkdir()
        shutil.copy(HERE / "installed.sh", tree / "opt")
        shutil.copy(MODEL, tree / "opt/model.gguf")
        # A machine that is busy with tests is short of memory; a sanitizer looks for leaks by tracing.
        dropin = tree / "etc/systemd/system/moed.service.d"
        dropin.mkdir(parents=True)
        (dropin / "test.conf").write_text("[Service]\nEnvironment=MEMORY_PRESSURE_WATCH=/dev/null\n"
                                          "Environment=ASAN_OPTIONS=detect_leaks=0\n")
        for p in d, tree:
            os.chmod(p, 0o755)
        return subprocess.run([HERE / "boot.sh", "-r", root, tree, "/opt/installed.sh", name, "/opt/model.gguf"]).returncode


if __name__ == "__main__":
    sys.exit(main())
