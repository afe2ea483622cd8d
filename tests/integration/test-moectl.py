#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""moectl against a service that this script plays: test-moectl.py MOECTL"""
import fcntl
import json
import os
import pathlib
import pty
import re
import resource
import select
import signal
import struct
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest
from xml.etree import ElementTree

try:
    import msgpack
except ImportError:
    sys.exit(77)

MOECTL = ""
IUTF8 = 0o40000  # of Linux; termios has no name for it
EXAMPLE = os.path.join(os.path.dirname(__file__), "../../contrib/examples/client.py")
RESULT = {"stop_reason": "stop", "usage": {"prompt": 5, "cached": 0, "generated": 2, "dropped": 0},
          "timings": {"queue_us": 1, "prefill_us": 2, "decode_us": 3}, "seed": 7, "model": "tiny"}


class Service:
    """Answers each request by script[method](service, msgid, params); records what came."""

    def __init__(self, script):
        self.script, self.seen, self.dir = script, [], tempfile.TemporaryDirectory()
        self.path = self.dir.name + "/rpc"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.conn = None
        self.cancelled = threading.Event()
        self.hung_up = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                self.conn, _ = self.listener.accept()
            except OSError:
                return
            unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
            while True:
                try:
                    data = self.conn.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    break
                unpacker.feed(data)
                for frame in unpacker:
                    self.take(frame)
            self.conn.close()
            self.hung_up.set()

    def take(self, frame):
        if frame[0] == 2:
            self.seen.append((frame[1], frame[2][0]))
            if frame[1] == "generate.cancel":
                self.cancelled.set()
            return
        _, msgid, method, (params,) = frame
        self.seen.append((method, params))
        # A thread, so that a cancel can come while an answer is written.
        threading.Thread(target=self.script[method], args=(self, msgid, params), daemon=True).start()

    def send(self, frame):
        try:
            self.conn.sendall(msgpack.packb(frame))
        except OSError:
            pass

    def result(self, msgid, result):
        self.send([1, msgid, None, result])

    def error(self, msgid, code, name, message, data=None):
        self.send([1, msgid, {"code": code, "name": name, "message": message, "data": data or {}}, None])

    def notify(self, method, **params):
        self.send([2, method, [params]])

    def params(self, method="generate"):
        return [p for m, p in self.seen if m == method][-1]

    def close(self):
        self.listener.close()
        if self.conn:
            self.conn.close()
        self.dir.cleanup()


def answers(*pieces, thoughts=(), **more):
    """A script of generate: streams or returns @pieces."""

    def generate(service, msgid, params):
        result = dict(RESULT, **more)
        if params.get("stream"):
            for i, (kind, text) in enumerate([("thought", t) for t in thoughts] + [("text", t) for t in pieces]):
                service.notify("generate.delta", id=msgid, seq=i, kind=kind, text=text)
        else:
            result.update(text="".join(pieces), thought="".join(thoughts))
        service.result(msgid, result)

    return {"generate": generate}


def chats(script):
    """The same for session.generate, in sessions that are numbered."""
    last = [0]

    def open_session(service, msgid, params):
        last[0] += 1
        service.result(msgid, {"session": last[0], "model": "tiny"})

    return {"session.open": open_session, "session.generate": script["generate"],
            "session.close": lambda s, i, p: s.result(i, {}), "session.save": lambda s, i, p: s.result(i, {"token": "ab" * 16}),
            "session.restore": lambda s, i, p: s.result(i, {"session": 77, "model": "tiny"}),
            "session.append": lambda s, i, p: s.result(i, {"context_used": 9}), "session.forget": lambda s, i, p: s.result(i, {})}


def fails(method, *error):
    return {method: lambda s, i, p: s.error(i, *error)}


def returns(method, result):
    return {method: lambda s, i, p: s.result(i, result)}


class Case(unittest.TestCase):
    service = None

    def serve(self, script):
        if self.service:
            self.service.close()
        self.service = Service(script)
        return self.service

    def tearDown(self):
        if self.service:
            self.service.close()

    def env(self, **more):
        env = {k: v for k, v in os.environ.items() if k not in ("MOE_SOCKET", "XDG_RUNTIME_DIR", "NO_COLOR")}
        if self.service:
            env["MOE_SOCKET"] = self.service.path
        return dict(env, **more)

    def moectl(self, *args, stdin=b"", **kw):
        kw.setdefault("env", self.env())
        return subprocess.run([MOECTL, *args], input=stdin, capture_output=True, timeout=30, **kw)

    def check(self, run, code, out=None, err=None):
        self.assertEqual(run.returncode, code, run)
        if out is not None:
            self.assertEqual(run.stdout, out)
        if err is not None:
            self.assertRegex(run.stderr.decode(), err)


