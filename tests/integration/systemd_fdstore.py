# SPDX-License-Identifier: Apache-2.0
"""Weights that the service manager keeps in memory while the service is away, or a file of the cache directory."""
import os
import pathlib
import shutil

from rig import LONG, until
from systemd_rig import HERE, MODELS, Service, journal, run, show

TAKEN = "weights as the last start left them in memory"
MAPPED = "weights mapped from the cache"
CACHE = pathlib.Path("/var/cache/moed")


class Kept(Service):
    """A service that was loaded once, and is killed by tests."""
    dropin = "RestartSec=100ms\n"
    PARAMS = {"prompt": "abc", "max_tokens": 8, "temperature": 0, "logprobs": 3}

    def setUp(self):
        super().setUp()
        c = self.loaded()
        self.answer = self.ask(c)
        if [m for m in journal(since=self.since) if "weights as in the file" in m]:
            self.skipTest("this processor's kernels pack nothing")

    def ask(self, c):
        answer = c.call("generate", **self.PARAMS)
        return answer["text"], answer["logprobs"]

    def n_said(self, what):
        return len([m for m in journal(since=self.since) if what in m])

    def kill(self):
        """With an answer on its way."""
        pid = self.pid()
        with self.client() as c:
            c.send("generate", **LONG)
            c.wait_note("generate.delta")
            os.kill(pid, 9)
            until(lambda: self.pid() not in (0, pid), "not restarted", 15)


class Store(Kept):
    config = "weights-store = fdstore\n"

    def setUp(self):
        super().setUp()
        until(lambda: self.n_kept() == 1, "nothing is kept")
        self.file = self.kept_file()

    def n_kept(self):
        return int(show("NFileDescriptorStore"))

    def n_taken(self):
        return self.n_said(TAKEN)

    def kept_file(self):
        """Inode of the memory file that the service has open."""
        fds = f"/proc/{self.pid()}/fd"
        files = {os.stat(f"{fds}/{f}").st_ino for f in os.listdir(fds) if "memfd:moed-weights" in os.readlink(f"{fds}/{f}")}
        self.assertEqual(len(files), 1)
        return files.pop()

    def came_back(self, n):
        """The service runs again, for the @n-th time on the same memory, and says the same."""
        self.assertEqual(self.ask(self.loaded()), self.answer)
        self.assertEqual((self.n_taken(), self.n_kept(), self.kept_file()), (n, 1, self.file))

    def test_restart_and_kill(self):
        for n in 1, 2:
            run("systemctl", "restart", "moed.service")
            self.came_back(n)
        self.kill()
        self.came_back(3)

    def test_nobody_can_change_it(self):
        for f in os.listdir(f"/proc/{self.pid()}/fd"):
            path = f"/proc/{self.pid()}/fd/{f}"
            if "memfd:moed-weights" in os.readlink(path):
                with self.assertRaises(PermissionError), open(path, "r+b", buffering=0) as file:
                    file.write(b"x")

    def test_another_model_under_its_name(self):
        """Weights of what the file was before are given up, and those of what it is are kept."""
        shutil.copy(HERE / "odd.gguf", MODELS / "tiny.gguf")
        run("systemctl", "restart", "moed.service")
        self.loaded()
        until(lambda: self.n_kept() == 1, "not kept")
        self.assertEqual(self.n_taken(), 0)
        self.assertNotEqual(self.kept_file(), self.file)

    def test_unload_gives_it_up(self):
        with self.client() as c:
            c.call("model.unload")
        until(lambda: self.n_kept() == 0, "still kept")

    def test_other_store_gives_it_up(self):
        self.write(config="weights-store = none\n")
        run("systemctl", "restart", "moed.service")
        self.loaded()
        until(lambda: self.n_kept() == 0, "still kept")

    def test_stop_gives_it_up(self):
        run("systemctl", "stop", "moed.service")
        self.assertEqual(self.n_kept(), 0)
        self.assertEqual(self.ask(self.loaded()), self.answer)
        self.assertEqual(self.n_taken(), 0)


class Cache(Kept):
    def images(self):
        return [p.name for p in CACHE.glob("*.weights*")]

    def setUp(self):
        super().setUp()
        until(lambda: len(list(CACHE.glob("*.weights"))) == 1, "no image is written")

    def came_back(self, n):
        """The service runs again, for the @n-th time with the same file, and says the same."""
        self.assertEqual(self.ask(self.loaded()), self.answer)
        self.assertEqual((self.n_said(MAPPED), self.images()), (n, [self.image]))

    def test_restart_and_kill(self):
        self.image, = self.images()
        run("systemctl", "restart", "moed.service")
        self.came_back(1)
        self.kill()
        self.came_back(2)
        run("systemctl", "stop", "moed.service")  # a file outlives that, too
        self.came_back(3)

    def test_killed_while_it_is_written(self):
        """What a service left that was killed in the middle is written over by the next."""
        self.image, = self.images()
        run("systemctl", "stop", "moed.service")
        half = CACHE / self.image
        half.write_bytes(half.read_bytes()[:half.stat().st_size // 2])
        half.rename(CACHE / (self.image + ".new"))
        self.assertEqual(self.ask(self.loaded()), self.answer)
        until(lambda: self.images() == [self.image], "not written again")
        self.assertEqual(self.n_said(MAPPED), 0)
        self.kill()
        self.came_back(1)
