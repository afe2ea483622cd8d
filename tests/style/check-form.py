#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Check the form every file has: a licence line, sizes, no leftovers.

check-form.py ROOT     prints what is wrong, a line each
"""
import pathlib
import re
import subprocess
import sys

FILE_LINES, HEADER_LINES, FUNCTION_LINES, KERNEL_LINES = 1000, 250, 60, 150
LONG_OK = re.compile(r"^engine/(kern/|model/gemma4)|^tests/")  # kernels and forward passes; test tables
BINARY = {".gguf", ".png", ".svg"}
NO_LICENCE = re.compile(r"^LICENSE$|^contrib/debian/[^/]*\.(install|docs|examples|symbols)$|^contrib/debian/(changelog|control|copyright|source/)|/corpus/|\.json$|\.txt$|\.dict$|^\.git|NOTICE$|\.golden$|\.sym$")
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX)\b")


def files(root: pathlib.Path) -> list[str]:
    """What git tracks, or outside a checkout every file that is not in a build directory."""
    git = subprocess.run(["git", "-C", str(root), "ls-files"], capture_output=True, text=True)
    if git.returncode == 0:
        return [f for f in git.stdout.splitlines() if (root / f).exists()]
    found = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    return [f for f in found if not f.startswith("build")]


def functions(lines: list[str]):
    """(first line, name, length) of each function definition."""
    start = None
    for i, line in enumerate(lines):
        if start is None and re.match(r"^[a-zA-Z].*\{$", line) and "(" in "".join(lines[max(0, i - 6):i + 1]):
            first = i
            while first and re.match(r"^\s+\S", lines[first]):
                first -= 1
            if not re.match(r"^(struct|enum|union|static const|const|typedef|extern)\b[^(]*\{$", line):
                start = i
        elif start is not None and line == "}":
            yield start + 1, lines[start].split("(")[0].split()[-1].lstrip("*"), i - start + 1
            start = None
        elif start is not None and line.startswith("}"):
            start = None


def check_c(name: str, lines: list[str]) -> list[str]:
    bad, table = [], False
    for i, line in enumerate(lines, 1):
        if "clang-format o" in line:
            table = "clang-format off" in line
        if len(line) > 100 and not table:
            bad.append(f"{name}:{i}: {len(line)} columns")
    limit = HEADER_LINES if name.endswith(".h") else FILE_LINES
    if len(lines) > limit:
        bad.append(f"{name}: {len(lines)} lines, {limit} is the limit")
    limit = KERNEL_LINES if LONG_OK.search(name) else FUNCTION_LINES
    for at, func, n in functions(lines):
        if n > limit:
            bad.append(f"{name}:{at}: {func}() has {n} lines, {limit} is the limit")
    return bad


def main(root: pathlib.Path) -> int:
    bad = []
    for name in files(root):
        if pathlib.PurePath(name).suffix in BINARY or "/corpus/" in name:
            continue
        text = (root / name).read_text(errors="replace")
        if "SPDX-License-Identifier: Apache-2.0" not in text[:400] and not NO_LICENCE.search(name):
            bad.append(f"{name}: no SPDX line")
        if name != "tests/style/check-form.py" and LEFTOVER.search(text):
            bad.append(f"{name}: a leftover: {LEFTOVER.search(text).group()}")
        if name.endswith((".c", ".h")):
            bad += check_c(name, text.splitlines())
    print("\n".join(bad) if bad else "form: nothing to say")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
