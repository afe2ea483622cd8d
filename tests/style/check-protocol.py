#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PROTOCOL.md and the daemon's table agree: check-protocol.py PROTOCOL.md MOED

Compared are methods, their params with type and presence, keys of results, and error codes.
"""
import re
import subprocess
import sys

try:
    import msgpack
except ImportError:
    sys.exit(77)

HEADING = re.compile(r"^### `([a-z.]+)`(?: `\{(.*)\}`)?$", re.M)


def pairs(text):
    """{name: (type, required)} of "a: str, b, c: uint?": what shares a type has it named last."""
    out, names = {}, []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, kind = part.partition(":")
        names.append(name.strip())
        if kind:
            out.update({n: (kind.strip(" ?"), not kind.strip().endswith("?")) for n in names})
            names = []
    return out


def table(body):
    """The same of a table | `names` | type | meaning |."""
    out = {}
    for names, kind in re.findall(r"^\| `([a-z_ ]+)` \| ([a-z]+\??) \|", body, re.M):
        out.update({n: (kind.strip("?"), not kind.endswith("?")) for n in names.split()})
    return out


def top_keys(text):
    """Names at the first level of "{a: str, b: [{c}], d: map}"."""
    depth, keys, at = 0, set(), ""
    for c in text:
        if depth == 1 and c in ",}":
            keys.add(at.split(":")[0].strip())
            at = ""
        depth += (c in "{[") - (c in "}]")
        if depth >= 1 and not (depth == 1 and c in "{,"):
            at += c
    return keys - {""}


def documented(text):
    parts = HEADING.split(text)[1:]
    methods = {}
    for name, params, body in zip(parts[::3], parts[1::3], parts[2::3]):
        result = re.search(r"`(\{.*?\})`[.;:]?(?=\s)", body, re.S).group(1)
        methods[name] = (pairs(params) if params is not None else table(body), result)
    return methods


def main(path, moed):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    info = msgpack.unpackb(subprocess.run([moed, "--api-info"], check=True, capture_output=True).stdout)
    bad = []
    methods = documented(text)
    served = {m["name"]: m for m in info["methods"]}
    for name in sorted(set(methods) ^ set(served)):
        bad.append(f"{name}: only in {'PROTOCOL.md' if name in methods else 'moed'}")
    for name in sorted(set(methods) & set(served)):
        params, result = methods[name]
        have = {p["name"]: (p["type"], p["required"]) for p in served[name]["params"]}
        for key in sorted(set(params) | set(have)):
            if params.get(key) != have.get(key):
                bad.append(f"{name}: {key}: PROTOCOL.md {params.get(key)}, moed {have.get(key)}")
        odd = top_keys(result) ^ top_keys(served[name]["result"])
        if odd - {"reason"}:  # of server.status; told in prose, where the state it belongs to is
            bad.append(f"{name}: result: {', '.join(sorted(odd))}")
    codes = {n: int(c) for c, n in re.findall(r"^\| (\d+) \| ([A-Za-z]+) \|", text, re.M)}
    have = {n: v["code"] for n, v in info["error_types"].items()}
    if codes != have:
        bad.append(f"errors: {sorted(set(codes.items()) ^ set(have.items()))}")
    print("\n".join(bad))
    return 1 if bad or len(methods) < 10 or len(codes) < 20 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
