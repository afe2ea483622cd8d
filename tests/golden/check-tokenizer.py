#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare the ids of moe-eval with those of Hugging Face's tokenizer, on a model with Gemma's vocabulary.

    check-tokenizer.py MOE_EVAL MODEL.gguf tokenizer.json

tokenizer.json is [[text, ids], ...], written by compare-tokenizer.mjs. Markers came to that vocabulary with Gemma 4, so
EXAMPLES, which has them, is skipped line by line where the model is older. Exit status 77: another vocabulary.
"""
import json
import pathlib
import re
import subprocess
import sys

PARTING = "\n" * 7  # a token of its own, 113; no text holds it
PARTING_ID = 113

# The published model's own, with markers.
EXAMPLES = [
    ("<bos><|turn>user\nWhat is 2+2?<turn|>\n<|turn>model\n",
     "2 105 2364 107 3689 563 236743 236778 236862 236778 236881 106 107 105 4368 107"),
    ("<|image>content<image|>", "255999 3955 258882"),
    ("<|think|><|channel>thought\nreasoning\n<channel|><|turn>model\nanswer<turn|>",
     "98 100 45518 107 27388 522 107 101 105 4368 107 14433 106"),
    ("<|tool>declaration<tool|>", "46 163688 47"),
    ("<|tool_call>call:foo{}<tool_call|>", "48 6639 236787 26537 16454 49"),
    ("<|tool_response>response:foo{}<tool_response|>", "50 6275 236787 26537 16454 51"),
    ("<bos><|turn>user\nWhat is the capital of France?<turn|>\n<|turn>model\nThe capital of France is Paris.<turn|>\n"
     "<|turn>model\n",
     "2 105 2364 107 3689 563 506 5279 529 7001 236881 106 107 105 4368 107 818 5279 529 7001 563 9079 236761 106 107 "
     "105 4368 107"),
]


def tokenize(args, text):
    done = subprocess.run([*args, "--tokenize", "-"], input=text.encode(), check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def split(ids):
    parts = [[]]
    for i in ids:
        if i == PARTING_ID:
            parts.append([])
        else:
            parts[-1].append(i)
    return parts


def main():
    moe_eval, model, golden = sys.argv[1:]
    if tokenize([moe_eval, model], PARTING + "thought\nreasoning") != [PARTING_ID, 45518, 107, 27388, 522]:
        print("another vocabulary")
        return 77

    bad = 0
    texts = json.loads(pathlib.Path(golden).read_text())
    parts = split(tokenize([moe_eval, model], PARTING.join(text for text, _ in texts)))
    assert len(parts) == len(texts), (len(parts), len(texts))
    for (text, want), got in zip(texts, parts):
        if got != want:
            print(f"{text!r}\n  want {want}\n  got  {got}")
            bad += 1

    special = [moe_eval, model, "--special"]
    markers = sorted({m for text, _ in EXAMPLES for m in re.findall(r"<[^>]*>", text)})
    known = {m for m, ids in zip(markers, split(tokenize(special, PARTING.join(markers)))) if len(ids) == 1}
    for text, want in EXAMPLES:
        missing = set(re.findall(r"<[^>]*>", text)) - known
        got = [] if missing else tokenize(special, text)
        if missing:
            print(f"skipped, no {' '.join(sorted(missing))}: {text!r}")
        elif got != [int(i) for i in want.split()]:
            print(f"{text!r}\n  want {want}\n  got  {got}")
            bad += 1
    print(f"{len(texts)} texts and {len(EXAMPLES)} examples, {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
