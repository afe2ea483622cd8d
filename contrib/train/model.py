# SPDX-License-Identifier: Apache-2.0
"""The model: Gemma 4's mixture of experts, small. One forward pass, over two sets of operators.

plain.py computes in float32 with PyTorch alone and defines what is right; fused.py does it in
bfloat16 with the kernels of kern.c, for training. Parameters have the names and the shapes of the
tensors in a GGUF file (rows first).
"""
import torch
import torch.nn.functional as F

CONFIG = {
    "vocabulary": 4096, "width": 256, "layers": 6, "full": [2, 5],  # the other layers see a window
    "heads": 4, "head": 64, "kv_heads": 2,  # of a layer with a window
    "full_head": 128, "full_kv_heads": 1,  # of a full one, whose values are its keys
    "window": 128, "mlp": 256, "experts": 16, "used": 2, "expert": 256, "context": 1024,
    "eps": 1e-6, "cap": 30.0, "base": 10000.0, "full_base": 1000000.0, "turned": 0.25,
}

PAD = 32  # rows


def new_params(c, seed):
    """Matrices at random; norms so that the residual stream starts small and the logits flat."""
    g = torch.Generator().manual_seed(seed)
    d = c["width"]
    p = {}

    def matrix(name, *shape, std=None):
        p[name] = torch.randn(*shape, generator=g) * (std or shape[-1] ** -0.5)

    def vector(name, n, value=1.0):
        p[name] = torch.full((n,), value)

    matrix("token_embd.weight", c["vocabulary"], d)
    vector("output_norm.weight", d, 0.4)
    for layer in range(c["layers"]):
        b = f"blk.{layer}."
        full = layer in c["full"]
        head, n_kv = head_shape(c, full)
        vector(b + "attn_norm.weight", d)
        matrix(b + "attn_q.weight", c["heads"] * head, d)
        matrix(b + "attn_k.weight", n_kv * head, d)
        if not full:
            matrix(b + "attn_v.weight", n_kv * head, d)
        matrix(b + "attn_output.weight", d, c["heads"] * head)
        vector(b + "attn_q_norm.weight", head, head ** -0.25)
        vector(b + "attn_k_norm.weight", head, head ** -0.25)
        vector(b + "post_attention_norm.weight", d, 0.3)
        vector(b + "layer_output_scale.weight", 1)
        vector(b + "ffn_norm.weight", d)
        matrix(b + "ffn_gate.weight", c["mlp"], d)
        matrix(b + "ffn_up.weight", c["mlp"], d)
        matrix(b + "ffn_down.weight", d, c["mlp"])
        vector(b + "post_ffw_norm.weight", d, 0.3)
        for name in ("post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"):
            vector(b + name + ".weight", d)
        matrix(b + "ffn_gate_inp.weight", c["experts"], d, std=1.0)
        vector(b + "ffn_gate_inp.scale", d)
        matrix(b + "ffn_gate_up_exps.weight", c["experts"], 2 * c["expert"], d)
        matrix(b + "ffn_down_exps.weight", c["experts"], d, c["expert"])
        vector(b + "ffn_down_exps.scale", c["experts"])
    return p


def head_shape(c, full):
    """Values of a head, key/value heads."""
    return (c["full_head"], c["full_kv_heads"]) if full else (c["head"], c["kv_heads"])


def is_matrix(name):
    """Is it one of the big ones, which are quantised, and in bfloat16 while training?"""
    return not ("norm" in name or "scale" in name or "ffn_gate_inp" in name or "embd" in name)


