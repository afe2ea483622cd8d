#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What clients of a running moed may count on: test-serve.py MOED"""
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import time
import unittest

import rig
from rig import Client, Hangup, LONG, Moed, RpcError, until

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "contrib/examples/client.py"


class Served(unittest.TestCase):
    """One moed for all tests of a class, a client for each."""

    config = ""

    @classmethod
    def setUpClass(cls):
        cls.moed = Moed(config=cls.config)

    @classmethod
    def tearDownClass(cls):
        cls.moed.__exit__(None)

    def setUp(self):
        self.c = self.moed.client()
        self.addCleanup(self.c.close)


class Serve(Served):
    config = "queue = 3\nsequences = 1\nthreads = 1\n"  # one: on a busy machine two wait for each other

    def idle(self):
        """Wait until the engine has nothing to do."""
        until(lambda: self.c.call("server.status")["queue"]["running"] == 0, "still at work", 5)

    def test_info_and_status(self):
        info = self.c.call("server.info")
        self.assertEqual(info["version"]["api_level"], 4)
        self.assertIn("generate", [m["name"] for m in info["methods"]])
        status = self.c.call("server.status")
        self.assertEqual((status["state"], status["model"]), ("ready", "tiny"))
        self.assertGreater(status["memory"]["weights"], 1 << 20)
        self.assertEqual(status["queue"]["max"], 3)

    def test_stream_is_the_answer(self):
        params = {"prompt": "once upon a time", "max_tokens": 40, "seed": 7, "temperature": 0.8}
        whole = self.c.call("generate", **params)
        if whole["stop_reason"] == "length":
            self.assertEqual(whole["usage"]["generated"], 40)
        result = self.c.call("generate", stream=True, **params)
        deltas = [p for m, p in self.c.notes if m == "generate.delta"]
        self.assertEqual([d["seq"] for d in deltas], list(range(len(deltas))))
        self.assertEqual("".join(d["text"] for d in deltas if d["kind"] == "text"), whole["text"])
        self.assertNotIn("text", result)
        self.assertEqual(result["usage"]["generated"], whole["usage"]["generated"])
        self.assertEqual(self.c.call("generate", stream=True, echo=True, **params)["text"], whole["text"])

    def test_logprobs(self):
        result = self.c.call("generate", prompt="a", max_tokens=4, logprobs=3, temperature=0, logit_bias=LONG["logit_bias"])
        self.assertEqual(len(result["logprobs"]), 4)
        for token in result["logprobs"]:
            self.assertEqual(len(token["top"]), 3)
            self.assertIsInstance(token["bytes"], bytes)
            self.assertLessEqual(token["logprob"], 0)
            top = [t["logprob"] for t in token["top"]]
            self.assertEqual(top, sorted(top, reverse=True))

    def test_text_methods(self):
        tokens = self.c.call("tokenize", text="hello there", pieces=True)
        self.assertEqual(b"".join(tokens["pieces"]), b"hello there")
        self.assertEqual(self.c.call("detokenize", tokens=tokens["tokens"])["text"], "hello there")
        prompt = self.c.call("template.apply", messages=[{"role": "user", "content": "hi"}])
        self.assertIn("user\nhi", prompt["text"])
        self.assertEqual(self.c.call("generate", tokens=prompt["tokens"], max_tokens=1)["usage"]["prompt"], len(prompt["tokens"]))
        with self.assertRaisesRegex(RpcError, "InvalidArgs: .*99999"):
            self.c.call("detokenize", tokens=[99999])
        with self.assertRaisesRegex(RpcError, "InvalidArgs: .*role"):
            self.c.call("generate", messages=[{"role": "wizard", "content": "x"}])

    def test_two_clients_queue_then_busy(self):
        self.idle()
        with self.moed.client() as other:
            first = self.c.send("generate", **LONG)
            self.c.wait_note("generate.delta")
            waiting = [other.send("generate", prompt="x", max_tokens=2) for _ in range(3)]
            until(lambda: Client(self.moed.path).call("server.status")["queue"]["waiting"] == 3, "do not wait")
            with self.moed.client() as third, self.assertRaises(RpcError) as busy:
                third.call("generate", prompt="x")
            self.assertEqual(busy.exception.name, "Busy")
            self.assertGreater(busy.exception.data["retry_after_ms"], 0)
            self.assertEqual(busy.exception.data["position"], 4)
            self.c.notify("generate.cancel", id=first)
            with self.assertRaisesRegex(RpcError, "Cancelled"):
                self.c.wait(first)
            for msgid in waiting:
                self.assertGreater(other.wait(msgid)["usage"]["generated"], 0)

    def test_cancel(self):
        msgid = self.c.send("generate", **LONG)
        self.c.wait_note("generate.delta")
        cancel = self.c.send("generate.cancel", id=msgid)
        answers = {}
        while len(answers) < 2:
            frame = self.c.frame()
            if frame[0] == 1:
                answers[frame[1]] = frame
        self.assertEqual(answers[cancel][3], {"cancelled": True})
        self.assertEqual(answers[msgid][2]["name"], "Cancelled")
        self.assertGreater(answers[msgid][2]["data"]["usage"]["generated"], 0)
        self.assertEqual(self.c.call("generate.cancel", id=msgid), {"cancelled": False})
        self.assertEqual(self.c.call("generate.cancel", id=4711), {"cancelled": False})

    def test_hangup_stops_work(self):
        for prompt in "x", "word " * 300:  # while it decodes, and while it reads a long prompt
            self.idle()
            other = self.moed.client()
            other.send("generate", **{**LONG, "prompt": prompt})
            until(lambda: self.c.call("server.status")["queue"]["running"] == 1, "did not start")
            other.close()
            until(lambda: self.c.call("server.status")["queue"]["running"] == 0, "goes on", 1)

    def test_overflow_evaluates_nothing(self):
        self.idle()
        before = self.c.call("server.status")["tokens"]["prompt"]
        with self.assertRaises(RpcError) as e:
            self.c.call("generate", tokens=[5] * 3000)
        self.assertEqual(e.exception.name, "ContextOverflow")
        self.assertGreaterEqual(e.exception.data["requested"], 3000)
        self.assertLessEqual(e.exception.data["available"], 2048)
        self.assertEqual(self.c.call("server.status")["tokens"]["prompt"], before)

    def test_deadline(self):
        result = self.c.call("generate", deadline_ms=300, **LONG)
        self.assertEqual(result["stop_reason"], "deadline")
        with self.assertRaisesRegex(RpcError, "Timeout"):
            self.c.call("generate", deadline_ms=0, **LONG)

    def test_stop_string(self):
        text = self.c.call("generate", prompt="a", seed=3, max_tokens=60, logit_bias=LONG["logit_bias"])["text"]
        middle = len(text) // 2
        stop = text[middle:middle + 3]
        result = self.c.call("generate", prompt="a", seed=3, max_tokens=60, logit_bias=LONG["logit_bias"], stop=["never this", stop])
        self.assertEqual((result["stop_reason"], result["stop"]), ("stop", stop))
        self.assertEqual(result["text"], text[:text.index(stop)])

    def test_malformed_closes_only_itself(self):
        running = self.c.send("generate", max_tokens=200, **LONG)
        self.c.wait_note("generate.delta")
        for bad in (b"\xc1", b"GET / HTTP/1.1\r\n\r\n", b"\xdd\x04\x00\x00\x00", b"\x91" * 60,
                    b"\x94\x00\x01\xa1x\x91\x81\xa1k\xdb\xff\xff\xff\xff", b"\x94\x00\x01\xa1x\x91\xc0"):
            with self.moed.client() as other:
                other.sock.sendall(bad)
                self.assertIn(other.wait_note("rpc.error")["name"], ("InvalidArgs", "TooLarge"))
                self.assertRaises(Hangup, other.frame)
        self.assertEqual(self.c.wait(running)["usage"]["generated"], 200)

    def test_seventeenth_connection(self):
        uid_has = self.c.call("server.status")["connections"]
        extra = [self.moed.client() for _ in range(16 - uid_has)]
        self.assertEqual(extra[-1].call("server.status")["connections"], 16)
        with self.moed.client() as refused:
            self.assertEqual(refused.wait_note("rpc.error")["name"], "QuotaExceeded")
            self.assertRaises(Hangup, refused.frame)
        extra.pop().close()
        until(lambda: self.c.call("server.status")["connections"] < 16, "does not count down")
        for c in extra:
            c.close()

    def test_slow_reader(self):
        self.idle()
        slow = self.moed.client()
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        msgid = slow.send("generate", max_tokens=1000, logprobs=20, seed=5, **LONG)
        before = self.c.call("server.status")["tokens"]["generated"]
        made, since, took = before, time.monotonic(), []
        while made == before or time.monotonic() - since < 1:  # until it makes no more
            start = time.monotonic()
            now = self.c.call("server.status")["tokens"]["generated"]
            took.append(time.monotonic() - start)
            if now != made:
                made, since = now, time.monotonic()
            time.sleep(0.02)
        self.assertLess(made - before, 1000)  # it waits for its reader ...
        self.assertLess(statistics.median(took), 0.1)  # ... and nobody else does
        result = slow.wait(msgid)
        self.assertEqual(result["usage"]["generated"], 1000)
        deltas = [p for m, p in slow.notes if m == "generate.delta"]
        self.assertEqual([d["seq"] for d in deltas], list(range(len(deltas))))
        self.assertEqual(sum(len(d["logprobs"]) for d in deltas), 1000)
        self.assertLess(len(deltas), 1000)
        text = "".join(d["text"] for d in deltas)
        again = self.c.call("generate", max_tokens=1000, seed=5, **{**LONG, "stream": False})
        self.assertEqual(text, again["text"])
        slow.close()

    def test_models(self):
        models = self.c.call("model.list")["models"]
        self.assertEqual([(m["id"], m["state"], m["default"]) for m in models], [("tiny", "loaded", True)])
        shown = self.c.call("model.show", tensors=True)
        self.assertEqual(shown["metadata"]["general.architecture"], "gemma4")
        self.assertEqual(shown["metadata"]["gemma4.attention.sliding_window_pattern"][-1], False)
        tensor = {t["name"]: t for t in shown["tensors"]}["token_embd.weight"]
        self.assertEqual((tensor["type"], tensor["shape"][0]), ("Q8_0", 256))
        self.assertEqual(self.c.call("model.availability"), {"state": "available"})

    def test_unload_and_load(self):
        self.idle()
        self.assertEqual(self.c.call("model.unload"), {})
        self.assertEqual(self.c.call("server.status")["state"], "empty")
        self.assertEqual(self.c.call("model.availability"), {"state": "not-loaded"})
        result = self.c.call("generate", prompt="x", max_tokens=1)  # loads it again
        self.assertEqual(result["model"], "tiny")
        job = self.c.call("model.load")["job"]
        self.assertEqual(self.c.call("job.wait", id=job)["result"], "done")

    @unittest.skipUnless(EXAMPLE.exists(), "no example client")
    def test_example(self):
        said = subprocess.run([sys.executable, EXAMPLE, "--socket", self.moed.path, "hello"], capture_output=True, timeout=60)
        self.assertEqual(said.returncode, 0, said.stderr)


