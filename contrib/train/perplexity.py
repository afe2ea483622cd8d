#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a checkpoint by PyTorch, and of its F32 export by moe-eval: the two must agree.

    perplexity.py CHECKPOINT TEXT MOE_EVAL      exit status 1 if they differ by more than 0.1 %

TEXT is documents that begin with <bos>, as talk.py prints them; both cut it into windows in the same way.
"""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import torch

import bpe
import export
import plain
from model import Model

WINDOW = 512  # moe-eval's
MAX_DIFFERENCE = 1e-3


def windows(ids, bos):
    """Whole documents, as many as fit; one that is longer is cut."""
    starts = [i for i, t in enumerate(ids) if t == bos] + [len(ids)]
    begin = 0
    for at, end in zip(starts, starts[1:]):
        if end - begin > WINDOW and at > begin:
            yield ids[begin:at]
            begin = at
    yield ids[begin:]


def by_torch(saved, text):
    """(perplexity, tokens predicted)"""
    tokenizer = bpe.Tokenizer(*saved["tokenizer"])
    model = Model(saved["config"], saved["params"], plain)
    total, n = 0.0, 0
    for window in windows(tokenizer.encode(text), tokenizer.id["<bos>"]):
        ids = torch.tensor([window[:WINDOW]])
        with torch.no_grad():
            _, nll, _ = model.loss(ids[:, :-1], ids[0, 1:], torch.arange(ids.shape[1] - 1))
        total += nll.double().sum().item()
        n += len(nll)
    return math.exp(total / n), n


def by_moe_eval(moe_eval, saved, text_file):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "f32.gguf"
        export.export(saved, path, "F32")
        done = subprocess.run([moe_eval, path, "--perplexity", text_file, "--exact", "--kv", "f32", "--window", str(WINDOW)],
                              check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)
    return result["perplexity"], result["tokens"]


def main():
    checkpoint, text, moe_eval = sys.argv[1:]
    saved = torch.load(checkpoint)
    ours, n_ours = by_torch(saved, pathlib.Path(text).read_text())
    theirs, n_theirs = by_moe_eval(moe_eval, saved, text)
    difference = theirs / ours - 1
    print(f"PyTorch {ours:.5f} of {n_ours} tokens, moe-eval {theirs:.5f} of {n_theirs}: {100 * difference:+.4f} %")
    return 0 if n_ours == n_theirs and abs(difference) <= MAX_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
