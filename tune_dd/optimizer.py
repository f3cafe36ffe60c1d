"""AdamW and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tune_dd.regimes import Protocol

EPS = 1e-8  # AdamW's usual value


def learning_rate(protocol: Protocol, step: int, total_steps: int) -> float:
    """Rate of the update that follows ``step`` done ones, a pure function of the step.

    Linear warm-up, (step + 1) / warmup_steps of the peak; then constant, or under ``warmdown`` linear
    to zero over the last ``warmdown_fraction`` of ``total_steps``. Where both apply the lower one rules.
    """
    factor = 1.0
    if step < protocol.warmup_steps:
        factor = (step + 1) / protocol.warmup_steps
    if protocol.rate_schedule == "warmdown":
        factor = min(factor, (total_steps - step) / (protocol.warmdown_fraction * total_steps))
    return protocol.learning_rate * factor


def build_optimizer(parameters: Iterable[torch.nn.Parameter], protocol: Protocol) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused: one kernel on cpu, cuda and mps, faster than foreach.

    Weight decay acts on every parameter: all of them are matrices.
    """
    return torch.optim.AdamW(
        list(parameters),
        lr=protocol.learning_rate,
        betas=protocol.betas,
        eps=EPS,
        weight_decay=protocol.weight_decay,
        fused=True,
    )
