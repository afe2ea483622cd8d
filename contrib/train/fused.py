# SPDX-License-Identifier: Apache-2.0
"""The operators of the model for training: bfloat16 products, and the kernels of kern.c between them."""
import ctypes
import pathlib
import subprocess

import torch
import torch.nn.functional as F
from torch.autograd import Function

from model import is_matrix

BF16 = torch.bfloat16
P, B, N, R = ctypes.c_void_p, ctypes.c_bool, ctypes.c_size_t, ctypes.c_float
SIGNATURES = {
    "norm_forward": [P, B, P, P, B, P, N, N, R],
    "norm_backward": [P, B, P, B, P, P, P, P, N, N],
    "heads_forward": [P, P, P, P, P, P, N, N, N, N, R],
    "heads_backward": [P, P, P, P, P, P, P, P, N, N, N, N],
    "softmax_forward": [P, N, N, N],
    "softmax_backward": [P, P, N, N, N],
    "gate_forward": [P, P, N, P, N, N],
    "gate_backward": [P, P, P, N, P, P, N, N],
    "scatter_forward": [P, P, P, P, N, N, N],
    "scatter_backward": [P, P, P, P, P, P, N, N, N],
    "loss": [P, P, P, N, N, R, R],
    "sum_of_squares": [P, B, N],
    "adamw": [P, P, P, P, B, P, P, N],
}


def build(directory):
    """Compile kern.c into @directory, for this machine, and take its functions."""
    source = pathlib.Path(__file__).with_name("kern.c")
    library = pathlib.Path(directory) / "kern.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O3", "-march=native", "-ffast-math", "-fopenmp-simd", "-shared", "-fPIC",
                        "-o", library, source, "-lm"], check=True)
    kern = ctypes.CDLL(str(library.resolve()))
    for name, arguments in SIGNATURES.items():
        function = getattr(kern, name)
        function.argtypes = arguments
        function.restype = ctypes.c_double if name == "sum_of_squares" else None
        globals()["k_" + name] = function


def at(tensor, offset=0):
    """Address of a tensor's element, for a kernel; the tensor must outlive the call."""
    return None if tensor is None else tensor.data_ptr() + offset * tensor.element_size()


class Norm(Function):
    @staticmethod
    def forward(ctx, x, w, eps, out):
        n, d = x.shape
        y, inv = torch.empty(n, d, dtype=out), torch.empty(n)
        k_norm_forward(at(x), x.dtype == BF16, at(w), at(y), out == BF16, at(inv), n, d, eps)
        ctx.save_for_backward(x, w, inv)
        return y

    @staticmethod
    def backward(ctx, g):
        x, w, inv = ctx.saved_tensors
        g = g.contiguous()
        gx, gw = torch.empty_like(x), torch.zeros_like(w)
        k_norm_backward(at(g), g.dtype == BF16, at(x), x.dtype == BF16, at(inv), at(w), at(gx), at(gw), *x.shape)
        return gx, gw, None, None


def norm(x, w, eps):
    return Norm.apply(x, w, eps, BF16)


def norm_out(x, w, eps):
    return Norm.apply(x, w, eps, torch.float32)


linear = F.linear  # oneDNN's product of bfloat16


class Heads(Function):
    @staticmethod
    def forward(ctx, x, w, cos, sin, shape, eps):
        n_batch, n_t, n_head, d = shape
        y, inv = torch.empty(n_batch, n_head, n_t, d, dtype=BF16), torch.empty(n_batch * n_t * n_head)
        k_heads_forward(at(x), at(w), at(cos), at(sin), at(y), at(inv), *shape, eps)
        ctx.save_for_backward(x, w, cos, sin, inv)
        ctx.shape = shape
        return y

    @staticmethod
    def backward(ctx, g):
        x, w, cos, sin, inv = ctx.saved_tensors
        g = g.contiguous()
        gx, gw = torch.empty_like(x), None if w is None else torch.zeros_like(w)
        k_heads_backward(at(g), at(x), at(inv), at(w), at(cos), at(sin), at(gx), at(gw), *ctx.shape)
        return gx, gw, None, None, None, None


def heads(x, w, turn, shape, eps):
    return Heads.apply(x, w, *(turn or (None, None)), shape, eps)