class Run(Case):
    def test_answer_and_nothing_else(self):
        self.serve(answers("Hel", "l\u00f6\n", " there", thoughts=["hm"]))
        self.check(self.moectl("run", "hi"), 0, "Hell\u00f6\n there".encode(), r"^$")
        self.assertEqual(self.service.params(), {"messages": [{"role": "user", "content": "hi"}], "stream": True})

    def test_no_stream(self):
        self.serve(answers("whole"))
        self.check(self.moectl("run", "--no-stream", "hi"), 0, b"whole", r"^$")
        self.assertNotIn("stream", self.service.params())

    def test_every_option_arrives(self):
        self.serve(answers("x"))
        run = self.moectl("--json=short", "run", "--system", "be brief", "--thinking", "--max-tokens=9",
                          "--temperature", "0.5", "--top-k", "4", "--top-p", "0.9", "--min-p", "0",
                          "--seed", "18446744073709551615", "--stop", "A", "--stop", "B", "--deadline",
                          "2min", "--priority=background", "--logprobs", "0", "--model", "other", "hi")
        self.check(run, 0)
        self.assertEqual(self.service.params(), {
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
            "thinking": True, "max_tokens": 9, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.0,
            "seed": 2**64 - 1, "stop": ["A", "B"], "deadline_ms": 120000, "priority": "background", "logprobs": 0, "model": "other"})

    def test_raw(self):
        self.serve(answers("x"))
        self.check(self.moectl("run", "--raw", "--special", "<bos>a"), 0, b"x")
        self.assertEqual(self.service.params(), {"prompt": "<bos>a", "special": True, "stream": True})

    def test_json(self):
        self.serve(answers("a\u00e9", logprobs=[{"token": 1, "bytes": b"\xff\x00", "logprob": -0.5, "top": []}],
                           extra={1: None, "neg": -3, "big": 2**63, "t": True, "nan": float("nan")}))
        for mode in ("--json", "--json=short", "--json=pretty"):
            run = self.moectl("run", mode, "hi", env=self.env(LC_ALL="de_DE.UTF-8"))
            self.check(run, 0, None, r"^$")
            v = json.loads(run.stdout)
            self.assertEqual(v["text"], "a\u00e9")
            self.assertEqual(v["logprobs"], [{"token": 1, "bytes": [255, 0], "logprob": -0.5, "top": []}])
            self.assertEqual(v["extra"], {"1": None, "neg": -3, "big": 2**63, "t": True, "nan": None})
            self.assertEqual(run.stdout.count(b"\n") > 1, mode == "--json=pretty")

    def test_inputs(self):
        self.serve(answers("x"))
        with tempfile.TemporaryDirectory() as d:
            for name in "ab":
                with open(f"{d}/{name}", "w", encoding="utf-8") as f:
                    f.write(f"file {name}\n")
            for args, stdin, want in (
                    (["hi"], b"piped", "hi\n\npiped"),
                    ([], b"piped\n", "piped\n"),
                    (["-"], b"piped", "piped"),
                    (["hi", "-f", f"{d}/a", "-f", f"{d}/b"], b"", "hi\n\nfile a\n\n\nfile b\n"),
                    (["-f", f"{d}/a"], b"piped", "file a\n\n\npiped"),
                    (["--", "--help"], b"", "--help")):
                self.check(self.moectl("run", *args, stdin=stdin), 0, b"x")
                self.assertEqual(self.service.params()["messages"][0]["content"], want)
            self.check(self.moectl("run", "-f", d + "/none"), 1, b"", r"none: cannot open: No such file")
            self.check(self.moectl("run", "-f", d), 1, b"", r"cannot read: Is a directory")
        self.check(self.moectl("run", stdin=b"a\0b"), 1, b"", r"NUL byte")
        self.check(self.moectl("run"), 2, b"", r"text is empty")

    def test_too_large_an_input(self):
        self.serve(answers("x"))
        self.check(self.moectl("run", stdin=b"x" * ((16 << 20) + 1)), 1, b"", r"more than 16 MiB")
        self.check(self.moectl("run", stdin=b"x" * (16 << 20)), 1, b"", r"larger than 16 MiB")
        self.check(self.moectl("run", stdin=b"x" * ((16 << 20) - 200)), 0, b"x")

    def test_exit_codes(self):
        self.serve(answers("x", stop_reason="length"))
        self.check(self.moectl("run", "hi"), 5, b"x", r"^$")
        self.serve(answers("x", stop_reason="deadline"))
        self.check(self.moectl("run", "hi"), 5, b"x")
        for code, name, data, want, text in (
                (1, "InvalidArgs", {}, 1, "why"),
                (3, "NoSuchModel", {}, 4, "why"),
                (4, "ModelUnavailable", {}, 4, "why"),
                (5, "InsufficientMemory", {"need": 3 << 30, "have": 1 << 20}, 4, r"3\.0 GiB needed, 1\.0 MiB free"),
                (6, "ContextOverflow", {"requested": 9000, "available": 8192}, 1, "9000 tokens requested, 8192"),
                (7, "InvalidSchema", {}, 8, "why"),
                (8, "InvalidGrammar", {}, 8, "why"),
                (9, "Busy", {"retry_after_ms": 1500, "position": 2}, 7, r"try again in 1\.5 s"),
                (10, "QuotaExceeded", {"limit": 4}, 7, "limit is 4"),
                (11, "AccessDenied", {}, 6, "why"),
                (12, "Cancelled", {}, 1, "why"),
                (15, "Corrupt", {}, 4, "why"),
                (16, "ShuttingDown", {}, 3, "why"),
                (17, "TooLarge", {"limit": 10}, 1, "why"),
                (18, "Timeout", {}, 5, "why"),
                (19, "Internal", {}, 1, "why"),
                (20, "NoSuchMethod", {}, 1, "why"),
                (999, "New", {}, 1, "why")):
            self.serve(fails("generate", code, name, "why", data))
            self.check(self.moectl("run", "hi"), want, b"", "^moectl: why.*" + ("" if text == "why" else text))

    def test_hang_up(self):
        def generate(service, msgid, params):
            service.notify("generate.delta", id=msgid, seq=0, kind="text", text="half")
            service.conn.shutdown(socket.SHUT_RDWR)
        self.serve({"generate": generate})
        self.check(self.moectl("run", "hi"), 3, b"half", "closed the connection")

    def test_refused_with_a_reason(self):
        def generate(service, msgid, params):
            service.notify("rpc.error", code=10, name="QuotaExceeded", message="16 connections are the most")
            service.conn.shutdown(socket.SHUT_RDWR)
        self.serve({"generate": generate})
        self.check(self.moectl("run", "hi"), 7, b"", "16 connections are the most")

    def test_nonsense_from_the_service(self):
        self.serve({"generate": lambda s, i, p: s.conn.sendall(b"HTTP/1.1 400\r\n")})
        self.check(self.moectl("run", "hi"), 3, b"", "no message of the protocol")

    def test_interrupt(self):
        def generate(service, msgid, params):
            service.notify("generate.delta", id=msgid, seq=0, kind="text", text="first")
            service.cancelled.wait(10)
            service.notify("generate.delta", id=msgid, seq=1, kind="text", text=" last")
            service.error(msgid, 12, "Cancelled", "cancelled")
        self.serve({"generate": generate})
        p = subprocess.Popen([MOECTL, "run", "hi"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=self.env())
        self.assertEqual(os.read(p.stdout.fileno(), 100), b"first")
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=10)
        self.assertEqual((p.returncode, out, err), (130, b" last", b""))
        self.assertEqual([m for m, _ in self.service.seen], ["generate", "generate.cancel"])

    def test_interrupt_a_deaf_service(self):
        self.serve({"generate": lambda s, i, p: s.notify("generate.delta", id=i, seq=0, kind="text", text="x")})
        p = subprocess.Popen([MOECTL, "run", "hi"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self.env())
        self.assertEqual(os.read(p.stdout.fileno(), 100), b"x")
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.wait(timeout=10), 130)
        p.stdout.close()

    def test_closed_stdout_is_quiet(self):
        def generate(service, msgid, params):
            for i in range(200):
                service.notify("generate.delta", id=msgid, seq=i, kind="text", text="word " * 100)
                if service.hung_up.wait(0.002):
                    return
            service.result(msgid, RESULT)
        for ignored in (False, True):
            self.serve({"generate": generate})
            p = subprocess.Popen([MOECTL, "run", "hi"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=self.env(), restore_signals=not ignored,
                                 preexec_fn=(lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)) if ignored else None)
            self.assertEqual(os.read(p.stdout.fileno(), 4), b"word")
            p.stdout.close()
            self.assertEqual(p.stderr.read(), b"")
            p.stderr.close()
            p.wait(timeout=20)
            self.assertEqual(p.returncode, 1 if ignored else -signal.SIGPIPE)

    def test_closed_files(self):
        """The socket must not get the number of a closed stdin, stdout or stderr."""
        for fds in ([0], [1], [2], [0, 1, 2]):
            self.serve(answers("answer"))
            p = subprocess.run([MOECTL, "run", "hi"], env=self.env(), timeout=10, stdout=subprocess.PIPE,
                               preexec_fn=lambda fds=fds: [os.close(fd) for fd in fds])
            self.assertEqual(p.returncode, 0, fds)
            self.assertEqual(p.stdout, b"" if 1 in fds else b"answer")
            self.assertEqual([m for m, _ in self.service.seen], ["generate"])

    def test_full_disk(self):
        self.serve(answers("x"))
        with open("/dev/full", "wb") as full:
            p = subprocess.run([MOECTL, "run", "--json", "hi"], env=self.env(), timeout=10, stdout=full,
                               stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.assertEqual(p.returncode, 1)
        self.assertIn(b"No space left", p.stderr)


class Purposes(Case):
    SCORES = {"choices": [{"text": "a", "logprob": -2.5, "p": 0.25}, {"text": "b\x1b", "logprob": -1.5, "p": 0.75}],
              "confidence": 0.75, "usage": {"prompt": 9, "cached": 0}}

    def test_ask(self):
        self.serve(answers("x"))
        self.check(self.moectl("ask", "What", "is  it", "--max-tokens", "3", "?", stdin=b"piped"), 0, b"x", "^$")
        self.assertEqual(self.service.params(), {"messages": [{"role": "user", "content": "What is  it ?\n\npiped"}],
                                                 "max_tokens": 3, "stream": True})
        self.check(self.moectl("ask", "-", stdin=b"typed"), 0, b"x")
        self.assertEqual(self.service.params()["messages"][0]["content"], "typed")
        self.check(self.moectl("ask"), 2, b"", "text is empty")
        self.check(self.moectl("ask", "--raw", "x"), 2, b"", "ask has no option --raw")

    def test_use_cases(self):
        self.serve(answers("x"))
        text = {"messages": [{"role": "user", "content": "long"}], "stream": True}
        for args, case in ((["summarize"], "summarize"), (["rephrase"], "rephrase"), (["translate"], "translate"),
                           (["use-case", "language.analyze"], "analyze")):
            self.check(self.moectl(*args, "long"), 0, b"x", "^$")
            self.assertEqual(self.service.params(), dict(text, use_case="language." + case))
        self.check(self.moectl("translate", "--language", "German", "--json", stdin=b"long"), 0)
        self.assertEqual(self.service.params(), {"messages": text["messages"], "use_case": "language.translate",
                                                 "language": "German"})
        self.check(self.moectl("translate", "a", "b"), 2, b"", "put the text in quotes")
        self.check(self.moectl("use-case", "x"), 2, b"", "text is empty")
        self.check(self.moectl("run", "--language", "x", "a"), 2, b"", "--language")
        self.serve(fails("generate", 2, "NotSupported", "no use case x"))
        self.check(self.moectl("use-case", "x", "text"), 1, b"", "no use case x")

    def test_use_cases_there_are(self):
        cases = {"use_cases": [{"id": "a.b", "model": "big"}, {"id": "a.long", "language": "German"}]}
        self.serve(returns("usecase.list", cases))
        self.check(self.moectl("use-case"), 0, b"a.b     big\na.long  the default model\n", "^$")
        self.assertEqual(json.loads(self.moectl("use-case", "--json").stdout), cases)
        self.serve(returns("usecase.list", {"use_cases": []}))
        self.check(self.moectl("use-case"), 0, b"", "There are no use cases")
        self.check(self.moectl("use-case", "-q"), 0, b"", "^$")

    def test_classify_and_score(self):
        self.serve(returns("score.choices", self.SCORES))
        choices = ["--choice", "a", "--choice", "b"]
        self.check(self.moectl("classify", *choices, "--model", "m", "text"), 0, b"b\x1b\n", "^$")
        self.assertEqual(self.service.params("score.choices"), {
            "choices": ["a", "b"], "messages": [{"role": "user", "content": "text"}], "model": "m", "use_case": "language.classify"})
        self.check(self.moectl("score", *choices, "--system", "s", "text"), 0,
                   b" 25.00 %     -2.500  a\n 75.00 %     -1.500  b\x1b\n", "^$")
        self.assertEqual(self.service.params("score.choices"), {
            "choices": ["a", "b"], "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "text"}]})
        self.check(self.moectl("score", *choices, "--raw", stdin=b"once"), 0)
        self.assertEqual(self.service.params("score.choices"), {"choices": ["a", "b"], "prompt": "once"})
        self.assertEqual(json.loads(self.moectl("classify", *choices, "--json", "x").stdout), self.SCORES)
        self.check(self.moectl("classify", "--choice", "a", "x"), 2, b"", "at least twice")
        self.check(self.moectl("score", *choices, "--raw", "--system", "s", "x"), 2, b"", "no place for --system")
        self.check(self.moectl("classify", *["--choice", "a"] * 257, "x"), 2, b"", "256 of them is the most")
        self.check(self.moectl("score", *choices, stdin=b"a\0b"), 1, b"", "NUL byte")

    def test_call(self):
        def generate(service, msgid, params):
            service.notify("generate.delta", id=msgid, seq=0, kind="text", text="a")
            service.result(msgid, {"stop_reason": "stop"})
        self.serve({"generate": generate, "x.y": lambda s, i, p: s.result(i, p)} |
                   fails("bad", 21, "NoSuchJob", "there is none"))
        params = {"a": [1, -2, 0.5, "\u00e9", True], "m": {"k": {}}, "big": 2**64 - 1}
        run = self.moectl("call", "x.y", json.dumps(params))
        self.check(run, 0, None, "^$")
        self.assertEqual(json.loads(run.stdout), params)
        self.assertEqual(self.service.params("x.y"), params)
        self.check(self.moectl("call", "x.y", "-", stdin=b'{"a": 1}'), 0, b'{"a":1}\n')
        self.check(self.moectl("call", "x.y"), 0, b"{}\n")
        self.check(self.moectl("call", "generate", '{"prompt": "x"}'), 0,
                   b'{"generate.delta":{"id":1,"seq":0,"kind":"text","text":"a"}}\n{"stop_reason":"stop"}\n')
        self.check(self.moectl("call", "bad"), 1, b"", "there is none")
        self.check(self.moectl("call"), 2, b"", "name of a method")
        for bad in ("[1]", "{", "5", '{"a": 1} x', "{" * 3 + '"a":' * 40, '{"a":' * 40 + "1" + "}" * 40):
            self.check(self.moectl("call", "x.y", bad), 2, b"", "no JSON object")

    def test_monitor(self):
        ready = {"state": "ready", "model": "tiny", "pressure": {"level": 0}, "power": {"level": 0}, "residency": "pressure"}
        job = {"id": 7, "kind": "generate", "state": "waiting", "uid": 4242, "pid": 9, "unit": "a.service", "model": "tiny",
               "priority": "default", "age_us": 1500000, "done": 1, "total": 5, "generated": 0}
        looks = [(dict(ready, state="loading", progress=0.55), []), (ready, [job]),
                 (dict(ready, pressure={"level": 2}, residency="pinned"), [dict(job, state="running")]),
                 (dict(ready, power={"level": 1}), [dict(job, state="running", generated=3)]), (ready, [])]
        want = ["loading: tiny", "loading tiny: 55 %", "ready: tiny", "job 7 waits: generate of user 4242 in a.service, process 9",
                "residency: pinned", "memory is short: step 2", "job 7 runs: generate of user 4242 in a.service, process 9",
                "residency: pressure", "memory is there again: step 0", "power is saved", "power is not saved",
                "job 7 ended: 5 tokens in the prompt, 3 generated when last seen, after 1.5 s"]
        for json_out in False, True:
            at = [0]

            def jobs(service, msgid, params):
                service.result(msgid, {"jobs": looks[min(at[0], len(looks) - 1)][1]})
                at[0] += 1
            self.serve({"job.list": jobs, "server.status":
                        lambda s, i, p: s.result(i, looks[min(at[0], len(looks) - 1)][0])})
            p = subprocess.Popen([MOECTL, "monitor", *(["--json"] if json_out else [])], env=self.env(), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            lines = [p.stdout.readline().decode() for _ in want]
            p.send_signal(signal.SIGINT)
            out, err = p.communicate(timeout=10)
            self.assertEqual((p.returncode, out, err), (130, b"", b""))
            if json_out:
                events = [json.loads(line) for line in lines]
                self.assertEqual([e["event"] for e in events], [
                    "state", "progress", "state", "job-waiting", "residency", "pressure", "job-running", "residency", "pressure",
                    "power", "power", "job-ended"])
                self.assertEqual(events[3]["unit"], "a.service")
            else:
                self.assertEqual([re.sub(r"^\d\d:\d\d:\d\d\.\d  ", "", line) for line in lines], [w + "\n" for w in want])
        self.service.close()
        self.check(self.moectl("monitor"), 3, b"", "cannot reach")
        self.service = None


class Bench(Case):
    def generate(self, n, service, msgid, params):
        self.open[0] += 1
        self.most = max(self.most, self.open[0])
        time.sleep(0.05)
        service.notify("generate.delta", id=msgid, seq=0, kind="text", text="a")
        time.sleep(0.1)
        self.open[0] -= 1
        service.result(msgid, dict(RESULT, usage={"prompt": 110, "cached": 10, "generated": n, "dropped": 0},
                                   timings={"queue_us": 1, "prefill_us": 100000, "decode_us": 220000}))

    def serve_bench(self, n):
        self.open, self.most = [0], 0
        self.serve({"generate": lambda s, i, p: self.generate(n, s, i, p)})

    def test_bench(self):
        self.serve_bench(11)
        run = self.moectl("bench", "-n", "2", "--streams", "3", "--json", "--max-tokens", "11", "hi")
        self.check(run, 0, None, "^$")
        got = json.loads(run.stdout)
        self.assertEqual((got["model"], got["streams"], got["prompt_tokens"], len(got["runs"])), ("tiny", 3, 110, 2))
        for r in got["runs"] + [got["median"]]:
            self.assertTrue(0.05 <= r["first_token_s"] < 1, r)
            self.assertEqual(r["read_per_s"], 1000)
            self.assertEqual(r["written_per_s"], 50)
            self.assertTrue(20 < r["all_written_per_s"] <= 221, r)
        self.assertEqual(self.most, 3)
        asked = [p for m, p in self.service.seen if m == "generate"]
        prompts = [p["messages"][0]["content"] for p in asked]
        self.assertEqual([p["max_tokens"] for p in asked], [1] + [11] * 6)
        self.assertEqual(len({p.split()[0] + p.split()[2] for p in prompts}), 7)
        self.assertTrue(all(p.endswith(" hi") for p in prompts))

    def test_table(self):
        self.serve_bench(11)
        run = self.moectl("bench", "-n", "1")
        self.check(run, 0, None, "^$")
        self.assertRegex(run.stdout.decode(), r"^tiny: 110 tokens of prompt, up to 64 of answer, 1 at a time\n"
                         r"   run   first token .*\n     1 +0\.\d{3} s +1000\.0 +[\d.]+ +[\d.]+\nmedian +0\..*\n$")
        self.serve_bench(1)
        self.check(self.moectl("bench", "-n", "1", "--streams", "64"), 0)

    def test_what_goes_wrong(self):
        self.serve(fails("generate", 9, "Busy", "too many", {"retry_after_ms": 100}))
        self.check(self.moectl("bench"), 7, b"", "^moectl: too many; try again in 0.1 s\n$")
        self.check(self.moectl("bench", "--streams", "65"), 2, b"", "from 1 to 64")
        self.check(self.moectl("bench", "-n", "0"), 2, b"", "--count")

        def slow(service, msgid, params):
            service.cancelled.wait(10)
            service.error(msgid, 12, "Cancelled", "cancelled")
        self.serve({"generate": slow})
        p = subprocess.Popen([MOECTL, "bench"], env=self.env(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not self.service.seen:
            time.sleep(0.01)
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.communicate(timeout=10), (b"", b""))
        self.assertEqual(p.returncode, 130)


class Everything(Case):
    """What all commands have in common."""
    SCRIPT = dict(
        {"server.status": lambda s, i, p: s.result(i, {"state": "ready", "pid": 1})},
        **{m: (lambda v: lambda s, i, p: s.result(i, v))(v) for m, v in {
            "usecase.list": {"use_cases": [{"id": "a"}]}, "score.choices": Purposes.SCORES, "session.list": {"sessions": [{"session": 1}]},
            "server.topology": {"cpus": [], "shards": []}, "model.list": {"models": [{"id": "a", "default": True}]},
            "model.show": {"id": "a", "metadata": {}}, "model.pin": {"residency": "pinned"}, "job.list": {"jobs": []},
            "server.metrics": {"text": "# EOF\n"}, "tokenize": {"tokens": [1], "pieces": [b"a"]}, "server.info": {"version": {}}}.items()},
        **answers("x"))
    COMMANDS = [["ask", "a"], ["run", "a"], ["run", "--json", "a"], ["summarize", "a"], ["rephrase", "a"], ["translate", "a"],
                ["use-case"], ["classify", "--choice=a", "--choice=b", "x"], ["score", "--choice=a", "--choice=b", "x"],
                ["sessions"], ["sessions", "--json"], ["status"], ["topology"], ["topology", "--svg=-"], ["list"], ["show"], ["pin"], ["top", "--once"],
                ["bench", "-n1"], ["bench", "-n1", "--json"], ["monitor"], ["metrics"], ["tokenize", "a"], ["api-info"],
                ["doctor"], ["doctor", "--json"], ["call", "model.list"], ["--help"], ["--version"]]

    def test_full_disk(self):
        self.serve(self.SCRIPT)
        for args in self.COMMANDS:
            with open("/dev/full", "wb") as full:
                p = subprocess.run([MOECTL, *args], env=self.env(), timeout=20, stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
            self.assertEqual(p.returncode, 1, args)
            self.assertIn(b"moectl: ", p.stderr, args)
            self.assertIn(b"No space left on device", p.stderr, args)

    def test_closed_files(self):
        self.serve(self.SCRIPT)
        for args in self.COMMANDS:
            if args == ["monitor"]:
                continue  # would go on
            for fds in [0, 1, 2], [1]:
                p = subprocess.run([MOECTL, *args], env=self.env(), timeout=20, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, preexec_fn=lambda fds=fds: [os.close(fd) for fd in fds])
                self.assertIn(p.returncode, (0, 1) if "doctor" in args else (0,), (args, fds, p))
                self.assertEqual(p.stdout, b"")

    def test_nobody_reads(self):
        """As in `moectl list | true`, with and without the signal."""
        self.serve(self.SCRIPT)
        for args in self.COMMANDS:
            for ignored in False, True:
                r, w = os.pipe()
                os.close(r)
                p = subprocess.run([MOECTL, *args], env=self.env(), timeout=20, stdin=subprocess.DEVNULL, stdout=w, stderr=subprocess.PIPE,
                                   restore_signals=not ignored,
                                   preexec_fn=(lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)) if ignored else None)
                os.close(w)
                self.assertEqual((p.returncode, p.stderr), (1 if ignored else -signal.SIGPIPE, b""), (args, ignored))

    def test_no_colours_but_on_a_terminal(self):
        self.serve(self.SCRIPT)
        for args in self.COMMANDS:
            if args != ["monitor"]:
                self.assertNotIn(b"\x1b", self.moectl(*args).stdout.replace(b"b\x1b", b""), args)

    def test_start(self):
        """It starts in a few milliseconds: what is loaded with it is short, and known."""
        p = subprocess.run(["ldd", MOECTL], capture_output=True, text=True)
        if p.returncode or "san" in p.stdout or b"__asan_init" in pathlib.Path(MOECTL).read_bytes():
            self.skipTest("no ldd, or a build with a sanitizer")
        names = {re.sub(r"[-.].*", "", line.split()[0].rpartition("/")[2]) for line in p.stdout.splitlines()}
        self.assertLessEqual(names, {"linux", "ld", "libc", "libm", "libmoe", "libmsgpackc", "libmsgpack", "libjson", "libedit", "libtinfo",
                                     "libncursesw", "libbsd", "libmd"})

        def best(argv):
            """Seconds of the processor, the least of several: it is shared with others."""
            used = []
            for _ in range(20):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            return min(used)
        self.assertLess(best([MOECTL, "--version"]) - best(["true"]), 0.010)


class Usage(Case):
    def test_usage(self):
        for args, text in (([], "what to do"), (["fly"], "no command \"fly\""), (["run", "a", "b"], "one argument too many"),
                           (["status", "x"], "too many"), (["run", "--top-k", "x", "a"], "--top-k"),
                           (["run", "--top-k", "-1", "a"], "--top-k"), (["run", "--temperature", "nan", "a"], "--temp"),
                           (["run", "--max-tokens", "4294967296", "a"], "--max"), (["run", "--max-tokens", "0", "a"], "1 to"), (["run", "--deadline", "1d", "a"], "1d"),
                           (["run", "--seed", "18446744073709551616", "a"], "--seed"), (["run", "--json=x", "a"], "--json"),
                           (["status", "--top-k", "1"], "status has no option --top-k"), (["chat", "--raw"], "--raw"),
                           (["run", "--logprobs", "1", "a"], "needs --json"), (["run", "--nope", "a"], "nope"),
                           (["run", "--raw", "--system", "x", "a"], "--system"), (["run", "--special", "a"], "--raw"),
                           (["run"] + ["--stop", "x"] * 17 + ["a"], "16 of them")):
            self.check(self.moectl(*args), 2, b"", re.escape(text))

    def test_help_and_version(self):
        for args in (["--help"], ["-h"], ["run", "--help"]):
            self.check(self.moectl(*args), 0, None, r"^$")
        self.assertTrue(self.moectl("--help").stdout.startswith(b"Usage: moectl"))
        self.assertRegex(self.moectl("--version").stdout, rb"^moectl \d+\.\d+\.\d+\n$")

    def test_unreachable(self):
        with tempfile.TemporaryDirectory() as d:
            env = self.env(XDG_RUNTIME_DIR=d)
            self.check(self.moectl("status", "--socket", d + "/x", env=env), 3, b"", "cannot reach the service at .*/x")
            env["MOE_SOCKET"] = d + "/y"
            self.check(self.moectl("status", env=env), 3, b"", "cannot reach the service at .*/y")
            self.check(self.moectl("status", "--socket", "x" * 200, env=env), 3, b"", "longer than 107 bytes")
            if not os.path.exists("/run/moed/rpc"):
                del env["MOE_SOCKET"]
                run = self.moectl("status", env=env)
                self.check(run, 3, b"", "/run/moed/rpc.*MOE_SOCKET is not set.*no " + d + "/moed/rpc")

    def test_socket_order(self):
        service = self.serve(returns("server.status", {"state": "empty"}))
        env = self.env(XDG_RUNTIME_DIR=service.dir.name)
        del env["MOE_SOCKET"]
        os.mkdir(service.dir.name + "/moed")
        os.symlink(service.path, service.dir.name + "/moed/rpc")
        self.check(self.moectl("status", env=env), 0)
        self.check(self.moectl("status", "--socket", service.path, env=dict(env, MOE_SOCKET="/nonexistent")), 0)


class Others(Case):
    STATUS = {"state": "ready", "version": "0.1.0", "pid": 1234, "uptime_us": 3725000000, "model": "tiny\x1b[2J", "weights": "image",
              "memory": {"resident": 3 << 30, "weights": 2 << 30, "kv": 1 << 30}, "threads": 8, "tier": "avx2",
              "queue": {"running": 1, "waiting": 2, "max": 9}, "connections": 3,
              "tokens": {"prompt": 10, "generated": 20},
              "prefixes": {"kept": 5, "public": 2, "bytes": 3 << 20, "hits": 7, "saved": 900},
              "shards": [{"node": 0, "cpus": [0, 2], "bytes": 1 << 30}, {"node": 3, "cpus": [4, 6], "bytes": 3 << 29}]}

    def test_status(self):
        self.serve(returns("server.status", self.STATUS))
        out = self.moectl("status").stdout.decode()
        for line in ("State: ready", "process 1234, up 1 h 2 min", "3.0 GiB (weights 2.0 GiB, context 1.0 GiB)",
                     "Weights: from the model's image", "Threads: 8, avx2, 2 shards",
                     "1 running, 2 waiting, 9 at most", "10 read, 20 generated",
                     "Kept: 5, 2 of them public, in 3.0 MiB; 7 hits saved 900 tokens"):
            self.assertIn(line, out)
        self.assertEqual(json.loads(self.moectl("--json", "status").stdout), self.STATUS)
        self.check(self.moectl("status", "--no-pager", "-q"), 0)

    @staticmethod
    def machine(n_node, n_cache, n_core, shards, **more):
        """Of each node so many caches, of each of those so many cores of two CPUs."""
        cpus, n = [], n_node * n_cache * n_core
        for core in reversed(range(n)):
            for sibling in range(2):
                cpus.append({"cpu": 2 * core + sibling, "core": core, "node": core // (n_cache * n_core), "node_bytes": 8 << 30,
                             "cache": core // n_core, "cache_bytes": 32 << 20, "sibling": sibling})
        return {"cpus": cpus, "shards": shards, "model": "ti<n>y\x1b", "layers": 4, "experts": 8, "experts_used": 2, **more}

    def test_topology(self):
        two = self.machine(2, 1, 2, [{"node": 0, "cpus": [0, 2], "bytes": 1 << 30}, {"node": 1, "cpus": [4], "bytes": 3 << 29}])
        self.serve(returns("server.topology", two))
        bad = "\ufffd"
        box = "\n  +" + "-" * 74 + "+\n"
        want = (f"2 memory nodes, 2 last-level caches, 4 cores, 8 CPUs\nti<n>y{bad}: 4 layers of 8 experts, of which a token takes 2; "
                "3 workers\n\nnode 0, 8.0 GiB of memory - shard 0: 1.0 GiB of weights, 2/3 of every expert\n"
                "  +- 32.0 MiB of cache " + "-" * 54 + "+\n  | core 0   [0]  1    core 1   [2]  3 " + " " * 38 + "|" + box +
                "\nnode 1, 8.0 GiB of memory - shard 1: 1.5 GiB of weights, 1/3 of every expert\n"
                "  +- 32.0 MiB of cache " + "-" * 54 + "+\n  | core 2   [4]  5    core 3    6   7 " + " " * 38 + "|" + box +
                "\n[n]: a worker computes on CPU n\n")
        run = self.moectl("topology", env=self.env(LC_ALL="C"))
        self.check(run, 0, want.replace(bad, "\x1b").encode(), "^$")
        self.assertIn("┌─ 32.0 MiB of cache ─".encode(), self.moectl("topology", env=self.env(LC_ALL="C.UTF-8")).stdout)
        self.assertEqual(json.loads(self.moectl("--json", "topology").stdout), two)

    def test_topology_of_caches(self):
        """A shard for each cache of one node; many cores take several lines, all of one width."""
        self.serve(returns("server.topology", self.machine(1, 2, 9, [
            {"node": 0, "cpus": list(range(0, 18, 2)), "bytes": 1 << 20}, {"node": 0, "cpus": list(range(18, 36, 2)), "bytes": 1 << 20}],
            experts=0)))
        out = self.moectl("topology", env=self.env(LC_ALL="C")).stdout.decode()
        for s in 0, 1:
            self.assertIn(f"+- 32.0 MiB of cache - shard {s}: 1.0 MiB of weights, 1/2 of every matrix -", out)
        self.assertIn("4 layers, dense; 18 workers", out)
        self.assertEqual({len(line) for line in out.splitlines() if line[:3] in ("  |", "  +")}, {78})
        self.assertEqual(out.count("core "), 18)

    def test_topology_svg(self):
        self.serve(returns("server.topology", self.machine(2, 3, 5, [{"node": 0, "cpus": [0, 2], "bytes": 1 << 30},
                                                                     {"node": 1, "cpus": [30], "bytes": 3 << 29}])))
        with tempfile.TemporaryDirectory() as d:
            self.check(self.moectl("topology", "--svg", d + "/a.svg"), 0, b"", "^$")
            self.check(self.moectl("topology", "--svg", d + "/no/a.svg"), 1, b"", "cannot write: No such file")
            root = ElementTree.parse(d + "/a.svg").getroot()
        self.assertEqual(self.moectl("topology", "--svg=-").stdout.decode().count("<svg"), 1)
        ns = "{http://www.w3.org/2000/svg}"
        texts = [t.text for t in root.iter(ns + "text")]
        self.assertIn("ti<n>y: 4 layers of 8 experts, of which a token takes 2; 3 workers", texts)
        self.assertIn("node 1, 8.0 GiB of memory - shard 1: 1.5 GiB of weights, 1/3 of every expert", texts)
        self.assertEqual(sorted(int(t.text) for t in root.iter(ns + "text") if t.get("class") in ("works", "idle")), list(range(60)))
        self.assertEqual(sorted(int(t.text) for t in root.iter(ns + "text") if t.get("class") == "works"), [0, 2, 30])
        # Boxes lie in the picture, and those of a kind beside each other.
        width, height = int(root.get("width")), int(root.get("height"))
        for kind, n in ("node", 2), ("cache", 6), ("core", 30):
            boxes = [tuple(int(r.get(k)) for k in ("x", "y", "width", "height")) for r in root.iter(ns + "rect") if r.get("class") == kind]
            self.assertEqual(len(boxes), n)
            for x, y, w, h in boxes:
                self.assertTrue(0 < x and x + w < width and 0 < y and y + h < height)
                self.assertEqual(sum(x < b[0] + b[2] and b[0] < x + w and y < b[1] + b[3] and b[1] < y + h for b in boxes), 1)

    def test_topology_of_nothing(self):
        self.serve(returns("server.topology", {"cpus": [], "shards": []}))
        self.check(self.moectl("topology"), 0, b"0 memory nodes, 0 cores, 0 CPUs\nno model is loaded\n", "^$")
        self.assertIn(b"</svg>", self.moectl("topology", "--svg=-").stdout)
        self.serve(returns("server.topology", {}))
        self.check(self.moectl("topology", "--json"), 0, b"{}\n")

    def test_status_of_nothing(self):
        self.serve(returns("server.status", {}))
        self.check(self.moectl("status"), 0)
        self.check(self.moectl("status", "--json"), 0, b"{}\n")

    def test_no_answer(self):
        self.serve({"server.status": lambda s, i, p: None})
        p = subprocess.Popen([MOECTL, "status"], env=self.env(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not self.service.seen:
            time.sleep(0.01)
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.wait(timeout=10), 130)
        self.assertEqual(p.stderr.read(), b"")
        p.stderr.close()

    def test_list(self):
        models = [{"id": "a", "path": "/m/a.gguf", "size": 1 << 20, "state": "loaded", "default": True},
                  {"id": "longer", "path": "/m/b.gguf", "size": 5, "state": "available", "default": False}]
        self.serve(returns("model.list", {"models": models}))
        self.check(self.moectl("list"), 0, b"a       loaded        1.0 MiB  /m/a.gguf  (default)\n"
                                           b"longer  available     5 bytes  /m/b.gguf\n")
        self.serve(returns("model.list", {"models": []}))
        self.check(self.moectl("list"), 0, b"", "no models")
        self.check(self.moectl("list", "-q"), 0, b"", "^$")

    def test_show(self):
        self.serve(returns("model.show", {
            "id": "a", "path": "/m/a", "size": 7, "state": "loaded", "metadata": {"k.n": 3, "k.f": 0.5, "k.l": [1, 2]},
            "tensors": [{"name": "w", "type": "q4_0", "shape": [4, 2], "bytes": 2048}]}))
        run = self.moectl("show", "a", "--tensors")
        self.check(run, 0)
        for line in ("k.n = 3\n", "k.f = 0.5\n", "k.l = 1, 2\n", "w  [4, 2]\n", "2.0 KiB"):
            self.assertIn(line, run.stdout.decode())
        self.assertEqual(self.service.params("model.show"), {"id": "a", "tensors": True})
        self.check(self.moectl("show"), 0)
        self.assertEqual(self.service.params("model.show"), {})
        self.serve(fails("model.show", 3, "NoSuchModel", "there is no model \"b\""))
        self.check(self.moectl("show", "b"), 4, b"", "no model")

    def test_load(self):
        def wait(service, msgid, params):
            for i in range(3):
                service.notify("job.progress", id=params["id"], stage="loading", done=i, total=3)
            service.result(msgid, {"result": "done"})
        script = dict(returns("model.load", {"job": 4, "state": "loading"}), **{"job.wait": wait})
        self.serve(script)
        self.check(self.moectl("load", "a"), 0, b"", "^$")
        self.assertEqual(self.service.seen, [("model.load", {"id": "a"}), ("job.wait", {"id": 4})])
        self.check(self.moectl("load", "--no-wait", "--json"), 0, b'{"job":4,"state":"loading"}\n')
        self.assertEqual(self.service.seen[-1], ("model.load", {}))
        self.serve(dict(script, **returns("job.wait", {"result": "failed", "reason": "bad file"})))
        self.check(self.moectl("load"), 4, b"", "bad file")
        self.serve(fails("model.load", 11, "AccessDenied", "only root may"))
        self.check(self.moectl("load"), 6, b"", "only root may")

    def test_unload(self):
        self.serve(returns("model.unload", {}))
        self.check(self.moectl("unload", "a"), 0, b"", "^$")
        self.serve(fails("model.unload", 9, "Busy", "it has work", {"position": 1}))
        self.check(self.moectl("unload"), 7, b"", "it has work")

    def test_pin(self):
        self.serve(returns("model.pin", {"residency": "pinned"}))
        self.check(self.moectl("pin"), 0, b"   Residency: pinned\n", "^$")
        self.check(self.moectl("unpin", "a", "-q"), 0, b"", "^$")
        self.check(self.moectl("pin", "a", "--json"), 0, b'{"residency":"pinned"}\n')
        self.assertEqual(self.service.seen, [("model.pin", {"residency": "pinned", "keep": True}),
                                             ("model.pin", {"id": "a", "residency": "none", "keep": True}),
                                             ("model.pin", {"id": "a", "residency": "pinned", "keep": True})])
        self.serve(fails("model.pin", 11, "AccessDenied", "only root may"))
        self.check(self.moectl("unpin"), 6, b"", "only root may")

    def test_wait(self):
        states = iter(["not-loaded", "loading", "available"])
        self.serve({"model.availability": lambda s, i, p: s.result(i, {"state": next(states), "progress": 0.5})})
        self.check(self.moectl("wait", "a"), 0, b"", "^$")
        self.assertEqual(self.service.seen, [("model.availability", {"id": "a"})] * 3)
        self.serve(returns("model.availability", {"state": "unavailable", "reason": "no file"}))
        self.check(self.moectl("wait"), 4, b"", "no file")
        self.serve(returns("model.availability", {"state": "not-loaded"}))
        self.check(self.moectl("wait", "--deadline", "300ms"), 4, b"", "not ready")

    def test_tokenize(self):
        self.serve(returns("tokenize", {"tokens": [5, 600], "pieces": [b"a\"\n", b"\xc3"]}))
        self.check(self.moectl("tokenize", "x"), 0, b'5\t"a\\"\\n"\n600\t"\\303"\n')
        self.check(self.moectl("tokenize", "--bos", "--special", stdin=b"a\0b"), 0)
        self.assertEqual(self.service.params("tokenize"), {"text": "a\0b", "special": True, "bos": True, "pieces": True})

    def test_api_info(self):
        info = {"channel": 1, "version": {"major": 0, "minor": 1, "patch": 2, "api_level": 3, "api_compatible": 1},
                "methods": [{"name": "tokenize", "since": 1, "params": [{"name": "text", "type": "str", "required": True},
                                                                        {"name": "bos", "type": "bool", "required": False}],
                             "result": "{tokens}", "errors": ["TooLarge", "Busy"], "notifies": []}]}
        self.serve(returns("server.info", info))
        self.check(self.moectl("api-info"), 0, b"moed 0.1.2, API level 3, compatible from 1\n\n"
                   b"tokenize {text: str, bos: bool?}\n    -> {tokens}\n    errors: TooLarge, Busy\n")
        self.assertEqual(json.loads(self.moectl("api-info", "--json=pretty").stdout), info)


class Pty(Case):
    """moectl on a pseudo terminal of its own."""

    def start(self, *args, **env):
        env = self.env(**dict({"TERM": "dumb"}, **env))
        self.pid, self.tty = pty.fork()
        if self.pid == 0:
            mode = termios.tcgetattr(0)
            mode[0] |= IUTF8  # or the kernel, asked before moectl is, erases half of a character
            termios.tcsetattr(0, termios.TCSANOW, mode)
            os.execve(MOECTL, [MOECTL, *args], env)
        self.screen = b""

    def expect(self, text, timeout=10):
        end = time.monotonic() + timeout
        while text not in self.screen:
            ready, _, _ = select.select([self.tty], [], [], max(0, end - time.monotonic()))
            self.assertTrue(ready, f"waiting for {text!r}, got {self.screen!r}")
            try:
                data = os.read(self.tty, 65536)
            except OSError:
                data = b""
            self.assertTrue(data, f"waiting for {text!r}, got {self.screen!r}")
            self.screen += data
        before, self.screen = self.screen.split(text, 1)
        return before

    def type(self, data):
        os.write(self.tty, data)

    def end(self):
        rest = self.screen
        while True:
            try:
                data = os.read(self.tty, 65536)
            except OSError:
                break
            if not data:
                break
            rest += data
        _, status = os.waitpid(self.pid, 0)
        os.close(self.tty)
        return os.waitstatus_to_exitcode(status), rest.replace(b"\r\n", b"\n")


class Terminal(Pty):
    def test_run_shows_thoughts_dimmed(self):
        self.serve(answers("yes", thoughts=["let me", " see"]))
        self.start("run", "hi", "--thinking")
        self.assertEqual(self.end(), (0, b"\x1b[2mlet me\x1b[0m\x1b[2m see\x1b[0m\n\nyes\n"))
        self.serve(answers("yes", thoughts=["hm"]))
        self.start("run", "hi", NO_COLOR="1")
        self.assertEqual(self.end(), (0, b"hm\n\nyes\n"))

    def test_terminal_is_not_driven(self):
        self.serve(answers("a\x1b]0;title\x07b\x7f\u009bc\td\r\n"))
        self.start("run", "hi")
        bad = "\ufffd"
        self.assertEqual(self.end(), (0, f"a{bad}]0;title{bad}b{bad}{bad}c\td{bad}\n".encode()))

    def test_progress_on_the_terminal(self):
        def generate(service, msgid, params):
            service.notify("generate.progress", id=msgid, stage="prefill", done=1, total=4)
            answers("x")["generate"](service, msgid, params)
        self.serve({"generate": generate})
        self.start("run", "hi")
        self.assertEqual(self.end(), (0, b"\rprefill  25 % [######                  ]\x1b[K\r\x1b[Kx\n"))
        self.start("run", "-q", "hi")
        self.assertEqual(self.end(), (0, b"x\n"))

    def test_rate_and_time_that_is_left(self):
        def wait(service, msgid, params):
            for done in 100 << 20, 300 << 20, 600 << 20:
                service.notify("job.progress", id=params["id"], stage="loading", done=done, total=1000 << 20)
                time.sleep(0.6)
            service.result(msgid, {"result": "done"})
        script = dict(returns("model.load", {"job": 4, "state": "loading"}), **{"job.wait": wait})
        self.serve(script)
        self.start("load")
        self.expect(b"\rloading  10 % [##                      ]\x1b[K")
        self.expect(b"\rloading  30 % [#######                 ]  ")
        self.assertRegex(self.expect(b"\x1b[K"), rb"^[0-9.]+ MiB/s, [1-9] s left$")
        code, rest = self.end()
        self.assertEqual(code, 0)
        self.assertRegex(rest, rb"^\rloading  60 % \[#{14} {10}\]  .*left\x1b\[K\r\x1b\[K$")
        self.start("load")
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
        self.expect(b"\rloading  30 %\x1b[K")
        self.end()

    def test_colours(self):
        self.serve({"server.status": lambda s, i, p: s.error(i, 19, "Internal", "broken")})
        self.start("doctor")
        _, text = self.end()
        self.assertIn(b"\x1b[32mok      \x1b[0m socket", text)
        self.assertIn(b"\x1b[31mwrong   \x1b[0m service    it does not answer: broken", text)
        self.start("doctor", NO_COLOR="1")
        self.assertNotIn(b"\x1b", self.end()[1])

    def test_no_text(self):
        self.start("run")
        code, text = self.end()
        self.assertEqual(code, 2)
        self.assertIn(b"there is no text", text)

    def test_interrupt_typing(self):
        self.start("run", "-")
        for _ in range(1000):  # until it is moectl, and has its handler
            with open(f"/proc/{self.pid}/status", encoding="utf-8") as f:
                status = f.read()
            caught = int(re.search(r"SigCgt:\s*(\w+)", status).group(1), 16)
            if "Name:\tmoectl" in status and caught & 1 << (signal.SIGINT - 1):
                break
            time.sleep(0.005)
        self.type(b"half a line")
        self.expect(b"half a line")
        self.type(b"\x03")
        self.assertEqual(self.end()[0], 130)

    def test_chat(self):
        def generate(service, msgid, params):
            text = params["messages"][-1]["content"]
            if text == "slow":
                service.notify("generate.delta", id=msgid, seq=0, kind="text", text="begun")
                service.cancelled.wait(10)
                service.error(msgid, 12, "Cancelled", "cancelled")
            elif text == "busy":
                service.error(msgid, 9, "Busy", "too many", {"retry_after_ms": 100})
            else:
                answers(f"re: {text}", stop_reason="length" if text == "long" else "stop")["generate"](
                    service, msgid, params)
        service = self.serve(chats({"generate": generate}))

        def said(method):
            return [(m["role"], m["content"]) for m in service.params(method).get("messages", [])]

        self.start("chat", "--system", "be kind")
        self.expect(b"/help for more")
        self.expect(b"> ")
        self.type(b"one\n")
        self.expect(b"re: one\r\n> ")
        self.type(b"\n/help\n")
        self.expect(b"/reset")
        self.type(b"/nonsense\n")
        self.expect(b"There is no /nonsense")
        self.type(b"slow\n")
        self.expect(b"begun")
        self.type(b"\x03")
        self.expect(b"stopped")
        self.expect(b"> ")
        self.type(b"busy\n")
        self.expect(b"try again in 0.1 s")
        self.expect(b"> ")
        self.type(b"half\x03long\n")  # what came before Ctrl-C is dropped, what came after is not
        self.expect(b"cut short")
        self.type(b"//two\n")
        self.expect(b"re: /two")
        self.assertEqual(said("session.open"), [("system", "be kind")])
        self.assertEqual(said("session.generate"), [("user", "/two")])
        self.assertEqual(service.params("session.generate")["overflow"], "drop-oldest")
        self.assertEqual([m for m, _ in service.seen].count("session.open"), 1)
        self.type(b"/reset\n")
        self.expect(b"(forgotten)")
        self.type(b"three\n")
        self.expect(b"re: three")
        self.assertEqual(service.params("session.close"), {"session": 1})
        self.assertEqual(said("session.open"), [("system", "be kind")])
        self.assertEqual(service.params("session.generate")["session"], 2)
        self.expect(b"> ")
        self.type(b"/save\n")
        self.expect(b"moectl chat --resume " + b"ab" * 16)
        self.expect(b"> ")
        self.type(b"\x04")
        self.assertEqual(self.end()[0], 0)

    def test_chat_outlives_the_service(self):
        service = self.serve(chats(answers("hello")))
        self.start("chat")
        self.expect(b"> ")
        self.type(b"a\n")
        self.expect(b"hello\r\n> ")
        service.conn.shutdown(socket.SHUT_RDWR)
        self.assertTrue(service.hung_up.wait(10))
        self.type(b"b\n")
        self.expect(b"hello\r\n> ")
        self.assertEqual([m["content"] for m in service.params("session.open")["messages"]], ["a", "hello"])
        self.assertEqual([m["content"] for m in service.params("session.generate")["messages"]], ["b"])
        service.listener.close()
        os.unlink(service.path)
        service.conn.shutdown(socket.SHUT_RDWR)
        self.type(b"c\n")
        self.expect(b"cannot reach the service")
        self.expect(b"> ")
        self.type(b"d\n")
        self.expect(b"cannot reach the service")
        self.expect(b"> ")
        self.type(b"/quit\n")
        self.assertEqual(self.end()[0], 0)

    def test_chat_from_a_pipe(self):
        service = self.serve(chats(answers("ok")))
        run = self.moectl("chat", stdin=b"first\nsecond, without an end")
        self.check(run, 0, b"ok\nok\n", "^$")
        self.assertEqual([p["messages"][0]["content"] for m, p in service.seen if m == "session.generate"],
                         ["first", "second, without an end"])

    def test_chat_is_reopened(self):
        """A session that was closed for being idle; what the service dropped is not sent again."""
        service = self.serve(chats(answers("ok", dropped_messages=2)))
        generate, n = service.script["session.generate"], [0]

        def forgets(service, msgid, params):
            n[0] += 1
            if n[0] == 3:
                service.error(msgid, 14, "NoSuchSession", "no session 1")
            else:
                generate(service, msgid, params)
        service.script["session.generate"] = forgets
        run = self.moectl("chat", "--system", "s", stdin=b"one\ntwo\nthree\n")
        self.check(run, 0, b"ok\nok\nok\n", "^(.the oldest 2 messages do not fit any more and are forgotten.\n){3}$")
        self.assertEqual([m["content"] for m in service.params("session.open")["messages"]], ["s"])
        self.assertEqual([p["session"] for m, p in service.seen if m == "session.generate"], [1, 1, 1, 2])
        service.script["session.generate"] = fails("x", 14, "NoSuchSession", "no")["x"]
        run = self.moectl("chat", stdin=b"one\n")
        self.check(run, 0, b"", "does not keep the conversation")

    def test_chat_saved(self):
        service = self.serve(chats(answers("ok")))
        run = self.moectl("chat", "--resume", "cd" * 16, "--save", "--overflow", "error", stdin=b"one\n")
        self.check(run, 0, b"ok\n", "^.saved; go on with: moectl chat --resume " + "ab" * 16)
        self.assertEqual(service.params("session.restore"), {"token": "cd" * 16})
        self.assertEqual(service.params("session.append"), {"session": 77})
        self.assertEqual(service.params("session.save"), {"session": 77, "token": "cd" * 16})
        self.assertEqual(service.params("session.generate")["overflow"], "error")
        service.script["session.save"] = lambda s, i, p: s.error(i, 14, "NoSuchSession", "gone") if "token" in p else \
            s.result(i, {"token": "ef" * 16})
        service.script["session.append"] = lambda s, i, p: reading.append(i)  # an answer does not wait for it
        reading, n_seen = [], len(service.seen)
        run = self.moectl("chat", "--resume", "cd" * 16, "--save", stdin=b"one\n")
        self.check(run, 0, b"ok\n", "^.saved; go on with: moectl chat --resume " + "ef" * 16)
        self.assertEqual([p for m, p in service.seen[n_seen:] if m == "generate.cancel"], [{"id": i} for i in reading])
        self.assertEqual(len(reading), 1)
        self.check(self.moectl("forget", "cd" * 16), 0, b"", "^$")
        self.assertEqual(service.params("session.forget"), {"token": "cd" * 16})
        self.check(self.moectl("forget"), 2, b"", "want the token")
        self.serve(chats(answers("ok")) | fails("session.restore", 15, "Corrupt", "the saved session is damaged"))
        self.check(self.moectl("chat", "--resume", "x", stdin=b"one\n"), 4, b"", "is damaged")

    def test_sessions(self):
        sessions = [{"session": 3, "user": 1000, "model": "tiny", "messages": 5, "bytes": 2048, "idle_us": 2000000,
                     "busy": False, "own": False}]
        self.serve(returns("session.list", {"sessions": sessions}))
        run = self.moectl("sessions")
        self.check(run, 0, None, "^$")
        self.assertRegex(run.stdout, rb"^SESSION .*\n +3 +5 +2.0 KiB +2\S* s +tiny\n$")
        self.assertIn(b" 1000 ", self.moectl("sessions", "--all").stdout)
        self.assertEqual(self.service.params("session.list"), {"all": True})
        self.assertEqual(json.loads(self.moectl("sessions", "--json").stdout), {"sessions": sessions})

    def test_saved_sessions(self):
        saved = {"saved": [{"token": "ab" * 16, "bytes": 2048, "cached_bytes": 3 << 20, "idle_us": 7200000000}]}
        self.serve(returns("session.saved", saved))
        self.check(self.moectl("sessions", "--saved"), 0, b"TOKEN                                   TEXT   EVALUATED  IDLE\n" +
                   b"ab" * 16 + b"     2.0 KiB     3.0 MiB  2 h 0 min\n", "^$")
        self.assertEqual(json.loads(self.moectl("sessions", "--saved", "--json").stdout), saved)
        self.serve(returns("session.saved", {"saved": []}))
        self.check(self.moectl("sessions", "--saved"), 0, b"", "No conversation is kept")
        self.check(self.moectl("list", "--saved"), 2, b"", "list has no option --saved")


class Editing(Pty):
    """chat on a terminal that can do more, if it was built with libedit."""

    def setUp(self):
        self.home = tempfile.TemporaryDirectory()
        self.addCleanup(self.home.cleanup)
        linked = subprocess.run(["ldd", MOECTL], capture_output=True, text=True).stdout
        if "libedit" not in linked:
            self.skipTest("built without libedit")
        self.serve(chats(answers("ok")))

    def chat(self, *args, **env):
        self.start("chat", "-q", *args, TERM="xterm", HOME=self.home.name, LC_ALL="C.UTF-8",
                   XDG_STATE_HOME=self.home.name + "/state", **env)
        self.expect(b"> ")

    def said(self):
        return [p["messages"][-1]["content"] for m, p in self.service.seen if m == "session.generate"]

    def ask(self, keys, want):
        self.type(keys + b"\r")
        self.expect(b"ok")
        self.expect(b"> ")
        self.assertEqual(self.said()[-1], want)

    def test_editing(self):
        self.chat()
        self.ask(b"helo\x1b[Dl", "hello")
        self.ask("caf\u00e9\u00e9\x7f!".encode(), "caf\u00e9!")
        self.ask(b"\x1b[A\x1b[A again", "hello again")
        self.ask(b"\x1b[A\x01say ", "say hello again")
        self.type(b"dropped\x03")
        self.expect(b"> ")
        self.ask(b"kept", "kept")
        self.type(b"\x04")
        self.assertEqual(self.end()[0], 0)

    def test_terminal_is_as_it_was(self):
        """While an answer is written, and at the end, it is what it was: Ctrl-C is a signal there."""
        def generate(service, msgid, params):
            service.notify("generate.delta", id=msgid, seq=0, kind="text", text="begun")
            service.cancelled.wait(10)
            service.error(msgid, 12, "Cancelled", "cancelled")
        self.serve(chats({"generate": generate}))
        self.pid, self.tty = pty.fork()
        if self.pid == 0:
            env = self.env(TERM="xterm", HOME=self.home.name, LC_ALL="C.UTF-8")
            os.execve("/bin/sh", ["sh", "-c", 'trap : INT; stty -a >"$HOME/before"; "$0" chat; stty -a >"$HOME/after"; echo all done', MOECTL], env)
        self.screen = b""
        self.expect(b"> ")
        self.type(b"go\r")
        self.expect(b"begun")
        self.type(b"\x03")
        self.expect(b"stopped")
        self.expect(b"> ")
        self.type(b"\x03")
        self.expect(b"> ")
        self.type(b"/quit\r")
        self.expect(b"all done")
        self.assertEqual(self.end()[0], 0)
        self.assertEqual(*(pathlib.Path(self.home.name, name).read_text() for name in ("before", "after")))
        self.assertTrue(os.path.exists(self.home.name + "/.local/state/moectl/history"))

    def test_history(self):
        self.chat()
        self.ask(b"first", "first")
        self.ask("zw\u00f6lf".encode(), "zw\u00f6lf")
        self.type(b"/quit\r")
        self.assertEqual(self.end()[0], 0)
        path = self.home.name + "/state/moectl/history"
        self.assertEqual([os.stat(p).st_mode & 0o777 for p in (path, os.path.dirname(path))], [0o600, 0o700])
        os.chmod(path, 0o644)
        self.chat()
        self.ask(b"\x1b[A\x1b[A", "zw\u00f6lf")
        self.type(b"\x04")
        self.assertEqual(self.end()[0], 0)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_no_place_for_history(self):
        os.symlink("/proc/none", self.home.name + "/state")
        self.chat()
        self.ask(b"one", "one")
        self.ask(b"\x1b[A", "one")
        self.type(b"\x04")
        self.assertEqual(self.end()[0], 0)

    def test_paste(self):
        """Several lines are one question; a tab and an escape in them do nothing."""
        self.chat()
        self.ask(b"see: \x1b[200~one\rtwo\tx\n\nthree\x1b[201~!", "see: one\ntwo\tx\n\nthree!")
        self.ask(b"\x1b[200~\x1b[201~a", "a")
        self.ask(b"\x1b[A\x1b[A", "see: one\ntwo\tx\n\nthree!")
        self.type(b"/quit\r")
        self.assertEqual(self.end()[0], 0)

    def test_stopped_and_resized(self):
        self.chat()
        self.type(b"hal")
        self.expect(b"hal")
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)
        t = termios.tcgetattr(self.tty)
        t[3] |= termios.ICANON | termios.ECHO
        termios.tcsetattr(self.tty, termios.TCSANOW, t)  # as a shell does
        os.kill(self.pid, signal.SIGCONT)
        self.expect(b"hal")
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
        self.expect(b"hal")
        self.ask(b"f\x1b[D\x1b[Dx", "haxlf")
        self.type(b"\x04")
        self.assertEqual(self.end()[0], 0)

    def test_the_end_of_the_terminal(self):
        self.chat()
        os.close(self.tty)
        for _ in range(1000):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        self.assertTrue(pid, "goes on without a terminal")
        self.tty = os.open("/dev/null", os.O_RDONLY)
        os.close(self.tty)


class Slashes(Case):
    def chat(self, text, *args):
        return self.moectl("chat", *args, stdin=text.encode())

    def test_file(self):
        self.serve(chats(answers("ok")))
        with tempfile.NamedTemporaryFile() as f:
            f.write(b"in the file\n")
            f.flush()
            self.check(self.chat(f"/file {f.name}\n/file /nonexistent\nwhat?\nand?\n"), 0, b"ok\nok\n",
                       r"(?s)^.12 bytes go with the next question.\n.*/nonexistent: cannot open: No such file")
            self.assertEqual([p["messages"][-1]["content"] for m, p in self.service.seen if m == "session.generate"],
                             ["what?\n\nin the file\n", "and?"])
            f.write(b"\0")
            f.flush()
            self.check(self.chat(f"/file {f.name}\n/file\nx\n"), 0, b"ok\n", "(?s)NUL byte.*Which file")
            self.assertEqual(self.service.params("session.generate")["messages"][-1]["content"], "x")
            self.check(self.chat(f"/file {f.name}\n/reset\nx\n", "-q"), 0, b"ok\n")
            self.assertEqual(self.service.params("session.generate")["messages"][-1]["content"], "x")

    def test_load(self):
        self.serve(chats(answers("ok")))
        token = "ab" * 16
        run = self.chat(f"one\n/load {token}\ntwo\n/load\n/model b\n/reset\nthree\n")
        self.check(run, 0, b"ok\nok\nok\n", r"(?s)\(loaded\).*Which\?.*stays with its model.*\(forgotten\)")
        self.assertEqual(self.service.params("session.restore"), {"token": token})
        self.assertEqual([p["session"] for m, p in self.service.seen if m == "session.generate"], [1, 77, 2])
        self.assertEqual([p["session"] for m, p in self.service.seen if m == "session.close"], [1, 77])
        self.serve(chats(answers("ok")) | fails("session.restore", 14, "NoSuchSession", "nothing was saved"))
        self.check(self.chat("one\n/load x\ntwo\n"), 0, b"ok\nok\n", "nothing was saved")
        self.assertEqual([p["session"] for m, p in self.service.seen if m == "session.generate"], [1, 1])

    def test_model(self):
        self.serve(chats(answers("ok")) | {"model.availability": lambda s, i, p: s.result(i, {"state": "not-loaded"})
                                           if p["id"] == "big" else s.error(i, 3, "NoSuchModel", "no model with the id x")})
        run = self.chat("/model\none\n/model\n/model x\n/model big\n/model\ntwo\n", "--system", "s")
        self.check(run, 0, b"ok\nok\n", r"(?s)^the service's choice\ntiny\n.*no model with the id x\n\(big goes on: not-loaded\)\nbig\n$")
        opened = [p for m, p in self.service.seen if m == "session.open"]
        self.assertNotIn("model", opened[0])
        self.assertEqual(opened[1]["model"], "big")
        self.assertEqual([m["content"] for m in opened[1]["messages"]], ["s", "one", "ok"])
        self.assertEqual([p["session"] for m, p in self.service.seen if m == "session.close"], [1])

    def test_usage(self):
        self.serve(chats(answers("ok", timings={"queue_us": 1, "prefill_us": 2, "decode_us": 4000000})) | {
            "session.measure": lambda s, i, p: s.result(i, {"tokens": 30, "available": 500, "fits": True})})
        self.check(self.chat("/usage\nx\n/usage\n"), 0, b"ok\n",
                   r"^There was no answer yet.\nconversation: 30 tokens, of 500 that there is room for\n"
                   r"last answer, by tiny: 5 tokens read, 0 of them known before; 2 written, 0.5 a second\n$")
        self.check(self.chat("/nope x\n/files\n"), 0, b"", r"There is no /nope; see /help.\nThere is no /files;")


class Example(Case):
    def client(self, *args):
        return subprocess.run([sys.executable, EXAMPLE, *args], capture_output=True, timeout=30, env=self.env())

    def test_example(self):
        self.serve(answers("Hel", "l\u00f6", thoughts=["hm"]))
        self.check(self.client("--max-tokens", "9", "hi"), 0, "Hell\u00f6".encode(), r"^\n\[2 tokens, stop\]\n$")
        self.assertEqual(self.service.params(), {"messages": [{"role": "user", "content": "hi"}], "stream": True,
                                                 "max_tokens": 9})
        self.serve(fails("generate", 9, "Busy", "come back later"))
        self.check(self.client("hi"), 1, b"", "come back later")
        self.check(self.client("--socket", "/nonexistent", "hi"), 1, b"", "No such file")


if __name__ == "__main__":
    MOECTL = os.path.abspath(sys.argv.pop(1))
    unittest.main()
