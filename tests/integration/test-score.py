# SPDX-License-Identifier: Apache-2.0
"""Scores of given answers are what generating them token by token says."""
import signal
import unittest

import rig
from rig import Moed, RpcError

LABELS = ["yes", "no", "yes and no", "no and yes", "y", "perhaps not today"]


class Score(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.moed = Moed()
        cls.addClassCleanup(cls.moed.__exit__, None)

    def setUp(self):
        self.c = self.moed.client()
        self.addCleanup(self.c.close)

    def by_hand(self, prompt, label):
        """The logprob of @label behind @prompt: each token is forced and asked for its own."""
        before = self.c.call("tokenize", text=prompt, bos=True)["tokens"]
        total = 0.0
        for token in self.c.call("tokenize", text=label)["tokens"]:
            answer = self.c.call("generate", tokens=before, max_tokens=1, logprobs=0, temperature=0, logit_bias={token: 1e4})
            self.assertEqual(answer["logprobs"][0]["token"], token)
            total += answer["logprobs"][0]["logprob"]
            before.append(token)
        return total

    def test_as_by_hand(self):
        prompt = "Is it so? "
        got = self.c.call("score.choices", prompt=prompt, choices=LABELS)
        self.assertEqual([c["text"] for c in got["choices"]], LABELS)
        for choice in got["choices"]:
            self.assertAlmostEqual(choice["logprob"], self.by_hand(prompt, choice["text"]), delta=1e-3)
        self.assertAlmostEqual(sum(c["p"] for c in got["choices"]), 1)
        self.assertEqual(got["confidence"], max(c["p"] for c in got["choices"]))

    def test_the_same_beside_others(self):
        alone = self.c.call("score.choices", prompt="Once more ", choices=LABELS)
        other = self.moed.client()
        self.addCleanup(other.close)
        busy = [other.send("generate", **rig.LONG) for _ in range(3)]
        self.assertEqual(self.c.call("score.choices", prompt="Once more ", choices=LABELS)["choices"], alone["choices"])
        for msgid in busy:
            other.notify("generate.cancel", id=msgid)

    def test_use_case(self):
        """Its prompt is around the text, and its labels are the choices."""
        with Moed(config="") as moed:
            with moed.client() as c:
                self.assertEqual(c.call("usecase.list"), {"use_cases": []})
            (moed.dir / "etc/moed/use-cases.d").mkdir()
            (moed.dir / "etc/moed/use-cases.d/sort.conf").write_text("instructions = Sort.\nprompt = Of {labels}: {text}\n")
            moed.proc.send_signal(signal.SIGHUP)
            with moed.client() as c:
                rig.until(lambda: c.call("usecase.list")["use_cases"], "not read")
                self.assertEqual(c.call("usecase.list"), {"use_cases": [{"id": "sort"}]})
                got = c.call("score.choices", messages=[{"role": "user", "content": "x"}], choices=["a", "b"], use_case="sort")
                want = c.call("score.choices", choices=["a", "b"], messages=[{"role": "system", "content": "Sort."},
                                                                             {"role": "user", "content": "Of a, b: x"}])
                self.assertEqual(got["choices"], want["choices"])
                self.assertEqual(got["usage"]["prompt"], want["usage"]["prompt"])
                with self.assertRaisesRegex(RpcError, "NotSupported: no use case none"):
                    c.call("score.choices", messages=[{"role": "user", "content": "x"}], choices=["a", "b"], use_case="none")
                with self.assertRaisesRegex(RpcError, "InvalidArgs: use_case: wants messages"):
                    c.call("score.choices", prompt="x", choices=["a", "b"], use_case="sort")

    def test_what_is_refused(self):
        for params in {"choices": []}, {"choices": ["a"] * 257}, {"choices": [""]}, {"choices": [1]}, {"choices": ["word " * 99]}:
            with self.assertRaisesRegex(RpcError, "InvalidArgs: .*choice"):
                self.c.call("score.choices", prompt="x", **params)
        with self.assertRaisesRegex(RpcError, "InvalidArgs: .*messages"):
            self.c.call("score.choices", choices=["a"])
        with self.assertRaisesRegex(RpcError, "ContextOverflow"):
            self.c.call("score.choices", prompt="word " * 5000, choices=["a"])

    def test_on_and_on(self):
        """Nothing is left behind: more than there are places, and a generation after them."""
        for i in range(40):
            self.c.call("score.choices", prompt=f"number {i} ", choices=LABELS[: 1 + i % 6])
        self.assertTrue(self.c.call("generate", prompt="x", max_tokens=3)["usage"]["generated"])


if __name__ == "__main__":
    rig.main(unittest)
