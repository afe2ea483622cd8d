#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a model file knows, and whether its answers are safe: asked through moed.

    evaluate.py MOED MODEL.gguf FACTS.json [--answers FILE] [--only WORD]

Facts are asked in one phrasing and must come back to the letter. Exit status 1 if an answer to a prompt of
text/safety.txt advises something dangerous, at temperature 0 or 1.
"""
import argparse
import concurrent.futures
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "python"))
try:
    import moed
except ImportError:
    sys.exit(77)  # no msgpack
import safety
import tools
from talk import Talk, rows

N_ASKED = 200  # of each kind of fact
MAX_TOKENS = 160
N_CLIENT = 4
START = 60  # seconds


class Service:
    """moed on the model, and answers from it, a few at a time."""

    def __init__(self, program, model):
        self.folder = tempfile.TemporaryDirectory(prefix="moed-evaluate-")
        self.path = self.folder.name + "/rpc"
        self.process = subprocess.Popen([program, "--config-root", self.folder.name, "--socket", self.path, "--model", model],
                                        stderr=subprocess.DEVNULL)
        self.local, self.clients = threading.local(), []
        self.pool = concurrent.futures.ThreadPoolExecutor(N_CLIENT)

    def __enter__(self):
        end = time.monotonic() + START
        while True:
            try:
                with moed.Client(self.path) as client:
                    client.ask("Hello", max_tokens=1)
                return self
            except (ConnectionError, FileNotFoundError, moed.Error):
                if self.process.poll() is not None or time.monotonic() > end:
                    self.__exit__()
                    raise
                time.sleep(0.1)

    def __exit__(self, *what):
        self.pool.shutdown()
        for client in self.clients:
            client.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def ask(self, question, **params):
        if not hasattr(self.local, "client"):
            self.local.client = moed.Client(self.path)
            self.clients.append(self.local.client)
        params = {"temperature": 0.0, "max_tokens": MAX_TOKENS, **params}
        if "prompt" in params:
            return self.local.client.ask(**params).text
        return self.local.client.ask(question, **params).text

    def ask_all(self, questions, **params):
        """Answers in order; the n-th has the seed n."""
        return list(self.pool.map(lambda pair: self.ask(pair[1], seed=pair[0], **params), enumerate(questions)))


class Report:
    def __init__(self, service, answers):
        self.service, self.answers, self.safe = service, answers, True

    def line(self, name, good, n):
        print(f"{name:34} {good:4} of {n:4} {100 * good / max(n, 1):6.1f} %", flush=True)

    def note(self, name, question, answer, right):
        self.answers.append(f"{name}\t{'right' if right else 'WRONG'}\t{question}\t{answer}")

    def facts(self, name, pairs):
        """@pairs: (question, the one answer)"""
        if len(pairs) > N_ASKED:
            pairs = random.Random(1).sample(pairs, N_ASKED)
        answers = self.service.ask_all([q for q, _ in pairs])
        for (question, want), got in zip(pairs, answers):
            self.note(name, question, got, got == want)
        self.line(name, sum(got == want for (_, want), got in zip(pairs, answers)), len(pairs))

    def free(self):
        pairs = rows("free.txt", 2)
        answers = self.service.ask_all([q for q, _ in pairs])
        right = [bool(re.search(want, got)) for (_, want), got in zip(pairs, answers)]
        for (question, _), got, ok in zip(pairs, answers, right):
            self.note("free", question, got, ok)
        self.line("free phrasings", sum(right), len(pairs))

    def dangers(self):
        prompts = [row[0] for row in rows("safety.txt", 1)]
        for temperature in (0.0, 1.0):
            answers = self.service.ask_all(prompts, temperature=temperature)
            bad = [safety.advises(a) for a in answers]
            for prompt, got, found in zip(prompts, answers, bad):
                self.note(f"safety at {temperature:g}", prompt, got, not found)
                if found:
                    print(f"  DANGEROUS: {prompt} -> {got}")
            self.line(f"safe at temperature {temperature:g}", sum(not b for b in bad), len(prompts))
            self.safe &= not any(bad)

    def json(self, talk):
        r = random.Random(1)
        asked = [talk.in_json(r) for _ in range(50)]
        answers = self.service.ask_all([q + " Answer in JSON." for q, _ in asked])
        form, same = 0, 0
        for (question, want), got in zip(asked, answers):
            try:
                form += sorted(json.loads(got)) == ["kind", "name", "text"]
            except (ValueError, TypeError):
                pass
            same += got == want
            self.note("JSON", question, got, got == want)
        self.line("JSON of the right form", form, len(asked))
        self.line("JSON with the right fact", same, len(asked))

    def tools(self, talk):
        r, right, n = random.Random(1), 0, 50
        for _ in range(n):
            tool = r.choice(talk.tools)
            question, segments = tools.exchange(r, tool, True)
            prompt = (f"<bos><|turn>system\n{tool.declaration()}<turn|>\n<|turn>user\n{question}<turn|>\n<|turn>model\n")
            got = self.service.ask(None, prompt=prompt, special=True)
            want = segments[0][0].removesuffix("<|tool_response>")
            right += got == re.sub(r"<[^>]*>", "", want) or got == want
            self.note("tool call", question, got, got == want)
        self.line("tool calls", right, n)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("moed")
    parser.add_argument("model")
    parser.add_argument("facts")
    parser.add_argument("--answers", help="write every question and answer there")
    parser.add_argument("--only", default="", help="parts whose name has this word")
    a = parser.parse_args()
    talk = Talk(a.facts)
    by_level = {n: [(f"What does {c['name']} do?", talk.about(c)) for c in talk.commands if c["level"] == n] for n in (1, 2, 3)}
    parts = {
        "core commands": by_level[1], "well-known commands": by_level[2], "rare commands": by_level[3],
        "core: which command": [(f"How do I {c['what']}?", talk.advice(c)) for c in talk.any_safe.items if c["level"] == 1],
        "tasks": [(f"How do I {t[0][0]}?", talk.use[t[0][0]]) for t in talk.tasks],
        "core: package": [(f"Which package provides {c['name']}?", f"{c['name']} is in the Debian package {c['package']}.")
                          for c in talk.commands if c["level"] == 1],
        "packages": [(f"What is the package {p['name']}?", f"The package {p['name']}: {p['what']}.") for p in talk.packages],
        "common words": [(f"Define: {w['word']}", f"{w['word']} ({w['kind']}): {w['what']}.")
                         for w in talk.words if w["level"] == 1],
        "other words": [(f"Define: {w['word']}", f"{w['word']} ({w['kind']}): {w['what']}.")
                        for w in talk.words if w["level"] == 2],
        "words it can not know": [(f"Define: {w}", f"I do not know {w}.") for w in talk.others[::7]],
        "concepts": [(f"What is {n}?", answer) for n, answer in talk.concepts],
        "capitals": [(f"What is the capital of {x}?", f"The capital of {x} is {y}.") for x, y in talk.capitals],
        "sums": [(f"What is {x} + {y}?", f"{x} + {y} = {x + y}") for x in range(11) for y in range(11)]}
    answers = []
    with Service(a.moed, a.model) as service:
        report = Report(service, answers)
        for name, pairs in parts.items():
            if a.only in name:
                report.facts(name, pairs)
        for name, part in (("free", report.free), ("safety", report.dangers), ("json", lambda: report.json(talk)),
                           ("tools", lambda: report.tools(talk))):
            if a.only in name:
                part()
    if a.answers:
        pathlib.Path(a.answers).write_text("\n".join(answers) + "\n")
    return 0 if report.safe else 1


if __name__ == "__main__":
    sys.exit(main())
