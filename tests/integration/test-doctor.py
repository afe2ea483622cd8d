#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""moectl doctor: each check is made to fail, and mended by its own line: test-doctor.py MOED MOECTL BUS_NAME

What needs root is skipped without it. Files of the kernel are covered in a mount namespace of moectl alone.
"""
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

import rig

MOECTL, BUS_NAME = os.path.abspath(sys.argv.pop(2)), sys.argv.pop(2)
ROOT = os.geteuid() == 0
NOBODY = 65534
needs_root = unittest.skipUnless(ROOT, "needs root")


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="moed-doctor-"))
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.dir.chmod(0o777)
        self.cache, self.models = self.dir / "cache", self.dir / "models"
        for d in self.cache, self.models:
            d.mkdir()
            d.chmod(0o777)
        shutil.copy(rig.make_model("tiny"), self.models / "tiny.gguf")
        self.env = {k: v for k, v in os.environ.items() if k not in ("MOE_SOCKET", "XDG_RUNTIME_DIR", "NO_COLOR")}
        self.path = self.dir / "rpc"

    def start(self, *wrap, config="", cache=True, uid=None, limit=None, state="ready", path=None):
        """A service of self.models; @wrap: a command that runs it."""
        self.path = path or self.path
        conf = self.dir / "conf"
        conf.write_text(f"model-dir = {self.models}\n{config}")
        env = dict(self.env, MEMORY_PRESSURE_WATCH="/dev/null", **({"CACHE_DIRECTORY": str(self.cache)} if cache else {}))
        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)

        def prepare():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit or soft, hard))
            if uid:
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
        log = open(self.dir / "log", "wb")
        self.addCleanup(log.close)
        p = subprocess.Popen([*wrap, rig.MOED, "--config", str(conf), "--socket", str(self.path)], env=env, preexec_fn=prepare,
                             stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.addCleanup(p.wait, 20)
        self.addCleanup(p.send_signal, signal.SIGTERM)
        rig.until(lambda: rig.listens(self.path) or p.poll() is not None, "no socket")
        with rig.Client(self.path) as c:
            rig.until(lambda: c.call("server.status")["state"] == state, f"not {state}")
        return p

    def doctor(self, *args, cover=(), uid=None, path=True, **env):
        """(exit status, {check: [what it says]}); @cover: (file, text) to be seen by moectl alone."""
        argv = [MOECTL, "doctor", "--json", *(["--socket", str(self.path)] if path else []), *args]
        if cover:
            script = ""
            for i, (file, text) in enumerate(cover):
                (self.dir / f"cover{i}").write_text(text)
                script += f"mount --bind {self.dir}/cover{i} {file} && "
            argv = ["unshare", "-m", "sh", "-c", script + 'exec "$@"', "sh", *argv]
        run = subprocess.run(argv, env=dict(self.env, **env), stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                             preexec_fn=(lambda: (os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid))) if uid else None)
        self.assertEqual(run.stderr, b"")
        said, checks = json.loads(run.stdout), {}
        for check in said["checks"]:
            checks.setdefault(check["check"], []).append(check)
        every = [c["verdict"] for c in said["checks"]]
        self.assertEqual((said["wrong"], said["warnings"]), (every.count("wrong"), every.count("warning")))
        self.assertEqual(run.returncode, 1 if said["wrong"] else 0)
        return run.returncode, checks

    def says(self, check, verdict, text, mend=None, code=None, **kw):
        """The first of @check is so. Return: the line that mends it."""
        got, checks = self.doctor(**kw)
        first = checks[check][0]
        self.assertEqual(first["verdict"], verdict, first)
        self.assertRegex(first["text"], text)
        self.assertEqual("mend" in first, mend is not None, first)
        if mend is not None:
            self.assertRegex(first["mend"], mend)
        if code is not None:
            self.assertEqual(got, code)
        return first.get("mend")

    def mend(self, line, **env):
        subprocess.run(["sh", "-c", line], check=True, stdin=subprocess.DEVNULL, capture_output=True, env=dict(self.env, **env))


class Doctor(Case):
    def test_all_is_well(self):
        self.start()
        code, checks = self.doctor()
        self.assertEqual(code, 0)
        for name in "socket", "service", "models", "memory", "cpuset", "cache":
            self.assertEqual([c["verdict"] for c in checks[name]], ["ok"], checks[name])
            self.assertNotIn("mend", checks[name][0])
        self.assertEqual(checks["bus"][0]["verdict"], "unknown")
        text = subprocess.run([MOECTL, "doctor", "--socket", self.path], env=self.env, capture_output=True, text=True).stdout
        self.assertRegex(text, r"(?m)^ok       socket     /.*\n(.*\n)+.*0 wrong, \d to be improved\.\n\Z")
        self.assertNotIn("\033", text)

    def test_no_socket(self):
        """For each of the three places: what is to be started."""
        run = str(self.dir)
        self.says("socket", "wrong", "no such socket", f"^moed --socket {self.path} --model FILE$", 1)
        (self.dir / "moed").mkdir()
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(f"{run}/moed/rpc")
        self.says("socket", "wrong", "nobody listens", "^systemctl --user restart moed.socket$", 1, path=False, XDG_RUNTIME_DIR=run)
        os.unlink(f"{run}/moed/rpc")
        self.says("socket", "wrong", "no such socket", "^systemctl --user enable --now moed.socket$", 1,
                  path=False, XDG_RUNTIME_DIR=run, MOE_SOCKET=f"{run}/moed/rpc")
        if not os.path.exists("/run/moed/rpc"):
            self.says("socket", "wrong", "/run/moed/rpc: there is no such socket",
                      "^(sudo )?systemctl enable --now moed.socket$", 1, path=False)

    @needs_root
    def test_group(self):
        self.start()
        self.path.chmod(0o660)
        os.chown(self.path, 0, 4)  # adm
        self.says("group", "wrong", "only members of the group adm may connect, nobody is none",
                  "^sudo usermod --append --groups adm nobody && newgrp adm$", 1, uid=NOBODY)
        self.path.chmod(0o600)
        line = self.says("group", "wrong", "Permission denied; its mode is 600", f"^sudo chmod 666 {self.path}$", 1, uid=NOBODY)
        self.mend(line.removeprefix("sudo "))
        self.says("socket", "ok", "rpc$", uid=NOBODY)

    def test_service_does_not_answer(self):
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(self.path))
            s.listen()
            p = subprocess.Popen([MOECTL, "doctor", "--json", "--socket", self.path], env=self.env, stdout=subprocess.PIPE)
            s.accept()[0].close()
            checks = {c["check"]: c for c in json.loads(p.communicate(timeout=20)[0])["checks"]}
        self.assertEqual(p.returncode, 1)
        self.assertEqual(checks["service"]["verdict"], "wrong")
        self.assertIn("hung up", checks["service"]["text"].replace("closed the connection", "hung up"))

    def test_bad_model(self):
        bad = self.models / "tiny.gguf"
        bad.write_bytes(bad.read_bytes()[:5000])
        self.start(state="failed")
        self.says("service", "wrong", "tiny could not be loaded: ", None, 1)
        line = self.says("models", "wrong", "^tiny: ", f"^(sudo )?mv {bad} {bad}.broken$", 1)
        self.mend(line.removeprefix("sudo "))
        self.says("models", "wrong", "there is none", f"^moectl --socket {self.path} import FILE.gguf$", 1)

    @needs_root
    def test_unreadable_model(self):
        secret = self.models / "a.gguf"
        shutil.copy(self.models / "tiny.gguf", secret)
        secret.chmod(0o600)
        self.start(uid=NOBODY, config="default-model = tiny\n")
        line = self.says("models", "wrong", "^a: .*Permission denied", f"^chmod a\\+r {secret}$", 1)
        self.mend(line)
        self.says("models", "ok", "^2, by default tiny$")
        self.assertTrue(self.path.exists())

    def test_memlock(self):
        shutil.copy(rig.make_model("odd"), self.models / "tiny.gguf")
        p = self.start(limit=65536)
        line = self.says("memlock", "warning", "^64.0 KiB may be locked into memory, and the model takes",
                         f"^(sudo )?prlimit --memlock=unlimited --pid {p.pid}$", 0)
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        if ROOT:  # in a container root may not go beyond what it was given
            self.mend(line if hard == resource.RLIM_INFINITY else line.replace("unlimited", f"{hard}"))
            self.says("memlock", "ok", "may be locked")

    def test_cpuset(self):
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("needs two CPUs")
        p = self.start()
        first = min(os.sched_getaffinity(0))
        subprocess.run(["taskset", "-acp", str(first), str(p.pid)], check=True, capture_output=True)
        line = self.says("cpuset", "warning", f"only {first} may be used", f"taskset -acp \\S+ {p.pid} && .*kill -HUP {p.pid}$", 0)
        if ROOT:
            self.mend(line)
            self.says("cpuset", "ok", "all CPUs")

    def test_cache(self):
        self.start(cache=False)
        self.says("cache", "warning", "packs them anew", "cache-dir = /var/cache/moed", 0)

    @needs_root
    def test_cache_is_not_writable(self):
        self.start(uid=NOBODY)
        self.cache.chmod(0o755)
        self.mend(self.says("cache", "wrong", f"cannot write to {self.cache}", f"install -d -m 700 -o nobody {self.cache}$", 1))
        self.says("cache", "ok", f"^{self.cache}, with room for ")

    @needs_root
    def test_full_disk(self):
        self.start("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=64k none {self.cache} && exec "$@"', "sh")
        self.says("cache", "warning", r"has room for 64\.0 KiB, packed weights take",
                  r"^echo 'weights-store = none' \| tee -a /etc/moed/moed.conf && kill -HUP ", 0)

    @needs_root
    def test_huge_pages(self):
        path = "/sys/kernel/mm/transparent_hugepage/enabled"
        if not os.path.exists(path):
            self.skipTest("this kernel has none")
        self.says("hugepages", "warning", "are off", rf"^echo madvise \| tee {path}$",
                  cover=[(path, "always madvise [never]\n")])
        self.says("hugepages", "ok", r"\[madvise\]", cover=[(path, "always [madvise] never\n")])

    @needs_root
    def test_quota(self):
        """A tree of control groups over the machine's, which may have another hierarchy."""
        p = self.start()
        tree, group = self.dir / "cgroup", f"/proc/{p.pid}/cgroup"
        (tree / "a.slice/moed.service").mkdir(parents=True)
        (tree / "a.slice/cpu.max").write_text("150000 100000\n")
        (tree / "a.slice/moed.service/cpu.max").write_text("max 100000\n")

        def look(**want):
            argv = ["unshare", "-m", "sh", "-c", f"mount --bind {tree} /sys/fs/cgroup && mount --bind {self.dir}/group {group} && "
                    'exec "$@"', "sh", MOECTL, "doctor", "--json", "--socket", str(self.path)]
            run = subprocess.run(argv, env=self.env, capture_output=True, timeout=60, check=False)
            self.assertEqual(run.stderr, b"")
            return [c for c in json.loads(run.stdout)["checks"] if c["check"] == "quota"]
        (self.dir / "group").write_text("0::/a.slice/moed.service\n")
        (self.dir / "online").write_text("0-3\n")
        (tree / "a.slice/moed.service/memory.high").write_text("1000000\n")
        (tree / "a.slice/moed.service/memory.max").write_text("max\n")
        cpus, high = look() if os.cpu_count() > 1 else [None] + look()
        if cpus:
            self.assertIn("a.slice has a quota of 1.50 CPUs", cpus["text"])
            self.assertEqual(cpus["mend"], "systemctl set-property a.slice CPUQuota=")
        self.assertEqual((high["verdict"], high["mend"]), ("warning", "systemctl set-property moed.service MemoryHigh=infinity"))
        (tree / "a.slice/cpu.max").write_text("max 100000\n")
        (tree / "a.slice/memory.max").write_text("500000\n")
        (bound,) = look()
        self.assertEqual((bound["verdict"], bound["mend"]), ("wrong", "systemctl set-property a.slice MemoryMax=infinity"))
        self.assertIn("a.slice may have 488.3 KiB of memory", bound["text"])
        (tree / "a.slice/memory.max").write_text("max\n")
        (tree / "a.slice/moed.service/memory.high").write_text("max\n")
        self.assertEqual(look()[0]["verdict"], "ok")

    @needs_root
    def test_memory(self):
        with open(self.models / "big.gguf", "wb") as f:
            f.truncate(1 << 30)
        self.start(config="default-model = big\npreload = no\n", state="empty")
        self.says("memory", "ok", "^the model takes 1.0 GiB, there are ", cover=[("/proc/meminfo", self.meminfo(2 << 20, 2 << 20))])
        self.says("memory", "warning", "^the model takes 1.0 GiB, others leave ", "^ps -eo rss",
                  cover=[("/proc/meminfo", self.meminfo(2 << 20, 0))])
        self.says("memory", "warning", "this machine has 512.0 MiB: .*which is slow",
                  "^echo 'default-model = tiny' \\| tee -a /etc/moed/moed.conf && kill -HUP", cover=[("/proc/meminfo", self.meminfo(1 << 19, 0))])

    @staticmethod
    def meminfo(total, available):
        return f"MemTotal:       {total} kB\nMemFree:        1 kB\nMemAvailable:   {available} kB\n"

    def test_bus(self):
        """A session bus of its own, which then can start the service."""
        run, data = self.dir / "run", self.dir / "data"
        (run / "moed").mkdir(parents=True)
        data.mkdir()
        env = {"XDG_RUNTIME_DIR": str(run), "XDG_DATA_HOME": str(data), "XDG_DATA_DIRS": str(data)}
        bus = subprocess.Popen(["dbus-daemon", "--session", "--nofork", "--print-address", f"--address=unix:path={run}/bus"],
                               env=dict(self.env, **env), stdout=subprocess.PIPE)
        self.addCleanup(bus.stdout.close)
        self.addCleanup(bus.wait, 10)
        self.addCleanup(bus.terminate)
        env["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().decode().strip()
        self.start(path=run / "moed/rpc")
        line = self.says("bus", "warning", f"cannot start {BUS_NAME}", f"SystemdService=moed.service.*{BUS_NAME}.service", 0,
                         path=False, **env)
        self.mend(line, **env)
        self.says("bus", "ok", BUS_NAME, path=False, **env)
        text = (data / f"dbus-1/services/{BUS_NAME}.service").read_text()
        self.assertEqual(text, f"[D-BUS Service]\nName={BUS_NAME}\nExec=/bin/false\nSystemdService=moed.service\n")
        bus.terminate()
        bus.wait(10)
        self.says("bus", "unknown", "no session bus", path=False, **env)


if __name__ == "__main__":
    rig.main(unittest)
