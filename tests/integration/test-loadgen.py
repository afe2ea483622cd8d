#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ten seconds of many clients that behave badly leave nothing behind: test-loadgen.py MOED LOADGEN"""
import os
import subprocess
import sys
import unittest

import rig
from rig import Moed

LOADGEN = os.path.abspath(sys.argv.pop(2))
CONFIG = "user-connections = 256\nmax-connections = 256\nqueue = 48\nsequences = 8\nuser-jobs = 40\n"


class Load(unittest.TestCase):
    def run_load(self, moed, *args):
        return subprocess.run([sys.executable, LOADGEN, "--socket", moed.path, *args], capture_output=True, text=True, timeout=240)

    def test_nothing_is_left(self):
        with Moed(config=CONFIG) as moed:
            args = ["--seconds", "10", "--connections", "40"]
            if os.geteuid() == 0:
                moed.dir.chmod(0o755)
                moed.path.chmod(0o666)
                args += ["--uids", "0,12345,12346"]
            said = self.run_load(moed, *args)
            print(said.stdout, said.stderr)
            self.assertEqual(said.returncode, 0)
            self.assertNotRegex(moed.text(), "<[0-4]>")

    def test_what_is_left_is_found(self):
        """Somebody else's request that goes on is taken for a leak."""
        with Moed(config=CONFIG) as moed, moed.client() as c:
            load = subprocess.Popen([sys.executable, LOADGEN, "--socket", moed.path, "--seconds", "1", "--connections", "3", "--settle", "2"],
                                    stdout=subprocess.PIPE, text=True)
            rig.until(lambda: c.call("server.status")["connections"] > 2, "no load")
            c.send("generate", logprobs=20, **rig.LONG)
            out = load.communicate(timeout=120)[0]
            self.assertEqual(load.returncode, 1)
            self.assertRegex(out, "PROBLEM: jobs: 0 before, 1 after")
            self.assertRegex(out, "PROBLEM: moed_memory_byteskv_used: ")


if __name__ == "__main__":
    rig.main(unittest)
