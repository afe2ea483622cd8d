#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""moed under a real systemd: test-systemd.py BUILD MESON [unittest arguments]

Installs the build below a folder, boots systemd over it with boot.sh, and runs there the tests of
systemd_*.py beside this file, or those that `-p` names. Skipped where boot.sh cannot.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import rig

HERE = pathlib.Path(__file__).resolve().parent
INSIDE = "opt/moed-test"  # where the tests lie


def main():
    build, meson, *args = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="moed-tree-") as d:
        tree = pathlib.Path(d)
        rig.install(build, meson, tree)
        (tree / INSIDE).mkdir(parents=True)
        for f in [HERE / "rig.py", *HERE.glob("systemd_*.py"), *HERE.glob("slow_*.py")]:
            shutil.copy(f, tree / INSIDE)
        for shape in "tiny", "odd":
            shutil.copy(rig.make_model(shape), tree / INSIDE / f"{shape}.gguf")
        os.chmod(tree, 0o755)
        return subprocess.run([HERE / "boot.sh", tree, sys.executable, "-m", "unittest", "discover", "-v", "-s", "/" + INSIDE,
                               "-p", "systemd_*.py", *args]).returncode


if __name__ == "__main__":
    sys.exit(main())