class Together(Served):
    """Many at once, on one machine."""

    config = "queue = 8\nsequences = 4\nbatch = 32\nuser-jobs = 6\nuser-kv-bytes = 64M\n"

    def setUp(self):
        super().setUp()
        self.before = self.state()
        self.addCleanup(lambda: until(lambda: self.state() == self.before, "something is left behind", 5))

    def state(self):
        status = self.c.call("server.status")
        return status["queue"]["running"], status["queue"]["waiting"], status["connections"]

    def test_two_streams(self):
        """Both go on at the same time, and each says what it says alone."""
        ask = [{**LONG, "prompt": p, "max_tokens": 300, "seed": 4, "temperature": t, "echo": True} for p, t in (("one", 0), ("two", 1))]
        alone = [self.c.call("generate", **a)["text"] for a in ask]
        self.c.notes.clear()
        with self.moed.client() as other:
            first = self.c.send("generate", **ask[0])
            self.c.wait_note("generate.delta")
            second = other.send("generate", **ask[1])
            other.wait_note("generate.delta")
            self.assertEqual(self.moed_running(), 2)
            self.assertEqual([self.c.wait(first)["text"], other.wait(second)["text"]], alone)

    def moed_running(self):
        with self.moed.client() as c:
            return c.call("server.status")["queue"]["running"]

    def test_long_prompt_does_not_freeze(self):
        """While another client's prompt goes in, a stream has a token in every few steps."""
        with self.moed.client() as other:
            stream = self.c.send("generate", **LONG)
            self.c.wait_note("generate.delta")
            self.c.notes.clear()
            prompt = other.send("generate", prompt="word " * 900, max_tokens=1)
            usage = other.wait(prompt)["usage"]
            self.assertGreater(usage["prompt"], 900)
            n = 0
            self.c.sock.settimeout(0.2)
            try:
                while n < 10:  # what came meanwhile
                    self.c.wait_note("generate.delta")
                    n += 1
            finally:
                self.c.sock.settimeout(60)
            self.c.notify("generate.cancel", id=stream)
            with self.assertRaisesRegex(RpcError, "Cancelled"):
                self.c.wait(stream)

    def test_stalled_reader(self):
        """Somebody who does not read is paused alone, and may lose its place to who waits."""
        slow = [self.moed.client() for _ in range(4)]  # all the places
        for s in slow:
            s.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.send("generate", logprobs=20, **LONG)
        until(lambda: self.moed_running() == 4, "do not run")
        made, since = -1, time.monotonic()
        while time.monotonic() - since < 0.5:  # until all of them stand still
            now = self.c.call("server.status")["tokens"]["generated"]
            if now != made:
                made, since = now, time.monotonic()
            time.sleep(0.02)
        self.assertEqual(self.c.call("generate", max_tokens=50, **LONG)["usage"]["generated"], 50)
        for s in slow:
            s.close()

    def test_limits_of_a_user(self):
        clients = [self.moed.client() for _ in range(2)]
        for c in clients:
            for _ in range(3):
                c.send("generate", **LONG)
        until(lambda: self.moed_running() == 4, "do not run")
        with self.assertRaises(RpcError) as busy:
            self.c.call("generate", prompt="x")
        self.assertEqual(busy.exception.name, "Busy")
        self.assertEqual(busy.exception.data["position"], 6)
        self.assertGreater(busy.exception.data["retry_after_ms"], 0)
        for c in clients:
            c.close()

    def test_priority(self):
        for word in "interactive", "default", "background":
            self.assertEqual(self.c.call("generate", prompt="x", max_tokens=3, priority=word, logit_bias=LONG["logit_bias"])["usage"]["generated"], 3)
        with self.assertRaisesRegex(RpcError, "InvalidArgs: priority"):
            self.c.call("generate", prompt="x", priority="urgent")

    def test_background_gives_way(self):
        """It goes on while it is alone, and hardly beside others."""
        with self.moed.client() as other:
            back = other.send("generate", priority="background", **LONG)
            other.wait_note("generate.delta")
            before = self.c.call("server.status")["tokens"]["generated"]
            self.c.call("generate", max_tokens=400, **{**LONG, "stream": False})
            self.assertLess(self.c.call("server.status")["tokens"]["generated"] - before, 600)
            other.notify("generate.cancel", id=back)
            with self.assertRaisesRegex(RpcError, "Cancelled"):
                other.wait(back)

    def test_hangup_everywhere(self):
        """Clients go while they wait, while their prompt goes in, and in the middle of the answer."""
        for round in range(3):
            clients = [self.moed.client() for _ in range(6)]
            for i, c in enumerate(clients):
                c.send("generate", **{**LONG, "prompt": "word " * (1 + 200 * i)})
            if round == 1:
                clients[0].wait_note("generate.delta")
            if round == 2:
                until(lambda: self.moed_running() == 4, "do not run")
            for c in clients:
                c.close()
            until(lambda: self.state() == self.before, "something is left behind", 5)


