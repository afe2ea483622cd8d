# SPDX-License-Identifier: Apache-2.0
"""The real service on a message bus of its own: the interface Manager, callers, limits, errors."""
import os
import pathlib
import re
import socket
import threading
import unittest
import xml.etree.ElementTree as ET

import bus_rig
import dbus
import dbus.lowlevel
import dbus.mainloop.glib
import rig
from bus_rig import Bus, error_of, manager, options
from gi.repository import GLib

ROOT = os.geteuid() == 0
OTHER = "nobody"
STD = "org.freedesktop.DBus.Error."


def shape(interface):
    """An interface of introspection data as something to compare."""
    def notes(e):
        return sorted((a.get("name"), a.get("value")) for a in e.findall("annotation"))

    return {(e.tag, e.get("name"), e.get("type"), e.get("access")):
            ([(a.get("name"), a.get("type"), a.get("direction")) for a in e.findall("arg")], notes(e)) for e in interface
            if e.tag != "annotation"}


def introspect(bus, path=""):
    text = bus.get_object(bus_rig.NAME, bus_rig.PATH + path, introspect=False).Introspect(
        dbus_interface="org.freedesktop.DBus.Introspectable")
    return {i.get("name"): shape(i) for i in ET.fromstring(text).findall("interface")}


def send(conn, member, *args, signature="sa{sv}"):
    """A call of Manager whose answer nobody waits for."""
    m = dbus.lowlevel.MethodCallMessage(bus_rig.NAME, bus_rig.PATH, f"{bus_rig.NAME}.Manager", member)
    m.append(*args, signature=signature)
    conn.send_message(m)
    conn.flush()


def changed(signals, path="", interface="Manager"):
    """Properties as the signals among @signals last told them."""
    seen = {}
    for at, _, member, args in signals:
        if member == "PropertiesChanged" and at == bus_rig.PATH + path and args[0] == f"{bus_rig.NAME}.{interface}":
            seen.update(args[1])
    return seen


def running(client):
    queue = client.call("server.status")["queue"]
    return queue["running"] + queue["waiting"]


def user(text):
    return {"role": "user", "content": text}


def client_of(fd):
    """The protocol on a connection that the bus handed out."""
    client = rig.Client.__new__(rig.Client)
    client.sock, client.last_id, client.notes = socket.socket(fileno=fd.take()), 0, []
    client.unpacker = rig.msgpack.Unpacker(raw=False)
    client.sock.setblocking(True)
    return client


def introspect_or_none(conn, path):
    try:
        return introspect(conn, path)
    except dbus.DBusException:
        return {}


