#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tools as a user runs them: moe-bench's figures hang together, bad input is one sentence.

test-tools.py MOE_BENCH MOE_EVAL MODEL
"""
import json
import os
import subprocess
import sys
import tempfile

BENCH, EVAL, MODEL = sys.argv[1:4]


def run(*args, code=0):
    p = subprocess.run(args, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert p.returncode == code, f"{args}: exit {p.returncode}, not {code}\n{p.stderr}"
    return p


def test_bench():
    p = run(BENCH, MODEL, "-p", "40", "-n", "3", "-b", "1,2", "-t", "2", "-r", "3", "--json")
    o = json.loads(p.stdout)
    rates = [v for v in walk(o) if isinstance(v, dict) and {"median", "min", "max"} <= v.keys()]
    assert len(rates) >= 3, o  # prompt, one sequence, two sequences
    for r in rates:
        assert 0 < r["min"] <= r["median"] <= r["max"], r
    text = run(BENCH, MODEL, "-p", "8", "-n", "2", "-b", "1", "-r", "1").stdout
    assert "decode" in text and "{" not in text, text


def walk(o):
    yield o
    for v in o.values() if isinstance(o, dict) else o if isinstance(o, list) else []:
        yield from walk(v)


def test_errors():
    with tempfile.NamedTemporaryFile(suffix=".gguf") as bad:
        bad.write(b"GGUF" + bytes(60))
        bad.flush()
        for tool, what in ((BENCH, []), (EVAL, ["--ls"])):
            for args, code, word in (
                ([], 2, "model"),
                ([MODEL, "--nonsense"], 2, "--nonsense"),
                (["/nonexistent.gguf", *what], 1, "/nonexistent.gguf"),
                ([bad.name, *what], 1, os.path.basename(bad.name)),
            ):
                p = run(tool, *args, code=code)
                assert word in p.stderr and not p.stdout, (tool, args, p.stderr)
    for args, word in ((["--ids", "2,99999999"], "99999999"), (["--ids", "x"], "x")):
        p = subprocess.run([EVAL, MODEL, *args], capture_output=True, text=True)
        assert p.returncode in (1, 2) and word in p.stderr and not p.stdout, (args, p.stderr)


def test_help():
    for tool in (BENCH, EVAL):
        name = os.path.basename(tool)
        assert run(tool, "--help").stdout.startswith(f"Usage: {name} MODEL"), name
        assert run(tool, "--version").stdout.startswith(name), name


for name, test in sorted(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"{name}: ok")
