#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the golden files beside this script: what small random models compute, by a reference of
its own in numpy and float64. Needs numpy; the tests that read the files do not.

    make-golden.py [NAME ...]        default: all of CASES

A golden file names the arguments that make its model (tests/mk-model.py writes the same bytes for
the same arguments), the tokens fed, the most likely token after each of them, the largest logits
after some, and the greedy continuation.
"""
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
CASES = {  # name: arguments of mk-model.py, tokens fed
    "tiny-f32": (["tiny", "f32"], 48),
    "tiny-mixed": (["tiny", "mixed", "--seed", "2"], 48),
    "tiny-k": (["tiny", "q4_k", "--seed", "3", "--split-experts"], 32),
    "odd-mixed": (["odd", "mixed", "--seed", "4"], 40),
    "odd-dense": (["odd", "q8_0", "--seed", "5", "--dense"], 40),
    "odd-untied": (["odd", "bf16", "--seed", "6", "--untied"], 40),
}
N_GREEDY, N_TOP = 16, 5


# ---- the file ----

SCALAR = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        (v,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return v

    def text(self):
        n = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, n = self.take("I"), self.take("Q")
            return [self.value(kind) for _ in range(n)]
        return self.take(SCALAR[kind])


def load(path):
    """Metadata, and tensors as float64 arrays with the outermost dimension first."""
    r = Reader(pathlib.Path(path).read_bytes())
    r.at = 8
    n_tensor, n_meta = r.take("Q"), r.take("Q")
    meta = {}
    for _ in range(n_meta):
        key = r.text()
        meta[key] = r.value(r.take("I"))
    places = []
    for _ in range(n_tensor):
        name = r.text()
        shape = [r.take("Q") for _ in range(r.take("I"))][::-1]
        places.append((name, shape, r.take("I"), r.take("Q")))
    align = meta.get("general.alignment", 32)
    start = -(-r.at // align) * align
    tensors = {}
    for name, shape, kind, offset in places:
        n_elem, n_byte, decode = DECODERS[kind]
        count = int(np.prod(shape)) // n_elem
        raw = np.frombuffer(r.data, np.uint8, count * n_byte, start + offset).reshape(count, n_byte)
        tensors[name] = decode(raw).reshape(shape)
    return meta, tensors


# ---- block formats: rows of bytes to rows of elements ----

def f16(raw, at):
    """The half float at byte @at of each block, as a column."""
    return np.ascontiguousarray(raw[:, at:at + 2]).view(np.float16).astype(float)


def bits(raw, at, shift, mask):
    """Of each block, element i is (byte at[i] >> shift[i]) & mask."""
    return (raw[:, at].astype(int) >> shift) & mask


E32, E256 = np.arange(32), np.arange(256)
NIBBLE_AT, NIBBLE_SHIFT = E32 % 16, E32 // 16 * 4


def nibbles(raw, at):
    return bits(raw, at + NIBBLE_AT, NIBBLE_SHIFT, 15)


def fives(raw, at):
    """Five bits: nibbles after four bytes that hold the fifth bits."""
    return nibbles(raw, at + 4) + 16 * bits(raw, at + E32 // 8, E32 % 8, 1)


def q2_k(raw):
    part = E256 // 16
    code = bits(raw, 16 + E256 // 128 * 32 + E256 % 32, E256 % 128 // 32 * 2, 3)
    return f16(raw, 80) * bits(raw, part, 0, 15) * code - f16(raw, 82) * bits(raw, part, 4, 15)


def q3_k(raw):
    part = E256 // 16
    code = bits(raw, 32 + E256 // 128 * 32 + E256 % 32, E256 % 128 // 32 * 2, 3) + 4 * bits(raw, E256 % 32, E256 // 32, 1)
    scale = bits(raw, 96 + part % 8, part // 8 * 4, 15) + 16 * bits(raw, 104 + part % 4, part // 4 * 2, 3)
    return f16(raw, 108) * (scale - 32) * (code - 4)


def six_bit_pairs(raw):
    """Scale and minimum of the 8 parts of Q4_K and Q5_K, for each element."""
    low = np.arange(4)
    first = [bits(raw, 4 + low + k, 0, 63) for k in (0, 4)]
    second = [bits(raw, 12 + low, k, 15) + 16 * bits(raw, 4 + low + k, 6, 3) for k in (0, 4)]
    return [np.repeat(np.hstack(pair), 32, axis=1) for pair in zip(first, second)]


def k45(raw, codes):
    scale, minimum = six_bit_pairs(raw)
    return f16(raw, 0) * scale * codes - f16(raw, 2) * minimum


K4_AT, K4_SHIFT = E256 // 64 * 32 + E256 % 32, E256 % 64 // 32 * 4


def q4_k(raw):
    return k45(raw, bits(raw, 16 + K4_AT, K4_SHIFT, 15))


def q5_k(raw):
    return k45(raw, bits(raw, 48 + K4_AT, K4_SHIFT, 15) + 16 * bits(raw, 16 + E256 % 32, E256 // 32, 1))


def q6_k(raw):
    half, e = E256 // 128, E256 % 128
    low = bits(raw, half * 64 + e % 64, e // 64 * 4, 15)
    high = bits(raw, 128 + half * 32 + e % 32, e // 32 * 2, 3)
    scale = raw[:, 192 + E256 // 16].astype(np.int8)
    return f16(raw, 208) * scale * (low + 16 * high - 32)


CURVE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def iq4_xs(raw):
    part = E256 // 32
    scale = bits(raw, 4 + part // 2, part % 2 * 4, 15) + 16 * bits(raw, 2 + part // 4, part % 4 * 2, 3)
    return f16(raw, 0) * (scale - 32) * CURVE[bits(raw, 8 + part * 16 + E256 % 16, E256 % 32 // 16 * 4, 15)]


def mxfp4(raw):
    code = nibbles(raw, 1)
    return 2.0 ** (raw[:, :1].astype(float) - 127) * np.where(code < 8, 1, -1) * FP4[code % 8]


def bf16(raw):
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(float)


DECODERS = {  # type number: elements and bytes of a block, decoder
    0: (1, 4, lambda raw: raw.view(np.float32).astype(float)),
    1: (1, 2, lambda raw: raw.view(np.float16).astype(float)),
    30: (1, 2, bf16),
    2: (32, 18, lambda raw: f16(raw, 0) * (nibbles(raw, 2) - 8)),
    3: (32, 20, lambda raw: f16(raw, 0) * nibbles(raw, 4) + f16(raw, 2)),
    6: (32, 22, lambda raw: f16(raw, 0) * (fives(raw, 2) - 16)),
    7: (32, 24, lambda raw: f16(raw, 0) * fives(raw, 4) + f16(raw, 2)),
    8: (32, 34, lambda raw: f16(raw, 0) * raw[:, 2:].astype(np.int8)),
    20: (32, 18, lambda raw: f16(raw, 0) * CURVE[nibbles(raw, 2)]),
    10: (256, 84, q2_k), 11: (256, 110, q3_k), 12: (256, 144, q4_k), 13: (256, 176, q5_k), 14: (256, 210, q6_k),
    23: (256, 136, iq4_xs), 39: (32, 17, mxfp4),
}


# ---- the model, all tokens at once, no cache ----

def norm(x, eps, weight=1.0):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def gated(gate, up):
    return gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2 * up


def softmax(x):
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def turn(x, angle):
    """Rotary positions. x [token][head][dim]; the halves of a head are pairs. angle [token][dim / 2]"""
    a, b = np.split(x, 2, axis=-1)
    c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


class Model:
    def __init__(self, path):
        meta, self.tensors = load(path)
        self.conf = {k.removeprefix("gemma4."): v for k, v in meta.items()}

    def logits(self, ids):
        x = self.tensors["token_embd.weight"][ids]
        x = x * np.sqrt(x.shape[-1])
        for i in range(self.conf["block_count"]):
            x = self.layer(i, x)
        eps, cap = self.conf["attention.layer_norm_rms_epsilon"], self.conf["final_logit_softcapping"]
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return cap * np.tanh(norm(x, eps, self.tensors["output_norm.weight"]) @ head.T / cap)

    def layer(self, i, x):
        def w(name, other=None):
            return self.tensors.get(f"blk.{i}.{name}", other)
        eps = self.conf["attention.layer_norm_rms_epsilon"]
        mixed = self.attention(i, norm(x, eps, w("attn_norm.weight")), w)
        x = x + norm(mixed @ w("attn_output.weight").T, eps, w("post_attention_norm.weight"))

        n = norm(x, eps, w("ffn_norm.weight"))
        y = gated(n @ w("ffn_gate.weight").T, n @ w("ffn_up.weight").T) @ w("ffn_down.weight").T
        if w("ffn_gate_inp.weight") is not None:
            y = norm(y, eps, w("post_ffw_norm_1.weight")) + norm(self.experts(x, w), eps, w("post_ffw_norm_2.weight"))
        x = x + norm(y, eps, w("post_ffw_norm.weight"))
        return x * w("layer_output_scale.weight", 1.0)

    def attention(self, i, n, w):
        conf, eps = self.conf, self.conf["attention.layer_norm_rms_epsilon"]
        sliding = conf["attention.sliding_window_pattern"][i]
        suffix = "_swa" if sliding else ""
        dim, n_kv = conf["attention.key_length" + suffix], conf["attention.head_count_kv"][i]
        heads, position = conf["attention.head_count"], np.arange(len(n))

        angle = position[:, None] * conf["rope.freq_base" + suffix] ** (-np.arange(0, dim, 2) / dim)
        if not sliding:
            angle = angle / self.tensors["rope_freqs.weight"]
        q = (n @ w("attn_q.weight").T).reshape(len(n), heads, dim)
        k = (n @ w("attn_k.weight").T).reshape(len(n), n_kv, dim)
        v = k if w("attn_v.weight") is None else (n @ w("attn_v.weight").T).reshape(k.shape)
        q = turn(norm(q, eps, w("attn_q_norm.weight")), angle)
        k = turn(norm(k, eps, w("attn_k_norm.weight")), angle)
        v = norm(v, eps)

        back = position[:, None] - position
        seen = (back >= 0) & (back < (conf["attention.sliding_window"] if sliding else len(n)))
        k, v = (np.repeat(t, heads // n_kv, axis=1) for t in (k, v))
        p = softmax(np.where(seen, np.einsum("thd,shd->hts", q, k), -np.inf))
        return np.einsum("hts,shd->thd", p, v).reshape(len(n), -1)

    def experts(self, x, w):
        eps, used = self.conf["attention.layer_norm_rms_epsilon"], self.conf["expert_used_count"]
        route = softmax(norm(x, eps, w("ffn_gate_inp.scale")) / np.sqrt(x.shape[-1]) @ w("ffn_gate_inp.weight").T)
        fused = w("ffn_gate_up_exps.weight")
        if fused is None:
            fused = np.concatenate([w("ffn_gate_exps.weight"), w("ffn_up_exps.weight")], axis=1)
        gate, up = np.split(fused, 2, axis=1)
        n, total = norm(x, eps, w("pre_ffw_norm_2.weight")), np.zeros_like(x)
        for t, p in enumerate(route):
            best = sorted(range(len(p)), key=lambda e: -p[e])[:used]
            for e in best:
                y = w("ffn_down_exps.weight")[e] @ gated(gate[e] @ n[t], up[e] @ n[t])
                total[t] += p[e] / sum(p[best]) * w("ffn_down_exps.scale")[e] * y
        return total


# ---- golden files ----

def golden(name):
    args, n = CASES[name]
    with tempfile.TemporaryDirectory() as tmp:
        path = f"{tmp}/model.gguf"
        mk_model = HERE.parent / "mk-model.py"
        subprocess.run([sys.executable, mk_model, *args[:2], path, *args[2:]], check=True)
        model = Model(path)
    draw = random.Random(name)
    ids = [2] + [draw.randrange(len(model.tensors["token_embd.weight"])) for _ in range(n - 1)]
    logits = model.logits(ids)
    top = {}
    for t in sorted({0, 1, n // 3, n // 2, n - 2, n - 1}):
        best = np.argsort(-logits[t], kind="stable")[:N_TOP]
        top[t] = [[int(i), round(float(logits[t][i]), 6)] for i in best]
    seq = list(ids)
    for _ in range(N_GREEDY):
        seq.append(int(np.argmax(model.logits(seq)[-1])))
    return {"model": args, "ids": ids, "argmax": [int(row.argmax()) for row in logits], "top": top, "greedy": seq[n:]}


def main():
    for name in sys.argv[1:] or CASES:
        (HERE / f"{name}.json").write_text(json.dumps(golden(name)).replace(', "', ',\n"') + "\n")


if __name__ == "__main__":
    main()
