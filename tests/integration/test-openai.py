#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""OpenAI's HTTP interface, before a real service: test-openai.py MOED MOE_OPENAI MODEL

With $MOED_NODE_MODULES, a folder in which the npm package openai is installed, that package asks too.
"""
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import rig
from rig import until

BRIDGE = os.path.abspath(sys.argv.pop(2))
MODEL = pathlib.Path(sys.argv.pop(2)).resolve()  # one that was trained: its answers are text
QUESTION = [{"role": "user", "content": "How do I list files?"}]
FOREVER = {str(t): -100 for t in rig.END}  # the model cannot end its answer


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def Moed():
    return rig.Moed("--model", MODEL, model=None)


class Bridge:
    """A moe-openai beside a service; stopped and checked at the end of the block."""

    def __init__(self, service, *args, unix=False, activate=False):
        self.port, self.path = free_port(), pathlib.Path(service).parent / "http"
        at = ["--unix", self.path] if unix else ["--listen", f"127.0.0.1:{self.port}"]
        argv = [BRIDGE, "--socket", service, *args]
        if activate:
            argv = ["systemd-socket-activate", "-l", f"127.0.0.1:{self.port}", *argv]
        else:
            argv += at
        self.unix = unix
        self.proc = subprocess.Popen([str(a) for a in argv], stderr=subprocess.PIPE, text=True)
        until(lambda: self.proc.poll() is not None or self.listens(), "no socket")

    def listens(self):
        try:
            self.connect().close()
            return True
        except OSError:
            return False

    def connect(self):
        s = socket.socket(socket.AF_UNIX if self.unix else socket.AF_INET)
        s.settimeout(60)
        s.connect(str(self.path) if self.unix else ("127.0.0.1", self.port))
        return s

    def http(self):
        c = http.client.HTTPConnection("localhost", self.port, timeout=60)
        c.sock = self.connect()
        return c

    def ask(self, path, body=None, method=None, **headers):
        """Status, headers and document of one request on a connection of its own."""
        c = self.http()
        data = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
        if data is not None:
            headers.setdefault("Content-Type", "application/json")
        c.request(method or ("POST" if data is not None else "GET"), path, data, headers)
        r = c.getresponse()
        text = r.read()
        c.close()
        return r.status, r.headers, json.loads(text) if "json" in r.headers["Content-Type"] else text

    def chat(self, **params):
        return self.ask("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 8, "temperature": 0, **params})

    def stop(self):
        self.proc.send_signal(signal.SIGTERM)
        said = self.proc.communicate(timeout=20)[1]
        return self.proc.returncode, said

    def __enter__(self):
        return self

    def __exit__(self, kind, *what):
        if self.proc.poll() is None:
            code, said = self.stop()
            if not kind:
                assert code == 0, f"exit status {code}: {said}"


def events(response):
    """The documents of a stream of events, and "[DONE]"."""
    for line in response:
        if line.startswith(b"data: "):
            text = line[6:].decode().strip()
            yield text if text == "[DONE]" else json.loads(text)


def stream(bridge, path="/v1/chat/completions", **params):
    c = bridge.http()
    body = {"messages": QUESTION, "max_tokens": 8, "temperature": 0, "stream": True, **params}
    c.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return c, c.getresponse()


class OpenAI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.moed = Moed()
        cls.addClassCleanup(cls.moed.__exit__, None, None, None)
        cls.bridge = Bridge(cls.moed.path)
        cls.addClassCleanup(cls.bridge.__exit__, None)

    def jobs(self):
        with self.moed.client() as c:
            return c.call("job.list")["jobs"]

    def refused(self, status, code, words, **params):
        got, _, doc = self.bridge.chat(**params)
        self.assertEqual((got, doc["error"]["code"]), (status, code), doc)
        self.assertRegex(doc["error"]["message"], words)
        return doc["error"]

    def test_health_and_models(self):
        status, _, doc = self.bridge.ask("/health")
        self.assertEqual((status, doc["status"], doc["state"], doc["model"]), (200, "ok", "ready", MODEL.stem))
        status, _, doc = self.bridge.ask("/v1/models")
        self.assertEqual((status, [m["id"] for m in doc["data"]]), (200, [MODEL.stem]))
        self.assertEqual(self.bridge.ask(f"/v1/models/{MODEL.stem}?x=1")[2]["id"], MODEL.stem)
        status, _, doc = self.bridge.ask("/v1/models/no%20such")
        self.assertEqual((status, doc["error"]["code"], doc["error"]["message"]), (404, "model_not_found", "no model no such"))

    def test_answer_is_the_services(self):
        with self.moed.client() as c:
            want = c.call("generate", messages=QUESTION, max_tokens=8, temperature=0.0)
        status, _, doc = self.bridge.chat()
        self.assertEqual((status, doc["object"]), (200, "chat.completion"))
        choice = doc["choices"][0]
        self.assertRegex(want["text"], r"\bls\b")
        self.assertEqual(choice["message"]["content"], want["text"])
        self.assertEqual(choice["finish_reason"], want["stop_reason"])
        self.assertEqual(doc["usage"]["prompt_tokens"], want["usage"]["prompt"])
        self.assertEqual(doc["usage"]["completion_tokens"], want["usage"]["generated"])

    def test_stream_says_the_same(self):
        want = self.bridge.chat()[2]["choices"][0]["message"]["content"]
        c, r = stream(self.bridge, stream_options={"include_usage": True})
        self.assertEqual((r.status, r.headers["Content-Type"]), (200, "text/event-stream"))
        got = list(events(r))
        self.assertEqual(got.pop(), "[DONE]")
        self.assertEqual(got.pop()["usage"]["completion_tokens"], 8)
        self.assertEqual(got[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual(got[-1]["choices"][0]["finish_reason"], "length")
        self.assertEqual("".join(e["choices"][0]["delta"].get("content", "") for e in got), want)
        c.request("GET", "/health")  # the connection goes on
        self.assertEqual(c.getresponse().status, 200)

    def test_parts_and_sampling(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": "How do I "}, {"type": "text", "text": "list files?"}]}]
        want = self.bridge.chat()[2]["choices"][0]["message"]
        self.assertEqual(self.bridge.chat(messages=parts)[2]["choices"][0]["message"], want)
        drawn = {"temperature": 1.5, "seed": 7, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "frequency_penalty": 0.5,
                 "presence_penalty": -0.5, "logit_bias": {"5": -100}, "n": 1, "tools": [], "user": "x", "stop": None}
        first = self.bridge.chat(**drawn)
        self.assertEqual(first[0], 200, first[2])
        self.assertEqual(first[2]["choices"], self.bridge.chat(**drawn)[2]["choices"])

    def test_logprobs(self):
        choice = self.bridge.chat(logprobs=True, top_logprobs=2)[2]["choices"][0]
        rows = choice["logprobs"]["content"]
        self.assertEqual(len(rows), 8)
        self.assertEqual(b"".join(bytes(t["bytes"]) for t in rows).decode(errors="replace"), choice["message"]["content"])
        for t in rows:
            self.assertEqual(len(t["top_logprobs"]), 2)
            self.assertEqual(t["top_logprobs"][0]["token"], t["token"])  # temperature 0
            self.assertLessEqual(t["logprob"], 0)

    def test_completions(self):
        body = {"prompt": "Once", "max_tokens": 4, "temperature": 0, "logprobs": 1}
        status, _, doc = self.bridge.ask("/v1/completions", body)
        self.assertEqual((status, doc["object"], len(doc["choices"][0]["logprobs"]["tokens"])), (200, "text_completion", 4))
        with self.moed.client() as c:
            self.assertEqual(doc["choices"][0]["text"], c.call("generate", prompt="Once", max_tokens=4, temperature=0.0)["text"])
            tokens = c.call("tokenize", text="Once", bos=True)["tokens"]
        again = self.bridge.ask("/v1/completions", {**body, "prompt": tokens})[2]
        self.assertEqual(again["choices"], doc["choices"])
        c, r = stream(self.bridge, "/v1/completions", prompt="Once", max_tokens=4)
        got = [e for e in events(r) if e != "[DONE]"]
        self.assertEqual("".join(e["choices"][0]["text"] for e in got), doc["choices"][0]["text"])
        c.close()

    def test_what_is_refused(self):
        for status, code, words, params in [
            (400, "invalid_value", "^messages is to be", {"messages": []}),
            (400, "invalid_value", r"messages\[0\].content", {"messages": [{"role": "user", "content": "a\0b"}]}),
            (400, "unsupported_value", r"the role wizard", {"messages": [{"role": "wizard", "content": "x"}]}),
            (400, "unsupported_value", r"image_url", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            (400, "unsupported_value", "^tools:", {"tools": [{"type": "function"}]}),
            (400, "unsupported_value", "^n:", {"n": 2}),
            (400, "unsupported_value", "^response_format:", {"response_format": {"type": "json_object"}}),
            (400, "invalid_value", "^temperature .* from 0 to 2", {"temperature": 3}),
            (400, "invalid_value", "^max_tokens", {"max_tokens": 1.5}),
            (400, "invalid_value", "^stream ", {"stream": "yes"}),
            (400, "invalid_value", "^stop ", {"stop": ["x", ""]}),
            (400, "invalid_value", "^logit_bias: seven", {"logit_bias": {"seven": 1}}),
            (404, "model_not_found", "gpt-9", {"model": "gpt-9"}),
            (400, "context_length_exceeded", "tokens", {"messages": [{"role": "user", "content": "word " * 5000}]}),
        ]:
            with self.subTest(params=str(params)[:60]):
                self.refused(status, code, words, **params)
                self.refused(status, code, words, **params | {"stream": params.get("stream", True)})
        self.assertEqual(self.refused(404, "model_not_found", "gpt-9", model="gpt-9")["param"], "model")

    def test_what_is_no_request(self):
        ask = self.bridge.ask
        for status, code, got in [
            (400, "bad_json", ask("/v1/chat/completions", "{")),
            (400, "bad_json", ask("/v1/chat/completions", "{} x")),
            (400, "bad_json", ask("/v1/chat/completions", b'{"a": "\xff"}')),
            (400, "bad_json", ask("/v1/chat/completions", "[" * 100)),
            (400, "bad_json", ask("/v1/chat/completions", "")),
            (400, "invalid_value", ask("/v1/chat/completions", "[]")),
            (415, "bad_content_type", ask("/v1/chat/completions", "{}", **{"Content-Type": "text/plain"})),
            (404, "not_found", ask("/v1/nothing")),
            (405, "bad_method", ask("/v1/chat/completions")),
            (405, "bad_method", ask("/v1/models", "{}")),
            (405, "bad_method", ask("/v1/models", method="OPTIONS")),
            (403, "bad_host", ask("/health", Host="rebound.example")),
            (403, "bad_origin", ask("/health", Origin="http://elsewhere.example")),
            (501, "unsupported", ask("/v1/embeddings", {"input": "x"})),
        ]:
            self.assertEqual((got[0], got[2]["error"]["code"]), (status, code), got[2])
        self.assertEqual(ask("/health", Origin=f"http://localhost:{self.bridge.port}", Host=f"localhost:{self.bridge.port}")[0], 200)

    def test_a_body_too_large(self):
        c = self.bridge.http()
        c.putrequest("POST", "/v1/chat/completions")
        c.putheader("Content-Type", "application/json")
        c.putheader("Content-Length", str(17 << 20))
        c.endheaders()
        self.assertEqual(c.getresponse().status, 413)
        c.close()

    def test_hangup_cancels(self):
        for streams in (True, False):
            c = self.bridge.http()
            body = {"messages": QUESTION, "logit_bias": FOREVER, "max_tokens": 100000, "stream": streams}
            c.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            until(self.jobs, "no job")
            c.close()
            until(lambda: not self.jobs(), f"the job goes on, stream {streams}", 5)

    def test_many_at_once(self):
        want = self.bridge.chat()[2]["choices"]
        all_of_them = [stream(self.bridge) for _ in range(20)]
        for c, r in all_of_them:
            got = [e for e in events(r) if e != "[DONE]"]
            self.assertEqual("".join(e["choices"][0]["delta"].get("content", "") for e in got), want[0]["message"]["content"])
            c.close()

    def test_page(self):
        status, headers, text = self.bridge.ask("/")
        self.assertEqual((status, headers["Content-Type"]), (200, "text/html; charset=utf-8"))
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        self.assertIn(b"<title>moed</title>", text)
        self.assertNotRegex(text.decode(), r"(src|href)=")

    def test_npm_package(self):
        modules = os.environ.get("MOED_NODE_MODULES")
        if not modules:
            self.skipTest("no MOED_NODE_MODULES: a folder with the npm package openai")
        script = pathlib.Path(__file__).with_name("openai-package.mjs")
        done = subprocess.run(["node", script, modules, f"http://localhost:{self.bridge.port}/v1", MODEL.stem], capture_output=True, text=True, timeout=120)
        print(done.stdout, done.stderr)
        self.assertEqual(done.returncode, 0)
        until(lambda: not self.jobs(), "the job goes on after an abort", 5)


class Bridges(unittest.TestCase):
    """Each with a bridge of its own."""

    def test_token(self):
        with Moed() as moed:
            path = moed.dir / "token"
            path.write_text("a secret\n")
            with Bridge(moed.path, "--token-file", path) as bridge:
                self.assertEqual(bridge.ask("/health")[0], 200)
                self.assertEqual(bridge.ask("/")[0], 200)
                for said in ({}, {"Authorization": "Bearer a secre"}, {"Authorization": "Basic x"}):
                    status, headers, doc = bridge.ask("/v1/models", **said)
                    self.assertEqual((status, doc["error"]["code"]), (401, "invalid_api_key"), said)
                    self.assertEqual(headers["WWW-Authenticate"], "Bearer")
                self.assertEqual(bridge.ask("/v1/models", Authorization="Bearer a secret")[0], 200)

    def test_unix_socket(self):
        with Moed() as moed, Bridge(moed.path, unix=True) as bridge:
            self.assertEqual(bridge.chat()[0], 200)
            with socket.socket(socket.AF_UNIX):
                other = subprocess.run([BRIDGE, "--unix", bridge.path], capture_output=True, text=True, timeout=20)
            self.assertEqual(other.returncode, 1)
            self.assertIn("another program serves it", other.stderr)

    def test_socket_activation(self):
        with Moed() as moed, Bridge(moed.path, activate=True) as bridge:
            self.assertEqual(bridge.chat()[0], 200)

    def test_outlives_the_service(self):
        with Moed() as moed, Bridge(moed.path) as bridge:
            self.assertEqual(bridge.chat()[0], 200)
            moed.stop()
            self.assertEqual(bridge.ask("/health")[2]["error"]["code"], "unreachable")
            with Moed() as other:
                os.symlink(other.path, moed.path) if not moed.path.exists() else None
                self.assertEqual(bridge.chat()[0], 200)

    def test_service_ends_in_a_stream(self):
        with Moed() as moed, Bridge(moed.path) as bridge:
            c, r = stream(bridge, logit_bias=FOREVER, max_tokens=100000)
            got = events(r)
            self.assertIn("choices", next(got))
            moed.stop()
            last = list(got)[-1]
            self.assertIn(last["error"]["code"], ("shutting_down", "disconnected"))
            c.close()

    def test_time_limit_is_no_limit_of_answers(self):
        """An answer takes longer than a silent client is waited for, and is whole."""
        with Moed() as moed, Bridge(moed.path, "--idle-timeout", "1") as bridge:
            for streams in (True, False):
                bridge.chat()
                begin = time.monotonic()
                moed.proc.send_signal(signal.SIGSTOP)
                threading.Timer(1.5, moed.proc.send_signal, [signal.SIGCONT]).start()
                conn, r = stream(bridge, stream=streams)
                text = r.read()
                conn.close()
                self.assertGreater(time.monotonic() - begin, 1.4)
                self.assertIn(b"[DONE]" if streams else b"usage", text)
            silent = bridge.connect()
            self.assertEqual(silent.recv(100), b"")  # and a silent client goes

    def test_end_with_a_stream(self):
        with Moed() as moed, Bridge(moed.path) as bridge:
            c, r = stream(bridge, logit_bias=FOREVER, max_tokens=100000)
            got = events(r)
            self.assertIn("choices", next(got))
            code, _ = bridge.stop()
            self.assertEqual(code, 0)
            self.assertEqual(list(got)[-1]["error"]["code"], "cancelled")
            c.close()
            with moed.client() as client:
                until(lambda: not client.call("job.list")["jobs"], "the job goes on", 5)

    def test_only_this_machine(self):
        for args, code, words in [
            (["--listen", "0.0.0.0:8000"], 2, "only the loopback interface"),
            (["--listen", "nonsense"], 2, "not an ADDRESS:PORT"),
            (["--unix", "x" * 200], 2, "longer than 107 bytes"),
            (["--token-file", "/nowhere"], 1, "No such file"),
            (["--token-file", "/dev/null"], 1, "its first line is empty"),
            (["--idle-timeout", "0"], 2, "not a number of seconds"),
            (["extra"], 2, "no arguments but options"),
            (["--wrong"], 2, "unrecognized option"),
        ]:
            done = subprocess.run([BRIDGE, *args], capture_output=True, text=True, timeout=20)
            self.assertEqual(done.returncode, code, args)
            self.assertIn(words, done.stderr)
        self.assertIn("Usage:", subprocess.run([BRIDGE, "--help"], capture_output=True, text=True, timeout=20).stdout)


if __name__ == "__main__":
    rig.main(unittest)
