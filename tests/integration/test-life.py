#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How moed starts, reloads and ends: test-life.py MOED"""
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
import unittest

import rig
from rig import Hangup, LONG, Moed, RpcError, until


def run(*args, **kw):
    return subprocess.run([rig.MOED, *[str(a) for a in args]], capture_output=True, text=True, timeout=30, **kw)


class Notify:
    """A notify socket that records what is said to it."""

    def __init__(self):
        self.dir = tempfile.TemporaryDirectory()
        self.path = self.dir.name + "/notify"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.said = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            self.said.append(self.sock.recv(4096).decode())

    def has(self, what):
        return any(what in s for s in self.said)


class Start(unittest.TestCase):
    def test_words(self):
        self.assertEqual(run("--version").stdout.split()[0], "moed")
        usage = run("--help")
        self.assertEqual((usage.returncode, usage.stderr), (0, ""))
        self.assertIn("--config-root", usage.stdout)
        self.assertIn("generate.cancel", run("--describe").stdout)
        self.assertEqual(run("--nonsense").returncode, 2)
        self.assertEqual(run("stray").returncode, 2)

    def test_manual(self):
        """Every option and key is in its page, and no other."""
        pages = {n: (rig.TESTS.parent / "daemon" / n).read_text().replace("\\-", "-") for n in ("moed.8", "moed.conf.5")}
        options = set(re.findall(r"--[a-z-]+", run("--help").stdout))
        self.assertEqual(options, set(re.findall(r"--[a-z-]+", pages["moed.8"])))
        keys = re.findall(r"^([a-z-]+) = ", run("--config-root", "/nowhere", "--check-config").stdout, re.M)
        self.assertEqual(keys, re.findall(r"^\.TP\n\.B ([a-z-]+)$", pages["moed.conf.5"], re.M))

    def test_no_socket(self):
        said = run("--model", "/nowhere.gguf")
        self.assertEqual(said.returncode, 1)
        self.assertIn("--socket", said.stderr)

    def test_bad_config(self):
        with tempfile.TemporaryDirectory() as root:
            dropins = pathlib.Path(root) / "run/moed/moed.conf.d"
            dropins.mkdir(parents=True)
            (dropins / "10-a.conf").write_text("\nthreads = lots\n")
            said = run("--config-root", root, "--socket", root + "/s")
            self.assertEqual(said.returncode, 78)
            self.assertIn("<3>", said.stderr)
            self.assertIn("run/moed/moed.conf.d/10-a.conf:2: threads: 'lots' is not a number", said.stderr)
            (dropins / "10-a.conf").write_text("threads = 3\n")
            said = run("--config-root", root, "--ctx", "512", "--check-config")
            self.assertEqual(said.returncode, 0)
            self.assertRegex(said.stdout, "# .*10-a.conf:1\nthreads = 3\n")
            self.assertIn("# --ctx\ncontext = 512\n", said.stdout)

    def test_socket_file(self):
        with Moed() as moed:
            self.assertEqual(stat.S_IMODE(moed.path.stat().st_mode), 0o600)
            second = run("--model", rig.make_model("tiny"), "--socket", moed.path, "--config-root", moed.dir)
            self.assertEqual(second.returncode, 1)
            self.assertIn("exists", second.stderr)
            moed.client().call("server.status")  # and it was left alone
            moed.stop()
            self.assertFalse(moed.path.exists())

    def test_stale_socket_is_replaced(self):
        with tempfile.TemporaryDirectory() as d:
            old = socket.socket(socket.AF_UNIX)
            old.bind(d + "/rpc")
            old.close()
            plain = pathlib.Path(d) / "plain"
            plain.write_text("mine")
            with Moed("--socket", d + "/rpc"):
                pass
            said = run("--config-root", d, "--socket", plain)
            self.assertEqual(said.returncode, 1)
            self.assertEqual(plain.read_text(), "mine")

    def test_ready_before_loaded(self):
        notify = Notify()
        with Moed(env={"NOTIFY_SOCKET": notify.path}) as moed:
            until(lambda: notify.has("STATUS=Serving tiny"), notify.said)
            self.assertTrue(notify.has("READY=1"))
            self.assertTrue(notify.has("STATUS=Loading tiny: "))
            first = [i for i, s in enumerate(notify.said) if "READY=1" in s][0]
            loaded = [i for i, s in enumerate(notify.said) if "Serving" in s][0]
            self.assertLess(first, loaded)
            moed.stop()
        until(lambda: notify.has("STOPPING=1"), notify.said)

    def test_garbage_model(self):
        with tempfile.TemporaryDirectory() as d:
            bad = pathlib.Path(d) / "garbage.gguf"
            bad.write_bytes(b"GGUF" + os.urandom(4000))
            with Moed("--model", bad, model=None) as moed, moed.client() as c:
                with self.assertRaises(RpcError) as e:
                    c.call("generate", prompt="x")
                self.assertEqual(e.exception.name, "ModelUnavailable")
                self.assertIn("garbage.gguf", str(e.exception))
                status = c.call("server.status")
                self.assertEqual(status["state"], "failed")
                self.assertIn("garbage.gguf", status["reason"])
                with self.assertRaisesRegex(RpcError, "Corrupt: .*garbage.gguf"):
                    c.call("model.show")
                self.assertEqual(c.call("model.list")["models"][0]["state"], "failed")
                shutil.copy(rig.make_model("tiny"), bad)  # mended: the next request finds out
                self.assertEqual(c.call("generate", prompt="x", max_tokens=1)["model"], "garbage")

    def test_model_dir(self):
        with tempfile.TemporaryDirectory() as d:
            shutil.copy(rig.make_model("tiny"), d + "/two.gguf")
            shutil.copy(rig.make_model("odd"), d + "/one-00001-of-00001.gguf")
            for name in "mmproj-x.gguf", "mtp-x.gguf", "readme.txt", "three-00002-of-00002.gguf":
                (pathlib.Path(d) / name).write_text("x")
            config = f"model-dir = {d}\ndefault-model = two\npreload = no\n"
            with Moed(model=None, config=config) as moed, moed.client() as c:
                models = {m["id"]: m for m in c.call("model.list")["models"]}
                self.assertEqual(sorted(models), ["one", "two"])
                self.assertTrue(models["two"]["default"])
                self.assertEqual(c.call("server.status")["state"], "empty")
                self.assertEqual(c.call("generate", prompt="x", max_tokens=1)["model"], "two")
                self.assertEqual(c.call("generate", prompt="x", max_tokens=1, model="one")["model"], "one")
                self.assertEqual(c.call("generate", prompt="x", max_tokens=1)["model"], "one")
                shutil.copy(d + "/two.gguf", d + "/four.gguf")  # found without a reload
                self.assertEqual(c.call("generate", prompt="x", max_tokens=1, model="four")["model"], "four")
                with self.assertRaisesRegex(RpcError, "NoSuchModel"):
                    c.call("generate", prompt="x", model="five")

    def test_second_start_maps_the_weights(self):
        answers, logs, source = [], [], []
        with tempfile.TemporaryDirectory() as d:
            for start in "packs", "maps", "may not":
                config = f"cache-dir = {d}\n" + "weights-store = none\n" * (start == "may not")
                with Moed(config=config) as moed, moed.client() as c:
                    until(lambda: "loaded: " in moed.text(), "not loaded")
                    answers.append(c.call("generate", prompt="abc", max_tokens=8, temperature=0, logprobs=5))
                    logs.append(moed.text())
                    source.append(c.call("server.status")["weights"])
                    if "weights as in the file" in logs[0]:
                        self.skipTest("this processor's kernels pack nothing")
                    if start == "packs":
                        until(lambda: list(pathlib.Path(d).glob("*.weights")), "no image")
        self.assertEqual(source, ["file", "image", "file"])
        self.assertIn("weights packed", logs[0])
        self.assertIn("weights mapped from the cache", logs[1])
        self.assertIn("weights packed", logs[2])
        for a in answers[1:]:
            self.assertEqual(a["text"], answers[0]["text"])
            self.assertEqual(a["logprobs"], answers[0]["logprobs"])


