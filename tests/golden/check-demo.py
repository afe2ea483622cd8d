#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How far the fast path is from the exact one on a trained model, and whether the model still knows its text.

    check-demo.py MOE_EVAL MODEL.gguf TEXT MAX_PERPLEXITY

TEXT is documents that begin with <bos>; the first DOCUMENTS of them are evaluated.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

DOCUMENTS = 40
MAX_KL = 1e-2  # nats a token
MAX_CHANGE = 2e-3  # of perplexity


def main():
    moe_eval, model, text, max_perplexity = sys.argv[1:]
    if not pathlib.Path(model).exists():
        print(f"no {model}")
        return 77
    documents = pathlib.Path(text).read_text().split("<bos>")[1:DOCUMENTS + 1]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.write("".join("<bos>" + d for d in documents))
        f.flush()
        done = subprocess.run([moe_eval, model, "--perplexity", f.name, "--kl"], check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)
    print(json.dumps(result))
    change = abs(result["perplexity"] / result["perplexity_exact"] - 1)
    ok = (result["documents"] == len(documents) and result["perplexity"] <= float(max_perplexity)
          and 0 <= result["kl_mean"] <= MAX_KL and change <= MAX_CHANGE)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
