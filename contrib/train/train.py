#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Train the demo model, or go on with it.

    train.py DIRECTORY FACTS.json [--tokens N] [--steps N] [--rate X] ...

DIRECTORY keeps the tokenizer, the log and checkpoint.pt, from which the next call goes on. The learning
rate falls with the tokens seen, not with the time, so that a pause does no harm; SIGTERM saves and ends.
"""
import argparse
import json
import os
import pathlib
import random
import signal
import sys
import time

# Big buffers stay in the heap, for page faults cost a tenth. PyTorch takes the widest vectors only when told.
SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000",
            "MALLOC_TOP_PAD_": "268435456"}
if " avx512bw " in pathlib.Path("/proc/cpuinfo").read_text():
    SETTINGS["ATEN_CPU_CAPABILITY"] = "avx512"
if __name__ == "__main__" and not SETTINGS.items() <= os.environ.items():
    os.execve(sys.executable, [sys.executable] + sys.argv, {**os.environ, **SETTINGS})

import torch

import bpe
import fused
import model
from model import PAD
from talk import Talk

LEARNED_OF_QUESTIONS = 0.2
BALANCE = 0.01  # weight of uneven use of the experts in the loss
WARM = 150_000  # tokens until the learning rate is full
N_SAID = 20000  # conversations that the tokenizer is made from
HELD_OUT = 16  # rows of the fixed sample that the log reports on


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("facts", type=pathlib.Path)
    parser.add_argument("--tokens", type=float, default=36e6, help="in all, when the learning rate is zero")
    parser.add_argument("--steps", type=int, help="end after so many, whatever the tokens")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=float, default=600, help="seconds between checkpoints")
    parser.add_argument("--config", type=json.loads, default={}, help="changes to model.CONFIG")
    return parser.parse_args()


def make_tokenizer(talk, size):
    """From what is said, and from every fact once more: each is to be written in few tokens."""
    r = random.Random(1)
    said = ["".join(bpe.MARKER.sub("\n", text) for text, _ in talk.conversation(r)) for _ in range(N_SAID)]
    facts = [f" {c['name']} {c['what']}" for c in talk.commands] * 3
    facts += [f" {w['word']} {w['what']}" for w in talk.words] * 2 + [f" {p['name']} {p['what']}" for p in talk.packages]
    return bpe.train(bpe.count_parts(said + facts), size)


class Rows:
    """Batches of conversations. A row begins with one, and the last one in it may be cut off."""

    def __init__(self, talk, tokenizer, seed):
        self.talk, self.tokenizer, self.random = talk, tokenizer, random.Random(seed)

    def row(self, length):
        ids, learned = [], []
        while len(ids) <= length:
            for text, mine in self.talk.conversation(self.random):
                new = self.tokenizer.encode(text)
                ids += new
                if mine is False:
                    learned += [self.random.random() < LEARNED_OF_QUESTIONS for _ in new]
                else:
                    learned += [bool(mine)] * len(new)
        return ids[:length + 1], learned[1:length + 1]

    def batch(self, n, length):
        """ids [n][length], what follows each [n * length], and which of those are learned"""
        both = [self.row(length) for _ in range(n)]
        ids = torch.tensor([ids for ids, _ in both])
        learned = torch.tensor([learned for _, learned in both]).view(-1).nonzero()[:, 0]
        learned = learned[torch.randperm(len(learned))[:len(learned) // PAD * PAD]]
        return ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1), learned


class Training:
    def __init__(self, a):
        self.a = a
        a.directory.mkdir(parents=True, exist_ok=True)
        fused.build(a.directory)
        self.talk = Talk(a.facts)
        self.path = a.directory / "checkpoint.pt"
        saved = torch.load(self.path) if self.path.exists() else None
        if saved:
            self.config, params, vocabulary = saved["config"], saved["params"], saved["tokenizer"]
            self.tokenizer = bpe.Tokenizer(*vocabulary)
        else:
            self.config = {**model.CONFIG, **a.config}
            params = model.new_params(self.config, a.seed)
            self.tokenizer = make_tokenizer(self.talk, self.config["vocabulary"])
        self.steps, self.tokens = (saved["steps"], saved["tokens"]) if saved else (0, 0)
        self.optimizer = fused.AdamW(params)
        if saved:
            self.optimizer.restore(saved["optimizer"])
        self.model = model.Model(self.config, self.optimizer.low, fused)
        self.rows = Rows(self.talk, self.tokenizer, f"{a.seed} {self.steps}")
        self.test = Rows(self.talk, self.tokenizer, "held out").batch(HELD_OUT, a.length)
        self.log = open(a.directory / "log", "a", buffering=1)

    def say(self, text):
        line = time.strftime("%H:%M:%S ") + text
        print(line, flush=True)
        self.log.write(line + "\n")

    def save(self):
        """A new file that takes the old one's place whole."""
        new = self.path.with_suffix(".new")
        t = self.tokenizer
        torch.save({"config": self.config, "params": {n: p.detach() for n, p in self.optimizer.params.items()},
                    "optimizer": self.optimizer.state(), "tokenizer": (t.tokens, t.types, t.merges),
                    "steps": self.steps, "tokens": self.tokens}, new)
        os.replace(new, self.path)

    def held_out(self):
        """Loss on rows that are drawn but never learned; the facts in them are."""
        with torch.no_grad():
            ids, target, rows = self.test
            nll = self.model.loss(ids, target, rows)[1]
        return nll.mean().item()

    def rate(self):
        return self.a.rate * min(1.0, self.tokens / WARM + 0.01) * max(0.0, 1 - self.tokens / self.a.tokens)

    def step(self):
        ids, target, rows = self.rows.batch(self.a.batch, self.a.length)
        loss, _, uneven = self.model.loss(ids, target, rows)
        (loss + BALANCE * uneven).backward()
        size = self.optimizer.step(self.rate())
        self.steps += 1
        self.tokens += ids.numel()
        return loss.item(), uneven.item(), size

    def run(self):
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        n = sum(p.numel() for p in self.optimizer.params.values())
        self.say(f"{n / 1e6:.2f} M parameters, {self.tokens / 1e6:.2f} M tokens seen, {self.a.tokens / 1e6:.1f} M planned")
        mean, saved, began, cpu, seen = None, time.time(), time.time(), time.process_time(), self.tokens
        while not stop and self.tokens < self.a.tokens and (self.a.steps is None or self.steps < self.a.steps):
            loss, uneven, size = self.step()
            mean = loss if mean is None else 0.97 * mean + 0.03 * loss
            if self.steps % 50 == 0:
                wall, used = time.time() - began, time.process_time() - cpu
                self.say(f"step {self.steps} tokens {self.tokens / 1e6:.3f} M loss {mean:.4f} uneven {uneven:.3f} "
                         f"gradient {size:.2f} rate {self.rate():.2e} {(self.tokens - seen) / used:.0f} tokens per CPU "
                         f"second, {100 * used / wall:.0f}% of a CPU")
                began, cpu, seen = time.time(), time.process_time(), self.tokens
            if time.time() - saved > self.a.save:
                self.save()
                saved = time.time()
                self.say(f"saved; held out {self.held_out():.4f}")
        self.save()
        self.say(f"saved at step {self.steps}; held out {self.held_out():.4f}")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    Training(arguments()).run()


if __name__ == "__main__":
    main()
