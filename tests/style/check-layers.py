#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fail when a file includes a header from a layer above its own, or when layers form a cycle.

LAYERS lists each folder with what it may include, besides itself. Nothing else is allowed.
"""
import pathlib
import re
import sys

LAYERS = {
    "engine/base": [],
    "engine/fmt": ["engine/base"],
    "engine/kern": ["engine/base", "engine/fmt"],
    "engine/hw": ["engine/base"],
    "engine/kv": ["engine/base", "engine/fmt", "engine/kern", "engine/hw"],
    "engine/moe": ["engine/base", "engine/fmt", "engine/kern", "engine/hw"],
    "engine/text": ["engine/base", "engine/fmt"],
    "engine/model": ["engine/base", "engine/fmt", "engine/kern", "engine/hw", "engine/kv", "engine/moe"],
    "engine/sched": ["engine/base", "engine/fmt", "engine/kern", "engine/hw", "engine/kv", "engine/model",
                     "engine/text"],
    "engine": ["engine/base", "engine/fmt", "engine/kern", "engine/hw", "engine/kv", "engine/model",
               "engine/text", "engine/sched"],
    "engine/tools": ["engine", "engine/base", "engine/fmt", "engine/kern", "engine/hw", "engine/kv",
                     "engine/moe", "engine/model", "engine/text", "engine/sched"],
    "daemon": ["engine/base", "engine", "client"],
    "client": [],
    "client/openai": ["client"],
    "client/portal": ["client"],
}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


def main(root: str) -> int:
    bad = 0
    for path in sorted(pathlib.Path(root).rglob("*.[ch]")):
        rel = path.relative_to(root)
        own = rel.parent.as_posix()
        if own.split("/")[0] not in ("engine", "daemon", "client"):
            continue
        if own not in LAYERS:
            print(f"{rel}: {own} is no layer; add it to LAYERS in {sys.argv[0]}")
            bad += 1
            continue
        for inc in INCLUDE.findall(path.read_text()):
            layer = pathlib.PurePosixPath(inc).parent.as_posix()
            if layer not in (own, ".") and layer not in LAYERS[own]:
                print(f'{rel}: "{inc}": {own} may include {LAYERS[own]}')
                bad += 1
    return bad


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1]) else 0)
