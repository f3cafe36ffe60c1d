"""Fifty steps of every way to train on cpu against the frozen plain model of tests/plain_model.py."""

from __future__ import annotations

from collections.abc import Callable

import plain_model
import pytest
import torch
from torch import Tensor

from tune_dd import kernels
from tune_dd.builtin_regimes import POCKET
from tune_dd.fused import FusedStep
from tune_dd.model import Transformer
from tune_dd.native import NativeStep
from tune_dd.optimizer import AdamW
from tune_dd.regimes import ModelSpec

torch.set_num_threads(1)  # tests run side by side; threads that wait for each other cost more than they give

SPEC, VOCAB, BATCH, CONTEXT = ModelSpec(2, 2, 64), 512, 4, 64
Step = Callable[[Tensor, Tensor], Tensor]


def by_autograd(model: Transformer) -> Step:
    def step(inputs: Tensor, targets: Tensor) -> Tensor:
        model.zero_grad()
        loss = model.loss(inputs, targets)
        loss.backward()
        return loss.detach()

    return step


def by_operations(model: Transformer) -> Step:
    return FusedStep(model, BATCH).loss_and_gradients


def by_kernels(model: Transformer) -> Step:
    library = kernels.load()
    if library is None:
        pytest.skip("no C compiler here")
    return NativeStep(library, model, BATCH).loss_and_gradients


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("way", [by_autograd, by_operations, by_kernels])
def test_fifty_steps_have_the_losses_of_the_plain_model(way: Callable[[Transformer], Step], rate: float) -> None:
    model = Transformer(SPEC, VOCAB, CONTEXT, seed=3)
    step, optimizer = way(model), AdamW(model.parameters(), POCKET.protocol)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    plain = plain_model.PlainAdamW(weights)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, VOCAB, (50, BATCH, CONTEXT + 1), generator=generator) // 8  # some order to learn
    losses = []
    for index, tokens in enumerate(drawn):
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        model.set_dropout(rate, 5, 1, index)
        ours = step(inputs, targets)
        optimizer.step(1e-3)
        masks = plain_model.PlainMasks(rate, 5, 1, index)
        theirs = plain_model.loss(weights, SPEC.n_head, inputs, targets, masks)
        plain.step(torch.autograd.grad(theirs, list(weights.values())), 1e-3)
        losses.append([float(ours), float(theirs.detach())])
    ours_all, plain_all = torch.tensor(losses).T
    torch.testing.assert_close(ours_all, plain_all, rtol=1e-5, atol=0.0)
    assert ours_all[-1] < ours_all[0] - 1.0
