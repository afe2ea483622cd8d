#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The bridge's page in a browser: test-page.py MOED MOE_OPENAI MODEL [PNG]

Chromium is told what to do over its debugging pipe. With PNG, a picture of the page at the end is
written there. Skipped without chromium.
"""
import base64
import fcntl
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import rig
from rig import until

BRIDGE, MODEL = os.path.abspath(sys.argv.pop(2)), pathlib.Path(sys.argv.pop(2)).resolve()
PNG = sys.argv.pop(2) if len(sys.argv) > 2 and sys.argv[2].endswith(".png") else None
CHROMIUM = shutil.which("chromium")
PATIENCE = 60.0


class Browser:
    """One page of a headless Chromium; fd 3 and 4 of it are ours, JSON that ends in a NUL each."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="moed-page-")
        down, self.out = os.pipe()
        self.inp, up = os.pipe()
        argv = [CHROMIUM, "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-extensions",
                "--disable-dev-shm-usage", "--no-sandbox", f"--user-data-dir={self.dir}", "--window-size=900,700", "about:blank"]

        def pipes():  # by way of numbers that are neither
            a, b = fcntl.fcntl(down, fcntl.F_DUPFD, 10), fcntl.fcntl(up, fcntl.F_DUPFD, 10)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.proc = subprocess.Popen(argv, preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": self.dir})
        os.close(down)
        os.close(up)
        self.numbers, self.rest, self.session, self.events = itertools.count(1), b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in "Page", "Runtime", "Log":
            self.call(domain + ".enable")

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": self.session} if self.session else {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                data = os.read(self.inp, 1 << 16)
                if not data:
                    raise EOFError("the browser is gone")
                self.rest += data
            frame, _, self.rest = self.rest.partition(b"\0")
            said = json.loads(frame)
            if said.get("id") == number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                return said["result"]
            if "method" in said:
                self.events.append((said["method"], said["params"]))

    def js(self, text):
        """The value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"])
        return done["result"].get("value")

    def until(self, text, timeout=PATIENCE):
        end = time.monotonic() + timeout
        while not (value := self.js(text)):
            if time.monotonic() > end:
                raise AssertionError(f"not so: {text}\n{self.js('document.body.innerText')}")
            time.sleep(0.05)
        return value

    def type(self, text):
        self.js("document.getElementById('text').focus()")
        self.call("Input.insertText", text=text)
        for kind in "keyDown", "keyUp":
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13,
                      **({"text": "\r"} if kind == "keyDown" else {}))

    def picture(self):
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def __enter__(self):
        return self

    def __exit__(self, *what):
        try:
            self.session = None
            self.call("Browser.close")
            self.proc.wait(20)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self.proc.kill()
            self.proc.wait()
        os.close(self.out)
        os.close(self.inp)
        shutil.rmtree(self.dir, ignore_errors=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def reaches(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    except OSError:
        return False


@unittest.skipUnless(CHROMIUM, "no chromium")
class Page(unittest.TestCase):
    def test_chat(self):
        port = free_port()
        with rig.Moed("--model", MODEL, model=None) as moed:
            bridge = subprocess.Popen([BRIDGE, "--socket", moed.path, "--listen", f"127.0.0.1:{port}"])
            try:
                until(lambda: reaches(port), "no bridge")
                with Browser() as b:
                    self.talk(b, f"http://localhost:{port}/")
                    bridge.terminate()
                    self.assertEqual(bridge.wait(20), 0)
                    b.js("state()")
                    self.assertEqual(b.js("document.getElementById('state').className"), "")
            finally:
                bridge.kill()
                bridge.wait()

    def talk(self, b, url):
        b.call("Page.navigate", url=url)
        b.until("document.readyState == 'complete'")
        b.until(f"document.getElementById('state').textContent == '{MODEL.stem}, ready'")
        self.assertEqual(b.js("document.getElementById('state').className"), "ok")
        # How the answer grows is written down as it does: one length for each change.
        b.js("var grown = []; new MutationObserver(() => { const a = document.querySelector('.answer');"
             " if (a && a.textContent.length != grown.at(-1)) grown.push(a.textContent.length); })"
             ".observe(document.getElementById('log'), { childList: true, subtree: true, characterData: true }); 0")
        b.type("How do I list directory contents?")
        self.assertEqual(b.until("document.querySelector('.user')?.textContent"), "How do I list directory contents?")
        b.until("document.getElementById('send').textContent == 'send' && document.querySelectorAll('.answer').length == 1")
        grown = b.js("grown")
        self.assertGreater(len(grown), 1)  # it came in pieces
        self.assertEqual(grown, sorted(grown))
        self.assertEqual(grown[-1], b.js("messages[1].content.length"))
        self.assertRegex(b.js("document.querySelector('.note').textContent"), r"^\d+ tokens, \d+\.\d a second$")
        self.assertEqual(b.js("document.getElementById('text').value"), "")

        b.type("What does grep do?")  # the second turn knows the first
        b.until("document.getElementById('send').textContent == 'send' && document.querySelectorAll('.answer').length == 2")
        self.assertEqual(b.js("messages.map(m => m.role).join()"), "user,assistant,user,assistant")
        if PNG:
            pathlib.Path(PNG).write_bytes(b.picture())

        b.js("document.getElementById('fresh').click()")
        self.assertEqual(b.js("document.getElementById('log').children.length"), 0)
        self.assertEqual([p for m, p in b.events if m == "Runtime.exceptionThrown"], [])
        faults = [p["entry"]["text"] for m, p in b.events if m == "Log.entryAdded" and p["entry"]["level"] == "error"]
        self.assertEqual(faults, [])  # nothing that the page wants is missing or kept from it


if __name__ == "__main__":
    rig.main(unittest)
