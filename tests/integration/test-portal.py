# SPDX-License-Identifier: Apache-2.0
"""moed-portal on a session bus of its own, with the real service and the demo model behind it.

test-portal.py MOED PORTAL SOURCE
"""
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as ET

import rig

try:
    import dbus
    import dbus.bus
    import dbus.lowlevel
    import dbus.mainloop.glib
    from gi.repository import GLib
except ImportError:
    print("python3-dbus or python3-gi is missing")
    sys.exit(77)

NAME, PATH = "org.freedesktop.impl.portal.desktop.moed", "/org/freedesktop/portal/desktop"
IMPL = "org.freedesktop.impl.portal."
LANGUAGE, REQUEST, SESSION = IMPL + "Language", IMPL + "Request", IMPL + "Session"
ERROR, STD = "org.freedesktop.portal.Error.", "org.freedesktop.DBus.Error."
PORTAL = SOURCE = None  # set by main()
CONFIG = """<busconfig><type>session</type><listen>unix:path={}/bus</listen><policy context="default">
<allow own="*"/><allow send_destination="*" eavesdrop="false"/><allow eavesdrop="false"/></policy></busconfig>"""
ANSWER_SEC = 60


def options(n=40, temperature=0.0, target="", mode="interactive"):
    return dbus.Struct((dbus.Int64(n), dbus.Double(temperature), "", target, mode), signature="xdsss")


def ask(text):
    return json.dumps([{"type": "input_text", "text": text}])


NO_FDS = dbus.Array([], signature="h")


class Pending:
    """A call that was sent: its reply and the signals with its handle, as they come."""

    def __init__(self, path):
        self.path, self.signals, self.reply, self.error, self.done = path, [], None, None, False

    def text(self):
        return "".join(s[1] for s in self.signals if s[0] == "TokenReceived")


class Caller:
    """A connection to the bus; who asks, as xdg-desktop-portal would."""
    count = itertools.count()

    def __init__(self, bus):
        self.conn = dbus.bus.BusConnection(f"unix:path={bus}", mainloop=dbus.mainloop.glib.DBusGMainLoop())
        self.pending, self.others = {}, []
        self.conn.add_message_filter(self.on_message)

    def on_message(self, _conn, m):
        if m.get_type() == dbus.lowlevel.MESSAGE_TYPE_SIGNAL and (m.get_interface() or "").startswith(IMPL):
            args = m.get_args_list()
            p = self.pending.get(str(args[0])) if args else None
            if p:
                p.signals.append((m.get_member(), *args[2:]))
            else:
                self.others.append((m.get_path(), m.get_member()))
        return dbus.lowlevel.HANDLER_RESULT_NOT_YET_HANDLED

    def handle(self, kind="request"):
        return f"{PATH}/{kind}/t{next(self.count)}"

    def send(self, member, signature, *args, handle=True, path=PATH, interface=LANGUAGE):
        p = Pending(self.handle() if handle else None)
        if handle:
            self.pending[p.path] = p
            args = dbus.ObjectPath(p.path), *args

        def on_reply(*values):
            p.reply, p.done = values, True

        def on_error(e):
            p.error, p.done = (e.get_dbus_name(), e.get_dbus_message()), True

        self.conn.call_async(NAME, path, interface, member, signature, args, on_reply, on_error, timeout=ANSWER_SEC)
        self.conn.flush()
        return p

    def until(self, what, why):
        end = time.monotonic() + ANSWER_SEC
        while not what():
            if time.monotonic() > end:
                raise AssertionError(why)
            if not GLib.MainContext.default().iteration(False):
                time.sleep(0.002)

    def wait(self, p):
        self.until(lambda: p.done, f"no reply to {p.path}")
        return p

    def result(self, p):
        self.wait(p)
        if p.error:
            raise AssertionError(p.error)
        return p.reply

    def availability(self, use_case):
        return self.result(self.send("GetUseCaseAvailability", "ss", "org.example.App", use_case, handle=False))[0]

    def create(self, use_case="language.summarize", instructions=""):
        """Return: the session's path, and the call."""
        path = dbus.ObjectPath(self.handle("session"))
        return path, self.wait(self.send("CreateSession", "oossss", path, "org.example.App", "", use_case, instructions))

    def session(self, *args):
        path, p = self.create(*args)
        if p.error:
            raise AssertionError(p.error)
        return path

    def respond(self, session, text, opts=None):
        return self.send("StreamResponse", "oosah(xdsss)", session, text, NO_FDS, opts or options())

    def close_object(self, path, interface):
        return self.wait(self.send("Close", "", handle=False, path=path, interface=interface))

    def close(self):
        self.conn.close()


