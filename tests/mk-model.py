#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a small GGUF model of Gemma 4's shape with random weights, for this tree's own tests.

    mk-model.py SHAPE MIX OUT.gguf [--seed N] [--dense] [--split-experts] [--untied] [--parts N]
             [--context N]

SHAPE  tiny: every row is a multiple of 256 elements, so every format fits
       odd:  rows are multiples of 32 only; odd window, vocabulary and layer count
MIX    a format's name (f32, q4_k, ...): every matrix has it, or its stand-in where rows are no
       multiple of 256; mixed: matrices take all formats in turn

Norms, scales and the router are F32, as in published files. The same arguments write the same
bytes. Weights are drawn as blocks: bytes at random, then the columns that hold scales replaced by
valid ones, so a model takes a second without numpy. With --parts the model is split over files
named OUT-0000i-of-0000N.gguf, from three parts on the first without tensors.
"""
import argparse
import math
import random
import statistics
import string
import struct
import sys

U32, I32, F32, BOOL, STR, ARR, U16 = 4, 5, 6, 7, 8, 9, 2
PACK = {U16: "<H", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}

SHAPES = {
    "tiny": dict(layers=6, d=256, heads=4, kv=(2, 1), hd=(64, 128), ff=256, experts=8, used=2, ff_exp=256,
                 window=16, period=6, context=2048, vocab=1024),
    "odd": dict(layers=7, d=160, heads=6, kv=(3, 2), hd=(32, 64), ff=224, experts=12, used=3, ff_exp=96,
                window=7, period=3, context=1024, vocab=1003),
}

# ---- formats: type number, elements and bytes of a block ----

FORMATS = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136), "MXFP4": (39, 32, 17),
}
# What files carry where rows do not fill blocks of 256.
STAND_IN = {"Q2_K": "Q4_0", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def rms(codes):
    return math.sqrt(sum(c * c for c in codes) / len(codes))


SIX_BIT = rms(range(-32, 32))
# Of a format with one scale a block: where the scale lies, and the size of what multiplies it.
# Its sign is random, so that the mean is 0 though the codes' is not.
SIGNED = {
    "Q4_0": (0, rms(range(-8, 8))), "Q5_0": (0, rms(range(-16, 16))), "Q8_0": (0, rms(range(-127, 128))),
    "IQ4_NL": (0, rms(IQ4)), "Q3_K": (108, rms(range(-4, 4)) * SIX_BIT),
    "Q6_K": (208, rms(range(-32, 32)) * rms(range(48, 80))), "IQ4_XS": (0, rms(IQ4) * SIX_BIT),
}
# Of a format with scale and minimum: where both lie, the number of codes, and the sign of the
# minimum. In the K formats sub-blocks scale both alike, by 3 to 12 or 17 to 48.
AFFINE = {
    "Q4_1": (0, 2, 16, -1, 1), "Q5_1": (0, 2, 32, -1, 1), "Q2_K": (80, 82, 4, 1, rms(range(3, 13))),
    "Q4_K": (0, 2, 16, 1, rms(range(17, 49))), "Q5_K": (0, 2, 32, 1, rms(range(17, 49))),
}


def put_column(raw, at, size, index, values):
    """Byte @at of each block becomes values[index of the block]."""
    raw[at::size] = index.translate(bytes(values))


def put_packed(raw, at, size, index, form, values):
    rows = [struct.pack(form, v) for v in values]
    for j in range(len(rows[0])):
        put_column(raw, at + j, size, index, [row[j] for row in rows])


def sub_scales(rng):
    """12 bytes of Q4_K and Q5_K: eight 6-bit scales, and minima equal to them."""
    s = [rng.randrange(17, 49) for _ in range(8)]
    low = [s[k] | s[k + 4] >> 4 << 6 for k in range(4)]
    return bytes(low + low + [(v & 15) * 0x11 for v in s[4:]])


def blocks(rng, fmt, n, std):
    """@n random blocks whose elements deviate by about @std from 0."""
    _, _, size = FORMATS[fmt]
    raw, index = bytearray(rng.randbytes(n * size)), rng.randbytes(n)
    spread = [0.75 + 0.5 * (i >> 1) / 127 for i in range(256)]

    if fmt in ("F32", "F16", "BF16"):
        normal = statistics.NormalDist(0, std)
        values = [normal.inv_cdf((i + 0.5) / 256) for i in range(256)]
        if fmt == "F16":
            put_packed(raw, 0, 2, index, "<e", values)
        else:  # the upper half of an f32; below it an F32 keeps random bits
            upper = [struct.unpack("<I", struct.pack("<f", v))[0] >> 16 for v in values]
            put_packed(raw, size - 2, size, index, "<H", upper)
    elif fmt == "MXFP4":
        low = math.floor(math.log2(std / rms(E2M1)))  # two powers of two, in the share that gives std
        n_high = 256 * ((std / rms(E2M1) / 2**low) ** 2 - 1) / 3
        put_column(raw, 0, size, index, [128 + low + (i < n_high) for i in range(256)])
    elif fmt in SIGNED:
        at, unit = SIGNED[fmt]
        if fmt == "Q8_0":  # quantisers never write -128
            raw = bytearray(raw.translate(bytes(0x81 if i == 0x80 else i for i in range(256))))
        put_packed(raw, at, size, index, "<e", [std / unit * s * (-1) ** i for i, s in enumerate(spread)])
        for j in range(192, 208) if fmt == "Q6_K" else ():
            put_column(raw, j, size, raw[j::size], [48 + i % 32 for i in range(256)])
    else:
        at, at_min, codes, sign, sub = AFFINE[fmt]
        middle = (codes - 1) / 2
        unit = std / rms([q - middle for q in range(codes)]) / sub
        put_packed(raw, at, size, index, "<e", [unit * s for s in spread])
        put_packed(raw, at_min, size, index, "<e", [sign * middle * unit * s for s in spread])
        for j in range(16) if fmt == "Q2_K" else ():
            put_column(raw, j, size, raw[j::size], [(3 + i % 10) * 0x11 for i in range(256)])
        if fmt in ("Q4_K", "Q5_K"):
            pool, which = [sub_scales(rng) for _ in range(256)], rng.randbytes(n)
            for j in range(12):
                put_column(raw, 4 + j, size, which, [t[j] for t in pool])
    return raw


# ---- files ----

def pack_str(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


class File:
    """One GGUF file: metadata, and tensors as (name, shape, format, bytes)."""

    def __init__(self, align=32):
        self.align, self.n_meta, self.meta, self.tensors = align, 0, bytearray(), []
        self.put("general.alignment", U32, align)

    def value(self, kind, v):
        return pack_str(v) if kind == STR else struct.pack(PACK[kind], v)

    def put(self, key, kind, v):
        self.n_meta += 1
        self.meta += pack_str(key)
        if isinstance(v, list):
            self.meta += struct.pack("<IIQ", ARR, kind, len(v)) + b"".join(self.value(kind, x) for x in v)
        else:
            self.meta += struct.pack("<I", kind) + self.value(kind, v)

    def write(self, path):
        def pad(n):
            return bytes(-n % self.align)
        info, offset = bytearray(), 0
        for name, ne, fmt, data in self.tensors:
            info += pack_str(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, FORMATS[fmt][0], offset)
            offset += len(data) + len(pad(len(data)))
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), self.n_meta) + self.meta + info
        with open(path, "wb") as f:
            f.write(head + pad(len(head)))
            for _, _, _, data in self.tensors:
                f.write(data)
                f.write(pad(len(data)))


# ---- vocabulary ----

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MARKERS = {  # at the ids of the published vocabulary
    0: ("<pad>", CONTROL), 1: ("<eos>", CONTROL), 2: ("<bos>", CONTROL), 3: ("<unk>", UNKNOWN), 4: ("<mask>", CONTROL),
    46: ("<|tool>", CONTROL), 47: ("<tool|>", CONTROL), 48: ("<|tool_call>", USER), 49: ("<tool_call|>", USER),
    50: ("<|tool_response>", USER), 51: ("<tool_response|>", USER), 52: ('<|"|>', USER), 98: ("<|think|>", CONTROL),
    100: ("<|channel>", USER), 101: ("<channel|>", USER), 105: ("<|turn>", CONTROL), 106: ("<turn|>", CONTROL),
    212: ("</s>", NORMAL),
}
FIRST_NEWLINE, FIRST_SPACES, FIRST_BYTE, FIRST_TEXT = 107, 138, 238, 494
SPACE = "\u2581"
WORDS = """the of and to in is that for it with as was on be at by this are from or have an not you but they all
one we can her his has there been if more when will would who so no out up into them then about time like other
some could these two may first any my now such over our even most me after also made many before must through
user model system thought answer question hello world Hello The What How file open read write error name number
service memory kernel token""".split()
TEMPLATE = """{#- turns alone; where tools are used, '<|tool_call>call:' begins a call -#}
{{- bos_token }}{% for m in messages %}{{ '<|turn>' + m.role + '\\n' + m.content | trim + '<turn|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\\n' }}
{%- if not enable_thinking %}{{ '<|channel>thought\\n<channel|>' }}{% endif %}{% endif %}"""


def vocabulary(size):
    """Texts, types and merges: runs of newlines and spaces, bytes, letters, and words joined left to right."""
    texts, types = [f"<unused{i}>" for i in range(size)], [UNUSED] * size

    def set_token(i, text, kind=NORMAL):
        texts[i], types[i] = text, kind
    for i, (text, kind) in MARKERS.items():
        set_token(i, text, kind)
    for n in range(1, 32):
        set_token(FIRST_NEWLINE + n - 1, "\n" * n)
    for n in range(2, 32):
        set_token(FIRST_SPACES + n - 2, SPACE * n)
    for b in range(256):
        set_token(FIRST_BYTE + b, f"<0x{b:02X}>", BYTE)

    merges = [f"{c * n} {c}" for c in (SPACE, "\n") for n in range(1, 31)]
    pieces = dict.fromkeys([SPACE, *string.ascii_letters, *string.digits, *string.punctuation, "\t", *"éüñ日本語"])
    for word in WORDS:
        left = SPACE if word[0].islower() else ""
        for c in word:
            if left and left + c not in pieces and FIRST_TEXT + len(pieces) < size - 8:
                pieces[left + c] = None
                merges.append(f"{left} {c}")
            left += c
            if left not in pieces:
                break
    for i, text in enumerate(pieces):
        set_token(FIRST_TEXT + i, text)
    return texts, types, merges


def put_vocabulary(f, size):
    texts, types, merges = vocabulary(size)
    f.put("tokenizer.ggml.model", STR, "gemma4")
    f.put("tokenizer.ggml.tokens", STR, texts)
    f.put("tokenizer.ggml.scores", F32, [0.0] * size)
    f.put("tokenizer.ggml.token_type", I32, types)
    f.put("tokenizer.ggml.merges", STR, merges)
    for name, i in ("bos", 2), ("eos", 1), ("unknown", 3), ("padding", 0), ("mask", 4), ("eot", 106):
        f.put(f"tokenizer.ggml.{name}_token_id", U32, i)
    f.put("tokenizer.ggml.add_bos_token", BOOL, True)
    f.put("tokenizer.ggml.add_space_prefix", BOOL, False)
    f.put("tokenizer.chat_template", STR, TEMPLATE)


# ---- the model ----

def put_shape(f, name, s, sliding, dense):
    f.put("general.architecture", STR, "gemma4")
    f.put("general.name", STR, f"random-{name}" + ("-dense" if dense else ""))
    f.put("general.quantization_version", U32, 2)
    for key, v in (
            ("block_count", s["layers"]), ("context_length", s["context"]), ("embedding_length", s["d"]),
            ("feed_forward_length", s["ff"]), ("attention.head_count", s["heads"]),
            ("attention.key_length", s["hd"][1]), ("attention.value_length", s["hd"][1]),
            ("attention.key_length_swa", s["hd"][0]), ("attention.value_length_swa", s["hd"][0]),
            ("attention.sliding_window", s["window"]), ("attention.shared_kv_layers", 0),
            ("embedding_length_per_layer_input", 0),
            ("rope.dimension_count", s["hd"][1]), ("rope.dimension_count_swa", s["hd"][0])):
        f.put("gemma4." + key, U32, v)
    if not dense:
        f.put("gemma4.expert_count", U32, s["experts"])
        f.put("gemma4.expert_used_count", U32, s["used"])
        f.put("gemma4.expert_feed_forward_length", U32, s["ff_exp"])
    for key, v in (("rope.freq_base", 1e6), ("rope.freq_base_swa", 1e4),
                   ("attention.layer_norm_rms_epsilon", 1e-6), ("final_logit_softcapping", 30.0)):
        f.put("gemma4." + key, F32, v)
    f.put("gemma4.attention.head_count_kv", I32, [s["kv"][not sw] for sw in sliding])
    f.put("gemma4.attention.sliding_window_pattern", BOOL, sliding)


class Weights:
    """Tensors in file order."""

    def __init__(self, rng, mix):
        self.rng, self.mix, self.tensors, self.n_matrix = rng, mix, [], 0

    def matrix(self, name, ne, std=None, fmt=None):
        if not fmt:
            fmt = self.mix[self.n_matrix % len(self.mix)]
            self.n_matrix += 1
        if ne[0] % FORMATS[fmt][1]:
            fmt = STAND_IN[fmt]
        data = blocks(self.rng, fmt, math.prod(ne) // FORMATS[fmt][1], std or 1 / math.sqrt(ne[0]))
        self.tensors.append((name + ".weight", ne, fmt, data))

    def split_last(self, *names):
        """The last matrix becomes two: of each expert the first and the second half of the rows."""
        _, (d, rows, n), fmt, data = self.tensors.pop()
        half = len(data) // n // 2
        for i, name in enumerate(names):
            part = b"".join(data[(2 * e + i) * half:(2 * e + i + 1) * half] for e in range(n))
            self.tensors.append((name + ".weight", [d, rows // 2, n], fmt, part))

    def values(self, name, values):
        self.tensors.append((name, [len(values)], "F32", struct.pack(f"<{len(values)}f", *values)))

    def vector(self, name, n, low=0.5, high=1.5):
        self.values(name, [self.rng.uniform(low, high) for _ in range(n)])


def put_experts(w, b, s, split):
    d, n, ff = s["d"], s["experts"], s["ff_exp"]
    w.matrix(b + "ffn_gate_inp", [d, n], 2 / math.sqrt(d), "F32")
    w.vector(b + "ffn_gate_inp.scale", d)
    for norm in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
        w.vector(b + norm + ".weight", d)
    w.matrix(b + "ffn_gate_up_exps", [d, 2 * ff, n])
    if split:
        w.split_last(b + "ffn_gate_exps", b + "ffn_up_exps")
    w.matrix(b + "ffn_down_exps", [ff, d, n])
    w.vector(b + "ffn_down_exps.scale", n)


def put_layer(w, i, s, sliding, args):
    b, d = f"blk.{i}.", s["d"]
    hd, kv = s["hd"][not sliding], s["kv"][not sliding]
    for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        w.vector(b + norm + ".weight", d)
    w.vector(b + "attn_q_norm.weight", hd, 0.2, 0.4)
    w.vector(b + "attn_k_norm.weight", hd, 0.2, 0.4)
    w.vector(b + "layer_output_scale.weight", 1, 0.6, 1.0)
    w.matrix(b + "attn_q", [d, hd * s["heads"]])
    w.matrix(b + "attn_k", [d, hd * kv])
    if sliding:  # full layers use K as V
        w.matrix(b + "attn_v", [d, hd * kv])
    w.matrix(b + "attn_output", [hd * s["heads"], d])
    w.matrix(b + "ffn_gate", [d, s["ff"]])
    w.matrix(b + "ffn_up", [d, s["ff"]])
    w.matrix(b + "ffn_down", [s["ff"], d])
    if not args.dense:
        put_experts(w, b, s, args.split_experts)


def build(args):
    s = dict(SHAPES[args.shape])
    s["context"] = args.context or s["context"]
    sliding = [(i + 1) % s["period"] != 0 and i + 1 < s["layers"] for i in range(s["layers"])]
    mix = list(FORMATS) if args.mix == "mixed" else [args.mix.upper()]
    f, w = File(), Weights(random.Random(args.seed), mix)

    put_shape(f, args.shape, s, sliding, args.dense)
    put_vocabulary(f, s["vocab"])
    half = s["hd"][1] // 2
    w.matrix("token_embd", [s["d"], s["vocab"]])
    w.values("rope_freqs.weight", [1.0] * (half // 4) + [1e30] * (half - half // 4))
    w.vector("output_norm.weight", s["d"])
    if args.untied:
        w.matrix("output", [s["d"], s["vocab"]])
    for i, sw in enumerate(sliding):
        put_layer(w, i, s, sw, args)
    return f, w.tensors


def write_parts(f, tensors, args):
    n, prefix = args.parts, args.out.removesuffix(".gguf")
    files = [f] + [File(align=64) for _ in range(n - 1)]
    loaded = files[1:] if n > 2 else files
    for i, t in enumerate(tensors):
        loaded[i * len(loaded) // len(tensors)].tensors.append(t)
    for i, part in enumerate(files):
        part.put("split.no", U16, i)
        part.put("split.count", U16, n)
        part.put("split.tensors.count", I32, len(tensors))
        part.write(f"{prefix}-{i + 1:05d}-of-{n:05d}.gguf")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("shape", choices=SHAPES)
    ap.add_argument("mix", choices=[name.lower() for name in FORMATS] + ["mixed"])
    ap.add_argument("out")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--dense", action="store_true", help="no experts")
    ap.add_argument("--split-experts", action="store_true", help="the same weights as ffn_gate_exps and ffn_up_exps")
    ap.add_argument("--untied", action="store_true", help="an output matrix of its own")
    ap.add_argument("--parts", type=int, default=1)
    ap.add_argument("--context", type=int, help="trained context, in place of the shape's")
    args = ap.parse_args()

    f, tensors = build(args)
    if args.parts > 1:
        write_parts(f, tensors, args)
    else:
        f.tensors = tensors
        f.write(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
