#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the seeds of the gguf fuzzer into a folder: small files, good ones and nearly good ones.

The corpus in the tree is these and what libFuzzer found from them, merged.
"""
import pathlib
import struct
import sys

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORM = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q", I64: "<q",
        F64: "<d"}
BLOCK = {0: (1, 4), 1: (1, 2), 30: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
         11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 39: (32, 17)}


def string(s):
    return struct.pack("<Q", len(s)) + s.encode()


def value(kind, v):
    return string(v) if kind == STR else struct.pack(FORM[kind], v)


def key(name, kind, v):
    if isinstance(v, list):
        return string(name) + struct.pack("<IIQ", ARR, kind, len(v)) + b"".join(value(kind, x) for x in v)
    return string(name) + struct.pack("<I", kind) + value(kind, v)


def model(keys, tensors, version=3, align=32):
    """@tensors: (name, shape, type)"""
    info, data = b"", b""
    for name, ne, fmt in tensors:
        n = 1
        for x in ne:
            n *= x
        info += string(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, fmt, len(data))
        block, size = BLOCK[fmt]
        data += b"\x3c" * (n // block * size)
        data += bytes(-len(data) % align)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + info
    return head + bytes(-len(head) % align) + data


def seeds():
    every = [key(f"k.{kind}", kind, 1) for kind in FORM] + [key(f"a.{kind}", kind, [0, 1, 1]) for kind in FORM]
    strings = [key("s", STR, "text"), key("s.none", STR, ""), key("s.more", STR, ["a", "", "\u2581b"])]
    weights = [("norm.weight", [8], 0), ("w", [32, 3], 2), ("e", [256, 2, 2], 12)]
    yield "empty", model([], [])
    yield "keys", model(every + strings, [])
    yield "weights", model([key("general.architecture", STR, "gemma4")], weights)
    yield "version2", model(strings, weights, 2)
    yield "aligned", model([key("general.alignment", U32, 64)], weights, 3, 64)
    yield "formats", model([], [(f"t{fmt}", [BLOCK[fmt][0]], fmt) for fmt in BLOCK])
    yield "part", model([key("split.no", U16, 0), key("split.count", U16, 2), key("split.tensors.count", I32, 1)],
                        [("a", [4], 0)])
    yield "only-part", model([key("split.no", U16, 0), key("split.count", U16, 1), key("split.tensors.count", I32, 1)],
                             [("a", [4], 0)])
    yield "twice", model([key("k", U8, 1)] * 2, [("a", [4], 0)] * 2)
    yield "misaligned", model([key("general.alignment", U32, 24)], weights)
    good = model(strings, weights)
    yield "cut", good[:-1]
    yield "cut-header", good[:100]


def main(folder):
    for name, data in seeds():
        (pathlib.Path(folder) / f"{name}.gguf").write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
