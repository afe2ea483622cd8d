#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Saved sessions without their heads, whole and broken: mk-corpus-session.py FOLDER"""
import pathlib
import sys

import msgpack

SAMPLE = [257, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 40, 0, 12345]


def session(settings=("tiny", False, 0, 0), sample=SAMPLE, messages=("user", "hi", "assistant", "hello")):
    return msgpack.packb([list(settings), list(sample), list(messages)], use_single_float=True)


CASES = {
    "chat": session(messages=["system", "be brief", "user", "one", "assistant", "1", "developer", "count", "user", "\u00e4"]),
    "empty": session(messages=[]),
    "settings": session(settings=("a-model", True, 2, 4096), sample=[511, 0.0, 1.0, 0.5, 1.5, -2.0, 2.0, 0, 64, 2**64 - 1]),
    "odd": session(messages=["user"]),
    "role": session(messages=["robot", "hi"]),
    "nul": session(messages=["user", "a\0b"]),
    "class": session(settings=("tiny", False, 3, 0)),
    "types": session(settings=("tiny", 1, 0, 0)),
    "nan": session(sample=[257, float("nan"), 0.0, 0.0, 0.0, 0.0, 0.0, 40, 0, 1]),
    "range": session(sample=[4, 0.0, 7.0, 0.0, 0.0, 0.0, 0.0, 40, 0, 1]),
    "text": session().replace(b"hello", b"hell\xff"),
    "more": session() + b"\xc0",
    "less": session()[:-1],
    "bomb": b"\x93\xdd\x04\x00\x00\x00",
}

folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
for name, data in CASES.items():
    (folder / name).write_bytes(data)
