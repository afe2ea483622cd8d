#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make a golden file's model, evaluate its tokens with moe-eval, and compare.

    check-golden.py MOE_EVAL MK_MODEL GOLDEN.json

In float (--exact --kv f32) every logit recorded must agree to TOLERANCE and every choice be the
same, tokens fed at once or one by one. The fast path must keep the distribution: its largest
logits stay near the recorded ones on dense models, where no router can choose otherwise.
"""
import array
import json
import pathlib
import subprocess
import sys
import tempfile

TOLERANCE = 5e-5
FAST_TOLERANCE = 0.25
failed = False


def expect(what, got, want):
    global failed
    if got != want:
        failed = True
        print(f"{what}: got {got}\n{' ' * len(what)} want {want}")


def near(what, logits, golden, tolerance):
    n_vocab = len(logits) // len(golden["ids"])
    worst = 0.0
    for t, best in golden["top"].items():
        for i, want in best:
            worst = max(worst, abs(logits[int(t) * n_vocab + i] - want))
    print(f"{what}: logits within {worst:.2g} of the golden ones")
    if not worst <= tolerance:
        expect(what, worst, f"<= {tolerance}")


def main():
    moe_eval, mk_model, path = sys.argv[1:]
    golden = json.loads(pathlib.Path(path).read_text())
    with tempfile.TemporaryDirectory() as tmp:
        model, out = f"{tmp}/model.gguf", f"{tmp}/logits"
        shape, mix, *options = golden["model"]
        subprocess.run([sys.executable, mk_model, shape, mix, model, *options], check=True)

        def run(*options):
            ids = ",".join(map(str, golden["ids"]))
            done = subprocess.run([moe_eval, model, "--ids", ids, "--logits", out, "--greedy", str(len(golden["greedy"])),
                                   *options], check=True, stdout=subprocess.PIPE)
            logits = array.array("f", pathlib.Path(out).read_bytes())
            return json.loads(done.stdout), logits

        for options in ([], ["--batch", "1"], ["--batch", "7"]):
            what = " ".join(["exact", *options])
            result, logits = run("--exact", "--kv", "f32", *options)
            near(what, logits, golden, TOLERANCE)
            expect(what + ": argmax", result["argmax"], golden["argmax"])
            expect(what + ": greedy", result["greedy"], golden["greedy"])
        if "--dense" in golden["model"]:
            near("fast", run()[1], golden, FAST_TOLERANCE)
    return failed


if __name__ == "__main__":
    sys.exit(main())
