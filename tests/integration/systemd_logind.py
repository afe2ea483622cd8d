# SPDX-License-Identifier: Apache-2.0
"""The service beside the real logind, which asks the real polkit: sleep is delayed, and who locks or leaves is
seen. That the machine sleeps is not tried: the power test does that with a logind that only says so."""
import os
import pathlib
import subprocess
import unittest

from rig import until
from systemd_rig import Service, journal, run

try:
    import dbus
except ImportError:
    dbus = None

UNIT, MASK = "systemd-logind.service", "/etc/systemd/system/systemd-logind.service"
LOGIN1, PATH = "org.freedesktop.login1", "/org/freedesktop/login1"
POLKIT = "/usr/lib/polkit-1/polkitd"
UID = 1


@unittest.skipUnless(dbus, "python3-dbus is missing")
@unittest.skipUnless(os.path.exists(POLKIT), "polkitd is missing: logind lets root alone delay sleep")
class Logind(Service):
    @classmethod
    def setUpClass(cls):
        os.unlink(MASK)  # else nothing of the machine's runs here
        conf = pathlib.Path("/etc/systemd/logind.conf.d/test.conf")
        conf.parent.mkdir(exist_ok=True)
        conf.write_text("[Login]\nUserStopDelaySec=0\n")
        run("systemctl", "daemon-reload")

    @classmethod
    def tearDownClass(cls):
        run("systemctl", "stop", UNIT)
        os.symlink("/dev/null", MASK)
        run("systemctl", "daemon-reload")

    def setUp(self):
        super().setUp()
        run("systemctl", "start", UNIT)
        self.loaded()

    def delays(self):
        return "moed" in run("systemd-inhibit", "--list", "--no-pager", "--no-legend").stdout

    def manager(self):
        return dbus.Interface(dbus.SystemBus().get_object(LOGIN1, PATH, introspect=False), f"{LOGIN1}.Manager")

    def said(self, text):
        until(lambda: [m for m in journal(since=self.since) if text in m], f"'{text}' was not said", 20)

    def test_sleep_is_delayed(self):
        until(self.delays, "no inhibitor", 20)
        run("systemctl", "restart", UNIT)
        until(self.delays, "no inhibitor after logind came back", 20)
        run("systemctl", "stop", "moed.service")
        self.assertFalse(self.delays())

    def test_lock_and_logout(self):
        until(self.delays, "no inhibitor", 20)
        leader = subprocess.Popen(["sleep", "60"])  # goes into the session's scope
        made = self.manager().CreateSession(dbus.UInt32(UID), dbus.UInt32(leader.pid), "moed-test", "unspecified", "user", "",
                                            "", dbus.UInt32(0), "", "", False, "", "", dbus.Array([], signature="(sv)"))
        alive = made[3].take()
        try:
            self.manager().LockSession(made[0])
            self.said(f"user {UID} locked the screen: forgotten")
        finally:
            os.close(alive)
            leader.kill()
            leader.wait()
        self.said(f"user {UID} left: forgotten")
