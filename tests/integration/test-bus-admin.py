# SPDX-License-Identifier: Apache-2.0
"""The interface Admin of the real service: who may, as polkit says, and what happens then."""
import hashlib
import os
import shutil
import time
import unittest

import bus_rig
import dbus
import rig
from bus_rig import Bus, BusError

OTHER = "nobody"
STD = "org.freedesktop.DBus.Error."
METHODS = [("LoadModel", "sa{sv}", "tiny", 0), ("UnloadModel", "su", "tiny", 0), ("RemoveModel", "s", "tiny"),
           ("VerifyModel", "s", "tiny"), ("SetUseCase", "ss", "language.test", ""), ("ListSessions", "a{sv}", 0), ("Reload",), ("Trim", "u", 1)]
ACTION = {"ListSessions": "inspect-others", "Trim": "trim"}


class Rig:
    """A bus, an authority, and a service with a folder of models and one use case."""

    def __init__(self, test, **rules):
        self.bus = Bus()
        test.addCleanup(self.bus.__exit__)
        self.bus.polkit(**rules)
        self.models = self.bus.dir / "models"
        self.models.mkdir()
        shutil.copy(rig.make_model("tiny"), self.models / "tiny.gguf")
        shutil.copy(rig.make_model("tiny"), self.models / "spare.gguf")
        self.state = self.bus.dir / "state"
        self.state.mkdir()
        self.root = self.bus.dir / "root"
        (self.root / "etc/moed/use-cases.d").mkdir(parents=True)
        self.use_case = self.root / "etc/moed/use-cases.d/language.test.conf"
        self.use_case.write_text("prompt = Say: {text}\n")
        os.environ["STATE_DIRECTORY"] = f"{self.state}:{self.models}"
        test.addCleanup(os.environ.pop, "STATE_DIRECTORY")
        (self.root / "etc/moed/moed.conf").write_text(
            f"bus = system\nmodel-dir = {self.models}\ndefault-model = tiny\n")
        self.moed = rig.Moed("--config-root", self.root, model=None, env=self.bus.env())
        test.addCleanup(self.moed.__exit__, None)
        rig.until(lambda: self.bus.has_owner(bus_rig.NAME), "the service has no name")

    def admin(self, *call, **kw):
        return self.bus.call(*call, interface="Admin", **kw)


