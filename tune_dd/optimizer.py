"""AdamW and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.adamw import adamw

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


class AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused: one kernel on cpu, cuda and mps, faster than foreach.

    Over torch's functional form, because making a ``torch.optim.Optimizer`` imports torch._dynamo: 1.3 s of
    cpu in every worker before its first step. Weight decay acts on every parameter: all are matrices.

    Attributes:
        exp_avgs, exp_avg_sqs: the moments, one tensor per parameter, in the order of the parameters.
        steps: updates done, a float32 tensor per parameter, as the fused kernel reads them.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], protocol: Protocol) -> None:
        self.parameters = list(parameters)
        self.protocol = protocol
        self.exp_avgs = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update from the parameters' gradients at the given learning rate."""
        beta1, beta2 = self.protocol.betas
        adamw(
            list(self.parameters),
            [p.grad for p in self.parameters if p.grad is not None],
            self.exp_avgs,
            self.exp_avg_sqs,
            [],
            self.steps,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=self.protocol.weight_decay,
            eps=EPS,
            maximize=False,
        )
