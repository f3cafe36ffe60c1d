"""Loss and bits per byte from known token losses; the windows of the training prefix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tune_dd.evaluation import TRAIN_EVAL_TOKENS, evaluate, training_windows

CPU = torch.device("cpu")


def test_loss_counts_every_token_and_bits_per_byte_only_those_with_bytes() -> None:
    token_bytes = np.array([0, 1, 4], dtype=np.int64)  # token 0 is special
    batches = [
        (np.zeros((1, 3), np.int64), np.array([[0, 1, 2]])),
        (np.zeros((2, 2), np.int64), np.array([[2, 2], [1, 0]])),
    ]
    losses = {0: 5.0, 1: 1.0, 2: 2.0}

    def token_losses(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[losses[int(t)] for t in row] for row in targets])

    found = evaluate(token_losses, batches, token_bytes, CPU)
    assert found.tokens == 7
    assert found.loss == pytest.approx((2 * 5.0 + 2 * 1.0 + 3 * 2.0) / 7)
    assert found.bpb == pytest.approx((2 * 1.0 + 3 * 2.0) / (math.log(2) * (2 * 1 + 3 * 4)))


def test_a_uniform_model_over_single_bytes_costs_eight_bits() -> None:
    targets = np.arange(256).reshape(4, 64)
    found = evaluate(
        lambda inputs, t: torch.full(t.shape, math.log(256)), [(targets, targets)], np.ones(256, np.int64), CPU
    )
    assert found.bpb == pytest.approx(8.0)


def test_sums_are_double_precision() -> None:
    """A float32 sum of so many equal losses would be off in the fifth digit."""
    targets = np.zeros((1000, 1000), np.int64)
    found = evaluate(lambda i, t: torch.full(t.shape, 0.1), [(targets, targets)] * 3, np.ones(1, np.int64), CPU)
    assert found.loss == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_without_bytes_there_are_no_bits_per_byte() -> None:
    targets = np.zeros((1, 4), np.int64)
    found = evaluate(lambda i, t: torch.ones(t.shape), [(targets, targets)], np.zeros(1, np.int64), CPU)
    assert math.isnan(found.bpb)
    assert found.loss == 1.0


@pytest.mark.parametrize("unique", [129, 4000, TRAIN_EVAL_TOKENS])
def test_a_small_prefix_is_evaluated_whole_and_never_left(unique: int) -> None:
    tokens = np.arange(40_000, dtype=np.uint16)
    targets = np.concatenate([t for _, t in training_windows(tokens, unique, 128, 16)])
    assert set(targets.ravel()) == set(range(1, unique))
    assert targets.size < unique + 128


def test_a_large_prefix_is_sampled_evenly_and_the_same_every_time() -> None:
    tokens = (np.arange(1_000_000) % 60_000).astype(np.uint16)
    first, again = (list(training_windows(tokens, 1_000_000, 128, 50)) for _ in range(2))
    inputs = np.concatenate([i for i, _ in first])
    assert inputs.shape == (128, 128)
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert all(np.array_equal(i[:, 1:], t[:, :-1]) for i, t in first)
    assert [len(i) for i, _ in first] == [50, 50, 28]
