"""Masks: their rate, their scale, what they depend on."""

from __future__ import annotations

import pytest
import torch

from tune_dd.dropout import DropoutMasks, keep_threshold

torch.set_num_threads(1)  # tests run side by side; threads that wait for each other cost more than they give

SHAPE = (64, 1001)


def masks(rate: float, key: tuple[int, int, int], n: int = 2, *, on_device: bool = False) -> list[torch.Tensor]:
    source = DropoutMasks(torch.device("cpu"), on_device)
    source.begin(rate, *key)
    return [source.next(SHAPE) for _ in range(n)]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("rate", [0.02, 0.3, 0.65])
def test_a_mask_drops_its_rate_and_keeps_the_mean(rate: float, on_device: bool) -> None:
    mask = masks(rate, (1, 0, 0), on_device=on_device)[0]
    dropped = (mask == 0).double().mean().item()
    spread = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(dropped - rate) < 4 * spread + 2**-16
    kept = mask[mask > 0].unique()
    assert kept.numel() == 1
    assert kept.item() == pytest.approx(1 / (1 - rate), rel=1e-4)


@pytest.mark.parametrize("on_device", [False, True])
def test_masks_are_a_function_of_their_key_alone(on_device: bool) -> None:
    first = masks(0.4, (1, 2, 3), on_device=on_device)
    again = masks(0.4, (1, 2, 3), on_device=on_device)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3)):
        assert not torch.equal(first[0], masks(0.4, other, on_device=on_device)[0])


@pytest.mark.parametrize("on_device", [False, True])
def test_what_a_larger_rate_keeps_a_smaller_one_keeps_too(on_device: bool) -> None:
    low, high = (masks(rate, (7, 0, 1), on_device=on_device)[1] for rate in (0.2, 0.5))
    assert ((high > 0) <= (low > 0)).all()
    assert (low > 0).sum() > (high > 0).sum()


def test_no_dropout_is_inactive_and_the_next_step_can_switch_it_on_again() -> None:
    source = DropoutMasks(torch.device("cpu"))
    assert not source.active
    source.begin(0.3, 0, 0, 0)
    assert source.active
    source.begin(0.0, 0, 0, 1)
    assert not source.active


def test_a_mask_fills_the_tensor_it_is_given() -> None:
    source, out = DropoutMasks(torch.device("cpu")), torch.full(SHAPE, torch.nan)
    source.begin(0.3, 1, 0, 0)
    assert source.next(SHAPE, out) is out
    assert torch.equal(out, masks(0.3, (1, 0, 0))[0])


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        keep_threshold(rate)
