# SPDX-License-Identifier: Apache-2.0
"""The clock of the day is set while moed works: test-clock.py MOED SHIM

The shim moves what the process is told by CLOCK_REALTIME, time() and gettimeofday().
"""
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import rig

SHIM = os.path.abspath(sys.argv.pop(2))
YEARS = 10 * 365 * 24 * 3600


class Clock(unittest.TestCase):
    def setUp(self):
        file = tempfile.NamedTemporaryFile(prefix="moed-clock-")
        self.addCleanup(file.close)
        self.file = pathlib.Path(file.name)
        folder, name = os.path.split(SHIM)  # LD_PRELOAD cannot say a path with a space
        self.env = {"LD_PRELOAD": name, "LD_LIBRARY_PATH": folder, "JUMP_CLOCK": file.name}
        self.set(0)

    def set(self, seconds):
        with self.file.open("r+b") as f:  # in place: it is mapped
            f.write(struct.pack("=q", seconds))

    def test_the_shim_works(self):
        self.set(YEARS)
        told = subprocess.run(["date", "+%s"], env={**os.environ, **self.env}, capture_output=True, text=True, check=True)
        self.assertGreater(int(told.stdout), time.time() + YEARS / 2)

    def test_nothing_ends_when_it_jumps(self):
        with rig.Moed(config="session-idle = 3600\nstall-timeout = 30\n", env=self.env) as moed, moed.client() as c:
            session = c.call("session.open")["session"]
            for seconds in YEARS, -YEARS, 0, 3:
                stream = c.send("generate", deadline_ms=600000, **rig.LONG)
                c.wait_note("generate.delta")
                self.set(seconds)
                c.notes.clear()
                for _ in range(3):  # it goes on, and so do others
                    c.wait_note("generate.delta")
                c.notify("generate.cancel", id=stream)
                with self.assertRaisesRegex(rig.RpcError, "Cancelled"):
                    c.wait(stream)
                with moed.client() as other:
                    self.assertIn("text", other.call("generate", prompt="x", max_tokens=2))
                    status = other.call("server.status")
                self.assertLess(status["uptime_us"], 600e6)
                self.assertIn(session, [s["session"] for s in c.call("session.list")["sessions"]])

    def test_a_deadline_is_kept(self):
        with rig.Moed(env=self.env) as moed, moed.client() as c:
            began = time.monotonic()
            stream = c.send("generate", deadline_ms=200, **rig.LONG)
            c.wait_note("generate.delta")
            self.set(-YEARS)
            result = c.wait(stream)
            self.assertEqual(result["stop_reason"], "deadline")
            self.assertGreaterEqual(time.monotonic() - began, 0.19)

    def test_it_stops(self):
        moed = rig.Moed(env=self.env)
        with moed, moed.client() as c:
            c.send("generate", **rig.LONG)
            c.wait_note("generate.delta")
            self.set(-YEARS)
            began = time.monotonic()
            self.assertEqual(moed.stop(), 0)
            self.assertLess(time.monotonic() - began, 5)


if __name__ == "__main__":
    rig.main(unittest)
