# SPDX-License-Identifier: Apache-2.0
"""A real moed, a small random model, and clients of it."""
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

try:
    import msgpack
except ImportError:
    sys.exit(77)

TESTS = pathlib.Path(__file__).resolve().parent.parent
MOED = ""  # set by main()
os.environ.setdefault("MEMORY_PRESSURE_WATCH", "/dev/null")  # the machine's pressure is none of a test's
END = 1, 50, 106  # what ends an answer of the random model: forbidden where it must go on
LONG = {"prompt": "once", "stream": True, "logit_bias": {t: -1e9 for t in END}}


class Hangup(Exception):
    """The service closed the connection."""


class RpcError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['name']}: {error['message']}")
        self.name, self.data = error["name"], error.get("data", {})


class Client:
    def __init__(self, path, timeout=60.0):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        self.sock.connect(str(path))
        self.unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=0)
        self.last_id = 0
        self.notes = []  # notifications that came while something else was awaited

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.close()

    def send(self, method, **params):
        self.last_id += 1
        self.sock.sendall(msgpack.packb([0, self.last_id, method, [params]]))
        return self.last_id

    def notify(self, method, **params):
        self.sock.sendall(msgpack.packb([2, method, [params]]))

    def frame(self):
        while True:
            for frame in self.unpacker:
                return frame
            data = self.sock.recv(65536)
            if not data:
                raise Hangup
            self.unpacker.feed(data)

    def drain(self):
        """Take all there is until the service hangs up; to be looked at later, which takes longer."""
        while data := self.sock.recv(1 << 20):
            self.unpacker.feed(data)

    def wait(self, msgid):
        """The result of @msgid; notifications on the way go to self.notes."""
        while True:
            frame = self.frame()
            if frame[0] == 2:
                self.notes.append((frame[1], frame[2][0]))
            elif frame[1] == msgid:
                if frame[2] is not None:
                    raise RpcError(frame[2])
                return frame[3]
            else:
                raise AssertionError(f"an answer to {frame[1]}, not to {msgid}: {frame}")

    def call(self, method, **params):
        return self.wait(self.send(method, **params))

    def wait_note(self, name):
        while True:
            for i, (method, params) in enumerate(self.notes):
                if method == name:
                    return self.notes.pop(i)[1]
            frame = self.frame()
            if frame[0] != 2:
                raise AssertionError(f"{frame} came, not {name}")
            self.notes.append((frame[1], frame[2][0]))

    def text(self):
        """What the deltas so far say, and forget them."""
        parts = [p["text"] for m, p in self.notes if m == "generate.delta"]
        self.notes = [n for n in self.notes if n[0] != "generate.delta"]
        return "".join(parts)


class As:
    """Connections made in here are another user's, when this is root."""

    def __init__(self, uid):
        self.uid = uid

    def __enter__(self):
        os.seteuid(self.uid)

    def __exit__(self, *what):
        os.seteuid(0)


class Moed:
    """One service process in a folder of its own; stopped and checked at the end of the block."""

    def __init__(self, *args, model="tiny", config="", wait=True, activate=False, env=None):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="moed-test-"))
        self.path, self.log = self.dir / "rpc", self.dir / "log"
        (self.dir / "etc/moed").mkdir(parents=True)
        (self.dir / "etc/moed/moed.conf").write_text(config)
        argv = [MOED, "--config-root", self.dir, *args]
        if model:
            argv += ["--model", make_model(model)]
        if activate:
            argv = ["systemd-socket-activate", "-l", self.path, "--fdname=rpc"] + argv
        else:
            argv += ["--socket", self.path]
        with self.log.open("w") as log:
            self.proc = subprocess.Popen([str(a) for a in argv], stdout=log, stderr=log, env={**os.environ, **(env or {})})
        try:
            if wait:
                self.wait_ready(model and not activate)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def wait_ready(self, loaded):
        until(lambda: listens(self.path) or self.proc.poll() is not None, "no socket")
        if loaded:
            with self.client() as c:
                until(lambda: c.call("server.status")["state"] != "loading", "still loading")

    def client(self, **kw):
        return Client(self.path, **kw)

    def text(self):
        return self.log.read_text()

    def stop(self, sig=signal.SIGTERM, timeout=10):
        self.proc.send_signal(sig)
        return self.proc.wait(timeout)

    def __enter__(self):
        return self

    def __exit__(self, kind, *what):
        if self.proc.poll() is None:
            self.stop()
        if kind or self.proc.returncode:
            print(self.text(), file=sys.stderr)
        subprocess.run(["rm", "-r", self.dir], check=True)
        if not kind:
            assert self.proc.returncode == 0, f"exit status {self.proc.returncode}"


def listens(path):
    """Between bind() and listen() the file is there, and refuses. No connection is made."""
    with open("/proc/net/unix") as f:
        return any(line.split()[3] == "00010000" and line.endswith(f" {path}\n") for line in f)


def until(what, why, timeout=60.0):
    end = time.monotonic() + timeout
    while not what():
        if time.monotonic() > end:
            raise AssertionError(why)
        time.sleep(0.01)


_models = {}


def make_model(shape):
    """A random model of this shape, made once a run."""
    if shape not in _models:
        folder = tempfile.TemporaryDirectory(prefix="moed-model-")
        path = pathlib.Path(folder.name) / f"{shape}.gguf"
        subprocess.run([sys.executable, TESTS / "mk-model.py", shape, "q8_0", path], check=True, stdout=subprocess.DEVNULL)
        _models[shape] = path, folder
    return _models[shape][0]


def install(build, meson, tree):
    """What `meson install` puts anywhere, below @tree."""
    done = subprocess.run([meson, "install", "-C", build, "--no-rebuild", "--destdir", tree], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)


def main(unittest):
    """test-NAME.py MOED [unittest arguments]"""
    global MOED
    MOED = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2, warnings="ignore")
