#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint as a GGUF file.

    export.py CHECKPOINT OUT.gguf [--type F32|F16|Q8_0|Q4_0]      Q8_0 if none is named

The container is written here, after the GGUF specification; no library is needed. Vectors and the router
stay F32, as in other files of this architecture.
"""
import argparse
import struct

import numpy as np
import torch

import bpe
from model import is_matrix

ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
PACK = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}
TENSOR_TYPE = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8}
FILE_TYPE = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7}
NAME = "moed demo"
ABOUT = "A very small mixture of experts, trained from scratch to know Linux commands. A toy."
# What other programs need to render a conversation; moed renders it natively.
TEMPLATE = (
    "{{ bos_token }}{%- set m = messages -%}{%- if m and m[0]['role'] in ['system', 'developer'] -%}"
    "{{ '<|turn>system\\n' + m[0]['content'] | trim + '<turn|>\\n' }}{%- set m = m[1:] -%}{%- endif -%}"
    "{%- for x in m -%}{{ '<|turn>' + ('model' if x['role'] == 'assistant' else x['role']) + '\\n' + "
    "x['content'] | trim + '<turn|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|turn>model\\n' }}{%- endif -%}")


def string(s):
    data = s.encode()
    return struct.pack("<Q", len(data)) + data


def scalar(kind, v):
    return string(v) if kind == STRING else struct.pack(PACK[kind], v)


def padded(data):
    return data + b"\0" * (-len(data) % ALIGNMENT)


class Writer:
    def __init__(self):
        self.keys, self.tensors = [], []

    def add(self, key, kind, v):
        self.keys.append(string(key) + struct.pack("<I", kind) + scalar(kind, v))

    def add_array(self, key, kind, values):
        self.keys.append(string(key) + struct.pack("<IIQ", ARRAY, kind, len(values))
                         + b"".join(scalar(kind, v) for v in values))

    def tensor(self, name, values, kind):
        self.tensors.append((name, values.shape, kind, quantized(values, kind)))

    def write(self, path):
        infos, offset = [], 0
        for name, shape, kind, data in self.tensors:
            infos.append(string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape),
                                                    TENSOR_TYPE[kind], offset))
            offset += len(padded(data))
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        with open(path, "wb") as f:
            f.write(padded(head + b"".join(self.keys) + b"".join(infos)))
            for *_, data in self.tensors:
                f.write(padded(data))


def quantized(values, kind):
    """The bytes of a tensor; blocks are 32 values of a row."""
    values = np.ascontiguousarray(values, np.float32)
    if kind == "F32":
        return values.tobytes()
    if kind == "F16":
        return values.astype(np.float16).tobytes()
    blocks = values.reshape(-1, 32)
    if kind == "Q8_0":
        scale = np.abs(blocks).max(1) / 127
        q = np.rint(blocks * inverse(scale)[:, None]).astype(np.int8).view(np.uint8)
    else:  # Q4_0: the value farthest from zero is -8
        scale = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(1)] / -8
        q = np.clip((blocks * inverse(scale)[:, None] + 8.5).astype(np.int32), 0, 15).astype(np.uint8)
        q = q[:, :16] | q[:, 16:] << 4
    return np.hstack([scale.astype(np.float16)[:, None].view(np.uint8), q]).tobytes()


def inverse(x):
    return np.divide(1, x, out=np.zeros_like(x), where=x != 0)


def describe(w, c, n_params, kind):
    """The keys of the architecture."""
    full = [layer in c["full"] for layer in range(c["layers"])]
    w.add("general.architecture", STRING, "gemma4")
    w.add("general.name", STRING, NAME)
    w.add("general.description", STRING, ABOUT)
    w.add("general.license", STRING, "apache-2.0")
    w.add("general.size_label", STRING, f"{n_params / 1e6:.1f}M")
    w.add("general.file_type", UINT32, FILE_TYPE[kind])
    w.add("general.quantization_version", UINT32, 2)
    for key, v in {
            "context_length": c["context"], "embedding_length": c["width"], "block_count": c["layers"],
            "feed_forward_length": c["mlp"], "expert_feed_forward_length": c["expert"], "expert_count": c["experts"],
            "expert_used_count": c["used"], "attention.head_count": c["heads"],
            "attention.key_length": c["full_head"], "attention.value_length": c["full_head"],
            "attention.key_length_swa": c["head"], "attention.value_length_swa": c["head"],
            "attention.sliding_window": c["window"], "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0, "rope.dimension_count": c["full_head"],
            "rope.dimension_count_swa": c["head"]}.items():
        w.add("gemma4." + key, UINT32, v)
    for key, v in {"attention.layer_norm_rms_epsilon": c["eps"], "rope.freq_base": c["full_base"],
                   "rope.freq_base_swa": c["base"], "final_logit_softcapping": c["cap"]}.items():
        w.add("gemma4." + key, FLOAT32, v)
    w.add_array("gemma4.attention.head_count_kv", INT32, [c["full_kv_heads"] if f else c["kv_heads"] for f in full])
    w.add_array("gemma4.attention.sliding_window_pattern", BOOL, [not f for f in full])


def vocabulary(w, tokenizer):
    w.add("tokenizer.ggml.model", STRING, "gemma4")
    w.add_array("tokenizer.ggml.tokens", STRING, tokenizer.tokens)
    w.add_array("tokenizer.ggml.scores", FLOAT32, [0.0] * len(tokenizer.tokens))
    w.add_array("tokenizer.ggml.token_type", INT32, tokenizer.types)
    w.add_array("tokenizer.ggml.merges", STRING, [" ".join(m) for m in tokenizer.merges])
    for name, marker in {"bos": "<bos>", "eos": "<eos>", "unknown": "<unk>", "padding": "<pad>", "mask": "<mask>",
                         "eot": "<turn|>"}.items():
        w.add(f"tokenizer.ggml.{name}_token_id", UINT32, tokenizer.id[marker])
    w.add("tokenizer.ggml.add_bos_token", BOOL, True)
    w.add("tokenizer.ggml.add_space_prefix", BOOL, False)
    w.add("tokenizer.chat_template", STRING, TEMPLATE)


def export(saved, path, kind):
    c, params = saved["config"], saved["params"]
    w = Writer()
    describe(w, c, sum(p.numel() for p in params.values()), kind)
    vocabulary(w, bpe.Tokenizer(*saved["tokenizer"]))
    n_pair, n_turned = c["full_head"] // 2, int(c["full_head"] * c["turned"] / 2)
    w.tensor("rope_freqs.weight", np.array([1.0] * n_turned + [1e30] * (n_pair - n_turned)), "F32")
    for name, p in params.items():
        w.tensor(name, p.detach().numpy(), kind if is_matrix(name) or name == "token_embd.weight" else "F32")
    w.write(path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--type", choices=TENSOR_TYPE, default="Q8_0")
    a = parser.parse_args()
    export(torch.load(a.checkpoint), a.out, a.type)


if __name__ == "__main__":
    main()
