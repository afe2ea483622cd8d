#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Conversations that the service remembers: test-session.py MOED"""
import os
import pathlib
import tempfile
import unittest

import rig
from rig import LONG, Moed, RpcError

BIAS = LONG["logit_bias"]  # so that an answer ends by its length
OPTS = {"max_tokens": 12, "logit_bias": BIAS}
BLOCK = 64  # positions of the cache


def user(text):
    return {"role": "user", "content": text}


def talk(n):
    """@n exchanges of some 25 tokens, and a question."""
    said = [{"role": "system", "content": "never forget this"}]
    for i in range(n):
        said += [user(f"question {i}, padded"), {"role": "assistant", "content": f"answer {i}, padded"}]
    return said + [user("the last")]


def fails(test, name, client, method, **params):
    with test.assertRaises(RpcError) as e:
        client.call(method, **params)
    test.assertEqual(e.exception.name, name)
    return e.exception.data


class Service(unittest.TestCase):
    """One moed for all tests of a class, with a cache of its own; a client for each."""

    config = "context = 512\nsequences = 4\n"

    @classmethod
    def setUpClass(cls):
        cls.cache = tempfile.TemporaryDirectory(prefix="moed-cache-")
        cls.moed = cls.start()

    @classmethod
    def start(cls):
        return Moed(config=f"cache-dir = {cls.cache.name}\nweights-store = none\n{cls.config}")

    @classmethod
    def tearDownClass(cls):
        cls.moed.__exit__(None)
        cls.cache.cleanup()

    def setUp(self):
        self.c = self.moed.client()
        self.addCleanup(self.c.close)

    def open(self, **params):
        return self.c.call("session.open", **params)["session"]

    def say(self, session, text, client=None, **params):
        return (client or self.c).call("session.generate", session=session, messages=[user(text)], **{**OPTS, **params})


