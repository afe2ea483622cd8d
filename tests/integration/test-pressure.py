#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What leaves memory when a FIFO says that it is short: test-pressure.py MOED"""
import ctypes
import mmap
import os
import pathlib
import tempfile
import time
import unittest

import rig
from rig import Moed, RpcError, until

PARAMS = {"prompt": "once upon a time", "max_tokens": 12, "temperature": 0, "logprobs": 3}


def anonymous(pid):
    """Bytes of memory of a process that are of no file."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("\nAnonymous:")[1].split()[0]) * 1024


def in_memory(path):
    """Bytes of a file in the page cache."""
    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m:
        here = ctypes.addressof(ctypes.c_char.from_buffer(m))
        flags = (ctypes.c_ubyte * ((len(m) + page - 1) // page))()
        if libc.mincore(ctypes.c_void_p(here), ctypes.c_size_t(len(m)), flags):
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(f & 1 for f in flags) * page


class Pressure(unittest.TestCase):
    def start(self, cache, fifo):
        moed = Moed(config=f"cache-dir = {cache}\npressure-watch = {fifo}\npressure-calm = 2\n")
        self.addCleanup(moed.__exit__, None)
        return moed

    def setUp(self):
        """Packed weights as an earlier start kept them, mapped."""
        self.dir = tempfile.TemporaryDirectory(prefix="moed-test-")
        self.addCleanup(self.dir.cleanup)
        self.fifo = self.dir.name + "/signs"
        os.mkfifo(self.fifo)
        self.signs = os.open(self.fifo, os.O_RDWR)
        self.addCleanup(os.close, self.signs)
        cache = pathlib.Path(self.dir.name, "cache")
        cache.mkdir()
        first = self.start(cache, self.fifo)
        with first.client() as c:
            if not c.call("server.status")["memory"]["weights"]:
                self.skipTest("no weights")
        try:
            until(lambda: list(cache.glob("*.weights")), "no image", 10)
        except AssertionError:
            self.skipTest("this processor's kernels pack nothing")
        self.image, = cache.glob("*.weights")
        first.stop()
        self.moed = self.start(cache, self.fifo)
        self.c = self.moed.client()
        self.addCleanup(self.c.close)
        self.assertEqual(self.c.call("server.status")["weights"], "image")

    def sign(self):
        level = self.level() + 1
        os.write(self.signs, b"!")
        until(lambda: self.level() == level, "no step is taken")

    def level(self):
        return self.c.call("server.status")["pressure"]["level"]

    def ask(self):
        answer = self.c.call("generate", **PARAMS)
        return answer["text"], answer["logprobs"]

    def test_ladder(self):
        said, size = self.ask(), in_memory(self.image)
        before = anonymous(self.moed.proc.pid)
        self.sign()
        until(lambda: anonymous(self.moed.proc.pid) < before, "no keys and values are given back")
        self.assertEqual((in_memory(self.image), self.ask()), (size, said))
        self.sign()
        until(lambda: in_memory(self.image) < size, "no weights leave memory")
        time.sleep(0.2)  # it is done with that
        self.assertGreater(in_memory(self.image), size // 4)  # what is used stays
        self.assertEqual(self.ask(), said)
        self.sign()  # nothing is locked
        self.assertEqual(self.ask(), said)
        self.sign()
        until(lambda: self.c.call("server.status")["state"] == "empty", "the model is still there")
        with self.assertRaisesRegex(RpcError, "InsufficientMemory"):
            self.ask()
        until(lambda: self.level() < 4, "never calm")
        self.assertEqual(self.ask(), said)  # it may be loaded again
        self.assertEqual(self.c.call("server.status")["weights"], "image")
        until(lambda: self.level() == 0, "never calm again")
        self.assertEqual((self.ask(), in_memory(self.image)), (said, size))


if __name__ == "__main__":
    rig.main(unittest)
