#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Python package against a real service: test-python.py MOED PACKAGE MODEL"""
import asyncio
import contextlib
import io
import pathlib
import re
import socket
import sys
import unittest
import unittest.mock

import rig
from rig import until

PACKAGE = pathlib.Path(sys.argv.pop(2)).resolve()
MODEL = pathlib.Path(sys.argv.pop(2)).resolve()  # one that was trained: its answers are text
sys.path.insert(0, str(PACKAGE))

import moed  # noqa: E402

QUESTION = "How do I list files?"
COLD = {"temperature": 0.0, "max_tokens": 16}
FOREVER = {"logit_bias": {t: -1e9 for t in rig.END}, "max_tokens": 900, "temperature": 0.0}
Error = moed.Error


class Python(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.moed = rig.Moed("--model", MODEL, model=None)
        cls.addClassCleanup(cls.moed.__exit__, None, None, None)

    def client(self):
        return moed.Client(str(self.moed.path), timeout=60)

    def aio(self):
        return moed.AsyncClient(str(self.moed.path))

    def jobs(self):
        with self.client() as c:
            return c.call("job.list")["jobs"]

    def test_answers(self):
        with self.client() as c:
            a = c.ask(QUESTION, **COLD)
            self.assertRegex(a.text, r"\bls\b")
            self.assertEqual((a.stop_reason, a.model), ("stop", MODEL.stem))
            self.assertGreater(a.usage["generated"], 3)
            self.assertEqual(c.ask([{"role": "user", "content": QUESTION}], **COLD).text, a.text)
            self.assertEqual("".join(p.text for p in c.stream(QUESTION, **COLD)), a.text)
            self.assertNotEqual(c.ask(prompt="Once", **COLD).text, "")

    def test_stream_returns_the_answer(self):
        def both(stream):
            answer = yield from stream
            said.append(answer)

        said = []
        with self.client() as c:
            n = sum(1 for _ in both(c.stream(QUESTION, **COLD)))
            self.assertEqual(said[0].usage["generated"] >= n > 1, True)

    def test_a_stream_that_is_left(self):
        with self.client() as c:
            for _ in c.stream(QUESTION, **FOREVER):
                break
            self.assertRegex(c.ask(QUESTION, **COLD).text, r"\bls\b")  # the rest of it is passed over
            until(lambda: not self.jobs(), "it goes on", 5)

    def test_session(self):
        with self.client() as c:
            with c.session(instructions="Answer.", **COLD) as chat:
                first = chat.ask(QUESTION)
                second = "".join(p.text for p in chat.stream("What does grep do?"))
                said = [{"role": "system", "content": "Answer."}, {"role": "user", "content": QUESTION},
                        {"role": "assistant", "content": first.text}, {"role": "user", "content": "What does grep do?"}]
                self.assertEqual(second, c.ask(said, **COLD).text)
            self.assertEqual(c.call("session.list")["sessions"], [])

    def test_errors(self):
        with self.client() as c:
            with self.assertRaises(moed.Error) as e:
                c.ask(QUESTION, model="none")
            self.assertEqual((e.exception.name, e.exception.code), ("NoSuchModel", 3))
            with self.assertRaises(moed.Error) as e:
                list(c.stream(QUESTION * 1000))
            self.assertEqual(e.exception.name, "ContextOverflow")
            self.assertGreater(e.exception.data["requested"], e.exception.data["available"])
            self.assertRegex(c.ask(QUESTION, **COLD).text, r"\bls\b")
        with self.assertRaises(ConnectionError):
            self.refused()
        busy = moed.Busy({"code": 9, "name": "Busy", "message": "x", "data": {"retry_after_ms": 2500}})
        self.assertEqual(busy.retry_after, 2.5)

    def refused(self):
        """Connect to a socket that nobody listens on."""
        path = self.moed.dir / "dead"
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
        moed.Client(str(path))

    def test_the_service_goes(self):
        with rig.Moed("--model", MODEL, model=None) as other, moed.Client(str(other.path)) as c:
            with self.assertRaises((ConnectionError, moed.Error)):
                for _ in c.stream(QUESTION, **FOREVER):
                    other.stop()

    def test_asyncio(self):
        async def run():
            async with self.aio() as c:
                whole = await c.ask(QUESTION, **COLD)
                self.assertRegex(whole.text, r"\bls\b")
                many = await asyncio.gather(*(c.ask(QUESTION, **COLD) for _ in range(20)))
                self.assertEqual({a.text for a in many}, {whole.text})
                self.assertEqual("".join([p.text async for p in c.stream(QUESTION, **COLD)]), whole.text)
                async with await c.session(**COLD) as chat:
                    self.assertEqual((await chat.ask(QUESTION)).text, whole.text)
                with self.assertRaises(moed.Error):
                    await c.ask(QUESTION, model="none")
                task = asyncio.create_task(c.ask(QUESTION, **FOREVER))
                while not (await c.call("job.list"))["jobs"]:
                    await asyncio.sleep(0.01)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                stream = c.stream(QUESTION, **FOREVER)
                await anext(stream)
                await stream.aclose()
                while (await c.call("job.list"))["jobs"]:
                    await asyncio.sleep(0.01)
                self.assertEqual((await c.ask(QUESTION, **COLD)).text, whole.text)
            with self.assertRaises(ConnectionError):
                await c.ask(QUESTION)

        asyncio.run(asyncio.wait_for(run(), 60))

    def test_asyncio_when_the_service_goes(self):
        async def run():
            with rig.Moed("--model", MODEL, model=None) as other:
                async with moed.AsyncClient(str(other.path)) as c:
                    with self.assertRaises((ConnectionError, moed.Error)):
                        async for _ in c.stream(QUESTION, **FOREVER):
                            other.stop()
                            await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(run(), 60))

    def test_what_the_readme_says(self):
        text = (PACKAGE / "README.md").read_text()
        programs = re.findall(r"```python\n(.*?)```", text, re.S)
        self.assertEqual(len(programs), 2)
        for program in programs:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), unittest.mock.patch.dict("os.environ", MOE_SOCKET=str(self.moed.path)):
                exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
            self.assertIn("grep", out.getvalue())
            self.assertIn("ls", out.getvalue())


if __name__ == "__main__":
    rig.main(unittest)