class Manager(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.bus = Bus()
        cls.moed = cls.bus.moed("log = 6,account:7\n")
        cls.addClassCleanup(cls.bus.__exit__)
        cls.addClassCleanup(cls.moed.__exit__, None)

    def setUp(self):
        self.conn = self.bus.connect()
        self.addCleanup(self.conn.close)
        self.manager = manager(self.conn)

    def error(self, name):
        return f"{bus_rig.NAME}.Error.{name}"

    def test_introspection_is_the_installed_xml(self):
        session, fd = self.manager.OpenSession(options())
        job = self.bus.call("LoadModel", "sa{sv}", "tiny", 0, interface="Admin")[0]
        objects = ["", "/model/tiny", session.removeprefix(bus_rig.PATH), job.removeprefix(bus_rig.PATH)]
        served = {}
        for path in objects:
            served.update(introspect(self.conn, path))
        installed = {}
        for path in bus_rig.BUILD.glob(f"dbus/{bus_rig.NAME}.*.xml"):
            installed.update({i.get("name"): shape(i) for i in ET.parse(path).getroot().findall("interface")})
        self.assertEqual({k: v for k, v in served.items() if k.startswith(bus_rig.NAME)}, installed)
        os.close(fd.take())

    def test_properties(self):
        get = self.bus.get
        self.assertRegex(get("Version"), r"^\d+\.\d+\.\d+")
        self.assertEqual(get("ApiLevel"), 1)
        self.assertIn("respond", get("Features"))
        self.assertEqual(get("State"), 2)
        self.assertGreaterEqual(get("SessionCount"), 0)
        self.assertEqual(get("QueueLength"), 0)
        self.assertGreater(get("MemoryResident"), 0)
        self.assertGreater(get("MemoryBudget"), get("MemoryResident"))
        self.assertEqual((get("PressureLevel"), get("PowerLevel")), (0, 0))
        self.assertIsInstance(get("Placement"), list)

    def test_availability(self):
        state, details = self.manager.GetAvailability("", options())
        self.assertEqual((state, dict(details)), (4, {}))
        state, details = self.manager.GetAvailability("no.such", options())
        self.assertEqual((state, details["reason"]), (0, "no-use-case"))

    def test_respond(self):
        with self.moed.client() as c:
            want = c.call("generate", messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
                          max_tokens=7, seed=5, temperature=0.5)
        text, info = self.manager.Respond("hello", options(
            instructions="be brief", max_tokens=dbus.UInt32(7), seed=dbus.UInt64(5), temperature=0.5))
        self.assertEqual(text, want["text"])
        self.assertEqual(info["stop-reason"], want["stop_reason"])
        self.assertEqual(info["generated-tokens"], want["usage"]["generated"])
        self.assertEqual(info["seed"], 5)

    def test_classify(self):
        labels = ["yes", "no", "perhaps", "yes and no"]
        scores, info = self.manager.Classify("is it so?", labels, options(instructions="decide"))
        with self.moed.client() as c:
            want = c.call("score.choices", choices=labels, messages=[
                {"role": "system", "content": "decide"}, {"role": "user", "content": "is it so?"}])
        self.assertEqual([str(label) for label, _ in scores], labels)
        for (_, p), choice in zip(scores, want["choices"]):
            self.assertAlmostEqual(p, choice["p"])
        self.assertAlmostEqual(sum(p for _, p in scores), 1)
        self.assertAlmostEqual(info["confidence"], max(p for _, p in scores))
        name, _ = error_of(self.manager.Classify, "x", dbus.Array(signature="s"), options())
        self.assertEqual(name, STD + "InvalidArgs")

    def test_count_tokens(self):
        with self.moed.client() as c:
            want = len(c.call("tokenize", text="some words")["tokens"])
        self.assertEqual(self.manager.CountTokens("some words", options()), want)

    def test_embed(self):
        name, text = error_of(self.manager.Embed, ["a text"], options())
        self.assertEqual(name, self.error("NotSupported"))
        self.assertIn("no embeddings", text)

    def test_options_are_checked(self):
        for bad in options(max_tokens="7"), options(frobnicate=1), options(priority=dbus.UInt32(9)):
            name, text = error_of(self.manager.Respond, "x", bad)
            self.assertEqual(name, STD + "InvalidArgs")
            self.assertRegex(text, next(iter(bad)))

    def test_errors_have_names_and_numbers(self):
        respond = self.manager.Respond
        name, _ = error_of(respond, "x", options(model="none"))
        self.assertEqual(name, self.error("NoSuchModel"))
        name, _ = error_of(respond, "x", options(use_case="no.such"))
        self.assertEqual(name, self.error("NotSupported"))
        name, text = error_of(respond, "word " * 5000, options())
        self.assertEqual(name, self.error("ContextOverflow"))
        self.assertRegex(text, r"\(requested=\d+ available=\d+\)$")
        name, _ = error_of(respond, "x", options(deadline_usec=dbus.UInt64(0)))
        self.assertEqual(name, STD + "Timeout")
        name, text = error_of(self.manager.CountTokens, "a" * (2 << 20), options())
        self.assertEqual(name, STD + "LimitsExceeded")

    @unittest.skipUnless(ROOT, "two users take root")
    def test_the_policy(self):
        with self.assertRaisesRegex(bus_rig.BusError, "not allowed|denied|rejected"):
            self.bus.busctl("call", bus_rig.NAME, bus_rig.PATH, "org.example.Other", "Anything", user=OTHER)
        self.assertEqual(self.bus.call("CountTokens", "sa{sv}", "some words", 0, user=OTHER),
                         self.bus.call("CountTokens", "sa{sv}", "some words", 0))
        own = ("call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "RequestName", "su", bus_rig.NAME, 4)
        with self.assertRaisesRegex(bus_rig.BusError, "not allowed|denied"):
            self.bus.busctl(*own, user=OTHER)

    def test_session_speaks_the_protocol(self):
        path, fd = self.manager.OpenSession(options())
        with client_of(fd) as client:
            own = [s["session"] for s in client.call("session.list")["sessions"] if s["own"]]
            self.assertEqual([path], [f"{bus_rig.PATH}/session/{n}" for n in own])
            self.assertEqual(self.manager.OpenSession(options(instructions="be brief"))[0].rpartition("/")[2],
                             str(own[0] + 1))

    def test_session_is_opened_as_the_options_say(self):
        path, fd = self.manager.OpenSession(options(instructions="be brief", max_tokens=dbus.UInt32(6), priority=dbus.UInt32(1),
                                                    seed=dbus.UInt64(3), temperature=0.7))
        with client_of(fd) as client, self.moed.client() as c:
            got = client.call("session.generate", session=int(path.rpartition("/")[2]), messages=[user("hello")])
            want = c.call("generate", messages=[{"role": "system", "content": "be brief"}, user("hello")], max_tokens=6,
                          seed=3, temperature=0.7)
        self.assertEqual(got["text"], want["text"])
        self.assertEqual(got["usage"]["generated"], want["usage"]["generated"])
        for bad, error in ((options(model="none"), self.error("NoSuchModel")), (options(use_case="no.such"), self.error("NotSupported")),
                           (options(frobnicate=1), STD + "InvalidArgs"), (options(temperature=-1.0), STD + "InvalidArgs"),
                           (options(context_tokens=dbus.UInt32(1 << 30)), self.error("ContextOverflow"))):
            self.assertEqual(error_of(self.manager.OpenSession, bad)[0], error)
        state, details = self.manager.GetAvailability("", options(context_tokens=dbus.UInt32(1 << 30)))
        self.assertEqual((state, details["reason"]), (1, "context"))

    def test_session_samples_as_it_was_opened(self):
        with self.moed.client() as c:
            want = c.call("generate", messages=[user("hello")], max_tokens=6, temperature=0)["text"]
        for opts in {}, {"temperature": 0.0, "seed": dbus.UInt64(9)}:
            session, _ = self.session(sampling="greedy", max_tokens=dbus.UInt32(6), **opts)
            self.assertEqual(session.Respond("hello", options())[0], want)
        self.session(sampling="model")
        self.assertEqual(error_of(self.manager.OpenSession, options(sampling="wild"))[0], STD + "InvalidArgs")

    def test_session_has_its_own_idle_time(self):
        path, fd = self.manager.OpenSession(options(idle_timeout_usec=dbus.UInt64(300000)))
        with client_of(fd) as client:
            self.assertEqual(client.wait_note("session.closed"), {"session": int(path.rpartition("/")[2]), "reason": "idle"})

    def session(self, conn=None, **opts):
        path, fd = manager(conn or self.conn).OpenSession(options(**opts))
        fd = fd.take()
        self.addCleanup(os.close, fd)
        path = path.removeprefix(bus_rig.PATH)
        return manager(conn or self.conn, "Session", path), path

    def get(self, path, name):
        return self.conn.get_object(bus_rig.NAME, bus_rig.PATH + path, introspect=False).Get(
            f"{bus_rig.NAME}.Session", name, dbus_interface="org.freedesktop.DBus.Properties")

    def test_session_object(self):
        with self.moed.client() as c:
            first = c.call("generate", messages=[user("hello")], max_tokens=6, seed=3)
            then = c.call("generate", messages=[user("hello"), {"role": "assistant", "content": first["text"]}, user("more"),
                                                user("and more")], max_tokens=6, seed=3)
        session, path = self.session(max_tokens=dbus.UInt32(6), seed=dbus.UInt64(3))
        text, info = session.Respond("hello", options())
        self.assertEqual((text, info["generated-tokens"]), (first["text"], first["usage"]["generated"]))
        self.assertEqual(self.get(path, "ContextUsed"), info["prompt-tokens"] + info["generated-tokens"])
        used = session.Append([("user", dbus.String("more", variant_level=1))])
        self.assertEqual(self.get(path, "ContextUsed"), used)
        clone, fd = session.Clone(options())
        self.assertEqual(session.Respond("and more", options())[0], then["text"])
        copy = manager(self.conn, "Session", clone.removeprefix(bus_rig.PATH))
        self.assertEqual(copy.Respond("and more", options())[0], then["text"])
        os.close(fd.take())
        model = self.get(path, "Model")
        self.assertTrue(model.startswith(bus_rig.PATH + "/model/"))
        self.assertEqual((self.get(path, "UseCase"), self.get(path, "State"), self.get(path, "Priority")), ("", 0, 0))
        self.assertGreater(self.get(path, "ContextWindow"), 0)
        name, text = error_of(session.Append, [("nobody", dbus.String("more", variant_level=1))])
        self.assertEqual(name, STD + "InvalidArgs")
        name, _ = error_of(session.Append, [("user", dbus.Int32(3, variant_level=1))])
        self.assertEqual(name, STD + "InvalidArgs")

    def test_session_priority(self):
        _, path = self.session()
        at = self.conn.get_object(bus_rig.NAME, bus_rig.PATH + path, introspect=False)

        def put(v):
            at.Set(f"{bus_rig.NAME}.Session", "Priority", dbus.UInt32(v, variant_level=1), dbus_interface="org.freedesktop.DBus.Properties")

        put(1)
        self.assertEqual(self.get(path, "Priority"), 1)
        self.assertEqual(error_of(put, 2)[0], STD + "InvalidArgs")

    def test_session_ends(self):
        for how in "Close", "hang up", "close it":
            path, fd = self.manager.OpenSession(options())
            session = manager(self.conn, "Session", path.removeprefix(bus_rig.PATH))
            with client_of(fd) as client:
                session.Cancel()  # of nothing
                if how == "Close":
                    session.Close()
                    self.assertEqual(client.sock.recv(1), b"")
                elif how == "close it":
                    client.call("session.close", session=int(path.rpartition("/")[2]))
            rig.until(lambda: error_of(session.Respond, "x", options())[0] == self.error("NoSuchSession"), "still there")
            name, _ = error_of(self.get, path.removeprefix(bus_rig.PATH), "State")
            self.assertEqual(name, STD + "UnknownObject")

    def test_session_cancel(self):
        session, path = self.session()
        got = []

        def ask():
            while True:  # an answer may end before it is cancelled
                session.Respond("go on", options(), timeout=60)

        t = threading.Thread(target=lambda: got.append(error_of(ask)))
        t.start()
        while t.is_alive():
            self.bus.busctl("call", bus_rig.NAME, bus_rig.PATH + path, f"{bus_rig.NAME}.Session", "Cancel")
            t.join(0.05)
        self.assertEqual(got[0][0], self.error("Cancelled"))

    def test_session_is_private(self):
        _, path = self.session()
        other = self.bus.connect()
        self.addCleanup(other.close)
        self.assertNotIn(bus_rig.NAME + ".Session", introspect_or_none(other, path))
        props = dbus.Interface(other.get_object(bus_rig.NAME, bus_rig.PATH + path, introspect=False),
                               "org.freedesktop.DBus.Properties")
        self.assertEqual(error_of(props.Get, f"{bus_rig.NAME}.Session", "State")[0], STD + "UnknownObject")
        if ROOT:
            with self.assertRaisesRegex(bus_rig.BusError, "another caller's|Access denied"):
                self.bus.call("Close", interface="Session", path=path, user=OTHER)
            manager(other, "Session", path).Cancel()  # root may

    def test_context_dropped(self):
        signals = self.bus.listen()
        conn = dbus.bus.BusConnection(self.bus.address, mainloop=dbus.mainloop.glib.DBusGMainLoop())
        self.addCleanup(conn.close)
        session, path = self.session(conn, max_tokens=dbus.UInt32(4))
        told = []
        conn.add_signal_receiver(lambda *a: told.append(tuple(map(int, a))), "ContextDropped", f"{bus_rig.NAME}.Session",
                                 path=bus_rig.PATH + path)
        for _ in range(60):
            _, info = session.Respond("word " * 40, options(overflow="drop-oldest"))
            if info.get("dropped-messages"):
                break
        else:
            self.fail("nothing was dropped")
        rig.until(lambda: (GLib.MainContext.default().iteration(False), told)[1], "its owner was not told")
        self.assertEqual(told[0][0], info["dropped-messages"])
        self.assertGreater(told[0][1], 0)
        self.assertFalse([s for s in signals() if s[2] == "ContextDropped"])  # to the owner alone

    def test_a_caller_that_leaves_is_hung_up_on(self):
        conn = self.bus.connect()
        _, fd = manager(conn).OpenSession(options())
        with socket.socket(fileno=fd.take()) as s:
            s.settimeout(10)
            conn.close()
            self.assertEqual(s.recv(1), b"")

    def test_only_the_bus_says_who_left(self):
        """A signal that looks like the bus's ends nothing of another caller."""
        conn, other = self.bus.connect(), self.bus.connect()
        self.addCleanup(conn.close)
        self.addCleanup(other.close)
        _, fd = manager(conn).OpenSession(options())
        left = dbus.lowlevel.SignalMessage("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged")
        left.append(conn.get_unique_name(), conn.get_unique_name(), "", signature="sss")
        left.set_destination(other.get_name_owner(bus_rig.NAME))
        other.send_message(left)
        other.flush()
        manager(other).CountTokens("x", options())  # so it was read
        with socket.socket(fileno=fd.take()) as s:
            s.settimeout(0.3)
            with self.assertRaises(TimeoutError):
                s.recv(1)

    def test_a_caller_that_leaves_cancels(self):
        conn, watch = self.bus.connect(), self.moed.client()
        self.addCleanup(watch.close)
        connections = watch.call("server.status")["connections"]
        for _ in range(40):
            send(conn, "Respond", "go on", options())
        rig.until(lambda: running(watch) > 5, "nothing runs")
        self.assertEqual(watch.call("server.status")["connections"], connections)
        conn.close()
        rig.until(lambda: not running(watch), "still running")
        self.assertRegex(self.moed.text(), "(?i)cancelled")


class Limits(unittest.TestCase):
    def test_a_user_has_so_many_connections(self):
        with Bus() as bus, bus.moed("user-connections = 2\n"):
            conn = bus.connect()
            held = [manager(conn).OpenSession(options())[1].take() for _ in range(2)]
            name, _ = error_of(manager(conn).OpenSession, options())
            self.assertEqual(name, f"{bus_rig.NAME}.Error.QuotaExceeded")
            self.assertGreater(manager(conn).CountTokens("x", options()), 0)  # a call is no connection
            for fd in held:
                os.close(fd)
            conn.close()

    def test_a_user_has_so_many_sessions(self):
        with Bus() as bus, bus.moed("user-sessions = 2\n"):
            conn, other = bus.connect(), bus.connect()
            held = [manager(c).OpenSession(options())[1].take() for c in (conn, other)]
            name, text = error_of(manager(conn).OpenSession, options())
            self.assertEqual(name, f"{bus_rig.NAME}.Error.QuotaExceeded")
            self.assertRegex(text, r"\(limit=2\)$")
            self.assertEqual(bus.get("SessionCount"), 2)
            other.close()  # its sessions close with it
            rig.until(lambda: bus.get("SessionCount") == 1, "still there")
            held.append(manager(conn).OpenSession(options())[1].take())
            for fd in held:
                os.close(fd)
            conn.close()

    def test_a_user_has_so_many_jobs(self):
        with Bus() as bus, bus.moed("user-jobs = 2\n") as moed:
            conn = bus.connect()
            with moed.client() as watch, moed.client() as c:
                for _ in range(2):  # of the same user, and not to be ended by what the model draws
                    c.send("generate", **rig.LONG)
                rig.until(lambda: running(watch) == 2, "nothing runs")
                name, text = error_of(manager(conn).Respond, "x", options())
            self.assertEqual(name, f"{bus_rig.NAME}.Error.Busy")
            self.assertRegex(text, r"\(retry_after_ms=\d+ position=2\)$")
            conn.close()

    def test_a_user_has_so_many_calls(self):
        with Bus() as bus, bus.moed("user-jobs = 4096\nqueue = 4096\n") as moed:
            conns = [bus.connect() for _ in range(2)]
            for i in range(64):
                send(conns[i % 2], "Respond", "go on", options())
            with moed.client() as watch:
                rig.until(lambda: running(watch) >= 60, "nothing runs")
            name, text = error_of(manager(conns[0]).CountTokens, "x", options())
            self.assertEqual(name, f"{bus_rig.NAME}.Error.QuotaExceeded")
            self.assertIn("64 open calls", text)
            for conn in conns:
                conn.close()

    def test_pressure(self):
        with Bus() as bus:
            fifo = bus.dir / "pressure"
            os.mkfifo(fifo)
            with bus.moed(f"pressure-watch = {fifo}\n"):
                signals = bus.listen()
                with open(fifo, "w") as sign:
                    sign.write("x")
                rig.until(lambda: bus.get("PressureLevel") == 1, "no level")
                rig.until(lambda: changed(signals()).get("PressureLevel") == 1, "no signal")

    def test_shutting_down(self):
        with Bus() as bus, bus.moed() as moed:
            conn = bus.connect()
            got = []

            def ask():
                try:
                    while True:
                        manager(conn).Respond("go on", options(max_tokens=dbus.UInt32(400)), timeout=60)
                except dbus.DBusException as e:
                    got.append(e.get_dbus_name())

            t = threading.Thread(target=ask)
            t.start()
            with moed.client() as watch:
                rig.until(lambda: running(watch), "nothing is asked")
            moed.stop()
            t.join(20)
            self.assertIn(got[0], (f"{bus_rig.NAME}.Error.ShuttingDown", STD + "ServiceUnknown", STD + "NoReply"))
            conn.close()


class Errors(unittest.TestCase):
    """Those that take a service of its own."""

    def error(self, name):
        return f"{bus_rig.NAME}.Error.{name}"

    def test_documented_is_tested(self):
        page = (bus_rig.BUILD / f"dbus/{bus_rig.NAME}.5").read_text()
        text = page[page.index("Others begin with"):page.index("Numbers stand at the end")]
        names = set(re.findall(r"^\.BR? ([A-Z][A-Za-z]+)(?: [,.])?$", text, re.M))
        tests = pathlib.Path(__file__).parent
        tested = "".join(p.read_text() for p in (tests / "test-bus.py", tests / "test-bus-admin.py"))
        self.assertGreater(len(names), 9)
        self.assertEqual({n for n in names if not re.search(rf'(error\(|Error\.|name \+ )"?{n}\b', tested)}, set())

    def test_model_unavailable(self):
        with Bus() as bus:
            models = bus.dir / "models"
            models.mkdir()
            (models / "broken.gguf").write_bytes(b"no model " * 100)
            with bus.moed(f"model-dir = {models}\npreload = no\n", model=None):
                conn = bus.connect()
                name, text = error_of(manager(conn).Respond, "x", options())
                self.assertEqual(name, self.error("ModelUnavailable"))
                self.assertIn("broken", text)
                self.assertEqual(error_of(manager(conn).Respond, "x", options())[0], self.error("ModelUnavailable"))  # at once
                state, details = manager(conn).GetAvailability("", options())
                self.assertEqual((state, details["reason"]), (1, "load-failed"))
                conn.close()

    def test_insufficient_memory(self):
        with Bus() as bus, bus.moed("oversize = no\nkv-bytes = 900T\npreload = no\n"):
            conn = bus.connect()
            for call in (lambda: manager(conn).Respond("x", options()), lambda: manager(conn, "Admin").LoadModel("tiny", options())):
                name, text = error_of(call)
                self.assertEqual(name, self.error("InsufficientMemory"))
                self.assertRegex(text, r"\(need=\d+ have=\d+\)$")
            conn.close()

    def test_busy_and_quota_are_told_apart(self):
        with Bus() as bus, bus.moed("user-jobs = 1\n") as moed:
            conn = bus.connect()
            session = manager(conn).OpenSession(options())
            path, fd = session[0].removeprefix(bus_rig.PATH), session[1].take()
            send(conn, "Respond", "go on", options())
            with moed.client() as watch:
                rig.until(lambda: running(watch) == 1, "nothing runs")
            name, _ = error_of(manager(conn, "Session", path).Respond, "x", options())
            self.assertEqual(name, self.error("Busy"))
            os.close(fd)
            conn.close()


class NoBus(unittest.TestCase):
    def test_the_socket_is_served_without(self):
        env = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere/bus"}
        with rig.Moed(config="bus = system\n", env=env) as moed:
            with moed.client() as c:
                self.assertEqual(c.call("server.status")["state"], "ready")
            self.assertIn("no bus", moed.text())

    def test_the_bus_goes_and_the_service_stays(self):
        with Bus() as bus, bus.moed() as moed:
            bus.daemon.terminate()
            bus.daemon.wait(10)
            rig.until(lambda: "the bus is gone" in moed.text(), "unnoticed")
            with moed.client() as c:
                self.assertEqual(c.call("server.status")["state"], "ready")

    def test_a_name_that_is_taken(self):
        with Bus() as bus, bus.moed():
            with rig.Moed(config="bus = system\n", env=bus.env()) as second:
                rig.until(lambda: "another service has the name" in second.text(), "unnoticed")
                with second.client() as c:
                    self.assertEqual(c.call("server.status")["state"], "ready")

    def test_only_if_asked_for(self):
        with Bus() as bus:
            with rig.Moed(env=bus.env()):
                self.assertFalse(bus.has_owner(bus_rig.NAME))


if __name__ == "__main__":
    bus_rig.main(unittest)