def rope(c, n, full):
    """cos, sin [n][head/2] of the positions; pairs beyond the turned part of a full head stay."""
    head, _ = head_shape(c, full)
    pair = torch.arange(head // 2)
    frequency = (c["full_base"] if full else c["base"]) ** (-2 * pair.double() / head)
    if full:
        frequency[int(head * c["turned"] / 2):] = 0
    angle = (torch.arange(n).double()[:, None] * frequency).float()
    return angle.cos().contiguous(), angle.sin().contiguous()


class Routing:
    """Who computes what: rows sorted by expert, and the way back. An expert's rows are a multiple of PAD, for
    oneDNN makes a program for each shape, which takes longer than the product; those beyond its own are never
    looked at."""

    def __init__(self, chosen, n_expert):
        flat = chosen.reshape(-1)
        count = torch.bincount(flat, minlength=n_expert)
        room = torch.div(count + PAD - 1, PAD, rounding_mode="floor") * PAD
        order = torch.argsort(flat, stable=True)
        shift = (room.cumsum(0) - room) - (count.cumsum(0) - count)
        row = torch.arange(len(flat)) + shift[flat[order]]
        self.at = torch.empty_like(order)  # [token * used] -> row
        self.at[order] = row
        self.limits = [0] + room.cumsum(0).tolist()  # rows of expert e: limits[e] .. limits[e + 1]
        self.token = torch.zeros(self.limits[-1], dtype=torch.int64)  # [row] -> token
        self.token[row] = torch.div(order, chosen.shape[1], rounding_mode="floor")
        self.share = count.float() / len(flat)


class Model:
    def __init__(self, config, params, ops):
        self.c, self.p, self.ops = config, params, ops
        self.ropes = {}

    def hidden(self, ids):
        """ids [batch][t] -> ([batch * t][width], how uneven the experts are used: 1 is even)"""
        n_batch, n_t = ids.shape
        if n_t not in self.ropes:
            self.ropes[n_t] = {full: rope(self.c, n_t, full) for full in (False, True)}
        x = F.embedding(ids.reshape(-1), self.p["token_embd.weight"]) * self.c["width"] ** 0.5
        uneven = 0.0
        for layer in range(self.c["layers"]):
            def w(name, layer=layer):
                return self.p[f"blk.{layer}.{name}"]

            x = x + self.attention(x, w, layer in self.c["full"], n_batch, n_t)
            y, more = self.feed_forward(x, w)
            uneven = uneven + more / self.c["layers"]
            x = (x + y) * w("layer_output_scale.weight")
        return x, uneven

    def attention(self, x, w, full, n_batch, n_t):
        ops, eps, n_head = self.ops, self.c["eps"], self.c["heads"]
        head, n_kv = head_shape(self.c, full)
        turn = self.ropes[n_t][full]
        h = ops.norm(x, w("attn_norm.weight"), eps)
        q = ops.linear(h, w("attn_q.weight"))
        k = ops.linear(h, w("attn_k.weight"))
        v = k if full else ops.linear(h, w("attn_v.weight"))
        q = ops.heads(q, w("attn_q_norm.weight"), turn, (n_batch, n_t, n_head, head), eps)
        k = ops.heads(k, w("attn_k_norm.weight"), turn, (n_batch, n_t, n_kv, head), eps)
        v = ops.heads(v, None, None, (n_batch, n_t, n_kv, head), eps)
        # The heads that share a key/value head are rows of one product.
        q = q.view(n_batch * n_kv, n_head // n_kv * n_t, head)
        k, v = k.view(n_batch * n_kv, n_t, head), v.view(n_batch * n_kv, n_t, head)
        o = ops.attend(q, k, v, 0 if full else self.c["window"])
        o = o.view(n_batch, n_head, n_t, head).transpose(1, 2).reshape(-1, n_head * head)
        return ops.norm_out(ops.linear(o, w("attn_output.weight")), w("post_attention_norm.weight"), eps)

    def feed_forward(self, x, w):
        ops, eps = self.ops, self.c["eps"]
        h = ops.norm(x, w("ffn_norm.weight"), eps)
        h = ops.gate(ops.linear(h, w("ffn_gate.weight")), ops.linear(h, w("ffn_up.weight")))
        shared = ops.norm_out(ops.linear(h, w("ffn_down.weight")), w("post_ffw_norm_1.weight"), eps)

        score = F.linear(ops.norm_out(x, w("ffn_gate_inp.scale"), eps), w("ffn_gate_inp.weight"))
        p = torch.softmax(score * self.c["width"] ** -0.5, -1)
        weight, chosen = torch.topk(p, self.c["used"], -1)
        weight = weight / weight.sum(-1, keepdim=True) * w("ffn_down_exps.scale")[chosen]
        routing = Routing(chosen, self.c["experts"])
        uneven = self.c["experts"] * (routing.share * p.mean(0)).sum()

        h = ops.norm(x, w("pre_ffw_norm_2.weight"), eps)
        y = ops.experts(h, weight.contiguous(), routing, w("ffn_gate_up_exps.weight"),
                        w("ffn_down_exps.weight"))
        own = ops.norm_out(y, w("post_ffw_norm_2.weight"), eps)
        return ops.norm_out(shared + own, w("post_ffw_norm.weight"), eps), uneven

    def loss(self, ids, target, rows):
        """Mean and each of the negative log likelihoods of target [batch * t] at @rows, and the unevenness."""
        x, uneven = self.hidden(ids)
        x = self.ops.norm(x.index_select(0, rows), self.p["output_norm.weight"], self.c["eps"])
        nll = self.ops.loss(x, self.p["token_embd.weight"], target[rows], self.c["cap"])
        return nll + (uneven,)
