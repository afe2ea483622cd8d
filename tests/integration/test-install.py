#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`meson install` into a clean Debian system, which is then booted: test-install.py BUILD MESON BUS_NAME

With $MOE_TEST_PACKAGES, the Debian packages too: built twice, which gives the same, checked by lintian,
installed into that system, used, and purged. That takes five minutes more.

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
PACKAGES = "systemd,systemd-sysv,libpam-systemd,dbus,polkitd,libevent-core-2.1-7,libevent-extra-2.1-7,libmsgpackc2,libhwloc15,libjson-c5,libedit2,liburing2,libnettle8"
SUITE = "bookworm"
PACKAGES_SH = HERE.parents[1] / "contrib/packages.sh"


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


def boot(root, tree, script, *args):
    """Boot @root with @tree over it, and run a script beside this file there. Return: its status."""
    (tree / "opt").mkdir(exist_ok=True)
    for name in "installed.sh", "packaged.sh":
        shutil.copy(HERE / name, tree / "opt")
    shutil.copy(MODEL, tree / "opt/model.gguf")
    # A machine that is busy with tests is short of memory; a sanitizer looks for leaks by tracing.
    dropin = tree / "etc/systemd/system/moed.service.d"
    dropin.mkdir(parents=True)
    (dropin / "test.conf").write_text("[Service]\nEnvironment=MEMORY_PRESSURE_WATCH=/dev/null\n"
                                      "Environment=ASAN_OPTIONS=detect_leaks=0\n")
    tree.chmod(0o755)
    return subprocess.run([HERE / "boot.sh", "-r", root, tree, f"/opt/{script}", *args]).returncode


def make_packages(folder):
    """Build them below @folder, twice. Return: those of the first time, which lintian has seen."""
    for n in "1", "2":
        subprocess.run([PACKAGES_SH, folder / n], check=True, env={
            **os.environ, "TMPDIR": str(folder), "DEB_BUILD_OPTIONS": "nocheck noautodbgsym parallel=2",
            "DEB_CFLAGS_APPEND": "-O1 -g0"})  # the kernels take minutes otherwise
    made = sorted(f.name for f in (folder / "1").glob("*.deb"))
    assert len(made) == 7, made
    for name in made:
        assert (folder / "1" / name).read_bytes() == (folder / "2" / name).read_bytes(), f"{name} is another one the second time"
    changes, = (folder / "1").glob("*.changes")
    said = subprocess.run(["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0", changes], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    assert said.returncode == 0, said.stdout
    return [folder / "1" / name for name in made]


def main():
    build, meson, name = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="moed-install-") as d:
        d = pathlib.Path(d)
        d.chmod(0o755)
        root = pathlib.Path(os.environ.get("MOE_TEST_ROOT", d / "root"))
        if not (root / "etc/debian_version").exists():
            make_root(root)
        rig.install(build, meson, d / "tree")
        status = boot(root, d / "tree", "installed.sh", name, "/opt/model.gguf")
        if status or not os.environ.get("MOE_TEST_PACKAGES"):
            return status
        packages = make_packages(d)
        (d / "packaged/opt").mkdir(parents=True)
        for p in packages:
            shutil.copy(p, d / "packaged/opt")
        return boot(root, d / "packaged", "packaged.sh", name, "/opt/model.gguf", *(f"/opt/{p.name}" for p in packages))


if __name__ == "__main__":
    sys.exit(main())
