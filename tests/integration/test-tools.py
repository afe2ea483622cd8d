#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tools as a user runs them: moe-bench's figures hang together, bad input is one sentence.

test-tools.py MOE_BENCH MOE_EVAL MOE_CACHESIM MODEL
"""
import json
import os
import shlex
import struct
import subprocess
import sys
import tempfile

BENCH, EVAL, CACHESIM, MODEL = sys.argv[1:5]


def run(*args, code=0):
    p = subprocess.run(args, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert p.returncode == code, f"{args}: exit {p.returncode}, not {code}\n{p.stderr}"
    return p


SIZE = "-p", "40", "-n", "3", "-r", "2", "--any"


def lines(*args):
    """A run's JSON lines, by type."""
    all_lines = [json.loads(x) for x in run(BENCH, MODEL, *SIZE, *args, "--json", "-").stdout.splitlines()]
    return {t: [x for x in all_lines if x["type"] == t] for t in {x["type"] for x in all_lines}}


def same(a, b):
    return all(a[k] == b[k] for k in ("measure", "tokens", "sequences", "depth", "threads", "busy"))


def test_bench_lines():
    o = lines("-b", "1,2", "-t", "1,2", "-d", "0,70", "--busy", "--profile", "--load", "1")
    (head,) = o["run"]
    assert head["commit"] and head["model"]["path"] == MODEL and head["workers"] == 2, head
    assert len(o["probe"]) == 4 and [p["when"] for p in o["probe"]] == ["before", "after"] * 2
    for p in o["probe"]:
        assert p["fault"] in ("none", "busy", "shared core") and 0 < p["cpu_share"] <= 1.01, p
        assert p["int8_one_ops_per_sec"] > 1e8 and p["read_one_bytes_per_sec"][1] > 1e8, p
        assert p["when"] == "before" or p["counts"], p
    samples = [s for s in o["sample"] if s["block"] == 0]
    assert len(samples) == 2 * 2 * 3 + 2, samples  # threads, depths, (prompt, 1, 2 sequences); busy
    for s in samples:
        c = s["count"]
        assert s["rate"] > 0 and s["cpu_rate"] > 0, s
        assert c["tokens"] == s["tokens"] * s["sequences"] == c["rows"], s
        assert c["allocations"] == 0 and c["weight_bytes"] > 0 and c["ops"] > 0, s
        assert c["steps"] == (1 if s["measure"] == "prefill" else 3), s
    deep = [next(s for s in samples if s["depth"] == d and s["measure"] == "decode") for d in (0, 70)]
    assert deep[0]["count"]["kv_bytes"] < deep[1]["count"]["kv_bytes"], deep
    (load,) = o["load"]
    assert not load["from_image"], load
    assert load["file_bytes"] == os.path.getsize(MODEL) and min(load["raw_sec"], load["cold_sec"]) > 0, load
    for p in o["profile"]:
        assert sum(x["weight_bytes"] for x in p["phases"]) > 0 and sum(x["sec"] for x in p["phases"]) > 0, p


def test_bench_image():
    """With a place for it the second load takes the packed weights of the first; nothing stays."""
    with tempfile.TemporaryDirectory() as d:
        o = lines("-t", "1", "-b", "1", "--load", "2", "--cache-dir", d)
        assert [x["from_image"] for x in o["load"]] == [True, True], o["load"]
        assert len(os.listdir(d)) == 1, os.listdir(d)  # that of the run itself


def test_bench_vs():
    """What others say is in the samples, and the ratio can be had from them."""
    stays = """while read what n batch depth threads; do
        case $what in prefill) echo null;; *) echo "{\\"rate\\": 2$batch, \\"cpu_rate\\": 4}";; esac; done"""
    ends = 'echo "$BENCH_TOKENS.$BENCH_SEQUENCES"'
    for more in (), ("--alone",):
        table = tempfile.NamedTemporaryFile()
        text = run(BENCH, MODEL, *SIZE, "-t", "1", "-b", "1,2", "--vs", stays, "--vs", ends, *more,
                   "--json", table.name).stdout
        assert "moed/vs1" in text and "moed/vs2, CPU" not in text and "{" not in text.split("\n\n", 1)[1], text
        o = [json.loads(x) for x in open(table.name)]
        samples = [x for x in o if x["type"] == "sample"]
        for s in samples:
            if s["engine"] == "vs1":
                assert s["measure"] == "decode" and s["rate"] == 20 + s["sequences"] and s["cpu_rate"] == 4, s
            elif s["engine"] == "vs2":
                assert s["rate"] == float(f"{s['tokens']}.{s['sequences']}") and "cpu_rate" not in s, s
        for r in (x for x in o if x["type"] == "result" and x["what"].startswith("rate_over_vs")):
            ratios = []
            for block in 0, 1:
                mean = {}
                for e in "moed", r["what"][10:]:
                    rates = [s["rate"] for s in samples if s["engine"] == e and s["block"] == block and same(s, r)]
                    assert len(rates) == 2, (e, rates)
                    mean[e] = 2 / sum(1 / x for x in rates)
                ratios.append(mean["moed"] / mean[r["what"][10:]])
            assert abs(r["median"] - sum(ratios) / 2) < 1e-6 * r["median"], (r, ratios)
            assert r["low"] <= r["median"] <= r["high"], r


