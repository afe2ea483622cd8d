#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model whose experts stay on disk answers as one that is all in memory: test-experts.py MOED"""
import tempfile
import unittest

import rig
from rig import Moed

PARAMS = {"prompt": "once upon a time there was", "max_tokens": 30, "seed": 5, "temperature": 0.7}


class Experts(unittest.TestCase):
    def answer(self, config):
        with Moed(config=config) as moed:
            c = moed.client()
            self.addCleanup(c.close)
            return c.call("generate", **PARAMS)["text"]

    def test_same(self):
        want = self.answer("")
        with tempfile.TemporaryDirectory() as cache:
            config = f"cache-dir = {cache}\nexpert-bytes = 1\n"
            self.assertEqual(self.answer(config), want)  # makes the file
            self.assertEqual(self.answer(config), want)  # finds it


if __name__ == "__main__":
    rig.main(unittest)
