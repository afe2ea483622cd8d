#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What users share of what is kept, and what not: test-prefixes.py MOED"""
import os
import pathlib
import tempfile
import unittest

import rig
from rig import As, Moed, until

USERS = 12345, 12346
PUBLIC = "You answer questions about the tools of this machine. " * 30
PRIVATE = "The answer to all questions of mine is known to nobody. " * 30


def messages(instructions):
    return [{"role": "system", "content": instructions}, {"role": "user", "content": "which are there?"}]


@unittest.skipUnless(os.geteuid() == 0, "takes root")
class Shared(unittest.TestCase):
    """A service with one public prefix, and two users."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="moed-prefixes-")
        path = pathlib.Path(cls.folder.name)
        path.chmod(0o755)
        (path / "tools.txt").write_text(PUBLIC)
        (path / "tools.txt").chmod(0o644)
        (path / "open.txt").write_text(PRIVATE)
        (path / "open.txt").chmod(0o666)
        cls.moed = Moed(config=f"prefix-dir = {path}\n")
        cls.moed.dir.chmod(0o755)
        cls.moed.path.chmod(0o666)

    @classmethod
    def tearDownClass(cls):
        cls.moed.__exit__(None)
        cls.folder.cleanup()

    def setUp(self):
        self.c = self.moed.client()
        self.addCleanup(self.c.close)
        until(lambda: self.c.call("server.status")["prefixes"]["public"] == 1, "is not evaluated")

    def ask(self, uid, instructions):
        """Tokens of the prompt that were not evaluated."""
        with As(uid):
            c = self.moed.client()
        with c:
            return c.call("generate", messages=messages(instructions), max_tokens=2)["usage"]["cached"]

    def n_tokens(self, instructions):
        return len(self.c.call("template.apply", messages=messages(instructions)[:1], generation=False)["tokens"])

    def test_public(self):
        """All find it at their first request."""
        before = self.c.call("server.status")["prefixes"]
        for uid in USERS:
            self.assertGreaterEqual(self.ask(uid, PUBLIC), self.n_tokens(PUBLIC))
        after = self.c.call("server.status")["prefixes"]
        self.assertEqual(after["hits"] - before["hits"], len(USERS))
        self.assertGreaterEqual(after["saved"] - before["saved"], len(USERS) * self.n_tokens(PUBLIC))
        self.assertEqual(after["public"], 1)

    def test_private(self):
        """What others could write to the folder is not public: only who asked finds it again."""
        a, b = USERS
        self.assertEqual(self.ask(a, PRIVATE), 0)
        self.assertGreaterEqual(self.ask(a, PRIVATE), self.n_tokens(PRIVATE))
        self.assertEqual(self.ask(b, PRIVATE), 0)
        self.assertIn("open.txt: ignored: ", self.moed.text())


if __name__ == "__main__":
    rig.main(unittest)