class Topology(unittest.TestCase):
    """A machine of two nodes, made up: what the kernel refuses to bind is left where it is."""
    PARAMS = {"prompt": "once upon a time", "max_tokens": 24, "temperature": 0}

    def answer(self, **machine):
        with Moed(config="threads = 2\n", env=machine) as moed, moed.client() as c:
            return c.call("server.status")["shards"], c.call("generate", **self.PARAMS)["text"]

    def test_shards(self):
        one, want = self.answer(HWLOC_SYNTHETIC="numa:1 core:2 pu:1")
        two, got = self.answer(HWLOC_SYNTHETIC="numa:2 core:1 pu:1")
        self.assertEqual(len(one), 1)
        if len(two) == 1:
            self.skipTest("a build without hwloc")
        self.assertEqual([s["node"] for s in two], [0, 1])
        self.assertEqual([s["cpus"] for s in two], [[0], [1]])
        self.assertGreater(two[1]["bytes"], 1 << 18)
        self.assertAlmostEqual(two[0]["bytes"] / two[1]["bytes"], 1, delta=0.01)
        self.assertEqual(got, want)

    def test_none_before_a_model(self):
        with Moed(model=None) as moed, moed.client() as c:
            self.assertEqual(c.call("server.status")["shards"], [])


class Activation(unittest.TestCase):
    def setUp(self):
        if not shutil.which("systemd-socket-activate"):
            self.skipTest("no systemd-socket-activate")

    def test_first_connect_starts_it(self):
        with Moed(activate=True) as moed:
            time.sleep(0.3)
            self.assertNotIn("loading", moed.text())  # nobody came yet
            with moed.client() as c:
                self.assertEqual(c.call("server.status")["connections"], 1)
                self.assertGreater(c.call("generate", prompt="x", max_tokens=2)["usage"]["generated"], 0)
            moed.stop()
            self.assertTrue(moed.path.exists())  # the file is the service manager's

    def test_other_names_are_closed(self):
        argv = ["systemd-socket-activate", "-l", "%s/other", "--fdname=other", rig.MOED, "--config-root", "%s",
                "--socket", "%s/rpc", "--model", rig.make_model("tiny")]
        with tempfile.TemporaryDirectory() as d:
            with open(d + "/log", "w") as log:
                proc = subprocess.Popen([str(a).replace("%s", d) for a in argv], stdout=log, stderr=log)
            self.addCleanup(proc.wait)
            self.addCleanup(proc.kill)
            until(lambda: rig.listens(d + "/other"), "no socket")
            with socket.socket(socket.AF_UNIX) as poke:
                poke.connect(d + "/other")
                until(lambda: rig.listens(d + "/rpc"), "did not start")
            with rig.Client(d + "/rpc") as c:
                c.call("server.status")
            self.assertIn("<4>listen: descriptor 3 (other)", pathlib.Path(d + "/log").read_text())
            proc.terminate()
            self.assertEqual(proc.wait(10), 0)