class UseCase(Served):
    """A purpose instead of a model and words: /etc/moed/use-cases.d, read on SIGHUP."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.moed.dir / "etc/moed/use-cases.d"
        folder.mkdir()
        (folder / "language.test.conf").write_text("instructions = Be brief.\nprompt = In {language}: {text}\n")
        (folder / "language.gone.conf").write_text("model = nowhere\n")
        cls.moed.proc.send_signal(signal.SIGHUP)
        with cls.moed.client() as c:
            until(lambda: cls.known(c, "language.test"), "not read")

    @staticmethod
    def known(client, use_case):
        try:
            return client.call("model.availability", use_case=use_case)["state"] == "available"
        except RpcError as e:
            return e.name not in ("NotSupported", "NoSuchModel")

    def ask(self, *messages, **params):
        return self.c.call("generate", seed=3, max_tokens=12, messages=[dict(zip(("role", "content"), m)) for m in messages],
                           **params)["text"]

    def test_its_words_are_added(self):
        want = self.ask(("system", "Be brief."), ("user", "In Welsh: good morning"))
        self.assertEqual(self.ask(("user", "good morning"), use_case="language.test", language="Welsh"), want)
        self.assertNotEqual(self.ask(("user", "good morning")), want)

    def test_the_callers_instructions_win(self):
        want = self.ask(("system", "Shout."), ("user", "one"), ("assistant", "two"), ("user", "In English: three"))
        self.assertEqual(self.ask(("system", "Shout."), ("user", "one"), ("assistant", "two"), ("user", "three"),
                                  use_case="language.test"), want)

    def test_errors(self):
        for method, params, name in (("generate", {"messages": [{"role": "user", "content": "x"}], "use_case": "no.such"}, "NotSupported"),
                                     ("generate", {"prompt": "x", "use_case": "language.test"}, "InvalidArgs"),
                                     ("generate", {"messages": [{"role": "user", "content": "x"}], "use_case": "language.gone"}, "NoSuchModel"),
                                     ("model.availability", {"use_case": "no.such"}, "NotSupported"),
                                     ("model.availability", {"use_case": "language.gone"}, "NoSuchModel")):
            with self.assertRaises(RpcError) as e:
                self.c.call(method, **params)
            self.assertEqual(e.exception.name, name)


class Topology(unittest.TestCase):
    def test_a_machine_of_two_nodes(self):
        """Where there is no hwloc, or it cannot make machines up, it is the real one."""
        with Moed(env={"HWLOC_SYNTHETIC": "numa:2(memory=8GB) l3:1(size=33554432) core:3 pu:2"}) as moed, moed.client() as c:
            got = c.call("server.topology")
            self.assertEqual(got["shards"], c.call("server.status")["shards"])
            self.assertEqual((got["model"], got["layers"]), ("tiny", c.call("model.show")["metadata"]["gemma4.block_count"]))
            self.assertLessEqual({cpu for s in got["shards"] for cpu in s["cpus"]}, {cpu["cpu"] for cpu in got["cpus"]})
            if len(got["cpus"]) == 12:
                self.assertEqual({(cpu["core"], cpu["node"], cpu["cache"], cpu["sibling"], cpu["cpu"]) for cpu in got["cpus"]},
                                 {(i // 2, i // 6, i // 6, i % 2, i) for i in range(12)})
                self.assertEqual({cpu["cache_bytes"] for cpu in got["cpus"]}, {32 << 20})
                self.assertEqual([s["node"] for s in got["shards"]], [0, 1])
        with Moed(model=None, config="model-dir = /nonexistent\n") as moed, moed.client() as c:
            self.assertEqual(set(c.call("server.topology")), {"cpus", "shards"})


class Small(unittest.TestCase):
    def test_memory_of_a_user(self):
        """What can never be is refused, with the figures; what can be is served."""
        with Moed(config="user-kv-bytes = 256K\n") as moed, moed.client() as c:
            with self.assertRaises(RpcError) as e:
                c.call("generate", prompt="word " * 900, max_tokens=900)
            self.assertEqual(e.exception.name, "InsufficientMemory")
            self.assertGreater(e.exception.data["need"], e.exception.data["have"])
            self.assertLessEqual(e.exception.data["have"], 256 << 10)
            self.assertEqual(c.call("server.status")["tokens"]["prompt"], 0)


class Kill(unittest.TestCase):
    def test_killed_client(self):
        """A client that dies, rather than closes, is noticed as well."""
        script = ("import sys; sys.path.insert(0, sys.argv[1]); import rig; c = rig.Client(sys.argv[2]);"
                  "c.send('generate', **rig.LONG); c.wait_note('generate.delta'); print('on', flush=True); c.frame(); input()")
        with Moed() as moed, moed.client() as c:
            child = subprocess.Popen([sys.executable, "-c", script, os.path.dirname(__file__), moed.path],
                                     stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            self.assertEqual(child.stdout.readline(), b"on\n")
            self.assertEqual(c.call("server.status")["queue"]["running"], 1)
            child.kill()
            until(lambda: c.call("server.status")["queue"]["running"] == 0, "goes on", 1)
            child.communicate()


if __name__ == "__main__":
    rig.main(unittest)
