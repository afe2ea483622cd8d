# SPDX-License-Identifier: Apache-2.0
"""The system's units: activation, readiness, sandbox, who asks, reload, stop."""
import os
import pathlib
import socket
import subprocess
import sys
import time
import unittest

from rig import Client, Hangup, LONG, RpcError, until
from systemd_rig import CONFIG, MODELS, SOCKET, Service, journal, run, show

UNITS = ["moed.service", "moed.socket", "system-moed.slice"]


class Installed(unittest.TestCase):
    def test_verify(self):
        said = run("systemd-analyze", "verify", *UNITS)
        self.assertEqual([line for line in said.stderr.splitlines() if "moed" in line], [])

    def test_exposure(self):
        """10 is an exposure of 1.0."""
        out = run("systemd-analyze", "security", "--no-pager", "--threshold=10", "moed.service").stdout
        self.assertRegex(out, r"Overall exposure level for moed.service: 0\.\d SAFE")

    def test_limits(self):
        """What the manager made of the unit: memory may be locked, and the desktop outlives the model."""
        want = {"OOMScoreAdjust": "300", "Slice": "system-moed.slice", "TasksMax": "2048", "LimitMEMLOCK": "infinity",
                "CapabilityBoundingSet": "", "Type": "notify", "FileDescriptorStoreMax": "4"}
        self.assertEqual(dict(zip(want, show(*want))), want)
        self.assertRegex(show("BusName"), r"\.Moed1$")

    def test_user_and_folders(self):
        run("getent", "passwd", "moed")
        self.assertEqual(run("systemctl", "is-enabled", "moed.service", check=False).stdout.strip(), "indirect")
        self.assertEqual(run("systemctl", "--global", "is-enabled", "moed.socket", check=False).stdout.strip(), "disabled")


class Activation(Service):
    config = "max-connections = 8\n"

    def test_first_connect_starts_it(self):
        self.assertEqual(show("ActiveState"), "inactive")
        with self.client() as c:
            self.assertEqual(c.call("server.status")["connections"], 1)
            until(lambda: c.call("server.status")["state"] == "ready", "not loaded")
            self.assertGreater(c.call("generate", prompt="x", max_tokens=2)["usage"]["generated"], 0)
        self.assertEqual(show("ActiveState", "SubState", "StatusText"), ("active", "running", "Serving tiny"))

    def test_ready_without_a_model(self):
        """It is up when it can answer, whatever becomes of the model."""
        (MODELS / "tiny.gguf").write_bytes(b"GGUF" + os.urandom(4000))
        run("systemctl", "start", "moed.service")
        self.assertEqual(show("ActiveState"), "active")
        until(lambda: show("StatusText").startswith("Cannot load tiny: "), "says nothing")
        with self.client() as c, self.assertRaisesRegex(RpcError, "ModelUnavailable"):
            c.call("generate", prompt="x")
        self.assertEqual(show("NRestarts"), "0")

    def test_socket_outlives_the_service(self):
        self.loaded()
        run("systemctl", "stop", "moed.service")
        self.assertEqual(show("ActiveState", unit="moed.socket"), "active")
        self.loaded()
        run("systemctl", "stop", "moed.socket", "moed.service")
        self.assertFalse(os.path.exists(SOCKET))

    def test_where_it_runs(self):
        self.loaded()
        group = pathlib.Path(f"/proc/{self.pid()}/cgroup").read_text()
        self.assertIn("/system.slice/system-moed.slice/moed.service", group)
        self.assertEqual(pathlib.Path(f"/proc/{self.pid()}/oom_score_adj").read_text(), "300\n")


class BadConfig(Service):
    config = "threads = lots\n"

    def test_fails_once(self):
        with self.client() as c:
            self.assertEqual(c.wait_note("rpc.error")["name"], "Internal")
            self.assertRaises((Hangup, ConnectionError), c.frame)
        until(lambda: show("ActiveState") == "failed", "it does not fail")
        time.sleep(1)  # a restart would come
        self.assertEqual(show("ActiveState", "Result", "ExecMainStatus", "NRestarts"), ("failed", "exit-code", "78", "0"))
        said = [m for m in journal(since=self.since) if "threads: 'lots' is not a number" in m]
        self.assertEqual(len(said), 1)
        self.assertEqual(show("ActiveState", unit="moed.socket"), "active")
        self.write(config="")  # mended: the next client finds out
        self.loaded()


PROBE = r"""
import errno, os, socket
def tried(what):
    try:
        what()
        return "works"
    except OSError as e:
        return errno.errorcode[e.errno]
for family in "UNIX", "INET", "INET6", "NETLINK", "PACKET":
    print(family, tried(lambda: socket.socket(getattr(socket, "AF_" + family), socket.SOCK_DGRAM)))
print("interfaces", ",".join(sorted(os.listdir("/proc/self/net/dev_snmp6")) if os.path.isdir("/proc/self/net/dev_snmp6") else ["lo"]))
print("home", tried(lambda: os.listdir("/root")))
print("etc", tried(lambda: open("/etc/moed-probe", "w")))
print("state", tried(lambda: open("/var/lib/moed/probe", "w")))
print("pressure", tried(lambda: open("/proc/pressure/memory").read()))
print("uid", os.getuid() != 0)
"""