class End(unittest.TestCase):
    def test_term_with_live_stream(self):
        """One runs and one waits. Nobody reads their many bytes: however slow the test, none is at its end."""
        for sig in signal.SIGTERM, signal.SIGINT:
            with Moed(config="sequences = 1\nthreads = 1\n") as moed:
                live, queued, idle = moed.client(), moed.client(), moed.client()
                msgid = live.send("generate", logprobs=20, **LONG)
                live.wait_note("generate.delta")
                waits = queued.send("generate", logprobs=20, **LONG)
                until(lambda: idle.call("server.status")["queue"]["waiting"] == 1, "does not wait")
                start = time.monotonic()
                moed.proc.send_signal(sig)
                for c in live, queued, idle:
                    c.drain()
                self.assertEqual(moed.proc.wait(5), 0)
                self.assertLess(time.monotonic() - start, 5)
                with self.assertRaises(RpcError) as e:
                    live.wait(msgid)
                self.assertEqual(e.exception.name, "ShuttingDown")
                self.assertGreater(e.exception.data["usage"]["generated"], 0)
                self.assertIn("decode_us", e.exception.data["timings"])
                with self.assertRaisesRegex(RpcError, "ShuttingDown"):
                    queued.wait(waits)
                for c in live, queued, idle:
                    self.assertRaises(Hangup, c.frame)

    def test_term_with_a_client_that_does_not_read(self):
        with Moed() as moed:
            stuck = moed.client()
            stuck.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.send("generate", logprobs=20, **LONG)
            time.sleep(1.5)
            start = time.monotonic()
            self.assertEqual(moed.stop(timeout=5), 0)
            self.assertLess(time.monotonic() - start, 5)

    def test_term_with_a_client_that_reads_late(self):
        """What fits into the socket goes there: nobody is waited for."""
        with Moed() as moed, moed.client() as late, moed.client() as other:
            msgid = late.send("generate", **LONG)
            until(lambda: other.call("server.status")["queue"]["running"] == 1, "did not start")
            start = time.monotonic()
            self.assertEqual(moed.stop(), 0)
            self.assertLess(time.monotonic() - start, 0.9)
            with self.assertRaisesRegex(RpcError, "ShuttingDown"):
                late.wait(msgid)

    def test_reload(self):
        notify = Notify()
        with Moed(env={"NOTIFY_SOCKET": notify.path}) as moed:
            conf = moed.dir / "etc/moed/moed.conf"
            conf.write_text("max-connections = 1\n")
            moed.proc.send_signal(signal.SIGHUP)
            until(lambda: "configuration read again" in moed.text(), "no reload")
            # The recorder runs in a thread of its own: wait for the last datagram, then look at all.
            until(lambda: notify.has("RELOADING=1") and "READY=1" in notify.said[-1], notify.said)
            reloading = [s for s in notify.said if s.startswith("RELOADING=1\nMONOTONIC_USEC=")]
            self.assertEqual(len(reloading), 1)
            with moed.client() as c, moed.client() as second:
                self.assertEqual(second.wait_note("rpc.error")["name"], "QuotaExceeded")
                c.call("server.status")
            conf.write_text("max-connections = none\n")
            moed.proc.send_signal(signal.SIGHUP)
            until(lambda: "the old configuration stays: " in moed.text(), "no complaint")
            self.assertIn("moed.conf:1: max-connections: 'none'", moed.text())
            with moed.client() as c:
                self.assertEqual(c.call("server.status")["state"], "ready")


if __name__ == "__main__":
    rig.main(unittest)