class Session(Service):
    def test_says_what_generate_says(self):
        """A session is the same conversation, sent once."""
        s = self.open(instructions="be brief", seed=3, temperature=0.9)
        said = [{"role": "system", "content": "be brief"}]
        for text in "hello there", "and more", "the end":
            said.append(user(text))
            want = self.c.call("generate", messages=said, seed=3, temperature=0.9, **OPTS)
            got = self.say(s, text)
            self.assertEqual(got["text"], want["text"])
            self.assertEqual(got["usage"]["prompt"], want["usage"]["prompt"])
            self.assertEqual(set(got["usage"]), {"prompt", "cached", "generated", "dropped"})
            self.assertEqual(set(got["timings"]), {"queue_us", "prefill_us", "decode_us"})
            said.append({"role": "assistant", "content": got["text"]})
            if len(said) > 4:
                self.assertGreater(got["usage"]["cached"], 0)

    def test_measure_append_clone(self):
        s = self.open(messages=[user("hello there")], seed=1)
        asked = [user("what is that?")]
        m = self.c.call("session.measure", session=s, messages=asked)
        self.assertTrue(m["fits"])
        self.assertEqual(m["available"], 511)
        used = self.c.call("session.append", session=s, messages=asked)["context_used"]
        self.assertLess(used, m["tokens"])  # which has the head of the answer
        again = self.c.call("session.generate", session=self.c.call("session.clone", session=s)["session"], **OPTS)
        self.assertGreaterEqual(again["usage"]["cached"], used)
        clone = self.c.call("session.clone", session=s)["session"]
        a = self.c.call("session.generate", session=s, **OPTS)
        b = self.c.call("session.generate", session=clone, **OPTS)
        self.assertEqual(a["usage"]["prompt"], m["tokens"])
        self.assertEqual(a["text"], b["text"])
        self.say(s, "one more")
        sizes = {t["session"]: t["messages"] for t in self.c.call("session.list")["sessions"]}
        self.assertEqual((sizes[s], sizes[clone]), (5, 3))
        self.c.call("session.close", session=s)
        fails(self, "NoSuchSession", self.c, "session.generate", session=s)

    def test_cancelled_is_taken_back(self):
        s = self.open(seed=2)
        self.say(s, "hello")
        before = self.c.call("session.measure", session=s)["tokens"]
        i = self.c.send("session.generate", session=s, messages=[user("go on")], stream=True, logit_bias=BIAS)
        self.c.wait_note("generate.delta")
        self.c.notify("generate.cancel", id=i)
        with self.assertRaises(RpcError):
            self.c.wait(i)
        self.assertEqual(self.c.call("session.measure", session=s)["tokens"], before)
        with self.moed.client() as other:  # as is what nobody waits for any more
            other.send("session.generate", session=s, messages=[user("go on")], stream=True, logit_bias=BIAS)
            other.wait_note("generate.delta")
            self.assertIn("retry_after_ms", fails(self, "Busy", self.c, "session.generate", session=s))
        rig.until(lambda: not any(t["busy"] for t in self.c.call("session.list")["sessions"]), "still busy")
        self.assertEqual(self.c.call("session.measure", session=s)["tokens"], before)

    def test_closed_with_its_connection(self):
        with self.moed.client() as other:
            s = other.call("session.open")["session"]
            self.say(s, "hello")  # any connection of the user
        rig.until(lambda: s not in [t["session"] for t in self.c.call("session.list")["sessions"]], "still there")
        fails(self, "NoSuchSession", self.c, "session.measure", session=s)

    @unittest.skipIf(os.geteuid(), "needs another user")
    def test_other_users(self):
        s = self.open()
        self.say(s, "hello")
        token = self.c.call("session.save", session=s)["token"]
        self.moed.dir.chmod(0o755)
        self.moed.path.chmod(0o666)
        os.seteuid(54321)
        try:
            other = self.moed.client()
        finally:
            os.seteuid(0)
        self.addCleanup(other.close)
        for method in "generate", "append", "measure", "clone", "close", "save":
            fails(self, "NoSuchSession", other, f"session.{method}", session=s, **({"messages": [user("x")]} if method == "append" else {}))
        for method in "restore", "forget":
            fails(self, "NoSuchSession", other, f"session.{method}", token=token)
        fails(self, "AccessDenied", other, "session.list", all=True)
        self.assertEqual(other.call("session.list")["sessions"], [])
        self.assertEqual(other.call("session.saved")["saved"], [])
        mine = other.call("session.open")["session"]
        fails(self, "NoSuchSession", other, "session.save", session=mine, token=token)
        self.assertNotIn(mine, [t["session"] for t in self.c.call("session.list")["sessions"]])
        self.assertIn((mine, 54321), [(t["session"], t["user"]) for t in self.c.call("session.list", all=True)["sessions"]])


class Overflow(Service):
    config = "context = 256\nsequences = 1\n"

    def tokens(self, messages):
        return len(self.c.call("template.apply", messages=messages)["tokens"])

    def test_generate(self):
        said = talk(30)
        before = self.c.call("server.status")["tokens"]["prompt"]
        data = fails(self, "ContextOverflow", self.c, "generate", messages=said)
        self.assertEqual(data["requested"], self.tokens(said))
        self.assertEqual(data["available"], 255)
        self.assertEqual(self.c.call("server.status")["tokens"]["prompt"], before)

        r = self.c.call("generate", messages=said, overflow="drop-oldest", seed=5, **OPTS)
        n = r["dropped_messages"]
        left = said[:1] + said[1 + n:]
        self.assertEqual(n % 2, 0)
        self.assertEqual(r["usage"]["prompt"], self.tokens(left))
        self.assertEqual(r["usage"]["dropped"], self.tokens(said) - self.tokens(left))
        self.assertLessEqual(r["usage"]["prompt"] + 12 + 32, 256)
        self.assertGreater(self.tokens(said[:1] + said[n - 1:]) + 12 + 32, 256)  # no more than must be
        self.assertEqual(r["text"], self.c.call("generate", messages=left, seed=5, **OPTS)["text"])

    def test_what_never_goes(self):
        long = " ".join(["words"] * 300)
        for said in [{"role": "system", "content": long}, user("a"), {"role": "assistant", "content": "b"}, user("c")], \
                [user("a"), {"role": "assistant", "content": "b"}, user(long)]:
            data = fails(self, "ContextOverflow", self.c, "generate", messages=said, overflow="drop-oldest")
            self.assertGreater(data["requested"], data["available"])
        r = self.c.call("generate", messages=talk(1), overflow="drop-oldest", **OPTS)
        self.assertEqual((r["dropped_messages"], r["usage"]["dropped"]), (0, 0))

    def test_session(self):
        """A chat without end: the session keeps what is left."""
        s, dropped = self.open(instructions="never forget this"), 0
        for i in range(12):
            r = self.say(s, f"question {i}, with some words around it", overflow="drop-oldest")
            dropped += r["dropped_messages"]
            n = [t["messages"] for t in self.c.call("session.list")["sessions"] if t["session"] == s]
            self.assertEqual(n, [1 + 2 * (i + 1) - dropped])
        self.assertGreater(dropped, 0)
        with self.assertRaises(RpcError):
            while True:
                self.say(s, "and another one")