def test_bench_answers():
    """One moe-bench is the other engine of another; what it has no memory for it can not do."""
    other = shlex.join([BENCH, MODEL, "--answer", "-p", "40", "-n", "3", "-b", "1,3", "-t", "1"])
    o = lines("-t", "1", "-b", "1,2", "--vs", other)
    rates = [s for s in o["sample"] if s["engine"] == "vs1"]
    assert {(s["measure"], s["sequences"]) for s in rates} == {("prefill", 1), ("decode", 1)}, rates
    assert all(s["rate"] > 0 and s["cpu_rate"] > 0 for s in rates), rates
    for what in "what 1 1 0 1", "decode 1 1 0", "", "decode 0 1 0 1", "decode 1 1 5 1", "decode 9 1 0 3", "prefill 9 2 0 1":
        p = subprocess.run(shlex.split(other), input=what + "\n", capture_output=True, text=True)
        assert p.returncode == 0 and p.stdout == "null\n", (what, p)


def test_bench_vs_errors():
    for command, word in (("exit 3", "exit code 3"), ("echo fast", "fast"), ("echo -1", "-1"),
                          ("echo '{}'", "{}"), ("/nonexistent/engine", "127")):
        p = run(BENCH, MODEL, *SIZE, "-t", "1", "--vs", command, code=1)
        assert word in p.stderr and command.split()[0] in p.stderr and not p.stdout, (command, p.stderr)
    for args, word in ((("-t", "1,x"), "--threads"), (("-b", "2,2"), "twice"), (("-d", "1;2"), "--depth"),
                       (("-p", "0", "-n", "0"), "nothing"), (("--json",), "--json")):
        p = run(BENCH, MODEL, *args, code=2)
        assert word in p.stderr and not p.stdout, (args, p.stderr)
    p = run(BENCH, MODEL, *SIZE, "--json", "/nonexistent/file", code=1)
    assert "/nonexistent/file" in p.stderr, p.stderr


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


def routes(path):
    """The experts of each token, layer by layer, from a recording."""
    with open(path, "rb") as f:
        data = f.read()
    magic, version, n_layer, n_expert, k = struct.unpack_from("<8s4I", data)
    assert (magic, version, n_expert) == (b"MOEDROUT", 1, 8), data[:24]
    tokens, at = [], 24
    while at < len(data):
        (n_row,) = struct.unpack_from("<I", data, at)
        ids = struct.unpack_from(f"<{n_layer * n_row * k}H", data, at + 4)
        tokens += [[ids[(i * n_row + r) * k:][:k] for i in range(n_layer)] for r in range(n_row)]
        at += 4 + 2 * len(ids)
    return tokens


def test_record():
    """What is recorded of a token does not depend on the tokens beside it."""
    with tempfile.TemporaryDirectory() as d:
        for batch in "1", "7":
            run(EVAL, MODEL, "--text", "How do I list directory contents?", "--batch", batch, "--record", f"{d}/{batch}")
        one, many = routes(f"{d}/1"), routes(f"{d}/7")
        assert one == many and len(one) > 7 and len({str(t) for t in one}) > 3, (one, many)


def test_cachesim():
    """What moe-eval recorded is replayed; nobody beats the optimum, and all fit in all slots."""
    with tempfile.TemporaryDirectory() as d:
        path = f"{d}/routes"
        p = run(EVAL, MODEL, "--text", "What does tar do?", "--greedy", "20", "--record", path)
        ahead = json.loads(p.stdout)["look_ahead"]
        assert 0.25 < ahead["attn"] <= 1 and 0.25 < ahead["out"] <= 1, ahead  # chance is 2 of 8
        for when, rank in ("attn", "attn_by_rank"), ("out", "out_by_rank"):  # the surer, the more often right
            first, second = ahead[rank]
            assert abs(ahead[when] - (first + second) / 2) < 1e-6 and second < first <= 1, ahead
        o = json.loads(run(CACHESIM, path, "--slots", "3,9,32", "--json").stdout)
        assert (o["layers"], o["experts"], o["used"]) == (4, 8, 2) and o["steps"] == 20 and o["tokens"] > 20, o
        for row in o["rows"]:
            for name in "ours", "lru", "lfu", "optimum":
                assert row[name]["reads"] >= row["optimum"]["reads"] >= o["first"], (name, row)
        assert o["rows"][2]["ours"]["hit"] == 1 and o["rows"][2]["ours"]["bytes_per_token"] == 0, o
        assert len(run(CACHESIM, path, "--slots", "3,9").stdout.splitlines()) == 5
        with open(path, "r+b") as f:
            f.truncate(os.path.getsize(path) - 1)
        for args, code, word in (([path], 1, "cut short"), (["/nonexistent"], 1, "/nonexistent"),
                                 (["--skew", "x"], 2, "--skew"), (["--slots", "1,,2"], 2, "--slots"),
                                 (["--used", "129"], 2, "128"), ([path, path], 2, "one recording")):
            p = run(CACHESIM, *args, code=code)
            assert word in p.stderr and not p.stdout, (args, p.stderr)
        p = run(EVAL, MODEL, "--text", "a", "--record", f"{d}/no/file", code=1)
        assert f"{d}/no/file" in p.stderr and not p.stdout, p.stderr


def test_help():
    for tool in (BENCH, EVAL):
        name = os.path.basename(tool)
        assert run(tool, "--help").stdout.startswith(f"Usage: {name} MODEL"), name
        assert run(tool, "--version").stdout.startswith(name), name


for name, test in sorted(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"{name}: ok")
