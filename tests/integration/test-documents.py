#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What documents tell to type, typed: test-documents.py MOED BUILD BUS_NAME ROOT MODEL

Each block of commands in README.md and CONTRIBUTING.md, and in the EXAMPLES of manual pages, is run by
a shell, in order and from a folder that looks like the checkout after its build, beside a service with
MODEL; the first command that fails fails the test. A block that cannot be run says why, where readers
do not see it:

    <!-- not run: why -->      before a block of Markdown
    .\\" not run: why           before .nf in a manual page
"""
import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

import bus_rig
import rig

ROOT, MODEL = (pathlib.Path(a).resolve() for a in sys.argv[4:6])
PAGES = ["client/moectl.1", "dbus/Moed1.5.in", "engine/tools/moe-bench.1", "engine/tools/moe-eval.1"]
CUT = 5  # what moectl ends with when the answer of a small model has no end


def own_network():
    """A network of our own, where the ports that documents name are free."""
    command = ["unshare", "--net"] + (["--map-root-user"] if os.geteuid() else [])
    if "MOED_OWN_NETWORK" not in os.environ:
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            os.environ["MOED_OWN_NETWORK"] = "1"
            os.execvp(command[0], [*command, sys.executable, *sys.argv])
    elif os.environ["MOED_OWN_NETWORK"]:
        with socket.socket() as s:  # SIOCSIFFLAGS, IFF_UP
            fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))


def markdown(text):
    """(first line, commands, why not run) of each block, indented or between fences of no language."""
    lines, why, i = text.splitlines(), None, 0
    while i < len(lines):
        line, first = lines[i], i
        if m := re.match(r"<!-- not run: (.+) -->$", line):
            why = m[1]
        elif line.startswith("```"):
            i += 1
            while not lines[i].startswith("```"):
                i += 1
            if line in ("```", "```sh"):
                yield first + 2, "\n".join(lines[first + 1:i]), why
            why = None
        elif line.startswith("    ") and not lines[i - 1].strip():
            while i + 1 < len(lines) and (lines[i + 1].startswith("    ") or not lines[i + 1].strip()):
                i += 1
            yield first + 1, "\n".join(x[4:] for x in lines[first:i + 1]).strip(), why
            why = None
        elif line.strip():
            why = None
        i += 1


def manual(text):
    """The same of a manual page's examples."""
    section, why, block = "", None, None
    for n, line in enumerate(text.splitlines(), 1):
        if m := re.match(r'\.SH "?(.*?)"?$', line):
            section = m[1]
        elif not section.startswith("EXAMPLE"):
            continue
        elif m := re.match(r'\.\\" not run: (.+)$', line):
            why = m[1]
        elif line in (".nf", ".EX"):
            block, first = [], n + 1
        elif line in (".fi", ".EE"):
            yield first, "\n".join(block), why
            block = why = None
        elif block is not None:
            block.append(re.sub(r"\\(-|\(aq|e|&)", lambda m: {"-": "-", "(aq": "'", "e": "\\", "&": ""}[m[1]], line))


class Documents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="moed-documents-"))
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        cls.here, build = cls.dir / "moed", bus_rig.BUILD
        cls.here.mkdir()
        for f in ROOT.iterdir():
            if not f.name.startswith(("build", ".git")):
                (cls.here / f.name).symlink_to(f)
        for at in "build", "old":
            (cls.here / at / "client").mkdir(parents=True)
            (cls.here / at / "daemon").symlink_to(build / "daemon")
            (cls.here / at / "engine").symlink_to(build / "engine")
            (cls.here / at / "client/openai").symlink_to(build / "client/openai")
            moectl = cls.here / at / "client/moectl"
            moectl.write_text(f'#!/bin/sh\n"{build}/client/moectl" "$@" || [ $? = {CUT} ]\n')
            moectl.chmod(0o755)
        (cls.here / "bin").mkdir()
        for program in "build/client/moectl", "build/engine/tools/moe-bench", "build/engine/tools/moe-eval":
            (cls.here / "bin" / pathlib.Path(program).name).symlink_to(cls.here / program)
        for name in "MODEL.gguf", "model.gguf":
            (cls.here / name).symlink_to(MODEL)
        for name in "report.txt", "letter.txt", "mail.txt":
            (cls.here / name).write_text("The committee met for three hours and agreed on nothing.\n")
        etc = cls.dir / "etc/moed"
        shutil.copytree(ROOT / "daemon/use-cases", etc / "use-cases.d")
        (etc / "moed.conf").write_text("bus = system\n")
        bus = bus_rig.Bus()
        cls.addClassCleanup(bus.__exit__)
        moed = rig.Moed("--config-root", cls.dir, "--model", MODEL, model=None, env=bus.env())
        cls.addClassCleanup(moed.__exit__, None, None, None)
        rig.until(lambda: bus.has_owner(bus_rig.NAME), "the service has no name")
        cls.env = {**os.environ, **bus.env(), "MOE_SOCKET": str(moed.path), "HOME": str(cls.dir),
                   "PATH": f"{cls.here}/bin:{os.environ['PATH']}"}

    def run_blocks(self, name, blocks):
        """Run those of document @name in one shell. Return: how many there are."""
        blocks = list(blocks)
        script = "set -e\n"
        for line, text, why in blocks:
            if not why:
                text = text.replace("/tmp/", f"{self.dir}/")
                script += f"echo '== {name}:{line}' >&2\n{text}\n"
        with open(self.dir / "log", "w+") as log:
            shell = subprocess.Popen(["sh", "-c", script], cwd=self.here, env=self.env, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=log, start_new_session=True)
            try:
                status = shell.wait(240)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGTERM)  # what it left in the background
            log.seek(0)
            self.assertEqual(status, 0, log.read())
        return len(blocks)

    def test_packages(self):
        """What README says to install is what the scripts install."""
        named = re.search(r"apt install (gcc(?:.*\\\n)*.*)", (ROOT / "README.md").read_text())[1].replace("\\", "").split()
        listed = re.search(r'packages_build="([^"]*)"', (ROOT / "contrib/common.sh").read_text())[1].split()
        self.assertLessEqual(set(named), set(listed))
        self.assertLessEqual({p for p in listed if p.endswith("-dev")}, {*named, "libc6-dev"})

    def test_pages_are_all_here(self):
        pages = {f"{f.relative_to(ROOT)}" for d in ("client", "daemon", "dbus", "engine") for f in (ROOT / d).rglob("*.[1-8]*")
                 if re.search(r"^\.SH EXAMPLE", f.read_text(), re.M)}
        self.assertEqual(pages, set(PAGES))


for document in "README.md", "CONTRIBUTING.md", *PAGES:
    def test(self, document=document):
        text = (ROOT / document).read_text()
        if document.endswith(".md"):
            self.assertGreater(self.run_blocks(document, markdown(text)), 3)
        else:
            text = text.replace("@NAME@", bus_rig.NAME).replace("@PATH@", bus_rig.PATH)
            self.assertGreater(self.run_blocks(document, manual(text)), 0)
    setattr(Documents, "test_" + re.sub(r"\W", "_", document), test)


if __name__ == "__main__":
    own_network()
    del sys.argv[4:6]
    bus_rig.main(unittest)