class Portal(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="moed-portal-"))
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        (cls.dir / "etc/moed").mkdir(parents=True)
        (cls.dir / "etc/moed/moed.conf").write_text("user-connections = 64\n")
        shutil.copytree(SOURCE / "daemon/use-cases", cls.dir / "etc/moed/use-cases.d")
        (cls.dir / "etc/moed/use-cases.d/language.gone.conf").write_text("model = nowhere\n")
        (cls.dir / "bus.conf").write_text(CONFIG.format(cls.dir))
        cls.start(["dbus-daemon", f"--config-file={cls.dir}/bus.conf", "--nofork", "--nopidfile", "--nosyslog"],
                  stderr=subprocess.DEVNULL)
        rig.until(lambda: rig.listens(cls.dir / "bus"), "no bus")

    @classmethod
    def start(cls, argv, **kw):
        env = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={cls.dir}/bus"}
        proc = subprocess.Popen([str(a) for a in argv], env=env, **kw)
        cls.addClassCleanup(proc.wait)
        cls.addClassCleanup(proc.terminate)
        return proc

    def setUp(self):
        self.socket = self.dir / f"rpc-{self.id().rpartition('.')[2]}"
        self.moed = self.serve()
        self.portal = self.start([PORTAL, "--socket", self.socket])
        self.c = self.caller()
        self.c.until(lambda: self.c.conn.name_has_owner(NAME), "no name")
        self.watch = self.moed.client()
        self.addCleanup(self.watch.close)

    def serve(self):
        """A service with the demo model; self.socket leads to it."""
        model = SOURCE / "contrib/demo-model/tiny-linux-gemma4-Q8_0.gguf"
        moed = rig.Moed("--config-root", self.dir, "--model", model, model=None, wait=False)
        self.addCleanup(lambda: moed.__exit__(None))
        moed.wait_ready(True)
        self.socket.unlink(missing_ok=True)
        self.socket.symlink_to(moed.path)
        return moed

    def tearDown(self):
        if self.portal.poll() is None:
            self.portal.terminate()
        self.assertEqual(self.portal.wait(20), 0)

    def caller(self):
        c = Caller(self.dir / "bus")
        self.addCleanup(c.close)
        return c

    def idle(self):
        queue = self.watch.call("server.status")["queue"]
        return not queue["running"] + queue["waiting"]

    def want(self, use_case, *messages, n=40, **kw):
        return self.watch.call("generate", messages=[{"role": r, "content": t} for r, t in messages], use_case=use_case,
                               temperature=0.0, max_tokens=n, **kw)["text"]

    # ---- what there is ----

    def test_introspection_is_the_xml(self):
        def shape(text):
            for i in ET.fromstring(text).findall("interface"):
                if i.get("name") == LANGUAGE:
                    return {(e.tag, e.get("name"), e.get("type"), e.get("access")):
                            [(a.get("name"), a.get("type"), a.get("direction")) for a in e.findall("arg")] for e in i}
            raise AssertionError("no interface")

        text, = self.c.result(self.c.send("Introspect", "", handle=False, interface="org.freedesktop.DBus.Introspectable"))
        self.assertEqual(shape(text), shape((SOURCE / "client/portal/Language.xml").read_text()))
        version, = self.c.result(self.c.send("Get", "ss", LANGUAGE, "version", handle=False,
                                             interface="org.freedesktop.DBus.Properties"))
        self.assertEqual(version, 1)

    def test_availability(self):
        self.assertEqual(self.c.availability("language.summarize"), (True, "available", "available"))
        self.assertEqual(self.c.availability("language.embed")[:2], (False, "unsupported_use_case"))
        self.assertEqual(self.c.availability("speech.transcribe")[:2], (False, "unsupported_use_case"))
        self.assertEqual(self.c.availability("language.gone")[:2], (False, "profile_not_installed"))
        self.moed.stop()
        self.c.until(lambda: self.c.availability("language.summarize")[:2] == (False, "runtime_missing"), "still there")

    # ---- answers ----

    def test_stream(self):
        p = self.c.respond(self.c.session(), ask("How do I list files?"))
        self.assertEqual(self.c.result(p), ())
        self.assertEqual({s[0] for s in p.signals}, {"TokenReceived"})
        self.assertEqual([bool(s[2]) for s in p.signals], [False] * (len(p.signals) - 1) + [True])
        self.assertEqual(p.text(), self.want("language.summarize", ("user", "How do I list files?")))
        self.assertTrue(p.text())

    def test_conversation_and_instructions(self):
        messages = [("user", "What does grep do?"), ("assistant", "It finds lines."), ("user", "And\nsed?")]
        text = json.dumps([{"role": r, "content": [{"type": "output_text" if r == "assistant" else "input_text", "text": t}
                                                   for t in s.split("\n")]} for r, s in messages])
        p = self.c.respond(self.c.session("language.translate", "Be brief."), text, options(target="Welsh", mode="background"))
        self.c.result(p)
        self.assertEqual(p.text(), self.want("language.translate", ("system", "Be brief."), *messages, language="Welsh"))

    def test_two_sessions(self):
        a, b = self.c.session("language.summarize"), self.c.session("language.rephrase")
        calls = [self.c.respond(s, ask("How do I count lines?")) for s in (a, b, a)]
        for p in calls:
            self.c.result(p)
        want = [self.want(u, ("user", "How do I count lines?")) for u in ("language.summarize", "language.rephrase")]
        self.assertEqual([p.text() for p in calls], [want[0], want[1], want[0]])

    def test_limit(self):
        p = self.c.respond(self.c.session(), ask("How do I list files?"), options(n=3))
        self.c.result(p)
        self.assertEqual(p.text(), self.want("language.summarize", ("user", "How do I list files?"), n=3))

    def test_predict_next(self):
        s = self.c.session("language.complete")
        p = self.c.send("StreamPredictNext", "oos(xdsss)", s, "To list files, use", options(n=9))
        self.c.result(p)
        self.assertEqual(p.signals, [("PredictionReceived", self.want("language.complete", ("user", "To list files, use"), n=9), True)])

    def test_a_newer_prediction_wins(self):
        s = self.c.session("language.complete")
        self.moed.proc.send_signal(signal.SIGSTOP)
        old, new = [self.c.send("StreamPredictNext", "oos(xdsss)", s, "To list", options(n=5)) for _ in range(2)]
        self.c.wait(old)
        self.moed.proc.send_signal(signal.SIGCONT)
        self.assertEqual(old.error, (ERROR + "Cancelled", "a newer prediction was asked for"))
        self.assertEqual(old.signals, [])
        self.c.result(new)

    def test_prewarm_loads(self):
        s = self.c.session("language.summarize", "You know Linux. " * 20)
        self.watch.call("model.unload")
        rig.until(lambda: self.watch.call("server.status")["state"] == "empty", "not unloaded")
        p = self.c.send("Prewarm", "oo", s)
        self.assertEqual(self.c.result(p), ())
        self.assertEqual(self.watch.call("server.status")["state"], "ready")
        self.assertIn("ModelLoading", [x[0] for x in p.signals])
        usage = self.watch.call("generate", messages=[{"role": "system", "content": "You know Linux. " * 20}, {
            "role": "user", "content": "x"}], use_case="language.summarize", max_tokens=1)["usage"]
        self.assertGreater(usage["cached"], usage["prompt"] // 2)

    # ---- ends ----

    def started(self, c, session):
        """A request with some tokens that goes on for a while: nothing ends it but chance."""
        for _ in range(20):
            p = c.respond(session, ask("Tell me more."), options(n=400, temperature=2.0))
            c.until(lambda: p.text() or p.done, "nothing comes")
            if not p.done:
                return p
        raise AssertionError("each ended at once")

    def test_request_close(self):
        s = self.c.session()
        for _ in range(5):
            p = self.started(self.c, s)
            closed = self.c.close_object(p.path, REQUEST)
            self.c.wait(p)
            if p.error:
                break
        self.assertIsNone(closed.error)
        self.assertEqual(p.error, (ERROR + "Cancelled", "the request was closed"))
        n = len(p.signals)
        self.c.until(self.idle, "it goes on")
        self.assertEqual(len(p.signals), n)
        self.assertNotIn(True, [bool(x[2]) for x in p.signals])
        self.assertEqual(self.c.close_object(p.path, REQUEST).error[0], STD + "UnknownObject")
        self.c.result(self.c.respond(s, ask("How do I list files?")))  # the session goes on

    def test_close_before_an_answer(self):
        s = self.c.session()
        self.moed.proc.send_signal(signal.SIGSTOP)
        p = self.c.respond(s, ask("hello"))
        closed = self.c.close_object(p.path, REQUEST)
        self.c.wait(p)
        self.moed.proc.send_signal(signal.SIGCONT)
        self.assertIsNone(closed.error)
        self.assertEqual((p.error[0], p.signals), (ERROR + "Cancelled", []))
        self.c.until(self.idle, "it goes on")

    def test_close_while_a_session_is_made(self):
        self.c.availability("language.summarize")  # connected
        self.moed.proc.send_signal(signal.SIGSTOP)
        path = dbus.ObjectPath(self.c.handle("session"))
        p = self.c.send("CreateSession", "oossss", path, "", "", "language.summarize", "")
        self.c.close_object(p.path, REQUEST)
        self.c.wait(p)
        self.moed.proc.send_signal(signal.SIGCONT)
        self.assertEqual(p.error[0], ERROR + "Cancelled")
        self.assertEqual(self.c.wait(self.c.respond(path, ask("x"))).error[0], STD + "AccessDenied")

    def test_session_close(self):
        s, other = self.c.session(), self.c.session()
        calls = [self.started(self.c, x) for x in (s, s, other)]
        self.assertIsNone(self.c.close_object(s, SESSION).error)
        for p in calls[:2]:
            self.c.wait(p)
            self.assertIn(p.error, (None, (ERROR + "Cancelled", "the session is closed")))
        self.assertEqual(self.c.wait(self.c.respond(s, ask("x"))).error[0], STD + "AccessDenied")
        self.assertEqual(self.c.close_object(s, SESSION).error[0], STD + "UnknownObject")
        self.c.result(calls[2])

    def test_vanished_caller(self):
        gone = Caller(self.dir / "bus")
        s = gone.session()
        for _ in range(3):
            self.started(gone, s)
        gone.close()
        self.c.until(self.idle, "it goes on")
        self.c.until(lambda: self.c.close_object(s, SESSION).error[0] == STD + "UnknownObject", "still there")
        self.c.result(self.c.respond(self.c.session(), ask("How do I list files?")))

    def test_another_caller_may_not(self):
        s, other = self.c.session(), self.caller()
        rule = f"type='signal',interface='{LANGUAGE}'"
        other.conn.add_match_string(rule)
        self.moed.proc.send_signal(signal.SIGSTOP)
        p = self.c.respond(s, ask("How do I list files?"))
        self.c.result(self.c.send("Introspect", "", handle=False, interface="org.freedesktop.DBus.Introspectable"))  # it is there
        for path, interface in (p.path, REQUEST), (s, SESSION):
            self.assertEqual(other.close_object(path, interface).error[0], STD + "AccessDenied")
        self.assertEqual(other.wait(other.respond(s, ask("x"))).error[0], STD + "AccessDenied")
        self.moed.proc.send_signal(signal.SIGCONT)
        self.c.result(p)
        other.availability("language.summarize")
        self.assertEqual(other.others, [])

    def test_the_service_restarts(self):
        s = self.c.session()
        p = self.started(self.c, s)
        self.moed.stop()
        self.c.wait(p)
        self.assertIn(p.error and p.error[0], (None, ERROR + "Failed"))
        self.c.until(lambda: (self.c.wait(self.c.respond(s, ask("x"))).error or ("", ""))[1].startswith("moed cannot be reached: "),
                     "still there")
        self.moed = self.serve()
        self.c.result(self.c.respond(s, ask("How do I list files?")))

    def test_the_portal_ends(self):
        s = self.c.session()
        self.c.conn.add_match_string(f"type='signal',interface='{SESSION}'")
        self.portal.terminate()
        self.c.until(lambda: (s, "Closed") in self.c.others, "nobody says so")

    # ---- errors ----

    def test_inputs(self):
        s = self.c.session()
        part = {"type": "input_text", "text": "x"}
        for text, name, says in (
                ("", ERROR + "InvalidArgument", "the input is not JSON"),
                ("[1", ERROR + "InvalidArgument", "the input is not JSON"),
                ("[] x", ERROR + "InvalidArgument", "the input is not JSON"),
                ("{}", ERROR + "InvalidArgument", "the input is not a list of messages or content parts"),
                ("[]", ERROR + "InvalidArgument", "the input is not a list of messages or content parts"),
                ("[null]", ERROR + "InvalidArgument", "a message has no role"),
                ([{"text": "x"}], ERROR + "InvalidArgument", "a content part has no type"),
                ([part, 7], ERROR + "InvalidArgument", "a content part is not an object"),
                ([{"type": "input_text"}], ERROR + "InvalidArgument", "a content part has no text"),
                ([{"type": "video", "text": "x"}], ERROR + "InvalidArgument", "a content part is of an unknown type"),
                ([{"type": "input_text", "text": "a\0b"}], ERROR + "InvalidArgument", "a text has a NUL character"),
                ([{"role": "user"}], ERROR + "InvalidArgument", "a message has no content"),
                ([{"role": "user", "content": []}], ERROR + "InvalidArgument", "a message has no content"),
                ([{"role": "judge", "content": [part]}], ERROR + "InvalidArgument", "a message has an unknown role"),
                ([{"role": "tool", "content": [part]}], STD + "NotSupported", "tools are not supported"),
                ([part, {"type": "input_image", "fd_index": 0}], STD + "NotSupported", "images and sounds are not supported"),
                (" " * (4 << 20) + "[]", ERROR + "InvalidArgument", "the input is larger than 4 MiB")):
            p = self.c.wait(self.c.respond(s, text if isinstance(text, str) else json.dumps(text)))
            self.assertEqual(p.error, (name, says))

    def test_options(self):
        s = self.c.session()
        for bad, says in ((options(n=0), "maximum_response_tokens is less than 1"),
                          (options(temperature=-1.0), "temperature is less than 0"),
                          (options(temperature=float("nan")), "temperature is less than 0"),
                          (options(mode="now"), "execution_mode is neither interactive nor background")):
            self.assertEqual(self.c.wait(self.c.respond(s, ask("x"), bad)).error, (ERROR + "InvalidArgument", says))
        p = self.c.wait(self.c.respond(s, ask("word " * 9000)))
        self.assertEqual(p.error[0], ERROR + "Failed")
        self.assertRegex(p.error[1], "context")

    def test_sessions_that_cannot_be(self):
        for use_case, name, says in (("language.none", ERROR + "InvalidArgument", "no use case language.none"),
                                     ("vision.describe", ERROR + "InvalidArgument", "vision.describe is no use case of language"),
                                     ("language.gone", ERROR + "NotFound", "nowhere")):
            _, p = self.c.create(use_case)
            self.assertEqual(p.error[0], name)
            self.assertIn(says, p.error[1])
        s = self.c.session()
        p = self.c.wait(self.c.send("CreateSession", "oossss", s, "", "", "language.summarize", ""))
        self.assertEqual(p.error, (ERROR + "Exists", f"{s} is a session"))
        _, p = self.c.create("language.summarize", "x" * ((1 << 20) + 1))
        self.assertEqual(p.error[0], ERROR + "InvalidArgument")
        p = self.c.wait(self.c.send("StreamPredictNext", "oos(xdsss)", s, "x", options()))
        self.assertEqual(p.error, (ERROR + "InvalidArgument", "the session is for language.summarize"))

    def test_a_handle_is_used_once(self):
        s = self.c.session()
        self.moed.proc.send_signal(signal.SIGSTOP)
        p = self.c.respond(s, ask("x"))
        again = self.c.send("Prewarm", "oo", dbus.ObjectPath(p.path), s, handle=False)
        self.c.wait(again)
        self.moed.proc.send_signal(signal.SIGCONT)
        self.assertEqual(again.error, (ERROR + "Exists", f"{p.path} is a request"))
        self.c.result(p)

    def test_too_many(self):
        self.moed.proc.send_signal(signal.SIGSTOP)
        calls = [self.c.send("GetUseCaseAvailability", "ss", "", "language.summarize", handle=False) for _ in range(80)]
        self.c.until(lambda: sum(p.done for p in calls) >= 16, "all are taken")
        self.moed.proc.send_signal(signal.SIGCONT)
        for p in calls:
            self.c.wait(p)
        self.assertEqual({p.error for p in calls}, {None, (ERROR + "Failed", "too many requests")})
        sessions = 0
        while not (p := self.c.create()[1]).error:
            sessions += 1
        self.assertEqual((sessions, p.error), (256, (ERROR + "Failed", "more than 256 sessions")))

    def test_not_supported(self):
        s = self.c.session()
        fields, tools = dbus.Array([], signature="(sssb)"), dbus.Array([], signature="(sss)")
        opts = dbus.Struct((dbus.Int64(1), dbus.Double(0), "interactive"), signature="xds")
        for member, signature, args in (
                ("StreamRespondGuided", "oosaha(sssb)a(sss)(xds)", (s, "x", NO_FDS, fields, tools, opts)),
                ("StreamSubmitToolResultsGuided", "oosaha(sss)a(sssb)a(sss)(xds)", (s, "x", NO_FDS, tools, fields, tools, opts)),
                ("StreamEmbed", "oos(s)", (s, "x", dbus.Struct(("interactive",), signature="s")))):
            self.assertEqual(self.c.wait(self.c.send(member, signature, *args)).error,
                             (STD + "NotSupported", f"{member} is not supported yet"))


if __name__ == "__main__":
    PORTAL, SOURCE = os.path.abspath(sys.argv.pop(2)), pathlib.Path(sys.argv.pop(2))
    rig.main(unittest)
