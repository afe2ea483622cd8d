# SPDX-License-Identifier: Apache-2.0
"""moectl doctor beside a real systemd: what it says of the service's unit, and the lines that mend it."""
import json
import pathlib
import shutil
import subprocess

from rig import until
from systemd_rig import SOCKET, Service, run, show

MOECTL = shutil.which("moectl", path="/usr/local/bin:/usr/bin")
WANTED = pathlib.Path("/etc/systemd/system/moed.service.d")


class Doctor(Service):
    def tearDown(self):
        shutil.rmtree(WANTED, ignore_errors=True)
        super().tearDown()

    def doctor(self, check):
        """What it says of @check."""
        said = subprocess.run([MOECTL, "doctor", "--json", "--socket", SOCKET], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=60)
        self.assertEqual(said.stderr, "")
        return [c for c in json.loads(said.stdout)["checks"] if c["check"] == check][0]

    def mend(self, said):
        run("sh", "-c", said["mend"])

    def test_socket(self):
        run("systemctl", "stop", "moed.socket")
        said = self.doctor("socket")
        self.assertEqual((said["verdict"], said["mend"]), ("wrong", "systemctl enable --now moed.socket"))
        self.mend(said)
        self.assertEqual(self.doctor("socket")["verdict"], "ok")
        self.assertEqual(show("ActiveState", unit="moed.socket"), "active")

    def test_memlock(self):
        """A drop-in below /run is beaten by the one that the line makes below /etc."""
        self.write(dropin="LimitMEMLOCK=65536\n")
        self.loaded()
        said = self.doctor("memlock")
        self.assertEqual(said["verdict"], "warning")
        self.assertIn("64.0 KiB may be locked", said["text"])
        self.mend(said)
        self.assertIn("LimitMEMLOCK=infinity", (WANTED / "memlock.conf").read_text())
        self.assertEqual(run("systemctl", "is-active", "moed.service").stdout, "active\n")

    def test_no_cache(self):
        self.write(dropin="CacheDirectory=\n")
        self.loaded()
        said = self.doctor("cache")
        self.assertEqual(said["verdict"], "warning")
        self.write(dropin="")
        self.mend(said)
        until(lambda: self.doctor("cache")["verdict"] == "ok", "no cache", 20)
        self.assertRegex(self.doctor("cache")["text"], "^/var/cache/moed, ")

    def test_cpuset(self):
        """The property is set, whatever controllers this machine has."""
        self.write(dropin="CPUAffinity=0\n")
        c = self.loaded()
        online = pathlib.Path("/sys/devices/system/cpu/online").read_text().strip()
        if online == "0":
            self.skipTest("one CPU")
        said = self.doctor("cpuset")
        self.assertEqual((said["verdict"], said["mend"]), ("warning", f"systemctl set-property moed.service AllowedCPUs={online}"))
        self.mend(said)
        self.assertEqual(c.call("server.status")["state"], "ready")
        run("systemctl", "revert", "moed.service")
        self.write(dropin="")  # that went, too

    def test_service_that_fails(self):
        self.write(config="nonsense = 1\n")
        said = self.doctor("service")
        self.assertEqual((said["verdict"], said["mend"]), ("wrong", "journalctl -e -u moed.service"))

    def test_bus(self):
        """The bus of a booted machine finds what was installed."""
        said = self.doctor("bus")
        self.assertIn(said["verdict"], ("ok", "unknown"), said)
