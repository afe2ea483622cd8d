#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the seeds of the wire or client fuzzer: mk-corpus-wire.py wire|client FOLDER

The corpus in the tree is these and what libFuzzer found from them, merged.
"""
import pathlib
import sys

import msgpack

NESTED = {"a": [1, -1, 2**40, 0.5, True, None, "t\u00e9xt", b"\xff\x00"], "b": {"c": {"d": [[], {}]}}}
DELTA = {"id": 2, "seq": 0, "kind": "text", "text": "Hi \u00e9", "logprobs": [
    {"token": 5, "bytes": b"Hi", "logprob": -0.5, "top": [{"token": 5, "bytes": b"Hi", "logprob": -0.5}]}]}
RESULT = {"text": "Hi", "stop_reason": "stop", "stop": "END", "seed": 7, "model": "m",
          "usage": {"prompt": 1, "cached": 0, "generated": 2, "dropped": 0},
          "timings": {"queue_us": 1, "prefill_us": 2, "decode_us": 3}}
BUSY = {"code": 9, "name": "Busy", "message": "later", "data": {"retry_after_ms": 5, "position": 1}}


def level(n):
    return [] if n == 0 else [level(n - 1)]


def seeds(kind):
    pack = msgpack.packb
    common = {
        "requests": pack([0, 1, "tokenize", [{"text": "hi"}]]) + pack([0, 2**32 - 1, "m", [NESTED]]),
        "import": pack([0, 1, "model.import", [{"id": "x", "mode": "copy", "digest": "0" * 64, "license": "MIT"}]]),
        "responses": pack([1, 1, None, NESTED]) + pack([1, 2, None, RESULT]) + pack([1, 3, BUSY, None]),
        "notifications": pack([2, "generate.delta", [DELTA]]) + pack([2, "generate.progress", [
            {"id": 2, "stage": "prefill", "done": 1, "total": 9}]]) + pack([2, "job.progress", [{"id": 1}]]),
        "refused": pack([2, "rpc.error", [{"code": 11, "name": "AccessDenied", "message": "no"}]]),
        "cut": pack([1, 1, None, NESTED])[:-9],
        "http": b"GET / HTTP/1.1\r\n\r\n",
        "no-utf8": pack([1, 1, None, {"v": b"\xff"}]).replace(b"\xc4\x01\xff", b"\xa1\xff"),
        "wide": bytes.fromhex("dd00000004 d300000000000000 01 cf0000000000000001 c0 df00000001 db00000001 61 ca3f000000"),
    }
    if kind == "client":
        common["conversation"] = common["notifications"] + common["responses"] + pack([1, 4, None, NESTED])
        common["waited-error"] = pack([1, 2, None, RESULT]) + pack([1, 4, BUSY, None])
        return common
    head = bytes.fromhex("9302a16d91")
    common.update({
        "depth16": pack([2, "m", [{"k": level(12)}]]), "depth17": pack([2, "m", [{"k": level(13)}]]),
        "bomb-array": head + bytes.fromhex("ddffffffff"), "bomb-map": head + bytes.fromhex("df80000000"),
        "bomb-nested": head + bytes.fromhex("dd00000100") * 20, "bomb-str": head + bytes.fromhex("dbffffffff"),
        "reserved": head + b"\xc1", "ext": head + bytes.fromhex("c70101ff"), "fixext": head + bytes.fromhex("d401ff"),
    })
    return common


def main(kind, folder):
    for name, data in seeds(kind).items():
        (pathlib.Path(folder) / name).write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:3])
