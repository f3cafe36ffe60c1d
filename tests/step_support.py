"""What the tests of the hand-written steps share: tokens to learn and a model whose every gradient shows."""

from __future__ import annotations

import torch
from torch import Tensor

from tune_dd.model import Transformer
from tune_dd.regimes import ModelSpec

SMALL = ModelSpec(2, 2, 32)


def random_tokens(vocab_size: int, batch: int, context: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 (batch, context), each contiguous."""
    drawn = torch.randint(0, vocab_size, (batch, context + 1), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


def perturbed_model(vocab_size: int, context: int, spec: ModelSpec = SMALL) -> Transformer:
    model = Transformer(spec, vocab_size, context)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # zero projections would hide most of the gradient
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model
