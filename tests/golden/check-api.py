#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What moed says of its methods is what was published, and what the protocol document says.

check-api.py MOED SOURCE            compare with tests/golden/api-info.json and client/PROTOCOL.md
check-api.py MOED SOURCE --write    write api-info.json, after a change that was meant

A published method never changes at a given API level: when this fails, raise RPC_API_LEVEL, or undo.
"""
import json
import pathlib
import re
import subprocess
import sys

try:
    import msgpack
except ImportError:
    sys.exit(77)


def from_document(text):
    """{method: {param: (type, required)}} of the headings, or of the table below one."""
    found = {}
    for name, inline, body in re.findall(r"^### `([\w.]+)`(?: `\{(.*?)\}`)?\n(.*?)(?=^##|\Z)", text, re.M | re.S):
        params = re.findall(r"(\w+): (\w+)(\??)", inline)
        for keys, kind, optional in re.findall(r"^\| `([\w ]+)` \| (\w+)(\??) \|", body, re.M):
            params += [(key, kind, optional) for key in keys.split()]
        found[name] = {key: (kind, not optional) for key, kind, optional in params}
    return found


def main():
    moed, source = sys.argv[1], pathlib.Path(sys.argv[2])
    golden = source / "tests/golden/api-info.json"
    info = msgpack.unpackb(subprocess.run([moed, "--api-info"], check=True, capture_output=True).stdout)
    for part in "major", "minor", "patch", "prerelease":  # those of a release, not of the interface
        del info["version"][part]
    text = json.dumps(info, indent=1) + "\n"
    if "--write" in sys.argv:
        golden.write_text(text)
        return 0

    bad = 0
    if golden.read_text() != text:
        print("moed --api-info is not what tests/golden/api-info.json says:")
        old = golden.read_text().splitlines()
        print("\n".join(f"  + {line}" for line in text.splitlines() if line not in old))
        print("\n".join(f"  - {line}" for line in old if line not in text.splitlines()))
        bad = 1

    said = {m["name"]: {p["name"]: (p["type"], p["required"]) for p in m["params"]} for m in info["methods"]}
    written = from_document((source / "client/PROTOCOL.md").read_text())
    for name in sorted(said.keys() | written.keys()):
        if said.get(name) != written.get(name):
            print(f"{name}: moed takes {said.get(name)}, PROTOCOL.md says {written.get(name)}")
            bad = 1
    codes = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| (\w+) \|", (source / "client/PROTOCOL.md").read_text(), re.M)}
    if codes != {name: e["code"] for name, e in info["error_types"].items()}:
        print(f"errors: PROTOCOL.md says {codes}")
        bad = 1
    return bad


if __name__ == "__main__":
    sys.exit(main())
