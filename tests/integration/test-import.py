# SPDX-License-Identifier: Apache-2.0
"""Models that come as open files, over the service's own socket."""
import array
import hashlib
import os
import pathlib
import shutil
import socket
import tempfile
import unittest

import msgpack
import rig


class Import(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="moed-import-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.models = self.dir / "models"
        self.models.mkdir()
        shutil.copy(rig.make_model("tiny"), self.models / "tiny.gguf")
        home = self.dir / "home"  # which its owner alone enters
        home.mkdir(mode=0o700)
        self.file = home / "x.gguf"
        shutil.copy(rig.make_model("tiny"), self.file)
        self.file.chmod(0o600)
        self.digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.moed = rig.Moed(model=None, config=f"model-dir = {self.models}\ndefault-model = tiny\n")
        self.addCleanup(self.moed.__exit__, None)

    def give(self, client, path, **params):
        client.last_id += 1
        frame = msgpack.packb([0, client.last_id, "model.import", [params]])
        with open(path, "rb") as f:
            client.sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno()]))])
        return client.wait(client.last_id)

    def end(self, client, started):
        end = client.call("job.wait", id=started["job"])
        return end["result"], end.get("reason", "")

    def test_import(self):
        with self.moed.client() as c:
            self.assertEqual(self.end(c, self.give(c, self.file, id="given", digest=self.digest, license="MIT")), ("done", ""))
            self.assertEqual((self.models / "given.gguf").read_bytes(), self.file.read_bytes())
            self.assertEqual((self.models / "given.gguf.origin").read_text(), f"digest = {self.digest}\nlicense = MIT\n")
            self.assertEqual(self.end(c, self.give(c, self.file, id="linked", mode="reference")), ("done", ""))
            self.assertEqual(os.readlink(self.models / "linked.gguf"), str(self.file))
            self.assertEqual(self.end(c, self.give(c, self.file, id="copied", mode="copy")), ("done", ""))
            self.assertFalse((self.models / "copied.gguf").is_symlink())
            result, reason = self.end(c, self.give(c, self.file, id="shared", mode="reflink"))
            self.assertIn((result, "does not share blocks" in reason), (("done", False), ("failed", True)))
            self.assertIn("text", c.call("generate", model="given", prompt="x", max_tokens=2))

    def test_the_copy_keeps_no_rights_of_the_original(self):
        with self.moed.client() as c:
            self.end(c, self.give(c, self.file, id="given", mode="copy"))
        self.assertEqual((self.models / "given.gguf").stat().st_mode & 0o400, 0o400)

    def test_refused(self):
        junk = self.dir / "junk"
        junk.write_bytes(b"no model " * 1000)
        before = sorted(os.listdir(self.models))
        with self.moed.client() as c:
            for path, error, params in ((self.file, "InvalidArgs", {"id": "tiny"}), (self.file, "InvalidArgs", {"id": "../x"}),
                                        (self.file, "InvalidArgs", {"id": "x", "mode": "move"}),
                                        (self.file, "InvalidArgs", {"id": "x", "digest": "12"}),
                                        (self.file, "InvalidArgs", {"id": "x", "license": "a\nb"}),
                                        ("/dev/null", "InvalidArgs", {"id": "x"}), (self.file, "InvalidArgs", {})):
                with self.assertRaisesRegex(rig.RpcError, error):
                    self.give(c, path, **params)
            with self.assertRaisesRegex(rig.RpcError, "no descriptor came"):
                c.call("model.import", id="x")
            self.assertEqual(self.end(c, self.give(c, junk, id="junk"))[0], "failed")
            self.assertIn("its digest is", self.end(c, self.give(c, self.file, id="x", digest="0" * 64))[1])
            with self.assertRaisesRegex(rig.RpcError, "NoSuchModel"):
                c.call("model.verify", id="none")
        self.assertEqual(sorted(os.listdir(self.models)), before)

    def test_verify(self):
        path = self.models / "tiny.gguf"
        with self.moed.client() as c:
            self.assertEqual(self.end(c, c.call("model.verify", id="tiny")), ("done", ""))
            self.assertIn(self.digest, (self.models / "tiny.gguf.origin").read_text())
            with path.open("r+b") as f:
                f.seek(-100, os.SEEK_END)
                f.write(b"damage")
            result, reason = self.end(c, c.call("model.verify", id="tiny"))
            self.assertEqual((result, "its digest is" in reason), ("failed", True))

    def test_no_more_than_four(self):
        big = self.dir / "big.gguf"  # a hole takes long to read
        shutil.copy(rig.make_model("tiny"), big)
        os.truncate(big, 8 << 30)
        with self.moed.client() as c:
            jobs = [self.give(c, big, id=f"big{i}")["job"] for i in range(4)]
            with self.assertRaisesRegex(rig.RpcError, "Busy") as caught:
                c.call("model.verify", id="tiny")
            self.assertIn("retry_after_ms", caught.exception.data)
            for job in jobs:
                c.call("job.cancel", id=job)
                self.assertEqual(c.call("job.wait", id=job)["result"], "cancelled")
        self.assertFalse([n for n in os.listdir(self.models) if "big" in n])


if __name__ == "__main__":
    rig.main(unittest)
