# SPDX-License-Identifier: Apache-2.0
"""Sleep, users who leave, battery and power profile: the real service beside mocked logind, UPower and
power-profiles-daemon, on a bus of its own."""
import os
import subprocess
import sys
import tempfile
import time
import unittest

import bus_rig
import dbus.lowlevel
import rig
from bus_rig import Bus, dbus
from rig import LONG

try:
    import dbusmock  # noqa: F401
except ImportError:
    print("python3-dbusmock is missing")
    sys.exit(77)

LOGIN1, LOGIN1_PATH = "org.freedesktop.login1", "/org/freedesktop/login1"
UPOWER, UPOWER_PATH = "org.freedesktop.UPower", "/org/freedesktop/UPower"
PROFILES, PROFILES_PATH = "net.hadess.PowerProfiles", "/net/hadess/PowerProfiles"
MOCK = "org.freedesktop.DBus.Mock"
NAMES = {LOGIN1: "logind", UPOWER: "upower", PROFILES: "power_profiles_daemon"}


class Rig:
    """A bus, mocked services on it, and moed."""

    def __init__(self, test, *names, config="threads = 2\n"):
        self.bus = Bus(own=NAMES)
        test.addCleanup(self.bus.__exit__)
        self.mocks = {name: self.start(name) for name in names}
        self.moed = self.bus.moed(config)
        test.addCleanup(self.moed.__exit__, None)
        self.conn = self.bus.connect()
        test.addCleanup(self.conn.close)
        self.client = self.moed.client()
        test.addCleanup(self.client.close)

    def start(self, name):
        proc = self.bus.spawn([sys.executable, "-m", "dbusmock", "--system", "--template", NAMES[name]],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rig.until(lambda: self.bus.has_owner(name), f"no {name}")
        return proc

    def stop(self, name):
        self.mocks[name].terminate()
        self.mocks[name].wait(10)
        self.bus.procs.remove(self.mocks[name])

    def mock(self, name, path):
        return dbus.Interface(self.conn.get_object(name, path, introspect=False), MOCK)

    def set(self, name, path, **props):
        self.mock(name, path).UpdateProperties(name, dbus.Dictionary(props, signature="sv"))

    def sleep(self, on):
        self.mock(LOGIN1, LOGIN1_PATH).EmitSignal(f"{LOGIN1}.Manager", "PrepareForSleep", "b", [on])

    def inhibitors(self):
        manager = dbus.Interface(self.conn.get_object(LOGIN1, LOGIN1_PATH, introspect=False), f"{LOGIN1}.Manager")
        return [tuple(str(s) for s in i[:4]) for i in manager.ListInhibitors()]

    def delays(self):
        """Does the service hold its one inhibitor?"""
        all = self.inhibitors()
        assert len(all) <= 1 and all in ([], [("sleep", "moed", "Answers pause, sessions are saved", "delay")]), all
        return bool(all)

    def power(self):
        return self.client.call("server.status")["power"]

    def status(self):
        """What moectl says."""
        moectl = bus_rig.BUILD / "client/moectl"
        return subprocess.run([moectl, "--socket", self.moed.path, "status"], check=True, capture_output=True, text=True).stdout

    def until_power(self, **want):
        rig.until(lambda: {k: self.power()[k] for k in want} == want, f"not {want}", 20)

    def connections(self):
        """Unique names of the service."""
        names = [n for n in self.conn.list_names() if n.startswith(":")]
        driver = dbus.Interface(self.conn.get_object("org.freedesktop.DBus", "/org/freedesktop/DBus", introspect=False),
                                "org.freedesktop.DBus")
        return [n for n in names if driver.GetConnectionUnixProcessID(n) == self.moed.proc.pid]


class Sleep(unittest.TestCase):
    def test_streams_pause_and_go_on(self):
        r = Rig(self, LOGIN1)
        rig.until(r.delays, "no inhibitor")
        c = r.moed.client()
        self.addCleanup(c.close)
        ask = {"max_tokens": 150, "temperature": 0, **LONG}
        want = c.call("generate", **ask)["usage"]["generated"]
        said = c.text()
        job = c.send("generate", **ask)
        begin = c.wait_note("generate.delta")["text"]
        r.sleep(True)
        rig.until(lambda: not r.delays(), "sleep waits", 10)
        self.assertEqual(r.power()["level"], 2)
        self.assertEqual(r.bus.get("PowerLevel"), 2)
        self.assertRegex(r.status(), "Power: the machine is about to sleep, all requests wait\n")
        was = r.client.call("server.status")["tokens"]["generated"]
        time.sleep(0.3)
        self.assertEqual(r.client.call("server.status")["tokens"]["generated"], was)
        late = r.client.send("generate", prompt="x", max_tokens=2)
        r.sleep(False)
        self.assertEqual(r.client.wait(late)["usage"]["generated"], 2)
        self.assertEqual(c.wait(job)["usage"]["generated"], want)
        self.assertEqual(begin + c.text(), said)
        r.until_power(level=0)
        rig.until(r.delays, "no inhibitor after sleep")

    def test_saving_goes_on(self):
        with tempfile.TemporaryDirectory(prefix="moed-cache-") as cache:
            r = Rig(self, LOGIN1, config=f"cache-dir = {cache}\nweights-store = none\n")
            rig.until(r.delays, "no inhibitor")
            text = [{"role": "user", "content": "once upon a time there was something worth keeping"}]
            session = r.client.call("session.open", messages=text)["session"]
            r.sleep(True)
            r.until_power(level=2)
            saved = r.client.call("session.save", session=session)
            self.assertGreater(saved["cached"], 0)
            self.assertEqual(len(os.listdir(f"{cache}/sessions/{os.geteuid()}")), 2)
            r.sleep(False)
            r.until_power(level=0)
            self.assertGreater(r.client.call("session.restore", token=saved["token"])["session"], session)

    def test_again_and_again(self):
        r = Rig(self, LOGIN1)
        for _ in range(5):
            rig.until(r.delays, "no inhibitor")
            r.sleep(True)
            rig.until(lambda: not r.delays(), "sleep waits")
            r.sleep(False)
        rig.until(r.delays, "no inhibitor")

    def test_stop_lets_sleep(self):
        r = Rig(self, LOGIN1)
        rig.until(r.delays, "no inhibitor")
        self.assertEqual(r.moed.stop(), 0)
        rig.until(lambda: not r.delays(), "sleep waits")

    def test_not_from_anybody(self):
        """A signal that looks right comes from somebody else."""
        r = Rig(self, LOGIN1)
        rig.until(r.delays, "no inhibitor")
        self.assertEqual(len(r.connections()), 2)
        for name in r.connections():
            message = dbus.lowlevel.SignalMessage(LOGIN1_PATH, f"{LOGIN1}.Manager", "PrepareForSleep")
            message.append(True, signature="b")
            message.set_destination(name)
            r.conn.send_message(message)
        r.conn.flush()
        time.sleep(0.3)
        self.assertEqual(r.power()["level"], 0)
        self.assertTrue(r.delays())


class Users(unittest.TestCase):
    def prefixes(self, r):
        r.client.call("generate", prompt="once upon a time there was a prompt long enough", max_tokens=2)
        self.assertGreater(r.client.call("generate", prompt="once upon a time there was a prompt long enough",
                                         max_tokens=2)["usage"]["cached"], 0)

    def cached(self, r):
        return r.client.call("generate", prompt="once upon a time there was a prompt long enough",
                             max_tokens=2)["usage"]["cached"]

    def add_session(self, r, name, uid):
        return str(r.mock(LOGIN1, LOGIN1_PATH).AddSession(name, "seat0", uid, f"user{uid}", True))

    def session(self, r, path):
        return dbus.Interface(r.conn.get_object(LOGIN1, path, introspect=False), f"{LOGIN1}.Session")

    def test_lock(self):
        """Lock, or a hint that it is: what the user has is forgotten, and a lock of another changes nothing."""
        r = Rig(self, LOGIN1)
        mine, other = self.add_session(r, "c1", os.geteuid()), self.add_session(r, "c2", os.geteuid() + 1)
        self.prefixes(r)
        self.session(r, other).Lock()
        rig.until(lambda: f"user {os.geteuid() + 1} locked" in r.moed.text(), "not seen")
        self.assertGreater(self.cached(r), 0)
        self.session(r, mine).Lock()
        rig.until(lambda: f"user {os.geteuid()} locked" in r.moed.text(), "not seen")
        self.assertEqual(self.cached(r), 0)
        self.assertGreater(self.cached(r), 0)
        self.session(r, mine).SetLockedHint(True)
        rig.until(lambda: r.moed.text().count(f"user {os.geteuid()} locked") == 2, "not seen")
        self.assertEqual(self.cached(r), 0)
        self.session(r, mine).SetLockedHint(False)
        self.assertGreater(self.cached(r), 0)

    def test_logout(self):
        r = Rig(self, LOGIN1, config="forget = logout\n")
        mine = self.add_session(r, "c1", os.geteuid())
        self.prefixes(r)
        self.session(r, mine).Lock()
        self.assertGreater(self.cached(r), 0)
        r.mock(LOGIN1, LOGIN1_PATH).EmitSignal(f"{LOGIN1}.Manager", "UserRemoved", "uo",
                                               dbus.Array([dbus.UInt32(os.geteuid()), dbus.ObjectPath("/x")], signature="v"))
        rig.until(lambda: f"user {os.geteuid()} left" in r.moed.text(), "not seen")
        self.assertEqual(self.cached(r), 0)
        self.assertNotIn("locked the screen", r.moed.text())


class Power(unittest.TestCase):
    def test_battery(self):
        r = Rig(self, UPOWER)
        self.assertEqual(r.power(), {"level": 0, "battery": False, "saver": False})
        self.assertEqual(r.client.call("server.status")["threads"], 2)
        r.set(UPOWER, UPOWER_PATH, OnBattery=True)
        r.until_power(level=1, battery=True)
        self.assertEqual(r.bus.get("PowerLevel"), 1)
        self.assertRegex(r.status(), "Power: on battery, requests of background wait\n")
        rig.until(lambda: r.client.call("server.status")["threads"] == 1, "as many threads")
        back = r.client.send("generate", prompt="x", max_tokens=3, priority="background")
        front = r.client.send("generate", prompt="x", max_tokens=3)
        self.assertEqual(r.client.wait(front)["usage"]["generated"], 3)
        r.set(UPOWER, UPOWER_PATH, OnBattery=False)
        self.assertEqual(r.client.wait(back)["usage"]["generated"], 3)
        r.until_power(level=0, battery=False)
        self.assertEqual(r.client.call("server.status")["threads"], 2)
        self.assertNotIn("Power:", r.status())

    def test_saver(self):
        r = Rig(self, UPOWER, PROFILES, config="power-save = profile\n")
        r.set(UPOWER, UPOWER_PATH, OnBattery=True)
        r.until_power(battery=True)
        self.assertEqual(r.power()["level"], 0)
        for profile, on in ("power-saver", True), ("performance", False), ("power-saver", True), ("balanced", False):
            r.set(PROFILES, PROFILES_PATH, ActiveProfile=profile)
            r.until_power(level=int(on), saver=on)

    def test_they_come_and_go(self):
        """None is there at first, and none is waited for; what one said is void when it has gone."""
        r = Rig(self)
        self.assertEqual(r.power(), {"level": 0, "battery": False, "saver": False})
        for name in LOGIN1, UPOWER, PROFILES:
            r.mocks[name] = r.start(name)
        rig.until(r.delays, "no inhibitor")
        r.set(PROFILES, PROFILES_PATH, ActiveProfile="power-saver")
        r.set(UPOWER, UPOWER_PATH, OnBattery=True)
        r.sleep(True)
        r.until_power(level=2, battery=True, saver=True)
        r.stop(LOGIN1)
        r.until_power(level=1)
        r.stop(PROFILES)
        r.until_power(level=1, battery=True, saver=False)
        r.stop(UPOWER)
        r.until_power(level=0, battery=False)
        r.mocks[LOGIN1] = r.start(LOGIN1)
        rig.until(r.delays, "no inhibitor")

    def test_reload(self):
        r = Rig(self, UPOWER, config="power-save = never\n")
        r.set(UPOWER, UPOWER_PATH, OnBattery=True)
        r.until_power(level=0, battery=True)
        (r.moed.dir / "etc/moed/moed.conf").write_text("bus = system\n")
        r.moed.proc.send_signal(1)
        r.until_power(level=1, battery=True)


if __name__ == "__main__":
    bus_rig.main(unittest)
