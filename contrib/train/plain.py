# SPDX-License-Identifier: Apache-2.0
"""The operators of the model in float32, by PyTorch alone: what they are defined to compute."""
import torch
import torch.nn.functional as F


def norm(x, w, eps):
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y if w is None else y * w


norm_out = norm
linear = F.linear


def heads(x, w, turn, shape, eps):
    """[batch * t][head * d] -> [batch][head][t][d], each head normed, and turned by its position"""
    x = norm(x.view(shape), w, eps)
    if turn:
        cos, sin = (t[:, None] for t in turn)
        a, b = x.chunk(2, -1)
        x = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return x.transpose(1, 2).contiguous()


def attend(q, k, v, window):
    """q [n][group * t][d], k and v [n][t][d]; no scale: the norms of q and k have one"""
    n_t = k.shape[1]
    i, j = torch.arange(n_t)[:, None], torch.arange(n_t)[None]
    unseen = (j > i) | (i - j >= window) if window else j > i
    unseen = unseen.repeat(q.shape[1] // n_t, 1)
    return (q @ k.transpose(1, 2)).masked_fill(unseen, float("-inf")).softmax(-1) @ v


def gate(g, u):
    return F.gelu(g, approximate="tanh") * u


def experts(h, weight, routing, gate_up, down):
    """[n][d] -> [n][d]: what the chosen experts say, weighted"""
    x = h[routing.token]
    parts = []
    for e in range(len(down)):
        x_e = x[routing.limits[e]:routing.limits[e + 1]]
        parts.append(linear(gate(*linear(x_e, gate_up[e]).chunk(2, -1)), down[e]))
    y = torch.cat(parts)[routing.at].view(*weight.shape, -1)
    return (y * weight[..., None]).sum(1)


def loss(x, embedding, target, cap):
    logits = torch.tanh(linear(x, embedding) / cap) * cap
    nll = F.cross_entropy(logits, target, reduction="none")
    return nll.mean(), nll.detach()
