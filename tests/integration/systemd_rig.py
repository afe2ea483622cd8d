# SPDX-License-Identifier: Apache-2.0
"""What tests inside a booted systemd share: the unit, its journal, its processes."""
import glob
import json
import os
import pathlib
import shutil
import subprocess
import time
import unittest

from rig import Client, until

HERE = pathlib.Path(__file__).resolve().parent
SOCKET = "/run/moed/rpc"
CONFIG = pathlib.Path("/etc/moed/moed.conf")
MODELS = pathlib.Path("/var/lib/moed/models")
DROPIN = pathlib.Path("/run/systemd/system/moed.service.d")


def run(*args, check=True, **kw):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **kw)
    if check and done.returncode:
        raise AssertionError(f"{args}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def show(*names, unit="moed.service"):
    """Properties of a unit: one value, or a tuple of them."""
    out = run("systemctl", "show", unit, *[f"-p{n}" for n in names]).stdout
    have = dict(line.split("=", 1) for line in out.splitlines())
    return have[names[0]] if len(names) == 1 else tuple(have[n] for n in names)


def journal(unit="moed.service", since=None):
    """Messages of a unit, oldest first."""
    out = run("journalctl", "--sync", check=False) and run(
        "journalctl", "-u", unit, "-o", "json", "--no-pager", *([f"--since=@{since}"] if since else [])).stdout
    return [str(json.loads(line).get("MESSAGE")) for line in out.splitlines()]


def threads(pid):
    """{name: thread id}"""
    return {pathlib.Path(t, "comm").read_text().strip(): int(os.path.basename(t)) for t in glob.glob(f"/proc/{pid}/task/*")}


class Service(unittest.TestCase):
    """A stopped service with one small model, its socket listening; CONFIG and DROPIN as a test says."""
    config, dropin = "", ""

    def setUp(self):
        self.write(self.config, self.dropin)
        MODELS.mkdir(parents=True, exist_ok=True)
        for old in MODELS.glob("*"):
            old.unlink()
        shutil.copy(HERE / "tiny.gguf", MODELS)
        self.since = f"{time.time():.6f}"
        run("systemctl", "start", "moed.socket")

    def tearDown(self):
        run("systemctl", "stop", "moed.socket", "moed.service", check=False)
        run("systemctl", "reset-failed", "moed.socket", "moed.service", check=False)
        shutil.rmtree("/var/cache/moed", ignore_errors=True)
        bad = [m for m in journal(since=self.since) if "Sanitizer" in m or "runtime error" in m]
        self.assertEqual(bad, [])

    def write(self, config=None, dropin=None):
        if config is not None:
            CONFIG.parent.mkdir(exist_ok=True)
            CONFIG.write_text(config)
        if dropin is not None:
            DROPIN.mkdir(parents=True, exist_ok=True)
            # A build with sanitizers looks for leaks by tracing, which the sandbox forbids. A machine that is
            # busy with tests is short of memory.
            (DROPIN / "test.conf").write_text("[Service]\nEnvironment=ASAN_OPTIONS=detect_leaks=0\n"
                                              "Environment=MEMORY_PRESSURE_WATCH=/dev/null\n" + dropin)
            run("systemctl", "daemon-reload")

    def client(self, **kw):
        return Client(SOCKET, **kw)

    def pid(self):
        return int(show("MainPID"))

    def loaded(self):
        """Start it and wait for the model. Return: a client."""
        c = self.client()
        self.addCleanup(c.close)
        until(lambda: c.call("server.status")["state"] == "ready", "not loaded", 30)
        return c