class Sandbox(Service):
    def test_probe_in_its_place(self):
        """A program that runs as the service does finds no network, no homes, nothing to write to but its own."""
        self.write(dropin=f"Type=oneshot\nExecStart=\nExecStart={sys.executable} -c \"exec(open('/opt/moed-test/probe').read())\"\n")
        pathlib.Path("/opt/moed-test/probe").write_text(PROBE)
        run("systemctl", "start", "moed.service")
        said = dict(m.split(" ", 1) for m in journal(since=self.since) if m.count(" ") == 1)
        want = {"UNIX": "works", "INET": "EAFNOSUPPORT", "INET6": "EAFNOSUPPORT", "NETLINK": "EAFNOSUPPORT",
                "PACKET": "EAFNOSUPPORT", "interfaces": "lo", "etc": "EROFS", "state": "works", "pressure": "works",
                "uid": "True"}
        self.assertEqual({k: said.get(k) for k in want}, want)
        self.assertIn(said["home"], ("EACCES", "ENOENT", "EPERM"))

    def test_running_service(self):
        self.loaded()
        proc = pathlib.Path(f"/proc/{self.pid()}")
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        self.assertEqual((status["Seccomp"], status["NoNewPrivs"]), ("2", "1"))
        self.assertEqual({status[f"Cap{s}"] for s in ("Inh", "Prm", "Eff", "Bnd", "Amb")}, {"0" * 16})
        self.assertNotEqual(os.readlink(proc / "ns/net"), os.readlink("/proc/1/ns/net"))
        self.assertEqual([line for line in (proc / "net/tcp").read_text().splitlines()[1:]], [])


class Peers(Service):
    config = "user-connections = 2\n"

    def ask(self, uid, what):
        """@what runs as @uid with a client c; its output."""
        code = f"import sys; sys.path.insert(0, '/opt/moed-test'); from rig import *; c = Client({SOCKET!r}); {what}"
        return subprocess.run([sys.executable, "-c", code], user=uid, group=65534, extra_groups=[], capture_output=True,
                              text=True, timeout=30)

    def test_identity(self):
        """The service sees who a client is, though it shares no user with it."""
        self.loaded()
        for uid in 1, 65534:
            self.assertEqual(self.ask(uid, f"c.call('client.hello', name='probe-{uid}')").returncode, 0)
        log = journal(since=self.since)
        for uid in 1, 65534:
            self.assertTrue([m for m in log if f": user {uid}, process " in m and f"probe-{uid}" in m], log)

    def test_quota_is_by_user(self):
        self.loaded()
        many = "d = Client(c.sock.getpeername()); e = Client(c.sock.getpeername()); print(e.wait_note('rpc.error')['name'])"
        self.assertEqual(self.ask(65534, many).stdout.strip(), "QuotaExceeded")
        keep = subprocess.Popen([sys.executable, "-c", "import sys; sys.path.insert(0, '/opt/moed-test'); from rig import *\n"
                                 f"a, b = Client({SOCKET!r}), Client({SOCKET!r})\na.call('server.status')\n"
                                 "b.call('server.status')\nprint('in', flush=True)\nsys.stdin.read()"],
                                user=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.assertEqual(keep.stdout.readline(), "in\n")
        self.assertEqual(self.ask(65534, "print(c.call('server.status')['state'])").stdout.strip(), "ready")
        keep.communicate("")

    def test_admin_only(self):
        self.loaded()
        tried = "\ntry: c.call('model.unload')\nexcept RpcError as e: print(e.name)"
        self.assertEqual(self.ask(65534, tried).stdout.strip(), "AccessDenied")
        with self.client() as c:
            c.call("model.unload")


class Life(Service):
    def test_reload(self):
        c = self.loaded()
        pid = self.pid()
        self.write(config="max-connections = 1\n")
        run("systemctl", "reload", "moed.service")
        self.assertEqual(self.pid(), pid)
        self.assertEqual(show("ActiveState"), "active")
        with self.client() as second:
            self.assertEqual(second.wait_note("rpc.error")["name"], "QuotaExceeded")
        self.write(config="max-connections = none\n")
        run("systemctl", "reload", "moed.service")
        self.assertEqual(show("ActiveState", "NRestarts"), ("active", "0"))
        self.assertEqual(c.call("server.status")["state"], "ready")
        self.assertTrue([m for m in journal(since=self.since) if "the old configuration stays" in m])

    def test_stop_with_live_streams(self):
        self.loaded()
        streams = [self.client() for _ in range(3)]
        ids = [[s.send("generate", **LONG) for _ in range(20)][-1] for s in streams]  # some run, however fast
        streams[0].wait_note("generate.delta")
        start = time.monotonic()
        run("systemctl", "stop", "moed.service")
        self.assertLess(time.monotonic() - start, 5)
        for s, last in zip(streams, ids):
            answers = {}
            with self.assertRaises(Hangup), s:
                while True:
                    frame = s.frame()
                    answers.update({frame[1]: frame[2]} if frame[0] == 1 else {})
            self.assertEqual(answers[last]["name"], "ShuttingDown")
        self.assertEqual(show("Result", "ExecMainStatus"), ("success", "0"))

    def test_stop_with_a_client_that_does_not_read(self):
        self.loaded()
        stuck = self.client()
        stuck.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.send("generate", logprobs=20, **LONG)
        time.sleep(1)
        start = time.monotonic()
        run("systemctl", "stop", "moed.service")
        self.assertLess(time.monotonic() - start, 5)
        self.assertEqual(show("Result"), "success")
        stuck.close()

    def test_crash_is_restarted(self):
        self.loaded()
        pid = self.pid()
        os.kill(pid, 9)
        until(lambda: self.pid() not in (0, pid), "not restarted", 15)
        self.loaded()
        self.assertEqual(show("NRestarts"), "1")

    def test_second_start_maps_the_weights(self):
        self.loaded()
        if [m for m in journal(since=self.since) if "weights as in the file" in m]:
            self.skipTest("this processor's kernels pack nothing")
        until(lambda: list(pathlib.Path("/var/cache/moed").glob("*.weights")), "no image")
        run("systemctl", "restart", "moed.service")
        self.loaded()
        self.assertTrue([m for m in journal(since=self.since) if "mapped from the cache" in m])
