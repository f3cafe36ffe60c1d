"""The model, its loss and AdamW in the plainest operations there are, frozen: what every faster way is held against.

Nothing here is the product's own: shapes, masks and updates are written out from their formulas.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


class PlainMasks:
    """Dropout masks of one step: 16 bits of SFC64, seeded by (seed, stage, step), below round((1 - rate) 2^16)."""

    def __init__(self, rate: float, seed: int, stage: int, step: int) -> None:
        self.kept = round((1 - rate) * 65_536)
        self.words = np.random.SFC64(np.random.SeedSequence((seed, stage, step)))

    def drop(self, x: Tensor) -> Tensor:
        if self.kept == 65_536:
            return x
        bits = self.words.random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()].astype(np.int64)
        keep = torch.from_numpy(bits + 32_768 < self.kept).view(x.shape)
        return torch.where(keep, x * (65_536 / self.kept), torch.zeros(()))


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 2.0**-23).sqrt()


def rotate(x: Tensor) -> Tensor:
    """Channels 2 i and 2 i + 1 of x (..., T, d) turned by the angle -t 10,000^(-2 i / d)."""
    context, width = x.shape[-2:]
    angle = torch.outer(torch.arange(context).float(), 10_000.0 ** (-torch.arange(0, width, 2).float() / width))
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angle.cos() + odd * angle.sin(), odd * angle.cos() - even * angle.sin())
    return torch.stack(turned, -1).flatten(-2)


def loss(weights: dict[str, Tensor], n_head: int, inputs: Tensor, targets: Tensor, masks: PlainMasks) -> Tensor:
    """Mean cross-entropy of a batch (B, T), by the names of the product's weights."""
    batch, context = inputs.shape
    x = masks.drop(norm(weights["embedding.weight"][inputs]))
    ahead = torch.ones(context, context).triu(1).bool()
    for index in range(sum("qkv" in name for name in weights)):
        qkv, attn_out, mlp_in, mlp_out = (
            weights[f"blocks.{index}.{name}.weight"] for name in ("qkv", "attn_out", "mlp_in", "mlp_out")
        )
        q, k, v = (norm(x) @ qkv.T).view(batch, context, 3, n_head, -1).permute(2, 0, 3, 1, 4)
        scores = norm(rotate(q)) @ norm(rotate(k)).transpose(-1, -2) / math.sqrt(q.shape[-1])
        mixed = scores.masked_fill(ahead, -math.inf).softmax(-1) @ v
        x = x + masks.drop(mixed.transpose(1, 2).reshape(x.shape) @ attn_out.T)
        x = x + masks.drop((norm(x) @ mlp_in.T).clamp(min=0).square() @ mlp_out.T)
    log_p = (norm(x) @ weights["head.weight"].T).log_softmax(-1)
    return -log_p.gather(-1, targets[..., None]).mean()


class PlainAdamW:
    """AdamW without weight decay, betas 0.9 and 0.95."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights, self.steps = weights, 0
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights.values()]

    def step(self, grads: tuple[Tensor, ...], rate: float) -> None:
        self.steps += 1
        with torch.no_grad():
            for weight, grad, (first, second) in zip(self.weights.values(), grads, self.moments, strict=True):
                first += (grad - first) * (1 - 0.9)
                second += (grad.square() - second) * (1 - 0.95)
                unbiased = second / (1 - 0.95**self.steps)
                weight -= rate * first / (1 - 0.9**self.steps) / (unbiased.sqrt() + 1e-8)