class Attend(Function):
    @staticmethod
    def forward(ctx, q, k, v, window):
        p = torch.bmm(q, k.transpose(1, 2))
        n_t = k.shape[1]
        k_softmax_forward(at(p), p.numel() // n_t, n_t, window)
        ctx.save_for_backward(q, k, v, p)
        ctx.window = window
        return torch.bmm(p, v)

    @staticmethod
    def backward(ctx, g):
        q, k, v, p = ctx.saved_tensors
        g = g.contiguous()
        n_t = k.shape[1]
        gv = torch.bmm(p.transpose(1, 2), g)
        gs = torch.bmm(g, v.transpose(1, 2)).contiguous()
        k_softmax_backward(at(p), at(gs), gs.numel() // n_t, n_t, ctx.window)
        return torch.bmm(gs, k), torch.bmm(gs.transpose(1, 2), q), gv, None


attend = Attend.apply


class Gate(Function):
    @staticmethod
    def forward(ctx, g, u):
        h = torch.empty_like(g)
        k_gate_forward(at(g), at(u), g.shape[1], at(h), *g.shape)
        ctx.save_for_backward(g, u)
        return h

    @staticmethod
    def backward(ctx, gh):
        g, u = ctx.saved_tensors
        gh = gh.contiguous()
        gg, gu = torch.empty_like(g), torch.empty_like(u)
        k_gate_backward(at(gh), at(g), at(u), g.shape[1], at(gg), at(gu), *g.shape)
        return gg, gu


gate = Gate.apply


class Experts(Function):
    """One product a matrix and expert; rows lie sorted by expert."""

    @staticmethod
    def forward(ctx, h, weight, routing, gate_up, down):
        n, used = weight.shape
        d, f = down.shape[1:]
        x = h.index_select(0, routing.token)
        gu, a, y = (torch.empty(len(x), m, dtype=BF16) for m in (2 * f, f, d))
        spans = [(e, slice(i, j)) for e, (i, j) in enumerate(zip(routing.limits, routing.limits[1:])) if i < j]
        for e, rows in spans:
            torch.mm(x[rows], gate_up[e].t(), out=gu[rows])
        k_gate_forward(at(gu), at(gu, f), 2 * f, at(a), len(x), f)
        for e, rows in spans:
            torch.mm(a[rows], down[e].t(), out=y[rows])
        out = torch.empty(n, d)
        k_scatter_forward(at(y), at(routing.at), at(weight), at(out), n, used, d)
        ctx.save_for_backward(x, weight, gate_up, down, routing.at, gu, a, y)
        ctx.spans = spans
        return out

    @staticmethod
    def backward(ctx, g):
        x, weight, gate_up, down, back, gu, a, y = ctx.saved_tensors
        g = g.contiguous()
        n, used = weight.shape
        d, f = down.shape[1:]
        gy, g_weight = torch.zeros_like(y), torch.empty_like(weight)  # zeros: rows that pad
        k_scatter_backward(at(g), at(y), at(back), at(weight), at(gy), at(g_weight), n, used, d)
        g_gate_up, g_down = torch.empty_like(gate_up), torch.empty_like(down)
        for e in set(range(len(down))) - {e for e, _ in ctx.spans}:
            g_gate_up[e].zero_()
            g_down[e].zero_()
        ga, g_gu, gx = torch.empty_like(a), torch.empty_like(gu), torch.empty_like(x)
        for e, rows in ctx.spans:
            torch.mm(gy[rows], down[e], out=ga[rows])
            torch.mm(gy[rows].t(), a[rows], out=g_down[e])
        k_gate_backward(at(ga), at(gu), at(gu, f), 2 * f, at(g_gu), at(g_gu, f), len(x), f)
        for e, rows in ctx.spans:
            torch.mm(g_gu[rows], gate_up[e], out=gx[rows])
            torch.mm(g_gu[rows].t(), x[rows], out=g_gate_up[e])
        gh = gx.index_select(0, back).view(n, used, d).sum(1)
        return gh, g_weight, None, g_gate_up, g_down


experts = Experts.apply


class Loss(Function):
    @staticmethod
    def forward(ctx, z, target, cap):
        nll = torch.empty(len(z))
        k_loss(at(z), at(target), at(nll), *z.shape, cap, 1.0 / len(z))  # z is its gradient now
        ctx.save_for_backward(z)
        ctx.mark_non_differentiable(nll)
        return nll.mean(), nll

    @staticmethod
    def backward(ctx, g, _):
        return ctx.saved_tensors[0], None, None  # nothing but the loss itself is ever derived from


def loss(x, embedding, target, cap):
    return Loss.apply(linear(x, embedding.to(BF16)), target, cap)


class Step(ctypes.Structure):
    """struct adamw"""
    _fields_ = [(name, R) for name in ("rate", "beta1", "beta2", "eps", "decay", "bias1", "bias2", "scale")]


class AdamW:
    """Holds the parameters in float32; `low` is what the model computes with: big matrices in bfloat16."""

    def __init__(self, params, decay=0.02, betas=(0.9, 0.95), eps=1e-8, clip=1.0):
        self.params, self.decay, self.betas, self.eps, self.clip = params, decay, betas, eps, clip
        self.first = {name: torch.zeros_like(p) for name, p in params.items()}
        self.second = {name: torch.zeros_like(p) for name, p in params.items()}
        self.steps = 0
        self.low = {name: p.to(BF16) if is_matrix(name) else p for name, p in params.items()}
        for p in self.low.values():
            p.requires_grad_(True)

    def step(self, rate):
        """Take one step down the gradients and forget them. Return: their norm."""
        self.steps += 1
        grads = {name: p.grad.contiguous() for name, p in self.low.items()}
        size = sum(k_sum_of_squares(at(g), g.dtype == BF16, g.numel()) for g in grads.values()) ** 0.5
        step = Step(rate=rate, beta1=self.betas[0], beta2=self.betas[1], eps=self.eps,
                    bias1=1 - self.betas[0] ** self.steps, bias2=1 - self.betas[1] ** self.steps,
                    scale=min(1.0, self.clip / (size + 1e-6)))
        for name, p in self.params.items():
            g, low = grads[name], self.low[name]
            step.decay = self.decay if p.dim() > 1 else 0.0
            k_adamw(ctypes.addressof(step), at(p), at(low) if low.dtype == BF16 else None, at(g),
                    g.dtype == BF16, at(self.first[name]), at(self.second[name]), p.numel())
            low.grad = None
        return size

    def state(self):
        return {"first": self.first, "second": self.second, "steps": self.steps}

    def restore(self, state):
        self.first, self.second, self.steps = state["first"], state["second"], state["steps"]