@unittest.skipUnless(os.geteuid() == 0, "two users take root")
class Polkit(unittest.TestCase):
    def test_refused(self):
        r = Rig(self)
        for call in METHODS:
            with self.assertRaisesRegex(BusError, "Access denied"):
                r.admin(*call, user=OTHER)
        asked = r.bus.asked()
        namespace = bus_rig.NAME.rpartition(".")[0]
        self.assertEqual([a[0] for a in asked], [f"{namespace}.{ACTION.get(c[0], 'manage-models')}" for c in METHODS])
        self.assertTrue(all(a[1] == "0" and a[2].startswith(":") for a in asked))
        self.assertTrue((r.models / "tiny.gguf").exists())

    def test_a_person_must_be_asked(self):
        r = Rig(self, manage_models=[False, True])
        with self.assertRaisesRegex(BusError, "a person must allow it"):
            r.admin("Reload", user=OTHER)
        with self.assertRaisesRegex(BusError, "Access denied"):
            r.admin("Reload", user=OTHER, interactive=True)
        self.assertEqual([a[1] for a in r.bus.asked()], ["0", "1"])

    def test_allowed(self):
        r = Rig(self, manage_models=[True, False], inspect_others=[True, False])
        self.assertRegex(r.admin("LoadModel", "sa{sv}", "tiny", 0, user=OTHER)[0], "/job/[0-9]+$")
        self.assertTrue(r.admin("ListSessions", "a{sv}", 0, user=OTHER) is not None)

    def test_residency(self):
        r = Rig(self)
        put = "set-property", bus_rig.NAME, bus_rig.PATH + "/model/tiny", bus_rig.NAME + ".Model", "Residency", "u"
        with self.assertRaisesRegex(BusError, "Access denied"):
            r.bus.busctl(*put, 1, user=OTHER)
        self.assertEqual(r.bus.get("Residency", "Model", "/model/tiny"), 0)
        r.bus.rules(manage_models=[True, False])
        r.bus.busctl(*put, 1, user=OTHER)
        self.assertEqual(r.bus.get("Residency", "Model", "/model/tiny"), 1)
        namespace = bus_rig.NAME.rpartition(".")[0]
        self.assertEqual([a[0] for a in r.bus.asked()], [f"{namespace}.manage-models"] * 2)

    def test_nothing_waits_for_it(self):
        r = Rig(self, manage_models=[True, False, 2])
        slow = r.bus.spawn(["setpriv", f"--reuid={OTHER}", "--clear-groups", "busctl", f"--address={r.bus.address}", "call",
                            bus_rig.NAME, bus_rig.PATH, bus_rig.NAME + ".Admin", "Reload"])
        rig.until(r.bus.asked, "not asked")
        self.assertEqual(r.bus.get("ApiLevel"), 1)
        self.assertIsNone(slow.poll())
        self.assertEqual(slow.wait(10), 0)

    def test_use(self):
        r = Rig(self, use=[False, True], background=[False, False])
        namespace = bus_rig.NAME.rpartition(".")[0]
        with self.assertRaisesRegex(BusError, "a person must allow it"):
            r.bus.call("CountTokens", "sa{sv}", "x", 0, user=OTHER)
        with self.assertRaisesRegex(BusError, "Access denied"):
            r.bus.call("OpenSession", "a{sv}", 0, user=OTHER, interactive=True)
        self.assertEqual(r.bus.call("GetAvailability", "sa{sv}", "", 0, user=OTHER, interactive=True),
                         [6, {"reason": {"type": "s", "data": "denied"}}])
        self.assertEqual([a[:2] for a in r.bus.asked()], [[f"{namespace}.use", flag] for flag in "010"])

    def test_background(self):
        r = Rig(self, use=[True, False], background=[False, False])
        namespace = bus_rig.NAME.rpartition(".")[0]
        ask = "Respond", "sa{sv}", "x", 2, "max-tokens", "u", 2, "priority", "u"
        self.assertIsInstance(r.bus.call(*ask, 1, user=OTHER)[0], str)
        self.assertEqual([a[0] for a in r.bus.asked()], [f"{namespace}.use"])
        with self.assertRaisesRegex(BusError, "Access denied"):
            r.bus.call(*ask, 2, user=OTHER)
        with self.assertRaisesRegex(BusError, "Access denied"):
            r.bus.call("OpenSession", "a{sv}", 1, "priority", "u", 2, user=OTHER)
        self.assertEqual([a[0] for a in r.bus.asked()[1:]], [f"{namespace}.use", f"{namespace}.background"] * 2)
        r.bus.rules(use=[True, False], background=[True, False])
        self.assertIsInstance(r.bus.call(*ask, 2, user=OTHER)[0], str)

    def test_who_may_use_is_no_administrator(self):
        r = Rig(self, use=[True, False])
        with self.assertRaisesRegex(BusError, "Access denied"):
            r.admin("UnloadModel", "su", "tiny", 0, user=OTHER)

    def test_no_authority(self):
        with Bus() as bus, bus.moed():
            with self.assertRaisesRegex(BusError, "Access denied"):
                bus.call("Reload", interface="Admin", user=OTHER)