class OverflowOfUser(Service):
    config = "context = 512\nsequences = 2\nuser-kv-bytes = 1M\n"

    def test_user_part(self):
        """What fits the context but not the user's part of the cache is shortened, too."""
        data = fails(self, "InsufficientMemory", self.c, "generate", messages=talk(8), **OPTS)
        self.assertGreater(data["need"], data["have"])
        r = self.c.call("generate", messages=talk(8), overflow="drop-oldest", **OPTS)
        self.assertGreater(r["usage"]["dropped"], 0)
        self.assertEqual(r["usage"]["generated"], 12)
        s = self.open(messages=talk(8)[:-1])
        r = self.say(s, "the last", overflow="drop-oldest")
        self.assertGreater(r["dropped_messages"], 0)
        self.assertEqual(self.say(s, "and one more", overflow="drop-oldest")["usage"]["generated"], 12)


class Saved(Service):
    def save_three(self):
        """Saved conversations, and what each says next. Of those the service still has everything."""
        said = []
        for i in range(3):
            s = self.open(instructions=f"number {i}", seed=100 + i, temperature=1.1, max_tokens=20)
            self.say(s, "hello there " * 20)
            self.say(s, "and more")
            saved = self.c.call("session.save", session=s)
            said.append((saved, self.next(self.c, s)))
        return said

    def next(self, client, session):
        return client.call("session.generate", session=session, messages=[user("go on")], logprobs=2, logit_bias=BIAS)

    def restart(self):
        type(self).moed.__exit__(None)
        type(self).moed = self.start()
        self.c.close()
        self.c = self.moed.client()

    def same(self, new, old):
        for key in "text", "logprobs", "stop_reason", "seed":
            self.assertEqual(new[key], old[key])
        for key in "prompt", "generated":
            self.assertEqual(new["usage"][key], old["usage"][key])

    def file(self, saved, ending):
        return pathlib.Path(self.cache.name) / "sessions" / str(os.geteuid()) / f"{saved['token']}.{ending}"

    def test_restart(self):
        """Three saved sessions go on after a restart as they would have gone on without, and only
        what is new is evaluated."""
        said = self.save_three()
        self.restart()
        for saved, old in said:
            restored = self.c.call("session.restore", token=saved["token"])
            self.assertEqual(restored["cached"], saved["cached"])
            self.assertEqual(restored["context_window"], 512)
            before = self.c.call("server.status")["tokens"]["prompt"]
            new = self.next(self.c, restored["session"])
            self.same(new, old)
            evaluated = new["usage"]["prompt"] - new["usage"]["cached"]
            self.assertEqual(self.c.call("server.status")["tokens"]["prompt"] - before, evaluated)
            self.assertGreater(saved["cached"], 100)
            self.assertLessEqual(evaluated, new["usage"]["prompt"] - saved["cached"] + BLOCK)
            self.assertLessEqual(evaluated, 64)  # of a step, which has 512 rows
        self.assertNotIn("not used", self.moed.text())

    def test_bad_keys(self):
        """What was evaluated is damaged, cut short, no file of ours or not there: the text is, and is
        evaluated again."""
        said = self.save_three()
        files = [self.file(saved, "kv") for saved, _ in said]
        data = bytearray(files[0].read_bytes())
        data[len(data) // 2] ^= 1
        files[0].write_bytes(data)
        os.truncate(files[1], len(data) - 1)
        files[2].write_bytes(b"MOEDKEYS" + os.urandom(5000))
        self.restart()
        for saved, old in said:
            restored = self.c.call("session.restore", token=saved["token"])
            self.assertEqual(restored["cached"], 0)
            new = self.next(self.c, restored["session"])
            self.same(new, old)
            self.assertLess(new["usage"]["cached"], 32)  # how all begin
        self.assertEqual(self.moed.text().count("its keys and values are not used"), 3)
        self.assertIn("damaged", self.moed.text())
        files[0].unlink()
        restored = self.c.call("session.restore", token=said[0][0]["token"])
        self.assertEqual(restored["cached"], 0)

    def test_over_and_forget(self):
        """Saved under the same token: the one before is gone. Forgotten: so are the files."""
        s = self.open()
        self.say(s, "hello")
        first = self.c.call("session.save", session=s)
        self.say(s, "and more")
        again = self.c.call("session.save", session=s, token=first["token"])
        self.assertEqual(again["token"], first["token"])
        self.assertGreater(again["cached"], first["cached"])
        want = self.say(s, "go on", seed=1)
        self.c.call("session.close", session=s)
        s = self.c.call("session.restore", token=first["token"])["session"]
        self.assertEqual(self.say(s, "go on", seed=1)["text"], want["text"])
        self.assertTrue(self.file(first, "kv").exists() and self.file(first, "session").exists())
        self.assertEqual([p for p in self.file(first, "kv").parent.iterdir() if p.suffix == ".new"], [])
        listed = {s["token"]: s for s in self.c.call("session.saved")["saved"]}[first["token"]]
        self.assertTrue(listed["bytes"] > 0 and listed["idle_us"] < 600e6 and "cached_bytes" in listed)
        self.c.call("session.forget", token=first["token"])
        self.assertNotIn(first["token"], [s["token"] for s in self.c.call("session.saved")["saved"]])
        self.assertFalse(self.file(first, "kv").exists() or self.file(first, "session").exists())
        fails(self, "NoSuchSession", self.c, "session.restore", token=first["token"])
        fails(self, "NoSuchSession", self.c, "session.forget", token=first["token"])
        fails(self, "NoSuchSession", self.c, "session.save", session=s, token=first["token"])

    def test_damage(self):
        """A damaged one is refused; the others are as they were."""
        s = self.open()
        self.say(s, "hello")
        good, bad, cut = (self.c.call("session.save", session=s)["token"] for _ in range(3))
        folder = pathlib.Path(self.cache.name) / "sessions" / str(os.geteuid())
        self.assertEqual(folder.stat().st_mode & 0o777, 0o700)
        data = bytearray((folder / f"{bad}.session").read_bytes())
        data[-3] ^= 4
        (folder / f"{bad}.session").write_bytes(data)
        (folder / f"{cut}.session").write_bytes(data[:20])
        fails(self, "Corrupt", self.c, "session.restore", token=bad)
        fails(self, "Corrupt", self.c, "session.restore", token=cut)
        fails(self, "NoSuchSession", self.c, "session.restore", token="../../etc/passwd")
        fails(self, "NoSuchSession", self.c, "session.restore", token="0" * 32)
        self.assertEqual(self.say(self.c.call("session.restore", token=good)["session"], "more", seed=1)["text"],
                         self.say(s, "more", seed=1)["text"])


if __name__ == "__main__":
    rig.main(unittest)
