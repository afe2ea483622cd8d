# SPDX-License-Identifier: Apache-2.0
"""The service manager ends a service whose engine hangs, and starts it anew."""
import os
import subprocess
import sys
import time

from rig import Hangup, LONG, until
from systemd_rig import Service, journal, show, threads

# Stops one thread of another process, as a debugger would, until that process is gone.
HOLD = r"""
import ctypes, os, sys
SEIZE, INTERRUPT, ALL = 0x4206, 0x4207, 0x40000000
tid, libc = int(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
for request in SEIZE, INTERRUPT:
    if libc.ptrace(request, tid, None, None):
        sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(tid, ALL)
print("held", flush=True)
os.waitpid(tid, ALL)
"""


class Watchdog(Service):
    dropin = "WatchdogSec=2\nTimeoutAbortSec=5\nRestartSec=100ms\nLimitCORE=0\n"

    def hold(self, tid):
        p = subprocess.Popen([sys.executable, "-c", HOLD, str(tid)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(p.communicate)
        self.addCleanup(p.kill)
        if p.stdout.readline() != "held\n":
            self.skipTest("threads may not be traced here: " + p.stderr.read())

    def test_engine_that_hangs(self):
        c = self.loaded()
        pid = self.pid()
        stream = self.client()
        stream.send("generate", **LONG)
        stream.wait_note("generate.delta")
        self.hold(threads(pid)["moed-engine"])
        stream.send("generate", **LONG)  # the first one may be over by now
        start = time.monotonic()
        with self.assertRaises((Hangup, ConnectionError)):
            while True:
                stream.frame()
        self.assertGreater(time.monotonic() - start, 1)
        until(lambda: self.pid() not in (0, pid), "not started again", 20)
        self.assertTrue([m for m in journal(since=self.since) if "Watchdog timeout" in m])
        self.assertEqual(self.loaded().call("generate", prompt="x", max_tokens=1)["model"], "tiny")
        self.assertEqual(show("NRestarts"), "1")
        self.assertRaises((Hangup, ConnectionError), c.call, "server.status")
        stream.close()

    def test_engine_that_is_idle(self):
        """Nothing to do is no reason to end it, however long; nor is work that goes on."""
        c = self.loaded()
        pid = self.pid()
        self.hold(threads(pid)["moed-engine"])
        time.sleep(5)
        self.assertEqual((self.pid(), c.call("server.status")["state"]), (pid, "ready"))

    def test_work_goes_on(self):
        self.loaded()
        pid = self.pid()
        with self.client() as stream:
            end = time.monotonic() + 5
            while time.monotonic() < end:
                stream.call("generate", **LONG)
        self.assertEqual(self.pid(), pid)