class Admin(unittest.TestCase):
    """As root or the service's own user, who are not asked for."""

    def setUp(self):
        self.r = Rig(self)

    def test_load_and_unload(self):
        r = self.r
        r.admin("LoadModel", "sa{sv}", "tiny", 0)
        rig.until(lambda: r.bus.get("State") == 2, "not loaded")
        r.admin("UnloadModel", "su", "tiny", 0)
        self.assertEqual(r.bus.get("State"), 0)
        for call, name in ((("LoadModel", "sa{sv}", "none", 0), "no model with the id none"),
                           (("UnloadModel", "su", "none", 0), "no model with the id none"),
                           (("UnloadModel", "su", "tiny", 9), "flags"), (("RemoveModel", "s", "none"), "no model")):
            with self.assertRaisesRegex(BusError, name):
                r.admin(*call)
        self.assertEqual(r.bus.asked(), [])

    def test_trim(self):
        r = self.r
        r.admin("LoadModel", "sa{sv}", "tiny", 0)
        rig.until(lambda: r.bus.get("State") == 2, "not loaded")
        with r.moed.client() as c:
            c.call("generate", prompt="x" * 100, max_tokens=2)
            for level in 1, 2, 3:
                self.assertGreaterEqual(r.admin("Trim", "u", level)[0], 0)
            self.assertEqual(c.call("server.status")["prefixes"]["kept"], 0)
            self.put_residency("tiny", 1)
            r.admin("Trim", "u", 4)
            self.assertEqual(r.bus.get("State"), 2)  # it is pinned
            self.put_residency("tiny", 0)
            self.assertGreater(r.admin("Trim", "u", 4)[0], 0)
            self.assertEqual(r.bus.get("State"), 0)
            self.assertEqual(c.call("memory.trim", level=4)["freed"] >= 0, True)
        for level in 0, 5:
            with self.assertRaisesRegex(BusError, "level: not 1 to 4"):
                r.admin("Trim", "u", level)

    def put_residency(self, model, v, kind="u"):
        self.r.bus.busctl("set-property", bus_rig.NAME, bus_rig.PATH + "/model/" + model, bus_rig.NAME + ".Model", "Residency", kind, v)

    def test_residency(self):
        r = self.r
        with r.moed.client() as c:
            for v, name in (2, "pressure"), (1, "pinned"), (0, "pressure"):
                self.put_residency("tiny", v)
                self.assertEqual(r.bus.get("Residency", "Model", "/model/tiny"), v)
                self.assertEqual(c.call("server.status")["residency"], name)
            c.call("model.pin", id="spare", keep=True)
            self.assertEqual(r.bus.get("Residency", "Model", "/model/spare"), 1)
            c.call("model.pin", id="spare", residency="idle", keep=True)
            self.assertEqual(r.bus.get("Residency", "Model", "/model/spare"), 0)
        for v, kind in (3, "u"), ("x", "s"):
            with self.assertRaisesRegex(BusError, "Residency: not"):
                self.put_residency("tiny", v, kind)
        props = self.conn().get_object(bus_rig.NAME, bus_rig.PATH + "/model/tiny", introspect=False)
        name, _ = bus_rig.error_of(lambda: props.Set(bus_rig.NAME + ".Model", "Id", "x", dbus_interface="org.freedesktop.DBus.Properties"))
        self.assertEqual(name, STD + "PropertyReadOnly")
        with self.assertRaisesRegex(BusError, "Unknown object"):
            self.put_residency("none", 1)

    def test_remove(self):
        r = self.r
        r.admin("LoadModel", "sa{sv}", "tiny", 0)
        with self.assertRaisesRegex(BusError, "tiny is loaded"):
            r.admin("RemoveModel", "s", "tiny")
        r.admin("RemoveModel", "s", "spare")
        self.assertEqual(os.listdir(r.models), ["tiny.gguf"])

    def job(self, call):
        """The end of the job that @call starts: its result, and the reason."""
        n = int(call[0].rpartition("/")[2])
        with self.r.moed.client() as c:
            end = c.call("job.wait", id=n)
        return end["result"], end.get("reason", "")

    def give(self, path, model, conn=None, **opts):
        with open(path, "rb") as f:
            return [bus_rig.manager(conn or self.conn(), "Admin").ImportModel(dbus.types.UnixFd(f), model, bus_rig.options(**opts))]

    def conn(self):
        conn = self.r.bus.connect()
        self.addCleanup(conn.close)
        return conn

    def home(self):
        """A file that its owner alone may read, in a folder that only the owner enters."""
        home = self.r.bus.dir / "home"
        home.mkdir(mode=0o700)
        path = home / "x.gguf"
        shutil.copy(rig.make_model("tiny"), path)
        path.chmod(0o600)
        return path

    def test_import(self):
        path, models = self.home(), self.r.models
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        conn = self.r.bus.connect()
        call = self.give(path, "given", conn, digest=digest, license="MIT")
        conn.close()  # the job goes on
        self.assertEqual(self.job(call), ("done", ""))
        self.assertEqual((models / "given.gguf").read_bytes(), path.read_bytes())
        self.assertEqual((models / "given.gguf.origin").read_text(), f"digest = {digest}\nlicense = MIT\n")
        with self.r.moed.client() as c:
            c.call("generate", model="given", prompt="x", max_tokens=2)
        self.assertEqual(self.job(self.give(path, "linked", mode="reference")), ("done", ""))
        self.assertTrue((models / "linked.gguf").is_symlink())
        self.assertEqual(self.job(self.r.admin("VerifyModel", "s", "linked")), ("done", ""))
        self.r.admin("RemoveModel", "s", "linked")
        self.assertTrue(path.exists())
        self.assertFalse([n for n in os.listdir(models) if "linked" in n])

    def objects(self):
        at = self.conn().get_object(bus_rig.NAME, bus_rig.PATH, introspect=False)
        return {str(path).removeprefix(bus_rig.PATH): {str(k): dict(v) for k, v in found.items()} for path, found in
                at.GetManagedObjects(dbus_interface="org.freedesktop.DBus.ObjectManager").items()}

    def test_models(self):
        signals = self.r.bus.listen()
        found = self.objects()
        self.assertEqual({p for p in found if p.startswith("/model")}, {"/model/spare", "/model/tiny"})
        spare = found["/model/spare"][bus_rig.NAME + ".Model"]
        path = self.r.models / "spare.gguf"
        self.assertEqual((spare["Id"], spare["Size"], spare["Digest"]), ("spare", path.stat().st_size, ""))
        self.assertEqual((spare["Architecture"], spare["Quantization"], spare["State"]), ("gemma4", "Q8_0", 0))
        self.assertGreater(spare["ExpertCount"], spare["ExpertsUsed"])
        self.assertGreater(spare["ContextMax"], 0)
        self.assertEqual(self.r.bus.get("State", "Model", "/model/tiny"), 2)
        self.assertGreater(self.r.bus.get("Resident", "Model", "/model/tiny"), 0)
        self.assertLess(abs(self.r.bus.get("LoadedSince", "Model", "/model/tiny") / 1e6 - time.time()), 600)
        self.r.admin("UnloadModel", "su", "tiny", 0)
        self.assertEqual(self.r.bus.get("LoadedSince", "Model", "/model/tiny"), 0)
        self.job(self.r.admin("VerifyModel", "s", "spare"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rig.until(lambda: self.r.bus.get("Digest", "Model", "/model/spare") == digest, "no digest")
        self.r.admin("RemoveModel", "s", "spare")
        self.assertNotIn("/model/spare", self.objects())
        said = [(at.removeprefix(bus_rig.PATH), member, args) for at, _, member, args in signals()]
        changed = {(at, k): v for at, member, args in said if member == "PropertiesChanged" for k, v in args[1].items()}
        self.assertEqual(changed["/model/tiny", "State"], 0)
        self.assertEqual(changed["/model/spare", "Digest"], digest)
        gone = [args for at, member, args in said if member == "InterfacesRemoved" and args[0].endswith("/spare")]
        self.assertEqual(len(gone), 1)
        self.assertIn(bus_rig.NAME + ".Model", gone[0][1])

    def test_jobs(self):
        signals = self.r.bus.listen()
        call = self.r.admin("VerifyModel", "s", "spare")
        path = call[0].removeprefix(bus_rig.PATH)
        self.assertIn(path, self.objects())
        self.assertEqual(self.r.bus.call("Wait", interface="Job", path=path), [0])
        self.assertEqual(self.r.bus.call("Wait", interface="Job", path=path), [0])  # at once, then
        get = lambda name: self.r.bus.get(name, "Job", path)
        size = (self.r.models / "spare.gguf").stat().st_size
        self.assertEqual([get(n) for n in ("Kind", "State", "Progress", "Stage", "Bytes", "BytesTotal", "Error")],
                         ["verify", 1, 1, "ended", size, size, ""])
        self.r.bus.call("Cancel", interface="Job", path=path)  # of what has ended: nothing
        self.assertEqual(get("State"), 1)
        (self.r.models / "spare.gguf").write_bytes(b"no model")
        failed = self.r.admin("VerifyModel", "s", "spare")[0].removeprefix(bus_rig.PATH)
        self.assertEqual(self.r.bus.call("Wait", interface="Job", path=failed), [1])
        self.assertEqual(self.r.bus.get("Error", "Job", failed), bus_rig.NAME + ".Error.Corrupt")
        rig.until(lambda: len([s for s in signals() if s[2] == "JobRemoved"]) == 2, "not told of the end")
        self.assertEqual([s[3] for s in signals() if s[2] == "JobRemoved"],
                         [[int(p.rpartition("/")[2]), bus_rig.PATH + p, n] for p, n in ((path, 0), (failed, 1))])
        self.assertIn(path, [s[3][0].removeprefix(bus_rig.PATH) for s in signals() if s[2] == "InterfacesAdded"])
        name, _ = bus_rig.error_of(bus_rig.manager(self.conn(), "Job", "/job/999999").Wait)
        self.assertEqual(name, STD + "UnknownObject")

    def test_job_is_cancelled(self):
        big = self.r.models / "big.gguf"  # a hole takes long to read
        shutil.copy(rig.make_model("tiny"), big)
        os.truncate(big, 8 << 30)
        path = self.r.admin("VerifyModel", "s", "big")[0].removeprefix(bus_rig.PATH)
        if os.geteuid() == 0:
            with self.assertRaisesRegex(BusError, "Access denied"):
                self.r.bus.call("Cancel", interface="Job", path=path, user=OTHER)
        rig.until(lambda: self.r.bus.get("Bytes", "Job", path) > 0, "nothing is read")
        self.assertEqual(self.r.bus.get("Stage", "Job", path), "verifying")
        self.r.bus.call("Cancel", interface="Job", path=path)
        self.assertEqual(self.r.bus.call("Wait", interface="Job", path=path), [2])
        self.assertLess(self.r.bus.get("Progress", "Job", path), 1)

    def test_import_refused(self):
        path, models = self.home(), self.r.models
        before = sorted(os.listdir(models))
        junk = path.parent / "junk"
        junk.write_bytes(b"no model " * 1000)
        name = bus_rig.NAME + ".Error."
        for file, model, opts, error in ((path, "tiny", {}, STD + "InvalidArgs"), (path, "../x", {}, STD + "InvalidArgs"),
                                         (path, ".x", {}, STD + "InvalidArgs"), (path, "", {}, STD + "InvalidArgs"),
                                         (path, "x", {"mode": "move"}, STD + "InvalidArgs"),
                                         (path, "x", {"digest": "12"}, STD + "InvalidArgs"),
                                         (path, "x", {"license": "a\nb"}, STD + "InvalidArgs"),
                                         ("/dev/null", "x", {}, STD + "InvalidArgs")):
            self.assertEqual(bus_rig.error_of(lambda: self.give(file, model, **opts))[0], error, (model, opts))
        result, reason = self.job(self.give(junk, "junk"))
        self.assertEqual((result, reason != ""), ("failed", True))
        result, reason = self.job(self.give(path, "other", digest="0" * 64))
        self.assertEqual(result, "failed")
        self.assertIn("its digest is", reason)
        self.assertEqual(sorted(os.listdir(models)), before)
        self.assertEqual(bus_rig.error_of(bus_rig.manager(self.conn(), "Admin").VerifyModel, "none")[0], name + "NoSuchModel")

    def test_verify(self):
        path = self.r.models / "spare.gguf"
        self.assertEqual(self.job(self.r.admin("VerifyModel", "s", "spare")), ("done", ""))
        self.assertEqual(self.job(self.r.admin("VerifyModel", "s", "spare")), ("done", ""))
        with path.open("r+b") as f:
            f.seek(-100, os.SEEK_END)
            f.write(b"damage")
        result, reason = self.job(self.r.admin("VerifyModel", "s", "spare"))
        self.assertEqual(result, "failed")
        self.assertIn("its digest is", reason)

    def test_use_cases(self):
        r = self.r
        self.assertEqual(r.bus.get("UseCases"), {"language.test": ""})
        r.admin("SetUseCase", "ss", "language.test", "spare")
        rig.until(lambda: r.bus.get("UseCases") == {"language.test": "spare"}, "not set")
        self.assertEqual((r.state / "use-case-language.test").read_text(), "model = spare\n")
        r.admin("SetUseCase", "ss", "language.test", "")
        rig.until(lambda: r.bus.get("UseCases") == {"language.test": ""}, "not taken back")
        for use_case, model in ("no.such", "tiny"), ("language.test", "none"), ("../x", ""):
            with self.assertRaisesRegex(BusError, "no use case|no model"):
                r.admin("SetUseCase", "ss", use_case, model)

    def test_list_sessions(self):
        r = self.r
        conn = r.bus.connect()
        held = [bus_rig.manager(conn).OpenSession(bus_rig.options(**o)) for o in ({"use_case": "language.test"}, {"model": "spare"})]
        uid = os.geteuid()
        rows = [[held[1][0], uid, 0, "spare", "", 0], [held[0][0], uid, 0, "tiny", "language.test", 0]]

        def listed(*filters):
            return [[s[0], *s[2:]] for s in r.admin("ListSessions", "a{sv}", *filters)[0]]

        self.assertEqual(listed(0), rows)
        self.assertEqual(listed(1, "model", "s", "spare"), rows[:1])
        self.assertEqual(listed(1, "uid", "u", uid + 1), [])
        self.assertEqual(listed(1, "uid", "u", uid), rows)
        conn.close()
        rig.until(lambda: not listed(0), "still there")

    def test_reload(self):
        r = self.r
        (r.use_case.parent / "language.more.conf").write_text("prompt = {text}\n")
        r.admin("Reload")
        rig.until(lambda: "language.more" in r.bus.get("UseCases"), "not read")
        r.use_case.write_text("prompt = no place for a text\n")
        r.admin("Reload")
        rig.until(lambda: "there is no {text} in it" in r.moed.text(), "not refused")
        self.assertIn("language.more", r.bus.get("UseCases"))


if __name__ == "__main__":
    bus_rig.main(unittest)
