#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""moectl import and verify, with a real service: test-import.py MOED MOECTL"""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import rig
from rig import Moed, until

MOECTL = os.path.abspath(sys.argv.pop(2))


class Import(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory(prefix="moed-import-")
        self.addCleanup(tmp.cleanup)
        self.home, self.models = pathlib.Path(tmp.name) / "home", pathlib.Path(tmp.name) / "models"
        self.home.mkdir(0o700)
        self.models.mkdir()
        self.file = self.home / "mine-00001-of-00001.gguf"
        shutil.copy(rig.make_model("odd"), self.file)
        self.file.chmod(0o600)
        self.moed = Moed(model=None, config=f"model-dir = {self.models}\npreload = no\n")
        self.addCleanup(self.moed.__exit__, None)

    def moectl(self, *args, code=0, err=None):
        run = subprocess.run([MOECTL, "--socket", self.moed.path, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True,
                             text=True, timeout=60)
        self.assertEqual(run.returncode, code, run)
        if err is not None:
            self.assertRegex(run.stderr, err)
        return run.stdout

    def ids(self):
        return [m["id"] for m in json.loads(self.moectl("list", "--json"))["models"]]

    def test_import_and_verify(self):
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.assertEqual(self.moectl("import", self.file, "--digest", digest, "--license", "Apache-2.0", err=r"^.there is a model mine now.\n$"), "")
        self.assertEqual(self.ids(), ["mine"])
        self.assertEqual((self.models / "mine.gguf").read_bytes(), self.file.read_bytes())
        self.moectl("import", self.file, "other", "-q", "--mode", "copy", err="^$")
        self.assertEqual(self.ids(), ["mine", "other"])
        self.moectl("verify", "mine", err=r"^.mine is whole.\n$")
        self.assertEqual(json.loads(self.moectl("verify", "mine", "--json", "-q")), {"result": "done"})
        self.assertTrue(self.moectl("run", "--raw", "--max-tokens", "3", "--model", "mine", "x", code=5))
        path = self.models / "other.gguf"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
        self.moectl("verify", "other", code=4, err="^moectl: the model was not found whole: .")

    def test_what_is_refused(self):
        self.moectl("import", code=2, err="want a file")
        self.moectl("verify", code=2, err="want a model")
        self.moectl("import", self.home / "none", code=1, err="cannot open: No such file")
        self.moectl("verify", "none", code=4, err="none")
        self.moectl("import", self.file, "--mode", "magic", code=1, err="mode: none of reference")
        self.moectl("import", self.file, "a/b", code=1, err=".")
        self.moectl("import", self.file, "--digest", "00" * 32, code=4, err="not imported: .*digest")
        text = self.home / "text.gguf"
        text.write_text("no model\n" * 100)
        self.moectl("import", text, code=4, err="not imported: ")
        self.moectl("import", self.home, "home", code=1, err=".")
        self.assertEqual(self.ids(), [])
        self.moectl("import", self.file, "mine")
        self.moectl("import", self.file, "mine", code=1, err="mine")

    def test_interrupted(self):
        """Ctrl-C ends the job, too."""
        big = self.home / "big.gguf"
        with open(big, "wb") as f:
            f.write(self.file.read_bytes())
            f.truncate(3 << 30)
        p = subprocess.Popen([MOECTL, "--socket", self.moed.path, "import", big, "--mode", "copy"], stdin=subprocess.DEVNULL,
                             stderr=subprocess.PIPE)
        with self.moed.client() as c:
            until(lambda: c.call("job.list")["jobs"] or p.poll() is not None, "not begun")
            p.send_signal(signal.SIGINT)
            self.assertEqual(p.wait(20), 130)
            p.stderr.close()
            until(lambda: not c.call("job.list")["jobs"], "goes on", 20)
        self.assertEqual(self.ids(), [])

    def test_no_wait(self):
        job = json.loads(self.moectl("import", self.file, "--no-wait", "--json"))["job"]
        self.assertGreater(job, 0)
        until(lambda: self.ids() == ["mine"], "not imported", 20)


if __name__ == "__main__":
    rig.main(unittest)
