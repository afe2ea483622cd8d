#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The examples, built against what is installed and run before a real service:
test-examples.py MOED BUILD BUS_NAME MESON EXAMPLES MODEL COMPILER...

Each is built and run by the commands that its first comment gives, with COMPILER for cc, below a folder
in which `meson install` put library, headers and libmoe.pc.
"""
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

import bus_rig
import rig

MESON, EXAMPLES, MODEL, *COMPILER = sys.argv[4:]
del sys.argv[4:]
EXAMPLES = pathlib.Path(EXAMPLES).resolve()
GREP = "What does grep do?"
ANSWER = r"(?s)grep.*\n\[\d+ tokens, (stop|length)\]\n$"


def commands(name):
    """What the first comment says: how to build, if it is to be built, and how to run."""
    return re.findall(r"^(?: \*|//)   (\S.*)$", (EXAMPLES / name).read_text(), re.M)


def has(package):
    return subprocess.run(["pkg-config", "--exists", package]).returncode == 0


class Examples(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="moed-examples-"))
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        tree = cls.dir / "tree"
        rig.install(bus_rig.BUILD, MESON, tree)
        (tree / "etc/moed").mkdir(parents=True)
        (tree / "etc/moed/moed.conf").write_text("bus = system\n")
        bus = bus_rig.Bus()
        cls.addClassCleanup(bus.__exit__)
        cls.moed = rig.Moed("--config-root", tree, "--model", os.path.abspath(MODEL), model=None, env=bus.env())
        cls.addClassCleanup(cls.moed.__exit__, None, None, None)
        rig.until(lambda: bus.has_owner(bus_rig.NAME), "the service has no name")
        with cls.moed.client() as c:
            rig.until(lambda: c.call("server.status")["state"] == "ready", "not loaded")
        pc = next(tree.rglob("libmoe.pc"))
        pc.write_text(re.sub(r"^prefix=", f"prefix={tree}", pc.read_text(), flags=re.M))
        cls.env = {**os.environ, **bus.env(), "MOE_SOCKET": str(cls.moed.path), "PKG_CONFIG_PATH": str(pc.parent),
                   "LD_LIBRARY_PATH": str(pc.parents[1])}

    def shell(self, command):
        done = subprocess.run(["sh", "-c", command], cwd=self.dir, env=self.env, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, f"{command}\n{done.stdout}{done.stderr}")
        return done

    def example(self, name):
        """What it prints on stdout and on stderr."""
        shutil.copy(EXAMPLES / name, self.dir)
        *build, run = commands(name)
        for command in build:
            self.shell(re.sub(r"^cc ", shlex.join(COMPILER) + " -Wall -Wextra -Werror ", command))
        done = self.shell(run)
        return done.stdout, done.stderr

    def test_blocking(self):
        self.assertRegex(self.example("ask.c")[0], ANSWER)

    def test_glib(self):
        if not has("glib-2.0"):
            self.skipTest("no libglib2.0-dev")
        self.assertRegex(self.example("ask-glib.c")[0], ANSWER)

    def test_libevent(self):
        out, _ = self.example("ask-event.c")
        self.assertRegex(out, r"What does grep do\?\n    .*grep")
        self.assertRegex(out, r"What does tar do\?\n    .*tar")

    def test_vala(self):
        if not shutil.which("valac"):
            self.skipTest("no valac")
        out, err = self.example("summarize.vala")
        self.assertRegex(err, r"^language.summarize: available\n\d+ tokens, (stop|length)\n$")
        self.assertTrue(out.strip())

    def test_javascript(self):
        if not shutil.which("gjs"):
            self.skipTest("no gjs")
        out, err = self.example("chat.js")
        self.assertRegex(out, r"(?s)^> What does grep do\?\n.+\n> What does tar do\?\n.+\n$")
        known = [int(n) for n in re.findall(r"prompt's \d+, (\d+) were known", err)]
        self.assertEqual(len(known), 2, err)
        self.assertGreater(known[1], known[0])  # the session remembers what was evaluated

    def test_msgpack(self):
        done = self.shell(shlex.join([sys.executable, str(EXAMPLES / "client.py"), GREP]))
        self.assertIn("grep", done.stdout)
        self.assertRegex(done.stderr, r"\[\d+ tokens, (stop|length)\]")


if __name__ == "__main__":
    bus_rig.main(unittest)
