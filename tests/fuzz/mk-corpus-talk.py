#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Saved sessions without their heads, whole and broken: mk-corpus-talk.py FOLDER"""
import pathlib
import sys

import msgpack

SAMPLE = [257, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 40, 0, 12345]


def talk(settings=("tiny", False, 0, 0), sample=SAMPLE, messages=("user", "hi", "assistant", "hello")):
    return msgpack.packb([list(settings), list(sample), list(messages)], use_single_float=True)


CASES = {
    "chat": talk(messages=["system", "be brief", "user", "one", "assistant", "1", "developer", "count", "user", "\u00e4"]),
    "empty": talk(messages=[]),
    "settings": talk(settings=("a-model", True, 2, 4096), sample=[511, 0.0, 1.0, 0.5, 1.5, -2.0, 2.0, 0, 64, 2**64 - 1]),
    "odd": talk(messages=["user"]),
    "role": talk(messages=["robot", "hi"]),
    "nul": talk(messages=["user", "a\0b"]),
    "class": talk(settings=("tiny", False, 3, 0)),
    "types": talk(settings=("tiny", 1, 0, 0)),
    "nan": talk(sample=[257, float("nan"), 0.0, 0.0, 0.0, 0.0, 0.0, 40, 0, 1]),
    "range": talk(sample=[4, 0.0, 7.0, 0.0, 0.0, 0.0, 0.0, 40, 0, 1]),
    "text": talk().replace(b"hello", b"hell\xff"),
    "more": talk() + b"\xc0",
    "less": talk()[:-1],
    "bomb": b"\x93\xdd\x04\x00\x00\x00",
}

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, data in CASES.items():
    (folder / name).write_bytes(data)
