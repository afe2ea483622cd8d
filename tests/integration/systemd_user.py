# SPDX-License-Identifier: Apache-2.0
"""The user's own units under that user's service manager: activation by socket and by bus, and stop."""
import os
import pathlib
import pwd
import shutil
import sys
import unittest

from rig import until
from systemd_rig import HERE, journal, run

USER = "moed-test-user"
PACKAGED = "/usr/lib/systemd/user/dbus.socket"  # of dbus-user-session


@unittest.skipUnless(os.path.exists(PACKAGED), "no bus of users: dbus-user-session is missing")
class User(unittest.TestCase):
    """An ordinary user with a service manager, a configuration of their own, and nothing enabled."""

    @classmethod
    def setUpClass(cls):
        run("useradd", "--create-home", "--shell", "/bin/sh", USER)
        cls.who = pwd.getpwnam(USER)
        cls.home, cls.runtime = pathlib.Path(cls.who.pw_dir), pathlib.Path(f"/run/user/{cls.who.pw_uid}")
        cls.socket = cls.runtime / "moed/rpc"
        (cls.home / ".config/moed").mkdir(parents=True)
        (cls.home / "models").mkdir()
        shutil.copy(HERE / "tiny.gguf", cls.home / "models")
        (cls.home / ".config/moed/moed.conf").write_text(f"model-dir = {cls.home}/models\npressure-watch = /dev/null\n")
        run("chown", "-R", f"{USER}:", cls.home)
        cls.home.chmod(0o700)
        # Without logind nobody else says where that is.
        manager = pathlib.Path("/run/systemd/system/user@.service.d/test.conf")
        manager.parent.mkdir(parents=True)
        manager.write_text("[Service]\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n")
        run("systemctl", "daemon-reload")
        # A build with sanitizers looks for leaks by tracing, which the sandbox forbids.
        dropin = pathlib.Path("/etc/systemd/user/moed.service.d/test.conf")
        dropin.parent.mkdir(parents=True, exist_ok=True)
        dropin.write_text("[Service]\nEnvironment=ASAN_OPTIONS=detect_leaks=0\n")
        run("systemctl", "start", f"user@{cls.who.pw_uid}.service")

    @classmethod
    def tearDownClass(cls):
        run("systemctl", "stop", f"user@{cls.who.pw_uid}.service", check=False)

    def as_user(self, *argv, check=True, user=None):
        who = user or self.who
        env = {"PATH": "/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(self.runtime),
               "DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.runtime}/bus"}
        return run(*argv, check=check, user=who.pw_uid, group=who.pw_gid, extra_groups=[], env=env)

    def ctl(self, *args, **kw):
        return self.as_user("systemctl", "--user", *args, **kw).stdout.strip()

    def show(self, name, unit="moed.service"):
        return self.ctl("show", unit, "-p", name, "--value")

    def client(self, what, **kw):
        """What @what prints, of a process of the user with a client c."""
        code = f"import sys; sys.path.insert(0, '{HERE}'); from rig import *; c = Client({str(self.socket)!r}); {what}"
        return self.as_user(sys.executable, "-c", code, **kw)

    def loaded(self):
        said = self.client("until(lambda: c.call('server.status')['state'] == 'ready', 'not loaded'); "
                           "print(c.call('server.status')['model'])")
        self.assertEqual(said.stdout.strip(), "tiny")

    def setUp(self):
        self.assertEqual(self.show("ActiveState"), "inactive")
        self.addCleanup(self.ctl, "stop", "moed.socket", "moed.service", check=False)

    def test_units(self):
        """They parse, and none is enabled by itself."""
        said = self.as_user("systemd-analyze", "--user", "verify", "moed.service", "moed.socket", check=False)
        self.assertEqual([line for line in said.stderr.splitlines() if "moed" in line], [])
        self.assertEqual(self.ctl("is-enabled", "moed.socket", check=False), "disabled")
        self.assertEqual(self.ctl("is-enabled", "moed.service", check=False), "indirect")

    def test_first_connect_starts_it(self):
        self.ctl("start", "moed.socket")
        self.assertEqual(self.show("ActiveState"), "inactive")
        self.loaded()
        self.assertEqual((self.show("ActiveState"), self.show("StatusText")), ("active", "Serving tiny"))
        proc = pathlib.Path(f"/proc/{self.show('MainPID')}")
        self.assertEqual(proc.stat().st_uid, self.who.pw_uid)
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        self.assertEqual((status["Seccomp"], status["NoNewPrivs"], status["CapEff"]), ("2", "1", "0" * 16))
        said = self.client("print(c.call('generate', prompt='x', max_tokens=3)['usage']['generated'])")
        self.assertEqual(said.stdout.strip(), "3")
        until(lambda: list((self.home / ".cache/moed").glob("*")), "nothing is cached", 20)

    def test_nobody_else_connects(self):
        self.ctl("start", "moed.socket")
        self.assertEqual((self.socket.stat().st_mode & 0o777, self.socket.parent.stat().st_mode & 0o777), (0o600, 0o700))
        said = self.client("", user=pwd.getpwnam("nobody"), check=False)
        self.assertIn("PermissionError", said.stderr)
        self.assertEqual(self.show("ActiveState"), "inactive")

    def test_first_call_starts_it(self):
        """On the user's bus; the service there is the user's own, and so is what it serves."""
        name = next(pathlib.Path("/").glob("usr/**/dbus-1/services/*.Moed1.service")).stem
        path = "/" + name.replace(".", "/")
        self.assertEqual(self.show("ActiveState"), "inactive")
        said = self.as_user("busctl", "--user", "--timeout=30", "call", name, path, f"{name}.Manager", "Respond", "sa{sv}",
                            "once upon a time", 1, "max-tokens", "u", 3)
        self.assertIn('"model" s "tiny"', said.stdout)
        self.assertEqual(self.show("ActiveState"), "active")
        self.assertIn(name, self.as_user("busctl", "--user", "list", "--acquired").stdout)
        self.assertNotIn(name, run("busctl", "--system", "list", "--acquired").stdout)

    def test_stop(self):
        self.ctl("start", "moed.socket")
        self.loaded()
        self.ctl("stop", "moed.service")
        self.assertEqual((self.show("ActiveState"), self.show("Result")), ("inactive", "success"))
        self.assertEqual(self.show("ActiveState", "moed.socket"), "active")
        self.loaded()  # the socket starts it again
        self.ctl("reload", "moed.service")
        self.assertEqual(self.show("ActiveState"), "active")
        self.ctl("stop", "moed.socket", "moed.service")
        self.assertFalse(self.socket.exists())

    def test_moectl_finds_it(self):
        """The user's own service is asked, and the system's stays as it is."""
        moectl = shutil.which("moectl", path="/usr/local/bin:/usr/bin")
        if not moectl:
            self.skipTest("this build has no moectl")
        self.ctl("start", "moed.socket")
        said = self.as_user(moectl, "run", "--max-tokens", "8", "once", check=False)
        self.assertIn(said.returncode, (0, 5), said.stderr)  # the model's end, or the limit
        self.assertTrue(said.stdout)
        self.assertIn("Serving tiny", self.show("StatusText"))
        self.assertEqual(run("systemctl", "is-active", "moed.service", check=False).stdout.strip(), "inactive")

    def test_no_sanitizer_spoke(self):
        self.ctl("start", "moed.socket")
        self.loaded()
        self.ctl("stop", "moed.service")
        said = journal(f"user@{self.who.pw_uid}.service")
        self.assertTrue(said)
        self.assertEqual([m for m in said if "Sanitizer" in m or "runtime error" in m], [])
