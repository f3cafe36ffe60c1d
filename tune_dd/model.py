"""The transformer: nanochat's core, with dropout whose rate is set at any time.

Rotary positions, normalised queries and keys, RMSNorm without parameters (also right after the
embedding), relu^2 MLP four times the width, embedding and head untied, no biases, output projections
and head initialised to zero. nanochat's logit softcap is left out: it guards large models trained at
high rates, costs a pass over all logits, and with a normalised final state logits stay moderate here.

Architecture and initialisation are derived from nanochat (https://github.com/karpathy/nanochat):

    MIT License. Copyright (c) 2025 Andrej Karpathy. Permission is hereby granted, free of charge, to any
    person obtaining a copy of this software and associated documentation files (the "Software"), to deal
    in the Software without restriction, including without limitation the rights to use, copy, modify,
    merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to
    whom the Software is furnished to do so, subject to the following conditions: The above copyright
    notice and this permission notice shall be included in all copies or substantial portions of the
    Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
    INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
    NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
    OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
    CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_dd.dropout import DropoutMasks, key_seed
from tune_dd.regimes import ModelSpec

ROTARY_BASE = 10_000.0  # nanochat's
RMS_EPS = torch.finfo(torch.float32).eps  # F.rms_norm's default
_INIT_KEY = 0x1417  # sets the initialisation's random numbers apart from those of masks


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019), no parameters."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): turn pairs of channels of x (B, H, T, d), cos and sin (T, d/2).

    Neighbouring channels pair up, so a pair is a complex number in memory; nanochat pairs the two halves
    of a head, which is the same model with the rows of its projection in another order.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos + odd * sin, odd * cos - even * sin), dim=-1).flatten(-2)


class Block(nn.Module):
    """Attention and MLP, each a residual branch that reads a normalised stream."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.n_embd
        self.n_head = spec.n_head
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal self-attention of x (B, T, D)."""
        batch, context, width = x.shape
        heads = self.qkv(x).view(batch, context, 3, self.n_head, width // self.n_head).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        q, k = rms_norm(rotate(q, cos, sin)), rms_norm(rotate(k, cos, sin))
        y = F.scaled_dot_product_attention(q, k.to(v.dtype), v, is_causal=True)
        return self.attn_out(y.transpose(1, 2).reshape(batch, context, width))  # type: ignore[no-any-return]

    def mlp(self, x: Tensor) -> Tensor:
        return self.mlp_out(F.relu(self.mlp_in(x)).square())  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A causal language model over ``vocab_size`` tokens and up to ``context`` positions.

    Dropout acts on the embedding's output and on the output of every residual branch (attention, MLP)
    before it is added to the stream. It does not act on attention probabilities: that costs 26 % of a
    step on cpu and rules out fused attention kernels. Masks are drawn as ``set_dropout`` says; without a
    call, or after ``set_dropout(0.0)``, there is no dropout.

    Args:
        spec: layers, heads, width.
        seed: fixes the initial weights, whatever the device.
        masks_on_device: see ``DropoutMasks``; None picks by device.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        spec: ModelSpec,
        vocab_size: int,
        context: int,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        masks_on_device: bool | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.vocab_size, self.context = spec, vocab_size, context
        self.embedding = nn.Embedding(vocab_size, spec.n_embd)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.n_layer))
        self.head = nn.Linear(spec.n_embd, vocab_size, bias=False)
        cos, sin = rotary_tables(context, spec.n_embd // spec.n_head)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise(seed)
        device = device or torch.device("cpu")
        self.to(device)
        self.masks = DropoutMasks(device, masks_on_device)

    def _initialise(self, seed: int) -> None:
        """nanochat's: embedding N(0, 1), matrices N(0, min(1, out/in)/in), output projections and head zero."""
        generator = torch.Generator().manual_seed(key_seed(seed, _INIT_KEY))
        for name, weight in self.named_parameters():
            if name.startswith("embedding"):
                std = 1.0
            elif name.startswith("head") or "_out." in name:
                std = 0.0
            else:
                fan_out, fan_in = weight.shape
                std = math.sqrt(min(1.0, fan_out / fan_in) / fan_in)
            with torch.no_grad():
                weight.zero_() if std == 0.0 else weight.normal_(0.0, std, generator=generator)

    @property
    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def set_dropout(self, rate: float, seed: int = 0, stage: int = 0, step: int = 0) -> None:
        """Dropout of the next forward pass: its rate in [0, 1), and the key that determines its masks."""
        self.masks.begin(rate, seed, stage, step)

    def _drop(self, x: Tensor) -> Tensor:
        return x * self.masks.next(tuple(x.shape)) if self.masks.active else x

    def hidden(self, inputs: Tensor) -> Tensor:
        """Final normalised states (B, T, D) of inputs (B, T), T at most ``context``."""
        context = inputs.shape[1]
        cos, sin = self.cos[:context], self.sin[:context]
        x = self._drop(rms_norm(self.embedding(inputs)))
        for block in self.blocks:
            assert isinstance(block, Block)
            x = x + self._drop(block.attend(rms_norm(x), cos, sin))
            x = x + self._drop(block.mlp(rms_norm(x)))
        return rms_norm(x)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, T, V) of inputs (B, T), int64."""
        return self.head(self.hidden(inputs))  # type: ignore[no-any-return]

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, nats per token, a scalar on the device."""
        logits = self(inputs).float()
        return F.cross_entropy(logits.view(-1, self.vocab_size), targets.view(-1))

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target, nats, float32 (B, T)."""
        logits = self(inputs).float()
        return F.cross_entropy(logits.view(-1, self.vocab_size), targets.view(-1), reduction="none").view_as(targets)


def rotary_tables(context: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, float32 (context, head_dim / 2)."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()
