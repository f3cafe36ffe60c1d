"""The rate as a function of the step, and AdamW against its textbook form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tune_dd.builtin_regimes import POCKET
from tune_dd.optimizer import EPS, AdamW, learning_rate
from tune_dd.regimes import Protocol

torch.set_num_threads(1)  # tests run side by side; threads that wait for each other cost more than they give

CONSTANT = Protocol(batch_size=1, context=1, learning_rate=0.02, warmup_steps=10)
WARMDOWN = replace(CONSTANT, rate_schedule="warmdown", warmdown_fraction=0.4)


def test_warm_up_is_linear_and_then_constant() -> None:
    rates = [learning_rate(CONSTANT, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.002 * (i + 1) for i in range(10)])
    assert set(rates[9:]) == {0.02}


def test_a_constant_rate_does_not_depend_on_the_end_of_the_run() -> None:
    assert [learning_rate(CONSTANT, s, 50) for s in range(50)] == [learning_rate(CONSTANT, s, 900) for s in range(50)]


def test_warm_down_is_linear_to_zero_over_the_last_fraction() -> None:
    rates = [learning_rate(WARMDOWN, step, 100) for step in range(101)]
    assert rates[:61] == [learning_rate(CONSTANT, step, 100) for step in range(61)]
    assert rates[60:] == pytest.approx([0.02 * (100 - step) / 40 for step in range(60, 101)])
    assert rates[100] == 0.0


def test_where_warm_up_and_warm_down_meet_the_lower_rules() -> None:
    rates = [learning_rate(replace(WARMDOWN, warmdown_fraction=1.0), step, 20) for step in range(21)]
    assert rates == pytest.approx([0.02 * min((s + 1) / 10, (20 - s) / 20) for s in range(21)])


def test_no_warm_up() -> None:
    assert learning_rate(replace(CONSTANT, warmup_steps=0), 0, 100) == 0.02


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_its_textbook_form(weight_decay: float) -> None:
    protocol = replace(POCKET.protocol, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 7, generator=generator))
    optimizer = AdamW([weight], protocol)
    x, m, v = weight.detach().double().clone(), torch.zeros(5, 7).double(), torch.zeros(5, 7).double()
    beta1, beta2 = protocol.betas
    for t in range(1, 31):
        gradient = torch.randn(5, 7, generator=generator)
        rate = learning_rate(protocol, t - 1, 30)
        weight.grad = gradient.clone()
        optimizer.step(rate)
        g = gradient.double()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        step = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + EPS)
        x = x - rate * weight_decay * x - rate * step
        torch.testing.assert_close(weight.detach().double(), x, rtol=1e-5, atol=1e-6)
