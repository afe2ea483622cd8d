# SPDX-License-Identifier: Apache-2.0
"""The system bus of a booted system: activation by the first call, and who may do what by the real polkit."""
import os
import pathlib
import subprocess
import unittest

from rig import until
from systemd_rig import Service, journal, run, show

POLKITD = "/usr/lib/polkit-1/polkitd"
RULES = pathlib.Path("/etc/polkit-1/rules.d/50-moed-test.rules")
ACTIVATION = next((f for d in ("/usr/local", "/usr") for f in pathlib.Path(d).glob("share/dbus-1/system-services/*.Moed1.service")), None)
NAME = ACTIVATION.stem if ACTIVATION else ""
PATH = "/" + NAME.replace(".", "/")
NOBODY, DAEMON = 65534, 1  # users without a right to anything
DENIED = "Access denied|interactive authentication required|Interactive authentication required"


def call(member, signature="", *args, interface="Manager", user=0):
    """Return: (exit status, what busctl printed or complained of)."""
    done = subprocess.run(["busctl", "--system", "--timeout=60", "call", NAME, PATH, f"{NAME}.{interface}", member, signature,
                           *args], user=user, group=user and 65534, extra_groups=[], capture_output=True, text=True, timeout=90)
    return done.returncode, (done.stdout + done.stderr).strip()


def has_owner():
    return run("busctl", "--system", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "NameHasOwner", "s",
               NAME).stdout.strip() == "b true"


@unittest.skipUnless(NAME, "built without D-Bus")
class Activation(Service):
    def test_first_call_starts_it(self):
        run("systemctl", "stop", "moed.socket")
        self.assertEqual((show("ActiveState"), has_owner()), ("inactive", False))
        self.assertIn(NAME, run("busctl", "--system", "list", "--activatable").stdout)
        self.assertEqual(call("GetAvailability", "sa{sv}", "", "0", user=NOBODY)[0], 0)
        self.assertEqual((show("ActiveState", "SubState"), has_owner()), (("active", "running"), True))
        self.assertEqual(show("ActiveState", unit="moed.socket"), "active")

    def test_respond(self):
        """As in the manual page, by somebody."""
        code, said = call("Respond", "sa{sv}", "Why is the sky blue?", "1", "max-tokens", "u", "5", user=NOBODY)
        self.assertEqual(code, 0, said)
        self.assertRegex(said, r'^sa\{sv\} ".*" \d+ .*"stop-reason" s "(stop|length)"')
        self.assertIn('"model" s "tiny"', said)

    def test_use_cases_are_installed(self):
        code, said = call("Respond", "sa{sv}", "One. Two.", "2", "use-case", "s", "language.summarize", "max-tokens", "u", "3")
        self.assertEqual(code, 0, said)

    def test_only_the_service_may_have_the_name(self):
        done = subprocess.run(["busctl", "--system", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "RequestName",
                               "su", NAME, "4"], user=NOBODY, group=65534, extra_groups=[], capture_output=True, text=True)
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr, "Access denied|not allowed to own")

    def test_introspection_is_the_installed_xml(self):
        """What busctl lists of the interfaces, and what the files say."""
        for xml in ACTIVATION.parents[1].glob("interfaces/*.Manager.xml"):
            want = set(line.split('"')[1] for line in xml.read_text().splitlines() if "<method name=" in line)
            said = run("busctl", "--system", "introspect", NAME, PATH, f"{NAME}.Manager").stdout
            self.assertEqual({line.split()[0].lstrip(".") for line in said.splitlines() if " method " in line}, want)

    def test_it_comes_back_to_the_bus(self):
        self.loaded()
        run("systemctl", "restart", "moed.service")
        until(has_owner, "no name", 20)
        self.assertEqual(call("CountTokens", "sa{sv}", "some words", "0", user=NOBODY)[0], 0)


@unittest.skipUnless(NAME, "built without D-Bus")
@unittest.skipUnless(os.path.exists(POLKITD), "polkitd is not installed")
class Polkit(Service):
    """No agent is there to ask anybody: what takes a password is refused."""

    def setUp(self):
        super().setUp()
        self.addCleanup(run, "systemctl", "stop", "polkit.service", check=False)
        self.addCleanup(RULES.unlink, missing_ok=True)

    def load(self, user):
        return call("LoadModel", "sa{sv}", "tiny", "0", interface="Admin", user=user)

    def test_refused(self):
        for member, signature, *args in (("LoadModel", "sa{sv}", "tiny", "0"), ("UnloadModel", "su", "tiny", "0"),
                                         ("RemoveModel", "s", "tiny"), ("Reload", "")):
            code, said = call(member, signature, *args, interface="Admin", user=NOBODY)
            self.assertNotEqual(code, 0, member)
            self.assertRegex(said, DENIED)
        self.assertEqual(show("ActiveState", unit="polkit.service"), "active")
        self.assertTrue(pathlib.Path("/var/lib/moed/models/tiny.gguf").exists())

    def test_root_may(self):
        code, said = self.load(0)
        self.assertEqual(code, 0, said)
        self.assertRegex(said, rf'^o "{PATH}/job/\d+"')
        until(lambda: show("StatusText") == "Serving tiny", "not loaded", 30)

    def test_a_rule_of_the_administrator(self):
        """Two users, of whom a rule lets one."""
        RULES.parent.mkdir(parents=True, exist_ok=True)
        RULES.write_text("polkit.addRule(function(action, subject) {\n"
                         f"    if (action.id == '{NAME.rpartition('.')[0]}.manage-models' && subject.user == 'daemon')\n"
                         "        return polkit.Result.YES;\n});\n")
        RULES.chmod(0o644)
        run("systemctl", "restart", "polkit.service")
        code, said = self.load(DAEMON)
        self.assertEqual(code, 0, said)
        code, said = self.load(NOBODY)
        self.assertNotEqual(code, 0)
        self.assertRegex(said, DENIED)

    def test_actions(self):
        said = run("pkaction", "--verbose").stdout
        for action in "manage-models", "inspect-others", "trim":
            self.assertIn(f"{NAME.rpartition('.')[0]}.{action}:", said)
        self.assertIn("org.freedesktop.policykit.owner -> unix-user:moed", said)
        self.assertEqual([m for m in journal(unit="polkit.service") if "moed" in m and "rror" in m], [])
