# SPDX-License-Identifier: Apache-2.0
"""What the service does when memory is short, told by a FIFO; and with how many threads it computes."""
import os
import pathlib

from rig import RpcError, until
from systemd_rig import Service, journal, run, show

FIFO = "/run/moed-test-pressure"


class Pressure(Service):
    config = f"weights-store = fdstore\nlock-weights = yes\npressure-watch = {FIFO}\npressure-calm = 1\n"

    def setUp(self):
        os.mkfifo(FIFO)
        os.chmod(FIFO, 0o666)
        self.addCleanup(os.unlink, FIFO)
        self.signs = os.open(FIFO, os.O_RDWR)
        self.addCleanup(os.close, self.signs)
        super().setUp()

    def sign(self, c, level):
        os.write(self.signs, b"!")
        until(lambda: c.call("server.status")["pressure"]["level"] == level, "no step is taken")

    def locked(self):
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return int(status.split("VmLck:")[1].split()[0]) > 0

    def may_lock(self, n):
        """Does the limit of the service allow @n bytes? A container may have no infinity to give."""
        limits = pathlib.Path(f"/proc/{self.pid()}/limits").read_text()
        soft = limits.split("Max locked memory")[1].split()[0]
        return soft == "unlimited" or int(soft) >= n

    def test_ladder(self):
        c = self.loaded()
        packed = not [m for m in journal(since=self.since) if "weights as in the file" in m]
        locks = packed and self.may_lock(2 * c.call("server.status")["memory"]["weights"])
        if packed:
            until(lambda: show("NFileDescriptorStore") == "1", "nothing is kept")
        if locks:
            until(lambda: c.call("server.status")["memory"]["locked"], "not locked")
            self.assertTrue(self.locked())
        self.sign(c, 1)
        self.sign(c, 2)
        self.assertEqual(self.locked(), locks)
        self.sign(c, 3)
        until(lambda: not self.locked(), "still locked")
        self.assertEqual(c.call("server.status")["state"], "ready")
        self.sign(c, 4)
        until(lambda: c.call("server.status")["state"] == "empty", "still there")
        until(lambda: show("NFileDescriptorStore") == "0", "still kept")
        self.assertEqual(show("StatusText"), "No model is loaded")
        with self.assertRaisesRegex(RpcError, "InsufficientMemory"):
            c.call("generate", prompt="x", max_tokens=1)
        until(lambda: c.call("server.status")["pressure"]["level"] == 0, "no step is taken back", 20)
        self.assertEqual(c.call("generate", prompt="x", max_tokens=1)["model"], "tiny")
        if locks:
            until(lambda: c.call("server.status")["memory"]["locked"], "not locked again")


class Machine(Service):
    dropin = "UnsetEnvironment=MEMORY_PRESSURE_WATCH\n"

    def test_kernel_is_watched(self):
        self.loaded()
        if os.path.exists("/proc/pressure/memory"):
            self.assertEqual([m for m in journal(since=self.since) if "is not watched" in m], [])

    def test_threads_follow_the_quota(self):
        c = self.loaded()
        all_threads = c.call("server.status")["threads"]
        if all_threads < 2:
            self.skipTest("one processor")
        before = c.call("generate", prompt="abc", max_tokens=8, temperature=0, logprobs=2)
        self.addCleanup(run, "systemctl", "revert", "moed.service", check=False)
        run("systemctl", "set-property", "--runtime", "moed.service", "CPUQuota=100%")
        run("systemctl", "reload", "moed.service")
        until(lambda: c.call("server.status")["threads"] == 1, "as many threads as before")
        fewer = c.call("generate", prompt="abc", max_tokens=8, temperature=0, logprobs=2)
        self.assertEqual((fewer["text"], fewer["logprobs"]), (before["text"], before["logprobs"]))
        run("systemctl", "set-property", "--runtime", "moed.service", "CPUQuota=")
        run("systemctl", "reload", "moed.service")
        until(lambda: c.call("server.status")["threads"] == all_threads, "no more threads again")
